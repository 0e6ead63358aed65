package proxy

import (
	"errors"
	"os"
	"time"
)

// attempt is one attempt to log in: the dialogue up to complete credentials, then
// guard, backend and session. It is the only emitter of Attempt.
func (s *Server) attempt(c *conn, d Dialogue) (welcome string, err error) {
	l, err := s.credentials(c, d)
	if err != nil && (ReasonOf(err) == 0 || ReasonOf(err) == TimedOut || c.ctx.Err() != nil) {
		if l != nil {
			l.Secret.Clear()
		}
		return "", err // no attempt: no credentials came, or the connection ends
	}
	begun := time.Now()
	e := Attempt{Client: c.Client, Via: ViaOther}
	if l != nil {
		e.Via, e.User = l.Via, l.User
	}
	panicking := true
	defer func() {
		if panicking {
			e.Err = NewRefusal(Internal, nil)
		}
		if l != nil {
			e.Account, e.Device = l.Account, l.Device
			if e.Err != nil {
				l.Secret.Clear()
			}
		}
		s.observe(e)
	}()
	if err != nil {
		panicking = false
		e.Err, _ = errors.AsType[*Refusal](err)
		if l != nil {
			l.Account, _ = c.svc.Account(l.User) // operators write to owners of accounts that log in without TLS
		}
		return "", err
	}
	e.ID = l.Hello.ID
	welcome, err = s.logInAndOpen(c, l, &e)
	panicking, e.Duration = false, time.Since(begun)
	if e.Err == nil {
		e.Err = err
	}
	return welcome, err
}

// credentials lets the dialogue talk, up to the deadline. A Login with a *Refusal
// says whose credentials the dialogue refuses.
func (s *Server) credentials(c *conn, d Dialogue) (*Login, error) {
	c.setStep(StepLogin)
	_ = c.SetReadDeadline(time.Now().Add(c.svc.timeouts().Login))
	login, err := d.Login(c.ctx)
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return nil, NewRefusal(TimedOut, errTooSlow)
	case errors.Is(err, ErrEarlyTLS):
		s.observe(Handshake{Client: c.Client, Result: HandshakeEarly, Err: err})
	}
	if err == nil {
		login.Client = c.Client
		_ = c.SetReadDeadline(time.Time{})
	}
	return login, err
}

// logInAndOpen asks guard and backend about credentials, and opens the session.
func (s *Server) logInAndOpen(c *conn, l *Login, e *Attempt) (welcome string, err error) {
	if l.Account, err = c.svc.Account(l.User); err != nil {
		return "", NewRefusal(Malformed, err)
	}
	c.lastAccount = l.Account
	c.setStep(StepVerifying)
	if err = s.verify(c, l, e); err != nil {
		return "", err
	}
	if r, ok := c.session.(Reporter); ok {
		e.Backend = r.Backend()
	}
	c.setStep(StepOpening)
	if welcome, err = c.session.Open(c.ctx); err != nil {
		c.closeSession()
		return "", err
	}
	account, backend := l.Account, e.Backend // pointers into l and e would keep all of l and e alive
	c.account.Store(&account)
	c.backend.Store(&backend)
	c.open.Store(true)
	s.observe(Opened{Client: c.Client, Account: account, Backend: backend})
	return welcome, nil
}

// verify reserves with the guard, logs in at the backend, and settles with the
// guard whatever happens. A wrong answer is delayed for as long as the guard
// asks.
func (s *Server) verify(c *conn, l *Login, e *Attempt) (err error) {
	err = NewRefusal(Internal, nil) // what a panic settles with: not a guess
	settled := false
	defer func() {
		if !settled {
			c.permit.Settle(err)
		}
	}()
	l.Watch = c.Watch
	err = c.permit.Try(c.ctx, l)
	if err == nil {
		err = NewRefusal(Internal, nil)
		err = c.logIn(l)
	}
	l.Watch = nil // sessions keep l
	settled = true
	delay := c.permit.Settle(err)
	if p, ok := c.permit.(DecisionReporter); ok {
		e.Decision = p.Decision()
	}
	if err != nil && delay > 0 {
		e.Delay = delay
		c.setStep(StepWaiting)
		l.Secret.Clear()
		if left := c.Wait(c.ctx, delay); left != nil {
			e.Err = err // the answer is known although the client has left
			return left
		}
	}
	return err
}

// logIn logs in at the backend. Then a PostAuthChecker may still refuse.
func (c *conn) logIn(l *Login) error {
	session, err := c.svc.Backend.Login(c.ctx, l)
	if err != nil {
		return err
	}
	c.session = session // from here on end closes it, should a step panic
	device := l.Device  // a pointer into l would keep all of l alive
	c.device.Store(&device)
	if p, ok := c.permit.(PostAuthChecker); ok {
		if err := p.CheckPostAuth(c.ctx, l); err != nil {
			c.closeSession()
			return err
		}
	}
	return nil
}

// closeSession closes a session that the client never got.
func (c *conn) closeSession() {
	session := c.session
	c.session = nil
	_ = session.Close()
}
