package main

import (
	"errors"
	"sync"
	"sync/atomic"
	"time"
)

// runBulkLatency measures NOOP round trips, or logins, on -c sessions for -t while
// -streams other sessions fetch the mailbox of -streamuser over and over
// through the same server.
func runBulkLatency(o *options) error {
	o.proto = "imap"
	if o.duration <= 0 {
		return errors.New("give -t")
	}
	server, err := findProcesses(o.pids)
	if err != nil {
		return err
	}
	// The sessions open before the streams start, which may hold up a login.
	sessions := make([]*imapSession, o.concurrency)
	for i := range sessions {
		if sessions[i], err = dialIMAP(o, i, 4<<10); err != nil {
			return err
		}
		defer sessions[i].close()
	}
	var streams streamers
	streams.start(o)
	time.Sleep(500 * time.Millisecond) // let the streams get going

	var rec recorder
	before := server.usage()
	already := streams.octets.Load()
	start := time.Now()
	var workers sync.WaitGroup
	for _, s := range sessions {
		operation := func() error { return s.run("NOOP") }
		if o.logins {
			operation = func() error { return loginOnce(o) }
		}
		workers.Go(func() { latencyLoop(o, operation, start.Add(o.duration), &rec) })
	}
	workers.Wait()
	elapsed := time.Since(start)
	used := server.usage().since(before)
	streamed, err := streams.stop()
	if err != nil {
		rec.record(0, 0, 0, err)
	}
	rec.bytes = streamed - already
	return rec.result(o, elapsed, used).print()
}

func loginOnce(o *options) error {
	s, err := dialLogin(o, 0)
	if err != nil {
		return err
	}
	return s.logout()
}

func latencyLoop(o *options, operation func() error, until time.Time, rec *recorder) {
	for time.Now().Before(until) {
		began := time.Now()
		err := operation()
		rec.record(time.Since(began), 0, 0, err)
		if err != nil {
			return
		}
		time.Sleep(o.interval)
	}
}

// streamers are the sessions that keep the server busy.
type streamers struct {
	group   sync.WaitGroup
	stopped atomic.Bool
	octets  atomic.Int64
	mu      sync.Mutex
	err     error
}

func (s *streamers) start(o *options) {
	streaming := *o
	streaming.userFormat = o.streamUser
	for i := range o.streams {
		s.group.Go(func() {
			if err := s.stream(&streaming, i); err != nil {
				s.mu.Lock()
				s.err = err
				s.mu.Unlock()
			}
		})
	}
}

func (s *streamers) stream(o *options, i int) error {
	session, err := dialIMAP(o, i, 64<<10)
	if err != nil {
		return err
	}
	defer session.close()
	if err := session.run("SELECT %s", o.mailbox); err != nil {
		return err
	}
	for !s.stopped.Load() {
		tag, err := session.command("FETCH 1:* BODY.PEEK[]")
		if err != nil {
			return err
		}
		err = session.finish(tag, func(size int64) error {
			if s.stopped.Load() {
				return errStopped
			}
			s.octets.Add(size)
			_, err := session.r.Discard(int(size))
			return err
		})
		if err != nil && !errors.Is(err, errStopped) {
			return err
		}
	}
	return nil
}

var errStopped = errors.New("stopped")

// stop ends the streams and returns the octets they received.
func (s *streamers) stop() (int64, error) {
	octets := s.octets.Load()
	s.stopped.Store(true)
	s.group.Wait()
	return octets, s.err
}
