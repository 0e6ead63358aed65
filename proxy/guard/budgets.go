package guard

import "time"

// How many attempts may be under way, and how much larger the budgets of networks are
// while the guard learns.
const (
	pairLimit      = 1
	networkLimit   = 8 // and one more for each account that uses the network
	strangerLimit  = 4
	learningFactor = 5
)

// nistBudget is the budget of StrictNIST: NIST SP 800-63B section 3.2.2 counts
// consecutive failures, however much time is between them.
var nistBudget = Rate{Burst: 100, Every: 365 * 24 * time.Hour}

// demand writes into d what an attempt requires now.
func (g *Guard) demand(d *demand, s subject) {
	*d = demand{subject: s, history: g.known.history(s.account, s.from.network, s.from.area, g.now)}
	d.tier = g.tier(d)
	if d.tier == KnownGood {
		g.requireKnown(d)
	} else {
		g.requireUnknown(d)
	}
}

func (g *Guard) tier(d *demand) Tier {
	t := StrangerFresh
	switch {
	case d.known != nil:
		return KnownGood
	case d.area:
		t = AreaFresh
	}
	if g.buckets.triesToday(d.pair(), g.now) > maxFreshTries {
		t++ // from fresh to used
	}
	return t
}

func (g *Guard) requireKnown(d *demand) {
	pair, salts := d.pair(), &g.buckets.salts
	if d.token {
		d.require(requirement{bucket: OAuth, key: pair ^ salts[OAuth], rate: d.limits.OAuth})
		return
	}
	d.require(requirement{bucket: Known, key: pair ^ salts[Known], rate: d.limits.Known})
	d.require(requirement{bucket: Pair, key: pair ^ salts[Pair], limit: pairLimit})
}

func (g *Guard) requireUnknown(d *demand) {
	accounts, factor := g.known.activeAccounts(d.from.network, g.now), g.factor()
	salts := &g.buckets.salts
	if !d.token {
		g.requireAccount(d)
	}
	if d.tier.stranger() {
		d.require(requirement{bucket: Strangers, key: d.account ^ salts[Strangers], limit: strangerLimit})
	}
	if d.trusted {
		return
	}
	network := requirement{bucket: Network, key: d.from.network ^ salts[Network], limit: int32((networkLimit + accounts) * factor)}
	if d.token {
		d.require(network)
		d.require(requirement{bucket: OAuth, key: d.from.network ^ salts[OAuth], rate: d.limits.OAuth.sharedBy(accounts).times(factor)})
		return
	}
	network.rate = d.limits.Network.sharedBy(accounts).times(factor)
	d.require(network)
	if d.tier.stranger() && d.from.hasWider {
		g.requireWider(d, factor)
	}
}

func (g *Guard) requireAccount(d *demand) {
	salts := &g.buckets.salts
	d.require(requirement{bucket: Pair, key: d.pair() ^ salts[Pair], rate: d.limits.Pair, limit: pairLimit})
	d.require(requirement{bucket: Account, key: d.account ^ g.buckets.pools[d.tier], rate: d.limits.Account})
	if d.limits.StrictNIST {
		d.require(requirement{bucket: Consecutive, key: d.account ^ salts[Consecutive], rate: nistBudget})
	}
}

func (g *Guard) requireWider(d *demand, factor int) {
	salts := &g.buckets.salts
	if !d.from.isIPv6 {
		d.require(requirement{bucket: Network24, key: d.from.wider[0] ^ salts[Network24], rate: d.limits.Network24.times(factor)})
		return
	}
	d.require(requirement{bucket: Network56, key: d.from.wider[0] ^ salts[Network56], rate: d.limits.Network56.times(factor)})
	d.require(requirement{bucket: Network48, key: d.from.wider[1] ^ salts[Network48], rate: d.limits.Network48.times(factor)})
}

// learning reports whether the guard still learns which accounts use which networks.
func (g *Guard) learning() bool { return g.now < g.learningEnd }

// factor returns how much larger the budgets of networks are now.
func (g *Guard) factor() int {
	if g.learning() {
		return learningFactor
	}
	return 1
}

// fullAt returns when the bucket of r is full.
func (g *Guard) fullAt(d *demand, r *requirement) time.Duration {
	if r.bucket == Known {
		return d.known.fullAt
	}
	return g.buckets.fullAt(r.key, r.bucket)
}

// availability returns the least availability of the required tokens, and the
// requirement that has it.
func (g *Guard) availability(d *demand) (least availability, scarcest *requirement) {
	least = tokenAvailable
	for i := range d.all() {
		r := &d.requirements[i]
		if r.rate.Burst == 0 {
			continue
		}
		if a := r.rate.availability(g.fullAt(d, r), g.now, g.inFlight[r.key].reserved); a < least {
			least, scarcest = a, r
		}
	}
	return least, scarcest
}

// spend takes a token from each bucket that d requires.
func (g *Guard) spend(d *demand) {
	for i := range d.all() {
		r := &d.requirements[i]
		switch {
		case r.rate.Burst == 0:
		case r.bucket == Known: // d.known may have been removed since
			if k := g.known.find(d.account, d.from.network); k != nil {
				k.fullAt = r.rate.spend(k.fullAt, g.now)
			}
		default:
			b := g.buckets.bucketOf(r.key, r.bucket, d.account, d.from.network, g.now)
			b.fullAt = r.rate.spend(b.fullAt, g.now)
			if r.bucket == Pair {
				b.countTry(g.now)
			}
		}
	}
}

// countRefused counts a refused attempt from a fresh network. Otherwise thousands of
// networks, most of which never get a token, would stay fresh and use up the tokens of
// new networks.
func (g *Guard) countRefused(d *demand) {
	if d.token || d.tier != AreaFresh && d.tier != StrangerFresh {
		return
	}
	for i := range d.all() {
		if r := &d.requirements[i]; r.bucket == Pair {
			g.buckets.bucketOf(r.key, r.bucket, d.account, d.from.network, g.now).countTry(g.now)
		}
	}
}

// slotLimits returns the present limits.
func (g *Guard) slotLimits() slotLimits {
	l := slotLimits{all: g.config.Attempts, strangers: g.config.Attempts}
	if !g.learning() {
		l.strangers -= l.all / 4
	}
	return l
}
