package configs

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
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

// Criterion: What the documentation shows of paths that Postern writes to can be written with the package's unit.
func TestPathsInDocumentsAreWritableInTheUnit(t *testing.T) {
	// systemd.exec(5): below these folders a service has its own, and with
	// ProtectSystem=strict it can write nowhere else.
	parents := map[string]string{"StateDirectory": "/var/lib", "LogsDirectory": "/var/log", "RuntimeDirectory": "/run"}
	unit := readTestFile(t, "systemd", "postern.service")
	var writable []string
	for _, line := range regexp.MustCompile(`(?m)^(\w+)=(\S+)$`).FindAllStringSubmatch(unit, -1) {
		if parent, ok := parents[line[1]]; ok {
			writable = append(writable, filepath.Join(parent, line[2])+"/")
		}
	}
	if len(writable) != len(parents) || !strings.Contains(unit, "ProtectSystem=strict") {
		t.Fatalf("the unit has %v, and ProtectSystem=strict or not", writable)
	}
	documents, err := filepath.Glob("../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	shown := map[string]bool{}
	written := regexp.MustCompile(`\b(state|log\.fail2ban|fail2ban|control\.socket|socket|storage|path):? +\{?(?:path: *)?"?(/[^\s"},;` + "`" + `]+)`)
	for _, path := range append(documents, "../README.md", "postern.yaml") {
		text := readTestFile(t, filepath.Dir(path), filepath.Base(path))
		for _, m := range written.FindAllStringSubmatch(text, -1) {
			shown[m[1]] = true
			if !slices.ContainsFunc(writable, func(folder string) bool { return strings.HasPrefix(m[2]+"/", folder) }) {
				t.Errorf("%s: %s: the unit can write to %v only", path, m[0], writable)
			}
		}
	}
	for _, key := range []string{"path", "fail2ban", "log.fail2ban", "socket", "state"} {
		if !shown[key] {
			t.Errorf("no document shows %s: does this test still find what documents show?", key)
		}
	}
}
