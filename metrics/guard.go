package metrics

import (
	"github.com/prometheus/client_golang/prometheus"

	"postern/proxy"
)

// A Guard is how the login guard stands. What fails is of the last five
// minutes; repeats of one wrong password are no failures.
type Guard struct {
	Learning, DryRun    bool
	Entries, KnownGood  int // budgets in use, known-good networks
	Strangers, Sessions int // connections, sessions
	InFlight, Waiting   int // attempts
	Failed, Succeeded   int
	FailingAccounts     int
	FailingNetworks     int
	SprayedAccounts     int    // the most that one wrong password was tried for
	Evictions, Shed     uint64 // since the start
}

// Decisions are the values that a proxy.Decision's fields have.
type Decisions struct{ Tiers, Buckets []string }

// guardian counts what the guard does.
type guardian struct {
	judged, limited, policy counter
	policyTime              histogram
}

// The values of the label decision.
const (
	letThrough = "let_through"
	repeated   = "repeated"
	stopped    = "refused"
)

func (m *Metrics) guards() {
	r := &m.registry
	m.judged = r.counter("guard_attempts_total",
		"Login attempts by how well their account knows the network, and by what the guard did; repeated: the same wrong password again.",
		label("tier", m.config.Decisions.Tiers...), label("decision", letThrough, repeated, stopped))
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

func (m *Metrics) decision(j proxy.Decision) {
	if j.Tier == "" {
		return
	}
	decision := letThrough
	switch {
	case j.Bucket != "" && !j.DryRun:
		decision = stopped
	case j.Repeat:
		decision = repeated
	}
	m.judged.of(j.Tier, decision).Inc()
	if j.Bucket != "" {
		m.limited.of(j.Bucket).Inc()
	}
}

// guards is a prometheus.Collector: one look at the guard gives all its gauges.
type guards func() Guard

// A guardGauge is one of them. Its desc has no label.
type guardGauge struct {
	desc  *prometheus.Desc
	kind  prometheus.ValueType
	value func(Guard) float64
}

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

func (guards) Describe(to chan<- *prometheus.Desc) {
	for _, g := range guardGauges {
		to <- g.desc
	}
}

func (look guards) Collect(to chan<- prometheus.Metric) {
	now := look()
	for _, g := range guardGauges {
		to <- prometheus.MustNewConstMetric(g.desc, g.kind, g.value(now))
	}
}
