package front

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"postern/proxy"
	"postern/proxy/proxytest"
	"postern/proxy/wire"
)

const greetingIMAP = `S: \* OK [CAPABILITY IMAP4rev1 SASL-IR LITERAL- ID AUTH=PLAIN AUTH=LOGIN] mail.example.org ready`

var plain = string(wire.AppendPlain(nil, user, []byte(password)))

// Criterion: The IMAP greeting holds the capabilities kept before login, and no bare LOGIN.
func TestIMAPAnnouncesItsCapabilities(t *testing.T) {
	f := startInTLS(t, proxy.IMAP, 0)
	f.play(t, greetingIMAP+`
		C: a1 CAPABILITY
		S: \* CAPABILITY IMAP4rev1 SASL-IR LITERAL- ID AUTH=PLAIN AUTH=LOGIN
		S: a1 OK CAPABILITY completed
		C: a2 noop
		S: a2 OK NOOP completed
		C: a3 STARTTLS
		S: a3 BAD TLS is active already
		C: a4 LOGOUT
		S: \* BYE Logging out
		S: a4 OK LOGOUT completed
		S: <EOF>
	`)
	f.wantEnd(t, proxy.ErrQuit)
}

// Criterion: LOGIN takes atoms, quoted strings, both kinds of literals and 8-bit passwords.
func TestIMAPLoginTakesEveryFormOfString(t *testing.T) {
	for name, script := range map[string]string{
		"quoted": `
			C: a LOGIN alice "cor\"rect horse\\ käse"`,
		"both quoted": `
			C: a login "alice" "cor\"rect horse\\ käse"`,
		"synchronizing literals": `
			C: a LOGIN {5}
			S: + OK
			C: alice {21}
			S: + OK
			C: cor"rect horse\ käse`,
		"literals that do not wait": `
			C- a LOGIN {5+}\r\nalice {21+}\r\ncor"rect horse\\ käse\r\n`,
		"an atom and a literal": `
			C: a LOGIN alice {21}
			S: + OK
			C: cor"rect horse\ käse`,
		"synchronizing literals whose octets do not wait": `
			C- a LOGIN {5}\r\nalice {21}\r\ncor"rect horse\\ käse\r\n
			S: + OK
			S: + OK`,
		"LF alone": `
			C- a LOGIN alice "cor\\"rect horse\\\\ käse"\n`,
	} {
		t.Run(name, func(t *testing.T) {
			f := startInTLS(t, proxy.IMAP, 0)
			f.play(t, greetingIMAP+script+`
				S: a OK Logged in
				C: hello
				S: session: hello
			`)
			f.wantLogin(t, proxy.ViaLoginCommand, user, password)
		})
	}
}

// Criterion: Commands pipelined behind LOGIN are answered in order, the last by the session.
func TestIMAPKeepsWhatIsPipelined(t *testing.T) {
	f := startInTLS(t, proxy.IMAP, 0)
	f.play(t, greetingIMAP+`
		C- 1 NOOP\r\n2 LOGIN alice wrong\r\n3 SELECT INBOX\r\n4 LOGIN alice "cor\\"rect horse\\\\ käse"\r\n5 NOOP\r\n6 SELECT INBOX\r\n
		S: 1 OK NOOP completed
		S: 2 NO [AUTHENTICATIONFAILED] Wrong user name or password (session *)
		S: 3 BAD Log in first
		S: 4 OK Logged in
		S: session: 5 NOOP
		S: session: 6 SELECT INBOX
	`)
	f = startInTLS(t, proxy.IMAP, 0)
	f.play(t, greetingIMAP+`
		C- a AUTHENTICATE PLAIN `+plain+`\r\nb NOOP\r\n
		S: a OK Logged in
		S: session: b NOOP
	`)
}

