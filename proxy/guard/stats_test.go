package guard

import (
	"fmt"
	"testing"
	"time"
)

// Criterion: What no limit catches, one try each at many accounts from many networks, shows in the gauges: failures and successes, different accounts and networks that fail, one password tried for many.
func TestStats(t *testing.T) {
	t.Parallel()
	s, at := newServer(t, Config{})
	for i := range 3000 {
		s.guesses(1, fmt.Sprintf("198.%d.%d.1", 18+i/250, i%250), fmt.Sprint("user", i))
		if i%3 == 0 {
			_ = s.login(fmt.Sprintf("203.0.113.%d", i%200), fmt.Sprint("good", i%20), "right")
		}
	}
	st := s.Stats()
	if st.Failed != 3000 || st.Succeeded != 1000 || !near(st.FailingAccounts, 3000) || !near(st.FailingNetworks, 3000) || st.SprayedAccounts > 2 {
		t.Errorf("stuffing: %+v", st)
	}
	at.advance(time.Hour)
	for i := range 100 {
		_ = s.login(fmt.Sprintf("198.%d.0.9", i), fmt.Sprint("victim", i), "summer2026")
	}
	st = s.Stats()
	if st.Failed != 100 || st.Succeeded != 0 || st.SprayedAccounts < 80 || st.SprayedAccounts > 120 {
		t.Errorf("a spray, an hour later: %+v", st)
	}
	at.advance(3 * time.Hour)
	if st := s.Stats(); st.Failed != 0 || st.FailingAccounts != 0 || st.SprayedAccounts != 0 {
		t.Errorf("three hours later: %+v", st)
	}
}

// near reports whether got is within a tenth of want.
func near(got, want int) bool { return got >= want-want/10 && got <= want+want/10 }
