package proxytest

import (
	"net"
	"testing"
	"time"
)

func TestCourierServesIMAPAndPOP3(t *testing.T) {
	t.Parallel()
	c := StartCourier(t, CourierOptions{Users: map[string]string{"alice": "secret", "bob@example.org": "pa ss"}})
	c.Deliver(t, "alice", []byte("Subject: first\n\n.\n"))
	c.Deliver(t, "alice", []byte("Subject: second\n\nno end"))
	Transcript(t, dial(t, c.IMAP), `
		S: \* OK [CAPABILITY IMAP4rev1 UIDPLUS CHILDREN NAMESPACE THREAD=ORDEREDSUBJECT THREAD=REFERENCES SORT QUOTA IDLE ACL ACL2=UNION ENABLE UTF8=ACCEPT] *
		C: a LOGIN alice secret
		S: \* OK [ALERT] Filesystem notification *
		S: a OK LOGIN Ok.
		C: b SELECT INBOX
		S: \* FLAGS *
		S: \* OK [PERMANENTFLAGS *
		S: \* 2 EXISTS
		S: \* 2 RECENT
		S: \* OK [UIDVALIDITY *
		S: \* OK [MYRIGHTS "acdilrsw"] ACL
		S: b OK [READ-WRITE] Ok
		C: c STATUS INBOX (MESSAGES UIDNEXT)
		S: \* STATUS "INBOX" (MESSAGES 2 UIDNEXT 3)
		S: c OK *
		C: d UID FETCH 1:* (RFC822.SIZE)
		S: \* 1 FETCH (UID 1 RFC822.SIZE 21)
		S: \* 2 FETCH (UID 2 RFC822.SIZE *)
		S: d OK *
		C: e UID FETCH 1 BODY.PEEK[]
		S: \* 1 FETCH (UID 1 BODY[] {21}
		S: Subject: first
		S:
		S: .
		S: )
		S: e OK *
		C: f LOGOUT
		S: \* BYE *
		S: f OK *
		S: <EOF>
	`)
	Transcript(t, dial(t, c.POP3), `
		S: +OK *
		C: USER bob@example.org
		S: +OK *
		C: PASS pa ss
		S: +OK *
		C: STAT
		S: +OK 0 0
		C: QUIT
		S: +OK *
	`)
	Transcript(t, dial(t, c.POP3), `
		S: +OK *
		C: USER alice
		S: +OK *
		C: PASS secret
		S: +OK *
		C: RETR 1
		S: +OK *
		S: Subject: first
		S:
		S: ..
		S: .
		C: DELE 1
		S: +OK *
		C: QUIT
		S: +OK *
		S: <EOF>
	`) // it says +OK before it removes
	if got := c.Stored(t, "alice"); len(got) != 1 || string(got[0]) != "Subject: second\n\nno end" {
		t.Errorf("stored = %q, want the second message alone", got)
	}
	c.Stop(t)
	if conn, err := net.Dial("tcp", c.IMAP); err == nil {
		_ = conn.Close()
		t.Error("a stopped Courier takes connections")
	}
	c.Start(t)
	conn := dial(t, c.IMAP)
	Transcript(t, conn, `
		S: \* OK *
		C: a LOGIN alice wrong
	`)
	waitForLine(t, conn, "a NO Login failed.\r\n")
}

// waitForLine is a step of a transcript that may take longer.
func waitForLine(t *testing.T, conn net.Conn, want string) {
	t.Helper()
	if err := conn.SetDeadline(time.Now().Add(startTimeout)); err != nil {
		t.Fatal(err)
	}
	line, err := readLine(conn)
	if err != nil || string(line) != want {
		t.Errorf("got %q, %v, want %q", line, err, want)
	}
}
