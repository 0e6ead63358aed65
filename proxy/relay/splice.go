package relay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"regexp"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"postern/proxy"
)

const (
	burstSize = 4 << 10                // octets: after a read of so many it is worth waiting for more
	burstWait = 100 * time.Millisecond // how long to wait for more while holding a large buffer
	byeTime   = time.Second            // for the write of a BYE
	leaveTime = 5 * time.Second        // how long the client may take to close after the backend has closed
	turnSize  = 128 << 10              // octets of a download after which others get their turn: about 0.2 ms
)

// splice copies octets in both directions until both have ended: a client may
// close its direction and still wait for an answer. The error says which side
// ended first, or why Postern ended the session. A watch may be nil; it can end the
// session, too.
func splice(ctx context.Context, client *proxy.Conn, backend Upstream, l lifetime, p syntax, w watch) error {
	s := &spliceConn{
		stopCause: func() error { return context.Cause(ctx) }, client: client, backend: backend, lifetime: l, syntax: p, watch: w, started: time.Now(),
		backendDone: make(chan struct{}), clientDone: make(chan struct{}),
	}
	s.startTimer()
	defer context.AfterFunc(ctx, func() { s.stop(context.Cause(ctx)) })()

	wait := goRecover(func() { defer close(s.clientDone); s.copyUp() }, func() { s.stop(errPanic) })
	s.copyDown()
	if w != nil {
		w.close()
	}
	close(s.backendDone)
	leave := time.AfterFunc(leaveTime, func() { s.stop(nil) })
	wait()
	leave.Stop()
	s.stop(nil)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return s.cause
}

// A lifetime is when splice ends a session.
type lifetime struct {
	idle   time.Duration // when nothing has moved in either direction for so long
	spread time.Duration // when the backend has crashed: at a random time within it; 0: at once
	until  time.Time     // from then on, as soon as the client waits for nothing; zero: never
}

// A syntax is what splice knows of a protocol, to say goodbye.
type syntax struct {
	response *regexp.Regexp           // the last line, with CRLF, of a response that another one may follow
	bye      func(text string) string // a response that ends the session, with CRLF
	byeWord  string                   // which bye begins with
	byeAtEnd bool                     // a server that ends the session as the client asked for sends bye as well
}

// A watch follows the octets of a session in both directions. It can end the session with
// proxy.ErrForbidden.
type watch interface {
	toServer(io.Writer) io.Writer // returns the writer for the client's octets
	toClient(io.Writer) io.Writer // returns the writer for the server's octets
	close()                       // ends the wait of a Write
	betweenResponses() bool       // reports whether the client has all of the last response, so that another one can be inserted
}

// A spliceConn is one run of splice.
type spliceConn struct {
	stopCause    func() error // why Postern ends the session; nil: it does not
	client       *proxy.Conn
	backend      Upstream
	lifetime     lifetime
	syntax       syntax
	watch        watch // nil: none
	started      time.Time
	lastActivity atomic.Int64 // time since started at which octets moved last
	clientLast   atomic.Bool  // they were the client's
	tail         tailBuffer
	backendDone  chan struct{} // closed when the backend sends nothing more
	clientDone   chan struct{} // closed when the client sends nothing more

	mu      sync.Mutex
	ended   bool
	cause   error // the first
	stopped bool
	saidBYE bool
	timer   *time.Timer
}

// copyUp copies from the client to the backend.
func (s *spliceConn) copyUp() {
	server := io.Writer(s.backend)
	if s.watch != nil {
		server = s.watch.toServer(s.backend)
	}
	err := s.copy(server, s.client)
	switch {
	case isForbidden(err.write):
		s.stop(err.write)
	case err.write != nil: // the backend may still send
		s.setCause(fmt.Errorf("%w: %w", proxy.ErrBackendClosed, err.write))
	case errors.Is(err.read, io.EOF), errors.Is(err.read, io.ErrUnexpectedEOF): // TLS without close_notify
		s.setCause(proxy.ErrClientClosed)
		// After LOGOUT the backend closes first if it has the time: then TIME_WAIT
		// takes a port there and not here.
		select {
		case <-s.backendDone:
		case <-time.After(closeTime):
		}
		_ = s.backend.CloseWrite()
	default:
		s.stop(fmt.Errorf("%w: %w", proxy.ErrClientClosed, err.read))
	}
}

