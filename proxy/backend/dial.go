// Package backend reaches the mail servers behind Postern, logs clients in there,
// and finds out what the servers offer. A Server is one server and one protocol;
// a Pool is several servers that hold the same accounts. IMAP, POP3, Submission and Sieve
// are proxy.Backends that use either of them.
//
// Everything that a server sends is bounded in size and time. No text of a server
// reaches a client but an IMAP alert, which the user must be shown: as one line
// without names. Credentials are sent only after everything before them has
// succeeded.
//
// # What the answers to credentials mean
//
// A password is Wrong only if the server says so and names no other reason. A
// response code or status code that names a reason is believed: RFC 5530 section
// 3 for IMAP, RFC 2449 section 8.1 and RFC 3206 for POP3; for submission the reply code of RFC 4954 section 6 and the
// enhanced status code of RFC 3463 and RFC 5248, where x.y.z stands for any class
// that fits.
//
//	IMAP                                           submission              Reason
//	[AUTHENTICATIONFAILED], NO                     535                     Wrong
//	[AUTHORIZATIONFAILED] [EXPIRED] [CONTACTADMIN] 525, 5.7.13, 5.2.1      Suspended
//	[UNAVAILABLE]                                                          Unavailable
//	[OVERQUOTA]                                    x.2.2                   MailboxFull, doubtful
//	                                               4.3.2                   Maintenance, doubtful
//	[LIMIT]                                                                TooMany, doubtful
//	[INUSE]                                                                InUse, doubtful
//	BAD, BYE, no answer, all others                4yz, 334, 500-504,      Unavailable, doubtful
//	                                               521 523 530 534 538
//
//	POP3                          Reason
//	[AUTH]                        Wrong
//	[SYS/PERM]                    Suspended
//	[SYS/TEMP]                    Unavailable
//	[IN-USE]                      InUse
//	[LOGIN-DELAY]                 TooSoon, doubtful
//	no answer, all others         Unavailable, doubtful
//
//	ManageSieve                   Reason
//	(TRYLATER)                    Unavailable
//	no answer, all others         Unavailable, doubtful
//
// The meaning of NO and -ERR without a code, and of a 5yz that is not in the table, differs
// between servers: verdict.go has a row for each known case, by Kind.
//
// What the client is told and what the guard charges are two things. A doubtful
// answer is passed on as temporary and costs a guess as Wrong does: the server
// has not confirmed the password, and a server that answers wrong passwords in
// this way would let them be guessed for free. Suspended costs a guess as well,
// because not every server checks the password first. Whether to reveal that an
// account is suspended is the server's choice; most answer Wrong.
//
// Nothing is charged for what happens before the server sees the credentials: a
// connection, TLS handshake or greeting that failed, LOGINDISABLED,
// [UNAVAILABLE].
//
// When Postern has checked the password and logs in with a token of its own, no
// answer is about the client. Wrong and Suspended become Unavailable, nothing is
// doubtful, and every Refusal is Verified: see credentials.go. Exchange says OK to tokens
// for mailboxes that it then does not open: mailbox.go asks it for INBOX first.
package backend

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"postern/proxy"
	"postern/proxy/wire"
)

// A Mode is how a connection to a server gets TLS.
type Mode uint8

// The values of Mode.
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

// A Server is one mail server behind Postern and one protocol. The exported
// fields must not change once it is in use.
type Server struct {
	Name         string         // of the backend in the configuration
	Protocol     string         // of package proxy
	Address      string         // host:port
	TLS          Mode           // how the connection gets TLS
	Config       *tls.Config    // with ServerName; may be nil if TLS is None
	DialTimeout  time.Duration  // of TCP; 0: proxy.DefaultDial
	ReplyTimeout time.Duration  // of the TLS handshake and of each answer up to login; 0: proxy.DefaultReply
	Hostname     string         // for EHLO, if the client has sent no name
	Source       []netip.Addr   // local addresses to connect from, in turn; none: the system chooses
	Observer     proxy.Observer // nil: none

	Kind     Kind // what answers to credentials mean; Guessed: as greeting and ID suggest
	Identity Identity
	Verify   func(context.Context, *proxy.Login) error // for XCLIENTLogin, and for ManageSieve of Cyrus: whether the credentials are right, with the errors of LoginIMAP
	// Credentials log in for clients whose password Postern has checked (Login.Verified);
	// then the server takes no other passwords. nil: the server gets the client's own.
	Credentials Credentials
	Advise      func(*ConnectError) Advice // what an operator can do about a fault; nil: not called
	Identified  func(ok bool)              // called at each login with whether the server offers Identity; nil: not called

	nextSource atomic.Uint32          // counts connections
	report     atomic.Pointer[Report] // the last successful one

	identityRefused atomic.Bool // at the last login
	opened          openedMailboxes
}

