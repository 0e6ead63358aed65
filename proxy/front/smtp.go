package front

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"

	"postern/proxy"
	"postern/proxy/wire"
)

const (
	maxSMTPLine = 2048 // octets; RFC 5321 section 4.5.3.1.4 wants 512, extensions more
	maxDomain   = 255  // RFC 5321 section 4.5.3.1.2
)

var errNoOffer = errors.New("no backend has been probed yet")

// An SMTP is the dialogue of submission (RFC 6409) up to AUTH (RFC 4954), with
// STARTTLS (RFC 3207).
type SMTP struct{ dialogue }

// NewSMTP returns the dialogue with the client on c.
func NewSMTP(c *proxy.Conn, o Options) *SMTP {
	return &SMTP{dialogue: dialogue{c: c, options: o, prompt: "334 "}}
}

// Login implements proxy.Dialogue. The Extensions of its Login's Offer are the
// lines of the EHLO reply after the first, AUTH included: who answers the next
// EHLO repeats them.
func (d *SMTP) Login(ctx context.Context) (*proxy.Login, error) {
	if err := d.greet(); err != nil {
		return nil, err
	}
	for {
		login, err := d.next(ctx)
		if login != nil {
			login.Offer.Extensions = d.extensions()
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
	if d.learn(); d.offer.Mechanisms == nil {
		return proxy.NewRefusal(proxy.Unavailable, errNoOffer)
	}
	d.greeted = true
	return d.say("220 " + d.options.Hostname + " ESMTP Postern")
}

// extensions are the lines of the reply to EHLO after the first.
func (d *SMTP) extensions() []string {
	if d.inClear() {
		return slices.Concat(d.offer.Extensions, []string{"STARTTLS"})
	}
	return slices.Concat(d.offer.Extensions, []string{"AUTH " + strings.Join(d.mechanisms(), " ")})
}

// Refuse implements proxy.Dialogue.
func (d *SMTP) Refuse(r *proxy.Refusal) error {
	if err := d.challenge(r); err != nil {
		return d.hangUp("503 5.5.0 Wait for the challenge", err)
	}
	last, w := d.last(r), d.words(r)
	switch {
	case !d.greeted && r.Reason.Temporary():
		_ = d.say("421 4.3.2 " + w.text) // RFC 5321 section 4.3.2: nothing else temporary greets
	case !d.greeted:
		_ = d.say("554" + w.smtp[3:] + " " + w.text)
	case last && !strings.HasPrefix(w.smtp, "421"): // RFC 5321 section 3.8: no end without one
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
func (d *SMTP) next(ctx context.Context) (*proxy.Login, error) {
	if err := d.command(); err != nil {
		return nil, d.hangUp("421 4.7.0 Too many commands", err)
	}
	line, err := d.readLine(maxVerb + maxResponse)
	switch {
	case errors.Is(err, proxy.ErrLineTooLong):
		return nil, d.bad("500 5.5.2 Line too long")
	case errors.Is(err, proxy.ErrFlood):
		return nil, d.hangUp("421 4.7.0 Line too long", err)
	case errors.Is(err, proxy.ErrEarlyTLS):
		return nil, d.hangUp("554 5.7.0 "+notYet, err)
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
	case len(line) > maxSMTPLine && name != "AUTH":
		return nil, d.bad("500 5.5.2 Line too long")
	}
	arg = bytes.TrimRight(arg, " ")
	switch {
	case d.inClear():
		return d.nextInClear(ctx, name, arg)
	case name == "AUTH":
		return d.auth(arg)
	}
	return nil, d.simple(name, arg)
}

// nextInClear answers a command before TLS.
func (d *SMTP) nextInClear(ctx context.Context, name string, arg []byte) (*proxy.Login, error) {
	const first = "530 5.7.0 Must issue a STARTTLS command first" // RFC 3207 section 4
	switch {
	case name == "AUTH":
		word, initial := wire.CutWord(arg)
		return saslInTheClear(wire.Keyword(word), initial)
	case name == "STARTTLS" && len(arg) == 0:
		return nil, d.startTLS(ctx, "220 2.0.0 Ready to start TLS")
	case name == "STARTTLS":
		return nil, d.bad("501 5.5.4 STARTTLS has no parameters")
	case name == "BDAT":
		return nil, d.hangUp(first, errTooBig) // the chunk is on its way
	case name == "MAIL", name == "RCPT", name == "DATA", name == "VRFY", name == "HELP":
		return nil, d.say(first)
	}
	return nil, d.simple(name, arg)
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
		if d.hello.Name == "" {
			return d.say("503 5.5.1 EHLO comes first") // RFC 5321 section 4.1.4
		}
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
	// Some programs give the name of their machine, whatever is in it; Postfix,
	// too, takes UTF-8 here. What is none is Latin-1, or no name.
	if len(domain) == 0 || len(domain) > maxDomain || !plainText(domain) {
		return d.bad("501 5.5.4 Invalid domain")
	}
	d.hello.Name = string(domain)
	if name == "HELO" {
		return d.say("250 " + d.options.Hostname)
	}
	_, err := d.c.Write(wire.AppendEHLO(nil, d.options.Hostname, d.extensions()))
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
	login, err := d.exchange(mech, initial)
	// RFC 4954 section 4: what is not over in one round trip ends its group.
	if err == nil && d.c.Buffered() > 0 && !(pipelined && mech == wire.MechanismPlain) {
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
