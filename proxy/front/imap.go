package front

import (
	"context"
	"errors"
	"io"
	"strings"

	"postern/proxy"
	"postern/proxy/wire"
)

const (
	maxCommand = 8 << 10 // octets of a command with its literals; AUTHENTICATE without literals, and ID, may be longer
	maxLiteral = 4 << 10 // RFC 7888 section 5
	maxTag     = 64

	// RFC 2971 section 3.3.
	maxIDPairs = 30
	maxIDKey   = 30
	maxIDValue = 1024

	maxIDCommand = 34 << 10 // octets of an ID command with all pairs, as quoted strings with some escapes, or as literals
)

// An IMAP is the dialogue of RFC 3501 in the not authenticated state, with
// SASL-IR (RFC 4959), LITERAL- (RFC 7888), ID (RFC 2971) and STARTTLS.
type IMAP struct {
	dialogue
	tag      string // of the command that is not yet answered; empty: none, or no valid tag
	literals []byte // the command, if it has literals
}

// NewIMAP returns the dialogue with the client on c.
func NewIMAP(c *proxy.Conn, o Options) *IMAP {
	d := &IMAP{dialogue: dialogue{c: c, options: o, prompt: "+ ", replies: replies{
		flood:     "Line too long",
		earlyTLS:  earlyTLSText,
		cancelled: "Authentication cancelled", // RFC 3501 section 6.2.2
		early:     "Wait for the continuation request",
	}}}
	d.protocol, d.extendLimit = d, d.lineLimit
	return d
}

// lineLimit returns how long a line with this beginning may be.
func (d *IMAP) lineLimit(begun []byte) int {
	if name, _, _ := nameOf(begun); name == "ID" && !d.inClear() {
		return maxIDCommand
	}
	return maxVerb + maxResponse
}

// Login implements proxy.Dialogue.
func (d *IMAP) Login(ctx context.Context) (*proxy.Login, error) {
	return d.untilLogin(ctx)
}

func (d *IMAP) greet() error {
	d.greeted = true
	return d.reply("* OK [" + d.capability() + "] " + d.options.Hostname + " ready")
}

// capability returns the capabilities before login. LITERAL+ would promise
// literals of any size. A bare LOGIN is no capability, but clients read it as
// one. Before TLS there are no literals and no ID: their content would be
// discarded.
func (d *IMAP) capability() string {
	if d.inClear() {
		return "CAPABILITY IMAP4rev1 STARTTLS LOGINDISABLED"
	}
	return "CAPABILITY IMAP4rev1 SASL-IR LITERAL- ID AUTH=" + strings.Join(d.mechanisms(), " AUTH=")
}

// Refuse implements proxy.Dialogue.
func (d *IMAP) Refuse(r *proxy.Refusal) error {
	if err := d.sendFailure(r); err != nil {
		return d.disconnect(d.replies.early, err)
	}
	last, w := d.countRefusal(r), d.wording(r)
	if d.tag == "" {
		_, code, _ := strings.Cut(w.imap, " ")
		_ = d.reply(strings.TrimSpace("* BYE "+code) + " " + w.text)
		return r
	}
	lines := []string{d.completion(w.imap + " " + w.text)}
	if r.Alert != "" && r.Text == "" {
		lines = []string{"* NO [ALERT] " + oneLine(r.Alert, ""), lines[0]}
	}
	switch {
	case !last:
		return d.reply(lines...)
	case r.Reason.Final():
		_ = d.reply(append(lines, "* BYE "+w.text)...)
	default:
		_ = d.reply(append(lines, "* BYE "+d.withSessionID(tooManyWrong))...)
	}
	return r
}

// Accept implements proxy.Dialogue. welcome begins with the capabilities after
// login: many clients read them here and nowhere else.
func (d *IMAP) Accept(welcome string) error {
	var lines []string
	if first, rest, ok := strings.Cut(welcome, crlf); ok && strings.HasPrefix(first, "[ALERT] ") {
		lines, welcome = []string{"* OK " + oneLine(first, "")}, rest
	}
	return d.reply(append(lines, d.completion("OK "+oneLine(welcome, "Logged in")))...)
}

