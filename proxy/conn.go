package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"runtime/debug"
	"slices"
	"sync/atomic"
	"time"
)

// Why a connection ends. Session.Run may return each of them, and the causes of
// its context; Dialogue.Login returns ErrQuit and ErrEarlyTLS.
var (
	ErrIdle          = errors.New("nothing to do")                  // not an end: Run is called again when the client sends something
	ErrQuit          = errors.New("client said goodbye")            // QUIT, LOGOUT; nil means the same
	ErrClientClosed  = errors.New("client closed the connection")   // without QUIT or LOGOUT
	ErrBackendClosed = errors.New("backend closed the connection")  // before the client did
	ErrIdleTimeout   = errors.New("client was silent for too long") // after login
	ErrForbidden     = errors.New("command that is not permitted")  // it would hide the session: IMAP UNAUTHENTICATE, COMPRESS
	errTooSlow       = errors.New("client did not log in in time")  // before login
	ErrPreface       = errors.New("bad or missing PROXY header")    // before the guard is asked
	ErrEarlyTLS      = errors.New("client began TLS unasked")       // where STARTTLS has to come first
)

// goodbyeTime is how long a connection may take to end after its context has
// ended.
const goodbyeTime = 5 * time.Second

// A conn is what the Server knows about a connection. Fields that are not atomic
// belong to the goroutine that serves the connection.
type conn struct {
	*Conn
	services []*Service // of the listener
	svc      *Service   // the one for the client's address
	since    time.Time
	ctx      context.Context // kick, drain and shed are its cause
	cancel   context.CancelCauseFunc
	stop     func() bool // stops waiting for the end of ctx
	permit   Permit      // nil: not admitted
	asked    string      // the account of the last attempt: the operator may have texts for it
	session  Session     // nil: not logged in

	origin  atomic.Pointer[Client] // a copy of Client for info, before TLS
	account atomic.Pointer[string]
	backend atomic.Pointer[string]
	open    atomic.Bool // logged in
	step    atomic.Uint32
}

// setStep records where in its life the connection is.
func (c *conn) setStep(s Step) { c.step.Store(uint32(s)) }

// run serves a connection from its first octet to its end. The session gets a
// goroutine of its own: TLS and login have grown the stack of the first one, which
// ends with them.
func (s *Server) run(c *conn) {
	c.stop = context.AfterFunc(c.ctx, func() {
		c.Interrupt(context.Cause(c.ctx))
		time.AfterFunc(goodbyeTime, c.Abort)
	})
	if err := s.protect(c, s.serve); err != nil {
		s.end(c, err)
		return
	}
	go func() { s.end(c, s.protect(c, s.resume)) }()
}

// protect runs a step of a connection. It reports a panic and returns it as an
// error: a bug ends one connection and never the process.
func (s *Server) protect(c *conn, step func(*conn) error) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = reportPanic(s.observe, c.Client, v)
		}
	}()
	return step(c)
}

// reportPanic emits Panicked for the value of a recovered panic, and returns the
// panic as an error. It survives an observer that panics as well.
func reportPanic(observe func(Event), client Client, value any) (err error) {
	defer func() { _ = recover() }()
	err = fmt.Errorf("panic: %v", value)
	if observe != nil {
		observe(Panicked{Client: client, Value: value, Stack: debug.Stack()})
	}
	return err
}

// serve is the life of a connection up to its session.
func (s *Server) serve(c *conn) error {
	if err := s.admit(c); err != nil {
		return err
	}
	d := c.svc.Dialogue(c.Conn)
	if err := s.secure(c); err != nil {
		// Plain text is refused in plain text. After a failure of TLS the client has
		// its alert and gets no words.
		if r := c.refusal(err); r != nil && ReasonOf(err) == Plaintext {
			_ = d.Refuse(r)
		}
		return err
	}
	for {
		welcome, err := s.attempt(c, d)
		if err == nil {
			return d.Accept(welcome)
		}
		r := c.refusal(err)
		if r == nil {
			return err
		}
		if err := d.Refuse(r); err != nil { // the dialogue counts refusals, and knows which are final
			return err
		}
		if c.ctx.Err() != nil { // the client has been told why
			return context.Cause(c.ctx)
		}
	}
}

// resume serves the session until its end.
func (s *Server) resume(c *conn) error {
	c.setStep(StepSession)
	for {
		err := c.session.Run(c.ctx, c.Conn)
		if !errors.Is(err, ErrIdle) {
			return err
		}
		if err := s.park(c); err != nil {
			return err
		}
	}
}

// admit reads a PROXY header and asks the guard. A client that the guard refuses
// costs no handshake.
func (s *Server) admit(c *conn) (err error) {
	if err = c.readPreface(time.Now().Add(c.svc.timeouts().Handshake)); err == nil {
		c.permit, err = s.Guard.Admit(c.Client, c.cancel)
	}
	if err != nil {
		s.observe(Rejected{Client: c.Client, Err: err})
		return err
	}
	s.observe(Accepted{Client: c.Client})
	return nil
}

// readPreface replaces the address of a load balancer by that of its client, and
// the Service by the one for the client's address.
func (c *conn) readPreface(deadline time.Time) error {
	p, ok := c.transport.Conn.(preface)
	if !ok {
		return nil
	}
	client, local, err := p.Preface(deadline)
	if err != nil {
		return err
	}
	c.Client.Addr, c.Client.Local = client, local
	c.chooseService()
	return nil
}

