package front

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"postern/proxy"
	"postern/proxy/proxytest"
	"postern/proxy/wire"
)

const (
	greetingSMTP = `S: 220 mail.example.org ESMTP Postern`
	ehlo         = `
		C: EHLO client.example.org
		S: 250-mail.example.org
		S: 250-PIPELINING
		S: 250-SIZE 10240000
		S: 250-8BITMIME
		S: 250-DSN
		S: 250 AUTH PLAIN LOGIN`
	ehloClear = `
		C: EHLO client.example.org
		S: 250-mail.example.org
		S: 250-PIPELINING
		S: 250-SIZE 10240000
		S: 250-8BITMIME
		S: 250-DSN
		S: 250 STARTTLS`
)

// Criterion: EHLO announces what the backends were probed to have, the same each time on a connection.
func TestSMTPAnnouncesWhatTheBackendsHave(t *testing.T) {
	f := startInTLS(t, proxy.Submission, 0)
	f.play(t, greetingSMTP+ehlo+ehlo+`
		C: AUTH PLAIN `+plain+`
		S: 235 2.7.0 Authentication successful
	`)
	l := f.wantLogin(t, proxy.ViaPlain, user, password)
	want := []string{"PIPELINING", "SIZE 10240000", "8BITMIME", "DSN", "AUTH PLAIN LOGIN"}
	if !slices.Equal(l.Offer.Extensions, want) || l.Hello.Name != "client.example.org" {
		t.Errorf("offer %q to %q, want %q to client.example.org", l.Offer.Extensions, l.Hello.Name, want)
	}
}

// Criterion: Before any probe has succeeded the greeting is 421 4.3.2.
func TestSMTPWithoutAnOfferDoesNotGreet(t *testing.T) {
	tp := &scriptedConn{}
	c := proxy.NewConn(tp, proxy.Client{ID: "abc"}, nil, 0)
	d := NewSMTP(c, Options{Hostname: "mail.example.org", Offer: func() proxy.Offer { return proxy.Offer{} }})
	_, err := d.Login(t.Context())
	r, ok := errors.AsType[*proxy.Refusal](err)
	if !ok || r.Reason != proxy.Unavailable {
		t.Fatalf("Login = %v, want %v", err, proxy.Unavailable)
	}
	if err := d.Refuse(r); !errors.Is(err, r) {
		t.Errorf("Refuse = %v, want the refusal", err)
	}
	if got, want := tp.out.String(), "421 4.3.2 The mail server is temporarily unavailable: try again later (session abc)\r\n"; got != want {
		t.Errorf("greeting %q, want %q", got, want)
	}
}

func TestSMTPAnswersEverythingBeforeLogin(t *testing.T) {
	f := startInTLS(t, proxy.Submission, 0)
	f.play(t, greetingSMTP+`
		C: AUTH PLAIN `+plain+`
		S: 503 5.5.1 EHLO comes first
		C: HELO
		S: 501 5.5.4 Invalid domain
		C- EHLO k\xE4se\r\n
		S: 501 5.5.4 Invalid domain
		C- EHLO k\xC2\x85se\r\n
		S: 501 5.5.4 Invalid domain
		C: HELO client
		S: 250 mail.example.org
		C: NOOP
		S: 250 2.0.0 OK
		C: RSET
		S: 250 2.0.0 OK
		C: VRFY alice
		S: 252 2.0.0 *
		C: HELP
		S: 214 2.0.0 *
		C: MAIL FROM:<alice@example.org>
		S: 530 5.7.0 Authentication required
		C: RCPT TO:<bob@example.org>
		S: 530 5.7.0 Authentication required
		C: DATA
		S: 530 5.7.0 Authentication required
		C: STARTTLS
		S: 503 5.5.1 TLS is active already
		C: XCLIENT LOGIN=boss
		S: 502 5.5.1 Command not implemented
		C- NOOP\n
		S: 500 5.5.2 *
		C- NOOP \r NOOP\r\n
		S: 500 5.5.2 *
		C: AUTH
		S: 501 5.5.4 *
		C: QUIT
		S: 221 2.0.0 Goodbye
		S: <EOF>
	`)
	f.wantEnd(t, proxy.ErrQuit)
	f.play(t, greetingSMTP+`
		C: HELO client
		S: 250 mail.example.org
		C: AUTH PLAIN `+plain+`
		S: 235 2.7.0 *
	`)
}

