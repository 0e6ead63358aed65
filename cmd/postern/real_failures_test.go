package main

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"postern/proxy/proxytest"
)

// Criterion: One wrong password does not close the connection, the third does,
// and the words for it are permanent in all three protocols.
func TestThreeWrongPasswordsCloseTheConnection(t *testing.T) {
	s := open(t)
	wrong := newSecret()
	for _, test := range []struct{ protocol, greeting, attempt, refusal, right, welcome, goodbye string }{
		{"IMAP", `\* OK *`, "C: a LOGIN %s %s", `S: a NO [AUTHENTICATIONFAILED] * (session *)`,
			"C: b LOGIN %s %s", "S: b OK *", `S: \* BYE * (session *)`},
		{"POP3", "+OK *", "C: USER %s\n\tS: +OK *\n\tC: PASS %s", `S: -ERR [AUTH] * (session *)`,
			"C: USER %s\n\tS: +OK *\n\tC: PASS %s", "S: +OK *", ""},
		{"submission", "220 *", "C: AUTH LOGIN\n\tS: 334 *\n\tC: %s\n\tS: 334 *\n\tC: %s", "S: 535 5.7.8 * (session *)",
			"C: AUTH LOGIN\n\tS: 334 *\n\tC: %s\n\tS: 334 *\n\tC: %s", "S: 235 *", "S: 421 4.7.0 * (session *)"},
	} {
		t.Run(test.protocol, func(t *testing.T) {
			t.Parallel()
			u, address := s.user(t), s.address(test.protocol)
			fill := func(script, password string) string {
				if test.protocol == "submission" {
					return fmt.Sprintf(script, base64Of(u.name), base64Of(password))
				}
				return fmt.Sprintf(script, u.name, password)
			}
			hello := "S: " + test.greeting
			if test.protocol == "submission" {
				hello += "\nC: HELO client.example.net\nS: 250 *"
			}
			proxytest.Transcript(t, dialTLS(t, address, s.ca), lines(hello, fill(test.attempt, wrong), test.refusal,
				fill(test.right, u.password), test.welcome))
			proxytest.Transcript(t, dialTLS(t, address, s.ca), lines(hello, fill(test.attempt, wrong), test.refusal,
				fill(test.attempt, wrong), test.refusal, fill(test.attempt, wrong), test.refusal, test.goodbye, "S: <EOF>"))
		})
	}
}

func lines(all ...string) string { return strings.Join(all, "\n") }

func (p *postern) address(protocol string) string {
	return map[string]string{"IMAP": p.imap, "POP3": p.pop3, "submission": p.smtp}[protocol]
}

// protocols are what a client has to say and hear to be told that its login
// cannot be tried now.
var protocols = []struct{ name, login, temporary string }{
	{"IMAP", "S: \\* OK *\nC: a LOGIN %s %s", "S: a NO [UNAVAILABLE] *"},
	{"POP3", "S: +OK *\nC: USER %s\nS: +OK *\nC: PASS %s", "S: -ERR [SYS/TEMP] *"},
}

