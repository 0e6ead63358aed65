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

	"postern/bridge/inbox"
	"postern/proxy"
	"postern/proxy/proxytest"
)

func TestBodiesPassAsTheyAre(t *testing.T) {
	for _, test := range []struct{ body, want, octets string }{
		{"a\r\n", `a\r\n`, "3"},
		{"a", `a\r\n`, "3"},
		{"a\n", `a\n\r\n`, "4"},
		{"a\r", `a\r\r\n`, "4"},
		{".", `..\r\n`, "3"},
		{".\r\n.\n.", `..\r\n..\n..\r\n`, "8"},
		{"\x80\xff\r", `\x80\xff\r\r\n`, "5"},
	} {
		t.Run(fmt.Sprintf("%q", test.body), func(t *testing.T) {
			r := scripted(t, opened(len(test.body))+`
				C: F1 UID FETCH 11 (UID BODY.PEEK[])
				S- * 1 FETCH (UID 11 BODY[] `+fmt.Sprintf("{%d}", len(test.body))+`\r\n`+escape(test.body)+`)\r\n
				S: F1 OK x
				C: T1 UID STORE 11 +FLAGS.SILENT (\\Seen)
				S: T1 OK x
				C: Q LOGOUT
				S: Q OK x
			`)
			proxytest.Transcript(t, r.conn, `
				C: RETR 1
				S: +OK `+test.octets+` octets
				S- `+test.want+`.\r\n
				C: LIST 1
				S: +OK 1 `+test.octets+`
				C: QUIT
				S: +OK *
			`)
		})
	}
}

// escape writes s as the bytes of a transcript.
func escape(s string) string {
	var b strings.Builder
	for i := range len(s) {
		fmt.Fprintf(&b, `\x%02x`, s[i])
	}
	return b.String()
}

// Criterion: an empty message is a CRLF, and QUIT marks what was retrieved as \Seen.
func TestEmptyMessage(t *testing.T) {
	r := scripted(t, opened(0)+`
		C: F1 UID FETCH 11 (UID BODY.PEEK[])
		S: * 1 FETCH (UID 11 BODY[] "")
		S: F1 OK x
		C: T1 UID STORE 11 +FLAGS.SILENT (\\Seen)
		S: T1 OK x
		C: Q LOGOUT
		S: Q OK x
	`)
	proxytest.Transcript(t, r.conn, `
		C: RETR 1
		S: +OK 2 octets
		S- \r\n.\r\n
		C: QUIT
		S: +OK *
	`)
}

// Criterion: the client's first byte does not wait for the message's last, and octets are announced only when they are certain.
func TestFirstOctetsPassAtOnce(t *testing.T) {
	near, far := proxytest.Pipe(t)
	proxytest.ServeTranscript(t, far, opened(20000)+`
		C: F1 UID FETCH 11 (UID BODY.PEEK[])
		S- * 1 FETCH (UID 11 BODY[] {20000}\r\nSubject: slow\r\n
	`)
	r := run(t, &Backend{LogIn: connected(near, capabilities)})
	proxytest.Transcript(t, r.conn, `
		C: RETR 1
		S: +OK Message follows
		S: Subject: slow
	`)
	rest := strings.Repeat(".", 20000-15-2) + "\r\n"
	proxytest.ServeTranscript(t, far, "S- "+rest[:10000]+"\nS- "+rest[10000:20000-15-2]+`\r\n)\r\n`+`
		S: F1 OK x
		C: F2 UID FETCH 11 (UID BODY.PEEK[])
		S- * 1 FETCH (UID 11 BODY[] {20000}\r\nSubject: slow\r\n`+rest[:20000-15-2]+`\r\n)\r\n
		S: F2 OK x
	`)
	proxytest.Transcript(t, r.conn, "S: ."+rest[:len(rest)-2]+`
		S: .
		C: RETR 1
		S: +OK 20000 octets
		S: Subject: slow
		S: .`+rest[:len(rest)-2]+`
		S: .
	`)
}

