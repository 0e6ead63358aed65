package password

import (
	"testing"

	"postern/proxy"
)

// Criterion: Where the case of account names counts, it counts in the passwd file, too: another spelling of an account is no second budget of guesses.
func TestCaseCountsInThePasswdFileIfItCountsForTheGuard(t *testing.T) {
	f, _ := openFile(t, "Alice@example.org:"+quick+"\n")
	for account, want := range map[string][2]proxy.Reason{
		"Alice@example.org": {0, 0}, "alice@example.org": {0, proxy.Wrong}, "ALICE@example.org": {0, proxy.Wrong}, "al\u0131ce@example.org": {proxy.Wrong, proxy.Wrong},
	} {
		for i, counts := range []bool{false, true} {
			f.CaseCounts = counts
			expect(t, f, login(account, "secret of alice"), want[i], false)
			if f.Known(account) != (want[i] == 0) {
				t.Errorf("Known(%s) = %v", account, want[i] != 0)
			}
		}
	}
}
