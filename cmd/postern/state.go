package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"postern/bridge"
	"postern/configs"
	"postern/proxy"
	"postern/proxy/guard"
	"postern/proxy/state"
)

// A memory is what outlives Postern. The zero value remembers nothing.
type memory struct {
	cache  bridge.Store
	record bridge.Book
	guard  guard.Store

	brakes  bridge.Store            // of backends, by name; nil: their state ends with the process
	archive *archive                // nil: nothing is open
	files   atomic.Pointer[archive] // the same, for who asks at any time

	brake func(ctx context.Context, backend string) (*bridge.Brake, error) // of a backend of the configuration, with its state

	flush    func(context.Context) error // writes what a Postern that runs has not written yet; nil: none runs
	guarding *guard.Guard                // of the one that runs
	serving  func(account string) error  // an error if a POP3 session of an account may be open; nil: none runs

	guardConfig guard.Config // of a guard that has it without serving

	asked sync.RWMutex // by questions; held while the files change hands

	used  map[string]*bucket // by sessions, by name: cache, record and brakes
	close func() error       // nil: nothing is open
}

// inMemoryStorage returns one that ends with the process.
func inMemoryStorage() *memory { return &memory{cache: new(state.Memory), record: new(state.Memory)} }

// The names of what sessions remember with: see archive.
const (
	listingsBucket = "listings"
	uidlBucket     = "uidl"
	brakeBucket    = "brake"
)

// A bucket is what sessions remember with, whoever has the files.
type bucket struct {
	name     string
	observer proxy.Observer // nil: nobody

	mu   sync.RWMutex
	book bridge.Book
}

// used tells of an operation that has ended, unless who wanted it has gone. What
// that one said is no error of the state.
func (b *bucket) used(ctx context.Context, operation string, begun time.Time, err error, said *error) {
	if b.observer == nil || ctx.Err() != nil {
		return
	}
	if said != nil && *said != nil {
		err = nil
	}
	b.observer.Observe(proxy.StateUsed{Store: b.name, Operation: operation, Duration: time.Since(begun), Err: err})
}

// Get implements bridge.Store.
func (b *bucket) Get(ctx context.Context, key string) (value []byte, err error) {
	err = b.with(ctx, "get", nil, func(book bridge.Book) error {
		value, err = book.Get(ctx, key)
		return err
	})
	return value, err
}

// Put implements bridge.Store.
func (b *bucket) Put(ctx context.Context, key string, value []byte) error {
	return b.with(ctx, "update", nil, func(book bridge.Book) error { return book.Put(ctx, key, value) })
}

// Update implements bridge.Store.
func (b *bucket) Update(ctx context.Context, key string, change func(old []byte) ([]byte, error)) error {
	var said error
	return b.with(ctx, "update", &said, func(book bridge.Book) error {
		return book.Update(ctx, key, func(old []byte) (value []byte, err error) {
			value, said = change(old)
			return value, said
		})
	})
}

// UpdateAll implements bridge.Book.
func (b *bucket) UpdateAll(ctx context.Context, keys []string, change func(key string, old []byte) ([]byte, error)) error {
	var said error
	return b.with(ctx, "update", &said, func(book bridge.Book) error {
		return book.UpdateAll(ctx, keys, func(key string, old []byte) (value []byte, err error) {
			value, said = change(key, old)
			return value, said
		})
	})
}

// Scan implements bridge.Book.
func (b *bucket) Scan(ctx context.Context, prefix string, each func(key string, value []byte) error) error {
	var said error
	return b.with(ctx, "scan", &said, func(book bridge.Book) error {
		return book.Scan(ctx, prefix, func(key string, value []byte) error {
			said = each(key, value)
			return said
		})
	})
}