// Criterion: a backend that dies within a body cuts the connection: no final dot, no message that looks complete.
func TestServerDiesWithinABody(t *testing.T) {
	body := strings.Repeat("0123456789abcd\r\n", 1000)
	r := scripted(t, opened(len(body))+`
		C: F1 UID FETCH 11 (UID BODY.PEEK[])
		S- * 1 FETCH (UID 11 BODY[] {16000}\r\n`+escape(body[:12000])+`
		S: <EOF>
	`)
	if _, err := io.WriteString(r.conn, "RETR 1\r\n"); err != nil {
		t.Fatal(err)
	}
	got, _ := io.ReadAll(r.conn)
	if text, ok := strings.CutPrefix(string(got), "+OK Message follows\r\n"); !ok || !strings.HasPrefix(body, text) || len(text) < 8000 {
		t.Errorf("got %d octets, ending in %q", len(got), got[max(0, len(got)-20):])
	}
	if err := r.wait(t); !errors.Is(err, proxy.ErrBackendClosed) {
		t.Errorf("Run = %v, want %v", err, proxy.ErrBackendClosed)
	}
	if got := r.session.(proxy.Reporter).Totals().Retrieved; got != 0 {
		t.Errorf("%d retrieved, want 0", got)
	}
}

// Criterion: a backend that dies before the first octet is a temporary failure, said so.
func TestServerDiesBeforeABody(t *testing.T) {
	for name, script := range map[string]string{
		"at once":             "S: <EOF>",
		"after BYE":           "S: * BYE [UNAVAILABLE] maintenance of disk7\nS: <EOF>",
		"within a small body": `S- * 1 FETCH (UID 11 BODY[] {100}\r\nSubject:` + "\nS: <EOF>",
		"within the response": "S- * 1 FETCH (UID 11 BOD\nS: <EOF>",
		"with garbage":        "S: @#$\nS: <EOF>",
	} {
		t.Run(name, func(t *testing.T) {
			r := scripted(t, opened(100)+"C: F1 UID FETCH 11 (UID BODY.PEEK[])\n"+script)
			proxytest.Transcript(t, r.conn, `
				C: RETR 1
				S: -ERR \[SYS/TEMP] The mail server is unavailable: try again later (session ID42)
				S: <EOF>
			`)
			err := r.wait(t)
			if !errors.Is(err, proxy.ErrBackendClosed) {
				t.Errorf("Run = %v, want %v", err, proxy.ErrBackendClosed)
			}
			if name == "after BYE" && !strings.Contains(err.Error(), "maintenance of disk7") {
				t.Errorf("Run = %v, want the server's words in it", err)
			}
		})
	}
}

func TestSilentServerIsLetGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := net.Pipe()
		proxytest.ServeTranscript(t, far, opened(100000)+`
			C: F1 UID FETCH *
			S- * 1 FETCH (UID 11 BODY[] {100000}\r\nSubject:
		`)
		client, server := net.Pipe()
		r := runOn(t, &Backend{LogIn: connected(near, capabilities), Timeout: 30 * time.Second}, client, server)
		proxytest.Transcript(t, client, "C: RETR 1\nS: +OK *\nS- Subject:")
		begun := time.Now()
		<-r.done
		if took := time.Since(begun); took < 29*time.Second || took > 32*time.Second {
			t.Errorf("let go after %v, want 30 s", took)
		}
		if !errors.Is(r.err, inbox.ErrStalled) || !errors.Is(r.err, proxy.ErrBackendClosed) {
			t.Errorf("Run = %v, want %v", r.err, inbox.ErrStalled)
		}
		_ = far.Close()
	})
}

// A server may take long for a big message, and so may a client, as long as
// there is progress: imapclient's own limit is 5 minutes.
func TestSlowMessageIsNotCut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := net.Pipe()
		const size, step = 100_000, 10_000
		proxytest.ServeTranscript(t, far, opened(size))
		client, server := net.Pipe()
		r := runOn(t, &Backend{LogIn: connected(near, capabilities), Timeout: 61 * time.Second}, client, server)
		go func() {
			_, _ = io.ReadAtLeast(far, make([]byte, 100), 10)
			_, _ = fmt.Fprintf(far, "* 1 FETCH (UID 11 BODY[] {%d}\r\n", size)
			for range size / step {
				time.Sleep(time.Minute)
				_, _ = far.Write(make([]byte, step))
			}
			_, _ = io.WriteString(far, ")\r\nF1 OK x\r\n")
			_, _ = io.Copy(io.Discard, far)
		}()
		if _, err := io.WriteString(client, "RETR 1\r\n"); err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(io.LimitReader(client, size)); len(got) != size {
			t.Errorf("%d octets, %v", len(got), err)
		}
		_ = client.Close()
		<-r.done
		_ = far.Close()
	})
}

