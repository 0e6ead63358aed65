// Package proxy is the core of Postern: the life of a connection, the types that
// cross its steps, and the small interfaces between them. It imports the standard
// library only, and every other package may import it.
//
// A connection goes one way: listener, TLS, dialogue, account name, guard, route
// and backend, relay or bridge. The functions serve and serveSession in conn.go are that
// way. A Server accepts connections for the Services of its listeners; a Dialogue
// speaks the protocol before login, a Guard and its Permits limit attempts, a
// Backend logs in at a mail server, and a Session serves the client after
// that. A Conn is the connection itself, a Refusal an error that the client may
// learn, and an Event something that an Observer counts or logs.
package proxy

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// A Dialogue speaks a protocol with a client that is not logged in.
type Dialogue interface {
	// Login sends the greeting, the first time, and reads commands until the client
	// has sent credentials; STARTTLS is in here. The error is a *Refusal: the caller
	// calls Refuse and Login again, and the Login, if not nil, says whose attempt it
	// was. ErrQuit follows a goodbye. Any other error ended the connection, such as
	// io.EOF when the client left.
	Login(ctx context.Context) (*Login, error)

	// Refuse answers the credentials that Login returned. Before the first Login the
	// answer is the greeting. An error ends the connection: the refusal itself when
	// it was final or one too many, else the error of writing it.
	Refuse(*Refusal) error

	// Accept answers the credentials that Login returned. welcome comes from
	// Session.Open.
	Accept(welcome string) error
}

// A Backend logs clients in to a server. It gets a Login only after the guard has
// allowed the attempt, and owns its Secret when Login succeeds. An error is a
// *Refusal, with Wrong only if the server said so, or means that the client left.
type Backend interface {
	Login(context.Context, *Login) (Session, error)
}

// A Session is the time of a client that is logged in. It may also be a Reporter.
type Session interface {
	// Open prepares the session after Permit.Settle; it may take long. After an
	// error the session is closed, and a *Refusal is sent to the client. IMAP shows
	// the user a first line "[ALERT] ..." of welcome (RFC 3501 section 7.1).
	Open(ctx context.Context) (welcome string, err error)

	// Run serves the client until the end, and says why it ends: nil after the
	// protocol's goodbye, ErrClientClosed, ErrBackendClosed, a timeout, or the cause
	// of ctx. It returns an *Idle when nothing has happened for Conn.ParkAfter and
	// nothing is buffered; then Run is called again, with another ctx. Deadlines that
	// an earlier Run has set still hold.
	Run(ctx context.Context, client *Conn) error

	// Close ends the session at the backend. It is called once.
	Close() error
}

// A proxyHeaderReader is a connection that begins with a PROXY header, which is read before
// the guard is asked.
type proxyHeaderReader interface {
	// ProxyHeader returns the addresses of the client and of the listener it connected
	// to. An error wraps ErrProxyHeader; io.EOF means that the connection was closed
	// before anything came.
	ProxyHeader(deadline time.Time) (client, local netip.AddrPort, err error)
}

// A Reporter is a Session that reports its backend's name and what it did.
type Reporter interface {
	Backend() string
	Totals() Totals
}

// A Service is what a listener serves. It does not change: a reload makes new
// ones, and a connection keeps the one it was accepted with.
type Service struct {
	Name, Protocol string
	Networks       []netip.Prefix // of its clients, where a listener has several Services; nil: all that the others leave
	TLS            *tls.Config
	StartTLS       bool // TLS begins in the dialogue
	Timeouts       Timeouts
	Dialogue       func(*Conn) Dialogue
	Account        func(user string) (string, error)     // pure: no I/O
	Text           func(r Reason, account string) string // the operator's words; nil, or "": the protocol's own
	Backend        Backend
}

// Timeouts are the deadlines of a connection before its session.
type Timeouts struct {
	Handshake time.Duration // of TLS, from the first moment
	Login     time.Duration // for a client to come to its credentials, each time
	Stall     time.Duration // for a client to take what it is sent
}

