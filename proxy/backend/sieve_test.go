package backend

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"postern/proxy"
)

// The beginnings of a dialogue with a ManageSieve server.
const (
	capabilitiesSieve = `
		S: "IMPLEMENTATION" "Dovecot Pigeonhole"
		S: "SIEVE" "fileinto vacation"
		S: "SASL" "PLAIN LOGIN"
		S: "VERSION" "1.0"
`
	greetingSieve = capabilitiesSieve + "S: OK \"ready.\"\n"
	plainSieve    = `C: AUTHENTICATE "PLAIN" "` + plain + "\"\n"

	clearSieve    = "S: \"IMPLEMENTATION\" \"Cyrus timsieved v2.3\"\nS: \"SASL\" \"\"\nS: \"STARTTLS\"\nS: OK\n"
	startTLSSieve = clearSieve + "C: STARTTLS\nS: OK begin TLS\n" // some servers do not quote it
	resyncSieve   = startTLSSieve + "C: CAPABILITY\nC: NOOP \"STARTTLS-RESYNC-CAPA\"\n"
)

func TestLoginSieve(t *testing.T) {
	for name, script := range map[string]string{
		"text":              `S: OK "Logged in."`,
		"no text":           `S: OK`,
		"text in a literal": "S- OK {9}\\r\\nLogged in\\r\\n",
		"last SASL message": `S: OK (SASL "cnNwYXV0aA==") "in"`,
		"unknown code":      `S: OK (WARNINGS) "in"`,
	} {
		t.Run(name, func(t *testing.T) {
			s, seen := startServer(t, proxy.Sieve, None, greetingSieve+plainSieve+script)
			conn, err := s.LoginSieve(t.Context(), testLogin(account, password))
			if err != nil {
				t.Fatal(err)
			}
			_ = conn.Close()
			if got, want := seen.String(), "dialed ok, login true"; got != want {
				t.Errorf("events: %s, want %s", got, want)
			}
		})
	}
}

