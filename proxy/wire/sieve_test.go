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

func TestSieveResponse(t *testing.T) {
	for line, want := range map[string]SieveResponse{
		`OK`:                                   {Name: SieveOK},
		`ok "done"`:                            {Name: SieveOK, Text: "done"},
		`OK done {5+x}`:                        {Name: SieveOK, Text: "done {5+x}"}, // not quoted
		`NO "a \"b\" \\"`:                      {Name: SieveNo, Text: `a "b" \`},
		"NO {4}\r\na\r\nb":                     {Name: SieveNo, Text: "a\r\nb"},
		`NO "{5}"`:                             {Name: SieveNo, Text: "{5}"},
		`NO (TRYLATER) "later"`:                {Name: SieveNo, Code: "TRYLATER", Text: "later"},
		`NO (quota/maxsize) "too large"`:       {Name: SieveNo, Code: "QUOTA/MAXSIZE", Text: "too large"},
		`BYE (REFERRAL "sieve://x:4190") "go"`: {Name: SieveBye, Code: "REFERRAL", Text: "go"},
		`OK (SASL "cnNwYXV0aA==")`:             {Name: SieveOK, Code: "SASL"},
		"OK (TAG {3}\r\ntag) \"Done\"":         {Name: SieveOK, Code: "TAG", Text: "Done"},
		`OK (X (a (1 b)) "c") "Done"`:          {Name: SieveOK, Code: "X", Text: "Done"},
		`"STARTTLS"`:                           {Strings: []string{"STARTTLS"}},
		`"SIEVE" "fileinto vacation"`:          {Strings: []string{"SIEVE", "fileinto vacation"}},
		"{4}\r\nSASL {11}\r\nPLAIN LOGIN":      {Strings: []string{"SASL", "PLAIN LOGIN"}},
		"{0}\r\n":                              {Strings: []string{""}},
		`"` + strings.Repeat("x", MaxReplyLine-10) + `"`: {Strings: []string{strings.Repeat("x", MaxReplyLine-10)}},
	} {
		for name, src := range map[string]io.Reader{
			"in one piece": strings.NewReader(line + "\r\n"), "octet by octet": iotest.OneByteReader(strings.NewReader(line + "\r\n")),
		} {
			r, err := NewReplyReader(src).SieveResponse()
			if !reflect.DeepEqual(r, want) || err != nil {
				t.Errorf("%.60q %s is %+v, %v, want %+v", line, name, r, err, want)
			}
		}
	}
	for name, text := range map[string]string{
		"IMAP": "* OK ready\r\n", "POP3": "+OK\r\n", "SMTP": "220 ready\r\n", "empty": "\r\n", "LF alone": "OK\n", "NUL": "OK \x00\r\n",
		"another word": "OKAY\r\n", "no end of a string": "\"SASL\r\n", "no space": "\"SASL\"\"x\"\r\n", "no string": "\"SASL\" PLAIN\r\n",
		"no end of a code": "NO (TRYLATER\r\n", "empty code": "NO () \"x\"\r\n",
		"a large literal": "{70000}\r\n", "a larger one": "{99999999999999999999}\r\n", "too long": "OK \"" + strings.Repeat("x", MaxReplyLine) + "\"\r\n",
		"many literals": strings.Repeat("{8000}\r\n"+strings.Repeat("x", 8000)+" ", 9) + "\r\n",
	} {
		if r, err := NewReplyReader(strings.NewReader(text)).SieveResponse(); !errors.Is(err, ErrReply) {
			t.Errorf("%s: %+v, %v, want ErrReply", name, r, err)
		}
	}
	for _, half := range []string{"OK", "{5}\r\nabc", "\"a\" {5}\r\n"} {
		if _, err := NewReplyReader(strings.NewReader(half)).SieveResponse(); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("half a response %q: %v", half, err)
		}
	}
}

func TestSieveLiteral(t *testing.T) {
	for line, want := range map[string]int64{
		"NOOP {5+}\r\n": 5, "{0+}\n": 0, `NOOP "a" {5+}`: 5, `NOOP "\"" {5+}`: 5, `NOOP "\\" {5+}`: 5,
		`NOOP "{5+}`: -1, `NOOP "{5+}"`: -1, `NOOP "\" {5+}`: -1, `NOOP "\\\" {5+}`: -1, "NOOP {+}": -1, "NOOP {5+} ": -1, "NOOP {-5+}": -1,
	} {
		if l, ok := SieveLiteral([]byte(line)); ok != (want >= 0) || ok && (l.Size != want || l.Sync) {
			t.Errorf("%q announces %+v, %v, want %d", line, l, ok, want)
		}
	}
	if l, ok := SieveLiteral([]byte("NOOP {5}\r\n")); !ok || !l.Sync {
		t.Errorf("without a plus: %+v, %v", l, ok)
	}
}

// Criterion: A ManageSieve string is quoted up to 1,024 octets, and a literal beyond, or with CR, LF or NUL in it; a client's literal has a plus.
func TestAppendSieveString(t *testing.T) {
	for text, want := range map[string]string{
		"":                         `""`,
		`a "b" \`:                  `"a \"b\" \\"`,
		"{5+}":                     `"{5+}"`,
		"a\nb":                     "{3}\r\na\nb",
		strings.Repeat("x", 1024):  `"` + strings.Repeat("x", 1024) + `"`,
		strings.Repeat("x", 1025):  "{1025}\r\n" + strings.Repeat("x", 1025),
		strings.Repeat(`"`, 1024):  `"` + strings.Repeat(`\"`, 1024) + `"`,
		strings.Repeat("x", 20000): "{20000}\r\n" + strings.Repeat("x", 20000),
	} {
		if got := string(AppendSieveString(nil, []byte(text))); got != want {
			t.Errorf("%.40q is %.40q, want %.40q", text, got, want)
		}
		if got := string(AppendSieveClientString(nil, []byte(text))); got != strings.Replace(want, "}\r\n", "+}\r\n", 1) {
			t.Errorf("%.40q of a client is %.40q", text, got)
		}
	}
}

func TestSieveCapability(t *testing.T) {
	lines := []string{"STARTTLS", "sasl PLAIN LOGIN", "SIEVE "}
	for name, want := range map[string]string{"STARTTLS": "", "SASL": "PLAIN LOGIN", "SIEVE": "", "NOTIFY": "none"} {
		if value, ok := SieveCapability(lines, name); ok != (want != "none") || ok && value != want {
			t.Errorf("%s is %q, %v, want %q", name, value, ok, want)
		}
	}
}

// Responses are read alike however they arrive, and what AppendSieveString writes is read
// back.
func FuzzSieve(f *testing.F) {
	f.Add([]byte("\"SASL\" \"PLAIN\"\r\n{4}\r\nSIEV \"a\"\r\nOK (TAG {3}\r\ntag) \"Done\"\r\nNO (TRYLATER) \"x\"\r\nBYE\r\n"))
	f.Add([]byte("OK \"\\\"{5}\"\r\n{5}\r\n"))
	f.Fuzz(func(t *testing.T, in []byte) {
		read := func(src io.Reader) (all []SieveResponse, err error) {
			r := NewReplyReader(src)
			for range 1000 {
				response, err := r.SieveResponse()
				if err != nil {
					return all, ignoreEOF(err)
				}
				if (response.Name == "") != (len(response.Strings) > 0) {
					t.Fatalf("%+v is neither data nor the end of a response", response)
				}
				all = append(all, response)
			}
			return all, nil
		}
		whole, err := read(bytes.NewReader(in))
		parts, err2 := read(iotest.OneByteReader(bytes.NewReader(in)))
		if !reflect.DeepEqual(whole, parts) || (err == nil) != (err2 == nil) {
			t.Errorf("in one piece %+v, %v, octet by octet %+v, %v", whole, err, parts, err2)
		}
		if len(in) > MaxReply/4 {
			return
		}
		line := append(append(AppendSieveString(nil, in), ' '), append(AppendSieveString(nil, []byte("x")), "\r\n"...)...)
		r, err := NewReplyReader(bytes.NewReader(line)).SieveResponse()
		if err != nil || len(r.Strings) != 2 || r.Strings[0] != string(in) || r.Strings[1] != "x" {
			t.Errorf("%q is read as %+v, %v", line, r, err)
		}
	})
}
