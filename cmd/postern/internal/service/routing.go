package service

import (
	"errors"
	"fmt"

	"postern/configs"
	"postern/proxy/route"
)

func (g *generation) newRouting() (*routing, error) {
	r := &routing{}
	var mistakes configs.Errors
	known := map[string][]string{}
	for name := range g.cfg.Backends {
		known[name] = g.cfg.POP3Modes(name)
	}
	for i, c := range g.cfg.Routes {
		choice := route.Choice{Backend: c.Backend, POP3Mode: c.POP3Mode}
		switch {
		case c.File != "":
			file, err := route.OpenFile(c.File, choice, known)
			if err != nil {
				mistakes = append(mistakes, fileMistakes(g.cfg, fmt.Sprintf("routes[%d].file", i), c.File, err)...)
				continue
			}
			r.rules = append(r.rules, file)
			g.watch(file.Watch)
		case c.Hook != "":
			r.rules = append(r.rules, &route.Hook{URL: c.Hook, Timeout: c.Timeout, Cache: c.Cache, POP3Mode: c.POP3Mode})
		case c.Domain != "":
			r.rules = append(r.rules, route.Domain{Name: c.Domain, Choice: choice})
		default:
			r.rules = append(r.rules, route.Default(choice))
		}
	}
	if path := g.cfg.Protocols.File; path != "" {
		policy, err := route.OpenProtocols(path)
		if err != nil {
			mistakes = append(mistakes, fileMistakes(g.cfg, "policy.file", path, err)...)
		} else {
			r.policy = policy
			g.watch(policy.Watch)
		}
	}
	var wrong configs.Errors
	r.accounts, wrong = NewAccounts(g.cfg)
	if mistakes = append(mistakes, wrong...); mistakes != nil {
		return nil, mistakes
	}
	return r, nil
}

// fileMistakes returns err as mistakes of the configuration at key: one for each wrong
// line of the file at path, which key names.
func fileMistakes(cfg *configs.Config, key, path string, err error) (mistakes configs.Errors) {
	lines, ok := errors.AsType[route.Mistakes](err)
	if !ok {
		return configs.Errors{cfg.Errorf(key, "%s", configs.Unreadable(path, err))}
	}
	for _, line := range lines {
		mistakes = append(mistakes, cfg.Errorf(key, "%v", line))
	}
	return mistakes
}

// NewAccounts returns the route.Accounts of cfg, which find the account of a login name.
func NewAccounts(cfg *configs.Config) (*route.Accounts, configs.Errors) {
	var mistakes configs.Errors
	c := cfg.Accounts
	a := &route.Accounts{Lowercase: c.Lowercase, Domain: c.DefaultDomain, Separators: c.Separators}
	for i, w := range c.Rewrite {
		rewrite, err := route.NewRewrite(w.Match, w.To)
		if err != nil {
			mistakes = append(mistakes, cfg.Errorf(fmt.Sprintf("accounts.rewrite[%d]", i), "%v", err))
		}
		a.Rewrites = append(a.Rewrites, rewrite)
	}
	return a, mistakes
}
