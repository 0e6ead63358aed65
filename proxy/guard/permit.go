package guard

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"postern/proxy"
)

// A rejection is why the guard refuses an attempt.
type rejection struct {
	tier       Tier
	bucket     Bucket        // the one that is empty; NoBucket: the password is known to be wrong
	retryAfter time.Duration // until it is not; 0: as soon as an attempt or a session ends
	repeat     bool          // the same wrong password again: charged to no bucket
}

// A finding is what the guard knows about the last attempt of a permit: its
// proxy.Decision, in as little memory as a session may have.
type finding struct {
	tier     Tier
	repeat   bool       // the password was called wrong in the last 24 h, for this account and area
	first    bool       // the account logged in from this network for the first time in 30 days
	rejected *rejection // nil: the attempt was not refused; with DryRun: would not have been
}

// A permit is a proxy.Permit. Leave gives it to the next connection.
type permit struct {
	guard  *Guard
	policy *Config
	presence
	*attempt     // from Try to Settle: sessions live long and need none
	session  key // the pair whose session this is, or may become; 0: none
	found    finding
}

// An attempt is what Try leaves for Settle.
type attempt struct {
	claim   claim
	tag     tag // of its password; 0: none
	sprayed key // the password, whoever's it is
	begun   time.Duration
	stage   stage
	slot    slot // at the backends
}

// A stage is how far an attempt has come.
type stage uint8

const (
	refused stage = iota // nothing to settle
	charged              // tokens are reserved
	repeats              // under way; if it is wrong, it is so again
	follows              // without a reservation: the same password was right just now
	waved                // DryRun let it through
)

// Try implements proxy.Permit. Where all tokens that are left are reserved, by
// attempts that may well be right, or too many attempts are under way, it waits
// for them, Config.Wait at most and until the client leaves.
func (p *permit) Try(ctx context.Context, l *proxy.Login) error {
	g := p.guard
	p.attempt = g.attempts.Get().(*attempt)
	p.tag, p.sprayed, p.stage, p.slot = 0, 0, refused, noSlot
	s := p.subject(l)
	if !s.token {
		p.tag, p.sprayed = g.secret.tag(s.account, l.Secret.Reveal()), g.secret.password(l.Secret.Reveal())
	}
	var wait patience
	defer wait.end() // after the lock is open
	g.lock()
	defer g.mu.Unlock()
	p.begun = g.latest
	p.endSession()
	denied, reason := p.try(ctx, l, s, &wait)
	p.found = finding{tier: p.claim.tier, repeat: p.found.repeat, rejected: denied}
	if denied == nil {
		return nil
	}
	g.report(p, l.Account, denied)
	if p.policy.DryRun {
		p.stage = waved
		p.startSession()
		return nil
	}
	decision := p.Decision()
	return proxy.NewRefusal(reason, &decision)
}

func (p *permit) subject(l *proxy.Login) subject {
	return subject{
		policy: p.policy, from: p.from, trusted: p.trusted, account: p.guard.secret.account(l.Account),
		token: l.HasToken(),
	}
}

// leastWait is the patience of an attempt that comes when its connection has been
// open for long: of Config.Wait, which is shorter.
const leastWait = 5 * time.Second

// patience returns how long an attempt may wait. Its client waits since its
// connection was accepted.
func (p *permit) patience() time.Duration {
	wait := p.guard.config.Wait
	return max(wait-(p.guard.latest-p.since), min(wait, leastWait))
}

// try decides, and waits if need be. The guard is locked, but while it waits.
func (p *permit) try(ctx context.Context, l *proxy.Login, s subject, wait *patience) (*rejection, proxy.Reason) {
	g := p.guard
	for first := true; ; first = false {
		blocked, denied, reason := p.decide(s)
		if blocked == nil && denied == nil {
			return nil, 0
		}
		g.freeSlot(p.attempt) // who was handed a slot and must not go
		if blocked == nil {
			return denied, reason
		}
		if p.policy.DryRun { // who would have to wait is not one who would be refused
			p.stage = follows
			p.startSession()
			return nil, 0
		}
		wait.begin(ctx, l, p.patience())
		crowded := &rejection{tier: p.claim.tier, bucket: blocked.bucket}
		if blocked.bucket == Attempts {
			if !p.queue(wait, first) {
				return crowded, proxy.Unavailable
			}
			continue
		}
		same := blocked.bucket == Pair && p.tag != 0 && g.flights[blocked.key].tag == p.tag
		landing := g.join(blocked)
		if landing == nil {
			return crowded, proxy.Unavailable
		}
		g.mu.Unlock()
		ended := g.await(landing.ended, wait)
		g.lock()
		if !ended {
			return crowded, proxy.Unavailable
		}
		if same && landing.outcome == wrong {
			p.found.repeat = true
			return &rejection{tier: p.claim.tier, repeat: true}, proxy.Wrong
		}
		if same && landing.outcome == right {
			return p.follow(s)
		}
	}
}

// everySlot is what an attempt needs that finds no slot at the backends.
var everySlot = need{bucket: Attempts}

