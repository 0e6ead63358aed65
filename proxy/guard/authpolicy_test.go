package guard

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
)

// A fakePolicy answers allow with what says says.
type fakePolicy struct {
	says func(question) (status int, body string)

	mu    sync.Mutex
	heard []string // command and JSON
	head  http.Header
}

func (f *fakePolicy) RoundTrip(r *http.Request) (*http.Response, error) {
	body, _ := io.ReadAll(r.Body)
	f.mu.Lock()
	f.heard = append(f.heard, r.URL.String()+" "+string(body))
	f.head = r.Header
	f.mu.Unlock()
	var q question
	if err := json.Unmarshal(body, &q); err != nil {
		return nil, err
	}
	w := httptest.NewRecorder()
	status, text := f.says(q)
	if status == 0 { // silence
		<-r.Context().Done()
		return nil, r.Context().Err()
	}
	w.WriteHeader(status)
	_, _ = io.WriteString(w, text)
	return w.Result(), nil
}

func (f *fakePolicy) commands() (all []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, h := range f.heard {
		url, _, _ := strings.Cut(h, " ")
		_, command, _ := strings.Cut(url, "command=")
		all = append(all, command)
	}
	return all
}

// waiver is a guard that lets all through, and delays what was wrong for 2 s.
type waiver struct{ settled []string }

func (w *waiver) Admit(proxy.Client, context.CancelCauseFunc) (proxy.Permit, error) { return w, nil }
func (w *waiver) Try(context.Context, *proxy.Login) error                           { return nil }
func (w *waiver) Leave()                                                            {}
func (w *waiver) Settle(err error) time.Duration {
	o := outcomeOf(err)
	w.settled = append(w.settled, [...]string{"untried", "right", "wrong"}[o])
	if _, denied := errors.AsType[*Denied](err); o == wrong || denied {
		return 2 * time.Second
	}
	return 0
}

func advisedLogin() *proxy.Login {
	return &proxy.Login{
		Client:    proxy.Client{ID: "S1", Protocol: proxy.IMAP, Addr: netip.MustParseAddrPort("[::ffff:192.0.2.1]:4711")},
		Mechanism: "PLAIN", User: "Alice", Account: "alice", Secret: proxy.NewSecret([]byte("secret")),
		Hello: proxy.Hello{ID: map[string]string{"name": "Mutt\r\n", "version": "2"}},
	}
}

// attempt plays one attempt, whose password the backend finds as verdict says.
func attemptAdvised(t *testing.T, f *fakePolicy, s *PolicyServer, verdict error) (delay time.Duration, w *waiver, j proxy.Judgement, err error) {
	t.Helper()
	s.transport = f
	if s.URL == "" {
		s.URL = "http://policy.example"
	}
	w = &waiver{}
	g := &Advised{Guard: w}
	g.Ask(s)
	permit, err := g.Admit(proxy.Client{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	l := advisedLogin()
	if err = permit.Try(t.Context(), l); err == nil {
		if err = verdict; err == nil {
			err = permit.(proxy.Confirmer).Confirm(t.Context(), l)
		}
	}
	delay = permit.Settle(err)
	g.Wait()
	return delay, w, permit.(proxy.Judge).Judgement(), err
}

func always(status int, body string) func(question) (int, string) {
	return func(question) (int, string) { return status, body }
}

// Criterion: a policy server is asked before and after the backend, told the
// end, and hears of the password 12 bits of a hash.
func TestThePolicyServerIsAskedTwiceAndTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakePolicy{says: always(200, `{"status":0,"msg":"go"}`)}
		s := &PolicyServer{Header: proxy.NewSecret([]byte("key")), Nonce: []byte("nonce"), URL: "http://policy.example/?x=1&"}
		delay, w, _, err := attemptAdvised(t, f, s, nil)
		if err != nil || delay != 0 || fmt.Sprint(w.settled) != "[right]" {
			t.Errorf("the attempt ended with %v after %s, settled %v", err, delay, w.settled)
		}
		const fields = `{"login":"alice","remote":"192.0.2.1","pwhash":"0d52","device_id":"\"name\" \"Mutt\\r\\n\" \"version\" \"2\"","protocol":"imap","session_id":"S1","tls":false`
		want := []string{
			"http://policy.example/?x=1&command=allow " + fields + "}",
			"http://policy.example/?x=1&command=allow " + fields + "}",
			"http://policy.example/?x=1&command=report " + fields + `,"success":true,"policy_reject":false}`,
		}
		if !slices.Equal(f.heard, want) {
			t.Errorf("the server has heard\n%s\nwant\n%s", strings.Join(f.heard, "\n"), strings.Join(want, "\n"))
		}
		if got := f.head.Get("X-API-Key"); got != "key" {
			t.Errorf("X-API-Key is %q", got)
		}
		s = &PolicyServer{Header: proxy.NewSecret([]byte("Authorization: Basic eDp5"))}
		f.heard = nil
		_, _, _, _ = attemptAdvised(t, f, s, proxy.Refuse(proxy.Wrong, nil))
		if got := f.head.Get("Authorization"); got != "Basic eDp5" {
			t.Errorf("Authorization is %q", got)
		}
		if got := f.heard[1]; !strings.HasPrefix(got, "http://policy.example?command=report") || !strings.HasSuffix(got, `"success":false,"policy_reject":false,"fail_type":"credentials"}`) {
			t.Errorf("the report is %s", got)
		}
	})
}

