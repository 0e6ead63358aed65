package backend

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"postern/proxy"
)

// tokens are Credentials: the n-th token is "token n". forced is the error of a second
// one.
type tokens struct {
	err, forced error
	user        string
	until       time.Time
	asked       []string
	given       []*proxy.Secret
}

func (c *tokens) Credentials(_ context.Context, account, protocol string, force bool) (string, *proxy.Secret, time.Time, error) {
	c.asked = append(c.asked, fmt.Sprintf("%s %s %v", account, protocol, force))
	if c.err != nil {
		return "", nil, c.until, c.err
	}
	if force && c.forced != nil {
		return "", nil, c.until, c.forced
	}
	token := proxy.NewSecret(fmt.Appendf(nil, "token%d", len(c.given)+1))
	c.given = append(c.given, token)
	user := account
	if c.user != "" {
		user = c.user
	}
	return user, token, c.until, nil
}

func bearer(user, token string) string {
	return b64("user=" + user + "\x01auth=Bearer " + token + "\x01\x01")
}

// checkedLogin returns a login whose password Postern has checked.
func checkedLogin() *proxy.Login {
	l := testSMTPLogin("")
	l.Secret, l.Verified = nil, true
	return l
}

const exchangeGreeting = "The Microsoft Exchange IMAP4 service is ready."

// tokenScript returns the dialogue of a login with the n-th token, which the server
// answers.
func tokenScript(protocol, greeting string, n int, answer string) string {
	message := bearer(account, fmt.Sprint("token", n))
	switch protocol {
	case proxy.Submission:
		return strings.Replace(smtpOpening("AUTH LOGIN XOAUTH2"), "mx.example ESMTP", "mx.example "+greeting, 1) +
			"C: AUTH XOAUTH2 " + message + "\n" + answer + logoutScript(answer, "QUIT")
	case proxy.POP3:
		return "S: +OK " + greeting + "\nC: CAPA\nS: +OK\nS: SASL XOAUTH2\nS: .\nC: AUTH XOAUTH2\nS: + \nC: " + message + "\n" + answer + logoutScript(answer, "QUIT")
	}
	if protocol == proxy.Sieve {
		return "S: \"IMPLEMENTATION\" \"" + greeting + "\"\nS: \"SASL\" \"XOAUTH2\"\nS: OK\nC: AUTHENTICATE \"XOAUTH2\" \"" + message + "\"\n" + answer + logoutScript(answer, sieveLogout)
	}
	return "S: * OK [CAPABILITY IMAP4rev1 SASL-IR AUTH=PLAIN AUTH=XOAUTH2] " + greeting +
		"\nC: P1 AUTHENTICATE XOAUTH2 " + message + "\n" + answer + logoutScript(answer, "P2 LOGOUT")
}

func logInChecked(t *testing.T, s *Server) error {
	t.Helper()
	logIn := s.LoginPOP3
	switch s.Protocol {
	case proxy.IMAP, proxy.Submission:
		return loginTo(t, s, checkedLogin())
	case proxy.Sieve:
		logIn = s.LoginSieve
	}
	c, err := logIn(t.Context(), checkedLogin())
	if err == nil {
		_ = c.Close()
	}
	return err
}

