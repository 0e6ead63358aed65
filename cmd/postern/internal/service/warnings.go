package service

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"postern/cmd/postern/internal/unit"
	"postern/configs"
	"postern/proxy"
)

// warnings returns notes about settings that are valid and may not be intended, in the
// order of the file. u is the unit under which the service will run; nil: not known.
func (g *generation) warnings(u *unit.Unit) configs.Errors {
	all := g.cfg.ProviderWarnings(time.Now())
	add := func(key, format string, args ...any) { all = append(all, g.cfg.Errorf(key, format, args...)) }
	for i, l := range g.cfg.Listeners {
		if l.TLS != "refuse" && l.TLSProfile == proxy.Legacy.String() {
			add(fmt.Sprintf("listeners[%d].tls_profile", i), "%s", oldTLS(l))
		}
	}
	needed, allowed := g.descriptors()
	if u != nil && u.Files > 0 {
		allowed = u.Files
	}
	if needed > allowed {
		add("limits.max_connections", "%d needs %d file descriptors, two for each, and %d are allowed here (RLIMIT_NOFILE; "+
			"for the service it is LimitNOFILE in the unit): raise that, or lower this", g.cfg.Limits.MaxConnections, needed, allowed)
	}
	if slices.ContainsFunc(g.cfg.Listeners, func(l configs.Listener) bool { return l.Protocol == "pop3" && l.TLS != "refuse" }) {
		if !g.cfg.IsSet("pop3.uidl") && g.cfg.POP3.LearnFrom == "" {
			add("pop3.uidl", "not set, so the format is dovecot: unless the old POP3 server used that, clients will fetch all their mail again; "+
				"`postern uidl detect` finds out, and uidl: dovecot confirms it")
		}
		if g.cfg.State.Path == "" {
			add("state.path", "not set: POP3 lists each mailbox anew, and unique ids do not outlive a change of UIDVALIDITY")
		}
	}
	now := time.Now()
	for _, s := range g.routing.endingWithin(warnDays, now) {
		add("policy.file", "%s; who needs longer gets a line with a later day", endOfPOP3(s, now))
	}
	all.Sort()
	return all
}

// logWarnings logs the warnings of g.
func (g *generation) logWarnings() {
	for _, w := range g.warnings(nil) {
		g.log.Warn("configuration warning", "file", w.File, "line", w.Line, "key", w.Key, "warning", w.Text)
	}
}

// oldTLS returns a line about the TLS versions and clients of the profile legacy.
func oldTLS(l configs.Listener) string {
	clients := "all clients"
	if l.Networks != nil {
		clients = strings.Trim(fmt.Sprint(l.Networks), "[]")
	}
	return fmt.Sprintf("legacy: the listener %s accepts TLS 1.0, 3DES and keys without forward secrecy from %s; "+
		"the metric postern_tls_profile_needed_total says whether anybody still needs it", l.Name, clients)
}
