package relay

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"postern/proxy"
	"postern/proxy/proxytest"
)

// A submissionFixture is a running session: the far ends of its two connections,
// and the result of Run.
type submissionFixture struct {
	client, server net.Conn
	conn           *proxy.Conn // of client
	session        *Submission
	done           chan error
}

var announced = []string{"SIZE 1000000", "PIPELINING", "8BITMIME", "CHUNKING", "AUTH PLAIN LOGIN"}

// startSubmission runs a submission session between two TCP connections.
func startSubmission(t *testing.T, ctx context.Context, extensions []string) *submissionFixture {
	t.Helper()
	client, near := proxytest.Pipe(t)
	backend, server := proxytest.Pipe(t)
	s := &submissionFixture{client: client, server: server, done: make(chan error, 1)}
	s.session = &Submission{BackendName: "main", Conn: backend.(Upstream), Hostname: "postern.example", Extensions: extensions}
	s.run(ctx, near)
	return s
}

func (s *submissionFixture) run(ctx context.Context, near net.Conn) {
	conn := proxy.NewConn(near, proxy.Client{ID: "TEST"}, nil, time.Minute)
	s.conn = conn
	go func() {
		err := s.session.Run(ctx, conn)
		_ = s.session.Close()
		_ = conn.Close()
		s.done <- err
	}()
}

