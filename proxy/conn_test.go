package proxy_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"postern/proxy"
	"postern/proxy/proxytest"
)

// The tests of this file run the Server with a protocol of ten lines: LOGIN
// user password, STARTTLS, QUIT; answers begin with OK, NO or BYE.
type testDialogue struct {
	*proxy.Conn
	greeted, tls bool
	wrong        int
}

func (d *testDialogue) write(format string, args ...any) error {
	_, err := fmt.Fprintf(d.Conn, format+"\r\n", args...)
	return err
}

func (d *testDialogue) Login(ctx context.Context) (*proxy.Login, error) {
	if !d.greeted {
		d.greeted = true
		if err := d.write("OK hello"); err != nil {
			return nil, err
		}
	}
	for {
		line, err := d.ReadLine(100)
		if err != nil {
			return nil, err
		}
		words := strings.Fields(string(line))
		switch {
		case len(words) == 0:
			_ = d.write("NO empty")
		case words[0] == "QUIT":
			_ = d.write("OK bye")
			return nil, proxy.ErrQuit
		case words[0] == "STARTTLS":
			_ = d.write("OK begin")
			if err := d.StartTLS(ctx); err != nil {
				return nil, err
			}
		case words[0] == "LOGIN" && d.tls && d.Client.TLS == nil:
			return nil, proxy.NewRefusal(proxy.Plaintext, nil)
		case words[0] == "LOGIN" && len(words) == 3:
			return &proxy.Login{Via: proxy.ViaPlain, User: words[1], Secret: proxy.NewSecret([]byte(words[2]))}, nil
		default:
			_ = d.write("NO what?")
		}
	}
}

func (d *testDialogue) Refuse(r *proxy.Refusal) error {
	if r.Challenge != nil {
		_ = d.write("+ %s", r.Challenge)
		if _, err := d.ReadLine(100); err != nil {
			return err
		}
	}
	if r.Reason == proxy.Wrong {
		d.wrong++
	}
	if r.Reason.Final() || d.wrong == 3 {
		_ = d.write("BYE %s", r.Reason)
		return r
	}
	return d.write("NO %s", r.Reason)
}

func (d *testDialogue) Accept(welcome string) error { return d.write("OK %s", welcome) }

// A fakeBackend is guard and backend. It accepts the password "right"; other passwords name what
// goes wrong.
type fakeBackend struct {
	mu      sync.Mutex
	logins  []string
	closed  int
	delay   time.Duration
	settled []error
	left    int
	sheds   []context.CancelCauseFunc
	admit   error
	session func() proxy.Session

	leavePanics bool
}

func (h *fakeBackend) Admit(_ proxy.Client, shed context.CancelCauseFunc) (proxy.Permit, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.sheds = append(h.sheds, shed)
	return h, h.admit
}

func (h *fakeBackend) Try(_ context.Context, l *proxy.Login) error {
	if string(l.Secret.Reveal()) == "throttled" {
		return proxy.NewRefusal(proxy.Throttled, nil)
	}
	return nil
}

func (h *fakeBackend) Settle(err error) time.Duration {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.settled = append(h.settled, err)
	return h.delay
}

func (h *fakeBackend) Leave() {
	h.mu.Lock()
	h.left++
	h.mu.Unlock()
	if h.leavePanics {
		panic("bug in Leave")
	}
}

func (h *fakeBackend) Login(_ context.Context, l *proxy.Login) (proxy.Session, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.logins = append(h.logins, l.Account)
	switch string(l.Secret.Reveal()) {
	case "right":
		if h.session != nil {
			return h.session(), nil
		}
		return &echoSession{h: h}, nil
	case "locked":
		return &echoSession{h: h, refuse: &proxy.Refusal{Reason: proxy.InUse, Verified: true}}, nil
	case "token":
		return nil, &proxy.Refusal{Reason: proxy.Wrong, Challenge: []byte(`{"status":"401"}`)}
	case "panic":
		panic("a bug")
	case "away":
		return nil, proxy.NewRefusal(proxy.Unavailable, errors.New("connection refused"))
	}
	return nil, proxy.NewRefusal(proxy.Wrong, nil)
}

// An echoSession answers each line with itself.
type echoSession struct {
	h      *fakeBackend
	refuse *proxy.Refusal
	parks  bool
	runs   int
}

