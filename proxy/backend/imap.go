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

// IMAP is a proxy.Backend that logs clients in and relays octets afterwards.
type IMAP struct {
	Server IMAPServer
	Idle   time.Duration // without octets in either direction; 0: proxy.DefaultIMAPIdle
	Spread time.Duration // as in relay.IMAP
}

// Login implements proxy.Backend.
func (b *IMAP) Login(ctx context.Context, l *proxy.Login) (proxy.Session, error) {
	conn, capabilities, err := b.Server.LoginIMAP(ctx, l)
	if err != nil {
		return nil, err
	}
	l.Secret.Clear()
	return &relay.IMAP{
		BackendName: b.Server.name(), Conn: conn, Capabilities: capabilities, Alert: conn.alert, Idle: b.Idle, DisconnectSpread: b.Spread,
		Watched: conn.watchedCapabilities, Until: conn.until,
	}, nil
}

// LoginIMAP connects and logs l.Account in. It returns the capabilities for the
// client, as in a CAPABILITY response, and leaves the Secret as it is. Every
// error is a *proxy.Refusal; it is Wrong only if the server said so.
func (s *Server) LoginIMAP(ctx context.Context, l *proxy.Login) (conn *Conn, capabilities string, err error) {
	conn, err = s.withCredentials(ctx, l, func(l *proxy.Login) (c *Conn, err error) {
		c, capabilities, err = s.loginIMAP(ctx, l)
		return c, err
	})
	return conn, capabilities, err
}

func (s *Server) loginIMAP(ctx context.Context, l *proxy.Login) (conn *Conn, capabilities string, err error) {
	if err := checkCredentials(l); err != nil {
		return nil, "", err
	}
	d := &imap{}
	conn, err = s.open(ctx, l.Client, func(c *Conn) error { return d.begin(ctx, c, s) })
	if err != nil {
		return nil, "", s.unsent(err)
	}
	defer conn.closeWith(ctx)()
	if capabilities, err = d.login(l, s); err == nil {
		err = d.checkMailbox(l, s)
	}
	if err != nil {
		conn.logout(d.nextTag() + " LOGOUT")
		return nil, "", clearDoubt(ctx, d.withAlert(err, l, s))
	}
	conn.alert = d.alertFor(l, s)
	conn.exchange = s.knownKind(d.greetingText, d.idResponse) == Exchange
	if d.capabilities.has(unauthenticate) {
		conn.watchedCapabilities = strings.Join(d.capabilities, " ")
	}
	conn.clearDeadlines()
	return conn, capabilities, nil
}

// checkCredentials refuses octets that would end a line or a SASL message early.
// The dialogue in front checks them, too; this is the last check.
func checkCredentials(l *proxy.Login) error {
	if equivalentMechanisms[l.Mechanism] == nil {
		return proxy.NewRefusal(proxy.Unsupported, fmt.Errorf("mechanism %s", l.Mechanism))
	}
	// The octet 1 separates the fields of XOAUTH2 and OAUTHBEARER.
	if strings.ContainsAny(l.Account, "\x00\x01\r\n") || slices.ContainsFunc(l.Secret.Reveal(), breaksLine) {
		return proxy.NewRefusal(proxy.Malformed, errors.New("NUL, CR or LF in the credentials"))
	}
	if equivalentMechanisms[l.Mechanism][0] != wire.MechanismPlain && slices.ContainsFunc(l.Secret.Reveal(), func(c byte) bool { return c <= ' ' || c > '~' }) {
		return proxy.NewRefusal(proxy.Malformed, errors.New("what is no token: RFC 6750 section 2.1"))
	}
	return nil
}

func breaksLine(c byte) bool { return c == 0 || c == '\r' || c == '\n' }

// imap is the dialogue with an IMAP server up to the login.
type imap struct {
	conn         *Conn
	tags         int
	greetingText string       // the greeting
	idResponse   string       // "": none came
	capabilities capabilities // nil: not known
	idTag        string       // tag of an ID command whose result is ignored, until it has come
	failure      failure      // of an OAuth mechanism
	alerts       []string     // what the user must be shown, as the server wrote it
}

// begin reads the greeting and gets TLS. After it, credentials may be sent.
func (d *imap) begin(ctx context.Context, c *Conn, s *Server) error {
	d.conn = c
	if err := d.readGreeting(); err != nil {
		return err
	}
	if err := d.fetchCapabilities(); err != nil {
		return err
	}
	if s.TLS == STARTTLS {
		if err := d.startTLS(ctx, s); err != nil {
			return err
		}
	}
	return nil
}

// readGreeting waits for the greeting: some servers drop commands that come
// before it.
func (d *imap) readGreeting() error {
	_ = d.conn.SetDeadline(time.Now().Add(d.conn.timeout))
	r, err := d.conn.replies.Response()
	if err == nil && r.Tag == "*" && r.Name == "OK" {
		d.recordData(r)
		d.greetingText = shorten(r.Text)
		return nil
	}
	// PREAUTH would be another user's mailbox. With STARTTLS, an attacker can
	// also inject it to prevent TLS.
	return d.conn.greetingError(err, proxy.IMAP)
}