// Criterion: a vanished message is -ERR without a code; all else goes on.
func TestVanishedMessage(t *testing.T) {
	r := scripted(t, opened(100, 5, 100)+`
		C: F1 UID FETCH 11 (UID BODY.PEEK[])
		S: * 1 EXPUNGE
		S: F1 OK x
		C: T1 UID SEARCH UID 11
		S: * SEARCH
		S: T1 OK x
		C: F2 UID FETCH 11 (UID BODY.PEEK[HEADER])
		S: F2 OK x
		C: T1 UID SEARCH UID 11
		S: * SEARCH
		S: T1 OK x
		C: F3 UID FETCH 12 (UID BODY.PEEK[])
		S: * 1 FETCH (UID 12 BODY[] {5}
		S: abc
		S: )
		S: F3 OK x
		C: F4 UID FETCH 13 (UID BODY.PEEK[])
		S: * 2 FETCH (UID 13 BODY[] NIL)
		S: F4 OK x
		C: T1 UID SEARCH UID 13
		S: * SEARCH
		S: T1 OK x
		C: F5 UID FETCH 13 (UID BODY.PEEK[HEADER] BODY.PEEK[TEXT]<0.2048>)
		S: * 2 FETCH (UID 13 BODY[HEADER] {0}
		S:  BODY[TEXT]<0> {0}
		S: )
		S: F5 NO [EXPUNGEISSUED] x
		C: T1 UID SEARCH UID 13
		S: * SEARCH
		S: T1 OK x
		C: T1 UID STORE 12 +FLAGS.SILENT (\\Seen)
		C: T2 UID STORE 11 +FLAGS.SILENT (\\Deleted)
		S: T1 OK x
		S: T2 OK x
		C: T3 UID EXPUNGE 11
		S: T3 OK x
		C: Q LOGOUT
		S: Q OK x
	`)
	proxytest.Transcript(t, r.conn, `
		C: RETR 1
		S: -ERR Message 1 is no longer in the maildrop
		C: TOP 1 0
		S: -ERR Message 1 is no longer in the maildrop
		C: RETR 2
		S: +OK 5 octets
		S: abc
		S: .
		C: RETR 3
		S: -ERR Message 3 is no longer in the maildrop
		C: TOP 3 2
		S: -ERR Message 3 is no longer in the maildrop
		C: STAT
		S: +OK 3 205
		C: LIST 1
		S: +OK 1 100
		C: DELE 1
		S: +OK *
		C: QUIT
		S: +OK *
	`)
}

func TestRefusedMessageIsTemporary(t *testing.T) {
	r := scripted(t, opened(100, 5)+`
		C: F1 UID FETCH 11 (UID BODY.PEEK[])
		S: F1 NO [SERVERBUG] disk7 is on fire
		C: F2 UID FETCH 11 (UID BODY.PEEK[])
		S: * 1 FETCH (UID 11 BODY[] {0}
		S: )
		S: F2 OK x
		C: T1 UID SEARCH UID 11
		S: * SEARCH 11
		S: T1 OK x
		C: F3 UID FETCH 12 (UID BODY.PEEK[])
		S: * 2 FETCH (UID 12 BODY[] {5}
		S: abc
		S: )
		S: F3 NO [LIMIT] all the same
	`)
	proxytest.Transcript(t, r.conn, `
		C: RETR 1
		S: -ERR \[SYS/TEMP] Message 1 is unavailable: try again later (session ID42)
		C: RETR 1
		S: -ERR \[SYS/TEMP] Message 1 is unavailable: try again later (session ID42)
		C: RETR 2
		S: +OK 5 octets
		S: abc
		S: .
		C: NOOP
		S: +OK *
	`)
}

// Flags that another client changes, and responses nobody knows, are noise:
// imapclient would take the first for the message and close for the others.
func TestNoiseOfTheServer(t *testing.T) {
	r := scripted(t, opened(5)+`
		S: * 7 EXISTS
		S: * XFOO {3}
		S: abc
		S: * VANISHED 41,43:116
		C: F1 UID FETCH 11 (UID BODY.PEEK[])
		S: * 1 FETCH (UID 11 FLAGS (\Seen))
		S: * 1 FETCH (FLAGS (\Seen) X-GM-MSGID 1278455344230334865)
		S: * OK [ALERT] {5}
		S: + what
		S: * 1 FETCH (UID 11 FLAGS (\Seen) BODY[] {5}
		S: abc
		S: )
		S: * 1 FETCH (UID 11 ENVELOPE ({3}
		S: a)b {4}
		S: F1 O))
		S: F1 OK x
	`)
	proxytest.Transcript(t, r.conn, `
		C: RETR 1
		S: +OK 5 octets
		S: abc
		S: .
	`)
}

