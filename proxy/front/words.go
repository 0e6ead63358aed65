package front

import (
	"errors"
	"strings"

	"postern/proxy"
	"postern/proxy/wire"
)

// words are how the protocols say a Reason. What is permanent is never called
// temporary nor the other way round: see proxy.Reason.
type words struct {
	imap string // status and response code: RFC 3501 section 7.1, RFC 5530
	pop3 string // response code: RFC 2449 section 8, RFC 3206; empty: none fits
	smtp string // reply code and enhanced code: RFC 4954 section 6, RFC 3463, RFC 5248
	text string // for the user
}

func wordsOf(r proxy.Reason) words {
	switch r {
	case proxy.Wrong, proxy.Malformed:
		return words{"NO [AUTHENTICATIONFAILED]", "[AUTH]", "535 5.7.8", "Wrong user name or password"}
	case proxy.Unsupported:
		// RFC 3501 section 6.2.2, RFC 5034 section 4, RFC 4954 section 4.
		return words{"NO", "", "504 5.5.4", "Authentication mechanism is not supported"}
	case proxy.ProtocolOff:
		// RFC 3206 section 5: violations of policy are AUTH, too. RFC 5248 has
		// 525 X.7.13 for an account that an administrator has switched off.
		return words{"NO [AUTHORIZATIONFAILED]", "[AUTH]", "525 5.7.13", "This account may not use this service"}
	case proxy.Suspended:
		return words{"NO [CONTACTADMIN]", "[SYS/PERM]", "525 5.7.13", "This account is suspended: ask your provider"}
	case proxy.Unusable:
		// RFC 5530 section 3: CANNOT; RFC 3463: 5.3.5 is a matter of configuration.
		return words{"NO [CANNOT]", "[SYS/PERM]", "554 5.3.5", "This mailbox cannot be used with this service: ask your provider"}
	case proxy.Plaintext:
		return words{"BAD", "", "554 5.7.0", "This port speaks TLS only: choose SSL/TLS in the settings of your mail program"}
	case proxy.Throttled:
		return words{"NO [UNAVAILABLE]", "[SYS/TEMP]", "454 4.7.0", "Too many failed logins: try again later"}
	case proxy.TooMany:
		return words{"NO [LIMIT]", "[SYS/TEMP]", "421 4.7.0", "Too many connections: try again later"}
	case proxy.TooManySessions:
		return words{"NO [LIMIT]", "[SYS/TEMP]", "454 4.7.0", "Too many sessions of this account are open: close some, or try again later"}
	case proxy.Unavailable:
		return words{"NO [UNAVAILABLE]", "[SYS/TEMP]", "454 4.7.0", "The mail server is temporarily unavailable: try again later"}
	case proxy.Maintenance:
		return words{"NO [UNAVAILABLE]", "[SYS/TEMP]", "454 4.3.2", "The mail server is being maintained: try again later"}
	case proxy.MailboxFull:
		return words{"NO [UNAVAILABLE]", "[SYS/TEMP]", "454 4.2.2", "The mailbox is full"}
	case proxy.TooSoon:
		return words{"NO [LIMIT]", "[LOGIN-DELAY]", "454 4.7.0", "You have logged in a moment ago: try again later"}
	case proxy.InUse:
		return words{"NO [INUSE]", "[IN-USE]", "454 4.7.0", "The mailbox is in use by another session: try again later"}
	case proxy.TimedOut:
		return words{"NO [UNAVAILABLE]", "[SYS/TEMP]", "421 4.4.2", "No login for too long"}
	case proxy.ShuttingDown:
		return words{"NO [UNAVAILABLE]", "[SYS/TEMP]", "421 4.3.2", "The service is restarting: try again in a moment"}
	case proxy.Kicked:
		return words{"NO [UNAVAILABLE]", "[SYS/TEMP]", "421 4.3.2", "Disconnected by an administrator"}
	}
	return words{"NO [SERVERBUG]", "[SYS/TEMP]", "421 4.3.0", "Internal error: try again later"}
}

// wordsInClear say proxy.Plaintext where TLS can still begin: RFC 5530 section
// 3, RFC 3206 section 5 (an attempt in violation of policy), RFC 4954 section 6.
func wordsInClear() words {
	return words{"NO [PRIVACYREQUIRED]", "[AUTH]", "538 5.7.11",
		"Encryption is required before login: choose STARTTLS or SSL/TLS in the settings of your mail program"}
}

// tooManyWrong is the goodbye after maxRefused wrong credentials.
const tooManyWrong = "Too many failed logins"

// words returns how to say r, with the session id in its text.
func (d *dialogue) words(r *proxy.Refusal) words {
	w := wordsOf(r.Reason)
	switch {
	case r.Reason == proxy.Plaintext && d.greeted:
		w = wordsInClear()
	case errors.Is(r.Err, wire.ErrBase64): // RFC 3501 section 6.2.2, RFC 4954 section 4
		w = words{"BAD", "", "501 5.5.2", "Invalid base64 in the authentication exchange"}
	case errors.Is(r.Err, proxy.ErrLineTooLong): // RFC 4954 section 4
		w = words{"BAD", "", "500 5.5.6", "Line too long in the authentication exchange"}
	}
	if r.Text != "" {
		w.text = r.Text
	}
	w.text = d.signed(w.text)
	return w
}

// maxText leaves room for codes and session id in the 512 octets of a reply:
// RFC 2449 section 4, RFC 5321 section 4.5.3.1.5.
const maxText = 350

// signed returns text as it can be said, and the session id: with it a
// customer's screenshot leads to the line in the log.
func (d *dialogue) signed(text string) string {
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
	return text[:min(len(text), maxText)] + " (session " + d.c.Client.ID + ")"
}

// oneLine returns text, or instead if there is none, without line ends.
func oneLine(text, instead string) string {
	if text == "" {
		return instead
	}
	return strings.NewReplacer("\r", " ", "\n", " ", "\x00", " ").Replace(text)
}
