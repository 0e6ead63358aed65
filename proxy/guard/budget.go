package guard

import "time"

// A Tier is how well an account knows the network that an attempt comes from.
type Tier uint8

// The tiers. Those but KnownGood have a pool of the account's budget each, so
// that whoever empties one leaves the others.
const (
	KnownGood     Tier = iota // it logged in from there in the last 30 days
	AreaFresh                 // it logged in from the area; at most 2 attempts from the network in 24 h were wrong or refused
	AreaUsed                  // the same, after more of them
	StrangerFresh             // neither; at most 2 such attempts
	StrangerUsed
	tiers
)

// String returns the tier's name in logs.
func (t Tier) String() string {
	return [...]string{"known_good", "area_fresh", "area_used", "stranger_fresh", "stranger_used", "unknown"}[min(t, tiers)]
}

// MarshalText implements encoding.TextMarshaler.
func (t Tier) MarshalText() ([]byte, error) { return []byte(t.String()), nil }

func (t Tier) stranger() bool { return t == StrangerFresh || t == StrangerUsed }

// fresh is how many attempts of a network at an account may have been wrong or
// refused in a day, and the network still counts as fresh.
const fresh = 2

// A Bucket is what an attempt needs one of.
type Bucket uint8

// The buckets. The last ones are of no tokens: so many at once, no more.
const (
	NoBucket    Bucket = iota
	Known              // the account's from a known-good network
	Pair               // the account's from the network
	Network            // the network's: IPv4 /32, IPv6 /64
	Network24          // the IPv4 /24's
	Network56          // the IPv6 /56's
	Network48          // the IPv6 /48's
	Account            // the account's: which of four pools, the Tier says
	Consecutive        // the account's wrong passwords since it last logged in (StrictNIST)
	OAuth              // refused tokens of more than 256 octets of the network
	Strangers          // attempts of strangers for the account
	Attempts           // attempts at all: see slots
	Sessions           // the account's sessions from the network
	Connections        // the network's
	Logins             // the network's connections that are not logged in
	bucketKinds
)

// String returns the bucket's name in logs.
func (b Bucket) String() string {
	return [...]string{
		"none", "known_good", "pair", "network", "network_24", "network_56", "network_48",
		"account", "consecutive", "oauth", "strangers", "attempts", "sessions",
		"connections", "logins", "unknown",
	}[min(b, bucketKinds)]
}

// MarshalText implements encoding.TextMarshaler.
func (b Bucket) MarshalText() ([]byte, error) { return []byte(b.String()), nil }

// How many attempts may be under way.
const (
	pairAtOnce     = 1
	networkAtOnce  = 8 // and one for each account that uses the network
	strangerAtOnce = 4
	learningFactor = 5
)

// hundred is the budget of StrictNIST: NIST SP 800-63B section 3.2.2 counts
// failures in a row, whatever the time between them.
var hundred = Rate{Burst: 100, Every: 365 * 24 * time.Hour}

// A need is one thing that an attempt needs: a token, or to be one of so many.
type need struct {
	bucket Bucket
	key    key
	rate   Rate  // zero: no token
	atOnce int32 // zero: as many as come
}

// A subject is what an attempt is about.
type subject struct {
	policy  *Config
	from    origin
	trusted bool
	account key
	token   bool // a bearer token that is no password
}

func (s *subject) pair() key { return s.account.with(s.from.network) }

// A claim is all that an attempt needs, but for a slot at the backends.
type claim struct {
	subject
	familiarity
	tier  Tier
	needs [7]need
	count int
}

func (c *claim) need(n need) {
	c.needs[c.count] = n
	c.count++
}

func (c *claim) all() []need { return c.needs[:c.count] }

// claim returns what an attempt needs now.
func (g *Guard) claim(c *claim, s subject, now time.Duration) {
	*c = claim{subject: s, familiarity: g.regulars.look(s.account, s.from.network, s.from.area, now)}
	c.tier = g.tier(c, now)
	if c.tier == KnownGood {
		g.claimKnown(c)
	} else {
		g.claimUnknown(c, now)
	}
}

func (g *Guard) tier(c *claim, now time.Duration) Tier {
	t := StrangerFresh
	switch {
	case c.known != nil:
		return KnownGood
	case c.area:
		t = AreaFresh
	}
	if b := g.buckets.get(c.pair() ^ g.salts[Pair]); b != nil && b.triesIn(now) > fresh {
		t++
	}
	return t
}

func (g *Guard) claimKnown(c *claim) {
	pair := c.pair()
	if c.token {
		c.need(need{bucket: OAuth, key: pair ^ g.salts[OAuth], rate: c.policy.OAuth})
		return
	}
	c.need(need{bucket: Known, key: pair ^ g.salts[Known], rate: c.policy.Known})
	c.need(need{bucket: Pair, key: pair ^ g.salts[Pair], atOnce: pairAtOnce})
}

func (g *Guard) claimUnknown(c *claim, now time.Duration) {
	shared, factor := g.regulars.shared(c.from.network, now), g.factor(now)
	if !c.token {
		g.claimAccount(c)
	}
	if c.tier.stranger() {
		c.need(need{bucket: Strangers, key: c.account ^ g.salts[Strangers], atOnce: strangerAtOnce})
	}
	if c.trusted {
		return
	}
	network := need{bucket: Network, key: c.from.network ^ g.salts[Network], atOnce: int32((networkAtOnce + shared) * factor)}
	if c.token {
		c.need(network)
		c.need(need{bucket: OAuth, key: c.from.network ^ g.salts[OAuth], rate: c.policy.OAuth.shared(shared).times(factor)})
		return
	}
	network.rate = c.policy.Network.shared(shared).times(factor)
	c.need(network)
	if c.tier.stranger() && c.from.hasWider {
		g.claimWider(c, factor)
	}
}

