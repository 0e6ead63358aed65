package backend

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"postern/proxy"
	"postern/proxy/relay"
	"postern/proxy/wire"
)

// IMAP is a proxy.Backend: it logs clients in and leaves the rest of the
// session to them and the server.
type IMAP struct {
	Server IMAPServer
	Idle   time.Duration // of a session in which nothing moves; 0: relay.DefaultIdle
	Spread time.Duration // see relay.IMAP
}

// Login implements proxy.Backend.
func (b *IMAP) Login(ctx context.Context, l *proxy.Login) (proxy.Session, error) {
	conn, capabilities, err := b.Server.LoginIMAP(ctx, l)
	if err != nil {
		return nil, err
	}
	l.Secret.Clear()
	return &relay.IMAP{
		Server: b.Server.name(), Conn: conn, Capabilities: capabilities, Alert: conn.alert, Idle: b.Idle, Spread: b.Spread,
		Watched: conn.watched,
	}, nil
}

// LoginIMAP connects and logs l.Account in. It returns what the server can do
// for it, as in CAPABILITY, and leaves the Secret as it is. Every error is a
// *proxy.Refusal; it is Wrong only if the server said so.
func (s *Server) LoginIMAP(ctx context.Context, l *proxy.Login) (conn *Conn, capabilities string, err error) {
	if err := sendable(l); err != nil {
		return nil, "", err
	}
	d := &imap{}
	conn, err = s.open(ctx, l.Client, func(c *Conn) error { return d.begin(ctx, c, s) })
	if err != nil {
		return nil, "", s.unready(err)
	}
	defer conn.closeWith(ctx)()
	if capabilities, err = d.login(l, s); err != nil {
		conn.leave(d.nextTag() + " LOGOUT")
		return nil, "", heard(ctx, d.alerted(err, l, s))
	}
	conn.alert = d.alert(l, s)
	if d.capabilities.has(unauthenticate) {
		conn.watched = strings.Join(d.capabilities, " ")
	}
	conn.settled()
	return conn, capabilities, nil
}

// sendable refuses what would end a line or a SASL message before its end.
// The dialogue in front does so, too; this is the last gate.
func sendable(l *proxy.Login) error {
	if carriers[l.Mechanism] == nil {
		return proxy.NewRefusal(proxy.Unsupported, fmt.Errorf("mechanism %s", l.Mechanism))
	}
	// The octet 1 ends the parts of OAuth's messages.
	if strings.ContainsAny(l.Account, "\x00\x01\r\n") || slices.ContainsFunc(l.Secret.Reveal(), breaksLine) {
		return proxy.NewRefusal(proxy.Malformed, errors.New("NUL, CR or LF in the credentials"))
	}
	if carriers[l.Mechanism][0] != mechPlain && slices.ContainsFunc(l.Secret.Reveal(), func(c byte) bool { return c <= ' ' || c > '~' }) {
		return proxy.NewRefusal(proxy.Malformed, errors.New("what is no token: RFC 6750 section 2.1"))
	}
	return nil
}

func breaksLine(c byte) bool { return c == 0 || c == '\r' || c == '\n' }

// imap is the dialogue with a server up to login.
type imap struct {
	conn         *Conn
	tags         int
	heard        string       // the greeting
	id           string       // the answer to ID; "": none
	capabilities capabilities // nil: not known
	aside        string       // the tag of a command whose answer does not matter, until it has come
	failure      failure      // of an OAuth mechanism
	alerts       []string     // what the user must be shown, as the server wrote it
}

// begin hears the greeting and comes to TLS. After it, credentials may be sent.
func (d *imap) begin(ctx context.Context, c *Conn, s *Server) error {
	d.conn = c
	if err := d.greeting(); err != nil {
		return fmt.Errorf("greeting: %w", err)
	}
	if err := d.learn(); err != nil {
		return err
	}
	if s.TLS == STARTTLS {
		if err := d.startTLS(ctx, s); err != nil {
			return err
		}
	}
	return nil
}

// greeting waits for it: some servers drop what comes earlier.
func (d *imap) greeting() error {
	_ = d.conn.SetDeadline(time.Now().Add(d.conn.timeout))
	r, err := d.conn.replies.Response()
	if err != nil {
		return err
	}
	if r.Tag == "*" && r.Name == "OK" {
		d.note(r)
		d.heard = shorten(r.Text)
		return nil
	}
	// PREAUTH would be somebody else's mailbox; with STARTTLS it is also how
	// an attacker keeps a connection from TLS.
	return fmt.Errorf("the server said %q", shorten(r.Tag+" "+r.Name+" "+r.Text))
}

