package service

import (
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"time"

	"postern/configs"
	"postern/proxy"
	"postern/proxy/route"
)

// pop3Off reports whether policy.file has switched POP3 off for an account.
func (s *Service) pop3Off(account string) bool {
	g := s.current.Load()
	return g != nil && g.routing.pop3Off(account)
}

func (r *routing) pop3Off(account string) bool {
	if r == nil || r.policy == nil {
		return false
	}
	off, _ := r.policy.Off(account, proxy.POP3, time.Now())
	return off
}

// UsesOfOldServer are the ways in which a configuration still needs an old POP3 server.
type UsesOfOldServer struct {
	Ways  []string                  // in words, each with what to do
	Learn bool                      // pop3.learn_from is set
	Off   func(account string) bool // whether policy.file has switched POP3 off
}

// FindUsesOfOldServer reads the files of routes and policy that cfg names. It does not
// connect.
func FindUsesOfOldServer(cfg *configs.Config) (u UsesOfOldServer, err error) {
	g := newGeneration(cfg, New(cfg, nil, slog.New(slog.DiscardHandler), nil))
	if g.routing, err = g.newRouting(); err != nil {
		return u, err
	}
	u.Off = g.routing.pop3Off
	for _, l := range cfg.Listeners {
		if l.Protocol != proxy.POP3 {
			continue
		}
		for _, backend := range slices.Sorted(maps.Keys(cfg.Backends)) {
			for _, mode := range cfg.POP3Modes(backend) {
				if mode == route.Bridge || !g.mayServe(l, backend, mode) {
					continue
				}
				way := fmt.Sprintf("the routes may lead POP3 logins of backend %s to the old server (%s): move them to the mode bridge", backend, mode)
				if slices.ContainsFunc(cfg.Routes, func(r configs.Route) bool { return r.Hook != "" }) {
					way += ", and remove the old server from the configuration: what a hook will answer is not known"
				}
				if !slices.Contains(u.Ways, way) {
					u.Ways = append(u.Ways, way)
				}
			}
		}
	}
	if cfg.POP3.LearnFrom != "" {
		u.Learn = true
		u.Ways = append(u.Ways, fmt.Sprintf("pop3.learn_from is %s: an account without recorded unique ids, or that the old server served last, would get [SYS/TEMP]; remove the key before the old server is switched off", cfg.POP3.LearnFrom))
	}
	return u, nil
}
