package main

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"postern/proxy/proxytest"
)

// balanced are the listeners behind a load balancer at 127.0.0.1.
var balanced = []string{
	`protocol: imap, proxy_from: [127.0.0.1/32]`,
	`protocol: pop3, proxy_from: [127.0.0.1]`,
	`protocol: submission, proxy_from: [127.0.0.1, 10.0.0.0/8]`,
}

// readLog returns what a server has written into its log.
func readLog(t testing.TB, path string) string {
	t.Helper()
	log, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(log)
}

// wantLogLine waits for a line in the log of a server that has all the words.
func wantLogLine(t testing.TB, path string, words ...string) {
	t.Helper()
	within(t, patience, fmt.Sprintf("%s has a line with %q", path, words), func() bool {
		for line := range strings.SplitSeq(readLog(t, path), "\n") {
			all := true
			for _, word := range words {
				all = all && strings.Contains(line, word)
			}
			if all {
				return true
			}
		}
		return false
	})
}

// Criterion: Behind HAProxy, by PROXY v1 and v2, Postern's log, Dovecot's and
// Postfix' show the client's address, in all three protocols.
func TestHAProxyInFrontTellsTheClientsAddress(t *testing.T) {
	proxytest.Need(t, "haproxy")
	t.Parallel()
	users, passwords := people("alice")
	u := users[0]
	dovecot := proxytest.StartDovecot(t, proxytest.DovecotOptions{Users: passwords, Trusted: "127.0.0.1/32"})
	postfix := proxytest.StartPostfix(t, proxytest.PostfixOptions{Dovecot: dovecot, XCLIENT: "127.0.0.1"})
	p := launch(t, balanced, []string{
		"main:",
		fmt.Sprintf("  imap: {address: %q, ca: %q, server_name: localhost}", dovecot.IMAPS, dovecot.CA),
		fmt.Sprintf("  submission: {address: %q, tls: none, identity: xclient}", postfix.SMTP),
	}, "")
	for i, version := range []string{"v1", "v2", "v2-ssl"} {
		client := fmt.Sprintf("127.0.1.%d", i+1)
		imap := fromBalancer(t, p, version, client, p.imap)
		proxytest.Transcript(t, imap, lines("S: \\* OK *", "C: a LOGIN "+u.name+" "+u.password, "S: a OK *", "C: b LOGOUT", "S: \\* BYE *", "S: b OK *", "S: <EOF>"))
		_ = imap.Close()
		wantLogLine(t, dovecot.Log, " Login: user=<"+u.name+">", "rip="+client+",", "lip=127.0.0.1,")

		pop3 := fromBalancer(t, p, version, client, p.pop3)
		loginOn(t, pop3, u).command("QUIT")
		_ = pop3.Close()
		within(t, patience, "Dovecot has seen the second login", func() bool {
			return strings.Count(readLog(t, dovecot.Log), "rip="+client+",") >= 2
		})

		smtp := fromBalancer(t, p, version, client, p.smtp)
		proxytest.Transcript(t, smtp, lines("S: 220 *", "C: HELO client.example.net", "S: 250 *", "C: AUTH PLAIN "+base64Of("\x00"+u.name+"\x00"+u.password), "S: 235 *",
			"C: MAIL FROM:<"+u.address+">", "S: 250 *", "C: RCPT TO:<"+u.address+">", "S: 250 *", "C: QUIT", "S: 221 *"))
		_ = smtp.Close()
		wantLogLine(t, postfix.Log, "client=unknown["+client+"]", "sasl_username="+u.name)

		within(t, patience, "three sessions of "+client+" have ended", func() bool {
			n := 0
			for _, l := range p.ends(t, u) {
				if l.text("ip") == client {
					n++
				}
			}
			return n == 3
		})
	}
}

// fromBalancer connects from the address client to an HAProxy in front of
// target, and speaks TLS.
func fromBalancer(t testing.TB, p *postern, version, client, target string) net.Conn {
	t.Helper()
	h := proxytest.StartHAProxy(t, target, version)
	return p.tlsOn(t, dialFrom(t, client, h.Addr))
}

