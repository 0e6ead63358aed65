// Package guard decides who may try to log in, from where, and how often.
//
// A wrong password costs one token of two buckets: that of the client's
// network and that of the account. The token is reserved before the backend is
// asked, so that parallel connections cannot outrun the count, and given back
// when the attempt was not a wrong guess.
package guard

import (
	"context"
	"errors"
	"hash/maphash"
	"math/rand/v2"
	"net/netip"
	"sync"
	"time"

	"postern/proxy"
)

// Why a connection is not admitted and an attempt not made: for logs.
var (
	ErrConnections           = errors.New("too many connections")
	ErrConnectionsPerNetwork = errors.New("too many connections from this network")
	ErrBudget                = errors.New("too many wrong passwords for this account or from this network")
	ErrUnsettled             = errors.New("too many logins under way for this account or from this network")
)

// A Guard is a proxy.Guard. It must be made by New.
type Guard struct {
	config   Config
	begun    time.Time
	seed     maphash.Seed // of the keys: no address and no name is kept
	networks *buckets
	accounts *buckets
	permits  sync.Pool
	settled  broadcast

	mu   sync.Mutex
	open int
	from map[netip.Prefix]int // open connections; trusted networks are not in it
}

// New returns a Guard that allows what c says.
func New(c Config) *Guard {
	c = c.withDefaults(DefaultConfig())
	return &Guard{
		config:   c,
		begun:    c.Now(),
		seed:     maphash.MakeSeed(),
		networks: newBuckets(c.Network, c.Entries/2),
		accounts: newBuckets(c.Account, c.Entries/2),
		permits:  sync.Pool{New: func() any { return new(permit) }},
		from:     make(map[netip.Prefix]int),
	}
}

// now is the time since the Guard was made: it has no jumps of the wall clock.
func (g *Guard) now() time.Duration { return g.config.Now().Sub(g.begun) }

// Admit implements proxy.Guard. It sheds nobody.
func (g *Guard) Admit(c proxy.Client, _ context.CancelCauseFunc) (proxy.Permit, error) {
	addr := c.Addr.Addr()
	network := networkOf(addr)
	trusted := g.trusts(addr)
	if err := g.enter(network, trusted); err != nil {
		return nil, proxy.Refuse(proxy.TooMany, err)
	}
	p := g.permits.Get().(*permit)
	*p = permit{guard: g, network: network, trusted: trusted, origin: maphash.Comparable(g.seed, network)}
	return p, nil
}

// networkOf returns what one customer usually has: one IPv4 address, which is
// the same when it comes as IPv6, or 64 bits of IPv6. All without an address
// share one network.
func networkOf(a netip.Addr) netip.Prefix {
	a = a.Unmap().WithZone("")
	bits := 32
	if a.Is6() {
		bits = 64
	}
	network, err := a.Prefix(bits)
	if err != nil {
		return netip.Prefix{}
	}
	return network
}

func (g *Guard) trusts(a netip.Addr) bool {
	a = a.Unmap().WithZone("")
	for _, p := range g.config.Trusted {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

func (g *Guard) enter(network netip.Prefix, trusted bool) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.open >= g.config.Connections {
		return ErrConnections
	}
	if !trusted {
		if g.from[network] >= g.config.ConnectionsPerNetwork {
			return ErrConnectionsPerNetwork
		}
		g.from[network]++
	}
	g.open++
	return nil
}

func (g *Guard) leave(network netip.Prefix, trusted bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.open--
	if trusted {
		return
	}
	if g.from[network]--; g.from[network] == 0 {
		delete(g.from, network)
	}
}

// A permit is a proxy.Permit. Leave gives it to the next connection.
type permit struct {
	guard   *Guard
	network netip.Prefix
	trusted bool
	origin  key // of the network

	account  key // of the attempt that is not settled
	begun    time.Duration
	reserved bool
}

// Try implements proxy.Permit. Where all tokens that are left are reserved, by
// attempts that may well be right, it waits for them.
func (p *permit) Try(ctx context.Context, l *proxy.Login) error {
	p.begun = p.guard.now()
	p.account = maphash.String(p.guard.seed, l.Account)
	has := p.reserve()
	if has == unsettled {
		has = p.await(ctx)
	}
	p.reserved = has == token
	switch has {
	case token:
		return nil
	case unsettled:
		return proxy.Refuse(proxy.Unavailable, ErrUnsettled)
	}
	return proxy.Refuse(proxy.Throttled, ErrBudget)
}

func (p *permit) await(ctx context.Context) holding {
	patience := time.NewTimer(p.guard.config.Wait)
	defer patience.Stop()
	for {
		settled := p.guard.settled.next() // before the look, or it could be missed
		if has := p.reserve(); has != unsettled {
			return has
		}
		select {
		case <-settled:
		case <-patience.C:
			return unsettled
		case <-ctx.Done():
			return unsettled
		}
	}
}

// reserve takes a token of each bucket, or of none.
func (p *permit) reserve() holding {
	account := p.guard.accounts.of(p.account)
	account.Lock()
	defer account.Unlock()
	if has := account.has(p.account, p.begun); has != token {
		return has
	}
	if !p.trusted {
		network := p.guard.networks.of(p.origin)
		network.Lock()
		defer network.Unlock()
		if has := network.has(p.origin, p.begun); has != token {
			return has
		}
		network.reserve(p.origin, p.begun)
	}
	account.reserve(p.account, p.begun)
	return token
}

// Settle implements proxy.Permit. Only what the backend called wrong is
// charged.
func (p *permit) Settle(err error) time.Duration {
	refusal, _ := errors.AsType[*proxy.Refusal](err)
	wrong := refusal != nil && refusal.Reason == proxy.Wrong && !refusal.Verified
	now := p.guard.now()
	if p.reserved {
		p.reserved = false
		p.guard.accounts.settle(p.account, now, wrong)
		if !p.trusted {
			p.guard.networks.settle(p.origin, now, wrong)
		}
		p.guard.settled.tell()
	}
	if wrong || refusal != nil && refusal.Reason == proxy.Throttled {
		return max(0, p.begun+jitter(p.guard.config.Delay)-now)
	}
	return 0
}

// jitter returns d, give or take a tenth, so that a refusal's time tells
// nothing of how it came about.
func jitter(d time.Duration) time.Duration {
	if d < 10 {
		return d
	}
	return d - d/10 + rand.N(d/5)
}

// Leave implements proxy.Permit.
func (p *permit) Leave() {
	g := p.guard
	g.leave(p.network, p.trusted)
	*p = permit{}
	g.permits.Put(p)
}