func TestIMAPAuthenticates(t *testing.T) {
	for name, script := range map[string]string{
		"PLAIN with an initial response": `
			C: a AUTHENTICATE PLAIN ` + plain,
		"PLAIN with a challenge, and what follows the answer": `
			C: a authenticate plain
			S- +\x20\r\n
			C: ` + plain,
		"PLAIN with its own authzid": `
			C: a AUTHENTICATE PLAIN ` + string(wire.AppendSASL(nil, []byte(user+"\x00"+user+"\x00"+password))),
		"LOGIN": `
			C: a AUTHENTICATE LOGIN
			S: + VXNlcm5hbWU6
			C: YWxpY2U=
			S: + UGFzc3dvcmQ6
			C: ` + string(wire.AppendSASL(nil, []byte(password))),
		"LOGIN with the user in the initial response": `
			C: a AUTHENTICATE LOGIN YWxpY2U=
			S: + UGFzc3dvcmQ6
			C: ` + string(wire.AppendSASL(nil, []byte(password))),
	} {
		t.Run(name, func(t *testing.T) {
			f := startInTLS(t, proxy.IMAP, 0)
			f.play(t, greetingIMAP+script+`
				S: a OK Logged in
			`)
			via := proxy.ViaPlain
			if strings.HasPrefix(name, "LOGIN") {
				via = proxy.ViaLogin
			}
			f.wantLogin(t, via, user, password)
		})
	}
}

// Criterion: AUTHENTICATE cancelled with * is a tagged BAD, and the connection goes on.
func TestIMAPExchangeThatFailsLeavesTheConnectionUsable(t *testing.T) {
	f := startInTLS(t, proxy.IMAP, 0)
	f.play(t, greetingIMAP+`
		C: a AUTHENTICATE PLAIN
		S- +\x20\r\n
		C: *
		S: a BAD Authentication cancelled
		C: b AUTHENTICATE LOGIN
		S: + VXNlcm5hbWU6
		C: *
		S: b BAD Authentication cancelled
		C: c AUTHENTICATE PLAIN no-base64!
		S: c BAD Invalid base64 in the authentication exchange (session *)
		C: d AUTHENTICATE CRAM-MD5
		S: d NO Authentication mechanism is not supported (session *)
		C: e AUTHENTICATE GSSAPI AAAA
		S: e NO Authentication mechanism is not supported (session *)
		C: f AUTHENTICATE
		S: f BAD Invalid arguments for AUTHENTICATE
		C: g AUTHENTICATE PLAIN =
		S: g NO [AUTHENTICATIONFAILED] Wrong user name or password (session *)
		C: h AUTHENTICATE PLAIN `+plain+`
		S: h OK Logged in
	`)
	f.wantLogins(t, 1)
}

// Criterion: Three wrong passwords end the connection, one does not; the text is fixed and ends with the session id.
func TestIMAPSendsBYEAfterThreeWrongPasswords(t *testing.T) {
	f := startInTLS(t, proxy.IMAP, 0)
	f.answer["bob"] = &proxy.Refusal{Reason: proxy.Wrong, Err: errors.New("user bob unknown")}
	c := f.dial(t)
	proxytest.Transcript(t, c, greetingIMAP)
	id := f.server.Sessions()[0].Client.ID
	proxytest.Transcript(t, c, strings.ReplaceAll(`
		C: a LOGIN bob secret
		S: a NO [AUTHENTICATIONFAILED] Wrong user name or password (session ID)
		C: b LOGIN alice wrong
		S: b NO [AUTHENTICATIONFAILED] Wrong user name or password (session ID)
		C: c AUTHENTICATE PLAIN AGFsaWNlAHg=
		S: c NO [AUTHENTICATIONFAILED] Wrong user name or password (session ID)
		S: \* BYE Too many failed logins (session ID)
		S: <EOF>
	`, "ID", id))
	f.wantLogins(t, 3)
}

