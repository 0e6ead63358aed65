package guard

import "time"

// Stats are gauges and counters of a Guard, for metrics.
type Stats struct {
	Entries     int           // buckets in use
	KnownGood   int           // pairs of an account and a known network
	Connections int           // open connections
	Strangers   int           // open connections that are not logged in, from networks that are not known-good
	Sessions    int           // sessions and attempts under way
	InFlight    int           // attempts under way
	Waiting     int           // attempts that wait for other attempts
	Learning    time.Duration // left of Config.Learning; 0: it is over
	Evictions   uint64        // buckets that were evicted to the sketch, since the start
	Shed        uint64        // connections that were shed, since the start

	// Attacks that no limit per account and network detects, such as one guess each at
	// many accounts from many networks, show in these. Of the last five minutes:
	Succeeded, Failed int // attempts; repeated wrong passwords are not in Failed
	Repeated, Denied  int // repeated wrong passwords; attempts that the guard refused for other reasons
	FailingAccounts   int // distinct, with an error of 3 %
	FailingNetworks   int

	SprayedAccounts int // the most accounts at which one wrong password was tried, in this hour or the last
}

// Stats returns the present values.
func (g *Guard) Stats() Stats {
	entries := 0
	for i := range segments { // one lock per segment: attempts must not wait long
		g.lock()
		g.buckets.table.each(i, func(b *bucket) {
			if b.priority(g.now) > 0 {
				entries++
			}
		})
		g.mu.Unlock()
	}
	g.lock()
	defer g.mu.Unlock()
	s := Stats{
		Entries: entries, KnownGood: g.known.len(), Connections: g.conns.open, Strangers: g.conns.strangers,
		InFlight: g.slots.inUse, Waiting: int(g.stats.waiting.Load()),
		Learning: max(0, g.learningEnd-g.now), Evictions: g.buckets.evictions, Shed: g.stats.shed,
	}
	for _, n := range g.sessions {
		s.Sessions += int(n)
	}
	g.stats.sum(&s, g.now)
	return s
}

// sum adds the counters of the last minutes and hours to a Stats.
func (s *stats) sum(to *Stats, now time.Duration) {
	var accounts, networks hyperLogLog
	for i := range s.minutes {
		m := &s.minutes[i]
		if int64(now/time.Minute)-m.number >= window {
			continue
		}
		to.Succeeded += m.succeeded
		to.Failed += m.failed
		to.Repeated += m.repeated
		to.Denied += m.denied
		accounts.merge(&m.accounts)
		networks.merge(&m.networks)
	}
	to.FailingAccounts, to.FailingNetworks = accounts.count(), networks.count()
	for i := range s.hours {
		if h := &s.hours[i]; int64(now/time.Hour)-h.number < int64(len(s.hours)) {
			to.SprayedAccounts = max(to.SprayedAccounts, h.most())
		}
	}
}
