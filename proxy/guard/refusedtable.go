package guard

import (
	"net/netip"
	"time"
)

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
