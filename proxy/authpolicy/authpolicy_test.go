package authpolicy

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"postern/proxy"
	"postern/proxy/guard"
)

// A fakeServer answers requests with the result of answer.
type fakeServer struct {
	answer func(request) (status int, body string)

	mu       sync.Mutex
	requests []string // URL and JSON
	header   http.Header
}

func (f *fakeServer) RoundTrip(r *http.Request) (*http.Response, error) {
	body, _ := io.ReadAll(r.Body)
	f.mu.Lock()
	f.requests = append(f.requests, r.URL.String()+" "+string(body))
	f.header = r.Header
	f.mu.Unlock()
	var decoded request
	if err := json.Unmarshal(body, &decoded); err != nil {
		return nil, err
	}
	w := httptest.NewRecorder()
	status, text := f.answer(decoded)
	if status == 0 { // no answer
		<-r.Context().Done()
		return nil, r.Context().Err()
	}
	w.WriteHeader(status)
	_, _ = io.WriteString(w, text)
	return w.Result(), nil
}

func (f *fakeServer) commands() (all []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, r := range f.requests {
		url, _, _ := strings.Cut(r, " ")
		_, command, _ := strings.Cut(url, "command=")
		all = append(all, command)
	}
	return all
}

// A fakeGuard allows all attempts and delays refusals of wrong passwords, and of
// guards, by 2 s.
type fakeGuard struct{ settled []string }

func (g *fakeGuard) Admit(proxy.Client, context.CancelCauseFunc) (proxy.Permit, error) {
	return g, nil
}
func (g *fakeGuard) Try(context.Context, *proxy.Login) error { return nil }
func (g *fakeGuard) Leave()                                  {}
func (g *fakeGuard) Settle(err error) time.Duration {
	reason := proxy.ReasonOf(err)
	switch {
	case err == nil:
		g.settled = append(g.settled, "right")
	case reason == proxy.Wrong:
		g.settled = append(g.settled, "wrong")
	default:
		g.settled = append(g.settled, "untried")
	}
	if _, refused := errors.AsType[*proxy.Decision](err); refused || reason == proxy.Wrong {
		return 2 * time.Second
	}
	return 0
}

func newLogin() *proxy.Login {
	return &proxy.Login{
		Client:    proxy.Client{ID: "S1", Protocol: proxy.IMAP, Addr: netip.MustParseAddrPort("[::ffff:192.0.2.1]:4711")},
		Mechanism: "PLAIN", User: "Alice", Account: "alice", Secret: proxy.NewSecret([]byte("secret")),
		Hello: proxy.Hello{ID: map[string]string{"name": "Mutt\r\n", "version": "2"}},
	}
}

// attempt makes one attempt, to which the backend answers with backendErr.
func attempt(t *testing.T, f *fakeServer, s *Server, backendErr error) (delay time.Duration, inner *fakeGuard, j proxy.Decision, err error) {
	t.Helper()
	s.transport = f
	if s.URL == "" {
		s.URL = "http://policy.example"
	}
	inner = &fakeGuard{}
	g := &Guard{Guard: inner}
	g.SetServer(s)
	permit, err := g.Admit(proxy.Client{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	l := newLogin()
	if err = permit.Try(t.Context(), l); err == nil {
		if err = backendErr; err == nil {
			err = permit.(proxy.PostAuthChecker).CheckPostAuth(t.Context(), l)
		}
	}
	delay = permit.Settle(err)
	g.Wait()
	return delay, inner, permit.(proxy.DecisionReporter).Decision(), err
}

func always(status int, body string) func(request) (int, string) {
	return func(request) (int, string) { return status, body }
}

// Criterion: a policy server is asked before and after the backend, told the
// end, and hears of the password 12 bits of a hash.
func TestServerGetsTwoAllowRequestsAndAReport(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeServer{answer: always(200, `{"status":0,"msg":"go"}`)}
		s := &Server{Header: proxy.NewSecret([]byte("key")), Nonce: []byte("nonce"), URL: "http://policy.example/?x=1&"}
		delay, inner, _, err := attempt(t, f, s, nil)
		if err != nil || delay != 0 || fmt.Sprint(inner.settled) != "[right]" {
			t.Errorf("the attempt ended with %v after %s, settled %v", err, delay, inner.settled)
		}
		const fields = `{"login":"alice","remote":"192.0.2.1","pwhash":"0d52","device_id":"\"name\" \"Mutt\\r\\n\" \"version\" \"2\"","protocol":"imap","session_id":"S1","tls":false`
		want := []string{
			"http://policy.example/?x=1&command=allow " + fields + "}",
			"http://policy.example/?x=1&command=allow " + fields + "}",
			"http://policy.example/?x=1&command=report " + fields + `,"success":true,"policy_reject":false}`,
		}
		if !slices.Equal(f.requests, want) {
			t.Errorf("the requests are\n%s\nwant\n%s", strings.Join(f.requests, "\n"), strings.Join(want, "\n"))
		}
		if got := f.header.Get("X-API-Key"); got != "key" {
			t.Errorf("X-API-Key is %q", got)
		}
		s = &Server{Header: proxy.NewSecret([]byte("Authorization: Basic eDp5"))}
		f.requests = nil
		_, _, _, _ = attempt(t, f, s, proxy.NewRefusal(proxy.Wrong, nil))
		if got := f.header.Get("Authorization"); got != "Basic eDp5" {
			t.Errorf("Authorization is %q", got)
		}
		if got := f.requests[1]; !strings.HasPrefix(got, "http://policy.example?command=report") || !strings.HasSuffix(got, `"success":false,"policy_reject":false,"fail_type":"credentials"}`) {
			t.Errorf("the report is %s", got)
		}
	})
}

