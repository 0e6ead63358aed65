package bridge

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"postern/proxy"
	"postern/proxy/memserver"
	"postern/proxy/proxytest"
)

// serve starts a server in memory on which alice has messages.
func serve(t testing.TB, messages ...string) (*memserver.Server, *Backend) {
	t.Helper()
	s := memserver.New(memserver.Options{Accounts: []memserver.Account{{User: "alice", Password: "secret"}}, UIDValidity: 7})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() { done <- s.ServeIMAP(ln) }()
	t.Cleanup(func() {
		_ = s.Close()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	for _, m := range messages {
		if err := s.Append("alice", []byte(m)); err != nil {
			t.Fatal(err)
		}
	}
	return s, &Backend{Name: "main", LogIn: dialIMAP(ln.Addr().String())}
}

const (
	hello = "Subject: hello\r\n\r\nHello\r\n.\r\n..two\r\n" // 35 octets
	short = "Subject: short\r\n\r\nno end"                  // 24, 26 with the CRLF it gets
	first = ".first\r\n\r\n.\nx\r\n"                        // 15
)

// Sizes are exact also of what was marked when the others were looked at.
func TestSizesAreExactAfterRSET(t *testing.T) {
	_, b := serve(t, hello, short)
	proxytest.Transcript(t, run(t, b).conn, `
		C: DELE 2
		S: +OK *
		C: LIST 1
		S: +OK 1 35
		C: RSET
		S: +OK *
		C: LIST 2
		S: +OK 2 26
	`)
}

// Criterion: the end of a session says what the client does with its mail: how many messages it has downloaded, by RETR or by TOP
// with all lines, and how many of these it leaves on the server; TOP with fewer lines downloads nothing.
func TestTotalsSayWhatAClientDoesWithItsMail(t *testing.T) {
	for _, c := range []struct {
		commands string
		want     proxy.Totals
	}{
		{"STAT, LIST, UIDL", proxy.Totals{Messages: 3}},
		{"TOP 1 0", proxy.Totals{Messages: 3}},
		{"RETR 1, RETR 1", proxy.Totals{Messages: 3, Downloaded: 1, Octets: 35, Kept: 1}},
		{"TOP 1 99999, TOP 2 99999", proxy.Totals{Messages: 3, Downloaded: 2, Octets: 61, Kept: 2}},
		{"RETR 1, DELE 1, RETR 2", proxy.Totals{Messages: 3, Downloaded: 2, Octets: 61, Kept: 1, Marked: 1}},
		{"RETR 1, DELE 1, RSET", proxy.Totals{Messages: 3, Downloaded: 1, Octets: 35, Kept: 1}},
		{"RETR 3, DELE 1, DELE 2", proxy.Totals{Messages: 3, Downloaded: 1, Octets: 15, Kept: 1, Marked: 2}},
	} {
		_, b := serve(t, hello, short, first)
		r := run(t, b)
		for command := range strings.SplitSeq(c.commands, ", ") {
			_, _ = io.WriteString(r.conn, command+"\r\n")
		}
		_, _ = io.WriteString(r.conn, "NOOP\r\n")
		answers := bufio.NewReader(r.conn)
		for {
			line, err := answers.ReadString('\n')
			if err != nil {
				t.Fatal(err)
			}
			if line == "+OK Nothing done\r\n" {
				break
			}
		}
		_ = r.conn.Close() // without QUIT: the marks count, and nothing is deleted
		_ = r.wait(t)
		got := r.session.(proxy.Reporter).Totals()
		got.UIDLsBefore, got.UIDLsAfter, got.Retrieved = 0, 0, 0
		c.want.Mode = proxy.ModeBridge
		if got != c.want {
			t.Errorf("%s: %+v, want %+v", c.commands, got, c.want)
		}
	}
}

// Criterion: numbers stand after DELE, what is marked is in neither LIST, UIDL nor STAT, RSET brings it back, and LIST tells the octets of RETR.
func TestSessionOfAllCommands(t *testing.T) {
	_, b := serve(t, hello, short, first)
	r := run(t, b)
	if want := "Maildrop has 3 messages (74 octets)"; r.welcome != want {
		t.Errorf("welcome %q, want %q", r.welcome, want)
	}
	proxytest.Transcript(t, r.conn, `
		C: STAT
		S: +OK 3 76
		C: LIST
		S: +OK Scan listing follows
		S: 1 35
		S: 2 26
		S: 3 15
		S: .
		C: LIST 3
		S: +OK 3 15
		C: UIDL
		S: +OK Unique-id listing follows
		S: 1 0000000100000007
		S: 2 0000000200000007
		S: 3 0000000300000007
		S: .
		C: uidl 2
		S: +OK 2 0000000200000007
		C: RETR 1
		S: +OK 35 octets
		S- Subject: hello\r\n\r\nHello\r\n..\r\n...two\r\n.\r\n
		C: RETR 2
		S: +OK 26 octets
		S- Subject: short\r\n\r\nno end\r\n.\r\n
		C: LIST 2
		S: +OK 2 26
		C: STAT
		S: +OK 3 76
		C: RETR 3
		S: +OK 15 octets
		S- ..first\r\n\r\n..\nx\r\n.\r\n
		C: TOP 1 0
		S: +OK Top of message follows
		S- Subject: hello\r\n\r\n.\r\n
		C: TOP 1 2
		S: +OK *
		S- Subject: hello\r\n\r\nHello\r\n..\r\n.\r\n
		C: TOP 2 99999999999999999999
		S: +OK *
		S- Subject: short\r\n\r\nno end\r\n.\r\n
		C: DELE 2
		S: +OK Message 2 deleted
		C: LIST
		S: +OK *
		S: 1 35
		S: 3 15
		S: .
		C: STAT
		S: +OK 2 50
		C: RETR 2
		S: -ERR Message 2 is deleted
		C: DELE 2
		S: -ERR Message 2 is deleted
		C: TOP 2 1
		S: -ERR Message 2 is deleted
		C: UIDL 2
		S: -ERR Message 2 is deleted
		C: RSET
		S: +OK Maildrop has 3 messages (76 octets)
		C: LIST 2
		S: +OK 2 26
		C: NOOP
		S: +OK *
		C: DELE 1
		S: +OK *
		C: CAPA
		S: +OK *
		S: TOP
		S: UIDL
		S: RESP-CODES
		S: AUTH-RESP-CODE
		S: PIPELINING
		S: IMPLEMENTATION Postern
		S: .
		C: QUIT
		S: +OK Goodbye
		S: <EOF>
	`)
	if err := r.wait(t); err != nil {
		t.Errorf("Run = %v", err)
	}
	reporter := r.session.(proxy.Reporter)
	want := proxy.Totals{
		Mode: proxy.ModeBridge, Retrieved: 3, Deleted: 1, Messages: 3, Downloaded: 3, Octets: 76, Kept: 2, Marked: 1,
		UIDLsBefore: hashUIDL([]byte("0000000100000007")) + hashUIDL([]byte("0000000200000007")) + hashUIDL([]byte("0000000300000007")),
		UIDLsAfter:  hashUIDL([]byte("0000000200000007")) + hashUIDL([]byte("0000000300000007")),
	}
	if got := reporter.Totals(); got != want {
		t.Errorf("Totals() = %+v, want %+v", got, want)
	}
	if got := reporter.Backend(); got != "main" {
		t.Errorf("Backend() = %q", got)
	}
	proxytest.Transcript(t, run(t, b).conn, `
		C: UIDL
		S: +OK *
		S: 1 0000000200000007
		S: 2 0000000300000007
		S: .
		C: QUIT
		S: +OK *
	`)
	if opened := of[proxy.MaildropOpened](r.events); len(opened) != 1 || opened[0].Messages != 3 || opened[0].Octets != 74 {
		t.Errorf("MaildropOpened: %+v", opened)
	}
	sent := of[proxy.MessageSent](r.events)
	if len(sent) != 6 || sent[0].Octets != 35 || sent[0].Mismatched || sent[1].Mismatched || sent[3].Command != "TOP" ||
		sent[0].Completed || !sent[1].Completed || !sent[5].Completed {
		t.Errorf("MessageSent: %+v", sent)
	}
}

// Criterion: odd commands have defined answers, and +OK is always followed by a space.
func TestOddCommands(t *testing.T) {
	_, b := serve(t, hello, short)
	proxytest.Transcript(t, run(t, b).conn, `
		C: LIST 1\x20
		S: -ERR That is not a number
		C- LIST 1 \r\n
		S: +OK 1 35
		C- list  01\n
		S: +OK 1 35
		C- \r\n
		S: -ERR Unknown command
		C- STAT\t\r\n
		S: -ERR Unknown command
		C- LIST\t1\r\n
		S: -ERR Unknown command
		C: LIST 0
		S: -ERR No such message, there are 2 in the maildrop
		C: LIST 3
		S: -ERR No such message, there are 2 in the maildrop
		C: RETR 18446744073709551617
		S: -ERR No such message, there are 2 in the maildrop
		C: LIST -1
		S: -ERR That is not a number
		C: LIST +1
		S: -ERR That is not a number
		C: LIST 1 2
		S: -ERR *
		C: RETR
		S: -ERR *
		C: TOP 1
		S: -ERR *
		C: TOP 1 x
		S: -ERR That is not a number
		C: TOP 1 -1
		S: -ERR That is not a number
		C: DELE x
		S: -ERR That is not a number
		C: STAT 1
		S: -ERR This command takes no argument
		C: QUIT now
		S: -ERR This command takes no argument
		C: NOOP
		S- +OK\x20
		S: *
		C: USER bob
		S: -ERR You are already logged in
		C: PASS secret
		S: -ERR You are already logged in
		C: AUTH PLAIN
		S: -ERR You are already logged in
		C: STLS
		S: -ERR You are already logged in
		C: UTF8
		S: -ERR Unknown command
		C: LANG *
		S: -ERR Unknown command
		C: LAST
		S: -ERR Unknown command
	`)
}

// Criterion: twenty commands in a row that are none end a session; what is refused otherwise does not count.
func TestTwentyBadCommandsInARowEndTheSession(t *testing.T) {
	_, b := serve(t)
	r := run(t, b)
	for range 2 {
		proxytest.Transcript(t, r.conn, strings.Repeat("C: XYZZY\nS: -ERR *\n", maxBad-1)+"C: LIST 1\nS: -ERR No such *\n")
	}
	proxytest.Transcript(t, r.conn, strings.Repeat("C: XYZZY\nS: -ERR *\n", maxBad)+"S: <EOF>")
	if err := r.wait(t); !errors.Is(err, errBadCommands) {
		t.Errorf("Run = %v, want %v", err, errBadCommands)
	}
}

// Criterion: a command has 255 octets at most, RFC 2449 section 4; a longer one is refused and skipped, and a flood ends the session.
func TestLongLines(t *testing.T) {
	_, b := serve(t)
	r := run(t, b)
	longest := "NOOP" + strings.Repeat(" ", maxCommand-6)
	proxytest.Transcript(t, r.conn, "C: "+longest+"\nS: +OK *\nC: "+longest+" \nS: -ERR *\nC: NOOP\nS: +OK *")
	go func() { // more than is ever skipped
		for range 1 << 10 {
			if _, err := r.conn.Write(make([]byte, 1<<10)); err != nil {
				return
			}
		}
	}()
	proxytest.Transcript(t, r.conn, "S: -ERR Line too long")
	if err := r.wait(t); !errors.Is(err, proxy.ErrFlood) {
		t.Errorf("Run = %v, want %v", err, proxy.ErrFlood)
	}
}

// Criterion: no pipelined command is lost, and answers come in order.
func TestPipelinedCommands(t *testing.T) {
	_, b := serve(t, hello, short)
	r := run(t, b)
	proxytest.Transcript(t, r.conn, `
		C- STAT\r\nRETR 1\r\nRETR 2\r\nTOP 1 0\r\nDELE 1\r\nLIST\r\nQUIT\r\nSTAT\r\n
		S: +OK 2 61
		S: +OK 35 octets
		S- Subject: hello\r\n\r\nHello\r\n..\r\n...two\r\n.\r\n
		S: +OK 26 octets
		S- Subject: short\r\n\r\nno end\r\n.\r\n
		S: +OK *
		S- Subject: hello\r\n\r\n.\r\n
		S: +OK Message 1 deleted
		S: +OK *
		S: 2 26
		S: .
		S: +OK Goodbye
		S: <EOF>
	`)
}

// Criterion: an answer does not wait for the rest of a line that the client has begun.
func TestAnswersDoNotWaitForHalfALine(t *testing.T) {
	_, b := serve(t, hello)
	proxytest.Transcript(t, run(t, b).conn, `
		C- NOOP\r\nSTAT\r\nNO
		S: +OK Nothing done
		S: +OK 1 35
		C- OP\r\n
		S: +OK Nothing done
	`)
}

// Criterion: CAPA has EXPIRE, LOGIN-DELAY and UTF8 only when they are configured, IMPLEMENTATION unless it is hidden, and LAST is no command unless it is wanted.
func TestWhatCAPASaysIsConfigured(t *testing.T) {
	_, b := serve(t, hello, short)
	b.ExpireNever, b.Anonymous, b.Last, b.UTF8, b.Delay = true, true, true, true, &LoginDelay{Every: time.Minute}
	proxytest.Transcript(t, run(t, b).conn, `
		C: CAPA
		S: +OK *
		S: TOP
		S: UIDL
		S: RESP-CODES
		S: AUTH-RESP-CODE
		S: PIPELINING
		S: EXPIRE NEVER
		S: LOGIN-DELAY 60
		S: UTF8
		S: .
		C: LAST
		S: +OK 0
		C: RETR 2
		S: +OK *
		S- Subject: short\r\n\r\nno end\r\n.\r\n
		C: LAST
		S: +OK 2
		C: RSET
		S: +OK *
		C: LAST
		S: +OK 0
	`)
}

func TestEmptyMaildrop(t *testing.T) {
	r := scripted(t, `
		C: T1 SELECT INBOX
		S: * 0 EXISTS
		S: * OK [UIDVALIDITY 7] x
		S: T1 OK x
		C: Q LOGOUT
		S: * BYE x
		S: Q OK x
	`)
	proxytest.Transcript(t, r.conn, `
		C: STAT
		S: +OK 0 0
		C: LIST
		S: +OK *
		S: .
		C: UIDL
		S: +OK *
		S: .
		C: RETR 1
		S: -ERR No such message, there are 0 in the maildrop
		C: QUIT
		S: +OK *
		S: <EOF>
	`)
}

// Criterion: sums are of 64 bits: a maildrop may have more than 4 GiB.
func TestLargeMaildrop(t *testing.T) {
	r := scripted(t, opened(4294967295, 4294967295, 9000000000)+`
		C: Q LOGOUT
		S: Q OK x
	`)
	proxytest.Transcript(t, r.conn, `
		C: STAT
		S: +OK 3 17589934590
		C: DELE 3
		S: +OK *
		C: STAT
		S: +OK 2 8589934590
		C: RSET
		S: +OK Maildrop has 3 messages (17589934590 octets)
		C: QUIT
		S: +OK *
	`)
}

// Criterion: a connection that is lost without QUIT deletes nothing and leaves no flag.
func TestNothingIsDeletedWithoutQUIT(t *testing.T) {
	r := scripted(t, opened(5)+`
		C: Q LOGOUT
		S: Q OK x
	`)
	proxytest.Transcript(t, r.conn, `
		C: DELE 1
		S: +OK *
		C: <EOF>
		S: <EOF>
	`)
	if err := r.wait(t); !errors.Is(err, proxy.ErrClientClosed) {
		t.Errorf("Run = %v, want %v", err, proxy.ErrClientClosed)
	}
	if got := r.session.(proxy.Reporter).Totals().Deleted; got != 0 {
		t.Errorf("%d deleted, want 0", got)
	}
}

func TestKickIsSaidAndDeletesNothing(t *testing.T) {
	r := scripted(t, opened(5)+`
		C: Q LOGOUT
		S: Q OK x
	`)
	proxytest.Transcript(t, r.conn, `
		C: DELE 1
		S: +OK *
	`)
	kicked := proxy.NewRefusal(proxy.Kicked, nil)
	r.cancel(kicked)
	proxytest.Transcript(t, r.conn, `
		S: -ERR \[SYS/TEMP] Disconnected by an administrator (session ID42)
		S: <EOF>
	`)
	if err := r.wait(t); !errors.Is(err, kicked) {
		t.Errorf("Run = %v, want %v", err, kicked)
	}
}

// Criterion: an idle client is let go after 10 minutes, not earlier, without a word, and nothing is deleted.
func TestAutologout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := net.Pipe()
		defer func() { _ = far.Close() }()
		proxytest.ServeTranscript(t, far, opened(5)) // and does not read LOGOUT
		client, server := net.Pipe()
		r := runOn(t, &Backend{LogIn: connected(near, capabilities), Idle: time.Second}, client, server)
		proxytest.Transcript(t, client, "C: DELE 1\nS: +OK *")
		time.Sleep(10*time.Minute - time.Second)
		proxytest.Transcript(t, client, "C: NOOP\nS: +OK *")
		last := time.Now()
		if n, err := client.Read(make([]byte, 1)); n > 0 || err == nil {
			t.Errorf("after %v something was said", time.Since(last))
		}
		if got := time.Since(last); got < 10*time.Minute || got > 11*time.Minute {
			t.Errorf("logged out after %v, want 10 minutes", got)
		}
		<-r.done
		if !errors.Is(r.err, proxy.ErrIdleTimeout) {
			t.Errorf("Run = %v, want %v", r.err, proxy.ErrIdleTimeout)
		}
	})
}

