package stored

import (
	"context"
	"errors"
	"sync"
	"time"

	"postern/bridge"
	"postern/proxy"
)

// askAgain is the pause between two attempts to use the state, and askTimes the
// number of attempts while the files come back from a successor.
const (
	askAgain = 50 * time.Millisecond
	askTimes = 200
)

// NewBucket returns a Bucket with a name, which uses store at first.
func NewBucket(name string, store bridge.Bucket) *Bucket { return &Bucket{name: name, store: store} }

// A Bucket is a bucket of the state for sessions. It works also while another process
// has the files open.
type Bucket struct {
	name     string
	observer proxy.Observer // nil: events are dropped

	mu    sync.RWMutex
	store bridge.Bucket
}

// observe reports an operation that has ended, unless ctx has ended. An error of the
// caller's function, callerErr, is no error of the state.
func (b *Bucket) observe(ctx context.Context, operation string, begun time.Time, err error, callerErr *error) {
	if b.observer == nil || ctx.Err() != nil {
		return
	}
	if callerErr != nil && *callerErr != nil {
		err = nil
	}
	b.observer.Observe(proxy.StateUsed{Store: b.name, Operation: operation, Duration: time.Since(begun), Err: err})
}

// Get implements bridge.Bucket.
func (b *Bucket) Get(ctx context.Context, key string) (value []byte, err error) {
	err = b.retry(ctx, "get", nil, func(bucket bridge.Bucket) error {
		value, err = bucket.Get(ctx, key)
		return err
	})
	return value, err
}

// Put implements bridge.Bucket.
func (b *Bucket) Put(ctx context.Context, key string, value []byte) error {
	return b.retry(ctx, "update", nil, func(bucket bridge.Bucket) error { return bucket.Put(ctx, key, value) })
}

// Update implements bridge.Bucket.
func (b *Bucket) Update(ctx context.Context, key string, change func(old []byte) ([]byte, error)) error {
	var callerErr error
	return b.retry(ctx, "update", &callerErr, func(bucket bridge.Bucket) error {
		return bucket.Update(ctx, key, func(old []byte) (value []byte, err error) {
			value, callerErr = change(old)
			return value, callerErr
		})
	})
}

// UpdateAll implements bridge.Bucket.
func (b *Bucket) UpdateAll(ctx context.Context, keys []string, change func(key string, old []byte) ([]byte, error)) error {
	var callerErr error
	return b.retry(ctx, "update", &callerErr, func(bucket bridge.Bucket) error {
		return bucket.UpdateAll(ctx, keys, func(key string, old []byte) (value []byte, err error) {
			value, callerErr = change(key, old)
			return value, callerErr
		})
	})
}

// Scan implements bridge.Bucket.
func (b *Bucket) Scan(ctx context.Context, prefix string, each func(key string, value []byte) error) error {
	var callerErr error
	return b.retry(ctx, "scan", &callerErr, func(bucket bridge.Bucket) error {
		return bucket.Scan(ctx, prefix, func(key string, value []byte) error {
			callerErr = each(key, value)
			return callerErr
		})
	})
}

// retry calls f with the store, and calls it again while the files come back from
// a successor, until ctx ends. callerErr is the error of the caller's own function;
// nil: the caller has none.
func (b *Bucket) retry(ctx context.Context, operation string, callerErr *error, f func(bridge.Bucket) error) (err error) {
	defer func(begun time.Time) { b.observe(ctx, operation, begun, err, callerErr) }(time.Now())
	for range askTimes {
		if err = b.try(f); !errors.Is(err, errFilesReturned) {
			return err
		}
		select {
		case <-time.After(askAgain):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return err
}

func (b *Bucket) try(f func(bridge.Bucket) error) error {
	b.mu.RLock()
	defer b.mu.RUnlock()
	return f(b.store)
}

func (b *Bucket) set(bucket bridge.Bucket) {
	b.mu.Lock() // waits for the operations under way
	defer b.mu.Unlock()
	b.store = bucket
}

var errFilesReturned = errors.New("the state is not the successor's")
