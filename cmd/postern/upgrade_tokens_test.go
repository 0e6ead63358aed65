package main

import (
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"postern/cmd/postern/internal/service"
	"postern/cmd/postern/internal/stored"
	"postern/proxy/memserver"
	"postern/proxy/proxytest"
)

// A tokenProcesses is a Postern in front of servers that take tokens alone, with an account
// and a device password for each user.
type tokenProcesses struct {
	*processes
	oauth     *proxytest.OAuth
	behind    *proxytest.TokenServers
	passwords []string // of the users
}

func userAddress(user int) string { return fmt.Sprintf("u%d@example.org", user) }

func startTokenProcesses(t *testing.T, users int) *tokenProcesses {
	t.Helper()
	var accounts []memserver.Account
	for i := range users {
		accounts = append(accounts, memserver.Account{User: userAddress(i), Password: "secret of " + userAddress(i)})
	}
	m := memserver.New(memserver.Options{Accounts: accounts})
	t.Cleanup(func() { _ = m.Close() })
	imap, err := serveInMemory(m.ServeIMAP)
	if err != nil {
		t.Fatal(err)
	}
	submission, err := serveInMemory(m.ServeSMTP)
	if err != nil {
		t.Fatal(err)
	}
	secret, dir := newSecret(), t.TempDir()
	f := &tokenProcesses{oauth: proxytest.StartOAuth(t, map[string]proxytest.OAuthClient{"copier": {Secret: secret}})}
	f.behind = proxytest.StartTokenServers(t, f.oauth, imap, submission, func(user string) string { return "secret of " + user })
	cert, key, ca := proxytest.CertFiles(t)
	pem, err := os.ReadFile(ca)
	if err != nil {
		t.Fatal(err)
	}
	f.processes = &processes{postern: newPostern(dir, ca), roots: x509.NewCertPool()}
	f.roots.AppendCertsFromPEM(pem)
	f.imap, f.pop3, f.smtp, f.metrics = proxytest.FreeAddress(t), proxytest.FreeAddress(t), proxytest.FreeAddress(t), proxytest.FreeAddress(t)
	stateKey := make([]byte, 32)
	copy(stateKey, newSecret())
	file(t, dir, "state.key", base64Of(string(stateKey)))
	file(t, dir, "secret", secret)
	mkdir(t, dir, "state")
	f.body = fmt.Sprintf(`
hostname: mail.example.org
listeners:
  - {protocol: imap, address: %q}
  - {protocol: pop3, address: %q}
  - {protocol: submission, address: %q}
tls: {certificates: [{cert: %q, key: %q}]}
backends: {main: {token: own, imap: {address: %q, tls: none}, submission: {address: %q, tls: none}}}
providers: {own: {kind: oauth, token_url: %q, scope: mail, client_id: copier, client_secret_file: secret, domains: [example.org]}}
passwords: {devices: true}
trusted_networks: [127.0.0.0/8]
metrics: {address: %q}
log: {format: json}
state: {path: state, key_file: state.key}
`, f.imap, f.pop3, f.smtp, cert, key, f.behind.IMAP, f.behind.Submission, f.oauth.TokenURL, f.metrics)
	f.config = file(t, dir, "postern.yaml", f.body)
	f.startUntil(t, f.config, f.end)
	within(t, patience, "Postern listens", func() bool { return len(f.logged(t, "listening")) == 3 })
	for i := range users {
		out, err := f.say("password", "add", userAddress(i), "--name", "phone", "--json")
		var made stored.MadeDevice
		if err != nil || json.Unmarshal([]byte(out), &made) != nil {
			t.Fatalf("password add: %v", err)
		}
		keepSecret(strings.ReplaceAll(made.Password, "-", "")) // as it is hashed
		f.passwords = append(f.passwords, keepSecret(made.Password))
	}
	return f
}

