package relay

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"postern/proxy"
	"postern/proxy/proxytest"
)

// A spliceFixture is a running IMAP session: the far ends of its two connections,
// and the result of Run.
type spliceFixture struct {
	client, server net.Conn
	conn           *proxy.Conn
	done           chan error
}

// startSplice runs an IMAP session between two TCP connections.
func startSplice(t *testing.T, ctx context.Context, secure bool) *spliceFixture {
	t.Helper()
	backend, server := proxytest.Pipe(t)
	return startSpliceWith(t, ctx, secure, backend.(Upstream), server)
}

func startSpliceWith(t *testing.T, ctx context.Context, secure bool, backend Upstream, server net.Conn) *spliceFixture {
	t.Helper()
	client, near := proxytest.Pipe(t)
	var config *tls.Config
	if secure {
		cert, pool := proxytest.Cert(t)
		config = proxytest.ServerTLS(cert)
		client = proxytest.ClientTLS(client, pool)
	}
	s := &spliceFixture{client: client, server: server, done: make(chan error, 1)}
	s.conn = proxy.NewConn(near, proxy.Client{}, config, time.Minute)
	if secure {
		go func() { _ = client.(*tls.Conn).Handshake() }()
		if err := s.conn.StartTLS(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	s.run(ctx, backend)
	return s
}

func (s *spliceFixture) run(ctx context.Context, backend Upstream) {
	s.runSession(ctx, &IMAP{BackendName: "main", Conn: backend})
}

func (s *spliceFixture) runSession(ctx context.Context, session proxy.Session) {
	go func() {
		err := session.Run(ctx, s.conn)
		_ = session.Close()
		_ = s.conn.Close()
		s.done <- err
	}()
}

func (s *spliceFixture) waitEnd(t *testing.T, want error) {
	t.Helper()
	select {
	case err := <-s.done:
		if !errors.Is(err, want) {
			t.Errorf("Run = %v, want %v", err, want)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("Run has not returned")
	}
}

func TestSpliceKeepsAnswerAfterHalfClose(t *testing.T) {
	for _, secure := range []bool{false, true} {
		s := startSplice(t, t.Context(), secure)
		proxytest.Transcript(t, s.client, "C: a FETCH 1 BODY[]\nC: <EOF>")
		proxytest.ServeTranscript(t, s.server, `
			C: a FETCH 1 BODY[]
			C: <EOF>
			S: * 1 FETCH
			S: a OK
			S: <EOF>`)
		proxytest.Transcript(t, s.client, `
			S: \* 1 FETCH
			S: a OK
			S: <EOF>`)
		_ = s.client.Close()
		s.waitEnd(t, proxy.ErrClientClosed)
	}
}

// Criterion: after LOGOUT the server closes first, also if the client does not
// wait for it.
func TestSpliceLetsTheServerCloseFirst(t *testing.T) {
	s := startSplice(t, t.Context(), true)
	proxytest.Transcript(t, s.client, "C: a LOGOUT\nC: <EOF>")
	proxytest.Transcript(t, s.server, "S: a LOGOUT") // here the server reads
	_ = s.server.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	if _, err := s.server.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("the server read: %v, want nothing", err)
	}
	begun := time.Now()
	proxytest.Transcript(t, s.server, "C: * BYE\nC: <EOF>\nS: <EOF>")
	if waited := time.Since(begun); waited > closeTime/2 {
		t.Errorf("Postern closed %v after the server", waited)
	}
	proxytest.Transcript(t, s.client, "S: \\* BYE\nS: <EOF>")
	_ = s.client.Close()
	s.waitEnd(t, proxy.ErrClientClosed)
}

func TestSpliceClosesTheClientAfterTheServer(t *testing.T) {
	s := startSplice(t, t.Context(), true)
	proxytest.ServeTranscript(t, s.server, `
		C: a LOGOUT
		S: * BYE
		S: a OK
		S: <EOF>`)
	proxytest.Transcript(t, s.client, `
		C: a LOGOUT
		S: \* BYE
		S: a OK
		S: <EOF>`)
	_ = s.client.Close()
	s.waitEnd(t, proxy.ErrBackendClosed)
}

func TestSplicePassesWhatTheClientHasPipelinedFirst(t *testing.T) {
	client, near := proxytest.Pipe(t)
	backend, server := proxytest.Pipe(t)
	conn := proxy.NewConn(near, proxy.Client{}, nil, time.Minute)
	proxytest.Transcript(t, client, `C- a LOGIN u p\r\nb NOOP\r\nc SEL`)
	if line, err := conn.ReadLine(100); string(line) != "a LOGIN u p\r\n" {
		t.Fatalf("ReadLine = %q, %v", line, err)
	}
	s := &spliceFixture{client: client, server: server, conn: conn, done: make(chan error, 1)}
	s.run(t.Context(), backend.(Upstream))
	proxytest.ServeTranscript(t, server, `
		C: b NOOP
		C: c SELECT INBOX
		C: <EOF>
		S: <EOF>`)
	proxytest.Transcript(t, client, "C: ECT INBOX\nC: <EOF>\nS: <EOF>")
	s.waitEnd(t, proxy.ErrClientClosed)
}

func TestSpliceCarriesMuchBothWaysAtOnceAndPauses(t *testing.T) {
	t.Run("from a descriptor", func(t *testing.T) {
		t.Parallel()
		carryMuch(t, startSplice(t, t.Context(), true))
	})
	t.Run("from no descriptor, as TLS", func(t *testing.T) {
		t.Parallel()
		backend, server := proxytest.Pipe(t)
		carryMuch(t, startSpliceWith(t, t.Context(), true, struct{ Upstream }{backend.(Upstream)}, server))
	})
}

func carryMuch(t *testing.T, s *spliceFixture) {
	const pieces, size = 3, 300 << 10
	sent := make([]byte, size)
	_, _ = rand.Read(sent)
	send := func(to net.Conn) {
		for i := range pieces {
			if i > 0 {
				time.Sleep(burstWait + burstWait/2) // outlasts the large buffer
			}
			_, _ = to.Write(sent)
		}
		_ = to.(Upstream).CloseWrite()
	}
	go send(s.client)
	go send(s.server)
	up := make(chan []byte, 1)
	go func() {
		got, _ := io.ReadAll(s.server)
		up <- got
	}()
	want := bytes.Repeat(sent, pieces)
	if got, err := io.ReadAll(s.client); !bytes.Equal(got, want) || err != nil {
		t.Errorf("client got %d octets, %v, want %d", len(got), err, len(want))
	}
	if got := <-up; !bytes.Equal(got, want) {
		t.Errorf("server got %d octets, want %d", len(got), len(want))
	}
	_ = s.client.Close()
	if err := <-s.done; !errors.Is(err, proxy.ErrClientClosed) && !errors.Is(err, proxy.ErrBackendClosed) {
		t.Errorf("Run = %v", err)
	}
}

func TestSpliceEndsWithItsContext(t *testing.T) {
	cause := proxy.NewRefusal(proxy.Kicked, nil)
	ctx, cancel := context.WithCancelCause(t.Context())
	s := startSplice(t, ctx, true)
	proxytest.Transcript(t, s.client, "C: a IDLE")
	proxytest.ServeTranscript(t, s.server, "C: a IDLE\nC: <EOF>")
	time.AfterFunc(20*time.Millisecond, func() { cancel(cause) })
	s.waitEnd(t, cause)
}

func TestSpliceEndsWhenTheClientIsCutOff(t *testing.T) {
	s := startSplice(t, t.Context(), false)
	_ = s.client.(*net.TCPConn).SetLinger(0)
	_ = s.client.Close()
	s.waitEnd(t, proxy.ErrClientClosed)
	if _, err := io.ReadAll(s.server); err != nil {
		t.Errorf("server saw %v, want the end", err)
	}
}

// A panickingUpstream has a bug in Write.
type panickingUpstream struct{ Upstream }

func (panickingUpstream) Write([]byte) (int, error) { panic("a bug") }

func TestPanicInEitherGoroutineReachesTheCallerOfRun(t *testing.T) {
	for name, session := range map[string]func(Upstream) proxy.Session{
		"IMAP":       func(l Upstream) proxy.Session { return &IMAP{Conn: l} },
		"submission": func(l Upstream) proxy.Session { return &Submission{Conn: l} },
	} {
		t.Run(name, func(t *testing.T) {
			client, near := proxytest.Pipe(t)
			backend, _ := proxytest.Pipe(t)
			proxytest.Transcript(t, client, "C: NOOP")
			s := session(panickingUpstream{backend.(Upstream)})
			defer func() {
				if v := recover(); v == nil || !strings.Contains(fmt.Sprint(v), "a bug") {
					t.Errorf("recovered %v, want the bug", v)
				}
				_ = s.Close()
			}()
			t.Errorf("Run = %v", s.Run(t.Context(), proxy.NewConn(near, proxy.Client{}, nil, time.Minute)))
		})
	}
}

// upstream adds CloseWrite to a net.Pipe.
type upstream struct{ net.Conn }

func (l upstream) CloseWrite() error { return l.Close() }

// syntheticSplice runs a session between two pipes in fake time.
func syntheticSplice() *spliceFixture {
	return syntheticSpliceWith(context.Background(), proxy.Client{})
}

func syntheticSpliceWith(ctx context.Context, c proxy.Client) *spliceFixture {
	client, near := net.Pipe()
	backend, server := net.Pipe()
	s := &spliceFixture{client: client, server: server, conn: proxy.NewConn(near, c, nil, 5*time.Minute), done: make(chan error, 1)}
	s.run(ctx, upstream{backend})
	return s
}

// syntheticSession runs session, of which the connection is missing, between two pipes in
// fake time.
func syntheticSession(session proxy.Session) *spliceFixture {
	client, near := net.Pipe()
	backend, server := net.Pipe()
	s := &spliceFixture{client: client, server: server, conn: proxy.NewConn(near, proxy.Client{ID: "7"}, nil, 5*time.Minute), done: make(chan error, 1)}
	switch session := session.(type) {
	case *IMAP:
		session.Conn = upstream{backend}
	case *Sieve:
		session.Conn = upstream{backend}
	}
	s.runSession(context.Background(), session)
	return s
}

// Criterion: IDLE without traffic lives 31 minutes, a dead session not 36.
func TestSpliceLetsASilentSessionLive35Minutes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begun := time.Now()
		s := syntheticSplice()
		go func() { _, _ = io.Copy(io.Discard, s.server) }()
		time.Sleep(31 * time.Minute)
		_, _ = io.WriteString(s.client, "DONE\r\n")
		if err := <-s.done; !errors.Is(err, proxy.ErrIdleTimeout) {
			t.Errorf("Run = %v, want ErrIdleTimeout", err)
		}
		if got, want := time.Since(begun), 66*time.Minute; got != want {
			t.Errorf("ended after %v, want %v", got, want)
		}
		_ = s.client.Close()
	})
}

