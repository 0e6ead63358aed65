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
	d := &SMTP{dialogue: dialogue{c: c, options: o, prompt: "334 ", replies: replies{
		lineTooLong: "500 5.5.2 Line too long",
		flood:       "421 4.7.0 Line too long",
		earlyTLS:    "554 5.7.0 " + earlyTLSText,
		cancelled:   "501 5.7.0 Authentication cancelled", // RFC 4954 section 4
		early:       "503 5.5.0 Wait for the challenge",
	}}}
	d.protocol = d
	return d
}

// Login implements proxy.Dialogue. The Offer.Extensions of the Login are the
// lines of the EHLO reply after the first, including AUTH: the relay repeats them
// in its reply to the next EHLO.
func (d *SMTP) Login(ctx context.Context) (*proxy.Login, error) {
	login, err := d.untilLogin(ctx)
	if login != nil {
		login.Offer.Extensions = d.extensions()
	}
	return login, err
}

func (d *SMTP) greet() error {
	if d.offer.Mechanisms == nil {
		return proxy.NewRefusal(proxy.Unavailable, errNoOffer)
	}
	d.greeted = true
	return d.reply("220 " + d.options.Hostname + " ESMTP Postern")
}

// extensions returns the lines of the EHLO reply after the first.
func (d *SMTP) extensions() []string {
	if d.inClear() {
		return slices.Concat(d.offer.Extensions, []string{"STARTTLS"})
	}
	return slices.Concat(d.offer.Extensions, []string{"AUTH " + strings.Join(d.mechanisms(), " ")})
}

// Refuse implements proxy.Dialogue.
func (d *SMTP) Refuse(r *proxy.Refusal) error {
	if err := d.sendFailure(r); err != nil {
		return d.disconnect(d.replies.early, err)
	}
	last, w := d.countRefusal(r), d.wording(r)
	switch {
	case !d.greeted && r.Reason.Temporary():
		_ = d.reply("421 4.3.2 " + w.text) // RFC 5321 section 4.3.2: the only temporary greeting
	case !d.greeted:
		_ = d.reply("554" + w.smtp[3:] + " " + w.text)
	case last && !strings.HasPrefix(w.smtp, "421"): // RFC 5321 section 3.8: no closing without 421
		_ = d.reply(w.smtp+" "+w.text, "421 4.7.0 "+d.withSessionID(tooManyWrong))
	default:
		if err := d.reply(w.smtp + " " + w.text); err != nil || !last {
			return err
		}
	}
	return r
}

// Accept implements proxy.Dialogue.
func (d *SMTP) Accept(welcome string) error {
	return d.reply("235 2.7.0 " + oneLine(welcome, "Authentication successful"))
}

// bad counts and refuses a line that is no valid command.
func (d *SMTP) bad(reply string) error {
	d.count.bad++
	return d.reply(reply)
}

// disconnect tells the client why the connection ends, and returns err.
func (d *SMTP) disconnect(reply string, err error) error {
	_ = d.reply(d.withSessionID(reply))
	return err
}

// nextCommand reads and answers a command. Credentials are returned instead.
func (d *SMTP) nextCommand(ctx context.Context) (*proxy.Login, error) {
	if err := d.countCommand(); err != nil {
		return nil, d.disconnect("421 4.7.0 Too many commands", err)
	}
	line, err := d.readLine(maxVerb + maxResponse)
	if err != nil {
		return nil, d.readError(err)
	}
	text, ok := wire.TrimLine(line)
	word, arg := wire.CutWord(text)
	name := wire.Keyword(word)
	switch {
	case isHTTPMethod(word):
		return nil, errHTTP
	// All servers must agree about the end of a line: SMTP smuggling.
	case !ok || bytes.ContainsAny(text, "\x00\r"):
		return nil, d.bad("500 5.5.2 Lines end with CRLF and hold no CR, LF or NUL")
	case len(line) > maxSMTPLine && name != "AUTH":
		return nil, d.bad(d.replies.lineTooLong)
	}
	arg = bytes.TrimRight(arg, " ")
	switch {
	case d.inClear():
		return d.commandBeforeTLS(ctx, name, arg)
	case name == "AUTH":
		return d.auth(arg)
	}
	return nil, d.simpleCommand(name, arg)
}

// commandBeforeTLS answers a command before TLS.
func (d *SMTP) commandBeforeTLS(ctx context.Context, name string, arg []byte) (*proxy.Login, error) {
	const first = "530 5.7.0 Must issue a STARTTLS command first" // RFC 3207 section 4
	switch {
	case name == "AUTH":
		word, initial := wire.CutWord(arg)
		return plaintextSASLRefusal(wire.Keyword(word), initial)
	case name == "STARTTLS" && len(arg) == 0:
		return nil, d.startTLS(ctx, "220 2.0.0 Ready to start TLS")
	case name == "STARTTLS":
		return nil, d.bad("501 5.5.4 STARTTLS has no parameters")
	case name == "BDAT":
		return nil, d.disconnect(first, errTooBig) // the chunk follows at once
	case name == "MAIL", name == "RCPT", name == "DATA", name == "VRFY", name == "HELP":
		return nil, d.reply(first)
	}
	return nil, d.simpleCommand(name, arg)
}

// simpleCommand answers commands that carry no credentials.
func (d *SMTP) simpleCommand(name string, arg []byte) error {
	switch name {
	case "EHLO", "HELO":
		return d.ehlo(name, arg)
	case "NOOP", "RSET":
		return d.reply("250 2.0.0 OK")
	case "VRFY":
		return d.reply("252 2.0.0 Send some mail to find out") // RFC 5321 section 3.5.3
	case "HELP":
		return d.reply("214 2.0.0 Log in with AUTH: RFC 4954, RFC 6409")
	case "MAIL", "RCPT", "DATA":
		if d.hello.Name == "" {
			return d.reply("503 5.5.1 EHLO comes first") // RFC 5321 section 4.1.4
		}
		return d.reply("530 5.7.0 Authentication required") // not counted as bad: it may be pipelined after AUTH
	case "BDAT":
		return d.disconnect("503 5.5.1 Authentication required", errTooBig) // the chunk follows at once
	case "STARTTLS":
		return d.bad("503 5.5.1 TLS is active already")
	case "QUIT":
		if err := d.reply("221 2.0.0 Goodbye"); err != nil {
			return err
		}
		return proxy.ErrQuit
	}
	return d.bad("502 5.5.1 Command not implemented")
}

func (d *SMTP) ehlo(name string, arg []byte) error {
	domain, _ := wire.CutWord(arg)
	// Some programs send the name of their machine, whatever it contains. Postfix
	// accepts UTF-8, too. Other octets are Latin-1, or no name.
	if len(domain) == 0 || len(domain) > maxDomain || !isText(domain) {
		return d.bad("501 5.5.4 Invalid domain")
	}
	d.hello.Name = string(domain)
	if name == "HELO" {
		return d.reply("250 " + d.options.Hostname)
	}
	_, err := d.c.Write(wire.AppendEHLO(nil, d.options.Hostname, d.extensions()))
	return err
}

// auth also serves clients that sent HELO, as other servers do.
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
	// RFC 4954 section 4: an exchange of several round trips ends a pipelined group.
	if err == nil && d.c.Buffered() > 0 && !(pipelined && mech == wire.MechanismPlain) {
		login.Secret.Clear()
		login, err = nil, errEarly
	}
	return d.exchanged(login, err)
}
