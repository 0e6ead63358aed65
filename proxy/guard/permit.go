package guard

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"postern/proxy"
	"postern/proxy/wire"
)

// A rejection is why the guard refuses an attempt.
type rejection struct {
	reason     proxy.Reason  // 0: the guard does not refuse the attempt
	bucket     Bucket        // which has nothing left; NoBucket: the same wrong password again, which costs nothing
	retryAfter time.Duration // until there is a token; 0: as soon as an attempt or a session ends
}

// A finding is what the guard knows about the last attempt of a permit. It is a smaller
// form of proxy.Decision, because a session has it as long as it lasts.
type finding struct {
	tier     Tier
	repeat   bool // the password was wrong before, within 24 h, for this account and area
	first    bool // the account logged in from this network for the first time within Config.KnownFor
	rejected bool // or would have been without DryRun

	bucket     Bucket        // as of the rejection
	retryAfter time.Duration // as of the rejection
}

// A permit is a proxy.Permit. Leave returns it to a pool.
type permit struct {
	guard  *Guard
	limits *Config
	connEntry
	*attempt     // from Try to Settle; nil otherwise, because sessions are long
	session  key // the pair that has the session, or the attempt; 0: none
	found    finding
}

// An attempt is the state between Try and Settle.
type attempt struct {
	demand      demand
	tag         tag // of the password; 0: the attempt has a token
	passwordKey key // of the password alone, to find password spraying; 0 as above
	begun       time.Duration
	stage       stage
	slot        slotKind // that the attempt holds
}

// A stage says what Settle has to do.
type stage uint8

const (
	refused    stage = iota // nothing
	reserved                // tokens are reserved
	repeated                // in flight without a reservation: the password was wrong before
	unreserved              // not in flight: the same password was right a moment ago, or DryRun let the attempt skip the wait
	dryRun                  // not in flight: DryRun let the attempt pass
)

// Try implements proxy.Permit. It waits while all tokens that are left are reserved by
// other attempts, which may be right, and while too many attempts are under way. It
// waits for Config.Wait at most, and not after the client has left.
func (p *permit) Try(ctx context.Context, l *proxy.Login) error {
	g := p.guard
	p.attempt = g.attempts.Get().(*attempt)
	p.tag, p.passwordKey, p.stage, p.slot = 0, 0, refused, noSlot
	s := p.subject(l)
	if !s.token {
		p.tag, p.passwordKey = g.secret.tag(s.account, l.Secret.Reveal()), g.secret.password(l.Secret.Reveal())
	}
	var limit waitLimit
	defer limit.stop() // after the guard is unlocked
	g.lock()
	defer g.mu.Unlock()
	p.begun = g.now
	p.endSession()
	r := p.try(ctx, l, s, &limit)
	p.found = finding{
		tier: p.demand.tier, repeat: p.found.repeat, rejected: r.reason != 0, bucket: r.bucket, retryAfter: r.retryAfter,
	}
	if r.reason == 0 {
		return nil
	}
	g.recordRejection(p, l.Account)
	if p.limits.DryRun {
		p.stage = dryRun
		p.startSession()
		return nil
	}
	decision := p.Decision()
	return proxy.NewRefusal(r.reason, &decision)
}

func (p *permit) subject(l *proxy.Login) subject {
	return subject{
		limits: p.limits, from: p.from, trusted: p.trusted, account: p.guard.secret.account(l.Account),
		token: wire.IsToken(l.Mechanism, l.Secret.Reveal()), sieve: l.Client.Protocol == proxy.Sieve,
	}
}

// minWait is how long an attempt may wait, or Config.Wait if that is shorter, even if
// its connection has been open for Config.Wait.
const minWait = 5 * time.Second

// maxWait returns how long an attempt may wait. Config.Wait begins when the connection
// is accepted: since then the client waits.
func (p *permit) maxWait() time.Duration {
	wait := p.guard.config.Wait
	return max(wait-(p.guard.now-p.accepted), min(wait, minWait))
}

