package backend

import (
	"bytes"
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

// Sieve is a proxy.Backend that logs clients in to ManageSieve and relays octets afterwards.
type Sieve struct {
	Server SieveServer
	Idle   time.Duration // without octets in either direction; 0: proxy.DefaultSieveIdle
}

// A SieveServer logs clients in to ManageSieve: a Server or a Pool.
type SieveServer interface {
	LoginSieve(ctx context.Context, l *proxy.Login) (*Conn, error)
	name() string
}

// Login implements proxy.Backend.
func (b *Sieve) Login(ctx context.Context, l *proxy.Login) (proxy.Session, error) {
	conn, err := b.Server.LoginSieve(ctx, l)
	if err != nil {
		return nil, err
	}
	l.Secret.Clear()
	return &relay.Sieve{BackendName: b.Server.name(), Conn: conn, Idle: b.Idle}, nil
}

// LoginSieve is Server.LoginSieve of the first member that accepts the connection.
func (p *Pool) LoginSieve(ctx context.Context, l *proxy.Login) (*Conn, error) {
	return p.login(ctx, l, func(s *Server) (*Conn, error) { return s.LoginSieve(ctx, l) })
}

// LoginSieve connects and logs l.Account in. Errors and the Secret are as for LoginIMAP.
func (s *Server) LoginSieve(ctx context.Context, l *proxy.Login) (*Conn, error) {
	return s.withCredentials(ctx, l, func(l *proxy.Login) (*Conn, error) { return s.loginSieve(ctx, l) })
}

func (s *Server) loginSieve(ctx context.Context, l *proxy.Login) (*Conn, error) {
	if err := checkCredentials(l); err != nil {
		return nil, err
	}
	d := &sieve{}
	conn, err := s.open(ctx, l.Client, func(c *Conn) error {
		if err := d.begin(ctx, c, s); err != nil {
			return err
		}
		s.updateReport(d.report(c, s))
		return d.sendXCLIENT(l, s)
	})
	if err != nil {
		return nil, s.unsent(err)
	}
	defer conn.closeWith(ctx)()
	if err := d.login(ctx, l, s); err != nil {
		conn.logout(sieveLogout)
		return nil, clearDoubt(ctx, err)
	}
	conn.clearDeadlines()
	return conn, nil
}

const sieveLogout = "LOGOUT"

// sieve is the dialogue with a ManageSieve server up to the login: RFC 5804.
type sieve struct {
	conn         *Conn
	greetingText string
	capabilities []string // a name and a value each
	failure      failure  // of an OAuth mechanism
}

// begin reads the greeting and gets TLS. After it, credentials may be sent.
func (d *sieve) begin(ctx context.Context, c *Conn, s *Server) error {
	d.conn = c
	_ = c.SetDeadline(time.Now().Add(c.timeout))
	lines, r, err := d.response()
	if err != nil || r.Name != wire.SieveOK {
		return c.greetingError(err, proxy.Sieve)
	}
	d.capabilities = lines
	implementation, _ := wire.SieveCapability(lines, "IMPLEMENTATION")
	d.greetingText = shorten(strings.TrimSpace(implementation + " " + r.Text))
	if s.TLS != STARTTLS {
		return nil
	}
	if _, ok := wire.SieveCapability(lines, "STARTTLS"); !ok {
		return &tlsError{errNoSTARTTLS()}
	}
	if err := d.command("STARTTLS"); err != nil {
		return &tlsError{&ConnectError{Fault: NoSTARTTLS, Text: fmt.Sprintf("STARTTLS: %v", err), Err: err}}
	}
	if err := c.secure(ctx, s.Config); err != nil {
		return err
	}
	if err := d.resync(); err != nil {
		return fmt.Errorf("capabilities after STARTTLS: %w", err)
	}
	return nil
}

// resyncTime is for the capabilities after STARTTLS.
const resyncTime = 5 * time.Second

// resync reads the capabilities after STARTTLS. RFC 5804 section 2.2 has the server send
// them unasked, old versions of Cyrus do not. So Postern asks as well, and then sends NOOP:
// its answer is the first one without capabilities, and the last list before it counts.
// A server without NOOP answers NO, which could be the answer to CAPABILITY: another
// CAPABILITY shows that nothing is left to be read.
func (d *sieve) resync() error {
	const tag = "STARTTLS-RESYNC-CAPA"
	d.capabilities = nil
	if err := d.conn.send([]byte("CAPABILITY\r\nNOOP \"" + tag + "\"\r\n")); err != nil {
		return err
	}
	_ = d.conn.SetDeadline(time.Now().Add(min(resyncTime, d.conn.timeout)))
	for range 3 {
		lines, r, err := d.response()
		switch {
		case err != nil:
			return err
		case len(lines) > 0 && r.Name == wire.SieveOK:
			d.capabilities = lines
		case d.capabilities == nil || r.Name == wire.SieveBye || len(lines) > 0:
			return errNotAsked
		case r.Name == wire.SieveOK && r.Code == "TAG":
			return nil
		default:
			return d.capability()
		}
	}
	return errNotAsked
}

// capability asks for the capabilities.
func (d *sieve) capability() error {
	if err := d.conn.send([]byte("CAPABILITY\r\n")); err != nil {
		return err
	}
	lines, r, err := d.response()
	if err == nil && (r.Name != wire.SieveOK || len(lines) == 0) {
		err = errNotAsked
	}
	d.capabilities = lines
	return err
}

// response reads lines of data, which must be capabilities, and the line that ends the
// response.
func (d *sieve) response() (capabilities []string, end wire.SieveResponse, err error) {
	for octets := 0; octets < wire.MaxReply && len(capabilities) < wire.MaxReplyLines; {
		r, err := d.conn.replies.SieveResponse()
		if err != nil || r.Name != "" {
			return capabilities, r, err
		}
		line := strings.Join(r.Strings, " ")
		if breaks := func(c rune) bool { return c < ' ' || c == 0x7F }; strings.ContainsFunc(line, breaks) || r.Strings[0] == "" {
			return nil, r, fmt.Errorf("%w: a capability with control characters or without a name", wire.ErrReply)
		}
		capabilities = append(capabilities, line)
		octets += len(line)
	}
	return nil, end, fmt.Errorf("%w: more than %d lines or %d octets", wire.ErrReply, wire.MaxReplyLines, wire.MaxReply)
}

// command sends a command that is answered OK without data.
func (d *sieve) command(line string) error {
	if d.conn.replies.Buffered() > 0 {
		return errNotAsked
	}
	if err := d.conn.send([]byte(line + "\r\n")); err != nil {
		return err
	}
	lines, r, err := d.response()
	if err == nil && (r.Name != wire.SieveOK || len(lines) > 0) {
		err = fmt.Errorf("the server said %s %q", r.Name, shorten(r.Text))
	}
	return err
}

// mechanisms returns the SASL mechanisms that the server offers.
func (d *sieve) mechanisms() []string {
	value, _ := wire.SieveCapability(d.capabilities, "SASL")
	return strings.Fields(strings.ToUpper(value))
}

func (d *sieve) report(c *Conn, s *Server) Report {
	_, xclient := wire.SieveCapability(d.capabilities, "XCLIENT")
	return Report{
		Greeting: d.greetingText, TLS: c.version(), Capabilities: d.capabilities, Mechanisms: d.mechanisms(), Kind: s.kindOf(d.greetingText),
		Identified: s.Identity == XCLIENT && xclient,
	}
}

// login sends the credentials.
func (d *sieve) login(ctx context.Context, l *proxy.Login, s *Server) error {
	offered := d.mechanisms()
	mechanism := chooseMechanism(l, func(name string) bool { return slices.Contains(offered, name) })
	if mechanism == "" {
		return s.unsent(s.advised(&ConnectError{Fault: NoMechanism, Text: "the server offers no SASL mechanism for such credentials on this connection"}))
	}
	if d.conn.replies.Buffered() > 0 { // it would be taken for the answer to the credentials
		return s.unsent(errNotAsked)
	}
	begun := time.Now()
	r, err := d.authenticate(mechanism, l)
	if err != nil {
		err = s.unanswered(fmt.Errorf("login: %w", err))
	} else {
		if !slices.ContainsFunc(sieveRows, func(row textRow) bool { return row.code == r.Code }) {
			r.Code = withoutSecret(r.Code, l)
		}
		err = withChallenge(s.sieveVerdict(s.knownKind(d.greetingText), r), d.failure)
	}
	err = s.verdictFor(l, err)
	s.reportLogin(begun, err)
	if err != nil && r.Name == wire.SieveNo && r.Code == "" && s.knownKind(d.greetingText) == Cyrus {
		return s.askIMAP(ctx, l, err)
	}
	return err
}

// askIMAP returns what the IMAP server of the backend says of a password that Cyrus has refused
// with err: timsieved has the same words for a wrong password and for a failure of
// saslauthd.
func (s *Server) askIMAP(ctx context.Context, l *proxy.Login, err error) error {
	if r, ok := errors.AsType[*proxy.Refusal](err); !ok || !r.Doubtful || s.Verify == nil {
		return err
	}
	if verdict := s.Verify(ctx, l); proxy.ReasonOf(verdict) == proxy.Wrong {
		return verdict
	}
	return err
}

// authenticate sends the credentials and returns the answer to them: RFC 5804 section 2.1.
func (d *sieve) authenticate(mechanism string, l *proxy.Login) (wire.SieveResponse, error) {
	d.failure = newFailure(mechanism)
	message := appendMessage(make([]byte, 0, messageLength(l)), mechanism, l)
	defer clear(message)
	line := make([]byte, 0, len(message)+64) // not to be reallocated
	line = append(append(append(line, `AUTHENTICATE "`...), mechanism...), `" `...)
	line = append(wire.AppendSieveClientString(line, message), "\r\n"...)
	if err := d.conn.send(line); err != nil {
		return wire.SieveResponse{}, err
	}
	r, err := d.conn.replies.SieveResponse()
	if err == nil && r.Name == "" && d.failure.expected() {
		d.failure.record(r.Strings[0])
		answer := wire.AppendSieveClientString(nil, bytes.TrimSuffix(d.failure.answer, []byte("\r\n")))
		if err = d.conn.send(append(answer, "\r\n"...)); err == nil {
			r, err = d.conn.replies.SieveResponse()
		}
		if err == nil && r.Name == wire.SieveOK {
			err = errors.New("the server agreed after it had refused")
		}
	}
	if err == nil && r.Name == "" {
		err = errors.New("the server wants to hear more than there is")
	}
	return r, err
}

// sendXCLIENT tells Dovecot about l's client. It is a command of Dovecot's own: its
// capability names the attributes in newer versions; older ones know ADDR, PORT, SESSION and
// TTL.
func (d *sieve) sendXCLIENT(l *proxy.Login, s *Server) error {
	if s.Identity != XCLIENT {
		return nil
	}
	attributes, offered := wire.SieveCapability(d.capabilities, "XCLIENT")
	if !s.canIdentify(l, offered) {
		return nil
	}
	const hops = 5 // proxies until a loop is assumed: Dovecot's number
	words := []string{"XCLIENT"}
	for _, a := range [][2]string{
		{attributeAddr, addrString(l.Client.Addr)}, {"PORT", portString(l.Client.Addr)},
		{"SESSION", l.Client.ID}, {"TTL", strconv.Itoa(hops)},
	} {
		if attributes == "" || hasWord(attributes, a[0]) {
			words = append(words, a[0]+"="+a[1])
		}
	}
	if err := d.command(strings.Join(words, " ")); err != nil {
		return fmt.Errorf("XCLIENT: %w", err)
	}
	return nil
}

func hasWord(text, word string) bool {
	for w := range strings.FieldsSeq(text) {
		if strings.EqualFold(w, word) {
			return true
		}
	}
	return false
}

func (s *Server) probeSieve(ctx context.Context, client proxy.Client) (Report, error) {
	d := &sieve{}
	conn, err := s.open(ctx, client, func(c *Conn) error {
		if err := d.begin(ctx, c, s); err != nil || !s.sendsHeaderInTheClear() {
			return err
		}
		return d.command("NOOP") // a greeting alone does not show that the server took the header
	})
	if err != nil {
		return Report{}, err
	}
	defer conn.closeWith(ctx)()
	conn.logout(sieveLogout)
	return d.report(conn, s), nil
}
