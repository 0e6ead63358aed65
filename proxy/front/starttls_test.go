package front

import (
	"bytes"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"postern/proxy"
	"postern/proxy/proxytest"
)

// clears are the protocols before TLS.
var clears = []struct {
	protocol, greeting string
	command, agreed    string // of TLS
	probe, found       string // a command that is answered anywhere
}{
	{proxy.IMAP, greetingIMAPClear, `a STARTTLS`, `a OK Begin TLS negotiation now`, `p NOOP`, `p OK NOOP completed`},
	{proxy.POP3, greetingPOP3, `STLS`, `+OK Begin TLS negotiation`, `QUIT`, `+OK Goodbye`},
	{proxy.Submission, greetingSMTP, `STARTTLS`, `220 2.0.0 Ready to start TLS`, `NOOP`, `250 2.0.0 OK`},
	{proxy.Sieve, greetingSieveClear, `STARTTLS`, `OK "Begin TLS negotiation now"`, `NOOP`, `OK "NOOP completed"`},
}

const (
	greetingIMAPClear = `S: \* OK [CAPABILITY IMAP4rev1 STARTTLS LOGINDISABLED] mail.example.org ready`
	needsTLS          = `Encryption is required before login: choose STARTTLS or SSL/TLS in the settings of your mail program (session *)`
)

// greets is the greeting of a protocol in the clear.
func greets(protocol string) string {
	if protocol == proxy.Sieve {
		return greetingSieveClear
	}
	return `S: *mail.example.org *`
}

// quote ends a text of a protocol.
func quote(protocol string) string {
	if protocol == proxy.Sieve {
		return `"`
	}
	return ""
}

// startTLS plays script, which ends with the server's consent, and begins TLS.
func (f *fixture) startTLS(t *testing.T, script string) net.Conn {
	t.Helper()
	c := f.dial(t)
	proxytest.Transcript(t, c, script)
	return proxytest.ClientTLS(c, f.roots)
}

// begin begins TLS at once.
func (f *fixture) begin(t *testing.T) net.Conn {
	t.Helper()
	for _, p := range clears {
		if p.protocol == f.protocol {
			return f.startTLS(t, p.greeting+"\nC: "+p.command+"\nS: "+p.agreed)
		}
	}
	t.Fatalf("no protocol %q", f.protocol)
	return nil
}

// wantNoSecret checks that the log contains no password.
func (f *fixture) wantNoSecret(t *testing.T, secrets ...string) {
	t.Helper()
	log := f.observed.log.String()
	if !strings.Contains(log, "login refused") {
		t.Errorf("the log has no line about the refused login")
	}
	for _, secret := range secrets {
		if strings.Contains(log, secret) || strings.Contains(log, base64.StdEncoding.EncodeToString([]byte(secret))) {
			t.Errorf("the log holds a password")
		}
	}
}

// Criterion: LOGIN and AUTHENTICATE before TLS are one tagged NO [PRIVACYREQUIRED]; they are counted, no backend is asked, and the connection goes on.
func TestIMAPRefusesCredentialsInTheClear(t *testing.T) {
	f := startPlaintext(t, proxy.IMAP, 0)
	f.play(t, greetingIMAPClear+`
		C: a LOGIN alice hunter2
		S: a NO [PRIVACYREQUIRED] `+needsTLS+`
		C: b CAPABILITY
		S: \* CAPABILITY IMAP4rev1 STARTTLS LOGINDISABLED
		S: b OK CAPABILITY completed
		C: c AUTHENTICATE PLAIN `+plain+`
		S: c NO [PRIVACYREQUIRED] `+needsTLS+`
		C: d NOOP
		S: d OK NOOP completed
		C: e LOGOUT
		S: \* BYE Logging out
		S: e OK LOGOUT completed
		S: <EOF>
	`)
	f.wantEnd(t, proxy.ErrQuit)
	f.wantLogins(t, 0)
	f.observed.wantAttempts(t, "plaintext login_command alice", "plaintext plain alice")
	f.wantNoSecret(t, "hunter2", password, plain)
}

