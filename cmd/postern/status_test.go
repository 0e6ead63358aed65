package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"postern/cmd/postern/internal/service"
	"postern/proxy/proxytest"
)

// badDay returns the status of a Postern of which much needs attention.
func badDay() service.Status {
	now := time.Date(2026, 11, 28, 21, 14, 0, 0, time.UTC)
	server := func(backend, protocol, address, state string, since time.Duration) service.ServerStatus {
		v := service.ServerStatus{DrainedServer: service.DrainedServer{Backend: backend, Protocol: protocol, Address: address, State: state, Connections: 9123}}
		if since != 0 {
			v.Since = now.Add(-since)
		}
		return v
	}
	s := service.Status{
		At: now, Hostname: "mail.example.org", Version: "v1.4.0", PID: 4711, Started: now.Add(-75 * time.Hour), Ready: true,
		Readyz: "ready, degraded: ...",
		Findings: []service.Finding{
			{Severity: service.Critical, Text: "backend main accepts no submission logins: it is down", Detail: "10.0.0.5:587, for 4 minutes: dial tcp 10.0.0.5:587: connect: connection refused", Next: "postern check --probe"},
			{Severity: service.Warning, Text: "the certificate of mail.customer-with-a-long-name.example ends in 2 days", Detail: "at 2026-11-30 21:14:00Z", Next: "put a new certificate into the file: Postern reads it again by itself"},
			{Severity: service.Notice, Text: "the login guard is in dry_run: it counts and refuses nobody", Next: "guard.dry_run: false"},
		},
		Listeners: []service.ListenerStatus{
			{Name: "imap", Protocol: "imap", Address: "0.0.0.0:993", TLS: "implicit", State: "serving", Connections: 18234, Sessions: 18200},
			{Name: "submission", Protocol: "submission", Address: "[2001:db8::5]:465", TLS: "implicit", State: "no backend", Connections: 1},
		},
		Backends: []service.ServerStatus{
			server("main", "imap", "10.0.0.5:993", "up", 3*time.Hour+12*time.Minute),
			server("main", "imap", "10.0.0.6:993", "drained", time.Hour),
			server("main", "submission", "10.0.0.5:587", "down", 4*time.Minute+3*time.Second),
			server("new", "imap", "10.0.0.7:993", "unknown", 0),
		},
		Providers: []service.ProviderStatus{
			{Name: "contoso", Kind: "microsoft", State: "up", Tokens: 8, Last: now.Add(-40 * time.Minute), NotAfter: now.AddDate(0, 0, 400)},
			{Name: "school", Kind: "google", State: "misconfigured", Since: now.Add(-3 * time.Minute), Error: "401"},
			{Name: "new", Kind: "oauth", State: "not asked yet"},
		},
		Passwords: &service.PasswordStatus{Devices: 1204, Accounts: 977, Expired: 31, Foreign: 1, Damaged: 2, Hashes: &service.HashStatus{Running: 2, Waiting: 14, Memory: 128 << 20, Limit: 256 << 20}},
		Certificates: []service.CertificateStatus{
			{Name: "mail.example.org", Source: "file", NotAfter: now.Add(48 * time.Hour)}, {Name: "*", Source: "folder", NotAfter: now.Add(72 * time.Hour)},
		},
		Reload: &service.Reload{At: now.Add(-time.Hour), Changed: []string{"backends", "limits"}},
		Guard: service.GuardStatus{
			LearningSeconds: 7200, DryRun: true, FailingAccounts: 311, FailingNetworks: 1204, FailureRatio: 0.184, RefusedAccounts: 2, RefusedNetworks: 1,
			Busiest: []service.RefusedStatus{
				{Account: "alice@example.org", Hash: "0123456789abcdef", Network: netip.MustParsePrefix("192.0.2.7/32"), Limit: "account_network", Refused: 57, Until: now.Add(90 * time.Second)},
				{Hash: "0123456789abcdef", Network: netip.MustParsePrefix("2001:db8:0:1::/64"), Limit: "network", Refused: 12, Until: now.Add(20 * time.Second)},
			},
		},
		State:       []service.FileStatus{{Name: "record.db", Size: 16 << 20}, {Name: "cache.db", Size: 512 << 10, Broken: "it was truncated"}},
		Backup:      now.Add(-26 * time.Hour),
		Descriptors: service.DescriptorStatus{Used: 37012, Allowed: 65536},
		Before:      &service.ProcessStatus{PID: 4700, Sessions: 12},
	}
	s.Backends[0].Logins, s.Backends[0].P50, s.Backends[0].P95 = 256, 0.0123, 1.204
	return s
}

