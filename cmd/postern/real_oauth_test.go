package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"postern/proxy/proxytest"
)

// A tokenStage is Postern in front of a Dovecot and a Postfix that take tokens alone.
type tokenStage struct {
	*postern
	oauth   *proxytest.OAuth
	dovecot *proxytest.Dovecot
	postfix *proxytest.Postfix
	config  string
}

const anna = "anna@example.org"

func openTokenStage(t *testing.T) *tokenStage {
	t.Helper()
	return openTokenStageWith(t, "", "")
}

// openTokenStageWith is openTokenStage with more configuration of Dovecot and of the backend.
func openTokenStageWith(t *testing.T, dovecot, backend string, listeners ...string) *tokenStage {
	t.Helper()
	secret := newSecret()
	s := &tokenStage{oauth: proxytest.StartOAuth(t, map[string]proxytest.OAuthClient{"copier": {Secret: secret}})}
	users := map[string]string{anna: "", "shared@example.org": ""}
	s.dovecot = proxytest.StartDovecot(t, proxytest.DovecotOptions{Users: users, OAuth: s.oauth, Tenant: true, Config: quick + dovecot})
	s.postfix = proxytest.StartPostfix(t, proxytest.PostfixOptions{Dovecot: s.dovecot})
	dir := t.TempDir()
	key := make([]byte, 32)
	copy(key, newSecret())
	s.postern = launch(t, append([]string{"protocol: imap", "protocol: pop3", "protocol: submission"}, listeners...), []string{fmt.Sprintf(
		"main: {token: own, "+backend+" names_file: %q, imap: {address: %q, ca: %q, server_name: localhost}, submission: {address: %q, tls: starttls, ca: %q, server_name: localhost}}",
		file(t, dir, "names", "scanner@example.org imap=shared@example.org submission="+anna+"\n"),
		s.dovecot.IMAPS, s.dovecot.CA, s.postfix.SMTP, s.postfix.CA,
	)}, fmt.Sprintf(`
providers: {own: {kind: oauth, token_url: %q, scope: mail, client_id: copier, client_secret_file: %q, domains: [example.org]}}
passwords: {devices: true}
state: {path: %q, key_file: %q}
`, s.oauth.TokenURL, file(t, dir, "secret", secret), filepath.Join(dir, "state"), file(t, dir, "state.key", base64Of(string(key)))))
	s.config = s.cmd.Args[len(s.cmd.Args)-1]
	s.imap, s.pop3, s.smtp = s.at(t, "imap"), s.at(t, "pop3"), s.at(t, "submission")
	return s
}

// device makes a device password for an account.
func (s *tokenStage) device(t *testing.T, account string) user {
	t.Helper()
	var made struct {
		Password string `json:"password"`
	}
	out := run(t, t.TempDir(), nil, []string{"postern", "password", "add", account, "--name", "copier", "--json", "--config", s.config})
	if err := json.Unmarshal([]byte(out), &made); err != nil || made.Password == "" {
		t.Fatalf("postern password add: %v", err)
	}
	return user{name: account, password: keepSecret(made.Password), address: account}
}

