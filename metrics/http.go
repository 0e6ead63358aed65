package metrics

import (
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
)

const scrapeTimeout = 10 * time.Second

// Handler serves /metrics; /healthz, which says that the process is alive; and
// /readyz, which says whether new clients should come, and what somebody should
// look at, else, with status 503, why not. The status page, if there is one, is at /.
func (m *Metrics) Handler() http.Handler {
	scrape := promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{
		EnableOpenMetrics: true, MaxRequestsInFlight: 3, Timeout: scrapeTimeout,
		ErrorLog: slog.NewLogLogger(m.config.Log.Handler(), slog.LevelWarn),
	})
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.InstrumentMetricHandler(m.registry, scrape))
	m.health(mux)
	if m.config.Page != nil {
		mux.Handle("GET /{$}", m.config.Page)
	}
	return m.allowed(mux)
}

// HealthHandler serves /healthz and /readyz alone, for everybody.
func (m *Metrics) HealthHandler() http.Handler {
	mux := http.NewServeMux()
	m.health(mux)
	return mux
}

func (m *Metrics) health(mux *http.ServeMux) {
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprintln(w, "alive") })
	mux.HandleFunc("GET /readyz", m.ready)
}

// Allow makes Handler answer only this machine and networks, from the next
// question on. nil: everybody.
func (m *Metrics) Allow(networks []netip.Prefix) { m.networks.Store(&networks) }

// allowed refuses who may not ask.
func (m *Metrics) allowed(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		from, err := netip.ParseAddrPort(r.RemoteAddr)
		addr := from.Addr().Unmap().WithZone("")
		networks := m.networks.Load()
		if networks == nil || *networks == nil || err == nil && (addr.IsLoopback() ||
			slices.ContainsFunc(*networks, func(n netip.Prefix) bool { return n.Contains(addr) })) {
			next.ServeHTTP(w, r)
			return
		}
		http.Error(w, "metrics.networks does not have your address", http.StatusForbidden)
	})
}

func (m *Metrics) ready(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Cache-Control", "no-store")
	if m.config.Ready != nil {
		if err := m.config.Ready(); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
	}
	if m.config.Degraded != nil {
		if err := m.config.Degraded(); err != nil {
			_, _ = fmt.Fprintf(w, "ready, degraded: %v\n", err)
			return
		}
	}
	_, _ = fmt.Fprintln(w, "ready")
}

// Server returns an HTTP server of Handler that waits for nobody. The caller
// serves and shuts it down.
func (m *Metrics) Server() *http.Server { return m.server(m.Handler()) }

// HealthServer is Server of HealthHandler.
func (m *Metrics) HealthServer() *http.Server { return m.server(m.HealthHandler()) }

func (m *Metrics) server(h http.Handler) *http.Server {
	return &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       5 * time.Second,
		WriteTimeout:      scrapeTimeout + 5*time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    8 << 10,
		ErrorLog:          slog.NewLogLogger(m.config.Log.Handler(), slog.LevelDebug),
	}
}
