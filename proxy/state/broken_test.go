package state

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"hash/fnv"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// returnsSoon returns the error of f, which must not block.
func returnsSoon(t *testing.T, what string, f func() error) error {
	t.Helper()
	done := make(chan error, 1)
	go func() { done <- f() }()
	select {
	case err := <-done:
		return err
	case <-time.After(10 * time.Second):
		t.Fatalf("%s waits for ever", what)
		return nil
	}
}

// allRefused wants every method of b to say at once that it is broken.
func checkAllRefused(t *testing.T, b *Bolt) {
	t.Helper()
	in, ctx := b.Bucket("uidl"), context.Background()
	for what, f := range map[string]func() error{
		"Get":    func() error { _, err := in.Get(ctx, "key-1"); return err },
		"Put":    func() error { return in.Put(ctx, "key-1", []byte("x")) },
		"Scan":   func() error { return in.Scan(ctx, "", func(string, []byte) error { return nil }) },
		"Check":  func() error { return b.Check(ctx) },
		"copy":   func() error { _, err := b.WriteTo(io.Discard); return err },
		"Err":    b.Err,
		"Close":  b.Close,
		"Close2": b.Close,
	} {
		if err := returnsSoon(t, what, f); !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), b.Path()) || !strings.Contains(err.Error(), "restart") {
			t.Errorf("%s of a broken file gives %v", what, err)
		}
	}
	_ = returnsSoon(t, "Size", func() error { b.Size(); return nil })
	select {
	case <-b.Broken():
	default:
		t.Error("nobody is told that it is broken")
	}
}

// fileChanges are what an operator, or a disk, can do to a file in use. older is
// a copy of it.
func fileChanges(t *testing.T, path string, older []byte) map[string]func() error {
	overwrite := func(from []byte) func() error { // as cp does
		return func() error {
			f, err := os.OpenFile(path, os.O_WRONLY|os.O_TRUNC, 0)
			if err != nil {
				return err
			}
			_, err = f.Write(from)
			return errors.Join(err, f.Close())
		}
	}
	other := filepath.Join(t.TempDir(), "other.db")
	if err := openWithValues(t, other).Close(); err != nil {
		t.Fatal(err)
	}
	return map[string]func() error{
		"cut off":              func() error { return os.Truncate(path, 0) },
		"cut off after a page": func() error { return os.Truncate(path, int64(os.Getpagesize())) },
		"zeros":                overwrite(make([]byte, len(older))),
		"another file":         overwrite(bytes.Repeat([]byte("no state at all "), len(older)/16)),
		"an older copy":        overwrite(older),
		"an older copy that is put in its place": func() error {
			if err := os.WriteFile(path+".new", older, 0o600); err != nil {
				return err
			}
			return os.Rename(path+".new", path)
		},
		"removed": func() error { return os.Remove(path) },
	}
}

// Criterion: A state file that is changed, cut off or replaced under a running Postern is not used again before a restart, and nothing waits for it.
func TestAFileThatIsChangedInUseIsBroken(t *testing.T) {
	for name := range fileChanges(t, filepath.Join(t.TempDir(), "x"), nil) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := tempPath(t)
			b := openWithValues(t, path)
			var older bytes.Buffer
			if _, err := b.WriteTo(&older); err != nil {
				t.Fatal(err)
			}
			for i := range 50 {
				if err := b.Bucket("uidl").Put(t.Context(), "later", []byte(strconv.Itoa(i))); err != nil {
					t.Fatal(err)
				}
			}
			change := fileChanges(t, path, older.Bytes())[name]
			ctx := context.Background() // nobody's end, so that nothing but the Bolt ends a wait
			stop := make(chan struct{})
			var changing atomic.Bool
			var wg sync.WaitGroup
			for i := range 8 {
				wg.Go(func() {
					for n := 0; ; n++ {
						select {
						case <-stop:
							return
						default:
						}
						key := "key-" + strconv.Itoa(n%500)
						want := strings.Repeat(key, 50)
						if i%4 == 0 {
							_ = b.Bucket("uidl").Put(ctx, "new-"+strconv.Itoa(i), []byte(key))
						} else if got, err := b.Bucket("uidl").Get(ctx, key); err == nil && (got == nil || string(got) != want && !changing.Load()) {
							t.Errorf("%s = %.20q and no error", key, got)
						} // octets that change under a reader are noticed by the checksum that is in the value
						if err := b.Err(); err != nil && n%500 == 0 {
							return
						}
					}
				})
			}
			time.Sleep(20 * time.Millisecond)
			changing.Store(true)
			if err := change(); err != nil {
				t.Fatal(err)
			}
			select {
			case <-b.Broken():
			case <-time.After(10 * time.Second):
				t.Error("it is not noticed")
			}
			close(stop)
			if err := returnsSoon(t, "somebody", func() error { wg.Wait(); return nil }); err != nil {
				t.Fatal(err)
			}
			checkAllRefused(t, b)
		})
	}
}

