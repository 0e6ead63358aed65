package proxy

import (
	"context"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// DefaultParkAfter is for how long nothing has moved when a session is parked. It is
// longer than most pauses within a dialogue, so that those cost no wake-up.
const DefaultParkAfter = time.Second

// retryParking is for how long a session keeps its goroutine after it could not be parked.
const retryParking = time.Minute

// An Idle is the error of a Session.Run that is not an end: the session is parked, and
// Run is called again when the client has sent something, and when Postern ends the
// session.
type Idle struct {
	Server syscall.RawConn // the connection to the server: octets from there wake the session, too; nil: they do not
	Until  time.Time       // when the session has been idle for too long: the session is woken then; zero: never
}

// Error implements error.
func (i *Idle) Error() string { return "nothing to do" }

// A phase says who serves a connection.
type phase uint8

const (
	running phase = iota // a goroutine
	parking              // a goroutine that is leaving the connection to the parker
	parked               // the parker
	ended                // nobody any more
)

// A turn decides who serves a connection. Each change of phase is made under mu, and
// who changes it from parked to running starts the goroutine.
type turn struct {
	mu     sync.Mutex
	phase  phase
	woken  bool                    // something has happened while parking
	key    uint64                  // of the present parking; 0: there is none
	cause  error                   // why Postern ends the connection; nil: it does not
	cancel context.CancelCauseFunc // of the goroutine's context; nil: there is none
}

// endCause returns why Postern ends the connection, or nil.
func (t *turn) endCause() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.cause
}

// begin makes the context of the goroutine that serves c from now on.
func (c *conn) begin() {
	ctx, cancel := context.WithCancelCause(context.Background())
	c.ctx = ctx
	c.stop = context.AfterFunc(ctx, func() {
		c.Interrupt(context.Cause(ctx))
		time.AfterFunc(goodbyeTime, c.Abort)
	})
	c.turn.mu.Lock()
	defer c.turn.mu.Unlock()
	c.turn.cancel = cancel
	if c.turn.cause != nil {
		cancel(c.turn.cause)
	}
}

// interrupt ends c for cause, with a goodbye of its protocol. It reports whether c was
// not ending before. Any goroutine may call it.
func (s *Server) interrupt(c *conn, cause error) bool {
	c.turn.mu.Lock()
	defer c.turn.mu.Unlock()
	if c.turn.cause != nil || c.turn.phase == ended {
		return false
	}
	c.turn.cause = cause
	if c.turn.phase == parked {
		s.unparkLocked(c)
	} else if c.turn.cancel != nil {
		c.turn.cancel(cause)
	}
	return true
}

// wake makes a connection go on that was parked with key. It does nothing if that
// parking is over.
func (s *Server) wake(c *conn, key uint64) {
	c.turn.mu.Lock()
	defer c.turn.mu.Unlock()
	switch {
	case c.turn.key != key:
	case c.turn.phase == parking:
		c.turn.woken = true
	case c.turn.phase == parked:
		s.unparkLocked(c)
	}
}

// unparkLocked starts the goroutine of a parked connection. c.turn.mu is held.
func (s *Server) unparkLocked(c *conn) {
	s.parker.forget(c.turn.key)
	s.parker.wakes.Add(1)
	c.turn.phase, c.turn.key = running, 0
	go s.resume(c)
}

// park leaves an idle session to the parker. It returns false if the goroutine has to go
// on: something has come, the connection ends, or the session cannot be parked. After
// true the connection may be another goroutine's already.
func (s *Server) park(c *conn, idle *Idle) bool {
	if c.Buffered() > 0 {
		return false
	}
	c.releaseBuffer()
	key := s.parker.nextKey()
	c.turn.mu.Lock()
	c.turn.phase, c.turn.key, c.turn.woken = parking, key, false
	c.turn.mu.Unlock()
	err := s.parker.watch(s, c, key, idle)

	c.turn.mu.Lock()
	defer c.turn.mu.Unlock()
	if err != nil {
		s.parker.failures.Add(1)
		c.parkDelay.Store(int64(retryParking))
	}
	if err != nil || c.turn.woken || c.turn.cause != nil {
		s.parker.forget(key)
		c.turn.phase, c.turn.key = running, 0
		return false
	}
	c.stop()
	c.setStep(StepParked)
	c.ctx, c.stop, c.turn.cancel = nil, nil, nil
	c.turn.phase = parked
	return true
}

