package front

import (
	"context"
	"slices"
	"strings"

	"postern/proxy"
	"postern/proxy/wire"
)

// maxPOP3Line is in octets. RFC 2449 section 4 requires 255 for all commands but
// AUTH; names and passwords may be longer here.
const maxPOP3Line = maxPassword + maxVerb

// A POP3 is the dialogue of RFC 1939 in the AUTHORIZATION state, with CAPA (RFC
// 2449), AUTH (RFC 5034) and STLS (RFC 2595).
type POP3 struct {
	dialogue
	user []byte // from USER, for the PASS that follows; nil: none
}

// NewPOP3 returns the dialogue with the client on c.
func NewPOP3(c *proxy.Conn, o Options) *POP3 {
	d := &POP3{dialogue: dialogue{c: c, options: o, prompt: "+ ", replies: replies{
		lineTooLong: "Line too long",
		flood:       "Line too long",
		earlyTLS:    earlyTLSText,
		cancelled:   "Authentication cancelled", // RFC 5034 section 4
		early:       "Wait for the challenge",
	}}}
	d.protocol = d
	return d
}

// Login implements proxy.Dialogue.
func (d *POP3) Login(ctx context.Context) (*proxy.Login, error) {
	return d.untilLogin(ctx)
}

// greet sends a greeting without a timestamp, which would announce APOP.
func (d *POP3) greet() error {
	d.greeted = true
	return d.reply("+OK " + d.options.Hostname + " ready")
}

// Refuse implements proxy.Dialogue.
func (d *POP3) Refuse(r *proxy.Refusal) error {
	if err := d.sendFailure(r); err != nil {
		return d.disconnect(d.replies.early, err)
	}
	last, w := d.countRefusal(r), d.wording(r)
	line := "-ERR "
	if w.pop3 != "" {
		line += w.pop3 + " "
	}
	if err := d.reply(line + w.text); err != nil || !last {
		return err
	}
	return r
}

// Accept implements proxy.Dialogue.
func (d *POP3) Accept(welcome string) error {
	return d.reply("+OK " + oneLine(welcome, "Logged in"))
}

// bad counts and refuses a line that is no valid command.
func (d *POP3) bad(text string) error {
	d.count.bad++
	return d.reply("-ERR " + text)
}

// disconnect tells the client why the connection ends, and returns err.
func (d *POP3) disconnect(text string, err error) error {
	_ = d.reply("-ERR " + d.withSessionID(text))
	return err
}

// nextCommand reads and answers a command. Credentials are returned instead.
func (d *POP3) nextCommand(ctx context.Context) (*proxy.Login, error) {
	if err := d.countCommand(); err != nil {
		return nil, d.disconnect("Too many commands", err)
	}
	line, err := d.readLine(maxVerb + maxResponse)
	if err != nil {
		return nil, d.readError(err)
	}
	text, _ := wire.TrimLine(line)
	word, arg := wire.CutWord(text)
	if isHTTPMethod(word) {
		return nil, errHTTP
	}
	name := wire.Keyword(word)
	switch {
	case len(line) > maxPOP3Line && name != "AUTH":
		return nil, d.bad(d.replies.lineTooLong)
	case d.inClear():
		return d.commandBeforeTLS(ctx, name, arg)
	case name == "AUTH":
		return d.auth(arg)
	case name == "PASS":
		return d.pass(arg)
	}
	return nil, d.simpleCommand(name, arg)
}

// commandBeforeTLS answers a command before TLS.
func (d *POP3) commandBeforeTLS(ctx context.Context, name string, arg []byte) (*proxy.Login, error) {
	word, initial := wire.CutWord(arg)
	switch {
	case name == "AUTH" && len(arg) == 0: // asks for the mechanisms
		return nil, d.reply("-ERR Begin TLS first")
	case name == "AUTH":
		return plaintextSASLRefusal(wire.Keyword(word), initial)
	case name == "USER":
		return plaintextRefusal(proxy.ViaUserPass, arg)
	case name == "PASS":
		return plaintextRefusal(proxy.ViaUserPass, nil)
	case name == "APOP":
		return plaintextRefusal(proxy.ViaOther, word)
	case name == "STLS" && len(arg) == 0:
		return nil, d.startTLS(ctx, "+OK Begin TLS negotiation")
	case name == "STLS":
		return nil, d.bad("STLS has no arguments")
	}
	return nil, d.simpleCommand(name, arg)
}

// pass takes everything after the first space: spaces belong to the password, RFC
// 1939 section 7. After PASS, USER has to come again.
func (d *POP3) pass(password []byte) (*proxy.Login, error) {
	user := d.user
	d.user = nil
	if user == nil {
		return nil, d.bad("USER comes first")
	}
	return d.passwordLogin(proxy.ViaUserPass, user, password)
}

// simpleCommand answers commands that carry no credentials. After any of them,
// also CAPA, a USER before it still counts.
func (d *POP3) simpleCommand(name string, arg []byte) error {
	switch name {
	case "USER":
		if len(arg) == 0 {
			return d.bad("Missing user name")
		}
		d.user = append([]byte(nil), arg...)
		return d.reply("+OK Send your password") // to every name: RFC 1939 section 13
	case "CAPA":
		return d.capa()
	case "QUIT":
		if err := d.reply("+OK Goodbye"); err != nil {
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
		return d.reply("-ERR Log in first") // not counted as bad: it may be pipelined after PASS
	}
	return d.bad("Unknown command")
}

// capa lists UIDL and TOP before login, too: some clients ask only then. STLS is
// listed while it is permitted: RFC 2595 section 4.
func (d *POP3) capa() error {
	login := []string{"USER", "SASL " + strings.Join(d.mechanisms(), " ")}
	if d.inClear() {
		login = []string{"STLS"}
	}
	always := []string{"UIDL", "TOP", "RESP-CODES", "AUTH-RESP-CODE", "PIPELINING"}
	configured := d.options.Capabilities
	if d.inClear() { // RFC 6856 section 2.1: UTF8 is no command before STLS
		configured = slices.DeleteFunc(slices.Clone(configured), func(line string) bool { return line == utf8Mode })
	}
	return d.reply(slices.Concat([]string{"+OK Capability list follows"}, login, always, configured, []string{"."})...)
}

// utf8Mode is the command and the capability of RFC 6856.
const utf8Mode = "UTF8"

// utf8 enters the UTF8 mode of RFC 6856 section 2.1.
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
	return d.reply("+OK UTF-8 mode")
}

func (d *POP3) auth(arg []byte) (*proxy.Login, error) {
	// AUTH without arguments asks for the mechanisms: clients of RFC 1734 use it.
	if len(arg) == 0 {
		return nil, d.reply(slices.Concat([]string{"+OK Mechanisms follow"}, d.mechanisms(), []string{"."})...)
	}
	name, initial := wire.CutWord(arg)
	if len(initial) == 0 {
		initial = nil
	}
	return d.exchanged(d.exchange(wire.Keyword(name), initial))
}
