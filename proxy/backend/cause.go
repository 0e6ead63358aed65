package backend

import (
	"errors"
	"fmt"
	"strings"
)

// Why a server that takes tokens refuses a login, as far as its text says. errors.Is finds
// them in a Refusal.
var (
	ErrTokenRefused  = errors.New("the server refuses the token, or the application that it is for: postern provider check says which")
	ErrThrottled     = errors.New("the server throttles the mailbox, or the mailbox has too many connections")
	errFull          = fmt.Errorf("%w: lower account_connections, or end other programs that use the mailbox", ErrThrottled)
	errNoUser        = errors.New("the service account may not open the mailbox: look at its domain-wide delegation, and whether there is such a user")
	ErrWebLogin      = errors.New("the user has to log in in a web browser first")
	ErrIMAPOff       = errors.New("IMAP is off for the mailbox or the domain")
	ErrPolicy        = errors.New("a setting of the mailbox or the tenant forbids it")
	ErrTenantSMTPOff = fmt.Errorf("%w: SMTP AUTH is off for the tenant; Set-TransportConfig -SmtpClientAuthenticationDisabled $false", ErrPolicy)
	ErrSMTPOff       = fmt.Errorf("%w: SMTP AUTH is off for the mailbox; Set-CASMailbox -Identity MAILBOX -SmtpClientAuthenticationDisabled $false", ErrPolicy)
	// ErrNoMailbox: Exchange Online says OK to AUTHENTICATE, and BAD to every command after
	// it. checkMailbox and the bridge see it.
	ErrNoMailbox = errors.New("the server accepts the token, and does not open the mailbox: the application has no permission for it, IMAP is off for it, or the server throttles; " +
		"postern provider check says what mends it")
)

// causes are the parts of texts, in lower case, that Exchange Online and Gmail answer with.
// The first that matches decides.
var causes = []struct {
	text string
	err  error
}{
	{"smtpclientauthentication is disabled for the tenant", ErrTenantSMTPOff},
	{"smtpclientauthentication is disabled", ErrSMTPOff},
	{exchangePolicy, ErrPolicy}, // security defaults, conditional access, authentication policies
	{"authenticated but not connected", ErrNoMailbox},
	{"throttle", ErrThrottled},
	{"server unavailable. 1", ErrThrottled}, // of Exchange, with a number
	{"concurrent connections limit exceeded", errFull},
	{"sender thread limit exceeded", errFull},
	{"too many simultaneous connections", errFull},
	{"exceeded command or bandwidth limits", ErrThrottled},
	{"log in via your web browser", ErrWebLogin},
	{"web login required", ErrWebLogin},
	{"lookup failed", errNoUser},
	{"imap access is disabled", ErrIMAPOff},
	{"not enabled for imap use", ErrIMAPOff},
}

// withCause adds to err the cause that a server's text names, and the backoff that it
// suggests, if it does. The text itself may contain the credentials.
func withCause(err error, text string) error {
	text = strings.ToLower(text)
	for _, c := range causes {
		if strings.Contains(text, c.text) {
			err = fmt.Errorf("%w: %w", err, c.err)
			break
		}
	}
	return withBackoff(err, text)
}