// with calls f with the book; again if this one is about to be another. said is
// the error of who wants it; nil: he has nothing to say.
func (b *bucket) with(ctx context.Context, operation string, said *error, f func(bridge.Book) error) (err error) {
	defer func(begun time.Time) { b.used(ctx, operation, begun, err, said) }(time.Now())
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

// observe lets o know of what sessions do with m. No session may do so yet.
func (m *memory) observe(o proxy.Observer) {
	for _, b := range m.used {
		b.observer = o
	}
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
func (m *memory) takeBack(ctx context.Context, cfg *configs.Config) error {
	fresh, err := openMemory(ctx, cfg)
	if err != nil {
		return err
	}
	for name, b := range m.used {
		b.set(fresh.used[name].book)
	}
	m.guard, m.archive, m.close = fresh.guard, fresh.archive, fresh.close
	m.files.Store(m.archive)
	return nil
}

const (
	recordFile = "record.db"
	cacheFile  = "cache.db"
)

// openMemory opens what cfg.State says.
func openMemory(ctx context.Context, cfg *configs.Config) (*memory, error) {
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
		if errors.Is(err, state.ErrDamaged) {
			err = fmt.Errorf("%w: %s", err, damagedRemedy)
		}
		return nil, err
	}
	listings := &bucket{name: listingsBucket, book: cache.Bucket(listingsBucket)}
	uidls := &bucket{name: uidlBucket, book: record.Bucket(uidlBucket)}
	brakes := &bucket{name: brakeBucket, book: record.Bucket(brakeBucket)}
	a := newArchive(record, cache)
	a.unidentified = a.identify(ctx) // what cannot be read stops no start
	m := &memory{
		cache: listings, record: uidls, brakes: brakes, guard: cache.Bucket("guard"),
		used:        map[string]*bucket{listingsBucket: listings, uidlBucket: uidls, brakeBucket: brakes},
		guardConfig: guardConfig(cfg),
		brake: func(ctx context.Context, backend string) (*bridge.Brake, error) {
			if err := hasPOP3(cfg, backend); err != nil {
				return nil, err
			}
			b := bridge.NewBrake(backend, nil)
			_ = b.Open(ctx, brakes) // a state that cannot be read is there to be replaced
			return b, nil
		},
		close:   func() error { return errors.Join(cache.Close(), record.Close()) },
		archive: a,
	}
	m.files.Store(a)
	return m, nil
}

const pseudonymNote = "pseudonyms"

// pseudonymKey returns the key of the pseudonyms of accounts, which is made when
// it is first asked for. It is of the right size also after an error.
func (a *archive) pseudonymKey(ctx context.Context) (key []byte, err error) {
	return pseudonymKeyOf(ctx, a.notes)
}

// A noter is where Postern notes things for itself.
type noter interface {
	Update(ctx context.Context, key string, change func(old []byte) ([]byte, error)) error
}

func pseudonymKeyOf(ctx context.Context, notes noter) (key []byte, err error) {
	key = newPseudonymKey()
	err = notes.Update(ctx, pseudonymNote, func(old []byte) ([]byte, error) {
		if len(old) == len(key) {
			key = append([]byte(nil), old...)
		}
		return key, nil
	})
	if err != nil {
		err = fmt.Errorf("key of pseudonyms: %w", err)
	}
	return key, err
}

// reopenMemory is openMemory for one who is not Postern itself. It makes no new
// files, which would belong to another user than Postern's.
func reopenMemory(ctx context.Context, cfg *configs.Config) (*memory, error) {
	if cfg.State.Path == "" {
		return nil, errors.New("no Postern can be asked, and state.path is not set: nothing is remembered")
	}
	if _, err := os.Stat(filepath.Join(cfg.State.Path, recordFile)); err != nil {
		if _, beside := os.Stat(filepath.Join(cfg.State.Path, cacheFile)); beside == nil {
			return nil, fmt.Errorf("%s: %s: %w", lostRecord, lostRemedy, err)
		}
		return nil, fmt.Errorf("no Postern is running, and none has left its state: %w", err)
	}
	return openMemory(ctx, cfg)
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
