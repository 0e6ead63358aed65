package backend

import (
	"errors"
	"strings"
	"testing"

	"postern/proxy"
)

// Criterion: A response code in which a server repeats the credentials is in no error; one that has a meaning keeps it, also if it is the password.
func TestAResponseCodeThatRepeatsTheCredentials(t *testing.T) {
	const secret = "k3v7q2mx"
	for _, test := range []struct {
		protocol, secret, opening, answer string
		want                              proxy.Reason
		doubtful                          bool
	}{
		{proxy.IMAP, secret, "S: * OK [CAPABILITY IMAP4rev1 SASL-IR AUTH=PLAIN] hi\nC: P1 AUTHENTICATE PLAIN *\n", "S: P1 NO [" + secret + "] no", proxy.Unavailable, true},
		{proxy.IMAP, secret, "S: * OK [CAPABILITY IMAP4rev1 SASL-IR AUTH=PLAIN] hi\nC: P1 AUTHENTICATE PLAIN *\n", "S: P1 NO [X" + strings.ToUpper(secret) + "] no", proxy.Unavailable, true},
		{proxy.IMAP, "failed", "S: * OK [CAPABILITY IMAP4rev1 SASL-IR AUTH=PLAIN] hi\nC: P1 AUTHENTICATE PLAIN *\n", "S: P1 NO [AUTHENTICATIONFAILED] no", proxy.Wrong, false},
		{proxy.POP3, secret, "S: +OK hi\nC: CAPA\nS: +OK\nS: USER\nS: .\nC: USER alice@example.org\nS: +OK\nC: PASS " + secret + "\n", "S: -ERR [" + secret + "] no", proxy.Unavailable, true},
		{proxy.POP3, "auth", "S: +OK hi\nC: CAPA\nS: +OK\nS: USER\nS: .\nC: USER alice@example.org\nS: +OK\nC: PASS auth\n", "S: -ERR [AUTH] no", proxy.Wrong, false},
		{proxy.Sieve, secret, "S: \"IMPLEMENTATION\" \"x\"\nS: \"SASL\" \"PLAIN\"\nS: OK\nC: AUTHENTICATE \"PLAIN\" *\n", "S: NO (" + secret + ") \"no\"", proxy.Unavailable, true},
	} {
		s, _ := startServer(t, test.protocol, Implicit, test.opening+test.answer)
		l := testLogin(account, test.secret)
		var err error
		switch test.protocol {
		case proxy.IMAP:
			_, _, err = s.LoginIMAP(t.Context(), l)
		case proxy.POP3:
			_, err = s.LoginPOP3(t.Context(), l)
		case proxy.Sieve:
			_, err = s.LoginSieve(t.Context(), l)
		}
		r, ok := errors.AsType[*proxy.Refusal](err)
		if !ok || r.Reason != test.want || r.Doubtful != test.doubtful {
			t.Errorf("%s %s: %v", test.protocol, test.answer, err)
		} else if test.secret == secret && strings.Contains(strings.ToLower(err.Error()), secret) {
			t.Errorf("%s: the error shows the password", test.protocol)
		}
	}
}
