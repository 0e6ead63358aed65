package main

import (
	"bufio"
	"bytes"
	"compress/flate"
	"crypto/tls"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"postern/proxy/proxytest"
)

// loginIMAP returns a connection with INBOX selected. The capabilities of the
// server stand in the answer to the login.
func loginIMAP(t testing.TB, s *stage, u user) (conn *tls.Conn, capabilities string) {
	t.Helper()
	conn = dialTLS(t, s.imap, s.ca)
	_ = conn.SetDeadline(time.Now().Add(patience))
	until(t, conn, "* OK ")
	send(t, conn, "a LOGIN "+u.name+" "+u.password+"\r\n")
	answer := until(t, conn, "a ")
	send(t, conn, "b SELECT INBOX\r\n")
	until(t, conn, "b OK")
	return conn, answer[len(answer)-1]
}

func send(t testing.TB, w io.Writer, text string) {
	t.Helper()
	if _, err := io.WriteString(w, text); err != nil {
		t.Fatal(err)
	}
}

// Criterion: IDLE through Postern tells of new mail at once.
func TestIDLETellsOfNewMail(t *testing.T) {
	s := open(t)
	u := s.user(t)
	conn, _ := loginIMAP(t, s, u)
	send(t, conn, "c IDLE\r\n")
	until(t, conn, "+ ")
	s.deliver(t, u, "new")
	until(t, conn, "* 1 EXISTS")
	send(t, conn, "DONE\r\n")
	until(t, conn, "c OK")
}

// Criterion: COMPRESS through Postern works: the octets after it are nobody's
// but the client's and the server's.
func TestCOMPRESSGoesThrough(t *testing.T) {
	s := open(t)
	u := s.user(t)
	s.deliver(t, u, "one")
	conn, capabilities := loginIMAP(t, s, u)
	if !strings.Contains(capabilities, "COMPRESS=DEFLATE") {
		t.Fatalf("the server offers %s, want COMPRESS=DEFLATE in it", capabilities)
	}
	send(t, conn, "c COMPRESS DEFLATE\r\n")
	until(t, conn, "c OK")
	w, err := flate.NewWriter(conn, flate.BestCompression)
	if err != nil {
		t.Fatal(err)
	}
	send(t, w, "d FETCH 1 BODY.PEEK[TEXT]\r\n")
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	got := strings.Join(until(t, flate.NewReader(conn), "d OK"), "\r\n")
	if !strings.Contains(got, text) {
		t.Errorf("FETCH = %q, want %q in it", got, text)
	}
}

// Criterion: APPEND with literals of both kinds goes through, and what comes
// back is what was sent.
func TestAPPENDGoesThrough(t *testing.T) {
	s := open(t)
	u := s.user(t)
	conn, _ := loginIMAP(t, s, u)
	message := mail(u, "appended") + strings.Repeat(strings.Repeat("y", 76)+"\r\n", 4_000)
	send(t, conn, fmt.Sprintf("c APPEND INBOX {%d}\r\n", len(message)))
	until(t, conn, "+ ")
	send(t, conn, message+"\r\n")
	until(t, conn, "c OK")
	send(t, conn, fmt.Sprintf("d APPEND INBOX {%d+}\r\n%s\r\n", len(message), message))
	until(t, conn, "d OK")
	for _, sent := range []string{"e FETCH 1 BODY.PEEK[]\r\n", "f FETCH 2 BODY.PEEK[]\r\n"} {
		send(t, conn, sent)
		if got := strings.Join(until(t, conn, sent[:1]+" OK"), "\r\n"); !strings.Contains(got, message) {
			t.Errorf("%q does not give what was appended", sent)
		}
	}
}

// Criterion: Commands that come with the LOGIN, in one segment, are answered in
// order, also when the client ends its direction with them.
func TestPipelinedCommandsAreAnsweredInOrder(t *testing.T) {
	s, p, u := alone(t, "") // plain to Dovecot: over TLS its login process answers no half-closed connection
	s.deliver(t, u, "one", "two")
	for _, test := range []struct {
		name, address, ca string
		halfClose         bool
	}{
		{"TLS to the server", s.imap, s.ca, false},
		{"plain to the server", p.imap, p.ca, false},
		{"half-closed", p.imap, p.ca, true},
	} {
		conn := dialTLS(t, test.address, test.ca)
		_ = conn.SetDeadline(time.Now().Add(patience))
		send(t, conn, "a ID NIL\r\nb LOGIN {"+fmt.Sprint(len(u.name))+"+}\r\n"+u.name+" "+u.password+
			"\r\nc SELECT INBOX\r\nd FETCH 1:2 BODY.PEEK[]\r\ne NOOP\r\nf LOGOUT\r\n")
		if test.halfClose {
			if err := conn.CloseWrite(); err != nil {
				t.Fatal(err)
			}
		}
		all, err := io.ReadAll(conn)
		if err != nil {
			t.Fatal(err)
		}
		at := -1
		for _, answer := range []string{"\r\na OK", "\r\nb OK", "\r\n* 2 EXISTS", "\r\nc OK", mail(u, "one"), mail(u, "two"), "\r\nd OK", "\r\ne OK", "\r\n* BYE", "\r\nf OK"} {
			i := bytes.Index(all, []byte(answer))
			if i <= at {
				t.Errorf("%s: %.20q is at %d, want it behind %d", test.name, answer, i, at)
			}
			at = i
		}
	}
}

