package listen

import (
	"errors"
	"os"
	"syscall"
	"testing"
)

// Criterion: Clients leave a reserve of file descriptors to the metrics, the control socket and files.
func TestCheckDescriptorsKeepsAReserve(t *testing.T) {
	var before syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &before); err != nil {
		t.Fatal(err)
	}
	lower := before
	lower.Cur = 100
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &lower); err != nil {
		t.Fatal(err)
	}
	var open []*os.File
	defer func() {
		for _, f := range open {
			_ = f.Close()
		}
		if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &before); err != nil {
			t.Error(err)
		}
	}()
	if limit, reserve := Descriptors(); limit != 100 || reserve != 25 {
		t.Errorf("limit %d, reserve %d, want 100 and 25", limit, reserve)
	}
	var full error
	for full = CheckDescriptors(); full == nil && len(open) < 100; full = CheckDescriptors() {
		f, err := os.Open(os.DevNull)
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, f)
	}
	if !errors.Is(full, ErrNoDescriptors) {
		t.Fatalf("got %v, want ErrNoDescriptors", full)
	}
	kept := 0
	for {
		f, err := os.Open(os.DevNull)
		if errors.Is(err, syscall.EMFILE) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, f)
		kept++
	}
	if kept == 0 || kept > 25 { // of high numbers some may be in use
		t.Errorf("%d descriptors were left, want 25", kept)
	}
	if err := CheckDescriptors(); !errors.Is(err, syscall.EMFILE) {
		t.Errorf("with none left: %v", err)
	}
	for range kept + 1 {
		_ = open[len(open)-1].Close()
		open = open[:len(open)-1]
	}
	if err := CheckDescriptors(); err != nil {
		t.Errorf("with one more free: %v", err)
	}
}