// Criterion: A backend that is away is UNAVAILABLE, never AUTHENTICATIONFAILED, however often.
func TestIMAPTemporaryIsNotWrong(t *testing.T) {
	f := startInTLS(t, proxy.IMAP, 0)
	f.answer["a"] = proxy.NewRefusal(proxy.Unavailable, errors.New("dial tcp: connection refused"))
	f.answer["b"] = proxy.NewRefusal(proxy.Throttled, nil)
	f.answer["c"] = proxy.NewRefusal(proxy.ProtocolOff, nil)
	f.answer["d"] = &proxy.Refusal{Reason: proxy.Unavailable, Text: "[ALERT] Wartung\r\n* OK bis 12 Uhr: früher nicht"}
	f.answer["e"] = proxy.NewRefusal(proxy.TooMany, nil)
	f.play(t, greetingIMAP+`
		C: 1 LOGIN a x
		S: 1 NO [UNAVAILABLE] The mail server is temporarily unavailable: try again later (session *)
		C: 2 LOGIN a x
		S: 2 NO [UNAVAILABLE] *
		C: 3 LOGIN b x
		S: 3 NO [UNAVAILABLE] Too many failed logins: try again later (session *)
		C: 4 LOGIN c x
		S: 4 NO [AUTHORIZATIONFAILED] This account may not use this service (session *)
		C: 5 LOGIN d x
		S: 5 NO [UNAVAILABLE] ALERT] Wartung  \* OK bis 12 Uhr: fr?her nicht (session *)
		C: 6 LOGIN e x
		S: 6 NO [LIMIT] Too many connections: try again later (session *)
		S: \* BYE Too many connections: try again later (session *)
		S: <EOF>
	`)
}

// Criterion: ID before login takes literals in any value and costs nothing.
func TestIMAPKeepsTheClientsID(t *testing.T) {
	f := startInTLS(t, proxy.IMAP, 0)
	f.play(t, greetingIMAP+`
		C- 1 ID ("name" {7+}\r\nOutlook "Version" {3}\r\n
		S: + OK
		C- 1.0 "os" NIL "bad" {2+}\r\na\n "`+strings.Repeat("k", 31)+`" "long")\r\n
		S: \* ID ("name" "Postern")
		S: 1 OK ID completed
		C: 2 ID NIL
		S: \* ID ("name" "Postern")
		S: 2 OK ID completed
		C: 3 ID ()
		S: \* ID ("name" "Postern")
		S: 3 OK ID completed
		C: 4 ID ("name")
		S: 4 BAD Invalid arguments for ID
		C: 5 ID ("Name" "Thunderbird" "version" "140.0")
		S: \* ID ("name" "Postern")
		S: 5 OK ID completed
		C: 6 LOGIN bob x
		S: 6 NO *
		C- 7 ID ("name" {7+}\r\nOutlook "os" NIL)\r\n
		S: \* ID *
		S: 7 OK *
		C: 8 LOGIN bob x
		S: 8 NO *
	`)
	for n, want := range []string{`map[name:Thunderbird version:140.0]`, `map[name:Outlook os:]`} {
		if got := fmt.Sprint(f.attempt(n).Hello.ID); got != want {
			t.Errorf("ID of login %d = %s, want %s", n, got, want)
		}
	}
}

func TestIMAPBoundsID(t *testing.T) {
	pairs := make([]string, 40)
	for i := range pairs {
		pairs[i] = fmt.Sprintf(`"k%d" "v"`, i)
	}
	got, err := readID(wire.NewScanner([]byte(" (" + strings.Join(pairs, " ") + ")")))
	if len(got) != maxIDPairs || err != nil {
		t.Errorf("%d pairs, %v, want %d", len(got), err, maxIDPairs)
	}
}

