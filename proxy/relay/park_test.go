package relay

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"postern/proxy"
	"postern/proxy/proxytest"
)

var (
	parkSessions = flag.Int("park.sessions", 50, "sessions of TestParkedSessionsLoseNothing")
	parkRounds   = flag.Int("park.rounds", 100, "rounds of each of them")
)

// openGuard admits everybody.
type openGuard struct{}

func (openGuard) Admit(proxy.Client, context.CancelCauseFunc) (proxy.Permit, error) {
	return openPermit{}, nil
}

type openPermit struct{}

func (openPermit) Try(context.Context, *proxy.Login) error { return nil }
func (openPermit) Settle(error) time.Duration              { return 0 }
func (openPermit) Leave()                                  {}

// lineDialogue logs in with the first line.
type lineDialogue struct{ c *proxy.Conn }

func (d lineDialogue) Login(context.Context) (*proxy.Login, error) {
	if _, err := d.c.ReadLine(100); err != nil {
		return nil, err
	}
	return &proxy.Login{User: "alice", Secret: proxy.NewSecret([]byte("x"))}, nil
}
func (d lineDialogue) Refuse(r *proxy.Refusal) error { return r }
func (d lineDialogue) Accept(string) error {
	_, err := io.WriteString(d.c, "OK\r\n")
	return err
}

// A parkFixture is a Server whose sessions relay to a server of the test.
type parkFixture struct {
	*proxy.Server
	t       *testing.T
	address string
	roots   func(net.Conn) *tls.Conn
	backend chan net.Conn // the server's ends, in the order of the logins
}

// Login implements proxy.Backend.
func (f *parkFixture) Login(context.Context, *proxy.Login) (proxy.Session, error) {
	near := <-f.backend
	return &IMAP{BackendName: "main", Conn: near.(Upstream), Idle: time.Hour}, nil
}

// Observe implements proxy.Observer.
func (f *parkFixture) Observe(e proxy.Event) {
	if e, ok := e.(proxy.Panicked); ok {
		f.t.Errorf("panic: %v\n%s", e.Value, e.Stack)
	}
}

func startParking(t *testing.T, after time.Duration) *parkFixture {
	cert, pool := proxytest.Cert(t)
	f := &parkFixture{t: t, backend: make(chan net.Conn, 1)}
	f.Server = &proxy.Server{Guard: openGuard{}, Observer: f}
	f.roots = func(c net.Conn) *tls.Conn { return proxytest.ClientTLS(c, pool) }
	if f.SetParking(after); !f.Parks() {
		t.Skip("sessions park on Linux only")
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f.address = ln.Addr().String()
	err = f.Apply([]proxy.Binding{{Listener: ln, Service: &proxy.Service{
		Name: "imaps", Protocol: proxy.IMAP, TLS: proxytest.ServerTLS(cert), Backend: f,
		Dialogue: func(c *proxy.Conn) proxy.Dialogue { return lineDialogue{c} },
		Account:  func(user string) (string, error) { return user, nil },
	}}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		_ = f.Shutdown(ctx, 0)
	})
	return f
}

// A slowWire is the connection of a client below its TLS: it can send half of what is
// written, and the rest later.
type slowWire struct {
	net.Conn
	half atomic.Bool
}

func (w *slowWire) Write(p []byte) (int, error) {
	if !w.half.Load() || len(p) < 2 {
		return w.Conn.Write(p)
	}
	cut := rand.IntN(len(p)-1) + 1
	if n, err := w.Conn.Write(p[:cut]); err != nil {
		return n, err
	}
	time.Sleep(rand.N(30 * time.Millisecond)) // the session parks with half a record, or not
	n, err := w.Conn.Write(p[cut:])
	return cut + n, err
}

// A parkedClient is both ends of a session.
type parkedClient struct {
	wire   *slowWire
	client *tls.Conn
	lines  *bufio.Reader // of client
	server net.Conn
	asked  *bufio.Reader // of server
}

var dialing sync.Mutex // so that logins and the server's ends have one order

// open logs in. secure: TLS to the server as well.
func (f *parkFixture) open(secure bool) (*parkedClient, error) {
	dialing.Lock()
	defer dialing.Unlock()
	near, far := proxytest.Pipe(f.t)
	if secure {
		cert, pool := proxytest.Cert(f.t)
		inner := tls.Server(far, proxytest.ServerTLS(cert))
		outer := proxytest.ClientTLS(near, pool)
		errs := make(chan error, 1)
		go func() { errs <- inner.Handshake() }()
		if err := errors.Join(outer.Handshake(), <-errs); err != nil {
			return nil, err
		}
		near, far = outer, inner
	}
	c, err := net.Dial("tcp", f.address)
	if err != nil {
		return nil, err
	}
	wire := &slowWire{Conn: c}
	p := &parkedClient{wire: wire, client: f.roots(wire), server: far}
	p.lines, p.asked = bufio.NewReader(p.client), bufio.NewReader(far)
	f.backend <- near
	if _, err := io.WriteString(p.client, "LOGIN\r\n"); err != nil {
		return nil, err
	}
	if line, err := p.lines.ReadString('\n'); line != "OK\r\n" {
		return nil, fmt.Errorf("login: %q, %w", line, err)
	}
	return p, nil
}

func (p *parkedClient) close() {
	_ = p.wire.Close()
	_ = p.server.Close()
}

// sends writes a line at one end and wants it at the other.
func sends(from io.Writer, to *bufio.Reader, line string) error {
	if _, err := io.WriteString(from, line); err != nil {
		return err
	}
	if got, err := to.ReadString('\n'); got != line {
		return fmt.Errorf("%q came as %q, %w", line, got, err)
	}
	return nil
}

// round does what happens in a session, at a random moment around that of parking. goes
// on is false after an end.
func (p *parkedClient) round(f *parkFixture, n int) (ended bool, err error) {
	deadline := time.Now().Add(20 * time.Second)
	_, _ = p.client.SetDeadline(deadline), p.server.SetDeadline(deadline)
	time.Sleep(rand.N(20 * time.Millisecond))
	asked, pushed := fmt.Sprintf("a%d NOOP\r\n", n), fmt.Sprintf("* %d EXISTS\r\n", n)
	switch k := rand.IntN(100); {
	case k < 30:
		return false, sends(p.client, p.asked, asked)
	case k < 60:
		return false, sends(p.server, p.lines, pushed)
	case k < 75: // both in the same moment
		errs := make(chan error, 1)
		go func() { errs <- sends(p.client, p.asked, asked) }()
		return false, errors.Join(sends(p.server, p.lines, pushed), <-errs)
	case k < 85:
		p.wire.half.Store(true)
		defer p.wire.half.Store(false)
		return false, sends(p.client, p.asked, asked)
	case k < 92: // more than a buffer, in both directions
		long := strings.Repeat("x", 100_000) + "\r\n"
		errs := make(chan error, 1)
		go func() { errs <- sends(p.client, p.asked, long) }()
		return false, errors.Join(sends(p.server, p.lines, long), <-errs)
	case k < 94:
		return true, p.leaves()
	case k < 96:
		return true, p.resets()
	case k < 98:
		return true, p.isLeft()
	}
	return true, p.isKicked(f)
}

// leaves closes the client: the server learns of it.
func (p *parkedClient) leaves() error {
	_ = p.client.Close()
	if rest, err := io.ReadAll(p.asked); len(rest) > 0 || err != nil {
		return fmt.Errorf("after the client's FIN the server read %q, %w", rest, err)
	}
	return nil
}

// resets closes the client with RST.
func (p *parkedClient) resets() error {
	_ = p.wire.Conn.(*net.TCPConn).SetLinger(0)
	_ = p.wire.Close()
	_, err := io.ReadAll(p.asked)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return fmt.Errorf("after the client's RST the server read: %w", err)
	}
	return nil
}

