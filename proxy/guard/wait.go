package guard

import (
	"context"
	"time"

	"postern/proxy"
)

// waitForSlot waits for a slot and reports whether the attempt has got one. It reports
// false at once if the attempt is new and the queue is full. The guard must be locked,
// and is unlocked while the attempt waits.
func (p *permit) waitForSlot(limit *waitLimit, isNew bool) bool {
	g, q := p.guard, &p.guard.slots
	if isNew && q.waiting() >= g.config.Connections {
		return false
	}
	w := &waiter{kind: p.demand.tier.slotKind(), ready: make(chan struct{})}
	q.list(w.kind).add(w)
	g.mu.Unlock()
	g.wait(w.ready, limit)
	g.lock()
	if !w.hasSlot {
		q.list(w.kind).remove(w)
		return false
	}
	p.slot = w.kind
	if limit.isClientGone() { // at the same moment
		q.release(&p.slot, g.slotLimits())
		return false
	}
	return true
}

// wait waits until done is closed, and reports false if the limit comes first. The
// guard must not be locked.
func (g *Guard) wait(done <-chan struct{}, limit *waitLimit) bool {
	g.stats.waiting.Add(1)
	defer g.stats.waiting.Add(-1)
	select {
	case <-done:
		return true
	case <-limit.timer.C:
	case <-limit.clientGone:
	}
	return false
}

// A waitLimit bounds how long an attempt waits in all. The zero value has not started.
type waitLimit struct {
	timer      *time.Timer
	clientGone <-chan struct{} // closed when the client is gone or must go
	stopWatch  func()
}

// start starts the limit, unless it has started before.
func (w *waitLimit) start(ctx context.Context, l *proxy.Login, d time.Duration) {
	if w.timer != nil {
		return
	}
	w.timer, w.stopWatch = time.NewTimer(d), func() {}
	if l.Watch != nil {
		ctx, w.stopWatch = l.Watch(ctx)
	}
	w.clientGone = ctx.Done()
}

// stop must be called once. The guard must not be locked.
func (w *waitLimit) stop() {
	if w.timer != nil {
		w.timer.Stop()
		w.stopWatch()
	}
}

func (w *waitLimit) isClientGone() bool {
	select {
	case <-w.clientGone:
		return true
	default:
		return false
	}
}
