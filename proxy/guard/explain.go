package guard

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"postern/proxy"
)

// An Explanation is what the guard would say to an attempt.
type Explanation struct {
	Account  string
	Network  netip.Prefix
	Tier     Tier
	Trusted  bool      // no limit per network
	Learning bool      // budgets of networks are five times as large
	Shared   int       // accounts that use the network
	Last     time.Time // success of the account, from anywhere, to the second; zero: none in Config.KnownFor
	Wrong    int       // wrong passwords remembered, from the network's area: they cost nothing more
	Refused  Bucket    // what there is none of; NoBucket: the attempt would be made
	Buckets  []State
}

// A State is that of one Bucket.
type State struct {
	Bucket  Bucket
	Burst   int           // 0: it is of no tokens
	Every   time.Duration // one token comes back
	Tokens  int           // left
	Next    time.Time     // a token; zero: there is one
	Running int           // attempts, sessions or connections that have one
	AtOnce  int           // as many may; 0: as many as come
	Waiting int           // attempts that wait for a slot; of Attempts alone
}

// Explain returns what the guard would say to an attempt at an account, as
// rewritten, from an address, at a service.
func (g *Guard) Explain(service, account string, addr netip.Addr) Explanation {
	g.lock()
	defer g.mu.Unlock()
	from := g.secret.originOf(addr)
	var c claim
	g.claim(&c, subject{
		policy: g.policyOf(service), from: from, trusted: g.trusts(from.addr), account: g.secret.account(account),
	}, g.latest)
	e := Explanation{
		Account: account, Network: from.prefix(), Tier: c.tier, Trusted: c.trusted,
		Learning: g.factor(g.latest) > 1, Shared: g.regulars.shared(from.network, g.latest),
	}
	if c.last > 0 {
		e.Last = g.wall(c.last)
	}
	if r := g.rings.get(c.account.with(from.area)); r != nil {
		e.Wrong = r.count(g.latest)
	}
	for i := range c.all() {
		e.Buckets = append(e.Buckets, g.state(&c, &c.needs[i]))
	}
	e.Buckets = append(e.Buckets, State{
		Bucket: Attempts, Running: g.slots.taken, AtOnce: g.slotsFor(c.tier.slot()), Waiting: g.slots.waiting(),
	})
	e.Buckets = append(e.Buckets, State{Bucket: Sessions, Running: int(g.sessions[c.pair()]), AtOnce: c.policy.Sessions})
	if !c.trusted {
		here := g.from[from.network]
		open, pending := g.mayHave(from)
		e.Buckets = append(e.Buckets,
			State{Bucket: Connections, Running: int(here.open), AtOnce: int(open)},
			State{Bucket: Logins, Running: int(here.pending()), AtOnce: int(pending)})
	}
	for _, s := range e.Buckets {
		if s.exhausted() {
			e.Refused = s.Bucket
			break
		}
	}
	return e
}

// exhausted reports whether an attempt is refused because of s: what others
// hold only for a moment it would wait for.
func (s State) exhausted() bool {
	switch s.Bucket {
	case Sessions, Connections, Logins:
		return s.Running >= s.AtOnce
	}
	return s.Burst > 0 && s.Tokens == 0
}

func (g *Guard) state(c *claim, n *need) State {
	s := State{
		Bucket: n.bucket, Burst: n.rate.Burst, Every: n.rate.Every,
		Running: int(g.flights[n.key].running), AtOnce: int(n.atOnce),
	}
	if n.rate.Burst == 0 {
		return s
	}
	full := g.full(c, n)
	s.Tokens = n.rate.tokens(full, g.latest)
	if next := n.rate.next(full, g.latest); next > 0 {
		s.Next = g.wall(g.latest + next)
	}
	return s
}

// wall returns what clocks on walls show at a time of the guard's.
func (g *Guard) wall(t time.Duration) time.Time { return g.config.Now().Add(t - g.latest) }

// A Refused is an account and a network that are being refused.
type Refused struct {
	Account string // empty if it never logged in: people type passwords for names
	Hash    string // of the account: the same for the same name
	Network netip.Prefix
	Tier    Tier
	Bucket  Bucket
	Count   int       // attempts refused
	Last    time.Time // of them
	Until   time.Time // an attempt would be made again
}

// most pairs of account and network that are remembered as refused.
const maxRefused = 1024

// refusals are what was refused lately.
type refusals struct {
	latest []denial // at most maxRefused
	next   int      // place
	index  map[[2]key]int
}

type denial struct {
	account, network key
	name             string
	prefix           netip.Prefix
	tier             Tier
	bucket           Bucket
	count            int
	last, until      time.Duration
}