// completion returns the tagged response to the command.
func (d *IMAP) completion(text string) string {
	line := d.tag + " " + text
	d.tag = ""
	return line
}

// bad counts and refuses a line that is no valid command.
func (d *IMAP) bad(text string) error {
	d.count.bad++
	if d.tag == "" {
		return d.reply("* BAD " + text)
	}
	return d.reply(d.completion("BAD " + text))
}

// disconnect tells the client why the connection ends, and returns err.
func (d *IMAP) disconnect(text string, err error) error {
	lines := []string{"* BYE " + d.withSessionID(text)}
	if d.tag != "" {
		lines = []string{d.completion("BAD " + text), lines[0]}
	}
	_ = d.reply(lines...)
	return err
}

// nextCommand reads and answers a command. Credentials are returned instead.
func (d *IMAP) nextCommand(ctx context.Context) (*proxy.Login, error) {
	if err := d.countCommand(); err != nil {
		return nil, d.disconnect("Too many commands", err)
	}
	line, err := d.read()
	if err != nil {
		return nil, err
	}
	if d.inClear() {
		return d.commandBeforeTLS(ctx, line)
	}
	command := line
	if lit, ok := wire.TrailingLiteral(line); ok {
		defer func() { clear(d.literals); d.literals = nil }()
		if command, err = d.readLiterals(line, lit); command == nil || err != nil {
			return nil, err
		}
	}
	name, args, wrong := d.parse(command)
	switch {
	case wrong != "":
		return nil, d.bad(wrong)
	case name == "AUTHENTICATE":
		return d.authenticate(args)
	case name == "ID":
		return nil, d.id(args)
	case len(command) > maxCommand:
		return nil, d.bad("Command too long")
	case name == "LOGIN":
		return d.login(args)
	}
	return nil, d.simpleCommand(name, end(args) == nil)
}

// commandBeforeTLS answers a command before TLS. It accepts no literal: a
// synchronizing literal is refused, a non-synchronizing one is discarded.
func (d *IMAP) commandBeforeTLS(ctx context.Context, line []byte) (*proxy.Login, error) {
	literal, more := wire.TrailingLiteral(line)
	name, args, wrong := d.parse(line)
	noArgs := wrong == "" && end(args) == nil
	var login *proxy.Login
	var refusal error
	switch name {
	case "LOGIN":
		user, _ := argument(args)
		login, refusal = plaintextRefusal(proxy.ViaLoginCommand, user)
	case "AUTHENTICATE":
		mechanism, initial, _ := mechanismOf(args)
		login, refusal = plaintextSASLRefusal(mechanism, initial)
	}
	if more {
		if err := d.discardLiterals(literal); err != nil {
			return nil, err
		}
	}
	switch {
	case wrong != "":
		return nil, d.bad(wrong)
	case login != nil:
		return login, refusal
	case name == "ID":
		return nil, d.reply(d.completion("BAD Begin TLS first"))
	case name == "STARTTLS" && noArgs:
		return nil, d.startTLS(ctx, d.completion("OK Begin TLS negotiation now"))
	}
	return nil, d.simpleCommand(name, noArgs)
}

// read returns the next line and sets the tag.
func (d *IMAP) read() ([]byte, error) {
	d.tag = ""
	line, err := d.readLine(maxVerb + maxResponse)
	if err != nil {
		return nil, d.readError(err)
	}
	if word, _ := wire.CutWord(line); isHTTPMethod(word) {
		return nil, errHTTP
	}
	if tag, err := wire.NewScanner(line).Tag(); err == nil && len(tag) <= maxTag {
		d.tag = string(tag)
	}
	return line, nil
}

// parse returns the name of a command and a scanner of its arguments, or what is
// wrong.
func (d *IMAP) parse(command []byte) (name string, args *wire.Scanner, wrong string) {
	name, args, err := nameOf(command)
	switch {
	case args == nil || d.tag == "":
		return "", nil, "Invalid tag"
	case err != nil:
		d.tag = "" // a single word may be a password that was sent early: it is not repeated
		return "", nil, "Missing command"
	}
	return name, args, ""
}

