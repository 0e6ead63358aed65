package guard

import (
	"context"
	"time"

	"postern/proxy"
)

// Attempts at the backends have slots, Config.Attempts of them, all accounts'
// together. Who finds none waits in a queue: the slot of an attempt that ends
// goes to the first there, so that nobody overtakes and each end wakes one.
//
// Known-good networks have a lane of their own and four of five turns. Three
// quarters of the slots are for strangers, and all of them while the guard
// learns, when everybody is one.

// knownTurns is how many turns in a row known-good networks have while others
// wait, too.
const knownTurns = 4

// A slot says whose the one is that an attempt has.
type slot uint8

const (
	noSlot       slot = iota
	knownSlot         // of a known-good network
	strangerSlot      // of another one
)

func (t Tier) slot() slot {
	if t == KnownGood {
		return knownSlot
	}
	return strangerSlot
}

// slots are those that are taken, and who waits for one.
type slots struct {
	taken     int
	strangers int // of them
	known     lane
	others    lane
	turn      int // of known-good networks in a row
}

// A lane is those who wait, in the order in which they came.
type lane struct {
	first, last *waiter
	waiting     int
}

// A waiter is an attempt in a lane.
type waiter struct {
	slot       slot
	handed     bool          // the slot is taken, and its own
	ready      chan struct{} // closed then
	prev, next *waiter
}

func (l *lane) add(w *waiter) {
	w.prev = l.last
	if l.last != nil {
		l.last.next = w
	} else {
		l.first = w
	}
	l.last = w
	l.waiting++
}

func (l *lane) remove(w *waiter) {
	if w.prev != nil {
		w.prev.next = w.next
	} else {
		l.first = w.next
	}
	if w.next != nil {
		w.next.prev = w.prev
	} else {
		l.last = w.prev
	}
	w.prev, w.next = nil, nil
	l.waiting--
}

func (q *slots) lane(p slot) *lane {
	if p == knownSlot {
		return &q.known
	}
	return &q.others
}

// waiting returns how many wait for a slot.
func (q *slots) waiting() int { return q.known.waiting + q.others.waiting }

// slotsFor returns how many attempts that want p may be under way.
func (g *Guard) slotsFor(p slot) int {
	all := g.config.Attempts
	if p == strangerSlot && g.factor(g.latest) == 1 {
		return all - all/4
	}
	return all
}

// free reports whether there is a slot for p.
func (g *Guard) free(p slot) bool {
	return g.slots.taken < g.config.Attempts && (p == knownSlot || g.slots.strangers < g.slotsFor(p))
}

// takeSlot takes a slot, unless there is none or others wait for it. A slot that
// was handed over stays; the tier may have become another one meanwhile, and then
// it may be a place for strangers that others wait for.
func (g *Guard) takeSlot(a *attempt, want slot) bool {
	q := &g.slots
	if a.slot == noSlot && (q.lane(want).waiting > 0 || !g.free(want)) {
		return false
	}
	before := a.slot
	q.count(before, -1)
	q.count(want, +1)
	a.slot = want
	if before == strangerSlot && want == knownSlot {
		g.handOver()
	}
	return true
}

// freeSlot gives the attempt's slot, if it has one, to the next who waits.
func (g *Guard) freeSlot(a *attempt) {
	if a.slot == noSlot {
		return
	}
	g.slots.count(a.slot, -1)
	a.slot = noSlot
	g.handOver()
}

func (q *slots) count(p slot, n int) {
	if p == noSlot {
		return
	}
	q.taken += n
	if p == strangerSlot {
		q.strangers += n
	}
}

// handOver gives free slots to those who wait.
func (g *Guard) handOver() {
	q := &g.slots
	for w := g.next(); w != nil; w = g.next() {
		q.lane(w.slot).remove(w)
		q.count(w.slot, +1)
		w.handed = true
		close(w.ready)
	}
}

// next returns whose turn it is, or nil.
func (g *Guard) next() *waiter {
	q := &g.slots
	known, other := q.known.first, q.others.first
	if !g.free(knownSlot) {
		return nil
	}
	if other != nil && !g.free(strangerSlot) {
		other = nil
	}
	switch {
	case known == nil:
		return other
	case other == nil:
		return known
	case q.turn < knownTurns:
		q.turn++
		return known
	}
	q.turn = 0
	return other
}

// queue waits for a slot, and reports whether the attempt has got one. The guard
// is locked, but while it waits. A full queue takes nobody who comes for the
// first time.
func (p *permit) queue(wait *patience, first bool) bool {
	g, q := p.guard, &p.guard.slots
	if first && q.waiting() >= g.config.Connections {
		return false
	}
	w := &waiter{slot: p.claim.tier.slot(), ready: make(chan struct{})}
	q.lane(w.slot).add(w)
	g.mu.Unlock()
	g.await(w.ready, wait)
	g.lock()
	if !w.handed {
		q.lane(w.slot).remove(w)
		return false
	}
	p.slot = w.slot
	if wait.left() { // in that moment
		g.freeSlot(p.attempt)
		return false
	}
	return true
}

// A patience bounds how long an attempt waits. The zero value has not begun.
type patience struct {
	timer *time.Timer
	gone  <-chan struct{} // closed when the client is, or has to go
	stop  func()
}

// begin lets it begin, if it has not.
func (w *patience) begin(ctx context.Context, l *proxy.Login, d time.Duration) {
	if w.timer != nil {
		return
	}
	w.timer, w.stop = time.NewTimer(d), func() {}
	if l.Watch != nil {
		ctx, w.stop = l.Watch(ctx)
	}
	w.gone = ctx.Done()
}

// end must be called once. The guard must not be locked.
func (w *patience) end() {
	if w.timer != nil {
		w.timer.Stop()
		w.stop()
	}
}

// left reports whether nobody waits any more for what the attempt gives.
func (w *patience) left() bool {
	select {
	case <-w.gone:
		return true
	default:
		return false
	}
}