func (s *Server) replyTimeout() time.Duration {
	if s.ReplyTimeout == 0 {
		return proxy.DefaultReply
	}
	return s.ReplyTimeout
}

// open connects for client, which may be the zero Client, and calls prepare,
// which reads the greeting and, with STARTTLS, calls secure. When open returns
// nil, credentials may be sent.
func (s *Server) open(ctx context.Context, client proxy.Client, prepare func(*Conn) error) (c *Conn, err error) {
	begun := time.Now()
	defer func() {
		s.observe(proxy.Dialed{
			Backend: s.Name, Protocol: s.Protocol, Result: dialResult(err), Duration: time.Since(begun), Err: err,
		})
	}()
	tcp, err := s.dial(ctx)
	if err != nil {
		return nil, s.advise(ctx, err)
	}
	c = &Conn{Conn: tcp, tcp: tcp, replies: wire.NewReplyReader(tcp), timeout: s.replyTimeout()}
	defer c.closeWith(ctx)()
	if err = c.sendProxyHeader(s.Identity, client); err == nil && s.TLS == Implicit {
		err = c.secure(ctx, s.Config)
	}
	if err == nil {
		err = s.headerFault(prepare(c))
	}
	if err != nil {
		_ = c.Close()
		return nil, s.advise(ctx, err)
	}
	return c, nil
}

// dial connects from the next source address.
func (s *Server) dial(ctx context.Context) (net.Conn, error) {
	dialer := net.Dialer{Timeout: s.DialTimeout}
	if dialer.Timeout == 0 {
		dialer.Timeout = proxy.DefaultDial
	}
	if n := uint32(len(s.Source)); n > 0 {
		source := s.Source[s.nextSource.Add(1)%n]
		dialer.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(source, 0))
		dialer.Control = bindLate
	}
	conn, err := dialer.DialContext(ctx, "tcp", s.Address)
	if err != nil {
		return nil, dialError(withAdvice(err), s.Address)
	}
	return proxy.NewSocket(conn), nil
}

// withAdvice adds to an error of this machine what the operator can do about it.
func withAdvice(err error) error {
	advice := ""
	switch {
	case outOfDescriptors(err):
		advice = "Postern has no file descriptor left (EMFILE): raise LimitNOFILE"
	case !errors.Is(err, syscall.EADDRNOTAVAIL):
		return err
	case isSourceMissing(err):
		advice = noSource
	default:
		advice = "no local port is left for this server (EADDRNOTAVAIL): give it more source addresses, or widen net.ipv4.ip_local_port_range"
	}
	return fmt.Errorf("%w: %s", err, advice)
}

const noSource = "this machine has no such source address (EADDRNOTAVAIL)"

// isSourceMissing reports whether err means that Server.Source is no address of this
// machine.
func isSourceMissing(err error) bool {
	call, ok := errors.AsType[*os.SyscallError](err)
	return ok && call.Syscall == "bind" && errors.Is(err, syscall.EADDRNOTAVAIL)
}

// outOfDescriptors reports whether err means that this process has no descriptor
// left, which says nothing about the server.
func outOfDescriptors(err error) bool {
	return errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE)
}

// dialResult returns the result of open as an event names it.
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

// unavailable returns the Refusal for an error that is not the client's.
func (s *Server) unavailable(err error) *proxy.Refusal {
	return proxy.NewRefusal(proxy.Unavailable, fmt.Errorf("backend %s, %s: %w", s.Name, s.Protocol, err))
}

// reportLogin emits the result of a login to the server.
func (s *Server) reportLogin(begun time.Time, err error) {
	s.observe(proxy.BackendLogin{Backend: s.Name, Protocol: s.Protocol, Duration: time.Since(begun), Err: err})
}

func (s *Server) observe(e proxy.Event) {
	if s.Observer != nil {
		s.Observer.Observe(e)
	}
}
