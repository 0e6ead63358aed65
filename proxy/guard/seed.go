package guard

import (
	"net/netip"
	"slices"
	"time"
)

// A Success is a login in the past.
type Success struct {
	Account string // as rewritten
	Addr    netip.Addr
	Time    time.Time
}

// Seed makes the networks of logins within Config.KnownFor known-good. It returns how
// many pairs of account and network are new.
func (g *Guard) Seed(logins []Success) (added int) {
	const chunk = 256 // under one lock: attempts must not wait long
	for some := range slices.Chunk(logins, chunk) {
		added += g.seed(some)
	}
	return added
}

func (g *Guard) seed(logins []Success) (added int) {
	g.lock()
	defer g.mu.Unlock()
	for _, s := range logins {
		at := g.now - g.config.Now().Sub(s.Time)
		if at > g.now || at+g.config.KnownFor <= g.now {
			continue
		}
		from := g.secret.originOf(s.Addr)
		if g.known.add(g.secret.account(s.Account), from.network, from.area, at) {
			added++
		}
	}
	return added
}

// Hash returns the keyed hash of an account, as rewritten, that Refused has: 16
// hexadecimal digits. The key is in the snapshots.
func (g *Guard) Hash(account string) string { return g.secret.account(account).String() }

// Known returns how many known networks an account, as rewritten, has.
func (g *Guard) Known(account string) int {
	g.lock()
	defer g.mu.Unlock()
	return g.known.countOf(g.secret.account(account))
}

// KnowsNetwork reports whether any account has logged in from the network of addr within
// Config.KnownFor.
func (g *Guard) KnowsNetwork(addr netip.Addr) bool {
	g.lock()
	defer g.mu.Unlock()
	return g.known.has(g.secret.originOf(addr).network, g.now)
}

// KnowsNetworkOf reports whether an account, as rewritten, has logged in from the network of
// addr within Config.KnownFor.
func (g *Guard) KnowsNetworkOf(account string, addr netip.Addr) bool {
	g.lock()
	defer g.mu.Unlock()
	k := g.known.find(g.secret.account(account), g.secret.originOf(addr).network)
	return k != nil && !g.known.expired(k, g.now)
}