// copyDown copies from the backend to the client.
func (s *spliceConn) copyDown() {
	client := io.Writer(s.client)
	if s.watch != nil {
		client = s.watch.toClient(s.client)
	}
	var err copyError
	if raw := rawConn(s.backend); raw != nil {
		err = s.copyReady(client, raw)
	} else {
		err = s.copy(replyWriter{s, client}, s.backend)
	}
	switch {
	case errors.Is(err.write, os.ErrDeadlineExceeded):
		s.stop(fmt.Errorf("write to client: %w", err.write))
	case err.write != nil:
		s.stop(fmt.Errorf("%w: %w", proxy.ErrClientClosed, err.write))
	default:
		s.serverEnded(errors.Is(err.read, io.EOF))
		_ = s.client.CloseWrite()
	}
}

// serverEnded says goodbye to the client in the server's place, if the server has closed
// the connection without it. orderly is false after a crash.
func (s *spliceConn) serverEnded(orderly bool) {
	quiet := quietTime
	if s.syntax.byeAtEnd {
		quiet = 0 // nothing more comes: the end of a response is its end
	}
	bare := s.tail.atLineEnd(s.syntax.response, quiet, time.Now()) && !s.tail.hasLine(s.syntax.byeWord)
	first := s.setCause(proxy.ErrBackendClosed)
	if !orderly {
		s.delayReconnect()
	}
	if !first || !bare {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.stopped {
		s.writeBYE("The mail server has closed the connection: log in again")
	}
}

// delayReconnect keeps the client of a crashed backend connected for a random
// time, so that thousands of clients do not reconnect in the same moment.
func (s *spliceConn) delayReconnect() {
	if s.lifetime.spread <= 0 {
		return
	}
	end := time.NewTimer(rand.N(s.lifetime.spread))
	defer end.Stop()
	select {
	case <-end.C:
	case <-s.clientDone:
	}
}

// setCause keeps the first cause, and reports whether cause is the first.
func (s *spliceConn) setCause(cause error) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return false
	}
	s.ended, s.cause = true, cause
	return true
}

// stop ends both directions at once. The copying goroutine could reset a
// deadline, so the backend is closed.
func (s *spliceConn) stop(cause error) {
	s.setCause(cause)
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.stopped {
		s.stopped = true
		if s.watch != nil {
			s.watch.close()
		}
		s.timer.Stop()
		s.sendBYE()
		s.client.Interrupt(s.cause)
		_ = s.backend.Close()
	}
}

// startTimer starts the timer that ends the session at the end of its lifetime.
func (s *spliceConn) startTimer() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.timer = time.AfterFunc(s.timeLeft(time.Now()), func() {
		now := time.Now()
		switch silent := s.silence(now); {
		case silent >= s.lifetime.idle:
			s.stop(proxy.ErrIdleTimeout)
			return
		case s.over(now) && silent >= quietTime && s.clientWaitsForNothing(now):
			s.stop(proxy.ErrTokenEnds)
			return
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		if !s.stopped {
			s.timer.Reset(s.timeLeft(now))
		}
	})
}

// silence returns for how long nothing has moved.
func (s *spliceConn) silence(now time.Time) time.Duration {
	return now.Sub(s.started) - time.Duration(s.lastActivity.Load())
}

// over reports whether the session should end as soon as the client waits for nothing.
func (s *spliceConn) over(now time.Time) bool {
	return !s.lifetime.until.IsZero() && !now.Before(s.lifetime.until)
}

// timeLeft returns after what time the timer has to look at the session.
func (s *spliceConn) timeLeft(now time.Time) time.Duration {
	left := s.lifetime.idle - s.silence(now)
	switch {
	case s.over(now):
		left = min(left, quietTime)
	case !s.lifetime.until.IsZero():
		left = min(left, s.lifetime.until.Sub(now))
	}
	return left
}

// clientWaitsForNothing reports whether the last octets were the end of a response: no
// command is under way but IDLE, whose continuation has come.
func (s *spliceConn) clientWaitsForNothing(now time.Time) bool {
	return !s.clientLast.Load() && s.tail.atLineEnd(s.syntax.response, quietTime, now)
}

