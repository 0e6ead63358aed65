// Package service is the running Postern. It makes a generation of a
// configs.Config (build.go is the only place where configuration becomes
// packages), serves it, replaces it by the next one at a reload, and hands
// everything over to another process at an upgrade.
//
// A Service is what outlives a configuration: open sockets, sessions, and all
// that has memory. A Generation is made of one configuration, and belongs to a
// Service. answer*.go answer the commands at the control socket.
package service

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"fmt"
	"log/slog"
	"math"
	"net"
	"os"
	"os/signal"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"postern/bridge"
	"postern/cmd/postern/internal/logs"
	"postern/cmd/postern/internal/stored"
	"postern/configs"
	"postern/metrics"
	"postern/metrics/page"
	"postern/proxy"
	"postern/proxy/admin"
	"postern/proxy/audit"
	"postern/proxy/authpolicy"
	"postern/proxy/backend"
	"postern/proxy/certs"
	"postern/proxy/guard"
	"postern/proxy/listen"
)

// A Service is what outlives a configuration: what is open, and what has memory.
// One house after the other stands on it.
type Service struct {
	log         *slog.Logger
	level       *slog.LevelVar
	binary      string // of this process, and of its successor
	path        string // of the configuration; "": there is none to read again
	store       *certs.Store
	metrics     *metrics.Metrics
	page        *page.Page
	ledger      ledgerObserver
	audit       *audit.Log
	observer    proxy.Observer    // all of these
	guard       *guard.Guard      // made with the first house
	advised     *authpolicy.Guard // by a policy server
	policyNonce []byte            // for it
	server      *proxy.Server
	sockets     *listen.Sockets
	Storage     *stored.Storage
	listings    *bridge.ListingMemory
	Ready       func([]proxy.Binding) // told when the doors of the first house are open

	control         *admin.Server
	controlListener net.Listener // where subcommands ask; nil: nowhere

	listeners  map[string]*listen.ProxyListener
	tlsConfigs map[tlsKey]*tls.Config
	endpoints  map[string]openEndpoint // by key of the configuration

	pseudonyms logs.Pseudonyms // of accounts in logs
	redaction  atomic.Pointer[logs.Redaction]

	current        atomic.Pointer[generation] // that is served; nil: none yet
	changes        chan changeRequest         // what is asked for
	wg             sync.WaitGroup             // of what goes on in the background
	stopGeneration context.CancelFunc         // of the present house's part of it
	draining       atomic.Bool

	writers       []func(context.Context) // what writes to the memory
	writing       sync.WaitGroup          // of these
	cancelWriters context.CancelFunc      // ends them

	successor        *successor    // nil: this process serves
	fatal            error         // why it no longer does, if there is no successor
	predecessor      *Peer         // nil: there was none
	predecessorEnded chan struct{} // closed when the predecessor has ended; nil: there was none
	inheritedGuard   []byte        // the guard's snapshot of a predecessor without state
}

// New returns a site on which nothing stands. It opens nothing.
func New(store *certs.Store, log *slog.Logger, level *slog.LevelVar) *Service {
	s := &Service{
		log: log, level: level, store: store, Storage: &stored.Storage{}, Ready: func([]proxy.Binding) {},
		listeners: make(map[string]*listen.ProxyListener), tlsConfigs: make(map[tlsKey]*tls.Config),
		endpoints: make(map[string]openEndpoint), changes: make(chan changeRequest), binary: ownBinary(),
	}
	s.policyNonce = []byte(rand.Text())
	s.log = slog.New(logs.NewRedactor(logs.NewCounter(log.Handler(), func(l slog.Level) { s.metrics.Logged(l) }), &s.redaction))
	s.page = s.newPage()
	s.metrics = s.newMetrics()
	s.audit = audit.New(s.log)
	s.audit.Known = s.known
	s.observer = proxy.Observers{s.metrics, s.page, s.audit, &s.ledger}
	s.listings = bridge.NewListingMemory(math.MaxInt64, s.observer) // until there is a configuration
	s.server = &proxy.Server{Observer: s.observer, Room: listen.CheckDescriptors}
	return s
}

// known reports whether a file of the present configuration lists an account.
func (s *Service) known(account string) bool {
	h := s.current.Load()
	return h != nil && h.routing.known(account)
}

// Serve serves cfg until ctx ends.
func (s *Service) Serve(ctx context.Context, cfg *configs.Config) error {
	h, err := build(cfg, s)
	if err != nil {
		return err
	}
	return s.serve(ctx, h)
}

