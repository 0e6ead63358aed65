package service

import (
	"context"
	"sync"
	"time"

	"postern/cmd/postern/internal/logs"
)

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
