package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"postern/cmd/postern/internal/service"
	"postern/proxy/proxytest"
)

// status returns the status of the running Postern.
func (s *tokenStage) status(t *testing.T) (st service.Status) {
	t.Helper()
	out := run(t, t.TempDir(), nil, []string{"postern", "status", "--json", "--config", s.config}, 0, int(statusAttention))
	if err := json.Unmarshal([]byte(out), &st); err != nil {
		t.Fatalf("%v\n%s", err, hidden(out))
	}
	return st
}

// refusedByPOP3 returns the answer to the password of u.
func refusedByPOP3(t *testing.T, p *postern, u user) string {
	t.Helper()
	conn := dialTLS(t, p.pop3, p.ca)
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	c := &pop3{t, bufio.NewReadWriter(bufio.NewReader(conn), bufio.NewWriter(conn))}
	c.ok()
	c.command("USER " + u.name)
	c.send("PASS " + u.password)
	return string(c.line())
}

// finding returns the text of what needs attention about a thing; "": nothing does.
func finding(st service.Status, about string) string {
	for _, f := range st.Findings {
		if strings.Contains(f.Text, about) {
			return f.Severity + ": " + f.Text + "\n" + f.Detail + "\n" + f.Next
		}
	}
	return ""
}

// Criterion: By names_file one account reads a shared mailbox of a real Dovecot and submits to a real Postfix as another one. A change of the file counts within 2 s; a broken file changes nothing, and is seen in the log, in status and in metrics.
func TestNamesFileInFrontOfRealServers(t *testing.T) {
	proxytest.Need(t, "dovecot", "curl", "swaks")
	t.Parallel()
	s := openTokenStage(t)
	u := s.device(t, "scanner@example.org")
	text, err := os.ReadFile(s.config)
	if err != nil {
		t.Fatal(err)
	}
	names := regexp.MustCompile(`names_file: "([^"]+)"`).FindStringSubmatch(string(text))[1]
	s.dovecot.Deliver(t, "shared@example.org", []byte("Subject: shared\r\n\r\n"))
	messages := func() string {
		t.Helper()
		session := loginPOP3(t, s.pop3, s.ca, u)
		defer session.command("QUIT")
		return strings.Fields(session.command("STAT"))[0]
	}
	send := func() {
		t.Helper()
		run(t, t.TempDir(), nil, []string{
			"swaks", "--server", "localhost:" + port(t, s.smtp), "--tls-on-connect", "--auth", "PLAIN", "--auth-user", u.name, "--auth-password", u.password, "--auth-hide-password",
			"--from", anna, "--to", anna,
		})
	}
	submittedAs := func(name string) int {
		t.Helper()
		log, err := os.ReadFile(s.postfix.Log)
		if err != nil {
			t.Fatal(err)
		}
		return strings.Count(string(log), "sasl_username="+name+"\n")
	}
	change := func(text string) {
		t.Helper()
		file(t, filepath.Dir(names), "names.new", text)
		if err := os.Rename(filepath.Join(filepath.Dir(names), "names.new"), names); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Second)
	}
	if got := messages(); got != "1" {
		t.Errorf("the shared mailbox has %s messages, want 1", got)
	}
	send()
	waitFor(t, "mail submitted as "+anna, func() bool { return submittedAs(anna) == 1 })

	change("scanner@example.org imap=" + anna + " submission=shared@example.org\n")
	waitFor(t, "the mail that was sent", func() bool { return len(s.dovecot.Stored(t, anna)) == 1 })
	s.dovecot.Deliver(t, anna, []byte("Subject: another\r\n\r\n"))
	if got := messages(); got != "2" {
		t.Errorf("the other mailbox has %s messages, want 2", got)
	}
	send()
	waitFor(t, "mail submitted as shared", func() bool { return submittedAs("shared@example.org") == 1 })

	change("scanner@example.org imap=shared\n")
	send()
	waitFor(t, "mail submitted as shared still", func() bool { return submittedAs("shared@example.org") == 2 })
	if got := finding(s.status(t), "names_file"); !strings.Contains(got, "backends.main.names_file has changed and was not loaded") || !strings.Contains(got, "line 1: a mailbox is an address") {
		t.Errorf("status says %q", got)
	}
	if values, _ := s.scrape(t); values[`postern_file_stale{key="backends.main.names_file"}`] != "1" {
		t.Errorf("postern_file_stale is %s", values[`postern_file_stale{key="backends.main.names_file"}`])
	}
	if n := strings.Count(s.printed(t), "file not loaded: its previous content stays in use"); n != 1 {
		t.Errorf("%d lines about the file in the log, want 1", n)
	}
	change("scanner@example.org shared@example.org\n")
	if got := finding(s.status(t), "names_file"); got != "" {
		t.Errorf("mended: %s", got)
	}
}