func TestRefusedOpeningIsTemporaryAndVerified(t *testing.T) {
	for name, script := range map[string]string{
		"NO":                "S: T1 NO [SERVERBUG] no such thing",
		"BAD":               "S: T1 BAD what",
		"BYE":               "S: * BYE [UNAVAILABLE] going down\nS: <EOF>",
		"garbage":           "S: @@@@",
		"no UIDVALIDITY":    "S: * 1 EXISTS\nS: T1 OK done",
		"lost in the FETCH": "S: * 1 EXISTS\nS: * OK [UIDVALIDITY 7] x\nS: T1 OK x\nC: T2 UID FETCH *\nS- * 1 FETCH (UID 1 RF\nS: <EOF>",
		"BAD to FETCH":      "S: * 1 EXISTS\nS: * OK [UIDVALIDITY 7] x\nS: T1 OK x\nC: T2 UID FETCH *\nS: T2 BAD x\nC: T3 UID SEARCH ALL\nS: T3 NO x",
	} {
		t.Run(name, func(t *testing.T) {
			near, far := proxytest.Pipe(t)
			proxytest.ServeTranscript(t, far, "C: T1 SELECT INBOX\n"+script)
			b := &Backend{LogIn: connected(near, capabilities)}
			session, err := b.Login(t.Context(), &proxy.Login{})
			if err != nil {
				t.Fatal(err)
			}
			_, err = session.Open(t.Context())
			refusal, ok := errors.AsType[*proxy.Refusal](err)
			if !ok || refusal.Reason != proxy.Unavailable || !refusal.Verified {
				t.Errorf("Open = %#v, want a verified refusal: unavailable", err)
			}
			_ = far.Close()
			if err := session.Close(); err != nil {
				t.Errorf("Close = %v", err)
			}
		})
	}
}

