package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"postern/bridge"
	"postern/configs"
	"postern/proxy/state"
)

// An archive is what is stored, for who looks after it.
type archive struct {
	record, cache *state.Bolt
	lost          atomic.Int64 // accounts that only the cache knows, because the record was lost
	unidentified  error        // why that is not known; nil: it is

	listings, uidls bridge.Shelf // what POP3 remembers of mailboxes, and which UIDLs were shown
	ledger          bridge.Shelf // who logs in with what
	notes           *state.Bucket
}

func newArchive(record, cache *state.Bolt) *archive {
	return &archive{
		record: record, cache: cache, listings: cache.Bucket(listingsBucket), uidls: record.Bucket(uidlBucket),
		ledger: record.Bucket("ledger"), notes: record.Bucket("notes"),
	}
}

var errNoArchive = errors.New("state.path is not set: nothing is remembered")

// open returns the archive with all that is to be in it.
func (m *memory) open(ctx context.Context) (*archive, error) {
	if m.archive == nil {
		return nil, errNoArchive
	}
	if m.flush == nil {
		return m.archive, nil
	}
	return m.archive, m.flush(ctx)
}

func stateCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "state",
		Short: "Back up, restore and check what Postern remembers",
		Args:  cobra.NoArgs,
	}
	cmd.AddCommand(backupCommand(), restoreCommand(), checkStateCommand())
	return cmd
}

// piece is how much of a backup goes over the socket at once.
const piece = 256 << 10

var backupState = question[struct{}, []byte]{"state/backup", func(ctx context.Context, m *memory, _ struct{}, each func([]byte) error) error {
	a, err := m.open(ctx)
	if err != nil {
		return err
	}
	w := bufio.NewWriterSize(writer(each), piece)
	if _, err := a.record.WriteTo(w); err != nil {
		return err
	}
	return w.Flush()
}}

// A writer is an io.Writer of what it calls.
type writer func([]byte) error

// Write implements io.Writer.
func (w writer) Write(p []byte) (int, error) { return len(p), w(p) }

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
			return backupState.ask(cmd.Context(), cfg, struct{}{}, func(p []byte) error {
				_, err := w.Write(p)
				return err
			})
		}
		if args[0] == "-" {
			return write(cmd.OutOrStdout())
		}
		return createFile(args[0], write)
	}
	return cmd
}

// createFile makes a file, of all that write writes or not at all.
func createFile(path string, write func(io.Writer) error) error {
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".")
	if err != nil {
		return err
	}
	err = write(f)
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name())
	}
	return err
}

func restoreCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "restore FILE",
		Short: "Put a backup in the place of the record, while no Postern runs",
		Long: `Put what postern state backup has written in the place of the record. No Postern
may run, and the command must be run as Postern's user, to whom the files
belong. A file that is no whole backup is refused; what was there before is kept
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
			return errNoArchive
		}
		f, err := os.Open(args[0])
		if err != nil {
			return err
		}
		defer func() { _ = f.Close() }()
		if !*yes {
			if err := confirm(cmd, "What Postern remembers becomes what it was at the time of the backup: unique ids that were shown for the first time since then may change."); err != nil {
				return err
			}
		}
		record := filepath.Join(cfg.State.Path, recordFile)
		if err := state.Restore(cmd.Context(), record, f); err != nil {
			return err
		}
		if _, err = fmt.Fprintf(cmd.OutOrStdout(), "restored: %s; what was there is %s.before-restore\n", record, record); err != nil {
			return err
		}
		return keepBrakes(cmd.Context(), record, cmd.OutOrStdout())
	}
	return cmd
}

// keepBrakes puts the brakes that were on before a restore into the record that
// was restored: a backup does not say what is wrong with the mailboxes today.
func keepBrakes(ctx context.Context, record string, out io.Writer) error {
	brakes, err := readBrakes(ctx, record+".before-restore")
	if err != nil {
		_, err = fmt.Fprintf(out, "whether a brake was on cannot be read (%v): look at the mailboxes before Postern starts\n", err)
		return err
	}
	b, err := state.Open(record, state.Options{})
	if err != nil {
		return err
	}
	defer func() { _ = b.Close() }()
	into := b.Bucket(brakeBucket)
	for _, name := range slices.Sorted(maps.Keys(brakes)) {
		if err := into.Put(ctx, name, brakes[name]); err != nil {
			return err
		}
		if _, err := fmt.Fprintf(out, "the brake of %s stays as it was before\n", name); err != nil {
			return err
		}
	}
	return nil
}

// readBrakes returns the states of brakes in the record at path, by backend.
func readBrakes(ctx context.Context, path string) (brakes map[string][]byte, err error) {
	b, err := state.Open(path, state.Options{})
	if err != nil {
		return nil, err
	}
	defer func() { _ = b.Close() }()
	brakes = make(map[string][]byte)
	err = b.Bucket(brakeBucket).Scan(ctx, "", func(name string, value []byte) error {
		brakes[name] = slices.Clone(value)
		return nil
	})
	return brakes, err
}

// A checked is what is found in a file of the state.
type checked struct {
	File    string   `json:"file"`
	Octets  int64    `json:"octets"`
	Records int      `json:"records"`
	Lost    int64    `json:"lost,omitempty"`    // accounts that the record should have
	Damaged []string `json:"damaged,omitempty"` // what cannot be read
}

// mostDamage is how much of it is told.
const mostDamage = 100

var checkState = question[struct{}, checked]{"state/check", func(ctx context.Context, m *memory, _ struct{}, each func(checked) error) error {
	a, err := m.open(ctx)
	if err != nil && (a == nil || a.record.Err() == nil) { // a broken file is named below
		return err
	}
	for _, f := range []*state.Bolt{a.record, a.cache} {
		c := checked{File: f.Path(), Octets: f.Size()}
		err := errors.Join(f.Check(ctx), f.Renewed())
		if err == nil && f == a.record {
			var damaged []error
			c.Records, damaged, err = bridge.Check(ctx, a.uidls)
			for _, d := range damaged[:min(len(damaged), mostDamage)] {
				c.Damaged = append(c.Damaged, d.Error())
			}
		}
		if f == a.record && a.lost.Load() > 0 {
			err = errors.Join(err, a.countLost(ctx))
			c.Lost = a.lost.Load()
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			c.Damaged = append(c.Damaged, err.Error())
		}
		if err := each(c); err != nil {
			return err
		}
	}
	return nil
}}

func checkStateCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Read all that Postern remembers, and the checksum of every record",
		Long: `Read every page of the files of the state, and the checksum of the record of
each account, while Postern runs or when it does not. Damage is exit status 1, and
so is a record that was lost: one that has nothing of the accounts that the file
beside it knows.`,
		Args: cobra.NoArgs,
	}
	path := configFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg, err := configs.Read(*path)
		if err != nil {
			return err
		}
		damaged := 0
		t := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
		err = checkState.ask(cmd.Context(), cfg, struct{}{}, func(c checked) error {
			verdict := "good"
			switch {
			case len(c.Damaged) > 0:
				verdict = "damaged"
			case c.Lost > 0:
				verdict = "lost"
			}
			_, err := fmt.Fprintf(t, "%s\t%s\t%d octets", c.File, verdict, c.Octets)
			if c.Records > 0 {
				_, err = fmt.Fprintf(t, "\trecords: %d", c.Records)
			}
			_, _ = fmt.Fprintln(t)
			for _, d := range c.Damaged {
				damaged++
				_, _ = fmt.Fprintf(cmd.ErrOrStderr(), "%s: %s\n", c.File, d)
			}
			if c.Lost > 0 {
				damaged++
				_, _ = fmt.Fprintf(cmd.ErrOrStderr(), "%s: %s: it has nothing of %d accounts that %s knows: %s\n", c.File, lostRecord, c.Lost, cacheFile, lostRemedy)
			}
			return err
		})
		if err = errors.Join(err, t.Flush()); err == nil && damaged > 0 {
			err = exitStatus(1)
		}
		return err
	}
	return cmd
}
