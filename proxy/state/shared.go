package state

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"time"
)

// The times of a Shared. A POP3 client waits for patience at most, and a Shared whose store
// is back is used again within probeEvery + probeJitter and the time of a probe.
const (
	patience     = 800 * time.Millisecond // of an operation
	patienceKey  = 5 * time.Millisecond   // more for each key of an update: records are removed by the hundred
	scanStall    = 10 * time.Second       // of a scan of a whole bucket, between two values
	probeEvery   = time.Second
	probeJitter  = time.Second // all nodes would probe at the same moment
	probeTimeout = 2 * time.Second

	swapTries = 10 // of an update, while other writers are faster
)

// ErrAway is wrapped by the error of every operation while the store does not answer.
var ErrAway = errors.New("the record is temporarily not available")

var (
	errPatience = fmt.Errorf("no answer within %v", patience)
	errStalled  = fmt.Errorf("no answer within %v", scanStall)
	errBusy     = errors.New("other writers were always faster")
	errClosed   = errors.New("the record is closed")
)

// A Shared makes buckets of a Store. An operation takes at most 0.8 s, but a scan of a whole
// bucket, which may take as long as values come. After an operation that had no answer, every
// operation returns ErrAway at once until a probe, once in one or two seconds, has found the
// store again. Its methods and those of its buckets may be called from any goroutine.
//
// An update reads, and swaps if nobody has written meanwhile. If its answer is lost, Update
// returns an error although the value may be written; it is not tried again, as change would
// be applied to its own result.
type Shared struct {
	store  Store
	notify func(error) // called when the store is away, and with nil when it is back

	probe func()             // probes until the store can be used, or stop is called
	stop  context.CancelFunc // called by Close
	wg    sync.WaitGroup     // of probe

	mu       sync.Mutex
	closed   bool
	away     error     // nil: the store answers
	notified time.Time // when notify had an error for the last time
}

// NewShared returns a Shared on store, which it closes. notify is called when the store does
// not answer any more, with the error, and with nil when it does again. notify may be nil, and must not call s.
func NewShared(store Store, notify func(error)) *Shared {
	if notify == nil {
		notify = func(error) {}
	}
	s := &Shared{store: store, notify: notify}
	ctx, stop := context.WithCancel(context.Background())
	s.stop, s.probe = stop, func() { s.probeUntil(ctx) }
	return s
}

// Close closes the store.
func (s *Shared) Close() error {
	s.mu.Lock()
	s.closed = true
	s.stop()
	s.mu.Unlock()
	s.wg.Wait()
	return s.store.Close()
}

// Err returns why the store is not used, or nil. It does not ask the store.
func (s *Shared) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.away
}

// Probe asks the store whether it can be used, whatever is known of it, and returns the error.
func (s *Shared) Probe(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, probeTimeout, fmt.Errorf("no answer within %v", probeTimeout))
	defer cancel()
	return withCause(ctx, s.store.Probe(ctx))
}

