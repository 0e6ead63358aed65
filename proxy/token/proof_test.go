package token

import (
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"postern/proxy"
)

// A roundTrip is an http.RoundTripper.
type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// seenEvents is a proxy.Observer that keeps the events.
type seenEvents []proxy.Event

func (s *seenEvents) Observe(e proxy.Event) { *s = append(*s, e) }

// formOf returns the parameters of a request for a token.
func formOf(t *testing.T, r *http.Request) url.Values {
	t.Helper()
	body, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	form, err := url.ParseQuery(string(body))
	if err != nil {
		t.Fatal(err)
	}
	return form
}

// googleClaims returns the claims of an assertion that Google takes now.
func googleClaims(t *testing.T, form url.Values, key *rsa.PublicKey) (c claims) {
	t.Helper()
	if got := form.Get("grant_type"); got != "urn:ietf:params:oauth:grant-type:jwt-bearer" {
		t.Errorf("grant_type %q", got)
	}
	parts := strings.Split(form.Get("assertion"), ".")
	if len(parts) != 3 {
		t.Fatalf("the assertion has %d parts", len(parts))
	}
	head, _ := base64.RawURLEncoding.DecodeString(parts[0])
	body, _ := base64.RawURLEncoding.DecodeString(parts[1])
	signature, _ := base64.RawURLEncoding.DecodeString(parts[2])
	if want := `{"alg":"RS256","kid":"k1","typ":"JWT"}`; string(head) != want {
		t.Errorf("header %s, want %s", head, want)
	}
	digest := sha256.Sum256([]byte(parts[0] + "." + parts[1]))
	if err := rsa.VerifyPKCS1v15(key, crypto.SHA256, digest[:], signature); err != nil {
		t.Error(err)
	}
	if err := json.Unmarshal(body, &c); err != nil {
		t.Fatal(err)
	}
	return c
}

// Criterion: A service account's logins go on for hours: each token has an assertion of its own, signed by RS256 for an hour at most, with the service account as iss, the mailbox as sub, the scope of mail and the token endpoint as aud, and no token is handed out after its end.
func TestAServiceAccountGoesOnForHours(t *testing.T) {
	key, pkcs8 := newRSAKey(t)
	file := serviceAccount(t, "postern@project.example", pkcs8)
	synctest.Test(t, func(t *testing.T) {
		issued, assertions, subjects := map[string]time.Time{}, map[string]bool{}, map[string]int{}
		var mu sync.Mutex
		p := &Provider{
			Name: "school", TokenURL: GoogleTokenURL, Domains: []string{"school.example"}, Grant: &ServiceAccount{KeyFile: file, Scope: GoogleScope},
			Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
				form := formOf(t, r)
				c, now := googleClaims(t, form, &key.PublicKey), time.Now().Unix()
				if c.Issuer != "postern@project.example" || c.Audience != GoogleTokenURL || c.Scope != GoogleScope || r.URL.String() != GoogleTokenURL {
					t.Errorf("claims %+v to %s", c, r.URL)
				}
				if c.IssuedAt > now || c.Expires <= now || c.Expires-c.IssuedAt > 3600 {
					t.Errorf("from %d to %d at %d", c.IssuedAt, c.Expires, now)
				}
				mu.Lock()
				defer mu.Unlock()
				if assertions[form.Get("assertion")] {
					t.Error("an assertion came twice")
				}
				assertions[form.Get("assertion")] = true
				subjects[c.Subject]++
				token := fmt.Sprint("token", len(issued))
				issued[token] = time.Now()
				return response(200, "", fmt.Sprintf(`{"token_type":"Bearer","expires_in":3599,"access_token":%q}`, token))
			}),
		}
		for begun := time.Now(); time.Since(begun) < 5*time.Hour; time.Sleep(time.Minute) {
			for _, mailbox := range []string{"anna@school.example", "bob@school.example"} {
				token := take(t, p, mailbox, false)
				mu.Lock()
				at, known := issued[token]
				mu.Unlock()
				if !known || time.Since(at) >= 3599*time.Second {
					t.Fatalf("%s has %q after %v", mailbox, token, time.Since(begun))
				}
			}
		}
		if len(subjects) != 2 || subjects["anna@school.example"] < 6 || subjects["anna@school.example"] > 8 {
			t.Errorf("requests in 5 hours: %v", subjects)
		}
	})
}