// waitEnd closes the client and checks the result of Run and the number of
// accepted messages.
func (s *submissionFixture) waitEnd(t *testing.T, want error, messages int) {
	t.Helper()
	_ = s.client.Close()
	select {
	case err := <-s.done:
		if !errors.Is(err, want) {
			t.Errorf("Run = %v, want %v", err, want)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("Run has not returned")
	}
	if got := s.session.Totals().Submitted; got != messages {
		t.Errorf("Submitted = %d, want %d", got, messages)
	}
}

// dialogue plays the transcripts of client and server at once and waits for the
// end.
func dialogue(t *testing.T, client, server string, want error, messages int) {
	t.Helper()
	s := startSubmission(t, t.Context(), announced)
	proxytest.ServeTranscript(t, s.server, server)
	proxytest.Transcript(t, s.client, client)
	s.waitEnd(t, want, messages)
}

func TestSubmissionCarriesMessages(t *testing.T) {
	dialogue(t, `
		C: MAIL FROM:<a@example.org> SIZE=100 BODY=8BITMIME AUTH=<>
		S: 250 2.1.0 sender
		C: rcpt to:<b@example.org> NOTIFY=NEVER
		S: 250 recipient
		C: DATA
		S: 354 go on
		C: Subject: one
		C: 
		C: ..
		C: MAIL FROM:<not a command>
		C: .
		S: 250-queued
		S: 250 as 1
		C: MAIL FROM:<>
		S: 250 ok
		C: RCPT TO:<b@example.org>
		S: 250 ok
		C: DATA
		S: 354 go on
		C: .
		S: 554 empty
		C: QUIT
		S: 221 bye
		S: <EOF>
	`, `
		C: MAIL FROM:<a@example.org> SIZE=100 BODY=8BITMIME AUTH=<>
		S: 250 2.1.0 sender
		C: RCPT to:<b@example.org> NOTIFY=NEVER
		S: 250 recipient
		C: DATA
		S: 354 go on
		C: Subject: one
		C: 
		C: ..
		C: MAIL FROM:<not a command>
		C: .
		S: 250-queued
		S: 250 as 1
		C: MAIL FROM:<>
		S: 250 ok
		C: RCPT TO:<b@example.org>
		S: 250 ok
		C: DATA
		S: 354 go on
		C: .
		S: 554 empty
		C: QUIT
		S: 221 bye
		S: <EOF>
	`, nil, 1)
}

// Criterion: after login XCLIENT, XFORWARD, AUTH, STARTTLS and whatever else is
// unknown are refused and reach no server.
// A session that is ended within a message makes the client send all of it again: who
// removes a device waits for the end of the message.
func TestASubmissionIsBusyWhileAMessageIsUnderWay(t *testing.T) {
	s := startSubmission(t, t.Context(), announced)
	client, server := bufio.NewReader(s.client), bufio.NewReader(s.server)
	line := func(in *bufio.Reader, want string) {
		t.Helper()
		if got, err := in.ReadString('\n'); got != want+"\r\n" {
			t.Fatalf("a line %q, %v; want %q", got, err, want)
		}
	}
	for _, step := range []struct {
		command, reply string
		busy           bool // afterwards
	}{
		{"DATA", "503 no sender", false},
		{"DATA", "354 go on", true},
		{".", "250 queued", false},
		{"DATA", "354 go on", true},
		{".", "554 spam", false},
		{"MAIL FROM:<a>", "250 sender", false},
		{"RCPT TO:<b>", "250 recipient", false},
		{"BDAT 2\r\n", "250 2 octets", true},
		{"NOOP", "250 still here", true},
		{"BDAT 2 LAST\r\n", "250 queued", false},
		{"MAIL FROM:<a>", "250 sender", false},
		{"RCPT TO:<b>", "250 recipient", false},
		{"BDAT 2\r\n", "250 2 octets", true},
		{"RSET", "250 forgotten", false},
		{"MAIL FROM:<a>", "250 sender", false},
		{"RCPT TO:<b>", "250 recipient", false},
		{"BDAT 2\r\n", "452 full", false},
	} {
		_, _ = io.WriteString(s.client, step.command+"\r\n")
		for part := range strings.SplitSeq(step.command, "\r\n") {
			line(server, part)
		}
		_, _ = io.WriteString(s.server, step.reply+"\r\n")
		line(client, step.reply)
		for range 1000 { // the reply is passed on a moment before
			if s.conn.Busy() == step.busy {
				break
			}
			time.Sleep(time.Millisecond)
		}
		if s.conn.Busy() != step.busy {
			t.Errorf("after %s and %s: Busy = %v", step.command, step.reply, !step.busy)
		}
	}
	s.waitEnd(t, proxy.ErrClientClosed, 2)
}

func TestSubmissionForwardsNoUnknownCommand(t *testing.T) {
	dialogue(t, `
		C: XCLIENT LOGIN=boss
		S: 502 5.5.1 *
		C: XFORWARD ADDR=10.0.0.1
		S: 502 5.5.1 *
		C: AUTH PLAIN AGFsaWNlAHg=
		S: 503 5.5.1 *
		C: STARTTLS
		S: 503 5.5.1 *
		C: ETRN example.org
		S: 502 5.5.1 *
		C: EXPN staff
		S: 502 5.5.1 *
		C: BURL imap://x/
		S: 502 5.5.1 *
		C:  NOOP
		S: 500 5.5.2 *
		C: NOOP`+"\x00"+`
		S: 500 5.5.2 *
		C- NOOP\nXCLIENT LOGIN=boss\r\n
		S: 500 5.5.2 *
		S: 502 5.5.1 *
		C- NOOP\rXCLIENT LOGIN=boss\r\n
		S: 500 5.5.2 *
		C: NOOP `+strings.Repeat("x", 2100)+`
		S: 500 5.5.2 Line too long
		C: VRFY alice
		S: 252 try
		C: HELP
		S: 214 read RFC 5321
		C: QUIT
		S: 221 bye
	`, `
		C: VRFY alice
		S: 252 try
		C: HELP
		S: 214 read RFC 5321
		C: QUIT
		S: 221 bye
		S: <EOF>
	`, nil, 0)
}

// Criterion: the list of extensions is the same before and after the login.
func TestSubmissionAnswersEHLOItself(t *testing.T) {
	dialogue(t, `
		C: EHLO client.example
		S: 250-postern.example
		S: 250-SIZE 1000000
		S: 250-PIPELINING
		S: 250-8BITMIME
		S: 250-CHUNKING
		S: 250 AUTH PLAIN LOGIN
		C: HELO client.example
		S: 250 postern.example
		C: RSET
		S: 250 flushed
		C: EHLO again.example
		S: 451 not now
		C: QUIT
		S: 221 bye
	`, `
		C: RSET
		S: 250 ok
		C: RSET
		S: 250 ok
		C: RSET
		S: 250 flushed
		C: RSET
		S: 451 not now
		C: QUIT
		S: 221 bye
		S: <EOF>
	`, nil, 0)
}

func TestSubmissionAnswersPipelinedCommandsInOrder(t *testing.T) {
	dialogue(t, `
		C- MAIL FROM:<a>\r\nXCLIENT LOGIN=boss\r\nRCPT TO:<b>\r\nRCPT TO:<c>\r\nAUTH PLAIN\r\nDATA\r\n
		S: 250 a
		S: 502 5.5.1 *
		S: 250 b
		S: 550 c
		S: 503 5.5.1 *
		S: 354 go on
		C- hello\r\n.\r\nNOOP\r\nBOGUS\r\nQUIT\r\nNOOP\r\n
		S: 250 queued
		S: 250 noop
		S: 502 5.5.1 *
		S: 221 bye
		S: <EOF>
	`, `
		C: MAIL FROM:<a>
		C: RCPT TO:<b>
		C: RCPT TO:<c>
		C: DATA
		S- 250 a\r\n250 b\r\n550 c\r\n354 go on\r\n
		C: hello
		C: .
		C: NOOP
		C: QUIT
		S- 250 queued\r\n250 noop\r\n221 bye\r\n
		S: <EOF>
	`, nil, 1)
}

func TestSubmissionGivesAServerWithoutPipeliningOneCommandAtATime(t *testing.T) {
	s := startSubmission(t, t.Context(), []string{"SIZE"})
	_, _ = io.WriteString(s.client, "MAIL FROM:<a>\r\nRCPT TO:<b>\r\nQUIT\r\n")
	server := bufio.NewReader(s.server)
	for _, want := range []string{"MAIL FROM:<a>\r\n", "RCPT TO:<b>\r\n", "QUIT\r\n"} {
		if got, err := server.ReadString('\n'); got != want {
			t.Fatalf("server got %q, %v, want %q", got, err, want)
		}
		_ = s.server.SetReadDeadline(time.Now().Add(30 * time.Millisecond))
		if more, err := server.Peek(1); err == nil {
			t.Fatalf("%q came before the reply", more)
		}
		_ = s.server.SetReadDeadline(time.Time{})
		_, _ = io.WriteString(s.server, "250 ok\r\n")
	}
	_ = s.server.Close()
	proxytest.Transcript(t, s.client, "S: 250 ok\nS: 250 ok\nS: 250 ok\nS: <EOF>")
	s.waitEnd(t, nil, 0)
}

func TestSubmissionForwardsMoreThanTheWindow(t *testing.T) {
	const many = 10 * window
	s := startSubmission(t, t.Context(), announced)
	go func() { _, _ = io.WriteString(s.client, strings.Repeat("NOOP\r\n", many)+"QUIT\r\n") }()
	served := make(chan *scriptServer, 1)
	go func() { served <- startScriptServer(s.server) }()
	replies, err := io.ReadAll(s.client)
	if got := bytes.Count(replies, []byte("\n")); got != many+1 || err != nil {
		t.Errorf("%d replies, %v, want %d", got, err, many+1)
	}
	if got := len((<-served).commands); got != many+1 {
		t.Errorf("%d commands, want %d", got, many+1)
	}
	s.waitEnd(t, nil, 0)
}

// Criterion: what follows DATA is a body after 354 and commands after anything
// else.
func TestSubmissionTakesABodyOnlyAfter354(t *testing.T) {
	dialogue(t, `
		C- DATA\r\nXCLIENT LOGIN=boss\r\n.\r\nNOOP\r\nQUIT\r\n
		S: 503 need MAIL
		S: 502 5.5.1 *
		S: 500 5.5.2 *
		S: 250 noop
		S: 221 bye
	`, `
		C: DATA
		S: 503 need MAIL
		C: NOOP
		C: QUIT
		S: 250 noop
		S: 221 bye
		S: <EOF>
	`, nil, 0)
}

func TestSubmissionLetsAServerAskForNoBodyButByDATA(t *testing.T) {
	for _, script := range []string{"C: NOOP\nS: 354 go on", "C: NOOP\nS: garbage", "C: NOOP\nS- 250 bare\\n"} {
		want := proxy.ErrBackendClosed
		if strings.HasSuffix(script, "354 go on") {
			want = errUnexpected
		}
		dialogue(t, "C: NOOP\nS: 421 *(session TEST)\nS: <EOF>", script, want, 0)
	}
	dialogue(t, "C: DATA\nS: 421 4.3.0 *\nS: <EOF>", "C: DATA\nS: 250 what", errUnexpected, 0)
	dialogue(t, "S: 421 4.3.0 *\nS: <EOF>", "S: 250 nothing was asked", errUnexpected, 0)
}

// A scriptServer is a server's view of what it was sent.
type scriptServer struct {
	commands []string
	messages []string
	err      error
}

var known = map[string]bool{
	"MAIL": true, "RCPT": true, "DATA": true, "BDAT": true, "RSET": true, "NOOP": true, "VRFY": true, "HELP": true, "QUIT": true,
}

// startScriptServer runs a server that accepts every command it knows.
func startScriptServer(conn net.Conn) *scriptServer {
	s := &scriptServer{}
	defer func() { _ = conn.Close() }()
	r := bufio.NewReader(conn)
	var chunks string
	for s.err == nil {
		line, err := r.ReadString('\n')
		if err != nil {
			return s
		}
		verb, _, _ := strings.Cut(strings.TrimSuffix(line, "\r\n"), " ")
		if !strings.HasSuffix(line, "\r\n") || strings.ContainsAny(line[:len(line)-2], "\r\x00") || !known[verb] {
			s.err = fmt.Errorf("command %q", line)
			return s
		}
		s.commands = append(s.commands, strings.TrimSuffix(line, "\r\n"))
		reply := "250 ok\r\n"
		switch verb {
		case "DATA":
			_, _ = io.WriteString(conn, "354 go on\r\n")
			var message string
			if message, s.err = readMessage(r); s.err == nil {
				s.messages = append(s.messages, message)
			}
		case "BDAT":
			var size int
			var last string
			_, _ = fmt.Sscanf(line, "BDAT %d %s", &size, &last)
			chunk := make([]byte, size)
			_, s.err = io.ReadFull(r, chunk)
			if chunks += string(chunk); last == "LAST" {
				s.messages, chunks = append(s.messages, chunks), ""
			}
		case "QUIT":
			reply = "221 bye\r\n"
		}
		_, _ = io.WriteString(conn, reply)
		if verb == "QUIT" {
			return s
		}
	}
	return s
}

// readMessage accepts any line end, as lax servers do, and reports it as an
// error.
func readMessage(r *bufio.Reader) (message string, err error) {
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return message, err
		}
		if !strings.HasSuffix(line, "\r\n") || strings.Contains(line[:len(line)-2], "\r") {
			return message, fmt.Errorf("bare line end in %q", line)
		}
		if line == ".\r\n" {
			return message, nil
		}
		message += line
	}
}

