package stored

import (
	"postern/configs"
	"postern/proxy/guard"
)

// GuardConfig returns the limits of the login guard in cfg.
func GuardConfig(cfg *configs.Config) guard.Config {
	l := cfg.Limits
	c := budgets(cfg.Guard.Budgets)
	c.Connections, c.Reserve, c.ConnectionsPerNetwork, c.LoginsPerNetwork = l.MaxConnections, l.Reserve, l.NetworkConnections, l.NetworkLogins
	c.Sessions, c.Attempts, c.Wait, c.Entries, c.Pairs = l.AccountSessions, l.Attempts, l.AttemptWait, l.GuardEntries, l.KnownNetworks
	c.Trusted, c.Learning = cfg.TrustedNetworks, cfg.Guard.Learning
	c.KnownFor = cfg.Retention.Guard.Duration()
	c.Services = make(map[string]guard.Config)
	for _, listener := range cfg.Listeners {
		if g := listener.Guard; g != nil {
			s := budgets(g.Budgets)
			s.Sessions = g.AccountSessions
			c.Services[listener.Name] = s
		}
	}
	return c
}

func budgets(b configs.Budgets) guard.Config {
	return guard.Config{
		Known: guard.Rate(b.KnownNetwork), Pair: guard.Rate(b.AccountNetwork), Network: guard.Rate(b.Network), Account: guard.Rate(b.Account),
		Network24: guard.Rate(b.Network24), Network56: guard.Rate(b.Network56), Network48: guard.Rate(b.Network48), OAuth: guard.Rate(b.OAuth),
		Delay: b.Delay, DryRun: b.DryRun, StrictNIST: b.StrictNIST,
	}
}
