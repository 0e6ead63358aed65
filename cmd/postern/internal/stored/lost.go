package stored

import (
	"context"
	"crypto/rand"
	"errors"

	"postern/bridge"
	"postern/proxy/state"
)

// The files of the state can have two faults while Postern runs. A file can be broken,
// see state.Bolt. Or the record can be another one than the record beside which the
// cache was written. Then the record was lost: a record that is empty, or of another
// Postern, lacks accounts whose UIDLs were shown.

// identityBucket is a bucket of both files. Its identityKey is a random name of a
// record: record.db has its own name, and cache.db the name of the record beside which
// it was written. A backup has the name of its record.
const (
	identityBucket = state.MetaBucket
	identityKey    = state.IdentityKey
)

// identify compares the names in the files, gives a name to a file without one, and
// sets a.Lost. After an error a.Lost is not known.
func (a *Files) identify(ctx context.Context) error {
	n, err := a.names(ctx)
	if err != nil {
		return err
	}
	for _, missing := range []struct {
		name []byte
		in   *state.Bolt
	}{{n.newCache, a.Cache}, {n.newRecord, a.Record}} {
		if missing.name == nil {
			continue
		}
		if err := missing.in.Bucket(identityBucket).Put(ctx, identityKey, missing.name); err != nil {
			return err
		}
	}
	if n.differ() {
		return a.countLost(ctx)
	}
	return a.Accept(ctx)
}

// lost is identify for files that do not change. It returns the number of accounts that
// were lost.
func (a *Files) lost(ctx context.Context) (int, error) {
	n, err := a.names(ctx)
	if err != nil || !n.differ() {
		return 0, err
	}
	accounts, err := a.unrecorded(ctx)
	return len(accounts), err
}

// names are the names of the record in both files; nil: there is none.
type names struct {
	record, cache       []byte
	newRecord, newCache []byte // names that the files should get; nil: they have theirs
}

// differ reports whether the record is another one than that beside which the cache was
// written.
func (n names) differ() bool { return n.cache != nil && string(n.cache) != string(n.record) }

// names reads the names in the files, and chooses one for a file without one.
func (a *Files) names(ctx context.Context) (n names, err error) {
	if n.record, err = a.Record.Bucket(identityBucket).Get(ctx, identityKey); err != nil {
		return n, err
	}
	if n.cache, err = a.Cache.Bucket(identityBucket).Get(ctx, identityKey); err != nil || n.record != nil {
		return n, err
	}
	empty, err := a.recordIsEmpty(ctx)
	if err != nil {
		return n, err
	}
	n.record = []byte(rand.Text())
	switch {
	case !empty && n.cache != nil: // a backup from before there were names
		n.record = n.cache
	case empty && n.cache == nil: // from before there were names, if the cache has accounts
		n.cache = []byte(rand.Text())
		n.newCache = n.cache
	}
	n.newRecord = n.record
	return n, nil
}

// countLost sets a.Lost for a record that is another one than before. If no account is
// lost, countLost accepts the record.
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

// Accept writes the name of the record into the cache, so that the record counts as the
// one beside which the cache was written.
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

// recordIsEmpty reports whether the record was never written.
func (a *Files) recordIsEmpty(ctx context.Context) (bool, error) {
	for _, bucket := range []bridge.Bucket{a.uidls, a.ledger, a.notes} {
		if empty, err := isEmpty(ctx, bucket); err != nil || !empty {
			return false, err
		}
	}
	return true, nil
}

// unrecorded returns the accounts that are in the cache and not in the record.
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

// forgetLost removes the matching accounts whose record was lost from the cache, and
// returns their number. When none is left, the record is accepted.
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

// recount sets a.Lost again, after records were added.
func (a *Files) recount(ctx context.Context) error {
	if a == nil || a.Lost.Load() == 0 {
		return nil
	}
	return a.countLost(ctx)
}

// LostRecord is the error text for a lost record, and LostRemedy the advice to the
// operator.
const (
	LostRecord = "the record of unique ids was lost"
	LostRemedy = "stop Postern and put a backup back (postern state restore), or let them be computed anew (pop3.on_unreadable_record: recompute, or postern uidl forget --all)"

	// damagedRemedy is for a record that cannot be opened.
	damagedRemedy = "put a backup back (postern state restore FILE); without one, move the file away, and see pop3.on_unreadable_record"
)
