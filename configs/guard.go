package configs

import (
	"net/url"
	"reflect"
	"time"
)

// Limits bound what clients can occupy. A network is an IPv4 address or an IPv6
// /64.
type Limits struct {
	MaxConnections     int           `yaml:"max_connections"`     // open client connections in all
	Reserve            int           `yaml:"reserve"`             // of them, for networks that accounts have logged in from; default: a fifth
	NetworkConnections int           `yaml:"network_connections"` // the same per network; more where many accounts live
	NetworkLogins      int           `yaml:"network_logins"`      // of them, not logged in
	AccountSessions    int           `yaml:"account_sessions"`    // of one account from one network
	Attempts           int           `yaml:"attempts"`            // to log in, at the backends at once
	AttemptWait        time.Duration `yaml:"attempt_wait"`        // of an attempt for others, from when its connection was accepted; 5 s at least, unless this is less
	GuardEntries       int           `yaml:"guard_entries"`       // budgets in use that are remembered; at a start only
	KnownNetworks      int           `yaml:"known_networks"`      // pairs of account and network that are remembered; at a start only
	ListingMemory      Size          `yaml:"listing_memory"`      // of the listings of all POP3 sessions together
	Park               bool          `yaml:"park"`                // sessions in which nothing moves have no goroutine
}

// Guard bounds failed logins.
type Guard struct {
	Budgets    `yaml:",inline"`
	Learning   time.Duration `yaml:"learning"` // budgets of networks are larger, after a start without memory; 0: never
	AuthPolicy AuthPolicy    `yaml:"policy"`
}

// Budgets are how many failed logins are allowed.
type Budgets struct {
	KnownNetwork   Budget `yaml:"known_network"`   // an account's, from each network that it has logged in from
	AccountNetwork Budget `yaml:"account_network"` // an account's, from each other network
	Network        Budget `yaml:"network"`         // a network's, whatever the account; more where many accounts live
	Account        Budget `yaml:"account"`         // an account's, from everywhere, in each of four pools
	Network24      Budget `yaml:"network_24"`      // an IPv4 /24's, for accounts that do not know the area
	Network56      Budget `yaml:"network_56"`      // an IPv6 /56's, likewise
	Network48      Budget `yaml:"network_48"`      // an IPv6 /48's, likewise
	OAuth          Budget `yaml:"oauth"`           // of refused tokens of more than 256 octets, from a network

	Delay      time.Duration `yaml:"delay"`       // of the answer to a wrong password
	DryRun     bool          `yaml:"dry_run"`     // log what would be refused, and refuse nobody
	StrictNIST bool          `yaml:"strict_nist"` // after 100 failures in a row, known networks only (NIST SP 800-63B)
}

// A ListenerGuard is what differs on a listener. Zero values, and false, are as
// for all.
type ListenerGuard struct {
	Budgets         `yaml:",inline"`
	AccountSessions int `yaml:"account_sessions"`
}

// A Budget is a token bucket of failed logins.
type Budget struct {
	Burst int           `yaml:"burst"` // failures in a row, at most
	Every time.Duration `yaml:"every"` // one is given back
}

// AuthPolicy is a server that judges logins by Dovecot's auth-policy protocol.
type AuthPolicy struct {
	URL          string        `yaml:"url"`          // "": there is none
	APIKeyFile   string        `yaml:"api_key_file"` // "Header: value", or the value of X-API-Key
	NonceFile    string        `yaml:"nonce_file"`   // of the hashes of passwords; "": another at each start
	Timeout      time.Duration `yaml:"timeout"`
	RejectOnFail bool          `yaml:"reject_on_fail"` // no answer in time refuses
	LogOnly      bool          `yaml:"log_only"`
}

func defaultLimits() Limits {
	return Limits{
		MaxConnections: 10_000, Reserve: 2_000, NetworkConnections: 200, NetworkLogins: 40, AccountSessions: 50,
		Attempts: 1024, AttemptWait: 30 * time.Second, GuardEntries: 1 << 19, KnownNetworks: 3 << 18,
		ListingMemory: 256 << 20, Park: true,
	}
}

