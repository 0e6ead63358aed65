package state

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
)

// openWithValues returns an open file with some values.
func openWithValues(t *testing.T, path string) *Bolt {
	t.Helper()
	b := openState(t, path, Options{})
	keys := make([]string, 500)
	for i := range keys {
		keys[i] = fmt.Sprint("key-", i)
	}
	err := b.Bucket("uidl").UpdateAll(t.Context(), keys, func(key string, _ []byte) ([]byte, error) {
		return []byte(strings.Repeat(key, 50)), nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// Criterion: A copy of the state, taken while it is used, can be put back, and holds what it held.
func TestStateIsCopiedInUseAndRestored(t *testing.T) {
	path := tempPath(t)
	b := openWithValues(t, path)
	var saved bytes.Buffer
	if _, err := b.WriteTo(&saved); err != nil {
		t.Fatal(err)
	}
	if err := Restore(t.Context(), path, bytes.NewReader(saved.Bytes())); !errors.Is(err, ErrInUse) {
		t.Fatalf("restored a file in use: %v", err)
	}
	if err := b.Bucket("uidl").Put(t.Context(), "key-7", []byte("later")); err != nil {
		t.Fatal(err)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}

	if err := Restore(t.Context(), path, &saved); err != nil {
		t.Fatal(err)
	}
	b = openState(t, path, Options{})
	if got, err := b.Bucket("uidl").Get(t.Context(), "key-7"); err != nil || string(got) != strings.Repeat("key-7", 50) {
		t.Errorf("got %q, %v", got, err)
	}
	if err := b.Check(t.Context()); err != nil {
		t.Error(err)
	}
	before := openState(t, path+".before-restore", Options{})
	if got, _ := before.Bucket("uidl").Get(t.Context(), "key-7"); string(got) != "later" {
		t.Errorf("what was there before has %q", got)
	}
}

func TestInvalidStateIsNotRestored(t *testing.T) {
	path := tempPath(t)
	b := openWithValues(t, path)
	var saved bytes.Buffer
	if _, err := b.WriteTo(&saved); err != nil {
		t.Fatal(err)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	for name, from := range map[string][]byte{
		"text": []byte("no state at all"), "cut off": saved.Bytes()[:saved.Len()/2],
	} {
		if err := Restore(t.Context(), path, bytes.NewReader(from)); !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := os.Stat(path + ".restore"); err == nil {
			t.Errorf("%s: the draft is left behind", name)
		}
	}
	b = openState(t, path, Options{})
	if got, err := b.Bucket("uidl").Get(t.Context(), "key-7"); err != nil || got == nil {
		t.Errorf("afterwards: %q, %v", got, err)
	}
}

func TestCheckFindsADamagedPage(t *testing.T) {
	path := tempPath(t)
	b := openWithValues(t, path)
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for at := 4 * os.Getpagesize(); at+16 < len(content); at += os.Getpagesize() {
		copy(content[at:], make([]byte, 16)) // the page's header
	}
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	b, err = Open(path, Options{})
	if err == nil {
		err = b.Check(t.Context())
		_ = b.Close()
	}
	if !errors.Is(err, ErrDamaged) {
		t.Errorf("got %v", err)
	}
}

func TestUpdateOfManyIsOfAllOrOfNone(t *testing.T) {
	no := errors.New("no")
	for name, s := range map[string]interface {
		UpdateAll(ctx context.Context, keys []string, change func(string, []byte) ([]byte, error)) error
		Get(ctx context.Context, key string) ([]byte, error)
	}{"bolt": openState(t, tempPath(t), Options{}).Bucket("x"), "memory": new(Memory)} {
		err := s.UpdateAll(t.Context(), []string{"a", "b"}, func(key string, _ []byte) ([]byte, error) {
			if key == "b" {
				return nil, no
			}
			return []byte("1"), nil
		})
		if !errors.Is(err, no) {
			t.Errorf("%s: %v", name, err)
		}
		if got, _ := s.Get(t.Context(), "a"); got != nil {
			t.Errorf("%s: a is %q", name, got)
		}
	}
}

// What is no backup may be a file that only root can read: its content must not come into a
// file of the state's owner, not even for a moment.
func TestWhatIsNoBackupIsNotCopied(t *testing.T) {
	path := tempPath(t)
	if err := openWithValues(t, path).Close(); err != nil {
		t.Fatal(err)
	}
	from := readerFunc(func(p []byte) (int, error) {
		if _, err := os.Stat(path + ".restore"); err == nil {
			t.Error("it is copied")
			return 0, io.EOF
		}
		return copy(p, bytes.Repeat([]byte("for root alone "), 1000)), nil
	})
	if err := Restore(t.Context(), path, from); !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), "this is no whole backup, so nothing was changed") {
		t.Errorf("got %v", err)
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }
