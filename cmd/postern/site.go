package main

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/signal"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"postern/bridge"
	"postern/configs"
	"postern/metrics"
	"postern/metrics/page"
	"postern/proxy"
	"postern/proxy/admin"
	"postern/proxy/authpolicy"
	"postern/proxy/backend"
	"postern/proxy/certs"
	"postern/proxy/guard"
	"postern/proxy/listen"
)

// A site is what outlives a configuration: what is open, and what has memory.
// One house after the other stands on it.
type site struct {
	log      *slog.Logger
	level    *slog.LevelVar
	binary   string // of this process, and of its successor
	path     string // of the configuration; "": there is none to read again
	store    *certs.Store
	metrics  *metrics.Metrics
	page     *page.Page
	ledger   ledgerKeeper
	audit    *proxy.Audit
	observer proxy.Observer    // all of these
	guard    *guard.Guard      // made with the first house
	advised  *authpolicy.Guard // by a policy server
	nonce    []byte            // for it
	server   *proxy.Server
	sockets  *listen.Sockets
	memory   *memory
	listings *bridge.ListingMemory
	ready    func([]proxy.Binding) // told when the doors of the first house are open

	control *admin.Server
	asking  net.Listener // where subcommands ask; nil: nowhere

	listeners map[string]*listen.ProxyListener
	tickets   map[ticketKey]*tls.Config
	webs      map[string]served // by key of the configuration

	names      pseudonyms // of accounts in logs
	discretion atomic.Pointer[discretion]

	house    atomic.Pointer[house] // that is served; nil: none yet
	changes  chan change           // what is asked for
	wg       sync.WaitGroup        // of what goes on in the background
	end      context.CancelFunc    // of the present house's part of it
	draining atomic.Bool

	keepers  []func(context.Context) // what writes to the memory
	keeping  sync.WaitGroup          // of these
	stopKeep context.CancelFunc      // ends them

	successor   *successor    // nil: this process serves
	fallen      error         // why it no longer does, if there is no successor
	predecessor *relative     // nil: there was none
	before      chan struct{} // closed when the predecessor has ended; nil: there was none
	inherited   []byte        // the guard's snapshot of a predecessor without state
}

// A web is what answers HTTP at an address of the configuration.
type web struct {
	what         string
	key, address string // address "": it is not wanted
	handler      func() http.Handler
	allow        func(netip.Addr) bool // who may connect; nil: everybody
}

// served is a web that is open.
type served struct {
	address string
	server  *http.Server
}

// A ticketKey is what a TLS configuration depends on. It is kept across houses,
// and so are the keys of its session tickets.
type ticketKey struct {
	listener, protocol string
	profile            proxy.Profile
}

// newSite returns a site on which nothing stands. It opens nothing.
func newSite(store *certs.Store, log *slog.Logger, level *slog.LevelVar) *site {
	s := &site{
		log: log, level: level, store: store, memory: &memory{}, ready: func([]proxy.Binding) {},
		listeners: make(map[string]*listen.ProxyListener), tickets: make(map[ticketKey]*tls.Config),
		webs: make(map[string]served), changes: make(chan change), binary: ownBinary(),
	}
	s.nonce = []byte(rand.Text())
	s.log = slog.New(newDiscreet(newCounted(log.Handler(), func(l slog.Level) { s.metrics.Logged(l) }), &s.discretion))
	s.page = s.newPage()
	s.metrics = s.newMetrics()
	s.audit = proxy.NewAudit(s.log)
	s.audit.Known = s.known
	s.observer = proxy.Observers{s.metrics, s.page, s.audit, &s.ledger}
	s.listings = bridge.NewListingMemory(math.MaxInt64, s.observer) // until there is a configuration
	s.server = &proxy.Server{Observer: s.observer, Room: listen.CheckDescriptors}
	return s
}

// known reports whether a file of the present configuration lists an account.
func (s *site) known(account string) bool {
	h := s.house.Load()
	return h != nil && h.routing.known(account)
}

// serveConfig serves cfg until ctx ends.
func (s *site) serveConfig(ctx context.Context, cfg *configs.Config) error {
	h, err := build(cfg, s)
	if err != nil {
		return err
	}
	return s.serve(ctx, h)
}

// serve applies h and serves until ctx ends. Then it closes the listeners and
// gives the sessions their time. An error is one of opening: a stop, even with
// sessions left, is none.
func (s *site) serve(ctx context.Context, h *house) error {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGHUP, syscall.SIGUSR2)
	defer signal.Stop(signals) // not before the last session: without this, they would end the process
	if s.sockets == nil {
		var err error
		if s.sockets, err = listen.Inherited(); err != nil {
			return err
		}
	}
	if err := s.setFailures(h.cfg); err != nil {
		return err
	}
	s.openGuard(ctx, h)
	s.keepers = append(s.keepers, s.whileWhole(cacheOf, s.runGuard))
	if s.inherited != nil {
		if err := s.guard.Restore(s.inherited); err != nil {
			s.log.Warn("the login guard begins anew, and learns", "err", err)
		}
	}
	s.openLedger(ctx)
	s.memory.observe(s.observer)
	s.memory.brake = s.brake
	s.control = s.newControl()
	background, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer s.wg.Wait()
	defer stop()
	if err := s.store.Open(s.log, s.observer); err != nil {
		return configs.Errors{h.cfg.Errorf("tls.acme", "%v", err)}
	}
	if err := s.openControl(h); err != nil {
		return configs.Errors{h.cfg.Errorf("control.socket", "%v", err)}
	}
	if err := s.apply(background, h); err != nil {
		if s.asking != nil {
			_ = s.asking.Close()
		}
		return err
	}
	for _, address := range s.sockets.CloseUnused() {
		s.log.Warn("inherited a socket that no listener has", "address", address)
	}
	s.wg.Go(func() { s.store.Run(background) })
	s.wg.Go(func() { s.store.Watch(background, watchEvery, s.log) })
	s.keep(background)
	defer func() { s.endKeeping() }()
	if s.predecessor != nil {
		if err := s.predecessor.say(word{Serving: true}); err != nil {
			return err
		}
	}
	s.notify(ready)
	s.changeUntil(ctx, background, signals)
	if s.successor != nil {
		s.outlive(ctx, background)
	} else {
		s.drain(background)
	}
	s.advised.Wait()
	return s.fallen
}

// keep runs what writes to the memory, and answers at the control socket, until
// endKeeping.
func (s *site) keep(background context.Context) {
	var ctx context.Context
	ctx, s.stopKeep = context.WithCancel(background)
	for _, work := range s.keepers {
		s.keeping.Go(func() { work(ctx) })
	}
	if asking := s.asking; asking != nil {
		s.wg.Go(func() { s.serveControl(background, asking) })
	}
}

// endKeeping returns when nothing writes to the memory but sessions.
func (s *site) endKeeping() {
	s.stopKeep()
	s.keeping.Wait()
}

// outlive waits for the sessions that a successor has left to this process, and
// for those of its predecessor, whose locks the successor has from this process:
// for timeouts.upgrade, or until the process is told to stop.
func (s *site) outlive(ctx, background context.Context) {
	grace := s.house.Load().cfg.Timeouts.Upgrade
	ctx, cancel := context.WithTimeout(ctx, grace)
	defer cancel()
	s.log.Info("sessions may end by themselves", "grace", grace, "connections", len(s.server.Sessions()))
	if s.server.Wait(ctx) == nil && s.waitBefore(ctx) {
		s.log.Info("the last session has ended")
		return
	}
	s.drain(background)
	// A predecessor that drains as well ends as late as this process could.
	timeouts := s.house.Load().cfg.Timeouts
	ctx, cancel = context.WithTimeout(background, timeouts.Shutdown+timeouts.Spread)
	defer cancel()
	s.waitBefore(ctx)
}