// learn asks for the capabilities unless the server has told them.
func (d *imap) learn() error {
	if d.capabilities != nil {
		return nil
	}
	r, err := d.command("CAPABILITY")
	if err == nil && r.Name != "OK" {
		err = fmt.Errorf("the server said %s", r.Name)
	}
	if err == nil && d.capabilities == nil {
		err = errors.New("the server told none")
	}
	if err != nil {
		return fmt.Errorf("CAPABILITY: %w", err)
	}
	return nil
}

// startTLS forgets what the server said before: RFC 9051 section 6.2.1.
func (d *imap) startTLS(ctx context.Context, s *Server) error {
	if !d.capabilities.has("STARTTLS") {
		return &tlsError{errors.New("the server does not offer STARTTLS")}
	}
	r, err := d.command("STARTTLS")
	if err == nil && r.Name != "OK" {
		err = fmt.Errorf("the server said %s to STARTTLS", r.Name)
	}
	if err != nil {
		return &tlsError{err}
	}
	if err := d.conn.secure(ctx, s.Config); err != nil {
		return err
	}
	d.capabilities, d.alerts = nil, nil
	return d.learn()
}

// login sends the credentials and returns the capabilities after them.
func (d *imap) login(l *proxy.Login, s *Server) (string, error) {
	mechanism := mechanism(l, func(name string) bool { return d.capabilities.has("AUTH=" + name) })
	plain := carriers[l.Mechanism][0] == mechPlain
	switch disabled := d.capabilities.has("LOGINDISABLED"); {
	// It is about the command LOGIN alone: RFC 3501 section 6.2.3. But without
	// TLS it says what the server thinks of passwords.
	case disabled && (s.TLS == None || plain && mechanism == ""):
		return "", s.unready(errors.New("the server takes no password on this connection (LOGINDISABLED): use TLS, or let it trust Postern's address"))
	case mechanism == "" && !plain:
		return "", s.unready(fmt.Errorf("the server does not offer %s", l.Mechanism))
	}
	begun := time.Now()
	err := d.authenticate(mechanism, l, s)
	s.settle(begun, err)
	if err != nil {
		return "", err
	}
	if err := d.learn(); err != nil {
		r := s.unavailable(err)
		r.Verified = true
		return "", r
	}
	return d.capabilities.handedOn(), nil
}

// authenticate prefers base64 on one line: there is nothing to quote in it. ID
// comes before it in the same breath. The capabilities are those of an
// authenticated connection afterwards.
func (d *imap) authenticate(mechanism string, l *proxy.Login, s *Server) error {
	tag := d.nextTag()
	id := d.identify(tag, l, s)
	if id != nil {
		d.aside, tag = tag, d.nextTag()
	}
	var pieces [][]byte
	if mechanism != "" {
		d.failure = failureOf(mechanism)
		pieces = saslPieces(tag, mechanism, l, d.capabilities.has("SASL-IR"))
	} else {
		pieces = loginPieces(tag, l, d.capabilities)
	}
	d.capabilities = nil
	r, err := d.exchange(tag, id, pieces...)
	if err != nil {
		return s.unanswered(fmt.Errorf("login: %w", err))
	}
	return challenged(s.imapVerdict(s.kind(d.heard, d.id), r), d.failure)
}

// saslPieces are the pieces of AUTHENTICATE, RFC 9051 section 6.2.2.
func saslPieces(tag, mechanism string, l *proxy.Login, initial bool) [][]byte {
	const mostLine = 8192 // octets, RFC 7162 section 4
	verb := tag + " AUTHENTICATE " + mechanism
	line := make([]byte, 0, len(verb)+len(" \r\n")+messageLength(l))
	line = append(append(line, verb...), ' ')
	line = append(appendMessage(line, mechanism, l), "\r\n"...)
	if initial && len(line) <= mostLine {
		return [][]byte{line}
	}
	return [][]byte{[]byte(verb + "\r\n"), line[len(verb)+1:]}
}

// loginPieces are the pieces of LOGIN: with quoted strings if there is nothing
// in them that servers read in different ways, else with literals, RFC 9051
// section 4.3 and RFC 7888.
func loginPieces(tag string, l *proxy.Login, able capabilities) [][]byte {
	account, secret := []byte(l.Account), l.Secret.Reveal()
	line := make([]byte, 0, 64+len(account)+len(secret))
	line = append(append(line, tag...), " LOGIN "...)
	if quotable(account) && quotable(secret) {
		line = append(append(append(line, '"'), account...), `" "`...)
		return [][]byte{append(append(line, secret...), "\"\r\n"...)}
	}
	const mostLiteralMinus = 4096 // RFC 7888 section 5
	nonSync := able.has("LITERAL+") || able.has("LITERAL-") && max(len(account), len(secret)) <= mostLiteralMinus
	line = appendLiteral(line, len(account), nonSync)
	first := len(line)
	line = append(append(line, account...), ' ')
	line = appendLiteral(line, len(secret), nonSync)
	second := len(line)
	line = append(append(line, secret...), "\r\n"...)
	if nonSync {
		return [][]byte{line}
	}
	return [][]byte{line[:first], line[first:second], line[second:]}
}

