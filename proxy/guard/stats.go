package guard

import (
	"math"
	"math/bits"
	"sync/atomic"
	"time"
)

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

// window is the number of minutes that sum adds.
const window = 5

type stats struct {
	waiting atomic.Int64
	shed    uint64
	minutes [window]minute
	hours   [2]hour
}

// A minute has the counts of one minute.
type minute struct {
	number                              int64
	succeeded, failed, repeated, denied int
	accounts, networks                  hyperLogLog // that failed
}

func (s *stats) minute(now time.Duration) *minute {
	number := int64(now / time.Minute)
	m := &s.minutes[number%window]
	if m.number != number {
		*m = minute{number: number}
	}
	return m
}

// count counts an attempt that is settled.
func (s *stats) count(p *permit, o outcome, now time.Duration) {
	m := s.minute(now)
	switch {
	case o == right:
		m.succeeded++
	case p.stage == dryRun: // counted as denied
	case o.isGuess() && p.found.repeat:
		m.repeated++
	case o.isGuess():
		m.failed++
		m.accounts.add(p.demand.account)
		m.networks.add(p.demand.from.network)
		if p.passwordKey != 0 {
			s.hour(now).add(p.passwordKey, p.demand.account)
		}
	}
}

func (s *stats) countRejection(f *finding, now time.Duration) {
	if f.bucket == NoBucket { // the same wrong password again
		s.minute(now).repeated++
		return
	}
	s.minute(now).denied++
}

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

// A hyperLogLog counts distinct keys with an error of 3 % (Flajolet and others, 2007),
// and by linear counting if there are few.
type hyperLogLog [1 << 10]uint8

func (h *hyperLogLog) add(k key) {
	i := k >> 54
	h[i] = max(h[i], uint8(1+bits.LeadingZeros64(uint64(k)<<10|1)))
}

func (h *hyperLogLog) merge(other *hyperLogLog) {
	for i, v := range other {
		h[i] = max(h[i], v)
	}
}

func (h *hyperLogLog) count() int {
	const m = float64(len(hyperLogLog{}))
	sum, zeros := 0.0, 0.0
	for _, v := range h {
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

// An hour has the wrong passwords that were tried at the most accounts in one hour. A
// password that is not among them replaces the one with the fewest accounts.
type hour struct {
	number    int64
	passwords [64]spray
}

// A spray is one wrong password and a bitmap of the accounts at which it was tried.
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
	index, fewest := 0, math.MaxInt
	for i := range h.passwords {
		s := &h.passwords[i]
		if s.password == password {
			index = i
			break
		}
		if n := s.ones(); n < fewest {
			index, fewest = i, n
		}
	}
	s := &h.passwords[index]
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

// most returns at how many accounts the most sprayed password was tried, by linear
// counting.
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
