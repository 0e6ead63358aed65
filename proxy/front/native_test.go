package front

import (
	"fmt"
	"strings"
	"testing"

	"postern/proxy"
	"postern/proxy/wire"
)

// fullID returns the arguments of an ID with as many pairs as RFC 2971 section
// 3.3 allows, each as long as allowed, quoted by value.
func fullID(value func(string) string) string {
	pairs := make([]string, maxIDPairs)
	for i := range pairs {
		key := fmt.Sprintf("key%0*d", maxIDKey-3, i)
		pairs[i] = `"` + key + `" ` + value(strings.Repeat("v", maxIDValue))
	}
	return "(" + strings.Join(pairs, " ") + ")"
}

// Criterion: ID before login is answered with all that RFC 2971 allows in it: 30
// fields of 30 and 1,024 octets, as quoted strings or as literals.
func TestIMAPAnswersTheLongestID(t *testing.T) {
	quoted := fullID(func(v string) string { return `"` + v + `"` })
	literals := fullID(func(v string) string { return fmt.Sprintf(`{%d+}\r\n%s`, len(v), v) })
	f := startInTLS(t, proxy.IMAP, 0)
	f.play(t, greetingIMAP+`
		C: 1 ID `+quoted+`
		S: \* ID ("name" "Postern")
		S: 1 OK ID completed
		C- 2 ID `+literals+`\r\n
		S: \* ID ("name" "Postern")
		S: 2 OK ID completed
		C: 3 LOGIN bob x
		S: 3 NO *
		C: 4 NOOP `+strings.Repeat("x", 20000)+`
		S: \* BYE Line too long (session *)
		S: <EOF>
	`)
	l := f.attempt(0)
	if got := len(l.Hello.ID); got != maxIDPairs {
		t.Errorf("%d pairs, want %d", got, maxIDPairs)
	}
}

func TestIMAPBoundsTheLengthOfID(t *testing.T) {
	for _, script := range []string{
		`1 ID ("name" "` + strings.Repeat("x", maxIDCommand) + `")\r\n`,
		`1 ID (` + strings.Repeat(`{4096+}\r\n`+strings.Repeat("x", 4096)+" ", 9),
	} {
		f := startInTLS(t, proxy.IMAP, 0)
		f.play(t, greetingIMAP+`
			C- `+script+`
			S: \* BYE *
			S: <EOF>
		`)
	}
}

// Criterion: where people and programs type more spaces than the grammar of IMAP
// has, Postern answers as Dovecot does.
func TestIMAPTakesSpacesAsDovecotDoes(t *testing.T) {
	f := startInTLS(t, proxy.IMAP, 0)
	f.play(t, greetingIMAP+`
		C- a NOOP \r\n
		S: a OK NOOP completed
		C: b  NOOP
		S: \* BAD Missing command
		C- c CAPABILITY  \r\n
		S: \* CAPABILITY *
		S: c OK *
		C: d ID  ("name"  "Mail"   "os" "x")
		S: \* ID *
		S: d OK *
		C- e ID ( "name" "Mail" )  \r\n
		S: \* ID *
		S: e OK *
		C- f ID NIL \r\n
		S: \* ID *
		S: f OK *
		C: g ID ("name""Mail")
		S: g BAD *
		C: h ID ("name" "a""os" "b")
		S: h BAD *
		C- i LOGIN  alice   wrong  \r\n
		S: i NO [AUTHENTICATIONFAILED] *
		C: j AUTHENTICATE  PLAIN
		S: j BAD *
		C- k AUTHENTICATE PLAIN \r\n
		S: +\x20
		C: *
		S: k BAD *
		C- l AUTHENTICATE PLAIN  `+plain+` \r\n
		S: l OK Logged in
	`)
	f.wantLogin(t, proxy.ViaPlain, user, password)
}

// Criterion: LOGIN before login is answered by its form: an empty name, a list,
// too few and too many arguments are BAD, and the connection goes on.
func TestIMAPAnswersLOGINByItsForm(t *testing.T) {
	f := startInTLS(t, proxy.IMAP, 0)
	f.play(t, greetingIMAP+`
		C: a LOGIN
		S: a BAD *
		C: b LOGIN (alice) x
		S: b BAD *
		C: c LOGIN alice x y
		S: c BAD *
		C: d LOGIN "alice x
		S: d BAD *
		C: e LOGIN "al\ice" x
		S: e BAD *
		C: f LoGiN "alice" "cor\"rect horse\\ käse"
		S: f OK Logged in
	`)
}

// Criterion: AUTHENTICATE is answered by RFC 3501 section 6.2.2: an unknown
// mechanism is NO, bad base64 and "*" are BAD, and the next attempt succeeds.
func TestIMAPAnswersAUTHENTICATEByItsForm(t *testing.T) {
	f := startInTLS(t, proxy.IMAP, 0)
	f.play(t, greetingIMAP+`
		C: a AUTHENTICATE
		S: a BAD *
		C: b AUTHENTICATE NOSUCH
		S: b NO *
		C: c AUTHENTICATE PLAIN
		S: +\x20
		C: *
		S: c BAD *
		C: d AUTHENTICATE PLAIN
		S: +\x20
		C: !not base64!
		S: d BAD *
		C: e authenticate plain
		S: +\x20
		C: `+plain+`
		S: e OK Logged in
	`)
	f.wantLogin(t, proxy.ViaPlain, user, password)
}

// Criterion: EHLO with a name in UTF-8 is taken, as Postfix takes it.
func TestSMTPTakesAnEHLOInUTF8(t *testing.T) {
	f := startInTLS(t, proxy.Submission, 0)
	f.play(t, greetingSMTP+`
		C: EHLO Käses-Computer
		S: 250-mail.example.org
		S: 250-*
		S: 250-*
		S: 250-*
		S: 250-*
		S: 250 *
		C: AUTH PLAIN `+plain+`
		S: 235 *
	`)
	_, l, _ := f.lastLogin()
	if got := l.Hello.Name; got != "Käses-Computer" {
		t.Errorf("Hello.Name = %q", got)
	}
}

// FuzzID checks that an ID of any form gives no more pairs than allowed, each
// within its limits, and the same pairs with additional spaces.
func FuzzID(f *testing.F) {
	f.Add(` ("name" "Mail" "os" NIL)`)
	f.Add(" NIL")
	f.Add(" ( \"a\"  {1}\r\nb )  ")
	f.Fuzz(func(t *testing.T, args string) {
		pairs, err := readID(wire.NewScanner([]byte(args)))
		if err != nil {
			return
		}
		if len(pairs) > maxIDPairs {
			t.Fatalf("%d pairs", len(pairs))
		}
		for key, value := range pairs {
			if len(key) > maxIDKey || len(value) > maxIDValue || !isText([]byte(key)) || !isText([]byte(value)) {
				t.Fatalf("%q: %q", key, value)
			}
		}
		more, err := readID(wire.NewScanner([]byte(" " + args)))
		if err != nil || fmt.Sprint(more) != fmt.Sprint(pairs) {
			t.Fatalf("with a space more: %v, %v, want %v", more, err, pairs)
		}
	})
}
