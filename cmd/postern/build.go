package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net"
	"os"
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
	"postern/proxy/route"
)

const (
	probeEvery = 10 * time.Second // what the backends offer, and whether they are there
	watchEvery = 2 * time.Second  // certificate files
)

// A house is all that a Config asks for, made and not yet opened.
type house struct {
	cfg        *configs.Config
	store      *certs.Store
	log        *slog.Logger
	server     *proxy.Server
	doors      []door
	metrics    *metrics.Metrics
	watching   net.Listener // where the metrics are asked for; nil: nowhere
	background []func(context.Context)
	servers    []*backend.Server
	opened     atomic.Bool
	draining   atomic.Bool
	ready      func([]proxy.Binding) // told when the doors are open
}

// build makes the house of cfg: the only place where configuration becomes
// rooms. It opens nothing. An error is a configs.Errors.
func build(cfg *configs.Config, store *certs.Store, log *slog.Logger) (*house, error) {
	h := &house{cfg: cfg, store: store, log: log, ready: func([]proxy.Binding) {}}
	h.metrics = newMetrics(cfg, h)
	observer := proxy.Observers{h.metrics, proxy.NewAudit(log)}
	h.server = &proxy.Server{
		Guard:    newGuard(cfg),
		Observer: observer,
		Timeouts: proxy.Timeouts{Handshake: cfg.Timeouts.Handshake, Login: cfg.Timeouts.Login, Stall: cfg.Timeouts.Stall},
	}
	name := cfg.Routes[0].Backend
	behind, err := h.newBackend(name, observer)
	if err != nil {
		return nil, err
	}
	for i, l := range cfg.Listeners {
		svc := &proxy.Service{
			Name: l.Name, Protocol: l.Protocol, Account: route.Account,
			TLS: store.TLS(l.Protocol, uint16(cfg.TLS.MinVersion)),
		}
		behind.serve(svc, cfg)
		h.doors = append(h.doors, door{fmt.Sprintf("listeners[%d].address", i), l.Address, svc})
	}
	for _, s := range h.servers {
		h.background = append(h.background, func(ctx context.Context) { s.Watch(ctx, probeEvery) })
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

// A pair of servers is what one backend consists of.
type servers struct {
	imap, submission *backend.Server // nil: the backend has none
	observer         proxy.Observer
}

func (h *house) newBackend(name string, observer proxy.Observer) (*servers, error) {
	b := h.cfg.Backends[name]
	s := &servers{observer: observer}
	var mistakes configs.Errors
	make := func(c *configs.Server, protocol string) *backend.Server {
		if c == nil {
			return nil
		}
		key := fmt.Sprintf("backends.%s.%s", name, protocol)
		config, err := clientTLS(c)
		if err != nil {
			mistakes = append(mistakes, h.cfg.Errorf(key+".ca", "%v", err))
		}
		server := &backend.Server{
			Name: name, Protocol: protocol, Address: c.Address, TLS: modes[c.TLS], Config: config,
			DialTimeout: h.cfg.Timeouts.Dial, ReplyTimeout: h.cfg.Timeouts.Backend,
			Hostname: h.cfg.Hostname, Observer: observer,
		}
		h.servers = append(h.servers, server)
		return server
	}
	s.imap, s.submission = make(b.IMAP, proxy.IMAP), make(b.Submission, proxy.Submission)
	if mistakes != nil {
		return nil, mistakes
	}
	return s, nil
}

var modes = map[string]backend.Mode{"implicit": backend.Implicit, "starttls": backend.STARTTLS, "none": backend.None}

func clientTLS(c *configs.Server) (*tls.Config, error) {
	config := &tls.Config{ServerName: c.ServerName, MinVersion: tls.VersionTLS12, ClientSessionCache: tls.NewLRUClientSessionCache(0)}
	if c.CA == "" {
		return config, nil
	}
	pem, err := os.ReadFile(c.CA)
	if err != nil {
		return nil, err
	}
	config.RootCAs = x509.NewCertPool()
	if !config.RootCAs.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s holds no certificate", c.CA)
	}
	return config, nil
}

// serve adds to svc what its protocol needs: the dialogue in front and the
// backend behind.
func (s *servers) serve(svc *proxy.Service, cfg *configs.Config) {
	options := front.Options{Hostname: cfg.Hostname}
	switch svc.Protocol {
	case proxy.IMAP:
		svc.Idle, svc.Offer = cfg.Timeouts.IMAPIdle, s.imap.Offer
		svc.Backend = &backend.IMAP{Server: s.imap, Idle: svc.Idle}
		svc.Dialogue = func(c *proxy.Conn) proxy.Dialogue { return front.NewIMAP(c, options) }
	case proxy.POP3:
		svc.Idle, svc.Offer = cfg.Timeouts.POP3Idle, s.imap.Offer
		svc.Backend = &bridge.Backend{
			Name: s.imap.Name, Dial: s.dialIMAP, Idle: svc.Idle, Timeout: cfg.Timeouts.Backend, Observer: s.observer,
		}
		svc.Dialogue = func(c *proxy.Conn) proxy.Dialogue { return front.NewPOP3(c, options) }
	case proxy.Submission:
		svc.Idle, svc.Offer = cfg.Timeouts.SubmissionIdle, s.submission.Offer
		options.Offer = svc.Offer
		svc.Backend = &backend.Submission{Server: s.submission, Idle: svc.Idle, Hostname: cfg.Hostname}
		svc.Dialogue = func(c *proxy.Conn) proxy.Dialogue { return front.NewSMTP(c, options) }
	}
}

// dialIMAP is a bridge.Dial.
func (s *servers) dialIMAP(ctx context.Context, l *proxy.Login) (net.Conn, string, error) {
	conn, capabilities, err := s.imap.LoginIMAP(ctx, l)
	if err != nil {
		return nil, "", err // not conn: a nil *Conn is no nil net.Conn
	}
	return conn, capabilities, nil
}
