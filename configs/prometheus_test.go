package configs

import (
	"os/exec"
	"testing"

	"postern/proxy/proxytest"
)

// Criterion: promtool finds no fault in the alert rules, and they tell what they should: stuffing at one try for each account and network is noticed.
func TestAlertRules(t *testing.T) {
	proxytest.Need(t, "promtool")
	for _, args := range [][]string{{"check", "rules", "alerts.yml"}, {"test", "rules", "alerts_test.yml"}} {
		cmd := exec.CommandContext(t.Context(), "promtool", args...)
		cmd.Dir = "prometheus"
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("promtool %s: %v\n%s", args, err, out)
		}
	}
}
