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

// Errors of reading a line from a client.
var (
	ErrLineTooLong = errors.New("line too long")    // the line was skipped: the next one can be read
	ErrFlood       = errors.New("line without end") // the connection must be closed
)

const (
	minBuffer = 256       // octets: enough for nearly every command, and all that an idle session keeps
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
	observe   func(Event)   // emits Handshake and Panicked; nil: not emitted
	state     atomic.Pointer[tls.ConnectionState]

	buf   []byte // buf[r:w] is read and not yet consumed
	r, w  int
	wiped int // buf[:wiped] was overwritten

	received, sent atomic.Int64
	busy           atomic.Bool

	end       func(cause error) // of the Server; nil: there is none
	parkAfter *atomic.Int64     // of the Server; nil: sessions do not park
	parkDelay atomic.Int64      // nanoseconds that ParkAfter returns at least; set after the session could not be parked

	mu       sync.Mutex
	whenIdle func() // see WhenIdle; nil: none
	deadline time.Time
	cause    error // once set, every read fails with it
}

// NewConn returns the Conn of a client that is connected by raw. Writes that
// make no progress for stall end with a timeout; 0 is no limit.
func NewConn(raw net.Conn, client Client, config *tls.Config, stall time.Duration) *Conn {
	t := &transport{Socket: NewSocket(raw)}
	t.stall.Store(int64(stall))
	return &Conn{Conn: t, Client: client, transport: t, tls: config}
}

// ReadLine returns the next line with its end, LF or CRLF, of at most max
// octets. It is valid, and not wiped, until the next read. A longer line is
// skipped and gives ErrLineTooLong; one without end gives ErrFlood.
func (c *Conn) ReadLine(max int) ([]byte, error) { return c.ReadLonger(max, nil) }

// ReadLonger is ReadLine with a higher limit for some lines. longer gets the first
// max octets of a line that has more, and returns the limit for this line. longer
// nil: no line may have more than max octets.
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

// skipLine reads up to the end of the line.
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

// Read implements io.Reader. Buffered octets come first.
func (c *Conn) Read(p []byte) (int, error) {
	c.wipe()
	if c.r < c.w {
		n := copy(p, c.buf[c.r:c.w])
		c.r += n
		return n, nil
	}
	c.buf = nil // callers of Read have a buffer of their own
	return c.read(p)
}

// ReadAvailable reads what the client has sent already, and does not wait. Under TLS,
// Read returns one record, and ReadAvailable as many whole ones as have come and as p
// can hold. 0: nothing has come, or the next Read returns why.
func (c *Conn) ReadAvailable(p []byte) (n int) {
	if c.Buffered() > 0 {
		return 0
	}
	c.transport.noWait, c.transport.drained = true, false
	defer func() { c.transport.noWait = false }()
	for n < len(p) {
		k, err := c.Conn.Read(p[n:])
		n += k
		if err != nil {
			break
		}
	}
	c.received.Add(int64(n))
	return n
}

// Write implements io.Writer.
func (c *Conn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.sent.Add(int64(n))
	return n, err
}

// Buffered returns how many octets are read and not yet consumed.
func (c *Conn) Buffered() int { return c.w - c.r }

// Received returns how many octets of plaintext were read from the client.
func (c *Conn) Received() int64 { return c.received.Load() }

// Sent returns how many octets of plaintext were written to the client.
func (c *Conn) Sent() int64 { return c.sent.Load() }

// SetBusy marks the session as one that should not be ended now: SessionInfo.Busy.
func (c *Conn) SetBusy(busy bool) {
	c.mu.Lock()
	c.busy.Store(busy)
	var f func()
	if !busy {
		f, c.whenIdle = c.whenIdle, nil
	}
	c.mu.Unlock()
	if f != nil {
		f()
	}
}

// WhenIdle calls f at once, or after the message that makes the session busy.
func (c *Conn) WhenIdle(f func()) {
	c.mu.Lock()
	busy := c.busy.Load()
	if busy {
		c.whenIdle = f
	}
	c.mu.Unlock()
	if !busy {
		f()
	}
}

// Busy returns what SetBusy has set.
func (c *Conn) Busy() bool { return c.busy.Load() }