func (e *echoSession) Open(context.Context) (string, error) {
	if e.refuse != nil {
		return "", e.refuse
	}
	return "welcome", nil
}

func (e *echoSession) Run(ctx context.Context, client *proxy.Conn) error {
	e.runs++
	for {
		line, err := client.ReadLine(100)
		if ctx.Err() != nil {
			_, _ = fmt.Fprintf(client, "BYE %s\r\n", proxy.ReasonOf(context.Cause(ctx)))
			return context.Cause(ctx)
		}
		if err != nil {
			return err
		}
		if string(line) == "QUIT\r\n" {
			_, _ = fmt.Fprintf(client, "OK bye\r\n")
			return nil
		}
		if _, err := fmt.Fprintf(client, "%d %s", e.runs, line); err != nil {
			return err
		}
		if e.parks && client.ParkAfter() > 0 && client.Buffered() == 0 {
			return &proxy.Idle{}
		}
	}
}

func (e *echoSession) Close() error    { e.h.mu.Lock(); e.h.closed++; e.h.mu.Unlock(); return nil }
func (e *echoSession) Backend() string { return "main" }
func (e *echoSession) Totals() proxy.Totals {
	return proxy.Totals{Retrieved: 7}
}

// A recorder is an Observer that keeps all events.
type recorder struct {
	mu     sync.Mutex
	events []proxy.Event
	closed chan proxy.Closed
}

func newRecorder() *recorder { return &recorder{closed: make(chan proxy.Closed, 10)} }

func (d *recorder) Observe(e proxy.Event) {
	d.mu.Lock()
	d.events = append(d.events, e)
	d.mu.Unlock()
	if c, ok := e.(proxy.Closed); ok {
		d.closed <- c
	}
}

func (d *recorder) wantEnd(t *testing.T, how string) proxy.Closed {
	t.Helper()
	select {
	case c := <-d.closed:
		if c.End != how {
			t.Errorf("connection ended as %q (%v), want %q", c.End, c.Err, how)
		}
		return c
	case <-time.After(10 * time.Second):
		t.Fatal("connection did not end")
		panic("unreachable")
	}
}

func (d *recorder) reasons() (all []string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, e := range d.events {
		if a, ok := e.(proxy.Attempt); ok {
			all = append(all, a.Account+":"+proxy.ReasonOf(a.Err).String())
		}
	}
	return all
}

// startServer serves a Service on loopback and returns how to dial it.
func startServer(t *testing.T, h *fakeBackend, d *recorder, change func(*proxy.Service, *proxy.Server)) (dial func() net.Conn, s *proxy.Server) {
	t.Helper()
	cert, pool := proxytest.Cert(t, "mail.example.org")
	svc := &proxy.Service{
		Name: "plain", Protocol: "plain", StartTLS: true,
		TLS:      &tls.Config{Certificates: []tls.Certificate{cert}},
		Dialogue: func(c *proxy.Conn) proxy.Dialogue { return &testDialogue{Conn: c} },
		Account:  func(user string) (string, error) { return strings.ToLower(user), nil },
		Backend:  h,
	}
	s = &proxy.Server{Guard: h, Observer: d}
	if change != nil {
		change(svc, s)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Apply([]proxy.Binding{{Listener: ln, Service: svc}}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		_ = s.Shutdown(ctx, 0)
	})
	implicit := !svc.StartTLS
	return func() net.Conn {
		c, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		if implicit {
			return tls.Client(c, &tls.Config{ServerName: "mail.example.org", RootCAs: pool})
		}
		return c
	}, s
}

func TestSessionBeginsAfterRefusals(t *testing.T) {
	t.Parallel()
	h, d := &fakeBackend{}, newRecorder()
	dial, _ := startServer(t, h, d, func(svc *proxy.Service, _ *proxy.Server) { svc.StartTLS = false })
	proxytest.Transcript(t, dial(), `
		S: OK hello
		C: LOGIN Alice wrong
		S: NO wrong
		C: LOGIN Alice away
		S: NO unavailable
		C: LOGIN Alice throttled
		S: NO throttled
		C: LOGIN Alice locked
		S: NO in_use
		C: LOGIN Alice right
		S: OK welcome
		C: hello
		S: 1 hello
		C: QUIT
		S: OK bye
		S: <EOF>
	`)
	c := d.wantEnd(t, proxy.EndClientQuit)
	if c.Account != "alice" || c.Backend != "main" || c.Totals.Retrieved != 7 || c.Client.TLS == nil || c.Sent == 0 {
		t.Errorf("closed as %+v", c)
	}
	want := "alice:wrong alice:unavailable alice:throttled alice:in_use alice:unknown"
	if got := strings.Join(d.reasons(), " "); got != want {
		t.Errorf("attempts %s, want %s", got, want)
	}
	// The guard is settled with once for every Try; a locked maildrop comes after.
	if len(h.settled) != 5 || h.settled[3] != nil || h.left != 1 || h.closed != 2 {
		t.Errorf("settled %v, left %d, sessions closed %d", h.settled, h.left, h.closed)
	}
}

