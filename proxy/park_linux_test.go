package proxy_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"postern/proxy"
	"postern/proxy/proxytest"
)

const logInAndTalk = `
	S: OK hello
	C: LOGIN alice right
	S: OK welcome
	C: one
	S: * one
`

// Criterion: Where a session cannot be parked (no descriptor, no memory, no permission), or a system call is interrupted, it goes on as if it were not parked; failures are counted.
func TestASessionThatCannotBeParkedGoesOn(t *testing.T) {
	t.Parallel()
	const ever = 1 << 40
	for name, c := range map[string]struct {
		faults proxy.EpollFaults
		fails  bool
	}{
		"no descriptor":         {proxy.EpollFaults{Create: syscall.EMFILE, Times: 1}, true},
		"no descriptor at all":  {proxy.EpollFaults{Create: syscall.ENFILE, Times: ever}, true},
		"no watch left":         {proxy.EpollFaults{Ctl: syscall.ENOSPC, Times: 1}, true},
		"no memory":             {proxy.EpollFaults{Ctl: syscall.ENOMEM, Times: ever}, true},
		"no permission":         {proxy.EpollFaults{Ctl: syscall.EPERM, Times: 1}, true},
		"the poller is broken":  {proxy.EpollFaults{Wait: syscall.EBADF, Times: 1}, true},
		"interrupted calls":     {proxy.EpollFaults{Ctl: syscall.EINTR, Wait: syscall.EINTR, Times: 3}, false},
		"nothing is impossible": {proxy.EpollFaults{}, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h, d := &fakeBackend{}, newRecorder()
			h.session = func() proxy.Session { return &echoSession{h: h, parks: true} }
			dial, s := startServer(t, h, d, nil)
			proxy.InjectEpollFaults(s, c.faults)
			s.SetParking(time.Nanosecond)
			client := dial()
			proxytest.Transcript(t, client, logInAndTalk)
			time.Sleep(20 * time.Millisecond)
			proxytest.Transcript(t, client, "C: two\nS: * two\nC: QUIT\nS: OK bye")
			d.wantEnd(t, proxy.EndClientQuit)
			if stats := s.Parking(); stats.Failures > 0 != c.fails || stats.Parked > 0 {
				t.Errorf("%+v at the end, want failures: %v", stats, c.fails)
			}
		})
	}
}

// Criterion: Kick and drain end parked sessions with the goodbye of their protocol; postern sessions shows them as parked, with their TLS and octets.
func TestParkedSessionsAreEndedWithAGoodbye(t *testing.T) {
	t.Parallel()
	for _, how := range []string{proxy.EndKicked, proxy.EndDrain} {
		h, d := &fakeBackend{}, newRecorder()
		h.session = func() proxy.Session { return &echoSession{h: h, parks: true} }
		dial, s := startServer(t, h, d, func(svc *proxy.Service, _ *proxy.Server) { svc.StartTLS = false })
		s.SetParking(time.Nanosecond)
		client := dial()
		proxytest.Transcript(t, client, logInAndTalk)
		eventually(t, "the session is parked", func() bool { return s.Parking().Parked == 1 && s.Sessions()[0].Step == proxy.StepParked })
		if i := s.Sessions()[0]; i.Client.TLS == nil || i.Received == 0 || i.Sent == 0 || i.Step.String() != "parked" {
			t.Errorf("the parked session is shown as %+v", i)
		}
		bye := "BYE kicked"
		if how == proxy.EndDrain {
			bye = "BYE shutting_down"
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			go func() { _ = s.Shutdown(ctx, 0) }()
		} else if n := s.Kick(func(proxy.SessionInfo) bool { return true }); n != 1 {
			t.Errorf("%d sessions were kicked", n)
		}
		proxytest.Transcript(t, client, "S: "+bye+"\nS: <EOF>")
		d.wantEnd(t, how)
	}
}

// Criterion: A session that is ended while it parks, by several at once, ends once and with a goodbye.
func TestEndsThatComeWhileASessionParks(t *testing.T) {
	t.Parallel()
	h, d := &fakeBackend{}, newRecorder()
	d.closed = make(chan proxy.Closed, 1000)
	h.session = func() proxy.Session { return &echoSession{h: h, parks: true} }
	dial, s := startServer(t, h, d, nil)
	s.SetParking(time.Nanosecond)
	const rounds = 200
	for range rounds {
		client := dial()
		lines := bufio.NewReader(client)
		_, _ = io.WriteString(client, "LOGIN alice right\r\none\r\n") // answers it, and parks
		for _, want := range []string{"OK hello", "OK welcome"} {
			if line, err := lines.ReadString('\n'); !strings.HasPrefix(line, want) {
				t.Fatalf("the client read %q, %v", line, err)
			}
		}
		var wg sync.WaitGroup
		var kicked [3]int
		for i := range kicked {
			wg.Go(func() { kicked[i] = s.Kick(func(i proxy.SessionInfo) bool { return i.Account != "" }) })
		}
		wg.Wait()
		if n := kicked[0] + kicked[1] + kicked[2]; n > 1 {
			t.Fatalf("the session was kicked %d times", n)
		} else if n == 0 { // it was not open yet
			s.Kick(func(proxy.SessionInfo) bool { return true })
		}
		rest, err := io.ReadAll(lines)
		if err != nil || !strings.HasSuffix(string(rest), "BYE kicked\r\n") {
			t.Fatalf("the client read %q, %v", rest, err)
		}
		_ = client.Close()
		d.wantEnd(t, proxy.EndKicked)
	}
	if left := s.Parking().Parked; left > 0 {
		t.Errorf("%d sessions are parked at the end", left)
	}
}

