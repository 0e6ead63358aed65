package backend

import (
	"context"
	"crypto/tls"
	"fmt"
	"slices"
	"strings"
	"time"

	"postern/proxy"
	"postern/proxy/relay"
)

// A Report is what a server says of itself before anybody logs in.
type Report struct {
	Greeting     string   // its text, of at most 200 octets
	TLS          uint16   // as in tls.ConnectionState.Version; 0: none
	Capabilities []string // of IMAP, or the lines of an answer to EHLO
	Mechanisms   []string // SASL, upper case
}

// Probe connects to the server, asks what it offers and takes leave. Up and
// Offer tell afterwards, unless ctx has ended first.
func (s *Server) Probe(ctx context.Context) (Report, error) {
	report, err := s.probe(ctx)
	if ctx.Err() != nil { // says nothing about the server
		return Report{}, context.Cause(ctx)
	}
	if err != nil {
		err = fmt.Errorf("backend %s, %s at %s: %w", s.Name, s.Protocol, s.Address, err)
	} else {
		s.learn(report)
	}
	s.up.Store(err == nil)
	s.observe(proxy.Probed{Backend: s.Name, Protocol: s.Protocol, Up: err == nil, Err: err})
	return report, err
}

// learn keeps a report for Offer. Every login is a probe, too: when the server
// has changed, the next client is offered what there is now.
func (s *Server) learn(report Report) { s.report.Store(&report) }

func (s *Server) probe(ctx context.Context) (Report, error) {
	if s.Protocol == proxy.Submission {
		return s.probeSMTP(ctx)
	}
	return s.probeIMAP(ctx)
}

func (s *Server) probeIMAP(ctx context.Context) (Report, error) {
	d := &imap{}
	conn, err := s.open(ctx, func(c *Conn) error { return d.begin(ctx, c, s) })
	if err != nil {
		return Report{}, err
	}
	defer func() { _ = conn.Close() }()
	defer conn.closeWith(ctx)()
	_, _ = d.command("LOGOUT") // BYE comes first, as an error
	report := Report{Greeting: d.heard, TLS: conn.version(), Capabilities: d.capabilities}
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

func (s *Server) probeSMTP(ctx context.Context) (Report, error) {
	d := &smtp{names: s.ehloNames("")}
	conn, err := s.open(ctx, func(c *Conn) error { return d.begin(ctx, c, s) })
	if err != nil {
		return Report{}, err
	}
	defer func() { _ = conn.Close() }()
	defer conn.closeWith(ctx)()
	_, _ = d.command("QUIT", 221)
	return d.report(conn), nil
}

func (d *smtp) report(c *Conn) Report {
	return Report{Greeting: d.heard, TLS: c.version(), Capabilities: d.extensions, Mechanisms: mechanisms(d.extensions)}
}

// version returns that of TLS, or 0.
func (c *Conn) version() uint16 {
	if t, ok := c.Conn.(*tls.Conn); ok {
		return t.ConnectionState().Version
	}
	return 0
}

// retry is how soon a server that is down is asked again.
const retry = 5 * time.Second

// Watch probes the server at once and then every so often, until ctx ends; one
// that is down is asked more often.
func (s *Server) Watch(ctx context.Context, every time.Duration) {
	for ctx.Err() == nil {
		pause := every
		if _, err := s.Probe(ctx); err != nil {
			pause = min(every, retry)
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
}

// Up reports whether the last probe succeeded.
func (s *Server) Up() bool { return s.up.Load() }

// Offer returns what the server offered when it was last reached, as far as
// Postern passes it on. No Mechanisms: it never was.
func (s *Server) Offer() proxy.Offer {
	report := s.report.Load()
	if report == nil {
		return proxy.Offer{}
	}
	offer := proxy.Offer{Mechanisms: slices.Clone(report.Mechanisms), Extensions: slices.Clone(report.Capabilities)}
	if s.Protocol == proxy.Submission {
		offer.Extensions = relay.Extensions(report.Capabilities)
	}
	return offer
}
