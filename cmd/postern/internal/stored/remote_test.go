package stored

import (
	"path/filepath"
	"testing"
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