// nameOf returns the name of a command and a scanner of its arguments. Without a
// tag, args is nil.
func nameOf(command []byte) (name string, args *wire.Scanner, err error) {
	args = wire.NewScanner(command)
	if _, err := args.Tag(); err != nil {
		return "", nil, err
	}
	word, err := argumentAtom(args)
	return wire.Keyword(word), args, err
}

// readLiterals reads the rest of a command after a line that announces a literal.
// It allocates the memory once: reallocating would leave copies of a password.
func (d *IMAP) readLiterals(line []byte, lit wire.Literal) ([]byte, error) {
	most := maxCommand
	if name, _, _ := nameOf(line); name == "ID" {
		most = maxIDCommand
	}
	d.literals = make([]byte, 0, most)
	for more := true; more; lit, more = wire.TrailingLiteral(line) {
		if lit.Size > maxLiteral || len(d.literals)+len(line)+int(lit.Size) > most {
			return nil, d.rejectLiteral(lit)
		}
		d.literals = append(d.literals, line...)
		if lit.Sync {
			if err := d.reply("+ OK"); err != nil {
				return nil, err
			}
		}
		end := len(d.literals) + int(lit.Size)
		_, err := io.ReadFull(d.c, d.literals[len(d.literals):end])
		if err != nil {
			return nil, err
		}
		d.literals = d.literals[:end]
		if line, err = d.c.ReadLine(most - end); err != nil {
			return nil, d.readError(err)
		}
	}
	d.literals = append(d.literals, line...)
	return d.literals, nil
}

// discardLiterals reads the rest of a command that ends in lit, up to the first
// synchronizing literal.
func (d *IMAP) discardLiterals(lit wire.Literal) error {
	left := int64(maxCommand)
	for more := true; more && !lit.Sync; {
		if left -= lit.Size; lit.Size > maxLiteral || left < 0 {
			return d.rejectLiteral(lit)
		}
		octets := make([]byte, lit.Size)
		_, err := io.ReadFull(d.c, octets)
		clear(octets)
		if err != nil {
			return err
		}
		line, err := d.c.ReadLine(maxCommand)
		if err != nil {
			return d.readError(err)
		}
		lit, more = wire.TrailingLiteral(line)
	}
	return nil
}

// rejectLiteral refuses a literal that is too large. A synchronizing literal gets
// no continuation request; a non-synchronizing one follows at once, so the
// connection ends: RFC 7888 sections 4 and 5.
func (d *IMAP) rejectLiteral(lit wire.Literal) error {
	const text = "[TOOBIG] Literal too large"
	if lit.Sync {
		return d.bad(text)
	}
	_ = d.reply("* BYE " + text)
	return errTooBig
}

// readError answers an error of reading. A line that is too long may announce a
// literal, whose octets must not be read as commands: the connection ends.
func (d *IMAP) readError(err error) error {
	switch {
	case errors.Is(err, proxy.ErrEarlyTLS):
		return d.disconnect(d.replies.earlyTLS, err)
	case errors.Is(err, proxy.ErrLineTooLong), errors.Is(err, proxy.ErrFlood):
		return d.disconnect(d.replies.flood, err)
	}
	return err
}

// simpleCommand answers commands without arguments, and unknown ones.
func (d *IMAP) simpleCommand(name string, noArgs bool) error {
	switch {
	case needsLogin(name):
		return d.reply(d.completion("BAD Log in first")) // not counted as bad: it may be pipelined after LOGIN
	case !noArgs:
		return d.bad("Unknown command or arguments")
	}
	switch name {
	case "CAPABILITY":
		return d.reply("* "+d.capability(), d.completion("OK CAPABILITY completed"))
	case "NOOP":
		return d.reply(d.completion("OK NOOP completed"))
	case "LOGOUT":
		if err := d.reply("* BYE Logging out", d.completion("OK LOGOUT completed")); err != nil {
			return err
		}
		return proxy.ErrQuit
	case "STARTTLS":
		return d.bad("TLS is active already")
	}
	return d.bad("Unknown command")
}

