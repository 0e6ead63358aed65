package main

import (
	"errors"
	"fmt"
	"path/filepath"

	"postern/bridge"
	"postern/configs"
	"postern/proxy/state"
)

// A memory is what outlives Postern. The zero value remembers nothing.
type memory struct {
	cache, record bridge.Store
	close         func() error // nil: nothing is open
}

// openMemory opens what cfg.State says.
func openMemory(cfg *configs.Config) (*memory, error) {
	dir := cfg.State.Path
	if dir == "" {
		return &memory{}, nil
	}
	cache, err := state.Open(filepath.Join(dir, "cache.db"), state.Options{Disposable: true})
	if err != nil {
		return nil, configs.Errors{cfg.Errorf("state.path", "%v", err)}
	}
	record, err := state.Open(filepath.Join(dir, "record.db"), state.Options{})
	if err != nil {
		_ = cache.Close()
		return nil, configs.Errors{cfg.Errorf("state.path", "%v", err)}
	}
	return &memory{
		cache: cache.Bucket("listings"), record: record.Bucket("uidl"),
		close: func() error { return errors.Join(cache.Close(), record.Close()) },
	}, nil
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
