// Package guard decides who may try to log in, from where, and how often.
//
// A Guard is a proxy.Guard. Admit checks the connection limits and returns a
// proxy.Permit for the connection. Before the backend checks a password, the permit's
// Try reserves a token of several token buckets: of the account, of the client's
// network, of the pair of both, and of wider networks (see Bucket). So parallel
// connections cannot exceed a budget. Settle takes the result: a wrong, suspended or
// doubtful answer spends the tokens, any other result returns them.
//
// A network from which the account has logged in before is known-good (see Tier). There
// the account has a bucket that nobody else can empty. The same wrong password again,
// as forgotten devices send it for years, costs nothing.
//
// All state is in memory, under one lock. Snapshot and Restore carry it over a restart;
// Load, Save and Run keep the snapshot in a Store.
package guard

import (
	"net/netip"
	"sync"
	"time"

	"postern/proxy"
)

// epoch is the clock of a new guard. Events in a snapshot happened between 0 and epoch,
// which is longer than the ten years that KnownFor may be.
const epoch = 4000 * day

// A Guard is a proxy.Guard. It must be made by New. Its methods may be called
// concurrently.
type Guard struct {
	secret  secret // changed by Restore only
	started time.Time

	permits, attempts sync.Pool

	mu           sync.Mutex // held for about a microsecond, except by Unlock and UnlockNetwork, which scan a table
	config       *Config
	services     map[string]*Config // by name of the service
	now          time.Duration      // the clock, which never goes back
	learningEnd  time.Duration
	buckets      bucketTable
	wrong        *table[wrongPasswords, *wrongPasswords]
	known        *knownNetworks
	inFlight     inFlightTable
	slots        slotQueue
	sessions     map[key]int32         // by subject.sessionsOf
	unlocked     map[key]time.Duration // when accounts were unlocked, for answerFor
	refused      refusedTable
	conns        connTable
	snapshotSize int // octets of the last snapshot
	stats        stats
}

// New returns a Guard with limits c and an empty memory. It learns for c.Learning.
func New(c Config) *Guard {
	if c.Now == nil {
		c.Now = time.Now
	}
	g := &Guard{
		started:  c.Now(),
		permits:  sync.Pool{New: func() any { return new(permit) }},
		attempts: sync.Pool{New: func() any { return new(attempt) }},
		now:      epoch,
		inFlight: make(inFlightTable),
		sessions: make(map[key]int32),
		unlocked: make(map[key]time.Duration),
		conns:    connTable{counts: make(map[key]connCount)},
	}
	g.configure(c)
	g.reset(newSecret())
	return g
}

// reset empties what a snapshot has, and begins to learn.
func (g *Guard) reset(s secret) {
	g.secret = s
	g.buckets = newBucketTable(s, g.config.Entries)
	g.wrong = newTable[wrongPasswords](g.config.Entries / 4)
	g.known = newKnownNetworks(g.config.Pairs, g.config.KnownFor)
	g.learningEnd = g.now + g.config.Learning
}

// Reload replaces the limits. It forgets nothing. Entries, Pairs and Now stay as they
// are, and connections that are open keep the budgets with which they were admitted. A
// Learning that is shorter than the rest of the present one begins now.
func (g *Guard) Reload(c Config) {
	g.lock()
	defer g.mu.Unlock()
	c.Now, c.Entries, c.Pairs = g.config.Now, g.config.Entries, g.config.Pairs
	g.configure(c)
	g.known.keepFor = g.config.KnownFor
	g.learningEnd = min(g.learningEnd, g.now+c.Learning)
	g.slots.dispatch(g.slotLimits())
}

func (g *Guard) configure(c Config) {
	g.config = &c
	g.services = make(map[string]*Config, len(c.Services))
	for name, s := range c.Services {
		s = s.inherit(c)
		g.services[name] = &s
	}
}

// limitsOf returns the limits of a service.
func (g *Guard) limitsOf(service string) *Config {
	if c, ok := g.services[service]; ok {
		return c
	}
	return g.config
}

// lock locks the guard and reads the clock.
func (g *Guard) lock() {
	g.mu.Lock()
	g.now = max(g.now, epoch+g.config.Now().Sub(g.started))
}

// wallTime returns the wall clock's time at a time of the guard's clock.
func (g *Guard) wallTime(t time.Duration) time.Time { return g.config.Now().Add(t - g.now) }

func (g *Guard) trusts(a netip.Addr) bool {
	for _, p := range g.config.Trusted {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

var (
	_ proxy.Guard  = (*Guard)(nil)
	_ proxy.Permit = (*permit)(nil)
)
