package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// Criterion: each command has a man page with its exit status and its files, and the configuration has one in section 5.
func TestManPages(t *testing.T) {
	dir := t.TempDir()
	if status := command(t.Context(), []string{"man", dir}, t.Output(), t.Output()); status != 0 {
		t.Fatalf("exit status %d", status)
	}
	for _, name := range []string{"postern.1", "postern-reload.1", "postern-uidl-detect.1", "postern.yaml.5"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			t.Error(err)
		}
	}
	pages, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	groff, _ := exec.LookPath("groff")
	for _, p := range pages {
		path := filepath.Join(dir, p.Name())
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		page := string(text)
		if strings.Contains(page, "[=") || !strings.Contains(page, ".SH SEE ALSO\n") {
			t.Errorf("%s: a flag with [=false], or no SEE ALSO", p.Name())
		}
		if strings.HasSuffix(p.Name(), ".1") && !strings.Contains(page, ".SH EXIT STATUS\n") {
			t.Errorf("%s has no EXIT STATUS", p.Name())
		}
		if strings.Contains(page, `\fB--config\fP`) && !strings.Contains(page, ".SH FILES\n") {
			t.Errorf("%s has no FILES", p.Name())
		}
		if groff == "" {
			continue
		}
		if out, err := exec.Command(groff, "-man", "-ww", "-Tutf8", "-z", path).CombinedOutput(); err != nil || len(out) > 0 {
			t.Errorf("%s: %v\n%s", p.Name(), err, out)
		}
	}
}
