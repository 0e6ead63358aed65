package metrics

import (
	"github.com/prometheus/client_golang/prometheus"

	"postern/proxy"
)

// Accounts counts the accounts that have logged in within the last 30 days. Keys
// that are no protocol or version of TLS are not shown.
type Accounts struct {
	Protocols map[string]int    // by protocol
	TLS       map[[2]string]int // by protocol and the oldest version of their last day: 1.0, ..., none
	Habits    map[string]int    // of POP3, by one of Habits
	Plaintext map[string]int    // of which a login without TLS was refused within that time, by protocol
	Stages    map[string]int    // that have ever used POP3, by one of Stages
}

// Habits are the keys of Accounts.Habits: those of the ledger.
var Habits = [...]string{"leaves", "deletes_later", "mixed", "deletes_all", "downloads_nothing", "unknown"}

// Stages are the keys of Accounts.Stages: those of the ledger.
var Stages = [...]string{"gone", "bridged", "learnt", "shadow", "passthrough", "unknown"}

// accounts is a prometheus.Collector.
type accounts func() Accounts

var (
	accountsSeen = prometheus.NewDesc(prefix+"_accounts_seen",
		"Accounts that have logged in within the last 30 days.", []string{"protocol"}, nil)
	accountsSeenByTLS = prometheus.NewDesc(prefix+"_accounts_seen_by_tls",
		"Accounts that have logged in within the last 30 days, by the oldest version of TLS of their last day.",
		[]string{"protocol", "version"}, nil)
	accountsSeenByHabit = prometheus.NewDesc(prefix+"_accounts_seen_by_habit",
		"Accounts that have logged in by POP3 within the last 30 days, by what their clients do with the mail on the server.",
		[]string{"habit"}, nil)
	accountsRefusedPlaintext = prometheus.NewDesc(prefix+"_accounts_refused_plaintext",
		"Known accounts of which a login was refused within the last 30 days because it came without TLS.", []string{"protocol"}, nil)
	pop3Accounts = prometheus.NewDesc(prefix+"_pop3_accounts",
		"Accounts that have used POP3, by how far they are on the way from an old POP3 server; gone: not within the last 30 days, or switched off. Counted once an hour.",
		[]string{"stage"}, nil)
)

// Describe implements prometheus.Collector.
func (accounts) Describe(to chan<- *prometheus.Desc) {
	to <- accountsSeen
	to <- accountsSeenByTLS
	to <- accountsSeenByHabit
	to <- accountsRefusedPlaintext
	to <- pop3Accounts
}

// Collect implements prometheus.Collector.
func (counted accounts) Collect(to chan<- prometheus.Metric) {
	n := counted()
	for _, protocol := range proxy.Protocols() {
		to <- prometheus.MustNewConstMetric(accountsSeen, prometheus.GaugeValue, float64(n.Protocols[protocol]), protocol)
		to <- prometheus.MustNewConstMetric(accountsRefusedPlaintext, prometheus.GaugeValue, float64(n.Plaintext[protocol]), protocol)
		for _, version := range []string{"1.0", "1.1", "1.2", "1.3", none} {
			to <- prometheus.MustNewConstMetric(accountsSeenByTLS, prometheus.GaugeValue,
				float64(n.TLS[[2]string{protocol, version}]), protocol, version)
		}
	}
	for _, habit := range Habits {
		to <- prometheus.MustNewConstMetric(accountsSeenByHabit, prometheus.GaugeValue, float64(n.Habits[habit]), habit)
	}
	for _, stage := range Stages {
		to <- prometheus.MustNewConstMetric(pop3Accounts, prometheus.GaugeValue, float64(n.Stages[stage]), stage)
	}
}
