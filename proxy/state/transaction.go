package state

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
)

// A panic while bbolt begins a transaction leaves locks of bbolt locked, and every
// goroutine that waits for one of them waits forever. Therefore bbolt is called in
// two ways only: with beginMu held, when the Bolt is known not to be broken and no
// goroutine holds a lock of bbolt for long; or, if one may, in a goroutine that the
// caller does not have to wait for.

// pathCheckInterval is how often a writer checks that the file is still at its
// path.
const pathCheckInterval = time.Second

var (
	errChanged   = errors.New("another program has changed the file")
	errTruncated = errors.New("the file is shorter than it was, or the disk does not give it")
	errReplaced  = errors.New("another program has removed or replaced the file")
)

// Err returns why the Bolt is broken, or nil. The error wraps ErrDamaged, and
// advises what to do.
func (b *Bolt) Err() error {
	if err := b.failure.Load(); err != nil {
		return *err
	}
	return nil
}

// Broken returns a channel that is closed when the Bolt is broken.
func (b *Bolt) Broken() <-chan struct{} { return b.broken }

// fail marks the Bolt as broken and returns Err. cause is the value of a panic or
// an error.
func (b *Bolt) fail(cause any) error {
	if isFault(cause) {
		cause = errTruncated
	}
	remedy := "stop Postern, put a backup back with postern state restore unless postern state check finds the file good, and start Postern"
	if b.disposable {
		remedy = "restart Postern"
	}
	err := fmt.Errorf("%w: %s: %v; it is not used again before a restart: %s", ErrDamaged, b.path, cause, remedy)
	if b.failure.CompareAndSwap(nil, &err) {
		close(b.broken)
	}
	return b.Err()
}

// lockBegin locks beginMu, or returns Err.
func (b *Bolt) lockBegin() error {
	b.beginMu.Lock()
	if err := b.Err(); err != nil {
		b.beginMu.Unlock()
		return err
	}
	return nil
}

// releaseLong decrements longHolders.
func (b *Bolt) releaseLong() {
	b.beginMu.Lock()
	b.longHolders--
	b.beginMu.Unlock()
}

// view calls f with a read transaction.
func (b *Bolt) view(ctx context.Context, f func(*bbolt.Tx) error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	tx, err := b.begin(ctx)
	if err != nil {
		return err
	}
	defer b.end(tx)
	err = b.read(tx, f)
	if broken := b.Err(); broken != nil {
		return broken // the value may be from another file
	}
	return err
}

// read calls f. A page that bbolt cannot read is an error of this call alone; a
// page that is missing from the file breaks the Bolt.
func (b *Bolt) read(tx *bbolt.Tx, f func(*bbolt.Tx) error) (err error) {
	defer func() {
		if v := recover(); v != nil {
			if err = fmt.Errorf("%w: %v", ErrDamaged, v); isFault(v) {
				err = b.fail(v)
			}
		}
	}()
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	return f(tx)
}

// isFault reports whether the value of a panic is a fault in mapped memory: the
// file was truncated, or the disk does not return it.
func isFault(v any) bool {
	_, ok := v.(interface{ Addr() uintptr })
	return ok
}

// verify returns an error if the file is no longer the one that this process
// writes. It is called before a missing value is believed.
func (b *Bolt) verify(ctx context.Context) error {
	return b.view(ctx, func(*bbolt.Tx) error { return nil })
}

// begin begins a read transaction.
func (b *Bolt) begin(ctx context.Context) (*bbolt.Tx, error) {
	if err := b.lockBegin(); err != nil {
		return nil, err
	}
	if b.longHolders == 0 {
		tx, err := b.beginNow()
		b.beginMu.Unlock()
		return tx, err
	}
	b.longHolders++
	b.beginMu.Unlock()
	type begun struct {
		tx  *bbolt.Tx
		err error
	}
	result := make(chan begun)
	go func() {
		tx, err := b.beginNow()
		b.releaseLong()
		select {
		case result <- begun{tx, err}:
		case <-ctx.Done():
			if err == nil {
				b.end(tx)
			}
		case <-b.broken:
		}
	}()
	select {
	case r := <-result:
		return r.tx, r.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case <-b.broken:
		return nil, b.Err()
	}
}

// beginNow begins a read transaction: see the comment above.
func (b *Bolt) beginNow() (tx *bbolt.Tx, err error) {
	defer func() {
		if v := recover(); v != nil {
			tx, err = nil, b.fail(v)
		}
	}()
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	least := b.committed.Load()
	if tx, err = b.db.Begin(false); err != nil {
		return nil, b.checkFatal(err)
	}
	if id := int64(tx.ID()); id < least || id > b.attempted.Load() {
		return nil, b.fail(errChanged)
	}
	return tx, nil
}

// checkFatal returns err. It marks the Bolt as broken if bbolt cannot recover
// from err.
func (b *Bolt) checkFatal(err error) error {
	if errors.Is(err, bolterrors.ErrInvalidMapping) {
		return b.fail(err)
	}
	return err
}

