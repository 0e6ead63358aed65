package service

import (
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"postern/configs"
	"postern/proxy/certs"
	"postern/proxy/proxytest"
)

// Criterion: /readyz says 503 when no backend accepts the logins of any protocol that a listener serves, because all are down, drained or not probed yet; while some accept, it says 200 and names the protocols that fail.
func TestReadinessFollowsTheBackendsThatAcceptLogins(t *testing.T) {
	imap, submission := inMemory(t, "mail", "alice")
	other, _ := inMemory(t, "mail", "alice")
	away := proxytest.FreeAddress(t)
	const all = `[{protocol: imap, address: ":0"}, {protocol: pop3, address: ":0"}, {protocol: submission, address: ":0"}]`
	onlyIMAP := `[{protocol: imap, address: ":0"}, {protocol: submission, address: ":0", tls: refuse}]`
	onlySubmission := `[{protocol: submission, address: ":0"}]`
	both := func(imap, submission string) string {
		return fmt.Sprintf("main: {imap: {addresses: [%s], tls: none}, submission: {address: %q, tls: none}}", imap, submission)
	}
	for name, c := range map[string]struct {
		listeners, backends, routes string
		unprobed                    bool
		drain                       string // servers: backend, address; address
		ready                       string // what /readyz says; with 503: not beginning with "ready"
		imap                        string // what /readyz/imap says
	}{
		"all up": {
			listeners: all, backends: both(imap, submission), ready: "ready", imap: "ready",
		},
		"not probed yet": {
			listeners: all, backends: both(imap, submission), unprobed: true,
			ready: "no backend accepts logins: main (imap) is not probed yet, main (submission) is not probed yet",
			imap:  "no backend accepts imap logins: main (imap) is not probed yet",
		},
		"all down": {
			listeners: all, backends: both(away, away),
			ready: "no backend accepts logins: main (imap) is down, main (submission) is down",
			imap:  "no backend accepts imap logins: main (imap) is down",
		},
		"all drained": {
			listeners: all, backends: both(imap, submission), drain: "imap submission",
			ready: "no backend accepts logins: main (imap) is drained, main (submission) is drained",
			imap:  "no backend accepts imap logins: main (imap) is drained",
		},
		"one down, the other drained": {
			listeners: all, backends: both(away, submission), drain: "submission",
			ready: "no backend accepts logins: main (imap) is down, main (submission) is drained",
			imap:  "no backend accepts imap logins: main (imap) is down",
		},
		"a server down, a server drained": {
			listeners: onlyIMAP, backends: both(imap+", "+away, submission), drain: "imap",
			ready: "no backend accepts logins: main (imap) is down",
			imap:  "no backend accepts imap logins: main (imap) is down",
		},
		"one protocol down": {
			listeners: all, backends: both(imap, away),
			ready: "ready, degraded: backend main accepts no submission logins: it is down", imap: "ready",
		},
		"two protocols drained": {
			listeners: all, backends: both(imap, submission), drain: "imap",
			ready: "ready, degraded: backend main accepts no imap and pop3 logins: it is drained",
			imap:  "no backend accepts imap logins: main (imap) is drained",
		},
		"one of two servers down": {
			listeners: all, backends: both(imap+", "+away, submission),
			ready: "ready, degraded: backend main (imap and pop3): of 2 servers 1 down", imap: "ready",
		},
		"one of two servers drained": {
			listeners: all, backends: both(imap+", "+other, submission), drain: "imap",
			ready: "ready, degraded: backend main (imap and pop3): of 2 servers 1 drained", imap: "ready",
		},
		"what no listener serves does not count": {
			listeners: onlyIMAP, backends: both(imap, away), ready: "ready", imap: "ready",
		},
		"what no listener serves is no help": {
			listeners: onlySubmission, backends: both(imap, away),
			ready: "no backend accepts logins: main (submission) is down", imap: "no listener serves this protocol",
		},
		"what no route leads to does not count": {
			listeners: onlyIMAP, backends: both(imap, submission) + fmt.Sprintf(", moved: {imap: {address: %q, tls: none}}", away),
			routes: "[{backend: main}]", ready: "ready", imap: "ready",
		},
		"what no route leads to is no help": {
			listeners: onlyIMAP, backends: both(away, submission) + fmt.Sprintf(", moved: {imap: {address: %q, tls: none}}", imap),
			routes: "[{backend: main}]",
			ready:  "no backend accepts logins: main (imap) is down", imap: "no backend accepts imap logins: main (imap) is down",
		},
		"one backend of two down": {
			listeners: onlyIMAP, backends: both(imap, submission) + fmt.Sprintf(", moved: {imap: {address: %q, tls: none}}", away),
			routes: "[{domain: example.org, backend: moved}, {backend: main}]",
			ready:  "ready, degraded: backend moved accepts no imap logins: it is down", imap: "ready",
		},
	} {
		t.Run(name, func(t *testing.T) {
			routes := ""
			if c.routes != "" {
				routes = "routes: " + c.routes + "\n"
			}
			cfg, err := configs.Parse("test.yaml", fmt.Appendf(nil, "%slisteners: %s\nbackends: {%s}\n%s", baseConfig, c.listeners, c.backends, routes))
			if err != nil {
				t.Fatal(err)
			}
			cfg.Limits.MaxConnections = 1 // few descriptors are needed
			cert, _ := proxytest.Cert(t, "localhost")
			store, err := certs.Static(cert)
			if err != nil {
				t.Fatal(err)
			}
			s := New(cfg, store, slog.New(slog.DiscardHandler), nil)
			g, err := build(cfg, s)
			if err != nil {
				t.Fatal(err)
			}
			s.current.Store(g)
			addresses := map[string]string{"imap": imap, "submission": submission}
			for key, pool := range g.pools {
				if !c.unprobed {
					pool.Probe(t.Context())
				}
				if strings.Contains(c.drain, key.protocol) && key.name == "main" {
					if err := pool.Drain(addresses[key.protocol], true); err != nil {
						t.Fatal(err)
					}
				}
			}
			want := map[string]string{"/readyz": c.ready, "/readyz/imap": c.imap}
			for path, want := range want {
				w := httptest.NewRecorder()
				s.metrics.HealthHandler().ServeHTTP(w, httptest.NewRequest("GET", path, nil))
				status := http.StatusServiceUnavailable
				switch {
				case strings.HasPrefix(want, "ready"):
					status = http.StatusOK
				case strings.HasPrefix(want, "no listener"):
					status = http.StatusNotFound
				}
				if got := strings.TrimSpace(w.Body.String()); got != want || w.Code != status {
					t.Errorf("%s: %d %q, want %d %q", path, w.Code, got, status, want)
				}
			}
		})
	}
}
