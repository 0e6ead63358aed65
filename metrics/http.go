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

// scrapeTimeout bounds the gathering of an answer of /metrics.
const scrapeTimeout = 10 * time.Second

// Handler serves /metrics, /healthz, /readyz and /readyz/PROTOCOL, and the status page
// at / if there is one. /healthz answers that the process is alive. /readyz answers 200
// if new clients should come, with what an operator should look at, and 503 with the
// reason if they should not; /readyz/PROTOCOL answers so for one protocol, and 404 for
// a protocol that is not served.
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
	return mux
}

// HealthHandler serves /healthz, /readyz and /readyz/PROTOCOL only.
func (m *Metrics) HealthHandler() http.Handler {
	mux := http.NewServeMux()
	m.health(mux)
	return mux
}

// health adds /healthz, /readyz and /readyz/PROTOCOL to mux.
func (m *Metrics) health(mux *http.ServeMux) {
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprintln(w, "alive") })
	mux.HandleFunc("GET /readyz", m.ready)
	mux.HandleFunc("GET /readyz/{protocol}", m.readyFor)
}

// Allow makes Allows report true for loopback addresses and networks only. nil: for
// all addresses.
func (m *Metrics) Allow(networks []netip.Prefix) { m.networks.Store(&networks) }

// Allows reports whether a client with addr may use Handler. Handler itself does
// not check: the listener calls Allows when a client connects.
func (m *Metrics) Allows(addr netip.Addr) bool {
	addr = addr.Unmap().WithZone("")
	networks := m.networks.Load()
	return networks == nil || *networks == nil || addr.IsLoopback() ||
		slices.ContainsFunc(*networks, func(n netip.Prefix) bool { return n.Contains(addr) })
}

// ready answers /readyz.
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

// readyFor answers /readyz/PROTOCOL.
func (m *Metrics) readyFor(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Cache-Control", "no-store")
	if m.config.ReadyFor == nil {
		http.NotFound(w, r)
		return
	}
	switch served, err := m.config.ReadyFor(r.PathValue("protocol")); {
	case !served:
		http.Error(w, "no listener serves this protocol", http.StatusNotFound)
	case err != nil:
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
	default:
		_, _ = fmt.Fprintln(w, "ready")
	}
}
