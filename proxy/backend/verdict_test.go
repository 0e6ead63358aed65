package backend

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"postern/configs"
	"postern/proxy"
	"postern/proxy/guard"
	"postern/proxy/wire"
)

// An answer is an answer to credentials and its expected verdict.
type answer struct {
	kind Kind
	text string // of the tagged response, or of the reply
	want verdict
}

var imapAnswers = []answer{
	{Other, "NO [UNAVAILABLE] Temporary authentication failure.", unavailable},
	{Dovecot, "NO [AUTHENTICATIONFAILED] Authentication failed.", wrong},
	{Dovecot, "NO [ALERT] Ask your teacher", wrong}, // a reason from its passdb
	{Dovecot, "NO [AUTHORIZATIONFAILED] x", suspended},
	{Dovecot, "NO [EXPIRED] Password expired.", suspended},
	{Dovecot, "NO [CONTACTADMIN] Logins are disabled.", suspended},
	{Dovecot, "NO [LIMIT] Maximum number of connections from user+IP exceeded", tooMany},
	{Dovecot, "NO [PRIVACYREQUIRED] x", doubtful},
	{Dovecot, "NO Temporary authentication failure.", doubtful},
	{Dovecot, "BAD Error in IMAP command", doubtful},
	{Cyrus, "NO Login failed: authentication failure", wrong},
	{Cyrus, "NO user not found", wrong},
	{Cyrus, "NO Login failed: account disabled", suspended},
	{Cyrus, "NO passphrase expired, has to be reset", suspended},
	{Cyrus, "NO generic failure", doubtful},
	{Cyrus, "NO Error authenticating", doubtful},
	{Courier, "NO Login failed.", wrong},
	{Courier, "NO x", doubtful},
	{Exchange, "NO AUTHENTICATE failed.", wrong},
	{Exchange, "NO LOGIN failed.", wrong},
	{Exchange, "NO Server Unavailable. 15", doubtful},
	{Exchange, "BAD Request is throttled. Suggested Backoff Time: 1000 milliseconds", doubtful},
	{Gmail, "NO [AUTHENTICATIONFAILED] Invalid credentials (Failure)", wrong},
	{Gmail, "NO [ALERT] Invalid credentials (Failure)", wrong},
	{Gmail, "NO [ALERT] Too many simultaneous connections. (Failure)", doubtful},
	{Gmail, "NO [WEBALERT https://accounts.google.com/] Web login required.", doubtful},
	{Gmail, "NO [ALERT] Please log in via your web browser", doubtful},
	{Gmail, "NO [OVERQUOTA] Account exceeded command or bandwidth limits", doubtful},
	{Gmail, "NO [THROTTLED] x", doubtful},
	{Gmail, "NO Lookup failed", doubtful},
	{Stalwart, "NO Authentication", doubtful},
	{Other, "NO [OVERQUOTA] x", full},
	{Other, "NO [INUSE] x", inUse},
	{Other, "NO [SERVERBUG] x", doubtful},
	{Other, "NO [REFERRAL imap://other/] x", doubtful},
	{Other, "NO no", wrong},
	{Other, "NO Login failed, please try again", wrong},
	{Other, "NO Temporary failure", doubtful},
	{Other, "NO Busy, try again later", doubtful},
	{Other, "NO Too many logins", doubtful},
	{Other, "NO Throttled", doubtful},
	{Other, "NO Overloaded", doubtful},
	{Other, "NO Service unavailable", doubtful},
	{Other, "NO Internal error", doubtful},
	{Other, "NO Server error", doubtful},
}

