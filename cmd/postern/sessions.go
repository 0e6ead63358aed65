package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"postern/configs"
	"postern/proxy"
	"postern/proxy/admin"
)

// The questions about what a Postern is doing, which only it can answer.
const (
	askSessions = "sessions"
	askKick     = "kick"
	askDrain    = "drain"
	askLogLevel = "log-level"
)

// answerOperator makes c answer them, and those about what is stored.
func (s *site) answerOperator(c *admin.Server) {
	admin.HandleEach(c, askSessions, s.listSessions)
	admin.Handle(c, askKick, func(_ context.Context, f filter) (int, error) {
		return s.server.Kick(f.match), nil
	})
	admin.HandleEach(c, askDrain, s.drainBackend)
	admin.Handle(c, askLogLevel, s.setLogLevel)
	backupState.answered(c, s.memory)
	checkState.answered(c, s.memory)
	listAccounts.answered(c, s.memory)
	exportAccount.answered(c, s.memory)
	forgetAccount.answered(c, s.memory)
}

// askRunning asks the Postern of the configuration at path, and calls each for
// every value of the answer.
func askRunning[Out any](ctx context.Context, path, name string, in any, each func(Out) error) error {
	cfg, err := configs.Read(path)
	if err != nil {
		return err
	}
	if cfg.Control.Socket == "" {
		return errors.New("control.socket is off: this Postern can not be asked")
	}
	return admin.CallEach(ctx, cfg.Control.Socket, name, in, each)
}

// A listedSession is a connection, as it is printed.
type listedSession struct {
	ID       string         `json:"id"`
	Protocol string         `json:"protocol"`
	Service  string         `json:"service"`
	State    string         `json:"state"`
	Account  string         `json:"account,omitempty"`
	Client   netip.AddrPort `json:"client"`
	TLS      string         `json:"tls,omitempty"`
	Backend  string         `json:"backend,omitempty"`
	Since    time.Time      `json:"since"`
	Received int64          `json:"received"` // octets, from the client
	Sent     int64          `json:"sent"`     // and to it
}

// A filter chooses connections: those that have all that it names.
type filter struct {
	Session  string       `json:"session,omitempty"`
	Account  string       `json:"account,omitempty"`
	Network  netip.Prefix `json:"network,omitzero"`
	Backend  string       `json:"backend,omitempty"`
	Protocol string       `json:"protocol,omitempty"`
}

func (f filter) match(i proxy.SessionInfo) bool {
	same := func(want, got string) bool { return want == "" || want == got }
	return same(f.Session, i.Client.ID) && same(f.Account, i.Account) && same(f.Backend, i.Backend) &&
		same(f.Protocol, i.Client.Protocol) &&
		(!f.Network.IsValid() || f.Network.Contains(i.Client.Addr.Addr().WithZone("")))
}

// filterFlags adds the flags of a filter to cmd. What they choose is known when
// it runs.
func filterFlags(cmd *cobra.Command) func() (filter, error) {
	var f filter
	var address string
	flags := cmd.Flags()
	flags.StringVar(&f.Session, "session", "", "the one with this `id`")
	flags.StringVar(&f.Account, "account", "", "those of this `account`, named as in the log")
	flags.StringVar(&address, "address", "", "those from this `address`, or network such as 192.0.2.0/24")
	flags.StringVar(&f.Backend, "backend", "", "those at this `backend`")
	flags.StringVar(&f.Protocol, "protocol", "", "those of this `protocol`: imap, pop3 or submission")
	return func() (filter, error) {
		if f.Protocol != "" && !slices.Contains([]string{proxy.IMAP, proxy.POP3, proxy.Submission}, f.Protocol) {
			return f, fmt.Errorf("%q is not a protocol; use imap, pop3 or submission", f.Protocol)
		}
		if address == "" {
			return f, nil
		}
		var err error
		f.Network, err = configs.ParseNetwork(address)
		return f, err
	}
}

func (s *site) listSessions(_ context.Context, f filter, each func(listedSession) error) error {
	all := s.server.Sessions()
	slices.SortFunc(all, func(a, b proxy.SessionInfo) int {
		return cmp.Or(a.Since.Compare(b.Since), strings.Compare(a.Client.ID, b.Client.ID))
	})
	for _, i := range all {
		if !f.match(i) {
			continue
		}
		l := listedSession{
			ID: i.Client.ID, Protocol: i.Client.Protocol, Service: i.Client.Service, State: i.Step.String(), Account: i.Account,
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

func sessionsCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "sessions",
		Short: "List the connections that are open, the oldest first",
		Long: `List the connections that are open, the oldest first. The state is where a
connection is: handshake (TLS), login (up to complete credentials), verifying
(they are checked), waiting (the answer is known and held back), opening (a
maildrop is listed) or session (the client is served).`,
		Args: cobra.NoArgs,
	}
	path, chosen := configFlag(cmd), filterFlags(cmd)
	asJSON := cmd.Flags().Bool("json", false, "one JSON object a line")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		f, err := chosen()
		if err != nil {
			return err
		}
		if *asJSON {
			lines := json.NewEncoder(cmd.OutOrStdout())
			return askRunning(cmd.Context(), *path, askSessions, f, func(l listedSession) error { return lines.Encode(l) })
		}
		t := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
		_, _ = fmt.Fprintln(t, "SESSION\tPROTOCOL\tACCOUNT\tCLIENT\tTLS\tBACKEND\tSINCE\tRECEIVED\tSENT\tSTATE")
		err = askRunning(cmd.Context(), *path, askSessions, f, func(l listedSession) error {
			_, err := fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%d\t%d\t%s\n", l.ID, l.Protocol, orDash(l.Account), l.Client,
				orDash(l.TLS), orDash(l.Backend), date(l.Since), l.Received, l.Sent, l.State)
			return err
		})
		return errors.Join(err, t.Flush())
	}
	return cmd
}

func kickCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "kick",
		Short: "End connections, each with a goodbye in its protocol's words",
		Long: `End the connections that have all that the flags name, each with a goodbye in
its protocol's words, and say how many they were. Clients may come again: who
must not is kept out by policy.file, or by the mail server.`,
		Args: cobra.NoArgs,
	}
	path, chosen := configFlag(cmd), filterFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		f, err := chosen()
		if err != nil {
			return err
		}
		if f == (filter{}) {
			return errors.New("want --session, --account, --address, --backend or --protocol, or several of them")
		}
		return askRunning(cmd.Context(), *path, askKick, f, func(n int) error {
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "ended: %d\n", n)
			return err
		})
	}
	return cmd
}

// A draining is what to do with the servers of a backend.
type draining struct {
	Backend string `json:"backend"`
	Address string `json:"address,omitempty"` // "": all of them
	Undo    bool   `json:"undo,omitempty"`
}

// A drained is a server of a backend after it.
type drained struct {
	Protocol    string `json:"protocol"`
	Address     string `json:"address"`
	Up          bool   `json:"up"`
	Drained     bool   `json:"drained"`
	Connections int    `json:"connections"`
}

func (s *site) drainBackend(_ context.Context, d draining, each func(drained) error) error {
	h := s.house.Load()
	var known []string
	found := false
	for key, pool := range h.pools {
		known = append(known, key.name)
		if key.name != d.Backend {
			continue
		}
		for _, m := range pool.Status() {
			if d.Address == "" || d.Address == m.Address {
				found = true
				if err := pool.Drain(m.Address, !d.Undo); err != nil {
					return err
				}
			}
		}
	}
	slices.Sort(known)
	switch {
	case !slices.Contains(known, d.Backend):
		return fmt.Errorf("%q is not a backend; use %s", d.Backend, strings.Join(slices.Compact(known), " or "))
	case !found:
		return fmt.Errorf("backend %s has no server %s", d.Backend, d.Address)
	}
	s.log.Info("backend drained", "backend", d.Backend, "address", cmp.Or(d.Address, "all"), "drained", !d.Undo)
	for _, key := range slices.SortedFunc(maps.Keys(h.pools), poolKey.compare) {
		if key.name != d.Backend {
			continue
		}
		for _, m := range h.pools[key].Status() {
			if err := each(drained{key.protocol, m.Address, m.Up, m.Drained, m.Connections}); err != nil {
				return err
			}
		}
	}
	return nil
}

func drainCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "drain BACKEND [ADDRESS]",
		Short: "Send no new logins to a backend, or to one of its servers",
		Long: `Send no new logins to a backend, or to the one of its servers at an address, and
show what is still connected. Sessions that are open stay until they end by
themselves: run the command again to see how many are left, or end them by
postern kick --backend. When every server is drained, logins are refused for
now. It lasts until --undo, until the backend's part of the configuration
changes, or until Postern is started again or upgraded.`,
		Args: cobra.RangeArgs(1, 2),
	}
	path := configFlag(cmd)
	undo := cmd.Flags().Bool("undo", false, "send logins there again")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		d := draining{Backend: args[0], Address: strings.Join(args[1:], ""), Undo: *undo}
		left := 0
		t := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
		_, _ = fmt.Fprintln(t, "PROTOCOL\tSERVER\tSTATE\tCONNECTIONS")
		err := askRunning(cmd.Context(), *path, askDrain, d, func(m drained) error {
			state := "down"
			switch {
			case m.Drained:
				state = "drained"
				left += m.Connections
			case m.Up:
				state = "up"
			}
			_, err := fmt.Fprintf(t, "%s\t%s\t%s\t%d\n", m.Protocol, m.Address, state, m.Connections)
			return err
		})
		if err = errors.Join(err, t.Flush()); err == nil && left > 0 {
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "connections that stay until they end by themselves: %d\n", left)
		}
		return err
	}
	return cmd
}

// setLogLevel sets the level, unless it is asked for "", and returns it.
func (s *site) setLogLevel(_ context.Context, level string) (string, error) {
	if level != "" {
		var l slog.Level
		if err := l.UnmarshalText([]byte(level)); err != nil {
			return "", err
		}
		s.level.Set(l)
	}
	return strings.ToLower(s.level.Level().String()), nil
}

func logLevelCommand() *cobra.Command {
	levels := []string{"debug", "info", "warn", "error"}
	cmd := &cobra.Command{
		Use:   "log-level [debug|info|warn|error]",
		Short: "Show how much is logged, or change it until the next reload",
		Args:  cobra.MatchAll(cobra.MaximumNArgs(1), cobra.OnlyValidArgs), ValidArgs: levels,
	}
	path := configFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return askRunning(cmd.Context(), *path, askLogLevel, strings.Join(args, ""), func(level string) error {
			_, err := fmt.Fprintln(cmd.OutOrStdout(), level)
			return err
		})
	}
	return cmd
}
