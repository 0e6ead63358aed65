package guard

import "postern/proxy"

// An outcome is what became of an attempt.
type outcome uint8

const (
	untried outcome = iota // the backend was not asked, or has not looked at the password
	right
	wrong
	barred   // the account may not log in, and nobody says whether the password was right
	doubtful // the answer is temporary, and nobody says whether the password was right
)

// guess reports whether o costs one.
func (o outcome) guess() bool { return o == wrong || o == barred || o == doubtful }

func outcomeOf(err error) outcome {
	if err == nil {
		return right
	}
	switch r := refusal(err); {
	case r == nil:
		return untried
	case r.Verified:
		return right
	case r.Doubtful:
		return doubtful
	case r.Reason == proxy.Wrong:
		return wrong
	case r.Reason == proxy.Suspended:
		return barred
	}
	return untried
}

// A flight is the attempts under way that need one thing.
type flight struct {
	running  int32
	reserved int32    // tokens
	tag      tag      // of the first one
	landing  *landing // nil: nobody waits
}

// A landing tells those who wait that an attempt has ended.
type landing struct {
	ended   chan struct{} // closed then
	outcome outcome       // valid then
	waiting int
}

// maxWaiting bounds how many wait for one flight, and wake with it. It is more
// than the connections that a network has before they are logged in, by default.
const maxWaiting = 512

// depart counts an attempt in. Reserve says whether it is to cost something.
func (g *Guard) depart(c *claim, t tag, reserve bool) {
	for i := range c.all() {
		n := &c.needs[i]
		f := g.flights[n.key]
		if f.running == 0 {
			f.tag = t
		}
		f.running++
		if reserve && n.rate.Burst > 0 {
			f.reserved++
		}
		g.flights[n.key] = f
	}
}

// land counts it out.
func (g *Guard) land(c *claim, reserved bool, o outcome) {
	for i := range c.all() {
		n := &c.needs[i]
		f := g.flights[n.key]
		f.running--
		if reserved && n.rate.Burst > 0 {
			f.reserved--
		}
		if f.landing != nil {
			f.landing.outcome = o
			close(f.landing.ended)
			f.landing = nil
		}
		if f.running == 0 {
			delete(g.flights, n.key)
			continue
		}
		g.flights[n.key] = f
	}
}

// crowded returns the first need of c of which there are as many as may be.
func (g *Guard) crowded(c *claim) *need {
	for i := range c.all() {
		n := &c.needs[i]
		if n.atOnce > 0 && g.flights[n.key].running >= n.atOnce {
			return n
		}
	}
	return nil
}

// join returns what tells of the end of one attempt that needs n, or nil if too
// many wait for it already.
func (g *Guard) join(n *need) *landing {
	f := g.flights[n.key]
	if f.landing == nil {
		f.landing = &landing{ended: make(chan struct{})}
		g.flights[n.key] = f
	}
	if f.landing.waiting >= maxWaiting {
		return nil
	}
	f.landing.waiting++
	return f.landing
}

// await sleeps until ended is closed and reports whether it is.
func (g *Guard) await(ended <-chan struct{}, wait *patience) bool {
	g.stats.waiting.Add(1)
	defer g.stats.waiting.Add(-1)
	select {
	case <-ended:
		return true
	case <-wait.timer.C:
	case <-wait.gone:
	}
	return false
}