// end ends a read transaction. It does not wait.
func (b *Bolt) end(tx *bbolt.Tx) {
	if b.lockBegin() != nil {
		return // no goroutine waits for its lock any more
	}
	defer b.beginMu.Unlock()
	if b.longHolders == 0 {
		b.endNow(tx)
		return
	}
	go b.endNow(tx)
}

func (b *Bolt) endNow(tx *bbolt.Tx) {
	defer func() {
		if v := recover(); v != nil {
			_ = b.fail(v)
		}
	}()
	_ = tx.Rollback()
}

// A write is one call's part of a transaction.
type write struct {
	do   func(*bbolt.Tx) error
	done chan error // has a buffer for the result

	mu        sync.Mutex // held while do runs
	abandoned bool       // do must not be called: the caller does not wait for it
}

// run calls do, unless the caller has left.
func (w *write) run(tx *bbolt.Tx) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.abandoned {
		return nil
	}
	return w.do(tx)
}

// abandon returns when do is not running and will not run.
func (w *write) abandon() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.abandoned = true
}

// write runs do in a transaction, together with the other writes that wait by
// then. bbolt's Batch would delay a single write.
func (b *Bolt) write(ctx context.Context, do func(*bbolt.Tx) error) error {
	if err := b.Err(); err != nil {
		return err
	}
	w := &write{do: do, done: make(chan error, 1)}
	b.mu.Lock()
	b.pending = append(b.pending, w)
	if !b.writing {
		b.writing = true
		go b.writeAll()
	}
	b.mu.Unlock()
	select {
	case err := <-w.done:
		return err
	case <-ctx.Done():
		w.abandon()
		return context.Cause(ctx)
	case <-b.broken:
		w.abandon()
		return b.Err()
	}
}

// writeAll commits writes until none is pending.
func (b *Bolt) writeAll() {
	for {
		b.mu.Lock()
		writes := b.pending
		b.pending = nil
		b.writing = len(writes) > 0
		b.mu.Unlock()
		if len(writes) == 0 {
			return
		}
		for len(writes) > 0 {
			writes = b.commit(writes)
		}
	}
}

// commit runs writes in one transaction and sends their results. If one of them
// fails, it returns the others, which have to be run again.
func (b *Bolt) commit(writes []*write) (again []*write) {
	failed := -1
	err := b.update(func(tx *bbolt.Tx) error {
		for i, w := range writes {
			failed = i
			if err := w.run(tx); err != nil {
				return err
			}
		}
		failed = -1
		return nil
	})
	if failed >= 0 && b.Err() == nil {
		writes[failed].done <- err
		return slices.Delete(writes, failed, failed+1)
	}
	for _, w := range writes {
		w.done <- err
	}
	return nil
}

// update calls do with a write transaction. It may wait forever.
func (b *Bolt) update(do func(*bbolt.Tx) error) error {
	if err := b.lockBegin(); err != nil {
		return err
	}
	b.longHolders++
	b.beginMu.Unlock()
	defer b.releaseLong()
	return b.transact(do)
}

// transact is bbolt's Update. After a panic of do nothing has changed if bbolt
// could end its transaction. A panic of bbolt itself, in the middle of a write,
// breaks the Bolt.
func (b *Bolt) transact(do func(*bbolt.Tx) error) (err error) {
	var tx *bbolt.Tx
	committing := false
	defer func() {
		switch v := recover(); {
		case v == nil:
		case tx == nil, tx.DB() != nil, committing, isFault(v):
			err = b.fail(v)
		default:
			err = fmt.Errorf("%w: %v", ErrDamaged, v)
		}
	}()
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	id := int64(0)
	err = b.db.Update(func(t *bbolt.Tx) error {
		tx, id = t, int64(t.ID())
		if id <= b.committed.Load() || id > b.attempted.Load()+1 {
			return b.fail(errChanged)
		}
		if now := time.Now(); now.Sub(b.pathChecked) >= pathCheckInterval {
			if b.pathChecked = now; !b.fileInPlace() {
				return b.fail(errReplaced)
			}
		}
		b.attempted.Store(max(id, b.attempted.Load()))
		err := do(t)
		committing = err == nil
		return err
	})
	if err == nil {
		b.committed.Store(id)
	}
	return b.checkFatal(err)
}

// CheckInPlace breaks the Bolt, and returns Err, if its file is no longer at its path. Writes
// check that as well; CheckInPlace is for a Bolt that nobody writes to.
func (b *Bolt) CheckInPlace() error {
	if b.Err() == nil && !b.fileInPlace() {
		return b.fail(errReplaced)
	}
	return b.Err()
}

// fileInPlace reports whether the mapped file is still at its path: writes to a
// removed file are lost at the next start.
func (b *Bolt) fileInPlace() bool {
	info, err := os.Stat(b.path)
	if err != nil {
		return !errors.Is(err, fs.ErrNotExist)
	}
	return os.SameFile(info, b.opened)
}
