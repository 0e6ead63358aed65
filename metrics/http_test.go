package metrics

import (
	"net/http"
	"net/http/httptest"
	"net/netip"
	"testing"
)

// Criterion: only networks of metrics.networks and this machine may ask for metrics; /healthz and /readyz may have an address of their own, for everybody.
func TestWhoMayAsk(t *testing.T) {
	m := New(Config{})
	const stranger, monitor = "203.0.113.9", "::ffff:10.0.0.7"
	allows := func(from string) bool { return m.Allows(netip.MustParseAddr(from)) }
	if !allows(stranger) {
		t.Error("without networks a stranger may not ask")
	}
	m.Allow([]netip.Prefix{netip.MustParsePrefix("10.0.0.0/24")})
	for from, want := range map[string]bool{
		stranger: false, monitor: true, "127.0.0.1": true, "::1": true, "::ffff:127.0.0.1": true, "fe80::1%eth0": false,
	} {
		if got := allows(from); got != want {
			t.Errorf("%s may ask: %v, want %v", from, got, want)
		}
	}
	if m.Allows(netip.Addr{}) {
		t.Error("one without an address may ask")
	}
	m.Allow(nil)
	if !allows(stranger) {
		t.Error("after a reload without networks a stranger may not ask")
	}
	for path, want := range map[string]int{"/metrics": 404, "/": 404, "/healthz": 200, "/readyz": 200} {
		w := httptest.NewRecorder()
		m.HealthHandler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
		if w.Code != want {
			t.Errorf("at the address of its own %s gives %d, want %d", path, w.Code, want)
		}
	}
}
