package relay

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"postern/proxy"
	"postern/proxy/proxytest"
	"postern/proxy/wire"
)

// A pop3Fixture is a running session: the far ends of its two connections, and the result
// of Run.
type pop3Fixture struct {
	client, server net.Conn
	session        *POP3
	done           chan error
}

// startPOP3 runs a session between two TCP connections. It has counted 2 messages.
func startPOP3(t *testing.T, ctx context.Context, pipelining bool) *pop3Fixture {
	t.Helper()
	client, near := proxytest.Pipe(t)
	backend, server := proxytest.Pipe(t)
	s := &pop3Fixture{client: client, server: server, done: make(chan error, 1)}
	s.session = &POP3{BackendName: "old", Conn: backend.(Upstream), Pipelining: pipelining, Client: proxy.Client{ID: "TEST"}}
	proxytest.ServeTranscript(t, server, "C: STAT\nS: +OK 2 700")
	if welcome, err := s.session.Open(ctx); welcome != "" || err != nil {
		t.Fatalf("Open = %q, %v", welcome, err)
	}
	s.run(ctx, near)
	return s
}

func (s *pop3Fixture) run(ctx context.Context, near net.Conn) {
	conn := proxy.NewConn(near, proxy.Client{ID: "TEST"}, nil, time.Minute)
	go func() {
		err := s.session.Run(ctx, conn)
		_ = conn.Close()
		_ = s.session.Close()
		s.done <- err
	}()
}

// dialogue plays the dialogue of the client with Postern, and that of Postern with the
// server beside it.
func (s *pop3Fixture) dialogue(t *testing.T, client, server string) {
	t.Helper()
	proxytest.ServeTranscript(t, s.server, server)
	proxytest.Transcript(t, s.client, client)
}

