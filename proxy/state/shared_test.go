package state

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// A silent is a Store that does not answer while it is away.
type silent struct {
	Store
	away  atomic.Bool
	asked atomic.Int64
}

func (s *silent) wait(ctx context.Context) error {
	s.asked.Add(1)
	if !s.away.Load() {
		return nil
	}
	<-ctx.Done()
	return context.Cause(ctx)
}

func (s *silent) Get(ctx context.Context, _ string, keys []string) ([]Versioned, error) {
	if err := s.wait(ctx); err != nil {
		return nil, err
	}
	return make([]Versioned, len(keys)), nil
}

func (s *silent) Swap(ctx context.Context, _ string, _ []Change) (bool, error) {
	return true, s.wait(ctx)
}

func (s *silent) Scan(ctx context.Context, _, _ string, _ func(string, []byte) error) error {
	return s.wait(ctx)
}

func (s *silent) Probe(ctx context.Context) error { return s.wait(ctx) }

func (s *silent) Close() error { return nil }

// Criterion: While the record does not answer, an operation ends within a second, every further one at once without asking, and 5 seconds after its return the record is used again.
func TestARecordThatIsAwayKeepsNobodyWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &silent{}
		var said []bool // whether it is away
		s := NewShared(store, func(err error) { said = append(said, err != nil) })
		b := s.Bucket("uidl")
		operations := map[string]func() error{
			"get":    func() error { _, err := b.Get(t.Context(), "a"); return err },
			"update": func() error { return b.Put(t.Context(), "a", []byte("x")) },
			"scan":   func() error { return b.Scan(t.Context(), "a", func(string, []byte) error { return nil }) },
		}
		for name, operation := range operations {
			if err := operation(); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			store.away.Store(true)
			begun := time.Now()
			if err := operation(); !errors.Is(err, ErrAway) {
				t.Errorf("%s: %v", name, err)
			}
			if took := time.Since(begun); took > time.Second {
				t.Errorf("%s took %v", name, took)
			}
			time.Sleep(time.Minute)
			asked := store.asked.Load()
			for again, operation := range operations {
				begun := time.Now()
				if err := operation(); !errors.Is(err, ErrAway) || time.Since(begun) > 0 {
					t.Errorf("%s after %s: %v after %v", again, name, err, time.Since(begun))
				}
			}
			if store.asked.Load() != asked {
				t.Errorf("after %s: a store that is known to be away was asked", name)
			}
			store.away.Store(false)
			time.Sleep(5 * time.Second)
			if err := operation(); err != nil {
				t.Errorf("%s after the return: %v", name, err)
			}
		}
		if len(said) != 6 || !said[0] || said[1] {
			t.Errorf("notified %v, want away and back three times", said)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
}

// A client that leaves, and a change that refuses, say nothing about the store.
func TestOnlyTheStoreIsAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &silent{}
		s := NewShared(store, nil)
		defer func() { _ = s.Close() }()
		b := s.Bucket("uidl")
		refused := errors.New("refused")
		if err := b.Update(t.Context(), "a", func([]byte) ([]byte, error) { return nil, refused }); !errors.Is(err, refused) {
			t.Error(err)
		}
		store.away.Store(true)
		left := errors.New("left")
		ctx, cancel := context.WithTimeoutCause(t.Context(), time.Millisecond, left)
		defer cancel()
		if _, err := b.Get(ctx, "a"); !errors.Is(err, left) {
			t.Error(err)
		}
		if err := s.Err(); err != nil {
			t.Errorf("the store is away: %v", err)
		}
	})
}
