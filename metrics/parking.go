package metrics

import "github.com/prometheus/client_golang/prometheus"

// Parking counts the sessions that are parked: in which nothing moves, and that have no
// goroutine.
type Parking struct {
	Parked          int   // now
	Wakes, Failures int64 // since the start
}

// parking collects Parking at each scrape.
type parking func() Parking

var (
	parkedSessions = prometheus.NewDesc(prefix+"_sessions_parked", "Sessions that are parked: nothing moves in them, and they keep little memory.", nil, nil)
	sessionWakes   = prometheus.NewDesc(prefix+"_session_wakes_total", "Parked sessions that have gone on, because something came or they ended.", nil, nil)
	parkFailures   = prometheus.NewDesc(prefix+"_session_park_failures_total", "Idle sessions that could not be parked, and keep their memory.", nil, nil)
)

// Describe implements prometheus.Collector.
func (parking) Describe(to chan<- *prometheus.Desc) {
	to <- parkedSessions
	to <- sessionWakes
	to <- parkFailures
}

// Collect implements prometheus.Collector.
func (p parking) Collect(to chan<- prometheus.Metric) {
	now := p()
	to <- prometheus.MustNewConstMetric(parkedSessions, prometheus.GaugeValue, float64(now.Parked))
	to <- prometheus.MustNewConstMetric(sessionWakes, prometheus.CounterValue, float64(now.Wakes))
	to <- prometheus.MustNewConstMetric(parkFailures, prometheus.CounterValue, float64(now.Failures))
}
