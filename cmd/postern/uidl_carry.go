package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"

	"postern/bridge"
	"postern/bridge/oldserver"
	"postern/bridge/uidl"
	"postern/cmd/postern/internal/crawl"
	"postern/cmd/postern/internal/service"
	"postern/cmd/postern/internal/stored"
	"postern/configs"
	"postern/metrics/ledger"
)

// A carried is the outcome of an account whose UIDLs were to be carried over.
type carried struct {
	oldserver.Report
	Recorded  bool `json:"recorded"`             // false: nothing was recorded, because there is a record, NoIDs, NoneFound, or by --dry-run
	NoIDs     bool `json:"no_ids,omitempty"`     // there are no unique ids of the old server
	NoneFound bool `json:"none_found,omitempty"` // no message of a file or a list was found again
}

// recordable reports whether a record, made from files or a list, says more than none
// would. Most often such a file or list is the wrong one, and a record would be in the way of
// the right one: there are no headers by which a message that comes late is found.
func (c *carried) recordable(record *uidl.Record) bool {
	c.NoIDs = record == nil
	c.NoneFound = c.Old > 0 && c.Found() == 0
	return !c.NoIDs && !c.NoneFound
}

// record records the UIDLs of an account that has no record yet, and notes how they were
// carried over.
func (c *carried) record(ctx context.Context, cfg *configs.Config, account string, record *uidl.Record, by string) (err error) {
	c.Recorded, err = stored.AddUIDLs.One(ctx, cfg, stored.NewRecord{
		AccountRecord: bridge.AccountRecord{Account: account, Record: record},
		Learnt:        ledger.Learnt{At: time.Now(), By: by, Messages: c.Old, Found: c.Found()},
	})
	return err
}

// importName is the command in journals.
func importName(dry bool) string {
	if dry {
		return "uidl import --dry-run"
	}
	return "uidl import"
}

// importAll carries over the UIDLs of all accounts. An account of which no message is found
// fails, and is tried again by --resume, unless noneFound is set.
func (c *crawler) importAll(cmd *cobra.Command, path string, dry, noneFound bool) error {
	if c.user == "" && c.list == "" {
		return errors.New("--old needs --user or --list")
	}
	if !dry {
		if err := canRecord(cmd.Context(), path); err != nil {
			return err
		}
	}
	var offset atomic.Int64 // by which messages are larger here, as the accounts before have shown
	return runCrawl(cmd, c, importName(dry), newCarrying(dry), func(ctx context.Context, cfg *configs.Config, a crawl.Account) (result carried, err error) {
		old, mailbox, err := c.open(ctx, a)
		if err != nil {
			return result, err
		}
		defer func() { _ = old.Close() }()
		behind, err := mailbox.Read(ctx)
		if err != nil {
			return result, err
		}
		defer func() { _ = behind.Close() }()
		record, report, err := oldserver.Carry(ctx, old, service.InboxOf(behind), mailbox.Format(), offset.Load())
		if err != nil {
			return result, err
		}
		if result.Report = report; report.Constant {
			offset.Store(report.Offset)
		}
		if err := report.Copied(); err != nil && !noneFound {
			return result, err
		}
		if dry {
			return result, nil
		}
		err = result.record(ctx, cfg, mailbox.Account, record, ledger.ByOld)
		return result, err
	}, path)
}

// canRecord returns an error if nothing can be recorded, such as before the first start of
// Postern: to read all mailboxes would be for nothing.
func canRecord(ctx context.Context, path string) error {
	cfg, err := configs.Read(path)
	if err != nil {
		return err
	}
	_, err = stored.ImportUIDLs.One(ctx, cfg, nil)
	return err
}

// carrying is the summary of an import.
type carrying struct {
	dry                           bool
	accounts, recorded, old, kept int
	noIDs, noneFound              int
	gone, unlisted                int
	failed                        failures
	left                          map[oldserver.Reason]int
	worst                         ranking[crawl.Outcome[carried]]
}

func newCarrying(dry bool) *carrying {
	missed := func(o crawl.Outcome[carried]) int { return o.Result.Old - o.Result.Found() }
	return &carrying{dry: dry, worst: ranking[crawl.Outcome[carried]]{weight: missed}}
}

func (s *carrying) take(o crawl.Outcome[carried]) {
	s.accounts++
	if o.Error != "" {
		s.failed.add(o.User, o.Error)
		return
	}
	if o.Result.NoIDs {
		s.noIDs++
		return
	}
	switch {
	case o.Result.NoneFound:
		s.noneFound++
	case !o.Result.Recorded && !s.dry:
		return
	default:
		s.recorded++
	}
	s.gone += o.Result.Gone
	if o.Result.IDs != "" {
		s.unlisted += max(o.Result.New-o.Result.Old, 0)
	}
	s.old += o.Result.Old
	s.kept += o.Result.Found()
	if s.left == nil {
		s.left = make(map[oldserver.Reason]int)
	}
	for why, n := range o.Result.Left {
		s.left[why] += n
	}
	s.worst.add(o)
}

func (s *carrying) print(out io.Writer) error {
	verb := "recorded"
	if s.dry {
		verb = "read, nothing recorded"
	}
	_, _ = fmt.Fprintf(out, "accounts: %d, %s: %d, with a record already: %d, failed: %d\nunique ids: %d of %d are carried over\n",
		s.accounts, verb, s.recorded, s.accounts-s.recorded-s.noIDs-s.noneFound-s.failed.n, s.failed.n, s.kept, s.old)
	for _, why := range slices.Sorted(maps.Keys(s.left)) {
		_, _ = fmt.Fprintf(out, "  not %d: %s\n", s.left[why], why)
	}
	if s.gone > 0 {
		_, _ = fmt.Fprintf(out, "  and %d of messages that were removed since: kept, and given to no other message\n", s.gone)
	}
	if s.unlisted > 0 {
		_, _ = fmt.Fprintf(out, "messages of which the files have no unique id of the old server: %d; they get new ones\n", s.unlisted)
	}
	if s.noneFound > 0 {
		_, _ = fmt.Fprintf(out, "accounts of which no message was found again: %d; nothing is recorded of them\n", s.noneFound)
	}
	if s.noIDs > 0 {
		_, _ = fmt.Fprintf(out, "accounts without unique ids of the old server: %d (nobody has used POP3, or the file is not there; --ids names the kind)\n", s.noIDs)
	}
	s.failed.print(out)
	if len(s.worst.values) > 0 {
		_, _ = fmt.Fprintln(out, "look at these first:")
	}
	for _, o := range s.worst.values {
		_, _ = fmt.Fprintf(out, "%s: %d of %d are carried over\n", o.User, o.Result.Found(), o.Result.Old)
		for _, e := range o.Result.Examples[:min(len(o.Result.Examples), 3)] {
			size := ""
			if e.Octets > 0 {
				size = fmt.Sprintf(", %d octets", e.Octets)
			}
			_, _ = fmt.Fprintf(out, "  %q%s: %v\n", e.UIDL, size, e.Reason)
		}
	}
	switch {
	case s.failed.n > 0:
		return exitStatus(1)
	case s.kept < s.old, s.noIDs > 0 && s.noIDs == s.accounts:
		return differs
	}
	return nil
}
