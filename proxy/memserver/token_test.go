package memserver

import (
	"encoding/base64"
	"testing"

	"postern/proxy/proxytest"
)

func TestAServerOfTokensRefusesPasswords(t *testing.T) {
	_, imapAddr, smtpAddr := startServer(t, Options{TakesToken: func(user, token string) bool { return user == "alice" && token == "t0ken" }})
	message := func(user, token string) string {
		return base64.StdEncoding.EncodeToString([]byte("user=" + user + "\x01auth=Bearer " + token + "\x01\x01"))
	}
	proxytest.Transcript(t, dial(t, imapAddr), `
		S: \* OK \[CAPABILITY * AUTH=XOAUTH2\] *
		C: 1 LOGIN alice secret
		S: 1 NO \[AUTHENTICATIONFAILED\] *
		C: 2 AUTHENTICATE PLAIN AGFsaWNlAHNlY3JldA==
		S: 2 NO *
		C: 3 AUTHENTICATE XOAUTH2 `+message("alice", "other")+`
		S: + eyJ*
		C:
		S: 3 NO \[AUTHENTICATIONFAILED\] *
		C: 4 AUTHENTICATE XOAUTH2 `+message("bob@demo.invalid", "t0ken")+`
		S: + eyJ*
		C:
		S: 4 NO *
		C: 5 AUTHENTICATE XOAUTH2 `+base64.StdEncoding.EncodeToString([]byte("alice"))+`
		S: + eyJ*
		C:
		S: 5 NO *
		C: 6 AUTHENTICATE XOAUTH2
		S: +\x20
		C: `+message("alice", "t0ken")+`
		S: 6 OK *
		C: 7 STATUS INBOX (MESSAGES)
		S: \* STATUS INBOX (MESSAGES 0)
		S: 7 OK *
	`)
	proxytest.Transcript(t, dial(t, smtpAddr), `
		S: 220 *
		C: EHLO client.example
		S: 250-*
		S: 250-PIPELINING
		S: 250-8BITMIME
		S: 250-ENHANCEDSTATUSCODES
		S: 250-CHUNKING
		S: 250-AUTH XOAUTH2
		S: 250-*
		S: 250-*
		S: 250-*
		S: 250 *
		C: AUTH PLAIN AGFsaWNlAHNlY3JldA==
		S: 504 *
		C: AUTH XOAUTH2 `+message("alice", "other")+`
		S: 334 eyJ*
		C:
		S: 535 *
		C: AUTH XOAUTH2 `+message("alice", "t0ken")+`
		S: 235 *
	`)
}
