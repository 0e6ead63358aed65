// Package stored has the data that the running Postern and its commands read and write
// in state.path: the record of unique ids, the cache of listings, the ledger of logins,
// and the state of the login guard.
//
// A Storage has the files open. A Question is a request about the files: the
// running Postern answers the command over the control socket; when no Postern
// runs, the command opens the files and answers itself.
package stored

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"postern/bridge"
	"postern/configs"
	"postern/metrics/ledger"
	"postern/proxy"
	"postern/proxy/guard"
	"postern/proxy/password"
	"postern/proxy/state"
)

// A Storage is the state that outlives the process. The zero value stores nothing.
type Storage struct {
	Cache  bridge.Bucket
	Record bridge.Bucket
	Guard  guard.Store

	Brakes  bridge.Bucket         // of backends, by name; nil: their state ends with the process
	Devices password.Bucket       // device passwords; nil: they cannot be stored
	Files   *Files                // nil: no files are open
	Opened  atomic.Pointer[Files] // the same files, for readers in any goroutine

	OpenBrake func(ctx context.Context, backend string) (*bridge.Brake, error) // returns the brake of a configured backend, with its state

	Flush     func(context.Context) error // writes the unwritten data of a running Postern; nil: none runs
	LiveGuard *guard.Guard                // the guard of the running Postern
	Forgotten func(account string)        // called after the stored data of an account was removed; nil: none runs
	Serving   func(account string) error  // returns an error if a POP3 session of an account may be open; nil: none runs

	DeviceKeys func() ([][]byte, error)                                       // the keys of device passwords, the present one first
	EndDevice  func(ctx context.Context, account, device string) (int, error) // ends the sessions of a device that was removed, and returns their number; nil: none runs

	RecordAway func(error) // called when the shared record does not answer, and with nil when it does again; nil: nobody is told

	BackedUp atomic.Pointer[time.Time] // the last backup that this process has made; nil: none

	guardConfig guard.Config // for the guard of a command

	Reading sync.RWMutex // read-locked by questions; locked while another process takes or returns the files

	Buckets map[string]*Bucket // for sessions, by name: cache, record and brakes
	close   func() error       // nil: no files are open
}

// OpenMemory makes m, which is empty, a Storage that ends with the process.
func (m *Storage) OpenMemory() { m.Cache, m.Record = new(state.Memory), new(state.Memory) }

// Observe makes o observe the reads and writes of sessions. It must be called before the
// first session.
func (m *Storage) Observe(o proxy.Observer) {
	for _, b := range m.Buckets {
		b.observer = o
	}
}

// HandOver closes the files. Sessions then use the bucket that other returns for each
// name.
func (m *Storage) HandOver(other func(name string) bridge.Bucket) error {
	for name, b := range m.Buckets {
		b.set(other(name))
	}
	err := m.Close()
	m.close = nil
	return err
}

// TakeBack opens the files again, and sessions use them again.
func (m *Storage) TakeBack(ctx context.Context, cfg *configs.Config) error {
	fresh := &Storage{RecordAway: m.RecordAway}
	if err := fresh.Open(ctx, cfg); err != nil {
		return err
	}
	for name, b := range m.Buckets {
		b.set(fresh.Buckets[name].store)
	}
	m.Guard, m.Files, m.close = fresh.Guard, fresh.Files, fresh.close
	m.Opened.Store(m.Files)
	return nil
}

// Open opens the files of cfg.State.Path, and creates missing ones. Without a path the
// Storage stays empty.
func Open(ctx context.Context, cfg *configs.Config) (*Storage, error) {
	m := new(Storage)
	return m, m.Open(ctx, cfg)
}