func TestThirdWrongPasswordEndsTheConnection(t *testing.T) {
	t.Parallel()
	d := newRecorder()
	dial, _ := startServer(t, &fakeBackend{}, d, nil)
	proxytest.Transcript(t, dial(), `
		S: OK hello
		C: LOGIN alice one
		S: NO wrong
		C: LOGIN alice two
		S: NO wrong
		C: LOGIN alice three
		S: BYE wrong
		S: <EOF>
	`)
	d.wantEnd(t, proxy.EndRefused)
}

func TestStartTLSForgetsNothingOfTheHandshakeAndNothingElsePasses(t *testing.T) {
	t.Parallel()
	d := newRecorder()
	dial, _ := startServer(t, &fakeBackend{}, d, func(svc *proxy.Service, _ *proxy.Server) {
		svc.Dialogue = func(c *proxy.Conn) proxy.Dialogue { return &testDialogue{Conn: c, tls: true} }
	})
	raw := dial()
	proxytest.Transcript(t, raw, `
		S: OK hello
		C: STARTTLS
		S: OK begin
	`)
	proxytest.Transcript(t, tls.Client(raw, &tls.Config{InsecureSkipVerify: true}), `
		C: LOGIN alice right
		S: OK welcome
		C: QUIT
		S: OK bye
	`)
	if c := d.wantEnd(t, proxy.EndClientQuit); c.Client.TLS == nil {
		t.Error("session without TLS")
	}

	// An injected command becomes a bad handshake.
	injected := dial()
	proxytest.Transcript(t, injected, `
		S: OK hello
		C- STARTTLS\r\nLOGIN alice right\r\n
		S: OK begin
	`)
	if rest, _ := io.ReadAll(injected); strings.Contains(string(rest), "OK") {
		t.Errorf("answered %q to a command injected before TLS", rest)
	}
	if c := d.wantEnd(t, proxy.EndError); c.Account != "" {
		t.Error("an injected command logged in")
	}
}

func TestListenerThatOnlyRefuses(t *testing.T) {
	t.Parallel()
	d := newRecorder()
	dial, _ := startServer(t, &fakeBackend{}, d, func(svc *proxy.Service, _ *proxy.Server) {
		svc.Dialogue = func(c *proxy.Conn) proxy.Dialogue { return &refuser{testDialogue{Conn: c}} }
	})
	proxytest.Transcript(t, dial(), `
		S: BYE plaintext
		S: <EOF>
	`)
	d.wantEnd(t, proxy.EndRefused)
}

type refuser struct{ testDialogue }

func (r *refuser) Login(context.Context) (*proxy.Login, error) {
	return nil, proxy.NewRefusal(proxy.Plaintext, nil)
}

func TestOAuthFailureHasItsChallenge(t *testing.T) {
	t.Parallel()
	dial, _ := startServer(t, &fakeBackend{}, newRecorder(), nil)
	proxytest.Transcript(t, dial(), `
		S: OK hello
		C: LOGIN alice token
		S: + {"status":"401"}
		C: AQ==
		S: NO wrong
	`)
}

func TestRewrittenNameIsWhatTheBackendSees(t *testing.T) {
	t.Parallel()
	h := &fakeBackend{}
	dial, _ := startServer(t, h, newRecorder(), func(svc *proxy.Service, _ *proxy.Server) {
		svc.Account = func(user string) (string, error) {
			name, _, ok := strings.Cut(user, "@")
			if !ok {
				return "", errors.New("no domain")
			}
			return name, nil
		}
	})
	proxytest.Transcript(t, dial(), `
		S: OK hello
		C: LOGIN web1p2 right
		S: NO malformed
		C: LOGIN web1p2@customer.example right
		S: OK welcome
	`)
	if len(h.logins) != 1 || h.logins[0] != "web1p2" {
		t.Errorf("backend saw %v", h.logins)
	}
}

