package page

import (
	"sync"
	"time"

	"postern/proxy"
)

// rows are what the page says about each outcome.
var rows = [proxy.Outcomes]struct{ class, name, help string }{
	proxy.OutcomeOK:        {"ok", "Logged in", "the backend accepted the password"},
	proxy.OutcomeWrong:     {"wrong", "Wrong password", "the backend refused it"},
	proxy.OutcomeThrottled: {"throttled", "Rate limit", "a limit of the login guard, or pop3.login_delay: the backend was not asked"},
	proxy.OutcomeFailed:    {"failed", "Temporary failure", "a backend was down, too slow or at its limit, or a mailbox was in use"},
	proxy.OutcomeForbidden: {"forbidden", "Not allowed", "no TLS, protocol off for the account, unknown mechanism"},
}

const (
	slotTime = 15 * time.Minute
	slotsDay = int(24 * time.Hour / slotTime)
)

// A slot counts the logins of a quarter of an hour.
type slot [proxy.Outcomes]int

// A day counts the logins of the last 24 hours by the quarter of an hour. The zero
// value is ready to use.
type day struct {
	mu   sync.Mutex
	ring [slotsDay]slot
	last int64 // number of the newest slot since 1970
}

// add counts a login that ends with o at now.
func (d *day) add(now time.Time, o proxy.Outcome) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.advance(now)
	d.ring[int(d.last)%slotsDay][o]++
}

// advance empties the slots that are older than a day at now. When the clock is set
// back, the newest slot counts.
func (d *day) advance(now time.Time) {
	n := now.Unix() / int64(slotTime/time.Second)
	if n-d.last >= int64(slotsDay) {
		d.ring, d.last = [slotsDay]slot{}, n
	}
	for d.last < n {
		d.last++
		d.ring[int(d.last)%slotsDay] = slot{}
	}
}

// slots returns the slots of the day up to now, the oldest first.
func (d *day) slots(now time.Time) []slot {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.advance(now)
	all := make([]slot, slotsDay)
	for i := range all {
		all[i] = d.ring[(int(d.last)+1+i)%slotsDay]
	}
	return all
}
