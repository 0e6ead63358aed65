package main

import (
	"cmp"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"postern/cmd/postern/internal/service"
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

func explainCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "explain ACCOUNT [ADDRESS]",
		Short: "Say what the guard would do with a login, and which budget is how full",
		Long: `Say what the guard would do with a login of an account from an address now, and
which budget is how full. Without an address: what each network would get that logins
of the account came from, as far as the running Postern remembers them. Only the limits
of the guard are explained: whether the password is right, the backend says.
Sessions of ManageSieve count apart: they have a row, sessions (sieve), while there
are some.
account_hash is what the log has in place of the name while nobody has logged in
with it.`,
	}
	path, asJSON := configFlag(cmd), jsonFlag(cmd)
	listener := cmd.Flags().String("listener", "", "the `name` of the listener, if that has a guard of its own")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		q := service.ExplainQuestion{Account: args[0], Listener: *listener}
		if len(args) == 2 {
			var err error
			if q.Addr, err = netip.ParseAddr(args[1]); err != nil {
				return fmt.Errorf("%q is not an IP address", args[1])
			}
		}
		out, now := cmd.OutOrStdout(), time.Now()
		if q.Addr.IsValid() && !*asJSON {
			return callGuard(cmd, *path, "explain", q, func(e service.Explained) error { return explain(out, e, now) })
		}
		p := newPrinter(out, *asJSON, "NETWORK\tTIER\tA LOGIN NOW", func(e explainedLine) []any { return []any{e.Network, e.Tier, e.verdict} })
		return p.end(callGuard(cmd, *path, "explain", q, func(e service.Explained) error {
			if !*asJSON && !p.begun {
				fmt.Fprintf(out, "account %s, account_hash %s, known networks: %d (the guard has hashes of them, no addresses)\n",
					e.Account, e.AccountHash, e.KnownNetworks)
			}
			if !*asJSON && !e.Network.IsValid() {
				p.begun = true // no table
				_, err := fmt.Fprintln(out, "no network of the account is remembered with its address: give the address")
				return err
			}
			return p.print(newExplainedLine(e, now))
		}))
	}
	return cmd
}

// An explainedLine is a service.Explained in the form for output.
type explainedLine struct {
	Account     string       `json:"account"`
	AccountHash string       `json:"account_hash"`
	Known       int          `json:"known_networks"`
	Network     netip.Prefix `json:"network,omitzero"` // none: no network of the account is remembered
	Tier        string       `json:"tier,omitempty"`
	Trusted     bool         `json:"trusted,omitempty"`
	Learning    bool         `json:"learning,omitempty"`
	Shared      int          `json:"accounts_here"`
	Last        time.Time    `json:"last_login,omitzero"`
	Remembered  int          `json:"remembered_passwords"`
	Refused     string       `json:"refused,omitempty"` // the budget that is empty, or the limit that is reached
	Until       time.Time    `json:"until,omitzero"`
	Budgets     []budgetLine `json:"budgets,omitempty"`
	verdict     string
}

// A budgetLine is a guard.State in the form for output.
type budgetLine struct {
	Bucket  string    `json:"bucket"`
	Left    int       `json:"left"`
	Of      int       `json:"of"`
	Every   float64   `json:"every"` // seconds
	Next    time.Time `json:"next,omitzero"`
	Running int       `json:"running"`
	AtOnce  int       `json:"at_once"`
	Waiting int       `json:"waiting"`
	Sieve   bool      `json:"sieve,omitempty"` // of sessions: those of ManageSieve
}

func newExplainedLine(e service.Explained, now time.Time) explainedLine {
	l := explainedLine{Account: e.Account, AccountHash: e.AccountHash, Known: e.KnownNetworks}
	if !e.Network.IsValid() {
		return l
	}
	l.Network, l.Tier, l.Trusted, l.Learning, l.Shared = e.Network, e.Tier.String(), e.Trusted, e.Learning, e.Shared
	l.Last, l.Remembered, l.verdict = e.Last, e.Wrong, verdictOf(e.Explanation, now)
	for _, b := range e.Buckets {
		l.Budgets = append(l.Budgets, budgetLine{b.Bucket.String(), b.Tokens, b.Burst, b.Every.Seconds(), b.Next, b.Running, b.AtOnce, b.Waiting, b.Sieve})
		if b.Bucket == e.Refused && !b.Sieve {
			l.Refused, l.Until = e.Refused.String(), b.Next
		}
	}
	return l
}