// chooseService sets the Service for the client's address. It comes before guard
// and handshake, and again when a PROXY header names another address.
func (c *conn) chooseService() {
	addr := c.Client.Addr.Addr().WithZone("")
	for _, svc := range c.services {
		if slices.ContainsFunc(svc.Networks, func(n netip.Prefix) bool { return n.Contains(addr) }) {
			c.svc = svc
			break
		}
		if svc.Networks == nil {
			c.svc = svc
		}
	}
	c.tls, c.Client.Service, c.Client.Protocol = c.svc.TLS, c.svc.Name, c.svc.Protocol
	known := c.Client
	c.origin.Store(&known)
}

// secure does the handshake of implicit TLS. STARTTLS is the dialogue's.
func (s *Server) secure(c *conn) error {
	if c.svc.StartTLS {
		return nil
	}
	c.setStep(StepHandshake)
	err := c.StartTLS(c.ctx)
	if err == nil {
		return nil
	}
	switch c.handshakeResult(err) {
	case HandshakeSilent, HandshakeBadProtocol:
		return NewRefusal(Plaintext, err)
	}
	return fmt.Errorf("TLS handshake: %w", err)
}

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
			e.Account = l.Account
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
	welcome, err = s.try(c, l, &e)
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

// try asks guard and backend about credentials, and opens the session.
func (s *Server) try(c *conn, l *Login, e *Attempt) (welcome string, err error) {
	if l.Account, err = c.svc.Account(l.User); err != nil {
		return "", NewRefusal(Malformed, err)
	}
	c.asked = l.Account
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
// guard whatever happens. A wrong answer is held back for as long as the guard
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
	l.Watch = nil
	if err == nil {
		err = NewRefusal(Internal, nil)
		err = c.logIn(l)
	}
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

// refusal returns what the client may learn of err, or nil. If the connection's
// context has ended, the client learns the cause in place of err.
func (c *conn) refusal(err error) *Refusal {
	if err == nil {
		return nil
	}
	if c.ctx.Err() != nil {
		err = context.Cause(c.ctx)
	}
	r, ok := errors.AsType[*Refusal](err)
	if !ok || r.Text != "" || c.svc.Text == nil {
		return r
	}
	withText := *r
	withText.Text = c.svc.Text(r.Reason, c.asked)
	return &withText
}

// park waits until the client sends something. It keeps the goroutine; Run has
// released what the session need not hold before it returns ErrIdle.
func (s *Server) park(c *conn) error {
	_ = c.SetReadDeadline(deadline(c.svc.Idle))
	if err := c.WaitInput(); errors.Is(err, os.ErrDeadlineExceeded) {
		return ErrIdleTimeout
	} else if err != nil {
		return err
	}
	return nil
}

// deadline returns the deadline of a read that may take idle; 0: none.
func deadline(idle time.Duration) time.Time {
	if idle == 0 {
		return time.Time{}
	}
	return time.Now().Add(idle)
}

// end is the only end of a connection and runs once. Each step of it is
// protected on its own: a panic in one must not keep the others from releasing
// what the connection holds.
func (s *Server) end(c *conn, err error) {
	defer s.wg.Done()
	c.stop()
	end := c.endOf(err)
	s.release(c, func() {
		if c.permit != nil {
			_ = c.Close()
		} else { // never admitted: no time for last words
			c.Abort()
		}
	})
	if c.session != nil { // after the client, which may wait for the end of its connection
		s.release(c, func() { _ = c.session.Close() })
	}
	s.mu.Lock()
	delete(s.conns, c)
	s.mu.Unlock()
	c.cancel(nil)
	if c.permit == nil {
		return
	}
	s.release(c, c.permit.Leave)
	info := c.info()
	closed := Closed{
		Client: c.Client, Account: info.Account, Backend: info.Backend, Duration: time.Since(c.since),
		Received: c.Received(), Sent: c.Sent(), End: end, Err: err,
	}
	if r, ok := c.session.(Reporter); ok {
		s.release(c, func() { closed.Totals = r.Totals() })
	}
	s.release(c, func() { s.observe(closed) })
}

// release runs a step of end.
func (s *Server) release(c *conn, step func()) {
	_ = s.protect(c, func(*conn) error { step(); return nil })
}

// endOf returns the End... constant of a connection that ends with err.
func (c *conn) endOf(err error) string {
	if c.ctx.Err() != nil {
		err = context.Cause(c.ctx)
	}
	switch ReasonOf(err) {
	case 0, Internal:
	case ShuttingDown:
		return EndDrain
	case Kicked:
		return EndKicked
	default:
		return EndRefused
	}
	switch {
	case err == nil, errors.Is(err, ErrQuit):
		return EndClientQuit
	case errors.Is(err, ErrClientClosed), errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return EndClientAbort
	case errors.Is(err, ErrBackendClosed):
		return EndBackendClosed
	case errors.Is(err, ErrForbidden):
		return EndForbiddenCommand
	case errors.Is(err, ErrIdleTimeout), errors.Is(err, os.ErrDeadlineExceeded):
		return EndIdleTimeout
	}
	return EndError
}

// info describes the connection. Any goroutine may call it.
func (c *conn) info() SessionInfo {
	i := SessionInfo{
		Client: *c.origin.Load(), Since: c.since, Step: Step(c.step.Load()), Received: c.Received(), Sent: c.Sent(),
	}
	i.Client.TLS = c.state.Load()
	if p := c.account.Load(); p != nil {
		i.Account = *p
	}
	if p := c.backend.Load(); p != nil {
		i.Backend = *p
	}
	return i
}

// observe emits e.
func (s *Server) observe(e Event) {
	if s.Observer != nil {
		s.Observer.Observe(e)
	}
}