// serve applies h and serves until ctx ends. Then it closes the listeners and
// gives the sessions their time. An error is one of opening: a stop, even with
// sessions left, is none.
func (s *Service) serve(ctx context.Context, h *generation) error {
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
	s.writers = append(s.writers, s.whileWhole(cacheOf, s.runGuard))
	if s.inheritedGuard != nil {
		if err := s.guard.Restore(s.inheritedGuard); err != nil {
			s.log.Warn("the login guard begins anew, and learns", "err", err)
		}
	}
	s.openLedger(ctx)
	s.Storage.Observe(s.observer)
	s.Storage.OpenBrake = s.brake
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
		if s.controlListener != nil {
			_ = s.controlListener.Close()
		}
		return err
	}
	for _, address := range s.sockets.CloseUnused() {
		s.log.Warn("inherited a socket that no listener has", "address", address)
	}
	s.wg.Go(func() { s.store.Run(background) })
	s.wg.Go(func() { s.store.Watch(background, watchEvery, s.log) })
	s.startWriters(background)
	defer func() { s.stopWriters() }()
	if s.predecessor != nil {
		if err := s.predecessor.send(message{Serving: true}); err != nil {
			return err
		}
	}
	s.notify(ready)
	s.handleChanges(ctx, background, signals)
	if s.successor != nil {
		s.waitForSessions(ctx, background)
	} else {
		s.drain(background)
	}
	s.advised.Wait()
	return s.fatal
}

// startWriters runs what writes to the memory, and answers at the control socket, until
// endKeeping.
func (s *Service) startWriters(background context.Context) {
	var ctx context.Context
	ctx, s.cancelWriters = context.WithCancel(background)
	for _, work := range s.writers {
		s.writing.Go(func() { work(ctx) })
	}
	if asking := s.controlListener; asking != nil {
		s.wg.Go(func() { s.serveControl(background, asking) })
	}
}

// stopWriters returns when nothing writes to the memory but sessions.
func (s *Service) stopWriters() {
	s.cancelWriters()
	s.writing.Wait()
}

// waitForSessions waits for the sessions that a successor has left to this process, and
// for those of its predecessor, whose locks the successor has from this process:
// for timeouts.upgrade, or until the process is told to stop.
func (s *Service) waitForSessions(ctx, background context.Context) {
	grace := s.current.Load().cfg.Timeouts.Upgrade
	ctx, cancel := context.WithTimeout(ctx, grace)
	defer cancel()
	s.log.Info("sessions may end by themselves", "grace", grace, "connections", len(s.server.Sessions()))
	if s.server.Wait(ctx) == nil && s.waitForPredecessor(ctx) {
		s.log.Info("the last session has ended")
		return
	}
	s.drain(background)
	// A predecessor that drains as well ends as late as this process could.
	timeouts := s.current.Load().cfg.Timeouts
	ctx, cancel = context.WithTimeout(background, timeouts.Shutdown+timeouts.Spread)
	defer cancel()
	s.waitForPredecessor(ctx)
}

// waitForPredecessor waits for the end of the predecessor, if there was one, and reports
// whether it has ended before ctx.
func (s *Service) waitForPredecessor(ctx context.Context) bool {
	if s.predecessorEnded == nil {
		return true
	}
	select {
	case <-s.predecessorEnded:
		return true
	case <-ctx.Done():
		return false
	}
}

// apply makes h what is served, all of it; after an error nothing has changed.
// ctx is that of the background.
func (s *Service) apply(ctx context.Context, h *generation) error {
	bindings, webs, err := s.open(ctx, h)
	if err != nil {
		return err
	}
	h.setStorage(s.Storage)
	s.redaction.Store(&logs.Redaction{Privacy: h.cfg.Privacy, Names: s.pseudonyms}) // before there is anything to say
	s.metrics.Know(h.listenerLabels(), h.backendLabels())
	h.openBrakes(ctx, s.Storage)
	s.listings.SetLimit(int64(h.cfg.Limits.ListingMemory))
	before := s.current.Swap(h)
	s.advised.SetServer(h.policy)
	h.probeNew(ctx, before)
	if err := s.server.Apply(bindings); err != nil {
		return err
	}
	s.metrics.Allow(h.cfg.Metrics.Networks)
	s.serveEndpoints(ctx, h, webs)
	if s.stopGeneration != nil {
		s.stopGeneration()
	}
	var background context.Context
	background, s.stopGeneration = context.WithCancel(ctx)
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
			s.log.Info("listening", "listener", b.Service.Name, "address", b.Addr().String())
		}
	}
	if before == nil {
		s.Ready(bindings)
	}
	return nil
}

// drain ends the service. What clients see of it is the server's.
func (s *Service) drain(ctx context.Context) {
	s.draining.Store(true)
	if s.successor == nil {
		s.notify(stopping)
	}
	timeouts := s.current.Load().cfg.Timeouts
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

// probeNew asks the servers behind that are new what they offer, so that the
// first client hears it. One that does not answer soon holds nobody up.
func (h *generation) probeNew(ctx context.Context, before *generation) {
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

// pool returns the one of the present house that has the same configuration, or
// nil. What it knows of its servers goes on.
func (s *Service) pool(key poolKey) *backend.Pool {
	if h := s.current.Load(); h != nil {
		return h.pools[key]
	}
	return nil
}

// setFailures makes the audit log write wrong passwords to a file, too.
func (s *Service) setFailures(cfg *configs.Config) error {
	if cfg.Log.Fail2ban == "" {
		return nil
	}
	l, err := logs.OpenFailures(cfg.Log.Fail2ban)
	if err != nil {
		return configs.Errors{cfg.Errorf("log.fail2ban", "%v", err)}
	}
	s.audit.Failures = l
	return nil
}