const badDayScreen = `mail.example.org: ready, 2 things need attention
Postern v1.4.0, process 4711, up 3 days (since 2026-11-25 18:14:00Z)

CRITICAL  backend main accepts no submission logins: it is down
          10.0.0.5:587, for 4 minutes: dial tcp 10.0.0.5:587: connect:
          connection refused
          next: postern check --probe

WARNING   the certificate of mail.customer-with-a-long-name.example ends in 2
          days
          at 2026-11-30 21:14:00Z
          next: put a new certificate into the file: Postern reads it again by
          itself

NOTICE    the login guard is in dry_run: it counts and refuses nobody
          next: guard.dry_run: false

LISTENER    ADDRESS            TLS       STATE       CONNECTIONS  SESSIONS
imap        0.0.0.0:993        implicit  serving     18234        18200
submission  [2001:db8::5]:465  implicit  no backend  1            0

BACKEND  PROTOCOL    SERVER        STATE      CONNECTIONS  P50   P95
main     submission  10.0.0.5:587  down 4m3s  9123         -     -
new      imap        10.0.0.7:993  unknown    9123         -     -
main     imap        10.0.0.6:993  drained    9123         -     -
main     imap        10.0.0.5:993  up 3h12m   9123         12ms  1204ms

providers     contoso: up, 8 valid tokens, the last came 40 minutes ago;
              credential ends 2028-01-02
              school: misconfigured for 3 minutes, 0 valid tokens
              new: not asked yet, 0 valid tokens
passwords     devices: 1204 of 977 accounts; 31 past their last day; 1 of a key
              that is not in state.key_file; 2 that cannot be read
              slow hashes: 2 running, 14 waiting, 128.0 MiB of 256.0 MiB
certificates  2 names, the first ends in 2 days: mail.example.org, 2026-11-30
              21:14:00Z (file)
reload        2026-11-28 20:14:00Z: loaded, changed: backends, limits
guard         dry run, learning (2 hours left); rate-limited now: 2 accounts
              from 1 network
              wrong passwords in 5 minutes: 311 accounts, 1204 networks, 18.4 %
              of attempts
              alice@example.org from 192.0.2.7/32: 57 refused (account_network),
              for 1m30s
              (0123456789abcdef) from 2001:db8:0:1::/64: 12 refused (network),
              for 20s
state         record.db 16.0 MiB, cache.db 512 KiB, BROKEN; backup 2026-11-27
              19:14:00Z
descriptors   37012 of 65536
upgrade       process 4700, from before the upgrade, has 12 sessions left
`

// Criterion: postern status fits on a screen of 80 columns and shows first what needs attention, each with the next step.
func TestStatusIsOneScreen(t *testing.T) {
	var out bytes.Buffer
	if err := printStatus(&out, badDay()); err != nil {
		t.Fatal(err)
	}
	if got := out.String(); got != badDayScreen {
		t.Errorf("printed is\n%s, want\n%s", got, badDayScreen)
	}

	// A hoster with many of everything still has one screen for the first look.
	many := badDay()
	for i := range 200 {
		many.Findings = append(many.Findings, many.Findings[1])
		many.Listeners = append(many.Listeners, many.Listeners[0])
		v := many.Backends[0]
		v.Address = fmt.Sprintf("10.0.1.%d:993", i)
		many.Backends = append(many.Backends, v)
	}
	many.Findings[0].Detail = "220 \x1b[2Jmx"
	out.Reset()
	if err := printStatus(&out, many); err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(out.String(), "\n"); n > 110 || strings.Contains(out.String(), "\x1b") {
		t.Errorf("%d lines of\n%q", n, out.String())
	}
	for line := range strings.Lines(out.String()) {
		if len([]rune(line)) > screenWidth+1 {
			t.Errorf("%d columns: %s", len([]rune(line))-1, line)
		}
	}
	for _, want := range []string{"... and 193 more: postern status --json", "... and 192 more\n", "... and 194 more: postern drain"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("printed is\n%s, want %s", out.String(), want)
		}
	}
}