// One call meets the panic of bbolt while bbolt holds its locks. Calls that are
// reading or waiting at that time are not blocked.
func TestBrokenFileBlocksNoCaller(t *testing.T) {
	path := tempPath(t)
	b := openWithValues(t, path)
	in, ctx := b.Bucket("uidl"), context.Background()
	writing, reading, goOn := make(chan struct{}), make(chan struct{}), make(chan struct{})
	results := make(chan error, 4)
	go func() {
		results <- in.Update(ctx, "key-1", func([]byte) ([]byte, error) {
			close(writing)
			<-goOn
			return []byte("x"), nil
		})
	}()
	go func() {
		first := sync.OnceFunc(func() { close(reading); <-goOn })
		results <- in.Scan(ctx, "", func(string, []byte) error { first(); return nil })
	}()
	<-writing
	<-reading
	go func() { results <- in.Put(ctx, "key-2", []byte("x")) }() // waits for its turn
	if err := os.Truncate(path, 0); err != nil {
		t.Fatal(err)
	}
	if err := returnsSoon(t, "who meets it", func() error { _, err := in.Get(ctx, "key-3"); return err }); !errors.Is(err, ErrDamaged) {
		t.Errorf("who meets it gets %v", err)
	}
	if err := returnsSoon(t, "who waits for its turn", func() error { return <-results }); !errors.Is(err, ErrDamaged) {
		t.Errorf("who waits for its turn gets %v", err)
	}
	close(goOn)
	for range 2 {
		if err := returnsSoon(t, "who was in the middle", func() error { return <-results }); !errors.Is(err, ErrDamaged) {
			t.Errorf("who was in the middle gets %v", err)
		}
	}
	checkAllRefused(t, b)
}

// What waits for another call of the same file ends with its context.
func TestWaitingCallsEndWithTheirContext(t *testing.T) {
	gone := errors.New("gone")
	left, leave := context.WithCancelCause(t.Context())
	b := openWithValues(t, tempPath(t))
	in := b.Bucket("uidl")
	writing, goOn, wrote := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	go func() {
		wrote <- in.Update(t.Context(), "key-1", func([]byte) ([]byte, error) {
			close(writing)
			<-goOn
			return []byte("x"), nil
		})
	}()
	<-writing
	waits := make(chan error, 1)
	called := false
	go func() {
		waits <- in.Update(left, "key-2", func([]byte) ([]byte, error) { called = true; return []byte("x"), nil })
	}()
	if got, err := in.Get(t.Context(), "key-1"); err != nil || string(got) == "x" {
		t.Errorf("while somebody writes, who reads gets %q, %v", got, err)
	}
	leave(gone)
	if err := returnsSoon(t, "who has left", func() error { return <-waits }); !errors.Is(err, gone) {
		t.Errorf("who leaves while another writes gets %v", err)
	}
	close(goOn)
	if err := <-wrote; err != nil {
		t.Error(err)
	}
	if got, err := in.Get(t.Context(), "key-2"); called || string(got) == "x" || err != nil {
		t.Errorf("what nobody waits for was written: %q, %v", got, err)
	}

	// bbolt's Close, as its growing, has what who begins needs until all readers end.
	reading, end := make(chan struct{}), make(chan struct{})
	read := make(chan error, 1)
	go func() {
		first := sync.OnceFunc(func() { close(reading); <-end })
		read <- in.Scan(t.Context(), "", func(string, []byte) error { first(); return nil })
	}()
	<-reading
	closed := make(chan error, 1)
	go func() { closed <- b.Close() }()
	for b.Err() == nil { // until Close has begun
		b.beginMu.Lock()
		begun := b.longHolders > 0
		b.beginMu.Unlock()
		if begun {
			break
		}
		time.Sleep(time.Millisecond)
	}
	leaves := func() error {
		short, cancel := context.WithTimeoutCause(t.Context(), 10*time.Millisecond, gone)
		defer cancel()
		return returnsSoon(t, "who reads", func() error { _, err := in.Get(short, "key-1"); return err })
	}
	err := leaves()
	for begun := time.Now(); err == nil && time.Since(begun) < 10*time.Second; { // Close has begun, but does not wait yet
		err = leaves()
	}
	if !errors.Is(err, gone) {
		t.Errorf("who leaves while the file is closed gets %v", err)
	}
	close(end)
	if err := <-read; err != nil {
		t.Logf("after Close the read says %v", err)
	}
	if err := returnsSoon(t, "Close", func() error { return <-closed }); err != nil {
		t.Error(err)
	}
}

// A panic of the caller does not damage the file.
func TestPanicOfAReaderIsNotDamage(t *testing.T) {
	b := openWithValues(t, tempPath(t))
	in := b.Bucket("uidl")
	for range 3 {
		if err := in.Scan(t.Context(), "", func(string, []byte) error { panic("oops") }); !errors.Is(err, ErrDamaged) {
			t.Errorf("a panic gives %v", err)
		}
	}
	if err := in.Put(t.Context(), "key-1", []byte("x")); err != nil {
		t.Error(err)
	}
	if err := b.Err(); err != nil {
		t.Error(err)
	}
	if err := returnsSoon(t, "Close", b.Close); err != nil {
		t.Error(err)
	}
}