// relayThrough sends in to a session in parts of size octets and returns what the
// server understood.
func relayThrough(t *testing.T, in string, size int) *scriptServer {
	t.Helper()
	client, near := socketPair(t)
	backend, server := socketPair(t)
	s := &submissionFixture{client: client, done: make(chan error, 1)}
	s.session = &Submission{BackendName: "main", Conn: backend, Hostname: "postern.example", Extensions: announced}
	s.run(context.Background(), near)
	served := make(chan *scriptServer, 1)
	go func() { served <- startScriptServer(server) }()
	replies := make(chan struct{})
	go func() {
		defer close(replies)
		_, _ = io.Copy(io.Discard, client)
	}()
	for in != "" {
		n := min(size, len(in))
		if _, err := io.WriteString(client, in[:n]); err != nil {
			break
		}
		in = in[n:]
	}
	_ = client.CloseWrite()
	if err := <-s.done; err != nil {
		t.Logf("Run = %v", err) // depends on the input
	}
	<-replies
	_ = client.Close()
	return <-served
}

// socketPair is proxytest.Pipe without ports, which fuzzing would use up.
func socketPair(t *testing.T) (a, b *net.UnixConn) {
	t.Helper()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC|syscall.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	var conns [2]*net.UnixConn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "socketpair")
		conn, err := net.FileConn(f)
		_ = f.Close()
		if err != nil {
			t.Fatal(err)
		}
		conns[i] = conn.(*net.UnixConn)
	}
	return conns[0], conns[1]
}

