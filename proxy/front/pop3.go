package front

import (
	"context"
	"errors"
	"slices"
	"strings"

	"postern/proxy"
	"postern/proxy/wire"
)

// maxPOP3Line is in octets. RFC 2449 section 4 wants 255 for all but AUTH;
// names and passwords may be longer here.
const maxPOP3Line = maxPassword + maxVerb

// A POP3 is the dialogue of RFC 1939 in the AUTHORIZATION state, with CAPA (RFC
// 2449), AUTH (RFC 5034) and STLS (RFC 2595).
type POP3 struct {
	dialogue
	user []byte // from USER, for the PASS that follows; nil: none
}

// NewPOP3 returns the dialogue with the client on c.
func NewPOP3(c *proxy.Conn, o Options) *POP3 {
	return &POP3{dialogue: dialogue{c: c, options: o, prompt: "+ "}}
}

// Login implements proxy.Dialogue.
func (d *POP3) Login(ctx context.Context) (*proxy.Login, error) {
	if err := d.greet(); err != nil {
		return nil, err
	}
	for {
		login, err := d.next(ctx)
		if login != nil || err != nil {
			return login, err
		}
	}
}

// greet has no <timestamp> in the greeting, which would promise APOP.
func (d *POP3) greet() error {
	if d.greeted {
		return nil
	}
	d.greeted = true
	d.learn()
	return d.say("+OK " + d.options.Hostname + " ready")
}

// Refuse implements proxy.Dialogue.
func (d *POP3) Refuse(r *proxy.Refusal) error {
	if err := d.challenge(r); err != nil {
		return d.hangUp("Wait for the challenge", err)
	}
	last, w := d.last(r), d.words(r)
	line := "-ERR "
	if w.pop3 != "" {
		line += w.pop3 + " "
	}
	if err := d.say(line + w.text); err != nil || !last {
		return err
	}
	return r
}

// Accept implements proxy.Dialogue.
func (d *POP3) Accept(welcome string) error {
	return d.say("+OK " + oneLine(welcome, "Logged in"))
}

// bad refuses what is no command, or not a proper one.
func (d *POP3) bad(text string) error {
	d.count.bad++
	return d.say("-ERR " + text)
}

// hangUp says why the connection ends, and returns err.
func (d *POP3) hangUp(text string, err error) error {
	_ = d.say("-ERR " + d.signed(text))
	return err
}

// next reads and answers one command. If credentials are what it brings, they
// are the answer.
func (d *POP3) next(ctx context.Context) (*proxy.Login, error) {
	if err := d.command(); err != nil {
		return nil, d.hangUp("Too many commands", err)
	}
	line, err := d.readLine(maxVerb + maxResponse)
	switch {
	case errors.Is(err, proxy.ErrLineTooLong):
		return nil, d.bad("Line too long")
	case errors.Is(err, proxy.ErrFlood):
		return nil, d.hangUp("Line too long", err)
	case errors.Is(err, proxy.ErrEarlyTLS):
		return nil, d.hangUp(notYet, err)
	case err != nil:
		return nil, err
	}
	text, _ := wire.TrimLine(line)
	word, arg := wire.CutWord(text)
	if http(word) {
		return nil, errHTTP
	}
	name := wire.Keyword(word)
	switch {
	case len(line) > maxPOP3Line && name != "AUTH":
		return nil, d.bad("Line too long")
	case d.inClear():
		return d.nextInClear(ctx, name, arg)
	case name == "AUTH":
		return d.auth(arg)
	case name == "PASS":
		return d.pass(arg)
	}
	return nil, d.simple(name, arg)
}

// nextInClear answers a command before TLS.
func (d *POP3) nextInClear(ctx context.Context, name string, arg []byte) (*proxy.Login, error) {
	word, initial := wire.CutWord(arg)
	switch {
	case name == "AUTH" && len(arg) == 0: // asks for mechanisms
		return nil, d.say("-ERR Begin TLS first")
	case name == "AUTH":
		return saslInTheClear(wire.Keyword(word), initial)
	case name == "USER":
		return inTheClear(proxy.ViaUserPass, arg)
	case name == "PASS":
		return inTheClear(proxy.ViaUserPass, nil)
	case name == "APOP":
		return inTheClear(proxy.ViaOther, word)
	case name == "STLS" && len(arg) == 0:
		return nil, d.startTLS(ctx, "+OK Begin TLS negotiation")
	case name == "STLS":
		return nil, d.bad("STLS has no arguments")
	}
	return nil, d.simple(name, arg)
}

