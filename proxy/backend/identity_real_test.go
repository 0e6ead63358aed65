package backend

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"postern/proxy"
	"postern/proxy/proxytest"
)

// waitForLog waits until a log has a line with all words.
func waitForLog(t *testing.T, path string, words ...string) {
	t.Helper()
	var log []byte
	for range 50 {
		var err error
		if log, err = os.ReadFile(path); err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(log)) {
			found := 0
			for _, word := range words {
				if strings.Contains(line, word) {
					found++
				}
			}
			if found == len(words) {
				return
			}
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Errorf("no line with %q in %s", words, log)
}

// Criterion: a Dovecot that trusts Postern sees the client's address and the
// session id, over ID and over PROXY.
func TestDovecotSeesTheClient(t *testing.T) {
	t.Parallel()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	behind := ln.Addr().(*net.TCPAddr)
	_ = ln.Close()
	d := proxytest.StartDovecot(t, proxytest.DovecotOptions{
		Users: users, Trusted: "127.0.0.1/32",
		Config: fmt.Sprintf("auth_failure_delay = 0\nhaproxy_trusted_networks = 127.0.0.1/32\n"+
			"service imap-login {\n  inet_listener haproxy {\n    port = %d\n    haproxy = yes\n    ssl = yes\n  }\n}\n", behind.Port),
	})
	for _, test := range []struct {
		how     Identity
		address string
		client  netip.AddrPort
		words   []string
	}{
		{ID, d.IMAPS, customer, []string{"Login: user=<alice>", "rip=203.0.113.9,", "lip=198.51.100.7,", "session=<SESSION>"}},
		{ProxyV1, behind.String(), netip.MustParseAddrPort("203.0.113.10:50001"), []string{"Login: user=<alice>", "rip=203.0.113.10,", "lip=198.51.100.7,"}},
		{ProxyV2, behind.String(), netip.MustParseAddrPort("203.0.113.11:50001"), []string{"Login: user=<alice>", "rip=203.0.113.11,", "lip=198.51.100.7,"}},
	} {
		s := &Server{Name: "main", Protocol: proxy.IMAP, Address: test.address, Config: trustCA(t, d.CA)}
		identified := recordIdentified(s, test.how)
		if _, err := s.Probe(t.Context()); err != nil {
			t.Fatalf("%v: %v", test.how, err)
		}
		conn, _, err := s.LoginIMAP(t.Context(), withAddr(testLogin("alice", users["alice"]), test.client))
		if err != nil {
			t.Fatalf("%v: %v", test.how, err)
		}
		ip := test.client.Addr().String()
		if who := d.Doveadm(t, "who"); !strings.Contains(who, ip) {
			t.Errorf("%v: doveadm who does not show %s: %s", test.how, ip, who)
		}
		conn.logout("a LOGOUT")
		waitForLog(t, d.Log, test.words...)
		_, _, err = s.LoginIMAP(t.Context(), withAddr(testLogin("alice", "wrong"), test.client))
		checkRefusal(t, err, proxy.Wrong)
		waitForLog(t, d.Log, "auth failed", "rip="+ip)
		if want := map[bool]string{true: "2 0", false: "0 0"}[test.how == ID]; identified() != want {
			t.Errorf("%v: told %s, want %s", test.how, identified(), want)
		}
	}
}

// Criterion: Postfix logs the client's address, and who has logged in; a user
// whose address may say XCLIENT to Postfix becomes nobody else by it.
func TestPostfixSeesTheClient(t *testing.T) {
	t.Parallel()
	d := proxytest.StartDovecot(t, proxytest.DovecotOptions{Users: users, Config: "auth_failure_delay = 0\n"})
	p := proxytest.StartPostfix(t, proxytest.PostfixOptions{Dovecot: d, XCLIENT: "127.0.0.1 10.0.0.0/8"})
	imap := &Server{Name: "main", Protocol: proxy.IMAP, Address: d.IMAPS, Config: trustCA(t, d.CA)}
	for how, client := range map[Identity]string{XCLIENT: "10.1.2.3", XCLIENTLogin: "203.0.113.9"} {
		s := &Server{Name: "main", Protocol: proxy.Submission, Address: p.SMTP, TLS: STARTTLS, Config: trustCA(t, p.CA), Verify: Verify(imap)}
		identified := recordIdentified(s, how)
		if _, err := s.Probe(t.Context()); err != nil {
			t.Fatal(err)
		}
		submitting := func(password string) *proxy.Login {
			l := withAddr(testSMTPLogin(password, s.Offer().Extensions...), netip.MustParseAddrPort(client+":50001"))
			l.Account = "alice"
			return l
		}
		backend := &Submission{Server: s, Hostname: "postern.example"}
		_, err := backend.Login(t.Context(), submitting("wrong"))
		checkRefusal(t, err, proxy.Wrong)
		session, err := backend.Login(t.Context(), submitting(users["alice"]))
		if err != nil {
			t.Fatalf("%v: %v", how, err)
		}
		playSession(t, session, `
			C: XCLIENT LOGIN=boss
			S: 502 *
			C- XCLIENT NAME=x ADDR=10.9.9.9\r\nXFORWARD ADDR=10.9.9.9\r\nMAIL FROM:<alice@example.org>\r\nRCPT TO:<`+p.Address("bob")+`>\r\nDATA\r\n
			S: 502 *
			S: 502 *
			S: 250 *
			S: 250 *
			S: 354 *
			C- Subject: one\r\n\r\nXCLIENT LOGIN=boss\r\n.\r\nQUIT\r\n
			S: 250 *
			S: 221 *
			S: <EOF>
		`)
		method := map[Identity]string{XCLIENT: "sasl_method=PLAIN", XCLIENTLogin: "sasl_method=XCLIENT"}[how]
		waitForLog(t, p.Log, "client=unknown["+client+"]", method, "sasl_username=alice")
		if want := map[Identity]string{XCLIENT: "2 0", XCLIENTLogin: "1 0"}[how]; identified() != want {
			t.Errorf("%v: told %s, want %s", how, identified(), want)
		}
	}
	log, err := os.ReadFile(p.Log)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(log), "boss") || strings.Contains(string(log), "10.9.9.9") {
		t.Errorf("somebody was the boss: %s", log)
	}
}

