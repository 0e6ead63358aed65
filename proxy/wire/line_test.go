package wire

import (
	"bytes"
	"strings"
	"testing"
)

func TestTrimLineDistinguishesCRLFFromLF(t *testing.T) {
	for _, test := range []struct {
		line, text string
		crlf       bool
	}{
		{"", "", false},
		{"a", "a", false},
		{"a\r", "a\r", false},
		{"a\n", "a", false},
		{"a\r\n", "a", true},
		{"a\r\r\n", "a\r", true},
		{"\r\n", "", true},
		{"\n", "", false},
	} {
		text, crlf := TrimLine([]byte(test.line))
		if string(text) != test.text || crlf != test.crlf {
			t.Errorf("TrimLine(%q) = %q, %v, want %q, %v", test.line, text, crlf, test.text, test.crlf)
		}
	}
}

func TestCutWordDistinguishesAnEmptyRestFromNone(t *testing.T) {
	for _, test := range []struct {
		line, word, rest string
		none             bool
	}{
		{"PASS", "PASS", "", true},
		{"PASS ", "PASS", "", false},
		{"PASS  a b ", "PASS", " a b ", false},
		{"", "", "", true},
	} {
		word, rest := CutWord([]byte(test.line))
		if string(word) != test.word || string(rest) != test.rest || (rest == nil) != test.none {
			t.Errorf("CutWord(%q) = %q, %q (nil: %v)", test.line, word, rest, rest == nil)
		}
	}
}

func TestKeywordIsASCIIOnly(t *testing.T) {
	for word, want := range map[string]string{
		"login": "LOGIN", "X-oauth_2": "X-OAUTH_2", "": "", "a b": "", "a\x00": "",
		"ſelect": "", "\u212Aick": "", // what Unicode folds to S and K
		strings.Repeat("a", 20): strings.Repeat("A", 20), strings.Repeat("a", 21): "",
	} {
		if got := Keyword([]byte(word)); got != want {
			t.Errorf("Keyword(%q) = %q, want %q", word, got, want)
		}
	}
}

func TestAppendEHLO(t *testing.T) {
	got := string(AppendEHLO(nil, "mail.example.org", []string{"SIZE 1000", "8BITMIME"}))
	if want := "250-mail.example.org\r\n250-SIZE 1000\r\n250 8BITMIME\r\n"; got != want {
		t.Errorf("AppendEHLO = %q, want %q", got, want)
	}
	got = string(AppendEHLO([]byte("x"), "mail.example.org", nil))
	if want := "x250 mail.example.org\r\n"; got != want {
		t.Errorf("AppendEHLO = %q, want %q", got, want)
	}
}

func FuzzKeyword(f *testing.F) {
	f.Add([]byte("login"))
	f.Add([]byte("\u212A"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if got := Keyword(b); got != "" && got != string(bytes.ToUpper(b)) {
			t.Errorf("Keyword(%q) = %q", b, got)
		}
	})
}
