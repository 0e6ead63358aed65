package main

import (
	"encoding/json"
	"os"
	"slices"
	"strings"
	"testing"

	"postern/cmd/postern/internal/stored"
	"postern/proxy/proxytest"
)

// Criterion: In front of a Dovecot and a Postfix that only take tokens, mpop, getmail, mutt, curl, swaks, msmtp and Python's imaplib fetch and send with device passwords: IMAP LOGIN and AUTHENTICATE PLAIN, POP3 USER and AUTH PLAIN, SMTP AUTH PLAIN and LOGIN.
// Criterion: A device password works for its protocols alone; a device that is removed sends nothing any more, and the others go on.
func TestOldProgramsInFrontOfServersThatOnlyTakeTokens(t *testing.T) {
	proxytest.Need(t, "mpop", "getmail", "mutt", "script", "curl", "swaks", "msmtp", "python3", "dovecot", "/usr/lib/dovecot/imap", "/usr/lib/postfix/sbin/master")
	if os.Getuid() != 0 && os.Getenv("POSTERN_ALL") != "1" {
		t.Skip("needs root: the mail servers change their user")
	}
	t.Parallel()
	s := openTokenStage(t)
	u, dir := user{name: anna, address: anna}, t.TempDir()
	add := func(args ...string) stored.MadeDevice {
		t.Helper()
		var made stored.MadeDevice
		out := run(t, dir, nil, slices.Concat([]string{"postern", "password", "add", "-c", s.config, anna, "--json"}, args))
		if err := json.Unmarshal([]byte(out), &made); err != nil {
			t.Fatal(err)
		}
		keepSecret(made.Password)
		return made
	}
	panel, reader := add("--name", "old panel", "--length", "short"), add("--name", "mail program")
	copier := add("--name", "copier", "--protocols", "submission", "--networks", "127.0.0.0/8", "--expires", "2099-12-31")
	for _, subject := range []string{"one", "two"} {
		s.dovecot.Deliver(t, anna, []byte(mail(u, subject)))
	}

	curl := func(password string, status int) string {
		t.Helper()
		return run(t, dir, nil, []string{
			"curl", "--silent", "--show-error", "--cacert", s.ca, "--user", anna + ":" + password,
			"imaps://localhost:" + port(t, s.imap) + "/INBOX;MAILINDEX=1",
		}, status)
	}
	if got, want := curl(panel.Password, 0), mail(u, "one"); got != want { // by AUTHENTICATE PLAIN
		t.Errorf("by IMAP: %q, want %q", got, want)
	}
	const loginDenied = 67
	curl(copier.Password, loginDenied)
	if refused := s.logged(t, "login refused"); len(refused) != 1 || refused[0].text("reason") != "suspended" || !strings.Contains(refused[0].text("err"), "device "+copier.ID+": not for imap") {
		t.Errorf("the log has %v", refused)
	}
	run(t, dir, nil, []string{"python3", "-c", `import imaplib, ssl, sys
m = imaplib.IMAP4_SSL("localhost", int(sys.argv[1]), ssl_context=ssl.create_default_context(cafile=sys.argv[2]))
m.login(sys.argv[3], sys.argv[4])
m.logout()`, port(t, s.imap), s.ca, anna, strings.ToUpper(panel.Password)}) // by LOGIN

	u.password = reader.Password
	for _, auth := range []string{"user", "plain"} {
		d := t.TempDir()
		run(t, d, nil, append(mpop(t, d, s.pop3, s.ca, u, auth), "--keep=on"))
		wantSubjects(t, "mpop with "+auth, sorted(subjects(files(t, d+"/new/*"))), "one", "two")
	}
	d := t.TempDir()
	run(t, d, nil, getmail(t, d, s.pop3, s.ca, u))
	wantSubjects(t, "getmail", sorted(subjects(files(t, d+"/new/*"))), "one", "two")
	d = t.TempDir()
	run(t, d, nil, getmailIMAP(t, d, s.imap, s.ca, u))
	wantSubjects(t, "getmail by IMAP", sorted(subjects(files(t, d+"/new/*"))), "one", "two")
	for _, mailbox := range []string{"imaps://anna%40example.org@localhost:" + port(t, s.imap) + "/INBOX", "pops://anna%40example.org@localhost:" + port(t, s.pop3) + "/"} {
		d := t.TempDir()
		mutt(t, d, `set ssl_ca_certificates_file="`+s.ca+`" imap_pass="`+u.password+`" pop_pass="`+u.password+`"`, mailbox,
			"1<enter>1<enter><copy-message>"+d+"/got<enter>2<enter><copy-message>"+d+"/got<enter><quit>") // the first key may be lost
		wantSubjects(t, "mutt from "+mailbox, sorted(subjects(append(files(t, d+"/got/new/*"), files(t, d+"/got/cur/*")...))), "one", "two")
	}

	swaks := func(auth, subject string, status int) {
		t.Helper()
		message := file(t, dir, subject, strings.TrimSuffix(mail(u, subject), "\r\n")) // swaks adds one
		run(t, dir, nil, []string{
			"swaks", "--server", "localhost", "--port", port(t, s.smtp), "--tls-on-connect", "--tls-verify", "--tls-ca-path", s.ca,
			"--helo", "client.example.net", "--auth", auth, "--auth-user", anna, "--auth-password", copier.Password,
			"--from", anna, "--to", anna, "--data", "@" + message, "--hide-all",
		}, status)
	}
	swaks("PLAIN", "plain", 0)
	swaks("LOGIN", "login", 0)
	sender := user{name: anna, address: anna, password: copier.Password}
	for _, auth := range []string{"plain", "login"} {
		message, err := os.Open(file(t, dir, "message", mail(u, "msmtp "+auth)))
		if err != nil {
			t.Fatal(err)
		}
		run(t, dir, message, append(msmtp(t, dir, s.smtp, s.ca, sender, auth), anna))
		_ = message.Close()
	}
	rc := file(t, dir, "muttrc", `
set ssl_ca_certificates_file="`+s.ca+`" smtp_url="smtps://anna%40example.org@localhost:`+port(t, s.smtp)+`/" smtp_pass="`+copier.Password+`"
set from=`+anna+` copy=no certificate_file="" record=""
`)
	run(t, dir, nil, []string{"mutt", "-n", "-F", rc, "-s", "mutt", anna})
	within(t, patience, "what was sent arrives", func() bool { return len(s.dovecot.Stored(t, anna)) == 7 })

	run(t, dir, nil, []string{"postern", "password", "remove", "-c", s.config, anna, copier.ID})
	const authFailed = 28
	swaks("PLAIN", "removed", authFailed)
	curl(panel.Password, 0)
	list := run(t, dir, nil, []string{"postern", "password", "list", "-c", s.config})
	for _, made := range []stored.MadeDevice{panel, reader, copier} {
		if there := strings.Contains(list, made.ID); there != (made.ID != copier.ID) || strings.Contains(list, made.Password) {
			t.Errorf("the list has %s: %v, or its password", made.Name, there)
		}
	}
}
