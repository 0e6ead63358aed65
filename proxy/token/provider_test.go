package token

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"postern/proxy"
)

const planted = "pl4nted-secret"

// An endpoint answers requests for tokens with token1, token2, ... after latency.
type endpoint struct {
	mu       sync.Mutex
	requests int
	latency  time.Duration
	life     string // expires_in; "": 3600
	fault    func() (*http.Response, error)
}

func (e *endpoint) RoundTrip(r *http.Request) (*http.Response, error) {
	body, _ := io.ReadAll(r.Body)
	if !strings.Contains(string(body), "client_secret="+planted) {
		return nil, errors.New("no secret")
	}
	e.mu.Lock()
	e.requests++
	n, fault, latency, life := e.requests, e.fault, e.latency, e.life
	e.mu.Unlock()
	select {
	case <-time.After(latency):
	case <-r.Context().Done():
		return nil, r.Context().Err()
	}
	if fault != nil {
		return fault()
	}
	if life == "" {
		life = "3600"
	}
	return response(200, "", fmt.Sprintf(`{"token_type":"Bearer","expires_in":%s,"access_token":"token%d"}`, life, n))
}

func (e *endpoint) fail(f func() (*http.Response, error)) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.fault = f
}

func (e *endpoint) slow(latency time.Duration) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.latency = latency
}

func (e *endpoint) count() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.requests
}

func response(status int, retryAfter, body string) (*http.Response, error) {
	h := http.Header{"Content-Type": {"application/json; charset=utf-8"}}
	if retryAfter != "" {
		h.Set("Retry-After", retryAfter)
	}
	return &http.Response{StatusCode: status, Header: h, Body: io.NopCloser(strings.NewReader(body))}, nil
}

func refuse(status int, retryAfter, body string) func() (*http.Response, error) {
	return func() (*http.Response, error) { return response(status, retryAfter, body) }
}

func newProvider(t *testing.T, e *endpoint, slots int) *Provider {
	t.Helper()
	path := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(path, []byte(planted+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return &Provider{
		Name: "contoso", TokenURL: "https://login.example/token", Slots: slots, Domains: []string{"example.org"}, Transport: e,
		Grant: &ClientCredentials{ClientID: "app", Scope: "mail", SecretFile: path},
	}
}

func take(t *testing.T, p *Provider, mailbox string, force bool) string {
	t.Helper()
	secret, _, err := p.Token(t.Context(), mailbox, force)
	if err != nil {
		if strings.Contains(err.Error(), planted) {
			t.Errorf("the error shows the secret: %v", err)
		}
		return err.Error()
	}
	defer secret.Clear()
	return string(secret.Reveal())
}

// Criterion: 500 logins at once with an expired token make one request to the token endpoint; one client that leaves does not cancel it.
func TestOneRequestForManyLogins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := &endpoint{latency: 3 * time.Second}
		p := newProvider(t, e, 1)
		leaving, leave := context.WithCancel(t.Context())
		var logins sync.WaitGroup
		logins.Go(func() {
			if _, _, err := p.Token(leaving, "first@example.org", false); !errors.Is(err, context.Canceled) {
				t.Errorf("the client that leaves: %v", err)
			}
		})
		for i := range 500 {
			logins.Go(func() {
				if got := take(t, p, fmt.Sprintf("u%d@example.org", i), false); got != "token1" {
					t.Errorf("login %d: %s", i, got)
				}
			})
		}
		time.Sleep(time.Second)
		leave()
		logins.Wait()
		if n := e.count(); n != 1 {
			t.Errorf("%d requests, want 1", n)
		}
	})
}

// Criterion: A token is replaced ahead of its end by the login that finds it old: with a token endpoint that takes 3 s, no login waits while the token has 10 minutes left.
func TestATokenIsReplacedBeforeItEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := &endpoint{latency: 3 * time.Second}
		p := newProvider(t, e, 1)
		take(t, p, "a@example.org", false)
		begun := time.Now()
		for time.Since(begun) < 6*time.Hour {
			asked := time.Now()
			if got := take(t, p, "a@example.org", false); !strings.HasPrefix(got, "token") {
				t.Fatal(got)
			}
			if waited := time.Since(asked); waited != 0 {
				t.Fatalf("a login waited %v, %v after the first", waited, time.Since(begun))
			}
			time.Sleep(time.Minute)
		}
		if n := e.count(); n < 8 || n > 10 { // each lasts 70 to 80 % of an hour
			t.Errorf("%d requests in 6 hours", n)
		}
		time.Sleep(time.Hour) // nobody logs in: no request
		if n := e.count(); n > 10 {
			t.Errorf("%d requests, one of them for nobody", n)
		}
	})
}

