package metrics

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// A Provider is the state of an authorization server that gives tokens.
type Provider struct {
	Name          string
	Known         bool      // the server was asked; else Up and Misconfigured say nothing
	Up            bool      // it answered the last request
	Misconfigured bool      // the application, or its key, is at fault
	Tokens        int       // that are valid now
	Last          time.Time // when a token came last; zero: none came yet
	NotAfter      time.Time // until when the certificate or the secret is valid; zero: not known
}

// providers is a prometheus.Collector. The names come from the configuration.
type providers func() []Provider

var (
	providerLabel = []string{"provider"}

	providerUp = prometheus.NewDesc(prefix+"_provider_up",
		"1 if the authorization server gave the last token that was requested, or refused one mailbox alone. There is no series before the first request.",
		providerLabel, nil)
	providerMisconfigured = prometheus.NewDesc(prefix+"_provider_misconfigured",
		"1 if the authorization server refuses the application or its key: there is no token for any mailbox.", providerLabel, nil)
	providerTokens = prometheus.NewDesc(prefix+"_provider_tokens", "Tokens in memory that are valid.", providerLabel, nil)
	providerLast   = prometheus.NewDesc(prefix+"_provider_last_token_timestamp_seconds", "Time at which the last token came.", providerLabel, nil)
	providerEnd    = prometheus.NewDesc(prefix+"_provider_credential_not_after_timestamp_seconds",
		"End of what authenticates at the authorization server: of the certificate, or client_secret_expires.", providerLabel, nil)
)

// Describe implements prometheus.Collector.
func (providers) Describe(to chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{providerUp, providerMisconfigured, providerTokens, providerLast, providerEnd} {
		to <- d
	}
}

// Collect implements prometheus.Collector.
func (list providers) Collect(to chan<- prometheus.Metric) {
	for _, p := range list() {
		show := func(d *prometheus.Desc, value float64) {
			to <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, p.Name)
		}
		show(providerTokens, float64(p.Tokens))
		if p.Known {
			show(providerUp, number(p.Up))
			show(providerMisconfigured, number(p.Misconfigured))
		}
		if !p.Last.IsZero() {
			show(providerLast, float64(p.Last.Unix()))
		}
		if !p.NotAfter.IsZero() {
			show(providerEnd, float64(p.NotAfter.Unix()))
		}
	}
}

// Passwords is the state of the passwords that Postern checks itself.
type Passwords struct {
	Devices  map[string]int // device passwords by their state, when they were counted last; nil: not counted
	Accounts int            // that have device passwords

	Hashes           bool // there is a file of slow hashes
	Running, Waiting int  // slow hashes
	Memory, Limit    int64
}

// passwords is a prometheus.Collector.
type passwords func() Passwords

var (
	passwordDevices = prometheus.NewDesc(prefix+"_password_devices",
		"Device passwords by state: ok, expired (their last day is over), foreign_key (no key of state.key_file made them) or damaged. Counted every five minutes.",
		[]string{"state"}, nil)
	passwordAccounts = prometheus.NewDesc(prefix+"_password_device_accounts", "Accounts with device passwords. Counted every five minutes.", nil, nil)
	hashesRunning    = prometheus.NewDesc(prefix+"_password_hashes_running", "Slow hashes of passwords.file that are computed now.", nil, nil)
	hashesWaiting    = prometheus.NewDesc(prefix+"_password_hashes_waiting", "Logins that wait for their slow hash to be computed.", nil, nil)
	hashMemory       = prometheus.NewDesc(prefix+"_password_hash_memory_bytes", "Memory of slow hashes, also of those whose memory is not freed yet.", nil, nil)
	hashLimit        = prometheus.NewDesc(prefix+"_password_hash_memory_limit_bytes", "passwords.memory.", nil, nil)
)

// Describe implements prometheus.Collector.
func (passwords) Describe(to chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{passwordDevices, passwordAccounts, hashesRunning, hashesWaiting, hashMemory, hashLimit} {
		to <- d
	}
}

// Collect implements prometheus.Collector.
func (state passwords) Collect(to chan<- prometheus.Metric) {
	p := state()
	show := func(d *prometheus.Desc, value float64, labels ...string) {
		to <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, labels...)
	}
	for name, n := range p.Devices {
		show(passwordDevices, float64(n), name)
	}
	if p.Devices != nil {
		show(passwordAccounts, float64(p.Accounts))
	}
	if p.Hashes {
		show(hashesRunning, float64(p.Running))
		show(hashesWaiting, float64(p.Waiting))
		show(hashMemory, float64(p.Memory))
		show(hashLimit, float64(p.Limit))
	}
}

// staleFiles is a prometheus.Collector. The keys come from the configuration.
type staleFiles func() map[string]bool

var fileStale = prometheus.NewDesc(prefix+"_file_stale",
	"1 if a file of accounts has changed and could not be loaded: its content before is in use. key is the file's key in the configuration.", []string{"key"}, nil)

// Describe implements prometheus.Collector.
func (staleFiles) Describe(to chan<- *prometheus.Desc) { to <- fileStale }

// Collect implements prometheus.Collector.
func (list staleFiles) Collect(to chan<- prometheus.Metric) {
	for key, stale := range list() {
		to <- prometheus.MustNewConstMetric(fileStale, prometheus.GaugeValue, number(stale), key)
	}
}
