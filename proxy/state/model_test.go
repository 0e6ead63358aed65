package state

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"postern/proxy/proxytest"
)

var errLost = errors.New("the answer was lost")

// A lossy is a Store some of whose answers are lost: before anything was done, or after.
type lossy struct {
	Store
	one atomic.Int64 // an answer in so many is lost; 0: none
}

func (l *lossy) lose() bool { n := l.one.Load(); return n > 0 && rand.Int64N(n) == 0 }

func (l *lossy) Get(ctx context.Context, bucket string, keys []string) ([]Versioned, error) {
	if l.lose() {
		return nil, errLost
	}
	return l.Store.Get(ctx, bucket, keys)
}

func (l *lossy) Swap(ctx context.Context, bucket string, changes []Change) (bool, error) {
	if l.lose() {
		return false, errLost
	}
	swapped, err := l.Store.Swap(ctx, bucket, changes)
	if l.lose() {
		return false, errLost
	}
	return swapped, err
}

func (l *lossy) Scan(ctx context.Context, bucket, prefix string, each func(string, []byte) error) error {
	if l.lose() {
		return errLost
	}
	return l.Store.Scan(ctx, bucket, prefix, each)
}

func newBolt(t *testing.T) *Bolt {
	t.Helper()
	b, err := Open(filepath.Join(t.TempDir(), "record.db"), Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close() })
	return b
}

func testKeys(t *testing.T, octet ...byte) Keys {
	t.Helper()
	path := filepath.Join(t.TempDir(), "state.key")
	text := ""
	for _, o := range octet {
		key := bytes.Repeat([]byte{o}, KeySize)
		key[0]++
		text += base64.StdEncoding.EncodeToString(key) + "\n"
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	keys, err := ReadKeys(path)
	if err != nil {
		t.Fatal(err)
	}
	return keys
}

// serveRecord serves a Bolt to nodes with keys, and returns the address.
func serveRecord(t *testing.T, b *Bolt, keys Keys) string {
	t.Helper()
	s, err := NewRecordServer(keys, []string{"uidl"}, func(context.Context) (Served, error) { return Served{"one", BoltStore{b}}, nil }, log.New(io.Discard, "", 0))
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Serve(tls.NewListener(ln, s.TLSConfig)) }()
	t.Cleanup(func() { _ = s.Close(); <-done })
	return ln.Addr().String()
}

