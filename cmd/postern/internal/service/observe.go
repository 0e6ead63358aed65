package service

import (
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
	"time"

	"postern/cmd/postern/internal/stored"
	"postern/metrics"
	"postern/metrics/page"
	"postern/proxy"
	"postern/proxy/authpolicy"
	"postern/proxy/certs"
	"postern/proxy/guard"
)

// newMetrics returns the metrics. Listeners and backends are added by each
// generation.
func (s *Service) newMetrics() *metrics.Metrics {
	return metrics.New(metrics.Config{
		Version:      ReadVersion().Version,
		Certificates: func() []metrics.Certificate { return expiries(s.store) },
		Findings:     func() map[string]int { return countFindings(s.store) },
		Stores:       []string{stored.ListingsBucket, stored.UIDLBucket, stored.BrakeBucket, stored.DeviceBucket},
		Pools:        s.poolGauges,
		Decisions:    metrics.Decisions{Tiers: guard.Tiers(), Buckets: append(guard.Buckets(), authpolicy.Bucket)},
		Guard:        s.guardGauges,
		State:        s.stateGauges,
		Accounts:     s.accountGauges,
		Policy:       s.policyGauges,
		Tokens:       s.providerGauges,
		Passwords:    s.passwordGauges,
		Stale:        s.staleGauges,
		Listings:     func() int64 { return s.listings.Reserved() },
		Parking:      s.parkingGauges,
		Draining:     s.draining.Load,
		Drained:      s.drained.Load,
		Ready:        s.notReady,
		ReadyFor:     s.notReadyFor,
		Page:         s.page,
		Degraded:     s.degraded,
		Log:          s.log,
	})
}

// parkingGauges returns the counts of parked sessions.
func (s *Service) parkingGauges() metrics.Parking {
	p := s.server.Parking()
	return metrics.Parking{Parked: p.Parked, Wakes: p.Wakes, Failures: p.Failures}
}

// newPage makes the status page.
func (s *Service) newPage() *page.Page {
	hostname, _ := os.Hostname()
	return page.New(page.Config{
		Hostname: hostname, Version: ReadVersion().Version, Protocols: proxy.Protocols(),
		NotReady: s.notReady, Findings: s.findingsOnPage,
		Sessions: func() map[string]int {
			n := make(map[string]int)
			for _, i := range s.server.Sessions() {
				if i.Account != "" {
					n[i.Client.Protocol]++
				}
			}
			return n
		},
		Guard:    s.guardOnPage,
		Accounts: s.accountsOnPage, Stages: s.stagesOnPage,
		Backends: s.backendsOnPage, Providers: s.providersOnPage, Passwords: s.passwordsOnPage,
		Certificates: func() (all []page.Certificate) {
			for _, v := range s.store.Expiry() {
				all = append(all, page.Certificate{
					Name: v.Name, Source: v.Source, NotBefore: v.NotBefore, NotAfter: v.NotAfter,
					State: v.State, Bad: v.Level >= slog.LevelError || !time.Now().Before(v.NotAfter), Warn: v.Level >= slog.LevelWarn,
				})
			}
			return all
		},
	})
}

// findingsOnPage returns what needs attention for the status page.
func (s *Service) findingsOnPage() (all []page.Finding) {
	classes := map[string]string{Critical: "bad", Warning: "warn", Notice: "quiet"}
	for _, f := range s.findings() {
		all = append(all, page.Finding{Severity: f.Severity, Class: classes[f.Severity], Text: f.Text, Detail: f.Detail, Next: f.Next})
	}
	return all
}

func (s *Service) backendsOnPage() (all []page.Backend) {
	g := s.current.Load()
	if g == nil {
		return nil
	}
	for _, key := range slices.SortedFunc(maps.Keys(g.pools), poolKey.compare) {
		b := page.Backend{Name: key.name, Protocol: key.protocol}
		members := g.pools[key].Status()
		n := countMembers(members)
		b.Members, b.Up, b.Drained, b.Unknown = len(members), n.accepting, n.drained, n.unknown
		for _, m := range members {
			b.Connections += m.Connections
			if m.Err != nil {
				b.LastError = m.Err.Error()
			}
			b.IdentityRefused = b.IdentityRefused || m.IdentityRefused
		}
		if brake := g.pop3.shared[key.name].brake; brake != nil && key.protocol == proxy.IMAP {
			s, now := brake.Status(), time.Now()
			b.Braked, b.BrakedSince = s.Braked(), s.On
			if s.Accepts(now) {
				b.Accepted = s.Accepted
			}
		}
		all = append(all, b)
	}
	return all
}

// poolGauges returns the figures of the pools for metrics.
func (s *Service) poolGauges() (all []metrics.Pool) {
	g := s.current.Load()
	if g == nil {
		return nil
	}
	ports := localPorts()
	for key, pool := range g.pools {
		p := metrics.Pool{Backend: metrics.Backend{Name: key.name, Protocol: key.protocol}}
		p.PortLimit = ports * max(1, len(pool.Members[0].Source)) // Source is the same for all members
		p.Waiting = pool.Accounts.Waiting()
		for _, m := range pool.Status() {
			p.Connections += m.Connections
			p.Ports = max(p.Ports, m.Connections)
			if m.Drained {
				p.Drained++
			}
		}
		all = append(all, p)
	}
	return all
}

// localPorts returns the number of ports that the system has for connections from one
// address to another; 0 if it is not known.
func localPorts() int {
	text, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range")
	if err != nil {
		return 0
	}
	var first, last int
	if _, err := fmt.Sscan(string(text), &first, &last); err != nil {
		return 0
	}
	return last - first + 1
}

func expiries(store *certs.Store) (all []metrics.Certificate) {
	for _, v := range store.Expiry() {
		all = append(all, metrics.Certificate{Name: v.Name, Source: v.Source, NotBefore: v.NotBefore, NotAfter: v.NotAfter})
	}
	return all
}

// countFindings returns the number of findings about certificates of each class, without
// those that may be intended.
func countFindings(store *certs.Store) map[string]int {
	n := make(map[string]int)
	for _, class := range certs.Classes() {
		n[string(class)] = 0
	}
	for _, f := range store.Findings() {
		if f.Level > slog.LevelInfo {
			n[string(f.Class)]++
		}
	}
	return n
}