func TestLoginSieveReadsCapabilitiesAsStrings(t *testing.T) {
	s, _ := startServer(t, proxy.Sieve, None, `
		S- {4}\r\nSASL {11}\r\nLOGIN PLAIN\r\n"SIEVE" "a \\\"b\\\" \\\\"\r\n"MAXREDIRECTS" "4"\r\nOK\r\n
		`+plainSieve+`S: OK`)
	conn, err := s.LoginSieve(t.Context(), testLogin(account, password))
	if err != nil {
		t.Fatal(err)
	}
	_ = conn.Close()
	if got, want := s.Offer().Extensions, []string{"SASL LOGIN PLAIN", `SIEVE a "b" \`, "MAXREDIRECTS 4"}; !slices.Equal(got, want) {
		t.Errorf("offer is %q, want %q", got, want)
	}
}

// Criterion: After STARTTLS Postern takes the ManageSieve capabilities that came over TLS, whether the server sends them unasked, as RFC 5804 section 2.2 wants, or not, as old versions of Cyrus.
func TestLoginSieveFindsTheCapabilitiesAfterSTARTTLS(t *testing.T) {
	for name, script := range map[string]string{
		"unasked":              resyncSieve + greetingSieve + greetingSieve + `S: OK (TAG "STARTTLS-RESYNC-CAPA") "Done"`,
		"unasked, others":      resyncSieve + "S: \"SASL\" \"GSSAPI\"\nS: OK\n" + greetingSieve + `S: OK (TAG {20}` + "\nS: STARTTLS-RESYNC-CAPA)",
		"asked":                resyncSieve + greetingSieve + `S: OK (TAG "STARTTLS-RESYNC-CAPA") "Done"`,
		"asked, without NOOP":  resyncSieve + greetingSieve + "S: NO \"Expected a command. Got something else.\"\nC: CAPABILITY\n" + greetingSieve,
		"unasked, without TAG": resyncSieve + greetingSieve + greetingSieve + "S: OK\nC: CAPABILITY\n" + greetingSieve,
	} {
		t.Run(name, func(t *testing.T) {
			s, _ := startServer(t, proxy.Sieve, STARTTLS, script+"\n"+plainSieve+"S: OK")
			conn, err := s.LoginSieve(t.Context(), testLogin(account, password))
			if err != nil {
				t.Fatal(err)
			}
			_ = conn.Close()
			if got := s.Offer().Mechanisms; !slices.Equal(got, []string{"PLAIN", "LOGIN"}) {
				t.Errorf("mechanisms are %q", got)
			}
		})
	}
}

// Criterion: A ManageSieve server that speaks another protocol, refuses STARTTLS, has octets injected behind its answer to STARTTLS, or whose answers are not in step gets no password.
func TestLoginSieveSendsNothingToABadServer(t *testing.T) {
	for _, test := range []struct {
		mode           Mode
		script, events string
	}{
		{None, "S: BYE (REFERRAL \"sieve://inner.example\") \"Try Remote.\"\nC: <EOF>", "dialed greeting"},
		{None, "S: NO \"later\"\nC: <EOF>", "dialed greeting"},
		{None, "S: <EOF>\nC: <EOF>", "dialed greeting"},
		{None, "S- \"SASL\" \"PLA\nS: <EOF>", "dialed greeting"},
		{None, "S: * OK IMAP4rev1\nC: <EOF>", "dialed greeting"},
		{None, "S: +OK\nC: <EOF>", "dialed greeting"},
		{None, "S: 220 mx ESMTP\nC: <EOF>", "dialed greeting"},
		{None, "S- \"SASL\" \"PLAIN\"\\nOK\\r\\n\nC: <EOF>", "dialed greeting"},
		{None, "S- \"SASL\" {100000}\\r\\n\nC: <EOF>", "dialed greeting"},
		{None, "S- \"SASL\" {5}\\r\\na\\r\\nbc\\r\\nOK\\r\\n\nC: <EOF>", "dialed greeting"},
		{None, "S: \"\" \"x\"\nS: OK\nC: <EOF>", "dialed greeting"},
		{None, "S- " + strings.Repeat(`\"X\" \"y\"\r\n`, 200), "dialed greeting"},
		{None, "S: \"SASL\" \"GSSAPI\"\nS: OK\nC: LOGOUT\nS: <EOF>", "dialed ok"},
		{None, "S- \"SASL\" \"PLAIN\"\\r\\nOK\\r\\nOK \"early\"\\r\\n\nC: LOGOUT\nS: <EOF>", "dialed ok"},
		{STARTTLS, greetingSieve + "C: <EOF>", "dialed tls"},
		{STARTTLS, clearSieve + "C: STARTTLS\nS: NO \"no\"\nC: <EOF>", "dialed tls"},
		{STARTTLS, clearSieve + "C: STARTTLS\nS- OK\\r\\n\"SASL\" \"PLAIN\"\\r\\nOK\\r\\n\nC: <EOF>", "dialed tls"},
		{STARTTLS, clearSieve + "C: STARTTLS\nS: \"SASL\" \"PLAIN\"\nS: OK\nC: <EOF>", "dialed tls"},
		{STARTTLS, resyncSieve + "S: OK (TAG \"STARTTLS-RESYNC-CAPA\")\nC: <EOF>", "dialed greeting"},
		{STARTTLS, resyncSieve + greetingSieve + "S: BYE\nC: <EOF>", "dialed greeting"},
		{STARTTLS, resyncSieve + greetingSieve + greetingSieve + greetingSieve + "C: <EOF>", "dialed greeting"},
		{STARTTLS, resyncSieve + greetingSieve + "S: NO\nC: CAPABILITY\nS: OK (TAG \"STARTTLS-RESYNC-CAPA\")\nC: <EOF>", "dialed greeting"},
	} {
		s, seen := startServer(t, proxy.Sieve, test.mode, test.script)
		_, err := s.LoginSieve(t.Context(), testLogin(account, password))
		checkRefusal(t, err, proxy.Unavailable)
		if r, ok := errors.AsType[*proxy.Refusal](err); !ok || r.Doubtful {
			t.Errorf("%.100s: %v is charged, and no password was sent", test.script, err)
		}
		if got := seen.String(); got != test.events {
			t.Errorf("%.100s: events: %s, want %s (%v)", test.script, got, test.events, err)
		}
	}
}

// The answers are those of Dovecot's Pigeonhole 0.5, Cyrus 3.6 and Stalwart. Cyrus 3.6 has the
// same answer to a wrong password and to any failure of saslauthd.
//
// Criterion: a refusal of a ManageSieve server is wrong only if the kind of server is known for its text, as RFC 5804 has no code for it; (TRYLATER) is temporary and costs nothing, the rest is temporary and charged.
func TestLoginSieveDistinguishesWrongFromUnavailable(t *testing.T) {
	for _, test := range []struct {
		kind    Kind
		answer  string
		reason  proxy.Reason
		charged bool
	}{
		{Dovecot, `S: NO "Authentication failed."`, proxy.Wrong, true},
		{Dovecot, `S: NO (TRYLATER) "Temporary authentication failure. [host:2026-11-29 00:00:00]"`, proxy.Unavailable, false},
		{Dovecot, `S: NO "Authorization failed"`, proxy.Suspended, true},
		{Dovecot, `S: NO "Your password has to be changed"`, proxy.Unavailable, true},
		{Dovecot, `S: NO (ENCRYPT-NEEDED) "Authentication failed."`, proxy.Unavailable, true},
		{Cyrus, `S: NO "authentication failure"`, proxy.Wrong, true},
		{Cyrus, `S: NO "account disabled"`, proxy.Suspended, true},
		{Cyrus, `S: NO "passphrase expired, has to be reset"`, proxy.Suspended, true},
		{Cyrus, `S: NO "Authentication Error"`, proxy.Unavailable, true},
		{Stalwart, `S: NO "Authentication failed"`, proxy.Wrong, true},
		{Other, `S: NO "Authentication failed."`, proxy.Unavailable, true},
		{Guessed, `S: NO "Authentication failed."`, proxy.Wrong, true}, // by IMPLEMENTATION
		{Guessed, `S: NO (AUTH-TOO-WEAK) "no"`, proxy.Unavailable, true},
		{Guessed, `S: NO (TRANSITION-NEEDED) "no"`, proxy.Unavailable, true},
		{Guessed, `S: NO (REFERRAL "sieve://inner.example") "s3cret pass"`, proxy.Unavailable, true},
		{Guessed, `S: OK (REFERRAL "sieve://inner.example") "Logged in, but"`, proxy.Unavailable, true},
		{Guessed, `S: BYE (REFERRAL "sieve://inner.example") "Try Remote."`, proxy.Unavailable, true},
		{Guessed, `S: BYE (TRYLATER) "going down"`, proxy.Unavailable, true},
		{Guessed, `S: "more"`, proxy.Unavailable, true},
		{Guessed, "S: 535 no\nS: <EOF>", proxy.Unavailable, true},
		{Guessed, "S- NO {200}\\r\\nx\nS: <EOF>", proxy.Unavailable, true},
		{Guessed, "S: <EOF>", proxy.Unavailable, true},
	} {
		s, _ := startServer(t, proxy.Sieve, None, greetingSieve+plainSieve+test.answer+logoutScript(test.answer, "LOGOUT"))
		s.Kind = test.kind
		_, err := s.LoginSieve(t.Context(), testLogin(account, password))
		checkRefusal(t, err, test.reason)
		r, _ := errors.AsType[*proxy.Refusal](err)
		if r == nil || (r.Doubtful || r.Reason == proxy.Wrong || r.Reason == proxy.Suspended) != test.charged {
			t.Errorf("%v, %s: %+v, want charged %v", test.kind, test.answer, r, test.charged)
		}
		if err != nil && strings.Contains(err.Error(), "inner.example") {
			t.Errorf("%s: the error names the server of the referral: %v", test.answer, err)
		}
	}
}

// Criterion: Cyrus' timsieved has the same answer to a wrong password and to a failure of saslauthd; what the backend's IMAP server says decides, and without one it is temporary.
func TestLoginSieveAsksIMAPWhatCyrusMeans(t *testing.T) {
	for _, test := range []struct {
		verdict error
		reason  proxy.Reason
	}{
		{proxy.NewRefusal(proxy.Wrong, nil), proxy.Wrong},
		{&proxy.Refusal{Reason: proxy.Unavailable, Doubtful: true}, proxy.Unavailable},
		{nil, proxy.Unavailable},
	} {
		s, _ := startServer(t, proxy.Sieve, None, greetingSieve+plainSieve+"S: NO \"Authentication Error\"\nC: LOGOUT\nS: <EOF>")
		s.Kind = Cyrus
		s.Verify = func(context.Context, *proxy.Login) error { return test.verdict }
		_, err := s.LoginSieve(t.Context(), testLogin(account, password))
		checkRefusal(t, err, test.reason)
	}
	s, _ := startServer(t, proxy.Sieve, None, greetingSieve+plainSieve+"S: NO (TRYLATER) \"x\"\nC: LOGOUT\nS: <EOF>")
	s.Kind = Cyrus
	s.Verify = func(context.Context, *proxy.Login) error {
		t.Error("IMAP was asked about an answer that says what it means")
		return nil
	}
	_, err := s.LoginSieve(t.Context(), testLogin(account, password))
	checkRefusal(t, err, proxy.Unavailable)
}

// Criterion: A token of more than 1,024 octets goes to a ManageSieve server as a literal with a plus, and the failure challenge is answered with a string.
func TestLoginSievePassesATokenOn(t *testing.T) {
	const tokens = "S: \"SASL\" \"PLAIN OAUTHBEARER\"\nS: OK\n"
	login := testLogin(account, strings.Repeat("t", 2000))
	login.Mechanism = "XOAUTH2"
	s, _ := startServer(t, proxy.Sieve, None, tokens+`
		C: AUTHENTICATE "OAUTHBEARER" {2716+}
		C: *
		S: OK`)
	conn, err := s.LoginSieve(t.Context(), login)
	if err != nil {
		t.Fatal(err)
	}
	_ = conn.Close()
	for _, challenge := range []string{`S: "eyJzdGF0dXMiOiI0MDEifQ=="`, "S: {24}\nS: eyJzdGF0dXMiOiI0MDEifQ=="} {
		login = testLogin(account, "token")
		login.Mechanism = "OAUTHBEARER"
		s, _ = startServer(t, proxy.Sieve, None, tokens+`
			C: AUTHENTICATE "OAUTHBEARER" "*"
			`+challenge+`
			C: "AQ=="
			S: NO "Authentication failed."
			C: LOGOUT
			S: <EOF>`)
		s.Kind = Dovecot
		_, err = s.LoginSieve(t.Context(), login)
		checkRefusal(t, err, proxy.Wrong)
		if r, _ := errors.AsType[*proxy.Refusal](err); r == nil || string(r.Challenge) != `{"status":"401"}` {
			t.Errorf("refusal is %+v, want the server's challenge", r)
		}
	}
	login = testLogin(account, "token")
	login.Mechanism = "XOAUTH2"
	s, _ = startServer(t, proxy.Sieve, None, greetingSieve+"C: LOGOUT\nS: <EOF>") // PLAIN carries no token
	_, err = s.LoginSieve(t.Context(), login)
	checkRefusal(t, err, proxy.Unavailable)
}

// Criterion: Dovecot's ManageSieve learns the client's address and the session id by XCLIENT, before the credentials; a server that refuses it gets none.
func TestLoginSieveSendsTheClientsIdentity(t *testing.T) {
	for _, test := range []struct{ name, offered, addr, command string }{
		{"old", `"XCLIENT"`, "192.0.2.7:4711", "XCLIENT ADDR=192.0.2.7 PORT=4711 SESSION=abc TTL=5"},
		{"IPv6", `"XCLIENT"`, "[2001:db8::7]:4711", "XCLIENT ADDR=2001:db8::7 PORT=4711 SESSION=abc TTL=5"},
		{"named", `"XCLIENT" "ADDR PORT FORWARD"`, "192.0.2.7:4711", "XCLIENT ADDR=192.0.2.7 PORT=4711"},
	} {
		t.Run(test.name, func(t *testing.T) {
			identified := []bool{}
			login := testLogin(account, password)
			login.Client.ID, login.Client.Addr = "abc", netip.MustParseAddrPort(test.addr)
			greeting := capabilitiesSieve + "S: " + test.offered + "\nS: OK\n"
			s, _ := startServer(t, proxy.Sieve, None,
				greeting+"C: "+test.command+"\nS: OK \"Updated\"\n"+plainSieve+"S: OK",
				greeting+"C: "+test.command+"\nS: NO \"You are not from trusted IP\"\nC: <EOF>",
				greetingSieve+plainSieve+"S: OK")
			s.Identity, s.Identified = XCLIENT, func(ok bool) { identified = append(identified, ok) }
			conn, err := s.LoginSieve(t.Context(), login)
			if err != nil {
				t.Fatal(err)
			}
			_ = conn.Close()
			_, err = s.LoginSieve(t.Context(), login)
			checkRefusal(t, err, proxy.Unavailable)
			if conn, err = s.LoginSieve(t.Context(), login); err != nil {
				t.Fatal(err)
			}
			_ = conn.Close()
			if !slices.Equal(identified, []bool{true, true, false}) {
				t.Errorf("identified: %v", identified)
			}
		})
	}
}

func TestLoginSieveGivesASilentServerItsTimeAndNoMore(t *testing.T) {
	for _, script := range []string{"C: <EOF>", resyncSieve + greetingSieve + "C: <EOF>"} {
		mode := None
		if script != "C: <EOF>" {
			mode = STARTTLS
		}
		s, _ := startServer(t, proxy.Sieve, mode, script)
		s.ReplyTimeout = 200 * time.Millisecond
		begun := time.Now()
		_, err := s.LoginSieve(t.Context(), testLogin(account, password))
		checkRefusal(t, err, proxy.Unavailable)
		if took := time.Since(begun); took < s.ReplyTimeout || took > 5*time.Second {
			t.Errorf("took %v", took)
		}
	}
}

func TestProbeSieve(t *testing.T) {
	s, _ := startServer(t, proxy.Sieve, None, greetingSieve+"C: LOGOUT\nS: <EOF>")
	r, err := s.Probe(t.Context())
	if err != nil || r.Greeting != "Dovecot Pigeonhole ready." || !slices.Equal(r.Mechanisms, []string{"PLAIN", "LOGIN"}) || len(r.Capabilities) != 4 || r.Kind != Dovecot {
		t.Errorf("report is %+v, %v", r, err)
	}
	s, _ = startServer(t, proxy.Sieve, None, "S: \"IMPLEMENTATION\" \"Cyrus timsieved v3.6.1\"\nS: \"SASL\" \"\"\nS: \"STARTTLS\"\nS: OK\nC: LOGOUT\nS: <EOF>")
	if _, err = s.Probe(t.Context()); err == nil || !strings.Contains(err.Error(), "no SASL mechanism") {
		t.Errorf("Probe = %v, want that nobody can log in", err)
	}
	for speaks, greeting := range map[string]string{"IMAP": "* OK IMAP4rev1 ready", "POP3": "+OK ready", "SMTP": "220 mx ESMTP"} {
		s, _ = startServer(t, proxy.Sieve, None, "S: "+greeting+"\nC: <EOF>")
		_, err = s.Probe(t.Context())
		if fault, ok := errors.AsType[*ConnectError](err); !ok || fault.Fault != OtherProtocol || fault.Speaks != speaks {
			t.Errorf("Probe = %v, want that the server speaks %s", err, speaks)
		}
	}
}