// Criterion: A literal beyond the limit is BAD, in step when it waits, the end when it does not.
func TestIMAPLiteralsAreBounded(t *testing.T) {
	f := startInTLS(t, proxy.IMAP, 0)
	f.play(t, greetingIMAP+`
		C: a LOGIN {4294967295}
		S: a BAD [TOOBIG] Literal too large
		C: b LOGIN {4097}
		S: b BAD [TOOBIG] Literal too large
		C: c LOGIN alice {99999999999999999999999}
		S: c BAD [TOOBIG] Literal too large
		C: d NOOP
		S: d OK *
		C- e LOGIN {4096+}\r\n`+strings.Repeat("a", 4096)+` x\r\n
		S: e NO [AUTHENTICATIONFAILED] *
		C- f LOGIN {4096+}\r\n`+strings.Repeat("a", 4096)+` {4096}\r\n
		S: f BAD [TOOBIG] Literal too large
		C: g LOGIN {99999999+}
		S: \* BYE [TOOBIG] Literal too large
		S: <EOF>
	`)
	f.wantEnd(t, errTooBig)
	f.wantLogins(t, 0)
}

// Criterion: Commands pre-login that are refused take their literals with them.
func TestIMAPOctetsOfALiteralAreNoCommand(t *testing.T) {
	f := startInTLS(t, proxy.IMAP, 0)
	f.play(t, greetingIMAP+`
		C- a APPEND INBOX {15+}\r\nx LOGIN alice x\r\nb NOOP\r\n
		S: a BAD Log in first
		S: b OK NOOP completed
		C- <a> NOSUCH {10+}\r\nc LOGOUT\r\n\r\nd NOOP\r\n
		S: \* BAD Invalid tag
		S: d OK NOOP completed
	`)
}

func TestIMAPNonsenseEnds(t *testing.T) {
	f := startInTLS(t, proxy.IMAP, 0)
	f.play(t, greetingIMAP+`
		C: <script>alert(1)</script> NOOP
		S: \* BAD Invalid tag
		C: `+strings.Repeat("t", 65)+` NOOP
		S: \* BAD Invalid tag
		C:
		S: \* BAD Invalid tag
		C: a
		S: \* BAD Missing command
		C: a NOSUCH
		S: a BAD Unknown command
		C: a NOOP really
		S: a BAD Unknown command or arguments
		C: a LOGIN alice
		S: a BAD Invalid password: quote it
		C: a LOGIN alice pass word
		S: a BAD Invalid password: quote it
		C: a LOGIN "alice
		S: a BAD Invalid user name
		C: a NOOP `+strings.Repeat("x", 9000)+`
		S: a BAD Command too long
		S: \* BYE Too many commands (session *)
		S: <EOF>
	`)
	f.wantEnd(t, errCommands)
}

func TestIMAPEndsAnEndlessLine(t *testing.T) {
	f := startInTLS(t, proxy.IMAP, 0)
	f.play(t, greetingIMAP+`
		C- a LOGIN {5}`+strings.Repeat("x", 20000)+`\r\nb LOGIN alice x\r\n
		S: \* BYE Line too long (session *)
		S: <EOF>
	`)
	f.wantEnd(t, proxy.ErrLineTooLong)
	f.play(t, greetingIMAP+`
		C- a AUTHENTICATE PLAIN\r\n
		S: +\x20
		C- `+strings.Repeat("A", 20000)+`\r\nb NOOP\r\n
		S: a BAD Line too long in the authentication exchange (session *)
		S: b OK *
	`)
}

func TestIMAPEndsCommandsWithoutEnd(t *testing.T) {
	f := startInTLS(t, proxy.IMAP, 0)
	c := f.dial(t)
	proxytest.Transcript(t, c, greetingIMAP+`
		C- `+strings.Repeat(`a NOOP\r\n`, 1000)+`
		`+strings.Repeat("S: a OK NOOP completed\n", maxCommands)+`
		S: \* BYE Too many commands (session *)
	`)
	f.wantEnd(t, errCommands)
}

// Criterion: An HTTP request is closed at its first line, and nothing of it comes back.
func TestFrontDoesNotSpeakHTTP(t *testing.T) {
	for _, protocol := range proxy.Protocols() {
		f := startPlaintext(t, protocol, 0)
		f.play(t, `
			C- POST / HTTP/1.1\r\nHost: mail.example.org\r\n\r\na NOOP\r\nNOOP\r\n
			`+greets(protocol)+`
			S: <EOF>
		`)
		f.wantEnd(t, errHTTP)
	}
}

