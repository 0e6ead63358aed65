package route

import (
	"errors"
	"strings"
	"testing"
	"unicode/utf8"
)

// Criterion: All spellings of one account share one budget.
func TestSpellingsOfOneAccount(t *testing.T) {
	for user, want := range map[string]string{
		"alice":                   "alice",
		"Alice":                   "alice",
		"BOB@DOM.example":         "bob@dom.example",
		"  bob@dom.example ":      "bob@dom.example",
		"a b":                     "a b",
		"o'neill+tag/x@ex.org":    "o'neill+tag/x@ex.org",
		`"quoted"\@example.org`:   `"quoted"\@example.org`,
		"jürgen@example.org":      "jürgen@example.org",
		"JÜRGEN@example.org":      "jÜrgen@example.org",
		"Kelvin\u212a":            "kelvin\u212a",
		"用户@例子.广告":                "用户@例子.广告",
		strings.Repeat("x", 320):  strings.Repeat("x", 320),
		strings.Repeat(" ", 9999): "",
	} {
		got, err := Account(user)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("Account(%q) = %q, %v, want %q", user, got, err, want)
		}
	}
}

func TestNamesThatNoAccountHas(t *testing.T) {
	for user, want := range map[string]error{
		"":                         ErrEmpty,
		" ":                        ErrEmpty,
		strings.Repeat("x", 321):   ErrTooLong,
		strings.Repeat("x", 1<<16): ErrTooLong,
		"al\x00ice":                ErrInvisible,
		"alice\r\nA LOGIN":         ErrInvisible,
		"alice\n":                  ErrInvisible,
		"\talice":                  ErrInvisible,
		"alice\x7f":                ErrInvisible,
		"alice\u0085":              ErrInvisible,
		"\x1b[31malice":            ErrInvisible,
		"\u202eecila":              ErrInvisible, // right-to-left override
		"alice\u2066":              ErrInvisible, // isolate
		"ali\u200bce":              ErrInvisible, // zero-width space
		"ali\u200dce":              ErrInvisible, // zero-width joiner
		"\ufeffalice":              ErrInvisible, // byte order mark
		"ali\u00adce":              ErrInvisible, // soft hyphen
		"alice\u00a0":              ErrInvisible, // no-break space
		"alice\u3000":              ErrInvisible, // ideographic space
		"alice\u2028":              ErrInvisible, // line separator
		"alice\u3164":              ErrInvisible, // Hangul filler
		"alice\ufe0f":              ErrInvisible, // variation selector
		"alice\U000e0041":          ErrInvisible, // tag
		"alice\ue000":              ErrInvisible, // private use
		"alice\xff":                ErrEncoding,
		"alice\xc0\x80":            ErrEncoding, // NUL, overlong
		"alice\xed\xa0\x80":        ErrEncoding, // surrogate
		"victim*admin":             ErrWildcard,
		"%":                        ErrWildcard,
		"user%example.org":         ErrWildcard,
	} {
		if got, err := Account(user); got != "" || !errors.Is(err, want) {
			t.Errorf("Account(%q) = %q, %v, want %v", user, got, err, want)
		}
	}
}

func FuzzAccount(f *testing.F) {
	for _, user := range []string{"alice", " Bob@Example.ORG ", "a\x00", "victim*admin", "\u202eecila", "jÜrgen", "\xff", "  "} {
		f.Add(user)
	}
	f.Fuzz(func(t *testing.T, user string) {
		account, err := Account(user)
		if err != nil {
			if account != "" {
				t.Errorf("Account(%q) = %q with error %v", user, account, err)
			}
			return
		}
		if account == "" || len(account) > maxAccount || !utf8.ValidString(account) ||
			strings.ContainsAny(account, "\x00\r\n\x7f%*ABCDEFGHIJKLMNOPQRSTUVWXYZ") || strings.Trim(account, " ") != account {
			t.Errorf("Account(%q) = %q", user, account)
		}
		if again, err := Account(account); again != account || err != nil {
			t.Errorf("Account(%q) = %q, %v: not the same again", account, again, err)
		}
		if shouted, err := Account("  " + asciiUpper(user) + " "); shouted != account || err != nil {
			t.Errorf("Account of %q in capitals = %q, %v, want %q", user, shouted, err, account)
		}
	})
}

func asciiUpper(s string) string {
	return strings.Map(func(r rune) rune {
		if 'a' <= r && r <= 'z' {
			return r - 'a' + 'A'
		}
		return r
	}, s)
}
