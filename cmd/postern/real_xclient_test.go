package main

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"

	"postern/proxy/proxytest"
)

// A tap stands between Postern and a server, and remembers what Postern says.
type tap struct {
	addr string

	mu    sync.Mutex
	heard bytes.Buffer
}

// Write hears what Postern says.
func (w *tap) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.heard.Write(b)
}

// said returns what Postern has said since the last call.
func (w *tap) said() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	defer w.heard.Reset()
	return w.heard.String()
}

// startTap starts a tap in front of server; the end of the test stops it.
func startTap(t testing.TB, server string) *tap {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w := &tap{addr: ln.Addr().String()}
	var copies sync.WaitGroup
	copies.Go(func() {
		for {
			client, err := ln.Accept()
			if err != nil {
				return
			}
			conn, err := tryDial(server)
			if err != nil {
				_ = client.Close()
				continue
			}
			copies.Go(func() {
				_, _ = io.Copy(io.MultiWriter(w, conn), client)
				_ = conn.(*net.TCPConn).CloseWrite()
			})
			copies.Go(func() {
				_, _ = io.Copy(client, conn)
				_, _ = client.Close(), conn.Close()
			})
		}
	})
	t.Cleanup(func() { // Postern, and with it all connections, has been stopped
		_ = ln.Close()
		copies.Wait()
	})
	return w
}

// Criterion: With identity xclient Postfix' log and the Received line show the
// client's address and the name of its EHLO, and Postfix verifies the password.
func TestPostfixLearnsWhoTheClientIs(t *testing.T) {
	s := open(t)
	u := s.user(t)
	postfix := proxytest.StartPostfix(t, proxytest.PostfixOptions{Dovecot: s.backend, XCLIENT: "127.0.0.1"})
	p := launch(t, []string{"protocol: submission"}, []string{
		fmt.Sprintf("main: {submission: {address: %q, ca: %q, server_name: localhost, tls: starttls, identity: xclient}}", postfix.SMTP, postfix.CA),
	}, "")
	conn := p.tlsOn(t, dialFrom(t, "127.0.2.1", p.smtp))
	proxytest.Transcript(t, conn, lines("S: 220 *", "C: EHLO laptop.example.net"))
	before := until(t, conn, "250 ")
	proxytest.Transcript(t, conn, lines("C: AUTH PLAIN "+base64Of("\x00"+u.name+"\x00"+newSecret()), "S: 535 5.7.8 *",
		"C: AUTH PLAIN "+base64Of("\x00"+u.name+"\x00"+u.password), "S: 235 *", "C: EHLO laptop.example.net"))
	wantSubjects(t, "EHLO after AUTH", until(t, conn, "250 "), before...)
	proxytest.Transcript(t, conn, lines("C: MAIL FROM:<"+u.address+">", "S: 250 *", "C: RCPT TO:<"+u.address+">", "S: 250 *",
		"C: DATA", "S: 354 *", "C: Subject: sent", "C: ", "C: .", "S: 250 *", "C: QUIT", "S: 221 *", "S: <EOF>"))
	received := string(s.arrived(t, u, 1)[0])
	if want := "Received: from laptop.example.net (unknown [127.0.2.1])"; !strings.Contains(received, want) {
		t.Errorf("what has arrived is %s; want %q in it", received, want)
	}
	wantLogLine(t, postfix.Log, "client=unknown[127.0.2.1], sasl_method=PLAIN, sasl_username="+u.name)
	wantLogLine(t, postfix.Log, "unknown[127.0.2.1]: SASL PLAIN authentication failed")
	if values, _ := p.scrape(t); values[`postern_backend_identity_accepted{backend="main",protocol="submission"}`] != "1" {
		t.Error("the gauge does not say that Postfix takes XCLIENT")
	}
}