// isLeft closes the server after its last words.
func (p *parkedClient) isLeft() error {
	const bye = "* BYE\r\n"
	if _, err := io.WriteString(p.server, bye); err != nil {
		return err
	}
	_ = p.server.Close()
	if rest, err := io.ReadAll(p.lines); string(rest) != bye || err != nil {
		return fmt.Errorf("after the server's FIN the client read %q, %w", rest, err)
	}
	return nil
}

// isKicked ends the session by its client's address.
func (p *parkedClient) isKicked(f *parkFixture) error {
	addr := proxy.AddrPort(p.wire.Conn.LocalAddr())
	if n := f.Kick(func(i proxy.SessionInfo) bool { return i.Client.Addr == addr }); n != 1 {
		return fmt.Errorf("%d sessions were kicked, want 1", n)
	}
	rest, err := io.ReadAll(p.lines)
	if err != nil || len(rest) > 0 && !strings.HasPrefix(string(rest), "* BYE ") {
		return fmt.Errorf("a kicked client read %q, %w", rest, err)
	}
	return nil
}

// Criterion: Sessions that park and wake lose no octet, repeat none and do not hang, whatever comes at the moment of parking: lines from either side or from both, half a TLS record, FIN, RST, the operator's kick; with TLS to the server and without.
func TestParkedSessionsLoseNothing(t *testing.T) {
	f := startParking(t, 5*time.Millisecond)
	var wg sync.WaitGroup
	for i := range *parkSessions {
		wg.Go(func() {
			p, err := f.open(i%2 == 1)
			for n := 0; n < *parkRounds && err == nil; n++ {
				var ended bool
				if ended, err = p.round(f, n); ended && err == nil {
					p.close()
					p, err = f.open(i%2 == 1)
				}
			}
			if err != nil {
				t.Errorf("session %d: %v", i, err)
			}
			if p != nil {
				p.close()
			}
		})
	}
	wg.Wait()
	stats := f.Parking()
	t.Logf("%d wakes", stats.Wakes)
	if stats.Failures > 0 || stats.Wakes < int64(*parkSessions**parkRounds/4) {
		t.Errorf("%d sessions could not be parked, %d wakes: too few", stats.Failures, stats.Wakes)
	}
	for end := time.Now().Add(10 * time.Second); len(f.Sessions()) > 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d sessions are left, %d of them parked", len(f.Sessions()), f.Parking().Parked)
		}
	}
	if left := f.Parking().Parked; left > 0 {
		t.Errorf("the parker has still %d sessions", left)
	}
}

// Criterion: 500 idle sessions have no goroutine, and idle ones answer again at once.
func TestParkedSessionsHaveNoGoroutine(t *testing.T) {
	const sessions, most = 500, 60
	f := startParking(t, 5*time.Millisecond)
	before := runtime.NumGoroutine()
	var all []*parkedClient
	for range sessions {
		p, err := f.open(false)
		if err != nil {
			t.Fatal(err)
		}
		defer p.close()
		all = append(all, p)
	}
	for end := time.Now().Add(10 * time.Second); f.Parking().Parked < sessions; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%+v: the sessions do not park", f.Parking())
		}
	}
	if n := runtime.NumGoroutine() - before; n >= most {
		t.Errorf("%d sessions have %d goroutines, want less than %d", sessions, n, most)
	}
	for i, p := range all {
		if err := sends(p.client, p.asked, "a NOOP\r\n"); err != nil {
			t.Fatalf("session %d: %v", i, err)
		}
	}
}