// waitBefore waits for the end of the predecessor, if there was one, and reports
// whether it has ended before ctx.
func (s *site) waitBefore(ctx context.Context) bool {
	if s.before == nil {
		return true
	}
	select {
	case <-s.before:
		return true
	case <-ctx.Done():
		return false
	}
}

// apply makes h what is served, all of it; after an error nothing has changed.
// ctx is that of the background.
func (s *site) apply(ctx context.Context, h *house) error {
	bindings, webs, err := s.open(ctx, h)
	if err != nil {
		return err
	}
	h.remember(s.memory)
	s.discretion.Store(&discretion{Privacy: h.cfg.Privacy, Names: s.names}) // before there is anything to say
	s.metrics.Know(h.services(), h.servers())
	h.openBrakes(ctx, s.memory)
	s.listings.SetLimit(int64(h.cfg.Limits.ListingMemory))
	before := s.house.Swap(h)
	s.advised.SetServer(h.policy)
	h.firstProbe(ctx, before)
	if err := s.server.Apply(bindings); err != nil {
		return err
	}
	s.metrics.Allow(h.cfg.Metrics.Networks)
	s.serveWebs(ctx, h, webs)
	if s.end != nil {
		s.end()
	}
	var background context.Context
	background, s.end = context.WithCancel(ctx)
	for _, work := range h.background {
		s.wg.Go(func() { work(background) })
	}
	s.level.Set(h.cfg.Log.Level)
	if needed, allowed := h.descriptors(); needed > allowed {
		s.log.Warn("fewer file descriptors than limits.max_connections needs: raise LimitNOFILE",
			"max_connections", h.cfg.Limits.MaxConnections, "needed", needed, "allowed", allowed)
	}
	for _, b := range bindings {
		if before == nil || !before.has(b.Service.Name) {
			s.log.Info("listening", "service", b.Service.Name, "address", b.Addr().String())
		}
	}
	if before == nil {
		s.ready(bindings)
	}
	return nil
}

// changesHands is said of an address that is open for something else: who has it
// would close it.
const changesHands = "%s is still open for another part of the configuration: free it there and reload, then use it here"

// open opens the listeners of h that are not open yet, all or none, and tells
// the others what is new. webs are those of webs, by key, that are new. The error
// names all that cannot be.
func (s *site) open(ctx context.Context, h *house) (bindings []proxy.Binding, webs map[string]net.Listener, err error) {
	var mistakes configs.Errors
	var opened []net.Listener
	listenAt := func(key, name, address string) (net.Listener, bool) {
		ln, fresh, err := s.sockets.Listen(ctx, name, address)
		if err != nil {
			mistakes = append(mistakes, h.cfg.Errorf(key, "%v", err))
		} else if fresh {
			opened = append(opened, ln)
		}
		return ln, fresh
	}
	listeners := make(map[string]*listen.ProxyListener)
	for _, d := range h.doors {
		ln, fresh := listenAt(d.key, d.name(), d.address)
		if ln == nil {
			continue
		}
		key := listen.Key(d.name(), d.address)
		listeners[key] = s.listeners[key]
		if fresh {
			listeners[key] = listen.Proxied(ln, d.proxyFrom)
		} else if listeners[key] == nil {
			mistakes = append(mistakes, h.cfg.Errorf(d.key, changesHands, d.address))
		}
		for _, service := range d.services {
			bindings = append(bindings, proxy.Binding{Listener: listeners[key], Service: service})
		}
	}
	webs = make(map[string]net.Listener)
	for _, w := range h.webs() {
		if w.address != "" && w.address != s.webs[w.key].address {
			ln, fresh := listenAt(w.key, w.key, w.address)
			if ln != nil && !fresh {
				mistakes = append(mistakes, h.cfg.Errorf(w.key, changesHands, w.address))
			}
			webs[w.key] = ln
		}
	}
	if mistakes != nil {
		for _, ln := range opened {
			_ = ln.Close()
		}
		return nil, nil, mistakes
	}
	for _, d := range h.doors {
		listeners[listen.Key(d.name(), d.address)].Trust(d.proxyFrom)
	}
	s.listeners = listeners
	return bindings, webs, nil
}

