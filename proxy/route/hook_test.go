package route

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"postern/proxy"
)

func testLogin(account string) *proxy.Login {
	return &proxy.Login{
		User: "As Typed", Account: account, Secret: proxy.NewSecret([]byte("s3cret")),
		Client: proxy.Client{
			ID: "S1", Service: "imap-internal", Protocol: proxy.IMAP, Addr: netip.MustParseAddrPort("192.0.2.1:4711"),
		},
	}
}

// Criterion: the HTTP hook is asked with account, protocol, service, client and session, never with a password.
func TestHookRequestsAndChooses(t *testing.T) {
	var body, header string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		text, _ := io.ReadAll(r.Body)
		body, header = string(text), r.Method+" "+r.URL.String()+" "+r.Header.Get("Content-Type")
		_, _ = io.WriteString(w, `{"backend": "new"}`+"\n")
	}))
	defer server.Close()
	h := &Hook{URL: server.URL + "/route?x=1"}
	got, err := h.Route(t.Context(), testLogin("alice@example.org"))
	if got.Backend != "new" || err != nil {
		t.Errorf("Route = %+v, %v, want new", got, err)
	}
	if want := "POST /route?x=1 application/json"; header != want {
		t.Errorf("asked %s, want %s", header, want)
	}
	want := `{"account":"alice@example.org","client":"192.0.2.1","protocol":"imap","service":"imap-internal","session":"S1"}`
	if body != want {
		t.Errorf("asked %s, want %s", body, want)
	}
	h.client.CloseIdleConnections()
}

// A transportFunc is a transport without a network.
type transportFunc func(*http.Request) (*http.Response, error)

func (a transportFunc) RoundTrip(r *http.Request) (*http.Response, error) { return a(r) }

func response(status int, body string) (*http.Response, error) {
	return &http.Response{
		StatusCode: status, Status: fmt.Sprint(status, " ", http.StatusText(status)), Header: make(http.Header),
		Body: io.NopCloser(strings.NewReader(body)),
	}, nil
}

// Criterion: a hook that fails, in whatever way, refuses the login for now; it never says that a password is wrong.
func TestHookFailsToATemporaryRefusal(t *testing.T) {
	behind := &fakeBackend{}
	for _, test := range []struct {
		status     int
		body, want string // backend that is asked, or ! and the error
	}{
		{200, `{"backend":"new"}`, "new"},
		{200, ` { "backend" : "new" } `, "new"},
		{200, `{}`, "main"},
		{200, `{"backend":""}`, "main"},
		{200, `{"backend":null}`, "main"},
		{204, ``, "main"},
		{404, `not found`, "main"},
		{200, ``, "!answer: EOF"},
		{200, `new`, "!answer: invalid character"},
		{200, `"new"`, "!answer: json: cannot unmarshal string"},
		{200, `{"backend":"new","account":"bob"}`, `!answer: json: unknown field "account"`},
		{200, `{"backend":"new"}{}`, "!more than one value"},
		{200, `{"backend":"` + strings.Repeat("x", maxHookReply) + `"}`, "!more than 4096 octets"},
		{200, `{"backend":"nowhere"}`, `!there is no backend "nowhere" for imap`},
		{201, `{"backend":"new"}`, "!status 201"},
		{302, ``, "!status 302"},
		{403, ``, "!status 403"},
		{500, ``, "!status 500"},
		{503, `{"backend":"new"}`, "!status 503"},
	} {
		h := &Hook{URL: "http://hook.internal/", transport: transportFunc(func(*http.Request) (*http.Response, error) {
			return response(test.status, test.body)
		})}
		m := &Mux{Rules: Rules{h, Default{Backend: "main"}}, Targets: map[Choice]Target{{Backend: "main"}: target(behind, proxy.Offer{}), {Backend: "new"}: target(&fakeBackend{}, proxy.Offer{})}}
		behind.accounts = nil
		_, err := m.Login(t.Context(), testLogin("alice"))
		if want, fails := strings.CutPrefix(test.want, "!"); fails {
			if proxy.ReasonOf(err) != proxy.Unavailable || !strings.Contains(err.Error(), want) {
				t.Errorf("%d %s: error %v, want unavailable: %s", test.status, test.body, err, want)
			}
			continue
		}
		if proxy.ReasonOf(err) != proxy.Wrong { // the backend's word: the password is not right
			t.Errorf("%d %s: error %v", test.status, test.body, err)
		}
		if got := len(behind.accounts) == 1; got != (test.want == "main") {
			t.Errorf("%d %s: main was asked: %v, want %s", test.status, test.body, got, test.want)
		}
	}
}

func TestHookErrorsDoNotShowTheURL(t *testing.T) {
	h := &Hook{URL: "http://hook.internal/?token=t0ken", transport: transportFunc(func(*http.Request) (*http.Response, error) {
		return nil, errors.New("connection refused")
	})}
	_, err := h.Route(t.Context(), testLogin("alice"))
	if err == nil || strings.Contains(err.Error(), "t0ken") || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("error = %v, want one without the token", err)
	}
}

func TestHookIsGivenItsTimeAndNoMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &Hook{transport: transportFunc(func(r *http.Request) (*http.Response, error) {
			<-r.Context().Done()
			return nil, r.Context().Err()
		})}
		begun := time.Now()
		_, err := h.Route(t.Context(), testLogin("alice"))
		if took := time.Since(begun); !errors.Is(err, context.DeadlineExceeded) || took != proxy.DefaultHookTimeout {
			t.Errorf("error = %v after %s, want a timeout after %s", err, took, proxy.DefaultHookTimeout)
		}
	})
}

func TestHookIsAskedAgainWhenItsAnswerIsOld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		questions, status := 0, 500
		h := &Hook{transport: transportFunc(func(*http.Request) (*http.Response, error) {
			questions++
			return response(status, fmt.Sprintf(`{"backend":"b%d"}`, questions))
		})}
		ask := func(l *proxy.Login, want string, wantQuestions int) {
			t.Helper()
			got, err := h.Route(t.Context(), l)
			if got.Backend != want || (err == nil) != (want != "") || questions != wantQuestions {
				t.Errorf("Route = %+v, %v after %d questions, want %q after %d", got, err, questions, want, wantQuestions)
			}
		}
		ask(testLogin("alice"), "", 1)
		status = 200
		ask(testLogin("alice"), "b2", 2) // a failure is not kept
		ask(testLogin("bob"), "b3", 3)
		time.Sleep(proxy.DefaultHookCache - 1)
		ask(testLogin("alice"), "b2", 3)
		other := testLogin("alice")
		other.Client.Protocol = proxy.Submission
		ask(other, "b4", 4)
		time.Sleep(time.Nanosecond)
		ask(testLogin("alice"), "b5", 5)
		h.Cache = -1
		ask(testLogin("eve"), "b6", 6)
		ask(testLogin("eve"), "b7", 7)
	})
}

// Criterion: many logins to one account at once are one question to the hook.
func TestHookIsAskedOnceForAllWhoWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var questions atomic.Int32
		h := &Hook{transport: transportFunc(func(r *http.Request) (*http.Response, error) {
			questions.Add(1)
			select {
			case <-time.After(time.Second):
			case <-r.Context().Done():
				return nil, r.Context().Err()
			}
			return response(200, `{"backend":"new"}`)
		})}
		leaving, leave := context.WithCancel(t.Context()) // it asks for all
		var wg sync.WaitGroup
		wg.Go(func() { _, _ = h.Route(leaving, testLogin("alice")) })
		synctest.Wait()
		leave()
		for range 50 {
			wg.Go(func() {
				if got, err := h.Route(t.Context(), testLogin("alice")); got.Backend != "new" || err != nil {
					t.Errorf("Route = %+v, %v, want new", got, err)
				}
			})
		}
		gone, end := context.WithCancel(t.Context())
		end()
		if _, err := h.Route(gone, testLogin("alice")); !errors.Is(err, context.Canceled) {
			t.Errorf("error = %v of a login that has ended", err)
		}
		wg.Wait()
		if got := questions.Load(); got != 1 {
			t.Errorf("%d questions, want 1", got)
		}
	})
}

// A panic in a request comes back in the login that has made it, where the
// connection's recover is. Other logins that wait get an error.
func TestPanicInAHookRequestReachesItsLogin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &Hook{transport: transportFunc(func(*http.Request) (*http.Response, error) {
			time.Sleep(time.Second)
			panic("a bug")
		})}
		var wg sync.WaitGroup
		wg.Go(func() {
			defer func() {
				if v := recover(); v == nil || !strings.HasPrefix(fmt.Sprint(v), "a bug\n") {
					t.Errorf("recovered %v, want the panic of the request", v)
				}
			}()
			_, _ = h.Route(t.Context(), testLogin("alice"))
		})
		synctest.Wait()
		if _, err := h.Route(t.Context(), testLogin("alice")); !errors.Is(err, errHookPanic) {
			t.Errorf("error = %v, want %v", err, errHookPanic)
		}
		wg.Wait()
	})
}

func TestHookRemembersNoMoreThanItMay(t *testing.T) {
	h := &Hook{transport: transportFunc(func(*http.Request) (*http.Response, error) { return response(200, `{"backend":"new"}`) })}
	h.once.Do(h.open)
	for i := range maxCached + 10 {
		h.store(fmt.Sprint(i), answer{Choice{Backend: "new"}, time.Now().Add(time.Hour)})
	}
	if got := len(h.cache); got != maxCached {
		t.Errorf("%d answers are kept, want %d", got, maxCached)
	}
}

func FuzzHookReply(f *testing.F) {
	f.Add(`{"backend":"new"}`)
	f.Add(`{"backend":"new"}{}`)
	f.Add(`{"backend":1e999}`)
	f.Add(`{"backend":"new","pop3_mode":"passthrough"}`)
	f.Fuzz(func(t *testing.T, text string) {
		c, err := readReply(strings.NewReader(text))
		known := c.POP3Mode == "" || slices.Contains(POP3Modes(), c.POP3Mode)
		if err != nil && c != (Choice{}) || len(c.Backend) > maxHookReply*3 || !known { // a broken octet becomes U+FFFD
			t.Errorf("readReply(%q) = %+v, %v", text, c, err)
		}
	})
}
