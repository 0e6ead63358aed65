package backend

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"postern/proxy"
	"postern/proxy/wire"
)

// A verdict is what an answer to credentials means: what the client is told, and
// what the guard charges.
type verdict struct {
	reason   proxy.Reason
	doubtful bool
}

// The verdicts. Only unavailable costs nothing: the server says that it has not
// judged the credentials. A doubtful one is passed on as temporary and costs what
// a wrong password costs; else guesses would be free at a server whose answer is
// not known here.
var (
	wrong        = verdict{reason: proxy.Wrong}
	suspended    = verdict{reason: proxy.Suspended} // charged as well: not every server checks the password first
	unavailable  = verdict{reason: proxy.Unavailable}
	doubtful     = verdict{proxy.Unavailable, true}
	full         = verdict{proxy.MailboxFull, true}
	tooMany      = verdict{proxy.TooMany, true}
	inUse        = verdict{proxy.InUse, true}
	maintenance  = verdict{proxy.Maintenance, true}
	tooSoon      = verdict{proxy.TooSoon, true}
	maildropBusy = verdict{reason: proxy.InUse} // says nothing to who guesses: before the password all passwords get it, else only the right one
)

// An imapRow is a row of the table for IMAP: what a NO with this code and this
// text means from this kind of server. The first row that matches decides.
type imapRow struct {
	kind Kind   // Guessed: any
	code string // noCode, or a response code; "": any
	text string // part of the server's text, in lower case; "": any
	is   verdict
}

// noCode stands for no response code, and for ALERT, which gives no reason: RFC
// 9051 section 7.1.
const noCode = "-"

var imapRows = []imapRow{
	// RFC 5530 section 3.
	{code: "UNAVAILABLE", is: unavailable},
	{code: "AUTHENTICATIONFAILED", is: wrong},
	{code: "AUTHORIZATIONFAILED", is: suspended},
	{code: "EXPIRED", is: suspended},
	{code: "CONTACTADMIN", is: suspended},
	{kind: Gmail, code: "OVERQUOTA", is: doubtful}, // of octets a day, not of the mailbox
	{code: "OVERQUOTA", is: full},
	{code: "LIMIT", is: tooMany},
	{code: "INUSE", is: inUse},

	// Cyrus: the texts of sasl_errstring(3).
	{kind: Cyrus, code: noCode, text: "authentication failure", is: wrong},
	{kind: Cyrus, code: noCode, text: "user not found", is: wrong},
	{kind: Cyrus, code: noCode, text: "account disabled", is: suspended},
	{kind: Cyrus, code: noCode, text: "passphrase expired", is: suspended},
	{kind: Cyrus, code: noCode, is: doubtful}, // "generic failure": saslauthd is down

	// Courier answers BYE when its authdaemond is down.
	{kind: Courier, code: noCode, text: "login failed", is: wrong},
	{kind: Courier, code: noCode, is: doubtful},

	// Exchange also answers NO when it throttles, and "Server Unavailable. 15".
	{kind: Exchange, code: noCode, text: "authenticate failed", is: wrong},
	{kind: Exchange, code: noCode, text: "login failed", is: wrong},
	{kind: Exchange, code: noCode, is: doubtful},

	// Gmail: "Too many simultaneous connections", "Please log in via your web browser".
	{kind: Gmail, code: noCode, text: "invalid credentials", is: wrong},
	{kind: Gmail, code: noCode, is: doubtful},

	// Stalwart names the reason in a code.
	{kind: Stalwart, code: noCode, is: doubtful},

	// RFC 3501 section 6.2.3: NO means that the password was rejected, unless the
	// text gives another reason.
	{code: noCode, text: "temporar", is: doubtful},
	{code: noCode, text: "try again later", is: doubtful},
	{code: noCode, text: "too many", is: doubtful},
	{code: noCode, text: "throttle", is: doubtful},
	{code: noCode, text: "overload", is: doubtful},
	{code: noCode, text: "unavailable", is: doubtful},
	{code: noCode, text: "internal error", is: doubtful},
	{code: noCode, text: "server error", is: doubtful},
	{code: noCode, is: wrong},
	{is: doubtful},
}

func (row *imapRow) fits(k Kind, code, text string) bool {
	if code == "" || code == "ALERT" {
		code = noCode
	}
	return (row.kind == Guessed || row.kind == k) && (row.code == "" || row.code == code) && strings.Contains(text, row.text)
}

// imapVerdict reads the answer to credentials. The server's text may contain the
// credentials, so it appears nowhere.
func (s *Server) imapVerdict(k Kind, r wire.Response) error {
	if r.Name == "OK" {
		return nil
	}
	code := r.CodeName()
	err := fmt.Errorf("the server answered the login with %s [%s]", r.Name, shorten(code))
	if code == "PRIVACYREQUIRED" {
		err = fmt.Errorf("%w: use TLS, or let it trust Postern's address", err)
	}
	err = withCause(err, r.Code+" "+r.Text)
	if r.Name != "NO" {
		return s.refuse(doubtful, err)
	}
	text := strings.ToLower(r.Text)
	i := slices.IndexFunc(imapRows, func(row imapRow) bool { return row.fits(k, code, text) })
	return s.refuse(imapRows[i].is, err)
}