// Criterion: After Postern's own check of the password said yes, no answer of a backend is ever wrong: each becomes a temporary refusal that costs no guess, in IMAP, POP3, submission and ManageSieve, and what Exchange and Gmail say of its cause is in the log.
func TestNoAnswerToATokenIsAboutThePassword(t *testing.T) {
	const gmail = "Gimap ready for requests"
	for _, test := range []struct {
		protocol, greeting, answer string
		again                      bool // with another token
		want                       proxy.Reason
		hint                       error // what the log names; nil: the code says all
	}{
		{proxy.IMAP, exchangeGreeting, "S: P1 NO AUTHENTICATE failed.", true, proxy.Unavailable, ErrTokenRefused},
		{proxy.IMAP, exchangeGreeting, "S: P1 NO Server Unavailable. 15", false, proxy.Unavailable, ErrThrottled},
		{proxy.IMAP, exchangeGreeting, "S: P1 BAD Request is throttled. Suggested Backoff Time: 299931 milliseconds", false, proxy.Unavailable, ErrThrottled},
		{proxy.IMAP, exchangeGreeting, "S: * BYE Connection closed. 14\nS: <EOF>", false, proxy.Unavailable, nil},
		{proxy.IMAP, gmail, "S: P1 NO [ALERT] Too many simultaneous connections. (Failure)", false, proxy.Unavailable, errFull},
		{proxy.IMAP, gmail, "S: * NO [WEBALERT https://example.org/] Web login required.\nS: P1 NO [ALERT] Please log in via your web browser: https://example.org/ (Failure)", false, proxy.Unavailable, ErrWebLogin},
		{proxy.IMAP, gmail, "S: + " + failed + "\nC- \\r\\n\nS: P1 NO [AUTHENTICATIONFAILED] Invalid credentials (Failure)", true, proxy.Unavailable, ErrTokenRefused},
		{proxy.IMAP, gmail, "S: + " + failed + "\nC- \\r\\n\nS: P1 NO Lookup failed 8ab2", true, proxy.Unavailable, errNoUser},
		{proxy.IMAP, gmail, "S: P1 NO Lookup failed 8ab2", false, proxy.Unavailable, errNoUser},
		{proxy.IMAP, gmail, "S: P1 NO [OVERQUOTA] Account exceeded command or bandwidth limits. (Failure)", false, proxy.Unavailable, ErrThrottled},
		{proxy.IMAP, gmail, "S: P1 NO [THROTTLED] slower", false, proxy.Unavailable, ErrThrottled},
		{proxy.IMAP, "hello", "S: P1 NO [AUTHORIZATIONFAILED] no", false, proxy.Unavailable, nil},
		{proxy.IMAP, "hello", "S: P1 NO [EXPIRED] no", false, proxy.Unavailable, nil},
		{proxy.IMAP, "hello", "S: P1 NO [CONTACTADMIN] no", false, proxy.Unavailable, nil},
		{proxy.IMAP, "hello", "S: P1 NO [UNAVAILABLE] Temporary authentication failure", false, proxy.Unavailable, nil},
		{proxy.IMAP, "hello", "S: P1 NO no", true, proxy.Unavailable, ErrTokenRefused},
		{proxy.Submission, "Microsoft ESMTP MAIL Service ready", "S: 535 5.7.3 Authentication unsuccessful [X.example 2026-11-29T00:00:00.000Z 08DE]", true, proxy.Unavailable, ErrTokenRefused},
		{proxy.Submission, "Microsoft ESMTP MAIL Service ready", "S: 535 5.7.139 Authentication unsuccessful, SmtpClientAuthentication is disabled for the Tenant.", false, proxy.Unavailable, ErrTenantSMTPOff},
		{proxy.Submission, "Microsoft ESMTP MAIL Service ready", "S: 535 5.7.139 Authentication unsuccessful, the user credentials were incorrect.", false, proxy.Unavailable, ErrPolicy},
		{proxy.Submission, "Microsoft ESMTP MAIL Service ready", "S: 432 4.3.2 Concurrent connections limit exceeded", false, proxy.Unavailable, errFull},
		{proxy.Submission, "Microsoft ESMTP MAIL Service ready", "S: 535 5.7.139 Authentication unsuccessful, SmtpClientAuthentication is disabled for the Mailbox.", false, proxy.Unavailable, ErrSMTPOff},
		{proxy.Submission, "Microsoft ESMTP MAIL Service ready", "S: 554 4.3.2 STOREDRV.ClientSubmit; sender thread limit exceeded", false, proxy.Unavailable, errFull},
		{proxy.Submission, "ESMTP gsmtp", "S: 334 " + failed + "\nC- \\r\\n\nS: 535 5.7.8 Username and Password not accepted", true, proxy.Unavailable, ErrTokenRefused},
		{proxy.Submission, "ESMTP", "S: 525 5.7.13 disabled", false, proxy.Unavailable, nil},
		{proxy.Submission, "ESMTP", "S: 454 4.7.0 Temporary authentication failure: Connection lost to authentication server", false, proxy.Unavailable, nil},
		{proxy.Submission, "ESMTP", "S: 454 4.3.2 later", false, proxy.Maintenance, nil},
		{proxy.POP3, "hello", "S: -ERR [AUTH] no", true, proxy.Unavailable, ErrTokenRefused},
		{proxy.POP3, "hello", "S: -ERR [SYS/PERM] no", false, proxy.Unavailable, nil},
		{proxy.POP3, "hello", "S: -ERR Server Unavailable. 21", false, proxy.Unavailable, nil},
		{proxy.Sieve, "Dovecot Pigeonhole", "S: NO \"Authentication failed.\"", true, proxy.Unavailable, ErrTokenRefused},
		{proxy.Sieve, "Dovecot Pigeonhole", "S: \"" + failed + "\"\nC: \"\"\nS: NO \"Authentication failed.\"", true, proxy.Unavailable, ErrTokenRefused},
		{proxy.Sieve, "Dovecot Pigeonhole", "S: NO (TRYLATER) \"Temporary authentication failure.\"", false, proxy.Unavailable, nil},
		{proxy.Sieve, "Stalwart", "S: NO \"Too many authentication attempts.\"", false, proxy.Unavailable, nil},
	} {
		t.Run(test.protocol+" "+test.answer, func(t *testing.T) {
			scripts := []string{tokenScript(test.protocol, test.greeting, 1, test.answer)}
			if test.again {
				scripts = append(scripts, tokenScript(test.protocol, test.greeting, 2, test.answer))
			}
			s, _ := startServer(t, test.protocol, Implicit, scripts...)
			c := &tokens{}
			s.Credentials = c
			err := logInChecked(t, s)
			checkRefusal(t, err, test.want)
			r, _ := errors.AsType[*proxy.Refusal](err)
			if r == nil || !r.Verified || r.Doubtful || r.Challenge != nil {
				t.Errorf("refusal %+v, want one that is verified, not doubtful and without a challenge", r)
			}
			if test.hint != nil && !errors.Is(err, test.hint) {
				t.Errorf("error %v, want one that says: %v", err, test.hint)
			}
			if len(c.given) != len(scripts) {
				t.Errorf("%d tokens were used, want %d", len(c.given), len(scripts))
			}
			for _, token := range c.given {
				if token.Reveal() != nil {
					t.Error("a token is kept after the login")
				}
			}
			if strings.Contains(err.Error(), "token1") {
				t.Errorf("the error shows the token: %v", err)
			}
		})
	}
}