func TestOpeningEndsWithItsContext(t *testing.T) {
	near, far := proxytest.Pipe(t)
	proxytest.ServeTranscript(t, far, "C: T1 SELECT INBOX\nC: <EOF>")
	ctx, cancel := context.WithCancelCause(t.Context())
	session, err := (&Backend{LogIn: connected(near, capabilities)}).Login(ctx, &proxy.Login{})
	if err != nil {
		t.Fatal(err)
	}
	kicked := proxy.NewRefusal(proxy.Kicked, nil)
	time.AfterFunc(20*time.Millisecond, func() { cancel(kicked) })
	if _, err := session.Open(ctx); !errors.Is(err, kicked) {
		t.Errorf("Open = %v, want %v", err, kicked)
	}
	_ = session.Close()
}

func TestRefusedLoginIsPassedOn(t *testing.T) {
	wrong := proxy.NewRefusal(proxy.Wrong, nil)
	b := &Backend{LogIn: func(context.Context, *proxy.Login) (net.Conn, string, error) { return nil, "", wrong }}
	secret := proxy.NewSecret([]byte("secret"))
	if _, err := b.Login(t.Context(), &proxy.Login{Secret: secret}); !errors.Is(err, wrong) {
		t.Errorf("Login = %v, want %v", err, wrong)
	}
}

