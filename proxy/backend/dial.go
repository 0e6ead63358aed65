// Package backend knows the mail servers behind Postern: how to reach them,
// how to log a client in, and what they offer.
//
// Whatever a server sends is bounded in size and time, and none of its words
// reach a client but an alert of IMAP's, which the user must be shown: one line
// without names. Credentials leave only when everything before them was as it
// has to be.
//
// # What the answers to credentials mean
//
// A password is Wrong only if the server says so and blames nothing else. Codes
// that say more are believed: RFC 5530 section 3 for IMAP; the reply code of RFC
// 4954 section 6 and the status code of RFC 3463 and RFC 5248 for submission,
// where x.y.z stands for any class that fits.
//
//	IMAP                                           submission              Reason
//	[AUTHENTICATIONFAILED], NO                     535, other 5yz          Wrong
//	[AUTHORIZATIONFAILED] [EXPIRED] [CONTACTADMIN] 525, 5.7.13, 5.2.1      Suspended
//	[UNAVAILABLE]                                                          Unavailable
//	[OVERQUOTA]                                    x.2.2                   MailboxFull, doubtful
//	                                               4.3.2                   Maintenance, doubtful
//	[LIMIT]                                                                TooMany, doubtful
//	[INUSE]                                                                InUse, doubtful
//	BAD, BYE, no answer, all others                4yz, 334, 500-504,      Unavailable, doubtful
//	                                               521 523 530 534 538
//
// NO without a code, and 5yz other than 535, mean one thing with one server and
// another with the next: verdict.go has a row for each that is known, by Kind.
//
// What the client is told and what the guard charges are two things. Doubtful
// answers are told as temporary and cost a guess as Wrong does: nobody has said
// that the password was right, and a server that answers wrong ones so would let
// them be guessed for nothing. Suspended costs one as well: not every server
// checks the password before it says so. What it says of the account is the
// server's to tell or to hide behind Wrong, as most do.
//
// Free is what came before the credentials were looked at: a connection, TLS or
// greeting that failed, LOGINDISABLED, [UNAVAILABLE].
package backend

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"postern/proxy"
	"postern/proxy/wire"
)

// A Mode is how a connection to a server comes to TLS.
type Mode uint8

// The modes.
const (
	Implicit Mode = iota // from the first octet
	STARTTLS             // by command; a server that does not offer it gets no credentials
	None                 // never
)

// String returns the mode's name in the configuration.
func (m Mode) String() string {
	switch m {
	case Implicit:
		return "implicit"
	case STARTTLS:
		return "starttls"
	}
	return "none"
}

// A Server is one mail server behind Postern, as it speaks one protocol. The
// exported fields must not change once it is in use.
type Server struct {
	Name         string // of the backend in the configuration
	Protocol     string // proxy.IMAP or proxy.Submission
	Address      string // host:port
	TLS          Mode
	Config       *tls.Config    // with ServerName; may be nil if TLS is None
	DialTimeout  time.Duration  // of TCP; 0: 10 s
	ReplyTimeout time.Duration  // of the TLS handshake and of each answer up to login; 0: 30 s
	Hostname     string         // for EHLO where the client has given none
	Source       []netip.Addr   // addresses of this machine to connect from, in turn; none: as the system likes
	Observer     proxy.Observer // nil: nobody

	Kind       Kind // what answers to credentials mean; Guessed: as greeting and ID tell
	Identity   Identity
	Verify     func(context.Context, *proxy.Login) error // for XCLIENTLogin: whether the credentials are right, as LoginIMAP says it
	Identified func(ok bool)                             // told at each login whether the server offers Identity; nil: nobody

	sources atomic.Uint32          // counts connections
	report  atomic.Pointer[Report] // the last that succeeded
}

const (
	defaultDialTimeout  = 10 * time.Second
	defaultReplyTimeout = 30 * time.Second
)

func (s *Server) replyTimeout() time.Duration {
	if s.ReplyTimeout == 0 {
		return defaultReplyTimeout
	}
	return s.ReplyTimeout
}