// Criterion: Before TLS no continuation is given for a literal, and the octets of one that does not wait are no command.
func TestIMAPTakesNoLiteralsInTheClear(t *testing.T) {
	for name, test := range map[string]struct{ script, user string }{
		"a user that waits": {`
			C: a LOGIN {5}
			S: a NO [PRIVACYREQUIRED] *`, ""},
		"a password that waits": {`
			C: a LOGIN "al\\ice" {7}
			S: a NO [PRIVACYREQUIRED] *`, `al\ice`},
		"both without waiting": {`
			C- a LOGIN {5+}\r\nalice {14+}\r\nx\r\nb LOGIN b c\r\n
			S: a NO [PRIVACYREQUIRED] *`, ""},
		"a password without waiting": {`
			C- a LOGIN alice {7+}\r\nhunter2\r\n
			S: a NO [PRIVACYREQUIRED] *`, "alice"},
		"a password that waits behind a user that does not": {`
			C- a LOGIN {5+}\r\nalice {7}\r\n
			S: a NO [PRIVACYREQUIRED] *`, ""},
		"a quoted string that does not end": {`
			C- a LOGIN "al\\\\\\\\\\\\\\\\ice {7+}\r\nb NOOP \r\n
			S: a NO [PRIVACYREQUIRED] *`, ""},
		"AUTHENTICATE without its message": {`
			C: a AUTHENTICATE PLAIN
			S: a NO [PRIVACYREQUIRED] *`, ""},
		"an unknown mechanism": {`
			C: a AUTHENTICATE CRAM-MD5
			S: a NO [PRIVACYREQUIRED] *`, ""},
	} {
		t.Run(name, func(t *testing.T) {
			f := startPlaintext(t, proxy.IMAP, 0)
			f.play(t, greetingIMAPClear+test.script+`
				C: z NOOP
				S: z OK NOOP completed
			`)
			f.wantLogins(t, 0)
			via := proxy.ViaLoginCommand
			switch name {
			case "AUTHENTICATE without its message":
				via = proxy.ViaPlain
			case "an unknown mechanism":
				via = proxy.ViaOther
			}
			f.observed.wantAttempts(t, "plaintext "+via+" "+test.user)
		})
	}
}

func TestIMAPInTheClearIsBounded(t *testing.T) {
	f := startPlaintext(t, proxy.IMAP, 0)
	f.play(t, greetingIMAPClear+`
		C: a LOGIN {4097+}
		S: \* BYE [TOOBIG] Literal too large
		S: <EOF>
	`)
	f.wantEnd(t, errTooBig)
	f.play(t, greetingIMAPClear+`
		C- a LOGIN {4096+}\r\n`+strings.Repeat("x", 4096)+` {4096+}\r\n`+strings.Repeat("y", 4096)+` {1+}\r\nz\r\n
		S: \* BYE [TOOBIG] Literal too large
		S: <EOF>
	`)
	f.wantEnd(t, errTooBig)
	f.play(t, greetingIMAPClear+`
		C- `+strings.Repeat("x", 30000)+`\r\n
		S: \* BYE Line too long (session *)
		S: <EOF>
	`)
	f.wantEnd(t, proxy.ErrLineTooLong)
}

// Criterion: What is not for the time before TLS is refused, and no password that comes unasked is given back.
func TestIMAPBeforeTLS(t *testing.T) {
	f := startPlaintext(t, proxy.IMAP, 0)
	f.play(t, greetingIMAPClear+`
		C: a ID ("name" "Thunderbird")
		S: a BAD Begin TLS first
		C: b SELECT INBOX
		S: b BAD Log in first
		C: c STARTTLS now
		S: c BAD Unknown command or arguments
		C: <script> STARTTLS
		S: \* BAD Invalid tag
		C- d STARTTLS {3+}\r\nnow\r\n
		S: d BAD Unknown command or arguments
		C- e AUTHENTICATE LOGIN\r\nYWxpY2U=\r\naHVudGVyMg==\r\n
		S: e NO [PRIVACYREQUIRED] *
		S: \* BAD Missing command
		S: \* BAD Missing command
		C: f NOOP
		S: f OK *
	`)
	f.wantNoSecret(t, "hunter2")
}

