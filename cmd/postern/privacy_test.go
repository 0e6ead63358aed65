package main

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"postern/configs"
	"postern/proxy"
	"postern/proxy/proxytest"
	"postern/proxy/state"
)

func TestALogSaysOfPeopleWhatItMay(t *testing.T) {
	names := pseudonyms{key: []byte("key of the test")}
	alice := names.of("alice@example.org")
	address := netip.MustParseAddr("192.0.2.77")
	client := proxy.Client{Service: "imap", ID: "ABC", Addr: netip.AddrPortFrom(address, 40001)}
	dial := &net.OpError{Op: "read", Net: "tcp", Addr: net.TCPAddrFromAddrPort(client.Addr), Err: errors.New("reset of 192.0.2.7 and 192.0.2.77")}
	for _, c := range []struct {
		privacy configs.Privacy
		args    []any
		want    string
	}{
		{configs.Privacy{Addresses: "full", Users: "full"}, []any{"ip", address, "account", "alice@example.org"}, "ip=192.0.2.77 account=alice@example.org"},
		{configs.Privacy{Addresses: "prefix", Users: "full"}, []any{"ip", address, "account", "al"}, "ip=192.0.2.0/24 account=al"},
		{configs.Privacy{Addresses: "prefix", Users: "full"}, []any{"ip", netip.MustParseAddr("2001:db8:1:2::3")}, "ip=2001:db8:1::/48"},
		{configs.Privacy{Addresses: "prefix", Users: "full"}, []any{"network", netip.MustParsePrefix("2001:db8:1:2::/64")}, "network=2001:db8:1::/48"},
		{configs.Privacy{Addresses: "prefix", Users: "full"}, []any{"network", netip.MustParsePrefix("10.0.0.0/8")}, "network=10.0.0.0/8"},
		{configs.Privacy{Addresses: "none", Users: "full"}, []any{"client", client}, "client.service=imap client.ip=- client.session=ABC"},
		{configs.Privacy{Addresses: "none", Users: "full"}, []any{"err", dial, "ip", address}, `err="read tcp -:40001: reset of 192.0.2.7 and -" ip=-`},
		{
			configs.Privacy{Addresses: "full", Users: "pseudonym"},
			[]any{"account", "alice@example.org", "err", errors.New("no mailbox alice@example.org.au, /?u=alice%40example.org, (alice@example.org)")},
			fmt.Sprintf(`account=%s err="no mailbox %s.au, /?u=%s, (%s)"`, alice, alice, alice, alice),
		},
		{configs.Privacy{Addresses: "full", Users: "pseudonym"}, []any{"account", "", "n", 7, "service", "imap"}, `account="" n=7 service=imap`},
	} {
		var out bytes.Buffer
		var rules atomic.Pointer[discretion]
		log := slog.New(newDiscreet(slog.NewTextHandler(&out, nil), &rules))
		rules.Store(&discretion{c.privacy, names})
		log.Info("m", c.args...)
		if _, got, _ := strings.Cut(strings.TrimSpace(out.String()), "msg=m "); got != c.want {
			t.Errorf("%+v:\n%s, want\n%s", c.privacy, got, c.want)
		}
		out.Reset()
		log.WithGroup("g").With(c.args...).Info("m")
		if got := out.String(); c.privacy.Addresses == "none" && strings.Contains(got, "ip=192") {
			t.Errorf("what a logger has from the start: %s", got)
		}
	}
}

func TestPseudonymsStayTheSame(t *testing.T) {
	notes := new(state.Memory)
	key, err := pseudonymKeyOf(t.Context(), notes)
	if err != nil {
		t.Fatal(err)
	}
	again, err := pseudonymKeyOf(t.Context(), notes)
	if err != nil {
		t.Fatal(err)
	}
	first, second, other := newPseudonyms(key), newPseudonyms(again), newPseudonyms(nil)
	if a, b, c := first.of("alice"), second.of("alice"), other.of("alice"); a != b || a == c || a == first.of("bob") {
		t.Errorf("alice is %s, %s, and elsewhere %s", a, b, c)
	}
}

// A written is what a test reads while others write.
type written struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (w *written) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.b.Write(p)
}

func (w *written) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.b.String()
}

// Criterion: with privacy, no line of the log has a client's address or an account, whatever happens.
func TestNoLineHasAnAddressOrAnAccount(t *testing.T) {
	imap, _ := inMemory(t, "mail", "alice@example.org")
	w := new(written)
	r, do := operatedWith(t, w, fmt.Sprintf("listeners: [{protocol: pop3, address: \"127.0.0.1:0\"}]\nbackends: {main: {imap: {address: %q, tls: none}}}\nprivacy: {addresses: none, users: pseudonym}\n", imap))
	c := r.login(t, "alice@example.org")
	proxytest.Transcript(t, c, "C: QUIT\nS: +OK *\nS: <EOF>")
	proxytest.Transcript(t, r.secure(r.dial(t, "pop3")), "S: +OK *\nC: USER alice@example.org\nS: +OK *\nC: PASS wrong\nS: -ERR *")
	within(t, patience, "the sessions are in the log", func() bool {
		return strings.Contains(w.String(), "connection ended") && strings.Contains(w.String(), "login refused")
	})
	out, ok := do("account", "export", "alice@example.org")
	if !ok {
		t.Fatal(out)
	}
	pseudonym := r.site.names.of("alice@example.org")
	if !strings.Contains(out, pseudonym) {
		t.Errorf("the export does not name %s:\n%s", pseudonym, out)
	}
	for line := range strings.Lines(w.String()) {
		if strings.Contains(line, "alice") || strings.Contains(line, "127.0.0.1") && !strings.Contains(line, "listening") {
			t.Errorf("the log has\n%s", line)
		}
	}
	if n := strings.Count(w.String(), "account="+pseudonym); n != 3 {
		t.Errorf("%d lines name the account, want that of the login, of the refusal and of the end\n%s", n, w.String())
	}
}

func TestTheJournalGetsPriorities(t *testing.T) {
	var out bytes.Buffer
	level := new(slog.LevelVar)
	log := newLog(&out, "journald", level)
	log.Debug("not asked for")
	level.Set(slog.LevelDebug)
	log.Debug("a")
	log.With("k", "v").Info("b", "text", "two\nlines", "time", "kept?")
	log.WithGroup("g").Warn("c", "level", 3)
	log.Error("d")
	want := "<7>msg=a\n<6>msg=b k=v text=\"two\\nlines\" time=kept?\n<4>msg=c g.level=3\n<3>msg=d\n"
	if got := out.String(); got != want {
		t.Errorf("written is\n%s, want\n%s", got, want)
	}
}
