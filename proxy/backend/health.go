package backend

import (
	"context"
	"crypto/tls"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"

	"postern/proxy"
	"postern/proxy/relay"
	"postern/proxy/wire"
)

// A Report is what a server offers before login.
type Report struct {
	Greeting     string   // its text, at most 200 octets
	TLS          uint16   // as in tls.ConnectionState.Version; 0: none
	Capabilities []string // IMAP capabilities, the lines of the replies to EHLO or CAPA, or names and values of ManageSieve, as a client gets them
	Mechanisms   []string // SASL, upper case
	Kind         Kind     // as configured, or guessed from Greeting and, with IMAP, ID
	Identified   bool     // the server offers Identity, if it is ID or XCLIENT

	offered []string // lines of Capabilities that the relay forwards and that the server also offers to Postern itself
}

// Probe connects to the server, reads what it offers, and logs out. Offer returns
// the result afterwards. The probe is made for a client outside: with the same
// Identity as a login, and with an address that is neither a loopback address nor
// Postern's own. A server at which no login is possible gives an error. Once ctx
// has ended, the error says nothing about the server.
func (s *Server) Probe(ctx context.Context) (Report, error) {
	report, err := s.probe(ctx)
	if ctx.Err() != nil {
		return Report{}, context.Cause(ctx)
	}
	if err == nil && !s.allowsLogin(report) {
		err = s.noLoginError(report)
	}
	if err != nil {
		return Report{}, fmt.Errorf("backend %s, %s at %s: %w", s.Name, s.Protocol, s.Address, err)
	}
	s.report.Store(&report)
	return report, nil
}

// updateReport keeps the report of a login for Offer. When a server has changed,
// the next client is offered what there is now. After XCLIENT, the report is
// valid for one client: then extensions are only removed, until the next probe. A
// report without mechanisms is ignored, as in Probe.
func (s *Server) updateReport(report Report) {
	last := s.report.Load()
	if !s.allowsLogin(report) {
		return
	}
	if last != nil && (s.Identity == XCLIENT || s.Identity == XCLIENTLogin) {
		report.offered = commonExtensions(last.offered, report.offered)
	}
	s.report.Store(&report)
}

// allowsLogin reports whether a server with this report accepts logins at all.
func (s *Server) allowsLogin(r Report) bool {
	if s.Credentials != nil {
		return slices.ContainsFunc(r.Mechanisms, carriesToken)
	}
	if s.Protocol == proxy.IMAP && s.TLS == None && capabilities(r.Capabilities).has("LOGINDISABLED") {
		return slices.ContainsFunc(r.Mechanisms, carriesToken) && !slices.Contains(r.Mechanisms, wire.MechanismPlain)
	}
	return slices.ContainsFunc(r.Mechanisms, func(name string) bool {
		return equivalentMechanisms[name] != nil || name == wire.MechanismLogin && s.Protocol == proxy.Submission
	})
}

// noLoginError returns why the server accepts no login.
func (s *Server) noLoginError(r Report) error {
	e := &ConnectError{Fault: NoMechanism}
	why := "no AUTH"
	switch s.Protocol {
	case proxy.POP3:
		why = "neither USER nor AUTH"
	case proxy.Sieve:
		why = "no SASL mechanism"
	}
	switch {
	case s.Credentials != nil:
		why = "neither XOAUTH2 nor OAUTHBEARER"
	case s.Protocol == proxy.IMAP:
		e.Fault, why = PasswordsDisabled, "LOGINDISABLED"
	case len(r.Mechanisms) > 0:
		why = fmt.Sprintf("only mechanisms that Postern does not speak (%q)", shorten(strings.Join(r.Mechanisms, " ")))
	}
	e.Text = fmt.Sprintf("nobody can log in: the server offers %s on this connection", why)
	return s.advised(e)
}

// outsideClient returns a client like those from outside. Its addresses are
// reserved for documentation (RFC 5737), so that no list of networks on the
// server contains them.
func outsideClient() proxy.Client {
	return proxy.Client{
		ID: "probe", Addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, 1}), 50000),
		Local: netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, 2}), 993),
		TLS:   &tls.ConnectionState{Version: tls.VersionTLS13, CipherSuite: tls.TLS_AES_128_GCM_SHA256},
	}
}

