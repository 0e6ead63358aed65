package metrics

import "github.com/prometheus/client_golang/prometheus"

// Policy counts the lines of policy.file that switch POP3 off.
type Policy struct {
	Off    PolicyLines // without a date
	Ending PolicyLines // the last day is to come, or today
	Ended  PolicyLines // the last day is over
}

// PolicyLines count lines by what they name.
type PolicyLines struct {
	Accounts, Domains int
	All               bool // the line of *
}

// Plus returns the sum of l and m.
func (l PolicyLines) Plus(m PolicyLines) PolicyLines {
	return PolicyLines{l.Accounts + m.Accounts, l.Domains + m.Domains, l.All || m.All}
}

// policyLines is a prometheus.Collector.
type policyLines func() Policy

var pop3Lines = prometheus.NewDesc(prefix+"_policy_pop3_lines",
	"Lines of policy.file that switch POP3 off, by whether they have a last day (off: no), and whether that is over, and by what they name.",
	[]string{"state", "name"}, nil)

// Describe implements prometheus.Collector.
func (policyLines) Describe(to chan<- *prometheus.Desc) { to <- pop3Lines }

// Collect implements prometheus.Collector.
func (counted policyLines) Collect(to chan<- prometheus.Metric) {
	p := counted()
	for _, s := range []struct {
		name  string
		lines PolicyLines
	}{{"off", p.Off}, {"ending", p.Ending}, {"ended", p.Ended}} {
		gauge := func(n float64, name string) {
			to <- prometheus.MustNewConstMetric(pop3Lines, prometheus.GaugeValue, n, s.name, name)
		}
		gauge(float64(s.lines.Accounts), "account")
		gauge(float64(s.lines.Domains), "domain")
		gauge(number(s.lines.All), "all")
	}
}