// Criterion: A device password logs in by IMAP, POP3 and submission in front of a Dovecot and a Postfix that take tokens alone: curl, fetchmail and swaks fetch and send. A token revoked at the provider costs no failed login; without any token the refusal is temporary, a wrong password is wrong, and no secret is in the log.
func TestPasswordsInFrontOfServersThatTakeTokens(t *testing.T) {
	proxytest.Need(t, "dovecot", "curl", "fetchmail", "swaks")
	t.Parallel()
	s := openTokenStage(t)
	u := s.device(t, anna)
	dir := t.TempDir()
	curl := func(u user, statuses ...int) string {
		t.Helper()
		return run(t, dir, nil, []string{
			"curl", "--silent", "--show-error", "--verbose", "--cacert", s.ca, "--user", u.name + ":" + u.password, "imaps://localhost:" + port(t, s.imap) + "/INBOX", "-X", "NOOP",
		}, statuses...)
	}
	send := func(u user, statuses ...int) string {
		t.Helper()
		return run(t, dir, nil, []string{
			"swaks", "--server", "localhost:" + port(t, s.smtp), "--tls-on-connect", "--auth", "PLAIN", "--auth-user", u.name, "--auth-password", u.password, "--auth-hide-password",
			"--from", anna, "--to", anna, "--h-Subject", "sent",
		}, statuses...)
	}
	curl(u)
	send(u)
	fetched := func() []string { return subjects(files(t, dir+"/new/*")) }
	waitFor(t, "the mail that was sent", func() bool { return len(s.dovecot.Stored(t, anna)) == 1 })
	run(t, dir, nil, fetchmail(t, dir, s.pop3, s.ca, u, "keep"))
	if got := fetched(); len(got) != 1 || !strings.HasPrefix(got[0], "sent ") {
		t.Errorf("fetched: %q", got)
	}
	if n := len(s.oauth.Requests()); n == 0 || n > 2 { // a slot for the account
		t.Errorf("%d requests for tokens, want 1", n)
	}

	wrong := u
	wrong.password = keepSecret("k3v7-aaaa-aaaa-aaaa-aaaa-aaaa-aa")
	requests := len(s.oauth.Requests())
	if out := curl(wrong, 67); !strings.Contains(out, "AUTHENTICATIONFAILED") {
		t.Errorf("a wrong password: %s", hidden(out))
	}
	foreign := user{name: "eve@example.com", password: u.password}
	curl(foreign, 67)
	if n := len(s.oauth.Requests()); n != requests {
		t.Errorf("a wrong password makes %d requests for tokens", n-requests)
	}

	// A session that has lost its connection goes on with a token of its own.
	session := loginPOP3(t, s.pop3, s.ca, u)
	session.command("STAT")
	time.Sleep(11 * time.Second) // a token of 10 s is too new to be the one that was refused
	s.oauth.Revoke()
	s.dovecot.Doveadm(t, "kick", anna)
	session.body("RETR 1")
	session.command("QUIT")
	curl(u)

	// An own token of the client passes.
	own := keepSecret(s.oauth.Issue(anna))
	if out := run(t, dir, nil, []string{
		"curl", "--silent", "--show-error", "--verbose", "--cacert", s.ca, "--user", anna + ":", "--oauth2-bearer", own, "imaps://localhost:" + port(t, s.imap) + "/INBOX", "-X", "NOOP",
	}); strings.Contains(out, "NO [") {
		t.Errorf("a token of the client's: %s", hidden(out))
	}

	// Two mailboxes of one account.
	scanner := s.device(t, "scanner@example.org")
	s.dovecot.Deliver(t, "shared@example.org", []byte("Subject: shared\r\n\r\n"))
	shared := loginPOP3(t, s.pop3, s.ca, scanner)
	if got := shared.command("STAT"); !strings.HasPrefix(got, "1 ") {
		t.Errorf("the shared mailbox: %s", got)
	}
	shared.command("QUIT")
	send(scanner)

	// No token at all: the answer is temporary in each protocol.
	s.oauth.Fail(func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no", http.StatusInternalServerError) })
	u = s.device(t, "shared@example.org")
	s.oauth.Revoke()
	if out := curl(u, 67); !strings.Contains(out, "NO [UNAVAILABLE]") {
		t.Errorf("without a token: %s", hidden(out))
	}
	if out := send(u, 28); !strings.Contains(out, "454 4.7.0") {
		t.Errorf("without a token: %s", hidden(out))
	}
	s.oauth.Fail(nil)
	waitFor(t, "a token again", func() bool { return !strings.Contains(curl(u, 0, 67), "NO [UNAVAILABLE]") })

	if n := leaked(s.printed(t)); n != 0 {
		t.Errorf("the log has %d secrets", n)
	}
}

// Criterion: postern provider check and check --probe tell apart that there is no token, that the mail server refuses the token, and that all is right; they show no secret.
func TestProviderCheckSaysWhatIsWrong(t *testing.T) {
	proxytest.Need(t, "dovecot")
	t.Parallel()
	s := openTokenStage(t)
	check := func(status int, args ...string) string {
		t.Helper()
		return run(t, t.TempDir(), nil, append([]string{"postern", "provider", "check", "own", "--config", s.config}, args...), status)
	}
	want := func(out string, lines ...string) {
		t.Helper()
		for _, line := range lines {
			if !strings.Contains(out, line) {
				t.Errorf("no %q in\n%s", line, hidden(out))
			}
		}
		if leaked(out) > 0 {
			t.Error("the output has a secret")
		}
	}
	want(run(t, t.TempDir(), nil, []string{"postern", "provider", "list", "--config", s.config}), "PROVIDER", "own", s.oauth.TokenURL, "example.org", "main")
	want(check(0), "token: ok, from "+s.oauth.TokenURL)
	want(check(0, "scanner@example.org"), "backend main, imap as shared@example.org: ok", "backend main, submission as "+anna+": ok")
	want(check(1, "eve@example.com"), "token: no: providers.own.domains does not have the domain of eve@example.com")
	want(check(1, "nobody"), "token: no: providers.own.domains does not have the domain of nobody")
	probe := func(status int, args ...string) string {
		t.Helper()
		return run(t, t.TempDir(), nil, append([]string{"postern", "check", "--probe", "--config", s.config}, args...), status)
	}
	want(probe(0), "provider own, oauth at "+s.oauth.TokenURL, "token: ok, from "+s.oauth.TokenURL, " is valid")
	want(probe(0, "--user", "scanner@example.org"), "backend main, imap as shared@example.org: ok", "backend main, submission as "+anna+": ok")
	s.oauth.BreakIntrospection(true)
	want(probe(1, "--user", anna), "the login is refused: unavailable: ", "login of "+anna+" on backend main: not right, as reported above")
	want(check(1, anna), "token: ok", "backend main, imap as "+anna+": the login is refused: unavailable: ")
	s.oauth.BreakIntrospection(false)
	s.oauth.Fail(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusUnauthorized)
		_, _ = fmt.Fprint(w, `{"error":"invalid_client","error_codes":[7000222]}`)
	})
	want(check(1, anna), "token: no: provider own: the token endpoint answered 401 invalid_client AADSTS7000222; the secret has expired")
	want(probe(1), "AADSTS7000222; the secret has expired", "providers.own: gives no token, as reported above", "1 of the probes failed")
}

// waitFor waits until done reports true.
func waitFor(t *testing.T, what string, done func() bool) {
	t.Helper()
	for begun := time.Now(); !done(); time.Sleep(100 * time.Millisecond) {
		if time.Since(begun) > patience {
			t.Fatalf("%s: not within %v", what, patience)
		}
	}
}