// Criterion: postern status has exit status 0 when nothing needs attention, 2 when something does, and 1 when no Postern is running.
func TestStatusSaysByItsExitStatusWhetherSomebodyShouldLook(t *testing.T) {
	imap, _ := inMemory(t, "mail", "alice")
	away := proxytest.FreeAddress(t)
	f := "listeners: [{protocol: pop3, address: \"127.0.0.1:0\"}]\nlimits: {max_connections: 100}\nbackends: {main: {imap: {addresses: [%s], tls: none}}}\n"
	r, do := startWithCommands(t, fmt.Sprintf(f, imap+", "+away))
	r.login(t, "alice")
	waitForSessions(t, do, 1)
	out, ok := do("status", "--json")
	var s service.Status
	if err := json.Unmarshal([]byte(out), &s); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if ok || !s.Ready || s.PID != os.Getpid() || len(s.Findings) != 2 || s.Findings[0].Severity != service.Warning || len(s.Backends) != 2 ||
		s.Listeners[0].Sessions != 1 || s.Listeners[0].State != "serving" || s.Backends[0].Logins != 1 || s.Backends[0].P95 <= 0 ||
		len(s.State) != 2 || s.State[0].Size <= 0 || s.Descriptors.Used <= 0 || len(s.Certificates) == 0 {
		t.Errorf("with one of two servers down: successful: %v, %+v", ok, s)
	}
	if f := s.Findings[0]; f.Text != "backend main (pop3): of 2 servers 1 down" || !strings.Contains(f.Detail, away) || f.Next != "postern check --probe" {
		t.Errorf("found is %+v", f)
	}
	if strings.Contains(out, "secret") {
		t.Error("a password is in it")
	}
	if out, ok := do("drain", "main"); !ok {
		t.Fatal(out)
	}
	out, ok = do("status")
	if want := "localhost: NOT READY: no backend accepts logins: main (imap) is drained\n"; ok || !strings.HasPrefix(out, want) || !strings.Contains(out, "next: postern drain main --undo\n") {
		t.Errorf("drained: successful: %v,\n%s", ok, out)
	}

	_, do = startWithCommands(t, fmt.Sprintf(f, imap))
	if out, ok := do("status"); !ok || !strings.HasPrefix(out, "localhost: ready\n") || !strings.Contains(out, "\nnothing needs attention\n") {
		t.Errorf("successful: %v\n%s", ok, out)
	}
	if out, ok := do("drain", "--self"); !ok {
		t.Fatal(out)
	}
	if out, ok := do("status"); ok || !strings.HasPrefix(out, "localhost: NOT READY: drained by postern drain --self\n") || !strings.Contains(out, "next: postern drain --self --undo\n") {
		t.Errorf("drained itself: successful: %v\n%s", ok, out)
	}

	path := filepath.Join(t.TempDir(), "postern.yaml")
	if err := os.WriteFile(path, fmt.Appendf(nil, baseConfig+f+"control: {socket: none.sock}\n", imap), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, arg := range []string{"--json=false", "--json"} {
		var stdout, stderr bytes.Buffer
		status := command(t.Context(), []string{"status", arg, "-c", path}, &stdout, &stderr)
		if status != 1 || stdout.Len() > 0 || !strings.HasPrefix(stderr.String(), "postern: no Postern is running at ") {
			t.Errorf("status %s of none that runs: %d %s%s", arg, status, stdout.String(), stderr.String())
		}
	}
	for want, found := range map[int][]service.Finding{0: {{Severity: service.Notice}}, 2: {{Severity: service.Warning}}} {
		if got := (service.Status{Findings: found}).NeedsAttention(); got != (want == 2) {
			t.Errorf("%+v needs attention: %v", found, got)
		}
	}
}