// A textRow is a row of the tables for POP3 and ManageSieve: what -ERR or NO with this code
// and this text means from this kind of server. The first row that matches decides.
type textRow struct {
	kind Kind   // Guessed: any
	code string // noCode, or a response code; "": any
	text string // part of the server's text, in lower case; "": any
	is   verdict
}

var pop3Rows = []textRow{
	// RFC 2449 section 8.1, RFC 3206 sections 4 and 5.
	{code: "AUTH", is: wrong},
	{code: "SYS/TEMP", is: unavailable},
	{code: "SYS/PERM", is: suspended},
	{code: "IN-USE", is: maildropBusy},
	{code: "LOGIN-DELAY", is: tooSoon},

	// What these servers say without a code. Cyrus, Dovecot and mailutils write [AUTH].
	{kind: Courier, code: noCode, text: "login failed", is: wrong},
	{kind: Popa3d, code: noCode, text: "authentication failed", is: wrong},
	{kind: SolidPOP3, code: noCode, text: "authentication failed", is: wrong},
	{kind: Qpopper, code: noCode, text: "is incorrect", is: wrong}, // versions before 4.0
	{kind: Qpopper, code: noCode, text: "lock busy", is: maildropBusy},
	{is: doubtful},
}

func (row *textRow) fits(k Kind, code, text string) bool {
	if code == "" {
		code = noCode
	}
	return (row.kind == Guessed || row.kind == k) && (row.code == "" || row.code == code) && strings.Contains(text, row.text)
}

// pop3Verdict reads the answer to credentials. The server's text may contain the
// credentials, so it appears nowhere.
func (s *Server) pop3Verdict(k Kind, r wire.POP3Response) error {
	if r.Name == wire.POP3OK {
		return nil
	}
	err := fmt.Errorf("the server answered the login with %s", r.Name)
	if r.Code != "" {
		err = fmt.Errorf("%w [%s]", err, shorten(r.Code))
	}
	if r.Name != wire.POP3Err {
		return s.refuse(doubtful, err)
	}
	if r.Code == "" && k == Other {
		err = fmt.Errorf("%w and no code: if that is its answer to a wrong password, backends.%s.pop3.kind has to name the server's software", err, s.Name)
	}
	text := strings.ToLower(r.Text)
	i := slices.IndexFunc(pop3Rows, func(row textRow) bool { return row.fits(k, r.Code, text) })
	return s.refuse(pop3Rows[i].is, err)
}

// RFC 5804 section 1.3 has a code for what is temporary and none for a wrong password.
var sieveRows = []textRow{
	{code: "TRYLATER", is: unavailable},

	{kind: Dovecot, code: noCode, text: "authentication failed", is: wrong},
	{kind: Dovecot, code: noCode, text: "authorization failed", is: suspended},
	{kind: Cyrus, code: noCode, text: "authentication failure", is: wrong}, // the texts of sasl_errstring(3)
	{kind: Cyrus, code: noCode, text: "account disabled", is: suspended},
	{kind: Cyrus, code: noCode, text: "passphrase expired", is: suspended},
	{kind: Stalwart, code: noCode, text: "authentication failed", is: wrong},
	{is: doubtful}, // REFERRAL, AUTH-TOO-WEAK, ENCRYPT-NEEDED and TRANSITION-NEEDED are about Postern's way to log in
}

// sieveVerdict reads the answer to credentials. The server's text may contain the
// credentials, and that of REFERRAL the server's name, so it appears nowhere.
func (s *Server) sieveVerdict(k Kind, r wire.SieveResponse) error {
	if r.Name == wire.SieveOK && r.Code != "REFERRAL" {
		return nil
	}
	err := fmt.Errorf("the server answered the login with %s", r.Name)
	if r.Code != "" {
		err = fmt.Errorf("%w (%s)", err, shorten(r.Code))
	}
	if r.Code == "REFERRAL" {
		err = fmt.Errorf("%w: the account is on another server: routes has to name its backend", err)
	}
	if r.Name != wire.SieveNo {
		return s.refuse(doubtful, err)
	}
	if r.Code == "" && k == Other {
		err = fmt.Errorf("%w and no code: if that is its answer to a wrong password, backends.%s.sieve.kind has to name the server's software", err, s.Name)
	}
	text := strings.ToLower(r.Text)
	i := slices.IndexFunc(sieveRows, func(row textRow) bool { return row.fits(k, r.Code, text) })
	return s.refuse(sieveRows[i].is, err)
}

