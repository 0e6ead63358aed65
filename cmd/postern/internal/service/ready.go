package service

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"postern/configs"
	"postern/proxy"
	"postern/proxy/backend"
	"postern/proxy/listen"
	"postern/proxy/route"
)

// notReady returns the reason for which a load balancer should send clients elsewhere, or
// nil. A protocol without a backend that accepts logins is a reason only if all served
// protocols are without one: otherwise the failure of one server behind all Posterns
// would end every protocol. notReadyFor is the answer for one protocol.
func (s *Service) notReady() error {
	g := s.current.Load()
	if err := s.checkProcess(g); err != nil {
		return err
	}
	if err := s.checkRecord(g); err != nil {
		return err
	}
	served := g.served()
	for _, pools := range served {
		if len(g.refusing(pools)) < len(pools) {
			return s.certificateValid()
		}
	}
	if len(served) == 0 {
		return s.certificateValid()
	}
	var all []poolKey
	for _, pools := range served {
		all = append(all, pools...)
	}
	slices.SortFunc(all, poolKey.compare)
	return fmt.Errorf("no backend accepts logins: %s", g.whyRefusing(slices.Compact(all)))
}

// notReadyFor is notReady for one protocol. It returns false if no listener serves
// logins of the protocol.
func (s *Service) notReadyFor(protocol string) (served bool, err error) {
	g := s.current.Load()
	if err := s.checkProcess(g); err != nil {
		return g == nil || g.served()[protocol] != nil, err
	}
	pools, served := g.served()[protocol]
	if !served {
		return false, nil
	}
	if len(g.refusing(pools)) == len(pools) {
		return true, fmt.Errorf("no backend accepts %s logins: %s", protocol, g.whyRefusing(pools))
	}
	if protocol == proxy.POP3 {
		if err := s.checkRecord(g); err != nil {
			return true, err
		}
	}
	return true, s.certificateValid()
}

// checkProcess returns the reason for which the process should get no clients, whatever
// the backends do, or nil. g is the current generation; nil: there is none yet.
func (s *Service) checkProcess(g *generation) error {
	switch {
	case s.draining.Load():
		return errors.New("draining")
	case g == nil:
		return errors.New("not listening yet")
	case s.drained.Load():
		return errors.New("drained by postern drain --self")
	}
	return listen.CheckDescriptors()
}

func (s *Service) certificateValid() error {
	if g := s.current.Load(); g != nil && !hasTLS(g.cfg) {
		return nil
	}
	now := time.Now()
	for _, v := range s.store.Expiry() {
		if now.Before(v.NotAfter) && now.After(v.NotBefore) {
			return nil
		}
	}
	return errors.New("no valid certificate")
}

// served returns the pools that a route may choose, for each protocol in which a
// listener of g serves logins.
func (g *generation) served() map[string][]poolKey {
	served := make(map[string][]poolKey)
	for _, l := range g.cfg.Listeners {
		if l.TLS == "refuse" {
			continue
		}
		pools := served[l.Protocol]
		if pools == nil {
			pools = []poolKey{}
		}
		for _, key := range slices.SortedFunc(maps.Keys(g.pools), poolKey.compare) {
			if g.serves(key, l) && !slices.Contains(pools, key) {
				pools = append(pools, key)
			}
		}
		served[l.Protocol] = pools
	}
	return served
}

// mayServe reports whether POP3 logins at l may go to a backend in a mode.
func (g *generation) mayServe(l configs.Listener, backend, mode string) bool {
	return g.routing.rules.MayReturn(route.Choice{Backend: backend, POP3Mode: mode}) ||
		mode == g.cfg.POP3.At(l).Mode && g.routing.rules.MayReturn(route.Choice{Backend: backend})
}

// serves reports whether logins at l may go to the pool of key.
func (g *generation) serves(key poolKey, l configs.Listener) bool {
	if l.Protocol != proxy.POP3 {
		return key.protocol == l.Protocol && g.routing.rules.MayReturnBackend(key.name)
	}
	may := func(backend, mode string) bool { return g.mayServe(l, backend, mode) }
	switch key.protocol {
	case proxy.IMAP:
		return may(key.name, route.Bridge)
	case proxy.POP3:
		for backend := range g.cfg.Backends {
			if g.cfg.OldServer(backend) == key.name && (may(backend, route.Passthrough) || may(backend, route.Shadow)) {
				return true
			}
		}
	}
	return false
}

// refusing returns those of pools that accept no logins.
func (g *generation) refusing(pools []poolKey) (all []poolKey) {
	for _, key := range pools {
		if countMembers(g.pools[key].Status()).accepting == 0 {
			all = append(all, key)
		}
	}
	return all
}

// whyRefusing says of pools that accept no logins why they do not, for at most five.
func (g *generation) whyRefusing(pools []poolKey) string {
	const most = 5
	var why []string
	for i, key := range pools {
		if i == most {
			why = append(why, fmt.Sprintf("and %d more", len(pools)-most))
			break
		}
		why = append(why, fmt.Sprintf("%s (%s) is %s", key.name, key.protocol, countMembers(g.pools[key].Status()).word()))
	}
	if why == nil {
		return "no route leads to one"
	}
	return strings.Join(why, ", ")
}

// A memberCount counts the members of a pool by their state: each is in one of the fields.
type memberCount struct{ accepting, unknown, down, drained int }

func countMembers(members []backend.MemberStatus) (n memberCount) {
	for _, m := range members {
		switch stateOf(m) {
		case stateUp:
			n.accepting++
		case stateDrained:
			n.drained++
		case stateUnknown:
			n.unknown++
		default:
			n.down++
		}
	}
	return n
}

// word returns the state of a pool that accepts no logins. A server that was never
// probed may well be up.
func (n memberCount) word() string {
	switch {
	case n.unknown > 0:
		return "not probed yet"
	case n.down == 0:
		return stateDrained
	}
	return stateDown
}

// The states of a backend's server.
const (
	stateUp      = "up"
	stateDown    = "down"
	stateDrained = "drained" // whether it is up or not
	stateUnknown = "unknown" // no probe has ended yet
)

func stateOf(m backend.MemberStatus) string {
	switch {
	case m.Drained:
		return stateDrained
	case !m.Known:
		return stateUnknown
	case m.Up:
		return stateUp
	}
	return stateDown
}

// readiness returns whether new clients should come, and what /readyz says.
func (s *Service) readiness() (ready bool, text string) {
	if err := s.notReady(); err != nil {
		return false, err.Error()
	}
	if err := s.degraded(); err != nil {
		return true, "ready, degraded: " + err.Error()
	}
	return true, "ready"
}
