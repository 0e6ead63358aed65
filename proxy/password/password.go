// Package password checks the passwords that Postern itself knows: device passwords,
// which postern password makes, a passwd file, and another backend that verifies. The
// accounts are those of backends to which Postern logs in with credentials of its own.
//
// Nothing here learns a password from a login, and no configuration accepts any
// password: an account that no Check knows gets proxy.Wrong.
package password

import (
	"context"
	"errors"
	"time"

	"postern/proxy"
)

// A Check says whether the password of a Login is right.
type Check interface {
	// Check returns nil if the password is right, else a *proxy.Refusal: Wrong; a
	// Verified one if the password is right and may not be used here; or a temporary one
	// if that is not known. The Secret stays as it is.
	Check(ctx context.Context, l *proxy.Login) error
}

// Checks are asked in their order, until one says that the password is right.
type Checks []Check

var errNoCheck = errors.New("there is no device password, passwd file or backend to check the password with")

// Check implements Check. A password that is wrong for one Check may be right for the
// next. If none says that it is right, and one could not say, the refusal is temporary.
func (c Checks) Check(ctx context.Context, l *proxy.Login) error {
	if len(c) == 0 {
		return proxy.NewRefusal(proxy.Unavailable, errNoCheck)
	}
	var wrong, unknown error
	for _, one := range c {
		err := one.Check(ctx, l)
		r, ok := errors.AsType[*proxy.Refusal](err)
		switch {
		case err == nil, ok && r.Verified, ctx.Err() != nil:
			return err
		case ok && r.Reason == proxy.Wrong:
			wrong = err
		case unknown == nil:
			unknown = err
		}
	}
	if unknown != nil {
		return unknown
	}
	return wrong
}

// A Store is a Check that is observed.
type Store struct {
	Asked    Check
	Name     string // a Store... constant of package proxy
	Observer proxy.Observer
}

// Check implements Check.
func (s Store) Check(ctx context.Context, l *proxy.Login) error {
	begun := time.Now()
	err := s.Asked.Check(ctx, l)
	s.Observer.Observe(proxy.PasswordChecked{Store: s.Name, Duration: time.Since(begun), Err: err})
	return err
}

// Verify is a Check by a function, such as the login at another backend.
type Verify func(context.Context, *proxy.Login) error

// Check implements Check. The function gets a copy of l, so that it cannot clear the
// Secret, which the next Check needs.
func (v Verify) Check(ctx context.Context, l *proxy.Login) error {
	same := *l
	same.Secret = proxy.NewSecret(l.Secret.Reveal())
	defer same.Secret.Clear()
	return v(ctx, &same)
}

var errWrong = errors.New("the password is none of Postern's own")

func wrong() error { return proxy.NewRefusal(proxy.Wrong, errWrong) }
