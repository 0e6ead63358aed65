package service

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"time"

	"postern/proxy/admin"
	"postern/proxy/backend"
)

// The requests to drain a backend, and this Postern.
const (
	AskDrain     = "drain"
	AskDrainSelf = "drain/self"
)

// answerDrain makes c answer the requests to drain.
func (s *Service) answerDrain(c *admin.Server) {
	admin.HandleEach(c, AskDrain, s.drainBackend)
	admin.Handle(c, AskDrainSelf, s.drainSelf)
}

// A DrainRequest drains servers of a backend, or undoes a drain. The zero value changes
// nothing.
type DrainRequest struct {
	Backend  string `json:"backend,omitempty"`
	Protocol string `json:"protocol,omitempty"` // "": all protocols
	Address  string `json:"address,omitempty"`  // "": all servers
	Undo     bool   `json:"undo,omitempty"`
}

// LogValue implements slog.LogValuer.
func (d DrainRequest) LogValue() slog.Value {
	return admin.Arguments("backend", d.Backend, "address", d.Address, "undo", trueOrNone(d.Undo))
}

func trueOrNone(b bool) string {
	if b {
		return "true"
	}
	return ""
}

// A DrainedServer is a server of a backend after a DrainRequest.
type DrainedServer struct {
	Backend     string    `json:"backend"`
	Protocol    string    `json:"protocol"`
	Address     string    `json:"address"`
	State       string    `json:"state"` // up, down, drained or unknown: not probed yet
	Up          bool      `json:"up"`
	Drained     bool      `json:"drained"`
	Since       time.Time `json:"since,omitzero"` // of Up
	Connections int       `json:"connections"`
}

func drainedServer(key poolKey, m backend.MemberStatus) DrainedServer {
	return DrainedServer{key.name, key.protocol, m.Address, stateOf(m), m.Up, m.Drained, m.Since, m.Connections}
}

// drainBackend drains servers of a backend, or undoes that, and answers with all
// servers of the backend. Without a backend it changes nothing, and answers with all
// servers.
func (s *Service) drainBackend(_ context.Context, d DrainRequest, each func(DrainedServer) error) error {
	g := s.current.Load()
	if d.Backend != "" {
		if err := g.checkServer(d); err != nil {
			return err
		}
		g.drain([]DrainRequest{d})
		s.log.Info("backend drained", "backend", d.Backend, "address", cmp.Or(d.Address, "all"), "drained", !d.Undo)
	}
	for _, key := range slices.SortedFunc(maps.Keys(g.pools), poolKey.compare) {
		if d.Backend != "" && key.name != d.Backend {
			continue
		}
		for _, m := range g.pools[key].Status() {
			if err := each(drainedServer(key, m)); err != nil {
				return err
			}
		}
	}
	return nil
}

// checkServer returns an error that names the alternatives if there is no server that d
// means.
func (g *generation) checkServer(d DrainRequest) error {
	var backends, addresses []string
	for key, pool := range g.pools {
		backends = append(backends, key.name)
		if key.name != d.Backend {
			continue
		}
		for _, m := range pool.Status() {
			addresses = append(addresses, m.Address)
		}
	}
	switch {
	case !slices.Contains(backends, d.Backend):
		return errUnknown("backend", d.Backend, backends)
	case d.Address != "" && !slices.Contains(addresses, d.Address):
		return fmt.Errorf("backend %s has no server %q; there are: %s", d.Backend, d.Address, listed(addresses))
	}
	return nil
}

// drain applies requests to the servers of g that they name.
func (g *generation) drain(requests []DrainRequest) {
	for key, pool := range g.pools {
		for _, d := range requests {
			if key.name != d.Backend || d.Protocol != "" && d.Protocol != key.protocol {
				continue
			}
			for _, m := range pool.Status() {
				if d.Address == "" || d.Address == m.Address {
					_ = pool.Drain(m.Address, !d.Undo) // the pool has the address
				}
			}
		}
	}
}

// drains returns a request for each server of g that is drained: a reload and an upgrade
// keep a drain, as long as the server is in the configuration.
func (g *generation) drains() (all []DrainRequest) {
	for key, pool := range g.pools {
		for _, m := range pool.Status() {
			if m.Drained {
				all = append(all, DrainRequest{Backend: key.name, Protocol: key.protocol, Address: m.Address})
			}
		}
	}
	return all
}

// A SelfDrain takes this Postern out of its load balancer, or undoes that. The zero value
// changes nothing.
type SelfDrain struct {
	Drain bool `json:"drain,omitempty"`
	Undo  bool `json:"undo,omitempty"`
}

// LogValue implements slog.LogValuer.
func (d SelfDrain) LogValue() slog.Value {
	return admin.Arguments("drain", trueOrNone(d.Drain), "undo", trueOrNone(d.Undo))
}

// SelfDrained is the answer to a SelfDrain.
type SelfDrained struct {
	Drained  bool   `json:"drained"`
	Ready    string `json:"ready"`    // what /readyz says
	Sessions int    `json:"sessions"` // connections that are open, with those of a process before an upgrade
}

// drainSelf makes /readyz say 503, or undoes that. Listeners and sessions stay.
func (s *Service) drainSelf(ctx context.Context, d SelfDrain) (SelfDrained, error) {
	if d.Drain || d.Undo {
		if before := s.drained.Swap(d.Drain && !d.Undo); before == d.Undo {
			s.log.Info("this Postern is drained for load balancers", "drained", !d.Undo)
		}
	}
	_, ready := s.readiness()
	before, err := s.askPredecessor(ctx, false, SessionFilter{})
	if err != nil {
		s.log.Warn("sessions of the process before the upgrade are not counted", "err", err)
	}
	return SelfDrained{Drained: s.drained.Load(), Ready: ready, Sessions: len(s.server.Sessions()) + len(before.Sessions)}, nil
}