// Criterion: The token endpoint is refused, hangs, answers 500, HTML, 429 or a code of Entra's: a token that is valid is used to its end, then the refusal is temporary; the first good answer ends it without a command.
func TestATokenOutlivesItsEndpoint(t *testing.T) {
	for name, fault := range map[string]func() (*http.Response, error){
		"refused": func() (*http.Response, error) { return nil, errors.New("connection refused") },
		"hangs":   nil,
		"500":     refuse(500, "", `{"error":"invalid_client"}`),
		"HTML": func() (*http.Response, error) {
			return &http.Response{StatusCode: 200, Header: http.Header{"Content-Type": {"text/html"}}, Body: io.NopCloser(strings.NewReader("<html>" + planted))}, nil
		},
		"no token":      refuse(200, "", `{"token_type":"Bearer"}`),
		"half":          refuse(200, "", `{"access_token":"`),
		"odd token":     refuse(200, "", `{"access_token":"a\u0001b"}`),
		"too much":      refuse(200, "", `{"access_token":"`+strings.Repeat("x", mostAnswer)+`"}`),
		"too long":      refuse(200, "", `{"access_token":"`+strings.Repeat("x", mostToken+1)+`"}`),
		"loop throttle": refuse(400, "", `{"error":"invalid_grant","error_codes":[50196],"error_description":"AADSTS50196: `+planted+`"}`),
		"unavailable":   refuse(400, "", `{"error":"temporarily_unavailable"}`),
		"wrong secret":  refuse(401, "", `{"error":"invalid_client","error_description":"AADSTS7000215: `+planted+`"}`),
		"a redirect": func() (*http.Response, error) {
			return &http.Response{StatusCode: 302, Header: http.Header{"Location": {"http://192.0.2.1/"}}, Body: http.NoBody}, nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				e := &endpoint{}
				p := newProvider(t, e, 1)
				take(t, p, "a@example.org", false)
				e.fail(fault)
				if fault == nil {
					e.slow(time.Minute)
				}
				for range 58 {
					time.Sleep(time.Minute)
					if got := take(t, p, "a@example.org", false); got != "token1" {
						t.Fatalf("before its end: %s", got)
					}
				}
				time.Sleep(2 * time.Minute)
				if got := take(t, p, "a@example.org", false); strings.HasPrefix(got, "token") || !strings.HasPrefix(got, "provider contoso: ") {
					t.Errorf("after its end: %s", got)
				}
				if n := e.count(); n > 40 {
					t.Errorf("%d requests within an hour", n)
				}
				e.fail(nil)
				e.slow(0)
				time.Sleep(longestBackoff + time.Second)
				if got := take(t, p, "a@example.org", false); !strings.HasPrefix(got, "token") {
					t.Errorf("once it is back: %s", got)
				}
			})
		})
	}
}

// Criterion: Retry-After is kept.
func TestRetryAfterIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := &endpoint{fault: refuse(429, "60", `{"error":"slow_down"}`)}
		p := newProvider(t, e, 1)
		for range 59 {
			if got := take(t, p, "a@example.org", false); !strings.Contains(got, "429 slow_down") {
				t.Fatal(got)
			}
			time.Sleep(time.Second)
		}
		if n := e.count(); n != 1 {
			t.Errorf("%d requests within 59 s, want 1", n)
		}
		e.fail(nil)
		time.Sleep(2 * time.Second)
		if got := take(t, p, "a@example.org", false); got != "token2" {
			t.Errorf("after it: %s", got)
		}
	})
}

// Criterion: A fault of the application is one of the provider and not of its accounts: one request a minute for all of them, with what mends it; a new secret in the file counts without a restart.
func TestAFaultOfTheConfigurationIsTheProviders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := &endpoint{fault: refuse(401, "", `{"error":"invalid_client","error_codes":[7000222]}`)}
		p := newProvider(t, e, 8)
		for i := range 100 {
			if got := take(t, p, fmt.Sprintf("u%d@example.org", i), false); !strings.Contains(got, "AADSTS7000222; the secret has expired") {
				t.Fatal(got)
			}
		}
		if n := e.count(); n != 1 {
			t.Errorf("%d requests for 100 accounts, want 1", n)
		}
		e.fail(nil)
		time.Sleep(faultInterval)
		if got := take(t, p, "u@example.org", false); got != "token2" {
			t.Error(got)
		}
	})
}

