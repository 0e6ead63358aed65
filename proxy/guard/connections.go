package guard

import (
	"context"
	"errors"
	"time"

	"postern/proxy"
)

// Why a connection is not admitted, or ends before its login: for logs.
var (
	ErrConnections           = errors.New("too many connections")
	ErrConnectionsPerNetwork = errors.New("too many connections from this network")
	ErrLoginsPerNetwork      = errors.New("too many connections from this network that are not logged in")
	ErrShed                  = errors.New("too many connections: strangers that do not log in make room")
)

const (
	connectionsEach = 20 // more for each account that uses the network
	loginsEach      = 4
	siteFactor      = 4 // an IPv6 /48 may have so many times what a /64 may
)

// A presence is a connection as the connection limits see it.
type presence struct {
	from     origin
	trusted  bool
	loggedIn bool
	gone     bool          // made to leave: counted no more
	inSite   bool          // counted in its IPv6 /48, too
	since    time.Duration // when it was accepted
	shed     context.CancelCauseFunc

	stranger     bool // neither trusted nor known-good for anybody
	older, newer *permit
}

// A crowd is the connections of one network.
type crowd struct{ open, loggedIn int32 }

func (c crowd) pending() int32 { return c.open - c.loggedIn }

// lobby counts connections, and has the strangers that are not logged in by
// age.
type lobby struct {
	open, strangers int
	leaving         int // were told to, and have not yet left
	from            map[key]crowd
	oldest, newest  *permit
}

// Admit implements proxy.Guard. When all places for strangers are taken, the
// oldest of those that have not logged in is told to leave.
func (g *Guard) Admit(c proxy.Client, shed context.CancelCauseFunc) (proxy.Permit, error) {
	p := g.permits.Get().(*permit)
	*p = permit{guard: g, presence: presence{from: g.secret.originOf(c.Addr.Addr()), shed: shed}}
	victim, err := g.admit(p, c.Service)
	if victim != nil {
		victim(proxy.NewRefusal(proxy.TooMany, ErrShed))
	}
	if err != nil {
		*p = permit{}
		g.permits.Put(p)
		return nil, proxy.NewRefusal(proxy.TooMany, err)
	}
	return p, nil
}

func (g *Guard) admit(p *permit, service string) (victim context.CancelCauseFunc, err error) {
	g.lock()
	defer g.mu.Unlock()
	p.since = g.latest
	p.policy = g.policyOf(service)
	p.trusted = g.trusts(p.from.addr)
	p.stranger = !p.trusted && !g.regulars.welcomes(p.from.network, g.latest)
	p.inSite = p.stranger && p.from.isIPv6
	if !p.trusted {
		if err := g.hasRoom(p); err != nil {
			return nil, err
		}
	}
	places := max(1, g.config.Connections-g.config.Reserve)
	if g.factor(g.latest) > 1 { // everybody is a stranger: nobody would use the reserve
		places = g.config.Connections
	}
	if g.open >= g.config.Connections || p.stranger && g.strangers >= places {
		if victim = g.shedOldest(); victim == nil {
			return nil, ErrConnections
		}
	}
	g.enter(p)
	return victim, nil
}

// mayHave returns how many connections a network may have open, and how many of
// them not logged in.
func (g *Guard) mayHave(from origin) (open, pending int32) {
	shared, factor := g.regulars.shared(from.network, g.latest), g.factor(g.latest)
	return int32(g.config.ConnectionsPerNetwork + connectionsEach*shared),
		int32((g.config.LoginsPerNetwork + loginsEach*shared) * factor)
}

// hasRoom says why a network, or its site, may not have one more connection.
// Mobile operators have a /64 for each customer: those that are known-good must
// not pay for their neighbours.
func (g *Guard) hasRoom(p *permit) error {
	open, pending := g.mayHave(p.from)
	here := g.from[p.from.network]
	if p.inSite && here.open < open && here.pending() < pending {
		here = g.from[p.from.site()]
		open, pending = open*siteFactor, pending*siteFactor
	}
	switch {
	case here.open >= open:
		return ErrConnectionsPerNetwork
	case here.pending() >= pending:
		return ErrLoginsPerNetwork
	}
	return nil
}

// site returns the key of what one customer may have at most.
func (o origin) site() key { return o.wider[1] }

// enter counts p in.
func (g *Guard) enter(p *permit) {
	g.open++
	g.count(p, 1, 0)
	if !p.stranger {
		return
	}
	g.strangers++
	p.older = g.newest
	if p.older != nil {
		p.older.newer = p
	} else {
		g.oldest = p
	}
	g.newest = p
}

// count changes the crowds that p is in.
func (g *Guard) count(p *permit, open, loggedIn int32) {
	if p.trusted {
		return
	}
	g.countAt(p.from.network, open, loggedIn)
	if p.inSite {
		g.countAt(p.from.site(), open, loggedIn)
	}
}

func (g *Guard) countAt(k key, open, loggedIn int32) {
	c := g.from[k]
	c.open += open
	c.loggedIn += loggedIn
	if c.open == 0 {
		delete(g.from, k)
		return
	}
	g.from[k] = c
}

// countLogin counts p as logged in: it is no stranger any more.
func (p *permit) countLogin() {
	if p.gone || p.loggedIn {
		return
	}
	p.loggedIn = true
	p.guard.count(p, 0, 1)
	p.guard.unlist(p)
}

// unlist takes p from the strangers.
func (g *Guard) unlist(p *permit) {
	if !p.stranger {
		return
	}
	p.stranger = false
	g.strangers--
	if p.older != nil {
		p.older.newer = p.newer
	} else {
		g.oldest = p.newer
	}
	if p.newer != nil {
		p.newer.older = p.older
	} else {
		g.newest = p.older
	}
	p.older, p.newer = nil, nil
}

// exit counts p out.
func (g *Guard) exit(p *permit) {
	g.open--
	loggedIn := int32(0)
	if p.loggedIn {
		loggedIn = -1
	}
	g.count(p, -1, loggedIn)
	g.unlist(p)
}

// shedOldest counts the oldest stranger out and returns how to tell it; nil if
// there is none, or a twentieth of all are still on their way out.
func (g *Guard) shedOldest() context.CancelCauseFunc {
	p := g.oldest
	if p == nil || p.shed == nil || g.leaving > g.config.Connections/20 {
		return nil
	}
	g.exit(p)
	p.gone = true
	g.leaving++
	g.stats.shed++
	return p.shed
}

// Leave implements proxy.Permit.
func (p *permit) Leave() {
	g := p.guard
	g.mu.Lock()
	p.endSession()
	if p.gone {
		g.leaving--
	} else {
		g.exit(p)
	}
	g.mu.Unlock()
	*p = permit{}
	g.permits.Put(p)
}