// Criterion: cache.db of any content, or length, never stops a start.
func TestDamagedDisposableFileIsReplaced(t *testing.T) {
	whole := tempPath(t)
	if err := openWithValues(t, whole).Close(); err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(whole)
	if err != nil {
		t.Fatal(err)
	}
	page := os.Getpagesize()
	lengths := []int{0, 1, 80, page - 1, page, 5000, 2*page - 1, 2 * page, 12000, len(content) - 1, len(content)}
	for _, n := range lengths {
		for name, of := range map[string]func() []byte{
			"cut off": func() []byte { return bytes.Clone(content[:n]) },
			"zeros":   func() []byte { return make([]byte, n) },
			"text":    func() []byte { return bytes.Repeat([]byte("no state at all "), n/16+1)[:n] },
			"beginning spoilt": func() []byte {
				b := bytes.Clone(content[:n])
				clear(b[:min(n, 2*page)])
				return b
			},
			"list of free pages too long": func() []byte { // else it would end the process
				b := bytes.Clone(content[:n])
				for at := 2 * page; at+32 <= n; at += page {
					if b[at+8] == 0x10 {
						b[at+10], b[at+11] = 0xff, 0xff
						copy(b[at+16:], []byte{0, 0, 0, 0, 16, 0, 0, 0})
					}
				}
				return b
			},
			"list of free pages missing": func() []byte {
				b := bytes.Clone(content[:n])
				for at := 16; at+64 <= n && at < 2*page; at += page {
					copy(b[at+32:], bytes.Repeat([]byte{0xff}, 8))
					sum := fnv.New64a()
					_, _ = sum.Write(b[at : at+56])
					binary.NativeEndian.PutUint64(b[at+56:], sum.Sum64())
				}
				for at := 2 * page; at+32 <= n; at += page {
					copy(b[at+8:], bytes.Repeat([]byte{0xff}, 24))
				}
				return b
			},
			"list of free pages spoilt": func() []byte {
				b := bytes.Clone(content[:n])
				for at := 2 * page; at+32 <= n; at += page {
					copy(b[at+8:], bytes.Repeat([]byte{0xff}, 24))
				}
				return b
			},
		} {
			path := filepath.Join(t.TempDir(), "cache.db")
			if err := os.WriteFile(path, of(), 0o600); err != nil {
				t.Fatal(err)
			}
			b, err := Open(path, Options{Disposable: true})
			if err != nil {
				t.Errorf("%d octets, %s: %v", n, name, err)
				continue
			}
			if _, err := os.Stat(path + ".damaged"); (err == nil) != (b.Recreated() != nil) {
				t.Errorf("%d octets, %s: %v, and begun anew because of %v", n, name, err, b.Recreated())
			} else if err == nil {
				if err := b.Bucket("a").Put(t.Context(), "k", []byte("v")); err != nil {
					t.Errorf("%d octets, %s, begun anew: %v", n, name, err)
				}
			}
			_ = b.Close()
		}
	}
}

// Criterion: A state file that was removed is noticed also when nobody writes to it.
func TestARemovedFileIsNoticedWithoutAWrite(t *testing.T) {
	path := tempPath(t)
	b := openWithValues(t, path)
	if err := b.CheckInPlace(); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := b.CheckInPlace(); !errors.Is(err, ErrDamaged) || !errors.Is(b.Err(), ErrDamaged) {
		t.Errorf("a removed file gives %v", err)
	}
	select {
	case <-b.Broken():
	default:
		t.Error("a removed file does not break the Bolt")
	}
}

// Criterion: A file that is opened to be read does not change, whatever it contains, and is refused if it is not there.
func TestReadOnlyChangesNothing(t *testing.T) {
	path := tempPath(t)
	if err := openWithValues(t, path).Close(); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string][]byte{
		"whole": whole, "empty": {}, "cut off": whole[:5000], "text": bytes.Repeat([]byte("no state at all "), 4096),
	} {
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		before, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		b, err := Open(path, Options{ReadOnly: true, Disposable: true})
		if (err == nil) != (name == "whole") || err != nil && !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: %v", name, err)
		}
		if err == nil {
			if err := b.Bucket("uidl").Put(t.Context(), "key-1", nil); err == nil {
				t.Error("it was written to")
			}
			if err := errors.Join(b.Check(t.Context()), b.Close()); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		after, statErr := os.Stat(path)
		if now, _ := os.ReadFile(path); statErr != nil || !bytes.Equal(now, content) || !after.ModTime().Equal(before.ModTime()) {
			t.Errorf("%s: the file has changed, %v", name, statErr)
		}
		if left, _ := filepath.Glob(path + ".*"); left != nil {
			t.Errorf("%s: left are %v", name, left)
		}
	}
	gone := filepath.Join(t.TempDir(), "none", "state.db")
	if _, err := Open(gone, Options{ReadOnly: true}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a file that is not there gives %v", err)
	}
	if _, err := os.Stat(filepath.Dir(gone)); err == nil {
		t.Error("its directory was made")
	}
}