// Criterion: A token that the backend refuses is replaced once, for one more login on a new connection: a token revoked at the provider while it was cached costs the client no failed login.
func TestARefusedTokenIsReplacedOnce(t *testing.T) {
	const no = "S: P1 NO AUTHENTICATE failed."
	t.Run("the second is right", func(t *testing.T) {
		s, seen := startServer(t, proxy.IMAP, Implicit, tokenScript(proxy.IMAP, exchangeGreeting, 1, no),
			"S: * OK [CAPABILITY IMAP4rev1 SASL-IR AUTH=XOAUTH2] hi\nC: P1 AUTHENTICATE XOAUTH2 "+bearer(account, "token2")+"\nS: P1 OK [CAPABILITY IMAP4rev1] in")
		c := &tokens{}
		s.Credentials = c
		if err := loginTo(t, s, checkedLogin()); err != nil {
			t.Fatal(err)
		}
		if got, want := strings.Join(c.asked, ", "), "alice@example.org imap false, alice@example.org imap true"; got != want {
			t.Errorf("asked for %s, want %s", got, want)
		}
		if got, want := seen.String(), "dialed ok, login false, dialed ok, login true"; got != want {
			t.Errorf("events: %s, want %s", got, want)
		}
	})
	t.Run("there is no second", func(t *testing.T) {
		s, _ := startServer(t, proxy.IMAP, Implicit, tokenScript(proxy.IMAP, exchangeGreeting, 1, no))
		s.Credentials = &tokens{forced: errors.New("too soon")}
		err := loginTo(t, s, checkedLogin())
		checkRefusal(t, err, proxy.Unavailable)
		if !strings.Contains(err.Error(), "refuses the token") {
			t.Errorf("error %v, want the answer of the server", err)
		}
	})
	t.Run("there is none", func(t *testing.T) {
		s, seen := startServer(t, proxy.IMAP, Implicit)
		s.Credentials = &tokens{err: errors.New("the provider is away")}
		p := &Pool{Name: "main", Protocol: proxy.IMAP, Members: []*Server{s}}
		_, _, err := p.LoginIMAP(t.Context(), checkedLogin())
		checkRefusal(t, err, proxy.Unavailable)
		if got := seen.String(); got != "" {
			t.Errorf("events %s, want no connection", got)
		}
	})
}

// Criterion: The backend is given the name that the account has there, which the client's alert does not show.
func TestATokenIsForTheNameAtTheBackend(t *testing.T) {
	s, _ := startServer(t, proxy.IMAP, Implicit, "S: * OK [CAPABILITY IMAP4rev1 SASL-IR AUTH=XOAUTH2] hi\nC: P1 AUTHENTICATE XOAUTH2 "+bearer("shared@example.net", "token1")+
		"\nS: * OK [ALERT] shared@example.net, not alice@example.org, is over quota\nS: P1 OK [CAPABILITY IMAP4rev1] in")
	s.Credentials = &tokens{user: "shared@example.net"}
	c, _, err := s.LoginIMAP(t.Context(), checkedLogin())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	if strings.Contains(c.alert, "example") {
		t.Errorf("alert %q", c.alert)
	}
}

