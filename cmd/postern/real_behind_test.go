package main

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"postern/proxy/proxytest"
)

// launch is startPostern with listeners and backends of the test's own: each is
// a line of the configuration file, the listeners without an address. Their
// addresses are learnt by at.
func launch(t testing.TB, listeners, backends []string, more string) *postern {
	t.Helper()
	cert, key, ca := proxytest.CertFiles(t)
	dir := t.TempDir()
	var config strings.Builder
	config.WriteString("hostname: mail.example.org\nlisteners:\n")
	for _, l := range listeners {
		fmt.Fprintf(&config, "  - {address: \"127.0.0.1:0\", %s}\n", l)
	}
	fmt.Fprintf(&config, "tls:\n  certificates:\n    - {cert: %q, key: %q}\n", cert, key)
	fmt.Fprintf(&config, "backends:\n  %s\n", strings.Join(backends, "\n  "))
	fmt.Fprintf(&config, "metrics: {address: \"127.0.0.1:0\"}\nlog: {format: json, level: debug}\n%s", more)
	p := newPostern(dir, ca)
	p.start(t, file(t, dir, "postern.yaml", config.String()))
	p.listens(t, len(listeners))
	return p
}

// at returns the address of a listener by its name.
func (p *postern) at(t testing.TB, name string) string {
	t.Helper()
	for _, l := range p.logged(t, "listening") {
		if l.text("listener") == name {
			return l.text("address")
		}
	}
	t.Fatalf("Postern has no listener %s", name)
	return ""
}

// dialFrom connects from an address of this machine's loopback network.
func dialFrom(t testing.TB, source, address string) *net.TCPConn {
	t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(source)}, Timeout: patience}
	conn, err := d.DialContext(t.Context(), "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(patience))
	return conn.(*net.TCPConn)
}

// tlsOn speaks TLS on a connection to p.
func (p *postern) tlsOn(t testing.TB, conn net.Conn) *tls.Conn {
	t.Helper()
	pem, err := os.ReadFile(p.ca)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		t.Fatalf("no certificate in %s", p.ca)
	}
	return proxytest.ClientTLS(conn, pool)
}

// A restartable server can be stopped and started again on the same ports.
type restartable interface {
	Stop(testing.TB)
	Start(testing.TB)
}

// people are users of a server of the test's own.
func people(names ...string) (users []user, passwords map[string]string) {
	passwords = map[string]string{}
	for _, name := range names {
		u := user{name: name, password: newSecret(), address: name + "@example.org"}
		users = append(users, u)
		passwords[name] = u.password
	}
	return users, passwords
}

// Criterion: In front of Cyrus a right and a wrong password, IMAP and POP3 over
// the bridge work as in front of Dovecot.
func TestCyrusBehindServesIMAPAndPOP3(t *testing.T) {
	t.Parallel()
	users, passwords := people("alice", "bob")
	c := proxytest.StartCyrus(t, proxytest.CyrusOptions{Users: passwords})
	p := startPostern(t, behind{imap: fmt.Sprintf("{address: %q, ca: %q, server_name: localhost}", c.IMAPS, c.CA)}, "")
	for _, u := range users {
		for _, subject := range []string{"one", "two"} {
			c.Deliver(t, u.name, []byte(mail(u, subject)))
		}
	}
	wantBothProtocols(t, p, users[0], users[1])
	wantTemporaryWhileStopped(t, p, users[0], c)
}

// Criterion: In front of Courier a right and a wrong password, IMAP and POP3
// over the bridge work as in front of Dovecot.
func TestCourierBehindServesIMAPAndPOP3(t *testing.T) {
	t.Parallel()
	users, passwords := people("alice", "bob")
	c := proxytest.StartCourier(t, proxytest.CourierOptions{Users: passwords})
	p := startPostern(t, behind{imap: fmt.Sprintf("{address: %q, tls: none}", c.IMAP)}, "")
	for _, u := range users {
		for _, subject := range []string{"one", "two"} {
			c.Deliver(t, u.name, []byte(strings.ReplaceAll(mail(u, subject), "\r\n", "\n")))
		}
	}
	wantBothProtocols(t, p, users[0], users[1])
	wantTemporaryWhileStopped(t, p, users[0], c)
}