// An smtpRow is a row of the table for submission. The first row that matches
// decides.
type smtpRow struct {
	kind   Kind   // Guessed: any
	code   int    // RFC 4954 section 6; below 10: its first digit; 0: any
	status string // RFC 3463; ".2.2": of any class; "": any, or none
	text   string // part of the server's text, in lower case; "": any
	is     verdict
}

var smtpRows = []smtpRow{
	{status: ".2.2", is: full},
	{kind: Exchange, status: "4.3.2", is: doubtful}, // "Concurrent connections limit exceeded"
	{status: "4.3.2", is: maintenance},
	{code: 525, is: suspended},
	{code: 5, status: ".7.13", is: suspended},
	{code: 5, status: ".2.1", is: suspended},

	// Postfix: errors of Cyrus SASL, and of the connection to Dovecot's auth.
	{kind: Postfix, code: 535, text: "generic failure", is: doubtful},
	{kind: Postfix, code: 535, text: "no mechanism available", is: doubtful},
	{kind: Postfix, code: 535, text: "connection lost to authentication server", is: doubtful},
	{kind: Postfix, code: 535, text: "temporary authentication failure", is: doubtful},

	// Exchange: SmtpClientAuthentication is disabled, security defaults, policies.
	{kind: Exchange, code: 535, status: "5.7.139", text: "smtpclientauthentication is disabled", is: doubtful},
	{kind: Exchange, code: 535, status: "5.7.139", text: "credentials were incorrect", is: wrong},
	{kind: Exchange, code: 535, status: "5.7.139", is: doubtful},

	{code: 535, is: wrong},
	// These are about Postern's command, not the password: RFC 4954 sections 4 and
	// 6, RFC 5248 section 2.4, RFC 7504.
	{code: 500, is: doubtful}, {code: 501, is: doubtful}, {code: 502, is: doubtful}, {code: 503, is: doubtful}, {code: 504, is: doubtful},
	{code: 521, is: doubtful}, {code: 523, is: doubtful}, {code: 530, is: doubtful}, {code: 534, is: doubtful}, {code: 538, is: doubtful},
	{kind: Other, code: 5, is: wrong}, // software that may not know 535
	{is: doubtful},
}

func (row *smtpRow) fits(k Kind, code int, status, text string) bool {
	class := row.code == 0 || row.code == code || row.code == code/100
	detail := row.status == "" || row.status == status || row.status[0] == '.' && len(status) > 1 && status[1:] == row.status
	return class && detail && (row.kind == Guessed || row.kind == k) && strings.Contains(text, row.text)
}

// smtpVerdict reads the reply to credentials. The server's text may contain the
// credentials, so it appears nowhere.
func (s *Server) smtpVerdict(k Kind, r wire.Reply) error {
	if r.Code == 235 {
		return nil
	}
	status, text := enhancedStatus(r), strings.ToLower(strings.Join(r.Lines(), " "))
	i := slices.IndexFunc(smtpRows, func(row smtpRow) bool { return row.fits(k, r.Code, status, text) })
	err := fmt.Errorf("the server answered the login with %d %s", r.Code, status)
	return s.refuse(smtpRows[i].is, withCause(err, text))
}

// exchangePolicy is the status with which Exchange Online refuses a login because of a
// setting of the mailbox or of the tenant.
const exchangePolicy = "5.7.139"

// enhancedStatus returns the enhanced status code (RFC 3463) of a reply, or "".
func enhancedStatus(r wire.Reply) string {
	status, _, _ := strings.Cut(r.Lines()[0], " ")
	const longest = len("5.999.999")
	odd := func(c rune) bool { return c != '.' && (c < '0' || c > '9') }
	if len(status) > longest || strings.Count(status, ".") != 2 || strings.ContainsFunc(status, odd) {
		return ""
	}
	return status
}

func (s *Server) refuse(v verdict, err error) *proxy.Refusal {
	r := proxy.NewRefusal(v.reason, fmt.Errorf("backend %s, %s: %w", s.Name, s.Protocol, err))
	r.Doubtful = v.doubtful
	return r
}

// unanswered returns the Refusal for credentials that the server has received and
// not answered: closing the connection may be its answer.
func (s *Server) unanswered(err error) *proxy.Refusal { return s.refuse(doubtful, err) }

// clearDoubt returns err, and clears its Doubtful flag if the operator has ended
// ctx: the client learns nothing from that error. A connection shed to make room
// for others stays doubtful. An attacker with enough connections can cause that
// while no answer has come, and at a server that delays only wrong passwords this
// would be an answer.
func clearDoubt(ctx context.Context, err error) error {
	if r, ok := errors.AsType[*proxy.Refusal](err); ok {
		switch proxy.ReasonOf(context.Cause(ctx)) {
		case proxy.ShuttingDown, proxy.Kicked:
			r.Doubtful = false
		}
	}
	return err
}
