package front

import (
	"io"
	"net"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"postern/proxy"
	"postern/proxy/proxytest"
	"postern/proxy/wire"
)

// sieveOffer is what the backends have in common.
var sieveOffer = proxy.Offer{
	Mechanisms: []string{"PLAIN", "XOAUTH2", "OAUTHBEARER"},
	Extensions: []string{
		"IMPLEMENTATION Dovecot Pigeonhole", "SIEVE fileinto vacation", "NOTIFY mailto", "SASL PLAIN", "STARTTLS", "VERSION 1.0",
		"MAXREDIRECTS 4", "RENAME", "XCLIENT", "UNAUTHENTICATE", "OWNER alice", "X-UNKNOWN",
	},
}

const (
	capabilitiesSieve = `
		S: "IMPLEMENTATION" "Postern"
		S: "SASL" "PLAIN LOGIN XOAUTH2 OAUTHBEARER"
		S: "VERSION" "1.0"
		S: "SIEVE" "fileinto vacation"
		S: "NOTIFY" "mailto"
		S: "MAXREDIRECTS" "4"
		S: "RENAME"
`
	capabilitiesSieveClear = `
		S: "IMPLEMENTATION" "Postern"
		S: "SASL" ""
		S: "STARTTLS"
		S: "VERSION" "1.0"
		S: "SIEVE" "fileinto vacation"
		S: "NOTIFY" "mailto"
		S: "MAXREDIRECTS" "4"
		S: "RENAME"
`
	greetingSieve      = capabilitiesSieve + `S: OK "mail.example.org ready"`
	greetingSieveClear = capabilitiesSieveClear + `S: OK "mail.example.org ready"`
)

// literal returns s as a literal of a client, for a line of a transcript that begins with C-.
func literal(s string) string { return `{` + strconv.Itoa(len(s)) + `+}\r\n` + s }

// Criterion: A ManageSieve client logs in by PLAIN, LOGIN, XOAUTH2 and OAUTHBEARER, with and without an initial response, in quoted strings and in literals: RFC 5804 section 2.1.
func TestSieveLogsInInEveryWay(t *testing.T) {
	alice, secret, msg := b64(user), b64(password), string(wire.AppendPlain(nil, user, []byte(password)))
	for name, script := range map[string]string{
		"initial response":            `C: AUTHENTICATE "PLAIN" "` + msg + `"`,
		"initial response, literal":   `C- AUTHENTICATE "PLAIN" ` + literal(msg) + `\r\n`,
		"both in literals":            `C- AUTHENTICATE ` + literal("PLAIN") + ` ` + literal(msg) + `\r\n`,
		"lower case":                  `C: authenticate "plain" "` + msg + `"`,
		"no initial response":         "C: AUTHENTICATE \"PLAIN\"\nS: \"\"\nC: \"" + msg + `"`,
		"no initial response literal": "C: AUTHENTICATE \"PLAIN\"\nS: \"\"\nC- " + literal(msg) + `\r\n`,
		"LOGIN":                       "C: AUTHENTICATE \"LOGIN\"\nS: \"" + wire.LoginUsername + "\"\nC: \"" + alice + "\"\nS: \"" + wire.LoginPassword + "\"\nC: \"" + secret + `"`,
		"LOGIN with initial response": "C: AUTHENTICATE \"LOGIN\" \"" + alice + "\"\nS: \"" + wire.LoginPassword + "\"\nC- " + literal(secret) + `\r\n`,
	} {
		t.Run(name, func(t *testing.T) {
			f := startInTLSWithOffer(t, proxy.Sieve, 0, sieveOffer)
			f.play(t, greetingSieve+"\n"+script+`
				S: OK "Logged in"
				C: LISTSCRIPTS
				S: session: LISTSCRIPTS
			`)
			via := proxy.ViaPlain
			if strings.HasPrefix(name, "LOGIN") {
				via = proxy.ViaLogin
			}
			f.wantLogin(t, via, user, password)
		})
	}
	for _, m := range bearers {
		for _, token := range []string{token, strings.Repeat("t", 12<<10)} { // the longer one has to be a literal
			msg := string(m.message(nil, "alice,a=b@example.org", []byte(token)))
			for _, script := range []string{
				`C- AUTHENTICATE "` + m.name + `" ` + literal(msg) + `\r\n`,
				`C: AUTHENTICATE "` + m.name + "\"\nS: \"\"\nC- " + literal(msg) + `\r\n`,
			} {
				f := startInTLSWithOffer(t, proxy.Sieve, 0, sieveOffer)
				f.answer["alice,a=b@example.org"] = nil
				f.play(t, greetingSieve+"\n"+script+"\nS: OK \"Logged in\"")
				f.wantLogin(t, m.via, "alice,a=b@example.org", token)
			}
		}
	}
}