func TestClientThatLeavesDuringTheDelayIsGoneAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, d := &fakeBackend{delay: time.Hour}, newRecorder()
		client, done := startPipe(t, h, d)
		proxytest.Transcript(t, client, `
			S: OK hello
			C: LOGIN alice wrong
		`)
		time.Sleep(time.Second)
		client.Close()
		begun := time.Now()
		<-done
		if since := time.Since(begun); since > 100*time.Millisecond {
			t.Errorf("connection lived for %v after its client", since)
		}
		d.wantEnd(t, proxy.EndClientAbort)
	})
}

func TestDelayedAnswerKeepsWhatWasPipelined(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, _ := startPipe(t, &fakeBackend{delay: 2 * time.Second}, newRecorder())
		begun := time.Now()
		proxytest.Transcript(t, client, `
			S: OK hello
			C: LOGIN alice wrong
			C: LOGIN alice right
			S: NO wrong
			S: OK welcome
		`)
		if got := time.Since(begun); got != 2*time.Second {
			t.Errorf("answered after %v, want 2s: only wrong answers wait", got)
		}
	})
}

func TestSilentClientIsToldSo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newRecorder()
		client, done := startPipe(t, &fakeBackend{}, d)
		begun := time.Now()
		proxytest.Transcript(t, client, `
			S: OK hello
		`)
		got := make(chan string)
		go func() { rest, _ := io.ReadAll(client); got <- string(rest) }()
		if rest := <-got; rest != "BYE timed_out\r\n" {
			t.Errorf("told %q", rest)
		}
		<-done
		if got := time.Since(begun).Round(time.Second); got != time.Minute {
			t.Errorf("closed after %v, want 1m", got)
		}
		d.wantEnd(t, proxy.EndRefused)
	})
}

// startPipe serves one connection in memory, for tests with a clock of their own.
func startPipe(t *testing.T, h *fakeBackend, d *recorder) (client net.Conn, done <-chan struct{}) {
	client, server := net.Pipe()
	s := &proxy.Server{Guard: h, Observer: d}
	ln := &oneConn{conn: server, closed: make(chan struct{})}
	err := s.Apply([]proxy.Binding{{Listener: ln, Service: &proxy.Service{
		Name: "plain", Protocol: "plain", StartTLS: true,
		Dialogue: func(c *proxy.Conn) proxy.Dialogue { return &testDialogue{Conn: c} },
		Account:  func(user string) (string, error) { return user, nil },
		Backend:  h,
	}}})
	if err != nil {
		t.Fatal(err)
	}
	gone := make(chan struct{})
	go func() {
		for len(s.Sessions()) > 0 || !ln.used.Load() {
			time.Sleep(10 * time.Millisecond)
		}
		close(gone)
	}()
	t.Cleanup(func() {
		client.Close()
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		_ = s.Shutdown(ctx, 0)
		<-gone
	})
	return client, gone
}

func TestKickedSessionHearsWhy(t *testing.T) {
	t.Parallel()
	d := newRecorder()
	dial, s := startServer(t, &fakeBackend{}, d, nil)
	c := dial()
	proxytest.Transcript(t, c, `
		S: OK hello
	`)
	if all := s.Sessions(); len(all) != 1 || all[0].Step != proxy.StepLogin || all[0].Account != "" {
		t.Errorf("before the login there is %+v", all)
	}
	proxytest.Transcript(t, c, `
		C: LOGIN alice right
		S: OK welcome
	`)
	if n := s.Kick(func(i proxy.SessionInfo) bool { return i.Account == "bob" }); n != 0 {
		t.Errorf("kicked %d of bob", n)
	}
	if n := s.Kick(func(i proxy.SessionInfo) bool { return i.Account == "alice" && i.Backend == "main" }); n != 1 {
		t.Errorf("kicked %d of alice", n)
	}
	proxytest.Transcript(t, c, `
		S: BYE kicked
		S: <EOF>
	`)
	d.wantEnd(t, proxy.EndKicked)
}

