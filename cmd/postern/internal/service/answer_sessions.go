package service

import (
	"cmp"
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"postern/cmd/postern/internal/stored"
	"postern/proxy"
	"postern/proxy/admin"
	"postern/proxy/backend"
)

// The requests about sessions, which only the running Postern can answer.
const (
	AskSessions = "sessions"
	AskKick     = "kick"
	AskDrain    = "drain"
	AskLogLevel = "log-level"
)

// answerSessions makes c answer the requests about sessions, stored accounts and state.
func (s *Service) answerSessions(c *admin.Server) {
	admin.HandleEach(c, AskSessions, s.listSessions)
	admin.Handle(c, AskKick, func(_ context.Context, f SessionFilter) (int, error) {
		if err := s.checkFilter(f); err != nil {
			return 0, err
		}
		n := s.server.Kick(f.matches)
		if n == 0 && f.Session != "" {
			return 0, errNoSession(f)
		}
		return n, nil
	})
	admin.HandleEach(c, AskDrain, s.drainBackend)
	admin.Handle(c, AskLogLevel, s.setLogLevel)
	stored.BackupState.Register(c, s.Storage)
	stored.CheckState.Register(c, s.Storage)
	stored.ListAccounts.Register(c, s.Storage)
	stored.ExportAccount.Register(c, s.Storage)
	stored.ForgetAccount.Register(c, s.Storage)
}

// A Session is a connection, in the form for output.
type Session struct {
	ID       string         `json:"id"`
	Protocol string         `json:"protocol"`
	Listener string         `json:"listener"`
	State    string         `json:"state"`
	Account  string         `json:"account,omitempty"`
	Client   netip.AddrPort `json:"client"`
	TLS      string         `json:"tls,omitempty"`
	Backend  string         `json:"backend,omitempty"`
	Since    time.Time      `json:"since"`
	Received int64          `json:"received"` // octets from the client
	Sent     int64          `json:"sent"`     // octets to the client
}

// A SessionFilter chooses the connections that match all its fields that are set.
type SessionFilter struct {
	Session  string       `json:"session,omitempty"`
	Account  string       `json:"account,omitempty"`
	Network  netip.Prefix `json:"network,omitzero"`
	Backend  string       `json:"backend,omitempty"`
	Protocol string       `json:"protocol,omitempty"`
}

// LogValue implements slog.LogValuer.
func (f SessionFilter) LogValue() slog.Value {
	network := ""
	if f.Network.IsValid() {
		network = f.Network.String()
	}
	return admin.Arguments("session", f.Session, "account", f.Account, "network", network, "backend", f.Backend, "protocol", f.Protocol)
}

func (f SessionFilter) matches(i proxy.SessionInfo) bool {
	same := func(want, got string) bool { return want == "" || want == got }
	return same(f.Session, i.Client.ID) && same(f.Account, i.Account) && same(f.Backend, i.Backend) &&
		same(f.Protocol, i.Client.Protocol) &&
		(!f.Network.IsValid() || f.Network.Contains(i.Client.Addr.Addr().WithZone("")))
}

// checkFilter returns an error if f names a backend that neither the configuration nor a
// session has.
func (s *Service) checkFilter(f SessionFilter) error {
	if f.Backend == "" {
		return nil
	}
	backends := slices.Collect(maps.Keys(s.current.Load().cfg.Backends))
	if slices.Contains(backends, f.Backend) ||
		slices.ContainsFunc(s.server.Sessions(), func(i proxy.SessionInfo) bool { return i.Backend == f.Backend }) {
		return nil
	}
	return errUnknown("backend", f.Backend, backends)
}

func errNoSession(f SessionFilter) error {
	return fmt.Errorf("no connection has the session id %q, and what else was named", f.Session)
}

