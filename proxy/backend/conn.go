package backend

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"syscall"
	"time"

	"postern/proxy"
	"postern/proxy/wire"
)

// A Conn is a connection to a server. It reads replies ahead; Read returns octets
// that were read ahead first.
type Conn struct {
	net.Conn            // TLS, where there is
	tcp                 net.Conn
	replies             *wire.ReplyReader
	timeout             time.Duration // for each answer
	release             func()        // called by Close, possibly more than once; nil: not called
	place               place         // among the connections of the account
	watchedCapabilities string        // IMAP: the capabilities after login if UNAUTHENTICATE is one of them, else empty
	exchange            bool          // IMAP: the server is Exchange
	alert               string        // IMAP: what the user must be shown
	until               time.Time     // when a session should end, before the server ends it; zero: never
	pipelining          bool          // POP3: CAPA has PIPELINING, RFC 2449 section 6.6
	lacks               []string      // submission: EHLO keywords that the client was offered and that the server does not offer it
}

// Read implements net.Conn.
func (c *Conn) Read(p []byte) (int, error) { return c.replies.Read(p) }

// Close implements net.Conn.
func (c *Conn) Close() error {
	if c.release != nil {
		defer c.release() // the server is told first: it counts the connections of the account, too
	}
	return c.Conn.Close()
}

// CommandRefused records what the text of a command's refusal says of the account: the
// server may want no login of it for some time. A server that is not known to be Exchange
// and takes the client's password is not heeded. The relay of IMAP does not read answers,
// and calls nothing.
func (c *Conn) CommandRefused(text string) {
	if c.exchange || c.place.verified {
		c.place.backOff(suggestedBackoff(text))
	}
}

// Unauthenticates reports whether the IMAP server offers UNAUTHENTICATE, RFC 8437,
// to the user that is logged in.
func (c *Conn) Unauthenticates() bool { return c.watchedCapabilities != "" }

// CloseWrite ends the direction to the server; reading goes on.
func (c *Conn) CloseWrite() error {
	if t, ok := c.Conn.(*tls.Conn); ok {
		if err := t.CloseWrite(); err != nil {
			return err
		}
	}
	if t, ok := c.tcp.(proxy.Socket); ok {
		return t.CloseWrite()
	}
	return nil
}

// SyscallConn returns the descriptor if reading it gives everything that Read
// would: there is no TLS, and nothing was read ahead.
func (c *Conn) SyscallConn() (syscall.RawConn, error) {
	t, ok := c.Conn.(proxy.Socket)
	if !ok || c.replies.Buffered() > 0 {
		return nil, errors.ErrUnsupported
	}
	c.replies = wire.NewReplyReader(t) // without a buffer: the connection may be idle for hours
	return t.SyscallConn()
}

// NetConn returns the connection below TLS, as tls.Conn.NetConn does.
func (c *Conn) NetConn() net.Conn { return c.tcp }

// sendProxyHeader sends the PROXY header, if identity wants one.
func (c *Conn) sendProxyHeader(identity Identity, client proxy.Client) error {
	header, err := identity.proxyHeader(client)
	if err == nil && header != nil {
		err = c.send(header)
	}
	if err != nil {
		return fmt.Errorf("PROXY header: %w", err)
	}
	return nil
}

// closeTime is how long a server may take to close first after a logout.
const closeTime = time.Second

// logout sends command and closes after the server has closed, or after
// closeTime: TIME_WAIT then takes a port of the server and not one here.
func (c *Conn) logout(goodbye string) {
	_ = c.SetDeadline(time.Now().Add(closeTime))
	if _, err := io.WriteString(c, goodbye+"\r\n"); err == nil {
		_, _ = io.Copy(io.Discard, io.LimitReader(c, wire.MaxReply))
	}
	_ = c.Close()
}

// secure performs the TLS handshake. Octets that came before it may be injected
// by an attacker: RFC 3207 section 6.
func (c *Conn) secure(ctx context.Context, config *tls.Config) error {
	if c.replies.Buffered() > 0 {
		return &tlsError{errors.New("the server sent something behind its answer to STARTTLS")}
	}
	t := tls.Client(c.tcp, config)
	_ = c.tcp.SetDeadline(time.Now().Add(c.timeout))
	if err := t.HandshakeContext(ctx); err != nil {
		return &tlsError{tlsFault(err, config, c.timeout)}
	}
	c.Conn, c.replies = t, wire.NewReplyReader(t)
	return nil
}

// A tlsError is why a connection did not get TLS.
type tlsError struct{ err error }

func (e *tlsError) Error() string { return "TLS: " + e.err.Error() }

func (e *tlsError) Unwrap() error { return e.err }

// send writes pieces in one write, clears them, and sets the deadline for the
// answer.
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

// closeWith closes the connection when ctx ends, unless stop is called before.
func (c *Conn) closeWith(ctx context.Context) (stop func() bool) {
	return context.AfterFunc(ctx, func() { _ = c.tcp.Close() })
}

// clearDeadlines removes the deadlines of the login.
func (c *Conn) clearDeadlines() { _ = c.SetDeadline(time.Time{}) }

// version returns the TLS version, or 0.
func (c *Conn) version() uint16 {
	if t, ok := c.Conn.(*tls.Conn); ok {
		return t.ConnectionState().Version
	}
	return 0
}

// shorten returns the beginning of a server's text, for a log line.
func shorten(s string) string { return wire.Excerpt(s, 200) }