// Criterion: A ManageSieve client gets the capabilities that all backends have, none that would let it past Postern, and no mechanism before TLS; after STARTTLS it gets them again unasked: RFC 5804 section 2.2.
func TestSieveSendsCapabilitiesAgainAfterSTARTTLS(t *testing.T) {
	f := startPlaintext(t, proxy.Sieve, 0)
	c := f.startTLS(t, greetingSieveClear+`
		C: NOOP
		S: OK "NOOP completed"
		C: CAPABILITY
		`+capabilitiesSieveClear+`
		S: OK "CAPABILITY completed"
		C- STARTTLS\r\nNOOP "injected"\r\n
		S: OK "Begin TLS negotiation now"
	`)
	_ = c.Close() // the handshake got NOOP
	c = f.startTLS(t, greetingSieveClear+`
		C: STARTTLS
		S: OK "Begin TLS negotiation now"
	`)
	proxytest.Transcript(t, c, capabilitiesSieve+`
		S: OK "TLS negotiation successful"
		C: NOOP "STARTTLS-RESYNC-CAPA"
		S: OK (TAG "STARTTLS-RESYNC-CAPA") "NOOP completed"
		C: STARTTLS
		S: NO "TLS is active already"
		C: LOGOUT
		S: OK "Logging out"
		S: <EOF>
	`)
}

// Criterion: ManageSieve credentials before TLS are NO (ENCRYPT-NEEDED); they are counted, and no backend is asked.
func TestSieveRefusesCredentialsInTheClear(t *testing.T) {
	f := startPlaintext(t, proxy.Sieve, 0)
	f.play(t, greetingSieveClear+`
		C: AUTHENTICATE "PLAIN" "`+plain+`"
		S: NO (ENCRYPT-NEEDED) "Encryption is required before login: *(session *)"
		C- AUTHENTICATE "LOGIN" `+literal(b64("alice"))+`\r\n
		S: NO (ENCRYPT-NEEDED) "*"
		C: NOOP
		S: OK *
		C: AUTHENTICATE "SCRAM-SHA-256"
		S: NO (ENCRYPT-NEEDED) "*"
		S: BYE "Too many failed logins (session *)"
		S: <EOF>
	`)
	f.observed.wantAttempts(t, "plaintext plain alice", "plaintext login alice", "plaintext other ")
	f.wantLogins(t, 0)
	f.wantNoSecret(t, password, plain)
}