// Open opens the files of cfg.State.Path in m, which is empty. Without a path m
// stays empty.
func (m *Storage) Open(ctx context.Context, cfg *configs.Config) error {
	dir := cfg.State.Path
	if dir == "" {
		return nil
	}
	cache, err := state.Open(filepath.Join(dir, CacheFile), state.Options{Disposable: true})
	if err != nil {
		return err
	}
	record, err := state.Open(filepath.Join(dir, RecordFile), state.Options{})
	if err != nil {
		_ = cache.Close()
		return withRemedy(err)
	}
	a, err := m.openFiles(ctx, cfg, record, cache)
	if err != nil {
		return errors.Join(err, cache.Close(), record.Close())
	}
	listings := NewBucket(ListingsBucket, a.listings)
	uidls := NewBucket(UIDLBucket, a.uidls)
	brakes := NewBucket(BrakeBucket, record.Bucket(BrakeBucket))
	devices := NewBucket(DeviceBucket, a.devices)
	m.Cache, m.Record, m.Brakes, m.Devices, m.Guard = listings, uidls, brakes, devices, cache.Bucket("guard")
	m.Buckets = map[string]*Bucket{ListingsBucket: listings, UIDLBucket: uidls, BrakeBucket: brakes, DeviceBucket: devices}
	m.guardConfig = GuardConfig(cfg)
	m.DeviceKeys = func() ([][]byte, error) { return ReadDeviceKeys(cfg) }
	m.OpenBrake = func(ctx context.Context, backend string) (*bridge.Brake, error) {
		if err := CheckPOP3Backend(cfg, backend); err != nil {
			return nil, err
		}
		b := bridge.NewBrake(backend, nil)
		_ = b.Open(ctx, brakes) // Accept replaces a state that cannot be read
		return b, nil
	}
	m.close = func() error { return errors.Join(a.Shared.Close(), cache.Close(), record.Close()) }
	m.Files = a
	m.Opened.Store(m.Files)
	return nil
}

// openFiles returns the files record and cache, with the record of cfg.State.Record if there
// is one.
func (m *Storage) openFiles(ctx context.Context, cfg *configs.Config, record, cache *state.Bolt) (*Files, error) {
	a := newFiles(record, cache, nil)
	if cfg.State.Record == nil {
		if err := a.checkMoved(ctx); err != nil {
			return nil, err
		}
		if cfg.Cluster.ServeRecord != "" {
			a.forgotten = record.Bucket(forgottenBucket)
		}
		a.Unidentified = a.identify(ctx) // a file that cannot be read does not prevent the start
		return a, nil
	}
	shared, err := openShared(cfg, acceptRecord(a, cfg.POP3.OnUnreadableRecord == "recompute"), m.RecordAway)
	if err != nil {
		return nil, err
	}
	return newFiles(record, cache, shared), nil
}

// openExisting is Open for a command. It creates no files, because the files would belong
// to the user of the command.
func openExisting(ctx context.Context, cfg *configs.Config) (*Storage, error) {
	if err := recordExists(cfg.State.Path); err != nil {
		return nil, err
	}
	return Open(ctx, cfg)
}

// openRecord opens the record alone, which does not change.
func openRecord(ctx context.Context, cfg *configs.Config) (*Storage, error) {
	if err := recordExists(cfg.State.Path); err != nil {
		return nil, err
	}
	record, err := state.Open(filepath.Join(cfg.State.Path, RecordFile), state.Options{ReadOnly: true})
	if err != nil {
		return nil, withRemedy(err)
	}
	a := newFiles(record, nil, nil)
	if cfg.State.Record == nil {
		err = a.checkMoved(ctx)
	} else {
		var shared *Shared
		shared, err = openShared(cfg, state.Identity.Check, nil)
		a = newFiles(record, nil, shared)
	}
	if err != nil {
		return nil, errors.Join(err, record.Close())
	}
	return &Storage{
		Record: a.uidls, Devices: a.devices, Files: a, close: func() error { return errors.Join(a.Shared.Close(), record.Close()) },
		DeviceKeys: func() ([][]byte, error) { return ReadDeviceKeys(cfg) },
	}, nil
}

