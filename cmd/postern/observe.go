package main

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"time"

	"postern/configs"
	"postern/metrics"
	"postern/proxy"
	"postern/proxy/backend"
	"postern/proxy/certs"
)

// newMetrics makes the metrics of what cfg names.
func newMetrics(cfg *configs.Config, h *house) *metrics.Metrics {
	c := metrics.Config{
		Version:      readBuild().version,
		Certificates: func() []metrics.Certificate { return expiries(h.store) },
		Draining:     h.draining.Load,
		Ready:        h.notReady,
		Degraded:     h.worn,
		Log:          h.log,
	}
	for _, l := range cfg.Listeners {
		c.Services = append(c.Services, metrics.Service{Name: l.Name, Protocol: l.Protocol})
	}
	for name, b := range cfg.Backends {
		if b.IMAP != nil {
			c.Backends = append(c.Backends, metrics.Backend{Name: name, Protocol: proxy.IMAP})
		}
		if b.Submission != nil {
			c.Backends = append(c.Backends, metrics.Backend{Name: name, Protocol: proxy.Submission})
		}
	}
	return metrics.New(c)
}

func expiries(store *certs.Store) (all []metrics.Certificate) {
	for _, v := range store.Expiry() {
		all = append(all, metrics.Certificate(v))
	}
	return all
}

// serveMetrics serves until ctx ends, which is after the last session: a drain
// can be watched to its end.
func (h *house) serveMetrics(ctx context.Context) {
	if h.watching == nil {
		return
	}
	server := h.metrics.Server()
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	h.log.Info("serving metrics", "address", h.watching.Addr().String())
	if err := server.Serve(h.watching); !errors.Is(err, http.ErrServerClosed) {
		h.log.Error("metrics are not served", "err", err)
	}
}

// notReady says why a load balancer should send clients elsewhere.
func (h *house) notReady() error {
	if h.draining.Load() {
		return errors.New("draining")
	}
	if !h.opened.Load() {
		return errors.New("not listening yet")
	}
	if !slices.ContainsFunc(h.pools, (*backend.Pool).Up) {
		return errors.New("no backend is up")
	}
	return h.certificateValid()
}

func (h *house) certificateValid() error {
	now := time.Now()
	for _, v := range h.store.Expiry() {
		if now.Before(v.NotAfter) && now.After(v.NotBefore) {
			return nil
		}
	}
	return errors.New("no valid certificate")
}
