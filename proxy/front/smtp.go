package front

import (
	"bytes"
	"context"
	"errors"
	"slices"

	"postern/proxy"
	"postern/proxy/wire"
)

const (
	maxSMTPLine = 2048 // octets; RFC 5321 section 4.5.3.1.4 wants 512, extensions more
	maxDomain   = 255  // RFC 5321 section 4.5.3.1.2
)

var errNoOffer = errors.New("no backend has been probed yet")

// An SMTP is the dialogue of submission (RFC 6409) up to AUTH (RFC 4954).
type SMTP struct {
	dialogue
	offer proxy.Offer // as announced, from the greeting on
}

// NewSMTP returns the dialogue with the client on c.
func NewSMTP(c *proxy.Conn, o Options) *SMTP {
	return &SMTP{dialogue: dialogue{c: c, options: o}}
}

// Login implements proxy.Dialogue. The Extensions of its Login's Offer are the
// lines of the EHLO reply after the first, AUTH included: who answers the next
// EHLO repeats them.
func (d *SMTP) Login(context.Context) (*proxy.Login, error) {
	if err := d.greet(); err != nil {
		return nil, err
	}
	for {
		login, err := d.next()
		if login != nil {
			login.Offer = d.offer
		}
		if login != nil || err != nil {
			return login, err
		}
	}
}

func (d *SMTP) greet() error {
	if d.greeted {
		return nil
	}
	offer := d.options.Offer()
	if offer.Mechanisms == nil {
		return proxy.Refuse(proxy.Unavailable, errNoOffer)
	}
	d.greeted = true
	d.offer = proxy.Offer{Mechanisms: offer.Mechanisms, Extensions: slices.Concat(offer.Extensions, []string{"AUTH PLAIN LOGIN"})}
	return d.say("220 " + d.options.Hostname + " ESMTP Postern")
}

// Refuse implements proxy.Dialogue.
func (d *SMTP) Refuse(r *proxy.Refusal) error {
	last, w := d.last(r), d.words(r)
	switch {
	case !d.greeted && r.Reason.Temporary():
		_ = d.say("421 4.3.2 " + w.text) // RFC 5321 section 4.3.2: nothing else temporary greets
	case !d.greeted:
		_ = d.say("554" + w.smtp[3:] + " " + w.text)
	case last && !r.Reason.Final():
		_ = d.say(w.smtp+" "+w.text, "421 4.7.0 "+d.signed(tooManyWrong))
	default:
		if err := d.say(w.smtp + " " + w.text); err != nil || !last {
			return err
		}
	}
	return r
}

// Accept implements proxy.Dialogue.
func (d *SMTP) Accept(welcome string) error {
	return d.say("235 2.7.0 " + oneLine(welcome, "Authentication successful"))
}

// bad refuses what is no command, or not a proper one.
func (d *SMTP) bad(reply string) error {
	d.count.bad++
	return d.say(reply)
}

// hangUp says why the connection ends, and returns err.
func (d *SMTP) hangUp(reply string, err error) error {
	_ = d.say(d.signed(reply))
	return err
}

// next reads and answers one command. If credentials are what it brings, they
// are the answer.
func (d *SMTP) next() (*proxy.Login, error) {
	if err := d.command(); err != nil {
		return nil, d.hangUp("421 4.7.0 Too many commands", err)
	}
	line, err := d.c.ReadLine(maxVerb + maxResponse)
	switch {
	case errors.Is(err, proxy.ErrLineTooLong):
		return nil, d.bad("500 5.5.2 Line too long")
	case errors.Is(err, proxy.ErrFlood):
		return nil, d.hangUp("421 4.7.0 Line too long", err)
	case err != nil:
		return nil, err
	}
	text, ok := wire.TrimLine(line)
	word, arg := wire.CutWord(text)
	name := wire.Keyword(word)
	switch {
	case http(word):
		return nil, errHTTP
	// What is a line's end must be so for everybody: SMTP smuggling.
	case !ok || bytes.ContainsAny(text, "\x00\r"):
		return nil, d.bad("500 5.5.2 Lines end with CRLF and hold no CR, LF or NUL")
	case name == "AUTH":
		return d.auth(bytes.TrimRight(arg, " "))
	case len(line) > maxSMTPLine:
		return nil, d.bad("500 5.5.2 Line too long")
	}
	return nil, d.simple(name, bytes.TrimRight(arg, " "))
}

// simple answers the commands that bring no credentials.
func (d *SMTP) simple(name string, arg []byte) error {
	switch name {
	case "EHLO", "HELO":
		return d.ehlo(name, arg)
	case "NOOP", "RSET":
		return d.say("250 2.0.0 OK")
	case "VRFY":
		return d.say("252 2.0.0 Send some mail to find out") // RFC 5321 section 3.5.3
	case "HELP":
		return d.say("214 2.0.0 Log in with AUTH: RFC 4954, RFC 6409")
	case "MAIL", "RCPT", "DATA":
		return d.say("530 5.7.0 Authentication required") // no strike: it may be pipelined behind AUTH
	case "BDAT":
		return d.hangUp("503 5.5.1 Authentication required", errTooBig) // the chunk is on its way
	case "STARTTLS":
		return d.bad("503 5.5.1 TLS is active already")
	case "QUIT":
		if err := d.say("221 2.0.0 Goodbye"); err != nil {
			return err
		}
		return proxy.ErrQuit
	}
	return d.bad("502 5.5.1 Command not implemented")
}

func (d *SMTP) ehlo(name string, arg []byte) error {
	domain, _ := wire.CutWord(arg)
	if len(domain) == 0 || len(domain) > maxDomain || bytes.ContainsFunc(domain, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return d.bad("501 5.5.4 Invalid domain")
	}
	d.hello.Name = string(domain)
	if name == "HELO" {
		return d.say("250 " + d.options.Hostname)
	}
	_, err := d.c.Write(wire.AppendEHLO(nil, d.options.Hostname, d.offer.Extensions))
	return err
}

// auth also serves those who said HELO, as other servers do.
func (d *SMTP) auth(arg []byte) (*proxy.Login, error) {
	name, initial := wire.CutWord(arg)
	switch {
	case d.hello.Name == "":
		return nil, d.bad("503 5.5.1 EHLO comes first")
	case len(name) == 0 || bytes.IndexByte(initial, ' ') >= 0:
		return nil, d.bad("501 5.5.4 Syntax: AUTH mechanism [initial-response]")
	}
	mech, pipelined := wire.Keyword(name), len(initial) > 0
	login, err := d.exchange(mech, "334 ", initial)
	// RFC 4954 section 4: what is not over in one round trip ends its group.
	if login != nil && d.c.Buffered() > 0 && !(pipelined && mech == "PLAIN") {
		login.Secret.Clear()
		login, err = nil, errEarly
	}
	switch {
	case errors.Is(err, errCancelled):
		return nil, d.bad("501 5.7.0 Authentication cancelled") // RFC 4954 section 4
	case errors.Is(err, errEarly):
		return nil, d.hangUp("503 5.5.0 Wait for the challenge", err)
	case errors.Is(err, proxy.ErrFlood):
		return nil, d.hangUp("421 4.7.0 Line too long", err)
	}
	return login, err
}
