package proxy

import (
	"context"
	"crypto/tls"
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
// its context; Dialogue.Login returns ErrQuit, ErrEarlyTLS and ErrUnexpectedProxyHeader.
var (
	ErrQuit          = errors.New("client said goodbye")            // QUIT, LOGOUT; nil means the same
	ErrClientClosed  = errors.New("client closed the connection")   // without QUIT or LOGOUT
	ErrBackendClosed = errors.New("backend closed the connection")  // before the client did
	ErrIdleTimeout   = errors.New("client was silent for too long") // after login
	ErrForbidden     = errors.New("command that is not permitted")  // it would hide the session: IMAP UNAUTHENTICATE, COMPRESS
	ErrTokenEnds     = errors.New("session ends before its token")  // that of Postern, with which the backend would end it: the client logs in again
	errTooSlow       = errors.New("client did not log in in time")  // before login
	ErrProxyHeader   = errors.New("bad or missing PROXY header")    // before the guard is asked
	ErrEarlyTLS      = errors.New("client began TLS unasked")       // where STARTTLS has to come first

	errParked = errors.New("the session is parked") // not an end

	ErrNoProxyHeader         = fmt.Errorf("%w: there is none", ErrProxyHeader)
	ErrUnexpectedProxyHeader = errors.New("PROXY header from an address that proxy_from does not have")
)

// goodbyeTime is how long a connection may take to end after its context has
// ended.
const goodbyeTime = 5 * time.Second

// A conn is what the Server knows about a connection. Fields that are not atomic
// belong to the goroutine that serves the connection.
type conn struct {
	*Conn
	services    []*Service // of the listener
	svc         *Service   // the one for the client's address
	since       time.Time
	turn        turn            // for any goroutine
	ctx         context.Context // kick, drain and shed are its cause; nil while parked
	stop        func() bool     // stops waiting for the end of ctx
	permit      Permit          // nil: not admitted
	lastAccount string          // of the last attempt: the operator may have texts for it
	session     Session         // nil: not logged in

	origin  atomic.Pointer[Client] // a copy of Client for info, before TLS
	account atomic.Pointer[string]
	backend atomic.Pointer[string]
	device  atomic.Pointer[string] // Login.Device
	open    atomic.Bool            // logged in
	step    atomic.Uint32
}

// setStep records where in its life the connection is.
func (c *conn) setStep(s Step) { c.step.Store(uint32(s)) }

// run serves a connection from its first octet up to its session. The session gets a
// goroutine of its own: TLS and login have grown the stack of the first one, which
// ends with them.
func (s *Server) run(c *conn) {
	if err := s.protect(c, s.serve); err != nil {
		s.end(c, err)
		return
	}
	go s.resume(c)
}

// resume serves a session until it ends or is parked. It runs after the login and each
// time the session is woken.
func (s *Server) resume(c *conn) {
	if err := s.protect(c, s.serveSession); !errors.Is(err, errParked) {
		s.end(c, err)
	}
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

// serveSession serves the session until its end, or until it is parked (errParked).
func (s *Server) serveSession(c *conn) error {
	if c.ctx == nil { // it was parked
		c.begin()
	}
	c.setStep(StepSession)
	for {
		err := c.session.Run(c.ctx, c.Conn)
		idle, ok := errors.AsType[*Idle](err)
		if !ok {
			return err
		}
		if s.park(c, idle) {
			return errParked
		}
	}
}

// admit reads a PROXY header and asks the guard. A client that the guard refuses
// costs no handshake.
func (s *Server) admit(c *conn) (err error) {
	if err = c.readProxyHeader(time.Now().Add(c.svc.timeouts().Handshake)); err == nil {
		c.permit, err = s.Guard.Admit(c.Client, c.end)
	}
	if err != nil {
		s.observe(Rejected{Client: c.Client, Err: err})
		return err
	}
	s.observe(Accepted{Client: c.Client})
	return nil
}

// readProxyHeader replaces the address of a load balancer by that of its client, and
// the Service by the one for the client's address.
func (c *conn) readProxyHeader(deadline time.Time) error {
	p, ok := c.transport.Conn.(proxyHeaderReader)
	if !ok {
		return nil
	}
	client, local, err := p.ProxyHeader(deadline)
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
	if err := c.StartTLS(c.ctx); err != nil {
		return c.handshakeError(err)
	}
	return nil
}

// handshakeError returns the error of a connection whose handshake failed with err. It
// is a function of its own for the reason that finishHandshake is one.
func (c *conn) handshakeError(err error) error {
	switch c.handshakeResult(err) {
	case HandshakeSilent:
		return NewRefusal(Plaintext, err)
	case HandshakeBadProtocol:
		if record, ok := errors.AsType[tls.RecordHeaderError](err); ok && c.beginsProxyHeader(record.RecordHeader[:]) {
			err = ErrUnexpectedProxyHeader
		}
		return NewRefusal(Plaintext, err)
	}
	return fmt.Errorf("TLS handshake: %w", err)
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
	withText.Text = c.svc.Text(r.Reason, c.lastAccount)
	return &withText
}

// end is the only end of a connection and runs once. Each step of it is
// protected on its own: a panic in one must not keep the others from releasing
// what the connection holds.
func (s *Server) end(c *conn, err error) {
	defer s.wg.Done()
	s.finish(c)
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
	c.turn.cancel(nil)
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
	if cause := c.turn.endCause(); cause != nil {
		err = cause
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
	case errors.Is(err, ErrTokenEnds):
		return EndToken
	}
	return EndError
}

// info describes the connection. Any goroutine may call it.
func (c *conn) info() SessionInfo {
	i := SessionInfo{
		Client: *c.origin.Load(), Since: c.since, Step: Step(c.step.Load()), Received: c.Received(), Sent: c.Sent(),
	}
	i.Client.TLS, i.Busy = c.state.Load(), c.Busy()
	if p := c.account.Load(); p != nil {
		i.Account = *p
	}
	if p := c.backend.Load(); p != nil {
		i.Backend = *p
	}
	if p := c.device.Load(); p != nil {
		i.Device = *p
	}
	return i
}

// observe emits e.
func (s *Server) observe(e Event) {
	if s.Observer != nil {
		s.Observer.Observe(e)
	}
}
