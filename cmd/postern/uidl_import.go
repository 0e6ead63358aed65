package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"

	"github.com/spf13/cobra"

	"postern/bridge"
	"postern/cmd/postern/internal/stored"
	"postern/configs"
)

func importCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "import [--old HOST | --maildir PATH | --csv FILE] [--user USER | --list FILE]",
		Short: "Take over unique ids from an old POP3 server or its files, or read what export has written",
		Long: `With --old, ask the old POP3 server for the unique ids of one account or many, find
the same messages behind Postern, and record which id each has: clients then see
the ids that they know. Headers prove which message is which; a message that is
not found again for certain gets a new id, and is counted. An account of which no
message at all is found, although it has some, fails: its mail is not copied yet. Nothing
is changed on either server; the old one gets neither RETR nor DELE.

With --maildir, read the ids in a maildir that was the old server's, and is now the
new server's: from Courier's courierpop3dsizelist, those that Dovecot has saved
(pop3_save_uidl), or the names of the files (Dovecot's %f and %g, qmail-pop3d), as --ids
says. dovecot-uidlist or courierimapuiddb has the UIDs of the same files. No connection
is made, and no password is needed.

With --csv, read a list of one account, unique id, size and Message-ID of each message,
and find the messages behind Postern by Message-ID and size.

Accounts that have a record already are left alone: it says what clients were shown.

Without any of them, read from standard input what export has written, or somebody else
in the same form, and make it the record of the accounts in it, whatever was
there. Other accounts stay as they are. All lines are checked before the first
one counts.

With --old, --maildir and --csv, the exit status is 0 if all unique ids are carried over,
2 if some are not, and 1 if an account failed.`,
		Example: "postern uidl import --old pop3.example.org --list accounts.csv --resume imported.json\n" +
			"postern uidl import --maildir '/var/vmail/{domain}/{local}/Maildir' --list users.txt\n" +
			"postern uidl import --csv alice.csv --user alice@example.org",
		Args: cobra.NoArgs,
	}
	path := configFlag(cmd)
	c := new(crawler)
	c.flags(cmd)
	m := new(maildirs)
	m.flags(cmd)
	dry := cmd.Flags().Bool("dry-run", false, "record nothing, and show what would be; not for standard input")
	noneFound := cmd.Flags().Bool("none-found", false, "with --old, also record accounts of which no message is found: the old mail stays behind, and all mail here is new to clients")
	file := cmd.Flags().String("csv", "", "a `file` with unique id, size and Message-ID of each message of one account")
	cmd.MarkFlagsMutuallyExclusive("old", "maildir", "csv")
	cmd.MarkFlagsMutuallyExclusive("maildir", "master")
	cmd.MarkFlagsMutuallyExclusive("maildir", "password-file")
	cmd.MarkFlagsMutuallyExclusive("csv", "list")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		switch {
		case m.ids != "" && m.path == "":
			return errors.New("--ids needs --maildir")
		case *noneFound && c.old.address == "":
			return errors.New("--none-found needs --old")
		case c.old.address != "":
			return c.importAll(cmd, *path, *dry, *noneFound)
		case m.path != "":
			return c.importMaildirs(cmd, m, *path, *dry)
		case *file != "":
			return c.importCSV(cmd, *file, *path, *dry)
		case *dry || c.user != "" || c.list != "":
			return errors.New("--dry-run, --user and --list need --old, --maildir or --csv: standard input has all accounts itself")
		}
		cfg, err := configs.Read(*path)
		if err != nil {
			return err
		}
		lines, err := readRecords(cmd.InOrStdin())
		if err != nil {
			return err
		}
		total := 0
		for batch := range batches(lines) {
			n, err := stored.ImportUIDLs.One(cmd.Context(), cfg, batch)
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

const (
	maxLine     = 48 << 20 // octets of an account: about 500,000 messages with fingerprints
	maxBatch    = 4 << 20  // octets after which a request gets no further account
	maxAccounts = 500      // accounts of a request
)

// readRecords reads and checks an export, and returns its lines: they take a quarter of the
// memory of records.
func readRecords(in io.Reader) (export [][]byte, err error) {
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, maxLine)
	seen := make(map[string]bool)
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
		export = append(export, bytes.Clone(lines.Bytes()))
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("nothing was imported: %w", err)
	}
	if len(seen) == 0 {
		return nil, errors.New("there is nothing to import")
	}
	return export, nil
}

// batches returns the accounts in checked lines. Each batch fits one request.
func batches(lines [][]byte) iter.Seq[[]bridge.AccountRecord] {
	return func(yield func([]bridge.AccountRecord) bool) {
		var batch []bridge.AccountRecord
		size := 0
		for i, line := range lines {
			r, _ := readRecord(line) // was checked
			batch, size = append(batch, r), size+len(line)
			if full := len(batch) == maxAccounts || size > maxBatch; !full && i < len(lines)-1 {
				continue
			}
			if !yield(batch) {
				return
			}
			batch, size = nil, 0
		}
	}
}

func readRecord(line []byte) (r bridge.AccountRecord, err error) {
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
