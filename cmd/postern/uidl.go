package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"postern/bridge"
	"postern/cmd/postern/internal/stored"
	"postern/configs"
)

func uidlCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "uidl",
		Short: "The unique ids by which POP3 clients know what they have fetched",
		Args:  cobra.NoArgs,
	}
	cmd.AddCommand(detectCommand(), compareCommand(), forgetCommand(), exportCommand(), importCommand(), historyCommand(), undoCommand(), acceptCommand())
	return cmd
}

// selectionFlags adds the flags of a selection to cmd. The returned function must be
// called when cmd runs, and returns the selection.
func selectionFlags(cmd *cobra.Command) func(cfg *configs.Config, args []string) (stored.Selection, error) {
	domain := cmd.Flags().String("domain", "", "all accounts of this `domain`")
	cmd.Flags().Bool("all", false, "all accounts")
	return func(cfg *configs.Config, args []string) (s stored.Selection, err error) {
		s.Domain = strings.TrimPrefix(*domain, "@")
		if len(args) > 0 {
			s.Account, err = accountNamed(cfg, args[0])
		}
		return s, err
	}
}

// oneSelection returns an error unless there is an account, or --domain, or --all.
func oneSelection(cmd *cobra.Command, args []string) error {
	if selections(cmd, args) != 1 {
		return errors.New("only one of ACCOUNT, --domain and --all can be given")
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

func forgetCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "forget ACCOUNT | --domain DOMAIN | --all",
		Short: "Forget which unique ids were shown, so that the present format computes all",
		Long: `Forget which unique ids were shown to the POP3 clients of an account. From the next login on they are what pop3.uidl says.
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
		s, err := selected(cfg, args)
		if err != nil {
			return err
		}
		if !*yes {
			if err := confirm(cmd, fmt.Sprintf(
				"The unique ids of %s will be forgotten. Clients may then download all mail again.", s)); err != nil {
				return err
			}
		}
		n, err := stored.ForgetUIDLs.One(cmd.Context(), cfg, s)
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

func acceptCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "accept BACKEND",
		Short: "Accept that the mailboxes of a backend look different from the last poll",
		Long: `Accept that many mailboxes of a backend look different from the last poll: another
UIDVALIDITY, or all or half of the mail gone. When that happens to more than 1 % of
the accounts within 10 minutes, Postern refuses these accounts temporarily, and records
nothing of them, until this command says that it is right. Given before a move of
mail it prevents that. If it is not right (a store that is not mounted, a wrong
route) put that right first.`,
		Args: cobra.ExactArgs(1),
	}
	path := configFlag(cmd)
	d := durationFlag(cmd, "for", bridge.DefaultAccept, "how `long`, from 1m to 30d; after that changes are counted again")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		cfg, err := configs.Read(*path)
		if err != nil {
			return err
		}
		until, err := stored.AcceptChanges.One(cmd.Context(), cfg, stored.Acceptance{Backend: args[0], For: *d})
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
		s, err := selected(cfg, args)
		if err != nil {
			return err
		}
		out := bufio.NewWriter(cmd.OutOrStdout())
		lines, n := json.NewEncoder(out), 0
		err = stored.ExportUIDLs.AskReadOnly(cmd.Context(), cfg, s, func(r bridge.AccountRecord) error {
			n++
			return lines.Encode(r)
		})
		if err == nil && n == 0 && s != (stored.Selection{}) {
			err = fmt.Errorf("there is no record of %s", s)
		}
		return errors.Join(err, out.Flush())
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
	asJSON := jsonFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		cfg, err := configs.Read(*path)
		if err != nil {
			return err
		}
		account, err := accountNamed(cfg, args[0])
		if err != nil {
			return err
		}
		p := newPrinter(cmd.OutOrStdout(), *asJSON, "GENERATION\tUIDVALIDITY\tUIDNEXT\tSINCE\tSEEN\tMESSAGES\tOWN IDS\tVANISHED IDS", func(g bridge.GenerationInfo) []any {
			generation := "before"
			if g.Present {
				generation = "present"
			}
			return []any{generation, g.UIDValidity, g.UIDNext, orDash(g.Since.String()), orDash(g.Seen.String()), g.Messages, g.Names, g.VanishedNames}
		})
		n := 0
		err = stored.UIDLHistory.AskReadOnly(cmd.Context(), cfg, stored.AccountName(account), func(g bridge.GenerationInfo) error {
			n++
			return p.print(g)
		})
		if err == nil && n == 0 {
			err = fmt.Errorf("there is no record of %s", account)
		}
		return p.end(err)
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
		n, err := stored.UndoUIDLs.One(cmd.Context(), cfg, stored.AccountName(account))
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(cmd.OutOrStdout(), "changed: %d\n", n)
		return err
	}
	return cmd
}