func TestADownloadKeepsTheSilentDirectionAlive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := syntheticSplice()
		go func() { _, _ = io.Copy(io.Discard, s.client) }()
		for range 20 {
			time.Sleep(10 * time.Minute)
			if _, err := io.WriteString(s.server, "* 1 FETCH\r\n"); err != nil {
				t.Fatal(err)
			}
		}
		_ = s.server.Close()
		begun := time.Now()
		if err := <-s.done; !errors.Is(err, proxy.ErrBackendClosed) {
			t.Errorf("Run = %v, want ErrBackendClosed", err)
		}
		// A pipe has no half-close: the client learns nothing and does not leave.
		if got := time.Since(begun); got > leaveTime+time.Second {
			t.Errorf("the client was waited for for %v", got)
		}
		_ = s.client.Close()
	})
}

func TestSpliceEndsWhenTheClientReadsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begun := time.Now()
		s := syntheticSplice()
		go func() { _, _ = io.WriteString(s.server, strings.Repeat("x", 1<<20)) }()
		if err := <-s.done; !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("Run = %v, want a timeout", err)
		}
		if got := time.Since(begun); got < 5*time.Minute || got > 6*time.Minute {
			t.Errorf("ended after %v, want 5 minutes", got)
		}
		_ = s.client.Close()
		_ = s.server.Close()
	})
}

