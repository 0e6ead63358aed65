package stored

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"iter"
	"os"
	"path/filepath"
	"strings"

	"postern/configs"
	"postern/proxy/admin"
	"postern/proxy/state"
)

// A migration moves the record of this node between its file and the store of
// cfg.State.Record, while no Postern runs here.
//
// To the store: a store without a complete record becomes what the file is. In a store with
// one, which is another node's, only accounts are added that it does not have: a record says
// what clients were shown, and stays. To the file: the file becomes what the store is, and the
// store is marked as moved, so that no other node uses it any more.
//
// A migration that was interrupted is begun again, and copies what is missing. Only when both
// sides have been read again and are equal does the name of the record, or the mark, make
// the new one valid.
type migration struct {
	record, cache *state.Bolt
	store         state.Store
	where         string                     // the store, for people
	progress      func(bucket string, n int) // called for each value that was compared; nil: nobody wants it
	result        Migrated
}

// Migrated is the result of Migrate.
type Migrated struct {
	Record  string   `json:"record"`            // where the record is now
	Values  int      `json:"values"`            // compared and equal
	Copied  int      `json:"copied"`            // by this call
	Differ  []string `json:"differ,omitempty"`  // accounts, some of them, whose record in the store is another one, and stays
	Differs int      `json:"differs,omitempty"` // number of these
}

const (
	migrateBatch = 200
	maxDiffer    = 100
	migratingKey = "migrating" // of state.MetaBucket: the name of the record that is being copied
	accountMark  = "\x00"      // ends the account in the keys of all shared buckets
)

var (
	errOtherMigration = errors.New("another node has begun to copy its record there: let it end, then run this again")
	errNoShared       = errors.New("state.record is not set: set it, to postgres or owner, before the record is moved there, and keep it until the record is back")
	errStillWritten   = errors.New("the two records differ after the copy: does another Postern still write? Stop it, and run this again")
)

// Migrate moves the record of cfg to the store of cfg.State.Record, or, if back is set, from
// there to record.db. No Postern of cfg may run. Root opens the files as their owner.
func Migrate(ctx context.Context, cfg *configs.Config, back bool, progress func(bucket string, n int)) (done Migrated, err error) {
	if cfg.State.Path == "" {
		return done, ErrNoState
	}
	if cfg.State.Record == nil {
		return done, errNoShared
	}
	if back && cfg.State.Record.Postgres == nil {
		return done, errors.New("the record of an owner stays there: remove state.record to begin an own one")
	}
	if cfg.Control.Socket != "" {
		if pid, running := admin.Running(cfg.Control.Socket); running {
			return done, fmt.Errorf("a Postern runs (process %d): stop it first, with its unit by systemctl stop postern", pid)
		}
	}
	if _, err := os.Stat(cfg.State.Path); err != nil {
		return done, fmt.Errorf("%w: start Postern once, which makes its files", err)
	}
	err = AsOwner(cfg.State.Path, func() error {
		done, err = migrate(ctx, cfg, back, progress)
		return err
	})
	return done, err
}

func migrate(ctx context.Context, cfg *configs.Config, back bool, progress func(string, int)) (_ Migrated, err error) {
	m := migration{where: recordPlace(cfg), progress: progress}
	if m.progress == nil {
		m.progress = func(string, int) {}
	}
	if m.cache, err = state.Open(filepath.Join(cfg.State.Path, CacheFile), state.Options{Disposable: true}); err != nil {
		return m.result, err
	}
	defer func() { err = errors.Join(err, m.cache.Close()) }()
	if m.record, err = state.Open(filepath.Join(cfg.State.Path, RecordFile), state.Options{}); err != nil {
		return m.result, withRemedy(err)
	}
	defer func() { err = errors.Join(err, m.record.Close()) }()
	if m.store, err = RecordStore(cfg, func(state.Identity) error { return nil }); err != nil {
		return m.result, err
	}
	defer func() { err = errors.Join(err, m.store.Close()) }()
	if p, ok := m.store.(*state.Postgres); ok {
		p.TakeAny()
	}
	if p, ok := m.store.(*state.Postgres); ok && !back {
		if err := p.Prepare(ctx); err != nil {
			return m.result, err
		}
	}
	if back {
		err = m.toFile(ctx)
	} else {
		err = m.toStore(ctx)
	}
	return m.result, err
}

// identity returns the identity of the store, and the name of the record that is being copied
// to it.
func (m *migration) identity(ctx context.Context) (i state.Identity, migrating string, err error) {
	values, err := m.store.Get(ctx, state.MetaBucket, []string{state.IdentityKey, state.MovedKey, migratingKey})
	if err != nil {
		return i, "", err
	}
	return state.Identity{Name: string(values[0].Value), Moved: string(values[1].Value)}, string(values[2].Value), nil
}