// Criterion: A wrong ManageSieve password is NO without a code, and the third one ends in BYE; what is temporary is NO (TRYLATER) and BYE, so that no client asks its user for another password.
func TestSieveKeepsTemporaryAndWrongApart(t *testing.T) {
	f := startInTLSWithOffer(t, proxy.Sieve, 0, sieveOffer)
	f.answer["away"] = proxy.NewRefusal(proxy.Unavailable, nil)
	f.answer["off"] = &proxy.Refusal{Reason: proxy.ProtocolOff, Verified: true}
	login := func(user string) string {
		return `C: AUTHENTICATE "PLAIN" "` + string(wire.AppendPlain(nil, user, []byte("x"))) + "\"\n"
	}
	f.play(t, greetingSieve+"\n"+login("alice")+`
		S: NO "Wrong user name or password (session *)"
		`+login("off")+`
		S: NO "This account may not use this service (session *)"
		C: AUTHENTICATE "CRAM-MD5"
		S: NO (AUTH-TOO-WEAK) "Authentication mechanism is not supported (session *)"
		C: AUTHENTICATE "PLAIN" "no base64"
		S: NO "Invalid base64 in the authentication exchange (session *)"
		C: AUTHENTICATE "PLAIN"
		S: ""
		C: "*"
		S: NO "Authentication cancelled"
		C: AUTHENTICATE "PLAIN"
		S: ""
		C: unquoted
		S: NO "Invalid base64 in the authentication exchange (session *)"
		S: BYE "Too many failed logins (session *)"
		S: <EOF>
	`)
	f.play(t, greetingSieve+"\n"+login("away")+`
		S: NO (TRYLATER) "The mail server is temporarily unavailable: try again later (session *)"
		S: BYE (TRYLATER) "The mail server is temporarily unavailable: try again later (session *)"
		S: <EOF>
	`)
}

// Criterion: A ManageSieve token that is wrong has a failure challenge as a string, in a literal if it is long; a temporary refusal has none.
func TestSieveBearerTokenThatIsWrongHasAChallenge(t *testing.T) {
	long := `{"status":"invalid_token","scope":"` + strings.Repeat("s", 1000) + `"}`
	for _, m := range bearers {
		f := startInTLSWithOffer(t, proxy.Sieve, 0, sieveOffer)
		f.answer["bob"] = proxy.NewRefusal(proxy.Wrong, nil)
		f.answer["carol"] = &proxy.Refusal{Reason: proxy.Wrong, Challenge: []byte(long)}
		f.play(t, greetingSieve+`
			C- AUTHENTICATE "`+m.name+`" `+literal(string(m.message(nil, "bob", []byte(token))))+`\r\n
			S: "`+b64(`{"status":"invalid_token"}`)+`"
			C: "AQ=="
			S: NO "Wrong user name or password (session *)"
			C- AUTHENTICATE "`+m.name+`" `+literal(string(m.message(nil, "carol", []byte(token))))+`\r\n
			S: {`+strconv.Itoa(len(b64(long)))+`}
			S: `+b64(long)+`
			C: ""
			S: NO "Wrong user name or password (session *)"
			C- AUTHENTICATE "`+m.name+`" `+literal(string(m.message(nil, "bob", []byte(token))))+`\r\nNOOP\r\n
			S: BYE "Wait for the challenge (session *)"
			S: <EOF>
		`)
	}
}

// Criterion: Before login no ManageSieve literal of any size costs memory that the client has not sent; one that waits, or is too large, ends the connection, because its octets would be commands.
func TestSieveLiteralsAreBounded(t *testing.T) {
	for name, test := range map[string]struct {
		script, said string
		want         error
	}{
		"huge":              {`C: AUTHENTICATE "PLAIN" {4294967296+}`, "Literal too large", errTooBig},
		"larger than int64": {`C: AUTHENTICATE "PLAIN" {99999999999999999999+}`, "Literal too large", errTooBig},
		"one octet more":    {`C: AUTHENTICATE "PLAIN" {` + strconv.Itoa(maxVerb+maxResponse) + `+}`, "Literal too large", errTooBig},
		"in sum":            {`C- NOOP ` + literal(strings.Repeat("x", 9000)) + ` {9000+}\r\n`, "Literal too large", errTooBig},
		"of a script":       {`C: PUTSCRIPT "a" {1000000+}`, "Literal too large", errTooBig},
		"as a response":     {"C: AUTHENTICATE \"PLAIN\"\nS: \"\"\nC: {1000000+}", "Literal too large", errTooBig},
		"that waits":        {`C: AUTHENTICATE "PLAIN" {4}`, "A literal of a client has a plus: RFC 5804 section 4", errSyncLiteral},
		"too many":          {`C- NOOP` + strings.Repeat(` {1+}\r\nx`, maxSieveStrings+1) + `\r\n`, "Too many literals", errTooBig},
		"a line too long":   {`C- NOOP "` + strings.Repeat("x", 30000) + `" {5+}\r\n`, "Line too long", proxy.ErrLineTooLong},
	} {
		t.Run(name, func(t *testing.T) {
			f := startInTLSWithOffer(t, proxy.Sieve, 0, sieveOffer)
			f.play(t, greetingSieve+"\n"+test.script+`
				S: BYE "`+test.said+` (session *)"
				S: <EOF>
			`)
			f.wantEnd(t, test.want)
			f.wantLogins(t, 0)
		})
	}
}

