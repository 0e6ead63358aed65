package service

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"postern/cmd/postern/internal/stored"
	"postern/configs"
	"postern/proxy/certs"
	"postern/proxy/guard"
	"postern/proxy/proxytest"
)

const guarded = baseConfig + `
listeners: [{protocol: imap, address: "127.0.0.1:0", guard: {account_network: {burst: 2}, strict_nist: true, account_sessions: 7}}, {protocol: pop3, address: "127.0.0.1:0"}]
backends: {main: {imap: {address: "127.0.0.1:1", tls: none}}}
`

func TestGuardConfig(t *testing.T) {
	cfg, err := configs.Parse("test.yaml", []byte(guarded))
	if err != nil {
		t.Fatal(err)
	}
	got := stored.GuardConfig(cfg)
	if s := got.Services["imap"]; len(got.Services) != 1 || s.Pair != (guard.Rate{Burst: 2}) || s.Sessions != 7 || !s.StrictNIST || s.Delay != 0 {
		t.Errorf("the services have %+v", got.Services)
	}
	got.Services = nil
	want := guard.Config{
		Known:     guard.Rate{Burst: 20, Every: 10 * time.Minute},
		Pair:      guard.Rate{Burst: 5, Every: 30 * time.Minute},
		Network:   guard.Rate{Burst: 20, Every: 30 * time.Minute},
		Account:   guard.Rate{Burst: 8, Every: time.Hour},
		Network24: guard.Rate{Burst: 60, Every: 10 * time.Minute},
		Network56: guard.Rate{Burst: 40, Every: 15 * time.Minute},
		Network48: guard.Rate{Burst: 60, Every: 10 * time.Minute},
		OAuth:     guard.Rate{Burst: 100, Every: 10 * time.Second},
		Sessions:  50, Delay: 2 * time.Second,
		Connections: 10_000, Reserve: 2_000, ConnectionsPerNetwork: 200, LoginsPerNetwork: 40, Attempts: 1024, Wait: 30 * time.Second,
		Learning: 72 * time.Hour, KnownFor: 30 * 24 * time.Hour, Entries: 1 << 19, Pairs: 3 << 18,
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("the guard gets %+v, want %+v", got, want)
	}
	cfg, err = configs.Parse("test.yaml", []byte(guarded+"limits: {reserve: 0, max_connections: 5}\nguard: {learning: 0s}\n"))
	if err != nil {
		t.Fatal(err)
	}
	if got := stored.GuardConfig(cfg); got.Reserve != 0 || got.Learning != 0 {
		t.Errorf("reserve is %d and learning is %s, want 0", got.Reserve, got.Learning)
	}
}

// Criterion: what the login guard has learnt outlives Postern: whoever was
// refused is so after a restart, and who is known is so, too.
func TestTheGuardOutlivesPostern(t *testing.T) {
	imap, _ := inMemory(t, "mail", "alice")
	config := baseConfig + fmt.Sprintf(`
listeners: [{protocol: imap, address: "127.0.0.1:0"}]
backends: {main: {imap: {address: %q, tls: none}}}
state: {path: %q}
guard: {known_network: {burst: 1, every: 1h}, delay: 100ms}
`, imap, t.TempDir()+"/state")
	t.Run("first", func(t *testing.T) {
		r := startService(t, config)
		proxytest.Transcript(t, r.secure(r.dial(t, "imap")), `
			S: \* OK *
			C: a LOGIN alice "secret of alice"
			S: a OK *
			C: b LOGOUT
			S: \* BYE *
			S: b OK *
		`)
		proxytest.Transcript(t, r.secure(r.dial(t, "imap")), `
			S: \* OK *
			C: a LOGIN alice wrong
			S: a NO [AUTHENTICATIONFAILED] *
			C: b LOGIN alice other
			S: b NO [UNAVAILABLE] *
		`)
	})
	t.Run("second", func(t *testing.T) {
		r := startService(t, config)
		proxytest.Transcript(t, r.secure(r.dial(t, "imap")), `
			S: \* OK *
			C: a LOGIN alice third
			S: a NO [UNAVAILABLE] *
		`)
		if got := r.metrics("guard_known_networks"); !strings.Contains(got, "guard_known_networks 1\n") {
			t.Errorf("nobody is known any more:\n%s", got)
		}
		if got := r.metrics("guard_attempts_total"); !strings.Contains(got, `{decision="refused",tier="known_good"} 1`) {
			t.Errorf("the attempt is not counted as one of a known network:\n%s", got)
		}
	})
}

