package backend

import (
	"errors"
	"strings"
	"testing"
	"time"

	"postern/proxy"
)

// The beginnings of a dialogue with an old server: without CAPA, as popa3d, and with it.
const (
	withoutCAPA = "S: +OK\nC: CAPA\nS: -ERR\n"
	withCAPA    = "S: +OK ready <1.2@old>\nC: CAPA\nS- +OK\\r\\nTOP\\r\\nUSER\\r\\nSASL LOGIN plain\\r\\n.\\r\\n\n"
	withTokens  = "S: +OK ready\nC: CAPA\nS- +OK\\r\\nUSER\\r\\nSASL XOAUTH2\\r\\n.\\r\\n\n"
)

func TestLoginPOP3InEveryWayAServerOffers(t *testing.T) {
	for _, test := range []struct {
		name, account, password, script string
		pipelining                      bool
	}{
		{name: "USER and PASS, spaces in the password", account: account, password: password, script: withoutCAPA + `
			C: USER alice@example.org
			S: +OK
			C: PASS s3cret pass
			S: +OK`},
		{name: "a space at each end, and 8 bits", account: account, password: " pä ", script: withoutCAPA + `
			C: USER alice@example.org
			S: +OK
			C- PASS  p\xc3\xa4 \r\n
			S: +OK`},
		{name: "AUTH PLAIN for a password with a space", account: account, password: password, script: withCAPA + `
			C: AUTH PLAIN
			S: +
			C: ` + plain + `
			S: +OK in`},
		{name: "USER and PASS where AUTH is no better", account: "alice", password: "s3cret", script: withCAPA + `
			C: USER alice
			S: +OK
			C: PASS s3cret
			S: +OK in`},
		{name: "USER and PASS where CAPA forgets them", account: account, password: password, script: `
			S: +OK ready
			C: CAPA
			S- +OK\r\nTOP\r\nUIDL\r\n.\r\n
			C: USER alice@example.org
			S: +OK
			C: PASS s3cret pass
			S: +OK`},
		{name: "AUTH PLAIN where USER is not offered", account: account, password: "s3cret", script: `
			S: +OK ready
			C: CAPA
			S- +OK\r\nSASL PLAIN\r\nPIPELINING\r\n.\r\n
			C: AUTH PLAIN
			S- + \r\n
			C: AGFsaWNlQGV4YW1wbGUub3JnAHMzY3JldA==
			S: +OK in`, pipelining: true},
	} {
		t.Run(test.name, func(t *testing.T) {
			s, seen := startServer(t, proxy.POP3, None, test.script)
			conn, err := s.LoginPOP3(t.Context(), testLogin(test.account, test.password))
			if err != nil {
				t.Fatal(err)
			}
			if conn.pipelining != test.pipelining {
				t.Errorf("pipelining is %v, want %v", conn.pipelining, test.pipelining)
			}
			_ = conn.Close()
			if got, want := seen.String(), "dialed ok, login true"; got != want {
				t.Errorf("events: %s, want %s", got, want)
			}
		})
	}
}

func TestLoginPOP3BeginsTLS(t *testing.T) {
	for _, capa := range []string{"S: -ERR", "S- +OK\\r\\nSTLS\\r\\n.\\r\\n"} { // servers without CAPA may have STLS
		s, _ := startServer(t, proxy.POP3, STARTTLS, "S: +OK\nC: CAPA\n"+capa+`
			C: STLS
			S: +OK begin TLS
			C: CAPA
			S- +OK\r\nUSER\r\n.\r\n
			C: USER alice@example.org
			S: +OK
			C: PASS s3cret pass
			S: +OK`)
		conn, err := s.LoginPOP3(t.Context(), testLogin(account, password))
		if err != nil {
			t.Fatal(err)
		}
		_ = conn.Close()
	}
}

