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
	return mux
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

// Allow makes Allows say yes to this machine and networks alone. nil: to
// everybody.
func (m *Metrics) Allow(networks []netip.Prefix) { m.networks.Store(&networks) }

// Allows reports whether who has an address may ask Handler. It is for the
// listener, which asks when somebody connects: Handler answers everybody.
func (m *Metrics) Allows(addr netip.Addr) bool {
	addr = addr.Unmap().WithZone("")
	networks := m.networks.Load()
	return networks == nil || *networks == nil || addr.IsLoopback() ||
		slices.ContainsFunc(*networks, func(n netip.Prefix) bool { return n.Contains(addr) })
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
