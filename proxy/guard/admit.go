package guard

import (
	"context"
	"errors"

	"postern/proxy"
)

// Why a connection is not admitted, or is shed before its login: for logs.
var (
	ErrConnections           = errors.New("too many connections")
	ErrConnectionsPerNetwork = errors.New("too many connections from this network")
	ErrLoginsPerNetwork      = errors.New("too many connections from this network that are not logged in")
	ErrShed                  = errors.New("too many connections: strangers that do not log in make room")
)

const (
	connectionsPerAccount = 20 // more for each account that uses the network
	loginsPerAccount      = 4
	siteFactor            = 4 // the limits of an IPv6 /48 are so many times those of a /64
)

// Admit implements proxy.Guard. At the limit it sheds the oldest connection of a
// stranger: shed is called with a Refusal that has ErrShed in its tree. The error of a
// connection that is not admitted is a Refusal with one of the errors above.
func (g *Guard) Admit(c proxy.Client, shed context.CancelCauseFunc) (proxy.Permit, error) {
	p := g.permits.Get().(*permit)
	*p = permit{guard: g, connEntry: connEntry{from: g.secret.originOf(c.Addr.Addr()), cancel: shed}}
	shedOldest, err := g.admit(p, c.Service)
	if shedOldest != nil {
		shedOldest(proxy.NewRefusal(proxy.TooMany, ErrShed))
	}
	if err != nil {
		*p = permit{}
		g.permits.Put(p)
		return nil, proxy.NewRefusal(proxy.TooMany, err)
	}
	return p, nil
}

// admit adds p's connection to the table. The caller must call shed, unless nil, when
// the guard is unlocked.
func (g *Guard) admit(p *permit, service string) (shed context.CancelCauseFunc, err error) {
	g.lock()
	defer g.mu.Unlock()
	p.accepted = g.now
	p.limits = g.limitsOf(service)
	p.trusted = g.trusts(p.from.addr)
	p.stranger = !p.trusted && !g.known.has(p.from.network, g.now)
	p.inSite = p.stranger && p.from.isIPv6
	if !p.trusted {
		if err := g.checkNetwork(&p.connEntry); err != nil {
			return nil, err
		}
	}
	maxStrangers := max(1, g.config.Connections-g.config.Reserve)
	if g.learning() { // everybody is a stranger: nobody would use the reserve
		maxStrangers = g.config.Connections
	}
	if g.conns.open >= g.config.Connections || p.stranger && g.conns.strangers >= maxStrangers {
		if shed = g.conns.shedOldest(g.config.Connections / 20); shed == nil {
			return nil, ErrConnections
		}
		g.stats.shed++
	}
	g.conns.add(&p.connEntry)
	return shed, nil
}

// networkLimits returns how many connections a network may have, and how many that are
// not logged in.
func (g *Guard) networkLimits(from origin) (open, pending int32) {
	accounts, factor := g.known.activeAccounts(from.network, g.now), g.factor()
	return int32(g.config.ConnectionsPerNetwork + connectionsPerAccount*accounts),
		int32((g.config.LoginsPerNetwork + loginsPerAccount*accounts) * factor)
}

// checkNetwork returns an error if the network of e, or its IPv6 site, is at its
// limit. The site's limit holds for strangers only: the customers of a mobile operator
// have a /64 each in a /48, and those that are known-good must not suffer from their
// neighbours.
func (g *Guard) checkNetwork(e *connEntry) error {
	open, pending := g.networkLimits(e.from)
	count := g.conns.counts[e.from.network]
	if e.inSite && count.open < open && count.pending() < pending {
		count = g.conns.counts[e.from.site()]
		open, pending = open*siteFactor, pending*siteFactor
	}
	switch {
	case count.open >= open:
		return ErrConnectionsPerNetwork
	case count.pending() >= pending:
		return ErrLoginsPerNetwork
	}
	return nil
}

// Leave implements proxy.Permit.
func (p *permit) Leave() {
	g := p.guard
	g.mu.Lock()
	p.endSession()
	g.conns.leave(&p.connEntry)
	g.mu.Unlock()
	*p = permit{}
	g.permits.Put(p)
}