// Criterion: an old POP3 server that speaks another protocol, refuses STLS, or has octets
// injected behind its answer to STLS gets no password.
func TestLoginPOP3SendsNothingToABadServer(t *testing.T) {
	for _, test := range []struct {
		mode           Mode
		script, events string
	}{
		{None, "S: -ERR [SYS/TEMP] too many connections\nC: <EOF>", "dialed greeting"},
		{None, "S: <EOF>\nC: <EOF>", "dialed greeting"},
		{None, "S- +OK re\nS: <EOF>\nC: <EOF>", "dialed greeting"},
		{None, "S: * OK IMAP4rev1\nC: <EOF>", "dialed greeting"},
		{None, "S: 220 mx ESMTP\nC: <EOF>", "dialed greeting"},
		{None, "S- +OK bare\\n\nC: <EOF>", "dialed greeting"},
		{None, "S: + go on\nC: <EOF>", "dialed greeting"},
		{None, "S- +OK " + strings.Repeat("x", 9000), "dialed greeting"},
		{None, "S- +OK\\r\\n-ERR early\\r\\n\nC: <EOF>", "dialed greeting"},
		{None, "S: +OK\nC: CAPA\nS- +OK\\r\\nTOP\\r\\n\nS: <EOF>\nC: <EOF>", "dialed greeting"},
		{None, "S: +OK\nC: CAPA\nS: +OK\nS- " + strings.Repeat(`X\r\n`, 200), "dialed greeting"},
		{None, "S: +OK\nC: CAPA\nS- +OK\\r\\nTOP\\r\\nSTLS\\r\\n.\\r\\n\nC: QUIT\nS: <EOF>", "dialed ok"}, // neither USER nor SASL before TLS
		{STARTTLS, withCAPA + "C: <EOF>", "dialed tls"},
		{STARTTLS, withoutCAPA + "C: STLS\nS: -ERR unknown\nC: <EOF>", "dialed tls"},
		{STARTTLS, withoutCAPA + "C: STLS\nS- +OK\\r\\n+OK\\r\\n-ERR\\r\\n\nC: <EOF>", "dialed tls"},
	} {
		s, seen := startServer(t, proxy.POP3, test.mode, test.script)
		_, err := s.LoginPOP3(t.Context(), testLogin(account, password))
		checkRefusal(t, err, proxy.Unavailable)
		if r, ok := errors.AsType[*proxy.Refusal](err); !ok || r.Doubtful {
			t.Errorf("%.100s: %v is charged, and no password was sent", test.script, err)
		}
		if got := seen.String(); got != test.events {
			t.Errorf("%.100s: events: %s, want %s (%v)", test.script, got, test.events, err)
		}
	}
}

// The answers without a code are those of popa3d 1.0, solid-pop3d 0.15, Courier 1.0; those
// with one of Cyrus 3.6, Dovecot 2.3 and mailutils 3.15.
//
// Criterion: a refusal of an old POP3 server is wrong only if its code says so, or a text
// that the kind of server is known for; an unknown one is temporary, and charged.
func TestLoginPOP3DistinguishesWrongFromUnavailable(t *testing.T) {
	const ask = withoutCAPA + "C: USER alice@example.org\nS: +OK\nC: PASS s3cret pass\n"
	for _, test := range []struct {
		kind    Kind
		answer  string
		reason  proxy.Reason
		charged bool
	}{
		{Guessed, "S: -ERR [AUTH] Authentication failed.", proxy.Wrong, true},
		{Guessed, "S: -ERR [AUTH] Invalid login", proxy.Wrong, true},
		{Guessed, "S: -ERR [AUTH] Bad login", proxy.Wrong, true},
		{Guessed, "S: -ERR [SYS/TEMP] Temporary authentication failure.", proxy.Unavailable, false},
		{Guessed, "S: -ERR [SYS/PERM] Account disabled", proxy.Suspended, true},
		{Guessed, "S: -ERR [IN-USE] Mailbox is locked by POP server", proxy.InUse, false},
		{Guessed, "S: -ERR [LOGIN-DELAY] wait", proxy.TooSoon, true},
		{Courier, "S: -ERR Login failed.", proxy.Wrong, true},
		{Courier, "S: -ERR Temporary problem, please try again later", proxy.Unavailable, true},
		{Popa3d, "S: -ERR Authentication failed (bad password?)", proxy.Wrong, true},
		{Popa3d, "S: -ERR", proxy.Unavailable, true},
		{SolidPOP3, "S: -ERR authentication failed", proxy.Wrong, true},
		{Qpopper, `S: -ERR Password supplied for "alice@example.org" is incorrect.`, proxy.Wrong, true},
		{Qpopper, "S: -ERR maildrop lock busy!  Is another session active?", proxy.InUse, false},
		{Other, "S: -ERR Login failed.", proxy.Unavailable, true},
		{Guessed, "S: -ERR authentication failed: s3cret pass", proxy.Unavailable, true},
		{Guessed, "S: -ERR [NEW-CODE] what", proxy.Unavailable, true},
		{Guessed, "S: + more", proxy.Unavailable, true},
		{Guessed, "S: 535 no", proxy.Unavailable, true},
		{Guessed, "S- -ERR [AU\nS: <EOF>", proxy.Unavailable, true},
		{Guessed, "S: <EOF>", proxy.Unavailable, true},
	} {
		s, _ := startServer(t, proxy.POP3, None, ask+test.answer+logoutScript(test.answer, "QUIT"))
		s.Kind = test.kind
		_, err := s.LoginPOP3(t.Context(), testLogin(account, password))
		checkRefusal(t, err, test.reason)
		r, _ := errors.AsType[*proxy.Refusal](err)
		if r == nil || (r.Doubtful || r.Reason == proxy.Wrong || r.Reason == proxy.Suspended) != test.charged {
			t.Errorf("%v, %s: %+v, want charged %v", test.kind, test.answer, r, test.charged)
		}
	}
}

