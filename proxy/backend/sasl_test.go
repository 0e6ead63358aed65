package backend

import (
	"errors"
	"strings"
	"testing"

	"postern/proxy"
	"postern/proxy/wire"
)

const token = "ya29.vF9dft4qmTc2Nvb3RlckBhdHRhdmlzdGEuY29tCg=="

// bearerLogin returns a login with a token.
func bearerLogin(mechanism, account, token string) *proxy.Login {
	l := testSMTPLogin(token)
	l.Mechanism, l.Account = mechanism, account
	return l
}

func b64(s string) string { return string(wire.AppendSASL(nil, []byte(s))) }

// In base64: what the mechanisms say, and what the server answers to a bad token.
var (
	xoauth2     = b64("user=alice@example.org\x01auth=Bearer " + token + "\x01\x01")
	oauthBearer = b64("n,a=alice@example.org,\x01auth=Bearer " + token + "\x01\x01")
	failed      = b64(`{"status":"400", "schemes":"bearer","scope":"https://mail.example.org/", "x": [1]}`)
)

const failedJSON = `{"status":"400","schemes":"bearer","scope":"https://mail.example.org/"}`

// Criterion: OAuth's tokens are passed on in the mechanism that the server
// offers, with the initial response where it may be.
func TestLoginPassesTokensOn(t *testing.T) {
	long := strings.Repeat("t", 12<<10)
	for _, test := range []struct{ name, protocol, mechanism, account, token, script string }{
		{"XOAUTH2", proxy.IMAP, "XOAUTH2", account, token, `
			S: * OK [CAPABILITY IMAP4rev1 SASL-IR AUTH=PLAIN AUTH=XOAUTH2 AUTH=OAUTHBEARER LOGINDISABLED] ready
			C: P1 AUTHENTICATE XOAUTH2 ` + xoauth2 + `
			S: P1 OK [CAPABILITY IMAP4rev1] in`},
		{"OAUTHBEARER", proxy.IMAP, "OAUTHBEARER", account, token, `
			S: * OK [CAPABILITY IMAP4rev1 AUTH=XOAUTH2 AUTH=OAUTHBEARER] ready
			C: P1 AUTHENTICATE OAUTHBEARER
			S: +
			C: ` + oauthBearer + `
			S: P1 OK [CAPABILITY IMAP4rev1] in`},
		{"the other one", proxy.IMAP, "XOAUTH2", "a=b,c", "t", `
			S: * OK [CAPABILITY IMAP4rev1 SASL-IR AUTH=OAUTHBEARER] ready
			C: P1 AUTHENTICATE OAUTHBEARER ` + b64("n,a=a=3Db=2Cc,\x01auth=Bearer t\x01\x01") + `
			S: P1 OK [CAPABILITY IMAP4rev1] in`},
		{"a long one", proxy.IMAP, "XOAUTH2", account, long, `
			S: * OK [CAPABILITY IMAP4rev1 SASL-IR AUTH=XOAUTH2] ready
			C: P1 AUTHENTICATE XOAUTH2
			S: +
			C: ` + b64("user=alice@example.org\x01auth=Bearer "+long+"\x01\x01") + `
			S: P1 OK [CAPABILITY IMAP4rev1] in`},
		{"submission", proxy.Submission, "XOAUTH2", account, token, smtpOpening("AUTH PLAIN XOAUTH2") + `
			C: AUTH XOAUTH2 ` + xoauth2 + `
			S: 235 in`},
		{"submission, a long one", proxy.Submission, "OAUTHBEARER", account, long, smtpOpening("AUTH PLAIN OAUTHBEARER") + `
			C: AUTH OAUTHBEARER
			S: 334
			C: ` + b64("n,a=alice@example.org,\x01auth=Bearer "+long+"\x01\x01") + `
			S: 235 in`},
	} {
		t.Run(test.name, func(t *testing.T) {
			mode := Implicit // as no token goes without
			s, seen := startServer(t, test.protocol, mode, test.script)
			if err := loginTo(t, s, bearerLogin(test.mechanism, test.account, test.token)); err != nil {
				t.Fatal(err)
			}
			if got, want := seen.String(), "dialed ok, login true"; got != want {
				t.Errorf("events: %s, want %s", got, want)
			}
		})
	}
}

func loginTo(t *testing.T, s *Server, l *proxy.Login) error {
	t.Helper()
	if s.Protocol == proxy.Submission {
		c, err := s.LoginSMTP(t.Context(), l)
		if err == nil {
			_ = c.Close()
		}
		return err
	}
	c, _, err := s.LoginIMAP(t.Context(), l)
	if err == nil {
		_ = c.Close()
	}
	return err
}

