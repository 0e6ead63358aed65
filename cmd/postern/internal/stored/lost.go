package stored

import (
	"context"
	"crypto/rand"
	"errors"

	"postern/bridge"
)

// Two things can be wrong with the files of the state while Postern runs: a file is
// broken (see state.Bolt), or the record is not the one that the cache was written
// beside. Then the record was lost: a record that is empty, or of another Postern,
// lacks accounts whose UIDLs were shown.

// identityBucket is a bucket of both files. Its identityKey is a random name of the
// record: in record.db of itself, in cache.db of the record beside it. A backup
// has the name of its record.
const (
	identityBucket = "meta"
	identityKey    = "record"
)

// identify compares the names of the files, gives one to those that have none,
// and sets a.Lost. After an error nothing is known of it.
func (a *Files) identify(ctx context.Context) error {
	ours, beside := a.Record.Bucket(identityBucket), a.Cache.Bucket(identityBucket)
	record, err := ours.Get(ctx, identityKey)
	if err != nil {
		return err
	}
	cache, err := beside.Get(ctx, identityKey)
	if err != nil {
		return err
	}
	if record == nil {
		empty, err := a.recordIsEmpty(ctx)
		if err != nil {
			return err
		}
		record = []byte(rand.Text())
		switch {
		case !empty && cache != nil: // a backup from before there were names
			record = cache
		case empty && cache == nil: // from before there were names, if the cache has accounts
			cache = []byte(rand.Text())
			if err := beside.Put(ctx, identityKey, cache); err != nil {
				return err
			}
		}
		if err := ours.Put(ctx, identityKey, record); err != nil {
			return err
		}
	}
	if cache != nil && string(cache) != string(record) {
		return a.countLost(ctx)
	}
	return a.Accept(ctx)
}

// countLost sets a.Lost, of a record that is another than before. If nothing is
// lost any more, it is accepted.
func (a *Files) countLost(ctx context.Context) error {
	lost, err := a.unrecorded(ctx)
	if err != nil {
		return err
	}
	if a.Lost.Store(int64(len(lost))); len(lost) > 0 {
		return nil
	}
	return a.Accept(ctx)
}

// Accept makes the record the one that the cache was written beside.
func (a *Files) Accept(ctx context.Context) error {
	record, err := a.Record.Bucket(identityBucket).Get(ctx, identityKey)
	if err != nil {
		return err
	}
	beside := a.Cache.Bucket(identityBucket)
	if cache, err := beside.Get(ctx, identityKey); err != nil || string(cache) == string(record) {
		return err
	}
	if err := beside.Put(ctx, identityKey, record); err != nil {
		return err
	}
	a.Lost.Store(0)
	return nil
}

var errOne = errors.New("there is one")

// recordIsEmpty reports whether nothing was ever written into the record.
func (a *Files) recordIsEmpty(ctx context.Context) (bool, error) {
	for _, bucket := range []bridge.Bucket{a.uidls, a.ledger, a.notes} {
		err := bucket.Scan(ctx, "", func(string, []byte) error { return errOne })
		if err != nil {
			if errors.Is(err, errOne) {
				err = nil
			}
			return false, err
		}
	}
	return true, nil
}

// unrecorded returns the accounts that the cache knows and the record does not.
func (a *Files) unrecorded(ctx context.Context) (accounts []string, err error) {
	known, err := bridge.Accounts(ctx, a.listings)
	if err != nil {
		return nil, err
	}
	recorded, err := bridge.Accounts(ctx, a.uidls)
	if err != nil {
		return nil, err
	}
	has := make(map[string]bool, len(recorded))
	for _, account := range recorded {
		has[account] = true
	}
	for _, account := range known {
		if !has[account] {
			accounts = append(accounts, account)
		}
	}
	return accounts, nil
}

// forgetLost forgets the accounts that match whose record was lost, and returns
// how many they were. When none is left, nothing is lost any more.
func (a *Files) forgetLost(ctx context.Context, match func(account string) bool) (n int, err error) {
	if a.Lost.Load() == 0 {
		return 0, nil
	}
	lost, err := a.unrecorded(ctx)
	if err != nil {
		return 0, err
	}
	var some []string
	for _, account := range lost {
		if match(account) {
			some = append(some, account)
		}
	}
	if err := bridge.Erase(ctx, a.listings, a.uidls, some); err != nil {
		return 0, err
	}
	return len(some), a.countLost(ctx)
}

// recount counts again what was lost, after records have come.
func (a *Files) recount(ctx context.Context) error {
	if a == nil || a.Lost.Load() == 0 {
		return nil
	}
	return a.countLost(ctx)
}

// LostRecord is the error text of a record that was lost, LostRemedy what an
// operator can do.
const (
	LostRecord = "the record of unique ids was lost"
	LostRemedy = "stop Postern and put a backup back (postern state restore), or let them be computed anew (pop3.on_unreadable_record: recompute, or postern uidl forget --all)"

	// damagedRemedy is for a record that cannot be opened.
	damagedRemedy = "put a backup back (postern state restore FILE); without one, move the file away, and see pop3.on_unreadable_record"
)