// setMeta sets values of the store's MetaBucket; nil removes one.
func (m *migration) setMeta(ctx context.Context, values map[string][]byte) error {
	keys := []string{state.IdentityKey, state.MovedKey, migratingKey}
	now, err := m.store.Get(ctx, state.MetaBucket, keys)
	if err != nil {
		return err
	}
	var changes []state.Change
	for i, key := range keys {
		if value, ok := values[key]; ok {
			changes = append(changes, state.Change{Key: key, Version: now[i].Version, Value: value})
		}
	}
	swapped, err := m.store.Swap(ctx, state.MetaBucket, changes)
	if err == nil && !swapped {
		err = errOtherMigration
	}
	return err
}

// toStore moves the record to the store.
func (m *migration) toStore(ctx context.Context) error {
	a := newFiles(m.record, m.cache, nil)
	i, migrating, err := m.identity(ctx)
	if err != nil {
		return err
	}
	own, err := a.hasOwnRecord(ctx)
	if err != nil {
		return err
	}
	name, err := m.record.Bucket(identityBucket).Get(ctx, identityKey)
	if err != nil {
		return err
	}
	if len(name) == 0 { // of a node that has never had a record of its own
		name = []byte(rand.Text())
		if err := m.record.Bucket(identityBucket).Put(ctx, identityKey, name); err != nil {
			return err
		}
	}
	switch complete := i.Check() == nil; {
	case complete && own:
		err = m.add(ctx)
	case complete:
	case i.Moved != "" && i.Name != string(name):
		return fmt.Errorf("%s has the old record of another node, which was moved to %s: bring that one back, or begin with an empty database", m.where, i.Moved)
	case migrating != "" && migrating != string(name):
		return errOtherMigration
	default:
		// From here on no node uses what is there, or writes to it.
		if err := m.setMeta(ctx, map[string][]byte{migratingKey: name, state.MovedKey: nil, state.IdentityKey: nil}); err != nil {
			return err
		}
		if err = m.copyAll(ctx, boltSide(m.record), m.store); err == nil {
			i.Name = string(name)
			err = m.setMeta(ctx, map[string][]byte{migratingKey: nil, state.IdentityKey: name})
		}
	}
	if err != nil {
		return err
	}
	m.result.Record = m.where
	// The mark is last: without it the node refuses the shared record, and nothing is lost.
	if err := m.cache.Bucket(identityBucket).Put(ctx, identityKey, []byte(i.Name)); err != nil {
		return err
	}
	return m.record.Bucket(state.MetaBucket).Put(ctx, state.MovedKey, []byte(m.where))
}

// toFile moves the record to the file.
func (m *migration) toFile(ctx context.Context) error {
	i, _, err := m.identity(ctx)
	if err != nil {
		return err
	}
	here := "record.db of " + hostname()
	switch {
	case i.Name == "":
		return fmt.Errorf("%s: %w", m.where, state.ErrNoRecord)
	case i.Moved != "" && i.Moved != here:
		return fmt.Errorf("the record in %s was moved to %s", m.where, i.Moved)
	case i.Moved == "":
		if err := m.setMeta(ctx, map[string][]byte{state.MovedKey: []byte(here)}); err != nil {
			return err
		}
	}
	if err := m.copyAll(ctx, m.store, boltSide(m.record)); err != nil {
		return err
	}
	m.result.Record = RecordFile
	for _, b := range []*state.Bolt{m.cache, m.record} {
		if err := b.Bucket(identityBucket).Put(ctx, identityKey, []byte(i.Name)); err != nil {
			return err
		}
	}
	return m.record.Bucket(state.MetaBucket).Put(ctx, state.MovedKey, nil)
}

func hostname() string {
	name, err := os.Hostname()
	if err != nil {
		return "another machine"
	}
	return name
}

func boltSide(b *state.Bolt) state.Store { return state.BoltStore{Bolt: b} }

// copyAll makes the shared buckets of to what they are in from, and compares both.
func (m *migration) copyAll(ctx context.Context, from, to state.Store) error {
	for _, bucket := range SharedBuckets() {
		if err := m.copyBucket(ctx, bucket, from, to, nil); err != nil {
			return err
		}
		if err := m.removeOthers(ctx, bucket, from, to); err != nil {
			return err
		}
	}
	for _, bucket := range SharedBuckets() {
		n, err := m.compare(ctx, bucket, from, to)
		if err != nil {
			return err
		}
		m.result.Values += n
	}
	return nil
}

// copyBucket copies all values that differ, but for keys that skip.
func (m *migration) copyBucket(ctx context.Context, bucket string, from, to state.Store, skip func(key string) bool) error {
	var keys []string
	values, last := map[string][]byte{}, ""
	n := 0
	flush := func() error {
		if len(keys) == 0 {
			return nil
		}
		there, err := to.Get(ctx, bucket, keys)
		if err != nil {
			return err
		}
		var changes []state.Change
		for i, key := range keys {
			if !bytes.Equal(there[i].Value, values[key]) || there[i].Value == nil {
				changes = append(changes, state.Change{Key: key, Version: there[i].Version, Value: values[key]})
			}
		}
		if len(changes) > 0 {
			swapped, err := to.Swap(ctx, bucket, changes)
			if err == nil && !swapped {
				err = errStillWritten
			}
			if err != nil {
				return err
			}
		}
		m.result.Copied += len(changes)
		keys, values = keys[:0], map[string][]byte{}
		return nil
	}
	err := from.Scan(ctx, bucket, "", func(key string, value []byte) error {
		if skip != nil && skip(key) {
			return nil
		}
		account, _, _ := strings.Cut(key, accountMark)
		if len(keys) >= migrateBatch && account != last { // an account is copied whole or not at all
			if err := flush(); err != nil {
				return err
			}
		}
		keys, values[key], last = append(keys, key), bytes.Clone(value), account
		n++
		m.progress(bucket, n)
		return nil
	})
	if err != nil {
		return err
	}
	return flush()
}