// logIn logs a user in by a protocol.
func (f *tokenProcesses) logIn(protocol string, user int) (*visit, error) {
	address := map[string]string{"imap": f.imap, "pop3": f.pop3, "submission": f.smtp}[protocol]
	c, err := f.dial(address)
	if err != nil {
		return nil, err
	}
	lines := map[string][]string{
		"imap":       {"a LOGIN " + userAddress(user) + " " + f.passwords[user], "a OK"},
		"pop3":       {"USER " + userAddress(user), "+OK", "PASS " + f.passwords[user], "+OK"},
		"submission": {"EHLO client.example", "250 ", "AUTH PLAIN " + base64Of("\x00"+userAddress(user)+"\x00"+f.passwords[user]), "235 "},
	}[protocol]
	for ; len(lines) > 0; lines = lines[2:] {
		if err := c.wants(lines[0], lines[1]); err != nil {
			return c, err
		}
	}
	return c, nil
}

// Criterion: While logins by device passwords go on in three protocols, 10 reloads, also with changed providers, and 3 upgrades fail none of them, end no session, lose no device, and request no more tokens than a slot needs for each change of the provider and for each new process.
func TestReloadsAndUpgradesUnderLoadWithTokens(t *testing.T) {
	const users, comers, slots = 12, 3, 8
	f := startTokenProcesses(t, users+comers)
	protocols := []string{"imap", "pop3", "submission"}
	noop := map[string][2]string{"imap": {"n NOOP", "n OK"}, "pop3": {"NOOP", "+OK"}, "submission": {"NOOP", "250"}}
	sessions := map[string][]*visit{}
	for user := range users {
		for _, protocol := range protocols {
			c, err := f.logIn(protocol, user)
			if err != nil {
				t.Fatalf("%s of u%d: %v", protocol, user, err)
			}
			t.Cleanup(func() { _ = c.Close() })
			sessions[protocol] = append(sessions[protocol], c)
		}
	}

	var succeeded atomic.Int64
	var coming sync.WaitGroup
	end := make(chan struct{})
	for i := range comers {
		for _, protocol := range protocols {
			coming.Go(func() {
				for n := 0; ; n++ {
					select {
					case <-end:
						return
					default:
					}
					c, err := f.logIn(protocol, users+i)
					if c != nil {
						_ = c.wants(map[string]string{"imap": "a LOGOUT", "pop3": "QUIT", "submission": "QUIT"}[protocol], "")
						_ = c.Close()
					}
					if err != nil {
						t.Errorf("login %d by %s: %v", n, protocol, err)
						return
					}
					succeeded.Add(1)
				}
			})
		}
	}
	stop := sync.OnceFunc(func() { close(end); coming.Wait() })
	defer stop()

	changed, upgrades := 0, 0
	for round := range 10 {
		if round%2 == 1 { // the provider is another one
			changed++
			body := strings.Replace(f.body, "scope: mail,", fmt.Sprintf("scope: mail%d,", round), 1)
			if err := os.WriteFile(f.config, []byte(body), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		f.change(t, "reload")
		before := succeeded.Load()
		within(t, patience, "logins go on", func() bool { return succeeded.Load() >= before+30 || t.Failed() })
		if round%3 == 2 {
			upgrades++
			f.change(t, "upgrade")
			before := succeeded.Load()
			within(t, patience, "logins go on", func() bool { return succeeded.Load() >= before+30 || t.Failed() })
		}
	}
	stop()
	for protocol, all := range sessions {
		for user, c := range all {
			if err := c.wants(noop[protocol][0], noop[protocol][1]); err != nil {
				t.Errorf("the %s session of u%d: %v", protocol, user, err)
			}
		}
	}
	most := slots * (1 + changed + upgrades)
	requests := len(f.oauth.Requests())
	t.Logf("%d logins in %d reloads (%d with another provider) and %d upgrades: %d requests for tokens, at most %d expected", succeeded.Load(), 10, changed, upgrades, requests, most)
	if requests > most {
		t.Errorf("%d requests for tokens, want at most %d", requests, most)
	}
	out, err := f.say("password", "list", "--json")
	if n := strings.Count(out, `"name":"phone"`); err != nil || n != users+comers {
		t.Errorf("%d devices, %v; want %d", n, err, users+comers)
	}
	out, err = f.say("sessions", "--json")
	if err != nil {
		t.Fatalf("sessions: %v\n%s", err, out)
	}
	withDevice := 0
	for line := range strings.Lines(out) {
		var s service.Session
		if err := json.Unmarshal([]byte(line), &s); err != nil {
			t.Fatal(err)
		}
		if s.Device != "" {
			withDevice++
		}
	}
	if withDevice < users*len(protocols) {
		t.Errorf("%d sessions with a device are listed, want %d:\n%s", withDevice, users*len(protocols), out)
	}
	for _, all := range sessions {
		for _, c := range all {
			_ = c.Close()
		}
	}
	f.wantEnded(t)
	if n := leaked(f.printed(t)); n != 0 {
		t.Errorf("the log has %d secrets", n)
	}
	if err := filepath.WalkDir(filepath.Join(filepath.Dir(f.config), "state"), func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		octets, err := os.ReadFile(path)
		if leaked(string(octets)) != 0 {
			t.Errorf("%s has a secret", d.Name())
		}
		return err
	}); err != nil {
		t.Error(err)
	}
}

// Criterion: A device password is shown once; it, the application's secret and the tokens are in no file of state.path, backup, export, list, answer of a command, metric or line of the log.
func TestSecretsOfTokenBackendsAreNowhere(t *testing.T) {
	f := startTokenProcesses(t, 2)
	f.behind.Refuse(func(_, message string) string {
		octets, _ := base64.StdEncoding.DecodeString(message)
		_, rest, _ := strings.Cut(string(octets), "auth=Bearer ")
		token, _, _ := strings.Cut(rest, "\x01")
		keepSecret(token[:26]) // of a kilobyte and a half
		return ""
	})
	for _, protocol := range []string{"imap", "pop3", "submission"} {
		c, err := f.logIn(protocol, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close() }()
	}
	wrong := "guess" + newSecret()
	right := f.passwords[1]
	f.passwords[1] = wrong
	if _, err := f.logIn("imap", 1); err == nil {
		t.Fatal("a wrong password logs in")
	}
	f.passwords[1] = right
	var id string
	for _, args := range []string{
		"status", "status --json", "sessions", "sessions --json", "password list", "password list --json u0@example.org", "account list", "account show u0@example.org",
		"account export u0@example.org", "why u0@example.org", "why u0@example.org --json", "why u1@example.org", "guard explain u0@example.org", "guard list", "provider list",
		"provider list --json", "provider check own u0@example.org", "check", "check --print", "check --probe", "report pop3", "state backup backup", "password remove u0@example.org ID",
	} {
		words := strings.Fields(strings.Replace(args, " ID", " "+id, 1))
		for i, word := range words {
			if word == "backup" && i == 2 {
				words[i] = filepath.Join(filepath.Dir(f.config), "backup")
			}
		}
		out, err := f.say(words...)
		if err != nil && !strings.HasPrefix(args, "check") && !strings.HasPrefix(args, "guard list") {
			t.Errorf("%s: %v\n%s", args, err, hidden(out))
		}
		if n := leaked(out); n != 0 {
			t.Errorf("%s shows %d secrets", args, n)
		}
		if strings.HasPrefix(args, "password list --json") {
			var d struct {
				ID string `json:"id"`
			}
			if err := json.Unmarshal([]byte(out), &d); err != nil {
				t.Fatal(err)
			}
			id = d.ID
		}
	}
	_, metrics := f.scrape(t)
	for where, text := range map[string]string{"the log": f.printed(t), "the metrics": metrics} {
		if n := leaked(text); n != 0 || len(text) < 100 {
			t.Errorf("%s of %d octets has %d secrets", where, len(text), n)
		}
	}
	files := 0
	for _, dir := range []string{"state", "backup"} {
		if err := filepath.WalkDir(filepath.Join(filepath.Dir(f.config), dir), func(path string, d os.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			files++
			octets, err := os.ReadFile(path)
			if leaked(string(octets)) != 0 {
				t.Errorf("%s has a secret", path)
			}
			return err
		}); err != nil {
			t.Error(err)
		}
	}
	if files < 3 {
		t.Errorf("%d files were looked at", files)
	}
}
