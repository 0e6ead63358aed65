package bridge

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"postern/bridge/uidl"
)

// An AccountRecord is the record of one account, in the form for export and import.
type AccountRecord struct {
	Account string       `json:"account"`
	Record  *uidl.Record `json:"record"`
}

// Export calls each for every readable record, in the order of accounts, until each
// returns an error. The returned error also names the accounts whose record cannot be
// read; these do not stop Export.
func Export(ctx context.Context, bucket Bucket, each func(AccountRecord) error) error {
	var unreadable error
	err := eachStored(ctx, bucket, func(account string, st stored) error {
		record, err := uidl.Decode(st.head, st.blocks)
		if err != nil {
			unreadable = errors.Join(unreadable, fmt.Errorf("%s: %w", account, err))
			return nil
		}
		return each(AccountRecord{account, record})
	})
	return errors.Join(err, unreadable)
}

// eachStored calls each for the stored record of every account.
func eachStored(ctx context.Context, bucket Bucket, each func(account string, st stored) error) error {
	var account string
	var st stored
	end := func() error {
		if st.head == nil && st.blocks == nil {
			return nil
		}
		defer func() { st = stored{} }()
		return each(account, st)
	}
	err := bucket.Scan(ctx, "", func(key string, value []byte) error {
		of, rest, ok := strings.Cut(key, inboxOf)
		if !ok {
			return nil
		}
		if of != account {
			if err := end(); err != nil {
				return err
			}
			account = of
		}
		st.add(rest, value)
		return nil
	})
	if err != nil {
		return err
	}
	return end()
}

var errNoAccount = errors.New("import UIDLs: there is no account or no record")

// Import makes r.Record the record of the account r.Account. It replaces any record of
// the account, also a damaged one.
func Import(ctx context.Context, bucket Bucket, r AccountRecord) error {
	if r.Account == "" || strings.ContainsRune(r.Account, 0) || r.Record == nil {
		return errNoAccount
	}
	if err := r.Record.Check(); err != nil {
		return fmt.Errorf("import UIDLs of %s: %w", r.Account, err)
	}
	return changeRecord(ctx, bucket, r.Account, func(st stored) (*uidl.Record, error) {
		record := r.Record.Clone()
		record.Supersede(st.head, st.names())
		return record, nil
	})
}

// Add is Import for an account without a record. It reports whether there was none: a
// record says what clients were shown, and stays.
func Add(ctx context.Context, bucket Bucket, r AccountRecord) (added bool, err error) {
	if r.Account == "" || strings.ContainsRune(r.Account, 0) || r.Record == nil {
		return false, errNoAccount
	}
	if err := r.Record.Check(); err != nil {
		return false, fmt.Errorf("add UIDLs of %s: %w", r.Account, err)
	}
	err = changeRecord(ctx, bucket, r.Account, func(st stored) (*uidl.Record, error) {
		if added = st.head == nil && len(st.blocks) == 0; !added {
			return nil, nil
		}
		return r.Record.Clone(), nil
	})
	return added && err == nil, err
}

// Learn completes the record of an account by fresh, which was made from what an old
// server shows of its INBOX, and returns the number of UIDLs that are new in the record.
// If the account has no record, fresh becomes its record. UIDLs that the record has stay.
func Learn(ctx context.Context, bucket Bucket, account string, fresh *uidl.Record) (n int, err error) {
	if err := fresh.Check(); err != nil {
		return 0, fmt.Errorf("learn UIDLs of %s: %w", account, err)
	}
	err = changeRecord(ctx, bucket, account, func(st stored) (*uidl.Record, error) {
		if st.head == nil && len(st.blocks) == 0 {
			n = len(fresh.Current().Entries)
			return fresh.Clone(), nil
		}
		record, err := uidl.Decode(st.head, st.blocks)
		if err != nil {
			return nil, fmt.Errorf("record of %s: %w", account, err)
		}
		var changed bool
		if n, changed = record.Learn(fresh, today()); !changed {
			return nil, nil
		}
		return record, record.Check()
	})
	return n, err
}

// HeadersKey returns the key under which the headers of an account's old maildrop are kept
// in the cache, as encoded by oldserver.Headers: a Learner and package shadow read none
// that the other has read.
func HeadersKey(account string) string { return learntKey(account) }