// Criterion: a policy server of the configuration judges logins at the real
// listener: what it rejects no backend sees, and it hears how the others ended.
func TestAPolicyServerJudgesLogins(t *testing.T) {
	imap, _ := inMemory(t, "mail", "alice", "bob")
	reports := make(chan string, 10)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var q struct {
			Login   string `json:"login"`
			Success bool   `json:"success"`
		}
		if err := json.NewDecoder(r.Body).Decode(&q); err != nil || r.Header.Get("Authorization") != "Basic eDp5" {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		if r.URL.Query().Get("command") == "report" {
			reports <- fmt.Sprint(q.Login, " ", q.Success)
			return
		}
		status := 0
		if q.Login == "bob" {
			status = -1
		}
		fmt.Fprintf(w, `{"status":%d}`, status)
	}))
	t.Cleanup(server.Close)
	dir := t.TempDir()
	r := startService(t, baseConfig+fmt.Sprintf(`
listeners: [{protocol: imap, address: "127.0.0.1:0"}]
backends: {main: {imap: {address: %q, tls: none}}}
guard: {delay: 100ms, policy: {url: %q, api_key_file: %q, nonce_file: %q}}
`, imap, server.URL, file(t, dir, "key", "Authorization: Basic eDp5\n"), file(t, dir, "nonce", "salt\n")))
	proxytest.Transcript(t, r.secure(r.dial(t, "imap")), `
		S: \* OK *
		C: a LOGIN bob "secret of bob"
		S: a NO [UNAVAILABLE] *
		C: b LOGIN alice wrong
		S: b NO [AUTHENTICATIONFAILED] *
		C: c LOGIN alice "secret of alice"
		S: c OK *
	`)
	for _, want := range []string{"bob false", "alice false", "alice true"} {
		if got := <-reports; got != want {
			t.Errorf("the policy server hears %q, want %q", got, want)
		}
	}
	if got := r.metrics(`backend_login_duration_seconds_count`); !strings.Contains(got, `{backend="main",protocol="imap"} 2`) {
		t.Errorf("the backend was asked for what the policy server rejects:\n%s", got)
	}
	for _, want := range []string{
		`postern_auth_policy_requests_total{command="allow",result="reject"} 1`, `postern_auth_policy_requests_total{command="allow",result="allow"} 3`,
		`postern_rate_limited_total{scope="policy_server"} 1`,
	} {
		if !strings.Contains(r.metrics(""), want) {
			t.Errorf("the metrics have no %s", want)
		}
	}
}

// Criterion: "why could she not log in at 9:14" is one grep, also right after a restart: an account that the ledger, the
// login guard or a log for guard seed knows is named in the log when it is refused; nobody else is.
func TestTheLogNamesWhoHasLoggedInBeforeARestart(t *testing.T) {
	imap, _ := inMemory(t, "mail", "alice@example.org")
	dir := t.TempDir() + "/state"
	cfg, err := configs.Parse("test.yaml", fmt.Appendf(nil, baseConfig+`
listeners: [{protocol: imap, address: "127.0.0.1:0"}]
backends: {main: {imap: {address: %q, tls: none}}}
state: {path: %q}
guard: {delay: 100ms}
`, imap, dir))
	if err != nil {
		t.Fatal(err)
	}
	cert, roots := proxytest.Cert(t, "localhost")
	store, err := certs.Static(cert)
	if err != nil {
		t.Fatal(err)
	}
	var log *lockedBuffer
	start := func(t *testing.T) *running {
		log = new(lockedBuffer)
		r := startServiceWith(t, cfg, store, log)
		r.roots = roots
		return r
	}
	refused := func(t *testing.T, r *running, name string) {
		proxytest.Transcript(t, r.secure(r.dial(t, "imap")), `
			S: \* OK *
			C: a LOGIN `+name+` wrong
			S: a NO [AUTHENTICATIONFAILED] *
		`)
	}
	named := func(t *testing.T, want bool, account string) {
		t.Helper()
		lines := grep(log.String(), "login refused")
		if got := strings.Contains(lines, "account="+account+" "); got != want || strings.Contains(lines, "account_hash=") == want {
			t.Errorf("the line names %s: %v, want %v:\n%s", account, got, want, lines)
		}
	}
	t.Run("she logs in", func(t *testing.T) {
		r := start(t)
		proxytest.Transcript(t, r.secure(r.dial(t, "imap")), `
			S: \* OK *
			C: a LOGIN alice@example.org "secret of alice@example.org"
			S: a OK *
		`)
	})
	t.Run("the ledger", func(t *testing.T) {
		if err := os.Remove(filepath.Join(dir, stored.CacheFile)); err != nil { // the guard forgets
			t.Fatal(err)
		}
		refused(t, start(t), "alice@example.org")
		named(t, true, "alice@example.org")
	})
	t.Run("nobody knows bob", func(t *testing.T) {
		refused(t, start(t), "bob@example.org")
		named(t, false, "bob@example.org")
		if lines := grep(log.String(), "login refused"); !strings.Contains(lines, " name_shape=known_domain ") {
			t.Errorf("the shape is missing: %s", lines)
		}
	})
	t.Run("guard seed", func(t *testing.T) {
		start(t).service.guard.Seed([]guard.Success{{Account: "bob@example.org", Addr: netip.MustParseAddr("192.0.2.1"), Time: time.Now()}})
	})
	t.Run("the guard", func(t *testing.T) {
		refused(t, start(t), "bob@example.org")
		named(t, true, "bob@example.org")
	})
	t.Run("forgotten", func(t *testing.T) {
		r := start(t)
		if err := stored.ForgetAccount.Answer(t.Context(), r.service.Storage, "alice@example.org", func(struct{}) error { return nil }); err != nil {
			t.Fatal(err)
		}
		refused(t, r, "alice@example.org")
		named(t, false, "alice@example.org")
	})
}
