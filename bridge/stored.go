package bridge

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"postern/bridge/uidl"
)

// Stored has all stored POP3 data of an account.
type Stored struct {
	Record       *uidl.Record `json:"record,omitempty"`      // the unique-ids that were shown
	Deleted      []uint32     `json:"deleted,omitempty"`     // UIDs of messages that the server could only mark
	Listing      *Listing     `json:"listing,omitempty"`     // the mailbox at the last session
	Fingerprints int          `json:"prints,omitempty"`      // messages whose hash of Message-ID, date and size is not in Record yet
	OldHeaders   int          `json:"old_headers,omitempty"` // octets of hashes of headers that the old server has shown
}

// A Listing sums up the stored listing of a mailbox, which has the UID and the size of
// each message.
type Listing struct {
	UIDValidity uint32 `json:"uidvalidity"`
	UIDNext     uint32 `json:"uidnext"`
	Messages    int    `json:"messages"`
	Octets      int64  `json:"octets"`
}

// Lookup returns the stored data of an account. Either store may be nil. The error names
// all damaged data; the result has the undamaged data all the same.
func Lookup(ctx context.Context, cache Bucket, record Bucket, account string) (s Stored, err error) {
	var errs []error
	read := func(from Bucket, key, what string, decode func([]byte) error) {
		if from == nil {
			return
		}
		value, err := from.Get(ctx, key)
		if err == nil && value != nil {
			err = decode(value)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s of %s: %w", what, account, err))
		}
	}
	if record != nil {
		st, err := readStored(ctx, record, account)
		if err == nil && (st.head != nil || st.blocks != nil) {
			s.Record, err = uidl.Decode(st.head, st.blocks)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("unique ids of %s: %w", account, err))
		}
	}
	read(record, tombstonesKey(account), "deletions", func(value []byte) error {
		d, err := decodeTombstones(value)
		for _, t := range d {
			s.Deleted = append(s.Deleted, t.uids...)
		}
		return err
	})
	read(cache, key(account), "listing", func(value []byte) error {
		known, err := decodeSnapshot(value)
		if err == nil {
			s.Listing = &Listing{UIDValidity: known.uidValidity, UIDNext: known.uidNext, Messages: len(known.messages)}
			for i := range known.messages {
				s.Listing.Octets += known.messages[i].size
			}
		}
		return err
	})
	read(cache, fingerprintsKey(account), "prints", func(value []byte) error {
		prints, err := decodeFingerprints(value)
		s.Fingerprints = len(prints)
		return err
	})
	read(cache, learntKey(account), "headers of the old server", func(value []byte) error {
		s.OldHeaders = len(value)
		return nil
	})
	return s, errors.Join(errs...)
}

// Erase removes all stored POP3 data of accounts. Their clients may then download all
// mail again, and see the messages again that they had deleted on a server without
// UIDPLUS.
func Erase(ctx context.Context, cache, record Bucket, accounts []string) error {
	if _, err := remove(ctx, cache, record, accounts, func(string) bool { return false }); err != nil {
		return fmt.Errorf("erase accounts: %w", err)
	}
	return nil
}

// remove removes the stored data of accounts, except the keys for which keep returns
// true, and returns the number of accounts that had data. It removes the record last: a
// listing without its record means a lost record.
func remove(ctx context.Context, cache, record Bucket, accounts []string, keep func(key string) bool) (n int, err error) {
	const together = 250 // accounts
	for some := range slices.Chunk(accounts, together) {
		had := make(map[string]bool)
		for _, from := range []Bucket{cache, record} {
			var keys []string
			for _, account := range some {
				err := from.Scan(ctx, key(account), func(key string, _ []byte) error {
					if !keep(key) {
						keys, had[account] = append(keys, key), true
					}
					return nil
				})
				if err != nil {
					return n, err
				}
			}
			if len(keys) == 0 {
				continue
			}
			if err := from.UpdateAll(ctx, keys, func(string, []byte) ([]byte, error) { return nil, nil }); err != nil {
				return n, err
			}
		}
		n += len(had)
	}
	return n, nil
}

// Accounts returns the accounts with data in a store, in the order of the store.
func Accounts(ctx context.Context, from Bucket) (accounts []string, err error) {
	err = from.Scan(ctx, "", func(key string, _ []byte) error {
		account, _, ok := strings.Cut(key, inboxOf)
		if ok && (len(accounts) == 0 || accounts[len(accounts)-1] != account) {
			accounts = append(accounts, account)
		}
		return nil
	})
	return accounts, err
}

// Check reads every record and all tombstones, with their checksums. It returns their
// number, and one error for each damaged one.
func Check(ctx context.Context, record Bucket) (n int, damaged []error, err error) {
	err = eachStored(ctx, record, func(account string, st stored) error {
		n++
		if _, err := uidl.Decode(st.head, st.blocks); err != nil {
			damaged = append(damaged, fmt.Errorf("%s: %w", account, err))
		}
		return nil
	})
	if err != nil {
		return n, damaged, err
	}
	err = record.Scan(ctx, "", func(key string, value []byte) error {
		account, ok := strings.CutSuffix(key, inboxOf+deletedOf)
		if !ok {
			return nil
		}
		n++
		if _, err := decodeTombstones(value); err != nil {
			damaged = append(damaged, fmt.Errorf("%s: %w", account, err))
		}
		return nil
	})
	return n, damaged, err
}
