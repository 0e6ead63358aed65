package guard

import "time"

const (
	ways     = 8  // entries of a set: one more makes a segment grow, or one of them go
	segments = 64 // so that one growing is short
)

// An entry is what a table keeps.
type entry[E any] interface {
	*E
	id() key                               // 0: a free place
	worth(now time.Duration) time.Duration // what would be lost with it; nothing: the place is as good as free
}

// A table keeps a bounded number of entries, in arrays without pointers. It
// grows as needed; once it is as large as it may be, the entry of a set that is
// worth least goes.
type table[E any, P entry[E]] struct {
	limit    int // entries of a segment
	segments [segments][]E
}

// newTable returns a table of limit entries, rounded to a power of two.
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

// put returns the entry of k, or the place for it, with zeros. What had to go
// for it is given to evict.
func (t *table[E, P]) put(k key, now time.Duration, evict func(P)) P {
	if e := t.get(k); e != nil {
		return e
	}
	var least P
	for {
		least = t.least(k, now)
		if least != nil && least.worth(now) <= 0 {
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

// least returns the entry of k's set that is worth least.
func (t *table[E, P]) least(k key, now time.Duration) (least P) {
	set := t.set(k)
	for i := range set {
		if e := P(&set[i]); least == nil || e.worth(now) < least.worth(now) {
			least = e
		}
	}
	return least
}

// grow doubles the segment of k, or reports that it may not grow.
func (t *table[E, P]) grow(k key, now time.Duration) bool {
	old := t.segments[k>>58]
	if len(old) >= t.limit {
		return false
	}
	t.segments[k>>58] = make([]E, max(ways, 2*len(old)))
	for i := range old {
		if e := P(&old[i]); e.worth(now) > 0 {
			*t.least(e.id(), now) = *e // a set of old is two of the new: there is room
		}
	}
	return true
}

// each calls f with all entries of a segment.
func (t *table[E, P]) each(segment int, f func(P)) {
	s := t.segments[segment]
	for i := range s {
		if e := P(&s[i]); e.id() != 0 {
			f(e)
		}
	}
}

// len returns the number of entries that are worth something.
func (t *table[E, P]) len(now time.Duration) (n int) {
	for i := range t.segments {
		t.each(i, func(e P) {
			if e.worth(now) > 0 {
				n++
			}
		})
	}
	return n
}

// A sketch remembers roughly, for any number of keys, when their buckets are
// full: a count-min sketch with times for counts. It may say later than is
// true, when all four cells are shared with others, but never earlier.
type sketch struct {
	rows [][cells]uint32 // seconds, rounded up; nil until it is needed
}

const (
	rows  = 4
	cells = 1 << 18
)

func (s *sketch) cell(row int, k key) *uint32 {
	return &s.rows[row][(uint64(k)*0x9e3779b97f4a7c15>>(row*15))%cells]
}

// raise remembers that the bucket of k is full at a time.
func (s *sketch) raise(k key, full time.Duration) {
	if s.rows == nil {
		s.rows = make([][cells]uint32, rows)
	}
	for row := range s.rows {
		cell := s.cell(row, k)
		*cell = max(*cell, uint32(full/time.Second)+1)
	}
}

// full returns when the bucket of k is full; 0 if it was never used.
func (s *sketch) full(k key) time.Duration {
	if s.rows == nil {
		return 0
	}
	least := ^uint32(0)
	for row := range s.rows {
		least = min(least, *s.cell(row, k))
	}
	return time.Duration(least) * time.Second
}

// forget makes the bucket of k full, and those that share its cells fuller.
func (s *sketch) forget(k key) {
	for row := range s.rows {
		*s.cell(row, k) = 0
	}
}