// try decides about an attempt, and waits if necessary. The guard must be locked, and
// is unlocked while try waits.
func (p *permit) try(ctx context.Context, l *proxy.Login, s subject, limit *waitLimit) rejection {
	g := p.guard
	for first := true; ; first = false {
		blocking, rejected := p.decide(s)
		if blocking == nil && rejected.reason == 0 {
			return rejection{}
		}
		g.slots.release(&p.slot, g.slotLimits()) // that the attempt got while it waited
		if blocking == nil {
			return rejected
		}
		if p.limits.DryRun { // who would have to wait would not be refused
			p.stage = unreserved
			p.startSession()
			return rejection{}
		}
		limit.start(ctx, l, p.maxWait())
		tooMany := rejection{reason: proxy.Unavailable, bucket: blocking.bucket}
		if blocking.bucket == Attempts {
			if !p.waitForSlot(limit, first) {
				return tooMany
			}
			continue
		}
		samePassword := blocking.bucket == Pair && p.tag != 0 && g.inFlight[blocking.key].tag == p.tag
		completion := g.inFlight.completion(blocking)
		if completion == nil {
			return tooMany
		}
		g.mu.Unlock()
		done := g.wait(completion.done, limit)
		g.lock()
		if !done {
			return tooMany
		}
		if samePassword && completion.outcome == wrong {
			p.found.repeat = true
			return rejection{reason: proxy.Wrong}
		}
		if samePassword && completion.outcome == right {
			return p.passUnreserved(s)
		}
	}
}

// slotRequirement is the requirement of an attempt that finds no slot.
var slotRequirement = requirement{bucket: Attempts}

// decide reserves what the attempt requires. Otherwise it returns why the attempt is
// rejected, or the requirement that it has to wait for.
func (p *permit) decide(s subject) (blocking *requirement, rejected rejection) {
	g, d := p.guard, &p.demand
	g.demand(d, s)
	p.found.repeat = false
	// Budgets come first: otherwise a client without tokens could find out, at no
	// cost, whether a password was tried before.
	available, scarcest := g.availability(d)
	if available == tokensExhausted {
		g.countRefused(d)
		retry := scarcest.rate.next(g.fullAt(d, scarcest), g.now)
		return nil, rejection{proxy.Throttled, scarcest.bucket, retry}
	}
	if g.sessions[s.sessionsOf(g.secret)] >= int32(p.limits.Sessions) {
		return nil, rejection{reason: proxy.TooManySessions, bucket: Sessions}
	}
	repeat, answer := g.wasWrong(d, p.tag)
	p.found.repeat = repeat
	if answer {
		return nil, rejection{reason: proxy.Wrong}
	}
	if r := g.inFlight.saturated(d); r != nil {
		return r, rejection{}
	}
	if available == tokensReserved {
		return scarcest, rejection{}
	}
	if !g.slots.acquire(&p.slot, d.tier.slotKind(), g.slotLimits()) {
		return &slotRequirement, rejection{}
	}
	p.stage = reserved
	if repeat {
		p.stage = repeated
	}
	g.inFlight.begin(d, p.tag, !repeat)
	p.startSession()
	return nil, rejection{}
}

// passUnreserved lets an attempt pass whose password was right a moment ago. The
// attempt is charged only if the backend calls the password wrong after all.
func (p *permit) passUnreserved(s subject) rejection {
	g := p.guard
	if g.sessions[s.sessionsOf(g.secret)] >= int32(p.limits.Sessions) {
		return rejection{reason: proxy.TooManySessions, bucket: Sessions}
	}
	g.demand(&p.demand, s)
	p.stage = unreserved
	p.startSession()
	return rejection{}
}

// wasWrong reports whether the password was wrong today, and whether the guard may
// refuse it without the backend.
func (g *Guard) wasWrong(d *demand, t tag) (repeat, answer bool) {
	if t == 0 {
		return false, false
	}
	passwords := g.wrong.get(d.account.with(d.from.area))
	if passwords == nil {
		return false, false
	}
	w, exact := passwords.find(t, g.now)
	if w == 0 {
		return false, false
	}
	age := w.age(g.now)
	at := g.now.Truncate(time.Second) - age
	return true, exact && age < answerFor && at > d.last && at > g.unlocked[d.account]
}