// Criterion: what a policy server says is done: -1 refuses without asking the
// backend, a number of seconds delays what is wrong, no answer in time lets go
// on, or refuses where the operator says so; with log_only nothing of it.
func TestGuardObeysTheServer(t *testing.T) {
	wrong := proxy.NewRefusal(proxy.Wrong, nil)
	second := func(first, then string) func(request) (int, string) {
		n := 0
		return func(request) (int, string) {
			if n++; n == 1 {
				return 200, first
			}
			return 200, then
		}
	}
	for _, c := range []struct {
		name     string
		server   *Server // nil: the defaults
		answer   func(request) (int, string)
		backend  error
		reason   proxy.Reason
		settled  string
		delay    time.Duration
		took     time.Duration
		commands string
	}{
		{name: "allow, wrong", answer: always(200, `{"status":0}`), backend: wrong, reason: proxy.Wrong, settled: "wrong", delay: 2 * time.Second, commands: "allow report"},
		{name: "allow, unknown", answer: always(200, `{"status":0}`), backend: proxy.NewRefusal(proxy.Unavailable, nil), reason: proxy.Unavailable, settled: "untried", commands: "allow"},
		{name: "reject", answer: always(200, `{"status":-1}`), reason: proxy.Throttled, settled: "untried", delay: 2 * time.Second, commands: "allow report"},
		{name: "reject the right password", answer: second(`{"status":0}`, `{"status":-1}`), reason: proxy.Wrong, settled: "untried", delay: 2 * time.Second, commands: "allow allow report"},
		{name: "tarpit, wrong", answer: always(200, `{"status":7}`), backend: wrong, reason: proxy.Wrong, settled: "wrong", delay: 7 * time.Second, commands: "allow report"},
		{name: "tarpit for ever", answer: always(200, `{"status":2000000000}`), backend: wrong, reason: proxy.Wrong, settled: "wrong", delay: maxTarpit, commands: "allow report"},
		{name: "tarpit, right", answer: always(200, `{"status":7}`), settled: "right", commands: "allow allow report"},
		{name: "silence", answer: always(0, ""), settled: "right", took: 2 * time.Second, commands: "allow report"},
		{name: "silence refuses", server: &Server{RejectOnFail: true, Timeout: time.Second}, answer: always(0, ""), reason: proxy.Unavailable, settled: "untried", took: time.Second, delay: 2 * time.Second, commands: "allow report"},
		{name: "error", answer: always(500, `{"status":-1}`), settled: "right", commands: "allow report"},
		{name: "error after the right password refuses", server: &Server{RejectOnFail: true}, answer: second(`{"status":0}`, `no`), reason: proxy.Unavailable, settled: "untried", delay: 2 * time.Second, commands: "allow allow report"},
		{name: "error refuses", server: &Server{RejectOnFail: true}, answer: always(404, `{"status":0}`), reason: proxy.Unavailable, settled: "untried", delay: 2 * time.Second, commands: "allow report"},
		{name: "no JSON", answer: always(200, `no`), settled: "right", commands: "allow report"},
		{name: "no status", answer: always(200, `{"msg":"x"}`), settled: "right", commands: "allow report"},
		{name: "no end", answer: always(200, `{"msg":"`+strings.Repeat("x", 1<<20)+`","status":-1}`), settled: "right", commands: "allow report"},
		{name: "redirect", answer: always(302, ``), settled: "right", commands: "allow report"},
		{name: "log only", server: &Server{LogOnly: true}, answer: always(200, `{"status":-1}`), settled: "right", commands: "allow allow report"},
		{name: "log only, silence", server: &Server{LogOnly: true, RejectOnFail: true}, answer: always(0, ""), settled: "right", took: 2 * time.Second, commands: "allow report"},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := &fakeServer{answer: func(r request) (int, string) {
					if r.Success != nil {
						return 200, ""
					}
					return c.answer(r)
				}}
				begun := time.Now()
				delay, inner, j, err := attempt(t, f, cmp.Or(c.server, new(Server)), c.backend)
				if got := proxy.ReasonOf(err); got != c.reason {
					t.Errorf("the attempt ends with %v, want %v", err, c.reason)
				}
				if got := strings.Join(inner.settled, " "); got != c.settled {
					t.Errorf("the guard settled %s, want %s", got, c.settled)
				}
				if delay < c.delay || delay > c.delay {
					t.Errorf("the delay is %s, want %s", delay, c.delay)
				}
				if took := time.Since(begun); took != c.took {
					t.Errorf("it took %s, want %s", took, c.took)
				}
				if got := strings.Join(f.commands(), " "); got != c.commands {
					t.Errorf("the commands are %s, want %s", got, c.commands)
				}
				if refused := errors.Is(err, ErrRejected); refused != (j.Bucket == Bucket) {
					t.Errorf("%v has the decision %+v", err, j)
				}
			})
		})
	}
}

