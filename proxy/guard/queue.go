package guard

// Attempts of all accounts share Config.Attempts slots at the backends. An attempt
// that finds no slot waits in a FIFO queue. The slot of an attempt that ends goes
// directly to the first waiter, so that new attempts do not overtake, and each end
// wakes one waiter.
//
// Attempts from known-good networks have a queue of their own, which gets four of five
// slots that become free. Strangers may have at most three quarters of the slots, but
// all of them while the guard learns, when everybody is a stranger.

// maxKnownInRow is how many slots in a row known-good networks get while strangers
// wait.
const maxKnownInRow = 4

// A slotKind says who may use a slot.
type slotKind uint8

const (
	noSlot       slotKind = iota
	knownSlot             // an attempt from a known-good network
	strangerSlot          // any other attempt
)

func (t Tier) slotKind() slotKind {
	if t == KnownGood {
		return knownSlot
	}
	return strangerSlot
}

// slotLimits are how many slots there are.
type slotLimits struct{ all, strangers int }

func (l slotLimits) of(kind slotKind) int {
	if kind == strangerSlot {
		return l.strangers
	}
	return l.all
}

// A slotQueue counts the slots in use and has the waiters. The Guard's lock protects
// it.
type slotQueue struct {
	inUse      int
	strangers  int // of inUse
	known      waitList
	others     waitList
	knownInRow int
}

// A waitList is a linked list of waiters in the order of their arrival.
type waitList struct {
	first, last *waiter
	length      int
}

// A waiter is an attempt that waits for a slot.
type waiter struct {
	kind       slotKind
	hasSlot    bool
	ready      chan struct{} // closed when hasSlot is set
	prev, next *waiter
}

func (l *waitList) add(w *waiter) {
	w.prev = l.last
	if l.last != nil {
		l.last.next = w
	} else {
		l.first = w
	}
	l.last = w
	l.length++
}

func (l *waitList) remove(w *waiter) {
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
	l.length--
}

func (q *slotQueue) list(kind slotKind) *waitList {
	if kind == knownSlot {
		return &q.known
	}
	return &q.others
}

// waiting returns how many attempts wait for a slot.
func (q *slotQueue) waiting() int { return q.known.length + q.others.length }

// available reports whether there is a free slot.
func (q *slotQueue) available(kind slotKind, limits slotLimits) bool {
	return q.inUse < limits.all && (kind == knownSlot || q.strangers < limits.strangers)
}

// acquire takes a slot into held, unless none is available or other attempts wait for
// one. An attempt that already holds a slot keeps it. Its kind may have changed while
// the attempt waited; if it was a slot for strangers, the next stranger gets one.
func (q *slotQueue) acquire(held *slotKind, kind slotKind, limits slotLimits) bool {
	if *held == noSlot && (q.list(kind).length > 0 || !q.available(kind, limits)) {
		return false
	}
	before := *held
	q.count(before, -1)
	q.count(kind, +1)
	*held = kind
	if before == strangerSlot && kind == knownSlot {
		q.dispatch(limits)
	}
	return true
}

// release gives the slot in held, if there is one, to the next waiter.
func (q *slotQueue) release(held *slotKind, limits slotLimits) {
	if *held == noSlot {
		return
	}
	q.count(*held, -1)
	*held = noSlot
	q.dispatch(limits)
}

func (q *slotQueue) count(kind slotKind, n int) {
	if kind == noSlot {
		return
	}
	q.inUse += n
	if kind == strangerSlot {
		q.strangers += n
	}
}

// dispatch gives available slots to waiters.
func (q *slotQueue) dispatch(limits slotLimits) {
	for w := q.next(limits); w != nil; w = q.next(limits) {
		q.list(w.kind).remove(w)
		q.count(w.kind, +1)
		w.hasSlot = true
		close(w.ready)
	}
}

// next returns the waiter who gets the next slot, or nil.
func (q *slotQueue) next(limits slotLimits) *waiter {
	known, other := q.known.first, q.others.first
	if !q.available(knownSlot, limits) {
		return nil
	}
	if other != nil && !q.available(strangerSlot, limits) {
		other = nil
	}
	switch {
	case known == nil:
		return other
	case other == nil:
		return known
	case q.knownInRow < maxKnownInRow:
		q.knownInRow++
		return known
	}
	q.knownInRow = 0
	return other
}
