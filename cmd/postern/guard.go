package main

import (
	"context"
	"os"
	"strings"

	"postern/configs"
	"postern/metrics"
	"postern/metrics/page"
	"postern/proxy"
	"postern/proxy/authpolicy"
	"postern/proxy/guard"
)

// guardConfig is what cfg says of the login guard.
func guardConfig(cfg *configs.Config) guard.Config {
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

// setPolicyServer finds out who else judges logins.
func (h *house) setPolicyServer() error {
	c := h.cfg.Guard.Policy
	if c.URL == "" {
		return nil
	}
	h.policy = &authpolicy.Server{
		URL: c.URL, Timeout: c.Timeout, RejectOnFail: c.RejectOnFail, LogOnly: c.LogOnly, Nonce: h.nonce, Observer: h.observer,
	}
	var mistakes configs.Errors
	for key, use := range map[string]struct {
		path string
		with func([]byte)
	}{
		"guard.policy.api_key_file": {c.APIKeyFile, func(b []byte) { h.policy.Header = proxy.NewSecret(b) }},
		"guard.policy.nonce_file":   {c.NonceFile, func(b []byte) { h.policy.Nonce = b }},
	} {
		if use.path == "" {
			continue
		}
		text, err := os.ReadFile(use.path)
		if err != nil {
			mistakes = append(mistakes, h.cfg.Errorf(key, "%v", err))
			continue
		}
		use.with([]byte(strings.TrimSpace(string(text))))
	}
	if mistakes != nil {
		return mistakes
	}
	return nil
}

// openGuard makes the guard of h, which remembers what the last one did.
func (s *site) openGuard(ctx context.Context, h *house) {
	s.guard = guard.New(guardConfig(h.cfg))
	s.advised = &authpolicy.Guard{Guard: s.guard}
	s.server.Guard = s.advised
	if s.memory.guard == nil {
		return
	}
	if err := s.guard.Load(ctx, s.memory.guard); err != nil {
		s.log.Warn("the login guard begins anew, and learns", "err", err)
	}
}

// runGuard stores what the guard remembers, until ctx ends.
func (s *site) runGuard(ctx context.Context) {
	if s.memory.guard != nil {
		s.guard.Run(ctx, s.memory.guard, s.log)
	}
}

// dryRun reports whether the guard refuses nobody.
func (s *site) dryRun() bool {
	h := s.house.Load()
	return h != nil && h.cfg.Guard.DryRun
}

// guardGauges is the guard as metrics show it.
func (s *site) guardGauges() metrics.Guard {
	if s.guard == nil {
		return metrics.Guard{}
	}
	g := s.guard.Stats()
	return metrics.Guard{
		Learning: g.Learning > 0, DryRun: s.dryRun(), Entries: g.Entries, KnownGood: g.KnownGood, Strangers: g.Strangers,
		Sessions: g.Sessions, InFlight: g.InFlight, Waiting: g.Waiting, Failed: g.Failed, Succeeded: g.Succeeded,
		FailingAccounts: g.FailingAccounts, FailingNetworks: g.FailingNetworks, SprayedAccounts: g.SprayedAccounts,
		Evictions: g.Evictions, Shed: g.Shed,
	}
}

// guardOnPage is the guard as the status page shows it.
func (s *site) guardOnPage() page.Guard {
	g := s.guardGauges()
	return page.Guard{
		Learning: g.Learning, DryRun: g.DryRun, Remembered: g.Entries + g.KnownGood, FailingAccounts: g.FailingAccounts,
		FailingNetworks: g.FailingNetworks, FailureRatio: g.FailureRatio(), Waiting: g.Waiting, InFlight: g.InFlight,
	}
}
