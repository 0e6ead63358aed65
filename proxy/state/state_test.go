package state

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// A bucket is the common interface of Bucket, Memory and SharedBucket.
type bucket interface {
	Get(ctx context.Context, key string) ([]byte, error)
	Put(ctx context.Context, key string, value []byte) error
	Update(ctx context.Context, key string, change func(old []byte) ([]byte, error)) error
	UpdateAll(ctx context.Context, keys []string, change func(key string, old []byte) ([]byte, error)) error
	Scan(ctx context.Context, prefix string, each func(key string, value []byte) error) error
}

func tempPath(t testing.TB) string { return filepath.Join(t.TempDir(), "postern", "state.db") }

func openState(t testing.TB, path string, o Options) *Bolt {
	t.Helper()
	b, err := Open(path, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close() })
	return b
}

func TestBucketsKeepValues(t *testing.T) {
	for name, s := range map[string]bucket{"bolt": openState(t, tempPath(t), Options{}).Bucket("a"), "memory": &Memory{}} {
		t.Run(name, func(t *testing.T) {
			ctx := t.Context()
			get := func(key string) string {
				v, err := s.Get(ctx, key)
				if err != nil {
					t.Fatal(err)
				}
				if v == nil {
					return "none"
				}
				return string(v)
			}
			if got := get("x"); got != "none" {
				t.Errorf("before anything is put: %s", got)
			}
			for key, value := range map[string]string{"x": "1", "x/2": "2", "x/1": "1", "y": "3"} {
				if err := s.Put(ctx, key, []byte(value)); err != nil {
					t.Fatal(err)
				}
			}
			if got := get("y"); got != "3" {
				t.Errorf("y = %s, want 3", got)
			}
			oops := errors.New("oops")
			if err := s.Update(ctx, "y", func(old []byte) ([]byte, error) { return append(bytes.Clone(old), 'x'), oops }); !errors.Is(err, oops) {
				t.Errorf("an update that fails gives %v", err)
			}
			if got := get("y"); got != "3" {
				t.Errorf("y = %s after an update that failed, want 3", got)
			}
			var scanned []string
			if err := s.Scan(ctx, "x/", func(k string, v []byte) error { scanned = append(scanned, k+"="+string(v)); return nil }); err != nil {
				t.Fatal(err)
			}
			if got, want := strings.Join(scanned, " "), "x/1=1 x/2=2"; got != want {
				t.Errorf("scanned %s, want %s", got, want)
			}
			if err := s.Scan(ctx, "", func(string, []byte) error { return oops }); !errors.Is(err, oops) {
				t.Errorf("a scan that fails gives %v", err)
			}
			if err := s.Put(ctx, "x", nil); err != nil {
				t.Fatal(err)
			}
			if got := get("x"); got != "none" {
				t.Errorf("x = %s after it was removed", got)
			}
		})
	}
}

func TestUpdatesComeOneAfterTheOther(t *testing.T) {
	for name, s := range map[string]bucket{"bolt": openState(t, tempPath(t), Options{}).Bucket("a"), "memory": &Memory{}} {
		t.Run(name, func(t *testing.T) {
			var wg sync.WaitGroup
			for range 50 {
				wg.Go(func() {
					err := s.Update(t.Context(), "n", func(old []byte) ([]byte, error) {
						n, _ := strconv.Atoi(string(old))
						return strconv.AppendInt(nil, int64(n+1), 10), nil
					})
					if err != nil {
						t.Error(err)
					}
				})
			}
			wg.Wait()
			if got, err := s.Get(t.Context(), "n"); string(got) != "50" || err != nil {
				t.Errorf("n = %s, %v after 50 updates", got, err)
			}
		})
	}
}

func TestAnUpdateThatFailsSpoilsNoneOfThoseBesideIt(t *testing.T) {
	b := openState(t, tempPath(t), Options{})
	in, oops := b.Bucket("a"), errors.New("oops")
	var wg sync.WaitGroup
	for i := range 60 {
		wg.Go(func() {
			key := strconv.Itoa(i)
			err := in.Update(t.Context(), key, func([]byte) ([]byte, error) {
				switch i % 6 {
				case 4:
					return []byte(key), oops
				case 5:
					panic("oops")
				}
				return []byte(key), nil
			})
			if want := []error{nil, nil, nil, nil, oops, ErrDamaged}[i%6]; !errors.Is(err, want) {
				t.Errorf("update %d = %v, want %v", i, err, want)
			}
		})
	}
	wg.Wait()
	for i := range 60 {
		want := strconv.Itoa(i)
		if i%6 >= 4 {
			want = ""
		}
		if got, err := in.Get(t.Context(), strconv.Itoa(i)); string(got) != want || err != nil {
			t.Errorf("value %d = %q, %v, want %q", i, got, err, want)
		}
	}
}

