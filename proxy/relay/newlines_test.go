package relay

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"postern/proxy/proxytest"
)

// startSubmissionWith is startSubmission with another treatment of bare line
// ends.
func startSubmissionWith(t *testing.T, how Newlines) *submissionFixture {
	t.Helper()
	client, near := proxytest.Pipe(t)
	backend, server := proxytest.Pipe(t)
	s := &submissionFixture{client: client, server: server, done: make(chan error, 1)}
	s.session = &Submission{BackendName: "main", Conn: backend.(Upstream), Hostname: "postern.example", Extensions: announced, Newlines: how}
	s.run(t.Context(), near)
	return s
}

// clean reports whether s has no bare CR or LF.
func clean(s string) bool { return !strings.ContainsAny(strings.ReplaceAll(s, "\r\n", ""), "\r\n") }

func TestBodyFindsBareLineEnds(t *testing.T) {
	for _, vector := range append([]string{"", "\r\n", "\r\n..\r\n", "\r\n.x\r\n", "\r\n\r\n"}, smuggling...) {
		in := "first" + vector + "second\r\n.\r\n"
		for size := 1; size <= len(in); size++ {
			b := &body{dots: true, as: Reject}
			if _, rest, end := filter(b, in, size); !end || rest != "" {
				t.Fatalf("%q in pieces of %d: left %q, %v", in, size, rest, end)
			}
			if b.bare == clean(in) {
				t.Errorf("%q in pieces of %d: bare %v", in, size, b.bare)
			}
		}
	}
}

// Criterion: with bare_newlines: pass a message comes through octet by octet,
// and ends at CRLF.CRLF alone.
func TestBodyPassesEverything(t *testing.T) {
	for _, vector := range smuggling {
		for _, message := range []string{"first" + vector + "second\r\n.\r\n", vector + ".\r\n\r\n.\r\n", ".\r\n", "\r\n.\r\n"} {
			in := message + "QUIT\r\n.\r\n"
			want, _, _ := strings.Cut("\r\n"+in, "\r\n.\r\n")
			want = (want + "\r\n.\r\n")[2:]
			for size := 1; size <= len(in); size++ {
				out, _, end := filter(&body{dots: true, as: Pass}, in, size)
				if out != want || !end {
					t.Fatalf("%q in pieces of %d became %q, %v, want %q", in, size, out, end, want)
				}
			}
		}
	}
}

// Criterion: with bare_newlines: reject a message with a bare CR or LF, however
// it is split, reaches no server, is swallowed to its end and refused; the
// client is heard no more.
func TestSubmissionRejectsBareLineEnds(t *testing.T) {
	for _, vector := range smuggling {
		if clean(vector) {
			continue
		}
		in := "first" + vector + "MAIL FROM:<boss>\r\nRCPT TO:<c>\r\nDATA\r\nsecond\r\n.\r\nNOOP\r\n"
		for size := 1; size <= len(in); size += 1 + size/3 {
			got := rejectReply(t, "DATA\r\n", in, size)
			for _, command := range []string{"boss", "NOOP", "\r\n.\r\n"} {
				if strings.Contains(strings.ReplaceAll(got, vector, ""), command) {
					t.Fatalf("%q in pieces of %d: the server got %q", in, size, got)
				}
			}
		}
	}
	for _, chunk := range []string{"a\nb", "a\rb", "a\r", "\n"} {
		in := fmt.Sprintf("BDAT %d LAST\r\n%sNOOP\r\n", len(chunk), chunk)
		if got := rejectReply(t, "", in, len(in)); strings.Contains(got, "BDAT") {
			t.Errorf("%q: the server got %q", in, got)
		}
	}
	if got := rejectReply(t, "", "BDAT 100000\r\n"+strings.Repeat("x", 99_000)+"\n"+strings.Repeat("y", 999)+"BDAT 2 LAST\r\nxx", 1000); strings.Contains(got, "LAST") {
		t.Errorf("the server got the last chunk: %.100q", got)
	}
}

// rejectReply sends a message in parts and returns what the server got of it.
func rejectReply(t *testing.T, command, message string, size int) string {
	t.Helper()
	s := startSubmissionWith(t, Reject)
	t.Cleanup(func() { _, _ = s.client.Close(), s.server.Close() })
	got := make(chan string, 1)
	go func() { got <- acceptMessages(s.server) }()
	if _, err := io.WriteString(s.client, "MAIL FROM:<a>\r\nRCPT TO:<b>\r\n"+command); err != nil {
		t.Fatal(err)
	}
	expected := "S: 250 ok\nS: 250 ok\n"
	if command != "" {
		expected += "S: 354 go on\n"
	}
	proxytest.Transcript(t, s.client, expected)
	go func() {
		for rest := message; rest != ""; rest = rest[min(size, len(rest)):] {
			if _, err := io.WriteString(s.client, rest[:min(size, len(rest))]); err != nil {
				return
			}
		}
	}()
	_ = s.client.SetReadDeadline(time.Now().Add(5 * time.Second))
	received, _ := io.ReadAll(s.client)
	received = bytes.TrimPrefix(received, []byte("250 ok\r\n")) // to a piece of a chunk
	if !bytes.HasPrefix(received, []byte("554 5.5.2 ")) || bytes.Count(received, []byte("\n")) != 1 {
		t.Fatalf("%.80q in pieces of %d: the client got %q", message, size, received)
	}
	s.waitEnd(t, errBareNewline, 0)
	return <-got
}

