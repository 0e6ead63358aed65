package metrics

import (
	"fmt"
	"log/slog"
	"net/http"
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
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprintln(w, "alive") })
	mux.HandleFunc("GET /readyz", m.ready)
	if m.config.Page != nil {
		mux.Handle("GET /{$}", m.config.Page)
	}
	return mux
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
func (m *Metrics) Server() *http.Server {
	return &http.Server{
		Handler:           m.Handler(),
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       5 * time.Second,
		WriteTimeout:      scrapeTimeout + 5*time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    8 << 10,
		ErrorLog:          slog.NewLogLogger(m.config.Log.Handler(), slog.LevelDebug),
	}
}
