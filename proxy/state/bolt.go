// Package state stores what outlives a connection: values by key, in named
// buckets. The users of a bucket define what its values mean.
//
// A Bolt is a file that one process has open at a time; a Memory is lost with the
// process. A key has at most one value; nil is no value.
package state

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
)

// The limits of a file.
const (
	// lockTimeout is how long Open waits for the process that has the file open.
	lockTimeout = time.Second
	// initialMap is how much of the file is mapped at first: when a file outgrows
	// its mapping, writes wait for all reads.
	initialMap = 64 << 20
	// maxValue bounds a value, so that a damaged length is not believed.
	maxValue = 128 << 20
)

var (
	// ErrDamaged is wrapped by an error about a file that is no valid state, and by
	// every error of a Bolt that is broken.
	ErrDamaged = errors.New("state is damaged")
	// ErrInUse is wrapped by an error about a file that another process has open.
	ErrInUse = errors.New("state is in use")
)

// Options say how a file is opened.
type Options struct {
	// Disposable is for data that can be computed again: a damaged file, whatever it
	// contains, is renamed, with ".damaged" appended, and a new one is made.
	Disposable bool
	// ReadOnly is for a file that must not change: writes are errors, a missing file is
	// not made, and a damaged one stays where it is.
	ReadOnly bool
	// NoWait is for a file that another process may have for long: ErrInUse comes at once.
	NoWait bool
}

// timeout returns how long to wait for the process that has the file open.
func (o Options) timeout() time.Duration {
	if o.NoWait {
		return time.Millisecond
	}
	return lockTimeout
}

// A Bolt is a file of values. Its methods and those of its buckets may be called
// from any goroutine. A write is on disk when it returns; writes that come during
// a flush share the next one.
//
// A Bolt is broken, until the process ends, once another program has changed its
// file, or the file cannot be read where bbolt holds a lock. Then every method
// returns Err at once, and the file is neither read nor written.
type Bolt struct {
	db         *bbolt.DB
	path       string
	disposable bool
	recreated  error       // why Open has made a new file, or nil
	opened     os.FileInfo // state of the mapped file

	beginMu     sync.Mutex // held while a transaction begins or ends, never for long
	longHolders int        // number of goroutines that may hold a lock of bbolt for long; guarded by beginMu

	// committed is the number of the last transaction that is certainly in the file,
	// attempted that of the last one that may be.
	committed, attempted atomic.Int64

	pathChecked time.Time // when a writer last checked the file at its path

	mu      sync.Mutex
	pending []*write // for the next transaction
	writing bool     // writeAll runs

	failure atomic.Pointer[error] // why the Bolt is broken
	broken  chan struct{}         // closed when it is broken
}

// Open opens the file at path, or makes it. Its directory is made if necessary,
// must belong to this user or to root, and must not be writable for others. The
// file must not be readable for others: it says who has mail.
func Open(path string, o Options) (*Bolt, error) {
	if err := CheckPath(path, o); err != nil {
		return nil, fmt.Errorf("open state: %w", err)
	}
	if !o.ReadOnly {
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			return nil, fmt.Errorf("open state: %w", err)
		}
	}
	b, err := open(path, o)
	var renewed error
	if errors.Is(err, ErrDamaged) && o.Disposable && !o.ReadOnly {
		renewed = err
		if err = os.Rename(path, path+".damaged"); err == nil {
			b, err = open(path, o)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("open state %s: %w", path, err)
	}
	b.disposable, b.recreated = o.Disposable, renewed
	return b, nil
}

// Recreated returns why Open has made a new file in place of a damaged Disposable
// one, or nil.
func (b *Bolt) Recreated() error { return b.recreated }

func open(path string, o Options) (_ *Bolt, err error) {
	var file *os.File
	defer func() {
		if err != nil && file != nil {
			_ = file.Close() // releases its lock, which a panic has left behind
		}
	}()
	defer recoverDamage(&err)
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true)) // for a truncated file
	b := &Bolt{path: path, broken: make(chan struct{})}
	if err = checkFree(path, o.timeout()); err == nil {
		b.db, err = b.openFile(&file, o)
	}
	if err == nil {
		err = b.recordOpened(file)
	}
	switch {
	case err == nil:
		return b, nil
	case errors.Is(err, bolterrors.ErrTimeout):
		return nil, fmt.Errorf("%w by %s: stop it, or ask it through its control socket", ErrInUse, lockHolder(path))
	case isContentError(err) && !errors.Is(err, ErrDamaged):
		return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return nil, err
}

