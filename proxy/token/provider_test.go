package token

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
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

// Criterion: Retry-After is kept, by all slots of the application, whether it is seconds or a date, for an hour at most; without a valid one the requests are a growing time apart.
func TestRetryAfterIsKept(t *testing.T) {
	for _, test := range []struct {
		value string // "date": in the form of a date in two minutes
		want  time.Duration
	}{
		{"60", time.Minute},
		{"date", 2 * time.Minute},
		{"31536000", time.Hour},             // a year
		{"99999999999999999999", time.Hour}, // more than a number
		{"Fri, 31 Dec 9999 23:59:59 GMT", time.Hour},
		{"0", firstBackoff},
		{"-1", firstBackoff},
		{"soon", firstBackoff},
		{"Sat, 01 Jan 2000 00:00:00 GMT", firstBackoff}, // past
		{"", firstBackoff},
	} {
		t.Run(test.value, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				value := test.value
				if value == "date" {
					value = time.Now().Add(test.want).UTC().Format(http.TimeFormat)
				}
				e := &endpoint{fault: refuse(429, value, `{"error":"slow_down"}`)}
				p := newProvider(t, e, 8)
				all := func(want string) {
					t.Helper()
					for i := range 50 {
						if test.want == firstBackoff && i > 0 {
							break // the others have a backoff of their own
						}
						if got := take(t, p, fmt.Sprintf("u%d@example.org", i), false); !strings.Contains(got, want) {
							t.Fatalf("%s, want %s", got, want)
						}
					}
				}
				begun := time.Now()
				for time.Since(begun) < test.want {
					all("429 slow_down")
					time.Sleep(test.want/10 + 1)
				}
				if n := e.count(); n != 1 {
					t.Errorf("%d requests within %v, want 1", n, test.want)
				}
				e.fail(nil)
				all("token")
			})
		})
	}
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
		due, ends := make(map[int][]int), make(map[int]int) // sessions that end in a second, and how many in a minute
		logIn := func(i int) {
			mailbox := fmt.Sprintf("u%d@example.org", i)
			_, token, end, err := s.Credentials(t.Context(), mailbox, proxy.IMAP, false)
			if err != nil {
				t.Fatal(err)
			}
			token.Clear()
			p.mu.Lock()
			e, _ := p.entryFor(mailbox)
			lasts, left := time.Until(end), e.expires.Sub(end)
			p.mu.Unlock()
			if lasts < 6*time.Minute || left <= 0 {
				t.Fatalf("a session ends %v after its beginning, and %v before its token", lasts, left)
			}
			second := int(end.Sub(begun).Seconds()) + 1
			due[second] = append(due[second], i)
		}
		for i := range sessions {
			logIn(i)
		}
		for second := range 8 * 60 * 60 { // each logs in again at once
			time.Sleep(time.Until(begun.Add(time.Duration(second) * time.Second)))
			for _, i := range due[second] {
				ends[second/60]++
				logIn(i)
			}
			delete(due, second)
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

// Criterion: Every fault of a token endpoint has its class, over a connection as it is: refused, no TLS, a certificate of a stranger, silence, half an answer, redirects, HTML, errors of OAuth, and 200 with a token that is none.
func TestClassesOfErrors(t *testing.T) {
	json := func(status int, body string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(status)
			_, _ = io.WriteString(w, body)
		}
	}
	good := func(more string) http.HandlerFunc { return json(200, `{"access_token":"token"`+more+`}`) }
	hijack := func(answer string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			conn, _, err := http.NewResponseController(w).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			_, _ = io.WriteString(conn, answer)
			_ = conn.Close()
		}
	}
	const temporary, account, configuration, fine = Temporary, Account, Configuration, Class(99)
	for _, test := range []struct {
		name       string
		answer     http.HandlerFunc
		perMailbox bool
		want       Class
	}{
		{"invalid_grant of a mailbox", json(400, `{"error":"invalid_grant"}`), true, account},
		{"invalid_grant of an application", json(400, `{"error":"invalid_grant"}`), false, configuration},
		{"unauthorized_client", json(401, `{"error":"unauthorized_client"}`), true, configuration},
		{"deleted_client", json(400, `{"error":"deleted_client"}`), true, configuration},
		{"AADSTS700016", json(400, `{"error":"invalid_client","error_description":"AADSTS700016: no"}`), false, configuration},
		{"AADSTS50196", json(400, `{"error":"invalid_grant","error_codes":[50196]}`), true, temporary},
		{"invalid_scope", json(400, `{"error":"invalid_scope"}`), false, configuration},
		{"an unknown error", json(400, `{"error":"never heard of"}`), false, temporary},
		{"an error in upper case", json(400, `{"error":"Access_Denied"}`), false, temporary},
		{"an error that is no text", json(400, `{"error":5}`), false, temporary},
		{"429", json(429, `{"error":"invalid_client"}`), false, temporary},
		{"408", json(408, `{"error":"invalid_client"}`), false, temporary},
		{"500", json(500, `{"error":"invalid_client"}`), false, temporary},
		{"503", json(503, `{"error":"invalid_client"}`), false, temporary},
		{"404", json(404, `{}`), false, temporary},
		{"204", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(204) }, false, temporary},
		{"a redirect", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "/elsewhere", http.StatusTemporaryRedirect)
		}, false, temporary},
		{"HTML with 200", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "<html>") }, false, temporary},
		{"HTML with 403", func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "<html>", http.StatusForbidden) }, false, temporary},
		{"not HTTP", hijack("* OK IMAP4rev1\r\n"), false, temporary},
		{"closed", hijack(""), false, temporary},
		{"half a header", hijack("HTTP/1.1 200 OK\r\nContent-Ty"), false, temporary},
		{"half a body", hijack("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{\"access_token\":\"token\"}"), false, temporary},
		{"a header without end", hijack("HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 1<<20)), false, temporary},
		{"half an object", json(200, `{"access_token":"token"`), false, temporary},
		{"two objects", json(200, `{"access_token":"token"}{}`), false, temporary},
		{"no token", json(200, `{"token_type":"Bearer"}`), false, temporary},
		{"an empty token", json(200, `{"access_token":""}`), false, temporary},
		{"a token that is a number", json(200, `{"access_token":5}`), false, temporary},
		{"a token with a line end", json(200, `{"access_token":"a\r\nb"}`), false, temporary},
		{"a token with the separator of XOAUTH2", json(200, `{"access_token":"a\u0001b"}`), false, temporary},
		{"a token with a space", json(200, `{"access_token":"a b"}`), false, temporary},
		{"a token that is not ASCII", json(200, `{"access_token":"ä"}`), false, temporary},
		{"a token of 1 MiB", json(200, `{"access_token":"`+strings.Repeat("x", 1<<20)+`"}`), false, temporary},
		{"a token of 17 KiB", json(200, `{"access_token":"`+strings.Repeat("x", 17<<10)+`"}`), false, temporary},
		{"another type of token", good(`,"token_type":"mac"`), false, configuration},
		{"a type in lower case", good(`,"token_type":"bearer"`), false, fine},
		{"no type", good(``), false, fine},
		{"expires_in 0", good(`,"expires_in":0`), false, fine},
		{"expires_in negative", good(`,"expires_in":-3600`), false, fine},
		{"expires_in 1e18", good(`,"expires_in":1e18`), false, fine},
		{"expires_in beyond numbers", good(`,"expires_in":1e999`), false, fine},
		{"expires_in as a string", good(`,"expires_in":"3600"`), false, fine},
		{"expires_in no number", good(`,"expires_in":"soon"`), false, temporary},
	} {
		t.Run(test.name, func(t *testing.T) {
			server := httptest.NewTLSServer(test.answer)
			defer server.Close()
			p := newProvider(t, nil, 1)
			p.TokenURL = server.URL
			roots := x509.NewCertPool()
			roots.AddCert(server.Certificate())
			p.Transport = NewTransport(roots)
			if test.perMailbox {
				p.Grant = anyMailbox{p.Grant}
			}
			checkClass(t, p, test.want, fine)
		})
	}
	t.Run("refused", func(t *testing.T) {
		p := newProvider(t, nil, 1)
		server := httptest.NewTLSServer(http.NotFoundHandler())
		p.TokenURL, p.Transport = server.URL, NewTransport(nil)
		server.Close()
		checkClass(t, p, Temporary, fine)
	})
	t.Run("a certificate of a stranger", func(t *testing.T) {
		p := newProvider(t, nil, 1)
		server := httptest.NewUnstartedServer(good(""))
		server.Config.ErrorLog = log.New(io.Discard, "", 0)
		server.StartTLS()
		defer server.Close()
		p.TokenURL, p.Transport = server.URL, NewTransport(nil)
		checkClass(t, p, Temporary, fine)
	})
	t.Run("no TLS", func(t *testing.T) {
		p := newProvider(t, nil, 1)
		server := httptest.NewServer(good(""))
		defer server.Close()
		p.TokenURL, p.Transport = strings.Replace(server.URL, "http:", "https:", 1), NewTransport(nil)
		checkClass(t, p, Temporary, fine)
	})
}

// anyMailbox is a Grant whose tokens are of one mailbox each.
type anyMailbox struct{ Grant }

func (anyMailbox) perMailbox() bool { return true }

// checkClass asks p's token endpoint. The Class fine means a token.
func checkClass(t *testing.T, p *Provider, want, fine Class) {
	t.Helper()
	a, err := p.ask(t.Context(), "a@example.org")
	fault, ok := errors.AsType[*Fault](err)
	switch {
	case want == fine && (err != nil || string(a.token.Reveal()) != "token" || a.life <= 0 || a.life > mostLife):
		t.Errorf("%v, a life of %v", err, a.life)
	case want != fine && (!ok || fault.Class != want):
		t.Errorf("%v, want %v", err, want)
	case err != nil && (strings.Contains(err.Error(), planted) || len(err.Error()) > 500):
		t.Errorf("the error has the secret, or %d octets", len(err.Error()))
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