// finish ends the last turn.
func (s *Server) finish(c *conn) {
	c.stop()
	c.turn.mu.Lock()
	defer c.turn.mu.Unlock()
	if c.turn.key != 0 { // after a panic while parking
		s.parker.forget(c.turn.key)
	}
	c.turn.phase, c.turn.key = ended, 0
}

// SetParking makes the sessions park in which nothing has moved for after; 0: none does.
// Sessions that are parked stay so until they are woken. On systems without epoll
// SetParking does nothing. Any goroutine may call it.
func (s *Server) SetParking(after time.Duration) {
	if canPark {
		s.parker.after.Store(int64(after))
	}
}

// Parks reports whether sessions park.
func (s *Server) Parks() bool { return s.parker.after.Load() > 0 }

// ParkingStats are counts of parked sessions.
type ParkingStats struct {
	Parked   int   // sessions that are parked now
	Wakes    int64 // parked sessions that have gone on
	Failures int64 // idle sessions that could not be parked
}

// Parking returns the counts of parked sessions. Any goroutine may call it.
func (s *Server) Parking() ParkingStats {
	s.parker.mu.Lock()
	defer s.parker.mu.Unlock()
	return ParkingStats{Parked: len(s.parker.conns), Wakes: s.parker.wakes.Load(), Failures: s.parker.failures.Load()}
}

// A poller waits for many descriptors at once.
type poller interface {
	// watch makes run call wake with key once, when conn has something to read or its
	// peer has closed. It replaces the key of an earlier watch.
	watch(conn syscall.RawConn, key uint64) error

	// run calls wake until the poller is closed or fails.
	run(wake func(key uint64))

	close()
}

// A parker waits for all parked connections. The zero value is ready. It opens its poller
// for the first connection.
type parker struct {
	after           atomic.Int64 // nanoseconds; 0: sessions do not park
	lastKey         atomic.Uint64
	wakes, failures atomic.Int64
	openPoller      func() (poller, error) // nil: newPoller

	mu     sync.Mutex
	poller poller // nil: not open
	conns  map[uint64]parkedConn
	sweep  *time.Timer // wakes the sessions that are idle for too long; nil: there was none yet
	due    time.Time   // when sweep fires; zero: it does not
	crowd  crowd
}

// A parkedConn is a connection in a parker.
type parkedConn struct {
	*conn
	until time.Time // Idle.Until
}

// nextKey returns a key that no parking had before.
func (p *parker) nextKey() uint64 { return p.lastKey.Add(1) }

// watch makes all that idle names wake c. After an error c may still be woken, until
// forget is called.
func (p *parker) watch(s *Server, c *conn, key uint64, idle *Idle) error {
	client, err := c.transport.SyscallConn()
	if err != nil {
		return err
	}
	poller, err := p.add(s, c, key, idle.Until)
	if err != nil {
		return err
	}
	if err := poller.watch(client, key); err != nil || idle.Server == nil {
		return err
	}
	return poller.watch(idle.Server, key)
}

// add adds c, and opens the poller if it is not open.
func (p *parker) add(s *Server, c *conn, key uint64, until time.Time) (poller, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.poller == nil {
		open := p.openPoller
		if open == nil {
			open = newPoller
		}
		opened, err := open()
		if err != nil {
			return nil, err
		}
		p.poller = opened
		go p.run(s, opened)
	}
	if p.conns == nil {
		p.conns = make(map[uint64]parkedConn)
	}
	if !until.IsZero() {
		p.sweepByLocked(s, until)
	}
	p.conns[key] = parkedConn{c, until}
	p.crowd.grow(p)
	return p.poller, nil
}

// forget removes the connection with a key, if it is there.
func (p *parker) forget(key uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.conns, key)
}