func (s *pop3Fixture) waitEnd(t *testing.T, want error) {
	t.Helper()
	_ = s.client.Close()
	select {
	case err := <-s.done:
		if !errors.Is(err, want) {
			t.Errorf("Run = %v, want %v", err, want)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("the session does not end")
	}
}

// Criterion: behind an old POP3 server, a message that fetchmail downloads by TOP, to leave it there, counts as downloaded and left.
func TestPOP3CountsTOPWithAllLinesAsADownload(t *testing.T) {
	s := startPOP3(t, t.Context(), false)
	dialogue := `
		C: TOP 1 99999999
		S- +OK\r\nSubject: x\r\n\r\nx\r\n.\r\n
		C: TOP 2 5
		S- +OK\r\nSubject: y\r\n\r\n.\r\n
		C: QUIT
		S: +OK bye
		S: <EOF>
	`
	s.dialogue(t, dialogue, dialogue)
	s.waitEnd(t, nil)
	got := s.session.Totals()
	if want := (proxy.Totals{Mode: proxy.ModePassthrough, Messages: got.Messages, Downloaded: 1, Octets: 17, Kept: 1}); got != want {
		t.Errorf("Totals = %+v, want %+v", got, want)
	}
}

// Criterion: behind an old POP3 server, commands and responses of a session pass through
// octet for octet, and the log has what the session retrieved and deleted.
func TestPOP3PassesASessionThrough(t *testing.T) {
	s := startPOP3(t, t.Context(), false)
	s.dialogue(t, `
		C: STAT
		S: +OK 2 700
		C: LIST
		S- +OK\r\n1 200\r\n2 500\r\n.\r\n
		C: list 2
		S: +OK 2 500
		C: UIDL
		S- +OK  odd  spaces \r\n1 a\r\n2 \xff\r\n.\r\n
		C: RETR 1
		S- +OK\r\nSubject: x\r\n\r\n..dot\r\nbare\n.\nbare\r\n.\r\n
		C: RETR 1
		S- +OK\r\n\r\n.\r\n
		C: TOP 2 0
		S- +OK\r\nSubject: y\r\n\r\n.\r\n
		C: DELE 1
		S: +OK marked
		C: RSET
		S: +OK
		C: DELE 2
		S: +OK marked
		C: LAST
		S: +OK 2
		C: NOOP
		S: -ERR never heard of it
		C: QUIT
		S: +OK bye
		S: <EOF>
	`, `
		C: STAT
		S: +OK 2 700
		C: LIST
		S- +OK\r\n1 200\r\n2 500\r\n.\r\n
		C: LIST 2
		S: +OK 2 500
		C: UIDL
		S- +OK  odd  spaces \r\n1 a\r\n2 \xff\r\n.\r\n
		C: RETR 1
		S- +OK\r\nSubject: x\r\n\r\n..dot\r\nbare\n.\nbare\r\n.\r\n
		C: RETR 1
		S- +OK\r\n\r\n.\r\n
		C: TOP 2 0
		S- +OK\r\nSubject: y\r\n\r\n.\r\n
		C: DELE 1
		S: +OK marked
		C: RSET
		S: +OK
		C: DELE 2
		S: +OK marked
		C: LAST
		S: +OK 2
		C: NOOP
		S: -ERR never heard of it
		C: QUIT
		S: +OK bye
		S: <EOF>
	`)
	s.waitEnd(t, nil)
	want := proxy.Totals{Mode: proxy.ModePassthrough, Retrieved: 2, Deleted: 1, Messages: 2, Downloaded: 1, Octets: 33, Kept: 1, Marked: 1}
	if got := s.session.Totals(); got != want {
		t.Errorf("Totals = %+v, want %+v", got, want)
	}
}

// Criterion: after login, CAPA of an old server has what the server can do, without what
// belongs before a login.
func TestPOP3LeavesLoginOutOfCapabilities(t *testing.T) {
	s := startPOP3(t, t.Context(), false)
	s.dialogue(t, `
		C: CAPA
		S- +OK\r\nTOP\r\nSASLED\r\nUIDL\r\n.\r\n
		C: CAPA
		S: -ERR
	`, `
		C: CAPA
		S- +OK\r\nTOP\r\nUSER\r\nsasl PLAIN\r\nSTLS\r\nSASLED\r\nUIDL\r\n.\r\n
		C: CAPA
		S: -ERR
	`)
}

// Criterion: a command about which servers differ whether one line answers it or many is
// answered by Postern.
func TestPOP3AnswersWhatServersReadDifferently(t *testing.T) {
	for _, test := range []struct{ client, server string }{
		{"C: LIST\x20\nS- +OK\\r\\n.\\r\\n", "C: LIST\nS- +OK\\r\\n.\\r\\n"},
		{"C:  uidl   1\nS: +OK 1 a", "C: UIDL 1\nS: +OK 1 a"},
		{"C: RETR 1\x20\nS- +OK\\r\\n.\\r\\n", "C: RETR 1\nS- +OK\\r\\n.\\r\\n"},
		{"C: LIST 0\nS: -ERR *", ""},
		{"C: LIST 4294967296\nS: -ERR *", ""},
		{"C: LIST one\nS: -ERR *", ""},
		{"C: LIST -1\nS: -ERR *", ""},
		{"C: LIST 1 2\nS: -ERR *", ""},
		{"C: RETR\nS: -ERR *", ""},
		{"C: TOP 1\nS: -ERR *", ""},
		{"C: XTND XLST\nS: -ERR *", ""},
		{"C: AUTH PLAIN\nS: -ERR *", ""},
		{"C: USER bob\nS: -ERR *", ""},
		{"C: STLS\nS: -ERR *", ""},
		{"C-\x20\\r\\n\nS: -ERR *", ""},
		{"C- NOOP\\rDELE 1\\r\\n\nS: -ERR *", ""},
		{"C: NOOP " + strings.Repeat("x", 300) + "\nS: -ERR Line too long", ""},
	} {
		s := startPOP3(t, t.Context(), false)
		s.dialogue(t, test.client+"\nC: QUIT\nS: +OK\nS: <EOF>", test.server+"\nC: QUIT\nS: +OK\nS: <EOF>")
		s.waitEnd(t, nil)
	}
}

// Criterion: a client may send commands ahead, also to an old server that takes them one at a time.
func TestPOP3SendsAheadOnlyWhereTheServerTakesIt(t *testing.T) {
	const client = `
		C- NOOP\r\nRETR 1\r\nBAD\r\nDELE 1\r\nQUIT\r\nNOOP\r\n
		S- +OK a\r\n+OK\r\nx\r\n.\r\n-ERR Unknown command\r\n+OK d\r\n+OK bye\r\n
		S: <EOF>`
	s := startPOP3(t, t.Context(), true)
	s.dialogue(t, client, `
		C- NOOP\r\nRETR 1\r\nDELE 1\r\nQUIT\r\n
		S- +OK a\r\n+OK\r\nx\r\n.\r\n+OK d\r\n+OK bye\r\n
		S: <EOF>`)
	s.waitEnd(t, nil)
	s = startPOP3(t, t.Context(), false)
	proxytest.ServeTranscript(t, onlyOneCommand{s.server, t}, `
		C: NOOP
		S: +OK a
		C: RETR 1
		S- +OK\r\nx\r\n.\r\n
		C: DELE 1
		S: +OK d
		C: QUIT
		S: +OK bye
		S: <EOF>`)
	proxytest.Transcript(t, s.client, client)
	s.waitEnd(t, nil)
}

// onlyOneCommand fails the test if more has come when a response is sent.
type onlyOneCommand struct {
	net.Conn
	t *testing.T
}

func (c onlyOneCommand) CloseWrite() error { return c.Conn.(Upstream).CloseWrite() }

func (c onlyOneCommand) Write(b []byte) (int, error) {
	_ = c.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
	if n, _ := c.Read(make([]byte, 1)); n > 0 {
		c.t.Error("a command came before the response to the one before")
	}
	return c.Conn.Write(b)
}

// Criterion: the client that says QUIT gets the old server's word: a failed UPDATE too.
func TestPOP3PassesAFailedUpdateOn(t *testing.T) {
	s := startPOP3(t, t.Context(), false)
	s.dialogue(t, "C: DELE 1\nS: +OK\nC: QUIT\nS: -ERR [SYS/TEMP] some deleted messages not removed\nS: <EOF>",
		"C: DELE 1\nS: +OK\nC: QUIT\nS: -ERR [SYS/TEMP] some deleted messages not removed\nS: <EOF>")
	s.waitEnd(t, nil)
	if got := s.session.Totals(); got.Deleted != 0 || got.Marked != 1 {
		t.Errorf("Totals = %+v, want nothing deleted and one message marked", got)
	}
}

// Criterion: when an old server is lost, no client takes what it got for a whole message,
// and no QUIT gets +OK.
func TestPOP3DoesNotInventTheEndOfAResponse(t *testing.T) {
	for _, test := range []struct{ name, client, server string }{
		{"before a response", "C: RETR 1\nS: -ERR [SYS/TEMP] * (session TEST)\nS: <EOF>", "C: RETR 1\nS: <EOF>"},
		{"half a status line", "C: DELE 1\nS: -ERR [SYS/TEMP] *\nS: <EOF>", "C: DELE 1\nS- +OK de\nS: <EOF>"},
		{"another protocol", "C: NOOP\nS: -ERR [SYS/TEMP] *\nS: <EOF>", "C: NOOP\nS: 250 ok\nC: <EOF>"},
		{"a challenge", "C: NOOP\nS: -ERR [SYS/TEMP] *\nS: <EOF>", "C: NOOP\nS- + \\r\\n\nC: <EOF>"},
		{"LF alone", "C: NOOP\nS: -ERR [SYS/TEMP] *\nS: <EOF>", "C: NOOP\nS- +OK\\n\nC: <EOF>"},
		{"a line without end", "C: NOOP\nS: -ERR [SYS/TEMP] *\nS: <EOF>", "C: NOOP\nS- " + strings.Repeat("+", 9000) + "\nC: <EOF>"},
		{"half of CAPA", "C: CAPA\nS: -ERR [SYS/TEMP] *\nS: <EOF>", "C: CAPA\nS- +OK\\r\\nTOP\\r\\n\nS: <EOF>"},
		{"CAPA without end", "C: CAPA\nS: -ERR [SYS/TEMP] *\nS: <EOF>", "C: CAPA\nS: +OK\nS- " + strings.Repeat("X\\r\\n", 200) + "\nC: <EOF>"},
		{"at QUIT", "C: QUIT\nS: -ERR [SYS/TEMP] *did not confirm*\nS: <EOF>", "C: QUIT\nS: <EOF>"},
		{"twice", "C: NOOP\nS: +OK\nC: NOOP\nS: -ERR [SYS/TEMP] *\nS: <EOF>", "C: NOOP\nS- +OK\\r\\n+OK\\r\\n\nC: <EOF>"},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := startPOP3(t, t.Context(), false)
			s.dialogue(t, test.client, test.server)
			s.waitEnd(t, proxy.ErrBackendClosed)
		})
	}
	for _, body := range []string{"+OK\r\n", "+OK\r\nSubject", "+OK\r\nx\r\n.", "+OK\r\nx\r\n.\r", "+OK\r\n" + strings.Repeat("line\r\n", 50_000)} {
		s := startPOP3(t, t.Context(), false)
		go func() {
			_, _ = s.server.Read(make([]byte, 64))
			_, _ = io.WriteString(s.server, body)
			_ = s.server.Close()
		}()
		_, _ = io.WriteString(s.client, "RETR 1\r\n")
		_ = s.client.SetReadDeadline(time.Now().Add(10 * time.Second))
		got, _ := io.ReadAll(s.client)
		if bytes.HasSuffix(got, []byte("\r\n.\r\n")) || !bytes.HasPrefix([]byte(body), got) {
			t.Errorf("of %d octets cut, the client got %d that end in %q", len(body), len(got), got[max(0, len(got)-10):])
		}
		s.waitEnd(t, proxy.ErrBackendClosed)
	}
}

