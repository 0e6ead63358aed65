// Package bridge serves POP3 to a client from the INBOX of an IMAP server.
//
// A session opens INBOX with SELECT, numbers the messages it finds, and keeps
// these numbers to its end: everything it asks of the server it asks by UID.
// DELE marks a message in memory; QUIT, and nothing else, removes what is
// marked, with UID STORE and UID EXPUNGE. A server without UIDPLUS gets the
// \Deleted flag only: a bare EXPUNGE, or CLOSE, would remove the messages that
// other clients have marked.
//
// What the server or the connection to it may do, and what the client is told:
//
//	SELECT fails                 login refused for now
//	message vanished             -ERR, without a code; the session goes on
//	FETCH answered NO            -ERR [SYS/TEMP]; the session goes on
//	lost, between commands       -ERR [SYS/TEMP] at the next one that needs it; the session ends
//	lost, within a message       the connection is cut: no message that looks complete
//	STORE or EXPUNGE answered NO -ERR [SYS/TEMP] to QUIT
package bridge

import (
	"bufio"
	"context"
	"io"
	"net"
	"sync"
	"time"

	"postern/bridge/uidl"
	"postern/proxy"
)

const (
	// minIdle is RFC 1939 section 3: an autologout timer must be of at least
	// 10 minutes.
	minIdle        = 10 * time.Minute
	defaultTimeout = time.Minute
)

// A Dial logs l in to an IMAP server. It returns the connection after the
// server's OK, with what was read ahead, and the capabilities that hold then.
// An error is a *proxy.Refusal.
type Dial func(ctx context.Context, l *proxy.Login) (conn net.Conn, capabilities string, err error)

// A Backend serves maildrops from an IMAP server. Its fields must not change
// once it is used.
type Backend struct {
	Name     string
	Dial     Dial
	UIDL     uidl.Format    // nil: Dovecot's
	Idle     time.Duration  // how long a client may be silent; at least, and by default, 10 minutes
	Timeout  time.Duration  // how long the server may be silent within a command; 0: a minute
	Observer proxy.Observer // nil: nobody

	writers, buffers sync.Pool // *bufio.Writer, *[]byte
}

// Login implements proxy.Backend: it asks for the server's yes or no.
func (b *Backend) Login(ctx context.Context, l *proxy.Login) (proxy.Session, error) {
	conn, capabilities, err := b.Dial(ctx, l)
	if err != nil {
		return nil, err
	}
	l.Secret.Clear()
	return &session{
		backend: b,
		client:  l.Client,
		inbox:   newInbox(conn, capabilities, b.timeout()),
	}, nil
}

func (b *Backend) idle() time.Duration { return max(b.Idle, minIdle) }

func (b *Backend) timeout() time.Duration {
	if b.Timeout == 0 {
		return defaultTimeout
	}
	return b.Timeout
}

func (b *Backend) format() uidl.Format {
	if b.UIDL == nil {
		return uidl.Dovecot
	}
	return b.UIDL
}

func (b *Backend) observe(e proxy.Event) {
	if b.Observer != nil {
		b.Observer.Observe(e)
	}
}

// writerSize is small against a TLS record and large against a reply: long
// listings are not a record for each line.
const writerSize = 4 << 10

func (b *Backend) takeWriter(w io.Writer) *bufio.Writer {
	if out, ok := b.writers.Get().(*bufio.Writer); ok {
		out.Reset(w)
		return out
	}
	return bufio.NewWriterSize(w, writerSize)
}

func (b *Backend) giveWriter(out *bufio.Writer) {
	out.Reset(nil)
	b.writers.Put(out)
}

// bufferSize is what of a message is in memory at a time.
const bufferSize = 32 << 10

func (b *Backend) takeBuffer() *[]byte {
	if buf, ok := b.buffers.Get().(*[]byte); ok {
		return buf
	}
	buf := make([]byte, bufferSize)
	return &buf
}

func (b *Backend) giveBuffer(buf *[]byte) { b.buffers.Put(buf) }
