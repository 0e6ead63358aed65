package backend

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"postern/proxy"
	"postern/proxy/proxytest"
)

// trustCA returns a TLS configuration that trusts ca.
func trustCA(t *testing.T, ca string) *tls.Config {
	t.Helper()
	pem, err := os.ReadFile(ca)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		t.Fatalf("no certificate in %s", ca)
	}
	return &tls.Config{RootCAs: pool, ServerName: "localhost", MinVersion: tls.VersionTLS12}
}

// users of the real servers. Passwords of every kind that has to be quoted.
var users = map[string]string{"alice": `pa"ss \w{ör}d`, "bob": "simple"}

// playSession plays a client's script through session until it ends.
func playSession(t *testing.T, session proxy.Session, script string) {
	t.Helper()
	client, near := proxytest.Pipe(t)
	conn := proxy.NewConn(near, proxy.Client{ID: "TEST"}, nil, time.Minute)
	done := make(chan error, 1)
	go func() {
		err := session.Run(t.Context(), conn)
		_ = session.Close()
		_ = conn.Close()
		done <- err
	}()
	proxytest.Transcript(t, client, script)
	_ = client.Close()
	t.Logf("the session ended: %v", <-done)
}

// Criterion: passwords with spaces, quotes and 8 bits open a session at real old POP3 servers: Dovecot with TLS, with STLS and without; Courier, Cyrus; popa3d.
func TestPOP3OnRealServers(t *testing.T) {
	t.Parallel()
	d := proxytest.StartDovecot(t, proxytest.DovecotOptions{Users: users, POP3: true, Config: "auth_failure_delay = 0\nauth_mechanisms = plain login\n"})
	servers := []*Server{
		{Name: "Dovecot, implicit", Address: d.POP3S, TLS: Implicit, Config: trustCA(t, d.CA)},
		{Name: "Dovecot, starttls", Address: d.POP3, TLS: STARTTLS, Config: trustCA(t, d.CA)},
		{Name: "Dovecot", Address: d.POP3, TLS: None},
		{Name: "Courier", Address: proxytest.StartCourier(t, proxytest.CourierOptions{Users: users}).POP3, TLS: None},
		{Name: "Cyrus", Address: proxytest.StartCyrus(t, proxytest.CyrusOptions{Users: users}).POP3, TLS: None},
		{Name: "popa3d", Address: proxytest.StartMboxServer(t, "popa3d", users).Addr, TLS: None, Kind: Popa3d},
	}
	for _, s := range servers {
		s.Protocol = proxy.POP3
		if report, err := s.Probe(t.Context()); err != nil || !slices.Contains(report.Mechanisms, "PLAIN") {
			t.Errorf("%s: Probe = %+v, %v", s.Name, report, err)
		}
		_, err := (&POP3{Server: s}).Login(t.Context(), testLogin("alice", "wrong"))
		checkRefusal(t, err, proxy.Wrong)
		for user, password := range users {
			session, err := (&POP3{Server: s}).Login(t.Context(), testLogin(user, password))
			if err != nil {
				t.Errorf("%s, %s: %v", s.Name, user, err)
				continue
			}
			if _, err := session.Open(t.Context()); err != nil {
				t.Errorf("%s, %s: Open: %v", s.Name, user, err)
			}
			playSession(t, session, "C: STAT\nS: +OK 0 0*\nC: QUIT\nS: +OK*\nS: <EOF>")
		}
	}
}

func TestIMAPOnARealDovecot(t *testing.T) {
	t.Parallel()
	d := proxytest.StartDovecot(t, proxytest.DovecotOptions{
		Users: users, Config: "auth_failure_delay = 0\nauth_mechanisms = plain login\n",
	})
	for _, s := range []*Server{
		{Name: "implicit", Address: d.IMAPS, TLS: Implicit},
		{Name: "starttls", Address: d.IMAP, TLS: STARTTLS},
	} {
		s.Protocol, s.Config = proxy.IMAP, trustCA(t, d.CA)
		report, err := s.Probe(t.Context())
		if err != nil || !slices.Contains(report.Mechanisms, "PLAIN") || !strings.Contains(report.Greeting, "Dovecot") {
			t.Errorf("%s: Probe = %+v, %v", s.Name, report, err)
		}
		_, err = (&IMAP{Server: s}).Login(t.Context(), testLogin("alice", "wrong"))
		checkRefusal(t, err, proxy.Wrong)
		session, err := (&IMAP{Server: s}).Login(t.Context(), testLogin("alice", users["alice"]))
		if err != nil {
			t.Fatalf("%s: %v", s.Name, err)
		}
		if welcome, _ := session.Open(t.Context()); !strings.Contains(welcome, " IDLE ") {
			t.Errorf("%s: Open = %s, want what Dovecot can after login", s.Name, welcome)
		}
		playSession(t, session, `
			C- a SELECT INBOX\r\nb LOGOUT\r\n
			S: \* FLAGS *
			S: \* OK [PERMANENTFLAGS*
			S: \* * EXISTS
			S: \* * RECENT
			S: \* OK [UIDVALIDITY*
			S: \* OK [UIDNEXT*
			S: a OK *
			S: \* BYE *
			S: b OK *
			S: <EOF>
		`)
	}
	stopped := &Server{Name: "stopped", Protocol: proxy.IMAP, Address: d.IMAPS, Config: trustCA(t, d.CA)}
	d.Stop(t)
	_, err := (&IMAP{Server: stopped}).Login(t.Context(), testLogin("alice", users["alice"]))
	checkRefusal(t, err, proxy.Unavailable)
}

