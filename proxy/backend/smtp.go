package backend

import (
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

// Submission is a proxy.Backend that logs clients in and relays their commands.
type Submission struct {
	Server   SMTPServer
	Hostname string        // in replies to EHLO after login: as in the listener's dialogue
	Idle     time.Duration // for the client to send the next command; 0: proxy.DefaultSubmissionIdle
	Newlines relay.Newlines
}

// Login implements proxy.Backend.
func (b *Submission) Login(ctx context.Context, l *proxy.Login) (proxy.Session, error) {
	conn, err := b.Server.LoginSMTP(ctx, l)
	if err != nil {
		return nil, err
	}
	l.Secret.Clear()
	return &relay.Submission{
		BackendName: b.Server.name(), Conn: conn, Hostname: b.Hostname, Extensions: l.Offer.Extensions, Lacks: conn.lacks,
		Idle: b.Idle, Newlines: b.Newlines,
	}, nil
}

// LoginSMTP connects and logs l.Account in, if the server has everything in
// l.Offer. Errors and the Secret are as for LoginIMAP.
func (s *Server) LoginSMTP(ctx context.Context, l *proxy.Login) (*Conn, error) {
	return s.withCredentials(ctx, l, func(l *proxy.Login) (*Conn, error) { return s.loginSMTP(ctx, l) })
}

func (s *Server) loginSMTP(ctx context.Context, l *proxy.Login) (*Conn, error) {
	if err := checkCredentials(l); err != nil {
		return nil, err
	}
	if err := s.verify(ctx, l); err != nil {
		return nil, err
	}
	d := &smtp{names: s.ehloNames(l.Hello.Name)}
	conn, err := s.open(ctx, l.Client, func(c *Conn) error {
		if err := d.begin(ctx, c, s); err != nil {
			return err
		}
		if err := d.sendXCLIENT(l, s); err != nil {
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
		conn.logout("QUIT") // fail2ban filters match "lost connection after AUTH"
		return nil, clearDoubt(ctx, err)
	}
	conn.lacks = d.lacks(l.Offer)
	conn.clearDeadlines()
	return conn, nil
}

// ehloNames returns the names to try in EHLO: the client's if it is valid, and
// Postern's own, because the server may be stricter.
func (s *Server) ehloNames(client string) []string {
	own := s.Hostname
	if own == "" {
		own = "localhost"
	}
	odd := func(c rune) bool { return c <= ' ' || c > '~' }
	const mostDomain = 255 // RFC 5321 section 4.5.3.1.2
	if client == "" || client == own || len(client) > mostDomain || strings.ContainsFunc(client, odd) {
		return []string{own}
	}
	return []string{client, own}
}

// smtp is the dialogue with a submission server up to the login.
type smtp struct {
	conn          *Conn
	names         []string // for EHLO: the first that the server accepts is used
	greetingText  string   // the greeting
	extensions    []string // the lines of the reply to EHLO without the first
	beforeXCLIENT []string // the extensions before XCLIENT; nil: there was no XCLIENT
	failure       failure  // of an OAuth mechanism
}

// begin reads the greeting and gets TLS. After it, credentials may be sent.
func (d *smtp) begin(ctx context.Context, c *Conn, s *Server) error {
	d.conn = c
	_ = c.SetDeadline(time.Now().Add(c.timeout))
	greeting, err := c.replies.Reply()
	if err != nil || greeting.Code != 220 || spokenProtocol(greeting.Raw) != spokenSMTP {
		return c.greetingError(err, proxy.Submission)
	}
	d.greetingText = shorten(greeting.Lines()[0])
	if err := d.ehlo(); err != nil {
		return err
	}
	if s.TLS != STARTTLS {
		return nil
	}
	if err := d.startTLS(ctx, s); err != nil {
		return err
	}
	return d.ehlo()
}

// ehlo asks for the extensions. Earlier ones are discarded: RFC 3207 section 4.2.
func (d *smtp) ehlo() (err error) {
	d.extensions = nil
	for _, name := range d.names {
		var r wire.Reply
		if r, err = d.command("EHLO "+name, 250); err == nil {
			d.extensions = r.Lines()[1:]
			return nil
		}
		if r.Code/100 != 5 {
			break
		}
	}
	return fmt.Errorf("EHLO: %w", err)
}

// software returns the greeting without the host name at its beginning: RFC 5321
// section 4.2.
func (d *smtp) software() string {
	_, text, _ := strings.Cut(d.greetingText, " ")
	return text
}

func (d *smtp) startTLS(ctx context.Context, s *Server) error {
	if _, ok := extension(d.extensions, "STARTTLS"); !ok {
		return &tlsError{errNoSTARTTLS()}
	}
	if _, err := d.command("STARTTLS", 220); err != nil {
		return &tlsError{&ConnectError{Fault: NoSTARTTLS, Text: fmt.Sprintf("STARTTLS: %v", err), Err: err}}
	}
	return d.conn.secure(ctx, s.Config)
}

// command sends a line that has no secret.
func (d *smtp) command(line string, want int) (wire.Reply, error) {
	if err := d.conn.send([]byte(line + "\r\n")); err != nil {
		return wire.Reply{}, err
	}
	return d.reply(want)
}

// reply reads a reply. A code other than want is an error with the server's text.
func (d *smtp) reply(want int) (wire.Reply, error) {
	r, err := d.conn.replies.Reply()
	if err == nil && r.Code != want {
		err = fmt.Errorf("the server said %q", shorten(string(r.Raw)))
	}
	return r, err
}

// login sends the credentials.
func (d *smtp) login(l *proxy.Login, s *Server) error {
	if missing := d.missing(l.Offer); missing != "" {
		return s.unsent(fmt.Errorf("the server no longer offers %s", missing))
	}
	if d.canLoginByXCLIENT(l, s) {
		return d.loginByXCLIENT(l, s)
	}
	pieces := d.pieces(l)
	if pieces == nil {
		return s.unsent(s.advised(&ConnectError{Fault: NoMechanism, Text: "the server offers no AUTH for such credentials on this connection"}))
	}
	begun := time.Now()
	r, err := d.exchange(pieces)
	if err != nil {
		err = s.unanswered(fmt.Errorf("login: %w", err))
	} else {
		err = withChallenge(s.smtpVerdict(s.knownKind(d.software()), r), d.failure)
	}
	err = s.verdictFor(l, err)
	s.reportLogin(begun, err)
	return err
}

// missing returns the keyword of the first extension in offered that the server
// no longer has, or "". An extension that the server has for Postern and not for
// the client of XCLIENT is not missing: see lacks. AUTH is Postern's own.
func (d *smtp) missing(offered proxy.Offer) string {
	for _, keyword := range d.lacks(offered) {
		if _, ok := extension(d.beforeXCLIENT, keyword); !ok {
			return keyword
		}
	}
	return ""
}

// lacks returns the keywords of the extensions in offered that the server does
// not have for this client.
func (d *smtp) lacks(offered proxy.Offer) (keywords []string) {
	for _, line := range relay.Extensions(offered.Extensions) {
		keyword, _, _ := strings.Cut(line, " ")
		if _, ok := extension(d.extensions, keyword); !ok {
			keywords = append(keywords, strings.ToUpper(keyword))
		}
	}
	return keywords
}

// pieces returns the lines of AUTH, each but the first after a challenge; nil if
// there is no mechanism.
func (d *smtp) pieces(l *proxy.Login) [][]byte {
	offered := mechanisms(d.extensions)
	mechanism := chooseMechanism(l, func(name string) bool { return slices.Contains(offered, name) })
	switch {
	case mechanism != "":
		d.failure = newFailure(mechanism)
		return authInitial(mechanism, l)
	case equivalentMechanisms[l.Mechanism][0] == wire.MechanismPlain && slices.Contains(offered, wire.MechanismLogin):
		return authLogin(l)
	}
	return nil
}

// authInitial puts the initial response on the first line if it is not too long:
// RFC 4954 section 4.
func authInitial(mechanism string, l *proxy.Login) [][]byte {
	const mostLine = 512 // RFC 5321 section 4.5.3.1.4
	verb := "AUTH " + mechanism
	line := make([]byte, 0, len(verb)+len(" \r\n")+messageLength(l))
	line = append(append(line, verb...), ' ')
	line = append(appendMessage(line, mechanism, l), "\r\n"...)
	if len(line) <= mostLine {
		return [][]byte{line}
	}
	return [][]byte{[]byte(verb + "\r\n"), line[len(verb)+1:]}
}

func authLogin(l *proxy.Login) [][]byte {
	password := make([]byte, 0, len(l.Secret.Reveal())*4/3+8)
	return [][]byte{
		[]byte("AUTH LOGIN\r\n"),
		append(wire.AppendSASL(nil, []byte(l.Account)), "\r\n"...),
		append(wire.AppendSASL(password, l.Secret.Reveal()), "\r\n"...),
	}
}

// exchange sends the first piece, sends each other piece when the server asks for
// it, and returns the last reply. All pieces are cleared.
func (d *smtp) exchange(pieces [][]byte) (wire.Reply, error) {
	defer func() {
		for _, p := range pieces {
			clear(p)
		}
	}()
	for i := 0; i < len(pieces); i++ {
		if err := d.conn.send(pieces[i]); err != nil {
			return wire.Reply{}, err
		}
		r, err := d.conn.replies.Reply()
		if err != nil {
			return r, err
		}
		if r.Code != 334 {
			if r.Positive() && (i < len(pieces)-1 || d.failure.json != nil) {
				return r, errors.New("the server agreed before it had heard all")
			}
			return r, nil
		}
		if i == len(pieces)-1 && d.failure.expected() {
			d.failure.record(r.Lines()[0])
			pieces = append(pieces, slices.Clone(d.failure.answer))
		}
	}
	return wire.Reply{}, errors.New("the server asks on")
}

// mechanisms returns the SASL mechanisms in the lines of an answer to EHLO, in
// upper case. Old servers write AUTH=.
func mechanisms(extensions []string) []string {
	var all []string
	for _, line := range extensions {
		if len(line) > 5 && strings.EqualFold(line[:4], "AUTH") && strings.IndexByte(" =", line[4]) >= 0 {
			all = append(all, strings.Fields(strings.ToUpper(line[5:]))...)
		}
	}
	return all
}

// mechanisms returns the SASL mechanisms of a login. With XCLIENTLogin the
// password is checked elsewhere.
func (d *smtp) mechanisms(s *Server) []string {
	offered := xclientOffer(d.extensions)
	if d.beforeXCLIENT != nil {
		offered = xclientOffer(d.beforeXCLIENT)
	}
	if s.Identity == XCLIENTLogin && offersXCLIENTLogin(offered) {
		return []string{wire.MechanismPlain}
	}
	return mechanisms(d.extensions)
}

// extension returns the parameters of the extension keyword.
func extension(extensions []string, keyword string) (params string, ok bool) {
	for _, line := range extensions {
		word, params, _ := strings.Cut(line, " ")
		if strings.EqualFold(word, keyword) {
			return params, true
		}
	}
	return "", false
}