// Criterion: HAProxy set up wrong, without a PROXY header or with one that nobody
// expects, is a warning that says what to set, at implicit TLS and STARTTLS; its
// health checks are none.
func TestHAProxySetUpWrongIsAWarning(t *testing.T) {
	proxytest.Need(t, "haproxy")
	s := open(t)
	p := launch(t, []string{
		`protocol: imap, name: behind, proxy_from: [127.0.0.1]`,
		`protocol: imap, name: behind-143, tls: starttls, proxy_from: [127.0.0.1]`,
		`protocol: imap, name: alone`,
		`protocol: imap, name: alone-143, tls: starttls`,
		`protocol: imap, name: checked, proxy_from: [127.0.0.1]`,
	}, []string{fmt.Sprintf("main: {imap: {address: %q, tls: none}}", s.backend.IMAP)}, "timeouts: {handshake: 1s}\n")
	proxytest.StartHAProxy(t, p.at(t, "checked"), "check")
	for _, test := range []struct{ listener, version, reason, remedy string }{
		{"behind", "", "no_proxy_header", "send-proxy-v2 at the balancer 127.0.0.1"},
		{"behind-143", "", "no_proxy_header", "send-proxy-v2 at the balancer 127.0.0.1"},
		{"alone", "v1", "unexpected_proxy_header", "proxy_from: [127.0.0.1] at this listener"},
		{"alone", "v2", "unexpected_proxy_header", "proxy_from: [127.0.0.1] at this listener"},
		{"alone-143", "v1", "unexpected_proxy_header", "proxy_from: [127.0.0.1] at this listener"},
		{"alone-143", "v2", "unexpected_proxy_header", "proxy_from: [127.0.0.1] at this listener"},
	} {
		h := proxytest.StartHAProxy(t, p.at(t, test.listener), test.version)
		lines := func(level string) (found []line) {
			for _, l := range p.logged(t, "connection refused") {
				if l.text("listener") == test.listener && l.text("reason") == test.reason && (level == "" || l.text("level") == level) {
					found = append(found, l)
				}
			}
			return found
		}
		before := len(lines(""))
		conn := dialFrom(t, "127.0.0.1", h.Addr)
		if test.reason == "no_proxy_header" && test.listener == "behind" || test.listener == "alone" {
			send(t, conn, "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"+strings.Repeat("\x00", 64))
		}
		_, _ = io.ReadAll(conn)
		within(t, patience, "Postern has refused the connection", func() bool { return len(lines("")) > before })
		warned := lines("WARN")
		if len(warned) != 1 || !strings.HasPrefix(warned[0].text("remedy"), test.remedy) || warned[0].text("ip") != "127.0.0.1" || warned[0].text("session") == "" {
			t.Errorf("%s, %s: the log warns so: %v", test.listener, test.version, warned)
		}
	}
	// HAProxy resets its checks before the kernel shows them to Postern; other
	// balancers close a connection.
	_ = dialFrom(t, "127.0.0.1", p.at(t, "checked")).Close()
	within(t, patience, "the port has been checked", func() bool {
		n := 0
		for _, l := range p.logged(t, "connection refused") {
			if l.text("listener") == "checked" {
				if n++; l.text("level") != "DEBUG" || l.text("reason") != "health_check" {
					t.Errorf("a health check: %v", l)
				}
			}
		}
		return n > 0
	})
}

// Criterion: A PROXY header from somebody who is not listed is no header but a
// client that speaks no TLS; a listed balancer without one, with a broken one
// or one that does not end is a protocol error; none of them reaches a login.
func TestPROXYHeaderIsBelievedOnlyOfListedPeers(t *testing.T) {
	s := open(t)
	p := launch(t, balanced[:1], []string{fmt.Sprintf("main: {imap: {address: %q, tls: none}}", s.backend.IMAP)}, "timeouts: {handshake: 1s}\n")
	header := "PROXY TCP4 10.1.2.3 127.0.0.1 40000 993\r\n"

	unlisted := dialFrom(t, "127.0.0.2", p.imap)
	send(t, unlisted, header)
	proxytest.Transcript(t, unlisted, lines(`S: \* BYE *TLS* (session *)`, "S: <EOF>"))

	unlisted = dialFrom(t, "127.0.0.2", p.imap) // no header: a client as any other
	proxytest.Transcript(t, p.tlsOn(t, unlisted), lines("S: \\* OK *", "C: a LOGOUT", "S: \\* BYE *", "S: a OK *"))

	for name, words := range map[string]string{
		"a client's own words": "a LOGIN alice " + newSecret() + "\r\n",
		"TLS without a header": "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + strings.Repeat("\x00", 64),
		"broken":               "PROXY TCP4 10.1.2.3 127.0.0.1 990000 993\r\n",
		"endless":              "PROXY " + strings.Repeat("x", 200),
		"half":                 header[:20],
		"nothing":              "",
	} {
		conn := dialFrom(t, "127.0.0.1", p.imap)
		send(t, conn, words)
		if got, _ := io.ReadAll(conn); len(got) > 0 { // a reset is an end, too
			t.Errorf("%s: Postern answers %q, want nothing", name, got)
		}
	}
	within(t, patience, "the refused balancers are in the log", func() bool { return len(p.logged(t, "connection refused")) >= 6 })
	for _, l := range p.logged(t, "connection ended") {
		if l.text("ip") == "10.1.2.3" {
			t.Errorf("an address has been believed: %v", l)
		}
	}
}

