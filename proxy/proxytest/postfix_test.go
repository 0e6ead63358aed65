package proxytest

import (
	"bytes"
	"testing"
	"time"
)

func TestPostfixTakesMailAfterAuthAndDeliversToDovecot(t *testing.T) {
	t.Parallel()
	d := StartDovecot(t, DovecotOptions{Users: map[string]string{"alice": "secret", "bob@other.example": "secret"}})
	p := StartPostfix(t, PostfixOptions{Dovecot: d})
	conn := dial(t, p.SMTP)
	Transcript(t, conn, `
		S: 220 mx.example.org ESMTP *
		C: HELO client.example.net
		S: 250 *
		C: STARTTLS
		S: 220 *
	`)
	Transcript(t, ClientTLS(conn, pool(t, p.CA)), `
		C: HELO client.example.net
		S: 250 *
		C: MAIL FROM:<alice@example.org>
		S: 250 *
		C: RCPT TO:<bob@other.example>
		S: 554 5.7.1 *
		C: RSET
		S: 250 *
		C: AUTH PLAIN AGFsaWNlAHdyb25n
		S: 535 5.7.8 *
		C: QUIT
		S: 221 *
	`)
	Transcript(t, ClientTLS(dial(t, p.SMTPS), pool(t, p.CA)), `
		S: 220 mx.example.org ESMTP *
		C: EHLO client.example.net
		S: 250-mx.example.org
		S: 250-PIPELINING
		S: 250-SIZE 104857600
		S: 250-VRFY
		S: 250-ETRN
		S: 250-AUTH PLAIN LOGIN
		S: 250-ENHANCEDSTATUSCODES
		S: 250-8BITMIME
		S: 250-DSN
		S: 250-SMTPUTF8
		S: 250 CHUNKING
		C: AUTH PLAIN AGFsaWNlAHNlY3JldA==
		S: 235 2.7.0 *
		C: MAIL FROM:<alice@example.org>
		S: 250 *
		C: RCPT TO:<alice@example.org>
		S: 250 *
		C: RCPT TO:<bob@other.example>
		S: 250 *
		C: RCPT TO:<nobody@example.org>
		S: 550 5.1.1 *
		C: DATA
		S: 354 *
		C: Subject: sent
		C:
		C: ..
		C: last
		C: .
		S: 250 *
		C: QUIT
		S: 221 *
		S: <EOF>
	`)
	for _, user := range []string{"alice", "bob@other.example"} {
		message := waitForMail(t, d, user)
		if want := []byte("Subject: sent\n"); !bytes.Contains(message, want) {
			t.Errorf("%s got %q, want %q in it", user, message, want)
		}
		if want := []byte("\n\n.\nlast\n"); !bytes.HasSuffix(message, want) {
			t.Errorf("%s got %q, want %q at the end", user, message, want)
		}
	}
	p.Stop(t)
	p.Start(t)
	Transcript(t, dial(t, p.SMTP), `S: 220 *`)
}

// waitForMail returns the only message of user as soon as it is there.
func waitForMail(t *testing.T, server interface {
	Stored(t testing.TB, user string) [][]byte
}, user string) []byte {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if stored := server.Stored(t, user); len(stored) == 1 {
			return stored[0]
		}
	}
	t.Fatalf("no mail for %s", user)
	return nil
}

func TestPostfixSendsNothingAwayAndBelievesXCLIENT(t *testing.T) {
	t.Parallel()
	d := StartDovecot(t, DovecotOptions{Users: map[string]string{"alice": "secret"}})
	p := StartPostfix(t, PostfixOptions{Dovecot: d, XCLIENT: "127.0.0.1", Domain: "mail.example"})
	if got, want := p.Address("alice"), "alice@mail.example"; got != want {
		t.Errorf("Address = %q, want %q", got, want)
	}
	Transcript(t, dial(t, p.SMTP), `
		S: 220 *
		C: HELO postern
		S: 250 *
		C: XCLIENT ADDR=192.0.2.7 NAME=client.example
		S: 220 *
		C: HELO postern
		S: 250 *
		C: AUTH PLAIN AGFsaWNlAHNlY3JldA==
		S: 235 *
		C: MAIL FROM:<alice@mail.example>
		S: 250 *
		C: RCPT TO:<stranger@elsewhere.example>
		S: 550 5.7.1 *
		C: RCPT TO:<alice@mail.example>
		S: 250 *
		C: DATA
		S: 354 *
		C: Subject: here
		C:
		C: .
		S: 250 *
	`)
	if got, want := waitForMail(t, d, "alice"), []byte("[192.0.2.7]"); !bytes.Contains(got, want) {
		t.Errorf("mail is %q, want %q in it", got, want)
	}
}