// Criterion: what a policy server says is done: -1 refuses without asking the
// backend, a number of seconds delays what is wrong, no answer in time lets go
// on, or refuses where the operator says so; with log_only nothing of it.
func TestWhatThePolicyServerSaysIsDone(t *testing.T) {
	wrong := proxy.Refuse(proxy.Wrong, nil)
	second := func(first, then string) func(question) (int, string) {
		n := 0
		return func(question) (int, string) {
			if n++; n == 1 {
				return 200, first
			}
			return 200, then
		}
	}
	for _, c := range []struct {
		name     string
		server   *PolicyServer // nil: one with the defaults
		says     func(question) (int, string)
		verdict  error
		reason   proxy.Reason
		settled  string
		delay    time.Duration
		took     time.Duration
		commands string
	}{
		{name: "allow, wrong", says: always(200, `{"status":0}`), verdict: wrong, reason: proxy.Wrong, settled: "wrong", delay: 2 * time.Second, commands: "allow report"},
		{name: "allow, unknown", says: always(200, `{"status":0}`), verdict: proxy.Refuse(proxy.Unavailable, nil), reason: proxy.Unavailable, settled: "untried", commands: "allow"},
		{name: "reject", says: always(200, `{"status":-1}`), reason: proxy.Throttled, settled: "untried", delay: 2 * time.Second, commands: "allow report"},
		{name: "reject the right password", says: second(`{"status":0}`, `{"status":-1}`), reason: proxy.Wrong, settled: "untried", delay: 2 * time.Second, commands: "allow allow report"},
		{name: "tarpit, wrong", says: always(200, `{"status":7}`), verdict: wrong, reason: proxy.Wrong, settled: "wrong", delay: 7 * time.Second, commands: "allow report"},
		{name: "tarpit for ever", says: always(200, `{"status":2000000000}`), verdict: wrong, reason: proxy.Wrong, settled: "wrong", delay: maxTarpit, commands: "allow report"},
		{name: "tarpit, right", says: always(200, `{"status":7}`), settled: "right", commands: "allow allow report"},
		{name: "silence", says: always(0, ""), settled: "right", took: 2 * time.Second, commands: "allow report"},
		{name: "silence refuses", server: &PolicyServer{RejectOnFail: true, Timeout: time.Second}, says: always(0, ""), reason: proxy.Unavailable, settled: "untried", took: time.Second, delay: 2 * time.Second, commands: "allow report"},
		{name: "error", says: always(500, `{"status":-1}`), settled: "right", commands: "allow report"},
		{name: "error after the right password refuses", server: &PolicyServer{RejectOnFail: true}, says: second(`{"status":0}`, `no`), reason: proxy.Unavailable, settled: "untried", delay: 2 * time.Second, commands: "allow allow report"},
		{name: "error refuses", server: &PolicyServer{RejectOnFail: true}, says: always(404, `{"status":0}`), reason: proxy.Unavailable, settled: "untried", delay: 2 * time.Second, commands: "allow report"},
		{name: "no JSON", says: always(200, `no`), settled: "right", commands: "allow report"},
		{name: "no status", says: always(200, `{"msg":"x"}`), settled: "right", commands: "allow report"},
		{name: "no end", says: always(200, `{"msg":"`+strings.Repeat("x", 1<<20)+`","status":-1}`), settled: "right", commands: "allow report"},
		{name: "redirect", says: always(302, ``), settled: "right", commands: "allow report"},
		{name: "log only", server: &PolicyServer{LogOnly: true}, says: always(200, `{"status":-1}`), settled: "right", commands: "allow allow report"},
		{name: "log only, silence", server: &PolicyServer{LogOnly: true, RejectOnFail: true}, says: always(0, ""), settled: "right", took: 2 * time.Second, commands: "allow report"},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := &fakePolicy{says: func(q question) (int, string) {
					if q.Success != nil {
						return 200, ""
					}
					return c.says(q)
				}}
				begun := time.Now()
				delay, w, j, err := attemptAdvised(t, f, cmp.Or(c.server, new(PolicyServer)), c.verdict)
				if got := proxy.ReasonOf(err); got != c.reason {
					t.Errorf("the attempt ends with %v, want %v", err, c.reason)
				}
				if got := strings.Join(w.settled, " "); got != c.settled {
					t.Errorf("the guard is told %s, want %s", got, c.settled)
				}
				if delay < c.delay || delay > c.delay {
					t.Errorf("the delay is %s, want %s", delay, c.delay)
				}
				if took := time.Since(begun); took != c.took {
					t.Errorf("it took %s, want %s", took, c.took)
				}
				if got := strings.Join(f.commands(), " "); got != c.commands {
					t.Errorf("the server was asked %s, want %s", got, c.commands)
				}
				if refused := errors.Is(err, ErrPolicyServer); refused != (j.Bucket == policyBucket) {
					t.Errorf("%v has the judgement %+v", err, j)
				}
			})
		})
	}
}

