package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"postern/cmd/postern/internal/stored"
	"postern/configs"
	"postern/metrics/ledger"
)

func accountCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "account",
		Short: "List accounts; show, export or forget all that is stored of one",
		Args:  cobra.NoArgs,
	}
	cmd.AddCommand(listAccountsCommand(), showAccountCommand(), exportAccountCommand(), forgetAccountCommand())
	return cmd
}

func listAccountsCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List which accounts log in with which protocol and TLS, and when they last did",
		Long: `List which accounts log in with which protocol and TLS, and when they last did:
who still needs POP3, or a version of TLS that is to be switched off. The version
is the oldest that the account used on its last day.`,
		Example: "postern account list --protocol pop3 --tls 1.0,1.1",
		Args:    cobra.NoArgs,
	}
	path := configFlag(cmd)
	var n stored.AccountFilter
	flags := cmd.Flags()
	flags.StringVar(&n.Protocol, "protocol", "", "only this `protocol`: imap, pop3, submission or sieve")
	flags.StringSliceVar(&n.TLS, "tls", nil, "only these `versions` of TLS: 1.0, 1.1, 1.2, 1.3 or none")
	since := flags.String("since", "30d", "seen within so many `days`")
	asJSON := jsonFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := checkProtocol(n.Protocol); err != nil {
			return err
		}
		if err := checkTLSVersions(n.TLS); err != nil {
			return err
		}
		days, err := configs.ParseDays(*since)
		if err != nil {
			return err
		}
		n.Since = ledger.Day(days.Before(time.Now()))
		cfg, err := configs.Read(*path)
		if err != nil {
			return err
		}
		p := newPrinter(cmd.OutOrStdout(), *asJSON, "ACCOUNT\tPROTOCOL\tTLS\tFIRST\tLAST\tLOGINS", func(e ledger.Entry) []any {
			return []any{e.Account, e.Protocol, e.TLS, e.First, e.Last, e.Logins}
		})
		return p.end(stored.ListAccounts.AskReadOnly(cmd.Context(), cfg, n, p.print))
	}
	return cmd
}

// tlsVersions are the names of versions of TLS in the ledger.
var tlsVersions = []string{"1.0", "1.1", "1.2", "1.3", "none"}

// checkTLSVersions returns an error unless all names are in tlsVersions.
func checkTLSVersions(names []string) error {
	for _, name := range names {
		if !slices.Contains(tlsVersions, name) {
			return fmt.Errorf("%q is not a version of TLS; use %s", name, enumerate(tlsVersions, "or"))
		}
	}
	return nil
}

// storedOf returns all stored data of the account of a login name. An account without
// data is an error.
func storedOf(ctx context.Context, cfg *configs.Config, name string) (stored.Account, error) {
	account, err := accountNamed(cfg, name)
	if err != nil {
		return stored.Account{}, err
	}
	// Data may be older than the rules in accounts: then its name is the one that was typed.
	for _, account := range slices.Compact([]string{account, name}) {
		if s, err := stored.ExportAccount.One(ctx, cfg, stored.AccountName(account)); err != nil || !s.Empty() {
			return s, err
		}
	}
	return stored.Account{}, fmt.Errorf("nothing is stored of %s", account)
}

func showAccountCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "show ACCOUNT",
		Short: "Show what is stored of an account",
		Long: `Show what is stored of an account: its days in the ledger,
how much is remembered of its mailbox and its unique ids of POP3, how many
devices have a password, and how many networks the login guard knows it from. postern account export writes all of it.`,
		Args: cobra.ExactArgs(1),
	}
	path := configFlag(cmd)
	asJSON := cmd.Flags().Bool("json", false, "all of it, as one JSON object: as export writes it")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		cfg, err := configs.Read(*path)
		if err != nil {
			return err
		}
		a, err := storedOf(cmd.Context(), cfg, args[0])
		if err != nil {
			return err
		}
		if *asJSON {
			return json.NewEncoder(cmd.OutOrStdout()).Encode(a)
		}
		return showAccount(cmd.OutOrStdout(), a)
	}
	return cmd
}

// showAccount prints a as lines of a key and a value.
func showAccount(out io.Writer, a stored.Account) error {
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintf(t, "account\t%s\npseudonym\t%s\n", a.Account, a.Pseudonym)
	for _, e := range a.Ledger {
		showUsage(t, e)
	}
	if l := a.POP3.Listing; l != nil {
		_, _ = fmt.Fprintf(t, "mailbox\tUIDVALIDITY %d, messages: %d, bytes: %d\n", l.UIDValidity, l.Messages, l.Octets)
	}
	if a.POP3.Record != nil {
		_, _ = fmt.Fprintf(t, "unique ids\trecorded (postern uidl history)\n")
	}
	if n := len(a.POP3.Deleted); n > 0 {
		_, _ = fmt.Fprintf(t, "deleted\tmessages that the server could only mark: %d\n", n)
	}
	if n := len(a.Devices); n > 0 {
		_, _ = fmt.Fprintf(t, "devices\twith a password: %d (postern password list)\n", n)
	}
	_, _ = fmt.Fprintf(t, "networks\tknown to the login guard: %d\n", a.Networks)
	if a.LastLogin != nil {
		_, _ = fmt.Fprintf(t, "last login\t%s\n", date(*a.LastLogin))
	}
	if a.Damaged != "" {
		_, _ = fmt.Fprintf(t, "damaged\t%s\n", a.Damaged)
	}
	return t.Flush()
}

