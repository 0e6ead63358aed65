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
)

// The requests about sessions, which only the running Postern can answer.
const (
	AskSessions = "sessions"
	AskKick     = "kick"
	AskLogLevel = "log-level"
)

// answerSessions makes c answer the requests about sessions, stored accounts and state.
func (s *Service) answerSessions(c *admin.Server) {
	admin.HandleEach(c, AskSessions, s.listSessions)
	admin.Handle(c, AskKick, s.kick)
	admin.Handle(c, AskLogLevel, s.setLogLevel)
	stored.BackupState.Register(c, s.Storage)
	stored.CheckState.Register(c, s.Storage)
	stored.ListAccounts.Register(c, s.Storage)
	stored.ReportUsage.Register(c, s.Storage)
	stored.ReportSurroundings.Register(c, s.Storage)
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
	Device   string         `json:"device,omitempty"` // whose password of postern password was used
	Since    time.Time      `json:"since"`
	Received int64          `json:"received"`          // octets from the client
	Sent     int64          `json:"sent"`              // octets to the client
	Process  int            `json:"process,omitempty"` // of a process before an upgrade that has the session still; 0: the one that serves
}

// A SessionFilter chooses the connections that match all its fields that are set.
type SessionFilter struct {
	Session  string       `json:"session,omitempty"`
	Account  string       `json:"account,omitempty"`
	Network  netip.Prefix `json:"network,omitzero"`
	Backend  string       `json:"backend,omitempty"`
	Protocol string       `json:"protocol,omitempty"`
	Device   string       `json:"device,omitempty"` // sessions of a device, also those that are not open yet
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
	opening := f.Device != "" && i.Account == ""
	return same(f.Session, i.Client.ID) && (opening || same(f.Account, i.Account)) && same(f.Backend, i.Backend) &&
		same(f.Protocol, i.Client.Protocol) && same(f.Device, i.Device) &&
		(!f.Network.IsValid() || f.Network.Contains(i.Client.Addr.Addr().WithZone("")))
}

// checkFilter returns an error if f names a backend that neither the configuration nor a
// session has.
func (s *Service) checkFilter(f SessionFilter) error {
	if f.Backend == "" || s.predecessor != nil && !s.predecessor.gone.Load() { // that one may have had other backends
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

// listSessions calls each for the connections that match f.
func (s *Service) listSessions(ctx context.Context, f SessionFilter, each func(Session) error) error {
	if err := s.checkFilter(f); err != nil {
		return err
	}
	return s.eachSession(ctx, f, each)
}

// eachSession calls each for the connections that match f: those of the processes before
// an upgrade, then those of this process, each the oldest first.
func (s *Service) eachSession(ctx context.Context, f SessionFilter, each func(Session) error) error {
	before, missing := s.askPredecessor(ctx, false, f)
	for _, l := range before.Sessions {
		if err := each(l); err != nil {
			return err
		}
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
			Client: i.Client.Addr, Backend: i.Backend, Device: i.Device, Since: i.Since, Received: i.Received, Sent: i.Sent,
		}
		if i.Client.TLS != nil {
			l.TLS = tls.VersionName(i.Client.TLS.Version)
		}
		if err := each(l); err != nil {
			return err
		}
	}
	return missing
}

// kick ends the connections that match f, and returns their number. No connection with
// a session id is an error.
func (s *Service) kick(ctx context.Context, f SessionFilter) (int, error) {
	if err := s.checkFilter(f); err != nil {
		return 0, err
	}
	n, err := s.endSessions(ctx, f)
	switch {
	case err != nil:
		return 0, fmt.Errorf("ended: %d; %w", n, err)
	case n == 0 && f.Session != "":
		return 0, errNoSession(f)
	}
	return n, nil
}

// endSessions ends the connections that match f, also those of the processes before an
// upgrade, and returns their number. Those of a device end after the message that they are
// sending. After an error there may be more.
func (s *Service) endSessions(ctx context.Context, f SessionFilter) (int, error) {
	var n int
	if f.Device != "" {
		n = s.server.KickAfterMessage(messageTime, f.matches)
	} else {
		n = s.server.Kick(f.matches)
	}
	before, err := s.askPredecessor(ctx, true, f)
	return n + before.Kicked, err
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
