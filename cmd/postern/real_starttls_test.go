package main

import (
	"fmt"
	"strings"
	"testing"

	"postern/proxy/proxytest"
)

// oldPorts are listeners as an operator still has them for old clients, and
// those that only say why nothing works on them.
var oldPorts = []string{
	"protocol: imap, name: imap-143, tls: starttls",
	"protocol: pop3, name: pop3-110, tls: starttls",
	"protocol: submission, name: submission-587, tls: starttls",
	"protocol: imap, name: imap-refuse, tls: refuse",
	"protocol: pop3, name: pop3-refuse, tls: refuse",
	"protocol: submission, name: submission-refuse, tls: refuse",
}

const plaintextText = "Use port 995 with SSL/TLS, see https://example.org/mail"

// withOldPorts starts a Postern with the old ports in front of the stage.
func withOldPorts(t *testing.T, programs ...string) (*stage, *postern) {
	t.Helper()
	s := open(t, programs...)
	return s, launch(t, oldPorts, []string{
		"main:",
		fmt.Sprintf("  imap: {address: %q, tls: none}", s.backend.IMAP),
		fmt.Sprintf("  submission: {address: %q, tls: none}", s.postfix.SMTP),
	}, "texts: {plaintext: \""+plaintextText+"\"}\n")
}

// Criterion: curl fetches by IMAP and POP3 and sends by submission on the ports
// with STARTTLS.
func TestCurlUsesSTARTTLS(t *testing.T) {
	s, p := withOldPorts(t, "curl")
	u, dir := s.user(t), t.TempDir()
	s.deliver(t, u, "one", "two")
	curl := func(args ...string) string {
		t.Helper()
		return run(t, dir, nil, append([]string{"curl", "--silent", "--show-error", "--ssl-reqd", "--cacert", p.ca, "--user", u.name + ":" + u.password}, args...))
	}
	imap, pop3 := "imap://localhost:"+port(t, p.at(t, "imap-143")), "pop3://localhost:"+port(t, p.at(t, "pop3-110"))
	if got, want := curl(imap+"/INBOX;MAILINDEX=2"), mail(u, "two"); got != want {
		t.Errorf("by IMAP: %q, want %q", got, want)
	}
	if got, want := curl(pop3+"/1"), mail(u, "one"); got != want {
		t.Errorf("by POP3: %q, want %q", got, want)
	}
	message := file(t, dir, "message", mail(u, "sent"))
	curl("smtp://localhost:"+port(t, p.at(t, "submission-587")), "--mail-from", u.address, "--mail-rcpt", u.address, "--upload-file", message)
	s.wantSent(t, u, "one", "sent", "two")
	wantTLS(t, p, u, 3)
}

// wantTLS checks that n sessions of u have ended, all under TLS.
func wantTLS(t *testing.T, p *postern, u user, n int) {
	t.Helper()
	within(t, patience, "the sessions have ended", func() bool { return len(p.ends(t, u)) == n })
	for _, l := range p.ends(t, u) {
		if !strings.HasPrefix(l.text("tls"), "TLS 1.") {
			t.Errorf("a session ended so: %v, want TLS", l)
		}
	}
}

// Criterion: fetchmail, mutt and swaks begin TLS with STLS and STARTTLS, and do
// their work.
func TestMailProgramsUseSTARTTLS(t *testing.T) {
	s, p := withOldPorts(t, "fetchmail", "mutt", "script", "swaks")
	u, dir := s.user(t), t.TempDir()
	message := file(t, dir, "message", strings.TrimSuffix(mail(u, "one"), "\r\n")) // swaks adds one
	run(t, dir, nil, []string{"swaks", "--server", "localhost", "--port", port(t, p.at(t, "submission-587")), "-tls",
		"--tls-verify", "--tls-ca-path", p.ca, "--helo", "client.example.net", "--auth", "PLAIN", "--auth-user", u.name,
		"--auth-password", u.password, "--from", u.address, "--to", u.address, "--data", "@" + message, "--hide-all"})
	s.wantSent(t, u, "one")
	s.deliver(t, u, "two", "three")

	mutt(t, dir, `
set ssl_ca_certificates_file="`+p.ca+`" ssl_starttls=yes ssl_force_tls=yes
set imap_pass="`+u.password+`"
`, "imap://"+u.name+"@localhost:"+port(t, p.at(t, "imap-143"))+"/INBOX", readAndDelete(dir))
	wantSubjects(t, "copied", sorted(subjects(append(files(t, dir+"/got/new/*"), files(t, dir+"/got/cur/*")...))), "one", "two")
	wantSubjects(t, "left", sorted(s.stored(t, u)), "one", "three")

	mkdir(t, dir, "fetched")
	run(t, dir, nil, []string{"fetchmail", "--nosyslog", "--idfile", dir + "/ids", "--pidfile", dir + "/pid", "--fetchmailrc", file(t, dir, "fetchmailrc", `
poll localhost with protocol POP3 service `+port(t, p.at(t, "pop3-110"))+`:
  user "`+u.name+`" password "`+u.password+`"
  sslproto "TLS1.2+" sslcertck sslcertfile "`+p.ca+`"
  fetchall no rewrite no dropdelivered
  mda "cat > $(mktemp `+dir+`/fetched/XXXXXX)"
`)})
	wantSubjects(t, "fetched", sorted(subjects(files(t, dir+"/fetched/*"))), "one", "three")
	wantSubjects(t, "left", s.stored(t, u))
	wantTLS(t, p, u, 3)
}

