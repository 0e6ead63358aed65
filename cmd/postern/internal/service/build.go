package service

import (
	"fmt"

	"postern/bridge"
	"postern/configs"
	"postern/proxy"
	"postern/proxy/backend"
	"postern/proxy/front"
	"postern/proxy/relay"
	"postern/proxy/route"
)

// build makes the generation of cfg. build reads the files that cfg names, opens no
// socket and no state, and does not change the current generation. An error is a
// configs.Errors.
func build(cfg *configs.Config, s *Service) (*generation, error) {
	g := newGeneration(cfg, s)
	if err := g.setPOP3(); err != nil {
		return nil, err
	}
	if err := g.setControl(); err != nil {
		return nil, err
	}
	if err := g.setKeys(); err != nil {
		return nil, err
	}
	if err := g.setRecord(); err != nil {
		return nil, err
	}
	if err := g.setPolicyServer(); err != nil {
		return nil, err
	}
	if err := g.setSources(); err != nil {
		return nil, err
	}
	b, err := g.newBackends()
	if err != nil {
		return nil, err
	}
	if err := g.setPasswords(b); err != nil {
		return nil, err
	}
	if g.routing, err = g.newRouting(); err != nil {
		return nil, err
	}
	for i, l := range cfg.Listeners {
		if l.Networks == nil {
			g.listeners = append(g.listeners, g.newListenerSpec(i, b, g.routing))
		}
	}
	return g, nil
}

// newListenerSpec returns the listener i of the configuration, which is for all
// networks, with the listeners at its address that are for some networks.
func (g *generation) newListenerSpec(i int, b backends, r *routing) listenerSpec {
	l := g.cfg.Listeners[i]
	d := listenerSpec{
		key: fmt.Sprintf("listeners[%d].address", i), address: l.Address, proxyFrom: l.ProxyFrom,
		services: []*proxy.Service{g.newService(l, b, r)},
	}
	for _, other := range g.cfg.Listeners {
		if other.Networks != nil && other.Address == l.Address {
			d.services = append(d.services, g.newService(other, b, r))
		}
	}
	return d
}

// newService returns the proxy.Service for l.
func (g *generation) newService(l configs.Listener, b backends, r *routing) *proxy.Service {
	cfg := g.cfg
	svc := &proxy.Service{
		Name: l.Name, Protocol: l.Protocol, Networks: l.Networks, StartTLS: l.TLS != "implicit",
		Timeouts: proxy.Timeouts{Handshake: cfg.Timeouts.Handshake, Login: cfg.Timeouts.Login, Stall: cfg.Timeouts.Stall},
		Account:  r.accounts.Account, Text: g.text,
	}
	mux := &route.Mux{Rules: r.rules, Protocols: r.policy, Targets: map[route.Choice]route.Target{}, Observer: g.observer}
	svc.Backend = mux
	options := front.Options{Hostname: cfg.Hostname, Offer: mux.Offer}
	switch l.Protocol {
	case proxy.IMAP:
		idle := cfg.Timeouts.IMAPIdle
		svc.Dialogue = func(c *proxy.Conn) proxy.Dialogue { return front.NewIMAP(c, options) }
		for name, pool := range b.imap {
			mux.Targets[route.Choice{Backend: name}] = route.Target{Backend: g.withToken(name, &backend.IMAP{Server: pool, Idle: idle, Spread: cfg.Timeouts.DisconnectSpread}), Offer: pool.Offer}
		}
	case proxy.POP3:
		idle := cfg.Timeouts.POP3Idle
		c := cfg.POP3.At(l)
		mux.POP3Mode = c.Mode
		options.Capabilities = (&bridge.Backend{Anonymous: !c.AnnounceImplementation}).Capabilities()
		learner := g.learner(b)
		bridges := map[string]*bridge.Backend{}
		for name, pool := range b.imap {
			served := g.newBridge(name, pool, cfg.POP3For(l, name))
			served.Learner, bridges[name] = learner, served
			mux.Targets[route.Choice{Backend: name, POP3Mode: route.Bridge}] = route.Target{Backend: g.withToken(name, served), Offer: pool.Offer}
			options.Capabilities = served.Capabilities() // the same for all bridges of the listener
		}
		for name := range cfg.Backends {
			if pool := b.pop3[cfg.OldServer(name)]; pool != nil {
				old := &backend.POP3{Server: pool, Idle: idle, Timeout: cfg.Timeouts.Backend, Observer: g.observer}
				mux.Targets[route.Choice{Backend: name, POP3Mode: route.Passthrough}] = route.Target{Backend: g.newNoted(old), Offer: pool.Offer}
				if served := bridges[name]; served != nil && cfg.State.Path != "" && g.source(name) == nil {
					mux.Targets[route.Choice{Backend: name, POP3Mode: route.Shadow}] = route.Target{Backend: g.newNoted(g.newShadow(served, b.imap[name], old)), Offer: pool.Offer}
				}
			}
		}
		svc.Dialogue = func(c *proxy.Conn) proxy.Dialogue { return front.NewPOP3(c, options) }
	case proxy.Submission:
		idle := cfg.Timeouts.SubmissionIdle
		svc.Dialogue = func(c *proxy.Conn) proxy.Dialogue { return front.NewSMTP(c, options) }
		for name, pool := range b.submission {
			submission := &backend.Submission{
				Server: pool, Idle: idle, Hostname: cfg.Hostname, Newlines: newlines[cfg.Submission.BareNewlines],
			}
			mux.Targets[route.Choice{Backend: name}] = route.Target{Backend: g.withToken(name, submission), Offer: pool.Offer}
		}
	case proxy.Sieve:
		idle := cfg.Timeouts.SieveIdle
		options.Anonymous = !cfg.Sieve.AnnounceImplementation
		svc.Dialogue = func(c *proxy.Conn) proxy.Dialogue { return front.NewSieve(c, options) }
		for name, pool := range b.sieve {
			mux.Targets[route.Choice{Backend: name}] = route.Target{Backend: g.withToken(name, &backend.Sieve{Server: pool, Idle: idle}), Offer: pool.Offer}
		}
	}
	if l.TLS == "refuse" {
		greet := svc.Dialogue
		svc.Dialogue = func(c *proxy.Conn) proxy.Dialogue { return front.Refuser{Dialogue: greet(c)} }
	} else {
		profile, _ := proxy.ParseProfile(l.TLSProfile) // configs has checked l.TLSProfile
		svc.TLS = g.tlsConfig(l.Name, l.Protocol, profile)
	}
	return svc
}

var newlines = map[string]relay.Newlines{"normalize": relay.Normalize, "reject": relay.Reject, "pass": relay.Pass}
