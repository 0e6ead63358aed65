package backend

import (
	"context"
	"errors"
	"fmt"
	"time"

	"postern/proxy"
	"postern/proxy/wire"
)

// Credentials give the tokens with which Postern itself logs in.
type Credentials interface {
	// Credentials returns the name and the token for account at a server of a protocol.
	// They are for one connection; the caller clears the token. force means that the
	// server has refused the token that was returned last: Credentials returns another
	// one, or an error if another one was asked for a moment ago. until is when a session
	// that begins now should end, because the server ends it a little later, with the
	// token; zero: the server does not.
	Credentials(ctx context.Context, account, protocol string, force bool) (user string, token *proxy.Secret, until time.Time, err error)
}

// withCredentials calls logIn with l, or with a copy of l that has a token of
// s.Credentials. If the server refuses the token, logIn is called once more, with another
// token and for another connection.
func (s *Server) withCredentials(ctx context.Context, l *proxy.Login, logIn func(*proxy.Login) (*Conn, error)) (*Conn, error) {
	switch {
	case carriesToken(l.Mechanism), s.Credentials == nil && !l.Verified:
		return logIn(l)
	case s.Credentials == nil:
		return nil, verified(s.unavailable(errors.New("the backend takes passwords, and Postern has kept the client's for itself")))
	case !l.Verified:
		// No token opens a mailbox for a password that nobody has checked.
		return nil, s.refuse(doubtful, errors.New("the backend takes tokens, and nothing has checked the client's password"))
	}
	conn, err := s.logInWithToken(ctx, l, false, logIn)
	if errors.Is(err, ErrTokenRefused) && ctx.Err() == nil {
		again, secondErr := s.logInWithToken(ctx, l, true, logIn)
		if _, ok := errors.AsType[*credentialsError](secondErr); !ok {
			return again, secondErr
		}
	}
	return conn, err
}

func (s *Server) logInWithToken(ctx context.Context, l *proxy.Login, force bool, logIn func(*proxy.Login) (*Conn, error)) (*Conn, error) {
	user, token, until, err := s.Credentials.Credentials(ctx, l.Account, s.Protocol, force)
	if err != nil {
		return nil, verified(s.unavailable(&credentialsError{err}))
	}
	defer token.Clear()
	if l.Mailbox != "" && l.Mailbox != user { // a session that connects again would go on in other mail
		return nil, verified(s.unavailable(errors.New("the account has another mailbox there now, which a new login opens")))
	}
	l.Mailbox = user
	own := *l
	own.User, own.Account = l.Account, user // both names are redacted in alerts
	own.Mechanism, own.Secret = wire.MechanismXOAuth2, token
	conn, err := logIn(&own)
	if err != nil {
		return nil, verified(err)
	}
	conn.until = until
	return conn, nil
}

// A credentialsError is why there is no token.
type credentialsError struct{ err error }

func (e *credentialsError) Error() string { return e.err.Error() }
func (e *credentialsError) Unwrap() error { return e.err }

// verdictFor returns the verdict err on l's credentials. A verdict on a token of
// Postern's own is no verdict on the client's password, and has no challenge for it.
func (s *Server) verdictFor(l *proxy.Login, err error) error {
	r, ok := errors.AsType[*proxy.Refusal](err)
	if !ok || !l.Verified || !carriesToken(l.Mechanism) {
		return err
	}
	// A challenge says that the token is refused, whatever the words after it are: RFC 7628
	// section 3.2.2.
	if refused := r.Reason == proxy.Wrong || r.Challenge != nil && r.Doubtful; refused && !errors.Is(r.Err, ErrPolicy) {
		r.Err = fmt.Errorf("%w: %w", r.Err, ErrTokenRefused)
	}
	if !r.Reason.Temporary() {
		r.Reason = proxy.Unavailable
	}
	r.Challenge = nil
	return verified(r)
}

// verified marks a Refusal as one of a client whose password was right.
func verified(err error) error {
	if r, ok := errors.AsType[*proxy.Refusal](err); ok {
		r.Verified, r.Doubtful = true, false
	}
	return err
}

// carriesToken reports whether the Secret of a mechanism is a bearer token.
func carriesToken(mechanism string) bool {
	return mechanism == wire.MechanismXOAuth2 || mechanism == wire.MechanismOAuthBearer
}
