package listen

import (
	"net"
	"net/netip"
	"slices"
	"sync"

	"postern/proxy"
)

// A LimitedListener is a TCP listener for monitoring, load balancers or a CA: no
// mail clients. Its connections use at most a quarter of the reserve of
// Descriptors (32, or fewer if descriptors are few), and those of one network,
// which is an IPv4 address or an IPv6 /64, half of that. A connection beyond the
// limit is accepted, and the oldest one of the network with the most connections
// is closed for it: short requests are answered, and open connections yield.
// Limited makes it.
type LimitedListener struct {
	net.Listener
	allow func(netip.Addr) bool

	mu   sync.Mutex
	open []*limitedConn // the oldest first
}

// Limited returns a LimitedListener on ln for clients that allow returns true
// for; nil: for all. allow is called for each connection, with an address without
// zone, and IPv4 addresses as such.
func Limited(ln net.Listener, allow func(netip.Addr) bool) *LimitedListener {
	return &LimitedListener{Listener: ln, allow: allow}
}

// maxConnections returns how many connections are allowed in all, and from one
// network.
func maxConnections() (all, each int) {
	_, reserve := Descriptors()
	all = max(4, reserve/4)
	return all, all / 2
}

// Accept implements net.Listener. It closes connections that are not allowed.
func (l *LimitedListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		addr := proxy.AddrPort(conn.RemoteAddr()).Addr().WithZone("")
		tcp, ok := conn.(*net.TCPConn)
		if !ok || l.allow != nil && !l.allow(addr) {
			_ = conn.Close()
			continue
		}
		c := &limitedConn{TCPConn: tcp, listener: l, network: networkOf(addr)}
		if oldest := l.add(c); oldest != nil {
			_ = oldest.Close()
		}
		return c, nil
	}
}

// add counts c, and returns the connection that has to be closed for it, or nil.
func (l *LimitedListener) add(c *limitedConn) (oldest *limitedConn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	all, each := maxConnections()
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

// networkOf returns the network that usually belongs to one client.
func networkOf(addr netip.Addr) netip.Prefix {
	bits := 64
	if addr.Is4() {
		bits = 32
	}
	network, _ := addr.Prefix(bits) // connections without an address count as one network
	return network
}

// A limitedConn is counted until it is closed.
type limitedConn struct {
	*net.TCPConn
	listener *LimitedListener
	network  netip.Prefix
}

// Close implements net.Conn.
func (c *limitedConn) Close() error {
	err := c.TCPConn.Close()
	c.listener.mu.Lock()
	defer c.listener.mu.Unlock()
	c.listener.open = slices.DeleteFunc(c.listener.open, func(other *limitedConn) bool { return other == c })
	return err
}
