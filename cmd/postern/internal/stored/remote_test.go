package stored

import (
	"context"
	"errors"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"postern/proxy/state"
)

// A session that writes while a successor fails has written.
func TestStateThatIsTakenBackHasWhatWasWrittenMeanwhile(t *testing.T) {
	memory := new(state.Memory)
	back := make(chan struct{})
	b := &Bucket{store: RemoteBucket{filepath.Join(t.TempDir(), "nobody"), "uidl", back}}
	written := make(chan error, 1)
	go func() { written <- b.Put(t.Context(), "alice", []byte("1")) }()
	time.Sleep(10 * time.Millisecond)
	close(back)
	b.set(memory)
	if err := <-written; err != nil {
		t.Error(err)
	}
	if value, err := memory.Get(t.Context(), "alice"); string(value) != "1" {
		t.Errorf("got %q, %v", value, err)
	}
}

// Criterion: a session whose context ends does not wait for state that comes back from a successor.
func TestWaitingForTheFilesEndsWithTheContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		back := make(chan struct{})
		close(back) // and still the files do not come
		b := NewBucket("uidl", NewRemoteBucket(filepath.Join(t.TempDir(), "nobody"), "uidl", back))
		ctx, cancel := context.WithCancelCause(t.Context())
		gone := errors.New("gone")
		time.AfterFunc(askAgain/2, func() { cancel(gone) })
		begun := time.Now()
		if _, err := b.Get(ctx, "alice"); !errors.Is(err, gone) {
			t.Errorf("got %v, want the cause of the context", err)
		}
		if waited := time.Since(begun); waited != askAgain/2 {
			t.Errorf("waited %v, want %v", waited, askAgain/2)
		}
	})
}