// Criterion: a client of a network from which Postfix withholds DSN
// (smtpd_discard_ehlo_keyword_address_maps), who was announced DSN, logs in and
// sends without it.
func TestPostfixThatWithholdsDSNFromANetworkTakesItsMail(t *testing.T) {
	t.Parallel()
	d := proxytest.StartDovecot(t, proxytest.DovecotOptions{Users: users, Config: "auth_failure_delay = 0\n"})
	p := proxytest.StartPostfix(t, proxytest.PostfixOptions{
		Dovecot: d, XCLIENT: "127.0.0.1", Config: "smtpd_discard_ehlo_keyword_address_maps = cidr:{{10.0.0.0/8 dsn}}\n",
	})
	s := &Server{Name: "main", Protocol: proxy.Submission, Address: p.SMTP, TLS: STARTTLS, Config: trustCA(t, p.CA), Identity: XCLIENT}
	if _, err := s.Probe(t.Context()); err != nil {
		t.Fatal(err)
	}
	announced := s.Offer().Extensions
	if !slices.Contains(announced, "DSN") {
		t.Errorf("%v announced, want DSN among them", announced)
	}
	l := withAddr(testSMTPLogin("", announced...), netip.MustParseAddrPort("10.1.2.3:50001"))
	l.Account, l.Secret = "alice", proxy.NewSecret([]byte(users["alice"]))
	session, err := (&Submission{Server: s, Hostname: "postern.example"}).Login(t.Context(), l)
	if err != nil {
		t.Fatal(err)
	}
	playSession(t, session, `
		C: MAIL FROM:<alice@example.org> SIZE=100 RET=HDRS
		S: 250 *
		C: RCPT TO:<`+p.Address("bob")+`> NOTIFY=FAILURE
		S: 250 *
		C: QUIT
		S: 221 *
		S: <EOF>
	`)
}
