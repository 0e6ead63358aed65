package wire

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/iotest"
)

func TestResponseIsSplit(t *testing.T) {
	for _, test := range []struct {
		in   string
		want Response
	}{
		{"* OK [CAPABILITY IMAP4rev1 ID] ready\r\n", Response{"*", "OK", "CAPABILITY IMAP4rev1 ID", "ready"}},
		{"* ok ready [x]\r\n", Response{"*", "OK", "", "ready [x]"}},
		{"* CAPABILITY IMAP4rev1 IDLE\r\n", Response{"*", "CAPABILITY", "", "IMAP4rev1 IDLE"}},
		{"P1 NO [UNAVAILABLE] db down\r\n", Response{"P1", "NO", "UNAVAILABLE", "db down"}},
		{"P1 NO [UNAVAILABLE]\r\n", Response{"P1", "NO", "UNAVAILABLE", ""}},
		{"P1 NO [UNAVAILABLE\r\n", Response{"P1", "NO", "", "[UNAVAILABLE"}},
		{"P1 OK\r\n", Response{"P1", "OK", "", ""}},
		{"+ YWJj\r\n", Response{"+", "", "", "YWJj"}},
		{"+ \r\n", Response{"+", "", "", ""}},
		{"+\r\n", Response{"+", "", "", ""}},
		{"* ID (\"a\" {5}\r\nP1 OK)\r\n", Response{"*", "ID", "", "(\"a\" {5}\r\nP1 OK)"}},
		{"* OK there is no literal here {5}\r\n", Response{"*", "OK", "", "there is no literal here {5}"}},
		{"* 23 EXISTS\r\n", Response{"*", "23", "", "EXISTS"}},
		{"\r\n", Response{}},
		// The text of a status response is for people, however long and odd.
		{"* OK [ALERT] " + strings.Repeat("x", 10000) + "\r\n", Response{"*", "OK", "ALERT", strings.Repeat("x", 10000)}},
		{"* NO [alert] a\x00b\rc\r\n", Response{"*", "NO", "alert", "a\x00b\rc"}},
		{"P1 NO a\x00b\rc\r\n", Response{"P1", "NO", "", "a\x00b\rc"}},
	} {
		r := NewReplyReader(iotest.OneByteReader(strings.NewReader(test.in + "next")))
		got, err := r.Response()
		if err != nil || got != test.want {
			t.Errorf("Response of %q = %+v, %v, want %+v", test.in, got, err, test.want)
		}
		if rest, _ := io.ReadAll(r); string(rest) != "next" {
			t.Errorf("after %q came %q, want next", test.in, rest)
		}
	}
}

func TestReplyTakesAllItsLines(t *testing.T) {
	const in = "250-mx.example\r\n250-SIZE 1000\r\n250 DSN\r\n"
	r := NewReplyReader(strings.NewReader(in + "354\r\n"))
	got, err := r.Reply()
	if err != nil || got.Code != 250 || string(got.Raw) != in {
		t.Fatalf("Reply = %d %q, %v, want 250 %q", got.Code, got.Raw, err, in)
	}
	if lines, want := fmt.Sprintf("%q", got.Lines()), `["mx.example" "SIZE 1000" "DSN"]`; lines != want {
		t.Errorf("Lines = %s, want %s", lines, want)
	}
	if !r.HasReply() {
		t.Error("HasReply = false with a reply read ahead")
	}
	got, err = r.Reply()
	if lines := got.Lines(); err != nil || got.Code != 354 || len(lines) != 1 || lines[0] != "" {
		t.Errorf("Reply = %d %q, %v, want 354 and an empty line", got.Code, lines, err)
	}
	if _, err := r.Reply(); !errors.Is(err, io.EOF) {
		t.Errorf("Reply at the end = %v, want io.EOF", err)
	}
}

