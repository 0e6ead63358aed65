package configs

import (
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"postern/proxy/proxytest"
)

// Criterion: promtool finds no fault in the alert rules, and they tell what they should: stuffing at one try for each account and network is noticed.
func TestAlertRules(t *testing.T) {
	proxytest.Need(t, "promtool")
	tests, err := filepath.Glob("prometheus/*_test.yml")
	if err != nil || len(tests) == 0 {
		t.Fatalf("tests of the rules: %v, %v", tests, err)
	}
	commands := [][]string{{"check", "rules", "alerts.yml"}}
	for _, path := range tests {
		commands = append(commands, []string{"test", "rules", filepath.Base(path)})
	}
	for _, args := range commands {
		cmd := exec.CommandContext(t.Context(), "promtool", args...)
		cmd.Dir = "prometheus"
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("promtool %s: %v\n%s", args, err, out)
		}
	}
}

// Criterion: Each alert is seen to fire and not to fire, and its runbook is a paragraph of docs/troubleshooting.md.
func TestAlertsHaveTestsAndRunbooks(t *testing.T) {
	rules, tests := readTestFile(t, "prometheus", "alerts.yml"), readTestFile(t, "prometheus", "alerts_test.yml")+readTestFile(t, "prometheus", "alerts_days_test.yml")
	anchors := anchorsOf(readTestFile(t, "../docs", "troubleshooting.md"))
	alerts := regexp.MustCompile(`(?m)^      - alert: (\w+)$`).FindAllStringSubmatch(rules, -1)
	if len(alerts) == 0 {
		t.Fatal("there are no alerts")
	}
	for _, a := range alerts {
		if !strings.Contains(tests, "alertname: "+a[1]+"\n        exp_alerts:\n") {
			t.Errorf("no test sees %s fire", a[1])
		}
		if !strings.Contains(tests, "alertname: "+a[1]+", exp_alerts: []}") {
			t.Errorf("no test sees %s not fire", a[1])
		}
	}
	runbooks := regexp.MustCompile(`(?m)^          runbook: .*docs/troubleshooting\.md#([\w-]+)"?$`).FindAllStringSubmatch(rules, -1)
	if len(runbooks) != len(alerts) {
		t.Errorf("%d alerts have %d runbooks", len(alerts), len(runbooks))
	}
	for _, r := range runbooks {
		if !anchors[r[1]] {
			t.Errorf("docs/troubleshooting.md has no paragraph %s", r[1])
		}
	}
}

// anchorsOf are the names that headings of a Markdown text have in links.
func anchorsOf(text string) map[string]bool {
	anchors := map[string]bool{}
	for _, h := range regexp.MustCompile(`(?m)^#+ (.*)$`).FindAllStringSubmatch(text, -1) {
		kept := regexp.MustCompile(`[^\w -]`).ReplaceAllString(strings.ToLower(h[1]), "")
		anchors[strings.ReplaceAll(kept, " ", "-")] = true
	}
	return anchors
}