// needsLogin reports whether name is a command of the authenticated states.
func needsLogin(name string) bool {
	switch name {
	case "SELECT", "EXAMINE", "CREATE", "DELETE", "RENAME", "SUBSCRIBE", "UNSUBSCRIBE", "LIST", "LSUB", "STATUS", "APPEND",
		"CHECK", "CLOSE", "UNSELECT", "EXPUNGE", "SEARCH", "FETCH", "STORE", "COPY", "MOVE", "UID", "SORT", "THREAD",
		"IDLE", "NAMESPACE", "ENABLE", "COMPRESS", "NOTIFY", "GETQUOTA", "GETQUOTAROOT", "GETMETADATA", "XLIST":
		return true
	}
	return false
}

// id keeps the client's ID. It is allowed in every state and never refused: pairs
// beyond the limits are dropped.
func (d *IMAP) id(s *wire.Scanner) error {
	pairs, err := readID(s)
	if err != nil {
		return d.bad("Invalid arguments for ID")
	}
	d.hello.ID = pairs
	return d.reply(`* ID ("name" "Postern")`, d.completion("OK ID completed"))
}

func readID(s *wire.Scanner) (map[string]string, error) {
	if err := spaces(s); err != nil {
		return nil, err
	}
	if !s.Next('(') {
		value, err := s.NString()
		if err != nil || value != nil {
			return nil, wire.ErrSyntax
		}
		return nil, end(s)
	}
	pairs := make(map[string]string)
	for first := true; ; first = false {
		separated := spaces(s) == nil
		if s.Next(')') {
			break
		}
		if !first && !separated {
			return nil, wire.ErrSyntax
		}
		key, value, err := readPair(s)
		if err != nil {
			return nil, err
		}
		if len(pairs) < maxIDPairs && len(key) <= maxIDKey && len(value) <= maxIDValue && isText(key) && isText(value) {
			pairs[strings.ToLower(string(key))] = string(value)
		}
	}
	return pairs, end(s)
}

func readPair(s *wire.Scanner) (key, value []byte, err error) {
	if key, err = s.String(); err != nil {
		return nil, nil, err
	}
	if err = spaces(s); err != nil {
		return nil, nil, err
	}
	value, err = s.NString()
	return key, value, err
}

func (d *IMAP) login(s *wire.Scanner) (*proxy.Login, error) {
	user, err := argument(s)
	if err != nil {
		return nil, d.bad("Invalid user name")
	}
	password, err := argument(s)
	if err != nil || end(s) != nil {
		return nil, d.bad("Invalid password: quote it")
	}
	return d.passwordLogin(proxy.ViaLoginCommand, user, password)
}

// spaces reads one or more spaces. RFC 3501 section 9 has exactly one between
// arguments and none after the last; Dovecot accepts more, and programs send
// them.
func spaces(s *wire.Scanner) error {
	err := s.Space()
	for err == nil && s.Next(' ') {
	}
	return err
}

// end returns an error if more than spaces is left. It does not advance s.
func end(s *wire.Scanner) error {
	rest := *s
	_ = spaces(&rest)
	return rest.End()
}

func argument(s *wire.Scanner) ([]byte, error) {
	if err := spaces(s); err != nil {
		return nil, err
	}
	return s.AString()
}

func argumentAtom(s *wire.Scanner) ([]byte, error) {
	if err := s.Space(); err != nil {
		return nil, err
	}
	return s.Atom()
}

func (d *IMAP) authenticate(s *wire.Scanner) (*proxy.Login, error) {
	mechanism, initial, err := mechanismOf(s)
	if err != nil {
		return nil, d.bad("Invalid arguments for AUTHENTICATE")
	}
	return d.exchanged(d.exchange(mechanism, initial))
}

// mechanismOf reads the arguments of AUTHENTICATE. initial is nil if there is no
// initial response.
func mechanismOf(s *wire.Scanner) (mechanism string, initial []byte, err error) {
	name, err := argumentAtom(s)
	if err == nil && spaces(s) == nil && s.End() != nil {
		initial, err = s.Atom()
	}
	if err == nil {
		err = end(s)
	}
	return wire.Keyword(name), initial, err
}
