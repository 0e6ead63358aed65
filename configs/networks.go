package configs

import (
	"fmt"
	"slices"
	"strings"
)

// checkNetworks judges listener i, which is for some networks alone. It has the
// socket of the listener at the same address that is for all others.
func (m *mistakes) checkNetworks(i int) {
	all := m.cfg.Listeners
	l, key := all[i], fmt.Sprintf("listeners[%d]", i)
	rest := slices.IndexFunc(all, func(o Listener) bool { return o.Address == l.Address && o.Networks == nil })
	switch {
	case len(l.Networks) == 0:
		m.report(key+".networks", "none; write those of the clients, or remove the key")
	case strings.HasSuffix(l.Address, ":0"): // each would get a port of its own
		m.report(key+".networks", "have no meaning at port 0, which is another for each listener")
	case rest < 0:
		m.report(key+".networks", "choose among listeners at one address; one for all other clients, without networks, is missing at %s", quote(l.Address))
	default:
		m.checkShared(key, l, rest)
	}
	for j, other := range all[:i] {
		if other.Address != l.Address {
			continue
		}
		for n, network := range l.Networks {
			if slices.ContainsFunc(other.Networks, network.Overlaps) {
				m.report(fmt.Sprintf("%s.networks[%d]", key, n), "%s overlaps the networks of listeners[%d] at the same address", network, j)
			}
		}
	}
}

// checkShared wants what comes before the choice to be alike.
func (m *mistakes) checkShared(key string, l Listener, rest int) {
	other := m.cfg.Listeners[rest]
	if l.Protocol != other.Protocol {
		m.report(key+".protocol", "listeners[%d] has another at the same address", rest)
	}
	if !slices.Equal(l.ProxyFrom, other.ProxyFrom) {
		m.report(key+".proxy_from", "listeners[%d] has others at the same address", rest)
	}
}