// Criterion: A session that connects to its backend again after its account has got another mailbox ends; it never goes on in other mail.
func TestASessionStaysInItsMailbox(t *testing.T) {
	const greeting = "S: * OK [CAPABILITY IMAP4rev1 SASL-IR AUTH=XOAUTH2] hi\n"
	s, _ := startServer(t, proxy.IMAP, Implicit, greeting+"C: P1 AUTHENTICATE XOAUTH2 "+bearer("shared@example.net", "token1")+"\nS: P1 OK [CAPABILITY IMAP4rev1] in",
		greeting+"C: P1 AUTHENTICATE XOAUTH2 "+bearer("other@example.net", "token3")+"\nS: P1 OK [CAPABILITY IMAP4rev1] in")
	c := &tokens{user: "shared@example.net"}
	s.Credentials = c
	session := checkedLogin()
	if err := loginTo(t, s, session); err != nil {
		t.Fatal(err)
	}
	c.user = "other@example.net"
	err := loginTo(t, s, session)
	if checkRefusal(t, err, proxy.Unavailable); !strings.Contains(err.Error(), "the account has another mailbox there now") || strings.Contains(err.Error(), "example.net") {
		t.Errorf("%v", err)
	}
	if got := c.given[1].Reveal(); len(got) != 0 {
		t.Error("the token that was not used is not cleared")
	}
	if err := loginTo(t, s, checkedLogin()); err != nil {
		t.Errorf("a new login: %v", err)
	}
}

// Criterion: No token is asked for when nothing has checked the client's password, and a client's own token is passed on.
func TestNoTokenForAPasswordThatNobodyHasChecked(t *testing.T) {
	s, seen := startServer(t, proxy.IMAP, Implicit)
	c := &tokens{}
	s.Credentials = c
	checkRefusal(t, loginTo(t, s, testSMTPLogin(password)), proxy.Unavailable)
	s.Credentials = nil
	checkRefusal(t, loginTo(t, s, checkedLogin()), proxy.Unavailable)
	if got := seen.String(); got != "" || c.asked != nil {
		t.Errorf("events %s, asked %v; want neither", got, c.asked)
	}

	s, _ = startServer(t, proxy.IMAP, Implicit, `
		S: * OK [CAPABILITY IMAP4rev1 SASL-IR AUTH=XOAUTH2] hi
		C: P1 AUTHENTICATE XOAUTH2 `+xoauth2+`
		S: P1 OK [CAPABILITY IMAP4rev1] in`)
	s.Credentials = c
	if err := loginTo(t, s, bearerLogin("XOAUTH2", account, token)); err != nil || c.asked != nil {
		t.Errorf("%v, asked %v; want the client's token alone", err, c.asked)
	}
}

// Criterion: A server that only takes tokens is up, with or without TLS, takes tokens in spite of LOGINDISABLED, and its clients are offered PLAIN.
func TestAServerThatOnlyTakesTokensIsUp(t *testing.T) {
	for _, mode := range []Mode{Implicit, None} {
		s, _ := startServer(t, proxy.IMAP, mode, `
			S: * OK [CAPABILITY IMAP4rev1 SASL-IR LOGINDISABLED AUTH=XOAUTH2] Dovecot ready
			C: P1 LOGOUT
			S: * BYE
			S: P1 OK`, "S: * OK [CAPABILITY IMAP4rev1 SASL-IR LOGINDISABLED AUTH=XOAUTH2] Dovecot ready\nC: P1 AUTHENTICATE XOAUTH2 "+bearer(account, "token1")+`
			S: P1 OK [CAPABILITY IMAP4rev1] in`)
		s.Credentials = &tokens{}
		if _, err := s.Probe(t.Context()); err != nil {
			t.Errorf("%v: %v", mode, err)
		}
		if got, want := strings.Join(s.Offer().Mechanisms, " "), "XOAUTH2 PLAIN"; got != want {
			t.Errorf("%v: offer %s, want %s", mode, got, want)
		}
		if err := loginTo(t, s, checkedLogin()); err != nil {
			t.Errorf("%v: %v", mode, err)
		}
	}
	s, _ := startServer(t, proxy.Submission, Implicit, strings.Replace(smtpOpening("AUTH PLAIN LOGIN"), "EHLO client.example", "EHLO postern.example", 1)+"C: QUIT\nS: <EOF>")
	s.Credentials = &tokens{}
	if _, err := s.Probe(t.Context()); err == nil || !strings.Contains(err.Error(), "neither XOAUTH2 nor OAUTHBEARER") {
		t.Errorf("a server that takes no token: %v", err)
	}
}
