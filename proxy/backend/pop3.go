package backend

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"postern/proxy"
	"postern/proxy/relay"
	"postern/proxy/wire"
)

// POP3 is a proxy.Backend that logs clients in to an old POP3 server and relays their
// commands.
type POP3 struct {
	Server   POP3Server
	Idle     time.Duration // for the client to send the next command; 0: proxy.DefaultPOP3Idle
	Timeout  time.Duration // longest silence of the server in a response; 0: proxy.DefaultReply
	Observer proxy.Observer
}

// A POP3Server logs clients in to POP3: a Server or a Pool.
type POP3Server interface {
	LoginPOP3(ctx context.Context, l *proxy.Login) (*Conn, error)
	name() string
}

// Login implements proxy.Backend.
func (b *POP3) Login(ctx context.Context, l *proxy.Login) (proxy.Session, error) {
	return b.LoginWatched(ctx, l, nil)
}

// LoginWatched is Login for a session that w watches; nil: nobody does.
func (b *POP3) LoginWatched(ctx context.Context, l *proxy.Login, w relay.POP3Watcher) (proxy.Session, error) {
	conn, err := b.Server.LoginPOP3(ctx, l)
	if err != nil {
		return nil, err
	}
	l.Secret.Clear()
	return &relay.POP3{
		BackendName: b.Server.name(), Conn: conn, Pipelining: conn.pipelining, Client: l.Client, Idle: b.Idle, Timeout: b.Timeout, Observer: b.Observer,
		Watcher: w,
	}, nil
}

// LoginPOP3 is Server.LoginPOP3 of the first member that accepts the connection.
func (p *Pool) LoginPOP3(ctx context.Context, l *proxy.Login) (*Conn, error) {
	return p.login(ctx, l, func(s *Server) (*Conn, error) { return s.LoginPOP3(ctx, l) })
}

// LoginPOP3 connects and logs l.Account in. Errors and the Secret are as for LoginIMAP.
func (s *Server) LoginPOP3(ctx context.Context, l *proxy.Login) (*Conn, error) {
	return s.withCredentials(ctx, l, func(l *proxy.Login) (*Conn, error) { return s.loginPOP3(ctx, l) })
}

func (s *Server) loginPOP3(ctx context.Context, l *proxy.Login) (*Conn, error) {
	if err := checkCredentials(l); err != nil {
		return nil, err
	}
	d := &pop3{}
	conn, err := s.open(ctx, l.Client, func(c *Conn) error {
		if err := d.begin(ctx, c, s); err != nil {
			return err
		}
		s.updateReport(d.report(c, s))
		return nil
	})
	if err != nil {
		return nil, s.unsent(err)
	}
	defer conn.closeWith(ctx)()
	if err := d.login(l, s); err != nil {
		conn.logout("QUIT")
		return nil, clearDoubt(ctx, err)
	}
	// Octets behind the answer to PASS answer nothing that was asked.
	if conn.replies.Buffered() > 0 {
		_ = conn.Close()
		r := s.unavailable(errors.New("the server sent something behind its answer to the login"))
		r.Verified = true
		return nil, r
	}
	_, conn.pipelining = wire.POP3Capability(d.capabilities, "PIPELINING")
	conn.clearDeadlines()
	return conn, nil
}

// pop3 is the dialogue with a POP3 server up to the login.
type pop3 struct {
	conn         *Conn
	greetingText string
	capabilities []string // the lines of CAPA; none: the server is older than RFC 2449
	known        bool     // the server has answered CAPA with +OK
	failure      failure  // of an OAuth mechanism
}

// begin reads the greeting and gets TLS. After it, credentials may be sent.
func (d *pop3) begin(ctx context.Context, c *Conn, s *Server) error {
	d.conn = c
	_ = c.SetDeadline(time.Now().Add(c.timeout))
	greeting, err := c.replies.POP3Response()
	if err != nil || greeting.Name != wire.POP3OK {
		return c.greetingError(err, proxy.POP3)
	}
	d.greetingText = shorten(greeting.Text)
	if err := d.capa(); err != nil {
		return err
	}
	if s.TLS != STARTTLS {
		return nil
	}
	if _, offered := wire.POP3Capability(d.capabilities, "STLS"); d.known && !offered {
		return &tlsError{errNoSTARTTLS()}
	}
	// A server without CAPA may have STLS: RFC 2595 is older than many of them.
	if r, err := d.command("STLS"); err != nil {
		return &tlsError{err}
	} else if r.Name != wire.POP3OK {
		return &tlsError{&ConnectError{Fault: NoSTARTTLS, Text: "the server refuses STLS"}}
	}
	if err := c.secure(ctx, s.Config); err != nil {
		return err
	}
	d.capabilities, d.known = nil, false // RFC 2595 section 4
	return d.capa()
}

// capa asks for the capabilities. Servers from before RFC 2449 answer -ERR.
func (d *pop3) capa() error {
	r, err := d.command("CAPA")
	if err == nil && r.Name == wire.POP3OK {
		d.known = true
		d.capabilities, err = d.conn.replies.POP3Lines()
	} else if err == nil && r.Name != wire.POP3Err {
		err = errNotAsked
	}
	if err != nil {
		return fmt.Errorf("CAPA: %w", err)
	}
	return nil
}

var errNotAsked = errors.New("the server answered what was not asked")

// command sends a command and returns the first line of the response.
func (d *pop3) command(line string) (wire.POP3Response, error) { return d.send([]byte(line + "\r\n")) }

