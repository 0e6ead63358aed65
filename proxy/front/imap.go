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
	maxCommand = 8 << 10 // octets of a command with its literals; AUTHENTICATE without any, and ID, may be longer
	maxLiteral = 4 << 10 // RFC 7888 section 5
	maxTag     = 64

	// RFC 2971 section 3.3.
	maxIDPairs = 30
	maxIDKey   = 30
	maxIDValue = 1024

	maxIDCommand = 34 << 10 // octets: of all these, as quoted strings with some escapes or as literals
)

// An IMAP is the dialogue of RFC 3501 in the not authenticated state, with
// SASL-IR (RFC 4959), LITERAL- (RFC 7888), ID (RFC 2971) and STARTTLS.
type IMAP struct {
	dialogue
	tag      string // of the command not yet answered; empty: none, or it has no valid one
	literals []byte // that command, if literals are part of it
}

// NewIMAP returns the dialogue with the client on c.
func NewIMAP(c *proxy.Conn, o Options) *IMAP {
	d := &IMAP{dialogue: dialogue{c: c, options: o, prompt: "+ "}}
	d.longer = d.lineLimit
	return d
}

// lineLimit returns how long a line that begins so may be.
func (d *IMAP) lineLimit(begun []byte) int {
	if name, _, _ := nameOf(begun); name == "ID" && !d.inClear() {
		return maxIDCommand
	}
	return maxVerb + maxResponse
}

