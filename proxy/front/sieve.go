package front

import (
	"context"
	"errors"
	"io"
	"slices"
	"strings"

	"postern/proxy"
	"postern/proxy/wire"
)

const (
	maxSieveTag     = 128 // octets that NOOP repeats
	maxSieveStrings = 8   // literals of a command
)

var errSyncLiteral = errors.New("client sent a literal without a plus")

// A Sieve is the dialogue of ManageSieve (RFC 5804) in the non-authenticated state, with
// STARTTLS.
type Sieve struct{ dialogue }

// NewSieve returns the dialogue with the client on c.
func NewSieve(c *proxy.Conn, o Options) *Sieve {
	d := &Sieve{dialogue: dialogue{c: c, options: o, replies: replies{
		lineTooLong: "Line too long",
		flood:       "Line too long",
		earlyTLS:    earlyTLSText,
		cancelled:   "Authentication cancelled", // RFC 5804 section 2.1
		early:       "Wait for the challenge",
	}}}
	d.protocol = d
	return d
}

// Login implements proxy.Dialogue.
func (d *Sieve) Login(ctx context.Context) (*proxy.Login, error) { return d.untilLogin(ctx) }

// greet sends the capabilities. They promise what the backends do, so before one was
// reached there is no greeting.
func (d *Sieve) greet() error {
	if d.offer.Mechanisms == nil {
		return proxy.NewRefusal(proxy.Unavailable, errNoOffer)
	}
	d.greeted = true
	return d.reply(append(d.capabilities(), sieveReply(wire.SieveOK, "", d.options.Hostname+" ready"))...)
}

// backendCapabilities are those that a client may use if all backends have them. STARTTLS
// and SASL are Postern's own; UNAUTHENTICATE would take the session back to a state in
// which nothing counts passwords; the others are not known.
var backendCapabilities = []string{"VERSION", "SIEVE", "NOTIFY", "MAXREDIRECTS", "EXTLISTS", "LANGUAGE", "RENAME"}

// capabilities returns the lines of a capability response: RFC 5804 section 1.7.
func (d *Sieve) capabilities() []string {
	implementation := "Postern"
	if d.options.Anonymous {
		implementation = ""
	}
	lines := []string{sieveCapability("IMPLEMENTATION", implementation)}
	if d.inClear() {
		lines = append(lines, `"SASL" ""`, `"STARTTLS"`)
	} else {
		lines = append(lines, sieveCapability("SASL", strings.Join(d.mechanisms(), " ")))
	}
	for _, name := range backendCapabilities {
		value, ok := wire.SieveCapability(d.offer.Extensions, name)
		switch {
		case name == "RENAME" && ok:
			lines = append(lines, `"RENAME"`)
		case name == "SIEVE", ok && value != "": // SIEVE is mandatory
			lines = append(lines, sieveCapability(name, value))
		}
	}
	return lines
}

func sieveCapability(name, value string) string {
	return `"` + name + `" ` + string(wire.AppendSieveString(nil, []byte(value)))
}

// sieveReply returns the line that ends a response: RFC 5804 section 1.2.
func sieveReply(name, code, text string) string {
	if code != "" {
		name += " (" + code + ")"
	}
	return string(wire.AppendSieveString([]byte(name+" "), []byte(text)))
}

// Refuse implements proxy.Dialogue. A client that is refused temporarily learns it from BYE
// as well: after NO alone, clients ask their users for another password.
func (d *Sieve) Refuse(r *proxy.Refusal) error {
	if err := d.sendFailure(r); err != nil {
		return d.disconnect(d.replies.early, err)
	}
	last, w := d.countRefusal(r), d.wording(r)
	no, bye := sieveReply(wire.SieveNo, w.sieve, w.text), sieveReply(wire.SieveBye, byeCode(w.sieve), w.text)
	switch {
	case !d.greeted:
		_ = d.reply(bye)
	case r.Reason.Temporary():
		_ = d.reply(no, bye)
	case last:
		_ = d.reply(no, sieveReply(wire.SieveBye, "", d.withSessionID(tooManyWrong)))
	default:
		return d.reply(no)
	}
	return r
}

// byeCode returns the code of the BYE behind a NO with code.
func byeCode(code string) string {
	if code == sieveTryLater {
		return code
	}
	return ""
}

// Accept implements proxy.Dialogue. Capabilities follow only a SASL security layer, which
// there is none: RFC 5804 section 2.1.
func (d *Sieve) Accept(welcome string) error {
	return d.reply(sieveReply(wire.SieveOK, "", oneLine(welcome, "Logged in")))
}

// bad counts and refuses a line that is no valid command.
func (d *Sieve) bad(text string) error {
	d.count.bad++
	return d.reply(sieveReply(wire.SieveNo, "", text))
}

// disconnect tells the client why the connection ends, and returns err.
func (d *Sieve) disconnect(text string, err error) error {
	_ = d.reply(sieveReply(wire.SieveBye, "", d.withSessionID(text)))
	return err
}

// nextCommand reads and answers a command. Credentials are returned instead.
func (d *Sieve) nextCommand(ctx context.Context) (*proxy.Login, error) {
	if err := d.countCommand(); err != nil {
		return nil, d.disconnect("Too many commands", err)
	}
	command, err := d.readCommand(true)
	if command == nil || err != nil {
		return nil, err
	}
	defer clear(command)
	args := wire.NewScanner(command)
	word, err := args.Atom()
	name := wire.Keyword(word)
	switch {
	case err != nil || name == "":
		return nil, d.bad("Missing command")
	case name == "AUTHENTICATE":
		return d.authenticate(args)
	case name == "NOOP":
		return nil, d.noop(args)
	}
	return nil, d.simpleCommand(ctx, name, end(args) == nil)
}

