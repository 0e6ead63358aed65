package front

import (
	"errors"
	"strings"
	"testing"
	"time"

	"postern/proxy"
	"postern/proxy/proxytest"
	"postern/proxy/wire"
)

const greetingPOP3 = `S: +OK mail.example.org ready`

// Criterion: CAPA before login has UIDL, USER and SASL PLAIN, no STLS, and does not come between USER and PASS.
func TestPOP3LogsInWithUserAndPass(t *testing.T) {
	f := startInTLS(t, proxy.POP3, 0)
	f.play(t, greetingPOP3+`
		C: USER alice
		S: +OK Send your password
		C: CAPA
		S: +OK Capability list follows
		S: USER
		S: SASL PLAIN LOGIN
		S: UIDL
		S: TOP
		S: RESP-CODES
		S: AUTH-RESP-CODE
		S: PIPELINING
		S: EXPIRE NEVER
		S: LOGIN-DELAY 60
		S: UTF8
		S: IMPLEMENTATION Postern
		S: .
		C: PASS `+password+`
		S: +OK Logged in
		C: STAT
		S: session: STAT
	`)
	f.wantLogin(t, proxy.ViaUserPass, user, password)
}

// Criterion: Spaces belong to the password, RFC 1939 section 7.
func TestPOP3TakesAllBehindTheSpaceForThePassword(t *testing.T) {
	f := startInTLS(t, proxy.POP3, 0)
	f.play(t, greetingPOP3+`
		C: user  two words@example.org`+"\x20"+`
		S: +OK *
		C: pass  {5+} "a" \ %* `+"\x20"+`
		S: -ERR [AUTH] Wrong user name or password (session *)
	`)
	f.wantLogin(t, proxy.ViaUserPass, " two words@example.org ", ` {5+} "a" \ %*  `)
}

func TestPOP3KeepsWhatIsPipelined(t *testing.T) {
	f := startInTLS(t, proxy.POP3, 0)
	f.play(t, greetingPOP3+`
		C- USER alice\r\nPASS wrong\r\nSTAT\r\nUSER alice\r\nPASS cor"rect horse\\ käse\r\nSTAT\r\nLIST\r\n
		S: +OK *
		S: -ERR [AUTH] *
		S: -ERR Log in first
		S: +OK *
		S: +OK Logged in
		S: session: STAT
		S: session: LIST
	`)
	f = startInTLS(t, proxy.POP3, 0)
	f.play(t, greetingPOP3+`
		C- AUTH PLAIN `+plain+`\nSTAT\r\n
		S: +OK Logged in
		S: session: STAT
	`)
}

func TestPOP3Authenticates(t *testing.T) {
	f := startInTLS(t, proxy.POP3, 0)
	f.play(t, greetingPOP3+`
		C: AUTH
		S: +OK *
		S: PLAIN
		S: LOGIN
		S: .
		C: AUTH PLAIN
		S- +\x20\r\n
		C: *
		S: -ERR Authentication cancelled
		C: AUTH PLAIN no-base64
		S: -ERR Invalid base64 in the authentication exchange (session *)
		C: AUTH CRAM-MD5
		S: -ERR Authentication mechanism is not supported (session *)
		C: AUTH PLAIN =
		S: -ERR [AUTH] Wrong user name or password (session *)
		C: AUTH PLAIN`+"\x20"+`
		S- +\x20\r\n
		C: `+plain+`
		S: +OK Logged in
	`)
	f.wantLogin(t, proxy.ViaPlain, user, password)
	f = startInTLS(t, proxy.POP3, 0)
	f.play(t, greetingPOP3+`
		C: AUTH LOGIN
		S: + VXNlcm5hbWU6
		C: YWxpY2U=
		S: + UGFzc3dvcmQ6
		C: `+string(wire.AppendSASL(nil, []byte(password)))+`
		S: +OK Logged in
	`)
	f.wantLogin(t, proxy.ViaLogin, user, password)
}