// Criterion: When the tokens of all slots have ended, 500 logins at once make one request for each slot, and all get a token.
func TestOneRequestASlot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := &endpoint{latency: time.Second}
		p := newProvider(t, e, MaxSlots)
		all := func() {
			var logins sync.WaitGroup
			for i := range 500 {
				logins.Go(func() {
					if got := take(t, p, fmt.Sprintf("u%d@example.org", i), false); !strings.HasPrefix(got, "token") {
						t.Errorf("login %d: %s", i, got)
					}
				})
			}
			logins.Wait()
			synctest.Wait()
		}
		all()
		time.Sleep(2 * time.Hour) // nobody comes: all tokens end
		before := e.count()
		if all(); before != MaxSlots || e.count()-before != MaxSlots {
			t.Errorf("%d requests, then %d; want %d each time", before, e.count()-before, MaxSlots)
		}
	})
}

// Criterion: A secret, a certificate or a service account's key that is replaced on disk counts at the next request, without a restart or a reload; while it is missing or damaged, the fault is the configuration's and valid tokens go on.
func TestAReplacedSecretCounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		want := "first"
		e := roundTrip(func(r *http.Request) (*http.Response, error) {
			if formOf(t, r).Get("client_secret") != want {
				return response(401, "", `{"error":"invalid_client","error_codes":[7000222]}`)
			}
			return response(200, "", `{"access_token":"of-`+want+`","expires_in":3600}`)
		})
		path := writeTestFile(t, "secret", []byte("first"))
		p := &Provider{
			Name: "contoso", TokenURL: "https://login.example/token", Slots: 2, Domains: []string{"example.org"}, Transport: e,
			Grant: &ClientCredentials{ClientID: "app", Scope: "mail", SecretFile: path},
		}
		write := func(secret string) {
			if err := os.WriteFile(path, []byte(secret), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		var one, other string // mailboxes of two slots
		p.init()
		for i := range 100 {
			mailbox := fmt.Sprintf("u%d@example.org", i)
			if e, _ := p.entryFor(mailbox); e == p.entries["0"] {
				one = mailbox
			} else {
				other = mailbox
			}
		}
		if got := take(t, p, one, false); got != "of-first" {
			t.Fatal(got)
		}
		want = "second" // the application has another secret now
		for _, content := range []string{"first", "", "two\nlines"} {
			write(content)
			if got := take(t, p, other, false); !strings.HasPrefix(got, "provider contoso: ") {
				t.Errorf("with %q: %s", content, got)
			}
			if got := take(t, p, one, false); got != "of-first" {
				t.Errorf("the token that is valid: %s", got)
			}
			time.Sleep(faultInterval)
		}
		write("second\n")
		if got := take(t, p, other, false); got != "of-second" {
			t.Errorf("after the secret was replaced: %s", got)
		}
	})
}

