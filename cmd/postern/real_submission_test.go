package main

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"testing"

	"postern/proxy/proxytest"
)

// wantSent checks that what was sent has arrived, and its text as it was.
func (s *stage) wantSent(t testing.TB, u user, subjects ...string) {
	t.Helper()
	s.arrived(t, u, len(subjects))
	wantSubjects(t, "arrived", sorted(s.stored(t, u)), subjects...)
}

// Criterion: swaks sends with AUTH PLAIN and LOGIN, pipelined or not, a text of
// 8 bits with dots in it, and it arrives as it was.
func TestSwaksSends(t *testing.T) {
	s := open(t, "swaks")
	u, dir := s.user(t), t.TempDir()
	swaks := func(subject string, args ...string) string {
		t.Helper()
		message := file(t, dir, subject, strings.TrimSuffix(mail(u, subject), "\r\n")) // swaks adds one
		return run(t, dir, nil, append([]string{"swaks", "--server", "localhost", "--port", port(t, s.smtp), "--tls-on-connect",
			"--tls-verify", "--tls-ca-path", s.ca, "--helo", "client.example.net", "--auth-user", u.name, "--auth-password", u.password,
			"--from", u.address, "--to", u.address, "--data", "@" + message, "--hide-all"}, args...))
	}
	swaks("login", "--auth", "LOGIN")
	swaks("pipelined", "--auth", "PLAIN", "--pipeline")
	swaks("plain", "--auth", "PLAIN")
	s.wantSent(t, u, "login", "pipelined", "plain")
}

// Criterion: swaks is told a wrong password in the words of RFC 4954, and sends
// nothing without AUTH.
func TestSwaksIsRefused(t *testing.T) {
	s := open(t, "swaks")
	u, dir := s.user(t), t.TempDir()
	swaks := func(want string, status int, args ...string) {
		t.Helper()
		out := run(t, dir, nil, append([]string{"swaks", "--server", "localhost", "--port", port(t, s.smtp), "--tls-on-connect",
			"--helo", "client.example.net", "--from", u.address, "--to", u.address}, args...), status)
		if !strings.Contains(out, want) {
			t.Errorf("swaks prints %s; want %q in it", hidden(out), want)
		}
	}
	const authFailed, mailFailed = 28, 23
	swaks("535 5.7.8 ", authFailed, "--auth", "PLAIN", "--auth-user", u.name, "--auth-password", newSecret())
	swaks("530 5.7.0 ", mailFailed)
}

// Criterion: Python's smtplib sends, twice in a session, and is told of an
// unknown recipient by the server behind.
func TestSmtplibSends(t *testing.T) {
	s := open(t, "/usr/bin/python3")
	u, dir := s.user(t), t.TempDir()
	message := file(t, dir, "message", mail(u, "sent"))
	s.python(t, "smtp.py", u, "SMTP="+port(t, s.smtp), "MESSAGE="+message)
	s.wantSent(t, u, "sent", "sent")
}

// Criterion: curl sends by SMTPS.
func TestCurlSends(t *testing.T) {
	s := open(t, "curl")
	u, dir := s.user(t), t.TempDir()
	message := file(t, dir, "message", mail(u, "sent"))
	run(t, dir, nil, []string{"curl", "--silent", "--show-error", "--cacert", s.ca, "--user", u.name + ":" + u.password,
		"smtps://localhost:" + port(t, s.smtp), "--mail-from", u.address, "--mail-rcpt", u.address, "--upload-file", message})
	s.wantSent(t, u, "sent")
}

// Criterion: mutt sends by SMTPS.
func TestMuttSends(t *testing.T) {
	s := open(t, "mutt")
	u, dir := s.user(t), t.TempDir()
	rc := file(t, dir, "muttrc", `
set ssl_ca_certificates_file="`+s.ca+`" certificate_file="" copy=no
set from="`+u.address+`" envelope_from=yes hostname=client.example.net
set smtp_url="smtps://`+u.name+`@localhost:`+port(t, s.smtp)+`/" smtp_pass="`+u.password+`"
set charset=utf-8 send_charset=utf-8 allow_8bit=yes
`)
	run(t, dir, strings.NewReader(strings.ReplaceAll(text, "\r\n", "\n")), []string{"mutt", "-n", "-F", rc, "-s", "sent", "--", u.address})
	s.wantSent(t, u, "sent")
}