var smtpAnswers = []answer{
	{Dovecot, "535 5.7.8 Authentication failed", wrong},
	{Dovecot, "454 4.7.0 Temporary authentication failure", doubtful},
	{Postfix, "535 5.7.8 Error: authentication failed: (reason unavailable, sasl_username=alice)", wrong},
	{Postfix, "535 5.7.8 Error: authentication failed: authentication failure", wrong},
	{Postfix, "535 5.7.8 Error: authentication failed: generic failure", doubtful},
	{Postfix, "535 5.7.8 Error: authentication failed: no mechanism available", doubtful},
	{Postfix, "535 5.7.8 Error: authentication failed: Connection lost to authentication server", doubtful},
	{Postfix, "535 5.7.8 Error: authentication failed: Temporary authentication failure", doubtful},
	{Postfix, "454 4.7.0 Temporary authentication failure: Connection lost to authentication server", doubtful},
	{Postfix, "503 5.5.1 Error: authentication not enabled", doubtful},
	{Postfix, "550 5.7.1 Access denied", doubtful},
	{Exim, "535 Incorrect authentication data", wrong},
	{Exim, "435 Unable to authenticate at present", doubtful},
	{Exim, "550 Administrative prohibition", doubtful},
	{Exchange, "535 5.7.3 Authentication unsuccessful [AM0PR01 2026-11-28T00:00:00.000Z 08DE]", wrong},
	{Exchange, "535 5.7.139 Authentication unsuccessful, the user credentials were incorrect.", wrong},
	{Exchange, "535 5.7.139 Authentication unsuccessful, SmtpClientAuthentication is disabled for the Tenant.", doubtful},
	{Exchange, "535 5.7.139 Authentication unsuccessful, basic authentication is disabled.", doubtful},
	{Exchange, "550 5.7.30 Basic authentication is not supported for Client Submission.", doubtful},
	{Exchange, "432 4.3.2 Concurrent connections limit exceeded", doubtful},
	{Gmail, "535 5.7.8 Username and Password not accepted. For more information, go to", wrong},
	{Gmail, "534 5.7.9 Application-specific password required.", doubtful},
	{Gmail, "454 4.7.0 Too many login attempts, please try again later.", doubtful},
	{Stalwart, "535 5.7.8 Authentication credentials invalid.", wrong},
	{Other, "525 disabled", suspended},
	{Other, "535 5.7.13 disabled", suspended},
	{Other, "550 5.2.1 disabled", suspended},
	{Other, "421 4.3.2 x", maintenance},
	{Other, "552 5.2.2 x", full},
	{Other, "452 4.2.2 x", full},
	{Other, "535 no", wrong},
	{Other, "550 no", wrong},
	{Other, "250 odd", doubtful},
	{Other, "500 not so", doubtful}, {Other, "501 not so", doubtful}, {Other, "502 not so", doubtful}, {Other, "503 not so", doubtful},
	{Other, "504 not so", doubtful}, {Other, "521 not so", doubtful}, {Other, "523 not so", doubtful}, {Other, "530 not so", doubtful},
	{Other, "534 not so", doubtful}, {Other, "538 not so", doubtful},
}