func TestBoltOutlivesTheProcess(t *testing.T) {
	path := tempPath(t)
	b := openState(t, path, Options{})
	if err := b.Bucket("a").Put(t.Context(), "k", []byte("v")); err != nil {
		t.Fatal(err)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Bucket("a").Get(t.Context(), "k"); err == nil {
		t.Error("a closed file can be read")
	}
	again := openState(t, path, Options{})
	if got, err := again.Bucket("a").Get(t.Context(), "k"); string(got) != "v" || err != nil {
		t.Errorf("k = %q, %v", got, err)
	}
	if got, err := again.Bucket("b").Get(t.Context(), "k"); got != nil || err != nil {
		t.Errorf("k of another bucket = %q, %v", got, err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 || info.Size() != again.Size() {
		t.Errorf("%v, %v, want mode 0600 and the size %d", info.Mode(), err, again.Size())
	}
}

func TestBoltHasOneOwner(t *testing.T) {
	path := tempPath(t)
	openState(t, path, Options{})
	_, err := Open(path, Options{Disposable: true})
	if !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), fmt.Sprintf("process %d (", os.Getpid())) {
		t.Errorf("a file that is open gives %v", err)
	}
}

func TestBoltIsPrivate(t *testing.T) {
	path := tempPath(t)
	if err := openState(t, path, Options{}).Close(); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		path       string
		mode, back os.FileMode
	}{{path, 0o640, 0o600}, {filepath.Dir(path), 0o770, 0o700}} {
		if err := os.Chmod(test.path, test.mode); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(path, Options{}); err == nil || !strings.Contains(err.Error(), "chmod") {
			t.Errorf("%s with mode %o gives %v", test.path, test.mode, err)
		}
		if err := os.Chmod(test.path, test.back); err != nil {
			t.Fatal(err)
		}
	}
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(path, link); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(link, Options{}); err == nil {
		t.Error("a symbolic link is taken for the file")
	}
}

func TestDamagedFile(t *testing.T) {
	path := tempPath(t)
	_ = openState(t, path, Options{}).Close()
	if err := os.WriteFile(path, bytes.Repeat([]byte("not a database "), 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(path, Options{}); !errors.Is(err, ErrDamaged) {
		t.Fatalf("a damaged file gives %v", err)
	}
	b := openState(t, path, Options{Disposable: true})
	if err := b.Bucket("a").Put(t.Context(), "k", []byte("v")); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(path + ".damaged"); err != nil {
		t.Error(err)
	}
}

// Whatever a page holds, reading gives a value or an error, and the process lives.
func TestDamagedPages(t *testing.T) {
	path := tempPath(t)
	b := openState(t, path, Options{})
	var wg sync.WaitGroup
	for i := range 300 {
		wg.Go(func() {
			if err := b.Bucket("a").Put(t.Context(), fmt.Sprint(i), bytes.Repeat([]byte{byte(i)}, 10*i)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	_ = b.Close()
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	random := rand.New(rand.NewPCG(1, 2))
	failed := 0
	for round := range 12 {
		spoilt := bytes.Clone(whole)
		for page := 2; page < len(spoilt)/os.Getpagesize(); page++ { // 0 and 1 are the two headers
			if random.IntN(4) == 0 {
				for range 8 {
					spoilt[page*os.Getpagesize()+random.IntN(64)] = byte(random.Uint32())
				}
			}
		}
		path := fmt.Sprint(path, round)
		if err := os.WriteFile(path, spoilt, 0o600); err != nil {
			t.Fatal(err)
		}
		b, err := Open(path, Options{})
		if err != nil {
			failed++
			continue
		}
		for i := range 300 {
			if _, err := b.Bucket("a").Get(t.Context(), fmt.Sprint(i)); err != nil {
				failed++
			}
		}
		_ = b.Close()
	}
	if failed == 0 {
		t.Error("no damage was noticed")
	}
}

func BenchmarkPut(b *testing.B) {
	bucket := openState(b, tempPath(b), Options{}).Bucket("a")
	for _, size := range []int{100, 200 << 10} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			value := make([]byte, size)
			n := 0
			for b.Loop() {
				n++
				if err := bucket.Put(b.Context(), fmt.Sprint(n%1000), value); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkGet(b *testing.B) {
	bucket := openState(b, tempPath(b), Options{}).Bucket("a")
	for _, size := range []int{100, 20 << 10} {
		keys := make([]string, 1000)
		for i := range keys {
			keys[i] = fmt.Sprintf("%d-%d", size, i)
		}
		if err := bucket.UpdateAll(b.Context(), keys, func(string, []byte) ([]byte, error) { return make([]byte, size), nil }); err != nil {
			b.Fatal(err)
		}
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			n := 0
			for b.Loop() {
				n++
				if _, err := bucket.Get(b.Context(), keys[n%1000]); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(fmt.Sprint(size, "-parallel"), func(b *testing.B) {
			b.RunParallel(func(p *testing.PB) {
				for n := 0; p.Next(); n++ {
					if _, err := bucket.Get(b.Context(), keys[n%1000]); err != nil {
						b.Error(err)
					}
				}
			})
		})
	}
}
