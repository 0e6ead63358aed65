package route

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"postern/proxy"
	"postern/proxy/wire"
)

// A Rule chooses the backend of logins.
type Rule interface {
	// Route returns the name of the backend for l, or "" if another rule has to
	// decide. It may do I/O. An error refuses the login temporarily.
	Route(ctx context.Context, l *proxy.Login) (backend string, err error)

	// MayReturn reports whether Route may return backend.
	MayReturn(backend string) bool
}

// Rules are tried in their order; the first that returns a backend decides.
type Rules []Rule

var errNoRule = errors.New("no route fits the account")

// Route implements Rule, but returns an error instead of "".
func (r Rules) Route(ctx context.Context, l *proxy.Login) (string, error) {
	return r.route(ctx, l, func(proxy.Event) {})
}

// route is Route, and observes each rule that was tried.
func (r Rules) route(ctx context.Context, l *proxy.Login, observe func(proxy.Event)) (string, error) {
	for _, rule := range r {
		begun := time.Now()
		source, backend, err := routeBy(ctx, rule, l)
		if ctx.Err() == nil { // else the client has left
			observe(proxy.Routed{Source: source, Result: resultOf(backend, err), Duration: time.Since(begun), Err: err})
		}
		if backend != "" || err != nil {
			return backend, err
		}
	}
	return "", errNoRule
}

// routeBy calls rule and returns its kind.
func routeBy(ctx context.Context, rule Rule, l *proxy.Login) (source, backend string, err error) {
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
	backend, err = rule.Route(ctx, l)
	return source, backend, err
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
func (r Rules) MayReturn(backend string) bool {
	for _, rule := range r {
		if rule.MayReturn(backend) {
			return true
		}
	}
	return false
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

// Default is a Rule that sends every login to the backend of that name.
type Default string

// Route implements Rule.
func (d Default) Route(context.Context, *proxy.Login) (string, error) { return string(d), nil }

// MayReturn implements Rule.
func (d Default) MayReturn(backend string) bool { return backend == string(d) }

// A Domain is a Rule for the accounts of one domain.
type Domain struct {
	Name    string // without @; case does not count
	Backend string
}

// Route implements Rule.
func (d Domain) Route(_ context.Context, l *proxy.Login) (string, error) {
	if at := strings.LastIndexByte(l.Account, '@'); at >= 0 && strings.EqualFold(l.Account[at+1:], d.Name) {
		return d.Backend, nil
	}
	return "", nil
}

// MayReturn implements Rule.
func (d Domain) MayReturn(backend string) bool { return backend == d.Backend }

// A Target is a backend for one protocol.
type Target struct {
	proxy.Backend
	Offer func() proxy.Offer // without Mechanisms: not known yet
}

// A Mux is the proxy.Backend of a Service. It chooses the backend of a login and
// passes the login on. The guard comes before it.
type Mux struct {
	Rules     Rules
	Targets   map[string]Target // by name: the backends with the Service's protocol
	Protocols *Protocols        // nil: all accounts may use all protocols
	Observer  proxy.Observer    // nil: none
}

// Login implements proxy.Backend. Only who has the account's password learns that
// the account may not use the protocol: else strangers could find out which
// accounts exist.
func (m *Mux) Login(ctx context.Context, l *proxy.Login) (proxy.Session, error) {
	name, err := m.Rules.route(ctx, l, m.observe)
	if err != nil {
		return nil, unavailable(fmt.Errorf("route: %w", err))
	}
	target, ok := m.Targets[name]
	if !ok {
		return nil, unavailable(fmt.Errorf("route: there is no backend %q for %s", shorten(name), l.Client.Protocol))
	}
	session, err := target.Login(ctx, l)
	if err != nil {
		return nil, err
	}
	if m.Protocols == nil {
		return session, nil
	}
	if err := m.Protocols.refusal(l.Account, l.Client.Protocol); err != nil {
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
	for name, target := range m.Targets {
		if m.Rules.MayReturn(name) {
			offers = append(offers, target.Offer())
		}
	}
	return proxy.Intersect(offers...)
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