// readCommand reads a line with its literals, which a command or a response to a challenge
// is. Its memory is the caller's to wipe. nil: the client has its answer.
func (d *Sieve) readCommand(first bool) ([]byte, error) {
	const most = maxVerb + maxResponse // octets with the literals
	line, err := d.readLine(most)
	if err != nil {
		return nil, d.readError(err)
	}
	if word, _ := wire.CutWord(line); first && isHTTPMethod(word) {
		return nil, errHTTP
	}
	literal, more := wire.SieveLiteral(line)
	if !more {
		return slices.Clone(line), nil
	}
	command := make([]byte, 0, most) // once: reallocating would leave copies of a password
	for range maxSieveStrings {
		if literal.Sync {
			return nil, d.giveUp(command, "A literal of a client has a plus: RFC 5804 section 4", errSyncLiteral)
		}
		if literal.Size > int64(most-len(command)-len(line)) {
			return nil, d.giveUp(command, "Literal too large", errTooBig)
		}
		command = append(command, line...)
		begin := len(command)
		command = command[:begin+int(literal.Size)]
		if _, err := io.ReadFull(d.c, command[begin:]); err != nil {
			clear(command)
			return nil, err
		}
		if line, err = d.readLine(most - len(command)); err != nil {
			clear(command)
			return nil, d.readError(err)
		}
		if literal, more = wire.SieveLiteral(line); !more {
			return append(command, line...), nil
		}
	}
	return nil, d.giveUp(command, "Too many literals", errTooBig)
}

// giveUp ends a connection on which the begin of the next command is not known.
func (d *Sieve) giveUp(command []byte, text string, err error) error {
	clear(command)
	return d.disconnect(text, err)
}

// readError answers an error of reading. The end of a line that is too long may announce a
// literal, whose octets must not be read as commands: the connection ends.
func (d *Sieve) readError(err error) error {
	if errors.Is(err, proxy.ErrLineTooLong) {
		return d.disconnect(d.replies.lineTooLong, err)
	}
	return d.dialogue.readError(err)
}

// simpleCommand answers commands without arguments, and unknown ones.
func (d *Sieve) simpleCommand(ctx context.Context, name string, noArgs bool) error {
	switch name {
	case "HAVESPACE", "PUTSCRIPT", "LISTSCRIPTS", "SETACTIVE", "GETSCRIPT", "DELETESCRIPT", "RENAMESCRIPT", "CHECKSCRIPT", "UNAUTHENTICATE":
		return d.reply(sieveReply(wire.SieveNo, "", "Log in first")) // not counted as bad: it may be pipelined after AUTHENTICATE
	}
	if !noArgs {
		return d.bad("Unknown command or arguments")
	}
	switch name {
	case "CAPABILITY":
		return d.reply(append(d.capabilities(), sieveReply(wire.SieveOK, "", "CAPABILITY completed"))...)
	case "STARTTLS":
		return d.beginTLS(ctx)
	case "LOGOUT":
		if err := d.reply(sieveReply(wire.SieveOK, "", "Logging out")); err != nil {
			return err
		}
		return proxy.ErrQuit
	}
	return d.bad("Unknown command")
}

// beginTLS answers STARTTLS. The capabilities follow the handshake unasked: RFC 5804 section
// 2.2.
func (d *Sieve) beginTLS(ctx context.Context) error {
	if !d.inClear() {
		return d.bad("TLS is active already")
	}
	if err := d.startTLS(ctx, sieveReply(wire.SieveOK, "", "Begin TLS negotiation now")); err != nil {
		return err
	}
	return d.reply(append(d.capabilities(), sieveReply(wire.SieveOK, "", "TLS negotiation successful"))...)
}

// noop repeats its argument, by which clients find the answer to the last of several
// commands: RFC 5804 section 2.13.
func (d *Sieve) noop(args *wire.Scanner) error {
	if end(args) == nil {
		return d.reply(sieveReply(wire.SieveOK, "", "NOOP completed"))
	}
	if spaces(args) != nil {
		return d.bad("Invalid arguments for NOOP")
	}
	tag, err := args.String()
	odd := func(c byte) bool { return c < ' ' || c > '~' }
	if err != nil || end(args) != nil || len(tag) > maxSieveTag || slices.ContainsFunc(tag, odd) {
		return d.bad("Invalid arguments for NOOP")
	}
	return d.reply(sieveReply(wire.SieveOK, string(wire.AppendSieveString([]byte("TAG "), tag)), "NOOP completed"))
}

func (d *Sieve) authenticate(args *wire.Scanner) (*proxy.Login, error) {
	word, err := argument(args)
	var initial []byte
	if err == nil && end(args) != nil {
		initial, err = argumentString(args)
	}
	if err != nil || end(args) != nil {
		return nil, d.bad("Invalid arguments for AUTHENTICATE")
	}
	mechanism := wire.Keyword(word)
	if d.inClear() {
		return plaintextSASLRefusal(mechanism, initial)
	}
	return d.exchanged(d.exchange(mechanism, initial))
}

func argumentString(s *wire.Scanner) ([]byte, error) {
	if err := spaces(s); err != nil {
		return nil, err
	}
	return s.String()
}

// challenge sends a SASL challenge, given in base64, as a string.
func (d *Sieve) challenge(text []byte) error {
	return d.reply(string(wire.AppendSieveString(nil, text)))
}

// response reads the string with a client's response to a challenge.
func (d *Sieve) response() ([]byte, error) {
	line, err := d.readCommand(false)
	if err != nil {
		return nil, err
	}
	s := wire.NewScanner(line)
	text, err := s.String()
	if err != nil || end(s) != nil {
		clear(line)
		return nil, proxy.NewRefusal(proxy.Malformed, wire.ErrBase64)
	}
	return text, nil
}
