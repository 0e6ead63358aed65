// Package state remembers what outlives a connection: values by key, in named
// buckets. What a value means is the business of who puts it there.
//
// A Bolt is a file of this machine, which one process has at a time; a Memory
// is forgotten with the process. A key holds one value; a value that is nil is
// no value.
package state

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
)

const (
	// lockTimeout is how long Open waits for the process that has the file.
	lockTimeout = time.Second
	// firstMap is how much of the file is mapped at first: a file that grows
	// beyond what is mapped waits for its readers.
	firstMap = 64 << 20
	// maxValue bounds a value, so that a damaged length is not believed.
	maxValue = 128 << 20
)

var (
	// ErrDamaged is in the tree of an error about a file that is no state, or
	// is one no more.
	ErrDamaged = errors.New("state is damaged")
	// ErrInUse is in the tree of an error about a file that another process has.
	ErrInUse = errors.New("state is in use")
)

// Options says how a file is opened.
type Options struct {
	// Disposable is for what can be had again: a file that is damaged is
	// renamed, with ".damaged" at its end, and begun anew.
	Disposable bool
}

// A Bolt is a file of values. Its methods and those of its buckets are for any
// goroutine. A write is on the disk when it returns; what comes while the disk
// is busy shares the next flush.
type Bolt struct {
	db   *bbolt.DB
	path string

	turn sync.Mutex // of who writes
	mu   sync.Mutex
	next []*write // for the next transaction
}

// A write is what one call does in a transaction that it may share.
type write struct {
	do   func(*bbolt.Tx) error
	done chan error // has room for the answer
}

// Open opens the file at path, or makes it. Its directory is made if need be,
// and must belong to this user or to root and be writable for nobody else. The
// file must not be readable for others: it tells who has mail.
func Open(path string, o Options) (*Bolt, error) {
	if err := checkPath(path); err != nil {
		return nil, fmt.Errorf("open state: %w", err)
	}
	db, err := open(path)
	if errors.Is(err, ErrDamaged) && o.Disposable {
		if err = os.Rename(path, path+".damaged"); err == nil {
			db, err = open(path)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("open state %s: %w", path, err)
	}
	return &Bolt{db: db, path: path}, nil
}

func checkPath(path string) error {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	info, err := os.Stat(dir)
	if err != nil {
		return err
	}
	if owner, ok := ownerOf(info); ok && owner != 0 && owner != os.Geteuid() {
		return fmt.Errorf("%s belongs to user %d, not to %d", dir, owner, os.Geteuid())
	}
	if mode := info.Mode().Perm(); mode&0o022 != 0 {
		return fmt.Errorf("%s can be written by others (mode %04o): chmod go-w %s", dir, mode, dir)
	}
	info, err = os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case !info.Mode().IsRegular():
		return fmt.Errorf("%s is no regular file", path)
	case info.Mode().Perm()&0o077 != 0:
		return fmt.Errorf("%s is open to others (mode %04o): chmod 600 %s", path, info.Mode().Perm(), path)
	}
	return nil
}

func open(path string) (db *bbolt.DB, err error) {
	defer damage(&err)
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true)) // a file that was cut off
	db, err = bbolt.Open(path, 0o600, &bbolt.Options{
		Timeout:         lockTimeout,
		FreelistType:    bbolt.FreelistMapType,
		InitialMmapSize: firstMap,
		// Not NoFreelistSync: a write costs the same without, as measured, and
		// a start would read every page, in a goroutine of bbolt's that ends
		// the process when one of them is damaged.
	})
	switch {
	case errors.Is(err, bolterrors.ErrTimeout):
		return nil, fmt.Errorf("%w by %s: stop it, or ask it through its control socket", ErrInUse, holder(path))
	case errors.Is(err, bolterrors.ErrInvalid), errors.Is(err, bolterrors.ErrChecksum), errors.Is(err, bolterrors.ErrVersionMismatch):
		return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return db, err
}

// damage makes an error of a panic, or of a fault in the mapped memory: so
// bbolt meets pages that are not what they should be. It is deferred.
func damage(err *error) {
	if v := recover(); v != nil {
		*err = fmt.Errorf("%w: %v", ErrDamaged, v)
	}
}

// Close closes the file. It waits for the calls that are under way.
func (b *Bolt) Close() error { return b.db.Close() }

// Path returns where the file is.
func (b *Bolt) Path() string { return b.path }