// Criterion: openssl's STARTTLS for each protocol gets through, and what comes
// behind the login in one segment is answered in order.
func TestOpenSSLUsesSTARTTLS(t *testing.T) {
	s, p := withOldPorts(t, "openssl")
	u := s.user(t)
	s.deliver(t, u, "one")
	plain := base64Of("\x00" + u.name + "\x00" + u.password)
	for _, test := range []struct {
		protocol, listener, say string
		hear                    []string
	}{
		{"imap", "imap-143", "a CAPABILITY\nb LOGIN " + u.name + " " + u.password + "\nc SELECT INBOX\nd LOGOUT\n",
			[]string{"* CAPABILITY IMAP4rev1 ", "a OK", "b OK", "* 1 EXISTS", "c OK", "* BYE", "d OK"}},
		{"pop3", "pop3-110", "CAPA\nAUTH PLAIN " + plain + "\nSTAT\nQUIT\n", []string{"\nSASL PLAIN", "\nUIDL", "\n+OK", "\n+OK 1 ", "\n+OK"}},
		{"smtp", "submission-587", "EHLO client.example.net\nAUTH PLAIN " + plain + "\nMAIL FROM:<" + u.address + ">\nQUIT\n",
			[]string{"250-", "AUTH PLAIN", "\n235 ", "\n250 ", "\n221 "}},
	} {
		out := run(t, t.TempDir(), strings.NewReader(test.say), []string{"openssl", "s_client", "-starttls", test.protocol, "-quiet", "-crlf",
			"-CAfile", p.ca, "-verify_return_error", "-verify_hostname", "localhost", "-connect", p.at(t, test.listener)})
		_, under, _ := strings.Cut(out, test.hear[0]) // openssl prints some of what came before TLS
		rest := out
		for _, want := range test.hear {
			i := strings.Index(rest, want)
			if i < 0 {
				t.Fatalf("%s: openssl prints %s; want in it, in this order, %q", test.protocol, hidden(out), test.hear)
			}
			rest = rest[i+len(want):]
		}
		for _, never := range []string{"STARTTLS", "STLS", "LOGINDISABLED"} {
			if strings.Contains(under, never) {
				t.Errorf("%s: under TLS there is %s: %s", test.protocol, never, hidden(under))
			}
		}
	}
	wantTLS(t, p, u, 3)
}

