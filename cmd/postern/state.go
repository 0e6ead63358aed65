package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

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

	close func() error // nil: nothing is open
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
	return &memory{
		cache: cache.Bucket("listings"), record: record.Bucket("uidl"), guard: cache.Bucket("guard"),
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