// showUsage prints an entry of the ledger.
func showUsage(out io.Writer, e ledger.Entry) {
	if e.Last != "" {
		_, _ = fmt.Fprintf(out, "%s\tTLS %s, first %s, last %s, logins: %d", e.Protocol, e.TLS, e.First, e.Last, e.Logins)
		if e.Networks > 0 {
			_, _ = fmt.Fprintf(out, ", networks: about %d", e.Networks)
		}
		_, _ = fmt.Fprintln(out)
	}
	if s := e.Sessions; s != nil {
		_, _ = fmt.Fprintf(out, "%s sessions\t%d since %s, messages downloaded: %d, bytes: %d, deleted: %d, habit: %s\n",
			e.Protocol, s.Ended, s.Since, s.Messages, s.Octets, s.Deleted, ledger.HabitWords(s.Habit))
	}
	if m := e.Migration; m != nil {
		showMigration(out, e.Protocol, m)
	}
	if e.Plaintext != "" {
		_, _ = fmt.Fprintf(out, "%s without TLS\trefused %d times, last %s\n", e.Protocol, e.PlaintextTries, e.Plaintext)
	}
}

// showMigration prints what is known of an account's way from an old POP3 server.
func showMigration(out io.Writer, protocol string, m *ledger.Migration) {
	if m.Mode != "" {
		_, _ = fmt.Fprintf(out, "%s served by\t%s since %s, backend %s\n", protocol, m.Mode, date(m.Since), orDash(m.Backend))
	}
	if l := m.Learnt; !l.At.IsZero() {
		_, _ = fmt.Fprintf(out, "%s unique ids learnt\t%d of %d on %s (%s)\n", protocol, l.Found, l.Messages, date(l.At), l.By)
	}
	for _, c := range []struct {
		what string
		ledger.Compared
	}{{"compared", m.Compare}, {"compared after a session", m.Shadow}} {
		if !c.At.IsZero() {
			_, _ = fmt.Fprintf(out, "%s %s\t%s on %s, messages on the old server: %d\n", protocol, c.what, c.Result, date(c.At), c.Messages)
		}
	}
	if f := m.Failed; !f.At.IsZero() {
		_, _ = fmt.Fprintf(out, "%s %s failed\t%s: %s\n", protocol, f.Step, date(f.At), f.Text)
	}
}

func exportAccountCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "export ACCOUNT",
		Short: "Write all that is stored of an account, as JSON",
		Long: `Write all that is stored of an account, as JSON: its days in
the ledger, its unique ids of POP3, what is remembered of its mailbox, its devices
without their passwords, and how many networks the login guard knows it from. docs/privacy.md explains each.`,
		Args: cobra.ExactArgs(1),
	}
	path := configFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		cfg, err := configs.Read(*path)
		if err != nil {
			return err
		}
		s, err := storedOf(cmd.Context(), cfg, args[0])
		if err != nil {
			return err
		}
		out := json.NewEncoder(cmd.OutOrStdout())
		out.SetIndent("", "  ")
		return out.Encode(s)
	}
	return cmd
}

// devicesForgotten returns a sentence about the devices that log in no more.
func devicesForgotten(a stored.Account) string {
	if n := len(a.Devices); n > 0 {
		return fmt.Sprintf(" The passwords of its devices, %d, do not work any more.", n)
	}
	return ""
}

func forgetAccountCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "forget ACCOUNT",
		Short: "Forget all that is stored of an account",
		Long: `Forget all that is stored of an account. A session that is
open writes again what it knows when it ends: postern kick ends it. Logs are not
changed.`,
		Args: cobra.ExactArgs(1),
	}
	path := configFlag(cmd)
	yes := cmd.Flags().Bool("yes", false, "do not ask")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		cfg, err := configs.Read(*path)
		if err != nil {
			return err
		}
		a, err := storedOf(cmd.Context(), cfg, args[0])
		if err != nil {
			return err
		}
		if !*yes {
			if err := confirm(cmd, fmt.Sprintf(
				"All that is stored of %s will be forgotten. Its POP3 clients may then download all mail again, what they deleted on a server without UIDPLUS may be there again, and the login guard takes its networks for new ones.%s",
				a.Account, devicesForgotten(a))); err != nil {
				return err
			}
		}
		if _, err := stored.ForgetAccount.One(cmd.Context(), cfg, stored.AccountName(a.Account)); err != nil {
			return err
		}
		_, err = fmt.Fprintf(cmd.OutOrStdout(), "forgotten: %s\n", a.Account)
		return err
	}
	return cmd
}
