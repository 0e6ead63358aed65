package front

import (
	"errors"
	"strings"

	"postern/proxy"
	"postern/proxy/wire"
)

// A wording is how the protocols express a Reason.
type wording struct {
	imap string // status and response code: RFC 3501 section 7.1, RFC 5530
	pop3 string // response code: RFC 2449 section 8, RFC 3206; empty: none fits
	smtp string // reply code and enhanced code: RFC 4954 section 6, RFC 3463, RFC 5248

	sieve string // response code: RFC 5804 section 1.3; empty: none fits
	text  string // for the user
}

// sieveTryLater is the code of ManageSieve for what is temporary.
const sieveTryLater = "TRYLATER"

// wordings has a row for each Reason but Internal, for which wordingOf has one. Permanent refusals are never worded as
// temporary, nor temporary ones as permanent: see proxy.Reason.
var wordings = map[proxy.Reason]wording{
	proxy.Wrong:     {"NO [AUTHENTICATIONFAILED]", "[AUTH]", "535 5.7.8", "", "Wrong user name or password"},
	proxy.Malformed: {"NO [AUTHENTICATIONFAILED]", "[AUTH]", "535 5.7.8", "", "Wrong user name or password"},
	// RFC 3501 section 6.2.2, RFC 5034 section 4, RFC 4954 section 4. RFC 5804 section
	// 1.3 has a code for mechanisms that a site does not permit.
	proxy.Unsupported: {"NO", "", "504 5.5.4", "AUTH-TOO-WEAK", "Authentication mechanism is not supported"},
	// RFC 3206 section 5: violations of policy are AUTH, too. RFC 5248 has
	// 525 X.7.13 for an account that an administrator has switched off.
	proxy.ProtocolOff: {"NO [AUTHORIZATIONFAILED]", "[AUTH]", "525 5.7.13", "", "This account may not use this service"},
	proxy.Suspended:   {"NO [CONTACTADMIN]", "[SYS/PERM]", "525 5.7.13", "", "This account is suspended: ask your provider"},
	// Some clients ask for the password over any refusal: the first words say what helps.
	proxy.POP3Ended: {"NO [AUTHORIZATIONFAILED]", "[SYS/PERM]", "525 5.7.13", "",
		"Set up this account with IMAP in your mail program: POP3 is switched off for it. Your password is right, your mail is on the server"},
	// RFC 5530 section 3: CANNOT; RFC 3463: 5.3.5 is a matter of configuration.
	proxy.Unusable:        {"NO [CANNOT]", "[SYS/PERM]", "554 5.3.5", "", "This mailbox cannot be used with this service: ask your provider"},
	proxy.Plaintext:       {"BAD", "", "554 5.7.0", "", "This port speaks TLS only: choose SSL/TLS in the settings of your mail program"},
	proxy.Throttled:       {"NO [UNAVAILABLE]", "[SYS/TEMP]", "454 4.7.0", sieveTryLater, "Too many failed logins: try again later"},
	proxy.TooMany:         {"NO [LIMIT]", "[SYS/TEMP]", "421 4.7.0", sieveTryLater, "Too many connections: try again later"},
	proxy.TooManySessions: {"NO [LIMIT]", "[SYS/TEMP]", "454 4.7.0", sieveTryLater, "Too many sessions of this account are open: close some, or try again later"},
	proxy.Unavailable:     {"NO [UNAVAILABLE]", "[SYS/TEMP]", "454 4.7.0", sieveTryLater, "The mail server is temporarily unavailable: try again later"},
	proxy.Maintenance:     {"NO [UNAVAILABLE]", "[SYS/TEMP]", "454 4.3.2", sieveTryLater, "The mail server is being maintained: try again later"},
	proxy.MailboxFull:     {"NO [UNAVAILABLE]", "[SYS/TEMP]", "454 4.2.2", sieveTryLater, "The mailbox is full"},
	proxy.TooSoon:         {"NO [LIMIT]", "[LOGIN-DELAY]", "454 4.7.0", sieveTryLater, "You have logged in a moment ago: try again later"},
	proxy.InUse:           {"NO [INUSE]", "[IN-USE]", "454 4.7.0", sieveTryLater, "The mailbox is in use by another session: try again later"},
	proxy.TimedOut:        {"NO [UNAVAILABLE]", "[SYS/TEMP]", "421 4.4.2", sieveTryLater, "No login for too long"},
	proxy.ShuttingDown:    {"NO [UNAVAILABLE]", "[SYS/TEMP]", "421 4.3.2", sieveTryLater, proxy.Goodbye(proxy.ShuttingDown)},
	proxy.Kicked:          {"NO [UNAVAILABLE]", "[SYS/TEMP]", "421 4.3.2", sieveTryLater, proxy.Goodbye(proxy.Kicked)},
}

func wordingOf(r proxy.Reason) wording {
	if w, ok := wordings[r]; ok {
		return w
	}
	return wording{"NO [SERVERBUG]", "[SYS/TEMP]", "421 4.3.0", sieveTryLater, "Internal error: try again later"}
}

// startTLSWording words proxy.Plaintext where STARTTLS is still possible: RFC
// 5530 section 3, RFC 3206 section 5 (an attempt in violation of policy), RFC
// 4954 section 6.
func startTLSWording() wording {
	return wording{"NO [PRIVACYREQUIRED]", "[AUTH]", "538 5.7.11", "ENCRYPT-NEEDED",
		"Encryption is required before login: choose STARTTLS or SSL/TLS in the settings of your mail program"}
}

// tooManyWrong is the last text after maxRefused wrong credentials.
const tooManyWrong = "Too many failed logins"

// wording returns the wording of r, with the session id in its text.
func (d *dialogue) wording(r *proxy.Refusal) wording {
	w := wordingOf(r.Reason)
	switch {
	case r.Reason == proxy.Plaintext && d.greeted:
		w = startTLSWording()
	case errors.Is(r.Err, wire.ErrBase64): // RFC 3501 section 6.2.2, RFC 4954 section 4
		w = wording{"BAD", "", "501 5.5.2", "", "Invalid base64 in the authentication exchange"}
	case errors.Is(r.Err, proxy.ErrLineTooLong): // RFC 4954 section 4
		w = wording{"BAD", "", "500 5.5.6", "", "Line too long in the authentication exchange"}
	}
	if r.Text != "" {
		w.text = r.Text
	}
	w.text = d.withSessionID(w.text)
	return w
}

// maxText leaves space for codes and session id in the 512 octets of a reply: RFC
// 2449 section 4, RFC 5321 section 4.5.3.1.5.
const maxText = 350

// withSessionID returns text as printable ASCII of at most maxText octets, and
// the session id: it leads from a user's screenshot to the line in the log.
func (d *dialogue) withSessionID(text string) string {
	text = strings.Map(func(r rune) rune {
		switch {
		case r < ' ':
			return ' '
		case r > '~':
			return '?'
		}
		return r
	}, text)
	text = strings.TrimLeft(text, "[ ") // no response code
	return d.c.Client.WithSessionID(text[:min(len(text), maxText)])
}

// oneLine returns text, or instead if text is empty, without line ends.
func oneLine(text, instead string) string {
	if text == "" {
		return instead
	}
	return strings.NewReplacer("\r", " ", "\n", " ", "\x00", " ").Replace(text)
}