// openFile opens the file. file is set to the open file, also after a panic.
func (b *Bolt) openFile(file **os.File, o Options) (*bbolt.DB, error) {
	return bbolt.Open(b.path, 0o600, &bbolt.Options{
		ReadOnly:        o.ReadOnly,
		Timeout:         o.timeout(),
		FreelistType:    bbolt.FreelistMapType,
		InitialMmapSize: initialMap,
		NoStatistics:    true,
		OpenFile: func(path string, flag int, mode os.FileMode) (_ *os.File, err error) {
			*file, err = os.OpenFile(path, flag, mode)
			if err == nil && o.ReadOnly && fileSize(*file) == 0 { // bbolt would write its first pages
				err = fmt.Errorf("%w: the file is empty", ErrDamaged)
			}
			return *file, err
		},
		// Not NoFreelistSync: measurements show no faster writes, and at a start
		// bbolt would read every page, in a goroutine in which a damaged page ends
		// the process.
	})
}

// recordOpened keeps the state of the file at opening.
func (b *Bolt) recordOpened(file *os.File) (err error) {
	if b.opened, err = file.Stat(); err != nil {
		return err
	}
	return b.db.View(func(tx *bbolt.Tx) error {
		if tx.Size() > b.opened.Size() {
			return fmt.Errorf("%w: the file was cut off: it has %d octets of %d", ErrDamaged, b.opened.Size(), tx.Size())
		}
		b.committed.Store(int64(tx.ID()))
		b.attempted.Store(int64(tx.ID()))
		return nil
	})
}

// isContentError reports whether an error of opening a file is about its content
// and not about the permissions of this process.
func isContentError(err error) bool {
	errno, ok := errors.AsType[syscall.Errno](err)
	return !ok || errno == syscall.EIO
}

// recoverDamage turns a panic, or a fault in mapped memory, into an error: that
// is how bbolt reacts to invalid pages. It must be deferred.
func recoverDamage(err *error) {
	if v := recover(); v != nil {
		*err = fmt.Errorf("%w: %v", ErrDamaged, v)
	}
}

// Close closes the file. It waits for calls in progress, unless the Bolt is
// broken: then the file stays open, and locked, until the process ends.
func (b *Bolt) Close() error {
	if err := b.lockBegin(); err != nil {
		return err
	}
	b.longHolders++ // never decremented: bbolt's Close waits for readers
	b.beginMu.Unlock()
	closed := make(chan error, 1)
	go func() { closed <- b.closeDB() }()
	select {
	case err := <-closed:
		return err
	case <-b.broken:
		return b.Err()
	}
}

// closeDB closes the database. It runs in a goroutine, so a panic is an error.
func (b *Bolt) closeDB() (err error) {
	defer recoverDamage(&err)
	return b.db.Close()
}

// Path returns the path of the file.
func (b *Bolt) Path() string { return b.path }

// Size returns the size of the file in octets, or 0 if it is not known.
func (b *Bolt) Size() int64 {
	info, err := os.Stat(b.path)
	if err != nil {
		return 0
	}
	return info.Size()
}

// Bucket returns the bucket with a name. At first it is empty.
func (b *Bolt) Bucket(name string) *Bucket { return &Bucket{bolt: b, name: []byte(name)} }

// A Bucket holds the values of one kind.
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
	if err == nil && value == nil {
		err = b.bolt.verify(ctx)
	}
	return value, err
}

// Put sets the value of key. Nil removes it.
func (b *Bucket) Put(ctx context.Context, key string, value []byte) error {
	return b.Update(ctx, key, func([]byte) ([]byte, error) { return value, nil })
}

// Update replaces the value of key by the result of change, atomically. The old
// value is nil if there is none, and valid until change returns. If change
// returns an error nothing changes, and Update returns the error. change may be
// called more than once, by another goroutine, but not after Update has returned.
// After an error of ctx the value may still be written.
func (b *Bucket) Update(ctx context.Context, key string, change func(old []byte) ([]byte, error)) (err error) {
	return b.UpdateAll(ctx, []string{key}, func(_ string, old []byte) ([]byte, error) { return change(old) })
}

// UpdateAll is Update for several different keys: all are changed or none.
func (b *Bucket) UpdateAll(ctx context.Context, keys []string, change func(key string, old []byte) ([]byte, error)) (err error) {
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	return b.bolt.write(ctx, func(tx *bbolt.Tx) error {
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

// Scan calls each for the keys that begin with prefix, in order, until it returns
// an error. The value is valid until each returns. each must not write in the
// same goroutine.
func (b *Bucket) Scan(ctx context.Context, prefix string, each func(key string, value []byte) error) error {
	err := b.view(ctx, func(in *bbolt.Bucket) error {
		cursor := in.Cursor()
		for k, v := cursor.Seek([]byte(prefix)); k != nil && len(k) >= len(prefix) && string(k[:len(prefix)]) == prefix; k, v = cursor.Next() {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			if err := b.bolt.Err(); err != nil {
				return err
			}
			if err := each(string(k), v); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return b.bolt.verify(ctx)
}

// view calls f with the bucket, if it exists.
func (b *Bucket) view(ctx context.Context, f func(*bbolt.Bucket) error) error {
	return b.bolt.view(ctx, func(tx *bbolt.Tx) error {
		if in := tx.Bucket(b.name); in != nil {
			return f(in)
		}
		return nil
	})
}
