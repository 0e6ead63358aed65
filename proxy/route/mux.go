package route

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"postern/proxy"
	"postern/proxy/wire"
)

// The values of Choice.POP3Mode: who answers a POP3 client.
const (
	Bridge      = "bridge"      // Postern, from the IMAP server
	Passthrough = "passthrough" // the old POP3 server
	Shadow      = "shadow"      // the old POP3 server, and the bridge compares
)

// POP3Modes returns the modes.
func POP3Modes() []string { return []string{Bridge, Passthrough, Shadow} }

// A Choice is where a login goes.
type Choice struct {
	Backend  string // the name of a backend; "": another rule has to decide
	POP3Mode string // Bridge, Passthrough or Shadow; "": as the listener says. Not for other protocols
}

// A Rule chooses the backend of logins.
type Rule interface {
	// Route returns the Choice for l. It may do I/O. An error refuses the login
	// temporarily.
	Route(ctx context.Context, l *proxy.Login) (Choice, error)

	// MayReturn reports whether Route may return c.
	MayReturn(c Choice) bool
}

// Rules are tried in their order; the first that returns a Backend decides.
type Rules []Rule

var errNoRule = errors.New("no route fits the account")

// Route implements Rule, but returns an error instead of no Backend.
func (r Rules) Route(ctx context.Context, l *proxy.Login) (Choice, error) {
	return r.route(ctx, l, func(proxy.Event) {})
}

// route is Route, and observes each rule that was tried.
func (r Rules) route(ctx context.Context, l *proxy.Login, observe func(proxy.Event)) (Choice, error) {
	for _, rule := range r {
		begun := time.Now()
		source, choice, err := routeBy(ctx, rule, l)
		if ctx.Err() == nil { // else the client has left
			observe(proxy.Routed{Source: source, Result: resultOf(choice.Backend, err), Duration: time.Since(begun), Err: err})
		}
		if choice.Backend != "" || err != nil {
			return choice, err
		}
	}
	return Choice{}, errNoRule
}

// routeBy calls rule and returns its kind.
func routeBy(ctx context.Context, rule Rule, l *proxy.Login) (source string, choice Choice, err error) {
	source = proxy.RouteOther
	switch rule := rule.(type) {
	case *Hook:
		return rule.route(ctx, l)
	case *File:
		source = proxy.RouteFile
	case Domain:
		source = proxy.RouteDomain
	case Default:
		source = proxy.RouteDefault
	}
	choice, err = rule.Route(ctx, l)
	return source, choice, err
}

func resultOf(backend string, err error) string {
	switch {
	case err != nil:
		return proxy.RouteError
	case backend == "":
		return proxy.RouteNone
	}
	return proxy.RouteFound
}

// MayReturn implements Rule.
func (r Rules) MayReturn(c Choice) bool {
	for _, rule := range r {
		if rule.MayReturn(c) {
			return true
		}
	}
	return false
}

// MayReturnBackend reports whether Route may return backend, with any POP3Mode.
func (r Rules) MayReturnBackend(backend string) bool {
	return r.MayReturn(Choice{Backend: backend}) || slices.ContainsFunc(POP3Modes(), func(mode string) bool {
		return r.MayReturn(Choice{backend, mode})
	})
}

// Known reports whether a rule lists account itself, not only its domain. Then
// the account exists, and its name may be written to a log.
func (r Rules) Known(account string) bool {
	for _, rule := range r {
		if f, ok := rule.(*File); ok && f.Known(account) {
			return true
		}
	}
	return false
}

// KnownDomain reports whether a rule names a domain of accounts. A domain that only the
// accounts of a File have is not named.
func (r Rules) KnownDomain(domain string) bool {
	for _, rule := range r {
		switch rule := rule.(type) {
		case *File:
			if rule.lines.knownDomain(domain) {
				return true
			}
		case Domain:
			if strings.EqualFold(domain, rule.Name) {
				return true
			}
		}
	}
	return false
}

