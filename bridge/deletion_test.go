package bridge

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"postern/proxy"
	"postern/proxy/proxytest"
)

// deleting runs a session that deletes message 1 of two, and its QUIT.
func deleting(t *testing.T, d Deletion, capabilities, script, quit string) {
	t.Helper()
	near, far := proxytest.Pipe(t)
	proxytest.ServeTranscript(t, far, opened(5, 5)+script+"\nC: Q LOGOUT\nS: Q OK x\n")
	r := run(t, &Backend{LogIn: connected(near, capabilities), Delete: d, Estimates: true})
	proxytest.Transcript(t, r.conn, "C: DELE 1\nS: +OK *\nC: QUIT\nS: "+quit+"\nS: <EOF>")
}

const list = `
	C: T1 LIST (SPECIAL-USE) "" "*"
	S: * LIST (\Sent) "/" Sent
	S: * LIST (\HasNoChildren \Trash) "/" "Deleted &AOQ- Messages"
	S: T1 OK x
`

// Criterion: with delete: trash a message is moved to the \Trash mailbox, and without MOVE copied, which must be OK before anything is removed.
func TestDeletedMessagesGoToTheTrash(t *testing.T) {
	const all = "IMAP4rev1 UIDPLUS MOVE SPECIAL-USE"
	const copied = `
		C: T2 UID COPY 11 "Deleted &AOQ- Messages"
		S: T2 OK [COPYUID 8 11 1] x
		C: T3 UID STORE 11 +FLAGS.SILENT (\\Deleted)
		S: T3 OK x
		C: T4 UID EXPUNGE 11
		S: * 1 EXPUNGE
		S: T4 OK x
	`
	const failed = `-ERR \[SYS/TEMP] Some deleted messages were not removed (session ID42)`
	for _, test := range []struct{ name, capabilities, script, quit string }{
		{"MOVE", all, list + `
			C: T2 UID MOVE 11 "Deleted &AOQ- Messages"
			S: * OK [COPYUID 8 11 1] x
			S: * 1 EXPUNGE
			S: T2 OK x
		`, "+OK Goodbye"},
		{"MOVE refused", all, list + "C: T2 UID MOVE *\nS: T2 NO [OVERQUOTA] x", failed},
		{"COPY", "IMAP4rev1 UIDPLUS SPECIAL-USE", list + copied, "+OK Goodbye"},
		{"COPY refused", "IMAP4rev1 UIDPLUS SPECIAL-USE", list + "C: T2 UID COPY *\nS: T2 NO [OVERQUOTA] x", failed},
		{"a server without SPECIAL-USE", "IMAP4rev1 UIDPLUS", strings.Replace(list, "(SPECIAL-USE) ", "", 1) + copied, "+OK Goodbye"},
		{"no such mailbox", all, "C: T1 LIST *\nS: * LIST () \"/\" Trash\nS: T1 OK x", `-ERR \[SYS/PERM] There is no mailbox for deleted messages: they were not removed (session ID42)`},
		{"LIST refused", all, "C: T1 LIST *\nS: T1 NO x", failed},
	} {
		t.Run(test.name, func(t *testing.T) { deleting(t, Trash, test.capabilities, test.script, test.quit) })
	}
}

// Criterion: with delete: keep DELE is accepted and forgotten.
func TestDeletedMessagesAreKept(t *testing.T) { deleting(t, Keep, capabilities, "", "+OK Goodbye") }