// A timedSession is idle from its last line on.
type timedSession struct {
	echoSession
	idle time.Duration
	last time.Time
}

func (e *timedSession) Run(_ context.Context, client *proxy.Conn) error {
	if e.last.IsZero() {
		e.last = time.Now()
	}
	for {
		_ = client.SetReadDeadline(time.Now().Add(time.Millisecond))
		line, err := client.ReadLine(100)
		switch {
		case err == nil:
			e.last = time.Now()
			_, _ = fmt.Fprintf(client, "* %s", line)
		case !errors.Is(err, os.ErrDeadlineExceeded):
			return err
		case time.Since(e.last) >= e.idle:
			return proxy.ErrIdleTimeout
		case client.Buffered() == 0:
			return &proxy.Idle{Until: e.last.Add(e.idle)}
		}
	}
}

// Criterion: The idle timeout of a parked session counts from its last octet, and not from when it was woken last.
func TestAParkedSessionIsIdleFromItsLastOctet(t *testing.T) {
	t.Parallel()
	const idle = 1500 * time.Millisecond
	h, d := &fakeBackend{}, newRecorder()
	h.session = func() proxy.Session { return &timedSession{echoSession: echoSession{h: h}, idle: idle} }
	dial, s := startServer(t, h, d, func(svc *proxy.Service, _ *proxy.Server) { svc.StartTLS = false })
	s.SetParking(time.Nanosecond)
	client := dial()
	proxytest.Transcript(t, client, logInAndTalk)
	begun := time.Now()
	c := d.wantEnd(t, proxy.EndIdleTimeout)
	if got := time.Since(begun); got < idle-100*time.Millisecond || got > idle+2*time.Second {
		t.Errorf("ended after %v, want %v", got, idle)
	}
	if !errors.Is(c.Err, proxy.ErrIdleTimeout) || s.Parking().Wakes == 0 {
		t.Errorf("ended with %v, %+v", c.Err, s.Parking())
	}
}

// Criterion: The descriptor of a parked session that another connection gets never wakes the first one, nor the other way round.
func TestAReusedDescriptorWakesNobodyElse(t *testing.T) {
	t.Parallel()
	h, d := &fakeBackend{}, newRecorder()
	d.closed = make(chan proxy.Closed, 100_000)
	h.session = func() proxy.Session { return &echoSession{h: h, parks: true} }
	dial, s := startServer(t, h, d, nil)
	s.SetParking(time.Nanosecond)
	still := make([]net.Conn, 5)
	for i := range still {
		still[i] = dial()
		proxytest.Transcript(t, still[i], logInAndTalk)
	}
	eventually(t, "the sessions are parked", func() bool { return s.Parking().Parked == len(still) })
	before := s.Parking().Wakes
	const rounds = 300
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range rounds {
				c := dial()
				lines := bufio.NewReader(c)
				_, _ = io.WriteString(c, "LOGIN alice right\r\none\r\n")
				for range 3 {
					if _, err := lines.ReadString('\n'); err != nil {
						t.Error(err)
						return
					}
				}
				_ = c.Close()
			}
		})
	}
	wg.Wait()
	eventually(t, "the others have ended", func() bool { return len(s.Sessions()) == len(still) })
	// Each of the others wakes at most once, for its end; those that stay never.
	if wakes := s.Parking().Wakes - before; wakes > 4*rounds {
		t.Errorf("%d wakes for %d sessions", wakes, 4*rounds)
	}
	for _, c := range still {
		proxytest.Transcript(t, c, "C: two\nS: * two")
	}
}

// A gatheringConn keeps what is written to it.
type gatheringConn struct {
	net.Conn
	keep    bool
	written []byte
}

func (c *gatheringConn) Write(p []byte) (int, error) {
	if !c.keep {
		return c.Conn.Write(p)
	}
	c.written = append(c.written, p...)
	return len(p), nil
}

// Parking relies on this property of crypto/tls: a session is parked after a Read has met
// its deadline, and only what comes to the descriptor wakes it.
//
// Criterion: A Read of crypto/tls that fails with its deadline has returned all complete records before, and a record that has come in part is not lost.
func TestAfterADeadlineTLSHidesNoCompleteRecord(t *testing.T) {
	t.Parallel()
	cert, pool := proxytest.Cert(t)
	far, near := proxytest.Pipe(t)
	wire := &gatheringConn{Conn: far}
	client := proxytest.ClientTLS(wire, pool)
	server := tls.Server(near, proxytest.ServerTLS(cert))
	go func() { _ = client.Handshake() }()
	if err := server.Handshake(); err != nil {
		t.Fatal(err)
	}
	if err := client.Handshake(); err != nil {
		t.Fatal(err)
	}
	wire.keep = true
	var texts []string
	var ends []int // of their records, in wire.written
	for i := range 40 {
		texts = append(texts, strings.Repeat(string(rune('a'+i%26)), 1+i*i*10)) // less than a record may have
		if _, err := io.WriteString(client, texts[i]); err != nil {
			t.Fatal(err)
		}
		ends = append(ends, len(wire.written))
	}
	sent, complete := 0, 0
	for sent < len(wire.written) {
		cut := min(sent+1+rand.IntN(20_000), len(wire.written))
		if _, err := far.Write(wire.written[sent:cut]); err != nil {
			t.Fatal(err)
		}
		sent = cut
		want := ""
		for ; complete < len(ends) && ends[complete] <= sent; complete++ {
			want += texts[complete]
		}
		_ = server.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
		got, err := io.ReadAll(server)
		if !errors.Is(err, os.ErrDeadlineExceeded) || string(got) != want {
			t.Fatalf("after %d octets: read %d octets of text, %v; want %d octets, and the deadline", sent, len(got), err, len(want))
		}
	}
}