// Criterion: no body makes two messages, however it is split.
func TestSubmissionCarriesNoSecondMessageInTheFirst(t *testing.T) {
	for _, vector := range smuggling {
		in := "MAIL FROM:<a>\r\nRCPT TO:<b>\r\nDATA\r\nfirst" + vector +
			"MAIL FROM:<boss>\r\nRCPT TO:<c>\r\nDATA\r\nsecond\r\n.\r\nQUIT\r\n"
		for size := 1; size <= len(in); size += 1 + size/8 {
			checkOneMessage(t, in, size)
		}
	}
}

func checkOneMessage(t *testing.T, in string, size int) {
	t.Helper()
	got := relayThrough(t, in, size)
	want := []string{"MAIL FROM:<a>", "RCPT TO:<b>", "DATA", "QUIT"}
	if strings.Contains(in, "\x00") { // refused: the server never sees an end
		if got.err == nil || len(got.messages) != 0 || strings.Join(got.commands, "\n") != strings.Join(want[:3], "\n") {
			t.Fatalf("%q in pieces of %d: commands %q, %d messages, %v", in, size, got.commands, len(got.messages), got.err)
		}
		return
	}
	if got.err != nil || len(got.messages) != 1 || strings.Join(got.commands, "\n") != strings.Join(want, "\n") {
		t.Fatalf("%q in pieces of %d: commands %q, %d messages, %v", in, size, got.commands, len(got.messages), got.err)
	}
}