// Criterion: behind a Postfix that trusts Postern with XCLIENT no user becomes
// another one, and no message becomes two.
func TestSubmissionOnARealPostfix(t *testing.T) {
	t.Parallel()
	d := proxytest.StartDovecot(t, proxytest.DovecotOptions{Users: users, Config: "auth_failure_delay = 0\n"})
	p := proxytest.StartPostfix(t, proxytest.PostfixOptions{Dovecot: d, XCLIENT: "127.0.0.1"})
	for _, s := range []*Server{
		{Name: "implicit", Address: p.SMTPS, TLS: Implicit},
		{Name: "starttls", Address: p.SMTP, TLS: STARTTLS},
	} {
		s.Protocol, s.Config = proxy.Submission, trustCA(t, p.CA)
		report, err := s.Probe(t.Context())
		if err != nil || !slices.Contains(report.Mechanisms, "PLAIN") || len(s.Offer().Extensions) < 4 {
			t.Fatalf("%s: Probe = %+v, %v", s.Name, report, err)
		}
		backend := &Submission{Server: s, Hostname: "postern.example"}
		_, err = backend.Login(t.Context(), testSMTPLogin("wrong"))
		checkRefusal(t, err, proxy.Wrong)
		l := testSMTPLogin("", s.Offer().Extensions...)
		l.Account, l.Secret = "alice", proxy.NewSecret([]byte(users["alice"]))
		session, err := backend.Login(t.Context(), l)
		if err != nil {
			t.Fatalf("%s: %v", s.Name, err)
		}
		address := p.Address("bob")
		playSession(t, session, `
			C: XCLIENT LOGIN=boss
			S: 502 *
			C: EHLO again
			S: 250-postern.example
			S: 250-PIPELINING
			`+strings.Repeat("S: 250-*\n", len(l.Offer.Extensions)-2)+`
			S: 250 AUTH PLAIN LOGIN
			C- MAIL FROM:<alice@example.org>\r\nRCPT TO:<`+address+`>\r\nDATA\r\n
			S: 250 *
			S: 250 *
			S: 354 *
			C- Subject: one\r\n\r\n..dot\r\nbare\n.\nMAIL FROM:<boss@example.org>\r.\r\nend\r\n.\r\n
			S: 250 *
			C- MAIL FROM:<alice@example.org>\r\nRCPT TO:<`+address+`>\r\n
			S: 250 *
			S: 250 *
			C- BDAT 16\r\nSubject: two\r\n\r\n
			S: 250 *
			C- BDAT 4 LAST\r\n.\n.\n
			S: 250 *
			C: QUIT
			S: 221 *
			S: <EOF>
		`)
		if got := session.(proxy.Reporter).Totals().Submitted; got != 2 {
			t.Errorf("%s: Submitted = %d, want 2", s.Name, got)
		}
	}
	for _, end := range []string{"\n\n.dot\nbare\n.\nMAIL FROM:<boss@example.org>\n.\nend\n", "\n\n.\n.\n"} {
		stored := waitFor(t, d, "bob", 4)
		stored = slices.DeleteFunc(stored, func(message []byte) bool { return !bytes.HasSuffix(message, []byte(end)) })
		if len(stored) != 2 {
			t.Errorf("%d messages end with %q, want 2", len(stored), end)
		}
	}
	log, err := os.ReadFile(p.Log)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(log, []byte("boss")) {
		t.Errorf("somebody was the boss: %s", log)
	}
}

// waitFor waits until Postfix has delivered so many messages.
func waitFor(t *testing.T, d *proxytest.Dovecot, user string, messages int) [][]byte {
	t.Helper()
	for range 100 {
		if stored := d.Stored(t, user); len(stored) >= messages {
			return stored
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Fatalf("%d messages, want %d", len(d.Stored(t, user)), messages)
	return nil
}