// withCause returns err. If ctx has ended, err is its cause.
func withCause(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// do calls f, which uses the store, within the caller's ctx. callerErr is the error of the
// caller's own function. An error of the store itself means that it is away.
func (s *Shared) do(caller context.Context, callerErr *error, stall time.Duration, cause error, f func(ctx context.Context, alive func()) error) error {
	if caller.Err() != nil {
		return context.Cause(caller)
	}
	if err := s.Err(); err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(caller)
	defer cancel(nil)
	timer := time.AfterFunc(stall, func() { cancel(cause) })
	defer timer.Stop()
	err := f(ctx, func() { timer.Reset(stall) })
	switch {
	case err == nil || *callerErr != nil && errors.Is(err, *callerErr) || errors.Is(err, errPermanent) || errors.Is(err, errBusy):
		return err
	case caller.Err() != nil:
		return context.Cause(caller) // the client has left: that says nothing about the store
	}
	return s.lose(withCause(ctx, err))
}

// lose notes that the store is away, and begins to probe it. It returns the error of
// operations.
func (s *Shared) lose(err error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.away != nil {
		return s.away
	}
	if s.closed {
		return fmt.Errorf("%w: %w", ErrAway, errClosed)
	}
	s.setAway(err)
	s.wg.Go(s.probe)
	return s.away
}

// setAway notes why the store is away. notify has the first error, and another one at most
// once a minute. s.mu is held.
func (s *Shared) setAway(err error) {
	before := s.away
	s.away = fmt.Errorf("%w: %w", ErrAway, err)
	if before == nil || before.Error() != s.away.Error() && time.Since(s.notified) > time.Minute {
		s.notified = time.Now()
		s.notify(s.away)
	}
}

// probeUntil probes the store until it can be used, or ctx ends.
func (s *Shared) probeUntil(ctx context.Context) {
	for {
		err := s.Probe(ctx) // the first at once: a restarted store has closed connections alone
		if ctx.Err() != nil {
			return
		}
		if err == nil {
			s.mu.Lock()
			s.away = nil
			s.notify(nil)
			s.mu.Unlock()
			return
		}
		s.mu.Lock()
		s.setAway(err)
		s.mu.Unlock()
		select {
		case <-time.After(probeEvery + rand.N(probeJitter)):
		case <-ctx.Done():
			return
		}
	}
}

// Bucket returns the bucket with a name.
func (s *Shared) Bucket(name string) *SharedBucket { return &SharedBucket{s, name} }

// A SharedBucket is a bucket of a Shared. Its methods are those of a Bucket.
type SharedBucket struct {
	shared *Shared
	name   string
}

// Get is like Bucket.Get.
func (b *SharedBucket) Get(ctx context.Context, key string) (value []byte, err error) {
	err = b.shared.do(ctx, new(error), patience, errPatience, func(ctx context.Context, _ func()) error {
		values, err := b.get(ctx, []string{key})
		if err == nil {
			value = values[0].Value
		}
		return err
	})
	return value, err
}

// get returns as many values as there are keys.
func (b *SharedBucket) get(ctx context.Context, keys []string) ([]Versioned, error) {
	values, err := b.shared.store.Get(ctx, b.name, keys)
	if err == nil && len(values) != len(keys) {
		err = fmt.Errorf("%d values for %d keys", len(values), len(keys))
	}
	return values, err
}

// Put is like Bucket.Put.
func (b *SharedBucket) Put(ctx context.Context, key string, value []byte) error {
	return b.Update(ctx, key, func([]byte) ([]byte, error) { return value, nil })
}

// Update is like Bucket.Update. change is called again when another writer was faster.
func (b *SharedBucket) Update(ctx context.Context, key string, change func(old []byte) ([]byte, error)) error {
	return b.UpdateAll(ctx, []string{key}, func(_ string, old []byte) ([]byte, error) { return change(old) })
}

// UpdateAll is like Bucket.UpdateAll.
func (b *SharedBucket) UpdateAll(ctx context.Context, keys []string, change func(key string, old []byte) ([]byte, error)) error {
	var callerErr error
	limit := patience + time.Duration(len(keys)-1)*patienceKey
	return b.shared.do(ctx, &callerErr, limit, fmt.Errorf("no answer within %v", limit), func(ctx context.Context, _ func()) error {
		return b.updateAll(ctx, keys, change, &callerErr)
	})
}

// updateAll is UpdateAll without its patience. The error of change is also in callerErr.
func (b *SharedBucket) updateAll(ctx context.Context, keys []string, change func(key string, old []byte) ([]byte, error), callerErr *error) error {
	for range swapTries {
		values, err := b.get(ctx, keys)
		if err != nil {
			return err
		}
		changes := make([]Change, len(keys))
		for i, key := range keys {
			var value []byte
			if value, *callerErr = change(key, values[i].Value); *callerErr != nil {
				return *callerErr
			}
			changes[i] = Change{key, values[i].Version, value}
		}
		swapped, err := b.shared.store.Swap(ctx, b.name, changes)
		if err != nil || swapped {
			return err
		}
		select {
		case <-time.After(rand.N(5 * time.Millisecond)):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return errBusy
}

// Scan is like Bucket.Scan.
func (b *SharedBucket) Scan(ctx context.Context, prefix string, each func(key string, value []byte) error) error {
	stall, cause := patience, errPatience
	if prefix == "" {
		stall, cause = scanStall, errStalled
	}
	var callerErr error
	last := ""
	return b.shared.do(ctx, &callerErr, stall, cause, func(ctx context.Context, alive func()) error {
		return b.shared.store.Scan(ctx, b.name, prefix, func(key string, value []byte) error {
			if !strings.HasPrefix(key, prefix) || key <= last && last != "" {
				return fmt.Errorf("the store's answer is out of order")
			}
			last = key
			if prefix == "" {
				alive()
			}
			callerErr = each(key, value)
			return callerErr
		})
	})
}
