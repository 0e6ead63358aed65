package stored

import (
	"bytes"
	"context"
	"errors"
)

// Swap replaces the values of entries, which are in one bucket, by New, if all present
// values are Old. It reports whether it has replaced them.
func (m *Storage) Swap(ctx context.Context, entries []Entry) (bool, error) {
	if len(entries) == 0 {
		return true, nil
	}
	b, err := m.Bucket(entries[0].Bucket)
	if err != nil {
		return false, err
	}
	keys, byKey := make([]string, len(entries)), make(map[string]Entry, len(entries))
	for i, c := range entries {
		keys[i], byKey[c.Key] = c.Key, c
	}
	err = b.UpdateAll(ctx, keys, func(key string, old []byte) ([]byte, error) {
		c := byKey[key]
		if !bytes.Equal(old, c.Old) {
			return nil, errChanged
		}
		return c.New, nil
	})
	if errors.Is(err, errChanged) {
		return false, nil
	}
	return err == nil, err
}

var errChanged = errors.New("another writer was faster")
