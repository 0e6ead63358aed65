package stored

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
)

// Criterion: a command of root that goes through a directory of another user does what that user could do, wherever his links lead.
func TestRootBecomesTheFirstOwnerOnTheWay(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to have a directory of another user")
	}
	const nobody = 65534
	dir := t.TempDir()
	for _, path := range []string{"root/deep", "service/own", "service/roots"} {
		if err := os.MkdirAll(filepath.Join(dir, path), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for link, target := range map[string]string{
		"link": "root/deep", "to-service": "service", "service/away": filepath.Join(dir, "root"), "service/around": "../root/deep",
		"through": "service/away/deep", "loop": "loop",
	} {
		if err := os.Symlink(target, filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	for _, path := range []string{"service", "service/own"} { // not the links: a hard link of root's is possible, too
		if err := os.Chown(filepath.Join(dir, path), nobody, nobody); err != nil {
			t.Fatal(err)
		}
	}
	for path, want := range map[string]int{
		"root": 0, "root/deep": 0, "root/missing": 0, "link": 0, "link/../deep": 0,
		"service": nobody, "service/own": nobody, "service/roots": nobody, "service/missing": nobody, "service/missing/deep": nobody,
		"service/away": nobody, "service/away/deep": nobody, "service/around": nobody, "to-service/away": nobody, "through": nobody,
	} {
		ran := -1
		if err := AsOwner(filepath.Join(dir, path), func() error { ran = os.Geteuid(); return nil }); err != nil || ran != want {
			t.Errorf("%s: ran as %d, want %d: %v", path, ran, want, err)
		}
		if os.Geteuid() != 0 {
			t.Fatalf("%s: not root again", path)
		}
	}
	if err := AsOwner(filepath.Join(dir, "loop"), func() error { return nil }); err == nil {
		t.Error("a loop of links leads somewhere")
	}
}

// Criterion: commands that visit many accounts at once, as root while no Postern runs, are the owner of the state all the time that they use it.
func TestRootBecomesTheOwnerInOneGoroutineAtATime(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to have a directory of another user")
	}
	const nobody = 65534
	dir, private := t.TempDir(), filepath.Join(t.TempDir(), "private")
	if err := errors.Join(os.Chown(dir, nobody, nobody), os.WriteFile(private, []byte("root's"), 0o600)); err != nil {
		t.Fatal(err)
	}
	var visits sync.WaitGroup
	for range 8 {
		visits.Go(func() {
			for range 20 {
				err := AsOwner(dir, func() error {
					for range 20 {
						if os.Geteuid() != nobody {
							return errors.New("root again before the end")
						}
						runtime.Gosched()
					}
					return nil
				})
				if err != nil {
					t.Error(err)
					return
				}
				if err := AsSelf(func() error { _, err := os.ReadFile(private); return err }); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	visits.Wait()
}