// Criterion: What POP3 clients try is refused with a clear word and not with a disconnect.
func TestPOP3RefusesWithAReason(t *testing.T) {
	f := startInTLS(t, proxy.POP3, 0)
	f.play(t, greetingPOP3+`
		C: APOP alice c4c9334bac560ecc979e58001b3e22fb
		S: -ERR APOP is not supported: log in with your password, which TLS protects
		C: STLS
		S: -ERR TLS is active already
		C: UTF8 USER
		S: -ERR UTF8 has no arguments
		C: LANG de
		S: -ERR LANG is not supported
		C: PASS secret
		S: -ERR USER comes first
		C: USER
		S: -ERR Missing user name
		C: NOSUCH secret
		S: -ERR Unknown command
		C: `+strings.Repeat("x", 1500)+`
		S: -ERR Line too long
		C: NOOP
		S: -ERR Log in first
		C: QUIT
		S: +OK Goodbye
		S: <EOF>
	`)
	f.wantEnd(t, proxy.ErrQuit)
}

func TestPOP3NonsenseEnds(t *testing.T) {
	f := startInTLS(t, proxy.POP3, 0)
	f.play(t, greetingPOP3+`
		C- `+strings.Repeat(`\x00\xFF`+strings.Repeat("x", 30000)+`\r\n`, maxBad)+`
		`+strings.Repeat("S: -ERR Line too long\n", maxBad)+`
		S: -ERR Too many commands (session *)
		S: <EOF>
	`)
	f.wantEnd(t, errCommands)
	f.play(t, greetingPOP3+`
		C- `+strings.Repeat("x", 400<<10)+`
		S: -ERR Line too long (session *)
		S: <EOF>
	`)
	f.wantEnd(t, proxy.ErrFlood)
}

// Criterion: Three wrong passwords end the connection, one does not; temporary is SYS/TEMP, never AUTH.
func TestPOP3DistinguishesTemporaryFromWrong(t *testing.T) {
	f := startInTLS(t, proxy.POP3, 0)
	f.answer["a"] = proxy.NewRefusal(proxy.Unavailable, errors.New("dial"))
	f.answer["b"] = proxy.NewRefusal(proxy.InUse, nil)
	f.answer["c"] = proxy.NewRefusal(proxy.ProtocolOff, nil)
	f.answer["d"] = &proxy.Refusal{Reason: proxy.Throttled, Text: strings.Repeat("long ", 200)}
	f.play(t, greetingPOP3+`
		C- USER a\r\nPASS x\r\nUSER b\r\nPASS x\r\nUSER c\r\nPASS x\r\nUSER d\r\nPASS x\r\n
		S: +OK *
		S: -ERR [SYS/TEMP] The mail server is temporarily unavailable: try again later (session *)
		S: +OK *
		S: -ERR [IN-USE] The mailbox is in use by another session: try again later (session *)
		S: +OK *
		S: -ERR [AUTH] This account may not use this service (session *)
		S: +OK *
		S: -ERR [SYS/TEMP] `+strings.Repeat("long ", 70)+` (session *)
		C- USER e\r\nPASS x\r\nPASS x\r\nUSER e\r\nPASS x\r\nUSER e\r\nPASS x\r\nUSER e\r\n
		S: +OK *
		S: -ERR [AUTH] Wrong user name or password (session *)
		S: -ERR USER comes first
		S: +OK *
		S: -ERR [AUTH] Wrong user name or password (session *)
		S: +OK *
		S: -ERR [AUTH] Wrong user name or password (session *)
		S: <EOF>
	`)
	f.wantLogins(t, 7)
}

// Criterion: What no server may see reaches none, whatever USER and PASS hold.
func TestPOP3RefusesImpossibleCredentials(t *testing.T) {
	for name, commands := range map[string]string{
		"NUL in the user":         `USER a\x00b\r\nPASS x`,
		"CR in the user":          `USER a\rA LOGIN b c\r\nPASS x`,
		"NUL in the password":     `USER alice\r\nPASS a\x00b`,
		"CR in the password":      `USER alice\r\nPASS a\rb`,
		"an empty password":       `USER alice\r\nPASS `,
		"no password":             `USER alice\r\nPASS`,
		"a long user":             `USER ` + strings.Repeat("u", 321) + `\r\nPASS x`,
		"a long password":         `USER alice\r\nPASS ` + strings.Repeat("p", 1025),
		"ANSI in the user":        `USER \x1B[31mroot\r\nPASS x`,
		"a user that is no UTF-8": `USER \xFF\xFE\r\nPASS x`,
	} {
		t.Run(name, func(t *testing.T) {
			f := startInTLS(t, proxy.POP3, 0)
			f.play(t, greetingPOP3+`
				C- `+commands+`\r\n
				S: +OK *
				S: -ERR [AUTH] Wrong user name or password (session *)
				C: QUIT
				S: +OK *
			`)
			f.wantLogins(t, 0)
		})
	}
}

