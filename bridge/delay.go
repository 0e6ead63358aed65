package bridge

import (
	"errors"
	"maps"
	"sync"
	"time"

	"postern/proxy"
)

var errTooSoon = errors.New("account has logged in a moment ago")

// A LoginDelay enforces the least time between two logins of an account, RFC 2449
// section 6.5. Backends of the same accounts share one LoginDelay. Other machines do
// not see these logins. A LoginDelay must not be copied.
type LoginDelay struct {
	Every time.Duration

	mu    sync.Mutex
	last  map[string]time.Time // times of logins, kept for about twice Every
	swept time.Time
}

// enter returns a *proxy.Refusal if the account's last login is too recent. Else the
// caller must call done when the login has succeeded or failed: after a failed login the
// account may log in again at once. enter may be called on nil.
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
	case ok: // the delay counts from +OK
		d.last[account] = time.Now()
	case d.last[account].Equal(entered):
		delete(d.last, account)
	}
}

// sweep removes the logins older than Every, at most once in Every.
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
