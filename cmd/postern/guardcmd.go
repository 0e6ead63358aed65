package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"postern/cmd/postern/internal/maillog"
	"postern/configs"
	"postern/proxy/admin"
	"postern/proxy/guard"
)

func guardCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "guard",
		Short: "The login guard: whom it refuses, why, and until when",
		Args:  cobra.NoArgs,
	}
	cmd.AddCommand(explainCommand(), listCommand(), unlockCommand(), seedCommand())
	return cmd
}

// An attempt that is asked about.
type explainQuestion struct {
	Account string     `json:"account"` // as typed
	Addr    netip.Addr `json:"addr"`
	Service string     `json:"service"`
}

// answerGuard answers the questions about the guard.
func (s *site) answerGuard(c *admin.Server) {
	admin.Handle(c, "guard/explain", func(_ context.Context, q explainQuestion) (guard.Explanation, error) {
		account, err := s.account(q.Account)
		if err != nil {
			return guard.Explanation{}, err
		}
		return s.guard.Explain(q.Service, account, q.Addr), nil
	})
	admin.HandleEach(c, "guard/list", func(_ context.Context, _ struct{}, each func(guard.Refused) error) error {
		for _, r := range s.guard.List() {
			if err := each(r); err != nil {
				return err
			}
		}
		return nil
	})
	admin.Handle(c, "guard/unlock", func(_ context.Context, name string) (string, error) {
		if network, ok, err := networkOf(name); ok || err != nil {
			if err == nil {
				s.guard.UnlockNetwork(network.Addr())
			}
			return network.String(), err
		}
		account, err := s.account(name)
		if err != nil {
			return "", err
		}
		s.guard.Unlock(account)
		return account, nil
	})
	admin.Handle(c, seedGuard.name, func(_ context.Context, logins []guard.Success) (int, error) {
		return s.guard.Seed(logins), nil
	})
}

// account returns the account that a name means.
func (s *site) account(name string) (string, error) {
	h := s.house.Load()
	if h == nil {
		return "", errors.New("not serving yet")
	}
	return h.routing.accounts.Account(name)
}

// networkOf reads an address, or a network of the size that has a budget. What is
// neither, without an error, is the name of an account.
func networkOf(text string) (network netip.Prefix, ok bool, err error) {
	addr, err := netip.ParseAddr(text)
	if err != nil {
		if network, err = netip.ParsePrefix(text); err != nil {
			return network, false, nil // it is a name
		}
		addr = network.Addr()
	}
	addr = addr.Unmap().WithZone("")
	size := min(addr.BitLen(), 64) // of IPv4 all, of IPv6 half
	if network.IsValid() && network.Bits() < size {
		return network, false, fmt.Errorf("%s is more than one network: unlock those that list shows", network)
	}
	network, err = addr.Prefix(size)
	return network, err == nil, err
}

// askGuard asks the Postern that runs: only that has a guard.
func askGuard[Out any](cmd *cobra.Command, path, name string, in any, each func(Out) error) error {
	cfg, err := configs.Read(path)
	if err != nil {
		return err
	}
	if cfg.Control.Socket == "" {
		return fmt.Errorf("%w that could be asked: control.socket is off", admin.ErrNotRunning)
	}
	return admin.CallEach(cmd.Context(), cfg.Control.Socket, "guard/"+name, in, each)
}

func explainCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "explain ACCOUNT ADDRESS",
		Short: "Say what the guard would do with a login, and which budget is how full",
		Args:  cobra.ExactArgs(2),
	}
	path := configFlag(cmd)
	listener := cmd.Flags().String("listener", "", "the `name` of the listener, if that has a guard of its own")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		addr, err := netip.ParseAddr(args[1])
		if err != nil {
			return fmt.Errorf("%q is not an IP address", args[1])
		}
		q := explainQuestion{Account: args[0], Addr: addr, Service: *listener}
		return askGuard(cmd, *path, "explain", q, func(e guard.Explanation) error { return explain(cmd.OutOrStdout(), e, time.Now()) })
	}
	return cmd
}

// tierWords say what a tier means.
var tierWords = map[guard.Tier]string{
	guard.KnownGood:     "the account has logged in from this network lately (retention.guard): it has a budget that nobody else can empty",
	guard.AreaFresh:     "the account has logged in from this area, but not from this network",
	guard.AreaUsed:      "the account has logged in from this area; wrong passwords came from this network today",
	guard.StrangerFresh: "the account has never logged in from this area",
	guard.StrangerUsed:  "the account has never logged in from this area; wrong passwords came from this network today",
}

