package service

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"postern/proxy"
)

// An activity is a proxy.Observer of what the command status shows and nothing else
// counts: how long the backends took to accept the last logins, PROXY headers that are
// missing or unexpected, and bugs.
type activity struct {
	panics atomic.Int64

	mu      sync.Mutex
	logins  map[loginsKey]*loginTimes
	headers map[headerKey]*headerFaults
}

// A headerKey is a listener's name and a reason of proxy.RejectionOf: there are few.
type headerKey struct{ listener, reason string }

// headerFaults are connections that ended for one reason, each within headerWindow of the one before.
type headerFaults struct {
	n    int
	last time.Time
	peer netip.Addr // of the last one
}

// headerWindow is how long after the last fault of a PROXY header it is found.
const headerWindow = 5 * time.Minute

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
	case proxy.Rejected:
		a.reject(&e.Client, e.Err)
	case proxy.Closed:
		if errors.Is(e.Err, proxy.ErrUnexpectedProxyHeader) {
			a.reject(&e.Client, e.Err)
		}
	case proxy.BackendLogin:
		if e.Err == nil { // servers answer a wrong password late on purpose
			a.add(loginsKey{e.Backend, e.Protocol}, e.Duration)
		}
	}
}

// reject counts a connection that ended because of its PROXY header.
func (a *activity) reject(c *proxy.Client, err error) {
	reason := proxy.RejectionOf(err)
	switch reason {
	case proxy.RejectNoHeader, proxy.RejectBadHeader, proxy.RejectUnexpectedHeader:
	default:
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	key, now := headerKey{c.Service, reason}, time.Now()
	f := a.headers[key]
	if f == nil || now.Sub(f.last) > headerWindow {
		f = new(headerFaults)
		if a.headers == nil {
			a.headers = make(map[headerKey]*headerFaults)
		}
		a.headers[key] = f
	}
	f.n, f.last, f.peer = f.n+1, now, c.Addr.Addr().Unmap()
}

// findHeaders finds listeners at which the last connections ended because of their PROXY
// header. Anybody can send one that is not expected: that is a Notice.
func (a *activity) findHeaders(now time.Time, all *findingList) {
	a.mu.Lock()
	defer a.mu.Unlock()
	order := func(a, b headerKey) int {
		return cmp.Or(cmp.Compare(a.listener, b.listener), cmp.Compare(a.reason, b.reason))
	}
	for _, key := range slices.SortedFunc(maps.Keys(a.headers), order) {
		f := a.headers[key]
		if now.Sub(f.last) > headerWindow {
			continue
		}
		severity, what := Warning, "without a PROXY header from an address of proxy_from"
		next := "let the balancer send the PROXY header (send-proxy-v2), or take its address out of proxy_from of this listener"
		switch key.reason {
		case proxy.RejectBadHeader:
			what, next = "with a bad PROXY header from an address of proxy_from", "let the balancer send the PROXY header (send-proxy-v2): it sends something else"
		case proxy.RejectUnexpectedHeader:
			severity, what, next = Notice, "with a PROXY header from an address that is not in proxy_from", fmt.Sprintf("if %s is a balancer: proxy_from: [%[1]s] at this listener", f.peer)
		}
		all.add(severity, fmt.Sprintf("listener %s refuses connections %s", key.listener, what),
			fmt.Sprintf("%d so far, the last %s ago from %s", f.n, Span(now.Sub(f.last)), f.peer), next)
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