// decide takes what the attempt needs, or says why it must not be made, or
// what it has to wait for.
func (p *permit) decide(s subject) (blocked *need, denied *rejection, reason proxy.Reason) {
	g, now := p.guard, p.guard.latest
	g.claim(&p.claim, s, now)
	p.found.repeat = false
	// Budgets come first: or whoever has none left could still ask, at no cost,
	// whether a password was tried before.
	has, which := g.has(&p.claim, now)
	if has == empty {
		g.tried(&p.claim, now)
		retry := which.rate.next(g.full(&p.claim, which), now)
		return nil, &rejection{tier: p.claim.tier, bucket: which.bucket, retryAfter: retry}, proxy.Throttled
	}
	if g.sessions[s.pair()] >= int32(p.policy.Sessions) {
		return nil, &rejection{tier: p.claim.tier, bucket: Sessions}, proxy.TooManySessions
	}
	repeat, fresh := g.wasWrong(&p.claim, p.tag, now)
	p.found.repeat = repeat
	if fresh {
		return nil, &rejection{tier: p.claim.tier, repeat: true}, proxy.Wrong
	}
	if n := g.crowded(&p.claim); n != nil {
		return n, nil, 0
	}
	if has == unsettled {
		return which, nil, 0
	}
	if !g.takeSlot(p.attempt, p.claim.tier.slot()) {
		return &everySlot, nil, 0
	}
	p.stage = charged
	if repeat {
		p.stage = repeats
	}
	g.depart(&p.claim, p.tag, !repeat)
	p.startSession()
	return nil, nil, 0
}

// follow lets an attempt through whose password was right a moment ago. It is
// charged only if it is wrong after all.
func (p *permit) follow(s subject) (*rejection, proxy.Reason) {
	g := p.guard
	if g.sessions[s.pair()] >= int32(p.policy.Sessions) {
		return &rejection{tier: p.claim.tier, bucket: Sessions}, proxy.TooManySessions
	}
	g.claim(&p.claim, s, g.latest)
	p.stage = follows
	p.startSession()
	return nil, 0
}

// wasWrong reports whether the password was called wrong today, and whether
// that is fresh enough to say so again.
func (g *Guard) wasWrong(c *claim, t tag, now time.Duration) (repeat, fresh bool) {
	if t == 0 {
		return false, false
	}
	ring := g.rings.get(c.account.with(c.from.area))
	if ring == nil {
		return false, false
	}
	m, exact := ring.find(t, now)
	if m == 0 {
		return false, false
	}
	made := now.Truncate(time.Second) - m.age(now)
	return true, exact && m.age(now) < answered && made > c.last && made > g.unlockedAt(c.account)
}

// Settle implements proxy.Permit. Charged is what the backend called wrong, what
// it said of the account in place of that, and what it has not judged although
// it had the password.
func (p *permit) Settle(err error) time.Duration {
	g := p.guard
	g.lock()
	defer g.mu.Unlock()
	o := outcomeOf(err)
	if p.stage != refused {
		p.settle(o)
	}
	if err != nil {
		p.endSession()
	} else {
		p.countLogin()
	}
	after := g.latest - p.begun
	g.attempts.Put(p.attempt)
	p.attempt = nil
	if _, refused := errors.AsType[*proxy.Decision](err); refused || o.guess() {
		return p.delay(after)
	}
	return 0
}

func (p *permit) settle(o outcome) {
	g, c, now := p.guard, &p.claim, p.guard.latest
	switch o {
	case right:
		p.found.first = g.succeed(p)
	case wrong, barred, doubtful:
		g.blame(p, o)
	}
	g.stats.settled(p, o, now)
	if p.stage == charged || p.stage == repeats {
		g.land(c, p.stage == charged, o)
		g.freeSlot(p.attempt)
	}
}

// blame charges a wrong password and remembers it. One that the backend may say
// something else of than that it is wrong, it is asked about each time.
func (g *Guard) blame(p *permit, o outcome) {
	c, now := &p.claim, g.latest
	if p.stage == follows {
		p.found.repeat, _ = g.wasWrong(c, p.tag, now)
	}
	if p.stage == charged || p.stage == follows && !p.found.repeat {
		g.spend(c, now)
	}
	if p.tag != 0 && p.stage != waved {
		r := g.rings.put(c.account.with(c.from.area), now, func(*ring) {})
		r.key = c.account.with(c.from.area)
		if o != wrong {
			now -= answered
		}
		r.add(p.tag, now)
	}
}

// succeed clears what the account owes from this network, and nothing else: an
// account of one's own must not pay for guesses at others.
func (g *Guard) succeed(p *permit) (isNew bool) {
	c, now := &p.claim, g.latest
	for _, k := range []key{c.pair() ^ g.salts[Pair], c.account ^ g.salts[Consecutive]} {
		if b := g.buckets.get(k); b != nil {
			*b = bucket{}
		}
	}
	if r := g.rings.get(c.account.with(c.from.area)); r != nil && p.tag != 0 {
		r.remove(p.tag, now)
	}
	return g.regulars.greet(c.account, c.from.network, c.from.area, now)
}

// delay returns what is left, after so long, of the time that a refusal takes.
// It is not the same each time, so that it tells nothing of how the refusal
// came about; after a slow answer as well.
func (p *permit) delay(after time.Duration) time.Duration {
	d := jitter(p.policy.Delay)
	if after <= d {
		return d - after
	}
	step := max(1, d/4)
	return step - (after-d)%step
}

// jitter returns d, give or take a tenth. The generator of rand is ChaCha8:
// whoever has seen some delays cannot tell the next.
func jitter(d time.Duration) time.Duration {
	if d < 10 {
		return d
	}
	return d - d/10 + rand.N(d/5)
}

func (p *permit) startSession() {
	p.session = p.claim.pair()
	p.guard.sessions[p.session]++
}

func (p *permit) endSession() {
	if p.session == 0 {
		return
	}
	s := p.guard.sessions
	if s[p.session]--; s[p.session] == 0 {
		delete(s, p.session)
	}
	p.session = 0
}

// refusal returns the first proxy.Refusal in err's tree, or nil.
func refusal(err error) *proxy.Refusal {
	r, _ := errors.AsType[*proxy.Refusal](err)
	return r
}
