package inbox

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/iotest"
)

func TestResponsesDropsNoise(t *testing.T) {
	for _, test := range []struct{ name, in, want string }{
		{"tagged", "T1 OK [X] {3}\r\nT2 NO x\r\nT3  no  [limit 3] x\nT4 BAD\r\n", "T1 OK {3}\r\nT2 NO x\r\nT3 NO [LIMIT] x\nT4 BAD\r\n"},
		{"codes that imapclient reads", "T1 OK [COPYUID 1 9:1 1:9] x\r\nT2 NO [COPYUID] x\r\nT3 NO [CAPABILITY\r\nT4 NO [] [x\ry\r\n", "T1 OK x\r\nT2 NO x\r\nT3 NO\r\nT4 NO x y\r\n"},
		{"status", "* OK {3}\r\n* ok [uidnext 4] x\r\n* OK [PERMANENTFLAGS (\\* []])] x\r\n* BAD x\r\n* NO\r\n* BYE x\r\n", ""},
		{"counts", "* 3 EXISTS\r\n* 1 RECENT\r\n* 2 EXPUNGE\r\n", ""},
		{"unknown", "* VANISHED 1\r\n* 5 XFOO\r\n* LIST () \"/\" {3}\r\nT1 \r\n* \r\n*\r\n\r\n+ go\r\nT1 OK x\r\n", "T1 OK x\r\n"},
		{"bodies", "* 1 FETCH (BODY[] {4}\r\n* 1 )\r\nT1 OK x\r\n", "T1 OK x\r\n"},
		{"two literals", "* 1 FETCH (BODY[HEADER] {2}\r\n\r\n BODY[TEXT] {3}\r\n)\r\n)\r\n* 1 FETCH (FLAGS ())\r\n", ""},
		{"flags", "* 1 FETCH (FLAGS (\\Seen) UID 3)\r\n* 1 FETCH (ENVELOPE {5}\r\n* 1 F X {2}\r\nab)\r\nT1 OK x\r\n", "T1 OK x\r\n"},
	} {
		got, err := io.ReadAll(newResponses(strings.NewReader(test.in)))
		if string(got) != test.want || err != nil {
			t.Errorf("%s: %q, %v, want %q", test.name, got, err, test.want)
		}
	}
}

func TestResponsesBoundsLines(t *testing.T) {
	long := "* SEARCH" + strings.Repeat(" 12345", 100_000) + "\r\n"
	got, err := io.ReadAll(newResponses(strings.NewReader(long + "T1 OK x\r\n")))
	if string(got) != "T1 OK x\r\n" || err != nil {
		t.Errorf("%q, %v, want the tagged line", got, err)
	}
	_, err = io.Copy(io.Discard, newResponses(zeros{}))
	if !errors.Is(err, errLongLine) {
		t.Errorf("a line without end gives %v, want %v", err, errLongLine)
	}
}

func TestParseRow(t *testing.T) {
	for _, test := range []struct {
		in   string
		uid  uint32
		size int64
		ok   bool
	}{
		{"(UID 5 RFC822.SIZE 1234)", 5, 1234, true},
		{"(RFC822.SIZE 0 UID 4294967295)", 4294967295, 0, true},
		{"(uid 5 rfc822.size 9223372036)", 5, 9223372036, true},
		{`(FLAGS (\Seen "(" $x) UID 5 ENVELOPE (("a\"b" NIL)) RFC822.SIZE 3)`, 5, 3, true},
		{"(UID 5 RFC822.SIZE 3) trailing", 5, 3, true},
		{"(UID 5)", 5, -1, false},
		{"(RFC822.SIZE 3)", 0, 3, false},
		{"(UID 0 RFC822.SIZE 3)", 0, 0, false},
		{"(UID 4294967296 RFC822.SIZE 3)", 0, 0, false},
		{"(UID 5 RFC822.SIZE -3)", 0, 0, false},
		{"(UID 5 RFC822.SIZE 9999999999999999999)", 0, 0, false},
		{"(UID  5 RFC822.SIZE 3)", 5, 3, true},
		{" ( UID 005  RFC822.SIZE 03 )", 5, 3, true},
		{"(UID 5 RFC822.SIZE 3 UID 6)", 0, 0, false},
		{"(UID 5 RFC822.SIZE 3", 0, 0, false},
		{"(UID 5 X \"", 0, 0, false},
		{"(", 0, 0, false},
		{"", 0, 0, false},
		{"UID 5 RFC822.SIZE 3", 0, 0, false},
	} {
		uid, size, ok := parseRow([]byte(test.in))
		if ok != test.ok || ok && (uid != test.uid || size != test.size) {
			t.Errorf("parseRow(%s) = %d, %d, %v, want %d, %d, %v", test.in, uid, size, ok, test.uid, test.size, test.ok)
		}
	}
}

func FuzzParseRow(f *testing.F) {
	f.Add(`(FLAGS (\Seen "(" $x) UID 5 ENVELOPE (("a\"b" NIL)) RFC822.SIZE 3)`, uint32(5), int64(3))
	f.Fuzz(func(t *testing.T, s string, uid uint32, size int64) {
		if uid, size, ok := parseRow([]byte(s)); ok && (uid == 0 || size < 0) {
			t.Errorf("parseRow(%s) = %d, %d", s, uid, size)
		}
		if uid == 0 || size < 0 || size >= 1e18 {
			return
		}
		row := fmt.Sprintf("(UID %d RFC822.SIZE %d)", uid, size)
		if gotUID, gotSize, ok := parseRow([]byte(row)); gotUID != uid || gotSize != size || !ok {
			t.Errorf("parseRow(%s) = %d, %d, %v", row, gotUID, gotSize, ok)
		}
	})
}

// FuzzResponses: what passes does not depend on how the octets come.
func FuzzResponses(f *testing.F) {
	f.Add("* OK {3}\r\n* 1 FETCH (BODY[] {4}\r\n* 1 )\r\n* VANISHED 1\r\n* LIST {2}\r\nab\r\nT1 OK x\r\n")
	f.Add("* 1 FETCH (BODY[] {99999999999999999999}\r\nabc")
	f.Add("\n*\n* \n* 1\n+\n")
	f.Fuzz(func(t *testing.T, in string) {
		whole, err := io.ReadAll(newResponses(strings.NewReader(in)))
		slow, slowErr := io.ReadAll(iotest.OneByteReader(newResponses(iotest.OneByteReader(strings.NewReader(in)))))
		if string(whole) != string(slow) || fmt.Sprint(err) != fmt.Sprint(slowErr) {
			t.Errorf("at once %q, %v; octet by octet %q, %v", whole, err, slow, slowErr)
		}
		if len(whole) > len(in) {
			t.Errorf("%q has become more: %q", in, whole)
		}
	})
}

// zeros is a reader without end.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}