// probe probes for a client outside. If the server rejects that client, maybe
// because of its address, it probes for a client at Postern's own address: the
// server may serve only such clients.
func (s *Server) probe(ctx context.Context) (Report, error) {
	ask := s.probeIMAP
	switch s.Protocol {
	case proxy.POP3:
		ask = s.probePOP3
	case proxy.Submission:
		ask = s.probeSMTP
	case proxy.Sieve:
		ask = s.probeSieve
	}
	report, err := ask(ctx, outsideClient())
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

// TryLogin logs l's account in at a member for submission, POP3 or ManageSieve, as a client
// outside would, and logs out. Errors are as for LoginSMTP.
func (p *Pool) TryLogin(ctx context.Context, l *proxy.Login) error {
	protocol := l.Client.Protocol
	l.Client = outsideClient()
	l.Client.Protocol = protocol
	logIn, goodbye := p.LoginSMTP, "QUIT"
	switch p.Protocol {
	case proxy.POP3:
		logIn = p.LoginPOP3
	case proxy.Sieve:
		logIn, goodbye = p.LoginSieve, sieveLogout
	}
	conn, err := logIn(ctx, l)
	if err != nil {
		return err
	}
	defer conn.closeWith(ctx)()
	conn.logout(goodbye)
	return nil
}

func (s *Server) probeIMAP(ctx context.Context, client proxy.Client) (Report, error) {
	d := &imap{}
	conn, err := s.open(ctx, client, func(c *Conn) error {
		if err := d.begin(ctx, c, s); err != nil {
			return err
		}
		if s.sendsHeaderInTheClear() { // a greeting alone does not show that the server took it
			if _, err := d.command("NOOP"); err != nil {
				return fmt.Errorf("NOOP: %w", err)
			}
		}
		return d.sendProbeID(client, s)
	})
	if err != nil {
		return Report{}, err
	}
	defer conn.closeWith(ctx)()
	d.requestID(s)
	conn.logout(d.nextTag() + " LOGOUT")
	report := Report{
		Identified: s.Identity == ID && d.capabilities.has("ID"),
		Greeting:   d.greetingText, TLS: conn.version(), Capabilities: d.capabilities, Kind: s.kindOf(d.greetingText, d.idResponse),
	}
	for _, word := range d.capabilities {
		if name, ok := strings.CutPrefix(strings.ToUpper(word), "AUTH="); ok {
			report.Mechanisms = append(report.Mechanisms, name)
		}
	}
	// The LOGIN command carries the same as PLAIN.
	if !slices.Contains(report.Mechanisms, wire.MechanismPlain) && !d.capabilities.has("LOGINDISABLED") {
		report.Mechanisms = append(report.Mechanisms, wire.MechanismPlain)
	}
	return report, nil
}

// requestID asks a server whose greeting does not identify it: RFC 2971. No
// answer and other answers are ignored.
func (d *imap) requestID(s *Server) {
	if s.kindOf(d.greetingText) == Other && s.Kind == Guessed && d.capabilities.has("ID") {
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
		return d.sendProbeXCLIENT(client, s)
	})
	if err != nil {
		return Report{}, err
	}
	defer conn.closeWith(ctx)()
	conn.logout("QUIT")
	return d.report(conn, s), nil
}

func (d *smtp) report(c *Conn, s *Server) Report {
	offered := relay.Extensions(d.extensions)
	if d.beforeXCLIENT != nil {
		offered = commonExtensions(relay.Extensions(d.beforeXCLIENT), offered)
	}
	return Report{
		Greeting: d.greetingText, TLS: c.version(), Capabilities: d.extensions, Mechanisms: d.mechanisms(s), Kind: s.kindOf(d.software()),
		offered: offered, Identified: d.beforeXCLIENT != nil,
	}
}

// commonExtensions returns the lines that two replies to EHLO have in common.
func commonExtensions(a, b []string) []string {
	any := []string{wire.MechanismPlain}
	return proxy.Intersect(proxy.Offer{Mechanisms: any, Extensions: a}, proxy.Offer{Mechanisms: any, Extensions: b}).Extensions
}

