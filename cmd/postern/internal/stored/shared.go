package stored

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"postern/bridge"
	"postern/configs"
	"postern/metrics/ledger"
	"postern/proxy/state"
)

// A Shared is a record that several Posterns share. The methods of nil do nothing.
type Shared struct {
	*state.Shared
	Where string // for people: PostgreSQL, or the owner and its address
}

// Close closes the connections.
func (s *Shared) Close() error {
	if s == nil {
		return nil
	}
	return s.Shared.Close()
}

// Err returns why the record is temporarily not available, or nil.
func (s *Shared) Err() error {
	if s == nil {
		return nil
	}
	return s.Shared.Err()
}

// openShared returns the record of cfg.State.Record. It connects to nothing.
func openShared(cfg *configs.Config, accept func(state.Identity) error, away func(error)) (*Shared, error) {
	store, err := RecordStore(cfg, accept)
	if err != nil {
		return nil, err
	}
	return &Shared{state.NewShared(store, away), recordPlace(cfg)}, nil
}

// recordPlace says where the record of cfg is.
func recordPlace(cfg *configs.Config) string {
	switch r := cfg.State.Record; {
	case r == nil:
		return RecordFile
	case r.Postgres != nil:
		return "PostgreSQL"
	default:
		return "the owner at " + r.Owner
	}
}

// RecordStore returns the store of cfg.State.Record, which is set. accept is as in
// state.PostgresConfig. RecordStore connects to nothing.
func RecordStore(cfg *configs.Config, accept func(state.Identity) error) (state.Store, error) {
	if p := cfg.State.Record.Postgres; p != nil {
		store, err := state.NewPostgres(state.PostgresConfig{URL: p.URL, PasswordFile: p.PasswordFile, CA: p.CA, Accept: accept})
		if err != nil {
			return nil, configs.Errors{cfg.Errorf("state.record.postgres", "%v", err)}
		}
		return store, nil
	}
	keys, err := state.ReadKeys(cfg.State.KeyFile)
	if err != nil {
		return nil, configs.Errors{cfg.Errorf("state.key_file", "%v", err)}
	}
	store, err := state.NewOwner(cfg.State.Record.Owner, keys, accept)
	if err != nil {
		return nil, configs.Errors{cfg.Errorf("state.record.owner", "%v", err)}
	}
	return store, nil
}

// errMoved is about a file whose record was moved away.
const errMoved = "%s: the record of this file was moved to %s: set state.record as it was, or bring the record back: postern state migrate --to bbolt"

// checkMoved returns an error if the record of the file was moved away: what the file has is
// old.
func (a *Files) checkMoved(ctx context.Context) error {
	moved, err := a.Record.Bucket(state.MetaBucket).Get(ctx, state.MovedKey)
	if err != nil || moved == nil {
		return nil //nolint:nilerr // a file that cannot be read does not prevent the start
	}
	return fmt.Errorf(errMoved, RecordFile, moved)
}

// Errors of a record that is not the one that this node has shown unique ids of.
var (
	errNotMigrated = fmt.Errorf("%s of this node has a record that is not in the shared one: stop Postern, and run postern state migrate", RecordFile)
	errOther       = errors.New("it is another record than the one that this node has used: " +
		"put the right one back, or let unique ids be computed anew (pop3.on_unreadable_record: recompute, and a restart)")
)

// acceptRecord returns what decides whether a shared record is the one of the files: the cache
// has the name of the record beside which it was written. recompute takes any record.
func acceptRecord(a *Files, recompute bool) func(state.Identity) error {
	var accepted atomic.Pointer[string]
	return func(i state.Identity) error {
		if err := i.Check(); err != nil {
			return err
		}
		if known := accepted.Load(); known != nil && *known == i.Name {
			return nil
		}
		ctx := context.Background()
		switch own, err := a.hasOwnRecord(ctx); {
		case err != nil:
			return err
		case own:
			return errNotMigrated
		}
		beside := a.Cache.Bucket(identityBucket)
		known, err := beside.Get(ctx, identityKey)
		if err != nil {
			return err
		}
		if string(known) != i.Name {
			if known != nil && !recompute {
				if empty, err := isEmpty(ctx, a.listings); err != nil || !empty {
					return errors.Join(err, errOther)
				}
			}
			if err := beside.Put(ctx, identityKey, []byte(i.Name)); err != nil {
				return err
			}
		}
		accepted.Store(&i.Name)
		return nil
	}
}

