package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"postern/bridge"
	"postern/bridge/uidl"
	"postern/configs"
	"postern/proxy"
	"postern/proxy/authpolicy"
	"postern/proxy/backend"
	"postern/proxy/front"
	"postern/proxy/relay"
	"postern/proxy/route"
)

const (
	probeEvery = 10 * time.Second // what the backends offer, and whether they are there
	watchEvery = 2 * time.Second  // files: certificates, routes, policy
)

// A house is all that a Config asks for, made and not yet opened. What has
// memory belongs to the site.
type house struct {
	*site
	cfg        *configs.Config
	doors      []door
	pools      map[poolKey]*backend.Pool
	routing    *routing
	bridges    []*bridge.Backend
	pop3       popRules
	policy     *authpolicy.Server // that judges logins as well; nil: none does
	gid        int                // of those who may ask at the control socket; -1: only Postern's user and root
	background []func(context.Context)
}

// A door is a listener that is not open yet.
type door struct {
	key       string // in the configuration
	address   string
	proxyFrom []netip.Prefix
	services  []*proxy.Service // several differ by their Networks; the first has none
}

func (d door) name() string { return d.services[0].Name }

// build makes the house of cfg: the only place where configuration becomes
// rooms. It opens nothing, and changes nothing of what is served. An error is a
// configs.Errors.
func build(cfg *configs.Config, s *site) (*house, error) {
	h := newHouse(cfg, s)
	if err := h.setPOP3(); err != nil {
		return nil, err
	}
	if err := h.setControl(); err != nil {
		return nil, err
	}
	if err := h.setPolicyServer(); err != nil {
		return nil, err
	}
	b, err := h.newBackends()
	if err != nil {
		return nil, err
	}
	if h.routing, err = h.newRouting(); err != nil {
		return nil, err
	}
	for i, l := range cfg.Listeners {
		if l.Networks == nil {
			h.doors = append(h.doors, h.newDoor(i, b, h.routing))
		}
	}
	return h, nil
}

func newHouse(cfg *configs.Config, s *site) *house {
	return &house{site: s, cfg: cfg, pools: make(map[poolKey]*backend.Pool)}
}

// has reports whether a service of this name is served.
func (h *house) has(name string) bool {
	return slices.ContainsFunc(h.cfg.Listeners, func(l configs.Listener) bool { return l.Name == name })
}

// newDoor makes the door of a listener for all, with those at its address that
// are for some networks.
func (h *house) newDoor(i int, b backends, r *routing) door {
	l := h.cfg.Listeners[i]
	d := door{
		key: fmt.Sprintf("listeners[%d].address", i), address: l.Address, proxyFrom: l.ProxyFrom,
		services: []*proxy.Service{h.newService(l, b, r)},
	}
	for _, island := range h.cfg.Listeners {
		if island.Networks != nil && island.Address == l.Address {
			d.services = append(d.services, h.newService(island, b, r))
		}
	}
	return d
}

// newService makes what is served on l.
func (h *house) newService(l configs.Listener, b backends, r *routing) *proxy.Service {
	cfg := h.cfg
	svc := &proxy.Service{
		Name: l.Name, Protocol: l.Protocol, Networks: l.Networks, StartTLS: l.TLS != "implicit",
		Timeouts: proxy.Timeouts{Handshake: cfg.Timeouts.Handshake, Login: cfg.Timeouts.Login, Stall: cfg.Timeouts.Stall},
		Account:  r.accounts.Account, Text: h.text,
	}
	mux := &route.Mux{Rules: r.rules, Policy: r.policy, Targets: map[string]route.Target{}, Observer: h.observer}
	svc.Backend = mux
	options := front.Options{Hostname: cfg.Hostname, Offer: mux.Offer}
	switch l.Protocol {
	case proxy.IMAP:
		svc.Idle = cfg.Timeouts.IMAPIdle
		svc.Dialogue = func(c *proxy.Conn) proxy.Dialogue { return front.NewIMAP(c, options) }
		for name, pool := range b.imap {
			mux.Targets[name] = route.Target{Backend: &backend.IMAP{Server: pool, Idle: svc.Idle, Spread: cfg.Timeouts.Spread}, Offer: pool.Offer}
		}
	case proxy.POP3:
		svc.Idle = cfg.Timeouts.POP3Idle
		for name, pool := range b.imap {
			served := h.newBridge(name, pool, cfg.POP3.At(l))
			mux.Targets[name] = route.Target{Backend: served, Offer: pool.Offer}
			options.Capabilities = served.Capabilities() // of all the same
		}
		svc.Dialogue = func(c *proxy.Conn) proxy.Dialogue { return front.NewPOP3(c, options) }
	case proxy.Submission:
		svc.Idle = cfg.Timeouts.SubmissionIdle
		svc.Dialogue = func(c *proxy.Conn) proxy.Dialogue { return front.NewSMTP(c, options) }
		for name, pool := range b.submission {
			submission := &backend.Submission{
				Server: pool, Idle: svc.Idle, Hostname: cfg.Hostname, Newlines: newlines[cfg.Submission.BareNewlines],
			}
			mux.Targets[name] = route.Target{Backend: submission, Offer: pool.Offer}
		}
	}
	if l.TLS == "refuse" {
		greet := svc.Dialogue
		svc.Dialogue = func(c *proxy.Conn) proxy.Dialogue { return front.Refuser{Dialogue: greet(c)} }
	} else {
		profile, _ := proxy.ParseProfile(l.TLSProfile) // configs knows the words
		if profile == proxy.Legacy {
			h.log.Warn("old TLS is on: 1.0, 3DES, keys without forward secrecy", "service", l.Name, "networks", l.Networks)
		}
		svc.TLS = h.tlsConfig(l.Name, l.Protocol, profile)
	}
	return svc
}