// DefaultTimeouts returns what a Service has where it says zero.
func DefaultTimeouts() Timeouts {
	return Timeouts{Handshake: DefaultHandshake, Login: DefaultLogin, Stall: DefaultStall}
}

// A Server accepts connections and serves each from its first octet to its end.
// Its fields must not change after the first Apply.
type Server struct {
	Guard    Guard
	Observer Observer // nil: none

	// CheckCapacity returns why no further connection can be served now, or nil. An
	// accepted connection waits until CheckCapacity returns nil. Without CheckCapacity
	// there is no limit.
	CheckCapacity func() error

	mu        sync.Mutex
	listeners map[net.Listener]*listener
	conns     map[*conn]struct{}
	closing   bool
	wg        sync.WaitGroup

	parker parker
}

// A Binding is a listener and the Service on it. A listener with several Bindings
// serves each client with the Service whose Networks have its address; one Service
// has no Networks and serves all other clients.
type Binding struct {
	net.Listener
	Service *Service
}

type listener struct {
	net.Listener
	services atomic.Pointer[[]*Service]
}

// Apply replaces all bindings. New listeners begin to accept, listeners that are
// not in bindings are closed, and listeners that stay use their new Service from
// the next connection on. The error is net.ErrClosed after Shutdown; then nothing
// has changed.
func (s *Server) Apply(bindings []Binding) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing {
		return net.ErrClosed
	}
	if s.listeners == nil {
		s.listeners = make(map[net.Listener]*listener)
		s.conns = make(map[*conn]struct{})
	}
	wanted := make(map[net.Listener][]*Service)
	for _, b := range bindings {
		wanted[b.Listener] = append(wanted[b.Listener], b.Service)
	}
	for key, services := range wanted {
		ln, ok := s.listeners[key]
		if !ok {
			ln = &listener{Listener: key}
			s.listeners[key] = ln
		}
		ln.services.Store(&services)
		if !ok {
			s.wg.Go(func() { s.accept(ln) })
		}
	}
	for key, ln := range s.listeners {
		if wanted[key] == nil {
			_ = ln.Close()
			delete(s.listeners, key)
		}
	}
	return nil
}

// accept accepts connections until ln is closed. It retries after temporary
// errors, such as too few file descriptors. While there is no room it holds one
// connection, and the others wait in the kernel.
func (s *Server) accept(ln *listener) {
	const longest = time.Second
	var pause time.Duration
	failed := func(err error) {
		s.observe(AcceptFailed{Service: (*ln.services.Load())[0].Name, Err: err})
		pause = min(longest, max(5*time.Millisecond, 2*pause))
		time.Sleep(pause)
	}
	for {
		raw, err := ln.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			failed(err)
			continue
		}
		for err := s.checkCapacity(); err != nil && !s.ending(); err = s.checkCapacity() {
			failed(err)
		}
		pause = 0
		if c := s.register(raw, *ln.services.Load()); c != nil {
			go s.run(c)
		}
	}
}

// checkCapacity calls CheckCapacity, if there is one.
func (s *Server) checkCapacity() error {
	if s.CheckCapacity == nil {
		return nil
	}
	return s.CheckCapacity()
}

// ending reports whether Shutdown was called.
func (s *Server) ending() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closing
}

// register returns the conn of a connection. After Shutdown it closes raw and
// returns nil.
func (s *Server) register(raw net.Conn, services []*Service) *conn {
	client := Client{ID: rand.Text()[:12], Addr: AddrPort(raw.RemoteAddr()), Local: AddrPort(raw.LocalAddr())}
	timeouts := services[0].timeouts() // all Services of a listener have the same
	c := &conn{Conn: NewConn(raw, client, nil, timeouts.Stall), services: services, since: time.Now()}
	c.chooseService()
	c.handshake, c.observe, c.parkAfter = timeouts.Handshake, s.observe, &s.parker.after
	c.end = func(cause error) { s.interrupt(c, cause) }
	c.begin()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing {
		_ = raw.Close()
		return nil
	}
	s.conns[c] = struct{}{}
	s.wg.Add(1)
	return c
}

