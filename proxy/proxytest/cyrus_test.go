package proxytest

import (
	"net"
	"os"
	"strings"
	"testing"
)

func TestCyrusServesIMAPAndPOP3(t *testing.T) {
	t.Parallel()
	c := StartCyrus(t, CyrusOptions{
		Users:  map[string]string{"alice": "secret", "bob@example.org": `pa "ss`},
		Config: "failedloginpause: 0",
	})
	c.Deliver(t, "alice", []byte("Subject: first\r\n\r\n.\r\n"))
	c.Deliver(t, "bob@example.org", []byte("Subject: bob\r\n\r\nno end"))
	conn := dial(t, c.IMAP)
	Transcript(t, conn, `
		S: \* OK [CAPABILITY IMAP4rev1 LITERAL+ ID ENABLE STARTTLS AUTH=PLAIN AUTH=LOGIN SASL-IR] *
		C: a LOGIN alice wrong
		S: a NO Login failed: authentication failure
		C: b AUTHENTICATE PLAIN AGFsaWNlAHNlY3JldA==
		S: b OK [CAPABILITY * ESEARCH * MOVE * UIDPLUS * LOGINDISABLED * IDLE *] *
		C: c STATUS INBOX (MESSAGES UIDNEXT)
		S: \* STATUS INBOX (MESSAGES 1 UIDNEXT 2)
		S: c OK *
		C: d LOGOUT
		S: \* BYE *
		S: d OK *
		S: <EOF>
	`)
	Transcript(t, ClientTLS(dial(t, c.IMAPS), pool(t, c.CA)), `
		S: \* OK *
		C: a LOGIN bob@example.org "pa \"ss"
		S: a OK *
		C: b EXAMINE INBOX
		S: \* 1 EXISTS
		S: \* 1 RECENT
		S: \* FLAGS *
		S: \* OK [PERMANENTFLAGS *
		S: \* OK [UNSEEN 1] *
		S: \* OK [UIDVALIDITY *
		S: \* OK [UIDNEXT 2] *
		S: \* OK [HIGHESTMODSEQ *
		S: \* OK [MAILBOXID *
		S: \* OK [URLMECH INTERNAL] *
		S: \* OK [ANNOTATIONS 65536] *
		S: b OK [READ-ONLY] *
		C: c FETCH 1 BODY.PEEK[]
		S: \* 1 FETCH (BODY[] {22}
		S: Subject: bob
		S:
		S- no end)\r\n
		S: c OK *
	`)
	Transcript(t, ClientTLS(dial(t, c.POP3S), pool(t, c.CA)), `
		S: +OK *
		C: USER alice
		S: +OK *
		C: PASS secret
		S: +OK *
		C: LIST
		S: +OK *
		S: 1 21
		S: .
		C: RETR 1
		S: +OK *
		S: Subject: first
		S:
		S: ..
		S: .
		C: DELE 1
		S: +OK *
		C: QUIT
		S: +OK*
	`)
	c.Stop(t)
	if conn, err := net.Dial("tcp", c.IMAP); err == nil {
		_ = conn.Close()
		t.Error("a stopped Cyrus takes connections")
	}
	c.Start(t)
	Transcript(t, dial(t, c.POP3), `
		S: +OK *
		C: USER alice
		S: +OK *
		C: PASS secret
		S: +OK *
		C: STAT
		S: +OK 0 0
	`)
	if log, err := os.ReadFile(c.Log); err != nil || !strings.Contains(string(log), "badlogin: localhost [127.0.0.1] plaintext (alice)") {
		t.Errorf("log does not tell of the wrong password: %v\n%s", err, log)
	}
}