func (s *Service) listSessions(_ context.Context, f SessionFilter, each func(Session) error) error {
	if err := s.checkFilter(f); err != nil {
		return err
	}
	all := s.server.Sessions()
	slices.SortFunc(all, func(a, b proxy.SessionInfo) int {
		return cmp.Or(a.Since.Compare(b.Since), strings.Compare(a.Client.ID, b.Client.ID))
	})
	all = slices.DeleteFunc(all, func(i proxy.SessionInfo) bool { return !f.matches(i) })
	if len(all) == 0 && f.Session != "" {
		return errNoSession(f)
	}
	for _, i := range all {
		l := Session{
			ID: i.Client.ID, Protocol: i.Client.Protocol, Listener: i.Client.Service, State: i.Step.String(), Account: i.Account,
			Client: i.Client.Addr, Backend: i.Backend, Since: i.Since, Received: i.Received, Sent: i.Sent,
		}
		if i.Client.TLS != nil {
			l.TLS = tls.VersionName(i.Client.TLS.Version)
		}
		if err := each(l); err != nil {
			return err
		}
	}
	return nil
}

// A DrainRequest drains servers of a backend, or undoes a drain.
type DrainRequest struct {
	Backend string `json:"backend"`
	Address string `json:"address,omitempty"` // "": all servers
	Undo    bool   `json:"undo,omitempty"`
}

// LogValue implements slog.LogValuer.
func (d DrainRequest) LogValue() slog.Value {
	undo := ""
	if d.Undo {
		undo = "true"
	}
	return admin.Arguments("backend", d.Backend, "address", d.Address, "undo", undo)
}

// A DrainedServer is a server of a backend after a DrainRequest.
type DrainedServer struct {
	Protocol    string `json:"protocol"`
	Address     string `json:"address"`
	Up          bool   `json:"up"`
	Drained     bool   `json:"drained"`
	Connections int    `json:"connections"`
}

// drainBackend drains servers of a backend, or undoes that, and answers with all
// servers of the backend.
func (s *Service) drainBackend(_ context.Context, d DrainRequest, each func(DrainedServer) error) error {
	pools := s.current.Load().pools
	if err := drainServers(pools, d); err != nil {
		return err
	}
	s.log.Info("backend drained", "backend", d.Backend, "address", cmp.Or(d.Address, "all"), "drained", !d.Undo)
	for _, key := range slices.SortedFunc(maps.Keys(pools), poolKey.compare) {
		if key.name != d.Backend {
			continue
		}
		for _, m := range pools[key].Status() {
			if err := each(DrainedServer{key.protocol, m.Address, m.Up, m.Drained, m.Connections}); err != nil {
				return err
			}
		}
	}
	return nil
}

// drainServers applies d to the servers that d names. It returns an error if there is no
// such server.
func drainServers(pools map[poolKey]*backend.Pool, d DrainRequest) error {
	var backends, servers []string
	found := false
	for key, pool := range pools {
		backends = append(backends, key.name)
		if key.name != d.Backend {
			continue
		}
		for _, m := range pool.Status() {
			servers = append(servers, m.Address)
			if d.Address != "" && d.Address != m.Address {
				continue
			}
			found = true
			if err := pool.Drain(m.Address, !d.Undo); err != nil {
				return err
			}
		}
	}
	switch {
	case !slices.Contains(backends, d.Backend):
		return errUnknown("backend", d.Backend, backends)
	case !found:
		return fmt.Errorf("backend %s has no server %q; there are: %s", d.Backend, d.Address, listed(servers))
	}
	return nil
}

// A logLevel is a name of a slog.Level.
type logLevel string

// LogValue implements slog.LogValuer.
func (l logLevel) LogValue() slog.Value { return admin.Arguments("log_level", string(l)) }

// setLogLevel sets the level, unless level is "", and returns the present level.
func (s *Service) setLogLevel(_ context.Context, level logLevel) (string, error) {
	if level != "" {
		var l slog.Level
		if err := l.UnmarshalText([]byte(level)); err != nil {
			return "", err
		}
		s.level.Set(l)
	}
	return strings.ToLower(s.level.Level().String()), nil
}