func TestGuardShedsAStranger(t *testing.T) {
	t.Parallel()
	h, d := &fakeBackend{}, newRecorder()
	dial, _ := startServer(t, h, d, nil)
	c := dial()
	proxytest.Transcript(t, c, `
		S: OK hello
	`)
	h.mu.Lock()
	h.sheds[0](proxy.NewRefusal(proxy.TooMany, nil))
	h.mu.Unlock()
	proxytest.Transcript(t, c, `
		S: BYE too_many
		S: <EOF>
	`)
	d.wantEnd(t, proxy.EndRefused)
}

func TestRejectedConnectionIsClosedWithoutAWord(t *testing.T) {
	t.Parallel()
	h, d := &fakeBackend{admit: proxy.NewRefusal(proxy.TooMany, nil)}, newRecorder()
	dial, _ := startServer(t, h, d, nil)
	if rest, _ := io.ReadAll(dial()); len(rest) > 0 {
		t.Errorf("said %q", rest)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, ok := d.events[0].(proxy.Rejected); !ok || len(d.events) != 1 {
		t.Errorf("events %v", d.events)
	}
}

func TestParkedSessionGoesOn(t *testing.T) {
	t.Parallel()
	h, d := &fakeBackend{}, newRecorder()
	h.session = func() proxy.Session { return &echoSession{h: h, parks: true} }
	dial, s := startServer(t, h, d, nil)
	s.SetParking(time.Nanosecond)
	c := dial()
	proxytest.Transcript(t, c, `
		S: OK hello
		C: LOGIN alice right
		S: OK welcome
		C: one
		S: 1 one
		C: two
		S: 2 two
		C: QUIT
		S: OK bye
	`)
	d.wantEnd(t, proxy.EndClientQuit)
}

func TestPanicEndsOneConnectionOnly(t *testing.T) {
	t.Parallel()
	h, d := &fakeBackend{}, newRecorder()
	dial, _ := startServer(t, h, d, nil)
	other := dial()
	proxytest.Transcript(t, other, `
		S: OK hello
	`)
	proxytest.Transcript(t, dial(), `
		S: OK hello
		C: LOGIN alice panic
		S: <EOF>
	`)
	d.wantEnd(t, proxy.EndError)
	if len(h.settled) != 1 || proxy.ReasonOf(h.settled[0]) != proxy.Internal {
		t.Errorf("settled %v: a bug is no guess", h.settled)
	}
	if got := strings.Join(d.reasons(), " "); got != "alice:internal" {
		t.Errorf("attempts %s: a bug is no login", got)
	}
	proxytest.Transcript(t, other, `
		C: LOGIN alice right
		S: OK welcome
	`)
}

// A panickySession panics in one of its methods.
type panickySession struct {
	echoSession
	in string
}

func (b *panickySession) Open(ctx context.Context) (string, error) {
	if b.in == "Open" {
		panic("bug in Open")
	}
	return b.echoSession.Open(ctx)
}

func (b *panickySession) Run(ctx context.Context, client *proxy.Conn) error {
	if b.in == "Run" {
		panic("bug in Run")
	}
	return b.echoSession.Run(ctx, client)
}

func (b *panickySession) Close() error {
	_ = b.echoSession.Close()
	if b.in == "Close" {
		panic("bug in Close")
	}
	return nil
}

func (b *panickySession) Totals() proxy.Totals {
	if b.in == "Totals" {
		panic("bug in Totals")
	}
	return b.echoSession.Totals()
}

// Criterion: A panic in any method of a session, in the guard or in an observer ends one connection: the process goes on, the session is closed once, the permit is left once, the client is disconnected and the end is reported once.
func TestPanicAtTheEndOfAConnectionEndsNothingElse(t *testing.T) {
	t.Parallel()
	for _, in := range []string{"Open", "Run", "Close", "Totals", "Leave", "Observe"} {
		h, d := &fakeBackend{}, newRecorder()
		h.session = func() proxy.Session { return &panickySession{echoSession: echoSession{h: h}, in: in} }
		h.leavePanics = in == "Leave"
		dial, s := startServer(t, h, d, func(_ *proxy.Service, s *proxy.Server) {
			if in == "Observe" {
				s.Observer = proxy.Observers{d, panicking{}}
			}
		})
		end := proxy.EndClientQuit
		c := dial()
		proxytest.Transcript(t, c, `
			S: OK hello
			C: LOGIN alice right
		`)
		switch in {
		case "Open", "Run":
			end = proxy.EndError
		default:
			proxytest.Transcript(t, c, `
				S: OK welcome
				C: QUIT
				S: OK bye
			`)
		}
		if rest, err := io.ReadAll(c); err != nil || in != "Run" && len(rest) > 0 {
			t.Errorf("%s: the client reads %q, %v after the end", in, rest, err)
		}
		d.wantEnd(t, end)
		eventually(t, "the connection is forgotten", func() bool { return len(s.Sessions()) == 0 })
		if err := s.Shutdown(t.Context(), 0); err != nil {
			t.Errorf("%s: Shutdown: %v", in, err)
		}
		if h.closed != 1 || h.left != 1 {
			t.Errorf("%s: session closed %d times, permit left %d times, want once each", in, h.closed, h.left)
		}
		panics, ends := 0, 0
		for _, e := range d.events {
			switch e := e.(type) {
			case proxy.Panicked:
				if panics++; len(e.Stack) == 0 || e.Client.ID == "" {
					t.Errorf("%s: %+v", in, e)
				}
			case proxy.Closed:
				ends++
			}
		}
		if panics != 1 || ends != 1 {
			t.Errorf("%s: %d panics and %d ends are reported, want one each", in, panics, ends)
		}
	}
}

// A panicking observer panics at the end of a connection, and again when that is
// reported.
type panicking struct{}

func (panicking) Observe(e proxy.Event) {
	switch e.(type) {
	case proxy.Closed, proxy.Panicked:
		panic("bug in Observe")
	}
}

func TestShutdownLetsSessionsEnd(t *testing.T) {
	t.Parallel()
	d := newRecorder()
	dial, s := startServer(t, &fakeBackend{}, d, nil)
	waiting, open := dial(), dial()
	proxytest.Transcript(t, waiting, `
		S: OK hello
	`)
	proxytest.Transcript(t, open, `
		S: OK hello
		C: LOGIN alice right
		S: OK welcome
	`)
	result := make(chan error)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	go func() { result <- s.Shutdown(ctx, 0) }()
	proxytest.Transcript(t, waiting, `
		S: BYE shutting_down
		S: <EOF>
	`)
	proxytest.Transcript(t, open, `
		C: still here
		S: 1 still here
		C: QUIT
		S: OK bye
	`)
	if err := <-result; err != nil {
		t.Errorf("Shutdown: %v", err)
	}
	ends := []string{(<-d.closed).End, (<-d.closed).End}
	slices.Sort(ends)
	if want := []string{proxy.EndClientQuit, proxy.EndDrain}; !slices.Equal(ends, want) {
		t.Errorf("connections ended as %v, want %v", ends, want)
	}
}

func TestShutdownEndsWhatDoesNotEnd(t *testing.T) {
	t.Parallel()
	d := newRecorder()
	dial, s := startServer(t, &fakeBackend{}, d, nil)
	c := dial()
	proxytest.Transcript(t, c, `
		S: OK hello
		C: LOGIN alice right
		S: OK welcome
	`)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := s.Shutdown(ctx, 0); err == nil || !strings.HasPrefix(err.Error(), "1 sessions") {
		t.Errorf("Shutdown: %v", err)
	}
	proxytest.Transcript(t, c, `
		S: BYE shutting_down
		S: <EOF>
	`)
	d.wantEnd(t, proxy.EndDrain)
}

// Criterion: plain text on a TLS port, and silence, get one line saying so.
func TestPlainTextOnATLSPortIsAnsweredInPlainText(t *testing.T) {
	t.Parallel()
	for _, said := range []string{"LOGIN alice right\r\n", "GET / HTTP/1.1\r\n\r\n", ""} {
		d := newRecorder()
		dial, _ := startServer(t, &fakeBackend{}, d, func(svc *proxy.Service, _ *proxy.Server) {
			svc.StartTLS = false
			svc.Timeouts.Handshake = 100 * time.Millisecond
		})
		c := dial().(*tls.Conn).NetConn()
		_, _ = io.WriteString(c, said)
		rest, _ := io.ReadAll(c)
		if string(rest) != "BYE plaintext\r\n" {
			t.Errorf("%q was answered %q", said, rest)
		}
		d.wantEnd(t, proxy.EndRefused)
	}
}

// oneConn is a listener with one connection.
type oneConn struct {
	conn   net.Conn
	used   flag
	closed chan struct{}
}

func (o *oneConn) Accept() (net.Conn, error) {
	if o.used.set() {
		return o.conn, nil
	}
	<-o.closed
	return nil, net.ErrClosed
}

func (o *oneConn) Close() error   { close(o.closed); return nil }
func (o *oneConn) Addr() net.Addr { return &net.TCPAddr{} }

type flag struct {
	mu sync.Mutex
	on bool
}

func (f *flag) set() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	was := f.on
	f.on = true
	return !was
}

