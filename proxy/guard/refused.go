package guard

import (
	"net/netip"
	"slices"
	"time"
)

// A Refused is an account and a network whose attempts are being refused.
type Refused struct {
	Account string // empty if the account has never logged in: people type passwords into the field for the name
	Hash    string // of the account
	Network netip.Prefix
	Tier    Tier
	Bucket  Bucket
	Count   int       // refused attempts
	Last    time.Time // last refused attempt
	Until   time.Time // when there is a token again
}

// recordRejection counts a rejected attempt, and remembers its account and network if a
// token bucket is empty.
func (g *Guard) recordRejection(p *permit, account string) {
	f := &p.found
	if f.bucket == NoBucket { // the same wrong password again
		g.stats.countRepeat(g.now)
	} else {
		g.stats.countDenied(g.now)
	}
	if f.retryAfter == 0 {
		return
	}
	from := &p.demand.from
	e, isNew := g.refused.entry(p.demand.account, from.network)
	if isNew {
		e.prefix = from.prefix()
		if g.known.hasAccount(p.demand.account) {
			e.name = account
		}
	}
	e.tier, e.bucket = f.tier, f.bucket
	e.count++
	e.last, e.until = g.now, g.now+f.retryAfter
}

// List returns the accounts and networks whose attempts are being refused, of the last
// 1024 pairs, those with the most refused attempts first.
func (g *Guard) List() []Refused {
	g.lock()
	defer g.mu.Unlock()
	var all []Refused
	for i := range g.refused.entries {
		e := &g.refused.entries[i]
		if e.until <= g.now {
			continue
		}
		all = append(all, Refused{
			Account: e.name, Hash: e.account.String(), Network: e.prefix, Tier: e.tier,
			Bucket: e.bucket, Count: e.count, Last: g.wallTime(e.last), Until: g.wallTime(e.until),
		})
	}
	slices.SortFunc(all, func(a, b Refused) int { return b.Count - a.Count })
	return all
}
