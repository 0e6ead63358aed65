package stored

import (
	"os"
	"path/filepath"
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