// FuzzSubmissionBody checks that an octet of a message is never a command.
func FuzzSubmissionBody(f *testing.F) {
	for _, vector := range smuggling {
		f.Add("a"+vector+"QUIT\r\nMAIL FROM:<boss>", uint8(7))
	}
	f.Fuzz(func(t *testing.T, text string, size uint8) {
		if strings.Contains("\r\n"+text+"\r\n", "\r\n.\r\n") {
			t.Skip("that is its end")
		}
		checkOneMessage(t, "MAIL FROM:<a>\r\nRCPT TO:<b>\r\nDATA\r\n"+text+"\r\n.\r\nQUIT\r\n", int(size)+1)
	})
}

// FuzzSubmission checks that no command outside the list reaches the server.
func FuzzSubmission(f *testing.F) {
	f.Add("EHLO x\r\nMAIL FROM:<a>\r\nRCPT TO:<b>\r\nBDAT 3\r\na\nbBDAT 0 LAST\r\nQUIT\r\n", uint8(3))
	f.Add("XCLIENT LOGIN=boss\r\nNOOP\nXCLIENT LOGIN=boss\r\nDATA\r\n.\rXCLIENT\r\n.\r\n", uint8(3))
	f.Add("BDAT 5\r\nNOOP\r\nBDAT 99999999999999999999\r\n", uint8(3))
	f.Fuzz(func(t *testing.T, in string, size uint8) {
		if got := relayThrough(t, in, int(size)+1); got.err != nil && !errors.Is(got.err, io.EOF) && !errors.Is(got.err, io.ErrUnexpectedEOF) {
			t.Errorf("%q in pieces of %d: %v after %q", in, int(size)+1, got.err, got.commands)
		}
	})
}

