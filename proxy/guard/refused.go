package guard

import (
	"fmt"
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

// maxRefused bounds the pairs of account and network that a refusedTable remembers.
const maxRefused = 1024

// A refusedTable has the pairs of account and network that were refused last. The
// Guard's lock protects it.
type refusedTable struct {
	entries []refusedEntry // at most maxRefused
	next    int            // index of the oldest entry, or of the next new one
	index   map[[2]key]int
}

type refusedEntry struct {
	account, network key
	name             string
	prefix           netip.Prefix
	tier             Tier
	bucket           Bucket
	count            int
	last, until      time.Duration
}

// entry returns the entry of a pair, and whether it is new. A new entry replaces the
// oldest one at the limit.
func (t *refusedTable) entry(account, network key) (e *refusedEntry, isNew bool) {
	pair := [2]key{account, network}
	if i, ok := t.index[pair]; ok {
		return &t.entries[i], false
	}
	i := t.next
	if i == len(t.entries) {
		t.entries = append(t.entries, refusedEntry{})
	} else {
		delete(t.index, [2]key{t.entries[i].account, t.entries[i].network})
	}
	if t.index == nil {
		t.index = make(map[[2]key]int)
	}
	t.index[pair] = i
	t.next = (i + 1) % maxRefused
	t.entries[i] = refusedEntry{account: account, network: network}
	return &t.entries[i], true
}

// removeMatching removes the entries that match.
func (t *refusedTable) removeMatching(match func(*refusedEntry) bool) {
	for i := range t.entries {
		if e := &t.entries[i]; match(e) {
			delete(t.index, [2]key{e.account, e.network})
			*e = refusedEntry{}
		}
	}
}

// recordRejection counts a rejected attempt, and remembers its account and network if a
// token bucket is empty.
func (g *Guard) recordRejection(p *permit, account string) {
	f := &p.found
	g.stats.countRejection(f, g.now)
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
			Account: e.name, Hash: fmt.Sprintf("%016x", uint64(e.account)), Network: e.prefix, Tier: e.tier,
			Bucket: e.bucket, Count: e.count, Last: g.wallTime(e.last), Until: g.wallTime(e.until),
		})
	}
	slices.SortFunc(all, func(a, b Refused) int { return b.Count - a.Count })
	return all
}