// A kick in a session between two commands is said; the server gets no QUIT.
func TestPOP3EndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	client, near := proxytest.Pipe(t)
	backend, server := proxytest.Pipe(t)
	conn := proxy.NewConn(near, proxy.Client{ID: "TEST"}, nil, time.Minute)
	s := &POP3{Conn: backend.(Upstream), Client: proxy.Client{ID: "TEST"}}
	done := make(chan error, 1)
	defer context.AfterFunc(ctx, func() { conn.Interrupt(context.Cause(ctx)) })() // as Server does
	go func() {
		done <- s.Run(ctx, conn)
		_, _ = conn.Close(), s.Close()
	}()
	kicked := proxy.NewRefusal(proxy.Kicked, nil)
	cancel(kicked)
	proxytest.Transcript(t, client, "S: -ERR [SYS/TEMP] Disconnected by an administrator (session TEST)\nS: <EOF>")
	proxytest.Transcript(t, server, "S: <EOF>")
	if err := <-done; !errors.Is(err, kicked) {
		t.Errorf("Run = %v, want the cause", err)
	}
}

// Criterion: a client of an old server that says nothing for 10 minutes is disconnected
// without a response and without QUIT, and a server that says nothing for the time of an
// answer is told as a temporary failure.
func TestPOP3LimitsSilence(t *testing.T) {
	start := func() *pop3Fixture {
		client, near := net.Pipe()
		backend, server := net.Pipe()
		s := &pop3Fixture{client: client, server: server, done: make(chan error, 1)}
		s.session = &POP3{Conn: upstream{backend}}
		s.run(context.Background(), near)
		return s
	}
	synctest.Test(t, func(t *testing.T) {
		s, begun := start(), time.Now()
		all := make(chan []byte, 1)
		go func() { b, _ := io.ReadAll(s.server); all <- b }()
		go func() { _, _ = io.Copy(io.Discard, s.client) }()
		if err := <-s.done; !errors.Is(err, proxy.ErrIdleTimeout) {
			t.Errorf("Run = %v, want ErrIdleTimeout", err)
		}
		if b := <-all; len(b) > 0 || time.Since(begun) < 10*time.Minute || time.Since(begun) > 11*time.Minute {
			t.Errorf("after %v the server got %q", time.Since(begun), b)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		s, begun := start(), time.Now()
		go func() { _, _ = io.Copy(io.Discard, s.server) }()
		go func() { _, _ = io.WriteString(s.client, "RETR 1\r\n") }()
		b, _ := io.ReadAll(s.client)
		if !strings.HasPrefix(string(b), "-ERR [SYS/TEMP]") || time.Since(begun) > proxy.DefaultReply+2*time.Second {
			t.Errorf("after %v the client got %q", time.Since(begun), b)
		}
		if err := <-s.done; !errors.Is(err, proxy.ErrBackendClosed) {
			t.Errorf("Run = %v, want ErrBackendClosed", err)
		}
	})
}

// Criterion: a client that does not read holds the old server back: Postern keeps no more
// of a message than its buffers.
func TestPOP3HoldsTheServerBack(t *testing.T) {
	s := startPOP3(t, t.Context(), false)
	_, _ = io.WriteString(s.client, "RETR 1\r\n")
	sent := make(chan int, 1)
	const most = 256 << 20
	go func() {
		_, _ = s.server.Read(make([]byte, 64))
		_ = s.server.SetWriteDeadline(time.Now().Add(time.Second))
		_, _ = io.WriteString(s.server, "+OK\r\n")
		piece, total := bytes.Repeat([]byte("0123456789abcde\n"), 4096), 0
		for total < most {
			n, err := s.server.Write(piece)
			if total += n; err != nil {
				break
			}
		}
		sent <- total
	}()
	if n := <-sent; n >= most/2 {
		t.Errorf("the server could send %d octets to a client that reads nothing", n)
	}
	_ = s.server.Close()
	s.waitEnd(t, proxy.ErrClientClosed)
}

// FuzzPOP3 compares what the client gets with what the server has sent, and the number of
// commands with that of responses, for any octets of both.
func FuzzPOP3(f *testing.F) {
	f.Add([]byte("STAT\r\nLIST\r\nRETR 1\r\nQUIT\r\n"), []byte("x\r\n..\r\n\r\n.\r\n"), true)
	f.Add([]byte("LIST \r\nUIDL 1\r\nLIST 0\r\nTOP 1 0\r\nCAPA\r\n"), []byte(".\r\n"), false)
	f.Add([]byte("RETR 1\r\nRETR 1\r\n"), []byte("\n.\n\r.\r\n\r\n.\r\n"), true)
	f.Fuzz(func(t *testing.T, commands, body []byte, pipelining bool) {
		if len(commands) > 4096 || len(body) > 4096 || bytes.Contains(body, []byte("-ERR ")) {
			return
		}
		body = stuffed(body)
		client, near := proxytest.Pipe(t)
		backend, server := proxytest.Pipe(t)
		s := &pop3Fixture{client: client, server: server, done: make(chan error, 1)}
		s.session = &POP3{Conn: backend.(Upstream), Pipelining: pipelining, Timeout: 5 * time.Second, Idle: 5 * time.Second, marks: map[int]pop3Mark{}}
		s.run(context.Background(), near)
		var sent bytes.Buffer
		var serving sync.WaitGroup
		serving.Go(func() { serveAny(t, server, body, &sent) })
		serving.Go(func() {
			_, _ = client.Write(commands)
			_, _ = io.WriteString(client, "\r\nQUIT\r\n")
		})
		got, _ := io.ReadAll(client)
		_ = client.Close()
		if err := <-s.done; err != nil && !errors.Is(err, errBadPOP3) {
			t.Errorf("Run = %v", err)
		}
		_ = server.Close()
		serving.Wait()
		if theirs := withoutRefusals(got); !bytes.Equal(theirs, sent.Bytes()) {
			t.Errorf("%q: the client got %q without Postern's own refusals, the server has sent %q", commands, theirs, sent.Bytes())
		}
	})
}

// stuffed returns body as lines of a response.
func stuffed(body []byte) []byte {
	var b bytes.Buffer
	w := wire.NewDotWriter(&b)
	_, _ = w.Write(body)
	_ = w.Close()
	return b.Bytes()
}

// serveAny answers each command as its name demands, and notes what it sends.
func serveAny(t *testing.T, server net.Conn, body []byte, sent *bytes.Buffer) {
	r := wire.NewReplyReader(server)
	for {
		line, err := readCommand(r)
		if err != nil {
			return
		}
		words := strings.Split(line, " ")
		answer := []byte("+OK theirs\r\n")
		switch words[0] {
		case "RETR", "TOP":
			answer = append(answer, body...)
		case "LIST", "UIDL":
			if len(words) == 1 {
				answer = append(answer, body...)
			}
		case "CAPA":
			answer = []byte("-ERR theirs\r\n")
		case "STAT", "DELE", "NOOP", "RSET", "LAST", "QUIT":
		default:
			t.Errorf("the server got %q", line)
		}
		sent.Write(answer)
		if _, err := server.Write(answer); err != nil || words[0] == "QUIT" {
			_ = server.Close()
			return
		}
	}
}

func readCommand(r io.Reader) (string, error) {
	var line []byte
	for b := make([]byte, 1); ; {
		if _, err := r.Read(b); err != nil {
			return "", err
		}
		if line = append(line, b[0]); bytes.HasSuffix(line, []byte("\r\n")) {
			return string(line[:len(line)-2]), nil
		}
	}
}

// withoutRefusals returns what a client got without Postern's own refusals.
func withoutRefusals(got []byte) (rest []byte) {
	for line := range bytes.Lines(got) {
		if !bytes.HasPrefix(line, []byte("-ERR ")) || bytes.HasPrefix(line, []byte("-ERR theirs")) {
			rest = append(rest, line...)
		}
	}
	return rest
}

func BenchmarkPOP3Retrieve(b *testing.B) {
	message := append(append([]byte("+OK\r\n"), bytes.Repeat([]byte(strings.Repeat("x", 76)+"\r\n"), 200_000)...), ".\r\n"...)
	serve := func(server net.Conn) {
		for {
			if _, err := server.Read(make([]byte, 64)); err != nil {
				return
			}
			if _, err := server.Write(message); err != nil {
				return
			}
		}
	}
	retrieve := func(b *testing.B, client net.Conn) {
		b.SetBytes(int64(len(message)))
		for b.Loop() {
			_, _ = io.WriteString(client, "RETR 1\r\n")
			if _, err := io.CopyN(io.Discard, client, int64(len(message))); err != nil {
				b.Fatal(err)
			}
		}
	}
	b.Run("direct", func(b *testing.B) {
		client, server := proxytest.Pipe(b)
		go serve(server)
		retrieve(b, client)
	})
	b.Run("through Postern", func(b *testing.B) {
		client, near := proxytest.Pipe(b)
		backend, server := proxytest.Pipe(b)
		go serve(server)
		s := &pop3Fixture{done: make(chan error, 1), session: &POP3{Conn: backend.(Upstream), marks: map[int]pop3Mark{}}}
		s.run(context.Background(), near)
		retrieve(b, client)
		_ = client.Close()
		if err := <-s.done; !errors.Is(err, proxy.ErrClientClosed) {
			b.Errorf("Run = %v", err)
		}
	})
}

// A watcher is a POP3Watcher that asks commands, and records what it sees.
type watcher struct {
	ask  []string
	most []int // of Ask
	seen strings.Builder
}

func (w *watcher) Response(keyword string, number int, ok bool) io.Writer {
	fmt.Fprintf(&w.seen, "[%s %d %v]", keyword, number, ok)
	return &w.seen
}

func (w *watcher) Ask(most int) (commands []string) {
	w.most = append(w.most, most)
	n := min(most, len(w.ask))
	commands, w.ask = w.ask[:n], w.ask[n:]
	return commands
}

func (w *watcher) Quit(ok bool, deleted []int) {
	slices.Sort(deleted)
	fmt.Fprintf(&w.seen, "[QUIT %v %v]", ok, deleted)
}

// Criterion: a watcher of a session with an old POP3 server sees what the client sees, and asks before QUIT is forwarded; the client gets nothing of that.
func TestPOP3IsWatched(t *testing.T) {
	for _, pipelining := range []bool{false, true} {
		s := startPOP3(t, t.Context(), pipelining)
		w := &watcher{ask: []string{"UIDL", "TOP 1 0", "TOP 2 0"}}
		s.session.Watcher = w
		server := `
			C: LIST
			S- +OK\r\n1 200\r\n2 500\r\n.\r\n
			C: RETR 2
			S- +OK\r\na: b\r\n\r\n..\r\n.\r\n
			C: RETR 3
			S: -ERR no such message
			C: STAT
			S: +OK 2 700
			C: UIDL
			S- +OK\r\n1 a\r\n2 b\r\n.\r\n
			C: TOP 1 0
			S: -ERR
			C: TOP 2 0
			S- +OK\r\na: b\r\n\r\n.\r\n
			C: QUIT
			S: +OK bye
			S: <EOF>
		`
		if pipelining {
			server = strings.Replace(server, "S: -ERR\n\t\t\tC: TOP 2 0\n\t\t\tS-", "C: TOP 2 0\n\t\t\tS: -ERR\n\t\t\tS-", 1)
		}
		s.dialogue(t, `
			C: LIST
			S- +OK\r\n1 200\r\n2 500\r\n.\r\n
			C: RETR 2
			S- +OK\r\na: b\r\n\r\n..\r\n.\r\n
			C: RETR 3
			S: -ERR no such message
			C: STAT
			S: +OK 2 700
			C: QUIT
			S: +OK bye
			S: <EOF>
		`, server)
		s.waitEnd(t, nil)
		want := "[LIST 0 true]1 200\r\n2 500\r\n.\r\n[RETR 2 true]a: b\r\n\r\n..\r\n.\r\n[RETR 3 false]" +
			"[UIDL 0 true]1 a\r\n2 b\r\n.\r\n[TOP 1 false][TOP 2 true]a: b\r\n\r\n.\r\n[QUIT true []]"
		if got := w.seen.String(); got != want {
			t.Errorf("pipelining %v: seen %q, want %q", pipelining, got, want)
		}
	}
}

// Criterion: a session that has marked messages for deletion asks nothing before QUIT; the watcher learns which messages the server has deleted, and when nobody knows.
func TestPOP3WatcherLearnsWhatIsDeleted(t *testing.T) {
	for answer, want := range map[string]string{"S: +OK": "[QUIT true [1 2]]", "S: -ERR": "[QUIT false [1 2]]", "S: <EOF>": "[QUIT false [1 2]]"} {
		s := startPOP3(t, t.Context(), false)
		w := &watcher{ask: []string{"TOP 1 0"}}
		s.session.Watcher = w
		client := answer
		if answer == "S: <EOF>" {
			client, answer = `S: -ERR \[SYS/TEMP\] *`, "C: <EOF>"
		}
		dialogue := "C: DELE 2\nS: +OK\nC: DELE 1\nS: +OK\nC: QUIT\n"
		if answer == "C: <EOF>" {
			proxytest.ServeTranscript(t, s.server, dialogue+"S: <EOF>")
		} else {
			proxytest.ServeTranscript(t, s.server, dialogue+answer)
		}
		proxytest.Transcript(t, s.client, dialogue+client)
		_ = s.client.Close()
		if err := <-s.done; err != nil && !errors.Is(err, proxy.ErrBackendClosed) {
			t.Error(err)
		}
		if got := w.seen.String(); got != want {
			t.Errorf("after %q: %s, want %s", answer, got, want)
		}
	}
}

// Criterion: what a watcher asks before QUIT delays QUIT by at most 50 ms, or by one answer of a server that is slower; a fast server with PIPELINING is asked more and more at once.
func TestPOP3AsksForFiftyMilliseconds(t *testing.T) {
	for _, c := range []struct {
		answer     time.Duration // of each command
		pipelining bool
		asked      int
		took       time.Duration
	}{
		{answer: 0, asked: 200},
		{answer: 0, pipelining: true, asked: 200},
		{answer: 10 * time.Millisecond, asked: 4, took: 40 * time.Millisecond},
		{answer: 30 * time.Millisecond, asked: 1, took: 30 * time.Millisecond},
		{answer: 5 * time.Second, asked: 1, took: 5 * time.Second},
		{answer: 5 * time.Second, pipelining: true, asked: 1, took: 5 * time.Second},
	} {
		synctest.Test(t, func(t *testing.T) {
			client, near := net.Pipe()
			back, server := net.Pipe()
			w := &watcher{}
			for range 200 {
				w.ask = append(w.ask, "TOP 1 0")
			}
			s := &pop3Fixture{client: client, server: server, done: make(chan error, 1)}
			s.session = &POP3{BackendName: "old", Conn: upstream{back}, Pipelining: c.pipelining, Watcher: w}
			s.session.marks = map[int]pop3Mark{}
			s.run(t.Context(), near)
			asked := 0
			go func() {
				in := bufio.NewReader(server)
				for {
					line, err := in.ReadString('\n')
					if err != nil {
						return
					}
					if strings.HasPrefix(line, "QUIT") {
						_, _ = io.WriteString(server, "+OK\r\n")
						_ = server.Close()
						return
					}
					asked++
					time.Sleep(c.answer)
					_, _ = io.WriteString(server, "+OK\r\nA: b\r\n\r\n.\r\n")
				}
			}()
			begun := time.Now()
			go func() { _, _ = io.WriteString(client, "QUIT\r\n") }()
			if b, _ := io.ReadAll(client); string(b) != "+OK\r\n" {
				t.Errorf("%+v: QUIT is answered with %q", c, b)
			}
			if took := time.Since(begun); took != c.took || asked != c.asked {
				t.Errorf("%+v: QUIT took %v, and %d were asked", c, took, asked)
			}
			if err := <-s.done; err != nil {
				t.Error(err)
			}
			if c.pipelining && c.answer == 0 && w.most[len(w.most)-1] != maxPOP3Batch {
				t.Errorf("at once were asked %v", w.most)
			}
		})
	}
}

// Criterion: an answer without an end to what a watcher asks does not keep the client waiting for ever.
func TestPOP3AnswerBeforeQuitIsBounded(t *testing.T) {
	for name, drip := range map[string]time.Duration{"much": 0, "slowly": 30 * time.Second} {
		synctest.Test(t, func(t *testing.T) {
			client, near := net.Pipe()
			back, server := net.Pipe()
			s := &pop3Fixture{client: client, server: server, done: make(chan error, 1)}
			s.session = &POP3{BackendName: "old", Conn: upstream{back}, Watcher: &watcher{ask: []string{"TOP 1 0"}}, marks: map[int]pop3Mark{}}
			s.run(t.Context(), near)
			var serving sync.WaitGroup
			serving.Go(func() {
				in := bufio.NewReader(server)
				_, _ = in.ReadString('\n')
				_, _ = io.WriteString(server, "+OK\r\n")
				for {
					if _, err := io.WriteString(server, strings.Repeat("x", 1000)+"\r\n"); err != nil {
						return
					}
					time.Sleep(drip)
				}
			})
			begun := time.Now()
			go func() { _, _ = io.WriteString(client, "QUIT\r\n") }()
			if b, _ := io.ReadAll(client); !strings.HasPrefix(string(b), "-ERR [SYS/TEMP]") || time.Since(begun) > 3*time.Minute {
				t.Errorf("%s: after %v QUIT is answered with %q", name, time.Since(begun), b)
			}
			if err := <-s.done; !errors.Is(err, proxy.ErrBackendClosed) {
				t.Errorf("%s: Run = %v", name, err)
			}
			_ = server.Close()
			serving.Wait()
		})
	}
}
