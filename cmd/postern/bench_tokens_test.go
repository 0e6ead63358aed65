package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"postern/cmd/postern/internal/stored"
	"postern/proxy/memserver"
	"postern/proxy/proxytest"
)

// cpu returns the time that a process has run so far, in user mode and in the kernel. Its
// resolution is 10 ms.
func cpu(t testing.TB, pid int) time.Duration {
	t.Helper()
	octets, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Skip(err)
	}
	fields := strings.Fields(string(octets[strings.LastIndexByte(string(octets), ')')+1:]))
	const user, system, ticks = 11, 12, 100 // proc(5); a second has 100 ticks on every Linux
	ran := time.Duration(0)
	for _, i := range []int{user, system} {
		n, err := strconv.Atoi(fields[i])
		if err != nil {
			t.Fatal(err)
		}
		ran += time.Duration(n) * time.Second / ticks
	}
	return ran
}

// BenchmarkLoginWithToken compares the CPU of Postern for a login with a device password and a
// cached token with that for a login whose password the server checks. Each iteration is
// 500 logins of each by each protocol, in turn. A token has 1,426 octets. The result is the
// ratio.
func BenchmarkLoginWithToken(b *testing.B) {
	b.Run("scripted", func(b *testing.B) {
		password := newSecret()
		m := memserver.New(memserver.Options{Accounts: []memserver.Account{{User: anna, Password: password}}})
		b.Cleanup(func() { _ = m.Close() })
		imap, err := serveInMemory(m.ServeIMAP)
		if err != nil {
			b.Fatal(err)
		}
		submission, err := serveInMemory(m.ServeSMTP)
		if err != nil {
			b.Fatal(err)
		}
		secret := newSecret()
		oauth := proxytest.StartOAuth(b, map[string]proxytest.OAuthClient{"copier": {Secret: secret}})
		servers := func(o *proxytest.OAuth) string {
			s := proxytest.StartTokenServers(b, o, imap, submission, func(string) string { return password })
			return fmt.Sprintf("imap: {address: %q, tls: none}, submission: {address: %q, tls: none}", s.IMAP, s.Submission)
		}
		compareLogins(b, oauth, secret, servers(oauth), servers(nil), password, "imap", "pop3", "submission")
	})
	b.Run("Dovecot", func(b *testing.B) {
		proxytest.Need(b, "dovecot")
		password, secret := newSecret(), newSecret()
		oauth := proxytest.StartOAuth(b, map[string]proxytest.OAuthClient{"copier": {Secret: secret}})
		tokens := proxytest.StartDovecot(b, proxytest.DovecotOptions{Users: map[string]string{anna: ""}, OAuth: oauth, Tenant: true, Config: quick})
		passwords := proxytest.StartDovecot(b, proxytest.DovecotOptions{Users: map[string]string{anna: password}, Config: quick})
		servers := func(d *proxytest.Dovecot) string {
			return fmt.Sprintf("imap: {address: %q, ca: %q, server_name: localhost}", d.IMAPS, d.CA)
		}
		compareLogins(b, oauth, secret, servers(tokens), servers(passwords), password, "imap", "pop3")
	})
}

// compareLogins reports what logins cost at servers that take tokens and at those that take
// the password.
func compareLogins(b *testing.B, oauth *proxytest.OAuth, clientSecret, takeTokens, takePasswords, password string, protocols ...string) {
	const logins, quantum = 500, 100
	dir := b.TempDir()
	key := base64Of(newSecret()[:16] + newSecret()[:16])
	var listeners []string
	for _, protocol := range protocols {
		listeners = append(listeners, "protocol: "+protocol)
	}
	start := func(servers, more string) *postern {
		name := strconv.Itoa(len(more))
		p := launch(b, listeners, []string{"main: {" + servers + "}"}, "trusted_networks: [127.0.0.0/8]\n"+
			fmt.Sprintf("state: {path: %q, key_file: %q}\n", filepath.Join(dir, name), file(b, dir, name+".key", key))+more)
		run(b, dir, nil, []string{"postern", "log-level", "info", "--config", p.cmd.Args[len(p.cmd.Args)-1]})
		return p
	}
	with := start("token: own, "+takeTokens, fmt.Sprintf(`
providers: {own: {kind: oauth, token_url: %q, scope: mail, client_id: copier, client_secret_file: %q, domains: [example.org]}}
passwords: {devices: true}
`, oauth.TokenURL, file(b, dir, "secret", clientSecret)))
	without := start(takePasswords, "")
	var made stored.MadeDevice
	out := run(b, dir, nil, []string{"postern", "password", "add", anna, "--name", "bench", "--json", "--config", with.cmd.Args[len(with.cmd.Args)-1]})
	if err := json.Unmarshal([]byte(out), &made); err != nil {
		b.Fatal(err)
	}
	keepSecret(made.Password)
	pair := []struct {
		*postern
		secret    string
		addresses map[string]string
	}{{with, made.Password, map[string]string{}}, {without, password, map[string]string{}}}
	for _, p := range pair {
		for _, protocol := range protocols {
			p.addresses[protocol] = p.at(b, protocol)
		}
	}
	logIn := func(i int, protocol string) {
		plain := base64Of("\x00" + anna + "\x00" + pair[i].secret)
		lines := map[string][]string{
			"imap":       {"a AUTHENTICATE PLAIN " + plain, "a OK", "b LOGOUT", "* BYE"},
			"pop3":       {"AUTH PLAIN " + plain, "+OK", "QUIT", "+OK"},
			"submission": {"EHLO client.example", "250 ", "AUTH PLAIN " + plain, "235 ", "QUIT", "221"},
		}[protocol]
		c := &visit{Conn: dialTLS(b, pair[i].addresses[protocol], pair[i].ca)}
		defer func() { _ = c.Close() }()
		c.in = bufio.NewReader(c)
		if err := c.wants("", ""); err != nil {
			b.Fatal(err)
		}
		for ; len(lines) > 0; lines = lines[2:] {
			if err := c.wants(lines[0], lines[1]); err != nil {
				b.Fatal(err)
			}
		}
	}
	for _, protocol := range protocols { // tokens, caches and pools are there before the first measurement
		for range 50 {
			logIn(0, protocol)
			logIn(1, protocol)
		}
	}
	ran := map[string]*[2]time.Duration{}
	n := 0
	for b.Loop() {
		n++
		for range logins / quantum {
			for _, protocol := range protocols {
				if ran[protocol] == nil {
					ran[protocol] = new([2]time.Duration)
				}
				for i, p := range pair {
					before := cpu(b, p.cmd.Process.Pid)
					for range quantum {
						logIn(i, protocol)
					}
					ran[protocol][i] += cpu(b, p.cmd.Process.Pid) - before
				}
			}
		}
	}
	for _, protocol := range protocols {
		each := func(i int) float64 { return float64(ran[protocol][i].Microseconds()) / float64(n*logins) }
		b.ReportMetric(each(0)/each(1), protocol+"-ratio")
		b.ReportMetric(each(0), protocol+"-us-with")
		b.ReportMetric(each(1), protocol+"-us-without")
	}
	if got := len(oauth.Requests()); got != 1 {
		b.Errorf("%d requests for tokens, want 1", got)
	}
}
