package admin

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

type question struct{ A, B int }

// running starts a Server on a socket.
func running(t *testing.T) (path string, stop func()) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "run", "control")
	var s Server
	Handle(&s, "sum", func(_ context.Context, q question) (int, error) { return q.A + q.B, nil })
	Handle(&s, "fail", func(context.Context, question) (int, error) { return 0, errors.New("disk on fire") })
	ln, err := Listen(path, -1)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, ln) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(stop)
	return path, stop
}

// Criterion: the control socket is for its owner alone, and ends with its Postern.
func TestQuestionsAreAnswered(t *testing.T) {
	path, stop := running(t)
	if info, err := os.Lstat(path); err != nil || info.Mode() != os.ModeSocket|0o600 {
		t.Errorf("the socket is %v, %v, want mode 0600", info.Mode(), err)
	}
	var sum int
	if err := Call(t.Context(), path, "sum", question{2, 3}, &sum); err != nil || sum != 5 {
		t.Errorf("sum = %d, %v, want 5", sum, err)
	}
	for _, test := range []struct {
		name, want string
		in         any
	}{
		{"fail", "fail: disk on fire", question{}},
		{"none", `knows no "none"`, question{}},
		{"sum", "unknown field", map[string]int{"C": 1}},
		{"sum", "cannot unmarshal", "x"},
	} {
		if err := Call(t.Context(), path, test.name, test.in, &sum); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s of %v gives %v, want %s", test.name, test.in, err, test.want)
		}
	}
	if _, err := Listen(path, -1); !errors.Is(err, ErrRunning) {
		t.Errorf("a second one gives %v", err)
	}
	stop()
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is still there: %v", err)
	}
	if err := Call(t.Context(), path, "sum", question{}, &sum); !errors.Is(err, ErrNotRunning) {
		t.Errorf("without a Postern: %v", err)
	}
}

func TestSocketThatWasLeftBehind(t *testing.T) {
	path := filepath.Join(t.TempDir(), "control")
	old, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	old.SetUnlinkOnClose(false)
	_ = old.Close()
	if err := Call(t.Context(), path, "x", nil, nil); !errors.Is(err, ErrNotRunning) {
		t.Errorf("a dead socket gives %v", err)
	}
	first, err := Listen(path, -1)
	if err != nil {
		t.Fatal(err)
	}
	_ = os.Remove(path) // its successor has come
	second, err := Listen(path, -1)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = second.Close() }()
	_ = first.Close()
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("the first one has taken the second one's socket away: %v", err)
	}
}

func TestPathsThatAreNoSocket(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{file, filepath.Join(dir, strings.Repeat("x", 120))} {
		if _, err := Listen(path, -1); err == nil {
			t.Errorf("%s is taken for a socket", path)
		}
	}
	if _, err := os.Stat(file); err != nil {
		t.Error("the file is gone")
	}
}

func TestCallEndsWithItsContext(t *testing.T) {
	path := filepath.Join(t.TempDir(), "control")
	ln, err := net.Listen("unix", path) // says nothing
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := Call(ctx, path, "x", nil, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}
