package stored

import (
	"context"
	"errors"
	"fmt"

	"postern/configs"
	"postern/proxy/guard"
)

// loadGuard returns the guard that runs, or one that has what was stored of it.
func (m *Storage) loadGuard(ctx context.Context) (*guard.Guard, error) {
	if m.LiveGuard != nil {
		return m.LiveGuard, nil
	}
	g := guard.New(m.guardConfig)
	if err := g.Load(ctx, m.Guard); err != nil && !errors.Is(err, guard.ErrSnapshot) {
		return nil, err
	}
	return g, nil
}

// SeedGuard makes the networks of logins known-good.
var SeedGuard = Question[[]guard.Success, int]{"guard/seed", func(ctx context.Context, m *Storage, logins []guard.Success, each func(int) error) error {
	if m.Guard == nil {
		return errors.New("state.path is not set: the guard remembers nothing")
	}
	g := guard.New(m.guardConfig)
	if err := g.Load(ctx, m.Guard); err != nil && !errors.Is(err, guard.ErrSnapshot) {
		return err
	}
	n := g.Seed(logins)
	if err := g.Save(ctx, m.Guard); err != nil {
		return fmt.Errorf("store what the guard remembers: %w", err)
	}
	return each(n)
}}

// GuardConfig is what cfg says of the login guard.
func GuardConfig(cfg *configs.Config) guard.Config {
	l := cfg.Limits
	c := budgets(cfg.Guard.Budgets)
	c.Connections, c.Reserve, c.ConnectionsPerNetwork, c.LoginsPerNetwork = l.MaxConnections, orNone(l.Reserve), l.NetworkConnections, l.NetworkLogins
	c.Sessions, c.Attempts, c.Wait, c.Entries, c.Pairs = l.AccountSessions, l.Attempts, l.AttemptWait, l.GuardEntries, l.KnownNetworks
	c.Trusted, c.Learning = cfg.TrustedNetworks, orNone(cfg.Guard.Learning)
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

// orNone makes less than nothing of nothing, which the guard takes for its
// default.
func orNone[N ~int | ~int64](n N) N {
	if n == 0 {
		return -1
	}
	return n
}

func budgets(b configs.Budgets) guard.Config {
	return guard.Config{
		Known: guard.Rate(b.Known), Pair: guard.Rate(b.Pair), Network: guard.Rate(b.Network), Account: guard.Rate(b.Account),
		Network24: guard.Rate(b.Network24), Network56: guard.Rate(b.Network56), Network48: guard.Rate(b.Network48), OAuth: guard.Rate(b.OAuth),
		Delay: b.Delay, DryRun: b.DryRun, StrictNIST: b.StrictNIST,
	}
}
