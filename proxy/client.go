package proxy

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// Errors of reading from a client.
var (
	ErrLineTooLong = errors.New("line too long")    // the line was skipped: go on
	ErrFlood       = errors.New("line without end") // close
)

const (
	minBuffer = 256       // octets: nearly every command; a session has so many while it waits
	maxSkip   = 256 << 10 // octets of one line that are read only to find its end
)

// A Conn is the connection of one client, for its whole life: it has one
// bounded reader, so that nothing read early is lost when TLS begins or when a
// session takes over. Reading is for one goroutine at a time, as is writing;
// Interrupt, Close and the counters are for all.
type Conn struct {
	net.Conn // the transport; TLS on it after StartTLS
	Client   Client

	transport *transport
	tls       *tls.Config
	handshake time.Duration // how long TLS may take; 0: for ever
	observe   func(Event)   // of handshakes; nil: nobody
	state     atomic.Pointer[tls.ConnectionState]

	buf   []byte // buf[r:w] is read and not yet consumed
	r, w  int
	wiped int // buf[:wiped] holds no client octets any more

	received, sent atomic.Int64

	mu       sync.Mutex
	deadline time.Time
	cause    error // once set, every read fails with it
}

// NewConn returns the Conn of a client that is connected by raw. Writes that
// make no progress for stall end with a timeout; 0 is no limit.
func NewConn(raw net.Conn, client Client, config *tls.Config, stall time.Duration) *Conn {
	t := &transport{Conn: raw}
	t.stall.Store(int64(stall))
	return &Conn{Conn: t, Client: client, transport: t, tls: config}
}

// ReadLine returns the next line with its end, LF or CRLF, of at most max
// octets. It is valid, and not wiped, until the next read. A longer line is
// skipped and gives ErrLineTooLong; one without end gives ErrFlood.
func (c *Conn) ReadLine(max int) ([]byte, error) { return c.ReadLonger(max, nil) }

// ReadLonger is ReadLine for lines of which some may be longer: longer is given
// the first max octets of one and returns its bound. Nil: none may.
func (c *Conn) ReadLonger(max int, longer func(begun []byte) int) ([]byte, error) {
	c.wipe()
	for seen := 0; ; {
		i := bytes.IndexByte(c.buf[c.r+seen:c.w], '\n')
		size := c.w - c.r
		if i >= 0 {
			size = seen + i + 1
		}
		if longer != nil && size >= max {
			max, longer = longer(c.buf[c.r:c.r+max]), nil
		}
		if i >= 0 {
			line := c.buf[c.r : c.r+size]
			c.r += size
			if size > max {
				return nil, ErrLineTooLong
			}
			return line, nil
		}
		if seen = size; seen >= max {
			return nil, c.skipLine()
		}
		if err := c.fill(max); err != nil {
			return nil, err
		}
	}
}

func (c *Conn) skipLine() error {
	for skipped := 0; skipped < maxSkip; {
		skipped += c.w - c.r
		c.r = c.w
		c.wipe()
		if err := c.fill(minBuffer); err != nil {
			return err
		}
		if i := bytes.IndexByte(c.buf[c.r:c.w], '\n'); i >= 0 {
			c.r += i + 1
			return ErrLineTooLong
		}
	}
	return ErrFlood
}

// Read returns what is buffered first.
func (c *Conn) Read(p []byte) (int, error) {
	c.wipe()
	if c.r < c.w {
		n := copy(p, c.buf[c.r:c.w])
		c.r += n
		return n, nil
	}
	c.buf = nil // who reads like this has a buffer of its own
	return c.read(p)
}

// Write writes to the client.
func (c *Conn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.sent.Add(int64(n))
	return n, err
}

// Buffered returns how many octets are read and not yet consumed.
func (c *Conn) Buffered() int { return c.w - c.r }

// Received and Sent return how many octets of plaintext have passed.
func (c *Conn) Received() int64 { return c.received.Load() }

// Sent returns how many octets of plaintext were written to the client.
func (c *Conn) Sent() int64 { return c.sent.Load() }

// wipe overwrites what has been consumed: it may have been a password.
func (c *Conn) wipe() {
	clear(c.buf[c.wiped:c.r])
	c.wiped = c.r
	if c.r == c.w {
		c.r, c.w, c.wiped = 0, 0, 0
	}
}