// A crashedUpstream is a server whose connection was reset.
type crashedUpstream struct{ Upstream }

func (crashedUpstream) Read([]byte) (int, error) { return 0, syscall.ECONNRESET }

// Criterion: when a backend crashes, its clients are let go spread over time.
func TestClientsOfACrashedBackendAreClosedOneByOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const spread = 30 * time.Second
		begun := time.Now()
		ends := map[time.Duration]bool{} // in seconds
		var mu sync.Mutex
		var wg sync.WaitGroup
		for range 50 {
			client, near := net.Pipe()
			backend, server := net.Pipe()
			session := &IMAP{Conn: crashedUpstream{pipeUpstream{backend}}, DisconnectSpread: spread}
			conn := proxy.NewConn(near, proxy.Client{}, nil, 0)
			wg.Go(func() {
				if err := session.Run(t.Context(), conn); !errors.Is(err, proxy.ErrBackendClosed) {
					t.Errorf("Run: %v", err)
				}
				mu.Lock()
				ends[time.Since(begun).Truncate(time.Second)] = true
				mu.Unlock()
				_, _, _ = conn.Close(), client.Close(), server.Close()
			})
		}
		wg.Wait()
		if len(ends) < 10 {
			t.Errorf("50 clients were let go in %d different seconds", len(ends))
		}
		for end := range ends {
			if end > spread+leaveTime {
				t.Errorf("a client was let go after %v", end)
			}
		}
	})
}

type pipeUpstream struct{ net.Conn }

func (pipeUpstream) CloseWrite() error { return nil }
