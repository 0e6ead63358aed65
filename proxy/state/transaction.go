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

// A panic while bbolt begins a transaction leaves bbolt's locks locked, and who
// waits for one of them waits for ever. So bbolt is called in two ways only:
// holding entrance, where the Bolt is known not to be broken and nobody has a
// lock of bbolt for long; or, while somebody may, in a goroutine that who waits
// for it can leave.

// lookEvery is how often who writes looks whether the file is still at its path.
const lookEvery = time.Second

var (
	errChanged  = errors.New("another program has changed the file")
	errShort    = errors.New("the file is shorter than it was, or the disk does not give it")
	errReplaced = errors.New("another program has removed or replaced the file")
)

// Err returns why the Bolt is broken, or nil. ErrDamaged is in its tree, and it
// says what to do.
func (b *Bolt) Err() error {
	if err := b.failure.Load(); err != nil {
		return *err
	}
	return nil
}

// Broken returns a channel that is closed when the Bolt is broken.
func (b *Bolt) Broken() <-chan struct{} { return b.broken }

// fail makes the Bolt broken and returns Err. cause is a panic's value or an
// error.
func (b *Bolt) fail(cause any) error {
	if isFault(cause) {
		cause = errShort
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

// enter locks entrance, or returns Err.
func (b *Bolt) enter() error {
	b.entrance.Lock()
	if err := b.Err(); err != nil {
		b.entrance.Unlock()
		return err
	}
	return nil
}

// settle ends what was counted in waited.
func (b *Bolt) settle() {
	b.entrance.Lock()
	b.waited--
	b.entrance.Unlock()
}

// view calls f with a transaction that reads.
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
		return broken // what was read may be of another file
	}
	return err
}

// read calls f. A page that bbolt does not understand is an error of this call
// alone; one that is not in the file any more is the end of the Bolt.
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
// file is shorter than it was, or the disk does not give it.
func isFault(v any) bool {
	_, ok := v.(interface{ Addr() uintptr })
	return ok
}

// verify is an error if the file is not the one that this process writes any
// more. Who finds nothing asks, before that is believed.
func (b *Bolt) verify(ctx context.Context) error {
	return b.view(ctx, func(*bbolt.Tx) error { return nil })
}

// begin begins a transaction that reads.
func (b *Bolt) begin(ctx context.Context) (*bbolt.Tx, error) {
	if err := b.enter(); err != nil {
		return nil, err
	}
	if b.waited == 0 {
		tx, err := b.beginNow()
		b.entrance.Unlock()
		return tx, err
	}
	b.waited++
	b.entrance.Unlock()
	type begun struct {
		tx  *bbolt.Tx
		err error
	}
	result := make(chan begun)
	go func() {
		tx, err := b.beginNow()
		b.settle()
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

// beginNow begins a transaction that reads: see the top of this file.
func (b *Bolt) beginNow() (tx *bbolt.Tx, err error) {
	defer func() {
		if v := recover(); v != nil {
			tx, err = nil, b.fail(v)
		}
	}()
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	least := b.committed.Load()
	if tx, err = b.db.Begin(false); err != nil {
		return nil, b.fatal(err)
	}
	if id := int64(tx.ID()); id < least || id > b.attempted.Load() {
		return nil, b.fail(errChanged)
	}
	return tx, nil
}

// fatal returns err; it makes the Bolt broken if bbolt does not come back from
// it.
func (b *Bolt) fatal(err error) error {
	if errors.Is(err, bolterrors.ErrInvalidMapping) {
		return b.fail(err)
	}
	return err
}

// end ends a transaction that has read. It does not wait.
func (b *Bolt) end(tx *bbolt.Tx) {
	if b.enter() != nil {
		return // its lock keeps nobody waiting any more
	}
	defer b.entrance.Unlock()
	if b.waited == 0 {
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

// A write is what one call does in a transaction that it may share.
type write struct {
	do   func(*bbolt.Tx) error
	done chan error // has room for the answer

	mu   sync.Mutex // held while do runs
	left bool       // nobody waits for it: do must not be called
}

// run calls do, unless nobody waits for it any more.
func (w *write) run(tx *bbolt.Tx) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.left {
		return nil
	}
	return w.do(tx)
}

// leave returns when do does not run, and will not run again.
func (w *write) leave() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.left = true
}

// write does do in a transaction, with whatever else waits for one by then.
// bbolt's Batch would let a write wait for company that may not come.
func (b *Bolt) write(ctx context.Context, do func(*bbolt.Tx) error) error {
	if err := b.Err(); err != nil {
		return err
	}
	w := &write{do: do, done: make(chan error, 1)}
	b.mu.Lock()
	b.next = append(b.next, w)
	if !b.running {
		b.running = true
		go b.writeAll()
	}
	b.mu.Unlock()
	select {
	case err := <-w.done:
		return err
	case <-ctx.Done():
		w.leave()
		return context.Cause(ctx)
	case <-b.broken:
		w.leave()
		return b.Err()
	}
}

// writeAll writes until there is nothing to write.
func (b *Bolt) writeAll() {
	for {
		b.mu.Lock()
		writes := b.next
		b.next = nil
		b.running = len(writes) > 0
		b.mu.Unlock()
		if len(writes) == 0 {
			return
		}
		for len(writes) > 0 {
			writes = b.commit(writes)
		}
	}
}

// commit does writes in one transaction and answers them. It returns those that
// have to be done again, because one of them has failed.
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

// update calls do with a transaction that writes. It may wait for ever.
func (b *Bolt) update(do func(*bbolt.Tx) error) error {
	if err := b.enter(); err != nil {
		return err
	}
	b.waited++
	b.entrance.Unlock()
	defer b.settle()
	return b.transact(do)
}

// transact is bbolt's Update. A panic of do leaves all as it was if bbolt could
// end its transaction; a panic of bbolt itself, in the middle of what it writes,
// does not.
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
		if now := time.Now(); now.Sub(b.looked) >= lookEvery {
			if b.looked = now; !b.inPlace() {
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
	return b.fatal(err)
}

// inPlace reports whether the file that is mapped is still the one at its path:
// what is written to another is lost at the next start.
func (b *Bolt) inPlace() bool {
	info, err := os.Stat(b.path)
	if err != nil {
		return !errors.Is(err, fs.ErrNotExist)
	}
	return os.SameFile(info, b.opened)
}