// Criterion: A refused token makes exactly one forced request at most once a minute and account; those who were refused the same token share the next one.
func TestForcedRequestsAreFew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := &endpoint{latency: time.Second}
		p := newProvider(t, e, 1)
		take(t, p, "a@example.org", false)
		time.Sleep(20 * time.Minute)
		var logins sync.WaitGroup
		for i := range 300 {
			logins.Go(func() {
				if got := take(t, p, fmt.Sprintf("u%d@example.org", i), true); got != "token2" {
					t.Errorf("login %d: %s", i, got)
				}
			})
		}
		logins.Wait()
		if got := take(t, p, "late@example.org", true); got != "token2" {
			t.Errorf("a moment later: %s", got)
		}
		time.Sleep(30 * time.Second)
		if got := take(t, p, "u1@example.org", true); !strings.Contains(got, "within a minute") {
			t.Errorf("within a minute: %s", got)
		}
		if got := take(t, p, "u1@example.org", false); got != "token2" {
			t.Errorf("not forced: %s", got)
		}
		time.Sleep(31 * time.Second)
		if got := take(t, p, "u1@example.org", true); got != "token3" {
			t.Errorf("after a minute: %s", got)
		}
		e.fail(refuse(500, "", ""))
		time.Sleep(2 * time.Minute)
		if got := take(t, p, "u1@example.org", true); !strings.Contains(got, "500") {
			t.Errorf("forced while the endpoint is away: %s", got)
		}
		if got := take(t, p, "u2@example.org", false); got != "token3" {
			t.Errorf("the refused token is gone: %s", got)
		}
		e.fail(nil)
		time.Sleep(firstBackoff)
		if got := take(t, p, "u1@example.org", true); got != "token5" {
			t.Errorf("forced once the endpoint is back: %s", got)
		}
	})
}

// Criterion: The tokens of an application have different ages, so that the sessions of a tenant do not end together.
func TestSlotsHaveDifferentAges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := &endpoint{}
		p := newProvider(t, e, 0)
		begun, minutes := time.Now(), map[int]int{}
		for time.Since(begun) < 5*time.Hour {
			before := e.count()
			for i := range 50 {
				take(t, p, fmt.Sprintf("u%d@example.org", i), false)
			}
			synctest.Wait()
			minutes[int(time.Since(begun).Minutes())] = e.count() - before
			time.Sleep(time.Minute)
		}
		if minutes[0] != MaxSlots {
			t.Errorf("%d tokens at first, want %d", minutes[0], MaxSlots)
		}
		most := 0
		for minute, n := range minutes {
			if minute > 0 {
				most = max(most, n)
			}
		}
		if most > 3 {
			t.Errorf("%d of 8 tokens were replaced in one minute", most)
		}
	})
}

// Criterion: Of 8,000 IDLE sessions of one tenant that begin together, at most 1/8 (and 10 %) end in any minute, from the first hour on; none goes on until its token ends.
func TestSessionsOfOneTenantDoNotEndTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const sessions, most = 8000, 8000 / 8 * 11 / 10
		p := newProvider(t, &endpoint{latency: 100 * time.Millisecond}, 0)
		p.EndsSessions = true
		s := &Source{Provider: p}
		begun := time.Now()
		until, ends := make([]time.Time, sessions), make(map[int]int)
		logIn := func(i int) {
			mailbox := fmt.Sprintf("u%d@example.org", i)
			_, token, end, err := s.Credentials(t.Context(), mailbox, proxy.IMAP, false)
			if err != nil {
				t.Fatal(err)
			}
			token.Clear()
			e, _ := p.entryFor(mailbox)
			if lasts, left := time.Until(end), e.expires.Sub(end); lasts < 6*time.Minute || left <= 0 {
				t.Fatalf("a session ends %v after its beginning, and %v before its token", lasts, left)
			}
			until[i] = end
		}
		for i := range until {
			logIn(i)
		}
		for time.Since(begun) < 8*time.Hour { // each logs in again at once
			time.Sleep(time.Second)
			now := time.Now()
			for i := range until {
				if !now.Before(until[i]) {
					ends[int(now.Sub(begun).Minutes())]++
					logIn(i)
				}
			}
		}
		worst, total := 0, 0
		for _, n := range ends {
			worst, total = max(worst, n), total+n
		}
		if worst > most {
			t.Errorf("%d of %d sessions have ended within a minute, want at most %d", worst, sessions, most)
		}
		first := 0
		for m := range 60 {
			first = max(first, ends[m])
		}
		t.Logf("worst minute: %d of %d, of the first hour %d; %.1f ends of a session in an hour", worst, sessions, first, float64(total)/sessions/8)
	})
}