// wantBothProtocols has two users, each with the messages one and two, log in
// with a wrong password and a right one, by IMAP and by POP3.
func wantBothProtocols(t *testing.T, p *postern, byIMAP, byPOP3 user) {
	t.Helper()
	imap, wrong := dialTLS(t, p.imap, p.ca), dialTLS(t, p.pop3, p.ca)
	_ = imap.SetDeadline(time.Now().Add(patience))
	_ = wrong.SetDeadline(time.Now().Add(patience))
	send(t, imap, "a LOGIN "+byIMAP.name+" "+newSecret()+"\r\n")
	send(t, wrong, "USER "+byPOP3.name+"\r\nPASS "+newSecret()+"\r\n")
	until(t, imap, "a NO [AUTHENTICATIONFAILED] ") // Courier takes 5 s to say no
	until(t, wrong, "-ERR [AUTH] ")

	send(t, imap, "b LOGIN "+byIMAP.name+" "+byIMAP.password+"\r\n")
	answers := until(t, imap, "b ")
	if ok := answers[len(answers)-1]; !strings.HasPrefix(ok, "b OK [CAPABILITY IMAP4rev1 ") {
		t.Errorf("LOGIN = %s, want b OK with the server's capabilities", ok)
	}
	send(t, imap, "c SELECT INBOX\r\nd FETCH 1:2 BODY.PEEK[]\r\ne LOGOUT\r\n")
	got := strings.Join(until(t, imap, "e OK"), "\r\n")
	for _, want := range []string{"* 2 EXISTS", mail(byIMAP, "one"), mail(byIMAP, "two"), "\r\nd OK", "* BYE"} {
		if !strings.Contains(got, want) {
			t.Errorf("IMAP gives %s; want %q in it", got, want)
		}
	}

	c, size := loginPOP3(t, p.pop3, p.ca, byPOP3), len(mail(byPOP3, "one"))
	if got, want := string(c.body("LIST")), fmt.Sprintf("1 %d\r\n2 %d\r\n", size, size); got != want {
		t.Errorf("LIST = %q, want %q", got, want)
	}
	uidls := strings.Fields(string(c.body("UIDL")))
	wantBytes(t, "RETR", unstuffed(c.body("RETR 2")), []byte(mail(byPOP3, "two")))
	c.command("DELE 1")
	c.command("QUIT")
	c = loginPOP3(t, p.pop3, p.ca, byPOP3)
	if got, want := string(c.body("UIDL")), "1 "+uidls[3]+"\r\n"; got != want {
		t.Errorf("UIDL after DELE = %q, want %q", got, want)
	}
	wantBytes(t, "RETR after DELE", unstuffed(c.body("RETR 1")), []byte(mail(byPOP3, "two")))
	c.command("QUIT")
}

// wantTemporaryWhileStopped stops the server that p has behind it, and starts
// it again.
func wantTemporaryWhileStopped(t *testing.T, p *postern, u user, server restartable) {
	t.Helper()
	server.Stop(t)
	for _, protocol := range protocols {
		proxytest.Transcript(t, dialTLS(t, p.address(protocol.name), p.ca), lines(fmt.Sprintf(protocol.login, u.name, u.password), protocol.temporary))
	}
	server.Start(t)
	loginPOP3(t, p.pop3, p.ca, u).command("QUIT")
	imap := dialTLS(t, p.imap, p.ca)
	_ = imap.SetDeadline(time.Now().Add(patience))
	send(t, imap, "a LOGIN "+u.name+" "+u.password+"\r\n")
	until(t, imap, "a OK ") // Courier may have an [ALERT] before it
}

// Criterion: In front of OpenSMTPD, by either kind of TLS, a right password
// submits, a wrong one is told as wrong, and a stopped server as temporary.
func TestOpenSMTPDBehindTakesMail(t *testing.T) {
	proxytest.Need(t, "swaks")
	t.Parallel()
	users, passwords := people("alice")
	u := users[0]
	s := proxytest.StartOpenSMTPD(t, proxytest.OpenSMTPDOptions{Users: passwords})
	dir := t.TempDir()
	swaks := func(p *postern, subject, password string, status int) string {
		t.Helper()
		message := file(t, dir, subject, strings.TrimSuffix(mail(u, subject), "\r\n")) // swaks adds one
		return run(t, dir, nil, []string{"swaks", "--server", "localhost", "--port", port(t, p.at(t, "submission")), "--tls-on-connect",
			"--tls-verify", "--tls-ca-path", p.ca, "--helo", "client.example.net", "--auth", "PLAIN", "--auth-user", u.name,
			"--auth-password", password, "--from", u.address, "--to", u.address, "--data", "@" + message}, status)
	}
	const authFailed = 28
	var sent []string
	for subject, server := range map[string]string{
		"implicit": fmt.Sprintf("main: {submission: {address: %q, ca: %q, server_name: localhost}}", s.SMTPS, s.CA),
		"starttls": fmt.Sprintf("main: {submission: {address: %q, ca: %q, server_name: localhost, tls: starttls}}", s.SMTP, s.CA),
	} {
		p := launch(t, []string{"protocol: submission"}, []string{server}, "")
		swaks(p, subject, u.password, 0)
		sent = append(sent, subject)
		if subject == "starttls" {
			continue
		}
		if got := swaks(p, "wrong", newSecret(), authFailed); !strings.Contains(got, "535 5.7.8 ") {
			t.Errorf("%s: a wrong password is told so: %s; want 535 5.7.8", subject, hidden(got))
		}
		s.Stop(t)
		if got := swaks(p, "stopped", u.password, authFailed); !strings.Contains(got, "454 4.7.0 ") {
			t.Errorf("%s: a stopped server is told so: %s; want 454 4.7.0", subject, hidden(got))
		}
		s.Start(t)
		swaks(p, subject, u.password, 0)
		sent = append(sent, subject)
	}
	within(t, patience, "what was sent has arrived", func() bool { return len(s.Stored(t, u.name)) >= len(sent) })
	wantSubjects(t, "arrived", sorted(subjects(s.Stored(t, u.name))), sorted(sent)...)
}
