package bridge

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"strings"
	"testing"
	"unicode/utf8"

	"postern/bridge/inbox"
	"postern/proxy"
	"postern/proxy/proxytest"
)

const (
	international1 = "Subject: gr\u00fc\u00df dich\r\n\r\nHello\r\n"                // RFC 6532
	latin1         = "Subject: gr\xfc\xdf dich\r\n\r\nHello\r\n"                    // old, and broken
	eightBit       = "Subject: ascii\r\n\r\nGr\u00fc\u00dfe in an 8bit body\r\n"    // MIME's
	continued      = "Subject: a\r\n \u00fc\r\nX: \xfc\r\nFrom: b\r\n\r\nHello\r\n" // both
)

// inMode makes the clients of b those that have said UTF8.
func inMode(b *Backend) *Backend {
	dial := b.LogIn
	b.LogIn = func(ctx context.Context, l *proxy.Login) (net.Conn, string, error) {
		l.Hello.UTF8 = true
		return dial(ctx, l)
	}
	return b
}

// Criterion: with pop3.utf8 a client that has not said UTF8 is refused a message with a header in UTF-8, with [UTF8], by RETR and TOP; all else passes as it is, and the session goes on.
func TestHeadersInUTF8AreForUTF8Mode(t *testing.T) {
	_, b := serve(t, international1, latin1, eightBit, continued, hello)
	b.UTF8 = true
	r := run(t, b)
	const refused = `S: -ERR [UTF8] Message %d has a header in UTF-8, which your mail program does not ask for`
	proxytest.Transcript(t, r.conn, `
		C: LIST 1
		S: +OK 1 `+fmt.Sprint(len(international1))+`
		C: RETR 1
		`+fmt.Sprintf(refused, 1)+`
		C: TOP 1 0
		`+fmt.Sprintf(refused, 1)+`
		C: TOP 1 1
		`+fmt.Sprintf(refused, 1)+`
		C: TOP 1 20000
		`+fmt.Sprintf(refused, 1)+`
		C: RETR 2
		S: +OK *
		S- `+escape(latin1)+`.\r\n
		C: TOP 2 9
		S: +OK *
		S- `+escape(latin1)+`.\r\n
		C: RETR 3
		S: +OK *
		S- `+escape(eightBit)+`.\r\n
		C: RETR 4
		`+fmt.Sprintf(refused, 4)+`
		C: UTF8
		S: -ERR UTF8 comes before login
		C: CAPA
		S: +OK *
		S: TOP
		S: UIDL
		S: RESP-CODES
		S: AUTH-RESP-CODE
		S: PIPELINING
		S: UTF8
		S: IMPLEMENTATION Postern
		S: .
		C: DELE 1
		S: +OK *
		C: QUIT
		S: +OK *
	`)
	if err := r.wait(t); err != nil {
		t.Error(err)
	}
}

// Criterion: a client in UTF-8 mode, and every client where pop3.utf8 is off, gets all messages as they are.
func TestMessagesPassAsTheyAre(t *testing.T) {
	for _, on := range []bool{true, false} {
		_, b := serve(t, international1, latin1)
		if b.UTF8 = on; on {
			b = inMode(b)
		}
		proxytest.Transcript(t, run(t, b).conn, `
			C: RETR 1
			S: +OK *
			S- `+escape(international1)+`.\r\n
			C: TOP 1 0
			S: +OK *
			S- `+escape(international1[:strings.Index(international1, "Hello")])+`.\r\n
			C: RETR 2
			S: +OK *
			S- `+escape(latin1)+`.\r\n
		`)
	}
}

// The header is looked at as it comes, and so far as it fits the buffer.
func TestLongHeadersInUTF8(t *testing.T) {
	for before, want := range map[int]string{20_000: "-ERR [UTF8]", inbox.ReaderSize: "+OK"} {
		body := strings.Repeat("X-Long: x\r\n", before/11+1) + international1 + strings.Repeat("text\r\n", 30_000)
		_, b := serve(t, body)
		b.UTF8 = true
		proxytest.Transcript(t, run(t, b).conn, "C: RETR 1\nS: "+want+" *")
	}
}

// What is looked at before +OK may be had from another connection.
func TestServerLostWithinALongHeader(t *testing.T) {
	body := strings.Repeat("X-Long: x\r\n", 1000) + "\r\n" + strings.Repeat("text\r\n", 2000)
	row := fmt.Sprintf("C: F1 UID FETCH *\nS- * 1 FETCH (UID 11 BODY[] {%d}\\r\\n", len(body))
	r := faulty(t, &Backend{UTF8: true}, opened(len(body))+row+escape(body[:5000])+"\nS: <EOF>",
		again+row+escape(body)+`)\r\nF1 OK x\r\n`)
	proxytest.Transcript(t, r.conn, "C: RETR 1\nS: +OK *\nS- "+escape(body)+`.\r\n`)
}

