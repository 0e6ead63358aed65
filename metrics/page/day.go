package page

import (
	"sync"
	"time"

	"postern/proxy"
)

// rows are what the page says about each outcome.
var rows = [proxy.Outcomes]struct{ class, name, help string }{
	proxy.OutcomeOK:        {"ok", "Logged in", "the backend took the password"},
	proxy.OutcomeWrong:     {"wrong", "Wrong password", "the backend refused it"},
	proxy.OutcomeThrottled: {"throttled", "Held back", "too many wrong passwords, not asked; or sooner than pop3.login_delay"},
	proxy.OutcomeFailed:    {"failed", "Not possible for now", "a backend was away or too slow, a mailbox in use, or too many connections"},
	proxy.OutcomeForbidden: {"forbidden", "Not allowed", "no TLS, protocol switched off, unknown mechanism"},
}

const (
	slotTime = 15 * time.Minute
	slotsDay = int(24 * time.Hour / slotTime)
)

// A slot is what came in a quarter of an hour.
type slot [proxy.Outcomes]int

// A day counts by the quarter of an hour, and forgets after a day. The zero
// value is ready.
type day struct {
	mu   sync.Mutex
	ring [slotsDay]slot
	last int64 // number of the newest slot since 1970
}

func (d *day) add(now time.Time, o proxy.Outcome) {
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
