package proxytest

import (
	"bytes"
	"testing"
)

func TestOpenSMTPDTakesMailAfterAuthAndDelivers(t *testing.T) {
	t.Parallel()
	s := StartOpenSMTPD(t, OpenSMTPDOptions{Users: map[string]string{"alice": "secret", "bob@other.example": "pa ss"}})
	conn := dial(t, s.SMTP)
	Transcript(t, conn, `
		S: 220 mx.example.org ESMTP OpenSMTPD
		C: EHLO client.example.net
		S: 250-mx.example.org Hello client.example.net *
		S: 250-8BITMIME
		S: 250-ENHANCEDSTATUSCODES
		S: 250-SIZE 36700160
		S: 250-DSN
		S: 250-STARTTLS
		S: 250 HELP
		C: STARTTLS
		S: 220 2.0.0 *
	`)
	Transcript(t, ClientTLS(conn, pool(t, s.CA)), `
		C: HELO client.example.net
		S: 250 *
		C: MAIL FROM:<alice@example.org>
		S: 530 5.5.1 *
		C: AUTH PLAIN AGFsaWNlAHdyb25n
		S: 535 Authentication failed
		C: QUIT
		S: 221 *
	`)
	Transcript(t, ClientTLS(dial(t, s.SMTPS), pool(t, s.CA)), `
		S: 220 *
		C: EHLO client.example.net
		S: 250-mx.example.org *
		S: 250-8BITMIME
		S: 250-ENHANCEDSTATUSCODES
		S: 250-SIZE 36700160
		S: 250-DSN
		S: 250-AUTH PLAIN LOGIN
		S: 250 HELP
		C: AUTH PLAIN AGJvYkBvdGhlci5leGFtcGxlAHBhIHNz
		S: 235 2.0.0 *
		C: EHLO client.example.net
		S: 503 5.5.1 Invalid command: Already identified
		C: XCLIENT LOGIN=alice
		S: 500 5.5.1 *
		C: RSET
		S: 250 2.0.0 *
		C: MAIL FROM:<bob@other.example>
		S: 250 2.0.0 *
		C: RCPT TO:<alice@example.org>
		S: 250 2.1.5 *
		C: RCPT TO:<bob@other.example>
		S: 250 2.1.5 *
		C: RCPT TO:<nobody@example.org>
		S: 524 5.2.4 *
		C: RCPT TO:<stranger@elsewhere.example>
		S: 550 *
		C: DATA
		S: 354 *
		C: Subject: sent
		C:
		C: ..
		C: last
		C: .
		S: 250 2.0.0 *
		C: QUIT
		S: 221 *
		S: <EOF>
	`)
	for _, user := range []string{"alice", "bob@other.example"} {
		if got, want := waitForMail(t, s, user), []byte("\n\n.\nlast\n"); !bytes.HasSuffix(got, want) {
			t.Errorf("%s got %q, want %q at the end", user, got, want)
		}
	}
	s.Stop(t)
	s.Start(t)
	// Without PIPELINING it means it.
	conn = dial(t, s.SMTP)
	Transcript(t, conn, `
		S: 220 *
		C- EHLO client.example.net\r\nNOOP\r\n
		S: 500 5.5.1 Invalid command: Pipelining not supported
		S: <EOF>
	`)
}
