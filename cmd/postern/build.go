package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync/atomic"
	"time"

	"postern/bridge"
	"postern/configs"
	"postern/metrics"
	"postern/proxy"
	"postern/proxy/backend"
	"postern/proxy/certs"
	"postern/proxy/front"
	"postern/proxy/guard"
	"postern/proxy/relay"
	"postern/proxy/route"
)

const (
	probeEvery = 10 * time.Second // what the backends offer, and whether they are there
	watchEvery = 2 * time.Second  // files: certificates, routes, policy
)

// A house is all that a Config asks for, made and not yet opened.
type house struct {
	cfg        *configs.Config
	store      *certs.Store
	log        *slog.Logger
	server     *proxy.Server
	observer   proxy.Observer
	doors      []door
	metrics    *metrics.Metrics
	watching   net.Listener // where the metrics are asked for; nil: nowhere
	background []func(context.Context)
	pools      []*backend.Pool
	opened     atomic.Bool
	draining   atomic.Bool
	ready      func([]proxy.Binding) // told when the doors are open
}

// A door is a listener that is not open yet.
type door struct {
	key       string // in the configuration
	address   string
	proxyFrom []netip.Prefix
	service   *proxy.Service
}

// build makes the house of cfg: the only place where configuration becomes
// rooms. It opens nothing. An error is a configs.Errors.
func build(cfg *configs.Config, store *certs.Store, log *slog.Logger) (*house, error) {
	h := &house{cfg: cfg, store: store, log: log, ready: func([]proxy.Binding) {}}
	h.metrics = newMetrics(cfg, h)
	audit := proxy.NewAudit(log)
	h.observer = proxy.Observers{h.metrics, audit}
	h.server = &proxy.Server{
		Guard:    newGuard(cfg),
		Observer: h.observer,
		Timeouts: proxy.Timeouts{Handshake: cfg.Timeouts.Handshake, Login: cfg.Timeouts.Login, Stall: cfg.Timeouts.Stall},
	}
	b, err := h.newBackends()
	if err != nil {
		return nil, err
	}
	r, err := h.newRouting()
	if err != nil {
		return nil, err
	}
	audit.Known = r.known
	for i, l := range cfg.Listeners {
		h.doors = append(h.doors, door{
			key: fmt.Sprintf("listeners[%d].address", i), address: l.Address, proxyFrom: l.ProxyFrom,
			service: h.newService(l, b, r),
		})
	}
	h.background = append(h.background,
		func(ctx context.Context) { store.Watch(ctx, watchEvery, log) },
		h.serveMetrics)
	return h, nil
}

func newGuard(cfg *configs.Config) *guard.Guard {
	rate := func(b configs.Budget) guard.Rate { return guard.Rate{Burst: b.Burst, Every: b.Every} }
	return guard.New(guard.Config{
		Network:               rate(cfg.Guard.Network),
		Account:               rate(cfg.Guard.Account),
		Connections:           cfg.Limits.MaxConnections,
		ConnectionsPerNetwork: cfg.Limits.NetworkConnections,
		Trusted:               cfg.TrustedNetworks,
	})
}

// newService makes what is served on l.
func (h *house) newService(l configs.Listener, b backends, r *routing) *proxy.Service {
	cfg := h.cfg
	svc := &proxy.Service{
		Name: l.Name, Protocol: l.Protocol, StartTLS: l.TLS != "implicit",
		Account: r.accounts.Account, Text: h.text,
	}
	mux := &route.Mux{Rules: r.rules, Policy: r.policy, Targets: map[string]route.Target{}}
	svc.Backend, svc.Offer = mux, mux.Offer
	options := front.Options{Hostname: cfg.Hostname, Offer: mux.Offer}
	switch l.Protocol {
	case proxy.IMAP:
		svc.Idle = cfg.Timeouts.IMAPIdle
		svc.Dialogue = func(c *proxy.Conn) proxy.Dialogue { return front.NewIMAP(c, options) }
		for name, pool := range b.imap {
			mux.Targets[name] = route.Target{Backend: &backend.IMAP{Server: pool, Idle: svc.Idle}, Offer: pool.Offer}
		}
	case proxy.POP3:
		svc.Idle = cfg.Timeouts.POP3Idle
		svc.Dialogue = func(c *proxy.Conn) proxy.Dialogue { return front.NewPOP3(c, options) }
		for name, pool := range b.imap {
			mux.Targets[name] = route.Target{Backend: h.newBridge(name, pool), Offer: pool.Offer}
		}
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
		svc.TLS = h.store.TLS(l.Protocol, uint16(cfg.TLS.MinVersion))
	}
	return svc
}

var newlines = map[string]relay.Newlines{"normalize": relay.Normalize, "reject": relay.Reject, "pass": relay.Pass}

func (h *house) newBridge(name string, pool *backend.Pool) *bridge.Backend {
	return &bridge.Backend{
		Name: name, Idle: h.cfg.Timeouts.POP3Idle, Timeout: h.cfg.Timeouts.Backend, Observer: h.observer,
		Dial: func(ctx context.Context, l *proxy.Login) (net.Conn, string, error) {
			conn, capabilities, err := pool.LoginIMAP(ctx, l)
			if err != nil {
				return nil, "", err // not conn: a nil *Conn is no nil net.Conn
			}
			return conn, capabilities, nil
		},
	}
}