// Criterion: the failure challenge of OAuth's mechanisms is answered as RFC 7628
// section 3.2.3 says, the final no is waited for, and the client is told why.
func TestLoginAnswersTheFailureChallenge(t *testing.T) {
	imap := func(mechanism, first string) string {
		return `
			S: * OK [CAPABILITY IMAP4rev1 SASL-IR AUTH=` + mechanism + `] ready
			C: P1 AUTHENTICATE ` + mechanism + ` ` + first + `
			S: + `
	}
	const out = "\nC: P2 LOGOUT\nS: <EOF>"
	for _, test := range []struct {
		name, protocol, mechanism, script, challenge string
		want                                         proxy.Reason
	}{
		{"XOAUTH2", proxy.IMAP, "XOAUTH2", imap("XOAUTH2", xoauth2) + failed + "\nC- \\r\\n\nS: P1 NO [AUTHENTICATIONFAILED] no" + out, failedJSON, proxy.Wrong},
		{"OAUTHBEARER", proxy.IMAP, "OAUTHBEARER", imap("OAUTHBEARER", oauthBearer) + failed + "\nC: AQ==\nS: P1 NO no" + out, failedJSON, proxy.Wrong},
		{"not JSON", proxy.IMAP, "XOAUTH2", imap("XOAUTH2", xoauth2) + b64("<html>") + "\nC: \nS: P1 NO no" + out, unknownFailure, proxy.Wrong},
		{"not base64", proxy.IMAP, "XOAUTH2", imap("XOAUTH2", xoauth2) + "{}\nC: \nS: P1 NO no" + out, unknownFailure, proxy.Wrong},
		{"not ASCII", proxy.IMAP, "XOAUTH2", imap("XOAUTH2", xoauth2) + b64(`{"status":"nö"}`) + "\nC: \nS: P1 NO no" + out, unknownFailure, proxy.Wrong},
		{"too much", proxy.IMAP, "XOAUTH2", imap("XOAUTH2", xoauth2) + b64(`{"status":"`+strings.Repeat("x", 300)+`"}`) + "\nC: \nS: P1 NO no" + out, unknownFailure, proxy.Wrong},
		{"two lines", proxy.IMAP, "XOAUTH2", imap("XOAUTH2", xoauth2) + b64(`{"status":"x\r\n* OK"}`) + "\nC: \nS: P1 NO no" + out, unknownFailure, proxy.Wrong},
		{"temporary", proxy.IMAP, "XOAUTH2", imap("XOAUTH2", xoauth2) + failed + "\nC: \nS: P1 NO [UNAVAILABLE] no" + out, failedJSON, proxy.Unavailable},
		{"after all yes", proxy.IMAP, "XOAUTH2", imap("XOAUTH2", xoauth2) + failed + "\nC: \nS: P1 OK in" + out, "", proxy.Unavailable},
		{"again", proxy.IMAP, "XOAUTH2", imap("XOAUTH2", xoauth2) + failed + "\nC: \nS: + " + failed + out, "", proxy.Unavailable},
		{"none", proxy.IMAP, "XOAUTH2", strings.TrimSuffix(imap("XOAUTH2", xoauth2), "S: + ") + "S: P1 NO no" + out, "", proxy.Wrong},
		{"submission", proxy.Submission, "OAUTHBEARER", smtpOpening("AUTH OAUTHBEARER") + "C: AUTH OAUTHBEARER " + oauthBearer +
			"\nS: 334 " + failed + "\nC: AQ==\nS: 535 5.7.8 no\nC: QUIT\nS: <EOF>", failedJSON, proxy.Wrong},
		{"submission, XOAUTH2", proxy.Submission, "XOAUTH2", smtpOpening("AUTH XOAUTH2") + "C: AUTH XOAUTH2 " + xoauth2 +
			"\nS: 334 " + failed + "\nC- \\r\\n\nS: 535 5.7.8 no\nC: QUIT\nS: <EOF>", failedJSON, proxy.Wrong},
		{"submission, after all yes", proxy.Submission, "XOAUTH2", smtpOpening("AUTH XOAUTH2") + "C: AUTH XOAUTH2 " + xoauth2 +
			"\nS: 334 " + failed + "\nC- \\r\\n\nS: 235 in\nC: QUIT\nS: <EOF>", "", proxy.Unavailable},
	} {
		t.Run(test.name, func(t *testing.T) {
			s, _ := startServer(t, test.protocol, None, test.script)
			err := loginTo(t, s, bearerLogin(test.mechanism, account, token))
			checkRefusal(t, err, test.want)
			if r, ok := errors.AsType[*proxy.Refusal](err); ok && string(r.Challenge) != test.challenge {
				t.Errorf("Challenge = %s, want %s", r.Challenge, test.challenge)
			}
			if strings.Contains(err.Error(), token) {
				t.Error("the error shows the token")
			}
		})
	}
}

func TestLoginSendsNoTokenWhereNoneIsAskedFor(t *testing.T) {
	for protocol, script := range map[string]string{
		proxy.IMAP:       "S: * OK [CAPABILITY IMAP4rev1 AUTH=PLAIN] hi\nC: P1 LOGOUT\nS: <EOF>",
		proxy.Submission: smtpOpening("AUTH PLAIN LOGIN") + "C: QUIT\nS: <EOF>",
	} {
		s, seen := startServer(t, protocol, None, script)
		checkRefusal(t, loginTo(t, s, bearerLogin("XOAUTH2", account, token)), proxy.Unavailable)
		if got, want := seen.String(), "dialed ok"; got != want {
			t.Errorf("events: %s, want %s", got, want)
		}
	}
}

func TestLoginRefusesWhatIsNoToken(t *testing.T) {
	for _, l := range []*proxy.Login{
		bearerLogin("XOAUTH2", account, "a\x01auth=b"), bearerLogin("OAUTHBEARER", account, "a b"), bearerLogin("XOAUTH2", "a\x01b", token),
	} {
		s, seen := startServer(t, proxy.IMAP, None)
		checkRefusal(t, loginTo(t, s, l), proxy.Malformed)
		if got := seen.String(); got != "" {
			t.Errorf("events: %s, want none", got)
		}
	}
	s, _ := startServer(t, proxy.IMAP, None)
	checkRefusal(t, loginTo(t, s, bearerLogin("SCRAM-SHA-256", account, token)), proxy.Unsupported)
}
