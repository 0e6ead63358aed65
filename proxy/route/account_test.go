package route

import (
	"errors"
	"strings"
	"testing"
	"unicode/utf8"

	"postern/proxy"
)

// defaultAccounts returns the Accounts of an empty configuration.
func defaultAccounts() *Accounts {
	return &Accounts{Lowercase: true, Separators: proxy.DefaultSeparators}
}

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
		got, err := defaultAccounts().Account(user)
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
		"victim*admin":             ErrSeparator,
		"%":                        ErrSeparator,
		"user%example.org":         ErrSeparator,
	} {
		if got, err := defaultAccounts().Account(user); got != "" || !errors.Is(err, want) {
			t.Errorf("Account(%q) = %q, %v, want %v", user, got, err, want)
		}
	}
}

func rewrites(t testing.TB, pairs ...string) (all []Rewrite) {
	t.Helper()
	for i := 0; i < len(pairs); i += 2 {
		r, err := NewRewrite(pairs[i], pairs[i+1])
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, r)
	}
	return all
}

// Criterion: the account is computed purely: trim, case, default domain, and web123p4@customer.de is web123p4 by a regular expression.
func TestAccountsAreRewritten(t *testing.T) {
	hosting := defaultAccounts()
	hosting.Domain = "Example.ORG"
	hosting.Rewrites = rewrites(t,
		`^(web[0-9]+p[0-9]+)@.*$`, `$1`,
		`(.+)%(.+)`, `${1}@${2}`,
		`(.+)@(?P<host>old|older)\.example`, `${1}@New.Example`,
		`(.+)@new\.example`, `never`,
		`(.*)@gone\.example`, ` $1 `,
		`evil@example\.org`, "a\x00b",
		`long@example\.org`, strings.Repeat("x", 321),
		`master@example\.org`, "victim*admin",
	)
	for _, test := range []struct {
		accounts *Accounts
		user     string
		want     string // ! and the error
	}{
		{hosting, "web123p4@customer.de", "web123p4"},
		{hosting, " WEB123P4@customer.de ", "web123p4"},
		{hosting, "web123p4", "web123p4"},
		{hosting, "xweb123p4@customer.de", "xweb123p4@customer.de"},
		{hosting, "Bob", "bob@example.org"},
		{hosting, "bob@example.net", "bob@example.net"},
		{hosting, "bob%example.net", "bob@example.net@example.org"},
		{hosting, "bob@OLD.example", "bob@new.example"}, // the first that matches, and no other
		{hosting, "bob@olderx.example", "bob@olderx.example"},
		{hosting, "bob@gone.example", "bob"},
		{hosting, "@gone.example", "!" + ErrEmpty.Error()},
		{hosting, "evil", "!" + ErrInvisible.Error()},
		{hosting, "long", "!" + ErrTooLong.Error()},
		{hosting, "master", "!" + ErrSeparator.Error()},
		{&Accounts{}, " Bob*Admin ", "Bob*Admin"},
		{&Accounts{Separators: "+"}, "bob+x", "!" + ErrSeparator.Error()},
		{&Accounts{Separators: "+"}, "bob*x", "bob*x"},
		{&Accounts{Domain: "Example.org"}, "Bob", "Bob@Example.org"},
	} {
		got, err := test.accounts.Account(test.user)
		if err != nil {
			got += "!" + err.Error()
		}
		if got != test.want {
			t.Errorf("Account(%q) = %q, want %q", test.user, got, test.want)
		}
	}
}

// Criterion: S49: victim*admin is refused by default, before any backend is touched.
func TestMasterUserSeparatorsAreRefused(t *testing.T) {
	for _, user := range []string{"victim*admin", "victim%admin", "victim@example.org*admin", "*", "%"} {
		if got, err := defaultAccounts().Account(user); !errors.Is(err, ErrSeparator) {
			t.Errorf("Account(%q) = %q, %v, want %v", user, got, err, ErrSeparator)
		}
	}
	if got, err := (&Accounts{Lowercase: true}).Account("victim*admin"); got != "victim*admin" || err != nil {
		t.Errorf("switched off: Account = %q, %v", got, err)
	}
}

func TestRewriteNamesItsMistake(t *testing.T) {
	for _, test := range []struct{ match, to, err string }{
		{`(`, `x`, "missing closing )"},
		{`a)(b`, `x`, "unexpected )"},
		{`(a)`, `$2`, "$2 is no group"},
		{`(a)`, `$1x`, "$1x is no group"},
		{`(a)`, `$1ä`, "$1ä is no group"},
		{`(a)`, `$01`, "$01 is no group"},
		{`(a)`, `${1`, "$ is no group"},
		{`(a)`, `${x}`, "${x} is no group"},
		{`(a)`, `a$`, "$ is no group"},
		{`(a)`, `a$$b$1`, ""},
		{`(?P<x>a)`, `${x}$x`, ""},
		{`a|b`, `$0`, ""},
	} {
		_, err := NewRewrite(test.match, test.to)
		if test.err == "" && err != nil || test.err != "" && (err == nil || !strings.Contains(err.Error(), test.err)) {
			t.Errorf("NewRewrite(%q, %q) = %v, want %q", test.match, test.to, err, test.err)
		}
	}
}

// FuzzAccounts tries Accounts with an operator's rules.
func FuzzAccounts(f *testing.F) {
	accounts := defaultAccounts()
	accounts.Domain = "example.org"
	accounts.Rewrites = rewrites(f, `(web[0-9]+p[0-9]+)@.*`, `$1`, `(.*)@customer\.example`, ` $1 `)
	for _, user := range []string{"alice", "WEB1p2@x", "@customer.example", "web1p2*@x", "x@CUSTOMER.example"} {
		f.Add(user)
	}
	f.Fuzz(func(t *testing.T, user string) {
		account, err := accounts.Account(user)
		if (err == nil) != (account != "") {
			t.Errorf("Account(%q) = %q, %v", user, account, err)
		}
		if err == nil && (len(account) > maxAccount || !utf8.ValidString(account) || strings.ContainsAny(account, "\x00\r\n*%ABC") || strings.Trim(account, " ") != account) {
			t.Errorf("Account(%q) = %q", user, account)
		}
		if err != nil {
			return
		}
		if shouted, err := accounts.Account("  " + asciiUpper(user) + " "); shouted != account || err != nil {
			t.Errorf("Account of %q in capitals = %q, %v, want %q", user, shouted, err, account)
		}
	})
}

// BenchmarkAccount: the longest name against a rule that a backtracking matcher
// would take for ever with.
func BenchmarkAccount(b *testing.B) {
	for name, accounts := range map[string]*Accounts{
		"default": defaultAccounts(),
		"rules":   {Lowercase: true, Rewrites: rewrites(b, `(x+x+)+y`, `$1`)},
	} {
		b.Run(name, func(b *testing.B) {
			user := strings.Repeat("x", maxAccount)
			b.ReportAllocs()
			for b.Loop() {
				_, _ = accounts.Account(user)
			}
		})
	}
}

func FuzzAccount(f *testing.F) {
	for _, user := range []string{"alice", " Bob@Example.ORG ", "a\x00", "victim*admin", "\u202eecila", "jÜrgen", "\xff", "  "} {
		f.Add(user)
	}
	f.Fuzz(func(t *testing.T, user string) {
		account, err := defaultAccounts().Account(user)
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
		if again, err := defaultAccounts().Account(account); again != account || err != nil {
			t.Errorf("Account(%q) = %q, %v: not the same again", account, again, err)
		}
		if shouted, err := defaultAccounts().Account("  " + asciiUpper(user) + " "); shouted != account || err != nil {
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
