package listen

import (
	"net"
	"net/netip"
	"slices"
	"sync"
)

// A LimitedListener is a TCP listener for what is no mail client: monitoring, load
// balancers, a CA. Its connections take a quarter of the reserve of Descriptors at
// most (32, or fewer where descriptors are few), and those of one network, which
// is an IPv4 address or 64 bits of IPv6, half of that. One too many is served, and
// the oldest one of the network with the most is closed for it: who asks is answered
// long before being that one, and who keeps connections open makes room. It must be
// made by Limited.
type LimitedListener struct {
	net.Listener
	allow func(netip.Addr) bool

	mu   sync.Mutex
	open []*limitedConn // the oldest first
}

// Limited returns a LimitedListener on ln for clients that allow says yes to, each
// time one connects; nil: for all. It is asked for an address without a zone, IPv4
// as such.
func Limited(ln net.Listener, allow func(netip.Addr) bool) *LimitedListener {
	return &LimitedListener{Listener: ln, allow: allow}
}

// most returns how many connections there may be in all, and of one network.
func most() (all, each int) {
	_, reserve := Descriptors()
	all = max(4, reserve/4)
	return all, all / 2
}

// Accept implements net.Listener. It closes a connection that is not allowed.
func (l *LimitedListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		addr := addrPort(conn.RemoteAddr()).Addr().WithZone("")
		tcp, ok := conn.(*net.TCPConn)
		if !ok || l.allow != nil && !l.allow(addr) {
			_ = conn.Close()
			continue
		}
		c := &limitedConn{TCPConn: tcp, from: l, network: networkOf(addr)}
		if oldest := l.enter(c); oldest != nil {
			_ = oldest.Close()
		}
		return c, nil
	}
}

// enter counts c in, and returns what has to be closed for it, or nil.
func (l *LimitedListener) enter(c *limitedConn) (oldest *limitedConn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	all, each := most()
	open := make(map[netip.Prefix]int)
	for _, other := range l.open {
		open[other.network]++
	}
	if full := c.network; open[full] >= each || len(l.open) >= all {
		for _, other := range l.open {
			if open[other.network] > open[full] {
				full = other.network
			}
		}
		oldest = l.open[slices.IndexFunc(l.open, func(other *limitedConn) bool { return other.network == full })]
	}
	l.open = append(l.open, c)
	return oldest
}

// networkOf returns what one client usually has.
func networkOf(addr netip.Addr) netip.Prefix {
	bits := 64
	if addr.Is4() {
		bits = 32
	}
	network, _ := addr.Prefix(bits) // no address: all without share one network
	return network
}

// A limitedConn is counted until it is closed.
type limitedConn struct {
	*net.TCPConn
	from    *LimitedListener
	network netip.Prefix
}

// Close implements net.Conn.
func (c *limitedConn) Close() error {
	err := c.TCPConn.Close()
	c.from.mu.Lock()
	defer c.from.mu.Unlock()
	c.from.open = slices.DeleteFunc(c.from.open, func(other *limitedConn) bool { return other == c })
	return err
}
