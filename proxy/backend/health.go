package backend

import (
	"context"
	"crypto/tls"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"postern/proxy"
	"postern/proxy/relay"
)

// A Report is what a server says of itself before anybody logs in.
type Report struct {
	Greeting     string   // its text, of at most 200 octets
	TLS          uint16   // as in tls.ConnectionState.Version; 0: none
	Capabilities []string // of IMAP, or the lines of an answer to EHLO, as a client is answered
	Mechanisms   []string // SASL, upper case
	Kind         Kind     // as configured, or guessed from Greeting and, with IMAP, ID

	offered []string // the lines that the relay passes and that the server has for Postern, too
}

// Probe connects to the server, asks what it offers and takes leave. Offer
// tells afterwards. It asks as a client outside will be asked for: with the
// same Identity, and an address that is neither a loopback nor Postern's own. A
// server with which nobody could log in gives an error. Once ctx has ended, the
// error says nothing about the server.
func (s *Server) Probe(ctx context.Context) (Report, error) {
	report, err := s.probe(ctx)
	if ctx.Err() != nil {
		return Report{}, context.Cause(ctx)
	}
	if err == nil && !s.logsIn(report) {
		err = s.nobody(report)
	}
	if err != nil {
		return Report{}, fmt.Errorf("backend %s, %s at %s: %w", s.Name, s.Protocol, s.Address, err)
	}
	s.report.Store(&report)
	return report, nil
}

// learnFrom keeps the report of a login for Offer. Every login is a probe, too:
// when the server has changed, the next client is offered what there is now.
// What XCLIENT has brought holds for that client alone: only what is missing is
// believed, until the next probe. A report without mechanisms is none, as in
// Probe.
func (s *Server) learnFrom(report Report) {
	last := s.report.Load()
	if !s.logsIn(report) {
		return
	}
	if last != nil && (s.Identity == XCLIENT || s.Identity == XCLIENTLogin) {
		report.offered = common(last.offered, report.offered)
	}
	s.report.Store(&report)
}

// logsIn reports whether a server with this report takes a login at all.
func (s *Server) logsIn(r Report) bool {
	if s.Protocol == proxy.IMAP && s.TLS == None && capabilities(r.Capabilities).has("LOGINDISABLED") {
		return false
	}
	return slices.ContainsFunc(r.Mechanisms, func(name string) bool {
		return carriers[name] != nil || name == mechLogin && s.Protocol == proxy.Submission
	})
}

// nobody is why nobody can log in.
func (s *Server) nobody(r Report) error {
	why := "no AUTH"
	switch {
	case s.Protocol == proxy.IMAP:
		why = "LOGINDISABLED"
	case len(r.Mechanisms) > 0:
		why = "only mechanisms that Postern does not speak (" + shorten(strings.Join(r.Mechanisms, " ")) + ")"
	}
	return fmt.Errorf("nobody can log in: the server offers %s on this connection: use TLS, let it trust Postern's address, or switch AUTH on there", why)
}

// outside returns a client like those to come, with addresses that are kept for
// documentation, RFC 5737: no list of clients that may do more, or less, than
// others has them.
func outside() proxy.Client {
	return proxy.Client{
		ID: "probe", Addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, 1}), 50000),
		Local: netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, 2}), 993),
		TLS:   &tls.ConnectionState{Version: tls.VersionTLS13, CipherSuite: tls.TLS_AES_128_GCM_SHA256},
	}
}

// probe asks for a client outside and, where the server does not take one and
// could mean its address, for a client at Postern's own: it may serve only
// such.
func (s *Server) probe(ctx context.Context) (Report, error) {
	ask := s.probeIMAP
	if s.Protocol == proxy.Submission {
		ask = s.probeSMTP
	}
	report, err := ask(ctx, outside())
	switch s.Identity {
	case Anonymous, ID:
		return report, err
	}
	if result := dialResult(err); err != nil && (result == proxy.DialGreeting || result == proxy.DialTLS) {
		if second, err := ask(ctx, proxy.Client{}); err == nil {
			return second, nil
		}
	}
	return report, err
}

func (s *Server) probeIMAP(ctx context.Context, client proxy.Client) (Report, error) {
	d := &imap{}
	conn, err := s.open(ctx, client, func(c *Conn) error {
		if err := d.begin(ctx, c, s); err != nil {
			return err
		}
		return d.introduce(client, s)
	})
	if err != nil {
		return Report{}, err
	}
	defer conn.closeWith(ctx)()
	d.inquire(s)
	conn.leave(d.nextTag() + " LOGOUT")
	report := Report{Greeting: d.heard, TLS: conn.version(), Capabilities: d.capabilities, Kind: s.said(d.heard, d.id)}
	for _, word := range d.capabilities {
		if name, ok := strings.CutPrefix(strings.ToUpper(word), "AUTH="); ok {
			report.Mechanisms = append(report.Mechanisms, name)
		}
	}
	// The command LOGIN carries what PLAIN does.
	if !slices.Contains(report.Mechanisms, "PLAIN") && !d.capabilities.has("LOGINDISABLED") {
		report.Mechanisms = append(report.Mechanisms, "PLAIN")
	}
	return report, nil
}

// inquire asks a server that does not say what it is: RFC 2971. No answer, or
// another one, says nothing.
func (d *imap) inquire(s *Server) {
	if s.said(d.heard) == Other && s.Kind == Guessed && d.capabilities.has("ID") {
		offered := d.capabilities
		_, _ = d.command("ID NIL")
		d.capabilities = offered
	}
}

