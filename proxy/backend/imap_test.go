package backend

import (
	"context"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"postern/proxy"
)

// Base64 of NUL alice@example.org NUL s3cret pass.
const plain = "AGFsaWNlQGV4YW1wbGUub3JnAHMzY3JldCBwYXNz"

func TestLoginIMAPInEveryWayAServerOffers(t *testing.T) {
	for _, test := range []struct {
		name, account, password, script string
	}{
		{"AUTHENTICATE with initial response", account, password, `
			S: * OK [CAPABILITY IMAP4rev1 SASL-IR AUTH=PLAIN] ready
			C: P1 AUTHENTICATE PLAIN ` + plain + `
			S: P1 OK [CAPABILITY IMAP4rev1 IDLE] in`},
		{"AUTHENTICATE with continuation", account, password, `
			S: * OK [CAPABILITY IMAP4rev1 auth=plain] ready
			C: P1 AUTHENTICATE PLAIN
			S- + \r\n
			C: ` + plain + `
			S: P1 OK [CAPABILITY IMAP4rev1 IDLE] in`},
		{"a continuation without its space", account, password, `
			S: * OK [CAPABILITY IMAP4rev1 AUTH=PLAIN] ready
			C: P1 AUTHENTICATE PLAIN
			S: +
			C: ` + plain + `
			S: P1 OK [CAPABILITY IMAP4rev1 IDLE] in`},
		{"capabilities asked for", account, password, `
			S: * OK ready
			C: P1 CAPABILITY
			S: * CAPABILITY IMAP4rev1 AUTH=PLAIN SASL-IR
			S: P1 OK done
			C: P2 AUTHENTICATE PLAIN ` + plain + `
			S: P2 OK [CAPABILITY IMAP4rev1 IDLE] in`},
		{"LOGIN with quoted strings", account, password, `
			S: * OK [CAPABILITY IMAP4rev1] ready
			C: P1 LOGIN "alice@example.org" "s3cret pass"
			S: P1 OK [CAPABILITY IMAP4rev1 IDLE] in`},
		{"LOGIN with literals", account, `"\`, `
			S: * OK [CAPABILITY IMAP4rev1] ready
			C: P1 LOGIN {17}
			S: + go on
			C: alice@example.org {2}
			S: +
			C: "\\
			S: P1 OK [CAPABILITY IMAP4rev1 IDLE] in`},
		{"LOGIN with literals that do not wait", account, "pässword", `
			S: * OK [CAPABILITY IMAP4rev1 LITERAL+] ready
			C: P1 LOGIN {17+}
			C: alice@example.org {9+}
			C: pässword
			S: P1 OK [CAPABILITY IMAP4rev1 IDLE] in`},
		{"LITERAL- with more than its 4096 octets", account, strings.Repeat("ä", 2049), `
			S: * OK [CAPABILITY IMAP4rev1 LITERAL-] ready
			C: P1 LOGIN {17}
			S: +
			C: alice@example.org {4098}
			S: +
			C: ä*ä
			S: P1 OK [CAPABILITY IMAP4rev1 IDLE] in`},
		{"no password at all", account, "", `
			S: * OK [CAPABILITY IMAP4rev1] ready
			C: P1 LOGIN "alice@example.org" ""
			S: P1 OK [CAPABILITY IMAP4rev1 IDLE] in`},
	} {
		t.Run(test.name, func(t *testing.T) {
			s, seen := startServer(t, proxy.IMAP, None, test.script)
			l := testLogin(test.account, test.password)
			conn, capabilities, err := s.LoginIMAP(t.Context(), l)
			if err != nil {
				t.Fatal(err)
			}
			_ = conn.Close()
			if want := "IMAP4rev1 IDLE"; capabilities != want {
				t.Errorf("capabilities = %q, want %q", capabilities, want)
			}
			if got := string(l.Secret.Reveal()); got != test.password {
				t.Errorf("secret = %q afterwards, want %q", got, test.password)
			}
			if got, want := seen.String(), "dialed ok, login true"; got != want {
				t.Errorf("events: %s, want %s", got, want)
			}
		})
	}
}

// Criterion: the server's answers to a login come in every shape observed, and
// the client gets its capabilities.
func TestLoginIMAPFindsCapabilitiesWhereverTheyAre(t *testing.T) {
	const greeting = `
		S: * OK [CAPABILITY IMAP4rev1 SASL-IR AUTH=PLAIN] ready
		C: P1 AUTHENTICATE PLAIN *
	`
	for _, test := range []struct{ script, want string }{
		{`S: * CAPABILITY IMAP4rev1 IDLE SORT
		S: P1 OK in`, "IMAP4rev1 IDLE SORT"},
		{`S: * CAPABILITY IMAP4rev1 IDLE SORT
		S: * OK note
		S: P1 OK in`, "IMAP4rev1 IDLE SORT"},
		{`S: P1 OK [CAPABILITY IMAP4rev1 IDLE] in`, "IMAP4rev1 IDLE"},
		{`S: * CAPABILITY IMAP4rev1
		S: P1 OK [CAPABILITY IMAP4rev1 SORT] in`, "IMAP4rev1 SORT"},
		{`S: P1 OK in
		C: P2 CAPABILITY
		S: * CAPABILITY IMAP4rev1 MOVE
		S: P2 OK done`, "IMAP4rev1 MOVE"},
		{`S: P1 OK [CAPABILITY IMAP4rev1 UNAUTHENTICATE unauthenticate ID] in`, "IMAP4rev1 ID"},
		{`S: P1 OK [CAPABILITY IMAP4rev1 COMPRESS=DEFLATE UNAUTHENTICATE ID] in`, "IMAP4rev1 ID"},
		{`S: P1 OK [CAPABILITY IMAP4rev1 COMPRESS=DEFLATE] in`, "IMAP4rev1 COMPRESS=DEFLATE"},
		{`S: P1 OK [CAPABILITY IMAP4rev1 LOGINDISABLED] in`, "IMAP4rev1 LOGINDISABLED"},
		{`S: * CAPABILITY IMAP4rev1 A]B X[ ID
		S: P1 OK in`, "IMAP4rev1 ID"},
	} {
		s, _ := startServer(t, proxy.IMAP, None, greeting+test.script)
		conn, capabilities, err := s.LoginIMAP(t.Context(), testLogin(account, password))
		if err != nil {
			t.Errorf("%s: %v", test.script, err)
			continue
		}
		_ = conn.Close()
		if capabilities != test.want {
			t.Errorf("%s: capabilities = %q, want %q", test.script, capabilities, test.want)
		}
	}
}

// Criterion: a password is called wrong only if the server said so.
func TestLoginIMAPDistinguishesWrongFromUnavailable(t *testing.T) {
	const greeting = `
		S: * OK [CAPABILITY IMAP4rev1 SASL-IR AUTH=PLAIN] ready
		C: P1 AUTHENTICATE PLAIN *
	`
	for answer, want := range map[string]proxy.Reason{
		`S: P1 NO s3cret pass is not his`:             proxy.Wrong,
		`S: P1 NO [AUTHENTICATIONFAILED] s3cret pass`: proxy.Wrong,
		`S: P1 NO [authenticationfailed]`:             proxy.Wrong,
		`S: P1 NO [AUTHORIZATIONFAILED] x`:            proxy.Suspended,
		`S: P1 NO [EXPIRED] x`:                        proxy.Suspended,
		`S: P1 NO [ALERT] x`:                          proxy.Wrong,
		`S: P1 NO [UNAVAILABLE] db down`:              proxy.Unavailable,
		`S: P1 NO [LIMIT] too many`:                   proxy.TooMany,
		`S: P1 NO [INUSE] x`:                          proxy.InUse,
		`S: P1 NO [OVERQUOTA] x`:                      proxy.MailboxFull,
		`S: P1 NO [SERVERBUG] x`:                      proxy.Unavailable,
		`S: P1 NO [CONTACTADMIN] x`:                   proxy.Suspended,
		`S: P1 NO [PRIVACYREQUIRED] x`:                proxy.Unavailable,
		`S: P1 NO [REFERRAL imap://other/] x`:         proxy.Unavailable,
		`S: P1 BAD s3cret pass?`:                      proxy.Unavailable,
		`S: * BYE overloaded`:                         proxy.Unavailable,
		`S: <EOF>`:                                    proxy.Unavailable,
		`S: P9 NO [AUTHENTICATIONFAILED] x`:           proxy.Unavailable,
		`S: +`:                                        proxy.Unavailable,
	} {
		s, seen := startServer(t, proxy.IMAP, None, greeting+answer+logoutScript(answer, "P2 LOGOUT"))
		_, _, err := s.LoginIMAP(t.Context(), testLogin(account, password))
		checkRefusal(t, err, want)
		if got, want := seen.String(), "dialed ok, login false"; got != want {
			t.Errorf("%s: events: %s, want %s", answer, got, want)
		}
	}
}

// Criterion: a server that is not as it has to be gets no credentials.
func TestLoginIMAPSendsNothingToABadServer(t *testing.T) {
	endless := strings.Repeat("x", 9000)
	for _, test := range []struct {
		mode           Mode
		script, events string
	}{
		{None, `S: * PREAUTH [CAPABILITY IMAP4rev1] as root
			C: <EOF>`, "dialed greeting"},
		{None, `S: * BYE overloaded
			C: <EOF>`, "dialed greeting"},
		{None, `S: <EOF>
			C: <EOF>`, "dialed greeting"},
		{None, `S: 220 mx.example ESMTP
			C: <EOF>`, "dialed greeting"},
		{None, `S- * OK bare\n
			C: <EOF>`, "dialed greeting"},
		{None, `S- * OK ` + endless, "dialed greeting"},
		{None, `S: * OK [CAPABILITY IMAP4rev1 LOGINDISABLED AUTH=PLAIN] ready
			C: P1 LOGOUT
			S: <EOF>`, "dialed ok"},
		{None, `S: * OK ready
			C: P1 CAPABILITY
			S: P1 BAD what
			C: <EOF>`, "dialed greeting"},
		{None, `S: * OK ready
			C: P1 CAPABILITY
			S: P1 OK nothing to tell
			C: <EOF>`, "dialed greeting"},
		{None, `S: * OK ready
			C: P1 CAPABILITY
			S: * LIST {4294967295}
			C: <EOF>`, "dialed greeting"},
		{None, `S: * OK ready
			C: P1 CAPABILITY
			S- ` + strings.Repeat(`* OK still busy\r\n`, 200), "dialed greeting"},
		{STARTTLS, `S: * OK [CAPABILITY IMAP4rev1 AUTH=PLAIN SASL-IR] ready
			C: <EOF>`, "dialed tls"},
		{STARTTLS, `S: * OK [CAPABILITY IMAP4rev1 STARTTLS] ready
			C: P1 STARTTLS
			S: P1 NO not today
			C: <EOF>`, "dialed tls"},
		{STARTTLS, `S: * OK [CAPABILITY IMAP4rev1 STARTTLS] ready
			C: P1 STARTTLS
			S- P1 OK begin\r\n* CAPABILITY IMAP4rev1 AUTH=PLAIN\r\n
			C: <EOF>`, "dialed tls"},
		{STARTTLS, `S: * PREAUTH [CAPABILITY IMAP4rev1 STARTTLS] ready
			C: <EOF>`, "dialed greeting"},
		{STARTTLS, `S: * OK [CAPABILITY IMAP4rev1 STARTTLS] ready
			C: P1 STARTTLS
			S: P1 OK begin TLS
			C: P2 CAPABILITY
			S: * CAPABILITY IMAP4rev1 LOGINDISABLED
			S: P2 OK done
			C: P3 LOGOUT
			S: <EOF>`, "dialed ok"},
	} {
		s, seen := startServer(t, proxy.IMAP, test.mode, test.script)
		_, _, err := s.LoginIMAP(t.Context(), testLogin(account, password))
		checkRefusal(t, err, proxy.Unavailable)
		if got := seen.String(); got != test.events {
			t.Errorf("%.200s: events: %s, want %s (%v)", test.script, got, test.events, err)
		}
	}
}

func TestLoginIMAPForgetsResponsesFromBeforeTLS(t *testing.T) {
	s, seen := startServer(t, proxy.IMAP, STARTTLS, `
		S: * OK [CAPABILITY IMAP4rev1 STARTTLS LOGINDISABLED] ready
		C: P1 STARTTLS
		S: P1 OK begin TLS
		C: P2 CAPABILITY
		S: * CAPABILITY IMAP4rev1 AUTH=PLAIN SASL-IR
		S: P2 OK done
		C: P3 AUTHENTICATE PLAIN `+plain+`
		S: P3 OK [CAPABILITY IMAP4rev1] in
	`)
	conn, _, err := s.LoginIMAP(t.Context(), testLogin(account, password))
	if err != nil {
		t.Fatal(err)
	}
	_ = conn.Close()
	if got, want := seen.String(), "dialed ok, login true"; got != want {
		t.Errorf("events: %s, want %s", got, want)
	}
}

// LOGINDISABLED is about the command LOGIN.
func TestLoginIMAPAuthenticatesWhereTheCommandIsDisabled(t *testing.T) {
	s, _ := startServer(t, proxy.IMAP, Implicit, `
		S: * OK [CAPABILITY IMAP4rev1 SASL-IR AUTH=PLAIN LOGINDISABLED] ready
		C: P1 AUTHENTICATE PLAIN `+plain+`
		S: P1 OK [CAPABILITY IMAP4rev1] in`)
	conn, _, err := s.LoginIMAP(t.Context(), testLogin(account, password))
	if err != nil {
		t.Fatal(err)
	}
	_ = conn.Close()
}

func TestLoginIMAPWaitsForALateGreeting(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	early := make(chan bool, 1)
	go func() {
		conn, err := ln.Accept()
		if err != nil {
			return
		}
		_ = conn.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		n, _ := conn.Read(make([]byte, 1))
		early <- n > 0
		_ = conn.Close()
	}()
	s := &Server{Name: "main", Protocol: proxy.IMAP, Address: ln.Addr().String(), TLS: None}
	_, _, err = s.LoginIMAP(t.Context(), testLogin(account, password))
	checkRefusal(t, err, proxy.Unavailable)
	if <-early {
		t.Error("something was sent before the greeting")
	}
}

func TestLoginIMAPTrustsOnlyTheRightCertificate(t *testing.T) {
	for _, mode := range []Mode{Implicit, STARTTLS} {
		script := ""
		if mode == STARTTLS {
			script = `
				S: * OK [CAPABILITY IMAP4rev1 STARTTLS] ready
				C: P1 STARTTLS
				S: P1 OK begin TLS`
		}
		s, seen := startServer(t, proxy.IMAP, mode, script)
		s.Config.ServerName = "elsewhere.example"
		_, _, err := s.LoginIMAP(t.Context(), testLogin(account, password))
		checkRefusal(t, err, proxy.Unavailable)
		if _, ok := errors.AsType[x509.HostnameError](err); !ok {
			t.Errorf("%v: %v, want one about the name", mode, err)
		}
		if got, want := seen.String(), "dialed tls"; got != want {
			t.Errorf("%v: events: %s, want %s (%v)", mode, got, want, err)
		}

		s, _ = startServer(t, proxy.IMAP, mode, script)
		s.Config.Time = func() time.Time { return time.Now().AddDate(1, 0, 0) }
		_, _, err = s.LoginIMAP(t.Context(), testLogin(account, password))
		checkRefusal(t, err, proxy.Unavailable)
		if invalid, ok := errors.AsType[x509.CertificateInvalidError](err); !ok || invalid.Reason != x509.Expired {
			t.Errorf("%v: %v, want one about the time", mode, err)
		}
	}
}

func TestLoginIMAPGivesASilentServerItsTimeAndNoMore(t *testing.T) {
	s, seen := startServer(t, proxy.IMAP, None, `C: <EOF>`)
	s.ReplyTimeout = 20 * time.Millisecond
	_, _, err := s.LoginIMAP(t.Context(), testLogin(account, password))
	checkRefusal(t, err, proxy.Unavailable)
	if got, want := seen.String(), "dialed greeting"; got != want {
		t.Errorf("events: %s, want %s", got, want)
	}
}

func TestLoginIMAPEndsWithItsContext(t *testing.T) {
	s, _ := startServer(t, proxy.IMAP, None, `
		S: * OK [CAPABILITY IMAP4rev1] ready
		C: P1 LOGIN *
		C: <EOF>`)
	s.ReplyTimeout = time.Hour
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, _, err := s.LoginIMAP(ctx, testLogin(account, password))
	checkRefusal(t, err, proxy.Unavailable)
}

func TestLoginIMAPNamesAServerThatIsAway(t *testing.T) {
	s, seen := startServer(t, proxy.IMAP, None)
	s.Address = "127.0.0.1:1" // tcpmux: nobody listens
	_, _, err := s.LoginIMAP(t.Context(), testLogin(account, password))
	checkRefusal(t, err, proxy.Unavailable)
	if got, want := seen.String(), "dialed refused"; got != want {
		t.Errorf("events: %s, want %s", got, want)
	}
}

// Criterion: CR, LF or NUL in credentials reaches no server.
func TestLoginIMAPRefusesWhatWouldEndALine(t *testing.T) {
	for _, c := range []string{"\x00", "\r", "\n"} {
		s, seen := startServer(t, proxy.IMAP, None)
		_, _, err := s.LoginIMAP(t.Context(), testLogin("alice"+c, password))
		checkRefusal(t, err, proxy.Malformed)
		_, _, err = s.LoginIMAP(t.Context(), testLogin(account, "s3cret"+c))
		checkRefusal(t, err, proxy.Malformed)
		if got := seen.String(); got != "" {
			t.Errorf("events: %s, want none", got)
		}
	}
}

func TestIMAPSessionOpensWithTheServersCapabilities(t *testing.T) {
	s, _ := startServer(t, proxy.IMAP, Implicit, `
		S: * OK [CAPABILITY IMAP4rev1 AUTH=PLAIN SASL-IR] ready
		C: P1 AUTHENTICATE PLAIN *
		S- P1 OK [CAPABILITY IMAP4rev1 IDLE] in\r\n* OK [ALERT] quota\r\n
	`)
	l := testLogin(account, password)
	session, err := (&IMAP{Server: s}).Login(t.Context(), l)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = session.Close() }()
	if l.Secret.Reveal() != nil {
		t.Error("the secret is still there")
	}
	welcome, err := session.Open(t.Context())
	if want := "[CAPABILITY IMAP4rev1 IDLE] Logged in"; welcome != want || err != nil {
		t.Errorf("Open = %q, %v, want %q", welcome, err, want)
	}
	if got := session.(proxy.Reporter).Backend(); got != "main" {
		t.Errorf("Backend = %q, want main", got)
	}
}

func TestConnGivesWhatWasReadAheadFirst(t *testing.T) {
	s, _ := startServer(t, proxy.IMAP, None, `
		S: * OK [CAPABILITY IMAP4rev1 AUTH=PLAIN SASL-IR] ready
		C: P1 AUTHENTICATE PLAIN *
		S- P1 OK [CAPABILITY IMAP4rev1 IDLE] in\r\n* OK [ALERT] quota\r\n
		C: <EOF>
		S: * BYE
		S: <EOF>
	`)
	conn, _, err := s.LoginIMAP(t.Context(), testLogin(account, password))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	if err := conn.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	rest, err := io.ReadAll(conn)
	if want := "* OK [ALERT] quota\r\n* BYE\r\n"; string(rest) != want || err != nil {
		t.Errorf("rest = %q, %v, want %q", rest, err, want)
	}
}
