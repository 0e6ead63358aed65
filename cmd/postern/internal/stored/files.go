package stored

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"

	"postern/bridge"
	"postern/cmd/postern/internal/logs"
	"postern/proxy/state"
)

const pseudonymNote = "pseudonyms"

// PseudonymKey returns the key of the pseudonyms of accounts. The first call creates the
// key. The key has the right size also after an error.
func (a *Files) PseudonymKey(ctx context.Context) (key []byte, err error) {
	return pseudonymKeyOf(ctx, a.notes)
}

// A noter is the bucket of notes.
type noter interface {
	Update(ctx context.Context, key string, change func(old []byte) ([]byte, error)) error
}

func pseudonymKeyOf(ctx context.Context, notes noter) (key []byte, err error) {
	key = logs.NewPseudonymKey()
	err = notes.Update(ctx, pseudonymNote, func(old []byte) ([]byte, error) {
		if len(old) == len(key) {
			key = append([]byte(nil), old...)
		}
		return key, nil
	})
	if err != nil {
		err = fmt.Errorf("key of pseudonyms: %w", err)
	}
	return key, err
}

// Files are the open files of the state: the record, which must not be lost, and
// the cache.
type Files struct {
	Record, Cache *state.Bolt  // nil only for a command that reads: a file that is not there, damaged or not needed
	Lost          atomic.Int64 // accounts that only the cache knows, because the record was lost
	Unidentified  error        // the error because of which Lost is not known; nil: Lost is known

	devices         bridge.Bucket // device passwords
	listings, uidls bridge.Bucket // the listings of mailboxes, and the record of UIDLs
	ledger          bridge.Bucket // the ledger of logins
	days            bridge.Bucket // the days that the ledger has observed
	notes           *state.Bucket

	Shared    *Shared       // nil: Record has all buckets
	forgotten bridge.Bucket // accounts whose record was removed, for the caches of other nodes; nil: there are none
}

// newFiles returns the files with the buckets of shared, which may be nil.
func newFiles(record, cache *state.Bolt, shared *Shared) *Files {
	a := &Files{
		Record: record, Cache: cache, Shared: shared, listings: cache.Bucket(ListingsBucket), uidls: record.Bucket(UIDLBucket),
		ledger: record.Bucket(ledgerBucket), days: record.Bucket("days"), notes: record.Bucket("notes"), devices: record.Bucket(DeviceBucket),
	}
	if shared != nil {
		a.uidls, a.devices, a.ledger, a.forgotten = shared.Bucket(UIDLBucket), shared.Bucket(DeviceBucket), shared.Bucket(ledgerBucket), shared.Bucket(forgottenBucket)
	}
	return a
}

// ErrNoState is the error of a Question without state.path.
var ErrNoState = errors.New("state.path is not set: nothing is remembered")

// The names of the buckets that sessions use.
const (
	ListingsBucket = "listings"
	UIDLBucket     = "uidl"
	BrakeBucket    = "brake"
	DeviceBucket   = "devices"

	ledgerBucket    = "ledger"
	forgottenBucket = "forgotten"
)

// SharedBuckets returns the names of the buckets that are in the record of several Posterns,
// if there is one. All others are of one Postern.
func SharedBuckets() []string {
	return []string{UIDLBucket, DeviceBucket, ledgerBucket, forgottenBucket}
}

// The names of the files in state.path.
const (
	RecordFile = "record.db"
	CacheFile  = "cache.db"
)