// report remembers what is refused because a bucket is empty.
func (g *Guard) report(p *permit, account string, r *rejection) {
	g.stats.denied(r, g.latest)
	if r.retryAfter == 0 {
		return
	}
	c, all := &p.claim, &g.refused
	pair := [2]key{c.account, c.from.network}
	i, ok := all.index[pair]
	if !ok {
		i = all.place(pair)
		all.latest[i] = denial{account: c.account, network: c.from.network, prefix: c.from.prefix()}
		if g.regulars.accounts[c.account] != 0 {
			all.latest[i].name = account
		}
	}
	one := &all.latest[i]
	one.tier, one.bucket = r.tier, r.bucket
	one.count++
	one.last, one.until = g.latest, g.latest+r.retryAfter
}

// place returns the number of a place for a new pair: that of the first to come.
func (r *refusals) place(pair [2]key) int {
	i := r.next
	if i == len(r.latest) {
		r.latest = append(r.latest, denial{})
	} else {
		delete(r.index, [2]key{r.latest[i].account, r.latest[i].network})
	}
	if r.index == nil {
		r.index = make(map[[2]key]int)
	}
	r.index[pair] = i
	r.next = (i + 1) % maxRefused
	return i
}

// List returns the accounts and networks that are being refused, those first
// that were most often, of the last 1024 pairs.
func (g *Guard) List() []Refused {
	g.lock()
	defer g.mu.Unlock()
	var all []Refused
	for i := range g.refused.latest {
		d := &g.refused.latest[i]
		if d.until <= g.latest {
			continue
		}
		all = append(all, Refused{
			Account: d.name, Hash: fmt.Sprintf("%016x", uint64(d.account)), Network: d.prefix, Tier: d.tier,
			Bucket: d.bucket, Count: d.count, Last: g.wall(d.last), Until: g.wall(d.until),
		})
	}
	slices.SortFunc(all, func(a, b Refused) int { return b.Count - a.Count })
	return all
}

// Unlock gives an account, as rewritten, all its tokens back, from whatever
// network, and lets the backend judge its passwords again. What its networks
// owe stays.
func (g *Guard) Unlock(account string) {
	g.lock()
	defer g.mu.Unlock()
	a := g.secret.account(account)
	g.drop(func(b *bucket) bool { return b.account == uint32(a) })
	for _, pool := range g.pools {
		g.evicted.forget(a ^ pool)
	}
	for p := g.regulars.accounts[a]; p != 0; {
		k := g.regulars.at(p)
		k.full = 0
		p = k.ofAccount
	}
	for k, at := range g.unlocked {
		if g.latest-at > answered {
			delete(g.unlocked, k)
		}
	}
	g.unlocked[a] = g.latest
	g.refused.drop(func(d *denial) bool { return d.account == a })
}

// UnlockNetwork gives the network of an address, and those it is part of, all
// their tokens back, and its accounts those that they lost from there.
func (g *Guard) UnlockNetwork(addr netip.Addr) {
	g.lock()
	defer g.mu.Unlock()
	from := g.secret.originOf(addr)
	g.drop(func(b *bucket) bool { return b.network == uint32(from.network) })
	for _, k := range []key{
		from.network ^ g.salts[Network], from.network ^ g.salts[OAuth], from.wider[0] ^ g.salts[Network24],
		from.wider[0] ^ g.salts[Network56], from.wider[1] ^ g.salts[Network48],
	} {
		if b := g.buckets.get(k); b != nil {
			*b = bucket{}
		}
		g.evicted.forget(k)
	}
	for p := g.regulars.houses[from.network].first; p != 0; {
		k := g.regulars.at(p)
		k.full = 0
		p = k.ofNetwork
	}
	g.refused.drop(func(d *denial) bool { return d.network == from.network })
}

func (g *Guard) drop(match func(*bucket) bool) {
	for i := range segments {
		g.buckets.each(i, func(b *bucket) {
			if match(b) {
				*b = bucket{}
			}
		})
	}
}

func (r *refusals) drop(match func(*denial) bool) {
	for i := range r.latest {
		if d := &r.latest[i]; match(d) {
			delete(r.index, [2]key{d.account, d.network})
			*d = denial{}
		}
	}
}

// unlockedAt returns when an account was last unlocked, if that was just now.
func (g *Guard) unlockedAt(account key) time.Duration { return g.unlocked[account] }

// A Success is a login that took place, as a log tells.
type Success struct {
	Account string // as rewritten
	Addr    netip.Addr
	Time    time.Time
}

// Seed makes the networks of logins of the last 30 days known-good. It returns
// how many pairs of account and network were new.
func (g *Guard) Seed(logins []Success) (added int) {
	const atOnce = 256 // or logins would wait for long
	for some := range slices.Chunk(logins, atOnce) {
		added += g.seed(some)
	}
	return added
}

func (g *Guard) seed(logins []Success) (added int) {
	g.lock()
	defer g.mu.Unlock()
	for _, s := range logins {
		at := g.latest - g.config.Now().Sub(s.Time)
		if at > g.latest || at+g.config.KnownFor <= g.latest {
			continue
		}
		from := g.secret.originOf(s.Addr)
		if g.regulars.greet(g.secret.account(s.Account), from.network, from.area, at) {
			added++
		}
	}
	return added
}

var _ proxy.Permit = (*permit)(nil)