// Criterion: with delete: hide a message stays for IMAP and is not shown to later POP3 sessions, which costs no round trip.
func TestDeletedMessagesAreHidden(t *testing.T) {
	near, far := proxytest.Pipe(t)
	const box = "C: T1 SELECT INBOX\nC: T2 UID SEARCH KEYWORD $POP3Deleted\nS: * 3 EXISTS\nS: * OK [UIDVALIDITY 7] x\nS: * OK [UIDNEXT 14] x\n"
	proxytest.ServeTranscript(t, far, box+`
		S: * OK [PERMANENTFLAGS (\\Deleted $POP3Deleted)] x
		S: T1 OK [READ-WRITE] x
		S: * SEARCH 12
		S: T2 OK x
		C: T3 UID FETCH 1:\* (UID RFC822.SIZE)
		S: * 1 FETCH (UID 11 RFC822.SIZE 1)
		S: * 2 FETCH (UID 12 RFC822.SIZE 2)
		S: * 3 FETCH (UID 13 RFC822.SIZE 3)
		S: T3 OK x
		C: T1 UID STORE 13 +FLAGS.SILENT ($POP3Deleted)
		S: T1 OK x
		C: Q LOGOUT
		S: Q OK x
	`)
	proxytest.Transcript(t, run(t, &Backend{LogIn: connected(near, capabilities), Delete: Hide, Estimates: true}).conn, `
		C: STAT
		S: +OK 2 4
		C: UIDL
		S: +OK *
		S: 1 0000000b00000007
		S: 2 0000000d00000007
		S: .
		C: DELE 2
		S: +OK *
		C: QUIT
		S: +OK Goodbye
	`)
	near, far = proxytest.Pipe(t)
	proxytest.ServeTranscript(t, far, strings.Replace(box, "* 3 EXISTS", "* 0 EXISTS", 1)+"S: * OK [PERMANENTFLAGS (\\\\Deleted)] x\nS: T1 OK x\nS: T2 OK x\nC: Q LOGOUT\nS: Q OK x")
	session, err := (&Backend{LogIn: connected(near, capabilities), Delete: Hide}).Login(t.Context(), &proxy.Login{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = session.Close() }()
	_, err = session.Open(t.Context())
	if r, ok := errors.AsType[*proxy.Refusal](err); !ok || r.Reason != proxy.Unusable || !r.Verified {
		t.Errorf("Open = %v, want a refusal as unusable that costs no guess", err)
	}
}

// Criterion: what is retrieved stays unseen if the operator wants it so.
func TestRetrievedMessagesStayUnseen(t *testing.T) {
	near, far := proxytest.Pipe(t)
	proxytest.ServeTranscript(t, far, opened(5)+`
		C: F1 UID FETCH 11 (UID BODY.PEEK[])
		S- * 1 FETCH (UID 11 BODY[] {5}\r\nabc\r\n)\r\nF1 OK x\r\n
		C: Q LOGOUT
		S: Q OK x
	`)
	proxytest.Transcript(t, run(t, &Backend{LogIn: connected(near, capabilities), KeepUnseen: true}).conn, `
		C: RETR 1
		S: +OK 5 octets
		S: abc
		S: .
		C: QUIT
		S: +OK Goodbye
	`)
}

func TestDeletionsHaveNames(t *testing.T) {
	for _, d := range []Deletion{Expunge, Trash, Hide, Keep} {
		if got, ok := ParseDeletion(d.String()); got != d || !ok {
			t.Errorf("ParseDeletion(%s) = %v, %v", d, got, ok)
		}
	}
	if _, ok := ParseDeletion("shred"); ok {
		t.Error("shred is a deletion")
	}
}

// Criterion: sizes are those of RETR at the first LIST: the ends of messages are looked at, all in one flight, and of a large maildrop those of new ones.
func TestSizesAreExactAtTheFirstLIST(t *testing.T) {
	near, far := proxytest.Pipe(t)
	proxytest.ServeTranscript(t, far, opened(10, 20, 0, 1, 30, 40)+`
		C: F1 UID FETCH 16 (UID BODY.PEEK[]<38.2>)
		C: F2 UID FETCH 15 (UID BODY.PEEK[]<28.2>)
		C: F3 UID FETCH 12 (UID BODY.PEEK[]<18.2>)
		C: F4 UID FETCH 11 (UID BODY.PEEK[]<8.2>)
		S- * 6 FETCH (UID 16 BODY[]<38> {1}\r\nx)\r\nF1 OK x\r\n
		S- * 2 FETCH (FLAGS (\\Seen) UID 12)\r\n* 2 FETCH (UID 12 BODY[]<18> "ab")\r\n
		S: F2 NO [LIMIT] x
		S: F3 OK x
		S- * 1 FETCH (BODY[]<8> {2}\r\n\r\n UID 11)\r\nF4 OK x\r\n
		C: Q LOGOUT
		S: Q OK x
	`)
	proxytest.Transcript(t, run(t, &Backend{LogIn: connected(near, capabilities)}).conn, `
		C: STAT
		S: +OK 6 107
		C: LIST
		S: +OK *
		S: 1 10
		S: 2 22
		S: 3 2
		S: 4 3
		S: 5 30
		S: 6 40
		S: .
		C: QUIT
		S: +OK Goodbye
	`)
}

// Criterion: a message over whose end the server hangs up is not asked for its end again, and has the server's size until it is retrieved.
func TestAMessageWhoseEndCostsTheConnectionIsRememberedSo(t *testing.T) {
	const (
		again = "C: T1 SELECT INBOX\nS: * 3 EXISTS\nS: * OK [UIDVALIDITY 7] x\nS: * OK [UIDNEXT 99] x\nS: T1 OK x\n"
		last  = "S- * 3 FETCH (UID 13 BODY[]<28> {2}\\r\\n\\r\\n)\\r\\nF1 OK x\\r\\n\n"
		short = "S- * 2 FETCH (UID 12 BODY[]<18> {2}\\r\\n\\n\n" // as Dovecot does for CR CR LF
	)
	near, far := proxytest.Pipe(t)
	proxytest.ServeTranscript(t, far, opened(10, 20, 30)+`
		C: F1 UID FETCH 13 (UID BODY.PEEK[]<28.2>)
		C: F2 UID FETCH 12 (UID BODY.PEEK[]<18.2>)
		C: F3 UID FETCH 11 (UID BODY.PEEK[]<8.2>)
	`+last+short+`
		S: <EOF>
	`)
	near2, far2 := proxytest.Pipe(t)
	proxytest.ServeTranscript(t, far2, again+`
		C: F1 UID FETCH 11 (UID BODY.PEEK[]<8.2>)
		S- * 1 FETCH (UID 11 BODY[]<8> {2}\r\nx\n)\r\nF1 OK x\r\n
		C: F2 UID FETCH 12 (UID BODY.PEEK[])
		S- * 2 FETCH (UID 12 BODY[] {18}\r\nSubject: x\r\n\r\nx\r\r\n)\r\nF2 OK x\r\n
		C: Q LOGOUT
		S: Q OK x
	`)
	near3, far3 := proxytest.Pipe(t)
	proxytest.ServeTranscript(t, far3, again+"C: Q LOGOUT\nS: Q OK x")
	b := &Backend{LogIn: connected(near, capabilities, near2, near3), Cache: &memory{}, KeepUnseen: true}
	list := func(sizes ...int) string {
		s := "C: LIST\nS: +OK *\n"
		for i, size := range sizes {
			s += fmt.Sprintf("S: %d %d\n", i+1, size)
		}
		return s + "S: .\n"
	}
	for i, script := range []string{
		list(10, 20, 30),
		list(12, 20, 30) + "C: RETR 2\nS: +OK 18 octets\nS- Subject: x\\r\\n\\r\\nx\\r\\r\\n.\\r\\n\n" + list(12, 18, 30),
		list(12, 18, 30),
	} {
		r := run(t, b)
		proxytest.Transcript(t, r.conn, script+"C: QUIT\nS: +OK Goodbye")
		if err := r.wait(t); err != nil {
			t.Errorf("session %d: %v", i+1, err)
		}
	}
}
