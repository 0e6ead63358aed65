package route

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"postern/proxy"
)

// A fakeBackend accepts one password.
type fakeBackend struct {
	accounts []string // accounts
	closed   int      // sessions
}

func (s *fakeBackend) Login(_ context.Context, l *proxy.Login) (proxy.Session, error) {
	s.accounts = append(s.accounts, l.Account)
	if string(l.Secret.Reveal()) != "right" {
		return nil, proxy.NewRefusal(proxy.Wrong, nil)
	}
	return &closableSession{server: s}, nil
}

type closableSession struct {
	proxy.Session
	server *fakeBackend
}

func (s *closableSession) Close() error {
	s.server.closed++
	return nil
}

func target(b proxy.Backend, offer proxy.Offer) Target {
	return Target{b, func() proxy.Offer { return offer }}
}

func login(m *Mux, account, password string) (proxy.Session, error) {
	return m.Login(context.Background(), &proxy.Login{
		Account: account, Secret: proxy.NewSecret([]byte(password)), Client: proxy.Client{Protocol: proxy.POP3},
	})
}

// Criterion: routes are asked in their order: the first that fits an account decides.
func TestMuxRoutesByTheFirstRuleThatFits(t *testing.T) {
	names := []string{"main", "new", "old"}
	m := &Mux{Targets: make(map[Choice]Target), Rules: Rules{
		openFile(t, "alice@example.net new\nbob@example.org old"), Domain{"Example.NET", Choice{Backend: "old"}}, Default{Backend: "main"},
	}}
	servers := make(map[string]*fakeBackend)
	for _, name := range names {
		servers[name] = &fakeBackend{}
		m.Targets[Choice{Backend: name}] = target(servers[name], proxy.Offer{})
	}
	for account, want := range map[string]string{
		"alice@example.net": "new", "bob@example.org": "old", "x@example.net": "old", "x@EXAMPLE.net": "old",
		"x@example.org": "main", "example.net": "main", "x@sub.example.net": "main", "x@example.net@y": "main",
	} {
		session, err := login(m, account, "right")
		if err != nil {
			t.Fatal(err)
		}
		for name, s := range servers {
			if got := slices.Equal(s.accounts, []string{account}); got != (name == want) {
				t.Errorf("%s: %s was asked %v, want %s", account, name, got, want)
			}
			s.accounts = nil
		}
		_ = session.Close()
	}
}

type rule func() (string, error)

func (r rule) Route(context.Context, *proxy.Login) (Choice, error) {
	name, err := r()
	return Choice{Backend: name}, err
}
func (r rule) MayReturn(Choice) bool { return true }

// Criterion: who answers an account's POP3 clients is known before the login: the first of the routes' file, the hook, the route and the listener that says it; pop3:off of policy stays above all.
func TestMuxRoutesPOP3ByItsMode(t *testing.T) {
	bridge, passthrough, old := &fakeBackend{}, &fakeBackend{}, &fakeBackend{}
	hook := &Hook{POP3Mode: Passthrough, transport: transportFunc(func(r *http.Request) (*http.Response, error) {
		body, _ := io.ReadAll(r.Body)
		switch {
		case strings.Contains(string(body), "says@"):
			return response(200, `{"backend":"main","pop3_mode":"bridge"}`)
		case strings.Contains(string(body), "silent@"):
			return response(200, `{"backend":"main"}`)
		case strings.Contains(string(body), "odd@"):
			return response(200, `{"backend":"main","pop3_mode":"shadowy"}`)
		}
		return response(204, "")
	})}
	file, err := OpenFile(writeFile(t, "alice pop3=passthrough\nbob pop3=bridge\ncarol\n"), Choice{Backend: "main"}, map[string][]string{"main": POP3Modes()})
	if err != nil {
		t.Fatal(err)
	}
	m := &Mux{
		Rules: Rules{file, hook, Domain{"example.net", Choice{"main", Passthrough}}, Domain{"example.com", Choice{"old", ""}}, Default{Backend: "main"}},
		Targets: map[Choice]Target{
			{"main", Bridge}:      target(bridge, proxy.Offer{Mechanisms: []string{"PLAIN", "XOAUTH2"}}),
			{"main", Passthrough}: target(passthrough, proxy.Offer{Mechanisms: []string{"PLAIN"}}),
			{"old", Passthrough}:  target(old, proxy.Offer{Mechanisms: []string{"PLAIN"}}),
		},
	}
	m.Protocols = openProtocols(t, "alice pop3:off")
	for _, test := range []struct {
		listener, account string
		want              *fakeBackend
	}{
		{Bridge, "alice", passthrough}, {Bridge, "bob", bridge}, {Bridge, "carol", bridge}, {Passthrough, "carol", passthrough}, {Passthrough, "bob", bridge},
		{Passthrough, "says@example.org", bridge}, {Bridge, "silent@example.org", passthrough},
		{Bridge, "x@example.net", passthrough}, {Bridge, "x@example.org", bridge}, {Passthrough, "x@example.org", passthrough},
		{Passthrough, "x@example.com", old}, {Bridge, "x@example.com", nil}, {Bridge, "odd@example.org", nil},
	} {
		m.POP3Mode = test.listener
		session, err := login(m, test.account, "right")
		switch {
		case test.want == nil && proxy.ReasonOf(err) != proxy.Unavailable:
			t.Errorf("%s at a listener with %s: %v, want unavailable", test.account, test.listener, err)
		case test.account == "alice" && proxy.ReasonOf(err) != proxy.ProtocolOff:
			t.Errorf("alice: %v, want that POP3 is off", err)
		case err == nil:
			_ = session.Close()
		}
		for name, b := range map[string]*fakeBackend{"bridge": bridge, "passthrough": passthrough, "old": old} {
			if got := len(b.accounts) > 0; got != (b == test.want) {
				t.Errorf("%s at a listener with %s: %s was asked: %v", test.account, test.listener, name, got)
			}
			b.accounts = nil
		}
	}
}