func TestSubmissionMakesChunksOfItsOwn(t *testing.T) {
	dialogue(t, `
		C- MAIL FROM:<a>\r\nRCPT TO:<b>\r\n
		S: 250 a
		S: 250 b
		C- BDAT 8\r\none\r\ntwo
		S: 250 8 octets
		C- BDAT 5\r\n\n.\r\n\r
		S: 250 5 octets
		C- BDAT 3 LAST\r\nx\ny
		S: 250 queued
		C- BDAT 5\r\nQUIT\n
		S: 503 5.5.1 *
		C- BDAT 0 LAST\r\n
		S: 503 5.5.1 *
		C: QUIT
		S: 221 bye
	`, `
		C: MAIL FROM:<a>
		C: RCPT TO:<b>
		S- 250 a\r\n250 b\r\n
		C- BDAT 8\r\none\r\ntwo
		S: 250 8 octets
		C- BDAT 5\r\n\r\n.\r\n
		S: 250 5 octets
		C- BDAT 6 LAST\r\n\r\nx\r\ny
		S: 250 queued
		C: QUIT
		S: 221 bye
		S: <EOF>
	`, nil, 1)
}

func TestSubmissionSplitsALargeChunk(t *testing.T) {
	text := strings.Repeat("0123456789abcde\n", 20000) // one octet short of CRLF
	want := strings.ReplaceAll(text, "\n", "\r\n")
	got := relayThrough(t, fmt.Sprintf("MAIL FROM:<a>\r\nRCPT TO:<b>\r\nBDAT %d LAST\r\n%sQUIT\r\n", len(text), text), 100_000)
	if len(got.messages) != 1 || got.messages[0] != want || got.err != nil {
		t.Errorf("%d messages, %v, want one of %d octets", len(got.messages), got.err, len(want))
	}
	for _, c := range got.commands {
		var size int
		if _, err := fmt.Sscanf(c, "BDAT %d", &size); err == nil && size > bufferSize {
			t.Errorf("%s: more than %d octets", c, bufferSize)
		}
	}
}

// Criterion: a chunk that no server wants is swallowed, one of no size ends the
// session.
func TestSubmissionDiscardsChunksOutsideATransaction(t *testing.T) {
	dialogue(t, `
		C- BDAT 12\r\nXCLIENT x\r\n\nNOOP\r\n
		S: 503 5.5.1 *
		S: 250 noop
		C- MAIL FROM:<a>\r\nRCPT TO:<b>\r\nBDAT 4\r\nabcdBDAT 4 LAST\r\nefgh
		S: 250 a
		S: 250 b
		S: 452 full
		S: 503 5.5.1 *
		C: BDAT -1
		S: 501 5.5.4 *
		S: <EOF>
	`, `
		C: NOOP
		S: 250 noop
		C: MAIL FROM:<a>
		C: RCPT TO:<b>
		S- 250 a\r\n250 b\r\n
		C- BDAT 4\r\nabcd
		S: 452 full
		C: <EOF>
	`, errBadChunk, 0)
}