func (s *Server) probeSMTP(ctx context.Context, client proxy.Client) (Report, error) {
	d := &smtp{names: s.ehloNames("")}
	conn, err := s.open(ctx, client, func(c *Conn) error {
		if err := d.begin(ctx, c, s); err != nil {
			return err
		}
		return d.pretend(client, s)
	})
	if err != nil {
		return Report{}, err
	}
	defer conn.closeWith(ctx)()
	conn.leave("QUIT")
	return d.report(conn, s), nil
}

func (d *smtp) report(c *Conn, s *Server) Report {
	offered := relay.Extensions(d.extensions)
	if d.before != nil {
		offered = common(relay.Extensions(d.before), offered)
	}
	return Report{
		Greeting: d.heard, TLS: c.version(), Capabilities: d.extensions, Mechanisms: d.mechanisms(s), Kind: s.said(d.software()),
		offered: offered,
	}
}

// common returns what two answers to EHLO have in common.
func common(a, b []string) []string {
	any := []string{mechPlain}
	return proxy.Intersect(proxy.Offer{Mechanisms: any, Extensions: a}, proxy.Offer{Mechanisms: any, Extensions: b}).Extensions
}

// version returns that of TLS, or 0.
func (c *Conn) version() uint16 {
	if t, ok := c.Conn.(*tls.Conn); ok {
		return t.ConnectionState().Version
	}
	return 0
}

// Offer returns what the server offered when it was last reached, as far as
// Postern passes it on. No Mechanisms: it never was.
func (s *Server) Offer() proxy.Offer {
	report := s.report.Load()
	if report == nil {
		return proxy.Offer{}
	}
	offer := proxy.Offer{Mechanisms: slices.Clone(report.Mechanisms), Extensions: slices.Clone(report.Capabilities)}
	if s.Protocol == proxy.Submission {
		offer.Extensions = slices.Clone(report.offered)
		if slices.Contains(offer.Mechanisms, mechLogin) && !slices.Contains(offer.Mechanisms, mechPlain) {
			offer.Mechanisms = append(offer.Mechanisms, mechPlain) // what one carries, the other does, too
		}
	}
	return offer
}

// health is what a Pool believes of a member.
type health struct {
	asked  bool // at all
	up     bool
	streak int // answers in a row that say otherwise
}

// note counts an answer, and reports whether the belief changes. The first one
// is believed at once.
func (h *health) note(ok bool, fall, rise int) (changed bool) {
	patience := rise
	if h.up {
		patience = fall
	}
	switch {
	case !h.asked:
		h.asked = true
	case ok == h.up:
		h.streak = 0
		return false
	default:
		if h.streak++; h.streak < patience {
			return false
		}
	}
	h.up, h.streak = ok, 0
	return true
}

// usable reports whether logins may go there: nothing is known against it.
func (m *member) usable() bool { return m.health.up || !m.health.asked }

// reached counts that a member could be reached, or why not. A login that
// succeeds, or cannot connect, counts as a probe does.
func (p *Pool) reached(m *member, err error) {
	fall, rise := p.Fall, p.Rise
	if fall == 0 {
		fall = defaultFall
	}
	if rise == 0 {
		rise = defaultRise
	}
	p.mu.Lock()
	changed := m.health.note(err == nil, fall, rise)
	p.mu.Unlock()
	if changed {
		p.tell(err)
	}
}

// tell lets the observer know how the pool is: up, if one of its members is.
func (p *Pool) tell(err error) {
	if p.Observer == nil {
		return
	}
	p.telling.Lock() // the last word has to be the newest
	defer p.telling.Unlock()
	e := proxy.Probed{Backend: p.Name, Protocol: p.Protocol, Up: p.Up()}
	if !e.Up {
		e.Err = err
	}
	p.Observer.Observe(e)
}

// Up reports whether a member is believed to be up; before the first probe,
// none is.
func (p *Pool) Up() bool {
	members := p.all()
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.ContainsFunc(members, func(m *member) bool { return m.health.up })
}

// Probe probes all members at once, each one time.
func (p *Pool) Probe(ctx context.Context) {
	var probing sync.WaitGroup
	for _, m := range p.all() {
		probing.Go(func() { p.probe(ctx, m) })
	}
	probing.Wait()
}

func (p *Pool) probe(ctx context.Context, m *member) {
	_, err := m.Server.Probe(ctx)
	if ctx.Err() != nil || exhausted(err) {
		return
	}
	p.reached(m, err)
	p.tell(err)
}

const (
	retry  = 5 * time.Second // how soon a member that is down, or may be, is asked again
	settle = time.Second     // after a login has found a member changed; many may
)

// Watch probes each member at once and then every so often, a tenth more or
// less, until ctx ends. One whose last answer was none is asked more often.
func (p *Pool) Watch(ctx context.Context, every time.Duration) {
	var watching sync.WaitGroup
	for _, m := range p.all() {
		watching.Go(func() { p.watch(ctx, m, every) })
	}
	watching.Wait()
}

func (p *Pool) watch(ctx context.Context, m *member, every time.Duration) {
	for ctx.Err() == nil {
		p.probe(ctx, m)
		pause := every - every/10 + rand.N(every/5+1)
		if !p.steady(m) {
			pause = min(pause, retry)
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		case <-m.again:
			sleep(ctx, settle)
		}
	}
}

// steady reports whether m is up, beyond doubt.
func (p *Pool) steady(m *member) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return m.health.up && m.health.streak == 0
}

// wake has m probed soon.
func (m *member) wake() {
	select {
	case m.again <- struct{}{}:
	default:
	}
}

func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