// Criterion: A logged-in client that types XCLIENT LOGIN=boss is refused with
// 502, wherever it types it, also at a Postfix that would believe it because
// all of 127.0.0.0/8 is authorised.
func TestXCLIENTOfAClientIsRefused(t *testing.T) {
	s := open(t)
	postfix := proxytest.StartPostfix(t, proxytest.PostfixOptions{Dovecot: s.backend, XCLIENT: "127.0.0.0/8"})
	// What is to be refused would be believed.
	direct := dialFrom(t, "127.0.2.2", postfix.SMTP)
	proxytest.Transcript(t, direct, lines("S: 220 *", "C: XCLIENT LOGIN=chief", "S: 220 *", "C: QUIT", "S: 221 *"))
	for _, identity := range []string{"none", "xclient", "xclient-login"} {
		t.Run(identity, func(t *testing.T) {
			u := s.user(t)
			wire := startTap(t, postfix.SMTP)
			p := launch(t, []string{"protocol: submission"}, []string{
				"main:",
				fmt.Sprintf("  imap: {address: %q, tls: none}", s.backend.IMAP),
				fmt.Sprintf("  submission: {address: %q, tls: none, identity: %s}", wire.addr, identity),
			}, "")
			conn := p.tlsOn(t, dialFrom(t, "127.0.2.2", p.smtp))
			proxytest.Transcript(t, conn, "S: 220 *\nC: EHLO laptop.example.net")
			for _, line := range until(t, conn, "250 ") {
				if strings.Contains(line, "XCLIENT") || strings.Contains(line, "XFORWARD") {
					t.Errorf("EHLO offers %s", line)
				}
			}
			proxytest.Transcript(t, conn, lines("C: XCLIENT LOGIN=boss", "S: 5*",
				"C: AUTH PLAIN "+base64Of("\x00"+u.name+"\x00"+u.password), "S: 235 *",
				"C: XCLIENT LOGIN=boss", "S: 502 5.5.1 *",
				"C: xclient login=boss", "S: 502 5.5.1 *",
				"C: XCLIENT ADDR=127.0.0.1 LOGIN=boss", "S: 502 5.5.1 *",
				"C: XFORWARD ADDR=127.0.0.9 IDENT=boss", "S: 502 5.5.1 *",
				"C: AUTH PLAIN "+base64Of("\x00boss\x00"+newSecret()), "S: 503 5.5.1 *",
				// Behind DATA that is refused come commands, and not a message.
				`C- DATA\r\nXCLIENT LOGIN=boss\r\n.\r\n`, "S: 50*", "S: 502 5.5.1 *", "S: 50*",
				`C- NOOP\r\nXCLIENT LOGIN=boss\r\nRSET\r\n`, "S: 250 *", "S: 502 5.5.1 *", "S: 250 *",
				"C: MAIL FROM:<"+u.address+">", "S: 250 *",
				"C: XCLIENT LOGIN=boss", "S: 502 5.5.1 *",
				"C: RCPT TO:<"+u.address+">", "S: 250 *",
				// BDAT holds for its octets and no more; in them, a line is text.
				`C- BDAT 41\r\nSubject: bdat\r\n\r\nXCLIENT LOGIN=texts\r\n.\r\nXCLIENT LOGIN=boss\r\n`, "S: 250 *", "S: 502 5.5.1 *",
				`C- BDAT 0 LAST\r\nXCLIENT LOGIN=boss\r\n`, "S: 250 *", "S: 502 5.5.1 *",
				"C: MAIL FROM:<"+u.address+">", "S: 250 *", "C: RCPT TO:<"+u.address+">", "S: 250 *", "C: DATA", "S: 354 *",
				`C- Subject: data\r\n\r\nXCLIENT LOGIN=texts\r\n.\r\nXCLIENT LOGIN=boss\r\n`, "S: 250 *", "S: 502 5.5.1 *",
				"C: QUIT", "S: 221 *", "S: <EOF>"))
			for _, m := range s.arrived(t, u, 2) {
				if !bytes.Contains(m, []byte("\nXCLIENT LOGIN=texts\n")) {
					t.Errorf("this has arrived: %s", m)
				}
			}
			if heard := wire.said(); strings.Contains(strings.ToLower(heard), "boss") || !strings.Contains(heard, "LOGIN=texts") {
				t.Errorf("Postfix has heard %s", hidden(heard))
			}
		})
	}
	if log := readLog(t, postfix.Log); strings.Contains(strings.ToLower(log), "boss") {
		t.Errorf("the boss is in the log of Postfix: %s", log)
	}
}

// Criterion: With identity xclient-login a right password logs in by XCLIENT,
// and the log of Postfix has the user; a wrong one, or one that nobody can
// check now, sends no XCLIENT LOGIN.
func TestXCLIENTLOGINIsSentForRightPasswordsOnly(t *testing.T) {
	_ = open(t) // in parallel
	users, passwords := people("alice")
	u := users[0]
	dovecot := proxytest.StartDovecot(t, proxytest.DovecotOptions{Users: passwords, Trusted: "127.0.0.1", Config: quick})
	postfix := proxytest.StartPostfix(t, proxytest.PostfixOptions{Dovecot: dovecot, XCLIENT: "127.0.0.1"})
	wire := startTap(t, postfix.SMTP)
	p := launch(t, []string{"protocol: submission"}, []string{
		"main:",
		fmt.Sprintf("  imap: {address: %q, tls: none}", dovecot.IMAP),
		fmt.Sprintf("  submission: {address: %q, tls: none, identity: xclient-login}", wire.addr),
	}, "")
	begin := lines("S: 220 *", "C: HELO laptop.example.net", "S: 250 *")
	wrong, right := newSecret(), lines("C: AUTH PLAIN "+base64Of("\x00"+u.name+"\x00"+u.password), "S: 235 *")

	conn := p.tlsOn(t, dialFrom(t, "127.0.2.3", p.smtp))
	proxytest.Transcript(t, conn, lines(begin, "C: AUTH PLAIN "+base64Of("\x00"+u.name+"\x00"+wrong), "S: 535 5.7.8 *"))
	wantNoVouch(t, "a wrong password", wire.said())
	wantLogLine(t, dovecot.Log, "rip=127.0.2.3", "auth failed")

	proxytest.Transcript(t, conn, right)
	if said := wire.said(); !strings.Contains(said, " LOGIN="+u.name+" ") || !strings.Contains(said, " ADDR=127.0.2.3\r\n") ||
		strings.Contains(said, "AUTH ") || leaked(said) > 0 {
		t.Errorf("for a right password Postfix has heard %s", hidden(said))
	}
	proxytest.Transcript(t, conn, lines("C: MAIL FROM:<"+u.address+">", "S: 250 *", "C: RCPT TO:<"+u.address+">", "S: 250 *",
		"C: DATA", "S: 354 *", "C: Subject: sent", "C: ", "C: .", "S: 250 *", "C: QUIT", "S: 221 *", "S: <EOF>"))
	wantLogLine(t, postfix.Log, "client=unknown[127.0.2.3], ", "sasl_username="+u.name)

	dovecot.Stop(t)
	wire.said()
	conn = p.tlsOn(t, dialFrom(t, "127.0.2.3", p.smtp))
	proxytest.Transcript(t, conn, lines(begin, strings.Replace(right, "235", "454 4.7.0", 1)))
	wantNoVouch(t, "without a server to verify", wire.said())
}

func wantNoVouch(t *testing.T, when, said string) {
	t.Helper()
	if strings.Contains(said, "LOGIN=") || strings.Contains(said, "AUTH ") || leaked(said) > 0 {
		t.Errorf("%s: Postfix has heard %s, want no LOGIN=", when, hidden(said))
	}
}
