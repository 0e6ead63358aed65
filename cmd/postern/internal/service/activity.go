package service

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"postern/proxy"
)

// An activity is a proxy.Observer of what the command status shows and nothing else
// counts: how long the backends took to accept the last logins, and bugs.
type activity struct {
	panics atomic.Int64

	mu     sync.Mutex
	logins map[loginsKey]*loginTimes
}

// A loginsKey is a backend's name and protocol. Both come from the configuration, so
// there are few.
type loginsKey struct{ backend, protocol string }

// loginWindow is the time, and len(loginTimes.all) the number of logins, beyond which a
// login is no longer counted.
const loginWindow = 15 * time.Minute

// loginTimes are the times that a backend took to accept its last logins: a ring.
type loginTimes struct {
	all  [256]struct{ at, took time.Duration } // at: since begun
	n    int                                   // written, ever
	base time.Time
}

// Observe implements proxy.Observer.
func (a *activity) Observe(e proxy.Event) {
	switch e := e.(type) {
	case proxy.Panicked:
		a.panics.Add(1)
	case proxy.BackendLogin:
		if e.Err == nil { // servers answer a wrong password late on purpose
			a.add(loginsKey{e.Backend, e.Protocol}, e.Duration)
		}
	}
}

func (a *activity) add(key loginsKey, took time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.logins == nil {
		a.logins = make(map[loginsKey]*loginTimes)
	}
	t := a.logins[key]
	if t == nil {
		t = &loginTimes{base: time.Now()}
		a.logins[key] = t
	}
	entry := &t.all[t.n%len(t.all)]
	entry.at, entry.took = time.Since(t.base), took
	t.n++
}

// percentiles returns the number of the last logins at a backend, and the times that
// half of them and 95 of 100 of them did not exceed. n is 0 if there was none within
// loginWindow.
func (a *activity) percentiles(key loginsKey) (n int, p50, p95 time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	t := a.logins[key]
	if t == nil {
		return 0, 0, 0
	}
	now := time.Since(t.base)
	var took []time.Duration
	for _, entry := range t.all[:min(t.n, len(t.all))] {
		if now-entry.at <= loginWindow {
			took = append(took, entry.took)
		}
	}
	if took == nil {
		return 0, 0, 0
	}
	slices.Sort(took)
	at := func(percent int) time.Duration { return took[(len(took)*percent+99)/100-1] }
	return len(took), at(50), at(95)
}