// open connects for client, who may be nobody, and lets prepare hear the
// greeting and, with STARTTLS, call secure. When it returns nil, credentials may
// be sent.
func (s *Server) open(ctx context.Context, client proxy.Client, prepare func(*Conn) error) (c *Conn, err error) {
	begun := time.Now()
	defer func() {
		s.observe(proxy.Dialed{
			Backend: s.Name, Protocol: s.Protocol, Result: dialResult(err), Duration: time.Since(begun), Err: err,
		})
	}()
	tcp, err := s.dial(ctx)
	if err != nil {
		return nil, err
	}
	c = &Conn{Conn: tcp, tcp: tcp, replies: wire.NewReplyReader(tcp), timeout: s.replyTimeout()}
	defer c.closeWith(ctx)()
	if err = c.preface(s.Identity, client); err == nil && s.TLS == Implicit {
		err = c.secure(ctx, s.Config)
	}
	if err == nil {
		err = prepare(c)
	}
	if err != nil {
		_ = c.Close()
		return nil, err
	}
	return c, nil
}

// dial connects, from the next of the sources.
func (s *Server) dial(ctx context.Context) (net.Conn, error) {
	dialer := net.Dialer{Timeout: s.DialTimeout}
	if dialer.Timeout == 0 {
		dialer.Timeout = defaultDialTimeout
	}
	if n := uint32(len(s.Source)); n > 0 {
		source := s.Source[s.sources.Add(1)%n]
		dialer.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(source, 0))
		dialer.Control = bindLate
	}
	conn, err := dialer.DialContext(ctx, "tcp", s.Address)
	if err != nil {
		return nil, advised(err)
	}
	return conn, nil
}

// advised adds what to do to errors that are not the server's.
func advised(err error) error {
	call, _ := errors.AsType[*os.SyscallError](err)
	advice := ""
	switch {
	case exhausted(err):
		advice = "Postern has no file descriptor left (EMFILE): raise LimitNOFILE"
	case !errors.Is(err, syscall.EADDRNOTAVAIL):
		return err
	case call != nil && call.Syscall == "bind":
		advice = "this machine has no such source address (EADDRNOTAVAIL)"
	default:
		advice = "no local port is left for this server (EADDRNOTAVAIL): give it more source addresses, or widen net.ipv4.ip_local_port_range"
	}
	return fmt.Errorf("%w: %s", err, advice)
}

// exhausted reports whether err says that no descriptor is left here: it says
// nothing about the server.
func exhausted(err error) bool {
	return errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE)
}

// dialResult names the way in which open ended.
func dialResult(err error) string {
	var tlsErr *tlsError
	var dialErr *net.OpError
	switch {
	case err == nil:
		return proxy.DialOK
	case errors.As(err, &tlsErr):
		return proxy.DialTLS
	case errors.Is(err, syscall.ECONNREFUSED):
		return proxy.DialRefused
	case errors.As(err, &dialErr) && dialErr.Op == "dial":
		if dialErr.Timeout() {
			return proxy.DialTimeout
		}
		return proxy.DialOther
	}
	return proxy.DialGreeting
}

// A tlsError is what kept a connection from becoming TLS.
type tlsError struct{ err error }

func (e *tlsError) Error() string { return "TLS: " + e.err.Error() }
func (e *tlsError) Unwrap() error { return e.err }

// unavailable is the Refusal for whatever is not the client's fault.
func (s *Server) unavailable(err error) *proxy.Refusal {
	return proxy.NewRefusal(proxy.Unavailable, fmt.Errorf("backend %s, %s: %w", s.Name, s.Protocol, err))
}

// settle tells how the server has answered credentials.
func (s *Server) settle(begun time.Time, err error) {
	s.observe(proxy.BackendLogin{Backend: s.Name, Protocol: s.Protocol, Duration: time.Since(begun), Err: err})
}

func (s *Server) observe(e proxy.Event) {
	if s.Observer != nil {
		s.Observer.Observe(e)
	}
}

// A Conn is a connection to a server. It reads replies ahead; Read gives what
// is left of them first.
type Conn struct {
	net.Conn // TLS, where there is
	tcp      net.Conn
	replies  *wire.ReplyReader
	timeout  time.Duration // for each answer
	release  func()        // tells the pool; may be called again; nil: there is none
	watched  string        // the capabilities after login, if UNAUTHENTICATE is one: of IMAP
	alert    string        // what the user is to be shown: of IMAP
	lacks    []string      // keywords of EHLO that the client was offered and that the server does not have for it
}

// Read returns what was read ahead first.
func (c *Conn) Read(p []byte) (int, error) { return c.replies.Read(p) }

// Close closes the connection.
func (c *Conn) Close() error {
	if c.release != nil {
		c.release()
	}
	return c.Conn.Close()
}

