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
	checkTime = time.Minute            // a session is looked at so often at least, whether it is idle
	restTime  = 50 * time.Millisecond  // how long one direction waits for the other one to come to rest
)

// newSplice returns a spliceConn that copies octets in both directions until both have
// ended: a client may close its direction and still wait for an answer. A watch may be
// nil; it can end the session, too.
func newSplice(client *proxy.Conn, backend Upstream, l lifetime, p syntax, w watch) *spliceConn {
	return &spliceConn{client: client, backend: backend, lifetime: l, syntax: p, watch: w, started: time.Now()}
}

// run copies until the session ends or parks. The error says which side ended first, or
// why Postern ended the session; a *proxy.Idle says that run is to be called again.
func (s *spliceConn) run(ctx context.Context) error {
	s.begin(func() error { return context.Cause(ctx) })
	stopAfter := context.AfterFunc(ctx, func() { s.stop(context.Cause(ctx)) })
	defer stopAfter()

	wait := goRecover(func() { defer close(s.clientDone); s.copyUp() }, func() { s.stop(errPanic) })
	if s.copyDown() {
		wait()
		if stopAfter() && s.suspend() {
			now := time.Now()
			return &proxy.Idle{Server: wakeConn(s.backend), Until: now.Add(s.timeLeft(now))}
		}
	}
	if s.watch != nil {
		s.watch.close()
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

// A lifetime is when a spliceConn ends a session.
type lifetime struct {
	idle   time.Duration // when nothing has moved in either direction for so long
	spread time.Duration // when the backend has crashed: at a random time within it; 0: at once
	until  time.Time     // from then on, as soon as the client waits for nothing; zero: never
}

// A syntax is what a spliceConn knows of a protocol, to say goodbye.
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

// A spliceConn is a session whose octets are copied. Between two runs, where the session is
// parked, it has no goroutine, no timer and no buffer.
type spliceConn struct {
	client       *proxy.Conn
	backend      Upstream
	lifetime     lifetime
	syntax       syntax
	watch        watch // nil: none
	started      time.Time
	lastActivity atomic.Int64 // time since started at which octets moved last
	clientLast   atomic.Bool  // they were the client's
	tail         tailBuffer

	stopCause   func() error  // why Postern ends the session; nil: it does not
	backendDone chan struct{} // closed when the backend sends nothing more
	clientDone  chan struct{} // closed when the client sends nothing more
	writing     atomic.Int32  // directions that are in a Write

	mu      sync.Mutex
	ended   bool
	cause   error // the first
	stopped bool
	saidBYE bool
	parked  bool        // the reads of both directions have met their deadlines
	timer   *time.Timer // of the run; nil: there is none
	resumed time.Time   // when the run has begun
	resting *resting    // both directions are to come to rest; nil: they are not
}

// begin prepares a run.
func (s *spliceConn) begin(stopCause func() error) {
	s.backendDone, s.clientDone = make(chan struct{}), make(chan struct{})
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stopCause = stopCause
	if s.parked {
		s.parked = false
		s.endRestLocked()
	}
	s.resumed = time.Now()
	var timer *time.Timer
	timer = time.AfterFunc(s.timeLeft(s.resumed), func() { s.check(timer) })
	s.timer = timer
	s.scheduleLocked(s.resumed)
}

// suspend ends a run in which both directions have come to rest. It returns false if the
// session has ended meanwhile.
func (s *spliceConn) suspend() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended || s.stopped {
		return false
	}
	s.timer.Stop()
	s.timer, s.stopCause, s.backendDone, s.clientDone, s.resting = nil, nil, nil, nil, nil
	s.parked = true
	return true
}

// copyUp copies from the client to the backend.
func (s *spliceConn) copyUp() {
	server := io.Writer(s.backend)
	if s.watch != nil {
		server = s.watch.toServer(s.backend)
	}
	err := s.copy(server, s.client)
	switch {
	case errors.Is(err.read, errAtRest):
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

// copyDown copies from the backend to the client. It reports whether it has ended because
// both directions are at rest.
func (s *spliceConn) copyDown() (atRest bool) {
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
	case errors.Is(err.read, errAtRest):
		return true
	case errors.Is(err.write, os.ErrDeadlineExceeded):
		s.stop(fmt.Errorf("write to client: %w", err.write))
	case err.write != nil:
		s.stop(fmt.Errorf("%w: %w", proxy.ErrClientClosed, err.write))
	default:
		s.serverEnded(errors.Is(err.read, io.EOF))
		_ = s.client.CloseWrite()
	}
	return false
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
	return s.setCauseLocked(cause)
}

func (s *spliceConn) setCauseLocked(cause error) bool {
	if s.ended {
		return false
	}
	s.ended, s.cause = true, cause
	return true
}

// stop ends both directions at once. The copying goroutine could reset a
// deadline, so the backend is closed.
func (s *spliceConn) stop(cause error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stopLocked(cause)
}

func (s *spliceConn) stopLocked(cause error) {
	s.setCauseLocked(cause)
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

// check is called by the timer of a run.
func (s *spliceConn) check(timer *time.Timer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.timer == timer && !s.stopped {
		s.scheduleLocked(time.Now())
	}
}

// scheduleLocked ends the session at the end of its lifetime, makes both directions rest
// when nothing has moved for long enough to park, and sets the timer for the next look.
func (s *spliceConn) scheduleLocked(now time.Time) {
	silent := s.silence(now)
	switch {
	case silent >= s.lifetime.idle:
		s.stopLocked(proxy.ErrIdleTimeout)
		return
	case s.over(now) && silent >= quietTime && s.clientWaitsForNothing(now):
		s.stopLocked(proxy.ErrTokenEnds)
		return
	}
	next := min(s.timeLeft(now), checkTime)
	if after := s.parkAfter(); after > 0 && !s.over(now) {
		more := after - min(silent, now.Sub(s.resumed))
		if more <= 0 {
			more = max(after, restTime)
			if s.writing.Load() == 0 && s.resting == nil {
				s.beginRestLocked()
			}
		}
		next = min(next, more)
	}
	s.timer.Reset(next)
}

// parkAfter is proxy.Conn.ParkAfter, and 0 if the backend could not wake the session.
func (s *spliceConn) parkAfter() time.Duration {
	after := s.client.ParkAfter()
	if after > 0 && wakeConn(s.backend) == nil {
		after = 0
	}
	return after
}

// errAtRest ends a direction because the session parks.
var errAtRest = errors.New("both directions are at rest")

// resting is an attempt to end both directions between two octets. Each of them comes to
// rest in a read that has met its deadline: then crypto/tls has no complete record, and
// no octet is anywhere but in the descriptor.
type resting struct {
	directions int           // at rest
	both       chan struct{} // closed when it is both
}

// beginRestLocked makes the reads of both directions end.
func (s *spliceConn) beginRestLocked() {
	s.resting = &resting{both: make(chan struct{})}
	_ = s.client.SetReadDeadline(time.Unix(1, 0))
	_ = s.backend.SetReadDeadline(time.Unix(1, 0))
}

// endRestLocked lets both directions read again.
func (s *spliceConn) endRestLocked() {
	s.resting = nil
	_ = s.client.SetReadDeadline(time.Time{})
	_ = s.backend.SetReadDeadline(time.Time{})
}

// isToRest reports whether a direction has ended because its read has met the deadline of
// beginRestLocked. The cause of a session that was stopped may be a deadline, too.
func (s *spliceConn) isToRest(err copyError) bool {
	if err.write != nil || !errors.Is(err.read, os.ErrDeadlineExceeded) {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.stopped
}

// rest is called by a direction whose read has met its deadline. It reports whether the
// other direction is at rest, too. The other one may be in a Write that waits for this
// one: then nobody rests.
func (s *spliceConn) rest() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.resting
	if r == nil {
		return false
	}
	if r.directions++; r.directions == 2 {
		close(r.both)
		return true
	}
	s.mu.Unlock()
	patience := time.NewTimer(restTime)
	select {
	case <-r.both:
	case <-patience.C:
	}
	patience.Stop()
	s.mu.Lock()
	if r.directions == 2 {
		return true
	}
	s.endRestLocked()
	return false
}

// setReadDeadline sets the deadline of a direction's reads, unless it has to rest.
func (s *spliceConn) setReadDeadline(src source, t time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.resting == nil {
		_ = src.SetReadDeadline(t)
	}
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
		if s.isToRest(err) {
			if s.rest() {
				return copyError{read: errAtRest}
			}
			continue
		}
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
		if s.isToRest(err) {
			if s.rest() {
				return copyError{read: errAtRest}
			}
			err = copyError{}
		}
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
		s.writing.Add(1)
		_, err.write = s.writeReply(dst, b[:n])
		s.writing.Add(-1)
	}
	err.read = readErr
	return n, err
}

// copyBurst copies with a large buffer as long as much is sent.
func (s *spliceConn) copyBurst(dst io.Writer, src source) copyError {
	b := buffers.Get().(*[bufferSize]byte)
	defer buffers.Put(b)
	defer func() { s.setReadDeadline(src, time.Time{}) }()
	for {
		s.setReadDeadline(src, time.Now().Add(burstWait))
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
		s.writing.Add(1)
		_, err.write = dst.Write(b[:n])
		s.writing.Add(-1)
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