var newlines = map[string]relay.Newlines{"normalize": relay.Normalize, "reject": relay.Reject, "pass": relay.Pass}

// popRules is what configs has left to be understood here.
type popRules struct {
	uidl   uidl.Format
	delay  *bridge.LoginDelay
	shared map[string]maildrops // by backend
}

// maildrops is what the POP3 listeners of one backend have in common, across
// configurations.
type maildrops struct {
	locks *bridge.Locks
	queue *bridge.Queue
	brake *bridge.Brake
}

func (h *house) setPOP3() (err error) {
	c := h.cfg.POP3
	if h.pop3.uidl, err = uidl.Parse(c.UIDL); err != nil {
		return configs.Errors{h.cfg.Errorf("pop3.uidl", "%v", err)}
	}
	h.pop3.shared = map[string]maildrops{}
	if before := h.house.Load(); before != nil {
		h.pop3.shared = maps.Clone(before.pop3.shared)
		if d := before.pop3.delay; d != nil && d.Every == c.LoginDelay {
			h.pop3.delay = d
		}
	}
	if c.LoginDelay > 0 && h.pop3.delay == nil {
		h.pop3.delay = &bridge.LoginDelay{Every: c.LoginDelay}
	}
	return nil
}

// maildropsOf returns what the POP3 listeners of a backend share.
func (h *house) maildropsOf(backend string) maildrops {
	shared, ok := h.pop3.shared[backend]
	if !ok {
		shared.locks = new(bridge.Locks)
		shared.brake = bridge.NewBrake(backend, h.observer)
	}
	if limit := h.cfg.POP3.FirstListings; !ok || shared.queue.Limit != limit {
		shared.queue = &bridge.Queue{Limit: limit}
	}
	h.pop3.shared[backend] = shared
	return shared
}

// newBridge makes what serves pool on a listener that has c.
func (h *house) newBridge(name string, pool *backend.Pool, c configs.POP3) *bridge.Backend {
	server := h.cfg.Backends[name].IMAP
	deletion, _ := bridge.ParseDeletion(c.Delete) // configs knows the words
	lock, _ := bridge.ParsePolicy(c.Lock)
	shared := h.maildropsOf(name)
	b := &bridge.Backend{
		Name: name, Idle: h.cfg.Timeouts.POP3Idle, Timeout: h.cfg.Timeouts.Backend, Observer: h.observer,
		UIDL: h.pop3.uidl, Delete: deletion, Lock: lock, Locks: shared.locks, Queue: shared.queue,
		Brake: shared.brake, Listings: h.listings,
		Delay: h.pop3.delay, Recompute: c.UIDLOnLostState == "recompute",
		KeepUnseen: !c.Seen, ExpireNever: c.Expire == "never", UTF8: c.UTF8, Anonymous: !c.Implementation, Last: c.Last,
		StableBodies: server.StableBodies, Estimates: server.EstimatedSizes,
		Dial: func(ctx context.Context, l *proxy.Login) (net.Conn, string, error) {
			conn, capabilities, err := pool.LoginIMAP(ctx, l)
			if err != nil {
				return nil, "", err // not conn: a nil *Conn is no nil net.Conn
			}
			return conn, capabilities, nil
		},
	}
	h.bridges = append(h.bridges, b)
	return b
}

// remember gives the house, before it serves, what outlives it.
func (h *house) remember(m *memory) {
	for _, b := range h.bridges {
		b.Cache, b.Record = m.cache, m.record
	}
}

// openBrakes gives the brakes of the backends their state. One whose state cannot
// be read reports so, and brakes.
func (h *house) openBrakes(ctx context.Context, m *memory) {
	if m.brakes == nil {
		return
	}
	for _, name := range slices.Sorted(maps.Keys(h.pop3.shared)) {
		_ = h.pop3.shared[name].brake.Open(ctx, m.brakes) // an observer is told
	}
}

// brake returns the brake of a backend that is served.
func (s *site) brake(_ context.Context, backend string) (*bridge.Brake, error) {
	h := s.house.Load()
	if err := hasPOP3(h.cfg, backend); err != nil {
		return nil, err
	}
	return h.pop3.shared[backend].brake, nil
}

// hasPOP3 is an error that names the backends behind POP3 listeners if backend is
// none of them.
func hasPOP3(cfg *configs.Config, backend string) error {
	var names []string
	if slices.ContainsFunc(cfg.Listeners, func(l configs.Listener) bool { return l.Protocol == proxy.POP3 }) {
		for name, b := range cfg.Backends {
			if b.IMAP != nil {
				names = append(names, name)
			}
		}
	}
	slices.Sort(names)
	switch {
	case names == nil:
		return errors.New("no backend serves POP3: there is no pop3 listener, or no backend has an imap server")
	case !slices.Contains(names, backend):
		return fmt.Errorf("there is no backend %q that serves POP3; there are: %s", backend, strings.Join(names, ", "))
	}
	return nil
}
