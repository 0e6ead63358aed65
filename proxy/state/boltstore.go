package state

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
)

// A BoltStore is a Bolt as a Store, for other processes. The version of a value is a hash of
// it. Closing it does not close the Bolt.
type BoltStore struct{ Bolt *Bolt }

// versionOf returns the version of a value; nil has version 0.
func versionOf(value []byte) int64 {
	if value == nil {
		return 0
	}
	sum := sha256.Sum256(value)
	return int64(binary.BigEndian.Uint64(sum[:8])>>1) + 1
}

// Get implements Store.
func (s BoltStore) Get(ctx context.Context, bucket string, keys []string) ([]Versioned, error) {
	values := make([]Versioned, len(keys))
	for i, key := range keys {
		value, err := s.Bolt.Bucket(bucket).Get(ctx, key)
		if err != nil {
			return nil, err
		}
		values[i] = Versioned{value, versionOf(value)}
	}
	return values, nil
}

var errStale = errors.New("another writer was faster")

// Swap implements Store.
func (s BoltStore) Swap(ctx context.Context, bucket string, changes []Change) (bool, error) {
	keys, byKey := make([]string, len(changes)), make(map[string]Change, len(changes))
	for i, c := range changes {
		keys[i], byKey[c.Key] = c.Key, c
	}
	err := s.Bolt.Bucket(bucket).UpdateAll(ctx, keys, func(key string, old []byte) ([]byte, error) {
		c := byKey[key]
		if versionOf(old) != c.Version {
			return nil, errStale
		}
		return c.Value, nil
	})
	if errors.Is(err, errStale) {
		return false, nil
	}
	return err == nil, err
}

// Scan implements Store.
func (s BoltStore) Scan(ctx context.Context, bucket, prefix string, each func(key string, value []byte) error) error {
	return s.Bolt.Bucket(bucket).Scan(ctx, prefix, each)
}

// Probe implements Store.
func (s BoltStore) Probe(context.Context) error { return s.Bolt.Err() }

// Close implements Store.
func (BoltStore) Close() error { return nil }