func TestSieveReadsStringsAndNotLines(t *testing.T) {
	f := startInTLSWithOffer(t, proxy.Sieve, 0, sieveOffer)
	f.play(t, greetingSieve+`
		C: NOOP "{5+}"
		S: OK (TAG "{5+}") "NOOP completed"
		C: NOOP "a \" b \\"
		S: OK (TAG "a \\" b \\\\") "NOOP completed"
		C- NOOP {6+}\r\na"b c\\\r\n
		S: OK (TAG "a\\"b c\\\\") "NOOP completed"
		C- NOOP {9+}\r\nLOGOUT\r\nx\r\n
		S: NO "Invalid arguments for NOOP"
		C- NOOP {0+}\r\n\r\n
		S: OK (TAG "") "NOOP completed"
		C: NOOP "`+strings.Repeat("x", maxSieveTag+1)+`"
		S: NO "Invalid arguments for NOOP"
		C- NOOP "\x00"\r\n
		S: NO "Invalid arguments for NOOP"
		C- LISTSCRIPTS\r\nPUTSCRIPT "a" {8+}\r\nLOGOUT\r\n\r\nUNAUTHENTICATE\r\n
		S: NO "Log in first"
		S: NO "Log in first"
		S: NO "Log in first"
		C- FOO {8+}\r\nLOGOUT\r\n\r\n
		S: NO "Unknown command or arguments"
		C: LOGOUT now
		S: NO "Unknown command or arguments"
		C: AUTHENTICATE
		S: NO "Invalid arguments for AUTHENTICATE"
		C: "PLAIN"
		S: NO "Missing command"
		C: capability
		`+capabilitiesSieve+`
		S: OK "CAPABILITY completed"
	`)
}

// Criterion: As long as no backend was reached, ManageSieve greets with BYE (TRYLATER), as it can promise nothing.
func TestSieveWithoutAnOfferIsTemporarilyUnavailable(t *testing.T) {
	f := startInTLSWithOffer(t, proxy.Sieve, 0, proxy.Offer{})
	f.play(t, `
		S: BYE (TRYLATER) "The mail server is temporarily unavailable: try again later (session *)"
		S: <EOF>
	`)
}

func TestSieveHidesItsName(t *testing.T) {
	tp := &scriptedConn{in: strings.NewReader("")}
	c := withTLS(proxy.NewConn(tp, proxy.Client{}, nil, 0))
	_, _ = NewSieve(c, Options{Hostname: "mail.example.org", Anonymous: true, Offer: func() proxy.Offer { return offer }}).Login(t.Context())
	if got := tp.out.String(); !strings.HasPrefix(got, "\"IMPLEMENTATION\" \"\"\r\n") || strings.Contains(got, "Postern") || !strings.Contains(got, "\"SIEVE\" \"\"\r\n") {
		t.Errorf("the greeting is %q", got)
	}
}

