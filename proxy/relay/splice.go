package relay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"postern/proxy"
)

const (
	bufferSize = 64 << 10               // octets; larger ones gain nothing
	burst      = 4 << 10                // octets in one read after which more is worth waiting for
	patience   = 100 * time.Millisecond // for more, with a buffer in hand
	farewell   = 5 * time.Second        // for the client to leave after the backend has
)

var buffers = sync.Pool{New: func() any { return new([bufferSize]byte) }}

// splice copies both ways until both directions have ended: a client may end
// its own and still wait for the answer. The error says who ended first, or
// why it was ended. A session is idle when nothing moves either way. Clients of
// a backend that has crashed are let go within spread, each at its own time.
// A watch, which may be nil, can end it, too.
func splice(ctx context.Context, client *proxy.Conn, backend Leg, idle, spread time.Duration, w *watch) error {
	s := &splicing{
		ours: func() error { return context.Cause(ctx) }, client: client, backend: backend, spread: spread, watch: w, begun: time.Now(),
		silent: make(chan struct{}), left: make(chan struct{}),
	}
	s.limit(idle)
	defer context.AfterFunc(ctx, func() { s.stop(context.Cause(ctx)) })()

	wait := apart(func() { defer close(s.left); s.up() }, func() { s.stop(errPanic) })
	s.down()
	if w != nil {
		w.close()
	}
	close(s.silent)
	leave := time.AfterFunc(farewell, func() { s.stop(nil) })
	wait()
	leave.Stop()
	s.stop(nil)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return s.cause
}

var errPanic = errors.New("panic in a session")

// apart runs f in a goroutine of its own. If f panics, broken is called, which
// must end what the caller does, and then wait panics in its place: there it is
// recovered.
func apart(f, broken func()) (wait func()) {
	done := make(chan string, 1)
	go func() {
		defer close(done)
		defer func() {
			if v := recover(); v != nil {
				done <- fmt.Sprintf("%v\n%s", v, debug.Stack())
				broken()
			}
		}()
		f()
	}()
	return func() {
		if v, ok := <-done; ok {
			panic(v)
		}
	}
}

// A splicing is one run of splice.
type splicing struct {
	ours    func() error // why we end it; nil: we do not
	client  *proxy.Conn
	backend Leg
	spread  time.Duration
	watch   *watch // nil: none
	begun   time.Time
	moved   atomic.Int64 // since begun, when octets were last seen
	last    last
	silent  chan struct{} // closed when the backend has nothing more to say
	left    chan struct{} // closed when the client says nothing more

	mu      sync.Mutex
	ended   bool
	cause   error // the first
	stopped bool
	timer   *time.Timer
}

// up copies from the client to the backend.
func (s *splicing) up() {
	server := io.Writer(s.backend)
	if s.watch != nil {
		server = fromClient{s.watch, s.backend}
	}
	err := s.copy(server, s.client)
	switch {
	case banned(err.write):
		s.stop(err.write)
	case err.write != nil: // what the backend has still to say comes down
		s.end(fmt.Errorf("%w: %w", proxy.ErrBackendClosed, err.write))
	case errors.Is(err.read, io.EOF), errors.Is(err.read, io.ErrUnexpectedEOF): // without the alert that TLS wants at the end
		s.end(proxy.ErrClientClosed)
		// After LOGOUT the backend closes first, if it gets the time: TIME_WAIT,
		// and with it a port, is then its.
		select {
		case <-s.silent:
		case <-time.After(closeTime):
		}
		_ = s.backend.CloseWrite()
	default:
		s.stop(fmt.Errorf("%w: %w", proxy.ErrClientClosed, err.read))
	}
}

