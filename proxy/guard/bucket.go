package guard

import (
	"sync"
	"time"
)

// A key is the keyed hash of a network or an account. Two of them that meet
// share a budget; with 64 bits and a secret seed nobody can bring that about.
type key = uint64

// A bucket is a budget's use by one key, as the generic cell rate algorithm
// keeps it: one time, and no timer. A bucket that is full is not kept at all.
type bucket struct {
	full     time.Duration // when all that was spent will have come back
	reserved int           // by attempts that are not settled
}

const shardBits = 6 // 64 locks: a decision holds two of them for some 100 ns

// buckets are the buckets of one kind, of a bounded number.
type buckets struct {
	shards [1 << shardBits]shard
}

type shard struct {
	sync.Mutex
	rate  Rate
	limit int
	m     map[key]bucket
}

func newBuckets(r Rate, limit int) *buckets {
	b := new(buckets)
	for i := range b.shards {
		b.shards[i] = shard{rate: r, limit: max(1, limit>>shardBits), m: make(map[key]bucket)}
	}
	return b
}

func (b *buckets) of(k key) *shard { return &b.shards[k>>(64-shardBits)] }

// settle ends a reservation. Spent, its token comes back with time only.
func (b *buckets) settle(k key, now time.Duration, spent bool) {
	s := b.of(k)
	s.Lock()
	defer s.Unlock()
	s.settle(k, now, spent)
}

// A holding is what a bucket has for an attempt.
type holding uint8

const (
	empty     holding = iota
	token             // one at least
	unsettled         // none but what is reserved, and may come back
)

// has reports what there is.
func (s *shard) has(k key, now time.Duration) holding {
	b := s.m[k]
	all := time.Duration(s.rate.Burst) * s.rate.Every
	spent := max(0, b.full-now) + s.rate.Every
	switch {
	case spent+time.Duration(b.reserved)*s.rate.Every <= all:
		return token
	case spent <= all:
		return unsettled
	}
	return empty
}

func (s *shard) reserve(k key, now time.Duration) {
	b, ok := s.m[k]
	if !ok && len(s.m) >= s.limit {
		s.evict(now)
	}
	b.reserved++
	s.m[k] = b
}

// Without the reservation in a count of its own, a token that came back in
// time would come back a second time when an attempt is settled.
func (s *shard) settle(k key, now time.Duration, spent bool) {
	b := s.m[k]
	b.reserved--
	if spent {
		b.full = max(b.full, now) + s.rate.Every
	}
	if b.reserved == 0 && b.full <= now {
		delete(s.m, k)
		return
	}
	s.m[k] = b
}

// evict makes room: it forgets all it comes across that is full again, or the
// one that owes least of some at random. So who owes much stays, even when a
// million others owe a little. What is reserved is never forgotten; there is
// no more of that than connections.
func (s *shard) evict(now time.Duration) {
	const sample = 16
	var least key
	var owes time.Duration
	found, seen := false, 0
	for k, b := range s.m { // begins anywhere
		switch {
		case b.reserved > 0:
		case b.full <= now:
			delete(s.m, k)
		case !found || b.full < owes:
			least, owes, found = k, b.full, true
		}
		if seen++; seen == sample {
			break
		}
	}
	if found && len(s.m) >= s.limit {
		delete(s.m, least)
	}
}

// A broadcast tells all who wait that attempts were settled.
type broadcast struct {
	mu sync.Mutex
	c  chan struct{} // nil: nobody waits
}

// next returns a channel that is closed at the next tell.
func (b *broadcast) next() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.c == nil {
		b.c = make(chan struct{})
	}
	return b.c
}

func (b *broadcast) tell() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.c != nil {
		close(b.c)
		b.c = nil
	}
}
