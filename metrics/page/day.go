package page

import (
	"sync"
	"time"

	"postern/proxy"
)

// An outcome is how a login ended, as an operator tells them apart.
type outcome int

const (
	accepted  outcome = iota
	wrong             // the backend said so
	throttled         // by the guard, or too many connections
	failed            // ours or the backend's fault
	forbidden         // no TLS, a protocol that is switched off, no such mechanism, nonsense
	outcomes
)

var words = [outcomes]struct{ class, name, help string }{
	accepted:  {"ok", "Logged in", "the backend took the password"},
	wrong:     {"wrong", "Wrong password", "the backend refused it"},
	throttled: {"throttled", "Held back", "too many wrong passwords or connections: not asked"},
	failed:    {"failed", "Not possible", "a backend was away or too slow"},
	forbidden: {"forbidden", "Not allowed", "no TLS, protocol switched off, unknown mechanism"},
}

// outcomeOf returns outcomes for a client that left: that is no answer.
func outcomeOf(err error) outcome {
	if err == nil {
		return accepted
	}
	switch proxy.ReasonOf(err) {
	case 0:
		return outcomes
	case proxy.Wrong:
		return wrong
	case proxy.Throttled, proxy.TooMany, proxy.TooManySessions:
		return throttled
	case proxy.Malformed, proxy.Unsupported, proxy.ProtocolOff, proxy.Suspended, proxy.Plaintext, proxy.InUse:
		return forbidden
	}
	return failed
}

const (
	slotTime = 15 * time.Minute
	slotsDay = int(24 * time.Hour / slotTime)
)

// A slot is what came in a quarter of an hour.
type slot [outcomes]int

// A day counts by the quarter of an hour, and forgets after a day. The zero
// value is ready.
type day struct {
	mu   sync.Mutex
	ring [slotsDay]slot
	last int64 // number of the newest slot since 1970
}

func (d *day) add(now time.Time, o outcome) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.turn(now)
	d.ring[int(d.last)%slotsDay][o]++
}

// turn empties the slots that time has left behind. A clock that is set back
// counts in the newest one.
func (d *day) turn(now time.Time) {
	n := now.Unix() / int64(slotTime/time.Second)
	if n-d.last >= int64(slotsDay) {
		d.ring, d.last = [slotsDay]slot{}, n
	}
	for d.last < n {
		d.last++
		d.ring[int(d.last)%slotsDay] = slot{}
	}
}

// slots returns the day up to now, the oldest first.
func (d *day) slots(now time.Time) []slot {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.turn(now)
	all := make([]slot, slotsDay)
	for i := range all {
		all[i] = d.ring[(int(d.last)+1+i)%slotsDay]
	}
	return all
}