// fill reads once into the buffer, which may grow to max octets. Less than max
// octets are unconsumed when it is called.
func (c *Conn) fill(max int) error {
	if c.w == len(c.buf) {
		c.makeRoom(max)
	}
	n, err := c.read(c.buf[c.w:])
	c.w += n
	if n > 0 {
		return nil
	}
	return err
}

func (c *Conn) makeRoom(limit int) {
	old, room := c.buf, c.buf
	if c.r == 0 {
		room = make([]byte, max(minBuffer, min(limit, 2*len(old))))
	}
	n := copy(room, old[c.r:c.w])
	if c.r > 0 {
		old = old[n:]
	}
	clear(old)
	c.buf, c.r, c.w, c.wiped = room, 0, n, 0
}

func (c *Conn) read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.received.Add(int64(n))
	if err != nil {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.cause != nil {
			err = c.cause
		}
	}
	return n, err
}

// SetReadDeadline sets the deadline of reads. It undoes no Interrupt.
func (c *Conn) SetReadDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cause != nil {
		return c.cause
	}
	c.deadline = t
	return c.transport.SetReadDeadline(t)
}

// Interrupt makes the read that waits, and all later ones, fail with cause.
// Writing still works: there may be something to say.
func (c *Conn) Interrupt(cause error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cause == nil {
		c.cause = cause
		_ = c.transport.SetReadDeadline(time.Unix(1, 0))
	}
}

func (c *Conn) interrupted() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.cause != nil
}

// Wait sleeps for d. What the client sends meanwhile is kept, up to 4 KiB;
// when it leaves, or ctx ends, Wait returns with an error at once.
func (c *Conn) Wait(ctx context.Context, d time.Duration) error {
	old := c.readDeadline()
	end := time.Now().Add(d)
	if err := c.SetReadDeadline(end); err != nil {
		return err
	}
	if err := c.keep(); errors.Is(err, os.ErrDeadlineExceeded) {
		return c.SetReadDeadline(old)
	} else if err != nil {
		return err
	}
	rest := time.NewTimer(time.Until(end))
	defer rest.Stop()
	select {
	case <-rest.C:
		return c.SetReadDeadline(old)
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// keep reads until 4 KiB are buffered, or there is an error.
func (c *Conn) keep() error {
	const most = 4 << 10
	for c.Buffered() < most {
		c.wipe()
		if err := c.fill(most); err != nil {
			return err
		}
	}
	return nil
}

// Watch returns a context that ends when ctx does, or when the client leaves; its
// cause says which. What the client sends meanwhile is kept, up to 4 KiB; behind
// as many nobody sees it leave. Nothing else may read from c until stop has
// returned.
func (c *Conn) Watch(ctx context.Context) (watched context.Context, stop func()) {
	watched, cancel := context.WithCancelCause(ctx)
	old, done := c.readDeadline(), make(chan struct{})
	go func() {
		defer close(done)
		defer func() {
			if v := recover(); v != nil {
				cancel(reportPanic(c.observe, c.Client, v))
			}
		}()
		if err := c.keep(); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			cancel(err)
		}
	}()
	return watched, func() {
		_ = c.SetReadDeadline(time.Unix(1, 0)) // or it was interrupted, and its reads end as well
		<-done
		_ = c.SetReadDeadline(old)
		cancel(nil)
	}
}

func (c *Conn) readDeadline() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.deadline
}

// WaitInput returns as soon as there is something to read.
func (c *Conn) WaitInput() error {
	c.wipe()
	if c.Buffered() > 0 {
		return nil
	}
	return c.fill(minBuffer)
}

// CloseWrite tells the client that nothing more will come; reading goes on.
func (c *Conn) CloseWrite() error {
	if t, ok := c.Conn.(*tls.Conn); ok {
		if err := t.CloseWrite(); err != nil {
			return err
		}
	}
	return c.transport.CloseWrite()
}

// Close closes the connection after a moment in which the client can read the
// last words, at most a second.
func (c *Conn) Close() error {
	c.transport.hurry()
	if t, ok := c.Conn.(*tls.Conn); ok {
		_ = t.CloseWrite()
	}
	c.transport.linger()
	return nil
}

// Abort closes the connection at once. It may be called from any goroutine.
func (c *Conn) Abort() { _ = c.transport.Close() }
