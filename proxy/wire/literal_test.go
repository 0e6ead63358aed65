package wire

import (
	"bytes"
	"fmt"
	"math"
	"testing"
)

func TestTrailingLiteral(t *testing.T) {
	for line, want := range map[string]Literal{
		"a LOGIN {5}\r\n":                  {5, true},
		"{0}\n":                            {0, true},
		"a LOGIN bob {12+}\r\n":            {12, false},
		"{4294967295}\r\n":                 {4294967295, true},
		"{99999999999999999999+}\r\n":      {math.MaxInt64, false},
		"{9223372036854775807}\r\n":        {math.MaxInt64, true},
		"{0000000000000000000000000007}\n": {7, true},
		"nonsense{1}{2}\r\n":               {2, true},
	} {
		if got, ok := TrailingLiteral([]byte(line)); got != want || !ok {
			t.Errorf("TrailingLiteral(%q) = %v, %v, want %v", line, got, ok, want)
		}
	}
	for _, line := range []string{"", "\r\n", "}", "{}", "{+}", "{-1}", "{1} ", "{ 1}", "{1++}", "1}", "{1}\r\r\n", "{0x1}", "{1-}"} {
		if got, ok := TrailingLiteral([]byte(line)); ok {
			t.Errorf("TrailingLiteral(%q) = %v, want none", line, got)
		}
	}
}

func TestScannerReadsAStringsInEveryForm(t *testing.T) {
	for in, want := range map[string]string{
		`alice`:              `alice`,
		`"alice"`:            `alice`,
		`""`:                 ``,
		`"a \"b\" \\c"`:      `a "b" \c`,
		"{5}\r\nalice":       "alice",
		"{5+}\r\nal\r\ne":    "al\r\ne",
		"{0}\r\n":            "",
		"{7}\nalice\r\n":     "alice\r\n", // a literal has no line end but its command's
		`"käse"`:             `käse`,
		"k\xE4se":            "k\xE4se",
		`pa%ss*w]o\rd`:       `pa%ss*w]o\rd`,
		`p}w`:                `p}w`,
		"\"tab\there\"":      "tab\there",
		`"{5}"`:              `{5}`,
		"{8+}\r\n\"quoted\"": `"quoted"`,
	} {
		s := &Scanner{[]byte(in)}
		got, err := s.AString()
		if string(got) != want || err != nil || s.End() != nil {
			t.Errorf("AString of %q = %q, %v (end: %v), want %q", in, got, err, s.End(), want)
		}
	}
}

func TestScannerRefusesBrokenStrings(t *testing.T) {
	for _, in := range []string{
		``, ` `, `"`, `"abc`, `"abc\`, `"abc\"`, `"a\bc"`, "\"a\x00\"", "\"a\rb\"", "\"a\nb\"",
		`(`, `{`, `{5}`, "{5}\r\nfour", "{5", "{a}\r\n", "{99999999999999999999}\r\nx", "{1}x{1}\r\nx", "\x7F",
	} {
		s := &Scanner{[]byte(in)}
		if got, err := s.AString(); err == nil {
			t.Errorf("AString of %q = %q, want an error", in, got)
		}
	}
}

func TestScannerReadsTwoWordsAndNothingElse(t *testing.T) {
	s := NewScanner([]byte("a1 LOGIN \"a\\\"b\" {3+}\r\np w\r\n"))
	for _, want := range []string{"a1", "LOGIN"} {
		if got, err := s.Atom(); string(got) != want || err != nil || s.Space() != nil {
			t.Fatalf("Atom = %q, %v, want %q and a space", got, err, want)
		}
	}
	user, err := s.AString()
	if string(user) != `a"b` || err != nil || s.Space() != nil {
		t.Fatalf("user = %q, %v", user, err)
	}
	password, err := s.AString()
	if string(password) != "p w" || err != nil || s.End() != nil {
		t.Fatalf("password = %q, %v, end: %v", password, err, s.End())
	}
	if string(user) != `a"b` {
		t.Errorf("reading on changed the user to %q", user)
	}
}

func TestScannerReadsNStrings(t *testing.T) {
	for in, want := range map[string]string{`NIL`: "<nil>", `nil`: "<nil>", `"NIL"`: "NIL", "{3}\r\nNIL": "NIL", `""`: ""} {
		s := &Scanner{[]byte(in)}
		got, err := s.NString()
		text := string(got)
		if got == nil {
			text = "<nil>"
		}
		if text != want || err != nil {
			t.Errorf("NString of %q = %q, %v, want %q", in, text, err, want)
		}
	}
	for _, in := range []string{``, `alice`, `(`, `"`} {
		if got, err := (&Scanner{[]byte(in)}).NString(); err == nil {
			t.Errorf("NString of %q = %q, want an error", in, got)
		}
	}
}

func TestScannerRefusesTags(t *testing.T) {
	for _, in := range []string{"", " ", "*", "+", "(", "{1}", `"a"`, `\`, "%", "<script>", "\x80", "\x00"} {
		if got, err := (&Scanner{[]byte(in)}).Tag(); err == nil {
			t.Errorf("Tag of %q = %q, want an error", in, got)
		}
	}
	for _, in := range []string{"a", "A001", "a]", "1.2", "a-b_c:#"} {
		if got, err := (&Scanner{[]byte(in)}).Tag(); string(got) != in || err != nil {
			t.Errorf("Tag of %q = %q, %v", in, got, err)
		}
	}
}

func FuzzScanner(f *testing.F) {
	f.Add([]byte("a LOGIN \"a\\\"b\" {3+}\r\np w\r\n"))
	f.Add([]byte("a ID (\"name\" {3}\r\nabc \"x\" NIL)\r\n"))
	f.Fuzz(func(t *testing.T, in []byte) {
		s := NewScanner(bytes.Clone(in))
		for range len(in) + 1 {
			before := len(s.rest)
			word, err := s.AString()
			if err != nil {
				_, err = s.NString()
			}
			if err != nil && !s.Next(' ') && !s.Next('(') && !s.Next(')') {
				return
			}
			if len(word)+len(s.rest) > before {
				t.Fatalf("read %d octets of %d and left %d", len(word), before, len(s.rest))
			}
			if len(s.rest) == before {
				t.Fatal("read nothing, without an error")
			}
		}
	})
}

// FuzzAString holds that every string comes back, quoted or as a literal.
func FuzzAString(f *testing.F) {
	f.Add([]byte(`a "b" \c`))
	f.Add([]byte("{5}\r\n"))
	f.Fuzz(func(t *testing.T, want []byte) {
		literal := append(fmt.Appendf(nil, "{%d+}\r\n", len(want)), want...)
		if got, err := (&Scanner{literal}).AString(); !bytes.Equal(got, want) || err != nil {
			t.Errorf("literal %q came back as %q, %v", want, got, err)
		}
		if bytes.ContainsAny(want, "\x00\r\n") {
			return
		}
		quoted := bytes.ReplaceAll(bytes.ReplaceAll(want, []byte(`\`), []byte(`\\`)), []byte(`"`), []byte(`\"`))
		if got, err := (&Scanner{fmt.Appendf(nil, `"%s"`, quoted)}).AString(); !bytes.Equal(got, want) || err != nil {
			t.Errorf("quoted %q came back as %q, %v", want, got, err)
		}
	})
}

func FuzzTrailingLiteral(f *testing.F) {
	f.Add([]byte("a {5+}\r\n"))
	f.Fuzz(func(t *testing.T, line []byte) {
		if lit, ok := TrailingLiteral(line); ok && lit.Size < 0 {
			t.Errorf("TrailingLiteral(%q) = %v", line, lit)
		}
	})
}