// down copies from the backend to the client.
func (s *splicing) down() {
	client := io.Writer(s.client)
	if s.watch != nil {
		client = fromServer{s.watch, s.client}
	}
	var err copyError
	if raw := rawConn(s.backend); raw != nil {
		err = s.copyReady(client, raw)
	} else {
		err = s.copy(answering{s, client}, s.backend)
	}
	switch {
	case errors.Is(err.write, os.ErrDeadlineExceeded):
		s.stop(fmt.Errorf("write to client: %w", err.write))
	case err.write != nil:
		s.stop(fmt.Errorf("%w: %w", proxy.ErrClientClosed, err.write))
	default:
		s.end(proxy.ErrBackendClosed)
		if !errors.Is(err.read, io.EOF) {
			s.hold()
		}
		_ = s.client.CloseWrite()
	}
}

// hold keeps a client whose backend has crashed: thousands of them must not
// come back in the same moment.
func (s *splicing) hold() {
	if s.spread <= 0 {
		return
	}
	end := time.NewTimer(rand.N(s.spread))
	defer end.Stop()
	select {
	case <-end.C:
	case <-s.left:
	}
}

// end keeps the first reason.
func (s *splicing) end(cause error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.ended {
		s.ended, s.cause = true, cause
	}
}

// stop ends both directions now. A deadline could be undone by who copies, so
// the backend is closed.
func (s *splicing) stop(cause error) {
	s.end(cause)
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.stopped {
		s.stopped = true
		if s.watch != nil {
			s.watch.close()
		}
		s.timer.Stop()
		s.bye()
		s.client.Interrupt(s.cause)
		_ = s.backend.Close()
	}
}

// limit stops the session when nothing has moved for idle.
func (s *splicing) limit(idle time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.timer = time.AfterFunc(idle, func() {
		silent := time.Since(s.begun) - time.Duration(s.moved.Load())
		if silent >= idle {
			s.stop(proxy.ErrIdleTimeout)
			return
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		if !s.stopped {
			s.timer.Reset(idle - silent)
		}
	})
}

// A source is what copy reads from.
type source interface {
	io.Reader
	SetReadDeadline(time.Time) error
}

// A copyError says which side copying has ended on.
type copyError struct{ read, write error }

// copy copies until an error. A small buffer waits; a large one is in hand only
// while much moves.
func (s *splicing) copy(dst io.Writer, src source) copyError {
	small := make([]byte, 256)
	for {
		n, err := s.move(dst, src, small)
		if n == len(small) && err == (copyError{}) {
			err = s.copyBurst(dst, src)
		}
		if err != (copyError{}) {
			return err
		}
	}
}

// copyReady copies until an error. No buffer waits.
func (s *splicing) copyReady(dst io.Writer, raw syscall.RawConn) (err copyError) {
	for err == (copyError{}) {
		err = s.copyOnce(dst, raw)
	}
	return err
}

func (s *splicing) copyOnce(dst io.Writer, raw syscall.RawConn) (err copyError) {
	b, n, readErr := readReady(raw)
	if b != nil {
		defer buffers.Put(b)
	}
	if n > 0 {
		s.moved.Store(int64(time.Since(s.begun)))
		_, err.write = s.answer(dst, b[:n])
	}
	err.read = readErr
	return err
}

// copyBurst copies as long as there is much.
func (s *splicing) copyBurst(dst io.Writer, src source) copyError {
	b := buffers.Get().(*[bufferSize]byte)
	defer buffers.Put(b)
	defer func() { _ = src.SetReadDeadline(time.Time{}) }()
	for {
		_ = src.SetReadDeadline(time.Now().Add(patience))
		n, err := s.move(dst, src, b[:])
		switch {
		case errors.Is(err.read, os.ErrDeadlineExceeded):
			return copyError{}
		case err != (copyError{}), n < burst:
			return err
		}
	}
}

func (s *splicing) move(dst io.Writer, src source, b []byte) (n int, err copyError) {
	n, err.read = src.Read(b)
	if n > 0 {
		s.moved.Store(int64(time.Since(s.begun)))
		if _, err.write = dst.Write(b[:n]); err.write != nil {
			return n, err
		}
	}
	return n, err
}