// pass takes all behind the first space: spaces belong to the password, RFC
// 1939 section 7. After it there must be another USER.
func (d *POP3) pass(password []byte) (*proxy.Login, error) {
	user := d.user
	d.user = nil
	if user == nil {
		return nil, d.bad("USER comes first")
	}
	return d.password(proxy.ViaUserPass, user, password)
}

// simple answers the commands that bring no credentials. None of them, CAPA
// least of all, comes between USER and PASS.
func (d *POP3) simple(name string, arg []byte) error {
	switch name {
	case "USER":
		if len(arg) == 0 {
			return d.bad("Missing user name")
		}
		d.user = append([]byte(nil), arg...)
		return d.say("+OK Send your password") // to every name: RFC 1939 section 13
	case "CAPA":
		return d.capa()
	case "QUIT":
		if err := d.say("+OK Goodbye"); err != nil {
			return err
		}
		return proxy.ErrQuit
	case "APOP":
		return d.bad("APOP is not supported: log in with your password, which TLS protects")
	case "STLS":
		return d.bad("TLS is active already")
	case "UTF8":
		return d.utf8(arg)
	case "LANG":
		return d.bad("LANG is not supported")
	case "STAT", "LIST", "RETR", "DELE", "NOOP", "RSET", "TOP", "UIDL":
		return d.say("-ERR Log in first") // no strike: it may be pipelined behind PASS
	}
	return d.bad("Unknown command")
}

// capa lists UIDL and TOP before login, too: there are clients that ask only
// then. RFC 2595 section 4 has STLS in it while it is permitted.
func (d *POP3) capa() error {
	login := []string{"USER", "SASL " + strings.Join(d.mechanisms(), " ")}
	if d.inClear() {
		login = []string{"STLS"}
	}
	always := []string{"UIDL", "TOP", "RESP-CODES", "AUTH-RESP-CODE", "PIPELINING"}
	chosen := d.options.Capabilities
	if d.inClear() { // RFC 6856 section 2.1: UTF8 is no command before STLS
		chosen = slices.DeleteFunc(slices.Clone(chosen), func(line string) bool { return line == utf8Mode })
	}
	return d.say(slices.Concat([]string{"+OK Capability list follows"}, login, always, chosen, []string{"."})...)
}

// utf8Mode is the command, and the line of CAPA, of RFC 6856.
const utf8Mode = "UTF8"

// utf8 enters the mode of RFC 6856 section 2.1, in which messages are in.
func (d *POP3) utf8(arg []byte) error {
	switch {
	case !slices.Contains(d.options.Capabilities, utf8Mode):
		return d.bad("UTF8 is not supported")
	case len(arg) > 0:
		return d.bad("UTF8 has no arguments")
	case d.inClear():
		return d.bad("Begin TLS first")
	}
	d.hello.UTF8 = true
	return d.say("+OK UTF-8 mode")
}

func (d *POP3) auth(arg []byte) (*proxy.Login, error) {
	// AUTH alone, from before CAPA: RFC 1734's clients ask so for mechanisms.
	if len(arg) == 0 {
		return nil, d.say(slices.Concat([]string{"+OK Mechanisms follow"}, d.mechanisms(), []string{"."})...)
	}
	name, initial := wire.CutWord(arg)
	if len(initial) == 0 {
		initial = nil
	}
	login, err := d.exchange(wire.Keyword(name), initial)
	switch {
	case errors.Is(err, errCancelled):
		return nil, d.bad("Authentication cancelled") // RFC 5034 section 4
	case errors.Is(err, errEarly):
		return nil, d.hangUp("Wait for the challenge", err)
	case errors.Is(err, proxy.ErrFlood):
		return nil, d.hangUp("Line too long", err)
	}
	return login, err
}
