package wire

import (
	"bytes"
	"errors"
	"io"
	"reflect"
	"strings"
	"testing"
	"testing/iotest"
)

func TestPOP3Response(t *testing.T) {
	for line, want := range map[string]POP3Response{
		"+OK":                          {Name: POP3OK},
		"+OK 2 messages":               {Name: POP3OK, Text: "2 messages"},
		"+ok ready":                    {Name: POP3OK, Text: "ready"},
		"-ERR":                         {Name: POP3Err},
		"-ERR [AUTH] Bad login":        {Name: POP3Err, Code: "AUTH", Text: "Bad login"},
		"-ERR [sys/temp] later":        {Name: POP3Err, Code: "SYS/TEMP", Text: "later"},
		"-ERR [no end":                 {Name: POP3Err, Text: "[no end"},
		"-ERR see [AUTH]":              {Name: POP3Err, Text: "see [AUTH]"},
		"+ ":                           {Name: POP3Continue},
		"+OK [AUTH] is no code of +OK": {Name: POP3OK, Text: "[AUTH] is no code of +OK"},
	} {
		r, err := NewReplyReader(strings.NewReader(line + "\r\n")).POP3Response()
		if r != want || err != nil {
			t.Errorf("%q is %+v, %v, want %+v", line, r, err, want)
		}
	}
	for name, text := range map[string]string{
		"another protocol": "220 ready\r\n", "empty": "\r\n", "LF alone": "+OK\n", "CR within": "+OK a\rb\r\n", "NUL": "+OK \x00\r\n",
		"glued": "+OKAY\r\n", "too long": "+OK " + strings.Repeat("x", MaxReplyLine) + "\r\n",
	} {
		if _, err := NewReplyReader(strings.NewReader(text)).POP3Response(); !errors.Is(err, ErrReply) {
			t.Errorf("%s: %v, want ErrReply", name, err)
		}
	}
	if _, err := NewReplyReader(strings.NewReader("+OK ha")).POP3Response(); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("half a line: %v", err)
	}
}

func TestPOP3Lines(t *testing.T) {
	r := NewReplyReader(iotest.OneByteReader(strings.NewReader("TOP\r\n..dot\r\n.\r\nnext")))
	lines, err := r.POP3Lines()
	if want := []string{"TOP", ".dot"}; !reflect.DeepEqual(lines, want) || err != nil {
		t.Errorf("lines are %q, %v, want %q", lines, err, want)
	}
	if _, err := NewReplyReader(strings.NewReader(strings.Repeat("X\r\n", MaxReplyLines+1))).POP3Lines(); !errors.Is(err, ErrReply) {
		t.Errorf("lines without end: %v, want ErrReply", err)
	}
	if args, ok := POP3Capability([]string{"USER", "sasl plain LOGIN"}, "SASL"); !ok || !reflect.DeepEqual(args, []string{"PLAIN", "LOGIN"}) {
		t.Errorf("SASL is %q, %v", args, ok)
	}
}

// plainEnd is the rule of POP3End, said with a search.
func plainEnd(all []byte) int {
	i := bytes.Index(append([]byte("\r\n"), all...), []byte("\r\n.\r\n"))
	if i < 0 {
		return -1
	}
	return i + len(".\r\n")
}

// FuzzPOP3End compares the end that is found in pieces with that of a search.
func FuzzPOP3End(f *testing.F) {
	for _, s := range []string{
		".\r\n", "..\r\n.\r\n", "a\r\n.\r\nb", "a\n.\n.\r\n", "\r.\r\n", "a\r\r\n.\r\n", ".\r.\r\n.\r\n", ".\r\r\n.\r\n", "\r\n\r\n.\r\n", "a.\r\n",
		"a\r\n.\r", "a\r\n.b\r\n.\r\n+OK\r\n",
	} {
		f.Add([]byte(s), byte(1))
	}
	f.Fuzz(func(t *testing.T, all []byte, size byte) {
		want := plainEnd(all)
		var end POP3End
		got, total := -1, 0
		for piece := all; len(piece) > 0; {
			part := piece[:min(len(piece), int(size)+1)]
			n, done := end.Scan(part)
			if n > len(part) || !done && n != len(part) {
				t.Fatalf("Scan took %d of %d octets, done %v", n, len(part), done)
			}
			total += n
			if done {
				got = total
				break
			}
			piece = piece[n:]
		}
		if got != want {
			t.Errorf("in pieces of %d, %q ends at %d, want %d", int(size)+1, all, got, want)
		}
	})
}
