package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync/atomic"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"postern/bridge"
	"postern/configs"
	"postern/metrics"
	"postern/metrics/ledger"
	"postern/metrics/page"
	"postern/proxy"
	"postern/proxy/guard"
)

// A ledgerKeeper is the observer of a ledger that is made when the state is
// open.
type ledgerKeeper struct{ atomic.Pointer[ledger.Ledger] }

// Observe implements proxy.Observer.
func (k *ledgerKeeper) Observe(e proxy.Event) {
	if l := k.Load(); l != nil {
		l.Observe(e)
	}
}

// A ledgerStore is where the ledger stands in the archive that is open.
type ledgerStore struct{ *memory }

// ledger returns what a ledger is written to.
func (m *memory) ledger() ledger.Store { return ledgerStore{m} }

// UpdateAll implements ledger.Store.
func (s ledgerStore) UpdateAll(ctx context.Context, keys []string, change func(key string, old []byte) ([]byte, error)) error {
	return s.archive.ledger.UpdateAll(ctx, keys, change)
}

// Scan implements ledger.Store.
func (s ledgerStore) Scan(ctx context.Context, prefix string, each func(key string, value []byte) error) error {
	return s.archive.ledger.Scan(ctx, prefix, each)
}

// openLedger begins to note who logs in with what, if anything is remembered.
func (s *site) openLedger(ctx context.Context) {
	if s.memory.archive == nil {
		s.names = newPseudonyms(nil)
		return
	}
	key, err := s.memory.archive.pseudonymKey(ctx)
	if err != nil {
		s.log.Warn("accounts have other pseudonyms in the log than before", "err", err)
	}
	s.names = newPseudonyms(key)
	l := ledger.New(s.memory.ledger(), s.log, nil)
	s.ledger.Store(l)
	s.memory.flush, s.memory.guarding = l.Write, s.guard
	s.keepers = append(s.keepers, s.whileWhole(recordOf, l.Run), s.retain, s.reportBroken)
}

// accountsSeen is the ledger as metrics show it.
func (s *site) accountsSeen() metrics.Accounts {
	l := s.ledger.Load()
	if l == nil {
		return metrics.Accounts{}
	}
	c := l.Counts()
	return metrics.Accounts{Protocols: c.Protocols, TLS: c.TLS}
}

// accountsOnPage is the ledger as the status page shows it.
func (s *site) accountsOnPage() (all []page.Accounts) {
	l := s.ledger.Load()
	if l == nil {
		return nil
	}
	c := l.Counts()
	if c.Since.IsZero() {
		return nil
	}
	for _, protocol := range []string{proxy.IMAP, proxy.POP3, proxy.Submission} {
		a := page.Accounts{Protocol: protocol, All: c.Protocols[protocol]}
		for i, version := range []string{"1.3", "1.2", "1.1", "1.0"} {
			a.TLS[i] = c.TLS[[2]string{protocol, version}]
		}
		all = append(all, a)
	}
	return all
}

// A need is which entries of the ledger are asked for.
type need struct {
	Protocol string   `json:"protocol,omitempty"` // "": any
	TLS      []string `json:"tls,omitempty"`      // none: any
	Since    string   `json:"since,omitempty"`    // a day: seen then, or later
}

func (n need) has(e ledger.Entry) bool {
	return (n.Protocol == "" || n.Protocol == e.Protocol) && (n.TLS == nil || slices.Contains(n.TLS, e.TLS)) && e.Last >= n.Since
}

var listAccounts = question[need, ledger.Entry]{"accounts", func(ctx context.Context, m *memory, n need, each func(ledger.Entry) error) error {
	a, err := m.open(ctx)
	if err != nil {
		return err
	}
	return ledger.Entries(ctx, a.ledger, "", func(e ledger.Entry) error {
		if !n.has(e) {
			return nil
		}
		return each(e)
	})
}}

func accountsCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "accounts",
		Short: "List which accounts log in with which protocol and TLS, and when they last did",
		Long: `List which accounts log in with which protocol and TLS, and when they last did:
who still needs POP3, or a version of TLS that is to be switched off. The version
is the oldest that the account used on its last day.`,
		Example: "postern accounts --protocol pop3 --tls 1.0,1.1",
		Args:    cobra.NoArgs,
	}
	path := configFlag(cmd)
	var n need
	flags := cmd.Flags()
	flags.StringVar(&n.Protocol, "protocol", "", "only this `protocol`: imap, pop3 or submission")
	flags.StringSliceVar(&n.TLS, "tls", nil, "only these `versions` of TLS: 1.0, 1.1, 1.2, 1.3 or none")
	since := flags.String("since", "30d", "seen within so many `days`")
	asJSON := flags.Bool("json", false, "one JSON object a line")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		days, err := configs.ParseDays(*since)
		if err != nil {
			return err
		}
		n.Since = ledger.Day(days.Before(time.Now()))
		cfg, err := configs.Read(*path)
		if err != nil {
			return err
		}
		if *asJSON {
			lines := json.NewEncoder(cmd.OutOrStdout())
			return listAccounts.ask(cmd.Context(), cfg, n, func(e ledger.Entry) error { return lines.Encode(e) })
		}
		t := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
		_, _ = fmt.Fprintln(t, "ACCOUNT\tPROTOCOL\tTLS\tFIRST\tLAST\tLOGINS")
		err = listAccounts.ask(cmd.Context(), cfg, n, func(e ledger.Entry) error {
			_, err := fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%d\n", e.Account, e.Protocol, e.TLS, e.First, e.Last, e.Logins)
			return err
		})
		return errors.Join(err, t.Flush())
	}
	return cmd
}

func accountCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "account",
		Short: "Show, or forget, all that is stored of one account",
		Args:  cobra.NoArgs,
	}
	cmd.AddCommand(exportAccountCommand(), forgetAccountCommand())
	return cmd
}

// A storedAccount is all that is stored of an account. An account's networks
// are stored as keyed hashes alone, so there is only their number.
type storedAccount struct {
	Account   string         `json:"account"`
	Pseudonym string         `json:"pseudonym"` // in logs, if privacy.users says so
	Ledger    []ledger.Entry `json:"ledger"`
	POP3      bridge.Stored  `json:"pop3"`
	Networks  int            `json:"known_networks"` // of the login guard
	LastLogin *time.Time     `json:"last_login,omitempty"`
	Damaged   string         `json:"damaged,omitempty"` // what cannot be read
}

func (s *storedAccount) empty() bool {
	return len(s.Ledger) == 0 && s.POP3.Record == nil && s.POP3.Listing == nil && s.POP3.Deleted == nil && s.POP3.Prints == 0 &&
		s.Networks == 0 && s.Damaged == ""
}

// loadGuard returns the guard that runs, or one that has what was stored of it.
func (m *memory) loadGuard(ctx context.Context) (*guard.Guard, error) {
	if m.guarding != nil {
		return m.guarding, nil
	}
	g := guard.New(m.guardConfig)
	if err := g.Load(ctx, m.guard); err != nil && !errors.Is(err, guard.ErrSnapshot) {
		return nil, err
	}
	return g, nil
}

var exportAccount = question[string, storedAccount]{"account/export", func(ctx context.Context, m *memory, account string, each func(storedAccount) error) error {
	a, err := m.open(ctx)
	if err != nil {
		return err
	}
	s := storedAccount{Account: account, Ledger: []ledger.Entry{}}
	key, err := a.pseudonymKey(ctx)
	if err != nil {
		return err
	}
	s.Pseudonym = newPseudonyms(key).of(account)
	err = ledger.Entries(ctx, a.ledger, account, func(e ledger.Entry) error {
		s.Ledger = append(s.Ledger, e)
		return nil
	})
	if err != nil {
		return err
	}
	if s.POP3, err = bridge.Look(ctx, m.cache, m.record, account); err != nil {
		s.Damaged = err.Error()
	}
	g, err := m.loadGuard(ctx)
	if err != nil {
		return err
	}
	if s.Networks = g.Known(account); s.Networks > 0 {
		last := g.Explain("", account, netip.Addr{}).Last.Truncate(time.Second)
		s.LastLogin = &last
	}
	return each(s)
}}

// storedOf returns all that is stored of an account. Nothing is an error.
func storedOf(ctx context.Context, cfg *configs.Config, account string) (storedAccount, error) {
	s, err := exportAccount.one(ctx, cfg, account)
	if err == nil && s.empty() {
		err = fmt.Errorf("nothing is stored of %s", account)
	}
	return s, err
}

func exportAccountCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "export ACCOUNT",
		Short: "Write all that is stored of an account, as JSON",
		Long: `Write all that is stored of an account, named as in the log, as JSON: its days in
the ledger, its unique ids of POP3, what is remembered of its mailbox, and how
many networks the login guard knows it from. docs/privacy.md explains each.`,
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

var forgetAccount = question[string, struct{}]{"account/forget", func(ctx context.Context, m *memory, account string, each func(struct{}) error) error {
	a, err := m.open(ctx)
	if err != nil {
		return err
	}
	if _, err := ledger.Forget(ctx, a.ledger, account); err != nil {
		return err
	}
	if err := a.erase(ctx, []string{account}); err != nil {
		return err
	}
	g, err := m.loadGuard(ctx)
	if err != nil {
		return err
	}
	g.Forget(account)
	if err := g.Save(ctx, m.guard); err != nil {
		return fmt.Errorf("store what the guard remembers: %w", err)
	}
	return each(struct{}{})
}}

func forgetAccountCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "forget ACCOUNT",
		Short: "Forget all that is stored of an account",
		Long: `Forget all that is stored of an account, named as in the log. A session that is
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
		if _, err := storedOf(cmd.Context(), cfg, args[0]); err != nil {
			return err
		}
		if !*yes {
			if err := confirm(cmd, fmt.Sprintf(
				"All that is stored of %s will be forgotten. Its POP3 clients may then download all mail again, what they deleted on a server without UIDPLUS may be there again, and the login guard takes its networks for new ones.",
				args[0])); err != nil {
				return err
			}
		}
		if _, err := forgetAccount.one(cmd.Context(), cfg, args[0]); err != nil {
			return err
		}
		_, err = fmt.Fprintf(cmd.OutOrStdout(), "forgotten: %s\n", args[0])
		return err
	}
	return cmd
}
