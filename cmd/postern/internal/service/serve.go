package service

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"fmt"
	"log/slog"
	"math"
	"os"
	"os/signal"
	"syscall"
	"time"

	"postern/bridge"
	"postern/cmd/postern/internal/logs"
	"postern/cmd/postern/internal/stored"
	"postern/configs"
	"postern/metrics/outcomes"
	"postern/proxy"
	"postern/proxy/audit"
	"postern/proxy/authpolicy"
	"postern/proxy/certs"
	"postern/proxy/guard"
	"postern/proxy/listen"
	"postern/proxy/password"
)

// New returns a Service of cfg that serves nothing yet. It opens nothing. store
// and level may be nil for a Service that never serves.
func New(cfg *configs.Config, store *certs.Store, log *slog.Logger, level *slog.LevelVar) *Service {
	s := &Service{
		level: level, store: store, Storage: &stored.Storage{}, Ready: func([]proxy.Binding) {},
		listeners: make(map[string]*listen.ProxyListener), tlsConfigs: make(map[tlsKey]*tls.Config),
		endpoints: make(map[string]openEndpoint), changes: make(chan changeRequest), binary: ownBinary(),
		policyNonce: []byte(rand.Text()), guard: guard.New(stored.GuardConfig(cfg)), started: time.Now(),
	}
	s.policyGuard = &authpolicy.Guard{Guard: s.guard}
	s.server = &proxy.Server{Guard: s.policyGuard, CheckCapacity: listen.CheckDescriptors}
	// From here on observers may call their functions: all fields that these use are set.
	s.log = slog.New(logs.NewRedactor(logs.NewCounter(log.Handler(), func(l slog.Level) { s.metrics.Logged(l) }), &s.redaction))
	s.page = s.newPage()
	s.metrics = s.newMetrics()
	s.audit = audit.New(s.log)
	s.audit.Known, s.audit.KnownDomain, s.audit.HashFirst = s.known, s.knownDomain, s.guard.Hash
	s.outcomes = outcomes.New(func(name string) uint64 { return uint64(s.audit.Hash(name)) })
	s.outcomes.Known, s.outcomes.KnownNetwork = s.known, s.guard.KnowsNetwork
	s.observer = proxy.Observers{s.metrics, s.page, s.audit, &s.ledger, &s.activity, s.outcomes}
	s.server.Observer = s.observer
	s.listings = bridge.NewListingMemory(math.MaxInt64, s.observer) // until there is a configuration
	s.slow = new(password.Slow)
	s.control = s.newControl()
	return s
}

// Serve serves cfg until ctx ends.
func (s *Service) Serve(ctx context.Context, cfg *configs.Config) error {
	g, err := build(cfg, s)
	if err != nil {
		return err
	}
	return s.serve(ctx, g)
}

// serve applies g and serves until ctx ends. Then it closes the listeners and
// gives the sessions their time. An error means that listeners could not be opened. A stop
// is no error, even with sessions left.
func (s *Service) serve(ctx context.Context, g *generation) error {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGHUP, syscall.SIGUSR2)
	defer signal.Stop(signals) // not before the last session: after Stop a signal would end the process
	if err := s.restore(ctx, g); err != nil {
		return err
	}
	background, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer s.wg.Wait()
	defer stop()
	if err := s.start(background, g); err != nil {
		return err
	}
	defer func() { s.stopWriters() }()
	if s.predecessor != nil {
		if err := s.predecessor.send(message{Serving: true}); err != nil {
			return err
		}
		s.predecessor.served.Store(true)
	}
	notify(s.log, ready)
	s.handleChanges(ctx, background, signals)
	if s.successor != nil {
		s.waitForSessions(ctx, background)
	} else {
		s.drain(background)
	}
	s.policyGuard.Wait()
	return s.fatal
}

// restore takes over the sockets, the guard's memory and the ledger of the process before.
func (s *Service) restore(ctx context.Context, g *generation) (err error) {
	if s.sockets == nil {
		if s.sockets, err = listen.Inherited(); err != nil {
			return err
		}
	}
	if err := s.setFailures(g.cfg); err != nil {
		return err
	}
	s.loadGuard(ctx)
	s.openLedger(ctx)
	s.Storage.Observe(s.observer)
	s.Storage.OpenBrake = s.brake
	s.Storage.DeviceKeys = func() ([][]byte, error) { return s.current.Load().deviceKeys, nil }
	s.Storage.EndDevice = s.endDevice
	return nil
}

// start opens the listeners of g, and begins to serve g. The work that it starts ends with
// ctx.
func (s *Service) start(ctx context.Context, g *generation) error {
	if err := s.store.Open(s.log, s.observer); err != nil {
		return configs.Errors{g.cfg.Errorf("tls.acme", "%v", err)}
	}
	if err := s.openControl(g); err != nil {
		return configs.Errors{g.cfg.Errorf("control.socket", "%v", err)}
	}
	if err := s.apply(ctx, g); err != nil {
		if s.controlListener != nil {
			_ = s.controlListener.Close()
		}
		return err
	}
	for _, address := range s.sockets.CloseUnused() {
		s.log.Warn("inherited a socket that no listener has", "address", address)
	}
	s.wg.Go(func() { s.store.Run(ctx) })
	s.wg.Go(func() { s.store.Watch(ctx, watchEvery, s.log) })
	s.wg.Go(func() { s.watchDevices(ctx) })
	s.startWriters(ctx)
	return nil
}

// handleChanges reloads and upgrades on request, one after the other, until ctx
// ends, a successor serves, or nothing can be served. What runs in the background
// for a new generation ends with background.
func (s *Service) handleChanges(ctx, background context.Context, signals <-chan os.Signal) {
	alive, stop := watchdog()
	defer stop()
	for s.successor == nil && s.fatal == nil {
		select {
		case <-alive:
			notify(s.log, watching)
		case got := <-signals:
			if got == syscall.SIGHUP {
				_ = s.reload(background) // reload logs its error
			} else {
				_ = s.upgrade(background)
			}
		case c := <-s.changes:
			c.done <- c.do(background)
		case <-ctx.Done():
			return
		}
	}
}

// waitForSessions waits for the sessions that a successor has left to this process, and
// for those of its predecessor, whose locks the successor has from this process:
// for timeouts.upgrade, or until ctx ends.
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
	// A predecessor that drains as well may end as late as this process.
	timeouts := s.current.Load().cfg.Timeouts
	ctx, cancel = context.WithTimeout(background, timeouts.Shutdown+timeouts.DisconnectSpread)
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

// drain ends the service: sessions get timeouts.shutdown to end by themselves.
func (s *Service) drain(ctx context.Context) {
	s.draining.Store(true)
	if s.successor == nil {
		notify(s.log, stopping)
	}
	timeouts := s.current.Load().cfg.Timeouts
	grace := timeouts.Shutdown
	s.log.Info("stopping: sessions may end by themselves", "grace", grace, "connections", len(s.server.Sessions()))
	ctx, cancel := context.WithTimeoutCause(ctx, grace, fmt.Errorf("the grace period of %v is over", grace))
	defer cancel()
	if err := s.server.Shutdown(ctx, timeouts.DisconnectSpread); err != nil {
		s.log.Warn("stopped", "err", err)
		return
	}
	s.log.Info("stopped")
}