// ShadowKey returns the key under which package shadow keeps what it knows of an account
// in the cache.
func ShadowKey(account string) string { return key(account) + "\x00shadow" }

// changeRecord replaces the record of an account by the result of makes, unless the
// result is nil. It tries up to three times if others write the record meanwhile.
func changeRecord(ctx context.Context, bucket Bucket, account string, makes func(stored) (*uidl.Record, error)) error {
	var err error
	for range 3 {
		var st stored
		if st, err = readStored(ctx, bucket, account); err != nil {
			return err
		}
		var record *uidl.Record
		if record, err = makes(st); err != nil || record == nil {
			return err
		}
		if err = st.write(ctx, bucket, account, record); !errors.Is(err, errConflict) {
			return err
		}
	}
	return err
}

// Forget removes the records of the matching accounts, and returns their number. The
// present format then computes their UIDLs, so that clients may download all mail again.
// Forget also removes their data in cache, from which a session would take the record as
// lost. Tombstones stay.
func Forget(ctx context.Context, cache, bucket Bucket, match func(account string) bool) (n int, err error) {
	accounts := make(map[string]bool)
	for _, bucket := range []Bucket{bucket, cache} {
		some, err := Accounts(ctx, bucket)
		if err != nil {
			return 0, err
		}
		for _, account := range some {
			if match(account) {
				accounts[account] = true
			}
		}
	}
	keep := func(key string) bool { return strings.HasSuffix(key, deletedOf) }
	return remove(ctx, cache, bucket, slices.Sorted(maps.Keys(accounts)), keep)
}

// History returns the generations of the record of an account, the current generation
// first. It returns none if there is no record.
func History(ctx context.Context, bucket Bucket, account string) (all []GenerationInfo, err error) {
	head, err := bucket.Get(ctx, key(account))
	if err != nil || head == nil {
		return nil, err
	}
	record, err := uidl.DecodeHead(head)
	if err != nil {
		return nil, fmt.Errorf("record of %s: %w", account, err)
	}
	for i, g := range record.Generations {
		c := g.Counts()
		all = append(all, GenerationInfo{
			Present: i == 0, UIDValidity: g.UIDValidity, UIDNext: g.UIDNext, Since: g.Since, Seen: g.Seen,
			Messages: c.Entries - c.Vanished, Names: c.Named - c.VanishedNamed, VanishedNames: c.VanishedNamed,
		})
	}
	return all, nil
}

// A GenerationInfo sums up one generation of a record.
type GenerationInfo struct {
	Present       bool     `json:"present,omitempty"`
	UIDValidity   uint32   `json:"uidvalidity"`
	UIDNext       uint32   `json:"uidnext,omitempty"` // the highest UIDNEXT that was seen
	Since         uidl.Day `json:"since,omitempty"`
	Seen          uidl.Day `json:"seen,omitempty"`
	Messages      int      `json:"messages"`       // messages with a fingerprint or a name in the record
	Names         int      `json:"names"`          // names of these messages that no format computes
	VanishedNames int      `json:"vanished_names"` // names of vanished messages, kept for 90 days
}

// ErrNoUndo reports that Undo has found nothing to undo.
var ErrNoUndo = errors.New("no message of the generation before is recognised by its fingerprint, or all have its unique ids")

// Undo gives messages the UIDLs that they had in the generation before the present one,
// as their fingerprints show, and returns the number of messages with another UIDL now.
// UIDLs that were shown since are never given to another message. No session of the
// account may be open.
func Undo(ctx context.Context, bucket Bucket, account string) (n int, err error) {
	err = changeRecord(ctx, bucket, account, func(st stored) (*uidl.Record, error) {
		if st.head == nil {
			return nil, fmt.Errorf("there is no record of %s", account)
		}
		record, err := uidl.Decode(st.head, st.blocks)
		if err != nil {
			return nil, fmt.Errorf("record of %s: %w", account, err)
		}
		if len(record.Generations) < 2 {
			return nil, fmt.Errorf("there is no generation before the present one of %s", account)
		}
		if n = record.Undo(); n == 0 {
			return nil, ErrNoUndo
		}
		return record, nil
	})
	return n, err
}
