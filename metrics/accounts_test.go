package metrics

import (
	"fmt"
	"net/http/httptest"
	"strings"
	"testing"
)

// Whatever the ledger has, the series are the same, and few.
func TestAccountsAreCountedByProtocolAndTLS(t *testing.T) {
	n := Accounts{Protocols: map[string]int{"pop3": 7, "gopher": 1}, TLS: map[[2]string]int{{"pop3", "1.0"}: 2},
		Habits: map[string]int{"leaves": 4, "nonsense": 1}, Stages: map[string]int{"bridged": 5, "nonsense": 1}, Plaintext: map[string]int{"pop3": 3}}
	for i := range 1000 {
		n.TLS[[2]string{"pop3", fmt.Sprint(i)}] = 1
	}
	m := New(Config{Accounts: func() Accounts { return n }})
	w := httptest.NewRecorder()
	m.Handler().ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	lines := 0
	for line := range strings.Lines(w.Body.String()) {
		if strings.HasPrefix(line, "postern_accounts_") || strings.HasPrefix(line, "postern_pop3_accounts") {
			lines++
		}
	}
	if lines != 4+4*5+4+6+6 {
		t.Errorf("there are %d series", lines)
	}
	for _, want := range []string{
		`postern_accounts_seen{protocol="pop3"} 7`, `postern_accounts_seen{protocol="imap"} 0`,
		`postern_accounts_seen_by_tls{protocol="pop3",version="1.0"} 2`, `postern_accounts_seen_by_tls{protocol="pop3",version="none"} 0`,
		`postern_accounts_seen_by_habit{habit="leaves"} 4`, `postern_accounts_seen_by_habit{habit="unknown"} 0`,
		`postern_pop3_accounts{stage="bridged"} 5`, `postern_pop3_accounts{stage="gone"} 0`,
		`postern_accounts_refused_plaintext{protocol="pop3"} 3`, `postern_accounts_refused_plaintext{protocol="submission"} 0`,
	} {
		if !strings.Contains(w.Body.String(), want+"\n") {
			t.Errorf("there is no %s", want)
		}
	}
}