// Criterion: USER, PASS, AUTH and APOP before STLS are -ERR [AUTH]; CAPA has STLS and neither USER nor SASL, and afterwards the reverse.
func TestPOP3RefusesCredentialsInTheClear(t *testing.T) {
	f := startPlaintext(t, proxy.POP3, 0)
	f.play(t, greetingPOP3+`
		C: CAPA
		S: +OK Capability list follows
		S: STLS
		S: UIDL
		S: TOP
		S: RESP-CODES
		S: AUTH-RESP-CODE
		S: PIPELINING
		S: EXPIRE NEVER
		S: LOGIN-DELAY 60
		S: IMPLEMENTATION Postern
		S: .
		C: AUTH
		S: -ERR Begin TLS first
		C: USER alice
		S: -ERR [AUTH] `+needsTLS+`
		C: PASS hunter2
		S: -ERR [AUTH] `+needsTLS+`
		C: NOOP
		S: -ERR Log in first
		C: UTF8
		S: -ERR Begin TLS first
		C: STLS now
		S: -ERR STLS has no arguments
		C: QUIT
		S: +OK Goodbye
		S: <EOF>
	`)
	f.wantEnd(t, proxy.ErrQuit)
	f.play(t, greetingPOP3+`
		C: AUTH PLAIN `+plain+`
		S: -ERR [AUTH] `+needsTLS+`
		C- AUTH LOGIN\r\nYWxpY2U=\r\naHVudGVyMg==\r\n
		S: -ERR [AUTH] `+needsTLS+`
		S: -ERR Unknown command
		S: -ERR Unknown command
		C: APOP alice c4c9334bac560ecc979e58001b3e22fb
		S: -ERR [AUTH] `+needsTLS+`
		S: <EOF>
	`)
	f.observed.wantAttempts(t, "plaintext userpass alice", "plaintext userpass ",
		"plaintext plain alice", "plaintext login ", "plaintext other alice")
	f.wantLogins(t, 0)
	f.wantNoSecret(t, "hunter2", "c4c9334bac560ecc979e58001b3e22fb", password, plain)

	proxytest.Transcript(t, f.begin(t), `
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
	`)
}

// Criterion: Before STARTTLS EHLO has no AUTH, AUTH is 538 5.7.11, and MAIL is 530 5.7.0.
func TestSMTPRefusesCredentialsInTheClear(t *testing.T) {
	f := startPlaintext(t, proxy.Submission, 0)
	f.play(t, greetingSMTP+ehloClear+`
		C: AUTH PLAIN `+plain+`
		S: 538 5.7.11 `+needsTLS+`
		C- AUTH LOGIN\r\nYWxpY2U=\r\naHVudGVyMg==\r\n
		S: 538 5.7.11 `+needsTLS+`
		S: 502 5.5.1 Command not implemented
		S: 502 5.5.1 Command not implemented
		C: MAIL FROM:<alice@example.org>
		S: 530 5.7.0 Must issue a STARTTLS command first
		C: VRFY alice
		S: 530 5.7.0 Must issue a STARTTLS command first
		C: HELO client
		S: 250 mail.example.org
		C: RSET
		S: 250 2.0.0 OK
		C: NOOP
		S: 250 2.0.0 OK
		C: STARTTLS now
		S: 501 5.5.4 STARTTLS has no parameters
		C: AUTH LOGIN YWxpY2U=
		S: 538 5.7.11 `+needsTLS+`
		S: 421 4.7.0 Too many failed logins (session *)
		S: <EOF>
	`)
	f.play(t, greetingSMTP+`
		C: AUTH PLAIN =
		S: 538 5.7.11 `+needsTLS+`
		C: QUIT
		S: 221 *
		S: <EOF>
	`)
	f.play(t, greetingSMTP+`
		C- BDAT 20 LAST\r\nAUTH PLAIN `+plain+`\r\n
		S: 530 5.7.0 Must issue a STARTTLS command first (session *)
		S: <EOF>
	`)
	f.wantLogins(t, 0)
	f.observed.wantAttempts(t, "plaintext plain alice", "plaintext login ", "plaintext login alice", "plaintext plain ")
	f.wantNoSecret(t, "hunter2", password, plain)
}