// A source is what copy reads from.
type source interface {
	io.Reader
	SetReadDeadline(time.Time) error
}

// A copyError says on which side copying has ended.
type copyError struct{ read, write error }

// copy copies until an error. It waits with a small buffer and uses a large one
// only while much is sent.
func (s *spliceConn) copy(dst io.Writer, src source) copyError {
	small := make([]byte, 256)
	for {
		n, err := s.copyOnce(dst, src, small)
		if n == len(small) && err == (copyError{}) {
			err = s.copyBurst(dst, src)
		}
		if err != (copyError{}) {
			return err
		}
	}
}

// copyReady copies until an error, and holds no buffer while it waits. A download that
// never waits would keep short answers waiting for 10 ms, until Go's scheduler ends its
// turn.
func (s *spliceConn) copyReady(dst io.Writer, raw syscall.RawConn) (err copyError) {
	for turn := 0; err == (copyError{}); {
		var n int
		n, err = s.copyReadyOnce(dst, raw)
		if turn += n; turn >= turnSize {
			turn = 0
			runtime.Gosched()
		}
	}
	return err
}

func (s *spliceConn) copyReadyOnce(dst io.Writer, raw syscall.RawConn) (n int, err copyError) {
	b, n, readErr := readReady(raw)
	if b != nil {
		defer buffers.Put(b)
	}
	if n > 0 {
		s.moved(false)
		_, err.write = s.writeReply(dst, b[:n])
	}
	err.read = readErr
	return n, err
}

// copyBurst copies with a large buffer as long as much is sent.
func (s *spliceConn) copyBurst(dst io.Writer, src source) copyError {
	b := buffers.Get().(*[bufferSize]byte)
	defer buffers.Put(b)
	defer func() { _ = src.SetReadDeadline(time.Time{}) }()
	for {
		_ = src.SetReadDeadline(time.Now().Add(burstWait))
		n, err := s.copyOnce(dst, src, b[:])
		switch {
		case errors.Is(err.read, os.ErrDeadlineExceeded):
			return copyError{}
		case err != (copyError{}), n < burstSize:
			return err
		}
	}
}

func (s *spliceConn) copyOnce(dst io.Writer, src source, b []byte) (n int, err copyError) {
	n, err.read = src.Read(b)
	if n > 0 {
		s.moved(src == source(s.client))
		if _, err.write = dst.Write(b[:n]); err.write != nil {
			return n, err
		}
	}
	return n, err
}

// moved records that octets have come from one side.
func (s *spliceConn) moved(fromClient bool) {
	s.lastActivity.Store(int64(time.Since(s.started)))
	s.clientLast.Store(fromClient)
}

// A replyWriter is the client as the writer for the server's octets.
type replyWriter struct {
	*spliceConn
	to io.Writer
}

func (w replyWriter) Write(b []byte) (int, error) { return w.writeReply(w.to, b) }

// writeReply writes the server's octets to the client and keeps their end.
func (s *spliceConn) writeReply(client io.Writer, b []byte) (int, error) {
	s.tail.beginWrite()
	n, err := client.Write(b)
	s.tail.endWrite(b[:n])
	return n, err
}

// sendBYE tells the client in the protocol's words why Postern ends the session, if a
// response can be inserted now.
func (s *spliceConn) sendBYE() {
	cause := s.stopCause()
	switch {
	case isForbidden(s.cause):
		if s.watch.betweenResponses() {
			s.writeBYE("This command is not permitted here")
		}
	case !s.tail.atLineEnd(s.syntax.response, quietTime, time.Now()):
	case cause != nil:
		s.writeBYE(proxy.Goodbye(proxy.ReasonOf(cause)))
	case errors.Is(s.cause, proxy.ErrTokenEnds):
		s.writeBYE("This session has lasted for as long as it may: log in again")
	}
}

// writeBYE writes a response that ends the session, the only one.
func (s *spliceConn) writeBYE(text string) {
	if s.saidBYE {
		return
	}
	s.saidBYE = true
	_ = s.client.SetWriteDeadline(time.Now().Add(byeTime))
	_, _ = io.WriteString(s.client, s.syntax.bye(s.client.Client.WithSessionID(text)))
}
