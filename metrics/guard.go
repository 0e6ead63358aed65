package metrics

import (
	"github.com/prometheus/client_golang/prometheus"

	"postern/proxy"
)

// A Guard is the state of the login guard. Failures are of the last five minutes;
// repeats of the same wrong password are no failures.
type Guard struct {
	Learning, DryRun    bool
	Entries, KnownGood  int // budgets in use, known-good networks
	Strangers, Sessions int // connections of strangers, sessions of all
	InFlight, Waiting   int // attempts
	Failed, Succeeded   int // attempts
	FailingAccounts     int
	FailingNetworks     int
	SprayedAccounts     int    // the highest number of accounts that one wrong password was tried for
	Evictions, Shed     uint64 // since the start
}

// Decisions are the values that a proxy.Decision's fields have.
type Decisions struct{ Tiers, Buckets []string }

// guardMetrics counts the decisions of the guard and requests to the policy server.
type guardMetrics struct {
	decided, limited, policy counter
	policyTime               histogram
}

// The values of the label decision.
const (
	decisionAllowed  = "let_through"
	decisionRepeated = "repeated"
	decisionRefused  = "refused"
)

// guards registers the metrics of the guard.
func (m *Metrics) guards() {
	r := &m.registry
	m.decided = r.counter("guard_attempts_total",
		"Login attempts by how well their account knows the network, and by what the guard did; repeated: the same wrong password again.",
		label("tier", m.config.Decisions.Tiers...), label("decision", decisionAllowed, decisionRepeated, decisionRefused))
	m.limited = r.counter("rate_limited_total", "Login attempts refused by a limit, or with dry_run not refused.",
		label("scope", m.config.Decisions.Buckets...))
	m.policy = r.counter("auth_policy_requests_total", "Questions and reports to the policy server.",
		label("command", "allow", "report"),
		label("result", proxy.PolicyAllow, proxy.PolicyTarpit, proxy.PolicyReject, proxy.PolicyFailed))
	m.policyTime = r.histogram("auth_policy_request_duration_seconds", "Time the policy server takes.", latency,
		label("command", "allow", "report"))
	if m.config.Guard != nil {
		r.MustRegister(guards(m.config.Guard))
	}
}

// decision counts a decision of the guard.
func (m *Metrics) decision(d proxy.Decision) {
	if d.Tier == "" {
		return
	}
	decision := decisionAllowed
	switch {
	case d.Bucket != "" && !d.DryRun:
		decision = decisionRefused
	case d.Repeat:
		decision = decisionRepeated
	}
	m.decided.of(d.Tier, decision).Inc()
	if d.Bucket != "" {
		m.limited.of(d.Bucket).Inc()
	}
}

// guards is a prometheus.Collector of all gauges of the guard, so that they are of
// the same moment.
type guards func() Guard

// A guardGauge is a gauge, or a counter, of the guard. Its desc has no label.
type guardGauge struct {
	desc  *prometheus.Desc
	kind  prometheus.ValueType
	value func(Guard) float64
}

// describe returns the Desc of a gauge of the guard.
func describe(name, help string) *prometheus.Desc {
	return prometheus.NewDesc(prefix+"_guard_"+name, help, nil, nil)
}

var guardGauges = []guardGauge{
	{describe("learning", "1 while budgets of networks are larger, after a start without memory."), prometheus.GaugeValue, func(g Guard) float64 { return number(g.Learning) }},
	{describe("dry_run", "1 if the guard refuses nobody."), prometheus.GaugeValue, func(g Guard) float64 { return number(g.DryRun) }},
	{describe("entries", "Budgets in use that are remembered."), prometheus.GaugeValue, func(g Guard) float64 { return float64(g.Entries) }},
	{describe("known_networks", "Networks that accounts have logged in from, with each account."), prometheus.GaugeValue, func(g Guard) float64 { return float64(g.KnownGood) }},
	{describe("stranger_connections", "Connections not logged in, of networks that no account has logged in from."), prometheus.GaugeValue, func(g Guard) float64 { return float64(g.Strangers) }},
	{describe("sessions", "Sessions of accounts, and attempts under way."), prometheus.GaugeValue, func(g Guard) float64 { return float64(g.Sessions) }},
	{describe("attempts_in_flight", "Login attempts that the backends are asked about."), prometheus.GaugeValue, func(g Guard) float64 { return float64(g.InFlight) }},
	{describe("attempts_waiting", "Login attempts that wait for others."), prometheus.GaugeValue, func(g Guard) float64 { return float64(g.Waiting) }},
	{describe("failure_ratio", "Share of wrong passwords in the last five minutes' attempts, repeats left out."), prometheus.GaugeValue, Guard.FailureRatio},
	{describe("failing_accounts", "Different names with a wrong password in the last five minutes."), prometheus.GaugeValue, func(g Guard) float64 { return float64(g.FailingAccounts) }},
	{describe("failing_networks", "Different networks with a wrong password in the last five minutes."), prometheus.GaugeValue, func(g Guard) float64 { return float64(g.FailingNetworks) }},
	{describe("sprayed_accounts", "Names that one wrong password was tried for, at the most, in an hour."), prometheus.GaugeValue, func(g Guard) float64 { return float64(g.SprayedAccounts) }},
	{describe("evictions_total", "Budgets in use that made room for others."), prometheus.CounterValue, func(g Guard) float64 { return float64(g.Evictions) }},
	{describe("shed_connections_total", "Connections of strangers that made room for others."), prometheus.CounterValue, func(g Guard) float64 { return float64(g.Shed) }},
}

// FailureRatio returns the share of attempts that failed.
func (g Guard) FailureRatio() float64 {
	if g.Failed == 0 {
		return 0
	}
	return float64(g.Failed) / float64(g.Failed+g.Succeeded)
}

// Describe implements prometheus.Collector.
func (guards) Describe(to chan<- *prometheus.Desc) {
	for _, g := range guardGauges {
		to <- g.desc
	}
}

// Collect implements prometheus.Collector.
func (state guards) Collect(to chan<- prometheus.Metric) {
	now := state()
	for _, g := range guardGauges {
		to <- prometheus.MustNewConstMetric(g.desc, g.kind, g.value(now))
	}
}