// Criterion: The third login in the clear ends the connection with a word; none of them counts as a wrong password after STARTTLS.
func TestLoginsInTheClearAreNoWrongPasswords(t *testing.T) {
	f := startPlaintext(t, proxy.IMAP, 0)
	f.play(t, greetingIMAPClear+`
		C- a LOGIN alice x\r\nb LOGIN alice x\r\nc LOGIN alice x\r\nd NOOP\r\n
		S: a NO [PRIVACYREQUIRED] *
		S: b NO [PRIVACYREQUIRED] *
		S: c NO [PRIVACYREQUIRED] *
		S: \* BYE `+needsTLS+`
		S: <EOF>
	`)
	c := f.startTLS(t, greetingIMAPClear+`
		C- a LOGIN alice x\r\nb LOGIN alice x\r\n
		S: a NO [PRIVACYREQUIRED] *
		S: b NO [PRIVACYREQUIRED] *
		C: c STARTTLS
		S: c OK Begin TLS negotiation now
	`)
	proxytest.Transcript(t, c, `
		C: a LOGIN alice x
		S: a NO [AUTHENTICATIONFAILED] *
		C: b LOGIN alice x
		S: b NO [AUTHENTICATIONFAILED] *
		C: c LOGIN alice x
		S: c NO [AUTHENTICATIONFAILED] *
		S: \* BYE Too many failed logins (session *)
		S: <EOF>
	`)
	f.wantLogins(t, 3)
}

// A recordingConn keeps what it reads.
type recordingConn struct {
	net.Conn
	in bytes.Buffer
}

func (w *recordingConn) Read(p []byte) (int, error) {
	n, err := w.Conn.Read(p)
	w.in.Write(p[:n])
	return n, err
}

// Criterion: A command injected behind STARTTLS or STLS is never answered, however it is split and whatever is around it.
func TestCommandsInjectedBehindSTARTTLSDie(t *testing.T) {
	junk := strings.Repeat("x", 16<<10)
	for _, p := range clears {
		for name, segments := range map[string]struct{ before, behind []string }{
			"one segment":           {[]string{p.command + "\r\n" + p.probe + "\r\n"}, nil},
			"three segments":        {[]string{p.command + "\r", "\n" + p.probe, "\r\n"}, nil},
			"every octet":           {strings.SplitAfter(p.command+"\r\n"+p.probe+"\r\n", ""), nil},
			"behind the answer":     {[]string{p.command + "\r\n"}, []string{p.probe + "\r\n"}},
			"its end behind it":     {[]string{p.command + "\r\n" + p.probe}, []string{"\r\n"}},
			"16 KiB of junk":        {[]string{p.command + "\r\n" + junk + "\r\n" + p.probe + "\r\n"}, nil},
			"junk behind":           {[]string{p.command + "\r\n" + p.probe + "\r\n" + junk}, nil},
			"many":                  {[]string{p.command + "\r\n" + strings.Repeat(p.probe+"\r\n", 200)}, nil},
			"a login":               {[]string{p.command + "\r\na LOGIN alice x\r\nUSER alice\r\nPASS x\r\nAUTH PLAIN " + plain + "\r\n"}, nil},
			"again":                 {[]string{p.command + "\r\n" + p.command + "\r\n"}, nil},
			"a record of its own":   {[]string{p.command + "\r\n\x17\x03\x03\x00\x08" + p.probe + "\r\n"}, nil},
			"a command before, too": {[]string{"x NOOP\r\n" + p.command + "\r\n" + p.probe + "\r\n"}, nil},
		} {
			t.Run(p.protocol+", "+name, func(t *testing.T) {
				f := startPlaintext(t, p.protocol, 0)
				c := &recordingConn{Conn: f.dial(t)}
				proxytest.Transcript(t, c, p.greeting)
				_ = c.SetDeadline(time.Now().Add(5 * time.Second))
				for _, s := range segments.before {
					if _, err := io.WriteString(c, s); err != nil {
						t.Fatal(err)
					}
				}
				for !strings.HasSuffix(c.in.String(), p.agreed+"\r\n") {
					if _, err := c.Read(make([]byte, 1)); err != nil {
						t.Fatalf("no %q in %q: %v", p.agreed, c.in.String(), err)
					}
				}
				c.in.Reset()
				for _, s := range segments.behind {
					_, _ = io.WriteString(c, s)
				}
				secure := proxytest.ClientTLS(c, f.roots)
				if err := secure.Handshake(); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
					t.Errorf("handshake: %v, want a connection that is closed", err)
				}
				_, _ = io.Copy(io.Discard, c)
				if got := c.in.Bytes(); len(got) > 0 && got[0] != 0x15 || bytes.Contains(got, []byte("\r\n")) {
					t.Errorf("behind %q the server said %q", p.agreed, got)
				}
				f.wantLogins(t, 0)
			})
		}
	}
}