// fetchCapabilities asks for the capabilities unless the server has sent them.
func (d *imap) fetchCapabilities() error {
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

// startTLS gets TLS and discards what the server has sent before: RFC 9051
// section 6.2.1.
func (d *imap) startTLS(ctx context.Context, s *Server) error {
	if !d.capabilities.has("STARTTLS") {
		return &tlsError{errNoSTARTTLS()}
	}
	r, err := d.command("STARTTLS")
	if err == nil && r.Name != "OK" {
		err = &ConnectError{Fault: NoSTARTTLS, Text: "the server refuses STARTTLS: it said " + r.Name}
	}
	if err != nil {
		return &tlsError{err}
	}
	if err := d.conn.secure(ctx, s.Config); err != nil {
		return err
	}
	d.capabilities, d.alerts = nil, nil
	return d.fetchCapabilities()
}

// login sends the credentials and returns the capabilities after them.
func (d *imap) login(l *proxy.Login, s *Server) (string, error) {
	mechanism := chooseMechanism(l, func(name string) bool { return d.capabilities.has("AUTH=" + name) })
	plain := equivalentMechanisms[l.Mechanism][0] == wire.MechanismPlain
	switch disabled := d.capabilities.has("LOGINDISABLED"); {
	// LOGINDISABLED is about the LOGIN command alone: RFC 3501 section 6.2.3. But
	// without TLS it means that the server takes no passwords. A server that only takes
	// tokens also says it with TLS.
	case disabled && plain && (s.TLS == None || mechanism == ""):
		return "", s.unsent(s.advised(&ConnectError{Fault: PasswordsDisabled, Text: "the server takes no password on this connection (LOGINDISABLED)"}))
	case mechanism == "" && !plain:
		return "", s.unsent(fmt.Errorf("the server does not offer %s", l.Mechanism))
	}
	begun := time.Now()
	err := s.verdictFor(l, d.authenticate(mechanism, l, s))
	s.reportLogin(begun, err)
	if err != nil {
		return "", err
	}
	if err := d.fetchCapabilities(); err != nil {
		r := s.unavailable(err)
		r.Verified = true
		return "", r
	}
	return d.capabilities.forClient(), nil
}

// authenticate prefers AUTHENTICATE with an initial response, which needs no
// quoting. ID is sent in the same write before it. Afterwards the capabilities
// are those of the authenticated state.
func (d *imap) authenticate(mechanism string, l *proxy.Login, s *Server) error {
	tag := d.nextTag()
	id := d.idFor(tag, l, s)
	if id != nil {
		d.idTag, tag = tag, d.nextTag()
	}
	var pieces [][]byte
	if mechanism != "" {
		d.failure = newFailure(mechanism)
		pieces = saslPieces(tag, mechanism, l, d.capabilities.has("SASL-IR"))
	} else {
		pieces = loginPieces(tag, l, d.capabilities)
	}
	d.capabilities = nil
	r, err := d.exchange(tag, id, pieces...)
	if err != nil {
		return s.unanswered(fmt.Errorf("login: %w", err))
	}
	if r.Name != "OK" && !slices.ContainsFunc(imapRows, func(row imapRow) bool { return row.code == r.CodeName() }) {
		r.Code = withoutSecret(r.Code, l)
	}
	return withChallenge(s.imapVerdict(s.knownKind(d.greetingText, d.idResponse), r), d.failure)
}

// saslPieces returns the pieces of AUTHENTICATE: RFC 9051 section 6.2.2.
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

// loginPieces returns the pieces of LOGIN: quoted strings if every server reads
// them alike, else literals. RFC 9051 section 4.3 and RFC 7888.
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

// nextTag returns a tag of Postern's own. With the client's tags, a client could
// predict the server's tagged response.
func (d *imap) nextTag() string {
	d.tags++
	return "P" + strconv.Itoa(d.tags)
}

// exchange sends with and the first piece, sends each other piece when the server
// asks for it, and returns the tagged response. All pieces are cleared.
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
		case d.idTag != "" && r.Tag == d.idTag && final:
			d.idTag, d.capabilities = "", nil
		case r.Tag == tag && final && d.idTag == "":
			if r.Name == "OK" && (len(rest) > 0 || d.failure.json != nil) {
				return r, errors.New("the server agreed before it had heard all")
			}
			d.recordData(r)
			return r, nil
		case r.Tag == "+" && len(rest) > 0:
			if err := d.conn.send(rest[0]); err != nil {
				return r, err
			}
			rest = rest[1:]
		case r.Tag == "+" && d.failure.expected():
			d.failure.record(r.Text)
			if err := d.conn.send(slices.Clone(d.failure.answer)); err != nil {
				return r, err
			}
		case r.Tag == "*" && r.Name == "BYE":
			d.recordData(r)
			return r, errors.New("the server said BYE")
		case r.Tag == "*":
			d.recordData(r)
		default:
			return r, errors.New("the server answered what was not asked")
		}
	}
	return wire.Response{}, fmt.Errorf("no answer within %d lines", wire.MaxReplyLines)
}

// recordData keeps the capabilities, the ID and the alert in r, if it has any.
func (d *imap) recordData(r wire.Response) {
	d.recordAlert(r)
	switch {
	case r.Name == "CAPABILITY" && r.Tag == "*":
		d.capabilities = parseCapabilities(r.Text)
	case r.Name == "OK" && r.CodeName() == "CAPABILITY":
		d.capabilities = parseCapabilities(r.Code[len("CAPABILITY"):])
	case r.Name == "ID" && r.Tag == "*":
		d.idResponse = shorten(r.Text)
	}
}

// capabilities are those of a server, as the server wrote them.
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

// unauthenticate is the capability of RFC 8437.
const unauthenticate = "UNAUTHENTICATE"

// forClient returns the capabilities that a client may use. UNAUTHENTICATE would
// take the session back to a state that nothing watches. If the server offers it,
// the relay watches the client's commands, which compression would hide.
func (c capabilities) forClient() string {
	watched := c.has(unauthenticate)
	return strings.Join(slices.DeleteFunc(slices.Clone(c), func(word string) bool {
		word = strings.ToUpper(word)
		return word == unauthenticate || watched && strings.HasPrefix(word, "COMPRESS=")
	}), " ")
}