func (f *flag) Load() bool { f.mu.Lock(); defer f.mu.Unlock(); return f.on }

func TestAttemptInTheClearNamesItsAccount(t *testing.T) {
	t.Parallel()
	d := newRecorder()
	dial, _ := startServer(t, &fakeBackend{}, d, func(svc *proxy.Service, _ *proxy.Server) {
		svc.Dialogue = func(c *proxy.Conn) proxy.Dialogue { return &refusesInClear{testDialogue{Conn: c}} }
	})
	proxytest.Transcript(t, dial(), `
		S: OK hello
		C: LOGIN Alice right
		S: BYE plaintext
		S: <EOF>
	`)
	d.wantEnd(t, proxy.EndRefused)
	if got := strings.Join(d.reasons(), " "); got != "alice:plaintext" {
		t.Errorf("attempts %s", got)
	}
}

// refusesInClear returns whose password came in the clear, and refuses it.
type refusesInClear struct{ testDialogue }

func (d *refusesInClear) Login(ctx context.Context) (*proxy.Login, error) {
	l, err := d.testDialogue.Login(ctx)
	if err != nil {
		return nil, err
	}
	return l, proxy.NewRefusal(proxy.Plaintext, nil)
}

// A waitingGuard lets every attempt wait until there is a place.
type waitingGuard struct {
	*fakeBackend
	place  chan struct{}
	waits  chan struct{}
	causes chan error
}