// Criterion: A backend that is away is told as temporary, never as a wrong
// password, and when it is back so is the service.
func TestStoppedServersAreTemporaryFailures(t *testing.T) {
	_ = open(t) // in parallel
	u := user{name: "alice", password: newSecret()}
	backend := proxytest.StartDovecot(t, proxytest.DovecotOptions{Users: map[string]string{u.name: u.password}, Config: quick})
	postfix := proxytest.StartPostfix(t, proxytest.PostfixOptions{Dovecot: backend})
	p := startPostern(t, behind{
		imap:       fmt.Sprintf("{address: %q, tls: none}", backend.IMAP),
		submission: fmt.Sprintf("{address: %q, tls: none}", postfix.SMTP),
	}, "")
	backend.Deliver(t, u.name, []byte(mail(u, "one")))
	pop3 := loginPOP3(t, p.pop3, p.ca, u)
	pop3.command("DELE 1")
	smtp := dialTLS(t, p.smtp, p.ca)
	plain := "C: AUTH PLAIN " + base64Of("\x00"+u.name+"\x00"+u.password)
	proxytest.Transcript(t, smtp, lines("S: 220 *", "C: HELO client.example.net", "S: 250 *"))
	sending := dialTLS(t, p.smtp, p.ca)
	proxytest.Transcript(t, sending, lines("S: 220 *", "C: HELO client.example.net", "S: 250 *", plain, "S: 235 *"))
	backend.Stop(t)
	postfix.Stop(t)

	for _, protocol := range protocols {
		proxytest.Transcript(t, dialTLS(t, p.address(protocol.name), p.ca), lines(fmt.Sprintf(protocol.login, u.name, u.password), protocol.temporary))
	}
	proxytest.Transcript(t, smtp, lines(plain, "S: 454 4.7.0 *"))
	proxytest.Transcript(t, sending, lines("S: 421 4.4.2 *", "S: <EOF>"))
	pop3.send("QUIT")
	if got := string(pop3.line()); !strings.HasPrefix(got, "-ERR [SYS/TEMP] ") {
		t.Errorf("QUIT with a message marked = %q, want -ERR [SYS/TEMP]", got)
	}
	if got := len(backend.Stored(t, u.name)); got != 1 {
		t.Errorf("%d messages are left, want 1", got)
	}

	backend.Start(t)
	postfix.Start(t)
	again := loginPOP3(t, p.pop3, p.ca, u)
	wantBytes(t, "RETR", unstuffed(again.body("RETR 1")), []byte(mail(u, "one")))
	proxytest.Transcript(t, smtp, lines(plain, "S: 235 *"))
	proxytest.Transcript(t, dialTLS(t, p.imap, p.ca), lines("S: \\* OK *", "C: a LOGIN "+u.name+" "+u.password, "S: a OK *"))
}

// Criterion: A server that goes away in the middle of a message cuts the
// connection to the client, without the final dot, and nothing is lost.
func TestServerThatDiesWithinAMessageCutsTheConnection(t *testing.T) {
	s := open(t)
	u := s.user(t)
	big := mail(u, "big") + strings.Repeat(strings.Repeat("x", 76)+"\r\n", 200_000)
	s.backend.Deliver(t, u.name, []byte(big))
	relay := proxytest.StartRelay(t, s.backend.IMAP)
	p := startPostern(t, behind{imap: fmt.Sprintf("{address: %q, tls: none}", relay.Addr)}, "")
	relay.SetFaults(proxytest.Faults{CutRead: 1 << 20})
	c := loginPOP3(t, p.pop3, p.ca, u)
	c.command("RETR 1")
	rest, _ := io.ReadAll(c.r) // crypto/tls does not tell an end without goodbye from one with
	if len(rest) < 1<<19 || len(rest) > 1<<20 || bytes.HasSuffix(rest, []byte("\r\n.\r\n")) {
		t.Errorf("%d octets, the last %q; want about 1 MiB and no final dot", len(rest), rest[max(0, len(rest)-5):])
	}
	if got := s.backend.Stored(t, u.name); len(got) != 1 || string(got[0]) != big {
		t.Errorf("%d messages are left, or the one is not what it was", len(got))
	}
	if got := s.flags(t, u); strings.Contains(got, "Deleted") || strings.Contains(got, "Seen") {
		t.Errorf("flags = %s, want none", got)
	}
}

// flags returns the flags of the messages of u.
func (s *stage) flags(t testing.TB, u user) string {
	t.Helper()
	return s.backend.Doveadm(t, "fetch", "-u", u.name, "flags", "mailbox", "INBOX")
}

