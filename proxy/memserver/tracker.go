package memserver

import (
	"errors"
	"net"
	"sync"
)

// A tracker has the listeners and connections of a Server, so that Close can end
// them: the libraries do not wait for theirs, and do not know those that are
// accepted while they close.
type tracker struct {
	mu        sync.Mutex
	ended     sync.Cond // a session has ended
	closed    bool
	listeners map[*trackedListener]struct{}
	conns     map[*trackedConn]struct{}
	sessions  int
}

func (t *tracker) init() {
	t.ended.L = &t.mu
	t.listeners = make(map[*trackedListener]struct{})
	t.conns = make(map[*trackedConn]struct{})
}

// listener wraps ln and counts it in serving.
func (t *tracker) listener(ln net.Listener, serving *sync.WaitGroup) (net.Listener, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil, errors.Join(net.ErrClosed, ln.Close())
	}
	serving.Add(1)
	tracked := &trackedListener{Listener: ln, tracker: t}
	t.listeners[tracked] = struct{}{}
	return tracked, nil
}

// begin counts a session, unless the tracker is closed.
func (t *tracker) begin() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.closed {
		t.sessions++
	}
	return !t.closed
}

func (t *tracker) end() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.sessions--
	t.ended.Broadcast()
}

// close closes all listeners and connections. Later ones are closed at once.
func (t *tracker) close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = true
	var errs []error
	for ln := range t.listeners {
		errs = append(errs, ln.Listener.Close())
	}
	for conn := range t.conns {
		_ = conn.Conn.Close() // the client may have been faster
	}
	clear(t.listeners)
	clear(t.conns)
	return errors.Join(errs...)
}

// wait waits until all sessions have ended.
func (t *tracker) wait() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for t.sessions > 0 {
		t.ended.Wait()
	}
}

type trackedListener struct {
	net.Listener
	tracker *tracker
}

func (l *trackedListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	l.tracker.mu.Lock()
	defer l.tracker.mu.Unlock()
	if l.tracker.closed {
		return nil, errors.Join(net.ErrClosed, conn.Close())
	}
	tracked := &trackedConn{Conn: conn, tracker: l.tracker}
	l.tracker.conns[tracked] = struct{}{}
	return tracked, nil
}

// Close closes the listener once, because the libraries close it, too.
func (l *trackedListener) Close() error {
	l.tracker.mu.Lock()
	defer l.tracker.mu.Unlock()
	if _, open := l.tracker.listeners[l]; !open {
		return nil
	}
	delete(l.tracker.listeners, l)
	return l.Listener.Close()
}

type trackedConn struct {
	net.Conn
	tracker *tracker
}

func (c *trackedConn) Close() error {
	c.tracker.mu.Lock()
	delete(c.tracker.conns, c)
	c.tracker.mu.Unlock()
	return c.Conn.Close()
}
