package metrics

import "github.com/prometheus/client_golang/prometheus"

// State describes the files of the state. The zero value has no files.
type State struct {
	Broken map[string]bool // by name of the file: not used before a restart
	Lost   int             // accounts that only the cache knows, after the record was lost
}

// files is a prometheus.Collector.
type files func() State

var (
	fileBroken = prometheus.NewDesc(prefix+"_state_file_broken",
		"1 if a state file was changed under the running Postern, or cannot be read: it is not used again before a restart.",
		[]string{"file"}, nil)
	lostAccounts = prometheus.NewDesc(prefix+"_state_lost_accounts",
		"Accounts whose unique ids were shown and are not in record.db, which is not the file that it was before.", nil, nil)
)

// Describe implements prometheus.Collector.
func (files) Describe(to chan<- *prometheus.Desc) {
	to <- fileBroken
	to <- lostAccounts
}

// Collect implements prometheus.Collector.
func (list files) Collect(to chan<- prometheus.Metric) {
	s := list()
	if s.Broken == nil {
		return
	}
	for name, broken := range s.Broken {
		to <- prometheus.MustNewConstMetric(fileBroken, prometheus.GaugeValue, number(broken), name)
	}
	to <- prometheus.MustNewConstMetric(lostAccounts, prometheus.GaugeValue, float64(s.Lost))
}