func appendLiteral(line []byte, size int, nonSync bool) []byte {
	line = strconv.AppendInt(append(line, '{'), int64(size), 10)
	if nonSync {
		line = append(line, '+')
	}
	return append(line, "}\r\n"...)
}

func quotable(s []byte) bool {
	return !slices.ContainsFunc(s, func(c byte) bool { return c < ' ' || c > '~' || c == '"' || c == '\\' })
}

// command sends a command without arguments.
func (d *imap) command(name string) (wire.Response, error) {
	tag := d.nextTag()
	return d.exchange(tag, nil, []byte(tag+" "+name+"\r\n"))
}

// nextTag returns a tag of ours. Clients' tags would let a client foresee what
// the server's answer must look like.
func (d *imap) nextTag() string {
	d.tags++
	return "P" + strconv.Itoa(d.tags)
}

// exchange sends the first piece, behind what goes with it, each other one when
// the server asks for it, and returns the tagged answer. All pieces are wiped.
func (d *imap) exchange(tag string, with []byte, pieces ...[]byte) (wire.Response, error) {
	defer func() {
		for _, p := range pieces {
			clear(p)
		}
	}()
	if err := d.conn.send(with, pieces[0]); err != nil {
		return wire.Response{}, err
	}
	rest := pieces[1:]
	for range wire.MaxReplyLines {
		r, err := d.conn.replies.Response()
		final := r.Name == "OK" || r.Name == "NO" || r.Name == "BAD"
		switch {
		case err != nil:
			return r, err
		case d.aside != "" && r.Tag == d.aside && final:
			d.aside, d.capabilities = "", nil
		case r.Tag == tag && final && d.aside == "":
			if r.Name == "OK" && (len(rest) > 0 || d.failure.json != nil) {
				return r, errors.New("the server agreed before it had heard all")
			}
			d.note(r)
			return r, nil
		case r.Tag == "+" && len(rest) > 0:
			if err := d.conn.send(rest[0]); err != nil {
				return r, err
			}
			rest = rest[1:]
		case r.Tag == "+" && d.failure.expected():
			d.failure.note(r.Text)
			if err := d.conn.send(slices.Clone(d.failure.answer)); err != nil {
				return r, err
			}
		case r.Tag == "*" && r.Name == "BYE":
			d.note(r)
			return r, errors.New("the server said BYE")
		case r.Tag == "*":
			d.note(r)
		default:
			return r, errors.New("the server answered what was not asked")
		}
	}
	return wire.Response{}, fmt.Errorf("no answer within %d lines", wire.MaxReplyLines)
}

// note keeps the capabilities in r, if there are any, and what the user must be
// shown.
func (d *imap) note(r wire.Response) {
	d.noteAlert(r)
	switch {
	case r.Name == "CAPABILITY" && r.Tag == "*":
		d.capabilities = parseCapabilities(r.Text)
	case r.Name == "OK" && r.CodeName() == "CAPABILITY":
		d.capabilities = parseCapabilities(r.Code[len("CAPABILITY"):])
	case r.Name == "ID" && r.Tag == "*":
		d.id = shorten(r.Text)
	}
}

// capabilities are those of a server, as it wrote them.
type capabilities []string

func parseCapabilities(text string) capabilities {
	all := capabilities{}
	for word := range strings.FieldsSeq(text) {
		if !strings.ContainsFunc(word, func(c rune) bool { return c <= ' ' || c > '~' || c == '[' || c == ']' }) {
			all = append(all, word)
		}
	}
	return all
}

func (c capabilities) has(name string) bool {
	return slices.ContainsFunc(c, func(word string) bool { return strings.EqualFold(word, name) })
}

// unauthenticate is RFC 8437.
const unauthenticate = "UNAUTHENTICATE"

// handedOn returns what a client behind Postern may use. UNAUTHENTICATE would
// take the session back to a state in which nobody watches; where the server has
// it the commands of the client are looked at, which compressed they could not
// be.
func (c capabilities) handedOn() string {
	watched := c.has(unauthenticate)
	return strings.Join(slices.DeleteFunc(slices.Clone(c), func(word string) bool {
		word = strings.ToUpper(word)
		return word == unauthenticate || watched && strings.HasPrefix(word, "COMPRESS=")
	}), " ")
}
