package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"postern/bridge"
	"postern/configs"
	"postern/proxy"
)

func uidlCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "uidl",
		Short: "The unique ids by which POP3 clients know what they have fetched",
		Args:  cobra.NoArgs,
	}
	cmd.AddCommand(detectCommand(), forgetCommand(), exportCommand(), importCommand(), historyCommand(), undoCommand(), acceptCommand())
	return cmd
}

// A selection is some accounts. The zero value is all.
type selection struct {
	Account string `json:"account,omitempty"`
	Domain  string `json:"domain,omitempty"`
}

// selectionFlags adds flags to cmd. What they select is known when it runs.
func selectionFlags(cmd *cobra.Command) func(args []string) selection {
	domain := cmd.Flags().String("domain", "", "all accounts of this `domain`")
	cmd.Flags().Bool("all", false, "all accounts")
	return func(args []string) selection {
		return selection{strings.Join(args, ""), strings.TrimPrefix(*domain, "@")}
	}
}

// oneSelection wants an account, or --domain, or --all.
func oneSelection(cmd *cobra.Command, args []string) error {
	if selections(cmd, args) != 1 {
		return errors.New("want an account, or --domain, or --all")
	}
	return nil
}

func selections(cmd *cobra.Command, args []string) int {
	n := len(args)
	for _, name := range []string{"domain", "all"} {
		if cmd.Flags().Changed(name) {
			n++
		}
	}
	return n
}

func (s selection) has(account string) bool {
	switch {
	case s.Account != "":
		return account == s.Account
	case s.Domain != "":
		at := strings.LastIndexByte(account, '@')
		return at >= 0 && strings.EqualFold(account[at+1:], s.Domain)
	}
	return true
}

func (s selection) String() string {
	switch {
	case s.Account != "":
		return s.Account
	case s.Domain != "":
		return "all accounts of " + s.Domain
	}
	return "all accounts"
}

var forgetUIDLs = question[selection, int]{"uidl/forget", func(ctx context.Context, m *memory, s selection, each func(int) error) error {
	if m.record == nil {
		return errNoRecord
	}
	lost, err := m.archive.forgetLost(ctx, s.has)
	if err != nil {
		return err
	}
	n, err := bridge.Forget(ctx, m.archive.listings, m.archive.uidls, s.has)
	if err != nil {
		return err
	}
	return each(n + lost)
}}

var exportUIDLs = question[selection, bridge.Recorded]{"uidl/export", func(ctx context.Context, m *memory, s selection, each func(bridge.Recorded) error) error {
	if m.record == nil {
		return errNoRecord
	}
	return bridge.Export(ctx, m.record, func(r bridge.Recorded) error {
		if !s.has(r.Account) {
			return nil
		}
		return each(r)
	})
}}

var importUIDLs = question[[]bridge.Recorded, int]{"uidl/import", func(ctx context.Context, m *memory, all []bridge.Recorded, each func(int) error) error {
	if m.record == nil {
		return errNoRecord
	}
	errs := make([]error, len(all))
	var wg sync.WaitGroup
	for i, r := range all {
		wg.Go(func() { errs[i] = bridge.Import(ctx, m.record, r) }) // together, they share one flush of the disk
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if err := m.archive.recount(ctx); err != nil {
		return err
	}
	return each(len(all))
}}

// An acceptance is what an operator expects of a backend.
type acceptance struct {
	Backend string        `json:"backend"`
	For     time.Duration `json:"for"` // nanoseconds
}

// acceptChanges answers with the time until when.
var acceptChanges = question[acceptance, time.Time]{"uidl/accept", func(ctx context.Context, m *memory, in acceptance, each func(time.Time) error) error {
	b, err := m.brake(ctx, in.Backend)
	if err != nil {
		return err
	}
	until, err := b.Accept(ctx, in.For)
	if err != nil {
		return err
	}
	return each(until)
}}

var uidlHistory = question[string, bridge.Past]{"uidl/history", func(ctx context.Context, m *memory, account string, each func(bridge.Past) error) error {
	if m.record == nil {
		return errNoRecord
	}
	all, err := bridge.History(ctx, m.record, account)
	if err != nil {
		return err
	}
	for _, p := range all {
		if err := each(p); err != nil {
			return err
		}
	}
	return nil
}}

var undoUIDLs = question[string, int]{"uidl/undo", func(ctx context.Context, m *memory, account string, each func(int) error) error {
	if m.record == nil {
		return errNoRecord
	}
	if m.serving != nil {
		if err := m.serving(account); err != nil {
			return err
		}
	}
	n, err := bridge.Undo(ctx, m.record, account)
	if err != nil {
		return err
	}
	return each(n)
}}

// serving is an error if a POP3 session of an account may be open, here or in the
// process that this one has replaced.
func (s *site) serving(account string) error {
	for _, i := range s.server.Sessions() {
		if i.Account == account && i.Client.Protocol == proxy.POP3 {
			return fmt.Errorf("a POP3 session of %s is open: end it with postern kick --protocol pop3 --account %s", account, account)
		}
	}
	if s.predecessor != nil && !s.predecessor.gone.Load() {
		return errors.New("sessions of the process before the upgrade are open: wait until it has ended")
	}
	return nil
}

// accountNamed returns the account that a name means.
func accountNamed(cfg *configs.Config, name string) (string, error) {
	accounts, mistakes := newAccounts(cfg)
	if mistakes != nil {
		return "", mistakes
	}
	return accounts.Account(name)
}

var errNoRecord = errors.New("state.path is not set: no unique ids are recorded")

func forgetCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "forget ACCOUNT | --domain DOMAIN | --all",
		Short: "Forget which unique ids were shown, so that the present format computes all",
		Long: `Forget which unique ids were shown to the POP3 clients of an account, named as
in the log and in an export. From the next login on they are what pop3.uidl says.
Clients that leave mail on the server download all of it again if that differs.
Sessions that are open go on with the old ones.`,
		Args: oneSelection,
	}
	path, selected := configFlag(cmd), selectionFlags(cmd)
	yes := cmd.Flags().Bool("yes", false, "do not ask")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		cfg, err := configs.Read(*path)
		if err != nil {
			return err
		}
		s := selected(args)
		if !*yes {
			if err := confirm(cmd, fmt.Sprintf(
				"The unique ids of %s will be forgotten. Clients may then download all mail again.", s)); err != nil {
				return err
			}
		}
		n, err := forgetUIDLs.one(cmd.Context(), cfg, s)
		if err == nil && n == 0 {
			err = fmt.Errorf("there is no record of %s", s)
		}
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(cmd.OutOrStdout(), "forgotten: %d\n", n)
		return err
	}
	return cmd
}