// Criterion: AUTH PLAIN and LOGIN with and without initial response; cancel is 501, bad base64 501 5.5.2.
func TestSMTPAuthenticates(t *testing.T) {
	pass := string(wire.AppendSASL(nil, []byte(password)))
	f := startInTLS(t, proxy.Submission, 0)
	f.play(t, greetingSMTP+ehlo+`
		C: AUTH PLAIN
		S- 334\x20\r\n
		C: *
		S: 501 5.7.0 Authentication cancelled
		C: AUTH LOGIN
		S: 334 VXNlcm5hbWU6
		C: *
		S: 501 5.7.0 Authentication cancelled
		C: AUTH PLAIN no-base64
		S: 501 5.5.2 Invalid base64 in the authentication exchange (session *)
		C: AUTH GSSAPI
		S: 504 5.5.4 Authentication mechanism is not supported (session *)
		C: AUTH PLAIN a b
		S: 501 5.5.4 *
		C: AUTH PLAIN =
		S: 535 5.7.8 Wrong user name or password (session *)
		C: AUTH PLAIN
		S: 334`+"\x20"+`
		C: `+plain+`
		S: 235 2.7.0 Authentication successful
	`)
	f.wantLogin(t, proxy.ViaPlain, user, password)
	for _, script := range []string{`
		C: AUTH LOGIN
		S: 334 VXNlcm5hbWU6
		C: YWxpY2U=`, `
		C: auth login YWxpY2U=`,
	} {
		f := startInTLS(t, proxy.Submission, 0)
		f.play(t, greetingSMTP+ehlo+script+`
			S: 334 UGFzc3dvcmQ6
			C: `+pass+`
			S: 235 2.7.0 Authentication successful
			C: MAIL FROM:<>
			S: session: MAIL FROM:<>
		`)
		f.wantLogin(t, proxy.ViaLogin, user, password)
	}
}

// Criterion: MAIL pipelined behind AUTH PLAIN with its initial response works, and is 530 when that failed.
func TestSMTPKeepsWhatIsPipelined(t *testing.T) {
	f := startInTLS(t, proxy.Submission, 0)
	f.play(t, greetingSMTP+ehlo+`
		C- AUTH PLAIN AGFsaWNlAHg=\r\nMAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nDATA\r\n
		S: 535 5.7.8 Wrong user name or password (session *)
		S: 530 5.7.0 *
		S: 530 5.7.0 *
		S: 530 5.7.0 *
		C- AUTH PLAIN `+plain+`\r\nMAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\n
		S: 235 2.7.0 *
		S: session: MAIL FROM:<a@b>
		S: session: RCPT TO:<c@d>
	`)
}

// Criterion: Bytes pipelined behind any other form of AUTH close the connection.
func TestSMTPBytesBehindAnExchangeEnd(t *testing.T) {
	pass := string(wire.AppendSASL(nil, []byte(password)))
	for _, script := range []string{`
		C- AUTH PLAIN\r\n` + plain + `\r\n`, `
		C- AUTH LOGIN\r\nYWxpY2U=\r\n`, `
		C- AUTH LOGIN YWxpY2U=\r\n` + pass + `\r\n`, `
		C: AUTH LOGIN
		S: 334 *
		C- YWxpY2U=\r\n` + pass + `\r\n`, `
		C: AUTH LOGIN YWxpY2U=
		S: 334 *
		C- ` + pass + `\r\nMAIL FROM:<a@b>\r\n`, `
		C: AUTH PLAIN
		S: 334 *
		C- ` + plain + `\r\nMAIL FROM:<a@b>\r\n`,
	} {
		f := startInTLS(t, proxy.Submission, 0)
		f.play(t, greetingSMTP+ehlo+script+`
			S: 503 5.5.0 Wait for the challenge (session *)
			S: <EOF>
		`)
		f.wantEnd(t, errEarly)
		f.wantLogins(t, 0)
	}
}

// Criterion: Wrong is 535 5.7.8, temporary is 454; three wrong passwords end the connection.
func TestSMTPDistinguishesTemporaryFromWrong(t *testing.T) {
	f := startInTLS(t, proxy.Submission, 0)
	auth := func(user string) string {
		return "AUTH PLAIN " + string(wire.AppendPlain(nil, user, []byte("x")))
	}
	f.answer["a"] = proxy.NewRefusal(proxy.Unavailable, nil)
	f.answer["b"] = proxy.NewRefusal(proxy.Throttled, nil)
	f.answer["c"] = proxy.NewRefusal(proxy.ProtocolOff, nil)
	f.answer["d"] = proxy.NewRefusal(proxy.Internal, errors.New("a bug"))
	f.play(t, greetingSMTP+ehlo+`
		C: `+auth("a")+`
		S: 454 4.7.0 The mail server is temporarily unavailable: try again later (session *)
		C: `+auth("b")+`
		S: 454 4.7.0 Too many failed logins: try again later (session *)
		C: `+auth("c")+`
		S: 525 5.7.13 This account may not use this service (session *)
		C: `+auth("alice")+`
		S: 535 5.7.8 Wrong user name or password (session *)
		C: `+auth("alice")+`
		S: 535 5.7.8 Wrong user name or password (session *)
		C: `+auth("alice")+`
		S: 535 5.7.8 Wrong user name or password (session *)
		S: 421 4.7.0 Too many failed logins (session *)
		S: <EOF>
	`)
	f.play(t, greetingSMTP+ehlo+`
		C: `+auth("d")+`
		S: 421 4.3.0 Internal error: try again later (session *)
		S: <EOF>
	`)
}

