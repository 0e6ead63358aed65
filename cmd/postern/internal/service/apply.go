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

// apply makes h what is served. All that can fail comes first: after an error
// nothing of what is served has changed. What runs in the background for h ends
// with the next apply, or with ctx.
func (s *Service) apply(ctx context.Context, h *generation) error {
	if s.draining.Load() { // the one reason for which server.Apply fails
		return errStopping
	}
	o, err := s.open(ctx, h)
	if err != nil {
		return err
	}
	before := s.commit(ctx, h, o)
	h.probeNew(ctx, before)
	if err := s.server.Apply(o.bindings); err != nil {
		return err
	}
	s.metrics.Allow(h.cfg.Metrics.Networks)
	s.serveEndpoints(ctx, h, o.endpoints)
	s.startBackground(ctx, h)
	s.level.Set(h.cfg.Log.Level)
	s.logApplied(h, o.bindings, before)
	if before == nil {
		s.Ready(o.bindings)
	}
	return nil
}

// commit makes h the present generation, with the listeners of o, and returns the
// one before; nil: there was none. Connections get h when o is bound.
func (s *Service) commit(ctx context.Context, h *generation, o *opening) (before *generation) {
	s.setListeners(h, o)
	h.setStorage(s.Storage)
	s.redaction.Store(&logs.Redaction{Privacy: h.cfg.Privacy, Names: s.pseudonyms}) // before anything of h is logged
	s.metrics.AddLabels(h.listenerLabels(), h.backendLabels())
	h.openBrakes(ctx, s.Storage)
	s.listings.SetLimit(int64(h.cfg.Limits.ListingMemory))
	before = s.current.Swap(h)
	s.advised.SetServer(h.policy)
	return before
}

// startBackground ends what runs in the background for the generation before, and
// starts that of h.
func (s *Service) startBackground(ctx context.Context, h *generation) {
	if s.stopGeneration != nil {
		s.stopGeneration()
	}
	var background context.Context
	background, s.stopGeneration = context.WithCancel(ctx)
	for _, work := range h.background {
		s.wg.Go(func() { work(background) })
	}
}

// logApplied logs which listeners are new, and whether the system allows too few
// file descriptors.
func (s *Service) logApplied(h *generation, bindings []proxy.Binding, before *generation) {
	if needed, allowed := h.descriptors(); needed > allowed {
		s.log.Warn("fewer file descriptors than limits.max_connections needs: raise LimitNOFILE",
			"max_connections", h.cfg.Limits.MaxConnections, "needed", needed, "allowed", allowed)
	}
	for _, b := range bindings {
		if before == nil || !before.has(b.Service.Name) {
			s.log.Info("listening", "listener", b.Service.Name, "address", b.Addr().String())
		}
	}
}

// probeNew asks the backends that before does not have what they offer, so that
// the first client learns it. It waits no longer than patience for an answer.
func (h *generation) probeNew(ctx context.Context, before *generation) {
	const patience = 2 * time.Second
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var wg sync.WaitGroup
	for key, pool := range h.pools {
		if before == nil || before.pools[key] != pool {
			wg.Go(func() { pool.Probe(ctx) }) // an error is observed
		}
	}
	wg.Wait()
}
