package service

import (
	"context"
	"errors"
	"sync"
	"time"

	"postern/cmd/postern/internal/logs"
	"postern/proxy"
)

// startWriters runs the work that writes to Storage, until stopWriters, and
// answers at the control socket, until background ends.
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

// stopWriters ends the work of startWriters. After it only sessions write to
// Storage.
func (s *Service) stopWriters() {
	s.cancelWriters()
	s.writing.Wait()
}

// errStopping is the error of a change that comes after the end has begun.
var errStopping = errors.New("this Postern is stopping")

// apply makes g the current generation. The steps that can fail come first: after an error
// the current generation is unchanged. The background work of g ends with the next apply,
// or with ctx.
func (s *Service) apply(ctx context.Context, g *generation) error {
	if s.draining.Load() { // the one reason for which server.Apply fails
		return errStopping
	}
	if err := g.checkKeys(ctx); err != nil {
		return err
	}
	o, err := s.open(ctx, g)
	if err != nil {
		return err
	}
	before := s.commit(ctx, g, o)
	g.probeNew(ctx, before)
	if err := s.server.Apply(o.bindings); err != nil {
		return err
	}
	s.metrics.Allow(g.cfg.Metrics.Networks)
	s.serveEndpoints(ctx, g, o.endpoints)
	s.startBackground(ctx, g)
	s.level.Set(g.cfg.Log.Level)
	s.logApplied(o.bindings, before)
	if before == nil {
		s.Ready(o.bindings)
	}
	return nil
}

// commit makes g the present generation, with the listeners of o, and returns the
// one before; nil: there was none. Connections get g when o is bound.
func (s *Service) commit(ctx context.Context, g *generation, o *opening) (before *generation) {
	s.setListeners(g, o)
	g.bindings.Store(&o.bindings)
	g.setStorage(s.Storage)
	s.redaction.Store(&logs.Redaction{Privacy: g.cfg.Privacy, Names: s.pseudonyms}) // before anything of g is logged
	s.metrics.AddLabels(g.labels())
	g.openBrakes(ctx, s.Storage)
	s.slow.SetLimits(int64(g.cfg.Passwords.Memory), g.cfg.Limits.AttemptWait)
	s.listings.SetLimit(int64(g.cfg.Limits.ListingMemory))
	s.server.SetParking(g.parkAfter())
	if before = s.current.Load(); before != nil {
		g.drain(before.drains())
	}
	s.current.Store(g)
	s.policyGuard.SetServer(g.policy)
	return before
}

// startBackground ends the background work of the generation before, and starts that of g.
func (s *Service) startBackground(ctx context.Context, g *generation) {
	if s.stopGeneration != nil {
		s.stopGeneration()
	}
	var background context.Context
	background, s.stopGeneration = context.WithCancel(ctx)
	for _, work := range g.background {
		s.wg.Go(func() { work(background) })
	}
}

// logApplied logs which listeners are new.
func (s *Service) logApplied(bindings []proxy.Binding, before *generation) {
	for _, b := range bindings {
		if before == nil || !before.has(b.Service.Name) {
			s.log.Info("listening", "listener", b.Service.Name, "address", b.Addr().String())
		}
	}
}

// probeNew probes the pools that before does not have, so that the first client gets
// their offer. It waits no longer than timeout for an answer.
func (g *generation) probeNew(ctx context.Context, before *generation) {
	const timeout = 2 * time.Second
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	var wg sync.WaitGroup
	for key, pool := range g.pools {
		if before == nil || before.pools[key] != pool {
			wg.Go(func() { pool.Probe(ctx) }) // the pool reports an error to its observer
		}
	}
	wg.Wait()
}