func TestSMTPCannotSkipAChunk(t *testing.T) {
	f := startInTLS(t, proxy.Submission, 0)
	f.play(t, greetingSMTP+ehlo+`
		C- BDAT 25 LAST\r\nAUTH PLAIN AGFsaWNlAHg=\r\n
		S: 503 5.5.1 Authentication required (session *)
		S: <EOF>
	`)
	f.wantEnd(t, errTooBig)
	f.wantLogins(t, 0)
}

func TestSMTPBoundsLines(t *testing.T) {
	f := startInTLS(t, proxy.Submission, 0)
	f.play(t, greetingSMTP+ehlo+`
		C: NOOP `+strings.Repeat("x", 2048)+`
		S: 500 5.5.2 Line too long
		C: EHLO `+strings.Repeat("x", 256)+`
		S: 501 5.5.4 Invalid domain
		C: AUTH PLAIN `+strings.Repeat("A", 17800)+`
		S: 535 5.7.8 *
		C: AUTH PLAIN `+strings.Repeat("A", 18400)+`
		S: 500 5.5.2 Line too long
		C: AUTH PLAIN
		S: 334`+"\x20"+`
		C: `+strings.Repeat("A", 18400)+`
		S: 500 5.5.6 Line too long in the authentication exchange (session *)
		C- `+strings.Repeat("x", 400<<10)+`
		S: 421 4.7.0 Line too long (session *)
		S: <EOF>
	`)
	f.wantEnd(t, proxy.ErrFlood)
}

func TestSMTPNonsenseEnds(t *testing.T) {
	f := startInTLS(t, proxy.Submission, 0)
	f.play(t, greetingSMTP+`
		C- `+strings.Repeat(`\x00\xFF\r\n`, 20)+`
		`+strings.Repeat("S: 500 5.5.2 *\n", maxBad)+`
		S: 421 4.7.0 Too many commands (session *)
		S: <EOF>
	`)
	f.wantEnd(t, errCommands)
}

func TestSMTPNamesTheReasonOfItsEnd(t *testing.T) {
	f := startInTLS(t, proxy.Submission, 50*time.Millisecond)
	f.play(t, greetingSMTP+`
		S: 421 4.4.2 No login for too long (session *)
		S: <EOF>
	`)
	f = startInTLS(t, proxy.Submission, 0)
	c := f.dial(t)
	proxytest.Transcript(t, c, greetingSMTP)
	f.server.Kick(func(proxy.SessionInfo) bool { return true })
	proxytest.Transcript(t, c, `
		S: 421 4.3.2 Disconnected by an administrator (session *)
		S: <EOF>
	`)
}

func TestSMTPOutlook(t *testing.T) {
	f := startInTLS(t, proxy.Submission, 0)
	f.play(t, greetingSMTP+strings.Replace(ehlo, "client.example.org", "DESKTOP-7A1B_2C", 1)+`
		C: AUTH LOGIN
		S: 334 VXNlcm5hbWU6
		C: YWxpY2U=
		S: 334 UGFzc3dvcmQ6
		C: `+string(wire.AppendSASL(nil, []byte(password)))+`
		S: 235 2.7.0 *
	`)
	f.wantLogin(t, proxy.ViaLogin, user, password)
}

func FuzzSMTP(f *testing.F) {
	fuzzDialogue(f, proxy.Submission,
		"EHLO canary-bird\r\nAUTH PLAIN AGNhbmFyeQBjYW5hcnktYmlyZA==\r\nMAIL FROM:<canary-bird>\r\n",
		"HELO x\r\nAUTH LOGIN Y2FuYXJ5\r\nAUTH canary-bird\r\nVRFY canary-bird\r\ncanary-bird\r\nBDAT 1\r\n",
		"EHLO x\r\nAUTH XOAUTH2 dXNlcj1jYW5hcnkBYXV0aD1CZWFyZXIgY2FuYXJ5LWJpcmQBAQ==\r\n\r\nAUTH OAUTHBEARER bixhPWNhbmFyeSwBaG9zdD14AWF1dGg9QmVhcmVyIGNhbmFyeS1iaXJkAQE=\r\nAQ==\r\n",
		"EHLO x\r\nAUTH LOGIN Y2FuYXJ5\r\nMAIL FROM:<x@y>\r\nSTARTTLS\r\n\x16\x03\x01\x00\x05\x01")
}