// Criterion: Bytes behind AUTHENTICATE that come before its challenge close the connection.
func TestIMAPAnswersBeforeTheirChallengeEnd(t *testing.T) {
	f := startInTLS(t, proxy.IMAP, 0)
	f.play(t, greetingIMAP+`
		C- a AUTHENTICATE PLAIN\r\n`+plain+`\r\n
		S: a BAD Wait for the continuation request
		S: \* BYE Wait for the continuation request (session *)
		S: <EOF>
	`)
	f.wantEnd(t, errEarly)
	f.wantLogins(t, 0)
}

// Criterion: What no server may see reaches none: NUL, CR, LF, a foreign authzid, lengths that cannot be.
func TestIMAPRefusesImpossibleCredentials(t *testing.T) {
	for name, command := range map[string]string{
		"NUL in the password":       `a LOGIN alice {3+}\r\na\x00b`,
		"CR LF in the password":     `a LOGIN alice {14+}\r\na\r\nb LOGIN b c`,
		"LF in the user":            `a LOGIN {3+}\r\na\nb x`,
		"a control in the user":     `a LOGIN "a\x1B[2J" x`,
		"a C1 control in the user":  `a LOGIN "a\xC2\x85" x`,
		"a user that is not UTF-8":  `a LOGIN "a\xE4" x`,
		"an empty user":             `a LOGIN "" x`,
		"an empty password":         `a LOGIN alice ""`,
		"a long user":               `a LOGIN ` + strings.Repeat("u", 321) + ` x`,
		"a long password":           `a LOGIN alice ` + strings.Repeat("p", 1025),
		"a foreign authzid":         `a AUTHENTICATE PLAIN ` + string(wire.AppendSASL(nil, []byte("boss\x00alice\x00x"))),
		"NUL in PLAIN's password":   `a AUTHENTICATE PLAIN ` + string(wire.AppendSASL(nil, []byte("\x00alice\x00x\x00y"))),
		"CR LF in PLAIN's password": `a AUTHENTICATE PLAIN ` + string(wire.AppendSASL(nil, []byte("\x00alice\x00x\r\ny"))),
		"PLAIN without a password":  `a AUTHENTICATE PLAIN ` + string(wire.AppendSASL(nil, []byte("\x00alice\x00"))),
		"no PLAIN at all":           `a AUTHENTICATE PLAIN YWxpY2U=`,
	} {
		t.Run(name, func(t *testing.T) {
			f := startInTLS(t, proxy.IMAP, 0)
			f.play(t, greetingIMAP+`
				C- `+command+`\r\n
				S: a NO [AUTHENTICATIONFAILED] Wrong user name or password (session *)
				C: b NOOP
				S: b OK *
			`)
			f.wantLogins(t, 0)
		})
	}
}

func TestIMAPNamesTheReasonOfItsEnd(t *testing.T) {
	f := startInTLS(t, proxy.IMAP, 50*time.Millisecond)
	f.play(t, greetingIMAP+`
		S: \* BYE [UNAVAILABLE] No login for too long (session *)
		S: <EOF>
	`)
	f.play(t, greetingIMAP+`
		C: a AUTHENTICATE PLAIN
		S: +\x20
		S: a NO [UNAVAILABLE] No login for too long (session *)
		S: \* BYE No login for too long (session *)
		S: <EOF>
	`)
	f = startInTLS(t, proxy.IMAP, 0)
	c := f.dial(t)
	proxytest.Transcript(t, c, greetingIMAP)
	f.server.Kick(func(proxy.SessionInfo) bool { return true })
	proxytest.Transcript(t, c, `
		S: \* BYE [UNAVAILABLE] Disconnected by an administrator (session *)
		S: <EOF>
	`)
}