// Criterion: TOP fetches the header and little more than the lines it sends.
func TestTOPFetchesPartsOfTheText(t *testing.T) {
	line := strings.Repeat("x", 98) + `\r\n`
	r := scripted(t, opened(1000000)+`
		C: F1 UID FETCH 11 (UID BODY.PEEK[HEADER])
		S- * 1 FETCH (UID 11 BODY[HEADER] {8}\r\nA: b\r\n\r\n)\r\nF1 OK x\r\n
		C: F2 UID FETCH 11 (UID BODY.PEEK[HEADER] BODY.PEEK[TEXT]<0.2048>)
		S- * 1 FETCH (UID 11 BODY[HEADER] {8}\r\nA: b\r\n\r\n BODY[TEXT]<0> {2048}\r\n`+strings.Repeat(line, 20)+line[:48]+`)\r\nF2 OK x\r\n
		C: F3 UID FETCH 11 (UID BODY.PEEK[HEADER] BODY.PEEK[TEXT]<0.2048>)
		S- * 1 FETCH (UID 11 BODY[HEADER] {8}\r\nA: b\r\n\r\n BODY[TEXT]<0> {2048}\r\n`+strings.Repeat(line, 20)+line[:48]+`)\r\nF3 OK x\r\n
		C: F4 UID FETCH 11 (UID BODY.PEEK[TEXT]<2048.4096>)
		S- * 1 FETCH (UID 11 BODY[TEXT]<2048> {162}\r\n`+line[48:]+line+`.\r\n.no end)\r\nF4 OK x\r\n
		C: F5 UID FETCH 11 (UID BODY.PEEK[])
		S- * 1 FETCH (UID 11 BODY[] "A: b\\\"\\\\")\r\nF5 OK x\r\n
		C: F6 UID FETCH 11 (UID BODY.PEEK[HEADER] BODY.PEEK[TEXT]<0.2048>)
		S- * 1 FETCH (UID 11 BODY[HEADER] {8}\r\nA: b\r\n\r\n BODY[TEXT]<0> NIL)\r\nF6 OK x\r\n
		C: Q LOGOUT
		S: Q OK x
	`)
	want := strings.ReplaceAll(line, `\r\n`, "")
	proxytest.Transcript(t, r.conn, `
		C: TOP 1 0
		S: +OK Top of message follows
		S: A: b
		S:
		S: .
		C: TOP 1 2
		S: +OK Top of message follows
		S: A: b
		S:
		S: `+want+`
		S: `+want+`
		S: .
		C: TOP 1 25
		S: +OK Top of message follows
		S: A: b
		S:
		`+strings.Repeat("S: "+want+"\n", 22)+`
		S: ..
		S: ..no end
		S: .
		C: TOP 1 99999999
		S: +OK 8 octets
		S: A: b"\\
		S: .
		C: TOP 1 1
		S: +OK Top of message follows
		S: A: b
		S:
		S: .
		C: QUIT
		S: +OK *
	`)
}

func TestTOPThatIsCutShort(t *testing.T) {
	for name, script := range map[string]string{
		"lost in the text": `S- * 1 FETCH (UID 11 BODY[HEADER] {8}\r\nA: b\r\n\r\n BODY[TEXT]<0> {2000}\r\nHello` + "\nS: <EOF>",
		"no text":          `S- * 1 FETCH (UID 11 BODY[HEADER] {8}\r\nA: b\r\n\r\n)\r\nF1 OK x\r\n`,
	} {
		t.Run(name, func(t *testing.T) {
			r := scripted(t, opened(100)+"C: F1 UID FETCH *\n"+script)
			if _, err := io.WriteString(r.conn, "TOP 1 1\r\nNOOP\r\n"); err != nil {
				t.Fatal(err)
			}
			got, _ := io.ReadAll(r.conn)
			if strings.Contains(string(got), "\r\n.\r\n") {
				t.Errorf("got %q, which looks complete", got)
			}
			if err := r.wait(t); err == nil {
				t.Error("Run = nil, want an error")
			}
		})
	}
}