// Unauthenticates reports whether the IMAP server offers UNAUTHENTICATE, RFC 8437,
// to the user that is logged in.
func (c *Conn) Unauthenticates() bool { return c.watched != "" }

// CloseWrite tells the server that nothing more will come; reading goes on.
func (c *Conn) CloseWrite() error {
	if t, ok := c.Conn.(*tls.Conn); ok {
		if err := t.CloseWrite(); err != nil {
			return err
		}
	}
	if t, ok := c.tcp.(*net.TCPConn); ok {
		return t.CloseWrite()
	}
	return nil
}

// SyscallConn gives the descriptor when its octets are all there is to read:
// there is no TLS, and nothing was read ahead.
func (c *Conn) SyscallConn() (syscall.RawConn, error) {
	t, ok := c.Conn.(*net.TCPConn)
	if !ok || c.replies.Buffered() > 0 {
		return nil, errors.ErrUnsupported
	}
	c.replies = wire.NewReplyReader(t) // without its buffer: nobody may read there for hours
	return t.SyscallConn()
}

// preface begins the connection with a PROXY header, if there is to be one.
func (c *Conn) preface(identity Identity, client proxy.Client) error {
	header, err := identity.preface(client)
	if err == nil && header != nil {
		err = c.send(header)
	}
	if err != nil {
		return fmt.Errorf("PROXY header: %w", err)
	}
	return nil
}

// closeTime is what a server gets to close first, when it was told goodbye.
const closeTime = time.Second

// leave says goodbye, and closes after the server has: TIME_WAIT, and with it a
// port, is then its. A server that does not gets closeTime.
func (c *Conn) leave(goodbye string) {
	_ = c.SetDeadline(time.Now().Add(closeTime))
	if _, err := io.WriteString(c, goodbye+"\r\n"); err == nil {
		_, _ = io.Copy(io.Discard, io.LimitReader(c, wire.MaxReply))
	}
	_ = c.Close()
}

// secure does the TLS handshake. Octets that came before it are an attempt to
// speak for the server: RFC 3207 section 6.
func (c *Conn) secure(ctx context.Context, config *tls.Config) error {
	if c.replies.Buffered() > 0 {
		return &tlsError{errors.New("the server sent something behind its answer to STARTTLS")}
	}
	t := tls.Client(c.tcp, config)
	_ = c.tcp.SetDeadline(time.Now().Add(c.timeout))
	if err := t.HandshakeContext(ctx); err != nil {
		return &tlsError{explained(err)}
	}
	c.Conn, c.replies = t, wire.NewReplyReader(t)
	return nil
}

// explained adds what a server lacks whose TLS is too old for Postern.
// crypto/tls has no types for it: an alert of the server's is known by its text.
func explained(err error) error {
	const (
		handshakeFailure = 40 // RFC 8446 section 6
		protocolVersion  = 70
	)
	alert := ""
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "remote error" {
		alert = op.Err.Error()
	}
	switch {
	case alert == tls.AlertError(protocolVersion).Error(), strings.HasPrefix(err.Error(), "tls: server selected unsupported protocol version"):
		return fmt.Errorf("%w: the server speaks no TLS 1.2, and Postern nothing older to servers", err)
	case alert == tls.AlertError(handshakeFailure).Error():
		return fmt.Errorf("%w: the server has no key exchange or cipher that Postern offers to servers (ECDHE with AES or ChaCha20): "+
			"has it RSA key exchange alone?", err)
	}
	return err
}

// send begins the wait for an answer, writes pieces at once and wipes them.
func (c *Conn) send(pieces ...[]byte) error {
	all := pieces[0]
	if len(pieces) > 1 {
		all = slices.Concat(pieces...)
	}
	defer func() {
		clear(all)
		for _, p := range pieces {
			clear(p)
		}
	}()
	_ = c.SetDeadline(time.Now().Add(c.timeout))
	_, err := c.Write(all)
	return err
}

// closeWith closes the connection when ctx ends, until stop is called.
func (c *Conn) closeWith(ctx context.Context) (stop func() bool) {
	return context.AfterFunc(ctx, func() { _ = c.tcp.Close() })
}

// settled ends the deadlines of the dialogue.
func (c *Conn) settled() { _ = c.SetDeadline(time.Time{}) }

// shorten makes a server's words fit for a log line.
func shorten(s string) string {
	const most = 200
	return s[:min(most, len(s))]
}
