package metrics

import "github.com/prometheus/client_golang/prometheus"

// A Pool counts the connections to a Backend. Connections to the same address of
// the Backend have different local ports.
type Pool struct {
	Backend
	Connections int // to all of its addresses
	Ports       int // connections to the address that has the most
	PortLimit   int // of connections to one address; 0: unknown
	Drained     int // addresses that get no new logins
	Waiting     int // logins that wait for a connection of their account
}

// pools is a prometheus.Collector. Each Backend has at most one Pool.
type pools func() []Pool

var (
	serverLabels = []string{"backend", "protocol"}

	poolConnections = prometheus.NewDesc(prefix+"_backend_connections_open",
		"Connections open to the backend, with logins under way.", serverLabels, nil)
	poolPorts = prometheus.NewDesc(prefix+"_backend_source_ports_used",
		"Local ports in use to the address of the backend that has the most connections.", serverLabels, nil)
	poolPortLimit = prometheus.NewDesc(prefix+"_backend_source_ports_limit",
		"Local ports that connections to one address of the backend can have: net.ipv4.ip_local_port_range, for each source address.",
		serverLabels, nil)
	poolWaiting = prometheus.NewDesc(prefix+"_account_queue_waiting",
		"Logins that wait because their account has all connections to the backend that it may have: backends.X.account_connections.", serverLabels, nil)
	poolDrained = prometheus.NewDesc(prefix+"_backend_servers_drained",
		"Servers of the backend that get no new logins: postern drain.", serverLabels, nil)
)

// Describe implements prometheus.Collector.
func (pools) Describe(to chan<- *prometheus.Desc) {
	to <- poolConnections
	to <- poolPorts
	to <- poolPortLimit
	to <- poolDrained
	to <- poolWaiting
}

// Collect implements prometheus.Collector.
func (list pools) Collect(to chan<- prometheus.Metric) {
	for _, p := range list() {
		show := func(d *prometheus.Desc, n int) {
			to <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(n), p.Name, p.Protocol)
		}
		show(poolConnections, p.Connections)
		show(poolPorts, p.Ports)
		show(poolDrained, p.Drained)
		show(poolWaiting, p.Waiting)
		if p.PortLimit > 0 {
			show(poolPortLimit, p.PortLimit)
		}
	}
}