func TestParseBDAT(t *testing.T) {
	for args, want := range map[string]string{
		"0": "0 false true", "12 LAST": "12 true true", "12 last": "12 true true", "12 ": "12 false true",
		"999999999999999999": "999999999999999999 false true",
		"":                   "0 false false", "1000000000000000000": "0 false false", "+1": "0 false false", "1 LATE": "1 false false",
		"1  LAST": "1 false false", "0x1": "0 false false", "1 LAST x": "1 false false",
	} {
		size, last, ok := parseBDAT([]byte(args))
		if got := fmt.Sprintln(size, last, ok); got != want+"\n" {
			t.Errorf("parseBDAT(%q) = %s, want %s", args, strings.TrimSpace(got), want)
		}
	}
}

func TestSubmissionPassesTheServersGoodbyeOn(t *testing.T) {
	dialogue(t, "S: 421 4.4.2 timeout exceeded\nS: <EOF>", "S: 421 4.4.2 timeout exceeded\nS: <EOF>", proxy.ErrBackendClosed, 0)
	dialogue(t, "C: NOOP\nS: 421 closing\nS: <EOF>", "C: NOOP\nS: 421 closing", proxy.ErrBackendClosed, 0)
	dialogue(t, "C: NOOP\nS: 421 4.4.2 *(session TEST)\nS: <EOF>", "C: NOOP\nS: <EOF>", proxy.ErrBackendClosed, 0)
	dialogue(t, "C: QUIT\nS: 221 2.0.0 *\nS: <EOF>", "C: QUIT\nS: <EOF>", nil, 0)
	dialogue(t, "C: DATA\nS: 354 go on\nC: text\nS: 421 gone\nS: <EOF>", "C: DATA\nS: 354 go on\nC: text\nS: 421 gone", proxy.ErrBackendClosed, 0)
}

func TestSubmissionPassesAnEarlyRefusalOnAtTheEndOfTheMessage(t *testing.T) {
	dialogue(t, `
		C: DATA
		S: 354 go on
		C: much
		C: more
		C: .
		S: 552 too much
		C: QUIT
		S: 221 bye
	`, `
		C: DATA
		S: 354 go on
		C: much
		S: 552 too much
		C: more
		C: .
		C: QUIT
		S: 221 bye
		S: <EOF>
	`, nil, 0)
}

func TestSubmissionKeepsAnswersAfterHalfClose(t *testing.T) {
	dialogue(t, "C: NOOP\nC: QUIT\nC: <EOF>\nS: 250 ok\nS: 221 bye\nS: <EOF>", "C: NOOP\nC: QUIT\nS: 250 ok\nS: 221 bye\nS: <EOF>", nil, 0)
	dialogue(t, "C: NOOP\nC: <EOF>\nS: 250 ok\nS: <EOF>", "C: NOOP\nS: 250 ok\nC: <EOF>", proxy.ErrClientClosed, 0)
}

// Criterion: a connection that breaks within a message submits nothing.
func TestSubmissionForgetsAMessageWithoutItsEnd(t *testing.T) {
	dialogue(t, "C: DATA\nS: 354 go on\nC- half a li\nC: <EOF>\nS: <EOF>", "C: DATA\nS: 354 go on\nC- half a li\nC: <EOF>", proxy.ErrClientClosed, 0)
}

func TestSubmissionNamesTheReasonOfItsEnd(t *testing.T) {
	for reason, script := range map[proxy.Reason]string{
		proxy.ShuttingDown: `S: 421 4.3.2 The service is restarting*`,
		proxy.Kicked:       `S: 421 4.3.2 Disconnected by an administrator*`,
	} {
		ctx, cancel := context.WithCancelCause(t.Context())
		s := startSubmission(t, ctx, announced)
		proxytest.ServeTranscript(t, s.server, "C: NOOP\nS: 250 ok\nC: <EOF>")
		proxytest.Transcript(t, s.client, "C: NOOP\nS: 250 ok")
		cause := proxy.NewRefusal(reason, nil)
		cancel(cause)
		proxytest.Transcript(t, s.client, script+"\nS: <EOF>")
		s.waitEnd(t, cause, 0)
	}
}

