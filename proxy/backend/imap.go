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
}

// Login implements proxy.Backend.
func (b *IMAP) Login(ctx context.Context, l *proxy.Login) (proxy.Session, error) {
	conn, capabilities, err := b.Server.LoginIMAP(ctx, l)
	if err != nil {
		return nil, err
	}
	l.Secret.Clear()
	return &relay.IMAP{Server: b.Server.name(), Conn: conn, Capabilities: capabilities, Idle: b.Idle}, nil
}

// LoginIMAP connects and logs l.Account in. It returns what the server can do
// for it, as in CAPABILITY, and leaves the Secret as it is. Every error is a
// *proxy.Refusal; it is Wrong only if the server said so.
func (s *Server) LoginIMAP(ctx context.Context, l *proxy.Login) (conn *Conn, capabilities string, err error) {
	if err := sendable(l); err != nil {
		return nil, "", err
	}
	d := &imap{}
	conn, err = s.open(ctx, func(c *Conn) error { return d.begin(ctx, c, s) })
	if err != nil {
		return nil, "", s.unready(err)
	}
	defer conn.closeWith(ctx)()
	if capabilities, err = d.login(l, s); err != nil {
		_ = conn.Close()
		return nil, "", err
	}
	conn.settled()
	return conn, capabilities, nil
}

// sendable refuses what would end a line or a SASL message before its end.
// The dialogue in front does so, too; this is the last gate.
func sendable(l *proxy.Login) error {
	if l.Mechanism != "" && l.Mechanism != "PLAIN" {
		return proxy.Refuse(proxy.Unsupported, fmt.Errorf("mechanism %s", l.Mechanism))
	}
	if strings.ContainsAny(l.Account, "\x00\r\n") || slices.ContainsFunc(l.Secret.Reveal(), breaksLine) {
		return proxy.Refuse(proxy.Malformed, errors.New("NUL, CR or LF in the credentials"))
	}
	return nil
}

func breaksLine(c byte) bool { return c == 0 || c == '\r' || c == '\n' }

// imap is the dialogue with a server up to login.
type imap struct {
	conn         *Conn
	tags         int
	heard        string       // the greeting
	capabilities capabilities // nil: not known
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
	d.capabilities = nil
	return d.learn()
}

// login sends the credentials and returns the capabilities after them.
func (d *imap) login(l *proxy.Login, s *Server) (string, error) {
	if d.capabilities.has("LOGINDISABLED") {
		return "", s.lacking(errors.New("the server takes no password on this connection (LOGINDISABLED): use TLS, or let it trust Postern's address"))
	}
	begun := time.Now()
	err := d.authenticate(l, s)
	s.settle(begun, err)
	if err != nil {
		return "", err
	}
	if err := d.learn(); err != nil {
		return "", s.unavailable(err)
	}
	return d.capabilities.handedOn(), nil
}

// authenticate prefers base64 on one line: there is nothing to quote in it.
// The capabilities are those of an authenticated connection afterwards.
func (d *imap) authenticate(l *proxy.Login, s *Server) error {
	able := d.capabilities
	d.capabilities = nil
	tag := d.nextTag()
	var pieces [][]byte
	if able.has("AUTH=PLAIN") {
		pieces = plainPieces(tag, l, able.has("SASL-IR"))
	} else {
		pieces = loginPieces(tag, l, able)
	}
	r, err := d.exchange(tag, pieces...)
	if err != nil {
		return s.unavailable(fmt.Errorf("login: %w", err))
	}
	return s.imapVerdict(r)
}

// imapVerdict reads the answer to credentials. The server's text may repeat
// them: it goes nowhere.
func (s *Server) imapVerdict(r wire.Response) error {
	if r.Name == "OK" {
		return nil
	}
	code := r.CodeName()
	err := fmt.Errorf("the server answered the login with %s [%s]", r.Name, shorten(code))
	if r.Name == "NO" {
		switch code {
		// ALERT says nothing about the reason: RFC 9051 section 7.1.
		case "", "ALERT", "AUTHENTICATIONFAILED", "AUTHORIZATIONFAILED", "EXPIRED":
			return proxy.Refuse(proxy.Wrong, fmt.Errorf("backend %s: %w", s.Name, err))
		case "PRIVACYREQUIRED":
			err = fmt.Errorf("%w: use TLS, or let it trust Postern's address", err)
		}
	}
	return s.unavailable(err)
}

// plainPieces are the pieces of AUTHENTICATE PLAIN, RFC 9051 section 6.2.2.
func plainPieces(tag string, l *proxy.Login, initial bool) [][]byte {
	line := make([]byte, 0, 64+(len(l.Account)+len(l.Secret.Reveal()))*4/3)
	line = append(append(line, tag...), " AUTHENTICATE PLAIN"...)
	end := "\r\n"
	if initial {
		end = " "
	}
	line = append(line, end...)
	verb := len(line)
	line = append(wire.AppendPlain(line, l.Account, l.Secret.Reveal()), "\r\n"...)
	if initial {
		return [][]byte{line}
	}
	return [][]byte{line[:verb], line[verb:]}
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
	return d.exchange(tag, []byte(tag+" "+name+"\r\n"))
}

// nextTag returns a tag of ours. Clients' tags would let a client foresee what
// the server's answer must look like.
func (d *imap) nextTag() string {
	d.tags++
	return "P" + strconv.Itoa(d.tags)
}

// exchange sends the first piece, each other one when the server asks for it,
// and returns the tagged answer. All pieces are wiped.
func (d *imap) exchange(tag string, pieces ...[]byte) (wire.Response, error) {
	defer func() {
		for _, p := range pieces {
			clear(p)
		}
	}()
	if err := d.conn.send(pieces[0]); err != nil {
		return wire.Response{}, err
	}
	rest := pieces[1:]
	for range wire.MaxReplyLines {
		r, err := d.conn.replies.Response()
		switch {
		case err != nil:
			return r, err
		case r.Tag == tag && (r.Name == "OK" || r.Name == "NO" || r.Name == "BAD"):
			if r.Name == "OK" && len(rest) > 0 {
				return r, errors.New("the server agreed before it had heard all")
			}
			d.note(r)
			return r, nil
		case r.Tag == "+" && len(rest) > 0:
			if err := d.conn.send(rest[0]); err != nil {
				return r, err
			}
			rest = rest[1:]
		case r.Tag == "*" && r.Name == "BYE":
			return r, errors.New("the server said BYE")
		case r.Tag == "*":
			d.note(r)
		default:
			return r, errors.New("the server answered what was not asked")
		}
	}
	return wire.Response{}, fmt.Errorf("no answer within %d lines", wire.MaxReplyLines)
}

// note keeps the capabilities in r, if there are any.
func (d *imap) note(r wire.Response) {
	switch {
	case r.Name == "CAPABILITY" && r.Tag == "*":
		d.capabilities = parseCapabilities(r.Text)
	case r.Name == "OK" && r.CodeName() == "CAPABILITY":
		d.capabilities = parseCapabilities(r.Code[len("CAPABILITY"):])
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

// handedOn returns what a client behind Postern may use. UNAUTHENTICATE, RFC
// 8437, would take the session back to a state in which nobody watches.
func (c capabilities) handedOn() string {
	return strings.Join(slices.DeleteFunc(slices.Clone(c), func(word string) bool {
		return strings.EqualFold(word, "UNAUTHENTICATE")
	}), " ")
}
