package state

import (
	"context"
	"slices"
	"strings"
	"sync"
)

// A Memory is a bucket that is lost with the process. The zero value is empty and
// ready.
type Memory struct {
	mu     sync.Mutex
	values map[string][]byte
}

// Get returns a copy of the value of key, or nil.
func (m *Memory) Get(_ context.Context, key string) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.values[key]), nil
}

// Put sets the value of key. Nil removes it.
func (m *Memory) Put(ctx context.Context, key string, value []byte) error {
	return m.Update(ctx, key, func([]byte) ([]byte, error) { return value, nil })
}

// Update is like Bucket.Update.
func (m *Memory) Update(ctx context.Context, key string, change func(old []byte) ([]byte, error)) error {
	return m.UpdateAll(ctx, []string{key}, func(_ string, old []byte) ([]byte, error) { return change(old) })
}

// UpdateAll is like Bucket.UpdateAll.
func (m *Memory) UpdateAll(_ context.Context, keys []string, change func(key string, old []byte) ([]byte, error)) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	changed := make(map[string][]byte, len(keys))
	for _, key := range keys {
		value, err := change(key, m.values[key])
		if err != nil {
			return err
		}
		changed[key] = slices.Clone(value)
	}
	if m.values == nil {
		m.values = make(map[string][]byte)
	}
	for key, value := range changed {
		if value == nil {
			delete(m.values, key)
		} else {
			m.values[key] = value
		}
	}
	return nil
}

// Scan is like Bucket.Scan.
func (m *Memory) Scan(_ context.Context, prefix string, each func(key string, value []byte) error) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	var keys []string
	for key := range m.values {
		if strings.HasPrefix(key, prefix) {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	for _, key := range keys {
		if err := each(key, m.values[key]); err != nil {
			return err
		}
	}
	return nil
}