// tierWords has the explanations of the tiers.
var tierWords = map[guard.Tier]string{
	guard.KnownGood:     "the account has logged in from this network lately (retention.guard): it has a budget that nobody else can empty",
	guard.AreaFresh:     "the account has logged in from this area, but not from this network",
	guard.AreaUsed:      "the account has logged in from this area; refused attempts came from this network today",
	guard.StrangerFresh: "the account has never logged in from this area",
	guard.StrangerUsed:  "the account has never logged in from this area; refused attempts came from this network today",
}

func explain(to io.Writer, e service.Explained, now time.Time) error {
	w := tabwriter.NewWriter(to, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "account\t%s\naccount_hash\t%s\nnetwork\t%s\ntier\t%s: %s\n", e.Account, e.AccountHash, e.Network, e.Tier, tierWords[e.Tier])
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
		fmt.Fprintf(w, "remembered\t%d passwords that were wrong, or had an answer that does not say: the same ones again cost nothing\n", e.Wrong)
	}
	fmt.Fprintf(w, "a login now\t%s\n\n", verdictOf(e.Explanation, now))
	fmt.Fprintf(w, "BUDGET\tLEFT\tOF\tONE MORE EVERY\tNEXT\tIN PROGRESS\n")
	for _, b := range e.Buckets {
		name := b.Bucket.String()
		if b.Sieve {
			name += " (sieve)"
		}
		fmt.Fprintf(w, "%s\t%s\n", name, strings.Join(columns(b, now), "\t"))
	}
	return w.Flush()
}

func verdictOf(e guard.Explanation, now time.Time) string {
	if e.Refused == guard.NoBucket {
		return "the guard lets it pass: the backend checks the password"
	}
	i := slices.IndexFunc(e.Buckets, func(b guard.State) bool { return b.Bucket == e.Refused })
	if i < 0 || e.Buckets[i].Next.IsZero() {
		return fmt.Sprintf("refused temporarily: too many of %s", e.Refused)
	}
	return fmt.Sprintf("refused temporarily: the budget %s is empty until %s, in %s", e.Refused, e.Buckets[i].Next.Format(time.TimeOnly), remaining(e.Buckets[i].Next, now))
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

// A refusedLine is a guard.Refused in the form for output.
type refusedLine struct {
	Account string       `json:"account,omitempty"` // "": it has never logged in
	Hash    string       `json:"account_hash"`
	Network netip.Prefix `json:"network"`
	Tier    string       `json:"tier"`
	Bucket  string       `json:"bucket"`
	Refused int          `json:"refused"` // attempts
	Last    time.Time    `json:"last"`
	Until   time.Time    `json:"until"`
}

func listCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List whom the guard refuses now, those first that came most often",
		Long: `List whom the guard refuses now, those first that came most often. An account
that has never logged in is shown by its account_hash of the log, because people
type passwords for names.`,
		Args: cobra.NoArgs,
	}
	path, asJSON := configFlag(cmd), jsonFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		now := time.Now()
		p := newPrinter(cmd.OutOrStdout(), *asJSON, "ACCOUNT\tNETWORK\tTIER\tEMPTY BUDGET\tREFUSED\tFOR", func(r refusedLine) []any {
			return []any{cmp.Or(r.Account, "("+r.Hash+")"), r.Network, r.Tier, r.Bucket, r.Refused, remaining(r.Until, now)}
		})
		return p.end(callGuard(cmd, *path, "list", struct{}{}, func(r guard.Refused) error {
			return p.print(refusedLine{r.Account, r.Hash, r.Network, r.Tier.String(), r.Bucket.String(), r.Count, r.Last, r.Until})
		}))
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
		return callGuard(cmd, *path, "unlock", args[0], func(u service.Unlocked) error {
			text := "unlocked: %s\n"
			if !u.Done {
				text = "nothing was locked: all budgets of %s are full\n"
			}
			_, err := fmt.Fprintf(cmd.OutOrStdout(), text, u.Name)
			return err
		})
	}
	return cmd
}
