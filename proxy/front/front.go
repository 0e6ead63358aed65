// Package front is the dialogue with a client before it is logged in: the first
// commands of IMAP, POP3, submission and ManageSieve. IMAP, POP3, SMTP and Sieve are
// proxy.Dialogues. A dialogue serves exactly what it announces, words each refusal of
// package proxy for its protocol, and repeats nothing that a client sent but the tag of
// an IMAP command and the argument of ManageSieve's NOOP.
//
// A dialogue accepts no credentials while its Conn has no TLS, however the
// listener is configured: it refuses them and offers STARTTLS.
package front

import (
	"context"
	"errors"
	"slices"
	"time"

	"postern/proxy"
	"postern/proxy/wire"
)

// The limits of a connection before login.
const (
	maxRefused  = 3   // attempts that were refused; not 1: clients would take that for a network failure
	maxBad      = 10  // bad commands
	maxCommands = 100 // commands of any kind

	maxToken    = 12 << 10                       // octets of an OAuth token
	maxMessage  = maxToken + 1<<10               // octets of the SASL message around it
	maxResponse = (maxMessage+2)/3*4 + len(crlf) // octets of a line with such a message in base64
	maxVerb     = 128                            // octets before it: tag, command, mechanism

	answerTime = 30 * time.Second // for the answer to the challenge of a failure
)

const crlf = "\r\n"

// Errors that end a connection and are no Refusal.
var (
	errCommands = errors.New("too many commands before login")
	errHTTP     = errors.New("client speaks HTTP")
	errEarly    = errors.New("client sent on before the SASL challenge")
	errTooBig   = errors.New("client sent more than is read to stay in step")
)

// Options are common to all dialogues of a Service.
type Options struct {
	Hostname string // in greetings

	// Offer returns what all backends have in common: the mechanisms and, for
	// submission and ManageSieve, the EHLO lines and capabilities that may be announced.
	// It is called once per connection. Without Mechanisms the offer is not known yet: then
	// submission and ManageSieve are refused, while IMAP and POP3 announce PLAIN and LOGIN.
	// For IMAP and POP3, Offer may be nil.
	Offer func() proxy.Offer

	// Capabilities are additional lines of POP3's CAPA response. With UTF8 among
	// them the UTF8 command is accepted.
	Capabilities []string

	// Anonymous hides that the software is Postern, in the IMPLEMENTATION of ManageSieve.
	Anonymous bool
}

// A dialogue is the common part of the protocols.
type dialogue struct {
	c            *proxy.Conn
	options      Options
	protocol     protocol
	replies      replies
	prompt       string                 // before each SASL challenge
	extendLimit  func(begun []byte) int // length limit of a line with this beginning; nil: the same for all
	offer        proxy.Offer            // as it was at the begin of the connection
	hello        proxy.Hello
	greeted      bool
	lineRead     bool   // a line of the client was read
	firstLine    []byte // the first line, if it was copied
	oauthPending bool   // the result of an OAuth mechanism was not yet sent
	count        struct{ commands, bad, refused int }
}

// A protocol is the dialogue of one protocol.
type protocol interface {
	greet() error
	nextCommand(context.Context) (*proxy.Login, error)
	bad(reply string) error                   // counts a bad command and refuses it
	disconnect(reply string, err error) error // sends a last reply and returns err
	challenge(base64 []byte) error            // sends a SASL challenge
	response() ([]byte, error)                // reads the response to a challenge, in base64 or "*"
}

// replies are a protocol's texts for what ends a command or a SASL exchange.
type replies struct {
	lineTooLong string // the line was skipped
	flood       string // a line without an end
	earlyTLS    string // TLS on a port that begins without
	cancelled   string // SASL exchange, by the client
	early       string // the client sent on before the challenge
}

// untilLogin greets the client once and answers its commands until one of them
// brings credentials, or ends the connection.
func (d *dialogue) untilLogin(ctx context.Context) (*proxy.Login, error) {
	if !d.greeted {
		d.loadOffer()
		if err := d.protocol.greet(); err != nil {
			return nil, err
		}
	}
	for {
		login, err := d.protocol.nextCommand(ctx)
		if login != nil || err != nil {
			return login, err
		}
	}
}

// readError answers an error of readLine. It returns nil if the dialogue goes on.
func (d *dialogue) readError(err error) error {
	switch {
	case errors.Is(err, proxy.ErrLineTooLong):
		return d.protocol.bad(d.replies.lineTooLong)
	case errors.Is(err, proxy.ErrFlood):
		return d.protocol.disconnect(d.replies.flood, err)
	case errors.Is(err, proxy.ErrEarlyTLS):
		return d.protocol.disconnect(d.replies.earlyTLS, err)
	}
	return err
}

// exchanged returns the result of a SASL exchange, or answers an error that is no
// refusal.
func (d *dialogue) exchanged(login *proxy.Login, err error) (*proxy.Login, error) {
	switch {
	case errors.Is(err, errCancelled):
		return nil, d.protocol.bad(d.replies.cancelled)
	case errors.Is(err, errEarly):
		return nil, d.protocol.disconnect(d.replies.early, err)
	case errors.Is(err, proxy.ErrFlood):
		return nil, d.protocol.disconnect(d.replies.flood, err)
	}
	return login, err
}

// loadOffer reads what may be announced on this connection.
func (d *dialogue) loadOffer() {
	if d.options.Offer != nil {
		d.offer = d.options.Offer()
	}
}

// mechanisms returns the mechanisms that are announced and served. PLAIN and
// LOGIN are always among them: every backend accepts a password.
func (d *dialogue) mechanisms() []string {
	names := []string{wire.MechanismPlain, wire.MechanismLogin}
	for _, name := range []string{wire.MechanismXOAuth2, wire.MechanismOAuthBearer} {
		if slices.Contains(d.offer.Mechanisms, name) {
			names = append(names, name)
		}
	}
	return names
}

// reply writes lines, given without line ends, in one write: the client sees the
// reason together with the end.
func (d *dialogue) reply(lines ...string) error {
	var out []byte
	for _, line := range lines {
		out = append(append(out, line...), crlf...)
	}
	_, err := d.c.Write(out)
	return err
}

// countCommand counts a command, and returns an error after too many.
func (d *dialogue) countCommand() error {
	d.count.commands++
	if d.count.commands > maxCommands || d.count.bad >= maxBad {
		return errCommands
	}
	return nil
}

// countRefusal counts a refusal, and reports whether the connection ends with it.
// Before the greeting, it always does.
func (d *dialogue) countRefusal(r *proxy.Refusal) bool {
	switch r.Reason {
	case proxy.Wrong, proxy.Malformed, proxy.Plaintext:
		d.count.refused++
	}
	if !d.greeted || d.count.refused >= maxRefused {
		return true
	}
	return r.Reason.Final() && r.Reason != proxy.Plaintext // STARTTLS is still possible
}

// isHTTPMethod reports whether word is an HTTP method. A browser that was tricked
// into connecting gets no reply, because its request may contain commands.
func isHTTPMethod(word []byte) bool {
	switch string(word) {
	case "GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "PRI":
		return true
	}
	return false
}
