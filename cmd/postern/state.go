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
	cache  shelf // what POP3 remembers of mailboxes: it may be lost
	record shelf // which UIDLs were shown
	ledger shelf // who logs in with what
	notes  shelf // of Postern for itself
	guard  guard.Store
	files  []*state.Bolt

	guardConfig guard.Config // of a guard that has it without serving

	flush func(context.Context) error // writes what is not on the disk yet; nil: there is nothing
	close func() error                // nil: nothing is open
}

// A shelf is a bucket of package state.
type shelf interface {
	bridge.Book
	bridge.Shelf
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
		ledger: record.Bucket("ledger"), notes: record.Bucket("notes"), files: []*state.Bolt{record, cache},
		guardConfig: guardConfig(cfg),
		close:       func() error { return errors.Join(cache.Close(), record.Close()) },
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

// write puts on the disk what is not there yet.
func (m *memory) write(ctx context.Context) error {
	if m.flush == nil {
		return nil
	}
	return m.flush(ctx)
}

// Close closes what is open. Sessions that are left go on without it.
func (m *memory) Close() error {
	if m.close == nil {
		return nil
	}
	if err := errors.Join(m.write(context.Background()), m.close()); err != nil {
		return fmt.Errorf("close state: %w", err)
	}
	return nil
}