func TestInternationalHeaders(t *testing.T) {
	for header, want := range map[string]bool{
		"": false, "Subject: x\r\n": false, "Subject: \u00fc\r\n": true, "Subject: \u00fc": true, "Subject: \u00fc\n": true,
		"Subject: \xfc\r\n": false, "Subject: \xfc\r\nTo: \u00fc\r\n": true, "Subject: \xc3": false, "\u00fc\xfc\r\n": false,
	} {
		if got := international([]byte(header)); got != want {
			t.Errorf("international(%q) = %v, want %v", header, got, want)
		}
	}
	for message, want := range map[string]string{
		"A: b\r\n\r\nc": "A: b\r\n", "A: b\n\nc\n\n": "A: b\n", "\r\nc": "", "\nc": "", "A: b\r\n\r\n": "A: b\r\n",
	} {
		if header, whole := cutHeader([]byte(message)); string(header) != want || !whole {
			t.Errorf("cutHeader(%q) = %q, %v, want %q", message, header, whole, want)
		}
	}
	for _, message := range []string{"", "A: b", "A: b\r\n", "A: b\r\n\r", "\r"} {
		if header, whole := cutHeader([]byte(message)); string(header) != message || whole {
			t.Errorf("cutHeader(%q) = %q, %v, want all, and more to come", message, header, whole)
		}
	}
}

// FuzzHeader: a header is the same wherever the message was cut behind it.
func FuzzHeader(f *testing.F) {
	f.Add([]byte(international1), 12)
	f.Add([]byte("A: b\n\r\n\xfc"), 7)
	f.Fuzz(func(t *testing.T, message []byte, cut int) {
		header, whole := cutHeader(message)
		if !bytes.HasPrefix(message, header) {
			t.Fatalf("%q does not begin with %q", message, header)
		}
		if cut < 0 || cut > len(message) {
			return
		}
		part, early := cutHeader(message[:cut])
		if early && (!whole || !bytes.Equal(part, header)) || !early && len(part) != cut {
			t.Errorf("cutHeader(%q) = %q, %v; of its first %d octets %q, %v", message, header, whole, cut, part, early)
		}
		if international(header) && !utf8.Valid(header) && !bytes.ContainsAny(header, "\n") {
			t.Errorf("%q is UTF-8", header)
		}
	})
}

// Criterion: with pop3.utf8 a server that offers it is asked for messages in UTF-8, RFC 6855, without a round trip more, also after a reconnection.
func TestServersAreAskedForUTF8(t *testing.T) {
	const enable = "C: T1 ENABLE UTF8=ACCEPT\nC: T2 SELECT INBOX\nS: * ENABLED UTF8=ACCEPT\nS: T1 OK x\n"
	selected := "S: * 1 EXISTS\nS: * OK [UIDVALIDITY 7] x\nS: * OK [UIDNEXT 99] x\nS: T2 OK x\n"
	rows := "C: T3 UID FETCH 1:\\* (UID RFC822.SIZE)\nS: * 1 FETCH (UID 11 RFC822.SIZE 5)\nS: T3 OK x\n"
	for offered, scripts := range map[string][]string{
		"UTF8=ACCEPT": {enable + selected + rows + "S: <EOF>", enable + selected + `
			C: F1 UID FETCH 11 (UID BODY.PEEK[])
			S- * 1 FETCH (UID 11 BODY[] {5}\r\nabc\r\n)\r\nF1 OK x\r\n
			C: T1 LIST (SPECIAL-USE) "" "\*"
			S: * LIST (\Trash) "/" "Gel` + "\u00f6" + `scht"
			S: T1 OK x
			C: T2 UID MOVE 11 "Gel` + escape("\u00f6") + `scht"
			S: T2 OK x
			C: Q LOGOUT
			S: Q OK x
		`},
		"UTF8=ONLY":             {enable + selected + rows + "C: Q LOGOUT\nS: Q OK x"},
		"UTF8=ACCEPT, but says": {"C: T1 ENABLE UTF8=ACCEPT\nC: T2 SELECT INBOX\nS: T1 NO x\n" + selected + rows + "C: Q LOGOUT\nS: Q OK x"},
	} {
		t.Run(offered, func(t *testing.T) {
			var conns []net.Conn
			for _, script := range scripts {
				near, far := proxytest.Pipe(t)
				proxytest.ServeTranscript(t, far, script)
				conns = append(conns, near)
			}
			offered, _, _ := strings.Cut(offered, ",")
			b := &Backend{
				LogIn:     connected(conns[0], "IMAP4rev1 ENABLE UIDPLUS MOVE SPECIAL-USE "+offered, conns[1:]...),
				Estimates: true, KeepUnseen: true, Delete: Trash, UTF8: offered != "UTF8=ONLY",
			}
			r := run(t, b)
			if len(scripts) > 1 {
				proxytest.Transcript(t, r.conn, "C: RETR 1\nS: +OK *\nS: abc\nS: .\nC: DELE 1\nS: +OK *\nC: QUIT\nS: +OK *")
			} else {
				proxytest.Transcript(t, r.conn, "C: QUIT\nS: +OK *")
			}
		})
	}
}
