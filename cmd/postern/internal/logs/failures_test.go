package logs

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestTheFileOfFailuresMayBeRotated(t *testing.T) {
	path := filepath.Join(t.TempDir(), "failed-logins.log")
	l, err := OpenFailures(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.file.Close() }()
	fmt.Fprintln(l, "one")
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	l.checked = time.Now().Add(-time.Second)
	fmt.Fprintln(l, "two")
	fmt.Fprintln(l, "three")
	for name, want := range map[string]string{path + ".1": "one\n", path: "two\nthree\n"} {
		if got, err := os.ReadFile(name); err != nil || string(got) != want {
			t.Errorf("%s has %q, %v, want %q", name, got, err, want)
		}
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm()&0o007 != 0 {
		t.Errorf("others can read it: %v, %v", info.Mode(), err)
	}
	if _, err := OpenFailures(t.TempDir()); err == nil {
		t.Error("a folder is opened")
	}
}
