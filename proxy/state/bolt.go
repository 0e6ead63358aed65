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
	"sync"
	"sync/atomic"
	"syscall"
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
	// is one no more; also of every error of a Bolt that is broken.
	ErrDamaged = errors.New("state is damaged")
	// ErrInUse is in the tree of an error about a file that another process has.
	ErrInUse = errors.New("state is in use")
)

// Options says how a file is opened.
type Options struct {
	// Disposable is for what can be had again: a file that is damaged, whatever
	// it holds, is renamed, with ".damaged" at its end, and begun anew.
	Disposable bool
}

// A Bolt is a file of values. Its methods and those of its buckets are for any
// goroutine. A write is on the disk when it returns; what comes while the disk
// is busy shares the next flush.
//
// A Bolt is broken, until the process ends, once its file was changed by
// somebody else, or cannot be read where bbolt holds a lock. Then every method
// returns Err at once, and nothing more is read from the file or written to it.
type Bolt struct {
	db         *bbolt.DB
	path       string
	disposable bool
	renewed    error       // why the file was begun anew when it was opened, or nil
	opened     os.FileInfo // of the file that is mapped

	entrance sync.Mutex // held while a transaction begins or ends, never for long
	waited   int        // how many may have a lock of bbolt for long; in the entrance

	// committed is the number of the last transaction that is certainly in the
	// file, attempted that of the last one that may be.
	committed, attempted atomic.Int64

	looked time.Time // when who writes last looked for the file at its path

	mu      sync.Mutex
	next    []*write // for the next transaction
	running bool     // somebody takes them

	failure atomic.Pointer[error] // why the Bolt is broken
	broken  chan struct{}         // closed when it is
}

// Open opens the file at path, or makes it. Its directory is made if need be,
// and must belong to this user or to root and be writable for nobody else. The
// file must not be readable for others: it tells who has mail.
func Open(path string, o Options) (*Bolt, error) {
	if err := checkPath(path); err != nil {
		return nil, fmt.Errorf("open state: %w", err)
	}
	b, err := open(path)
	var renewed error
	if errors.Is(err, ErrDamaged) && o.Disposable {
		renewed = err
		if err = os.Rename(path, path+".damaged"); err == nil {
			b, err = open(path)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("open state %s: %w", path, err)
	}
	b.disposable, b.renewed = o.Disposable, renewed
	return b, nil
}

// Renewed returns why a Disposable file was begun anew when it was opened, or
// nil.
func (b *Bolt) Renewed() error { return b.renewed }

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
		return fmt.Errorf("%s belongs to user %d, not to %d: run it as that user, as by setpriv --reuid=%d --clear-groups", dir, owner, os.Geteuid(), owner)
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

func open(path string) (_ *Bolt, err error) {
	var file *os.File
	defer func() {
		if err != nil && file != nil {
			_ = file.Close() // with its lock: a panic leaves both
		}
	}()
	defer damage(&err)
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true)) // a file that was cut off
	b := &Bolt{path: path, broken: make(chan struct{})}
	if err = checkFree(path); err == nil {
		b.db, err = b.openFile(&file)
	}
	if err == nil {
		err = b.begun(file)
	}
	switch {
	case err == nil:
		return b, nil
	case errors.Is(err, bolterrors.ErrTimeout):
		return nil, fmt.Errorf("%w by %s: stop it, or ask it through its control socket", ErrInUse, holder(path))
	case ofContents(err) && !errors.Is(err, ErrDamaged):
		return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return nil, err
}

// openFile opens the file to write. What is open in the end is in file, also
// after a panic.
func (b *Bolt) openFile(file **os.File) (*bbolt.DB, error) {
	return bbolt.Open(b.path, 0o600, &bbolt.Options{
		Timeout:         lockTimeout,
		FreelistType:    bbolt.FreelistMapType,
		InitialMmapSize: firstMap,
		NoStatistics:    true,
		OpenFile: func(path string, flag int, mode os.FileMode) (_ *os.File, err error) {
			*file, err = os.OpenFile(path, flag, mode)
			return *file, err
		},
		// Not NoFreelistSync: a write costs the same without, as measured, and
		// a start would read every page, in a goroutine of bbolt's that ends
		// the process when one of them is damaged.
	})
}

// begun notes what is known of the file when it is opened.
func (b *Bolt) begun(file *os.File) (err error) {
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

// ofContents reports whether an error of opening a file is about what it holds,
// not about what the system lets this process do.
func ofContents(err error) bool {
	errno, ok := errors.AsType[syscall.Errno](err)
	return !ok || errno == syscall.EIO
}

// damage makes an error of a panic, or of a fault in the mapped memory: so
// bbolt meets pages that are not what they should be. It is deferred.
func damage(err *error) {
	if v := recover(); v != nil {
		*err = fmt.Errorf("%w: %v", ErrDamaged, v)
	}
}

// Close closes the file. It waits for the calls that are under way, unless the
// Bolt is broken: then the file stays open, and locked, until the process ends.
func (b *Bolt) Close() error {
	if err := b.enter(); err != nil {
		return err
	}
	b.waited++ // for good: bbolt's Close waits for who reads
	b.entrance.Unlock()
	closed := make(chan error, 1)
	go func() { closed <- b.db.Close() }()
	select {
	case err := <-closed:
		return err
	case <-b.broken:
		return b.Err()
	}
}

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
	if err == nil && value == nil {
		err = b.bolt.verify(ctx)
	}
	return value, err
}

// Put sets the value of key. Nil removes it.
func (b *Bucket) Put(ctx context.Context, key string, value []byte) error {
	return b.Update(ctx, key, func([]byte) ([]byte, error) { return value, nil })
}

// Update replaces the value of key by what change makes of it, with nobody in
// between. The old value is nil if there is none, and valid until change
// returns. An error of change leaves all as it is and is returned; change may
// be called more than once, by another goroutine, but not after Update has
// returned. An error of ctx says nothing: the value may be written all the same.
func (b *Bucket) Update(ctx context.Context, key string, change func(old []byte) ([]byte, error)) (err error) {
	return b.UpdateAll(ctx, []string{key}, func(_ string, old []byte) ([]byte, error) { return change(old) })
}

// UpdateAll is Update of many keys, each of them once: of all or of none.
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

// Scan calls each for the keys that begin with prefix, in order, until it
// returns an error. The value is valid until each returns. No write of the
// same goroutine may come from each.
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

// view calls f with the bucket, if there is one.
func (b *Bucket) view(ctx context.Context, f func(*bbolt.Bucket) error) error {
	return b.bolt.view(ctx, func(tx *bbolt.Tx) error {
		if in := tx.Bucket(b.name); in != nil {
			return f(in)
		}
		return nil
	})
}