// confirm returns an error unless the operator says yes.
func confirm(cmd *cobra.Command, consequence string) error {
	_, _ = fmt.Fprintf(cmd.ErrOrStderr(), "%s\nType yes to go on: ", consequence)
	answer, err := bufio.NewReader(io.LimitReader(cmd.InOrStdin(), 1<<10)).ReadString('\n')
	if strings.TrimSpace(answer) == "yes" {
		return nil
	}
	if err != nil {
		_, _ = fmt.Fprintln(cmd.ErrOrStderr())
	}
	return errors.New("nothing was done: the answer was not yes (scripts say --yes)")
}

func acceptCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "accept BACKEND",
		Short: "Accept that the mailboxes of a backend look different from the last poll",
		Long: `Accept that many mailboxes of a backend look different from the last poll: another
UIDVALIDITY, or all or half of the mail gone. When that happens to more than 1 % of
the accounts within 10 minutes, Postern refuses these accounts for now, and records
nothing of them, until this command says that it is right. Given before a move of
mail it prevents that. If it is not right (a store that is not mounted, a wrong
route) put that right first.`,
		Args: cobra.ExactArgs(1),
	}
	path := configFlag(cmd)
	d := cmd.Flags().Duration("for", bridge.DefaultAccept, "how `long`, from 1m to 720h; after that changes are counted again")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		cfg, err := configs.Read(*path)
		if err != nil {
			return err
		}
		until, err := acceptChanges.one(cmd.Context(), cfg, acceptance{args[0], *d})
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(cmd.OutOrStdout(), "accepted: mailboxes of %s may look different until %s\n", args[0], until.UTC().Format(time.RFC3339))
		return err
	}
	return cmd
}

func exportCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "export [ACCOUNT | --domain DOMAIN | --all]",
		Short: "Write the record of unique ids, an account a line, as JSON",
		Args: func(cmd *cobra.Command, args []string) error {
			if selections(cmd, args) == 0 {
				return nil
			}
			return oneSelection(cmd, args)
		},
	}
	path, selected := configFlag(cmd), selectionFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		cfg, err := configs.Read(*path)
		if err != nil {
			return err
		}
		out := bufio.NewWriter(cmd.OutOrStdout())
		lines, n, s := json.NewEncoder(out), 0, selected(args)
		err = exportUIDLs.ask(cmd.Context(), cfg, s, func(r bridge.Recorded) error {
			n++
			return lines.Encode(r)
		})
		if err == nil && n == 0 && s != (selection{}) {
			err = fmt.Errorf("there is no record of %s", s)
		}
		return errors.Join(err, out.Flush())
	}
	return cmd
}

func importCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "import",
		Short: "Read what export has written, from standard input, in place of what is recorded",
		Long: `Read from standard input what export has written, or somebody else in the same
form, and make it the record of the accounts in it, whatever was there. Other
accounts stay as they are. All lines are checked before the first one counts.`,
		Args: cobra.NoArgs,
	}
	path := configFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg, err := configs.Read(*path)
		if err != nil {
			return err
		}
		batches, err := readRecords(cmd.InOrStdin())
		if err != nil {
			return err
		}
		total := 0
		for _, batch := range batches {
			n, err := importUIDLs.one(cmd.Context(), cfg, batch)
			if err != nil {
				return fmt.Errorf("after %d accounts: %w", total, err)
			}
			total += n
		}
		_, err = fmt.Fprintf(cmd.OutOrStdout(), "imported: %d\n", total)
		return err
	}
	return cmd
}

func historyCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "history ACCOUNT",
		Short: "Show which UIDVALIDITYs the record of an account has, and how many names",
		Long: `Show the generations in the record of an account: the present UIDVALIDITY of its
INBOX and up to three before it, since when each was known and when it was last
seen, of how many messages there is a fingerprint or a name, how many have a unique
id that no format computes, and of how many messages that have vanished such an id
is kept.`,
		Args: cobra.ExactArgs(1),
	}
	path := configFlag(cmd)
	asJSON := cmd.Flags().Bool("json", false, "one JSON object a line")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		cfg, err := configs.Read(*path)
		if err != nil {
			return err
		}
		account, err := accountNamed(cfg, args[0])
		if err != nil {
			return err
		}
		n, lines, t := 0, json.NewEncoder(cmd.OutOrStdout()), tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
		err = uidlHistory.ask(cmd.Context(), cfg, account, func(p bridge.Past) error {
			if n++; *asJSON {
				return lines.Encode(p)
			}
			if n == 1 {
				_, _ = fmt.Fprintln(t, "GENERATION\tUIDVALIDITY\tUIDNEXT\tSINCE\tSEEN\tMESSAGES\tNAMES\tVANISHED NAMES")
			}
			generation := "before"
			if p.Present {
				generation = "present"
			}
			_, err := fmt.Fprintf(t, "%s\t%d\t%d\t%s\t%s\t%d\t%d\t%d\n", generation, p.UIDValidity, p.UIDNext, orDash(p.Since.String()),
				orDash(p.Seen.String()), p.Messages, p.Names, p.VanishedNames)
			return err
		})
		if err == nil && n == 0 {
			err = fmt.Errorf("there is no record of %s", account)
		}
		return errors.Join(err, t.Flush())
	}
	return cmd
}

func undoCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "undo ACCOUNT",
		Short: "Give messages the unique ids again that they had before UIDVALIDITY changed",
		Long: `Make the unique ids of the generation before the present one those of the messages
of the present one that have the same fingerprint. It is for a move of mail after
which they were not recognised, or recognised wrongly. Clients that have fetched the
messages again know the present unique ids, and then fetch them once more. The
present ones are kept in the record and are never given to another message; undo
again takes it back. No POP3 session of the account may be open.`,
		Args: cobra.ExactArgs(1),
	}
	path := configFlag(cmd)
	yes := cmd.Flags().Bool("yes", false, "do not ask")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		cfg, err := configs.Read(*path)
		if err != nil {
			return err
		}
		account, err := accountNamed(cfg, args[0])
		if err != nil {
			return err
		}
		if !*yes {
			if err := confirm(cmd, fmt.Sprintf(
				"Messages of %s get the unique ids of the generation before. Clients that know the present ones download them again.", account)); err != nil {
				return err
			}
		}
		n, err := undoUIDLs.one(cmd.Context(), cfg, account)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(cmd.OutOrStdout(), "changed: %d\n", n)
		return err
	}
	return cmd
}

const (
	maxLine  = 48 << 20 // octets of an account: about 500,000 messages with fingerprints
	maxBatch = 4 << 20  // octets after which a question is long enough
	mostOfIt = 500      // accounts in it
)

// readRecords reads an export and checks it. It comes in parts that can be
// asked at once.
func readRecords(in io.Reader) (batches [][]bridge.Recorded, err error) {
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, maxLine)
	seen := make(map[string]bool)
	var batch []bridge.Recorded
	size := 0
	for n := 1; lines.Scan(); n++ {
		if len(bytes.TrimSpace(lines.Bytes())) == 0 {
			continue
		}
		r, err := readRecord(lines.Bytes())
		if err == nil && seen[r.Account] {
			err = fmt.Errorf("%s was there already", r.Account)
		}
		if err != nil {
			return nil, fmt.Errorf("line %d, nothing was imported: %w", n, err)
		}
		seen[r.Account] = true
		if len(batch) == mostOfIt || size > maxBatch {
			batches, batch, size = append(batches, batch), nil, 0
		}
		batch, size = append(batch, r), size+len(lines.Bytes())
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("nothing was imported: %w", err)
	}
	if len(seen) == 0 {
		return nil, errors.New("there is nothing to import")
	}
	return append(batches, batch), nil
}

func readRecord(line []byte) (r bridge.Recorded, err error) {
	d := json.NewDecoder(bytes.NewReader(line))
	d.DisallowUnknownFields()
	if err := d.Decode(&r); err != nil {
		return r, err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return r, errors.New("more than one value")
	}
	if r.Account == "" || r.Record == nil {
		return r, errors.New("no account or no record")
	}
	return r, r.Record.Check()
}