func (g *Guard) claimAccount(c *claim) {
	c.need(need{bucket: Pair, key: c.pair() ^ g.salts[Pair], rate: c.policy.Pair, atOnce: pairAtOnce})
	c.need(need{bucket: Account, key: c.account ^ g.pools[c.tier], rate: c.policy.Account})
	if c.policy.StrictNIST {
		c.need(need{bucket: Consecutive, key: c.account ^ g.salts[Consecutive], rate: hundred})
	}
}

func (g *Guard) claimWider(c *claim, factor int) {
	if !c.from.isIPv6 {
		c.need(need{bucket: Network24, key: c.from.wider[0] ^ g.salts[Network24], rate: c.policy.Network24.times(factor)})
		return
	}
	c.need(need{bucket: Network56, key: c.from.wider[0] ^ g.salts[Network56], rate: c.policy.Network56.times(factor)})
	c.need(need{bucket: Network48, key: c.from.wider[1] ^ g.salts[Network48], rate: c.policy.Network48.times(factor)})
}

// factor is how much larger budgets of networks are while the guard learns who
// lives where.
func (g *Guard) factor(now time.Duration) int {
	if now < g.learning {
		return learningFactor
	}
	return 1
}

// full returns when the bucket of n is full.
func (g *Guard) full(c *claim, n *need) time.Duration {
	if n.bucket == Known {
		return c.known.full
	}
	if b := g.buckets.get(n.key); b != nil {
		return b.full
	}
	if n.bucket == Consecutive { // would be for ever, for others as well
		return 0
	}
	return g.evicted.full(n.key)
}

// has reports what the buckets have for c, and which need is met worst.
func (g *Guard) has(c *claim, now time.Duration) (worst holding, which *need) {
	worst = token
	for i := range c.all() {
		n := &c.needs[i]
		if n.rate.Burst == 0 {
			continue
		}
		if has := n.rate.has(g.full(c, n), now, g.flights[n.key].reserved); has < worst {
			worst, which = has, n
		}
	}
	return worst, which
}

// spend takes a token of each bucket.
func (g *Guard) spend(c *claim, now time.Duration) {
	for i := range c.all() {
		n := &c.needs[i]
		switch {
		case n.rate.Burst == 0:
		case n.bucket == Known: // looked for again: it may have had to go meanwhile
			if k := g.regulars.find(c.account, c.from.network); k != nil {
				k.full = n.rate.spend(k.full, now)
			}
		default:
			g.spendOf(c, n, now)
		}
	}
}

func (g *Guard) spendOf(c *claim, n *need, now time.Duration) {
	b := g.bucketOf(c, n, now)
	b.full = n.rate.spend(b.full, now)
	if n.bucket == Pair {
		b.try(now)
	}
}

// tried counts a refused attempt of a fresh network. Without it thousands of
// networks, most of which never get a token, would stay fresh, and use up what
// newcomers have.
func (g *Guard) tried(c *claim, now time.Duration) {
	if c.token || c.tier != AreaFresh && c.tier != StrangerFresh {
		return
	}
	for i := range c.all() {
		if n := &c.needs[i]; n.bucket == Pair {
			g.bucketOf(c, n, now).try(now)
		}
	}
}

// bucketOf returns the bucket of n, to be changed.
func (g *Guard) bucketOf(c *claim, n *need, now time.Duration) *bucket {
	full := g.full(c, n)
	b := g.buckets.put(n.key, now, g.evict)
	b.key, b.kind, b.full = n.key, n.bucket, full
	switch n.bucket {
	case Pair:
		b.account, b.network = uint32(c.account), uint32(c.from.network)
	case Account, Consecutive:
		b.account = uint32(c.account)
	case Network, OAuth:
		b.network = uint32(c.from.network)
	}
	return b
}

// evict keeps the debt of a bucket that has to go: that is no amnesty.
func (g *Guard) evict(b *bucket) {
	if b.kind != Consecutive && b.full > g.latest {
		g.evicted.raise(b.key, b.full)
		g.stats.evictions++
	}
}

// A bucket is a budget's use under one key.
type bucket struct {
	key              key
	full             time.Duration // when all that was spent will have come back
	since            uint32        // of tries, in seconds
	account, network uint32        // whose it is, to find it when that is unlocked: half of the key, or 0
	kind             Bucket
	tries            uint8 // wrong or refused, in the day that began with since
}

func (b *bucket) id() key { return b.key }

// worth is the time that is owed; of Consecutive, in proportion. A pair that
// owes nothing is still worth a little while it is not fresh.
func (b *bucket) worth(now time.Duration) time.Duration {
	owed := max(0, b.full-now)
	switch {
	case b.kind == Consecutive:
		return owed / 1000
	case owed == 0 && b.triesIn(now) > 0:
		return 1
	}
	return owed
}

const day = 24 * time.Hour

func (b *bucket) triesIn(now time.Duration) uint8 {
	if b.tries == 0 || now-time.Duration(b.since)*time.Second >= day {
		return 0
	}
	return b.tries
}

func (b *bucket) try(now time.Duration) {
	if b.tries = b.triesIn(now); b.tries == 0 {
		b.since = uint32(now / time.Second)
	}
	if b.tries < 255 {
		b.tries++
	}
}