// Criterion: A balancer that speaks for itself (LOCAL of v2, UNKNOWN of v1) is
// served with the address of the socket, and one that only looks whether
// somebody listens leaves no trace of an error.
func TestPROXYLOCALUsesTheSocketsAddress(t *testing.T) {
	s := open(t)
	u := s.user(t)
	p := launch(t, balanced[:1], []string{fmt.Sprintf("main: {imap: {address: %q, tls: none}}", s.backend.IMAP)}, "")
	const signature = "\r\n\r\n\x00\r\nQUIT\n"
	headers := map[string]string{
		"LOCAL without addresses": signature + "\x20\x00\x00\x00",
		"LOCAL with addresses":    signature + "\x20\x11\x00\x0c\x0a\x01\x02\x03\x7f\x00\x00\x01\x9c\x40\x03\xe1",
		"UNKNOWN":                 "PROXY UNKNOWN\r\n",
	}
	for name, header := range headers {
		conn := dialFrom(t, "127.0.0.1", p.imap)
		send(t, conn, header)
		t.Logf("%s:", name)
		proxytest.Transcript(t, p.tlsOn(t, conn), lines("S: \\* OK *", "C: a LOGIN "+u.name+" "+u.password, "S: a OK *", "C: b LOGOUT", "S: \\* BYE *", "S: b OK *"))
		_ = conn.Close()
	}
	_ = dialFrom(t, "127.0.0.1", p.imap).Close()
	within(t, patience, "the sessions have ended", func() bool { return len(p.ends(t, u)) == len(headers) })
	for _, l := range p.ends(t, u) {
		if l.text("ip") != "127.0.0.1" {
			t.Errorf("a session ended so: %v, want the address of the socket", l)
		}
	}
}

// Criterion: Behind a balancer the limit on wrong passwords is that of the
// header's address: one customer's mistakes keep no other customer out.
func TestLimitsHoldForTheHeadersAddress(t *testing.T) {
	s := open(t)
	u, victim := s.user(t), s.user(t)
	p := launch(t, balanced[:1], []string{fmt.Sprintf("main: {imap: {address: %q, tls: none}}", s.backend.IMAP)}, "guard: {network: {burst: 1, every: 1h}, learning: 0s}\n")
	from := func(client string) net.Conn {
		t.Helper()
		conn := dialFrom(t, "127.0.0.1", p.imap)
		local := netip.MustParseAddrPort(p.imap)
		send(t, conn, fmt.Sprintf("PROXY TCP4 %s 127.0.0.1 40000 %d\r\n", client, local.Port()))
		return p.tlsOn(t, conn)
	}
	guesser := from("192.0.2.1")
	proxytest.Transcript(t, guesser, lines("S: \\* OK *",
		"C: a LOGIN "+u.name+" "+newSecret(), "S: a NO [AUTHENTICATIONFAILED] *",
		"C: b LOGIN "+u.name+" "+newSecret(), "S: b NO [UNAVAILABLE] *"))
	begun := time.Now()
	proxytest.Transcript(t, from("192.0.2.2"), lines("S: \\* OK *", "C: a LOGIN "+victim.name+" "+victim.password, "S: a OK *"))
	if took := time.Since(begun); took > 2*time.Second {
		t.Errorf("a login from another address took %v", took)
	}
}
