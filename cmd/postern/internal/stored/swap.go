package stored

import (
	"bytes"
	"context"
	"errors"
)

// Swap puts values in the place of others, of one bucket, if all of those are
// there still.
func (m *Storage) Swap(ctx context.Context, cells []Entry) (bool, error) {
	if len(cells) == 0 {
		return true, nil
	}
	b, err := m.Bucket(cells[0].Bucket)
	if err != nil {
		return false, err
	}
	keys, byKey := make([]string, len(cells)), make(map[string]Entry, len(cells))
	for i, c := range cells {
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

var errChanged = errors.New("another was faster")
