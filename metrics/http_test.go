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
	ask := func(h http.Handler, path, from string) int {
		r := httptest.NewRequest("GET", path, nil)
		r.RemoteAddr = from
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		return w.Code
	}
	const stranger, monitor = "203.0.113.9:4711", "[::ffff:10.0.0.7]:4711"
	if got := ask(m.Handler(), "/metrics", stranger); got != http.StatusOK {
		t.Errorf("without networks a stranger gets %d", got)
	}
	h := m.Handler()
	m.Allow([]netip.Prefix{netip.MustParsePrefix("10.0.0.0/24")})
	for from, want := range map[string]int{stranger: 403, monitor: 200, "127.0.0.1:1": 200, "[::1]:1": 200, "[fe80::1%eth0]:1": 403, "@": 403} {
		for _, path := range []string{"/metrics", "/healthz", "/readyz"} {
			if got := ask(h, path, from); got != want {
				t.Errorf("%s from %s: %d, want %d", path, from, got, want)
			}
		}
	}
	for path, want := range map[string]int{"/metrics": 404, "/": 404, "/healthz": 200, "/readyz": 200} {
		if got := ask(m.HealthHandler(), path, stranger); got != want {
			t.Errorf("at the address of its own %s gives a stranger %d, want %d", path, got, want)
		}
	}
	m.Allow(nil)
	if got := ask(h, "/metrics", stranger); got != http.StatusOK {
		t.Errorf("after a reload without networks a stranger gets %d", got)
	}
}
