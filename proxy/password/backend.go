package password

import (
	"context"
	"errors"
	"fmt"

	"postern/proxy"
	"postern/proxy/wire"
)

// A Backend is a proxy.Backend for accounts whose passwords Postern checks. Next logs in
// there with credentials of Postern's own: it gets a Login that is Verified and has no
// Secret.
type Backend struct {
	Serves  func(account string) bool // reports whether Next may log an account in; others are wrong, and no Check is asked. nil: all
	Check   Check
	Devices *Devices // for sessions of a device that is removed meanwhile; nil: Check asks no devices
	Next    proxy.Backend
}

// Login implements proxy.Backend. A token that the client has sent is for Next to check.
func (b *Backend) Login(ctx context.Context, l *proxy.Login) (proxy.Session, error) {
	if l.Mechanism != "" && l.Mechanism != wire.MechanismPlain {
		return b.Next.Login(ctx, l)
	}
	if b.Serves != nil && !b.Serves(l.Account) {
		return nil, proxy.NewRefusal(proxy.Wrong, errForeign)
	}
	if err := b.Check.Check(ctx, l); err != nil {
		return nil, err
	}
	l.Secret.Clear()
	l.Secret, l.Verified = nil, true
	s, err := b.Next.Login(ctx, l)
	if err != nil {
		return nil, afterRight(err)
	}
	if l.Device == "" || b.Devices == nil {
		return s, nil
	}
	stands := deviceLogin{Account: l.Account, Device: l.Device, Client: l.Client}
	return &session{Session: s, devices: b.Devices, login: stands}, nil
}

var errForeign = errors.New("the provider of the backend's tokens has not the account's domain")

// Stands returns nil if a login that was Verified may still be used: its device was not
// removed, and has not expired. The refusal is for a session that connects to its backend
// again.
func (b *Backend) Stands(ctx context.Context, l *proxy.Login) error {
	if l.Device == "" || b.Devices == nil {
		return nil
	}
	return b.Devices.stands(ctx, deviceLogin{Account: l.Account, Device: l.Device, Client: l.Client})
}

// afterRight returns what the client is told after a right password, whatever failed
// then. No answer to Postern's own credentials says that the client's password is wrong:
// the client would forget it. Nor does it cost a guess.
func afterRight(err error) error {
	r, ok := errors.AsType[*proxy.Refusal](err)
	if !ok {
		return err
	}
	told := *r
	told.Verified, told.Doubtful, told.Challenge = true, false, nil
	switch r.Reason {
	case proxy.Wrong, proxy.Malformed, proxy.Unsupported:
		told.Reason, told.Err = proxy.Unavailable, fmt.Errorf("the backend refuses Postern's own credentials: %w", withoutRefusal(r))
	}
	return &told
}

// withoutRefusal returns r as an error in whose tree there is no Refusal: the first one
// in a tree decides.
func withoutRefusal(r *proxy.Refusal) error {
	if r.Err != nil {
		return r.Err
	}
	return errors.New(r.Error())
}

// A session is the Session of a device.
type session struct {
	proxy.Session
	devices *Devices
	login   deviceLogin
}

// Open implements proxy.Session. From here on postern password remove sees the session,
// and ends it: a device that was removed before does not come in any more.
func (s *session) Open(ctx context.Context) (string, error) {
	if err := s.devices.stands(ctx, s.login); err != nil {
		return "", err
	}
	return s.Session.Open(ctx)
}

// Backend implements proxy.Reporter.
func (s *session) Backend() string {
	if r, ok := s.Session.(proxy.Reporter); ok {
		return r.Backend()
	}
	return ""
}

// Totals implements proxy.Reporter.
func (s *session) Totals() proxy.Totals {
	if r, ok := s.Session.(proxy.Reporter); ok {
		return r.Totals()
	}
	return proxy.Totals{}
}