// Login implements proxy.Dialogue.
func (d *IMAP) Login(ctx context.Context) (*proxy.Login, error) {
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

func (d *IMAP) greet() error {
	if d.greeted {
		return nil
	}
	d.greeted = true
	d.learn()
	return d.say("* OK [" + d.capability() + "] " + d.options.Hostname + " ready")
}

// capability is what is kept before login. LITERAL+ would promise literals of
// any size; a bare LOGIN is no capability, but clients find one in it. Before
// TLS there are neither literals nor ID: what they say would be forgotten.
func (d *IMAP) capability() string {
	if d.inClear() {
		return "CAPABILITY IMAP4rev1 STARTTLS LOGINDISABLED"
	}
	return "CAPABILITY IMAP4rev1 SASL-IR LITERAL- ID AUTH=" + strings.Join(d.mechanisms(), " AUTH=")
}

// Refuse implements proxy.Dialogue.
func (d *IMAP) Refuse(r *proxy.Refusal) error {
	if err := d.challenge(r); err != nil {
		return d.hangUp("Wait for the continuation request", err)
	}
	last, w := d.last(r), d.words(r)
	if d.tag == "" {
		_, code, _ := strings.Cut(w.imap, " ")
		_ = d.say(strings.TrimSpace("* BYE "+code) + " " + w.text)
		return r
	}
	lines := []string{d.completion(w.imap + " " + w.text)}
	if r.Alert != "" && r.Text == "" {
		lines = []string{"* NO [ALERT] " + oneLine(r.Alert, ""), lines[0]}
	}
	switch {
	case !last:
		return d.say(lines...)
	case r.Reason.Final():
		_ = d.say(append(lines, "* BYE "+w.text)...)
	default:
		_ = d.say(append(lines, "* BYE "+d.signed(tooManyWrong))...)
	}
	return r
}

// Accept implements proxy.Dialogue. welcome begins with the capabilities after
// login: many clients look for them here and nowhere else.
func (d *IMAP) Accept(welcome string) error {
	var lines []string
	if first, rest, ok := strings.Cut(welcome, crlf); ok && strings.HasPrefix(first, "[ALERT] ") {
		lines, welcome = []string{"* OK " + oneLine(first, "")}, rest
	}
	return d.say(append(lines, d.completion("OK "+oneLine(welcome, "Logged in")))...)
}

// completion makes the line that answers the command.
func (d *IMAP) completion(text string) string {
	line := d.tag + " " + text
	d.tag = ""
	return line
}

// bad refuses what is no command, or not a proper one.
func (d *IMAP) bad(text string) error {
	d.count.bad++
	if d.tag == "" {
		return d.say("* BAD " + text)
	}
	return d.say(d.completion("BAD " + text))
}

// hangUp says why the connection ends, and returns err.
func (d *IMAP) hangUp(text string, err error) error {
	lines := []string{"* BYE " + d.signed(text)}
	if d.tag != "" {
		lines = []string{d.completion("BAD " + text), lines[0]}
	}
	_ = d.say(lines...)
	return err
}

// next reads and answers one command. If credentials are what it brings, they
// are the answer.
func (d *IMAP) next(ctx context.Context) (*proxy.Login, error) {
	if err := d.command(); err != nil {
		return nil, d.hangUp("Too many commands", err)
	}
	line, err := d.read()
	if err != nil {
		return nil, err
	}
	if d.inClear() {
		return d.nextInClear(ctx, line)
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
	return nil, d.simple(name, end(args) == nil)
}

// nextInClear answers a command before TLS. It takes no literal: who waits to
// send one is refused instead, what comes without waiting is thrown away.
func (d *IMAP) nextInClear(ctx context.Context, line []byte) (*proxy.Login, error) {
	literal, more := wire.TrailingLiteral(line)
	name, args, wrong := d.parse(line)
	alone := wrong == "" && end(args) == nil
	var login *proxy.Login
	var refusal error
	switch name {
	case "LOGIN":
		user, _ := argument(args)
		login, refusal = inTheClear(proxy.ViaLoginCommand, user)
	case "AUTHENTICATE":
		mechanism, initial, _ := mechanismOf(args)
		login, refusal = saslInTheClear(mechanism, initial)
	}
	if more {
		if err := d.throwAway(literal); err != nil {
			return nil, err
		}
	}
	switch {
	case wrong != "":
		return nil, d.bad(wrong)
	case login != nil:
		return login, refusal
	case name == "ID":
		return nil, d.say(d.completion("BAD Begin TLS first"))
	case name == "STARTTLS" && alone:
		return nil, d.startTLS(ctx, d.completion("OK Begin TLS negotiation now"))
	}
	return nil, d.simple(name, alone)
}

// read returns the next line, and takes the tag from it.
func (d *IMAP) read() ([]byte, error) {
	d.tag = ""
	line, err := d.readLine(maxVerb + maxResponse)
	if err != nil {
		return nil, d.unread(err)
	}
	if word, _ := wire.CutWord(line); http(word) {
		return nil, errHTTP
	}
	if tag, err := wire.NewScanner(line).Tag(); err == nil && len(tag) <= maxTag {
		d.tag = string(tag)
	}
	return line, nil
}

// parse returns the name of a command and what reads on behind it, or what is
// wrong.
func (d *IMAP) parse(command []byte) (name string, args *wire.Scanner, wrong string) {
	name, args, err := nameOf(command)
	switch {
	case args == nil || d.tag == "":
		return "", nil, "Invalid tag"
	case err != nil:
		d.tag = "" // a word alone may be a password that did not wait: it does not come back
		return "", nil, "Missing command"
	}
	return name, args, ""
}

// nameOf returns the name of a command and what reads on behind it; without a
// tag, args is nil.
func nameOf(command []byte) (name string, args *wire.Scanner, err error) {
	args = wire.NewScanner(command)
	if _, err := args.Tag(); err != nil {
		return "", nil, err
	}
	word, err := argumentAtom(args)
	return wire.Keyword(word), args, err
}

// readLiterals reads on after a line that announces a literal. The memory is
// made once: growing would leave passwords behind.
func (d *IMAP) readLiterals(line []byte, lit wire.Literal) ([]byte, error) {
	most := maxCommand
	if name, _, _ := nameOf(line); name == "ID" {
		most = maxIDCommand
	}
	d.literals = make([]byte, 0, most)
	for more := true; more; lit, more = wire.TrailingLiteral(line) {
		if lit.Size > maxLiteral || len(d.literals)+len(line)+int(lit.Size) > most {
			return nil, d.tooBig(lit)
		}
		d.literals = append(d.literals, line...)
		if lit.Sync {
			if err := d.say("+ OK"); err != nil {
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
			return nil, d.unread(err)
		}
	}
	d.literals = append(d.literals, line...)
	return d.literals, nil
}

// throwAway reads what belongs to a command that ends in lit, up to the first
// literal that waits.
func (d *IMAP) throwAway(lit wire.Literal) error {
	left := int64(maxCommand)
	for more := true; more && !lit.Sync; {
		if left -= lit.Size; lit.Size > maxLiteral || left < 0 {
			return d.tooBig(lit)
		}
		octets := make([]byte, lit.Size)
		_, err := io.ReadFull(d.c, octets)
		clear(octets)
		if err != nil {
			return err
		}
		line, err := d.c.ReadLine(maxCommand)
		if err != nil {
			return d.unread(err)
		}
		lit, more = wire.TrailingLiteral(line)
	}
	return nil
}

// tooBig refuses a literal. One that waits for its continuation gets none; one
// that does not is on its way: RFC 7888 sections 4 and 5.
func (d *IMAP) tooBig(lit wire.Literal) error {
	const text = "[TOOBIG] Literal too large"
	if lit.Sync {
		return d.bad(text)
	}
	_ = d.say("* BYE " + text)
	return errTooBig
}

// unread says what can be said of an error of reading. A line too long to be
// kept may have announced a literal, whose octets must not be taken for
// commands: the connection ends.
func (d *IMAP) unread(err error) error {
	switch {
	case errors.Is(err, proxy.ErrEarlyTLS):
		return d.hangUp(notYet, err)
	case unreadable(err):
		return d.hangUp("Line too long", err)
	}
	return err
}

// simple answers the commands without arguments, and those that are none. alone
// says that there were no arguments.
func (d *IMAP) simple(name string, alone bool) error {
	switch {
	case needsLogin(name):
		return d.say(d.completion("BAD Log in first")) // no strike: it may be pipelined behind a LOGIN
	case !alone:
		return d.bad("Unknown command or arguments")
	}
	switch name {
	case "CAPABILITY":
		return d.say("* "+d.capability(), d.completion("OK CAPABILITY completed"))
	case "NOOP":
		return d.say(d.completion("OK NOOP completed"))
	case "LOGOUT":
		if err := d.say("* BYE Logging out", d.completion("OK LOGOUT completed")); err != nil {
			return err
		}
		return proxy.ErrQuit
	case "STARTTLS":
		return d.bad("TLS is active already")
	}
	return d.bad("Unknown command")
}

// needsLogin reports whether name is a command of the states after login.
func needsLogin(name string) bool {
	switch name {
	case "SELECT", "EXAMINE", "CREATE", "DELETE", "RENAME", "SUBSCRIBE", "UNSUBSCRIBE", "LIST", "LSUB", "STATUS", "APPEND",
		"CHECK", "CLOSE", "UNSELECT", "EXPUNGE", "SEARCH", "FETCH", "STORE", "COPY", "MOVE", "UID", "SORT", "THREAD",
		"IDLE", "NAMESPACE", "ENABLE", "COMPRESS", "NOTIFY", "GETQUOTA", "GETQUOTAROOT", "GETMETADATA", "XLIST":
		return true
	}
	return false
}

// id keeps what the client says of itself. It is legal in every state and no
// reason to refuse anybody: what is beyond the bounds is left out.
func (d *IMAP) id(s *wire.Scanner) error {
	pairs, err := readID(s)
	if err != nil {
		return d.bad("Invalid arguments for ID")
	}
	d.hello.ID = pairs
	return d.say(`* ID ("name" "Postern")`, d.completion("OK ID completed"))
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
		apart := spaces(s) == nil
		if s.Next(')') {
			break
		}
		if !first && !apart {
			return nil, wire.ErrSyntax
		}
		key, value, err := readPair(s)
		if err != nil {
			return nil, err
		}
		if len(pairs) < maxIDPairs && len(key) <= maxIDKey && len(value) <= maxIDValue && plainText(key) && plainText(value) {
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
	return d.password(proxy.ViaLoginCommand, user, password)
}

// spaces reads at least one. RFC 3501 section 9 has exactly one between
// arguments and none behind the last; Dovecot takes more, and programs send them.
func spaces(s *wire.Scanner) error {
	err := s.Space()
	for err == nil && s.Next(' ') {
	}
	return err
}

// end returns an error when more than spaces is left. It reads nothing.
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
	login, err := d.exchange(mechanism, initial)
	switch {
	case errors.Is(err, errCancelled):
		return nil, d.bad("Authentication cancelled") // RFC 3501 section 6.2.2
	case errors.Is(err, errEarly):
		return nil, d.hangUp("Wait for the continuation request", err)
	case errors.Is(err, proxy.ErrFlood):
		return nil, d.unread(err)
	}
	return login, err
}

// mechanismOf reads the arguments of AUTHENTICATE. initial is nil if there is
// none.
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
