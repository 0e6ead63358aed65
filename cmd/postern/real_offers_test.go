package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"postern/proxy/proxytest"
)

// reconfigure adds to Postfix' main.cf and has it read again.
func reconfigure(t testing.TB, p *proxytest.Postfix, more string) {
	t.Helper()
	dir := filepath.Dir(p.Log)
	f, err := os.OpenFile(filepath.Join(dir, "main.cf"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(more); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	pid, err := os.ReadFile(filepath.Join(dir, "queue/pid/master.pid"))
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(pid)))
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(n, syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
}

// offers returns what a new connection to submission is offered.
func (p *postern) offers(t testing.TB) []string {
	t.Helper()
	conn := dialTLS(t, p.smtp, p.ca)
	defer func() { _ = conn.Close() }()
	proxytest.Transcript(t, conn, "S: 220 *\nC: EHLO client.example.net")
	return extensions(t, conn)
}

// extensions reads an answer to EHLO.
func extensions(t testing.TB, conn interface{ Read([]byte) (int, error) }) []string {
	t.Helper()
	var all []string
	for _, line := range until(t, conn, "250 ")[1:] {
		all = append(all, line[4:])
	}
	return all
}

// Criterion: EHLO before login offers what Postfix offers: when its
// message_size_limit is changed and CHUNKING taken away, so it does after the
// next probe, while a connection that is open keeps the list it was given and
// gets a temporary refusal.
func TestOffersFollowTheServerBehind(t *testing.T) {
	s := open(t)
	u := s.user(t)
	postfix := proxytest.StartPostfix(t, proxytest.PostfixOptions{Dovecot: s.backend, Config: "message_size_limit = 1000000\n"})
	p := launch(t, []string{"protocol: submission"}, []string{fmt.Sprintf("main: {submission: {address: %q, tls: none}}", postfix.SMTP)}, "")
	before := p.offers(t)
	for _, want := range []string{"SIZE 1000000", "CHUNKING", "8BITMIME", "SMTPUTF8", "DSN", "PIPELINING", "ENHANCEDSTATUSCODES", "AUTH PLAIN LOGIN"} {
		if !slices.Contains(before, want) {
			t.Errorf("EHLO offers %q, want %s in it", before, want)
		}
	}
	early, idle := dialTLS(t, p.smtp, p.ca), dialTLS(t, p.smtp, p.ca)
	auth := "C: AUTH PLAIN " + base64Of("\x00"+u.name+"\x00"+u.password)
	proxytest.Transcript(t, early, "S: 220 *\nC: EHLO client.example.net")
	wantSubjects(t, "EHLO", extensions(t, early), before...)
	proxytest.Transcript(t, idle, "S: 220 *\nC: EHLO client.example.net")
	wantSubjects(t, "EHLO", extensions(t, idle), before...)
	proxytest.Transcript(t, idle, lines(auth, "S: 235 *", "C: EHLO client.example.net"))
	wantSubjects(t, "EHLO after AUTH", extensions(t, idle), before...)

	reconfigure(t, postfix, "message_size_limit = 2000000\nsmtpd_discard_ehlo_keywords = chunking\n")
	within(t, time.Minute, "EHLO offers the new size", func() bool { return slices.Contains(p.offers(t), "SIZE 2000000") })
	after := p.offers(t)
	want := slices.DeleteFunc(slices.Clone(before), func(line string) bool { return line == "CHUNKING" })
	want[slices.Index(want, "SIZE 1000000")] = "SIZE 2000000"
	wantSubjects(t, "EHLO after the change", after, want...)

	proxytest.Transcript(t, early, "C: EHLO client.example.net")
	wantSubjects(t, "EHLO once more", extensions(t, early), before...)
	proxytest.Transcript(t, early, lines(auth, "S: 454 4.7.0 *"))
	// Without CHUNKING in the list, BDAT is no command: its octets are swallowed.
	late := dialTLS(t, p.smtp, p.ca)
	proxytest.Transcript(t, late, "S: 220 *\nC: EHLO client.example.net")
	wantSubjects(t, "EHLO", extensions(t, late), after...)
	proxytest.Transcript(t, late, lines(auth, "S: 235 *", "C: MAIL FROM:<"+u.address+"> SIZE=3000000", "S: 552 *",
		"C: MAIL FROM:<"+u.address+"> SIZE=1500000", "S: 250 *", "C: RCPT TO:<"+u.address+">", "S: 250 *",
		`C- BDAT 22\r\nXCLIENT LOGIN=boss\r\n\r\nNOOP\r\n`, "S: 503 *", "S: 250 *", "C: QUIT", "S: 221 *"))
}

// Criterion: BDAT, 8BITMIME, SMTPUTF8 and DSN go through as the client says
// them, and the message arrives octet by octet.
func TestExtensionsOfSubmissionGoThrough(t *testing.T) {
	s := open(t)
	wire := startTap(t, s.postfix.SMTP)
	for _, bare := range []string{"normalize", "pass"} {
		u := s.user(t)
		p := launch(t, []string{"protocol: submission"}, []string{fmt.Sprintf("main: {submission: {address: %q, tls: none}}", wire.addr)},
			"submission: {bare_newlines: "+bare+"}\n")
		conn := dialTLS(t, p.smtp, p.ca)
		mailFrom := "MAIL FROM:<gr\xc3\xbc\xc3\x9fe@example.org> SIZE=4000 BODY=8BITMIME SMTPUTF8 RET=HDRS ENVID=QQ+2B314159 AUTH=<>"
		rcptTo := "RCPT TO:<" + u.address + "> NOTIFY=NEVER ORCPT=rfc822;orig+2B@example.org"
		message := []byte(mail(u, bare) + strings.Repeat("\xff\xfe .\r\n.\r\nXCLIENT x\r\n", 100))
		half := len(message)/2 + 1 // within a line
		proxytest.Transcript(t, conn, lines("S: 220 *", "C: HELO client.example.net", "S: 250 *",
			"C: AUTH PLAIN "+base64Of("\x00"+u.name+"\x00"+u.password), "S: 235 *", "C: EHLO client.example.net"))
		extensions(t, conn)
		proxytest.Transcript(t, conn, lines("C: "+mailFrom, "S: 250 *", "C: "+rcptTo, "S: 250 *"))
		send(t, conn, fmt.Sprintf("BDAT %d\r\n%sBDAT %d LAST\r\n%s", half, message[:half], len(message)-half, message[half:]))
		proxytest.Transcript(t, conn, lines("S: 250 *", "S: 250 *", "C: QUIT", "S: 221 *", "S: <EOF>"))
		got := s.arrived(t, u, 1)[0]
		if want := bytes.ReplaceAll(message, []byte("\r\n"), []byte("\n")); !bytes.HasSuffix(got, want) {
			t.Errorf("%s: what has arrived, %d octets, does not end in the %d that were sent", bare, len(got), len(want))
		}
		said := wire.said()
		for _, want := range []string{mailFrom, rcptTo} {
			if !strings.Contains(said, want+"\r\n") {
				t.Errorf("%s: Postfix has not heard %q", bare, want)
			}
		}
	}
}