// An eagerHandshakeConn sends its ClientHello together with the STARTTLS command.
// It skips the reply to the command.
type eagerHandshakeConn struct {
	net.Conn
	command, agreed string
}

func (e *eagerHandshakeConn) Write(p []byte) (int, error) {
	n, err := e.Conn.Write(append([]byte(e.command), p...))
	n -= len(e.command)
	e.command = ""
	return n, err
}

func (e *eagerHandshakeConn) Read(p []byte) (int, error) {
	if e.agreed != "" {
		if _, err := io.ReadFull(e.Conn, make([]byte, len(e.agreed))); err != nil {
			return 0, err
		}
		e.agreed = ""
	}
	return e.Conn.Read(p)
}

// Criterion: STARTTLS and the ClientHello in one segment make a handshake.
func TestHandshakeMayComeWithSTARTTLS(t *testing.T) {
	for _, p := range clears {
		f := startPlaintext(t, p.protocol, 0)
		c := f.dial(t)
		proxytest.Transcript(t, c, p.greeting)
		secure := proxytest.ClientTLS(&eagerHandshakeConn{c, p.command + "\r\n", p.agreed + "\r\n"}, f.roots)
		if p.protocol == proxy.Sieve {
			proxytest.Transcript(t, secure, capabilitiesSieve+"\nS: OK *")
		}
		proxytest.Transcript(t, secure, "C: "+p.probe+"\nS: "+p.found)
	}
}

// Criterion: What was said before TLS is forgotten: EHLO, USER, the refusals.
func TestNothingIsKeptFromBeforeTLS(t *testing.T) {
	f := startPlaintext(t, proxy.Submission, 0)
	c := f.startTLS(t, greetingSMTP+ehloClear+`
		C: STARTTLS
		S: 220 2.0.0 Ready to start TLS
	`)
	proxytest.Transcript(t, c, `
		C: MAIL FROM:<alice@example.org>
		S: 503 5.5.1 EHLO comes first
		C: AUTH PLAIN `+plain+`
		S: 503 5.5.1 EHLO comes first
		`+strings.Replace(ehlo, "client.", "inside.", 1)+`
		C: AUTH PLAIN `+plain+`
		S: 235 2.7.0 Authentication successful
		C: MAIL FROM:<alice@example.org>
		S: session: MAIL FROM:<alice@example.org>
	`)
	l := f.wantLogin(t, proxy.ViaPlain, user, password)
	if l.Hello.Name != "inside.example.org" || slices.Contains(l.Offer.Extensions, "STARTTLS") || l.Client.TLS == nil {
		t.Errorf("login of %q with %q, TLS %v", l.Hello.Name, l.Offer.Extensions, l.Client.TLS)
	}

	f = startPlaintext(t, proxy.POP3, 0)
	c = f.startTLS(t, greetingPOP3+`
		C: USER alice
		S: -ERR [AUTH] *
		C: STLS
		S: +OK Begin TLS negotiation
	`)
	proxytest.Transcript(t, c, `
		C: PASS `+password+`
		S: -ERR USER comes first
		C: USER alice
		S: +OK *
		C: PASS `+password+`
		S: +OK Logged in
	`)
	f.wantLogin(t, proxy.ViaUserPass, user, password)
}

// Criterion: A second STARTTLS is refused, and not announced.
func TestTLSBeginsOnce(t *testing.T) {
	f := startPlaintext(t, proxy.IMAP, 0)
	proxytest.Transcript(t, f.begin(t), `
		C: a CAPABILITY
		S: \* CAPABILITY IMAP4rev1 SASL-IR LITERAL- ID AUTH=PLAIN AUTH=LOGIN
		S: a OK *
		C: b STARTTLS
		S: b BAD TLS is active already
		C: c LOGIN alice {21}
		S: + OK
		C: `+password+`
		S: c OK Logged in
	`)
	f = startPlaintext(t, proxy.POP3, 0)
	proxytest.Transcript(t, f.begin(t), `
		C: STLS
		S: -ERR TLS is active already
		C: QUIT
		S: +OK *
	`)
	f = startPlaintext(t, proxy.Submission, 0)
	proxytest.Transcript(t, f.begin(t), ehlo+`
		C: STARTTLS
		S: 503 5.5.1 TLS is active already
		C: QUIT
		S: 221 *
	`)
}

