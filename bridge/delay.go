package bridge

import (
	"errors"
	"maps"
	"sync"
	"time"

	"postern/proxy"
)

var errTooSoon = errors.New("account has logged in a moment ago")

// A LoginDelay is the least time between two logins of an account, RFC 2449
// section 6.5. Backends of the same accounts share one; other machines know
// nothing of it. It must not be copied.
type LoginDelay struct {
	Every time.Duration

	mu    sync.Mutex
	last  map[string]time.Time // logins, for about twice Every
	swept time.Time
}

// enter returns a Refusal if it is too soon for the account, else what to call
// when its login has succeeded or failed: who has failed may come again at
// once. It may be called on nil.
func (d *LoginDelay) enter(account string) (done func(ok bool), err error) {
	if d == nil {
		return func(bool) {}, nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	now := time.Now()
	d.sweep(now)
	if last, ok := d.last[account]; ok && now.Sub(last) < d.Every {
		return nil, &proxy.Refusal{Reason: proxy.TooSoon, Verified: true, Err: errTooSoon}
	}
	d.last[account] = now
	return func(ok bool) { d.leave(account, now, ok) }, nil
}

func (d *LoginDelay) leave(account string, entered time.Time, ok bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case ok: // it counts from +OK
		d.last[account] = time.Now()
	case d.last[account].Equal(entered):
		delete(d.last, account)
	}
}

// sweep forgets logins that no longer matter, all at once and not too often.
func (d *LoginDelay) sweep(now time.Time) {
	if d.last == nil {
		d.last = make(map[string]time.Time)
	}
	if now.Sub(d.swept) < d.Every {
		return
	}
	d.swept = now
	maps.DeleteFunc(d.last, func(_ string, last time.Time) bool { return now.Sub(last) >= d.Every })
}