// Thunderbird's add-on Sieve: capabilities, STARTTLS, the capabilities again, then
// AUTHENTICATE with the message in a quoted string.
func TestSieveAddOnOfThunderbird(t *testing.T) {
	f := startPlaintext(t, proxy.Sieve, 0)
	c := f.startTLS(t, greetingSieveClear+`
		C: STARTTLS
		S: OK *
	`)
	proxytest.Transcript(t, c, capabilitiesSieve+`
		S: OK *
		C: AUTHENTICATE "PLAIN" "`+plain+`"
		S: OK "Logged in"
		C: CAPABILITY
		S: session: CAPABILITY
	`)
	f.wantLogin(t, proxy.ViaPlain, user, password)
}

func FuzzSieve(f *testing.F) {
	fuzzDialogue(f, proxy.Sieve,
		"AUTHENTICATE \"PLAIN\" \"AGNhbmFyeQBjYW5hcnktYmlyZA==\"\r\nCAPABILITY\r\n",
		"AUTHENTICATE \"LOGIN\"\r\n\"Y2FuYXJ5\"\r\nNOOP\r\nLOGOUT\r\n",
		"AUTHENTICATE {5+}\r\nPLAIN {28+}\r\nAGNhbmFyeQBjYW5hcnktYmlyZA==\r\nPUTSCRIPT \"x\" {3+}\r\nabc\r\n",
		"AUTHENTICATE \"XOAUTH2\" \"dXNlcj1jYW5hcnkBYXV0aD1CZWFyZXIgY2FuYXJ5LWJpcmQBAQ==\"\r\n\"\"\r\nSTARTTLS\r\n\x16\x03\x01\x00\x05\x01")
}

// Criterion: A ManageSieve client that sends an octet a second, or announces a literal and sends nothing, is ended by timeouts.login.
func TestASlowSieveClientIsEndedByTheLoginTimeout(t *testing.T) {
	command := `AUTHENTICATE "PLAIN" {` + strconv.Itoa(maxResponse-100) + "+}\r\n"
	for name, test := range map[string]struct {
		begin string
		drip  bool
	}{
		"an octet of a line a second":    {"", true},
		"an octet of a literal a second": {command, true},
		"a literal that does not come":   {command, false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				client, server := net.Pipe()
				ends := make(chan proxy.Closed, 1)
				o := options
				o.Offer = func() proxy.Offer { return sieveOffer }
				s := &proxy.Server{Guard: allowGuard{}, Observer: &recorder{ends: ends}}
				ln := &pipeListener{conns: make(chan net.Conn, 1), closed: make(chan struct{})}
				ln.conns <- server
				if err := s.Apply([]proxy.Binding{{Listener: ln, Service: &proxy.Service{
					Name: proxy.Sieve, Protocol: proxy.Sieve, StartTLS: true, Backend: &fakeBackend{},
					Account:  func(user string) (string, error) { return user, nil },
					Dialogue: func(c *proxy.Conn) proxy.Dialogue { return NewSieve(withTLS(c), o) },
				}}}); err != nil {
					t.Fatal(err)
				}
				begun := time.Now()
				proxytest.Transcript(t, client, greetingSieve)
				go func() { _, _ = io.Copy(io.Discard, client) }()
				_, _ = io.WriteString(client, test.begin)
				for sent := 0; test.drip && sent < 1000; sent++ {
					if _, err := io.WriteString(client, "x"); err != nil {
						break
					}
					time.Sleep(time.Second)
				}
				end := <-ends
				if got := time.Since(begun); got < proxy.DefaultLogin || got > proxy.DefaultLogin+2*time.Second {
					t.Errorf("ended after %v, want %v", got, proxy.DefaultLogin)
				}
				if got := proxy.ReasonOf(end.Err); got != proxy.TimedOut {
					t.Errorf("ended with %v, want %v", got, proxy.TimedOut)
				}
				if err := s.Shutdown(t.Context(), 0); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// A pipeListener accepts what is sent to conns.
type pipeListener struct {
	conns  chan net.Conn
	closed chan struct{}
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error   { close(l.closed); return nil }
func (l *pipeListener) Addr() net.Addr { return &net.TCPAddr{} }