// removeOthers removes the keys of to that from does not have.
func (m *migration) removeOthers(ctx context.Context, bucket string, from, to state.Store) error {
	var others []string
	err := merge(ctx, bucket, from, to, func(key string, inFrom, inTo []byte) error {
		if inFrom == nil && inTo != nil {
			others = append(others, key)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for len(others) > 0 {
		some := others[:min(len(others), migrateBatch)]
		others = others[len(some):]
		now, err := to.Get(ctx, bucket, some)
		if err != nil {
			return err
		}
		var changes []state.Change
		for i, key := range some {
			changes = append(changes, state.Change{Key: key, Version: now[i].Version})
		}
		if swapped, err := to.Swap(ctx, bucket, changes); err != nil || !swapped {
			return errors.Join(err, errStillWritten)
		}
	}
	return nil
}

// compare returns the number of values, or an error if the two sides differ.
func (m *migration) compare(ctx context.Context, bucket string, from, to state.Store) (n int, err error) {
	err = merge(ctx, bucket, from, to, func(_ string, inFrom, inTo []byte) error {
		if inFrom == nil || inTo == nil || !bytes.Equal(inFrom, inTo) {
			return errStillWritten
		}
		n++
		m.progress("compare "+bucket, n)
		return nil
	})
	return n, err
}

// add adds to the store the accounts that it does not have, and compares these.
func (m *migration) add(ctx context.Context) error {
	from := boltSide(m.record)
	for _, bucket := range SharedBuckets() {
		there := map[string]bool{} // accounts
		err := m.store.Scan(ctx, bucket, "", func(key string, _ []byte) error {
			account, _, _ := strings.Cut(key, accountMark)
			there[account] = true
			return nil
		})
		if err != nil {
			return err
		}
		differ := map[string]bool{}
		err = merge(ctx, bucket, from, m.store, func(key string, here, inStore []byte) error {
			if account, _, _ := strings.Cut(key, accountMark); there[account] && here != nil && !bytes.Equal(here, inStore) {
				differ[account] = true
			}
			return nil
		})
		if err != nil {
			return err
		}
		err = m.copyBucket(ctx, bucket, from, m.store, func(key string) bool {
			account, _, _ := strings.Cut(key, accountMark)
			return there[account]
		})
		if err != nil {
			return err
		}
		err = merge(ctx, bucket, from, m.store, func(key string, here, inStore []byte) error {
			if here == nil || bytes.Equal(here, inStore) {
				if here != nil {
					m.result.Values++
				}
				return nil
			}
			if account, _, _ := strings.Cut(key, accountMark); !differ[account] {
				return errStillWritten
			}
			return nil
		})
		if err != nil {
			return err
		}
		if bucket != ledgerBucket { // counts of logins differ where an account has used both nodes
			m.note(differ)
		}
	}
	return nil
}

// note adds accounts to the result.
func (m *migration) note(differ map[string]bool) {
	for account := range differ {
		if m.result.Differs++; len(m.result.Differ) < maxDiffer {
			m.result.Differ = append(m.result.Differ, account)
		}
	}
}

// merge calls each for every key of a bucket that a or b has, in order, with both values;
// nil: there is none. The values are valid until each returns.
func merge(ctx context.Context, bucket string, a, b state.Store, each func(key string, inA, inB []byte) error) error {
	var errA, errB error
	nextA, stopA := iter.Pull2(values(ctx, bucket, a, &errA))
	defer stopA()
	nextB, stopB := iter.Pull2(values(ctx, bucket, b, &errB))
	defer stopB()
	keyA, inA, okA := nextA()
	keyB, inB, okB := nextB()
	for {
		if err := errors.Join(errA, errB); err != nil || !okA && !okB { // a side that has failed is not one that has ended
			return err
		}
		switch {
		case !okB || okA && keyA < keyB:
			if err := each(keyA, inA, nil); err != nil {
				return err
			}
			keyA, inA, okA = nextA()
		case !okA || keyB < keyA:
			if err := each(keyB, nil, inB); err != nil {
				return err
			}
			keyB, inB, okB = nextB()
		default:
			if err := each(keyA, inA, inB); err != nil {
				return err
			}
			keyA, inA, okA = nextA()
			keyB, inB, okB = nextB()
		}
	}
}

// values returns the values of a bucket. An error goes to err.
func values(ctx context.Context, bucket string, store state.Store, err *error) iter.Seq2[string, []byte] {
	return func(yield func(string, []byte) bool) {
		*err = store.Scan(ctx, bucket, "", func(key string, value []byte) error {
			if !yield(key, value) {
				return errOne
			}
			return nil
		})
	}
}