// The answer to USER is judged, too: some servers refuse there.
func TestLoginPOP3JudgesTheAnswerToUser(t *testing.T) {
	s, _ := startServer(t, proxy.POP3, None, withoutCAPA+"C: USER alice@example.org\nS: -ERR [AUTH] no such mailbox\nC: QUIT\nS: <EOF>")
	_, err := s.LoginPOP3(t.Context(), testLogin(account, password))
	checkRefusal(t, err, proxy.Wrong)
}

// What comes behind +OK of the login would be the response to the client's first command.
func TestLoginPOP3TakesNothingBehindItsAnswer(t *testing.T) {
	s, _ := startServer(t, proxy.POP3, None, withoutCAPA+"C: USER alice@example.org\nS: +OK\nC: PASS s3cret pass\nS- +OK\\r\\n+OK 0 0\\r\\n\nC: <EOF>")
	_, err := s.LoginPOP3(t.Context(), testLogin(account, password))
	checkRefusal(t, err, proxy.Unavailable)
}

func TestLoginPOP3PassesATokenOn(t *testing.T) {
	login := testLogin(account, "token")
	login.Mechanism = "XOAUTH2"
	s, _ := startServer(t, proxy.POP3, None, withTokens+`
		C: AUTH XOAUTH2
		S: +
		C: *
		S: + eyJzdGF0dXMiOiI0MDEifQ==
		C: 
		S: -ERR [AUTH] no
		C: QUIT
		S: <EOF>`)
	_, err := s.LoginPOP3(t.Context(), login)
	checkRefusal(t, err, proxy.Wrong)
	if r, _ := errors.AsType[*proxy.Refusal](err); r == nil || string(r.Challenge) != `{"status":"401"}` {
		t.Errorf("refusal is %+v, want the server's challenge", r)
	}
	login = testLogin(account, "token")
	login.Mechanism = "XOAUTH2"
	s, _ = startServer(t, proxy.POP3, None, withoutCAPA+"C: QUIT\nS: <EOF>") // USER and PASS carry no token
	_, err = s.LoginPOP3(t.Context(), login)
	checkRefusal(t, err, proxy.Unavailable)
}

func TestLoginPOP3GivesASilentServerItsTimeAndNoMore(t *testing.T) {
	s, _ := startServer(t, proxy.POP3, None, "C: <EOF>")
	s.ReplyTimeout = 100 * time.Millisecond
	begun := time.Now()
	_, err := s.LoginPOP3(t.Context(), testLogin(account, password))
	checkRefusal(t, err, proxy.Unavailable)
	if took := time.Since(begun); took < s.ReplyTimeout || took > 5*time.Second {
		t.Errorf("took %v", took)
	}
}

func TestProbePOP3(t *testing.T) {
	s, _ := startServer(t, proxy.POP3, None, withCAPA+"C: QUIT\nS: <EOF>")
	r, err := s.Probe(t.Context())
	if err != nil || r.Greeting != "ready <1.2@old>" || strings.Join(r.Mechanisms, " ") != "LOGIN PLAIN" || len(r.Capabilities) != 3 || r.Kind != Other {
		t.Errorf("report is %+v, %v", r, err)
	}
	s, _ = startServer(t, proxy.POP3, None, "S: +OK Hello there.\nC: CAPA\nS- +OK\\r\\nUSER\\r\\nIMPLEMENTATION Courier Mail Server\\r\\n.\\r\\n\nC: QUIT\nS: <EOF>")
	if r, err = s.Probe(t.Context()); err != nil || r.Kind != Courier {
		t.Errorf("report is %+v, %v, want the kind Courier", r, err)
	}
	s, _ = startServer(t, proxy.POP3, None, "S: +OK\nC: CAPA\nS- +OK\\r\\nTOP\\r\\nSTLS\\r\\n.\\r\\n\nC: QUIT\nS: <EOF>")
	if _, err = s.Probe(t.Context()); err == nil || !strings.Contains(err.Error(), "neither USER nor AUTH") {
		t.Errorf("Probe = %v, want that nobody can log in", err)
	}
	s, _ = startServer(t, proxy.POP3, None, "S: * OK IMAP4rev1 ready\nC: <EOF>")
	_, err = s.Probe(t.Context())
	if fault, ok := errors.AsType[*ConnectError](err); !ok || fault.Fault != OtherProtocol || fault.Speaks != "IMAP" {
		t.Errorf("Probe = %v, want another protocol", err)
	}
}