// Served returns the record of the file for other nodes.
func (a *Files) Served(ctx context.Context) (state.Served, error) {
	name, err := a.Record.Bucket(identityBucket).Get(ctx, identityKey)
	return state.Served{Name: string(name), Store: state.BoltStore{Bolt: a.Record}}, err
}

// hasOwnRecord reports whether the file has a record that was never moved to the shared one.
func (a *Files) hasOwnRecord(ctx context.Context) (bool, error) {
	moved, err := a.Record.Bucket(state.MetaBucket).Get(ctx, state.MovedKey)
	if err != nil || moved != nil {
		return false, err
	}
	for _, name := range []string{UIDLBucket, DeviceBucket} {
		if empty, err := isEmpty(ctx, a.Record.Bucket(name)); err != nil || !empty {
			return true, err
		}
	}
	return false, nil
}

type scanner interface {
	Scan(ctx context.Context, prefix string, each func(key string, value []byte) error) error
}

func isEmpty(ctx context.Context, bucket scanner) (bool, error) {
	err := bucket.Scan(ctx, "", func(string, []byte) error { return errOne })
	if errors.Is(err, errOne) {
		return false, nil
	}
	return err == nil, err
}

// forgottenDays is how long other nodes may be down and still learn that the record of an
// account was removed on purpose.
const forgottenDays = 30

// markForgotten notes that the records of accounts are removed, before they are: the caches of
// other nodes know that there was one, and would take it as lost.
func (a *Files) markForgotten(ctx context.Context, accounts []string) error {
	if a.forgotten == nil {
		return nil
	}
	day := []byte(ledger.Day(time.Now()))
	const together = 1000
	for some := range slices.Chunk(accounts, together) {
		if err := a.forgotten.UpdateAll(ctx, some, func(string, []byte) ([]byte, error) { return day, nil }); err != nil {
			return err
		}
	}
	return nil
}

// Forgotten reports whether the record of an account was removed on purpose within the last
// forgottenDays, maybe by another node.
func (a *Files) Forgotten(ctx context.Context, account string) (bool, error) {
	if a == nil || a.forgotten == nil {
		return false, nil
	}
	day, err := a.forgotten.Get(ctx, account)
	return day != nil, err
}

// sweepForgotten removes the listings of accounts that another node has forgotten, and the
// notes about them after forgottenDays.
func (a *Files) sweepForgotten(ctx context.Context, now time.Time) error {
	if a.forgotten == nil {
		return nil
	}
	old := ledger.Day(now.AddDate(0, 0, -forgottenDays))
	var stale, gone []string
	err := a.forgotten.Scan(ctx, "", func(account string, day []byte) error {
		if gone = append(gone, account); string(day) < old {
			stale = append(stale, account)
		}
		return nil
	})
	if err != nil {
		return err
	}
	gone = slices.DeleteFunc(gone, func(account string) bool {
		again, failed := bridge.History(ctx, a.uidls, account)
		return failed != nil || len(again) > 0 // what cannot be read is not taken for absent
	})
	if err := bridge.Erase(ctx, a.listings, new(state.Memory), gone); err != nil {
		return err
	}
	const together = 1000
	for some := range slices.Chunk(stale, together) {
		err := a.forgotten.UpdateAll(ctx, some, func(_ string, day []byte) ([]byte, error) {
			if string(day) >= old {
				return day, nil // forgotten again meanwhile
			}
			return nil, nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}