// wipe overwrites consumed octets, which may have been a password.
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
		c.growBuffer(max)
	}
	n, err := c.read(c.buf[c.w:])
	c.w += n
	if n > 0 {
		return nil
	}
	return err
}

// growBuffer makes space at the end of the buffer: it moves the unconsumed octets
// to the start, or doubles the buffer up to limit.
func (c *Conn) growBuffer(limit int) {
	old, grown := c.buf, c.buf
	if c.r == 0 {
		grown = make([]byte, max(minBuffer, min(limit, 2*len(old))))
	}
	n := copy(grown, old[c.r:c.w])
	if c.r > 0 {
		old = old[n:]
	}
	clear(old)
	c.buf, c.r, c.w, c.wiped = grown, 0, n, 0
}

// read reads past the buffer. After Interrupt its error is the cause.
func (c *Conn) read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.received.Add(int64(n))
	switch {
	case c.transport.certificate == nil:
	case n > 0:
		c.transport.certificate = nil
	case err != nil:
		c.noticeRejection(err)
	}
	if err != nil {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.cause != nil {
			err = c.cause
		}
	}
	return n, err
}

// SetReadDeadline sets the deadline of reads. After Interrupt it does nothing and
// returns the cause.
func (c *Conn) SetReadDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cause != nil {
		return c.cause
	}
	c.deadline = t
	return c.transport.SetReadDeadline(t)
}

// Interrupt makes the read that waits, and all later reads, fail with cause.
// Writing still works, for a goodbye.
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

// Wait sleeps for d. It buffers up to 4 KiB that the client sends meanwhile. When
// the client leaves or ctx ends, Wait returns an error at once.
func (c *Conn) Wait(ctx context.Context, d time.Duration) error {
	old := c.readDeadline()
	end := time.Now().Add(d)
	if err := c.SetReadDeadline(end); err != nil {
		return err
	}
	if err := c.readAhead(); errors.Is(err, os.ErrDeadlineExceeded) {
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

// readAhead reads until 4 KiB are buffered, or there is an error.
func (c *Conn) readAhead() error {
	const most = 4 << 10
	for c.Buffered() < most {
		c.wipe()
		if err := c.fill(most); err != nil {
			return err
		}
	}
	return nil
}

// Watch returns a context that ends when ctx ends or the client leaves; its cause
// says which. Watch buffers up to 4 KiB that the client sends meanwhile; after 4 KiB
// it no longer notices that the client leaves. Nothing else may read from c until
// stop has returned.
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
		if err := c.readAhead(); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			cancel(err)
		}
	}()
	return watched, func() {
		_ = c.SetReadDeadline(time.Unix(1, 0)) // fails after Interrupt, which ends the read as well
		<-done
		_ = c.SetReadDeadline(old)
		cancel(nil)
	}
}

// End ends the session for cause, as Server.Kick does, also when the session is parked.
// Any goroutine may call it.
func (c *Conn) End(cause error) {
	if c.end != nil {
		c.end(cause)
	}
}

// ParkAfter returns for how long nothing must have happened before Session.Run returns
// an *Idle; 0: it must not.
func (c *Conn) ParkAfter() time.Duration {
	if c.parkAfter == nil || c.transport.raw == nil {
		return 0
	}
	after := time.Duration(c.parkAfter.Load())
	if after == 0 {
		return 0
	}
	return max(after, time.Duration(c.parkDelay.Load()))
}

// releaseBuffer drops the buffer, which is empty.
func (c *Conn) releaseBuffer() {
	c.wipe()
	c.buf = nil
}

func (c *Conn) readDeadline() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.deadline
}

// CloseWrite ends the direction to the client: close_notify and FIN. Reading goes
// on.
func (c *Conn) CloseWrite() error {
	if t, ok := c.Conn.(*tls.Conn); ok {
		if err := t.CloseWrite(); err != nil {
			return err
		}
	}
	return c.transport.CloseWrite()
}

// Close closes the connection. It first gives the client up to a second to read
// the last words.
func (c *Conn) Close() error {
	c.transport.limitLastWrites()
	if t, ok := c.Conn.(*tls.Conn); ok {
		_ = t.CloseWrite()
	}
	c.transport.linger()
	return nil
}

// Abort closes the connection at once. It may be called from any goroutine.
func (c *Conn) Abort() { _ = c.transport.Close() }