// Criterion: status, provider list, password list, the status page and metrics show the state and the age of providers and of device passwords, and no secret; account forget removes the device passwords of an account and ends their sessions.
func TestProvidersAndDevicesAreSeen(t *testing.T) {
	proxytest.Need(t, "dovecot", "curl")
	t.Parallel()
	s := openTokenStage(t)
	u := s.device(t, anna)
	all := func() string {
		t.Helper()
		var b strings.Builder
		for _, args := range []string{"status", "status --json", "provider list", "provider list --json", "password list", "password list --json", "account export " + anna, "check --print"} {
			b.WriteString(run(t, t.TempDir(), nil, append(append([]string{"postern"}, strings.Fields(args)...), "--config", s.config), 0, int(statusAttention)))
		}
		b.WriteString(run(t, t.TempDir(), nil, []string{"curl", "--silent", "--show-error", "http://" + s.metrics + "/", "http://" + s.metrics + "/metrics"}))
		return b.String()
	}
	expect := func(what string, lines ...string) {
		t.Helper()
		out := all()
		for _, line := range lines {
			if !strings.Contains(out, line) {
				t.Errorf("%s: nobody says %q", what, line)
			}
		}
		if n := leaked(out); n > 0 {
			t.Errorf("%s: %d secrets are shown", what, n)
		}
	}
	expect("before the first login", "own: not asked yet, 0 valid tokens", "devices: 1 of 1 account", `"state":"not asked yet"`, `<td>not asked yet<br>`, `<div><dt>device passwords</dt><dd>1</dd></div>`)
	session := loginPOP3(t, s.pop3, s.ca, u)
	session.command("STAT")
	expect("up", "own: up, ", " valid token", "the last came ", `"state":"up"`, "<td>up<br>", `postern_provider_up{provider="own"} 1`)

	s.oauth.Fail(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusUnauthorized)
		_, _ = fmt.Fprint(w, `{"error":"invalid_client"}`)
	})
	time.Sleep(11 * time.Second) // a token of 10 s is too new to be the one that was refused
	s.oauth.Revoke()
	if refused := refusedByPOP3(t, s.postern, u); !strings.HasPrefix(refused, "-ERR [SYS/TEMP]") {
		t.Errorf("with a provider that refuses the application: %s", refused)
	}
	expect("misconfigured", "own: misconfigured for ", "CRITICAL  provider own refuses Postern's application", "next: postern provider check own", `<strong class="bad">misconfigured</strong>`,
		`postern_provider_misconfigured{provider="own"} 1`, `postern_token_requests_total{provider="own",result="configuration"} 1`)

	run(t, t.TempDir(), nil, []string{"postern", "account", "forget", anna, "--yes", "--config", s.config})
	waitFor(t, "the session of a forgotten device ends", func() bool {
		values, _ := s.scrape(t)
		return values[`postern_sessions_active{protocol="pop3"}`] == "0"
	})
	if out := run(t, t.TempDir(), nil, []string{"postern", "password", "list", "--json", "--config", s.config}); strings.Contains(out, anna) {
		t.Errorf("forgotten, and listed: %s", hidden(out))
	}
	if refused := refusedByPOP3(t, s.postern, u); !strings.HasPrefix(refused, "-ERR [AUTH]") {
		t.Errorf("a forgotten device password: %s", refused)
	}
}