func TestManyListLinesAreFewWrites(t *testing.T) {
	messages := make([]message, 10000)
	for i := range messages {
		messages[i] = message{uid: uint32(i + 1), size: 1000}
	}
	counting := &countingWriter{w: io.Discard}
	b := &Backend{}
	s := &session{backend: b, maildrop: newMaildrop(messages, 7), out: b.getWriter(counting)}
	if err := s.answer(t.Context(), []byte("UIDL\r\n")); err != nil {
		t.Fatal(err)
	}
	_ = s.flush()
	if max := counting.octets/writerSize + 1; counting.writes > max {
		t.Errorf("%d writes for %d octets, want at most %d", counting.writes, counting.octets, max)
	}
	if got := counting.octets / int64(len(messages)); got != 22 {
		t.Errorf("%d octets a line, want 22", got)
	}
}

// Criterion: a body that does not end in CRLF gets exactly one, which is announced, sent and counted.
func TestLastCRLF(t *testing.T) {
	ends := map[string]bool{"end": false, "end\r": false, "end\n": false, "end\r\n": true, "end\r\n\r\n": true, ".": false}
	for end, whole := range ends {
		message := "A: b\r\n\r\n" + end
		_, b := serve(t, message)
		r := run(t, b)
		sent := message
		if !whole {
			sent += "\r\n"
		}
		dot := ""
		if end == "." {
			dot = "."
		}
		proxytest.Transcript(t, r.conn, fmt.Sprintf(`
			C: LIST 1
			S: +OK 1 %d
			C: RETR 1
			S: +OK %d octets
			S- A: b\r\n\r\n%s%s.\r\n
			C: QUIT
			S: +OK *
		`, len(sent), len(sent), dot, escape(sent[len("A: b\r\n\r\n"):])))
		_ = r.wait(t)
		if got := of[proxy.MessageSent](r.events); len(got) != 1 || got[0].Completed == whole {
			t.Errorf("%q: told %+v", end, got)
		}
	}
}
