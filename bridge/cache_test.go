package bridge

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"reflect"
	"sync"
	"testing"
)

// A memory is a Bucket for tests, which can be told to fail.
type memory struct {
	mu     sync.Mutex
	values map[string][]byte
	writes int
	octets int // written
	err    error
}

func (m *memory) Get(_ context.Context, key string) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return bytes.Clone(m.values[key]), m.err
}

func (m *memory) Put(ctx context.Context, key string, value []byte) error {
	return m.Update(ctx, key, func([]byte) ([]byte, error) { return value, nil })
}

func (m *memory) Update(ctx context.Context, key string, change func([]byte) ([]byte, error)) error {
	return m.UpdateAll(ctx, []string{key}, func(_ string, old []byte) ([]byte, error) { return change(old) })
}

func (m *memory) UpdateAll(_ context.Context, keys []string, change func(string, []byte) ([]byte, error)) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.err != nil {
		return m.err
	}
	changed := make(map[string][]byte)
	for _, key := range keys {
		value, err := change(key, m.values[key])
		if err != nil {
			return err
		}
		changed[key] = bytes.Clone(value)
	}
	if m.values == nil {
		m.values = make(map[string][]byte)
	}
	for key, value := range changed {
		m.octets += len(value)
		if value == nil {
			delete(m.values, key)
		} else {
			m.values[key] = value
		}
	}
	m.writes++
	return nil
}

// sparse returns n messages as a mailbox may have them after years.
func sparse(n int) []message {
	random := rand.New(rand.NewPCG(1, uint64(n)))
	messages := make([]message, n)
	uid := uint32(0)
	for i := range messages {
		uid += 1 + uint32(random.IntN(5))
		messages[i] = message{uid: uid, size: random.Int64N(1 << 20), marks: marks(random.IntN(16))}
	}
	return messages
}

// Criterion: what is remembered of a message takes at most 24 octets on the disk.
func TestSnapshotsAreRemembered(t *testing.T) {
	for _, s := range []snapshot{
		{},
		{uidValidity: 7, uidNext: 1, proven: true},
		{uidValidity: 1<<32 - 1, uidNext: 1<<32 - 1, proven: true, messages: []message{{uid: 1<<32 - 1, size: maxSize, marks: exact | fingerprinted}}},
		{uidValidity: 1, uidNext: 1e6, messages: sparse(50_000)},
	} {
		b := s.encode()
		got, err := decodeSnapshot(b)
		if s.messages == nil {
			s.messages = []message{}
		}
		if err != nil || !reflect.DeepEqual(got, s) {
			t.Errorf("%d messages come back as %d, %v", len(s.messages), len(got.messages), err)
		}
		if n := len(s.messages); n > 1 && len(b)/n > 24 {
			t.Errorf("%d octets for %d messages, want at most 24 each", len(b), n)
		}
	}
}

func TestMarksOfASessionAreForgotten(t *testing.T) {
	s := snapshot{uidValidity: 7, uidNext: 9, messages: []message{{uid: 1, size: 5, marks: exact | deleted | retrieved}}}
	got, err := decodeSnapshot(s.encode())
	if err != nil || got.messages[0] != (message{uid: 1, size: 5, marks: exact}) {
		t.Errorf("got %v, %v", got, err)
	}
}

// Criterion: a cache that is damaged or of another version is no cache.
func TestDamagedSnapshots(t *testing.T) {
	b := snapshot{uidValidity: 7, uidNext: 900, proven: true, messages: sparse(20)}.encode()
	for i := range b {
		if _, err := decodeSnapshot(b[:i]); !errors.Is(err, errDamaged) {
			t.Fatalf("the first %d octets give %v", i, err)
		}
		for bit := range 8 {
			spoilt := bytes.Clone(b)
			spoilt[i] ^= 1 << bit
			if _, err := decodeSnapshot(spoilt); !errors.Is(err, errDamaged) {
				t.Fatalf("bit %d of octet %d gives %v", bit, i, err)
			}
		}
	}
}

func FuzzSnapshot(f *testing.F) {
	f.Add(snapshot{uidValidity: 7, uidNext: 900, proven: true, messages: sparse(20)}.encode())
	f.Add([]byte{cacheVersion, 1, 7, 9, 255, 255, 255, 255, 15, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := decodeSnapshot(b)
		if err != nil {
			return
		}
		for i := 1; i < len(s.messages); i++ {
			if s.messages[i-1].uid >= s.messages[i].uid {
				t.Fatal("the UIDs do not ascend")
			}
		}
		if again, err := decodeSnapshot(s.encode()); err != nil || !reflect.DeepEqual(again, s) {
			t.Fatalf("%v comes back as %v, %v", s, again, err)
		}
	})
}

func BenchmarkSnapshot50000(b *testing.B) {
	s := snapshot{uidValidity: 7, uidNext: 1e6, proven: true, messages: sparse(50_000)}
	value := s.encode()
	b.Run("encode", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			s.encode()
		}
	})
	b.Run("decode", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := decodeSnapshot(value); err != nil {
				b.Fatal(err)
			}
		}
	})
}