func TestUnusableRepliesAreErrors(t *testing.T) {
	long := strings.Repeat("x", MaxReplyLine)
	for _, in := range []string{
		"250 bare LF\n", "250 bare\rCR\r\n", "250 NUL\x00\r\n", "25 short\r\n", "199 low\r\n", "600 high\r\n",
		"2x0 no number\r\n", "250+ok\r\n", "250-one\r\n251 two\r\n", "\r\n", "220 " + long, "220 " + long + "\r\n",
		strings.Repeat("250-x\r\n", MaxReplyLines) + "250 x\r\n",
		strings.Repeat("250-"+long[:MaxReplyLine/2]+"\r\n", MaxReplyLines),
	} {
		if got, err := NewReplyReader(strings.NewReader(in)).Reply(); !errors.Is(err, ErrReply) {
			t.Errorf("Reply of %.20q = %d, %v, want ErrReply", in, got.Code, err)
		}
	}
	for _, in := range []string{
		"* OK bare LF\n", "* OK [ALERT] bare\nLF\r\n", "* OK " + strings.Repeat(long, MaxReply/MaxReplyLine), "* OK [CAPABILITY " + long, "P1 OK [CAPABILITY a\x00b] x\r\n",
		"* CAPABILITY a\rb\r\n", "* CAPABILITY " + long, "* O\rK x\r\n", "* LIST {65536}\r\n", "* LIST {4294967295}\r\n", "* LIST {99999999999999999999}\r\n",
		strings.Repeat("* LIST {60000}\r\n"+strings.Repeat("y", 60000), 2),
	} {
		if got, err := NewReplyReader(strings.NewReader(in)).Response(); !errors.Is(err, ErrReply) {
			t.Errorf("Response of %.20q = %.50v, %v, want ErrReply", in, got, err)
		}
	}
}

func TestReplyCutShortIsUnexpected(t *testing.T) {
	if _, err := NewReplyReader(strings.NewReader("250-a\r\n250 ")).Reply(); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("Reply = %v, want io.ErrUnexpectedEOF", err)
	}
	if _, err := NewReplyReader(strings.NewReader("* ID {5}\r\nabc")).Response(); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("Response = %v, want io.ErrUnexpectedEOF", err)
	}
}

// FuzzReplies reads replies of both protocols: what was read and what is left
// are the input, however it is split.
func FuzzReplies(f *testing.F) {
	f.Add([]byte("250-a\r\n250 b\r\n354\r\n"), true)
	f.Add([]byte("* OK [CAPABILITY IMAP4rev1] x\r\n* ID (\"a\" {2}\r\nbc)\r\n+\r\nP1 OK\r\n"), false)
	f.Fuzz(func(t *testing.T, in []byte, smtp bool) {
		whole, whole2 := readReplies(bytes.NewReader(in), smtp)
		parts, parts2 := readReplies(iotest.OneByteReader(bytes.NewReader(in)), smtp)
		if whole != parts || (whole2 == nil) != (parts2 == nil) {
			t.Errorf("replies in one piece %q, %v, octet by octet %q, %v", whole, whole2, parts, parts2)
		}
	})
}

func readReplies(src io.Reader, smtp bool) (all string, err error) {
	r := NewReplyReader(src)
	for range 1000 {
		if smtp {
			reply, err := r.Reply()
			if err != nil {
				return all, ignoreEOF(err)
			}
			if reply.Code < 200 || reply.Code > 599 || !bytes.HasSuffix(reply.Raw, []byte("\r\n")) {
				return all, fmt.Errorf("bad reply %d %q", reply.Code, reply.Raw)
			}
			all += fmt.Sprintf("%d %q %q\n", reply.Code, reply.Raw, reply.Lines())
			continue
		}
		response, err := r.Response()
		if err != nil {
			return all, ignoreEOF(err)
		}
		all += fmt.Sprintf("%q\n", response)
	}
	return all, nil
}

func ignoreEOF(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return nil
	}
	return err
}