func newOwner(t *testing.T) Store {
	t.Helper()
	keys := testKeys(t, 1)
	o, err := NewOwner(serveRecord(t, newBolt(t), keys), keys, nil)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

// newPostgres returns a Store in p, whose record is begun.
func newPostgres(t *testing.T, p *proxytest.Postgres) *Postgres {
	t.Helper()
	s, err := NewPostgres(PostgresConfig{URL: p.URL(), PasswordFile: p.PasswordFile, CA: p.CA})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Prepare(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := s.Probe(t.Context()); !errors.Is(err, ErrNoRecord) {
		t.Fatalf("a table without a record: %v", err)
	}
	p.SQL(t, "postern", "INSERT INTO postern_record VALUES ('meta', 'record', 1, 'one')")
	return s
}

// Criterion: The record is the same in a bbolt file, in PostgreSQL and at an owner node: random operations of four writers, with answers lost before and after the commit, leave each confirmed write there once, each refused one nowhere, and none twice.
func TestEnginesAreOneModel(t *testing.T) {
	t.Run("bbolt", func(t *testing.T) { testModel(t, newBolt(t).Bucket("uidl"), func(int64) {}) })
	t.Run("memory", func(t *testing.T) { testModel(t, new(Memory), func(int64) {}) })
	t.Run("owner", func(t *testing.T) { testLossy(t, newOwner(t)) })
	t.Run("postgres", func(t *testing.T) { testLossy(t, newPostgres(t, proxytest.StartPostgres(t))) })
}

func testLossy(t *testing.T, store Store) {
	t.Helper()
	l := &lossy{Store: store}
	s := NewShared(l, nil)
	t.Cleanup(func() { _ = s.Close() })
	testModel(t, s.Bucket("uidl"), l.one.Store)
}

// testModel runs random operations. Each write adds its own token to values, so that the
// values say which writes there were.
func testModel(t *testing.T, b bucket, lose func(oneIn int64)) {
	t.Helper()
	ctx := t.Context()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	keys := []string{"a", "a\x00INBOX", "a\x00INBOX\x00names\x00\xff\xfe", "ab", "b", "\xff\xff", "b\x80"}
	var mu sync.Mutex
	confirmed, refused := map[string]map[string]bool{}, map[string]bool{} // token -> keys it is at
	lose(15)
	var wg sync.WaitGroup
	for writer := range 4 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(seed, uint64(writer)))
			for i := range 60 {
				token := fmt.Sprintf("%d.%d;", writer, i)
				of := slices.Clone(keys)
				r.Shuffle(len(of), func(i, j int) { of[i], of[j] = of[j], of[i] })
				of = of[:1+r.IntN(3)]
				slices.Sort(of)
				refuse := r.IntN(8) == 0
				err := b.UpdateAll(ctx, of, func(key string, old []byte) ([]byte, error) {
					if refuse && key == of[len(of)-1] {
						return nil, io.EOF
					}
					return append(slices.Clone(old), token...), nil
				})
				mu.Lock()
				switch {
				case err == nil && !refuse:
					confirmed[token] = map[string]bool{}
					for _, key := range of {
						confirmed[token][key] = true
					}
				case refuse:
					if err == nil || !errors.Is(err, io.EOF) && !errors.Is(err, ErrAway) && !errors.Is(err, errBusy) {
						t.Errorf("a change that refuses: %v", err)
					}
					refused[token] = true
				case errors.Is(err, errBusy):
					refused[token] = true
				case !errors.Is(err, ErrAway):
					t.Errorf("%q: %v", of, err)
				}
				mu.Unlock()
				if err != nil {
					time.Sleep(2 * time.Millisecond)
				}
			}
		})
	}
	wg.Wait()
	lose(0)
	within(t, 5*time.Second, func() bool { _, err := b.Get(ctx, "a"); return err == nil })
	if len(confirmed) < 30 {
		t.Fatalf("only %d writes were confirmed", len(confirmed))
	}
	values := map[string]string{}
	var order []string
	if err := b.Scan(ctx, "", func(key string, value []byte) error {
		values[key], order = string(value), append(order, key)
		return nil
	}); err != nil || !slices.IsSorted(order) {
		t.Fatalf("scan: %q, %v", order, err)
	}
	times := map[string]map[string]int{}
	for key, value := range values {
		if got, err := b.Get(ctx, key); err != nil || string(got) != value {
			t.Errorf("Get(%q) = %q, %v, want %q", key, got, err, value)
		}
		for token := range strings.SplitAfterSeq(value, ";") {
			if token == "" {
				continue
			}
			if times[token] == nil {
				times[token] = map[string]int{}
			}
			if times[token][key]++; times[token][key] > 1 {
				t.Errorf("write %s is in %q twice", token, key)
			}
			if refused[token] {
				t.Errorf("write %s, which was refused, is in %q", token, key)
			}
		}
	}
	for token, at := range confirmed {
		if len(times[token]) != len(at) {
			t.Errorf("write %s is in %v, want %v", token, times[token], at)
		}
	}
	testSequence(t, b)
}

// testSequence compares a sequence of operations with a map.
func testSequence(t *testing.T, b bucket) {
	t.Helper()
	ctx := t.Context()
	model := map[string][]byte{}
	r := rand.New(rand.NewPCG(1, 2))
	key := func() string { return "m\x00" + string([]byte{byte(r.IntN(3)) * 127, byte(r.IntN(2))}) }
	for range 300 {
		k := key()
		switch r.IntN(5) {
		case 0:
			if err := b.Put(ctx, k, nil); err != nil {
				t.Fatal(err)
			}
			delete(model, k)
		case 1, 2:
			value := bytes.Repeat([]byte{byte(r.Uint32())}, r.IntN(9000)+1)
			if err := b.Put(ctx, k, value); err != nil {
				t.Fatal(err)
			}
			model[k] = value
		case 3:
			if err := b.Update(ctx, k, func(old []byte) ([]byte, error) {
				if !bytes.Equal(old, model[k]) || (old == nil) != (model[k] == nil) {
					t.Errorf("Update(%q) has %d octets, want %d", k, len(old), len(model[k]))
				}
				return old, nil
			}); err != nil {
				t.Fatal(err)
			}
		case 4:
			prefix := k[:2+r.IntN(3)]
			got := map[string][]byte{}
			if err := b.Scan(ctx, prefix, func(key string, value []byte) error { got[key] = bytes.Clone(value); return nil }); err != nil {
				t.Fatal(err)
			}
			for k, v := range model {
				if strings.HasPrefix(k, prefix) != (got[k] != nil) || got[k] != nil && !bytes.Equal(got[k], v) {
					t.Fatalf("Scan(%q) has %d octets at %q, the model %d", prefix, len(got[k]), k, len(v))
				}
			}
			for k := range got {
				if model[k] == nil {
					t.Fatalf("Scan(%q) has %q, which was removed", prefix, k)
				}
			}
		}
	}
}

func within(t *testing.T, d time.Duration, f func() bool) {
	t.Helper()
	for end := time.Now().Add(d); !f(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within %v", d)
		}
	}
}