// Criterion: What a logged-in client says beyond the commands of submission
// never reaches the server, and a message of 30 MB does.
func TestSubmissionPassesMessagesAndNothingElse(t *testing.T) {
	s := open(t)
	u := s.user(t)
	conn := dialTLS(t, s.smtp, s.ca)
	proxytest.Transcript(t, conn, `
		S: 220 *
		C: EHLO client.example.net
	`)
	offered := strings.Join(until(t, conn, "250 "), "\n")
	for _, extension := range []string{"SIZE", "8BITMIME", "PIPELINING", "ENHANCEDSTATUSCODES", "AUTH PLAIN LOGIN"} {
		if !strings.Contains(offered, extension) {
			t.Errorf("EHLO offers %s, want %s in it", offered, extension)
		}
	}
	for _, extension := range []string{"STARTTLS", "XCLIENT", "ETRN", "VRFY"} {
		if strings.Contains(offered, extension) {
			t.Errorf("EHLO offers %s, want no %s", offered, extension)
		}
	}
	proxytest.Transcript(t, conn, `
		C: AUTH PLAIN `+base64Of("\x00"+u.name+"\x00"+u.password)+`
		S: 235 *
		C: XCLIENT LOGIN=boss
		S: 5*
		C: MAIL FROM:<`+u.address+`>
		S: 250 *
		C: RCPT TO:<`+u.address+`>
		S: 250 *
		C: DATA
		S: 354 *
	`)
	var big []byte
	for _, m := range proxytest.HostileMessages() {
		if len(m.Raw) > 20<<20 {
			big = m.Raw
		}
	}
	if _, err := conn.Write(append(big, ".\r\n"...)); err != nil {
		t.Fatal(err)
	}
	proxytest.Transcript(t, conn, `
		S: 250 *
		C: QUIT
		S: 221 *
		S: <EOF>
	`)
	_, body, _ := bytes.Cut(big, []byte("\r\n\r\n"))
	got := s.arrived(t, u, 1)[0]
	if !bytes.HasSuffix(got, bytes.ReplaceAll(body, []byte("\r\n"), []byte("\n"))) {
		t.Errorf("%d octets have arrived and do not end in the %d that were sent", len(got), len(body))
	}
	if log, err := os.ReadFile(s.postfix.Log); err != nil || bytes.Contains(log, []byte("boss")) {
		t.Errorf("Postfix has heard of the boss (%v)", err)
	}
}

// Criterion: A dot within bare line feeds does not end a message: what follows
// it is text, not commands.
func TestSubmissionIsNotSmuggledThrough(t *testing.T) {
	s := open(t)
	u := s.user(t)
	for i, end := range []string{`\n.\n`, `\r.\r`, `\n.\r\n`, `\r\n.\n`, `\r.\r\n`, `\r\n.\r`} {
		proxytest.Transcript(t, dialTLS(t, s.smtp, s.ca), fmt.Sprintf(`
			S: 220 *
			C: HELO client.example.net
			S: 250 *
			C: AUTH PLAIN %s
			S: 235 *
			C: MAIL FROM:<%s>
			S: 250 *
			C: RCPT TO:<%[2]s>
			S: 250 *
			C: DATA
			S: 354 *
			C- Subject: one\r\n\r\nbefore%sMAIL FROM:<boss@example.org>\r\n
			C- RCPT TO:<%[2]s>\r\nDATA\r\nSubject: smuggled\r\n\r\n\r\n.\r\n
			S: 250 *
			C: QUIT
			S: 221 *
			S: <EOF>
		`, base64Of("\x00"+u.name+"\x00"+u.password), u.address, end))
		for _, m := range s.arrived(t, u, i+1) {
			if bytes.HasPrefix(m, []byte("Return-Path: <boss")) || !bytes.Contains(m, []byte("\nSubject: one\n")) {
				t.Errorf("after %s this has arrived: %s", end, m)
			}
		}
	}
	if got := len(s.backend.Stored(t, u.name)); got != 6 {
		t.Errorf("%d messages have arrived, want 6", got)
	}
}

// Criterion: A message whose sender leaves before its end is not delivered.
func TestSubmissionCutWithinAMessageDeliversNothing(t *testing.T) {
	s := open(t)
	u := s.user(t)
	begin := lines("S: 220 *", "C: HELO client.example.net", "S: 250 *", "C: AUTH PLAIN "+base64Of("\x00"+u.name+"\x00"+u.password), "S: 235 *",
		"C: MAIL FROM:<"+u.address+">", "S: 250 *", "C: RCPT TO:<"+u.address+">", "S: 250 *", "C: DATA", "S: 354 *")
	half := "Subject: half\r\n\r\n" + strings.Repeat("x\r\n", 50_000)
	for _, leave := range []func(*tls.Conn) error{
		func(c *tls.Conn) error {
			return errors.Join(c.NetConn().(*net.TCPConn).SetLinger(0), c.NetConn().Close())
		},
		(*tls.Conn).Close,
		(*tls.Conn).CloseWrite,
	} {
		conn := dialTLS(t, s.smtp, s.ca)
		proxytest.Transcript(t, conn, begin)
		send(t, conn, half)
		if err := leave(conn); err != nil {
			t.Fatal(err)
		}
	}
	within(t, patience, "the three sessions have ended", func() bool { return len(s.ends(t, u)) == 3 })
	for _, l := range s.ends(t, u) {
		if l.text("submitted") != "0" {
			t.Errorf("a session ended so: %v, want nothing submitted", l)
		}
	}
	talk(t, s.smtp, s.ca, lines(begin, "C: Subject: whole", "C: ", "C: .", "S: 250 *", "C: QUIT", "S: 221 *"))
	for _, m := range s.arrived(t, u, 1) {
		if bytes.Contains(m, []byte("Subject: half")) {
			t.Error("half a message has been delivered")
		}
	}
}
