package proxytest

import (
	"io"
	"net"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Faults are the faults of a [Faulty] connection; the zero value has none. Counts
// are in bytes since the beginning; 0 means never.
type Faults struct {
	// Delay passes before each Read and each Write.
	Delay time.Duration
	// Slice is the most that one Read returns and that one Write of the wrapped
	// connection takes.
	Slice int
	// CutRead closes the connection after so many bytes read: io.EOF.
	CutRead int64
	// CutWrite closes the connection after so many bytes written: EPIPE.
	CutWrite int64
	// StallRead lets Read wait for its deadline or Close after so many bytes.
	StallRead int64
	// StallWrite lets Write wait for its deadline or Close after so many bytes.
	StallWrite int64
}

// Faulty returns conn with faults. CloseWrite works if conn has it. Read and
// Write may be called at the same time, each by one goroutine.
func Faulty(conn net.Conn, f Faults) net.Conn {
	hole, _ := net.Pipe()
	return &faulty{Conn: conn, faults: f, hole: hole}
}

type faulty struct {
	net.Conn
	faults        Faults
	read, written int64
	hole          net.Conn // blocks Read and Write, but obeys deadlines and Close
}

func (c *faulty) Read(p []byte) (int, error) {
	time.Sleep(c.faults.Delay)
	switch {
	case limitReached(c.faults.CutRead, c.read):
		_ = c.Close()
		return 0, io.EOF
	case limitReached(c.faults.StallRead, c.read):
		return c.hole.Read(p)
	}
	n, err := c.Conn.Read(p[:c.remaining(len(p), c.read, c.faults.CutRead, c.faults.StallRead)])
	c.read += int64(n)
	return n, err
}

func (c *faulty) Write(p []byte) (written int, err error) {
	for len(p) > 0 && err == nil {
		var n int
		n, err = c.writeSlice(p)
		written += n
		p = p[n:]
	}
	return written, err
}

func (c *faulty) writeSlice(p []byte) (int, error) {
	time.Sleep(c.faults.Delay)
	switch {
	case limitReached(c.faults.CutWrite, c.written):
		_ = c.Close()
		return 0, syscall.EPIPE
	case limitReached(c.faults.StallWrite, c.written):
		return c.hole.Write(p)
	}
	n, err := c.Conn.Write(p[:c.remaining(len(p), c.written, c.faults.CutWrite, c.faults.StallWrite)])
	c.written += int64(n)
	return n, err
}

func limitReached(limit, done int64) bool { return limit > 0 && done >= limit }

// remaining returns how many of n bytes may pass in one call.
func (c *faulty) remaining(n int, done int64, limits ...int64) int {
	if c.faults.Slice > 0 {
		n = min(n, c.faults.Slice)
	}
	for _, limit := range limits {
		if limit > 0 {
			n = int(min(int64(n), limit-done))
		}
	}
	return n
}

func (c *faulty) CloseWrite() error { return closeWrite(c.Conn) }

func (c *faulty) Close() error {
	_ = c.hole.Close()
	return c.Conn.Close()
}

func (c *faulty) SetDeadline(t time.Time) error {
	_ = c.hole.SetDeadline(t)
	return c.Conn.SetDeadline(t)
}

func (c *faulty) SetReadDeadline(t time.Time) error {
	_ = c.hole.SetReadDeadline(t)
	return c.Conn.SetReadDeadline(t)
}

func (c *faulty) SetWriteDeadline(t time.Time) error {
	_ = c.hole.SetWriteDeadline(t)
	return c.Conn.SetWriteDeadline(t)
}

// A Relay is between Postern and a real server and has faults: Read counts bytes
// from the server, Write bytes to it.
type Relay struct {
	// Addr is where it listens.
	Addr string

	server string
	mu     sync.Mutex
	faults Faults
	conns  map[net.Conn]struct{}
	closed bool
}

// StartRelay starts a relay to a server without faults. The end of the test
// stops it.
func StartRelay(t testing.TB, server string) *Relay {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &Relay{Addr: ln.Addr().String(), server: server, conns: make(map[net.Conn]struct{})}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			client, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { r.relay(client) })
		}
	})
	t.Cleanup(func() {
		_ = ln.Close()
		r.mu.Lock()
		r.closed = true
		r.mu.Unlock()
		r.Cut()
		wg.Wait()
	})
	return r
}

// SetFaults gives faults to the connections that come from now on.
func (r *Relay) SetFaults(f Faults) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.faults = f
}

// Cut closes all present connections.
func (r *Relay) Cut() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for conn := range r.conns {
		_ = conn.Close()
	}
}

// relay copies in both directions until both have ended or one has failed.
func (r *Relay) relay(client net.Conn) {
	if !r.add(client) {
		return
	}
	defer r.remove(client)
	conn, err := net.DialTimeout("tcp", r.server, stepTimeout)
	if err != nil {
		return
	}
	r.mu.Lock()
	server := Faulty(conn, r.faults)
	r.mu.Unlock()
	if !r.add(server) {
		return
	}
	defer r.remove(server)
	var wg sync.WaitGroup
	pump := func(dst, src net.Conn) {
		// A plain Reader and Writer: no short cut past the faults.
		_, err := io.Copy(struct{ io.Writer }{dst}, struct{ io.Reader }{src})
		if err == nil {
			err = closeWrite(dst)
		}
		if err != nil {
			_ = client.Close()
			_ = server.Close()
		}
	}
	wg.Go(func() { pump(server, client) })
	wg.Go(func() { pump(client, server) })
	wg.Wait()
}

// add keeps a connection for Cut, or closes it when the relay is closed.
func (r *Relay) add(conn net.Conn) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		_ = conn.Close()
		return false
	}
	r.conns[conn] = struct{}{}
	return true
}

func (r *Relay) remove(conn net.Conn) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.conns, conn)
	_ = conn.Close()
}