func TestServerGetsNoRequestAboutAttemptsThatTheGuardRefuses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeServer{answer: always(200, `{"status":0}`)}
		s := &Server{URL: "http://policy.example", transport: f}
		const burst = 5
		g := &Guard{Guard: guard.New(guard.Config{
			Pair: guard.Rate{Burst: burst, Every: time.Hour}, Sessions: 50, Delay: time.Second,
			Connections: 100, ConnectionsPerNetwork: 100, LoginsPerNetwork: 100, Attempts: 100, Entries: 1000, Pairs: 1000,
		})}
		g.SetServer(s)
		permit, err := g.Admit(proxy.Client{Addr: netip.MustParseAddrPort("192.0.2.1:1")}, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer permit.Leave()
		for i := range 10 {
			l := newLogin()
			l.Secret = proxy.NewSecret(fmt.Append(nil, i))
			err := permit.Try(t.Context(), l)
			if err == nil {
				err = proxy.NewRefusal(proxy.Wrong, nil)
			}
			permit.Settle(err)
		}
		g.Wait()
		if got := len(f.commands()); got != 2*burst {
			t.Errorf("the server got %d requests, want %d", got, 2*burst)
		}
		j := permit.(proxy.DecisionReporter).Decision()
		if j.Bucket != "pair" || j.Tier != "stranger_used" || j.RetryAfter <= 0 || j.Network.String() != "192.0.2.1/32" {
			t.Errorf("the decision is %+v", j)
		}
	})
}

// Criterion: whatever a policy server does, questions wait no longer than their
// timeout, and no more of them are under way than there may be.
func TestRequestsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		running, most := 0, 0
		f := &fakeServer{answer: func(request) (int, string) {
			mu.Lock()
			running++
			most = max(most, running)
			mu.Unlock()
			time.Sleep(1500 * time.Millisecond)
			mu.Lock()
			running--
			mu.Unlock()
			return 200, `{"status":0}`
		}}
		s := &Server{URL: "http://policy.example", transport: f, Nonce: []byte("x")}
		begun := time.Now()
		var wg sync.WaitGroup
		for range 500 {
			wg.Go(func() {
				_, _ = s.requestAllow(t.Context(), s.request(newLogin()))
				if took := time.Since(begun); took > 3500*time.Millisecond { // fakeServer ignores the context
					t.Errorf("a request took %s", took)
				}
				s.report(s.request(newLogin()))
			})
		}
		wg.Wait()
		if most > 2*maxConcurrent {
			t.Errorf("%d requests at once, want at most %d", most, 2*maxConcurrent)
		}
	})
}

func TestServerOverHTTP(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPost || r.Header.Get("Content-Type") != "application/json" {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		_, _ = io.WriteString(w, `{"status":-1,"msg":"no"}`)
	}))
	defer server.Close()
	s := &Server{URL: server.URL}
	s.once.Do(s.open)
	defer s.client.CloseIdleConnections()
	status, err := s.requestAllow(t.Context(), s.request(newLogin()))
	if status != -1 || err != nil {
		t.Errorf("allow = %d, %v", status, err)
	}
	server.Close()
	if _, err := s.requestAllow(t.Context(), s.request(newLogin())); err == nil {
		t.Error("no error of a server that is not there")
	}
}