// Criterion: POP3 commands that come in one segment with the password are
// answered in order, and QUIT keeps its promise although the client has ended
// its direction.
func TestPipelinedPOP3AndHalfClose(t *testing.T) {
	s := open(t)
	u := s.user(t)
	s.deliver(t, u, "one", "two")
	conn := dialTLS(t, s.pop3, s.ca)
	_ = conn.SetDeadline(time.Now().Add(patience))
	send(t, conn, "CAPA\r\nAUTH PLAIN "+base64Of("\x00"+u.name+"\x00"+u.password)+"\r\nSTAT\r\nRETR 1\r\nDELE 1\r\nRETR 2\r\nLIST\r\nQUIT\r\n")
	if err := conn.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	all, err := io.ReadAll(bufio.NewReader(conn))
	if err != nil {
		t.Fatal(err)
	}
	if n := bytes.Count(all, []byte("\r\n+OK ")); n != 8 || !bytes.HasPrefix(all, []byte("+OK ")) {
		t.Errorf("%d answers, want 8 after the greeting: %s", n, all)
	}
	wantSubjects(t, "left", s.stored(t, u), "two")
}

// Criterion: Passwords with spaces, quotes, backslashes, percent signs and
// letters beyond ASCII log in by every way that carries them.
func TestOddPasswordsLogIn(t *testing.T) {
	open(t)
	password := keepSecret(`p "w\%d {3} ` + "\xc3\xbc" + newSecret())
	u := user{name: "odd.user@example.org", password: password}
	backend := proxytest.StartDovecot(t, proxytest.DovecotOptions{Users: map[string]string{u.name: u.password}, Config: quick})
	postfix := proxytest.StartPostfix(t, proxytest.PostfixOptions{Dovecot: backend})
	p := startPostern(t, behind{
		imap:       fmt.Sprintf("{address: %q, ca: %q, server_name: localhost, tls: starttls}", backend.IMAP, backend.CA),
		submission: fmt.Sprintf("{address: %q, ca: %q, server_name: localhost}", postfix.SMTPS, postfix.CA),
	}, "")
	plain, quoted := base64Of("\x00"+u.name+"\x00"+password), strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(password)
	for _, script := range []string{
		"S: \\* OK *\nC: a AUTHENTICATE PLAIN " + plain + "\nS: a OK *",
		"S: \\* OK *\nC: a AUTHENTICATE PLAIN\nS: +*\nC: " + plain + "\nS: a OK *",
		"S: \\* OK *\nC: a LOGIN \"" + u.name + "\" {" + fmt.Sprint(len(password)) + "}\nS: + *\nC: " + password + "\nS: a OK *",
		"S: \\* OK *\nC: a LOGIN " + u.name + " \"" + quoted + "\"\nS: a OK *",
	} {
		talk(t, p.imap, p.ca, script)
	}
	for _, script := range []string{
		"S: +OK *\nC: USER " + u.name + "\nS: +OK *\nC: PASS " + password + "\nS: +OK *",
		"S: +OK *\nC: AUTH PLAIN " + plain + "\nS: +OK *",
		"S: +OK *\nC: AUTH PLAIN\nS: + \nC: " + plain + "\nS: +OK *",
	} {
		talk(t, p.pop3, p.ca, script)
	}
	for _, script := range []string{
		"AUTH PLAIN " + plain,
		"AUTH PLAIN\nS: 334 \nC: " + plain,
		"AUTH LOGIN\nS: 334 *\nC: " + base64Of(u.name) + "\nS: 334 *\nC: " + base64Of(password),
		"AUTH LOGIN " + base64Of(u.name) + "\nS: 334 *\nC: " + base64Of(password),
	} {
		talk(t, p.smtp, p.ca, "S: 220 *\nC: HELO client.example.net\nS: 250 *\nC: "+script+"\nS: 235 *")
	}
}
