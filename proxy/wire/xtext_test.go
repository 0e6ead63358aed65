package wire

import (
	"strconv"
	"strings"
	"testing"
)

func TestAppendXtext(t *testing.T) {
	for in, want := range map[string]string{
		"":                        "",
		"alice@example.org":       "alice@example.org",
		"a b+c=d":                 "a+20b+2Bc+3Dd",
		"x\r\nXCLIENT LOGIN=boss": "x+0D+0AXCLIENT+20LOGIN+3Dboss",
		"ä\x00\x7f~!":             "+C3+A4+00+7F~!",
	} {
		if got := string(AppendXtext([]byte("LOGIN="), in)); got != "LOGIN="+want {
			t.Errorf("AppendXtext(%q) = %s, want LOGIN=%s", in, got, want)
		}
	}
}

// Criterion: whatever octets a value of XCLIENT has, it stays one value, and
// the server reads it as it was.
func FuzzXtext(f *testing.F) {
	for c := range 256 {
		f.Add("a" + string([]byte{byte(c)}) + "b")
	}
	f.Fuzz(func(t *testing.T, in string) {
		text := string(AppendXtext(nil, in))
		if strings.ContainsFunc(text, func(r rune) bool { return r < '!' || r > '~' || r == '=' }) {
			t.Fatalf("%q became %q", in, text)
		}
		var back []byte
		for i := 0; i < len(text); i++ {
			c := text[i]
			if c == '+' {
				v, err := strconv.ParseUint(text[i+1:i+3], 16, 8)
				if err != nil {
					t.Fatalf("%q became %q: %v", in, text, err)
				}
				c, i = byte(v), i+2
			}
			back = append(back, c)
		}
		if string(back) != in {
			t.Errorf("%q became %q, which is %q", in, text, back)
		}
	})
}