// The offer of a listener is that of the modes that its logins may have.
func TestMuxOffersWhatItsModesHave(t *testing.T) {
	m := &Mux{POP3Mode: Bridge, Rules: Rules{Default{Backend: "main"}}, Targets: map[Choice]Target{
		{"main", Bridge}:      target(nil, proxy.Offer{Mechanisms: []string{"PLAIN", "XOAUTH2"}}),
		{"main", Passthrough}: target(nil, proxy.Offer{Mechanisms: []string{"PLAIN"}}),
	}}
	if got := m.Offer().Mechanisms; !slices.Equal(got, []string{"PLAIN", "XOAUTH2"}) {
		t.Errorf("bridge alone offers %v", got)
	}
	m.Rules = Rules{Domain{"example.net", Choice{"main", Passthrough}}, Default{Backend: "main"}}
	if got := m.Offer().Mechanisms; !slices.Equal(got, []string{"PLAIN"}) {
		t.Errorf("bridge and passthrough offer %v", got)
	}
}

func TestMuxRefusesForNowWhenThereIsNoRoute(t *testing.T) {
	behind := &fakeBackend{}
	for name, test := range map[string]struct {
		rules Rules
		err   string
	}{
		"none":    {nil, errNoRule.Error()},
		"unknown": {Rules{Default{Backend: "nowhere"}}, `there is no backend "nowhere" for pop3`},
		"error":   {Rules{rule(func() (string, error) { return "", errors.New("hook is away") }), Default{Backend: "main"}}, "hook is away"},
	} {
		m := &Mux{Rules: test.rules, Targets: map[Choice]Target{{Backend: "main"}: target(behind, proxy.Offer{})}}
		_, err := login(m, "alice", "right")
		if proxy.ReasonOf(err) != proxy.Unavailable || !strings.Contains(err.Error(), test.err) {
			t.Errorf("%s: error %v, want unavailable: %s", name, err, test.err)
		}
	}
	if behind.accounts != nil {
		t.Error("a backend was asked")
	}
}

// Criterion: that a protocol is off for an account or domain is answered only after the backend accepted the password, and costs no guess.
func TestMuxRevealsProtocolsOnlyToTheOwner(t *testing.T) {
	behind := &fakeBackend{}
	m := &Mux{Rules: Rules{Default{Backend: "main"}}, Targets: map[Choice]Target{{Backend: "main"}: target(behind, proxy.Offer{})}}
	m.Protocols = openProtocols(t, "alice@example.org pop3:off")

	_, err := login(m, "alice@example.org", "wrong")
	if proxy.ReasonOf(err) != proxy.Wrong {
		t.Errorf("wrong password: error %v, want wrong", err)
	}
	_, err = login(m, "alice@example.org", "right")
	r, ok := errors.AsType[*proxy.Refusal](err)
	if !ok || r.Reason != proxy.ProtocolOff || !r.Verified {
		t.Errorf("right password: error %#v, want protocol_off, verified", err)
	}
	if behind.closed != 1 {
		t.Errorf("%d sessions were closed, want 1", behind.closed)
	}
	if _, err := login(m, "bob@example.org", "right"); err != nil {
		t.Errorf("another account: %v", err)
	}
	if got := len(behind.accounts); got != 3 {
		t.Errorf("the backend was asked %d times, want 3", got)
	}
}