// take removes the connection with a key and returns it; nil: it is not there.
func (p *parker) take(key uint64) *conn {
	p.mu.Lock()
	defer p.mu.Unlock()
	c := p.conns[key].conn
	delete(p.conns, key)
	return c
}

// run wakes connections until the poller is closed. If the poller fails, all connections
// go on, and the next one that parks opens another poller.
func (p *parker) run(s *Server, poller poller) {
	poller.run(func(key uint64) {
		if c := p.take(key); c != nil {
			s.wake(c, key)
		}
	})
	p.mu.Lock()
	if p.poller != poller { // closed
		p.mu.Unlock()
		return
	}
	poller.close()
	p.poller = nil
	all := p.conns
	p.conns = nil
	p.mu.Unlock()
	p.failures.Add(1)
	for key, c := range all {
		s.wake(c.conn, key)
	}
}

// close closes the poller.
func (p *parker) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.poller != nil {
		p.poller.close()
		p.poller = nil
	}
}

// sweepByLocked makes sure that idle connections are looked for at t.
func (p *parker) sweepByLocked(s *Server, t time.Time) {
	if !p.due.IsZero() && !t.Before(p.due) {
		return
	}
	p.due = t
	if p.sweep == nil {
		p.sweep = time.AfterFunc(time.Until(t), func() { p.wakeIdle(s) })
	} else {
		p.sweep.Reset(time.Until(t))
	}
}

// sweepEvery is the least time between two looks for idle connections.
const sweepEvery = time.Second

// wakeIdle wakes the connections that were idle for too long.
func (p *parker) wakeIdle(s *Server) {
	type idleConn struct {
		*conn
		key uint64
	}
	var woken []idleConn
	now, next := time.Now(), time.Time{}
	p.mu.Lock()
	for key, c := range p.conns {
		switch {
		case c.until.IsZero():
		case !c.until.After(now):
			woken = append(woken, idleConn{c.conn, key})
			delete(p.conns, key)
		case next.IsZero() || c.until.Before(next):
			next = c.until
		}
	}
	p.due = time.Time{}
	if !next.IsZero() {
		if earliest := now.Add(sweepEvery); next.Before(earliest) {
			next = earliest
		}
		p.sweepByLocked(s, next)
	}
	p.mu.Unlock()
	for _, c := range woken {
		s.wake(c.conn, c.key)
	}
}

// A crowd gives back to the system what the arrival of many sessions has left in the
// heap: once, when they are parked and no more come. Without this an idle Postern keeps
// the memory of its busiest moment, because nothing is allocated that would start a
// garbage collection. A lower GOGC instead would cost CPU at each login.
type crowd struct {
	timer    *time.Timer // nil: not running
	before   int         // parked connections when the timer was started
	released int         // parked connections when memory was given back last, or fewer later
	last     time.Time   // when that was
}

const (
	crowdCheck = time.Second
	crowdEvery = time.Minute // at most so often memory is given back
	crowdLeast = 256         // connections
)

// grow is called with p.mu held, when a connection was added.
func (w *crowd) grow(p *parker) {
	w.released = min(w.released, len(p.conns))
	if w.timer == nil && w.isLarge(len(p.conns)) {
		w.before = len(p.conns)
		w.timer = time.AfterFunc(max(crowdCheck, crowdEvery-time.Since(w.last)), func() { w.rest(p) })
	}
}

// isLarge reports whether so many connections more than the last time are parked that
// giving memory back is worth a garbage collection.
func (w *crowd) isLarge(parked int) bool {
	return parked-w.released >= max(crowdLeast, w.released/8)
}

// rest gives memory back if no more sessions come.
func (w *crowd) rest(p *parker) {
	p.mu.Lock()
	n := len(p.conns)
	if w.isLarge(n) && n-w.before > max(crowdLeast/8, n/100) { // they are still coming
		w.before = n
		w.timer.Reset(crowdCheck)
		p.mu.Unlock()
		return
	}
	w.timer = nil
	release := w.isLarge(n)
	if release {
		w.released, w.last = n, time.Now()
	}
	p.mu.Unlock()
	if release {
		runtime.GC() // empties the pools only with the next one
		debug.FreeOSMemory()
	}
}