// Criterion: There is no token for a mailbox outside the provider's domains, and the token endpoint is not asked.
func TestNoTokenOutsideTheDomains(t *testing.T) {
	e := &endpoint{}
	p := newProvider(t, e, 1)
	for _, mailbox := range []string{"a@example.com", "a@sub.example.org", "a", "@example.org", "a@example.org@example.com", ""} {
		if _, _, err := p.Token(t.Context(), mailbox, false); err == nil || p.Serves(mailbox) {
			t.Errorf("%q gets a token", mailbox)
		}
	}
	if !p.Serves("A@Example.ORG") {
		t.Error("upper case is another domain")
	}
	if n := e.count(); n != 0 {
		t.Errorf("%d requests", n)
	}
}

func TestLivesOfTokens(t *testing.T) {
	for life, want := range map[string]time.Duration{`3600`: time.Hour, `"5400"`: 90 * time.Minute, `5`: 5 * time.Second, `null`: time.Hour, `0`: time.Hour, `-1`: time.Hour, `1e99`: mostLife} {
		p := newProvider(t, &endpoint{life: life}, 1)
		a, err := p.ask(t.Context(), "")
		if err != nil || a.life != want {
			t.Errorf("expires_in %s: %v, %v; want %v", life, a.life, err, want)
		}
	}
	synctest.Test(t, func(t *testing.T) {
		p := newProvider(t, &endpoint{life: "5"}, 1)
		first := take(t, p, "a@example.org", false)
		time.Sleep(6 * time.Second)
		if second := take(t, p, "a@example.org", false); first != "token1" || second != "token2" {
			t.Errorf("%s, %s: a token that has ended was handed out", first, second)
		}
	})
}

func TestATokenThatHasEndedOnArrivalIsNoLoop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := &endpoint{life: "1e-9"}
		p := newProvider(t, e, 1)
		p.init()
		if got := take(t, p, "a@example.org", false); e.count() != 1 {
			t.Errorf("%s, %d requests", got, e.count())
		}
	})
}

func TestClassesOfErrors(t *testing.T) {
	for _, test := range []struct {
		status     int
		body       string
		perMailbox bool
		want       Class
	}{
		{400, `{"error":"invalid_grant"}`, true, Account},
		{400, `{"error":"invalid_grant"}`, false, Configuration},
		{401, `{"error":"unauthorized_client"}`, true, Configuration},
		{400, `{"error":"deleted_client"}`, true, Configuration},
		{400, `{"error":"invalid_client","error_description":"AADSTS700016: no"}`, false, Configuration},
		{400, `{"error":"invalid_scope"}`, false, Configuration},
		{400, `{"error":"never heard of"}`, false, Temporary},
		{400, `{"error":"Access_Denied"}`, false, Temporary},
		{429, `{"error":"invalid_client"}`, false, Temporary},
		{503, `{"error":"invalid_client"}`, false, Temporary},
		{404, `{}`, false, Temporary},
	} {
		p := &Provider{Name: "x", Grant: &ClientCredentials{}}
		if test.perMailbox {
			p.Grant = &ServiceAccount{}
		}
		resp, _ := response(test.status, "", test.body)
		_, err := p.parse(resp, []byte(test.body))
		if fault, ok := errors.AsType[*Fault](err); !ok || fault.Class != test.want {
			t.Errorf("%d %s: %v, want %v", test.status, test.body, err, test.want)
		}
	}
}

func FuzzAnswer(f *testing.F) {
	f.Add(200, `{"access_token":"x","expires_in":1}`)
	f.Add(400, `{"error":"invalid_grant","error_codes":[1,2]}`)
	f.Fuzz(func(t *testing.T, status int, body string) {
		p := &Provider{Name: "x", Grant: &ClientCredentials{}}
		resp, _ := response(status, body[:min(len(body), 10)], body)
		a, err := p.parse(resp, []byte(body))
		if (err == nil) != (a.token != nil) || err == nil && (a.life <= 0 || a.life > mostLife) {
			t.Errorf("%v, life %v", err, a.life)
		}
		if err != nil && len(err.Error()) > 1000 {
			t.Error("a long error")
		}
	})
}