// Criterion: No secret, assertion or token is in an error about a request for a token, whatever the authorization server answers, also if it repeats what it was sent.
func TestAnEndpointThatRepeatsItsRequest(t *testing.T) {
	key, pkcs8 := newRSAKey(t)
	cert, keyFile, _ := newCertificate(t, key, pkcs8)
	const secret = "pl4nted-secret_of.the-application"
	body := func(status int, kind, format string) func(http.ResponseWriter, string) {
		return func(w http.ResponseWriter, sent string) {
			w.Header().Set("Content-Type", kind)
			w.WriteHeader(status)
			_, _ = fmt.Fprintf(w, format, sent)
		}
	}
	const form, text = "application/json", "text/html"
	answers := map[string]func(w http.ResponseWriter, sent string){
		"description": body(401, form, `{"error":"invalid_client","error_description":"AADSTS7000215: %s","trace_id":"%[1]s"}`),
		"name":        body(400, form, `{"error":"%s"}`),
		"uri":         body(400, form, `{"error":"invalid_scope","error_uri":"https://x/%s"}`),
		"HTML":        body(500, text, "<h1>%s"),
		"HTML, 200":   body(200, text, "<h1>%s"),
		"not JSON":    body(200, form, "{%s"),
		"odd token":   body(200, form, `{"access_token":"%s`+"\\u0007"+`","token_type":"bearer"}`),
		"type":        body(200, form, `{"access_token":"x","token_type":"%s"}`),
		"number":      body(400, form, `{"error":"invalid_client","error_codes":["%s"]}`),
		"redirect": func(w http.ResponseWriter, sent string) {
			w.Header().Set("Location", "https://login.example/?"+sent)
			w.WriteHeader(http.StatusFound)
		},
		"headers": func(w http.ResponseWriter, sent string) {
			w.Header().Set("Retry-After", sent)
			w.Header().Set("Date", sent)
			w.Header().Set("Content-Type", sent)
			w.WriteHeader(http.StatusTooManyRequests)
		},
		"no HTTP": func(w http.ResponseWriter, sent string) {
			conn, _, err := w.(http.Hijacker).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			_, _ = fmt.Fprintf(conn, "%s\r\n\r\n", sent)
			_ = conn.Close()
		},
		"header line": func(w http.ResponseWriter, sent string) {
			conn, _, err := w.(http.Hijacker).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			_, _ = fmt.Fprintf(conn, "HTTP/1.1 200 OK\r\n%s\r\n\r\n", sent)
			_ = conn.Close()
		},
		"broken header": func(w http.ResponseWriter, sent string) {
			conn, _, err := w.(http.Hijacker).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			_, _ = fmt.Fprintf(conn, "HTTP/1.1 200 OK\r\nContent-Length: %s\r\n\r\n", sent)
			_ = conn.Close()
		},
	}
	var answer func(http.ResponseWriter, string)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_ = r.ParseForm()
		answer(w, r.PostForm.Get("client_secret")+r.PostForm.Get("client_assertion")+r.PostForm.Get("assertion"))
	}))
	defer server.Close()
	for grant, g := range map[string]Grant{
		"secret":          &ClientCredentials{ClientID: "app", Scope: "mail", SecretFile: writeTestFile(t, "secret", []byte(secret))},
		"certificate":     &ClientCredentials{ClientID: "app", Scope: "mail", CertFile: cert, KeyFile: keyFile},
		"service account": &ServiceAccount{KeyFile: serviceAccount(t, "sa@example", pkcs8), Scope: GoogleScope},
	} {
		for name, a := range answers {
			answer = a
			var events seenEvents
			p := &Provider{
				Name: "test", Kind: "oauth", TokenURL: server.URL + "/token", Grant: g, Domains: []string{"example.org"}, Transport: NewTransport(nil),
				Observer: &events,
			}
			_, _, err := p.Token(t.Context(), "anna@example.org", false)
			if _, ok := errors.AsType[*Fault](err); !ok || len(events) != 1 {
				t.Errorf("%s, %s: %v, %d events", grant, name, err, len(events))
				continue
			}
			said := err.Error() + fmt.Sprintf("%+v", events)
			if strings.Contains(said, "pl4nted") || strings.Contains(said, "eyJ") || len(err.Error()) > 1000 {
				t.Errorf("%s, %s: the error shows what was sent: %.300s", grant, name, said)
			}
		}
	}
}

func TestErrorsOfConnectionsAreShown(t *testing.T) {
	plain := httptest.NewServer(http.NotFoundHandler())
	defer plain.Close()
	secure := httptest.NewUnstartedServer(http.NotFoundHandler())
	secure.Config.ErrorLog = log.New(io.Discard, "", 0)
	secure.StartTLS()
	defer secure.Close()
	closing := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if conn, _, err := w.(http.Hijacker).Hijack(); err == nil {
			_ = conn.Close()
		}
	}))
	defer closing.Close()
	secret := writeTestFile(t, "secret", []byte("x"))
	for address, want := range map[string]string{
		"http://127.0.0.1:1":            "connection refused",
		"http://nowhere.invalid":        "lookup nowhere.invalid",
		secure.URL:                      "certificate",
		closing.URL:                     "EOF",
		"https" + plain.URL[4:]:         "first record does not look like a TLS handshake",
		secure.URL[:4] + secure.URL[5:]: "400 without an error of OAuth",
	} {
		p := &Provider{Name: "test", TokenURL: address + "/token", Transport: NewTransport(nil), Grant: &ClientCredentials{ClientID: "app", Scope: "mail", SecretFile: secret}}
		if _, err := p.ask(t.Context(), ""); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", address, err, want)
		}
	}
}