// Criterion: Silence, garbage and plain text behind STARTTLS close the connection in the time of a handshake, without a word.
func TestNoTLSAfterSTARTTLSEndsWithoutText(t *testing.T) {
	for _, p := range clears {
		for name, sent := range map[string]string{
			"silence": "", "an octet": "x", "a beginning": `\x16\x03`, "garbage": strings.Repeat(`\xFE\x00`, 50), "text": p.probe + `\r\n`,
		} {
			t.Run(p.protocol+", "+name, func(t *testing.T) {
				f := startPlaintext(t, p.protocol, 100*time.Millisecond)
				f.play(t, p.greeting+"\nC: "+p.command+"\nS: "+p.agreed+"\nC- "+sent+"\nS: <EOF>")
			})
		}
	}
}

func TestConnectionEndedInTheHandshakeGetsNoText(t *testing.T) {
	for _, p := range clears {
		f := startPlaintext(t, p.protocol, 0)
		c := f.dial(t)
		proxytest.Transcript(t, c, p.greeting+"\nC: "+p.command+"\nS: "+p.agreed)
		if n := f.server.Kick(func(proxy.SessionInfo) bool { return true }); n != 1 {
			t.Fatalf("%d connections were ended", n)
		}
		proxytest.Transcript(t, c, `S: <EOF>`)
	}
}

// Criterion: Who begins with TLS on a port with STARTTLS is closed at once, with a hint.
func TestUnexpectedProxyHeaderEndsTheConnection(t *testing.T) {
	for _, protocol := range proxy.Protocols() {
		for _, header := range []string{
			`PROXY TCP4 192.0.2.1 198.51.100.7 4711 143\r\n`, `PROXY TCP6 2001:db8::1 2001:db8::2 4711 143\r\n`, `PROXY UNKNOWN\r\n`,
			`\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c`,
		} {
			f := startPlaintext(t, protocol, 0)
			f.play(t, `
				C- `+header+`
				`+greets(protocol)+`
				S: <EOF>
			`)
			f.wantEnd(t, proxy.ErrUnexpectedProxyHeader)
		}
		f := startPlaintext(t, protocol, 0)
		f.play(t, `
			C- PROXY NOOP\r\nPROXY QUIT\r\n
			`+greets(protocol)+`
			S: *
		`)
	}
}

func TestEarlyClientHelloIsReferredToSTARTTLS(t *testing.T) {
	for protocol, want := range map[string]string{
		proxy.IMAP:       `\* BYE `,
		proxy.POP3:       `-ERR `,
		proxy.Submission: `554 5.7.0 `,
		proxy.Sieve:      `BYE "`,
	} {
		f := startPlaintext(t, protocol, 0)
		f.play(t, `
			C- \x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03
			`+greets(protocol)+`
			S: `+want+`This port begins without TLS: choose STARTTLS in the settings of your mail program (session *)`+quote(protocol)+`
			S: <EOF>
		`)
		f.wantEnd(t, proxy.ErrEarlyTLS)
		if err := tls.Client(f.dial(t), &tls.Config{ServerName: "localhost", RootCAs: f.roots}).Handshake(); err == nil {
			t.Errorf("%s: a handshake without STARTTLS succeeded", protocol)
		}
		f.observed.wantAttempts(t)
	}
}

func TestFirstLineInTheClearIsALineAsAnyOther(t *testing.T) {
	f := startPlaintext(t, proxy.POP3, 0)
	f.play(t, greetingPOP3+`
		C- \nQUIT\n
		S: -ERR Unknown command
		S: +OK *
	`)
	f.play(t, greetingPOP3+`
		C- `+strings.Repeat("x", 30000)+`\r\nQUIT\r\n
		S: -ERR Line too long
		S: +OK *
	`)
	f.play(t, greetingPOP3+`
		C- POST / HTTP/1.1\r\nQUIT\r\n
		S: <EOF>
	`)
}

