// Package proxy is the spine of Postern: the life of a connection, the types
// that cross its steps, and the small interfaces between them.
//
// A connection goes one way: listener, TLS, dialogue, name, guard, route and
// backend, relay or bridge. The function serve in conn.go is that story.
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

// A Dialogue is the protocol with a client before it is logged in.
type Dialogue interface {
	// Login greets, the first time, and talks until the client has sent
	// credentials; STARTTLS is in here. The error is a *Refusal, to be said
	// before it goes on, and then the Login, if not nil, says whose attempt it
	// was; ErrQuit after a goodbye; else what ended the connection, as io.EOF
	// when the client left.
	Login(ctx context.Context) (*Login, error)

	// Refuse says no to what Login returned. Before the first Login it is the
	// greeting. An error ends the connection: the refusal itself when it was
	// final or one too many, else what went wrong in saying it.
	Refuse(*Refusal) error

	// Accept says yes to what Login returned. welcome comes from the Session.
	Accept(welcome string) error
}

// A Backend logs clients in to a server. It is given a Login only after the
// guard agreed. On success it owns the Login's Secret. What it cannot do is a
// *Refusal: Wrong only if the server said so.
type Backend interface {
	Login(context.Context, *Login) (Session, error)
}

// A Session is a client logged in. It may also be a Reporter.
type Session interface {
	// Open prepares the session; it may take long. It comes after the guard's
	// Settle. A *Refusal is said to the client and the session closed. A first
	// line "[ALERT] ..." of the welcome is what IMAP shows the user (RFC 3501
	// section 7.1).
	Open(ctx context.Context) (welcome string, err error)

	// Run serves the client until the end: nil after the protocol's goodbye,
	// ErrClientClosed, ErrBackendClosed, a timeout, the cause of ctx, ... Or
	// it returns ErrIdle and is called again when the client speaks.
	Run(ctx context.Context, client *Conn) error

	// Close ends the session with the backend. It is called once.
	Close() error
}

// A preface is a connection that begins with words of somebody between the
// client and us: a PROXY header. They are read before the guard is asked.
type preface interface {
	// Preface returns whom the connection is from and whom it was meant for,
	// or an error that wraps ErrPreface, or one of reading.
	Preface(deadline time.Time) (client, local netip.AddrPort, err error)
}

// A Reporter is a Session that can say what it did and with whom.
type Reporter interface {
	Backend() string
	Totals() Totals
}

// A Service is what a listener serves. It does not change: a reload makes new
// ones, and a connection keeps the one it was accepted with.
type Service struct {
	Name, Protocol string
	Networks       []netip.Prefix // its clients, where a listener has several; nil: all that the others leave
	TLS            *tls.Config
	StartTLS       bool // TLS begins in the dialogue
	Timeouts       Timeouts
	Idle           time.Duration // of a session
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

// A Server accepts connections and lives their lives. Its fields must not
// change once Apply was called.
type Server struct {
	Guard    Guard
	Observer Observer

	// Room says why no connection can be served now; nil: there is room. It is
	// asked for each connection, which waits until there is. Room nil: there
	// always is.
	Room func() error

	mu        sync.Mutex
	listeners map[net.Listener]*listener
	conns     map[*conn]struct{}
	closing   bool
	wg        sync.WaitGroup
}

// A Binding is a listener and what is served on it. Several of one listener
// differ by the Networks of their services, and the client's address chooses:
// one has none.
type Binding struct {
	net.Listener
	Service *Service
}

type listener struct {
	net.Listener
	services atomic.Pointer[[]*Service]
}

// Apply makes bindings the whole of what is served: new listeners begin to
// accept, those that are gone are closed, and those that stay have their new
// Service from the next connection on.
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

// accept survives whatever is wrong for a moment: no descriptors, a client
// that is gone again. While there is no room it has one connection in hand, and
// the others wait in the kernel.
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
		for err := s.room(); err != nil && !s.ending(); err = s.room() {
			failed(err)
		}
		pause = 0
		if c := s.register(raw, *ln.services.Load()); c != nil {
			go s.live(c)
		}
	}
}

func (s *Server) room() error {
	if s.Room == nil {
		return nil
	}
	return s.Room()
}

// ending reports whether Shutdown was called.
func (s *Server) ending() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closing
}

// register makes the conn of a connection, or closes it when the server is.
func (s *Server) register(raw net.Conn, services []*Service) *conn {
	client := Client{ID: rand.Text()[:12], Addr: AddrPort(raw.RemoteAddr()), Local: AddrPort(raw.LocalAddr())}
	timeouts := services[0].timeouts() // those of a listener have the same
	c := &conn{Conn: NewConn(raw, client, nil, timeouts.Stall), services: services, since: time.Now()}
	c.assign()
	c.handshake, c.observe = timeouts.Handshake, s.observe
	c.ctx, c.cancel = context.WithCancelCause(context.Background())
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

// Wait returns nil when there are no listeners and the last connection has
// ended, or else the cause of ctx.
func (s *Server) Wait(ctx context.Context) error {
	done := make(chan struct{})
	go func() { s.wg.Wait(); close(done) }()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Shutdown closes the listeners, says goodbye to clients that are not logged
// in, and waits for the sessions to end. When ctx ends first, it ends those
// that are left within spread, each in its protocol's words, and returns how many
// they were in an error.
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
	go func() { s.wg.Wait(); close(done) }()
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

// endWithin ends all connections, one after the other: what comes back comes
// back to somebody. It returns how many they were.
func (s *Server) endWithin(spread time.Duration, cause *Refusal) int {
	s.mu.Lock()
	left := slices.Collect(maps.Keys(s.conns)) // in no order
	s.mu.Unlock()
	const longest = 10 * time.Millisecond // a few need no spreading
	for _, c := range left {
		c.cancel(cause)
		time.Sleep(min(longest, spread/time.Duration(len(left))))
	}
	return len(left)
}

// A SessionInfo describes a live connection.
type SessionInfo struct {
	Client         Client
	Account        string // empty: not logged in
	Backend        string
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

// Kick ends the connections that match, with a goodbye, and returns how many
// they are.
func (s *Server) Kick(match func(SessionInfo) bool) int {
	return s.kick(NewRefusal(Kicked, nil), func(c *conn) bool { return match(c.info()) })
}

func (s *Server) kick(cause *Refusal, match func(*conn) bool) (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		if c.ctx.Err() == nil && match(c) { // not one that is ending already
			c.cancel(cause)
			n++
		}
	}
	return n
}