// send sends a line, clears it, and returns the first line of the response. What a server
// has sent before is no answer to it.
func (d *pop3) send(line []byte) (wire.POP3Response, error) {
	if d.conn.replies.Buffered() > 0 {
		clear(line)
		return wire.POP3Response{}, errNotAsked
	}
	if err := d.conn.send(line); err != nil {
		return wire.POP3Response{}, err
	}
	return d.conn.replies.POP3Response()
}

// mechanisms returns the SASL mechanisms, and PLAIN if the server takes USER and PASS,
// which carry the same.
func (d *pop3) mechanisms() []string {
	all, _ := wire.POP3Capability(d.capabilities, "SASL")
	if d.takesUser() && !slices.Contains(all, wire.MechanismPlain) {
		all = append(all, wire.MechanismPlain)
	}
	return all
}

// takesUser reports whether the server takes USER and PASS, as far as it says. A server
// whose CAPA has no way at all to log in, now or after STLS, has left USER out.
func (d *pop3) takesUser() bool {
	has := func(name string) bool {
		_, ok := wire.POP3Capability(d.capabilities, name)
		return ok
	}
	return has("USER") || !d.known || !has("SASL") && !has("STLS")
}

func (d *pop3) report(c *Conn, s *Server) Report {
	return Report{
		Greeting: d.greetingText, TLS: c.version(), Capabilities: d.capabilities, Mechanisms: d.mechanisms(), Kind: s.kindOf(d.software()...),
	}
}

// software returns the texts that name the server's software: RFC 2449 section 6.9.
func (d *pop3) software() []string {
	texts := []string{d.greetingText}
	if words, ok := wire.POP3Capability(d.capabilities, "IMPLEMENTATION"); ok {
		texts = append(texts, shorten(strings.Join(words, " ")))
	}
	return texts
}

// login sends the credentials.
func (d *pop3) login(l *proxy.Login, s *Server) error {
	mechanism := d.mechanism(l)
	plain := equivalentMechanisms[l.Mechanism][0] == wire.MechanismPlain
	if mechanism == "" && !(plain && d.takesUser()) {
		return s.unsent(s.advised(&ConnectError{Fault: NoMechanism, Text: "the server offers no login for such credentials on this connection"}))
	}
	if _, ok := wire.POP3Capability(d.capabilities, "UTF8"); ok && l.Hello.UTF8 {
		if _, err := d.command("UTF8"); err != nil { // RFC 6856 section 2.1: before the login
			return s.unsent(fmt.Errorf("UTF8: %w", err))
		}
	}
	begun := time.Now()
	r, err := d.authenticate(mechanism, l)
	if errors.Is(err, errNoMechanism) {
		err = s.unsent(err)
	} else if err != nil {
		err = s.unanswered(fmt.Errorf("login: %w", err))
	} else {
		if !slices.ContainsFunc(pop3Rows, func(row textRow) bool { return row.code == r.Code }) {
			r.Code = withoutSecret(r.Code, l)
		}
		err = withChallenge(s.pop3Verdict(s.knownKind(d.software()...), r), d.failure)
	}
	err = s.verdictFor(l, err)
	s.reportLogin(begun, err)
	return err
}

// mechanism returns the mechanism of AUTH, or "" for USER and PASS. Every server takes
// these, but not all of them take spaces and octets beyond ASCII there: mailutils does not.
func (d *pop3) mechanism(l *proxy.Login) string {
	offered, _ := wire.POP3Capability(d.capabilities, "SASL")
	mechanism := chooseMechanism(l, func(name string) bool { return slices.Contains(offered, name) })
	simple := func(s []byte) bool {
		return len(s) > 0 && !slices.ContainsFunc(s, func(c byte) bool { return c <= ' ' || c > '~' })
	}
	if mechanism == wire.MechanismPlain && d.takesUser() && simple([]byte(l.Account)) && simple(l.Secret.Reveal()) {
		return ""
	}
	return mechanism
}

// errNoMechanism is the answer to AUTH before it has the credentials.
var errNoMechanism = errors.New("the server refuses a mechanism that it offers")

// authenticate sends the credentials and returns the answer to them.
func (d *pop3) authenticate(mechanism string, l *proxy.Login) (wire.POP3Response, error) {
	if mechanism == "" {
		if r, err := d.command("USER " + l.Account); err != nil || r.Name != wire.POP3OK {
			return r, err
		}
		secret := l.Secret.Reveal()
		line := append(make([]byte, 0, len("PASS \r\n")+len(secret)), "PASS "...)
		return d.send(append(append(line, secret...), "\r\n"...))
	}
	// Without an initial response, which servers of RFC 1734 do not know.
	r, err := d.command("AUTH " + mechanism)
	if err == nil && r.Name == wire.POP3Err && r.Code == "" {
		err = errNoMechanism
	}
	if err != nil || r.Name == wire.POP3Err {
		return r, err
	}
	if r.Name == wire.POP3OK {
		return r, errors.New("the server agreed before it had heard all")
	}
	d.failure = newFailure(mechanism)
	message := append(appendMessage(make([]byte, 0, messageLength(l)+len("\r\n")), mechanism, l), "\r\n"...)
	r, err = d.send(message)
	if err == nil && r.Name == wire.POP3Continue && d.failure.expected() {
		d.failure.record(r.Text)
		if r, err = d.send(bytes.Clone(d.failure.answer)); err == nil && r.Name == wire.POP3OK {
			return r, errors.New("the server agreed after it had refused")
		}
	}
	return r, err
}

func (s *Server) probePOP3(ctx context.Context, client proxy.Client) (Report, error) {
	d := &pop3{}
	conn, err := s.open(ctx, client, func(c *Conn) error { return d.begin(ctx, c, s) })
	if err != nil {
		return Report{}, err
	}
	defer conn.closeWith(ctx)()
	conn.logout("QUIT")
	return d.report(conn, s), nil
}