// Criterion: a client that leaves within a message does not make the bridge read the rest of it.
func TestClientLeavesWithinABody(t *testing.T) {
	near, far := proxytest.Pipe(t)
	const size = 100 << 20
	proxytest.ServeTranscript(t, far, opened(size))
	r := run(t, &Backend{LogIn: connected(near, capabilities)})
	sent := make(chan int64)
	go func() {
		_, _ = io.ReadAtLeast(far, make([]byte, 100), 10)
		_, _ = fmt.Fprintf(far, "* 1 FETCH (UID 11 BODY[] {%d}\r\n", size)
		n, _ := io.CopyN(far, zeros{}, size)
		sent <- n
	}()
	proxytest.Transcript(t, r.conn, "C: RETR 1\nS: +OK *")
	_ = r.conn.Close()
	if err := r.wait(t); !errors.Is(err, proxy.ErrClientClosed) {
		t.Errorf("Run = %v, want %v", err, proxy.ErrClientClosed)
	}
	if n := <-sent; n > size/2 {
		t.Errorf("%d octets were read of the server after the client had left", n)
	}
}

func TestKickWithinABodyCutsIt(t *testing.T) {
	r := scripted(t, opened(20000)+`
		C: F1 UID FETCH *
		S- * 1 FETCH (UID 11 BODY[] {20000}\r\nSubject:
		C: <EOF>
	`)
	proxytest.Transcript(t, r.conn, "C: RETR 1\nS: +OK *\nS- Subject:")
	kicked := proxy.NewRefusal(proxy.Kicked, nil)
	r.cancel(kicked)
	if rest, _ := io.ReadAll(r.conn); len(rest) > 0 {
		t.Errorf("after the kick %q", rest)
	}
	if err := r.wait(t); !errors.Is(err, kicked) {
		t.Errorf("Run = %v, want %v", err, kicked)
	}
}

// Criterion: wherever the connection to the backend is cut, no message looks complete that is not, and QUIT is +OK only when all is removed.
func TestServerKilledAtAnyOctet(t *testing.T) {
	bodies := []string{hello, strings.Repeat("0123456789abcd\r\n", 600), short}
	const script = "RETR 1\r\nRETR 2\r\nTOP 3 1\r\nDELE 1\r\nDELE 3\r\nQUIT\r\n"
	complete := ""
	for cut := int64(1); complete == ""; cut += 7 {
		got, opened, removed := killed(t, bodies, script, cut)
		if !opened {
			continue
		}
		in := bufio.NewReader(strings.NewReader(got))
		for i, want := range []string{hello, bodies[1], short} {
			status, _ := in.ReadString('\n')
			if !strings.HasPrefix(status, "+OK ") {
				break
			}
			if text, ended := stuffed(in); ended && text != want && text != want+"\r\n" {
				t.Fatalf("cut at %d: message %d is %q", cut, i+1, text)
			}
		}
		if strings.HasSuffix(got, "+OK Goodbye\r\n") {
			if removed == 0 || cut < removed {
				t.Fatalf("cut at %d: QUIT is +OK before the answer to UID EXPUNGE, at %d", cut, removed)
			}
			complete = got
		}
	}
	if want := strings.Count(complete, "+OK "); want != 6 {
		t.Errorf("without a cut %q", complete)
	}
}

// killed plays script against a server whose connection is closed after cut
// octets. It returns what the client got, whether the maildrop was opened, and
// how many octets it takes up to the answer to UID EXPUNGE.
func killed(t *testing.T, bodies []string, script string, cut int64) (got string, opened bool, removed int64) {
	t.Helper()
	f := &fakeIMAP{bodies: bodies}
	dial := dialFake(t, f, true)
	b := &Backend{LogIn: func(ctx context.Context, l *proxy.Login) (net.Conn, string, error) {
		conn, capabilities, err := dial(ctx, l)
		return proxytest.Faulty(conn, proxytest.Faults{CutRead: cut}), capabilities, err
	}}
	session, err := b.Login(t.Context(), &proxy.Login{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = session.Close() }()
	if _, err := session.Open(t.Context()); err != nil {
		if proxy.ReasonOf(err) != proxy.Unavailable {
			t.Errorf("cut at %d: Open = %v", cut, err)
		}
		return "", false, 0
	}
	client, server := net.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		conn := proxy.NewConn(server, proxy.Client{}, nil, 0)
		_ = session.Run(t.Context(), conn)
		_ = conn.Close()
	}()
	go func() { _, _ = io.WriteString(client, script) }()
	all, _ := io.ReadAll(client)
	_ = client.Close()
	<-done
	return string(all), true, f.removed.Load()
}

// stuffed reads lines up to the final dot.
func stuffed(r *bufio.Reader) (text string, ended bool) {
	var b strings.Builder
	for {
		line, err := r.ReadString('\n')
		if err != nil || line == ".\r\n" {
			return b.String(), err == nil
		}
		b.WriteString(strings.TrimPrefix(line, "."))
	}
}