// Size returns how large the file is, in octets; 0 if that is unknown.
func (b *Bolt) Size() int64 {
	info, err := os.Stat(b.path)
	if err != nil {
		return 0
	}
	return info.Size()
}

// Bucket returns the bucket with a name. It begins empty.
func (b *Bolt) Bucket(name string) *Bucket { return &Bucket{bolt: b, name: []byte(name)} }

// A Bucket is the values of one kind.
type Bucket struct {
	bolt *Bolt
	name []byte
}

// Get returns a copy of the value of key, or nil.
func (b *Bucket) Get(ctx context.Context, key string) (value []byte, err error) {
	err = b.view(ctx, func(in *bbolt.Bucket) error {
		found := in.Get([]byte(key))
		if len(found) > maxValue {
			return fmt.Errorf("%w: a value of %d octets", ErrDamaged, len(found))
		}
		if found != nil {
			value = append(make([]byte, 0, len(found)), found...)
		}
		return nil
	})
	return value, err
}

// Put sets the value of key. Nil removes it.
func (b *Bucket) Put(ctx context.Context, key string, value []byte) error {
	return b.Update(ctx, key, func([]byte) ([]byte, error) { return value, nil })
}

// Update replaces the value of key by what change makes of it, with nobody in
// between. The old value is nil if there is none, and valid until change
// returns. An error of change leaves all as it is and is returned; change may
// be called more than once.
func (b *Bucket) Update(ctx context.Context, key string, change func(old []byte) ([]byte, error)) (err error) {
	return b.UpdateAll(ctx, []string{key}, func(_ string, old []byte) ([]byte, error) { return change(old) })
}

// UpdateAll is Update of many keys, each of them once: of all or of none.
func (b *Bucket) UpdateAll(ctx context.Context, keys []string, change func(key string, old []byte) ([]byte, error)) (err error) {
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	return b.bolt.write(func(tx *bbolt.Tx) error {
		in, err := tx.CreateBucketIfNotExists(b.name)
		if err != nil {
			return err
		}
		for _, key := range keys {
			value, err := change(key, in.Get([]byte(key)))
			if err == nil && value == nil {
				err = in.Delete([]byte(key))
			} else if err == nil {
				err = in.Put([]byte(key), value)
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// write does do in a transaction, with whatever else waits for one by then.
// bbolt's Batch would let a write wait for company that may not come.
func (b *Bolt) write(do func(*bbolt.Tx) error) error {
	w := &write{do: do, done: make(chan error, 1)}
	b.mu.Lock()
	b.next = append(b.next, w)
	b.mu.Unlock()
	b.turn.Lock()
	defer b.turn.Unlock()
	b.mu.Lock()
	writes := b.next
	b.next = nil
	b.mu.Unlock()
	for len(writes) > 0 { // else another has taken w along
		writes = b.commit(writes)
	}
	return <-w.done
}

// commit does writes in one transaction and answers them. It returns those that
// have to be done again, because one of them has failed.
func (b *Bolt) commit(writes []*write) (again []*write) {
	failed := -1
	err := b.update(func(tx *bbolt.Tx) error {
		for i, w := range writes {
			failed = i
			if err := w.do(tx); err != nil {
				return err
			}
		}
		failed = -1
		return nil
	})
	if failed >= 0 {
		writes[failed].done <- err
		return slices.Delete(writes, failed, failed+1)
	}
	for _, w := range writes {
		w.done <- err
	}
	return nil
}

func (b *Bolt) update(do func(*bbolt.Tx) error) (err error) {
	defer damage(&err)
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	return b.db.Update(do)
}

// Scan calls each for the keys that begin with prefix, in order, until it
// returns an error. The value is valid until each returns. No write of the
// same goroutine may come from each.
func (b *Bucket) Scan(ctx context.Context, prefix string, each func(key string, value []byte) error) error {
	return b.view(ctx, func(in *bbolt.Bucket) error {
		cursor := in.Cursor()
		for k, v := cursor.Seek([]byte(prefix)); k != nil && len(k) >= len(prefix) && string(k[:len(prefix)]) == prefix; k, v = cursor.Next() {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			if err := each(string(k), v); err != nil {
				return err
			}
		}
		return nil
	})
}

// view calls f with the bucket, if there is one.
func (b *Bucket) view(ctx context.Context, f func(*bbolt.Bucket) error) (err error) {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	defer damage(&err)
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	return b.bolt.db.View(func(tx *bbolt.Tx) error {
		if in := tx.Bucket(b.name); in != nil {
			return f(in)
		}
		return nil
	})
}