func TestWhatTheGuardRefusesThePolicyServerIsNotAskedAbout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakePolicy{says: always(200, `{"status":0}`)}
		s := &PolicyServer{URL: "http://policy.example", transport: f}
		g := &Advised{Guard: New(Config{Learning: -1})}
		g.Ask(s)
		permit, err := g.Admit(proxy.Client{Addr: netip.MustParseAddrPort("192.0.2.1:1")}, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer permit.Leave()
		for i := range 10 {
			l := advisedLogin()
			l.Secret = proxy.NewSecret(fmt.Append(nil, i))
			err := permit.Try(t.Context(), l)
			if err == nil {
				err = proxy.Refuse(proxy.Wrong, nil)
			}
			permit.Settle(err)
		}
		g.Wait()
		if got := len(f.commands()); got != 2*DefaultConfig().Pair.Burst {
			t.Errorf("the server was asked and told %d times, want %d", got, 2*DefaultConfig().Pair.Burst)
		}
		j := permit.(proxy.Judge).Judgement()
		if j.Bucket != "pair" || j.Tier != "stranger_used" || j.RetryAfter <= 0 || j.Network.String() != "192.0.2.1/32" {
			t.Errorf("the judgement is %+v", j)
		}
	})
}

// Criterion: whatever a policy server does, questions wait no longer than their
// timeout, and no more of them are under way than there may be.
func TestQuestionsToThePolicyServerAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		running, most := 0, 0
		f := &fakePolicy{says: func(question) (int, string) {
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
		s := &PolicyServer{URL: "http://policy.example", transport: f, Nonce: []byte("x")}
		begun := time.Now()
		var wg sync.WaitGroup
		for range 500 {
			wg.Go(func() {
				_, _ = s.allow(t.Context(), s.question(advisedLogin()))
				if took := time.Since(begun); took > 3500*time.Millisecond { // a fake does not end with its context
					t.Errorf("a question took %s", took)
				}
				s.report(s.question(advisedLogin()))
			})
		}
		wg.Wait()
		if most > 2*policyAtOnce {
			t.Errorf("%d questions and reports at once, want at most %d", most, 2*policyAtOnce)
		}
	})
}

// A real server, to which connections are made.
func TestAPolicyServerByHTTP(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPost || r.Header.Get("Content-Type") != "application/json" {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		_, _ = io.WriteString(w, `{"status":-1,"msg":"no"}`)
	}))
	defer server.Close()
	s := &PolicyServer{URL: server.URL}
	s.once.Do(s.open)
	defer s.client.CloseIdleConnections()
	status, err := s.allow(t.Context(), s.question(advisedLogin()))
	if status != -1 || err != nil {
		t.Errorf("allow = %d, %v", status, err)
	}
	server.Close()
	if _, err := s.allow(t.Context(), s.question(advisedLogin())); err == nil {
		t.Error("no error of a server that is not there")
	}
}