// Criterion: A client without TLS is refused in the words of its protocol,
// counted and written down, no server behind hears of it, and its password is
// in no log.
func TestPasswordsInTheClearAreRefused(t *testing.T) {
	s, p := withOldPorts(t, "curl", "fetchmail", "swaks")
	u, dir := s.user(t), t.TempDir()
	s.deliver(t, u, "one")
	plain := base64Of("\x00" + u.name + "\x00" + u.password)
	for _, test := range []struct{ listener, script string }{
		{"imap-143", "S: \\* OK [CAPABILITY * STARTTLS LOGINDISABLED*] *\nC: a LOGIN " + u.name + " " + u.password + "\nS: a NO [PRIVACYREQUIRED] * (session *)\n" +
			"C: b AUTHENTICATE PLAIN " + plain + "\nS: b NO [PRIVACYREQUIRED] * (session *)\nC: c NOOP\nS: c OK *"},
		{"pop3-110", "S: +OK *\nC: USER " + u.name + "\nS: -ERR [AUTH] * (session *)\nC: PASS " + u.password + "\nS: -ERR *\n" +
			"C: AUTH PLAIN " + plain + "\nS: -ERR [AUTH] * (session *)"},
		{"submission-587", "S: 220 *\nC: HELO client.example.net\nS: 250 *\nC: AUTH PLAIN " + plain + "\nS: 538 5.7.11 * (session *)\n" +
			"C: MAIL FROM:<" + u.address + ">\nS: 530 5.7.0 *"},
		{"imap-refuse", `S: \* BYE ` + plaintextText + " (session *)\nS: <EOF>"},
		{"pop3-refuse", "S: -ERR " + plaintextText + " (session *)\nS: <EOF>"},
		{"submission-refuse", "S: 554 5.7.0 " + plaintextText + " (session *)\nS: <EOF>"},
	} {
		t.Logf("%s:", test.listener)
		conn := dial(t, p.at(t, test.listener))
		proxytest.Transcript(t, conn, test.script)
		_ = conn.Close()
	}
	said := func(want string, args []string, statuses ...int) {
		t.Helper()
		if out := run(t, dir, nil, args, statuses...); !strings.Contains(out, want) {
			t.Errorf("%s prints %s; want %q in it", args[0], hidden(out), want)
		}
	}
	curl := func(scheme, listener string) []string {
		return []string{"curl", "--verbose", "--silent", "--show-error", "--user", u.name + ":" + u.password, scheme + "://localhost:" + port(t, p.at(t, listener))}
	}
	const weirdReply, loginDenied = 8, 67
	said("LOGINDISABLED", curl("imap", "imap-143"), loginDenied)
	said("STLS", curl("pop3", "pop3-110"), loginDenied)
	said(plaintextText, curl("imap", "imap-refuse"), weirdReply)
	said(plaintextText, curl("pop3", "pop3-refuse"), weirdReply)
	const noAuth = 28
	swaks := []string{"swaks", "--server", "localhost", "--port", port(t, p.at(t, "submission-587")), "--helo", "client.example.net", "--auth", "PLAIN",
		"--auth-user", u.name, "--auth-password", u.password, "--from", u.address, "--to", u.address}
	said("STARTTLS", swaks, noAuth)
	const fetchmailAuth, fetchmailProtocol = 3, 4
	for listener, want := range map[string]string{"pop3-110": "-ERR [AUTH] ", "pop3-refuse": plaintextText} {
		rc := file(t, dir, "fetchmailrc", `
poll localhost with protocol POP3 service `+port(t, p.at(t, listener))+` auth password:
  user "`+u.name+`" password "`+u.password+`"
  sslproto ""
  mda "cat"
`)
		said(want, []string{"fetchmail", "-v", "-v", "--nosyslog", "--fetchmailrc", rc, "--idfile", dir + "/ids", "--pidfile", dir + "/pid"}, fetchmailAuth, fetchmailProtocol)
	}

	refused := p.logged(t, "login refused")
	var told int
	for _, l := range refused {
		if l.text("reason") == "plaintext" && l.text("account_hash")+l.text("account") != "" {
			told++
		}
	}
	if told < 5 {
		t.Errorf("%d refusals are in the log with the account, want at least the 5 of the transcripts: %v", told, refused)
	}
	values, _ := p.scrape(t)
	for series, least := range map[string]string{
		`postern_auth_attempts_total{mechanism="login_command",protocol="imap",result="tls_required"}`: "1",
		`postern_auth_attempts_total{mechanism="plain",protocol="imap",result="tls_required"}`:         "1",
		`postern_auth_attempts_total{mechanism="plain",protocol="pop3",result="tls_required"}`:         "1",
		`postern_auth_attempts_total{mechanism="plain",protocol="submission",result="tls_required"}`:   "1",
	} {
		if got := values[series]; got != least {
			t.Errorf("%s = %s, want %s", series, got, least)
		}
	}
	for _, log := range []string{p.log, s.backend.Log, s.postfix.Log} {
		if n := leaked(readLog(t, log)); n > 0 {
			t.Errorf("%d passwords in %s", n, log)
		}
	}
	if log := readLog(t, s.backend.Log); strings.Contains(log, "<"+u.name+">") {
		t.Error("Dovecot has heard of the user")
	}
}
