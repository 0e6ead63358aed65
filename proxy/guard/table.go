package guard

import "time"

const (
	ways     = 8  // entries of a set; when it is full, the segment grows or an entry is evicted
	segments = 64 // each grows by itself, so that growing takes a short time
)

// An entry is an entry of a table.
type entry[E any] interface {
	*E
	id() key                                  // 0: the entry is free
	priority(now time.Duration) time.Duration // the entry with the least is evicted first; 0 or less: it is free
}

// A table is a set-associative hash table with a bounded number of entries, in arrays
// without pointers. It grows as needed. At its limit, an insertion evicts the entry of
// the set that has the least priority.
type table[E any, P entry[E]] struct {
	limit    int // entries of a segment
	segments [segments][]E
}

// newTable returns a table of limit entries, rounded up to a power of two, and at least 512.
func newTable[E any, P entry[E]](limit int) *table[E, P] {
	size := ways
	for size*segments < limit {
		size *= 2
	}
	return &table[E, P]{limit: size}
}

func (t *table[E, P]) set(k key) []E {
	segment := t.segments[k>>58]
	if len(segment) == 0 {
		return nil
	}
	first := int(k) & (len(segment) - 1) &^ (ways - 1)
	return segment[first : first+ways]
}

// get returns the entry of k, or nil. It is valid until the next put.
func (t *table[E, P]) get(k key) P {
	set := t.set(k)
	for i := range set {
		if e := P(&set[i]); e.id() == k {
			return e
		}
	}
	return nil
}

// put returns the entry of k, or a zero entry for it. It calls evict with the entry that
// is evicted for it, if any.
func (t *table[E, P]) put(k key, now time.Duration, evict func(P)) P {
	if e := t.get(k); e != nil {
		return e
	}
	var least P
	for {
		least = t.least(k, now)
		if least != nil && least.priority(now) <= 0 {
			break
		}
		if !t.grow(k, now) {
			evict(least)
			break
		}
	}
	var zero E
	*least = zero
	return least
}

// least returns the entry of k's set with the least priority.
func (t *table[E, P]) least(k key, now time.Duration) (least P) {
	set := t.set(k)
	for i := range set {
		if e := P(&set[i]); least == nil || e.priority(now) < least.priority(now) {
			least = e
		}
	}
	return least
}

// grow doubles the segment of k. It reports false if the segment is at its limit.
func (t *table[E, P]) grow(k key, now time.Duration) bool {
	old := t.segments[k>>58]
	if len(old) >= t.limit {
		return false
	}
	t.segments[k>>58] = make([]E, max(ways, 2*len(old)))
	for i := range old {
		if e := P(&old[i]); e.priority(now) > 0 {
			*t.least(e.id(), now) = *e // a set becomes two sets, so there is room
		}
	}
	return true
}

// each calls f with all entries of a segment that are not free.
func (t *table[E, P]) each(segment int, f func(P)) {
	s := t.segments[segment]
	for i := range s {
		if e := P(&s[i]); e.id() != 0 {
			f(e)
		}
	}
}
