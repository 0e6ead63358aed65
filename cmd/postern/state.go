package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"postern/bridge"
	"postern/configs"
	"postern/proxy/guard"
	"postern/proxy/state"
)

// A memory is what outlives Postern. The zero value remembers nothing.
type memory struct {
	cache  bridge.Store
	record bridge.Book
	guard  guard.Store

	archive *archive // nil: nothing is open

	flush    func(context.Context) error // writes what a Postern that runs has not written yet; nil: none runs
	guarding *guard.Guard                // of the one that runs

	guardConfig guard.Config // of a guard that has it without serving

	asked sync.RWMutex // by questions; held while the files change hands

	used  map[string]*bucket // by sessions: the first two, by name
	close func() error       // nil: nothing is open
}

// A bucket is what sessions remember with, whoever has the files.
type bucket struct {
	mu   sync.RWMutex
	book bridge.Book
}

// Get implements bridge.Store.
func (b *bucket) Get(ctx context.Context, key string) (value []byte, err error) {
	err = b.with(func(book bridge.Book) error {
		value, err = book.Get(ctx, key)
		return err
	})
	return value, err
}

// Put implements bridge.Store.
func (b *bucket) Put(ctx context.Context, key string, value []byte) error {
	return b.with(func(book bridge.Book) error { return book.Put(ctx, key, value) })
}

// Update implements bridge.Store.
func (b *bucket) Update(ctx context.Context, key string, change func(old []byte) ([]byte, error)) error {
	return b.with(func(book bridge.Book) error { return book.Update(ctx, key, change) })
}

// Scan implements bridge.Book.
func (b *bucket) Scan(ctx context.Context, prefix string, each func(key string, value []byte) error) error {
	return b.with(func(book bridge.Book) error { return book.Scan(ctx, prefix, each) })
}

// with calls f with the book; again if this one is about to be another.
func (b *bucket) with(f func(bridge.Book) error) (err error) {
	for range askTimes {
		if err = b.try(f); !errors.Is(err, errTakenBack) {
			return err
		}
		time.Sleep(askAgain)
	}
	return err
}

func (b *bucket) try(f func(bridge.Book) error) error {
	b.mu.RLock()
	defer b.mu.RUnlock()
	return f(b.book)
}

func (b *bucket) set(book bridge.Book) {
	b.mu.Lock() // waits for what is under way
	defer b.mu.Unlock()
	b.book = book
}

// handOver closes the files. Sessions go on with what other gives for a bucket.
func (m *memory) handOver(other func(name string) bridge.Book) error {
	for name, b := range m.used {
		b.set(other(name))
	}
	err := m.Close()
	m.close = nil
	return err
}

// takeBack opens the files again.
func (m *memory) takeBack(cfg *configs.Config) error {
	fresh, err := openMemory(cfg)
	if err != nil {
		return err
	}
	for name, b := range m.used {
		b.set(fresh.used[name].book)
	}
	m.guard, m.archive, m.close = fresh.guard, fresh.archive, fresh.close
	return nil
}

const (
	recordFile = "record.db"
	cacheFile  = "cache.db"
)

// openMemory opens what cfg.State says.
func openMemory(cfg *configs.Config) (*memory, error) {
	dir := cfg.State.Path
	if dir == "" {
		return &memory{}, nil
	}
	cache, err := state.Open(filepath.Join(dir, cacheFile), state.Options{Disposable: true})
	if err != nil {
		return nil, err
	}
	record, err := state.Open(filepath.Join(dir, recordFile), state.Options{})
	if err != nil {
		_ = cache.Close()
		return nil, err
	}
	listings, uidls := &bucket{book: cache.Bucket("listings")}, &bucket{book: record.Bucket("uidl")}
	return &memory{
		cache: listings, record: uidls, used: map[string]*bucket{"listings": listings, "uidl": uidls}, guard: cache.Bucket("guard"),
		guardConfig: guardConfig(cfg),
		close:       func() error { return errors.Join(cache.Close(), record.Close()) },
		archive:     newArchive(record, cache),
	}, nil
}

// reopenMemory is openMemory for one who is not Postern itself. It makes no new
// files, which would belong to another user than Postern's.
func reopenMemory(cfg *configs.Config) (*memory, error) {
	if cfg.State.Path == "" {
		return nil, errors.New("no Postern can be asked, and state.path is not set: nothing is remembered")
	}
	if _, err := os.Stat(filepath.Join(cfg.State.Path, recordFile)); err != nil {
		return nil, fmt.Errorf("no Postern is running, and none has left its state: %w", err)
	}
	return openMemory(cfg)
}

// Close closes what is open. Sessions that are left go on without it.
func (m *memory) Close() error {
	if m.close == nil {
		return nil
	}
	if err := m.close(); err != nil {
		return fmt.Errorf("close state: %w", err)
	}
	return nil
}
