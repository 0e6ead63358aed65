package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"postern/bridge/oldserver"
	"postern/bridge/uidl"
	"postern/cmd/postern/internal/crawl"
	"postern/cmd/postern/internal/stored"
	"postern/configs"
	"postern/metrics/ledger"
	"postern/proxy"
)

func compareCommand() *cobra.Command {
	c := new(crawler)
	cmd := &cobra.Command{
		Use:   "compare --old HOST[:PORT] --user USER | --list FILE",
		Short: "Compare what the old POP3 server and Postern show of mailboxes",
		Long: `Ask the old POP3 server for the mailboxes of one account or many, and compare with
what Postern shows of the same mailboxes: unique ids, sizes, order, and the header
of every message; with --bodies the whole messages. Nothing is changed on either
server, and Postern need not run. Each difference is explained.

Passwords are read from the list, from --password-file, or typed. A master user
can log in on behalf of the users of a list without passwords.

The exit status is 0 if clients would notice nothing, 2 if they would, and 1 if an
account could not be compared.`,
		Example: "postern uidl compare --old pop3.example.org --list accounts.csv --resume compared.json",
		Args:    cobra.NoArgs,
	}
	path := configFlag(cmd)
	c.flags(cmd)
	_ = cmd.MarkFlagRequired("old")
	cmd.MarkFlagsOneRequired("user", "list")
	bodies := cmd.Flags().Bool("bodies", false, "compare whole messages, which reads all mail twice")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		s := &comparisons{worst: ranking[crawl.Outcome[oldserver.Comparison]]{
			weight: func(o crawl.Outcome[oldserver.Comparison]) int { return o.Result.Weight() },
		}}
		return runCrawl(cmd, c, "uidl compare", s, func(ctx context.Context, cfg *configs.Config, a crawl.Account) (oldserver.Comparison, error) {
			return c.compare(ctx, cfg, a, *bodies)
		}, *path)
	}
	return cmd
}

// compare compares the maildrops of an account.
func (c *crawler) compare(ctx context.Context, cfg *configs.Config, a crawl.Account, bodies bool) (result oldserver.Comparison, err error) {
	old, mailbox, err := c.open(ctx, a)
	if err != nil {
		return result, err
	}
	defer func() { _ = old.Close() }()
	var record *uidl.Record
	if cfg.State.Path != "" {
		if record, err = stored.ReadUIDLs.One(ctx, cfg, stored.AccountName(mailbox.Account)); err != nil && !errors.Is(err, stored.ErrNeverRan) {
			return result, err
		}
	}
	conn, err := mailbox.Show(ctx, record)
	if err != nil {
		return result, err
	}
	shown, err := new(oldserver.Server).Attach(ctx, conn)
	if err != nil {
		return result, fmt.Errorf("own session: %w", err)
	}
	defer shown.Abandon()
	result, err = oldserver.Compare(ctx, old, shown, bodies)
	if err != nil || cfg.State.Path == "" {
		return result, err
	}
	// Without it report pop3 --ready does not know of the comparison.
	err = stored.NoteCompared.Ask(ctx, cfg, outcomeOf(mailbox.Account, result, record != nil), func(struct{}) error { return nil })
	if errors.Is(err, stored.ErrNeverRan) {
		err = nil // there is no ledger yet
	}
	return result, err
}

// outcomeOf returns what is noted of a comparison. recorded says whether the account has a
// record of unique ids.
func outcomeOf(account string, c oldserver.Comparison, recorded bool) stored.Outcome {
	n := func(f oldserver.Finding) int { return c.Findings[f] }
	o := stored.Outcome{Account: account, Compare: ledger.Compared{
		At: time.Now(), Result: proxy.ShadowDiffers, Recorded: recorded, Messages: c.Old, Missing: n(oldserver.NotHere), Extra: n(oldserver.Later),
		UIDLs: n(oldserver.OtherUIDL) + n(oldserver.OtherMessage) + n(oldserver.OtherContent), Unproven: n(oldserver.NotCompared),
		Sizes: n(oldserver.OtherSize), Order: n(oldserver.Moved),
	}}
	switch {
	case c.Equal():
		o.Compare.Result = proxy.ShadowClean
	case c.Old > 0 && o.Compare.Missing == c.Old:
		o.Compare.Result = proxy.ShadowNotCopied
	}
	return o
}

// comparisons is the summary of a compare.
type comparisons struct {
	accounts, equal, messages int
	failed                    failures
	findings                  map[oldserver.Finding]int
	worst                     ranking[crawl.Outcome[oldserver.Comparison]]
}

func (s *comparisons) take(o crawl.Outcome[oldserver.Comparison]) {
	s.accounts++
	if o.Error != "" {
		s.failed.add(o.User, o.Error)
		return
	}
	s.messages += o.Result.Old
	if o.Result.Equal() {
		s.equal++
	}
	if s.findings == nil {
		s.findings = make(map[oldserver.Finding]int)
	}
	for f, n := range o.Result.Findings {
		s.findings[f] += n
	}
	s.worst.add(o)
}

func (s *comparisons) print(out io.Writer) error {
	_, _ = fmt.Fprintf(out, "accounts: %d, equal: %d, different: %d, failed: %d; messages on the old server: %d\n",
		s.accounts, s.equal, s.accounts-s.equal-s.failed.n, s.failed.n, s.messages)
	for _, f := range slices.Sorted(maps.Keys(s.findings)) {
		_, _ = fmt.Fprintf(out, "  %d messages: %s\n", s.findings[f], f)
	}
	s.failed.print(out)
	if len(s.worst.values) > 0 {
		_, _ = fmt.Fprintln(out, "look at these first:")
	}
	for _, o := range s.worst.values {
		_, _ = fmt.Fprintf(out, "%s: %d messages there, %d here, %d the same\n", o.User, o.Result.Old, o.Result.New, o.Result.Same)
		for _, d := range o.Result.Examples[:min(len(o.Result.Examples), 3)] {
			_, _ = fmt.Fprintf(out, "  %s\n", describeDifference(d))
		}
	}
	switch {
	case s.failed.n > 0:
		return exitStatus(1)
	case s.equal < s.accounts:
		return differs
	}
	return nil
}

func describeDifference(d oldserver.Difference) string {
	where := fmt.Sprintf("message %d, %q", d.Old, d.UIDL)
	switch {
	case d.Old == 0:
		where = fmt.Sprintf("message %d here, %q", d.New, d.UIDL)
	case d.NewUIDL != "":
		where += fmt.Sprintf(", here %d, %q", d.New, d.NewUIDL)
	case d.New != 0:
		where += fmt.Sprintf(", here %d", d.New)
	}
	return fmt.Sprintf("%s: %s", where, d.Finding)
}