func TestPOP3AnswersBeforeTheirChallengeEnd(t *testing.T) {
	f := startInTLS(t, proxy.POP3, 0)
	f.play(t, greetingPOP3+`
		C- AUTH PLAIN\r\n`+plain+`\r\n
		S: -ERR Wait for the challenge (session *)
		S: <EOF>
	`)
	f.wantEnd(t, errEarly)
	f.wantLogins(t, 0)
}

func TestPOP3NamesTheReasonOfItsEnd(t *testing.T) {
	f := startInTLS(t, proxy.POP3, 50*time.Millisecond)
	f.play(t, greetingPOP3+`
		S: -ERR [SYS/TEMP] No login for too long (session *)
		S: <EOF>
	`)
	f = startInTLS(t, proxy.POP3, 0)
	c := f.dial(t)
	proxytest.Transcript(t, c, greetingPOP3)
	f.server.Kick(func(proxy.SessionInfo) bool { return true })
	proxytest.Transcript(t, c, `
		S: -ERR [SYS/TEMP] Disconnected by an administrator (session *)
		S: <EOF>
	`)
}

func TestPOP3Thunderbird(t *testing.T) {
	f := startInTLS(t, proxy.POP3, 0)
	f.play(t, greetingPOP3+`
		C: AUTH
		S: +OK *
		S: PLAIN
		S: LOGIN
		S: .
		C: CAPA
		S: +OK *
		S: USER
		S: SASL PLAIN LOGIN
		S: UIDL
		S: TOP
		S: RESP-CODES
		S: AUTH-RESP-CODE
		S: PIPELINING
		S: EXPIRE NEVER
		S: LOGIN-DELAY 60
		S: UTF8
		S: IMPLEMENTATION Postern
		S: .
		C: AUTH PLAIN
		S- +\x20\r\n
		C: `+plain+`
		S: +OK Logged in
		C: STAT
		S: session: STAT
	`)
}

// Criterion: UTF8 before login is what the server is told of, RFC 6856, and only where the operator wants it.
func TestPOP3EntersUTF8Mode(t *testing.T) {
	for _, mode := range []bool{true, false} {
		f := startInTLS(t, proxy.POP3, 0)
		script := "\nC: utf8\nS: +OK UTF-8 mode"
		if !mode {
			script = ""
		}
		f.play(t, greetingPOP3+script+`
			C: AUTH PLAIN `+plain+`
			S: +OK Logged in
		`)
		if got := f.fakeBackend.attempt(0).Hello.UTF8; got != mode {
			t.Errorf("after %q the login's UTF8 is %v", script, got)
		}
	}
	tp := &scriptedConn{in: strings.NewReader("UTF8\r\nCAPA\r\n")}
	_, _ = NewPOP3(withTLS(proxy.NewConn(tp, proxy.Client{}, nil, 0)), Options{}).Login(t.Context())
	if got := tp.out.String(); !strings.Contains(got, "-ERR UTF8 is not supported\r\n") || strings.Contains(got, "\nUTF8") {
		t.Errorf("without being configured: %q", got)
	}
}

func FuzzPOP3(f *testing.F) {
	fuzzDialogue(f, proxy.POP3,
		"USER canary\r\nPASS canary-bird\r\nAUTH PLAIN AGNhbmFyeQBjYW5hcnktYmlyZA==\r\nCAPA\r\n",
		"AUTH\nAUTH LOGIN Y2FuYXJ5\nNOOP\nUSER canary-bird\nPASS x\nQUIT\n",
		"AUTH XOAUTH2 dXNlcj1jYW5hcnkBYXV0aD1CZWFyZXIgY2FuYXJ5LWJpcmQBAQ==\r\n\r\nAUTH OAUTHBEARER bixhPWNhbmFyeSwBaG9zdD14AWF1dGg9QmVhcmVyIGNhbmFyeS1iaXJkAQE=\r\n*\r\nSTLS\r\nCAPA\r\n",
		"\nAPOP canary x\r\nSTLS\r\n\x16\x03\x01\x00\x05\x01")
}