// acceptMessages accepts MAIL, RCPT, DATA and each BDAT, and returns all that
// followed them.
func acceptMessages(conn net.Conn) string {
	var all []byte
	b := make([]byte, 1<<16)
	replied := 0
	for {
		n, err := conn.Read(b)
		all = append(all, b[:n]...)
		for ; replied < 2 && bytes.Count(all, []byte("\r\n")) > replied; replied++ {
			_, _ = io.WriteString(conn, "250 ok\r\n")
		}
		if replied == 2 && bytes.Contains(all, []byte("DATA\r\n")) {
			_, _ = io.WriteString(conn, "354 go on\r\n")
			replied++
		}
		if replied == 2 && bytes.HasPrefix(b[:n], []byte("BDAT ")) {
			_, _ = io.WriteString(conn, "250 ok\r\n")
		}
		if err != nil {
			return strings.TrimPrefix(string(all), "MAIL FROM:<a>\r\nRCPT TO:<b>\r\n")
		}
	}
}

func TestSubmissionThatRejectsTakesCleanMessages(t *testing.T) {
	s := startSubmissionWith(t, Reject)
	proxytest.ServeTranscript(t, s.server, `
		C: MAIL FROM:<a>
		C: RCPT TO:<b>
		S- 250 a\r\n250 b\r\n
		C- BDAT 6 LAST\r\none\r\n.
		S: 250 queued
		C: DATA
		S: 354 go on
		C- one\r\n..\r\n.\r\n
		S: 250 queued
		C: QUIT
		S: 221 bye
		S: <EOF>
	`)
	proxytest.Transcript(t, s.client, `
		C- MAIL FROM:<a>\r\nRCPT TO:<b>\r\nBDAT 6 LAST\r\none\r\n.
		S: 250 a
		S: 250 b
		S: 250 queued
		C: DATA
		S: 354 go on
		C- one\r\n..\r\n.\r\n
		S: 250 queued
		C: QUIT
		S: 221 bye
		S: <EOF>
	`)
	s.waitEnd(t, nil, 2)
}

// Criterion: with bare_newlines: pass DATA and BDAT with bare CR and LF, dots
// and lines that look like commands come through octet by octet.
func TestSubmissionPassesBareLineEnds(t *testing.T) {
	s := startSubmissionWith(t, Pass)
	proxytest.ServeTranscript(t, s.server, `
		C: MAIL FROM:<a>
		C: RCPT TO:<b>
		C: DATA
		S- 250 a\r\n250 b\r\n354 go on\r\n
		C- one\n.\ntwo\r.\rXCLIENT x\r\n..\r\n.\r\n
		S: 250 queued
		C: MAIL FROM:<a>
		C: RCPT TO:<b>
		S- 250 a\r\n250 b\r\n
		C- BDAT 9\r\none\n.\r\n.\r
		S: 250 taken
		C- BDAT 0 LAST\r\n
		S: 250 queued
		C: MAIL FROM:<a>
		C: RCPT TO:<b>
		S- 250 a\r\n250 b\r\n
		C- BDAT 2\r\nxy
		S: 552 too much
		C: QUIT
		S: 221 bye
		S: <EOF>
	`)
	proxytest.Transcript(t, s.client, `
		C- MAIL FROM:<a>\r\nRCPT TO:<b>\r\nDATA\r\n
		S: 250 a
		S: 250 b
		S: 354 go on
		C- one\n.\ntwo\r.\rXCLIENT x\r\n..\r\n.\r\nMAIL FROM:<a>\r\nRCPT TO:<b>\r\nBDAT 9\r\none\n.\r\n.\r
		S: 250 queued
		S: 250 a
		S: 250 b
		S: 250 taken
		C- BDAT 0 LAST\r\n
		S: 250 queued
		C- MAIL FROM:<a>\r\nRCPT TO:<b>\r\nBDAT 2\r\nxy
		S: 250 a
		S: 250 b
		S: 552 too much
		C: QUIT
		S: 221 bye
		S: <EOF>
	`)
	s.waitEnd(t, nil, 2)
}

func TestSubmissionPassesALargeChunkAsOne(t *testing.T) {
	s := startSubmissionWith(t, Pass)
	chunk := strings.Repeat("0123456789abcde\n", 20000)
	go func() {
		_, _ = fmt.Fprintf(s.client, "MAIL FROM:<a>\r\nRCPT TO:<b>\r\nBDAT %d LAST\r\n%sQUIT\r\n", len(chunk), chunk)
	}()
	got := make(chan *scriptServer, 1)
	go func() { got <- startScriptServer(s.server) }()
	_, _ = io.Copy(io.Discard, s.client)
	s.waitEnd(t, nil, 1)
	if understood := <-got; len(understood.messages) != 1 || understood.messages[0] != chunk || len(understood.commands) != 4 {
		t.Errorf("%d messages, %d commands", len(understood.messages), len(understood.commands))
	}
}

func TestSubmissionDiscardsNoEndlessMessage(t *testing.T) {
	s := startSubmissionWith(t, Reject)
	go func() { _ = acceptMessages(s.server) }()
	proxytest.Transcript(t, s.client, "C: MAIL FROM:<a>\nS: 250 ok\nC: RCPT TO:<b>\nS: 250 ok\nC: DATA\nS: 354 go on")
	go func() {
		much := bytes.Repeat([]byte(strings.Repeat("x", 76)+"\r\n"), 1<<13)
		_, _ = io.WriteString(s.client, "bare\n")
		for {
			if _, err := s.client.Write(much); err != nil {
				return
			}
		}
	}()
	proxytest.Transcript(t, s.client, "S: 554 5.5.2 *")
	s.waitEnd(t, errBareNewline, 0)
}
