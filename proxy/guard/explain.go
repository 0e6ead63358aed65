package guard

import (
	"net/netip"
	"time"
)

// An Explanation says how the guard would decide about an attempt.
type Explanation struct {
	Account  string
	Network  netip.Prefix
	Tier     Tier
	Trusted  bool      // no limits per network
	Learning bool      // the budgets of networks are five times as large
	Shared   int       // accounts that use the network
	Last     time.Time // last login of the account from anywhere, to the second; zero: none within Config.KnownFor
	Wrong    int       // remembered wrong passwords of the account from the area, which cost nothing
	Refused  Bucket    // the first bucket that refuses the attempt; NoBucket: none does
	Buckets  []State
}

// A State is the state of one Bucket.
type State struct {
	Bucket  Bucket
	Burst   int           // 0: not a token bucket
	Every   time.Duration // until one token comes back
	Tokens  int           // left
	Next    time.Time     // when there is a token; zero: now
	Running int           // attempts, sessions or connections at present
	AtOnce  int           // limit of Running; 0: unlimited
	Waiting int           // of Attempts: attempts that wait for a slot
	Sieve   bool          // of Sessions: those of ManageSieve, which count apart and refuse ManageSieve alone
}

// Explain returns how the guard would decide about an attempt at account, as rewritten,
// from addr, at a service.
func (g *Guard) Explain(service, account string, addr netip.Addr) Explanation {
	g.lock()
	defer g.mu.Unlock()
	from := g.secret.originOf(addr)
	var d demand
	g.demand(&d, subject{
		limits: g.limitsOf(service), from: from, trusted: g.trusts(from.addr), account: g.secret.account(account),
	})
	e := Explanation{
		Account: account, Network: from.prefix(), Tier: d.tier, Trusted: d.trusted,
		Learning: g.learning(), Shared: g.known.activeAccounts(from.network, g.now),
	}
	if d.last > 0 {
		e.Last = g.wallTime(d.last)
	}
	if passwords := g.wrong.get(d.account.with(from.area)); passwords != nil {
		e.Wrong = passwords.count(g.now)
	}
	for i := range d.all() {
		e.Buckets = append(e.Buckets, g.state(&d, &d.requirements[i]))
	}
	e.Buckets = append(e.Buckets, State{
		Bucket: Attempts, Running: g.slots.inUse, AtOnce: g.slotLimits().of(d.tier.slotKind()), Waiting: g.slots.waiting(),
	})
	e.Buckets = append(e.Buckets, State{Bucket: Sessions, Running: int(g.sessions[d.pair()]), AtOnce: d.limits.Sessions})
	if !d.trusted {
		count := g.conns.counts[from.network]
		open, pending := g.networkLimits(from)
		e.Buckets = append(e.Buckets,
			State{Bucket: Connections, Running: int(count.open), AtOnce: int(open)},
			State{Bucket: Logins, Running: int(count.pending()), AtOnce: int(pending)})
	}
	for _, s := range e.Buckets {
		if s.refuses() {
			e.Refused = s.Bucket
			break
		}
	}
	d.sieve = true
	if n := g.sessions[d.sessionsOf(g.secret)]; n > 0 {
		e.Buckets = append(e.Buckets, State{Bucket: Sessions, Sieve: true, Running: int(n), AtOnce: d.limits.Sessions})
	}
	return e
}

// refuses reports whether an attempt is refused because of s. An attempt waits for
// attempts under way, and is not refused because of them.
func (s State) refuses() bool {
	switch s.Bucket {
	case Sessions, Connections, Logins:
		return s.Running >= s.AtOnce
	}
	return s.Burst > 0 && s.Tokens == 0
}

func (g *Guard) state(d *demand, r *requirement) State {
	s := State{
		Bucket: r.bucket, Burst: r.rate.Burst, Every: r.rate.Every,
		Running: int(g.inFlight[r.key].running), AtOnce: int(r.limit),
	}
	if r.rate.Burst == 0 {
		return s
	}
	fullAt := g.fullAt(d, r)
	s.Tokens = r.rate.tokens(fullAt, g.now)
	if next := r.rate.next(fullAt, g.now); next > 0 {
		s.Next = g.wallTime(g.now + next)
	}
	return s
}