// Default is a Rule that makes the same Choice for every login.
type Default Choice

// Route implements Rule.
func (d Default) Route(context.Context, *proxy.Login) (Choice, error) { return Choice(d), nil }

// MayReturn implements Rule.
func (d Default) MayReturn(c Choice) bool { return c == Choice(d) }

// A Domain is a Rule for the accounts of one domain.
type Domain struct {
	Name string // without @; case does not count
	Choice
}

// Route implements Rule.
func (d Domain) Route(_ context.Context, l *proxy.Login) (Choice, error) {
	if at := strings.LastIndexByte(l.Account, '@'); at >= 0 && strings.EqualFold(l.Account[at+1:], d.Name) {
		return d.Choice, nil
	}
	return Choice{}, nil
}

// MayReturn implements Rule.
func (d Domain) MayReturn(c Choice) bool { return c == d.Choice }

// A Target is a backend for one protocol.
type Target struct {
	proxy.Backend
	Offer func() proxy.Offer // without Mechanisms: not known yet
}

// A Mux is the proxy.Backend of a Service. It chooses the backend of a login and
// passes the login on. The guard comes before it.
type Mux struct {
	Rules     Rules
	Targets   map[Choice]Target // the backends with the Service's protocol; of POP3 one for each mode, of others without a mode
	POP3Mode  string            // of a Choice that has none; "" for other protocols
	Protocols *Protocols        // nil: all accounts may use all protocols
	Observer  proxy.Observer    // nil: none
}

// Login implements proxy.Backend. Only who has the account's password learns that
// the account may not use the protocol: else strangers could find out which
// accounts exist.
func (m *Mux) Login(ctx context.Context, l *proxy.Login) (proxy.Session, error) {
	choice, err := m.Rules.route(ctx, l, m.observe)
	if err != nil {
		return nil, unavailable(fmt.Errorf("route: %w", err))
	}
	if choice.POP3Mode == "" {
		choice.POP3Mode = m.POP3Mode
	}
	how := l.Client.Protocol
	if m.POP3Mode == "" {
		choice.POP3Mode = ""
	} else {
		how += " in the mode " + choice.POP3Mode
	}
	target, ok := m.Targets[choice]
	if !ok {
		return nil, unavailable(fmt.Errorf("route: there is no backend %q for %s", shorten(choice.Backend), how))
	}
	session, err := target.Login(ctx, l)
	if err != nil {
		return nil, err
	}
	if m.Protocols == nil {
		return session, nil
	}
	if err := m.Protocols.Refusal(l.Account, l.Client.Protocol); err != nil {
		_ = session.Close()
		return nil, err
	}
	return session, nil
}

func (m *Mux) observe(e proxy.Event) {
	if m.Observer != nil {
		m.Observer.Observe(e)
	}
}

// Offer returns what all Targets that a rule may return have in common, whether
// they are up or not. A Target whose Offer is not known yet does not count.
// Without Mechanisms, none is known.
func (m *Mux) Offer() proxy.Offer {
	offers := make([]proxy.Offer, 0, len(m.Targets))
	for choice, target := range m.Targets {
		if m.mayChoose(choice) {
			offers = append(offers, target.Offer())
		}
	}
	return proxy.Intersect(offers...)
}

// mayChoose reports whether a login may go to the target of c.
func (m *Mux) mayChoose(c Choice) bool {
	if m.POP3Mode == "" {
		return m.Rules.MayReturnBackend(c.Backend)
	}
	return m.Rules.MayReturn(c) || c.POP3Mode == m.POP3Mode && m.Rules.MayReturn(Choice{Backend: c.Backend})
}

// unavailable returns the Refusal for an error that is not the client's.
func unavailable(err error) error {
	if proxy.ReasonOf(err) != 0 {
		return err
	}
	return proxy.NewRefusal(proxy.Unavailable, err)
}

// shorten returns the beginning of a text from outside, for a log line.
func shorten(s string) string { return wire.Excerpt(s, 100) }
