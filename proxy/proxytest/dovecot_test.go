package proxytest

import (
	"crypto/x509"
	"net"
	"os"
	"strings"
	"testing"
)

func dial(t *testing.T, addr string) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func pool(t *testing.T, ca string) *x509.CertPool {
	t.Helper()
	pem, err := os.ReadFile(ca)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		t.Fatalf("no certificate in %s", ca)
	}
	return pool
}

func TestTwoDovecotsServeOneStore(t *testing.T) {
	t.Parallel()
	users := map[string]string{"alice": "secret", "bob@example.org": "pa ss"}
	backend := StartDovecot(t, DovecotOptions{Users: users})
	reference := StartDovecot(t, DovecotOptions{Users: users, POP3: true, Share: backend})
	if backend.POP3 != "" || backend.POP3S != "" {
		t.Errorf("the backend serves POP3 at %q, %q", backend.POP3, backend.POP3S)
	}
	backend.Deliver(t, "alice", []byte("Subject: lf\n\n.\n"))
	backend.Deliver(t, "alice", []byte("Subject: crlf\r\n\r\nno end"))
	Transcript(t, dial(t, backend.IMAP), `
		S: \* OK *
		C: a LOGIN alice wrong
		S: a NO [AUTHENTICATIONFAILED] *
		C: b LOGIN alice secret
		S: b OK *
		C: c STATUS INBOX (MESSAGES UIDNEXT)
		S: \* STATUS INBOX (MESSAGES 2 UIDNEXT 3)
		S: c OK *
	`)
	Transcript(t, ClientTLS(dial(t, backend.IMAPS), pool(t, backend.CA)), `
		S: \* OK *
		C: b LOGIN bob@example.org "pa ss"
		S: b OK *
	`)
	Transcript(t, ClientTLS(dial(t, reference.POP3S), pool(t, reference.CA)), `
		S: +OK *
		C: USER alice
		S: +OK*
		C: PASS secret
		S: +OK*
		C: LIST
		S: +OK 2 messages:
		S: 1 18
		S: 2 23
		S: .
		C: RETR 1
		S: +OK *
		S: Subject: lf
		S:
		S: ..
		S: .
		C: DELE 2
		S: +OK*
		C: QUIT
		S: +OK*
	`)
	stored := backend.Stored(t, "alice")
	if len(stored) != 1 || string(stored[0]) != "Subject: lf\n\n.\n" {
		t.Errorf("stored = %q, want the first message alone", stored)
	}
}

func TestDovecotStopsAndStartsOnTheSamePorts(t *testing.T) {
	t.Parallel()
	d := StartDovecot(t, DovecotOptions{Users: map[string]string{"alice": "secret"}, POP3: true})
	conn := dial(t, d.POP3)
	Transcript(t, conn, `S: +OK *`)
	d.Stop(t)
	Transcript(t, conn, `S: <EOF>`)
	if conn, err := net.Dial("tcp", d.IMAP); err == nil {
		_ = conn.Close()
		t.Error("a stopped Dovecot takes connections")
	}
	d.Start(t)
	Transcript(t, dial(t, d.IMAP), `S: \* OK *`)
	if got, want := d.Doveadm(t, "user", "-f", "home", "alice"), d.Store+"/alice\n"; got != want {
		t.Errorf("doveadm user = %q, want %q", got, want)
	}
}

func TestDovecotBelievesATrustedClientsID(t *testing.T) {
	t.Parallel()
	d := StartDovecot(t, DovecotOptions{
		Users:   map[string]string{"alice": "secret"},
		Trusted: "127.0.0.0/8",
		Config:  "auth_failure_delay = 0\nauth_verbose = yes",
	})
	Transcript(t, dial(t, d.IMAP), `
		S: \* OK *
		C: a ID ("x-originating-ip" "192.0.2.7")
		S: \* ID *
		S: a OK *
		C: b LOGIN alice secret
		S: b OK *
		C: c LOGOUT
		S: \* BYE *
		S: c OK *
		S: <EOF>
	`)
	if log := tail(d.Log); !strings.Contains(log, "rip=192.0.2.7") {
		t.Errorf("log does not name 192.0.2.7:\n%s", log)
	}
}