// Offer returns what the server offered when it was last reached, as far as
// Postern forwards it. No Mechanisms: it was never reached.
func (s *Server) Offer() proxy.Offer {
	report := s.report.Load()
	if report == nil {
		return proxy.Offer{}
	}
	offer := proxy.Offer{Mechanisms: slices.Clone(report.Mechanisms), Extensions: slices.Clone(report.Capabilities)}
	if s.Credentials != nil && !slices.Contains(offer.Mechanisms, wire.MechanismPlain) {
		offer.Mechanisms = append(offer.Mechanisms, wire.MechanismPlain) // Postern checks the password
	}
	if s.Protocol == proxy.Submission {
		offer.Extensions = slices.Clone(report.offered)
		if slices.Contains(offer.Mechanisms, wire.MechanismLogin) && !slices.Contains(offer.Mechanisms, wire.MechanismPlain) {
			offer.Mechanisms = append(offer.Mechanisms, wire.MechanismPlain) // both carry the same
		}
	}
	return offer
}

// A health is what a Pool knows about whether a member is up.
type health struct {
	probed bool // at least once
	up     bool
	since  time.Time // of up
	streak int       // results in a row that contradict up
	err    error     // of the last result; nil: it succeeded
}

// record counts a result, and reports whether up has changed. The first result is
// believed at once.
func (h *health) record(ok bool, fall, rise int) (changed bool) {
	needed := rise
	if h.up {
		needed = fall
	}
	switch {
	case !h.probed:
		h.probed = true
	case ok == h.up:
		h.streak = 0
		return false
	default:
		if h.streak++; h.streak < needed {
			return false
		}
	}
	h.up, h.since, h.streak = ok, time.Now(), 0
	return true
}

// usable reports whether logins may go to m: it is up, or was never probed.
func (m *member) usable() bool { return m.health.up || !m.health.probed }

// recordResult records that a member was reached (nil), or why not. A login that
// succeeds, or that cannot connect, counts as a probe does.
func (p *Pool) recordResult(m *member, err error) {
	fall, rise := p.Fall, p.Rise
	if fall == 0 {
		fall = defaultFall
	}
	if rise == 0 {
		rise = defaultRise
	}
	p.mu.Lock()
	changed := m.health.record(err == nil, fall, rise)
	m.health.err = err
	p.mu.Unlock()
	if changed {
		p.reportHealth(err)
	}
}

// reportHealth emits whether the pool is up: one of its members is.
func (p *Pool) reportHealth(err error) {
	if p.Observer == nil {
		return
	}
	p.reporting.Lock() // the last event must be the newest state
	defer p.reporting.Unlock()
	e := proxy.Probed{Backend: p.Name, Protocol: p.Protocol, Up: p.Up()}
	if !e.Up {
		e.Err = err
	}
	p.Observer.Observe(e)
}

// Up reports whether a member is up. Before the first probe none is.
func (p *Pool) Up() bool {
	members := p.all()
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.ContainsFunc(members, func(m *member) bool { return m.health.up })
}

// Probe probes all members once, in parallel.
func (p *Pool) Probe(ctx context.Context) {
	var probing sync.WaitGroup
	for _, m := range p.all() {
		probing.Go(func() { p.probe(ctx, m) })
	}
	probing.Wait()
}

func (p *Pool) probe(ctx context.Context, m *member) {
	err := p.probeServer(ctx, m.Server)
	if ctx.Err() != nil || outOfDescriptors(err) {
		return
	}
	p.recordResult(m, err)
	p.reportHealth(err)
}

// probeServer is Server.Probe, but a panic is an error: no connection's recover
// covers the goroutines of Probe and Watch, which parse what a server sends.
func (p *Pool) probeServer(ctx context.Context, s *Server) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("panic in a probe: %v", v)
			if p.Observer != nil {
				p.Observer.Observe(proxy.Panicked{Value: v, Stack: debug.Stack()})
			}
		}
	}()
	_, err = s.Probe(ctx)
	return err
}

// The times of Watch.
const (
	retryInterval = 5 * time.Second // between the probes of a member that is down, or may be
	settleTime    = time.Second     // before the probe of a member that a login has found changed: many logins may
)

// Watch probes each member at once and then in intervals of every, a tenth more
// or less, until ctx ends. A member whose last probe failed is probed more often.
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
		wait := every - every/10 + rand.N(every/5+1)
		if !p.steady(m) {
			wait = min(wait, retryInterval)
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		case <-m.probeSoon:
			sleep(ctx, settleTime)
		}
	}
}

// steady reports whether m is up and its last result was no failure.
func (p *Pool) steady(m *member) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return m.health.up && m.health.streak == 0
}

// requestProbe lets Watch probe m soon.
func (m *member) requestProbe() {
	select {
	case m.probeSoon <- struct{}{}:
	default:
	}
}

func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
