package guard

import (
	"sync"
	"time"

	"postern/configs"
)

// DefaultConfig returns the limits that operators have by default.
func DefaultConfig() Config { return defaultConfig() }

var defaultConfig = sync.OnceValue(func() Config {
	cfg, err := configs.Parse("postern.yaml", []byte(`
listeners: [{protocol: imap, address: ":993"}]
tls: {certificates: [{cert: mail.pem, key: mail.key}]}
backends: {main: {imap: {address: "10.0.0.5:993"}}}
`))
	if err != nil {
		panic(err)
	}
	b, l := cfg.Guard.Budgets, cfg.Limits
	return Config{
		Known: Rate(b.KnownNetwork), Pair: Rate(b.AccountNetwork), Network: Rate(b.Network), Account: Rate(b.Account),
		Network24: Rate(b.Network24), Network56: Rate(b.Network56), Network48: Rate(b.Network48), OAuth: Rate(b.OAuth),
		Sessions: l.AccountSessions, Delay: b.Delay,
		Connections: l.MaxConnections, Reserve: l.Reserve, ConnectionsPerNetwork: l.NetworkConnections, LoginsPerNetwork: l.NetworkLogins,
		Attempts: l.Attempts, Wait: l.AttemptWait,
		Learning: cfg.Guard.Learning, Entries: l.GuardEntries, KnownFor: cfg.Retention.Guard.Duration(), Pairs: l.KnownNetworks,
		Now: time.Now,
	}
})

// withDefaults returns c with defaults in fields that are zero. A negative Learning
// becomes 0.
func withDefaults(c Config) Config {
	if c.Connections != 0 && c.Reserve == 0 {
		c.Reserve = c.Connections / 5
	}
	c = c.inherit(defaultConfig())
	c.Learning = max(0, c.Learning)
	return c
}

// newGuard returns a Guard with defaults in the fields of c that are zero.
func newGuard(c Config) *Guard { return New(withDefaults(c)) }