func TestIMAPThunderbird(t *testing.T) {
	f := startInTLS(t, proxy.IMAP, 0)
	f.play(t, greetingIMAP+`
		C: 1 capability
		S: \* CAPABILITY IMAP4rev1 SASL-IR LITERAL- ID AUTH=PLAIN AUTH=LOGIN
		S: 1 OK CAPABILITY completed
		C: 2 ID ("name" "Thunderbird" "version" "140.4.0")
		S: \* ID ("name" "Postern")
		S: 2 OK ID completed
		C: 3 authenticate PLAIN `+plain+`
		S: 3 OK Logged in
		C: 4 namespace
		S: session: 4 namespace
	`)
}

func TestIMAPOutlook(t *testing.T) {
	f := startInTLS(t, proxy.IMAP, 0)
	f.play(t, greetingIMAP+`
		C: 3l1k CAPABILITY
		S: \* CAPABILITY *
		S: 3l1k OK *
		C: 7o2p ID ("name" "Microsoft.Outlook" "os" {9+}
		C: Windows11 "vendor" "Microsoft" "AAPL" NIL)
		S: \* ID ("name" "Postern")
		S: 7o2p OK ID completed
		C: rsg3 LOGIN {5+}
		C: alice {21+}
		C: `+password+`
		S: rsg3 OK Logged in
	`)
	l := f.wantLogin(t, proxy.ViaLoginCommand, user, password)
	if got := l.Hello.ID["os"]; got != "Windows11" {
		t.Errorf("os = %q", got)
	}
}

func TestRefusalBeforeTheGreetingIsOne(t *testing.T) {
	for protocol, want := range map[string]string{
		proxy.IMAP:       "* BYE This port speaks TLS only",
		proxy.POP3:       "-ERR This port speaks TLS only",
		proxy.Submission: "554 5.7.0 This port speaks TLS only",
		proxy.Sieve:      `BYE "This port speaks TLS only`,
	} {
		tp := &scriptedConn{}
		d := newDialogue(protocol, proxy.NewConn(tp, proxy.Client{ID: "abc"}, nil, 0), Options{})
		r := proxy.NewRefusal(proxy.Plaintext, nil)
		if err := d.Refuse(r); !errors.Is(err, r) {
			t.Errorf("%s: Refuse = %v, want the refusal", protocol, err)
		}
		if got := tp.out.String(); !strings.HasPrefix(got, want) || !strings.HasSuffix(got, " (session abc)"+quote(protocol)+"\r\n") || strings.Count(got, "\n") != 1 {
			t.Errorf("%s: %q", protocol, got)
		}
	}
}

func FuzzIMAP(f *testing.F) {
	fuzzDialogue(f, proxy.IMAP,
		"a LOGIN canary canary-bird\r\nb AUTHENTICATE PLAIN AGNhbmFyeQBjYW5hcnktYmlyZA==\r\n",
		"a LOGIN {6+}\r\ncanary {11}\r\ncanary-bird\r\nb AUTHENTICATE LOGIN Y2FuYXJ5\r\n",
		"a ID (\"canary-bird\" {11+}\r\ncanary-bird \"x\" NIL)\r\nb LOGIN \"canary-bird\" \"ca\\\"nary-bird\"\r\nx LOGOUT\r\n",
		"a AUTHENTICATE XOAUTH2 dXNlcj1jYW5hcnkBYXV0aD1CZWFyZXIgY2FuYXJ5LWJpcmQBAQ==\r\nAQ==\r\nb AUTHENTICATE OAUTHBEARER\r\n",
		"a LOGIN {6+}\r\ncanary {11+}\r\ncanary-bird\r\nb AUTHENTICATE OAUTHBEARER bixhPWNhbmFyeSwBaG9zdD14AWF1dGg9QmVhcmVyIGNhbmFyeS1iaXJkAQE=\r\nc STARTTLS\r\n\x16\x03\x01\x00\x05\x01",
		"\x16\x03\x01\x00\x05\x01")
}