func defaultGuard() Guard {
	return Guard{
		Budgets: Budgets{
			KnownNetwork:   Budget{Burst: 20, Every: 10 * time.Minute},
			AccountNetwork: Budget{Burst: 5, Every: 30 * time.Minute},
			Network:        Budget{Burst: 20, Every: 30 * time.Minute},
			Account:        Budget{Burst: 8, Every: time.Hour},
			Network24:      Budget{Burst: 60, Every: 10 * time.Minute},
			Network56:      Budget{Burst: 40, Every: 15 * time.Minute},
			Network48:      Budget{Burst: 60, Every: 10 * time.Minute},
			OAuth:          Budget{Burst: 100, Every: 10 * time.Second},
			Delay:          2 * time.Second,
		},
		Learning:   72 * time.Hour,
		AuthPolicy: AuthPolicy{Timeout: 2 * time.Second},
	}
}

// fillInGuard sets what depends on the rest of the file.
func (c *Config) fillInGuard() {
	if !c.IsSet("limits.reserve") {
		c.Limits.Reserve = c.Limits.MaxConnections / 5
	}
	p := &c.Guard.AuthPolicy
	p.APIKeyFile, p.NonceFile = c.resolvePath(p.APIKeyFile), c.resolvePath(p.NonceFile)
}

func (m *mistakes) checkGuard() {
	l := m.cfg.Limits
	const million = 1_000_000
	m.checkNumber("limits.max_connections", l.MaxConnections, million)
	if l.Reserve < 0 || l.Reserve >= max(l.MaxConnections, 1) {
		m.report("limits.reserve", "%d is out of range; use 0 to less than max_connections", l.Reserve)
	}
	m.checkNumber("limits.network_connections", l.NetworkConnections, million)
	m.checkNumber("limits.network_logins", l.NetworkLogins, million)
	m.checkNumber("limits.account_sessions", l.AccountSessions, million)
	m.checkNumber("limits.attempts", l.Attempts, million)
	m.checkSpan("limits.attempt_wait", l.AttemptWait, 100*time.Millisecond, time.Minute)
	m.checkNumber("limits.guard_entries", l.GuardEntries, 100*million)
	m.checkNumber("limits.known_networks", l.KnownNetworks, 100*million)
	m.checkSize("limits.listing_memory", l.ListingMemory, 1<<20, 1<<40)
	m.checkBudgets("guard", m.cfg.Guard.Budgets)
	m.checkSpan("guard.learning", m.cfg.Guard.Learning, 0, 30*24*time.Hour)
	m.checkAuthPolicy(m.cfg.Guard.AuthPolicy)
}

// checkBudgets checks the budgets in the file; the others are as for all.
func (m *mistakes) checkBudgets(key string, b Budgets) {
	for field, value := range reflect.ValueOf(b).Fields() {
		k := joinKey(key, field.Tag.Get("yaml"))
		if budget, ok := reflect.TypeAssert[Budget](value); ok {
			if m.cfg.IsSet(k + ".burst") {
				m.checkNumber(k+".burst", budget.Burst, 10_000)
			}
			if m.cfg.IsSet(k + ".every") {
				m.checkDuration(k+".every", budget.Every, time.Second, "")
			}
		}
	}
	if m.cfg.IsSet(key + ".delay") {
		m.checkSpan(key+".delay", b.Delay, 100*time.Millisecond, 30*time.Second)
	}
}

func (m *mistakes) checkListenerGuard(key string, g *ListenerGuard) {
	if g == nil {
		return
	}
	m.checkBudgets(key, g.Budgets)
	if m.cfg.IsSet(key + ".account_sessions") {
		m.checkNumber(key+".account_sessions", g.AccountSessions, 1_000_000)
	}
}

func (m *mistakes) checkAuthPolicy(p AuthPolicy) {
	const key = "guard.policy"
	if p.URL == "" {
		if m.cfg.IsSet(key) && (p != AuthPolicy{Timeout: p.Timeout}) {
			m.report(key+".url", "missing; write that of the policy server, such as http://127.0.0.1:8084/")
		}
		return
	}
	if u, err := url.Parse(p.URL); err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		m.report(key+".url", "%s is not a URL such as http://127.0.0.1:8084/", quote(p.URL))
	}
	m.checkSpan(key+".timeout", p.Timeout, 10*time.Millisecond, 30*time.Second)
}

// checkPolicyFiles checks that the files of a policy server are not empty.
func (m *mistakes) checkPolicyFiles() {
	p := m.cfg.Guard.AuthPolicy
	for key, path := range map[string]string{"guard.policy.api_key_file": p.APIKeyFile, "guard.policy.nonce_file": p.NonceFile} {
		if data := m.read(key, path); data != nil && len(data) == 0 {
			m.report(key, "%s is empty", path)
		}
	}
}