func TestSubmissionSendsNothingWhenItEndsWithinAMessage(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	s := startSubmission(t, ctx, announced)
	proxytest.ServeTranscript(t, s.server, "C: DATA\nS: 354 go on\nC: half\nC: <EOF>")
	proxytest.Transcript(t, s.client, "C: DATA\nS: 354 go on\nC: half")
	time.Sleep(20 * time.Millisecond)
	cause := proxy.NewRefusal(proxy.ShuttingDown, nil)
	cancel(cause)
	proxytest.Transcript(t, s.client, "S: <EOF>")
	s.waitEnd(t, cause, 0)
}

func TestSubmissionLimitsNonsense(t *testing.T) {
	s := startSubmission(t, t.Context(), announced)
	proxytest.ServeTranscript(t, s.server, "C: <EOF>")
	proxytest.Transcript(t, s.client, strings.Repeat("C: GET / HTTP/1.1\n", maxBad+1)+strings.Repeat("S: 502 *\n", maxBad)+"S: 421 4.7.0 *\nS: <EOF>")
	s.waitEnd(t, errTooManyBad, 0)
}

// syntheticSubmission runs a session in fake time.
func syntheticSubmission() *submissionFixture {
	client, near := net.Pipe()
	backend, server := net.Pipe()
	s := &submissionFixture{client: client, server: server, done: make(chan error, 1)}
	s.session = &Submission{BackendName: "main", Conn: upstream{backend}, Hostname: "postern.example", Extensions: announced}
	s.run(context.Background(), near)
	return s
}

func TestSubmissionEndsASilentSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begun := time.Now()
		s := syntheticSubmission()
		received, _ := io.ReadAll(s.client)
		if want := "421 4.4.2 "; !strings.HasPrefix(string(received), want) {
			t.Errorf("client got %q, want %s", received, want)
		}
		if err := <-s.done; !errors.Is(err, proxy.ErrIdleTimeout) {
			t.Errorf("Run = %v, want ErrIdleTimeout", err)
		}
		if got := time.Since(begun); got < proxy.DefaultSubmissionIdle || got > proxy.DefaultSubmissionIdle+2*time.Second {
			t.Errorf("ended after %v", got)
		}
	})
}

func TestSubmissionGivesTheServerTimeForAReply(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begun := time.Now()
		s := syntheticSubmission()
		go func() { _, _ = io.WriteString(s.client, "NOOP\r\n") }()
		go func() { _, _ = io.Copy(io.Discard, s.server) }()
		received, _ := io.ReadAll(s.client)
		if want := "421 4.4.2 "; !strings.HasPrefix(string(received), want) {
			t.Errorf("client got %q, want %s", received, want)
		}
		if err := <-s.done; !errors.Is(err, proxy.ErrBackendClosed) {
			t.Errorf("Run = %v, want ErrBackendClosed", err)
		}
		if got := time.Since(begun); got < replyTime || got > replyTime+2*time.Second {
			t.Errorf("ended after %v", got)
		}
	})
}

func TestSubmissionGivesASlowMessageAllTheTimeItTakes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := syntheticSubmission()
		var serving sync.WaitGroup
		serving.Go(func() {
			if got := startScriptServer(s.server); len(got.messages) != 1 || got.err != nil {
				t.Errorf("%d messages, %v", len(got.messages), got.err)
			}
		})
		serving.Go(func() { _, _ = io.Copy(io.Discard, s.client) })
		_, _ = io.WriteString(s.client, "MAIL FROM:<a>\r\nRCPT TO:<b>\r\nDATA\r\n")
		for range 100 {
			time.Sleep(4 * time.Minute)
			_, _ = io.WriteString(s.client, "one more line\r\n")
		}
		_, _ = io.WriteString(s.client, ".\r\nQUIT\r\n")
		if err := <-s.done; err != nil {
			t.Errorf("Run = %v", err)
		}
		serving.Wait()
	})
}
