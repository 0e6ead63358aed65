package service

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"postern/configs"
	"postern/proxy"
	"postern/proxy/certs"
	"postern/proxy/password"
	"postern/proxy/proxytest"
	"postern/proxy/route"
	"postern/proxy/token"
)

// Criterion: what needs attention is the same for postern status, the status page and /readyz, and each fault names the next step.
func TestEachFaultIsFoundWithItsNextStep(t *testing.T) {
	now := time.Now()
	certificate := func(from, to time.Duration) func(*Service) {
		return func(s *Service) {
			cert, err := certs.SelfSigned("mail.example.org")
			if err != nil {
				t.Fatal(err)
			}
			cert.Leaf.NotBefore, cert.Leaf.NotAfter = now.Add(from), now.Add(to)
			if s.store, err = certs.Static(cert); err != nil {
				t.Fatal(err)
			}
		}
	}
	for name, c := range map[string]struct {
		fault              func(*Service)
		severity           string
		text, detail, next string
	}{
		"drained":       {func(s *Service) { s.drained.Store(true) }, Warning, "this Postern is drained", "", "postern drain --self --undo"},
		"dry run":       {func(s *Service) { s.current.Load().cfg.Guard.DryRun = true }, Notice, "dry_run", "", "guard.dry_run: false"},
		"a bug":         {func(s *Service) { s.activity.Observe(proxy.Panicked{}) }, Notice, "bugs caught since the start: 1", "", "report"},
		"expired":       {certificate(-90*24*time.Hour, -time.Hour), Critical, "the certificate of localhost has expired", "it expired on ", "postern certs"},
		"not valid yet": {certificate(time.Hour, 90*24*time.Hour), Critical, "the certificate of localhost is not valid yet", "it is not valid before ", "postern certs"},
		"ends soon":     {certificate(-90*24*time.Hour, 49*time.Hour), Warning, "the certificate of localhost expires in 2 days", "it expires on ", "postern certs"},
		"a balancer sends no PROXY header": {func(s *Service) {
			s.activity.Observe(proxy.Rejected{Client: proxy.Client{Service: "imap", Addr: netip.MustParseAddrPort("10.9.0.3:4711")}, Err: proxy.ErrNoProxyHeader})
		}, Warning, "listener imap refuses connections without a PROXY header", "1 so far, the last 0 seconds ago from 10.9.0.3", "send-proxy-v2"},
		"a balancer sends something else": {func(s *Service) {
			s.activity.Observe(proxy.Rejected{Client: proxy.Client{Service: "imap", Addr: netip.MustParseAddrPort("10.9.0.3:4711")}, Err: proxy.ErrProxyHeader})
		}, Warning, "listener imap refuses connections with a bad PROXY header", "from 10.9.0.3", "send-proxy-v2"},
		"a PROXY header that is not expected": {func(s *Service) {
			s.activity.Observe(proxy.Closed{Client: proxy.Client{Service: "imap", Addr: netip.MustParseAddrPort("[::ffff:10.9.0.3]:4711")}, Err: proxy.ErrUnexpectedProxyHeader})
		}, Notice, "listener imap refuses connections with a PROXY header", "from 10.9.0.3", "proxy_from: [10.9.0.3]"},
		"few descriptors": {func(s *Service) { s.current.Load().cfg.Limits.MaxConnections = 1 << 30 }, Notice, "limits.max_connections 1073741824 needs", "", "raise LimitNOFILE"},
		"a stale file": {func(s *Service) {
			p := filepath.Join(t.TempDir(), "policy")
			write := func(text string) {
				if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			write("a pop3:off\n")
			policy, err := route.OpenProtocols(p)
			if err != nil {
				t.Fatal(err)
			}
			write("a pop3:of\n")
			go policy.Watch(t.Context(), time.Millisecond, slog.New(slog.DiscardHandler))
			within(t, 10*time.Second, "the file is found to be wrong", func() bool { return policy.Stale() != nil })
			s.current.Load().routing.policy = policy
		}, Warning, "policy.file has changed and was not loaded: its content before is in use", `policy:1: "pop3:of" is not one of`, "postern check"},
		"a stale names_file": {func(s *Service) {
			p := filepath.Join(t.TempDir(), "names")
			if err := os.WriteFile(p, []byte("a@b x@y\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			names, err := token.OpenNames(p, func(string) bool { return true })
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(p, []byte("a@b\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			go names.Watch(t.Context(), time.Millisecond, slog.New(slog.DiscardHandler))
			within(t, 10*time.Second, "the file is found to be wrong", func() bool { return names.Stale() != nil })
			s.current.Load().sources = map[string]*token.Source{"m365": {Names: names}}
		}, Warning, "backends.m365.names_file has changed and was not loaded: its content before is in use", "line 1: there is no mailbox", "postern check"},
		"device passwords that cannot be read": {func(s *Service) {
			s.current.Load().devices.Store(&password.Counts{Accounts: 1, Damaged: 2})
		}, Warning, "device passwords that cannot be read: 2", "", "postern password list"},
		"device passwords of another key": {func(s *Service) {
			s.current.Load().devices.Store(&password.Counts{Accounts: 1, Foreign: 3})
		}, Warning, "state.key_file does not have their key: 3", "", "postern password list"},
		"POP3 ends": {func(s *Service) {
			day := func(n int) string { return now.AddDate(0, 0, n).Format(time.DateOnly) }
			s.current.Load().routing.policy = policyOf(t, "a pop3:off-after="+day(-1)+"\nb pop3:off-after="+day(15)+"\nc pop3:off-after="+day(14)+
				"\n@example.org pop3:off-after="+day(9)+"\nd pop3:off\n")
		}, Notice, "POP3 ends for 1 domain: the last day is " + now.AddDate(0, 0, 9).Format(time.DateOnly) + " (in 9 days)",
			"later last days: " + now.AddDate(0, 0, 14).Format(time.DateOnly) + " for 1 account", "postern report pop3"},
		"a reload has failed": {func(s *Service) {
			s.recordReload(s.current.Load().cfg, errors.New("postern.yaml:1: a\npostern.yaml:2: b\n"))
		}, Warning, "the last reload has failed", "postern.yaml:1: a (and 1 more)", "postern check"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg, err := configs.Parse("test.yaml", []byte(baseConfig+"listeners: [{protocol: imap, address: \":0\", tls: refuse}]\nbackends: {main: {imap: {address: \"127.0.0.1:1\", tls: none}}}\n"))
			if err != nil {
				t.Fatal(err)
			}
			cfg.Limits.MaxConnections = 1
			s := New(cfg, nil, slog.New(slog.DiscardHandler), nil)
			certificate(-time.Hour, 90*24*time.Hour)(s)
			g, err := build(cfg, s)
			if err != nil {
				t.Fatal(err)
			}
			s.current.Store(g)
			if f := s.findings(); len(f) != 0 {
				t.Fatalf("without a fault: %+v", f)
			}
			c.fault(s)
			f := s.findings()
			if len(f) == 0 || f[0].Severity != c.severity || !strings.Contains(f[0].Text, c.text) || !strings.Contains(f[0].Detail, c.detail) || !strings.Contains(f[0].Next, c.next) {
				t.Errorf("found is %+v, want %s %q %q %q", f, c.severity, c.text, c.detail, c.next)
			}
			if err := s.degraded(); (err != nil) != (c.severity != Notice) {
				t.Errorf("degraded is %v", err)
			}
		})
	}
}

func TestReloadNamesTheSectionsThatHaveChanged(t *testing.T) {
	parse := func(more string) *configs.Config {
		cfg, err := configs.Parse("test.yaml", fmt.Appendf(nil, "%slisteners: [{protocol: imap, address: \":0\"}]\nbackends: {main: {imap: {address: \"127.0.0.1:1\", tls: none}}}\n%s", baseConfig, more))
		if err != nil {
			t.Fatal(err)
		}
		return cfg
	}
	before := parse("")
	if got := changedSections(before, parse("")); got != nil {
		t.Errorf("nothing has changed, and %q", got)
	}
	if got := fmt.Sprint(changedSections(before, parse("limits: {max_connections: 5}\nlog: {level: debug}\n"))); got != "[limits log]" {
		t.Errorf("changed are %s, want limits and log", got)
	}
}

func TestPercentilesAreOfTheLastLogins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var a activity
		key := loginsKey{"main", proxy.IMAP}
		login := func(d time.Duration, err error) {
			a.Observe(proxy.BackendLogin{Backend: "main", Protocol: proxy.IMAP, Duration: d, Err: err})
		}
		if n, _, _ := a.percentiles(key); n != 0 {
			t.Errorf("%d logins before the first", n)
		}
		login(time.Hour, proxy.NewRefusal(proxy.Wrong, nil)) // servers answer late on purpose
		login(9*time.Millisecond, nil)
		if n, p50, p95 := a.percentiles(key); n != 1 || p50 != 9*time.Millisecond || p95 != p50 {
			t.Errorf("of one: %d, %v, %v", n, p50, p95)
		}
		for i := range 1000 { // the last 256 count: 745 to 1000 ms
			login(time.Duration(i+1)*time.Millisecond, nil)
		}
		if n, p50, p95 := a.percentiles(key); n != 256 || p50 != 872*time.Millisecond || p95 != 988*time.Millisecond {
			t.Errorf("of many: %d, %v, %v", n, p50, p95)
		}
		time.Sleep(loginWindow + time.Second)
		login(time.Millisecond, nil)
		if n, _, p95 := a.percentiles(key); n != 1 || p95 != time.Millisecond {
			t.Errorf("later: %d, %v", n, p95)
		}
	})
}

// Criterion: A provider that refuses the application, or gives no tokens, and a certificate or secret that ends within 30 days are what needs attention, each with its next step; no load balancer is told so, as another Postern would see the same.
func TestProvidersNeedAttention(t *testing.T) {
	dir := t.TempDir()
	write := func(name, content string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("secret", "s3cret")
	write("names", "scanner@example.org shared@example.org\n")
	write("state.key", "dGhlIGtleSBvZiBhIHRlc3QgaGFzIDMyIG9jdGV0cyE=")
	o := proxytest.StartOAuth(t, map[string]proxytest.OAuthClient{"copier": {Secret: "s3cret"}})
	cert, err := certs.SelfSigned("mail.example.org")
	if err != nil {
		t.Fatal(err)
	}
	store, err := certs.Static(cert)
	if err != nil {
		t.Fatal(err)
	}
	s := New(tokenConfig(t, dir, o.TokenURL, "example.org"), store, slog.New(slog.DiscardHandler), nil)
	g, err := build(tokenConfig(t, dir, o.TokenURL, "example.org"), s)
	if err != nil {
		t.Fatal(err)
	}
	s.current.Store(g)
	expect := func(what, severity, text, detail, next string) {
		t.Helper()
		var all findingList
		g.findProviders(time.Now(), &all)
		if severity == "" {
			if len(all) > 0 {
				t.Errorf("%s: %+v", what, all)
			}
			return
		}
		if len(all) != 1 || all[0].Severity != severity || !strings.Contains(all[0].Text, text) || !strings.Contains(all[0].Detail, detail) || !strings.Contains(all[0].Next, next) {
			t.Errorf("%s: found is %+v, want %s %q %q %q", what, all, severity, text, detail, next)
		}
		if err := s.degraded(); err != nil && strings.Contains(err.Error(), "own") {
			t.Errorf("%s: /readyz says %v", what, err)
		}
	}
	ask := func(account string) {
		_, secret, _, _ := g.source("main").Credentials(t.Context(), account, proxy.IMAP, false)
		secret.Clear()
	}
	if expect("not asked", "", "", "", ""); g.providerStatus()[0].State != providerUnknown {
		t.Errorf("%+v", g.providerStatus())
	}
	o.Fail(func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "away", http.StatusBadGateway) })
	ask("scanner@example.org")
	expect("away", Critical, "provider own gives no tokens; logins at its backends are refused temporarily", "the token endpoint answered 502", "postern provider check own")
	o.Fail(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusUnauthorized)
		_, _ = io.WriteString(w, `{"error":"invalid_client"}`)
	})
	time.Sleep(1100 * time.Millisecond) // a failure is shared for a second
	ask("scanner@example.org")
	expect("misconfigured", Critical, "provider own refuses Postern's application", "401 invalid_client; the client id, or its secret", "postern provider check own")

	for left, want := range map[time.Duration]string{31 * 24 * time.Hour: "", 10*24*time.Hour + time.Hour: Warning, -time.Hour: Critical} {
		p := g.cfg.Providers["own"]
		p.ClientSecretExpires = "2027-01-31"
		g.cfg.Providers["own"] = p
		var all findingList
		g.providers = map[string]provider{"own": {Provider: &token.Provider{Name: "own"}, config: p}}
		g.readEnds()
		end, _, _ := p.CredentialEnd()
		g.findProviders(end.Add(-left), &all)
		switch {
		case want == "" && len(all) == 0:
		case len(all) != 1 || all[0].Severity != want || !strings.Contains(all[0].Text, "the secret of provider own") || !strings.Contains(all[0].Next, "providers.own (docs/oauth.md), with its last day"):
			t.Errorf("%v left: %+v, want %s", left, all, want)
		}
	}
}