func imapResponse(t *testing.T, text string) wire.Response {
	t.Helper()
	r, err := wire.NewReplyReader(strings.NewReader("P1 " + text + "\r\n")).Response()
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func smtpReply(t *testing.T, text string) wire.Reply {
	t.Helper()
	r, err := wire.NewReplyReader(strings.NewReader(text + "\r\n")).Reply()
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// Criterion: What an answer to credentials means depends on the server that gives it, and is known for Dovecot, Cyrus, Courier, Postfix, Exim, Exchange, Gmail and Stalwart.
// Criterion: Whatever a server answers to a password without having called it right costs what a wrong one does, but for [UNAVAILABLE]; the client is told wrong only if the server said so.
func TestEveryAnswerHasItsVerdict(t *testing.T) {
	s := &Server{Name: "main"}
	met := map[string]bool{}
	check := func(a answer, err error) {
		t.Helper()
		r, ok := errors.AsType[*proxy.Refusal](err)
		if !ok || r.Reason != a.want.reason || r.Doubtful != a.want.doubtful || r.Verified {
			t.Errorf("%v: %s = %+v, want %+v", a.kind, a.text, err, a.want)
		}
		free := !r.Doubtful && r.Reason != proxy.Wrong && r.Reason != proxy.Suspended
		if free && !strings.Contains(a.text, "[UNAVAILABLE]") {
			t.Errorf("%v: %s costs nothing", a.kind, a.text)
		}
	}
	for _, a := range imapAnswers {
		r := imapResponse(t, a.text)
		check(a, s.imapVerdict(a.kind, r))
		if r.Name == "NO" {
			row := slices.IndexFunc(imapRows, func(row imapRow) bool { return row.fits(a.kind, r.CodeName(), strings.ToLower(r.Text)) })
			met[fmt.Sprintf("%+v", imapRows[row])] = true
		}
	}
	for _, a := range smtpAnswers {
		r := smtpReply(t, a.text)
		check(a, s.smtpVerdict(a.kind, r))
		row := slices.IndexFunc(smtpRows, func(row smtpRow) bool {
			return row.fits(a.kind, r.Code, enhancedStatus(r), strings.ToLower(r.Lines()[0]))
		})
		met[fmt.Sprintf("%+v", smtpRows[row])] = true
	}
	for _, row := range imapRows {
		if !met[fmt.Sprintf("%+v", row)] {
			t.Errorf("no answer meets the row %+v", row)
		}
	}
	for _, row := range smtpRows {
		if !met[fmt.Sprintf("%+v", row)] {
			t.Errorf("no answer meets the row %+v", row)
		}
	}
}

// Criterion: The kind of a server is guessed from its greeting and its answer to ID; a configured one is believed.
func TestKindIsGuessedFromTheServersWords(t *testing.T) {
	for received, want := range map[string]Kind{
		"Dovecot (Debian) ready.":                                           Dovecot,
		"mx.example.org Cyrus IMAP 3.6.1-Debian server ready":               Cyrus,
		"Courier-IMAP ready. Copyright 1998-2021 Double Precision, Inc":     Courier,
		"ESMTP Postfix (Debian/GNU)":                                        Postfix,
		"ESMTP Exim 4.96 Sat, 28 Nov 2026 12:00:00 +0000":                   Exim,
		"The Microsoft Exchange IMAP4 service is ready. [QQBCAEMA]":         Exchange,
		"Microsoft ESMTP MAIL Service ready at Sat, 28 Nov 2026":            Exchange,
		"Gimap ready for requests from 192.0.2.1 ab12":                      Gmail,
		"ESMTP ab12 - gsmtp":                                                Gmail,
		"Stalwart IMAP4rev2 at your service.":                               Stalwart,
		`("name" "GImap" "vendor" "Google, Inc.")`:                          Gmail,
		`("name" "Microsoft.Exchange.Imap4.Imap4Server" "version" "15.20")`: Exchange,
		`("name" "Dovecot")`:                                                Dovecot,
		"dovecot.example.org ready":                                         Other,
		"dovecot-1.example.org ready":                                       Other,
		"ready":                                                             Other,
		"":                                                                  Other,
		"exim.example.org IMAP server":                                      Other,
	} {
		if got := guessKind(received); got != want {
			t.Errorf("guessKind(%q) = %v, want %v", received, got, want)
		}
	}
	if got := guessKind("ready", `("name" "Cyrus IMAPD")`); got != Cyrus {
		t.Errorf("by ID: %v", got)
	}
	for k := Other; k < kinds; k++ {
		if got, err := ParseKind(k.String()); got != k || err != nil {
			t.Errorf("ParseKind(%s) = %v, %v", k, got, err)
		}
	}
	s := &Server{Kind: Gmail}
	if got := s.knownKind("Dovecot ready."); got != Gmail {
		t.Errorf("configured as Gmail it is %v", got)
	}
	s.Kind = Guessed
	s.report.Store(&Report{Kind: Cyrus})
	if got := s.knownKind("ready"); got != Cyrus {
		t.Errorf("after a probe that knew it is %v", got)
	}
	if got := s.knownKind("Dovecot ready."); got != Dovecot {
		t.Errorf("after a probe that knew Cyrus, one that greets as Dovecot is %v", got)
	}
}

// A server that greets neutrally is asked for ID by a probe, and its answers mean
// what its kind's do from then on.
func TestProbeAsksForTheKind(t *testing.T) {
	const script = `
		S: * OK [CAPABILITY IMAP4rev1 ID SASL-IR AUTH=PLAIN] ready
		C: P1 ID NIL
		S: * ID ("name" "GImap")
		S: P1 OK done
		C: P2 LOGOUT
		S: <EOF>`
	s, _ := startServer(t, proxy.IMAP, None, script, `
		S: * OK [CAPABILITY IMAP4rev1 ID SASL-IR AUTH=PLAIN] ready
		C: P1 AUTHENTICATE PLAIN *
		S: P1 NO [ALERT] Please log in via your web browser
		C: P2 LOGOUT
		S: <EOF>`)
	report, err := s.Probe(t.Context())
	if err != nil || report.Kind != Gmail || !slices.Contains(report.Mechanisms, "PLAIN") {
		t.Fatalf("Probe = %+v, %v", report, err)
	}
	_, _, err = s.LoginIMAP(t.Context(), testLogin(account, password))
	checkRefusal(t, err, proxy.Unavailable)
}

// Criterion: A server that goes away over a password, or does not answer, makes a guess of it; one that was never sent the password does not.
func TestSilenceOverAPasswordIsDoubtful(t *testing.T) {
	const greeting = "S: * OK [CAPABILITY IMAP4rev1 SASL-IR AUTH=PLAIN] ready\n"
	const authenticate = greeting + "C: P1 AUTHENTICATE PLAIN *\n"
	for _, test := range []struct {
		protocol, script string
		doubtful         bool
	}{
		{proxy.IMAP, authenticate + "S: * BYE overloaded\nC: P2 LOGOUT\nS: <EOF>", true},
		{proxy.IMAP, authenticate + "S: <EOF>", true},
		{proxy.IMAP, authenticate + "S: P1 BAD what\nC: P2 LOGOUT\nS: <EOF>", true},
		{proxy.IMAP, authenticate + "S: P1 NO [UNAVAILABLE] x\nC: P2 LOGOUT\nS: <EOF>", false},
		{proxy.IMAP, "S: * BYE overloaded\nC: <EOF>", false},
		{proxy.IMAP, "S: * OK [CAPABILITY IMAP4rev1 LOGINDISABLED] ready\nC: P1 LOGOUT\nS: <EOF>", false},
		{proxy.Submission, smtpOpening("AUTH PLAIN") + "C: AUTH PLAIN *\nS: <EOF>", true},
		{proxy.Submission, smtpOpening("AUTH PLAIN") + "C: AUTH PLAIN *\nS: 454 4.7.0 later\nC: QUIT\nS: <EOF>", true},
		{proxy.Submission, "S: 421 4.7.0 later\nC: <EOF>", false},
		{proxy.Submission, smtpOpening("SIZE") + "C: QUIT\nS: <EOF>", false},
	} {
		s, _ := startServer(t, test.protocol, None, test.script)
		l := testLogin(account, password)
		l.Hello.Name = "client.example"
		err := loginTo(t, s, l)
		checkRefusal(t, err, proxy.Unavailable)
		if r, ok := errors.AsType[*proxy.Refusal](err); ok && r.Doubtful != test.doubtful {
			t.Errorf("%s: doubtful = %v, want %v", test.script, r.Doubtful, test.doubtful)
		}
	}
}

// Criterion: An attempt that a drain or an operator breaks off is no guess. One whose connection is shed for others is: its client can bring that about, and learns that the password was not right at once.
func TestCancelledAttempt(t *testing.T) {
	s := &Server{Name: "main"}
	for _, test := range []struct {
		cause error
		free  bool
	}{
		{nil, false},
		{proxy.NewRefusal(proxy.ShuttingDown, nil), true},
		{proxy.NewRefusal(proxy.Kicked, nil), true},
		{proxy.NewRefusal(proxy.TooMany, nil), false},
		{context.DeadlineExceeded, false},
	} {
		ctx, cancel := context.WithCancelCause(t.Context())
		if test.cause != nil {
			cancel(test.cause)
		}
		err := clearDoubt(ctx, s.unanswered(errors.New("gone")))
		if r, ok := errors.AsType[*proxy.Refusal](err); !ok || r.Doubtful == test.free || r.Reason != proxy.Unavailable {
			t.Errorf("ended by %v: %+v", test.cause, err)
		}
		cancel(nil)
	}
}

// Criterion: Whatever row of the table answers a guess, by whatever mechanism it came, a day of guesses at an account gets at most 40 from one address, and 130 from ten thousand that go through all rows.
func TestGuessesThroughEveryRowAreBounded(t *testing.T) {
	s := &Server{Name: "main"}
	var refusals []error
	for _, a := range imapAnswers {
		if a.want != unavailable {
			refusals = append(refusals, s.imapVerdict(a.kind, imapResponse(t, a.text)))
		}
	}
	for _, a := range smtpAnswers {
		refusals = append(refusals, s.smtpVerdict(a.kind, smtpReply(t, a.text)))
	}
	refusals = append(refusals, s.unanswered(errors.New("gone")))
	ways := 0
	all := newGuessSimulation(t)
	for _, refusal := range refusals {
		for _, mechanism := range []string{wire.MechanismPlain, wire.MechanismXOAuth2, wire.MechanismOAuthBearer} {
			one := newGuessSimulation(t)
			for i := range 24 * 4 {
				one.guess("192.0.2.1", mechanism, i, refusal)
				one.now = one.now.Add(15 * time.Minute)
			}
			if one.asked > 40 {
				t.Errorf("%s, answered with %v: the server was asked %d times in a day", mechanism, refusal, one.asked)
			}
			for range 48 {
				ways++
				all.guess(fmt.Sprintf("%d.%d.%d.9", 32+ways%64, ways/64%157, ways%251), mechanism, ways, refusal)
				all.now = all.now.Add(8 * time.Second)
			}
		}
	}
	if most := 130 * (1 + all.days()); all.asked > most {
		t.Errorf("through all rows the server was asked %d times in %d days", all.asked, all.days())
	}
}

// A guessSimulation is an account whose password an attacker guesses at a guard.
type guessSimulation struct {
	t          testing.TB
	guard      *guard.Guard
	begun, now time.Time
	asked      int
}

func newGuessSimulation(t testing.TB) *guessSimulation {
	g := &guessSimulation{t: t, now: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)}
	g.begun = g.now
	g.guard = guard.New(guardConfig(t, func() time.Time { return g.now }))
	return g
}

// guardConfig returns the limits that operators have by default, without a period of
// learning.
func guardConfig(t testing.TB, now func() time.Time) guard.Config {
	cfg, err := configs.Parse("postern.yaml", []byte(`
listeners: [{protocol: imap, address: ":993"}]
tls: {certificates: [{cert: mail.pem, key: mail.key}]}
backends: {main: {imap: {address: "10.0.0.5:993"}}}
`))
	if err != nil {
		t.Fatal(err)
	}
	b, l := cfg.Guard.Budgets, cfg.Limits
	return guard.Config{
		Known: guard.Rate(b.KnownNetwork), Pair: guard.Rate(b.AccountNetwork), Network: guard.Rate(b.Network), Account: guard.Rate(b.Account),
		Network24: guard.Rate(b.Network24), Network56: guard.Rate(b.Network56), Network48: guard.Rate(b.Network48), OAuth: guard.Rate(b.OAuth),
		Sessions: l.AccountSessions, Delay: b.Delay,
		Connections: l.MaxConnections, Reserve: l.Reserve, ConnectionsPerNetwork: l.NetworkConnections, LoginsPerNetwork: l.NetworkLogins,
		Attempts: l.Attempts, Wait: l.AttemptWait, Entries: 1 << 15, KnownFor: cfg.Retention.Guard.Duration(), Pairs: 1 << 10, Now: now,
	}
}

func (g *guessSimulation) days() int { return int(g.now.Sub(g.begun) / (24 * time.Hour)) }

func (g *guessSimulation) guess(addr, mechanism string, n int, answer error) {
	p, err := g.guard.Admit(proxy.Client{Addr: netip.AddrPortFrom(netip.MustParseAddr(addr), 1024)}, nil)
	if err != nil {
		g.t.Fatal(err)
	}
	defer p.Leave()
	l := testLogin(account, fmt.Sprint("guess", n))
	l.Mechanism = mechanism
	if err = p.Try(g.t.Context(), l); err == nil {
		g.asked++
		err = answer
	}
	p.Settle(err)
}
