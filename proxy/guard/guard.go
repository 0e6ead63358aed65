// Package guard decides who may try to log in, from where, and how often.
//
// A wrong password costs a token of several buckets: of the account's, of the
// client's network, of the two together, and of wider networks. Where an account
// has logged in before, it has a bucket that nobody else can empty. Tokens are
// reserved before the backend is asked, so that parallel connections cannot
// outrun the count, and given back when the attempt was not a wrong guess. The
// same wrong password again, which forgotten devices send for years, costs
// nothing.
package guard

import (
	"net/netip"
	"sync"
	"time"

	"postern/proxy"
)

// epoch is what a guard's clock shows when it is made: what a snapshot
// remembers happened after 0. It is more than the ten years that KnownFor may be.
const epoch = 4000 * day

// A Guard is a proxy.Guard. It must be made by New.
type Guard struct {
	secret secret // as salts and pools, changed by Restore only
	salts  [bucketKinds]key
	pools  [tiers]key
	begun  time.Time

	permits, attempts sync.Pool

	mu       sync.Mutex // held for about a microsecond: less than the handshake before it by far
	config   *Config
	services map[string]*Config
	latest   time.Duration // the clock: it never goes back
	learning time.Duration // until then
	buckets  *table[bucket, *bucket]
	evicted  sketch // of buckets
	rings    *table[ring, *ring]
	regulars *regulars
	flights  map[key]flight
	slots    slots
	sessions map[key]int32 // of pairs
	unlocked map[key]time.Duration
	refused  refusals
	stored   int // octets of the last snapshot
	stats    stats
	lobby
}

// New returns a Guard that allows what c says. It remembers nothing, and learns
// who lives where.
func New(c Config) *Guard {
	c = c.withDefaults(DefaultConfig())
	g := &Guard{
		begun:    c.Now(),
		permits:  sync.Pool{New: func() any { return new(permit) }},
		attempts: sync.Pool{New: func() any { return new(attempt) }},
		latest:   epoch,
		flights:  make(map[key]flight),
		sessions: make(map[key]int32),
		unlocked: make(map[key]time.Duration),
		lobby:    lobby{from: make(map[key]crowd)},
	}
	g.configure(c)
	g.forget(newSecret())
	return g
}

// forget begins anew.
func (g *Guard) forget(s secret) {
	g.secret = s
	for b := range g.salts {
		g.salts[b] = key(sipHash(s, ofBucket, []byte{byte(b)}))
	}
	for t := range g.pools {
		g.pools[t] = key(sipHash(s, ofBucket, []byte{byte(Account), byte(t)}))
	}
	g.buckets = newTable[bucket](g.config.Entries)
	g.rings = newTable[ring](g.config.Entries / 4)
	g.evicted = sketch{}
	g.regulars = newRegulars(g.config.Pairs)
	g.regulars.keep = g.config.KnownFor
	g.learning = g.latest + max(0, g.config.Learning)
}

// Reload makes c what the guard allows from now on. It forgets nothing: the
// size of its memory, which Entries and Pairs say, stays as it is, and open
// connections keep the budgets that they were admitted with. A shorter Learning
// begins now.
func (g *Guard) Reload(c Config) {
	g.lock()
	defer g.mu.Unlock()
	c = c.withDefaults(DefaultConfig())
	c.Now, c.Entries, c.Pairs = g.config.Now, g.config.Entries, g.config.Pairs
	g.configure(c)
	g.regulars.keep = g.config.KnownFor
	g.learning = min(g.learning, g.latest+max(0, c.Learning))
	g.handOver()
}

func (g *Guard) configure(c Config) {
	if c.Reserve == 0 {
		c.Reserve = c.Connections / 5
	}
	g.config = &c
	g.services = make(map[string]*Config, len(c.Services))
	for name, s := range c.Services {
		s = s.withDefaults(c)
		g.services[name] = &s
	}
}

// policyOf returns what a service allows.
func (g *Guard) policyOf(service string) *Config {
	if c, ok := g.services[service]; ok {
		return c
	}
	return g.config
}

// lock locks the guard and reads the clock.
func (g *Guard) lock() {
	g.mu.Lock()
	g.latest = max(g.latest, epoch+g.config.Now().Sub(g.begun))
}

func (g *Guard) trusts(a netip.Addr) bool {
	for _, p := range g.config.Trusted {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

var _ proxy.Guard = (*Guard)(nil)