// Criterion: A port that only refuses says why, in the operator's words if there are any, as its greeting.
func TestRefuserGreetsWithTheReason(t *testing.T) {
	for protocol, want := range map[string]string{
		proxy.IMAP:       `\* BYE `,
		proxy.POP3:       `-ERR `,
		proxy.Submission: `554 5.7.0 `,
		proxy.Sieve:      `BYE "`,
	} {
		for text, received := range map[string]string{
			"": closedPort,
			"use port 995 with SSL/TLS, see https://example.org/mail": "use port 995 with SSL/TLS, see https://example.org/mail",
		} {
			f := startServer(t, proxy.Timeouts{}, proxy.Service{
				Protocol: protocol,
				Dialogue: func(c *proxy.Conn) proxy.Dialogue { return Refuser{newDialogue(protocol, c, Options{})} },
				Text:     func(proxy.Reason, string) string { return text },
			})
			f.play(t, `
				S: `+want+received+` (session *)`+quote(protocol)+`
				S: <EOF>
			`)
			f.observed.wantAttempts(t, "plaintext other ")
		}
	}
}

func TestThunderbirdWithSTARTTLS(t *testing.T) {
	f := startPlaintext(t, proxy.IMAP, 0)
	c := f.startTLS(t, greetingIMAPClear+`
		C: 1 capability
		S: \* CAPABILITY IMAP4rev1 STARTTLS LOGINDISABLED
		S: 1 OK *
		C: 2 STARTTLS
		S: 2 OK *
	`)
	proxytest.Transcript(t, c, `
		C: 3 capability
		S: \* CAPABILITY IMAP4rev1 SASL-IR LITERAL- ID AUTH=PLAIN AUTH=LOGIN
		S: 3 OK *
		C: 4 ID ("name" "Thunderbird" "version" "140.4.0")
		S: \* ID *
		S: 4 OK *
		C: 5 authenticate PLAIN `+plain+`
		S: 5 OK Logged in
	`)
	f = startPlaintext(t, proxy.POP3, 0)
	c = f.startTLS(t, greetingPOP3+`
		C: AUTH
		S: -ERR *
		C: CAPA
		S: +OK *
		S: STLS
		S: UIDL
		S: TOP
		S: RESP-CODES
		S: AUTH-RESP-CODE
		S: PIPELINING
		S: EXPIRE NEVER
		S: LOGIN-DELAY 60
		S: IMPLEMENTATION Postern
		S: .
		C: STLS
		S: +OK *
	`)
	proxytest.Transcript(t, c, `
		C: AUTH
		S: +OK *
		S: PLAIN
		S: LOGIN
		S: .
		C: AUTH PLAIN
		S- +\x20\r\n
		C: `+plain+`
		S: +OK Logged in
	`)
	f = startPlaintext(t, proxy.Submission, 0)
	c = f.startTLS(t, greetingSMTP+strings.Replace(ehloClear, "client.example.org", "[192.168.178.20]", 1)+`
		C: STARTTLS
		S: 220 *
	`)
	proxytest.Transcript(t, c, strings.Replace(ehlo, "client.example.org", "[192.168.178.20]", 1)+`
		C: AUTH PLAIN `+plain+`
		S: 235 *
	`)
}

func TestOutlookWithSTARTTLS(t *testing.T) {
	f := startPlaintext(t, proxy.IMAP, 0)
	c := f.startTLS(t, greetingIMAPClear+`
		C: qk3q CAPABILITY
		S: \* CAPABILITY *
		S: qk3q OK *
		C: 9wzn STARTTLS
		S: 9wzn OK *
	`)
	proxytest.Transcript(t, c, `
		C: 3l1k CAPABILITY
		S: \* CAPABILITY *
		S: 3l1k OK *
		C: 7o2p ID ("name" "Microsoft.Outlook" "os" {9+}
		C: Windows11 "vendor" "Microsoft")
		S: \* ID *
		S: 7o2p OK *
		C: rsg3 LOGIN {5+}
		C: alice {21+}
		C: `+password+`
		S: rsg3 OK Logged in
	`)
	f = startPlaintext(t, proxy.Submission, 0)
	c = f.startTLS(t, greetingSMTP+strings.Replace(ehloClear, "client.example.org", "DESKTOP-7A1B_2C", 1)+`
		C: STARTTLS
		S: 220 *
	`)
	proxytest.Transcript(t, c, strings.Replace(ehlo, "client.example.org", "DESKTOP-7A1B_2C", 1)+`
		C: AUTH LOGIN
		S: 334 VXNlcm5hbWU6
		C: YWxpY2U=
		S: 334 UGFzc3dvcmQ6
		C: `+base64.StdEncoding.EncodeToString([]byte(password))+`
		S: 235 *
	`)
}
