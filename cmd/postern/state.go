package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"postern/cmd/postern/internal/stored"
	"postern/configs"
	"postern/proxy/admin"
)

func stateCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "state",
		Short: "Back up, restore and check what Postern remembers",
		Args:  cobra.NoArgs,
	}
	cmd.AddCommand(backupCommand(), restoreCommand(), checkStateCommand(), migrateCommand())
	return cmd
}

func backupCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "backup FILE|-",
		Short: "Write the record that must not be lost into a file, while Postern runs",
		Long: `Write the record that must not be lost into a file, or to standard output: the
unique ids that POP3 clients were shown, what they deleted where the server
could only mark it, and the ledger of logins. It is as at one moment; Postern
goes on meanwhile. What can be had again is not in it.`,
		Args: cobra.ExactArgs(1),
	}
	path := configFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		cfg, err := configs.Read(*path)
		if err != nil {
			return err
		}
		write := func(w io.Writer) error {
			return stored.BackupState.AskReadOnly(cmd.Context(), cfg, struct{}{}, func(p []byte) error {
				_, err := w.Write(p)
				return err
			})
		}
		if args[0] == "-" {
			return write(cmd.OutOrStdout())
		}
		return stored.CreateFile(args[0], write)
	}
	return cmd
}

func restoreCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "restore FILE",
		Short: "Put a backup in the place of the record, while no Postern runs",
		Long: `Put what postern state backup has written in the place of the record. No Postern
may run. Root and the owner of state.path may do it; the files belong to the owner
in either case. A file that is no whole backup is refused; what was there before is kept
beside it, with .before-restore at its end.`,
		Args: cobra.ExactArgs(1),
	}
	path := configFlag(cmd)
	yes := cmd.Flags().Bool("yes", false, "do not ask")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		cfg, err := configs.Read(*path)
		if err != nil {
			return err
		}
		if cfg.State.Path == "" {
			return stored.ErrNoState
		}
		if pid, running := admin.Running(cfg.Control.Socket); running {
			return fmt.Errorf("restore state: Postern runs (process %d): stop it first, with its unit by systemctl stop postern", pid)
		}
		f, err := stored.OpenBackup(cfg, args[0])
		if err != nil {
			return err
		}
		defer func() { _ = f.Close() }()
		if !*yes {
			if err := confirm(cmd, "What Postern remembers becomes what it was at the time of the backup: unique ids that were shown for the first time since then may change."); err != nil {
				return err
			}
		}
		return stored.Restore(cmd.Context(), cfg, f, cmd.OutOrStdout())
	}
	return cmd
}

func migrateCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "migrate --to postgres|owner|bbolt",
		Short: "Move the record to the place that several Posterns share, or back",
		Long: `Move the record of this Postern to the PostgreSQL or the owner that state.record
names, or from PostgreSQL back to record.db. No Postern may run with this
configuration. The table is made if it is not there. In the end both are read
again and compared; only then the new place counts. A migration that was
interrupted is run again, and copies what is missing.

The second and every further Postern runs this as well: accounts that the shared
record does not have are added. The record of an account that is in both, and
differs, stays as it is in the shared one; such accounts are listed. After the
way back the record in PostgreSQL is not used by any Postern any more.`,
		Args: cobra.NoArgs,
	}
	path := configFlag(cmd)
	to := cmd.Flags().String("to", "", "the `place`: postgres, owner or bbolt")
	asJSON := jsonFlag(cmd)
	_ = cmd.MarkFlagRequired("to")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg, err := configs.Read(*path)
		if err != nil {
			return err
		}
		r := cfg.State.Record
		switch {
		case *to != "postgres" && *to != "owner" && *to != "bbolt":
			return fmt.Errorf("--to %s: there are postgres, owner and bbolt", *to)
		case r != nil && *to == "postgres" && r.Postgres == nil, r != nil && *to == "owner" && r.Owner == "":
			return fmt.Errorf("--to %s: state.record has another place", *to)
		}
		done, err := stored.Migrate(cmd.Context(), cfg, *to == "bbolt", migrationProgress(cmd.ErrOrStderr()))
		clearLine(cmd.ErrOrStderr())
		if err != nil {
			return fmt.Errorf("migrate state: %w", err)
		}
		if *asJSON {
			return json.NewEncoder(cmd.OutOrStdout()).Encode(done)
		}
		printMigrated(cmd.OutOrStdout(), done, *to)
		return nil
	}
	return cmd
}

// migrationProgress returns a function that shows on a terminal how far a migration is; nil:
// err is none.
func migrationProgress(err io.Writer) func(bucket string, n int) {
	if !isDisplay(err) {
		return nil
	}
	const every = 200 * time.Millisecond
	var shown time.Time
	return func(bucket string, n int) {
		if now := time.Now(); now.Sub(shown) >= every {
			shown = now
			clearLine(err)
			fmt.Fprintf(err, "%s: %d values", bucket, n)
		}
	}
}

func printMigrated(out io.Writer, done stored.Migrated, to string) {
	fmt.Fprintf(out, "the record is in %s: %d values are equal in both, %d of them were copied now\n", done.Record, done.Values, done.Copied)
	if done.Differs > 0 {
		fmt.Fprintf(out, "accounts whose record there is another one, and stays: %d; their clients may download mail again: %s\n", done.Differs, strings.Join(done.Differ, ", "))
	}
	if to == "bbolt" {
		fmt.Fprintln(out, "remove state.record from the configuration before Postern starts")
	}
}

func checkStateCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Read all that Postern remembers, and the checksum of every record",
		Long: `Read every page of the files of the state, and the checksum of the record of
each account, while Postern runs or when it does not. Nothing is changed. Damage is
exit status 1, and so is a record that was lost: one that has nothing of the
accounts that the file beside it knows.`,
		Args: cobra.NoArgs,
	}
	path := configFlag(cmd)
	asJSON := jsonFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg, err := configs.Read(*path)
		if err != nil {
			return err
		}
		damaged, lines := false, json.NewEncoder(cmd.OutOrStdout())
		t := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
		err = stored.CheckFiles(cmd.Context(), cfg, func(c stored.FileReport) error {
			damaged = damaged || len(c.Damaged) > 0 || c.Lost > 0
			if *asJSON {
				return lines.Encode(c)
			}
			return printFile(t, cmd.ErrOrStderr(), c)
		})
		if err = errors.Join(err, t.Flush()); err == nil && damaged {
			err = exitStatus(1)
		}
		return err
	}
	return cmd
}

// printFile prints a line about a file to out, and its faults to faults.
func printFile(out, faults io.Writer, c stored.FileReport) error {
	verdict := "good"
	switch {
	case len(c.Damaged) > 0:
		verdict = "damaged"
	case c.Lost > 0:
		verdict = "lost"
	case c.Missing:
		verdict = "missing: the next start makes it"
	}
	size := fmt.Sprintf("%d octets", c.Octets)
	if c.Shared {
		size = "shared"
	}
	_, err := fmt.Fprintf(out, "%s\t%s\t%s", c.File, verdict, size)
	if c.Records > 0 {
		_, err = fmt.Fprintf(out, "\trecords: %d", c.Records)
	}
	_, _ = fmt.Fprintln(out)
	for _, d := range c.Damaged {
		_, _ = fmt.Fprintf(faults, "%s: %s\n", c.File, d)
	}
	if c.Lost > 0 {
		_, _ = fmt.Fprintf(faults, "%s: %s: it has nothing of %d accounts that %s knows: %s\n", c.File, stored.LostRecord, c.Lost, stored.CacheFile, stored.LostRemedy)
	}
	return err
}
