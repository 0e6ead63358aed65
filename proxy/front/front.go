// Package front is the dialogue with a client before it is logged in: the
// first words of IMAP, POP3 and submission. It keeps what it announces, says
// each refusal of package proxy in the protocol's words, and gives back nothing
// of what a client sent but the tag of an IMAP command.
//
// A dialogue takes no credentials while its Conn has no TLS, however the port
// is configured: it refuses them and offers STARTTLS.
package front

import (
	"errors"
	"slices"
	"time"

	"postern/proxy"
	"postern/proxy/wire"
)

// Bounds of a connection before its login.
const (
	maxRefused  = 3   // wrong credentials; not 1: clients take that for a failure of the network
	maxBad      = 10  // commands that are none
	maxCommands = 100 // of any kind

	maxToken    = 12 << 10                       // octets of an OAuth token: some are long
	maxMessage  = maxToken + 1<<10               // of the SASL message around it
	maxResponse = (maxMessage+2)/3*4 + len(crlf) // of the line that carries one in base64
	maxVerb     = 128                            // of what stands before it: tag, command, mechanism

	answerTime = 30 * time.Second // for the answer to a failure's challenge
)

const crlf = "\r\n"

// What ends a connection, besides a Refusal.
var (
	errCommands = errors.New("too many commands before login")
	errHTTP     = errors.New("client speaks HTTP")
	errEarly    = errors.New("client sent on before the SASL challenge")
	errTooBig   = errors.New("client sent more than is read to stay in step")
)

// Options are what a Service's dialogues have in common.
type Options struct {
	Hostname string // in greetings

	// Offer returns what all backends have in common: the mechanisms and, for
	// submission, the EHLO lines that may be announced. It is asked once for
	// each connection. Without Mechanisms it is not known yet: then submission
	// is refused, while IMAP and POP3 offer PLAIN. They may do without an Offer.
	Offer func() proxy.Offer

	// Capabilities are lines of POP3's CAPA beside those that hold always. UTF8
	// among them: the command is accepted.
	Capabilities []string
}

// A dialogue is what the three protocols have in common.
type dialogue struct {
	c       *proxy.Conn
	options Options
	prompt  string                 // before each SASL challenge
	longer  func(begun []byte) int // how long a line that begins so may be; nil: as all are
	offer   proxy.Offer            // as it was when the connection began
	hello   proxy.Hello
	greeted bool
	heard   bool   // a line from the client
	first   []byte // that line, if it had to be copied
	oauth   bool   // an OAuth mechanism is not answered yet
	count   struct{ commands, bad, refused int }
}

// learn asks what may be announced on this connection.
func (d *dialogue) learn() {
	if d.options.Offer != nil {
		d.offer = d.options.Offer()
	}
}

// mechanisms are those that are announced, and no others are served. PLAIN is
// always one of them: every backend can take what it carries.
func (d *dialogue) mechanisms() []string {
	names := []string{wire.MechanismPlain, wire.MechanismLogin}
	for _, name := range []string{wire.MechanismXOAuth2, wire.MechanismOAuthBearer} {
		if slices.Contains(d.offer.Mechanisms, name) {
			names = append(names, name)
		}
	}
	return names
}

// say writes lines, given without their ends, at once: so a client sees the
// reason together with the goodbye.
func (d *dialogue) say(lines ...string) error {
	var out []byte
	for _, line := range lines {
		out = append(append(out, line...), crlf...)
	}
	_, err := d.c.Write(out)
	return err
}

// command counts one, and returns an error when there were too many.
func (d *dialogue) command() error {
	d.count.commands++
	if d.count.commands > maxCommands || d.count.bad >= maxBad {
		return errCommands
	}
	return nil
}

// last counts a refusal, and reports whether the connection ends with it.
// Before the greeting it stands in its place.
func (d *dialogue) last(r *proxy.Refusal) bool {
	switch r.Reason {
	case proxy.Wrong, proxy.Malformed, proxy.Plaintext:
		d.count.refused++
	}
	if !d.greeted || d.count.refused >= maxRefused {
		return true
	}
	return r.Reason.Final() && r.Reason != proxy.Plaintext // TLS can still begin
}

// unreadable reports whether err leaves us out of step with the client, who is
// still there to be told.
func unreadable(err error) bool {
	return errors.Is(err, proxy.ErrLineTooLong) || errors.Is(err, proxy.ErrFlood)
}

// http reports whether word is a method of HTTP. A browser that was made to
// talk to us is left without a word: what it sends may hold commands.
func http(word []byte) bool {
	switch string(word) {
	case "GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "PRI":
		return true
	}
	return false
}