// Settle implements proxy.Permit. It charges an attempt whose password the backend
// called wrong, or for which the backend called the account suspended, and a doubtful
// one.
func (p *permit) Settle(err error) time.Duration {
	g := p.guard
	g.lock()
	defer g.mu.Unlock()
	o := outcomeOf(err)
	if p.stage != refused {
		p.finish(o)
	}
	if err != nil {
		p.endSession()
	} else {
		g.conns.login(&p.connEntry)
	}
	elapsed := g.now - p.begun
	g.attempts.Put(p.attempt)
	p.attempt = nil
	if _, rejected := errors.AsType[*proxy.Decision](err); rejected || o.isGuess() { // by this guard or a decorator
		return p.delay(elapsed)
	}
	return 0
}

// finish ends an attempt that Try let pass.
func (p *permit) finish(o outcome) {
	g := p.guard
	switch o {
	case right:
		p.found.first = g.recordLogin(p)
		g.stats.countSuccess(g.now)
	case wrong, suspended, doubtful:
		g.recordGuess(p, o)
	}
	if p.stage == reserved || p.stage == repeated {
		g.inFlight.end(&p.demand, p.stage == reserved, o)
		g.slots.release(&p.slot, g.slotLimits())
	}
}

// recordGuess charges a guess and remembers its password. Unless the backend called the
// password wrong, the backend is asked each time the password is repeated: its answer
// may change.
func (g *Guard) recordGuess(p *permit, o outcome) {
	d := &p.demand
	if p.stage == unreserved {
		p.found.repeat, _ = g.wasWrong(d, p.tag)
	}
	if p.stage == reserved || p.stage == unreserved && !p.found.repeat {
		g.spend(d)
	}
	if p.stage == dryRun { // counted as denied, and not remembered
		return
	}
	if p.found.repeat {
		g.stats.countRepeat(g.now)
	} else {
		g.stats.countGuess(d.account, d.from.network, p.passwordKey, g.now)
	}
	if p.tag == 0 {
		return
	}
	k, at := d.account.with(d.from.area), g.now
	passwords := g.wrong.put(k, at, func(*wrongPasswords) {})
	passwords.key = k
	if o != wrong {
		at -= answerFor
	}
	passwords.add(p.tag, at)
}

// recordLogin makes the network known-good and clears what the account owes for this
// network, and nothing else: a login to an attacker's own account must not pay for
// guesses at other accounts. It reports whether the network is new to the account.
func (g *Guard) recordLogin(p *permit) (isNew bool) {
	d := &p.demand
	g.buckets.remove(d.pair() ^ g.buckets.salts[Pair])
	g.buckets.remove(d.account ^ g.buckets.salts[Consecutive])
	if passwords := g.wrong.get(d.account.with(d.from.area)); passwords != nil && p.tag != 0 {
		passwords.remove(p.tag, g.now)
	}
	return g.known.add(d.account, d.from.network, d.from.area, g.now)
}

// delay returns how long a refusal that took elapsed so far is delayed. The total is
// random, also when elapsed is longer than Config.Delay, so that it does not reveal why
// the attempt is refused.
func (p *permit) delay(elapsed time.Duration) time.Duration {
	d := jitter(p.limits.Delay)
	if elapsed <= d {
		return d - elapsed
	}
	step := max(1, d/4)
	return step - (elapsed-d)%step
}

// jitter returns d, changed at random by up to a tenth. The generator of rand is
// ChaCha8: a client that has seen some delays cannot predict the next.
func jitter(d time.Duration) time.Duration {
	if d < 10 {
		return d
	}
	return d - d/10 + rand.N(d/5)
}

func (p *permit) startSession() {
	p.session = p.demand.sessionsOf(p.guard.secret)
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