// webs are what h wants to answer HTTP.
func (h *house) webs() []web {
	all := []web{
		{"metrics", "metrics.address", h.cfg.Metrics.Address, h.metrics.Handler, h.metrics.Allows},
		{"health", "metrics.ready_address", h.cfg.Metrics.ReadyAddress, h.metrics.HealthHandler, nil},
	}
	challenge := web{what: "challenges", key: "tls.acme.http_address", handler: h.store.ChallengeHandler}
	if acme := h.cfg.TLS.ACME; acme != nil {
		challenge.address = acme.HTTPAddress
	}
	return append(all, challenge)
}

// serveWebs serves what is new at its listener in opened, and ends what is no
// longer at its address. Metrics are served beyond the last session: a drain can
// be watched to its end.
func (s *site) serveWebs(ctx context.Context, h *house, opened map[string]net.Listener) {
	for _, w := range h.webs() {
		if s.webs[w.key].address == w.address {
			continue
		}
		if before := s.webs[w.key].server; before != nil {
			_ = before.Close()
		}
		delete(s.webs, w.key)
		ln := opened[w.key]
		if ln == nil {
			continue
		}
		server := s.newWebServer(w.handler())
		s.webs[w.key] = served{w.address, server}
		s.log.Info("serving HTTP", "what", w.what, "address", ln.Addr().String())
		s.wg.Go(func() {
			stop := context.AfterFunc(ctx, func() { _ = server.Close() })
			defer stop()
			if err := server.Serve(listen.Limited(ln, w.allow)); !errors.Is(err, http.ErrServerClosed) {
				s.log.Error("not served by HTTP", "what", w.what, "err", err)
			}
		})
	}
}

// drain ends the service. What clients see of it is the server's.
func (s *site) drain(ctx context.Context) {
	s.draining.Store(true)
	if s.successor == nil {
		s.notify(stopping)
	}
	timeouts := s.house.Load().cfg.Timeouts
	grace := timeouts.Shutdown
	s.log.Info("stopping: sessions may end by themselves", "grace", grace, "connections", len(s.server.Sessions()))
	ctx, cancel := context.WithTimeoutCause(ctx, grace, fmt.Errorf("the grace period of %v is over", grace))
	defer cancel()
	if err := s.server.Shutdown(ctx, timeouts.Spread); err != nil {
		s.log.Warn("stopped", "err", err)
		return
	}
	s.log.Info("stopped")
}

// firstProbe asks the servers behind that are new what they offer, so that the
// first client hears it. One that does not answer soon holds nobody up.
func (h *house) firstProbe(ctx context.Context, before *house) {
	const patience = 2 * time.Second
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var wg sync.WaitGroup
	for key, pool := range h.pools {
		if before == nil || before.pools[key] != pool {
			wg.Go(func() { pool.Probe(ctx) }) // an observer tells
		}
	}
	wg.Wait()
}

// tlsConfig returns that of a listener: the one it had before, if it may.
func (s *site) tlsConfig(name, protocol string, profile proxy.Profile) *tls.Config {
	key := ticketKey{name, protocol, profile}
	if s.tickets[key] == nil {
		s.tickets[key] = s.store.TLS(protocol, profile)
	}
	return s.tickets[key]
}

// pool returns the one of the present house that has the same configuration, or
// nil. What it knows of its servers goes on.
func (s *site) pool(key poolKey) *backend.Pool {
	if h := s.house.Load(); h != nil {
		return h.pools[key]
	}
	return nil
}