func (g *waitingGuard) Admit(proxy.Client, context.CancelCauseFunc) (proxy.Permit, error) {
	return g, nil
}

func (g *waitingGuard) Try(ctx context.Context, l *proxy.Login) error {
	ctx, stop := l.Watch(ctx)
	defer stop()
	g.waits <- struct{}{}
	select {
	case <-g.place:
		return nil
	case <-ctx.Done():
		g.causes <- context.Cause(ctx)
		return proxy.NewRefusal(proxy.Unavailable, nil)
	}
}

// Criterion: A client that closes while its login waits stops waiting at once; what another sends meanwhile is not lost.
func TestALoginThatWaitsEndsWithItsClient(t *testing.T) {
	t.Parallel()
	for _, implicit := range []bool{false, true} {
		h, d := &fakeBackend{}, newRecorder()
		g := &waitingGuard{h, make(chan struct{}), make(chan struct{}, 1), make(chan error, 1)}
		dial, s := startServer(t, h, d, func(svc *proxy.Service, s *proxy.Server) { svc.StartTLS, s.Guard = !implicit, g })

		c := dial()
		proxytest.Transcript(t, c, `
			S: OK hello
			C: LOGIN alice right
		`)
		<-g.waits
		_ = c.Close()
		if cause := <-g.causes; !errors.Is(cause, io.EOF) {
			t.Errorf("the wait ended with %v", cause)
		}
		if end := d.wantEnd(t, proxy.EndClientAbort); end.Account != "" {
			t.Errorf("closed as %+v", end)
		}

		c = dial()
		proxytest.Transcript(t, c, `
			S: OK hello
			C: LOGIN alice right
			C: early
		`)
		<-g.waits
		if _, err := io.WriteString(c, "bird\r\n"); err != nil {
			t.Fatal(err)
		}
		g.place <- struct{}{}
		proxytest.Transcript(t, c, `
			S: OK welcome
			S: 1 early
			S: 1 bird
			C: QUIT
			S: OK bye
			S: <EOF>
		`)
		d.wantEnd(t, proxy.EndClientQuit)

		c = dial()
		proxytest.Transcript(t, c, `
			S: OK hello
			C: LOGIN alice right
		`)
		<-g.waits
		s.Kick(func(proxy.SessionInfo) bool { return true })
		if cause := <-g.causes; proxy.ReasonOf(cause) != proxy.Kicked {
			t.Errorf("the wait of a client that was kicked ended with %v", cause)
		}
		proxytest.Transcript(t, c, `
			S: BYE kicked
			S: <EOF>
		`)
		d.wantEnd(t, proxy.EndKicked)
	}
}
