package service

import (
	"context"
	"os"
	"strings"

	"postern/configs"
	"postern/metrics"
	"postern/metrics/page"
	"postern/proxy"
	"postern/proxy/authpolicy"
)

// setPolicyServer sets the policy server of the configuration, if there is one.
func (g *generation) setPolicyServer() error {
	c := g.cfg.Guard.AuthPolicy
	if c.URL == "" {
		return nil
	}
	g.policy = &authpolicy.Server{
		URL: c.URL, Timeout: c.Timeout, RejectOnFail: c.RejectOnFail, LogOnly: c.LogOnly, Nonce: g.policyNonce, Observer: g.observer,
	}
	var mistakes configs.Errors
	for key, use := range map[string]struct {
		path string
		with func([]byte)
	}{
		"guard.policy.api_key_file": {c.APIKeyFile, func(b []byte) { g.policy.Header = proxy.NewSecret(b) }},
		"guard.policy.nonce_file":   {c.NonceFile, func(b []byte) { g.policy.Nonce = b }},
	} {
		if use.path == "" {
			continue
		}
		text, err := os.ReadFile(use.path)
		if err != nil {
			mistakes = append(mistakes, g.cfg.Errorf(key, "%v", err))
			continue
		}
		use.with([]byte(strings.TrimSpace(string(text))))
	}
	if mistakes != nil {
		return mistakes
	}
	return nil
}

// loadGuard loads the guard's memory of the process before: from the state, or from a
// predecessor without state.
func (s *Service) loadGuard(ctx context.Context) {
	const anew = "the login guard begins anew, and learns"
	if s.Storage.Guard != nil {
		if err := s.guard.Load(ctx, s.Storage.Guard); err != nil {
			s.log.Warn(anew, "err", err)
		}
	}
	s.writers = append(s.writers, s.untilBroken(cacheOf, s.runGuard))
	if s.inheritedGuard != nil {
		if err := s.guard.Restore(s.inheritedGuard); err != nil {
			s.log.Warn(anew, "err", err)
		}
	}
}

// runGuard stores the guard's memory, until ctx ends.
func (s *Service) runGuard(ctx context.Context) {
	if s.Storage.Guard != nil {
		s.guard.Run(ctx, s.Storage.Guard, s.log)
	}
}

// dryRun reports whether the guard only counts and refuses no login.
func (s *Service) dryRun() bool {
	g := s.current.Load()
	return g != nil && g.cfg.Guard.DryRun
}

// guardGauges returns the figures of the guard for metrics.
func (s *Service) guardGauges() metrics.Guard {
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

// guardOnPage returns the figures of the guard for the status page.
func (s *Service) guardOnPage() page.Guard {
	g := s.guardGauges()
	return page.Guard{
		Learning: g.Learning, DryRun: g.DryRun, Remembered: g.Entries + g.KnownGood, FailingAccounts: g.FailingAccounts,
		FailingNetworks: g.FailingNetworks, FailureRatio: g.FailureRatio(), Waiting: g.Waiting, InFlight: g.InFlight,
	}
}
