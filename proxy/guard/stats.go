package guard

import (
	"math"
	"math/bits"
	"sync/atomic"
	"time"
)

// Stats is what a Guard is doing: gauges for metrics.
type Stats struct {
	Entries     int           // budgets in use that are remembered
	KnownGood   int           // known-good networks of all accounts
	Connections int           // open
	Strangers   int           // of them, not logged in and from networks that are not known-good
	Sessions    int           // and attempts under way
	InFlight    int           // attempts under way
	Waiting     int           // attempts that wait for others
	Learning    time.Duration // left of the learning mode; 0: it is over
	Evictions   uint64        // budgets that had to go to the sketch, since the start
	Shed        uint64        // connections that had to make room, since the start

	// What no limit per key catches, as one try each for many accounts from
	// many networks. Of the last five minutes:
	Succeeded, Failed int // attempts; repeats of one wrong password are no failures
	Repeated, Denied  int // repeats; what the guard refused for other reasons
	FailingAccounts   int // different ones, give or take 3 %
	FailingNetworks   int

	SprayedAccounts int // the most accounts that one wrong password was tried for, in this hour or the last
}

// Stats returns the gauges.
func (g *Guard) Stats() Stats {
	entries := 0
	for i := range segments { // the lock is not held for long
		g.lock()
		g.buckets.each(i, func(b *bucket) {
			if b.worth(g.latest) > 0 {
				entries++
			}
		})
		g.mu.Unlock()
	}
	g.lock()
	defer g.mu.Unlock()
	s := Stats{
		Entries: entries, KnownGood: g.regulars.len(), Connections: g.open, Strangers: g.strangers,
		InFlight: g.slots.taken, Waiting: int(g.stats.waiting.Load()),
		Learning: max(0, g.learning-g.latest), Evictions: g.stats.evictions, Shed: g.stats.shed,
	}
	for _, n := range g.sessions {
		s.Sessions += int(n)
	}
	g.stats.sum(&s, g.latest)
	return s
}

// window is how many minutes are summed up.
const window = 5

type stats struct {
	waiting         atomic.Int64
	evictions, shed uint64
	minutes         [window]minute
	hours           [2]hour
}

// A minute is what happened in one.
type minute struct {
	number                              int64
	succeeded, failed, repeated, denied int
	accounts, networks                  counter // that failed
}

func (s *stats) minute(now time.Duration) *minute {
	number := int64(now / time.Minute)
	m := &s.minutes[number%window]
	if m.number != number {
		*m = minute{number: number}
	}
	return m
}

func (s *stats) settled(p *permit, o outcome, now time.Duration) {
	m := s.minute(now)
	switch {
	case o == right:
		m.succeeded++
	case p.stage == waved: // counted as denied
	case o.guess() && p.found.repeat:
		m.repeated++
	case o.guess():
		m.failed++
		m.accounts.add(p.claim.account)
		m.networks.add(p.claim.from.network)
		if p.sprayed != 0 {
			s.hour(now).add(p.sprayed, p.claim.account)
		}
	}
}

func (s *stats) denied(r *rejection, now time.Duration) {
	if r.repeat {
		s.minute(now).repeated++
		return
	}
	s.minute(now).denied++
}

func (s *stats) sum(to *Stats, now time.Duration) {
	var accounts, networks counter
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

// A counter counts different keys, give or take 3 %: HyperLogLog (Flajolet and
// others 2007), with linear counting for few.
type counter [1 << 10]uint8

func (c *counter) add(k key) {
	i := k >> 54
	c[i] = max(c[i], uint8(1+bits.LeadingZeros64(uint64(k)<<10|1)))
}

func (c *counter) merge(other *counter) {
	for i, v := range other {
		c[i] = max(c[i], v)
	}
}

func (c *counter) count() int {
	const m = float64(len(counter{}))
	sum, zeros := 0.0, 0.0
	for _, v := range c {
		sum += math.Pow(2, -float64(v))
		if v == 0 {
			zeros++
		}
	}
	estimate := 0.7213 / (1 + 1.079/m) * m * m / sum
	if zeros > 0 && estimate <= 2.5*m {
		estimate = m * math.Log(m/zeros)
	}
	return int(math.Round(estimate))
}

// An hour is the wrong passwords that were tried for most accounts in one: the
// one of fewest accounts makes room for one that is not among them.
type hour struct {
	number    int64
	passwords [64]spray
}

// A spray is one wrong password and a bitmap of the accounts it was tried for.
type spray struct {
	password key
	accounts [4]uint64
}

func (s *stats) hour(now time.Duration) *hour {
	number := int64(now / time.Hour)
	h := &s.hours[number%int64(len(s.hours))]
	if h.number != number {
		*h = hour{number: number}
	}
	return h
}

func (h *hour) add(password, account key) {
	least, few := 0, math.MaxInt
	for i := range h.passwords {
		s := &h.passwords[i]
		if s.password == password {
			least = i
			break
		}
		if n := s.ones(); n < few {
			least, few = i, n
		}
	}
	s := &h.passwords[least]
	if s.password != password {
		*s = spray{password: password}
	}
	s.accounts[account>>62] |= 1 << (account >> 56 & 63)
}

func (s *spray) ones() (n int) {
	for _, w := range s.accounts {
		n += bits.OnesCount64(w)
	}
	return n
}

// most returns for how many accounts the most sprayed password was tried.
func (h *hour) most() int {
	most := 0
	for i := range h.passwords {
		most = max(most, h.passwords[i].ones())
	}
	if most == 0 {
		return 0
	}
	const m = 256.0
	return int(math.Round(m * math.Log(m/max(1, m-float64(most)))))
}