// Criterion: A connection that is lost, in the middle of RETR or after DELE,
// deletes nothing and marks nothing.
func TestKilledConnectionDeletesNothing(t *testing.T) {
	s := open(t)
	u := s.user(t)
	s.backend.Deliver(t, u.name, []byte(mail(u, "big")+strings.Repeat(strings.Repeat("x", 76)+"\r\n", 400_000)))
	s.deliver(t, u, "one", "two")
	before := len(s.ends(t, u))
	for _, kill := range []func(*pop3, *net.TCPConn){
		func(c *pop3, conn *net.TCPConn) { // reset in the middle of a message
			c.command("DELE 2")
			c.command("RETR 1")
			_ = conn.SetLinger(0)
			_ = conn.Close()
		},
		func(c *pop3, conn *net.TCPConn) { // reset after DELE
			c.command("DELE 1")
			_ = conn.SetLinger(0)
			_ = conn.Close()
		},
		func(c *pop3, conn *net.TCPConn) { // closed after RETR and DELE
			c.body("RETR 2")
			c.command("DELE 2")
			_ = conn.Close()
		},
		func(c *pop3, conn *net.TCPConn) { // half-closed after DELE
			c.command("DELE 3")
			_ = conn.CloseWrite()
		},
	} {
		tlsConn := dialTLS(t, s.pop3, s.ca)
		kill(loginOn(t, tlsConn, u), tlsConn.NetConn().(*net.TCPConn))
	}
	within(t, patience, "the four sessions have ended", func() bool { return len(s.ends(t, u)) == before+4 })
	for _, l := range s.ends(t, u) {
		if l.text("end") != "client_abort" || l.text("deleted") != "0" {
			t.Errorf("a session ended so: %v, want client_abort and nothing deleted", l)
		}
	}
	if got := len(s.backend.Stored(t, u.name)); got != 3 {
		t.Errorf("%d messages are left, want 3", got)
	}
	if got := s.flags(t, u); strings.Contains(got, "Deleted") {
		t.Errorf("flags = %s, want no \\Deleted", got)
	}
}

// ends returns the lines that the sessions of u have left in the log.
func (p *postern) ends(t testing.TB, u user) []line {
	t.Helper()
	return slices.DeleteFunc(p.logged(t, "connection ended"), func(l line) bool { return l.text("account") != u.name })
}

// Criterion: A client that speaks plain text to a TLS port, or nothing at all,
// gets one line in its protocol that says why, and is closed; so is one that
// speaks TLS to itself.
func TestClientThatSpeaksNoTLSIsToldSo(t *testing.T) {
	s := open(t)
	p := startPostern(t, behind{
		imap:       fmt.Sprintf("{address: %q, tls: none}", s.backend.IMAP),
		submission: fmt.Sprintf("{address: %q, tls: none}", s.postfix.SMTP),
	}, "timeouts: {handshake: 1s}\n")
	for protocol, want := range map[string]string{
		"IMAP": `S: \* BYE *TLS* (session *)`, "POP3": "S: -ERR *TLS* (session *)", "submission": "S: 554 5.7.0 *TLS* (session *)",
	} {
		for name, speak := range map[string]string{
			"plain text": "C: a LOGIN alice " + newSecret(),
			"garbage":    `C- \x00\xff\x80\x16garbage` + strings.Repeat("x", 1000),
			"nothing":    "",
		} {
			t.Run(protocol+" "+name, func(t *testing.T) {
				conn := dial(t, p.address(protocol))
				proxytest.Transcript(t, conn, lines(speak, want, "S: <EOF>"))
			})
		}
	}
	// Half a TLS record is no plain text: nothing can be said.
	conn := dial(t, p.pop3)
	proxytest.Transcript(t, conn, lines(`C- \x16\x03\x01\x02\x00\x01\x00`))
	_ = conn.SetReadDeadline(time.Now().Add(patience))
	if said, _ := io.ReadAll(conn); bytes.Contains(said, []byte("-ERR")) {
		t.Errorf("in the middle of a handshake Postern said %q", said)
	}
}

// Criterion: A client that speaks garbage within TLS is told so and, when it
// goes on, closed.
func TestGarbageWithinTLSEndsTheConnection(t *testing.T) {
	s := open(t)
	for protocol, want := range map[string]string{"IMAP": "* BYE ", "POP3": "-ERR ", "submission": "421 "} {
		conn := dialTLS(t, s.address(protocol), s.ca)
		_ = conn.SetDeadline(time.Now().Add(patience))
		go func() { // until Postern has enough
			garbage := bytes.Repeat([]byte("\x00\xff\x80garbage \"( {\r\n"), 1000)
			_, _ = conn.Write(garbage)
		}()
		said, _ := io.ReadAll(conn) // an error: what was still on its way resets the connection
		all := strings.Split(strings.TrimSuffix(string(said), "\r\n"), "\r\n")
		if last := all[len(all)-1]; !strings.HasPrefix(last, want) || !strings.Contains(last, "(session ") {
			t.Errorf("%s: the last of %d lines is %q, want %s... with the session id", protocol, len(all), last, want)
		}
		if len(all) > 20 {
			t.Errorf("%s: %d lines, want the end sooner", protocol, len(all))
		}
	}
}