// AddrPort returns the address of a TCP connection, IPv4 addresses as such. It
// returns the zero AddrPort for any other connection.
func AddrPort(a net.Addr) netip.AddrPort {
	tcp, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}
	}
	ap := tcp.AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}

// timeouts returns Timeouts, with the defaults for those that are zero.
func (svc *Service) timeouts() Timeouts {
	t, d := svc.Timeouts, DefaultTimeouts()
	if t.Handshake == 0 {
		t.Handshake = d.Handshake
	}
	if t.Login == 0 {
		t.Login = d.Login
	}
	if t.Stall == 0 {
		t.Stall = d.Stall
	}
	return t
}

// Wait waits until there are no listeners and the last connection has ended. It
// returns the cause of ctx if ctx ends first.
func (s *Server) Wait(ctx context.Context) error {
	done := make(chan struct{})
	go func() { s.wg.Wait(); s.parker.close(); close(done) }()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Shutdown closes the listeners, ends the connections that are not logged in, and
// waits for the sessions to end. When ctx ends first, it ends the sessions that are
// left within spread, each with a goodbye of its protocol, and returns their number
// in an error.
func (s *Server) Shutdown(ctx context.Context, spread time.Duration) error {
	s.mu.Lock()
	s.closing = true
	for _, ln := range s.listeners {
		_ = ln.Close()
	}
	s.mu.Unlock()
	down := NewRefusal(ShuttingDown, nil)
	s.kick(down, func(c *conn) bool { return !c.open.Load() })

	done := make(chan struct{})
	go func() { s.wg.Wait(); s.parker.close(); close(done) }()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
	}
	left := s.endWithin(spread, down)
	<-done
	if left == 0 {
		return nil
	}
	return fmt.Errorf("%d sessions were ended: %w", left, context.Cause(ctx))
}

// endWithin ends all connections one after the other, so that clients do not
// reconnect all at once. It returns their number.
func (s *Server) endWithin(spread time.Duration, cause *Refusal) int {
	s.mu.Lock()
	left := slices.Collect(maps.Keys(s.conns)) // in no order
	s.mu.Unlock()
	const longest = 10 * time.Millisecond // few connections need less than spread
	for _, c := range left {
		s.interrupt(c, cause)
		time.Sleep(min(longest, spread/time.Duration(len(left))))
	}
	return len(left)
}

// A SessionInfo describes a live connection.
type SessionInfo struct {
	Client         Client
	Account        string // empty: not logged in
	Backend        string
	Device         string // Login.Device, from the login at the backend on, before the session is open
	Busy           bool   // a message of DATA or BDAT is under way: the client would send all of it again
	Since          time.Time
	Step           Step
	Received, Sent int64
}

// Sessions returns the live connections, in no order.
func (s *Server) Sessions() []SessionInfo {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]SessionInfo, 0, len(s.conns))
	for c := range s.conns {
		all = append(all, c.info())
	}
	return all
}

// Kick ends the connections that match, with a goodbye, and returns their number.
func (s *Server) Kick(match func(SessionInfo) bool) int {
	return s.kick(NewRefusal(Kicked, nil), func(c *conn) bool { return match(c.info()) })
}

// KickAfterMessage is Kick, but a connection that is busy with a message ends after that
// message, or after patience.
func (s *Server) KickAfterMessage(patience time.Duration, match func(SessionInfo) bool) int {
	cause := NewRefusal(Kicked, nil)
	return s.endEach(func(c *conn) bool { return match(c.info()) }, func(c *conn) {
		c.WhenIdle(func() { s.interrupt(c, cause) })
		if c.turn.endCause() == nil {
			time.AfterFunc(patience, func() { s.interrupt(c, cause) })
		}
	})
}

// kick ends the connections that match for cause.
func (s *Server) kick(cause *Refusal, match func(*conn) bool) int {
	return s.endEach(match, func(c *conn) { s.interrupt(c, cause) })
}

// endEach calls end for the connections that match, and returns their number.
func (s *Server) endEach(match func(*conn) bool, end func(*conn)) (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		if c.turn.endCause() == nil && match(c) { // it is not ending already
			end(c)
			n++
		}
	}
	return n
}