// recordExists returns an error if there is no record in dir.
func recordExists(dir string) error {
	_, err := os.Stat(filepath.Join(dir, RecordFile))
	switch {
	case err == nil:
		return nil
	case errors.Is(err, fs.ErrPermission):
		return state.CheckPath(filepath.Join(dir, RecordFile), state.Options{ReadOnly: true})
	}
	if _, beside := os.Stat(filepath.Join(dir, CacheFile)); beside == nil {
		return fmt.Errorf("%s: %s: %w", LostRecord, LostRemedy, err)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: stat %s: no such file or directory: start Postern once, which makes its files", ErrNeverRan, filepath.Join(dir, RecordFile))
	}
	return err
}

// ErrNeverRan reports that there are no files, because no Postern has run yet.
var ErrNeverRan = errors.New("no Postern is running, and none has left its state")

// withRemedy returns err, an error of opening the record, with the advice to the operator.
func withRemedy(err error) error {
	if errors.Is(err, state.ErrDamaged) {
		return fmt.Errorf("%w: %s", err, damagedRemedy)
	}
	return err
}

// Close closes the files. Remaining sessions go on without them.
func (m *Storage) Close() error {
	if m.close == nil {
		return nil
	}
	if err := m.close(); err != nil {
		return fmt.Errorf("close state: %w", err)
	}
	return nil
}

// Broken returns the error of a broken file of the open state, or nil.
func (m *Storage) Broken() error {
	if a := m.Opened.Load(); a != nil {
		return errors.Join(a.Record.Err(), a.Cache.Err())
	}
	return nil
}

// A ledgerStore is a bucket of the ledger in the files that are open.
type ledgerStore struct {
	storage *Storage
	of      func(*Files) bridge.Bucket
}

// Ledger returns the store of the ledger.
func (m *Storage) Ledger() ledger.Store {
	return ledgerStore{m, func(a *Files) bridge.Bucket { return a.ledger }}
}

// Days returns the store of the days that the ledger has observed.
func (m *Storage) Days() ledger.Store {
	return ledgerStore{m, func(a *Files) bridge.Bucket { return a.days }}
}

// UpdateAll implements ledger.Store.
func (s ledgerStore) UpdateAll(ctx context.Context, keys []string, change func(key string, old []byte) ([]byte, error)) error {
	return s.of(s.storage.Files).UpdateAll(ctx, keys, change)
}

// Scan implements ledger.Store.
func (s ledgerStore) Scan(ctx context.Context, prefix string, each func(key string, value []byte) error) error {
	return s.of(s.storage.Files).Scan(ctx, prefix, each)
}

// open returns the files, after the running Postern has written all data.
func (m *Storage) open(ctx context.Context) (*Files, error) {
	if m.Files == nil {
		return nil, ErrNoState
	}
	if m.Flush == nil {
		return m.Files, nil
	}
	return m.Files, m.Flush(ctx)
}

// Bucket returns the bucket with a name for sessions.
func (m *Storage) Bucket(name string) (*Bucket, error) {
	if b := m.Buckets[name]; b != nil {
		return b, nil
	}
	return nil, fmt.Errorf("there is no bucket %q", name)
}

// CheckPOP3Backend is an error unless backend serves POP3. The error names the
// backends that do.
func CheckPOP3Backend(cfg *configs.Config, backend string) error {
	var names []string
	if slices.ContainsFunc(cfg.Listeners, func(l configs.Listener) bool { return l.Protocol == proxy.POP3 }) {
		for name, b := range cfg.Backends {
			if b.IMAP != nil {
				names = append(names, name)
			}
		}
	}
	slices.Sort(names)
	switch {
	case names == nil:
		return errors.New("no backend serves POP3: there is no pop3 listener, or no backend has an imap server")
	case !slices.Contains(names, backend):
		return fmt.Errorf("there is no backend %q that serves POP3; there are: %s", backend, strings.Join(names, ", "))
	}
	return nil
}