// Criterion: the EHLO list is the intersection over all backends that a service can route to; a change of one shows after its next probe.
func TestMuxOffersWhatAllItsBackendsHave(t *testing.T) {
	size := "SIZE 50"
	m := &Mux{
		Rules: Rules{openFile(t, "bob old"), Default{Backend: "main"}},
		Targets: map[Choice]Target{
			{Backend: "main"}: {nil, func() proxy.Offer {
				return proxy.Offer{Mechanisms: []string{"PLAIN", "XOAUTH2"}, Extensions: []string{"DSN", size, "SMTPUTF8"}}
			}},
			{Backend: "old"}: target(nil, proxy.Offer{Mechanisms: []string{"PLAIN"}, Extensions: []string{"SIZE 10", "SMTPUTF8"}}),
			{Backend: "new"}: target(nil, proxy.Offer{Mechanisms: []string{"PLAIN"}}), // where no rule leads
		},
	}
	check := func(want string) {
		t.Helper()
		got := m.Offer()
		slices.Sort(got.Extensions)
		if got := fmt.Sprint(got); got != want {
			t.Errorf("Offer = %s, want %s", got, want)
		}
	}
	check("{[PLAIN] [SIZE 10 SMTPUTF8]}")
	size = "SIZE 5"
	check("{[PLAIN] [SIZE 5 SMTPUTF8]}")
	m.Targets[Choice{Backend: "old"}] = target(nil, proxy.Offer{}) // never reached
	check("{[PLAIN XOAUTH2] [DSN SIZE 5 SMTPUTF8]}")
	m.Targets[Choice{Backend: "main"}] = target(nil, proxy.Offer{})
	if got := m.Offer(); got.Mechanisms != nil {
		t.Errorf("Offer = %v before any probe, want nothing known", got)
	}
	m.Rules = append(Rules{rule(nil)}, m.Rules...) // leads anywhere
	check("{[PLAIN] []}")
}

func openProtocols(t *testing.T, text string) *Protocols {
	t.Helper()
	p, err := OpenProtocols(writeFile(t, text))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestProtocolsOfAccountBeforeDomainBeforeAll(t *testing.T) {
	p := openProtocols(t, "* pop3:off # from December on\n@example.org pop3:on imap:off\nBob@example.org submission:off pop3:off\n")
	for _, test := range []struct{ account, off string }{
		{"x", "pop3"},
		{"x@example.net", "pop3"},
		{"x@example.org", "imap"},
		{"bob@example.org", "imap pop3 submission"},
		{"bob@example.net", "pop3"},
	} {
		var off []string
		for _, protocol := range proxy.Protocols() {
			if isOff, _ := p.Off(test.account, protocol, time.Now()); isOff {
				off = append(off, protocol)
			}
		}
		if got := strings.Join(off, " "); got != test.off {
			t.Errorf("%s may not use %s, want %s", test.account, got, test.off)
		}
	}
	if !p.Known("bob@example.org") || p.Known("x@example.org") {
		t.Error("knows others than those that are listed")
	}
}

func TestProtocolsNameTheLineOfAMistake(t *testing.T) {
	const words = " is not one of imap, pop3, submission and sieve, with :on or :off behind it, nor pop3:off-after=2027-01-31"
	for text, want := range map[string]string{
		"x":                   "no protocol is named: write pop3:off",
		"x pop3":              `"pop3"` + words,
		"x pop3:no":           `"pop3:no"` + words,
		"x pop:off":           `"pop:off"` + words,
		"x pop3:off,imap:off": `"pop3:off,imap:off"` + words,
		"x pop3:off pop3:on":  "pop3 is named twice",
		"x pop3:off imap":     `"imap"` + words,
		"x pop:off imap":      `"pop:off"` + words + `; "imap"` + words,
	} {
		path := writeFile(t, "# policy\n"+text)
		if _, err := OpenProtocols(path); err == nil || err.Error() != path+":2: "+want {
			t.Errorf("%q: error %v, want %s", text, err, want)
		}
	}
}

// A recorder keeps the events of a Mux.
type recorder []proxy.Routed

func (o *recorder) Observe(e proxy.Event) { *o = append(*o, e.(proxy.Routed)) }

func TestMuxObservesEachRule(t *testing.T) {
	status := http.StatusNoContent
	hook := &Hook{URL: "http://hook.test", transport: transportFunc(func(*http.Request) (*http.Response, error) { return response(status, "") })}
	var identified recorder
	m := &Mux{
		Targets: map[Choice]Target{{Backend: "main"}: target(&fakeBackend{}, proxy.Offer{})}, Observer: &identified,
		Rules: Rules{openFile(t, "alice@example.org main"), hook, Domain{"example.org", Choice{Backend: "main"}}, Default{Backend: "main"}},
	}
	for _, step := range []struct {
		account string
		status  int
		want    []string
	}{
		{"alice@example.org", 204, []string{"file found"}},
		{"bob@example.org", 204, []string{"file none", "hook none", "domain found"}},
		{"bob@example.org", 500, []string{"file none", "hook_cache none", "domain found"}},
		{"carol@example.net", 204, []string{"file none", "hook none", "domain none", "default found"}},
		{"dave@example.org", 500, []string{"file none", "hook error"}},
	} {
		identified, status = nil, step.status
		_, _ = login(m, step.account, "right")
		var got []string
		for _, e := range identified {
			got = append(got, e.Source+" "+e.Result)
			if (e.Err != nil) != (e.Result == proxy.RouteError) {
				t.Errorf("%s: %s with %v", step.account, e.Result, e.Err)
			}
		}
		if !slices.Equal(got, step.want) {
			t.Errorf("%s: told %q, want %q", step.account, got, step.want)
		}
	}
	identified = nil
	gone, leave := context.WithCancel(t.Context())
	leave()
	if _, _ = m.Login(gone, testLogin("erin@example.org")); len(identified) > 0 {
		t.Errorf("of a client that left, %v is told", identified)
	}
}