func explain(to io.Writer, e guard.Explanation, now time.Time) error {
	w := tabwriter.NewWriter(to, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "account\t%s\nnetwork\t%s\ntier\t%s: %s\n", e.Account, e.Network, e.Tier, tierWords[e.Tier])
	last := "none that is remembered"
	if !e.Last.IsZero() {
		last = e.Last.Format(time.RFC3339)
	}
	fmt.Fprintf(w, "last login\t%s\naccounts here\t%d\n", last, e.Shared)
	if e.Trusted {
		fmt.Fprintf(w, "trusted\tthe network is in trusted_networks: it has no budget of its own\n")
	}
	if e.Learning {
		fmt.Fprintf(w, "learning\tnetworks have five times their budgets\n")
	}
	if e.Wrong > 0 {
		fmt.Fprintf(w, "wrong passwords\t%d remembered: they cost nothing more\n", e.Wrong)
	}
	fmt.Fprintf(w, "a login now\t%s\n\n", verdictOf(e, now))
	fmt.Fprintf(w, "BUDGET\tLEFT\tOF\tONE MORE EVERY\tNEXT\tUNDER WAY\n")
	for _, b := range e.Buckets {
		fmt.Fprintf(w, "%s\t%s\n", b.Bucket, strings.Join(columns(b, now), "\t"))
	}
	return w.Flush()
}

func verdictOf(e guard.Explanation, now time.Time) string {
	if e.Refused == guard.NoBucket {
		return "the server behind would be asked"
	}
	i := slices.IndexFunc(e.Buckets, func(b guard.State) bool { return b.Bucket == e.Refused })
	if i < 0 || e.Buckets[i].Next.IsZero() {
		return fmt.Sprintf("refused for now: too many of %s", e.Refused)
	}
	return fmt.Sprintf("refused for now: no more of %s until %s, in %s", e.Refused, e.Buckets[i].Next.Format(time.TimeOnly), remaining(e.Buckets[i].Next, now))
}

func columns(b guard.State, now time.Time) []string {
	left, of, every, next, running := "-", "-", "-", "-", "-"
	if b.Burst > 0 {
		left, of, every = fmt.Sprint(b.Tokens), fmt.Sprint(b.Burst), b.Every.String()
	}
	if !b.Next.IsZero() {
		next = remaining(b.Next, now)
	}
	if b.AtOnce > 0 {
		running = fmt.Sprintf("%d of %d", b.Running, b.AtOnce)
	}
	if b.Waiting > 0 {
		running += fmt.Sprintf(", %d wait", b.Waiting)
	}
	return []string{left, of, every, next, running}
}

func remaining(t, now time.Time) string { return max(0, t.Sub(now)).Round(time.Second).String() }

func listCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List whom the guard refuses now, those first that came most often",
		Long: `List whom the guard refuses now, those first that came most often. An account
that has never logged in is shown by a hash, because people type passwords for
names.`,
		Args: cobra.NoArgs,
	}
	path := configFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
		now, n := time.Now(), 0
		err := askGuard(cmd, *path, "list", struct{}{}, func(r guard.Refused) error {
			if n++; n == 1 {
				fmt.Fprintf(w, "ACCOUNT\tNETWORK\tTIER\tNO MORE OF\tREFUSED\tFOR\n")
			}
			account := r.Account
			if account == "" {
				account = "(" + r.Hash + ")"
			}
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d\t%s\n", account, r.Network, r.Tier, r.Bucket, r.Count, remaining(r.Until, now))
			return nil
		})
		return errors.Join(err, w.Flush())
	}
	return cmd
}

func unlockCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "unlock ACCOUNT | ADDRESS | NETWORK",
		Short: "Give an account, or a network, its budgets back",
		Args:  cobra.ExactArgs(1),
	}
	path := configFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return askGuard(cmd, *path, "unlock", args[0], func(unlocked string) error {
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "unlocked: %s\n", unlocked)
			return err
		})
	}
	return cmd
}

// seedGuard makes the networks of logins known-good.
var seedGuard = question[[]guard.Success, int]{"guard/seed", func(ctx context.Context, m *memory, logins []guard.Success, each func(int) error) error {
	if m.guard == nil {
		return errors.New("state.path is not set: the guard remembers nothing")
	}
	g := guard.New(m.guardConfig)
	if err := g.Load(ctx, m.guard); err != nil && !errors.Is(err, guard.ErrSnapshot) {
		return err
	}
	n := g.Seed(logins)
	if err := g.Save(ctx, m.guard); err != nil {
		return fmt.Errorf("store what the guard remembers: %w", err)
	}
	return each(n)
}}

func seedCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "seed --from LOG",
		Short: "Learn from a log of Dovecot or Postfix where accounts log in from",
		Long: `Learn from a log of Dovecot or Postfix where accounts log in from, so that the
guard knows them from the first day. What is older than retention.guard does not count.
Names are rewritten as those that clients type. A log that is compressed comes
by a pipe: zcat mail.log.*.gz | postern guard seed --from -`,
		Args: cobra.NoArgs,
	}
	path := configFlag(cmd)
	from := cmd.Flags().String("from", "", "the log `file`; -: standard input")
	zone := cmd.Flags().String("zone", "Local", "the time `zone` of timestamps that have none, such as Europe/Berlin")
	_ = cmd.MarkFlagRequired("from")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg, err := configs.Read(*path)
		if err != nil {
			return err
		}
		parser := maillog.Parser{Now: time.Now()}
		if parser.Zone, err = time.LoadLocation(*zone); err != nil {
			return err
		}
		in := cmd.InOrStdin()
		if *from != "-" {
			file, err := os.Open(*from)
			if err != nil {
				return err
			}
			defer func() { _ = file.Close() }()
			in = file
		}
		s, err := readSeed(in, parser, cfg, cmd.ErrOrStderr())
		if err != nil {
			return err
		}
		return s.sow(cmd, cfg)
	}
	return cmd
}

// A seed is what a log tells: the first and the last login of each account from
// each address.
type seed struct {
	progress maillog.Progress
	unusable int // names that are none here
	times    map[place][2]time.Time
}

type place struct {
	account string
	addr    netip.Addr
}

// mostPlaces bounds what is kept of a log: about 200 octets each.
const mostPlaces = 4 << 20

func readSeed(in io.Reader, parser maillog.Parser, cfg *configs.Config, tell io.Writer) (*seed, error) {
	accounts, mistakes := newAccounts(cfg)
	if mistakes != nil {
		return nil, mistakes
	}
	s := &seed{times: make(map[place][2]time.Time)}
	oldest := parser.Now.AddDate(0, 0, -int(cfg.Retention.Guard))
	var err error
	s.progress, err = parser.Read(in, func(login maillog.Login) error {
		if login.Time.Before(oldest) {
			return nil
		}
		account, err := accounts.Account(login.Account)
		if err != nil {
			s.unusable++
			return nil
		}
		at := place{account, login.Addr}
		times, ok := s.times[at]
		if !ok {
			if len(s.times) >= mostPlaces {
				return fmt.Errorf("the log has more than %d pairs of account and address", mostPlaces)
			}
			times = [2]time.Time{login.Time, login.Time}
		}
		if login.Time.Before(times[0]) {
			times[0] = login.Time
		}
		if login.Time.After(times[1]) {
			times[1] = login.Time
		}
		s.times[at] = times
		return nil
	}, func(p maillog.Progress) {
		fmt.Fprintf(tell, "\r%d MiB, %d lines, %d logins", p.Octets>>20, p.Lines, p.Logins)
	})
	if s.progress.Lines >= 1<<16 {
		fmt.Fprintln(tell)
	}
	if err != nil {
		return nil, fmt.Errorf("read the log: %w", err)
	}
	return s, nil
}

// sow gives the guard what the log has told, in parts that can be asked at once.
func (s *seed) sow(cmd *cobra.Command, cfg *configs.Config) error {
	const mostAtOnce = 100_000
	var logins []guard.Success
	added := 0
	flush := func() error {
		n, err := seedGuard.one(cmd.Context(), cfg, logins)
		added, logins = added+n, logins[:0]
		return err
	}
	for at, times := range s.times {
		for _, t := range slices.Compact(times[:]) {
			logins = append(logins, guard.Success{Account: at.account, Addr: at.addr, Time: t})
		}
		if len(logins) >= mostAtOnce {
			if err := flush(); err != nil {
				return err
			}
		}
	}
	if err := flush(); err != nil {
		return err
	}
	out := cmd.OutOrStdout()
	fmt.Fprintf(out, "%d lines, %d logins, of the last %d days %d pairs of account and address, %d new\n",
		s.progress.Lines, s.progress.Logins, cfg.Retention.Guard, len(s.times), added)
	if s.unusable > 0 {
		fmt.Fprintf(out, "%d logins had names that no account has here\n", s.unusable)
	}
	if s.progress.Skipped > 0 {
		fmt.Fprintf(out, "%d lines were too long and not read\n", s.progress.Skipped)
	}
	return nil
}
