package configs

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// Criterion: What the documentation shows of configurations has no key that there is not, and no value of another kind.
func TestConfigurationsInDocumentsAreReadable(t *testing.T) {
	documents, err := filepath.Glob("../docs/*.md")
	if err != nil || len(documents) == 0 {
		t.Fatalf("documents: %v, %v", documents, err)
	}
	n := 0
	for _, path := range append(documents, "../README.md") {
		text := readTestFile(t, filepath.Dir(path), filepath.Base(path))
		for _, block := range regexp.MustCompile("(?ms)^```yaml\n(.*?)^```$").FindAllStringSubmatchIndex(text, -1) {
			n++
			cfg := defaults()
			cfg.positions = map[string]position{}
			cfg.file = filepath.Base(path)
			m := &mistakes{cfg: &cfg, unreadable: map[string]bool{}}
			line := strings.Count(text[:block[2]], "\n") // so that mistakes have the document's lines
			if root := m.document([]byte(strings.Repeat("\n", line) + text[block[2]:block[3]])); root != nil {
				m.decode(root)
			}
			if err := m.err(); err != nil {
				t.Error(err)
			}
		}
	}
	if n == 0 {
		t.Error("no document shows a configuration")
	}
}

// Criterion: No link of the documentation leads nowhere.
func TestLinksOfDocumentsLeadSomewhere(t *testing.T) {
	documents, err := filepath.Glob("../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range append(documents, "../README.md") {
		text := readTestFile(t, filepath.Dir(path), filepath.Base(path))
		for _, link := range regexp.MustCompile(`\]\(([^)\s]+)\)`).FindAllStringSubmatch(text, -1) {
			to, anchor, _ := strings.Cut(link[1], "#")
			if strings.Contains(to, "://") {
				continue
			}
			target := path
			if to != "" {
				target = filepath.Join(filepath.Dir(path), to)
			}
			if _, err := os.Stat(target); err != nil {
				t.Errorf("%s: %v", path, err)
			} else if anchor != "" && !anchorsOf(readTestFile(t, filepath.Dir(target), filepath.Base(target)))[anchor] {
				t.Errorf("%s: %s has no heading %s", path, target, anchor)
			}
		}
	}
}
