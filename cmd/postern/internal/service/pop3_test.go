package service

import (
	"fmt"
	"log/slog"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"postern/bridge"
	"postern/cmd/postern/internal/stored"
	"postern/configs"
)

// tripBrake lets so many accounts of main have another UIDVALIDITY that the brake is
// on, and returns the brake.
func tripBrake(t *testing.T, g *generation) *bridge.Brake {
	t.Helper()
	b := g.pop3.shared["main"].brake
	for i := range 20 {
		_ = b.Admit(t.Context(), fmt.Sprint("user", i), bridge.NewUIDValidity)
	}
	if b.Status().On.IsZero() {
		t.Fatal("the brake is off")
	}
	return b
}

// Criterion: A brake stays on across a reload and a restart, is shown by the metrics and on the status page while readiness stays as it is, and ends by postern uidl accept, whether Postern runs or not.
func TestTheBrakeOutlivesAConfiguration(t *testing.T) {
	imap, _ := inMemory(t, "m", "alice")
	state := filepath.Join(t.TempDir(), "state")
	config := fmt.Sprintf(`
hostname: mail.example.org
listeners: [{protocol: pop3, address: "127.0.0.1:0"}]
backends: {main: {imap: {address: %q, tls: none}}, old: {imap: {address: %q, tls: none}}}
routes: [{backend: main}]
tls: {certificates: [{cert: c, key: k}]}
state: {path: %q}
`, imap, imap, state)
	cfg, err := configs.Parse("test.yaml", []byte(config))
	if err != nil {
		t.Fatal(err)
	}
	get := func(r *running, path string) string {
		w := httptest.NewRecorder()
		r.service.metrics.Handler().ServeHTTP(w, httptest.NewRequest("GET", path, nil))
		return w.Body.String()
	}
	t.Run("before", func(t *testing.T) {
		r := startService(t, config)
		h := r.service.current.Load()
		b := tripBrake(t, h)
		if got, want := r.metrics("postern_pop3_brake{"), `postern_pop3_brake{backend="main"} 1`; !strings.Contains(got, want) {
			t.Errorf("metrics have no %s:\n%s", want, got)
		}
		if !strings.Contains(get(r, "/"), "many mailboxes look different") {
			t.Error("the status page says nothing of it")
		}
		if got := get(r, "/readyz"); strings.TrimSpace(got) != "ready" {
			t.Errorf("/readyz says %q", got)
		}
		next, err := build(cfg, r.service)
		if err != nil {
			t.Fatal(err)
		}
		if next.pop3.shared["main"].brake != b || next.bridges[0].Brake == nil {
			t.Error("the next configuration has a brake of its own, or none")
		}
	})
	t.Run("after a restart", func(t *testing.T) {
		r := startService(t, config)
		b := r.service.current.Load().pop3.shared["main"].brake
		if err := b.Admit(t.Context(), "bob", bridge.Emptied); err == nil {
			t.Error("the brake is off")
		}
		if err := b.Admit(t.Context(), "bob", bridge.Unchanged); err != nil {
			t.Errorf("unchanged, and refused: %v", err)
		}
		if _, err := stored.AcceptChanges.One(t.Context(), cfg, stored.Acceptance{Backend: "other", For: time.Hour}); err == nil ||
			!strings.Contains(err.Error(), `there is no backend "other" that serves POP3; there are: main, old`) {
			t.Errorf("accepted for an unknown backend: %v", err)
		}
		if _, err := stored.AcceptChanges.One(t.Context(), cfg, stored.Acceptance{Backend: "main", For: time.Second}); err == nil {
			t.Error("accepted for a second")
		}
		until, err := stored.AcceptChanges.One(t.Context(), cfg, stored.Acceptance{Backend: "main", For: time.Hour})
		if err != nil || time.Until(until) < 59*time.Minute {
			t.Fatalf("accepted until %v: %v", until, err)
		}
		wantAccepted(t, b)
		if got, want := r.metrics("postern_pop3_brake{"), `postern_pop3_brake{backend="main"} 0`; !strings.Contains(got, want) {
			t.Errorf("metrics have no %s:\n%s", want, got)
		}
	})
	t.Run("while none runs", func(t *testing.T) {
		if _, err := stored.AcceptChanges.One(t.Context(), cfg, stored.Acceptance{Backend: "other", For: time.Hour}); err == nil || !strings.Contains(err.Error(), "there are: main, old") {
			t.Errorf("accepted for an unknown backend: %v", err)
		}
		if _, err := stored.AcceptChanges.One(t.Context(), cfg, stored.Acceptance{Backend: "old", For: time.Hour}); err != nil {
			t.Fatal(err)
		}
		m, err := stored.Open(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		b, err := m.OpenBrake(t.Context(), "old")
		if err != nil {
			t.Fatal(err)
		}
		wantAccepted(t, b)
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
}

// wantAccepted wants b to let changes of many accounts through.
func wantAccepted(t *testing.T, b *bridge.Brake) {
	t.Helper()
	for i := range 50 {
		if err := b.Admit(t.Context(), fmt.Sprint("more", i), bridge.NewUIDValidity); err != nil {
			t.Fatalf("what is accepted is refused: %v", err)
		}
	}
}

// Without state.path the brake lives as long as the process.
func TestABrakeWithoutState(t *testing.T) {
	s := New(&configs.Config{}, nil, slog.New(slog.DiscardHandler), nil)
	h := newGeneration(&configs.Config{}, s)
	h.pop3.shared = map[string]sharedPOP3{}
	h.maildropsOf("main")
	h.openBrakes(t.Context(), &stored.Storage{})
	b := tripBrake(t, h)
	if _, err := b.Accept(t.Context(), time.Hour); err != nil {
		t.Error(err)
	}
	wantAccepted(t, b)
}

// Criterion: A reload keeps the limits of the comparisons of shadow, with the sessions that count for them, and takes new ones as soon as they are configured.
func TestTheLimitsOfShadowOutliveAReload(t *testing.T) {
	config := fmt.Sprintf(`
listeners: [{protocol: pop3, address: "127.0.0.1:0"}]
backends: {main: {imap: {address: "127.0.0.1:1", tls: none}, pop3: {address: "127.0.0.1:2", tls: none}}}
routes: [{backend: main, pop3_mode: shadow}]
tls: {certificates: [{cert: c, key: k}]}
state: {path: %q}
`, filepath.Join(t.TempDir(), "state"))
	r := startService(t, config)
	before := r.service.current.Load().pop3.shared["main"].shadow
	if before.Concurrency != 20 || before.PerSecond != 5 {
		t.Errorf("%d sessions, %v a second", before.Concurrency, before.PerSecond)
	}
	for more, same := range map[string]bool{"pop3: {login_delay: 1s}\n": true, "pop3: {shadow: {concurrency: 3}}\n": false} {
		cfg, err := configs.Parse("test.yaml", []byte(config+more))
		if err != nil {
			t.Fatal(err)
		}
		next, err := build(cfg, r.service)
		if err != nil {
			t.Fatal(err)
		}
		if after := next.pop3.shared["main"].shadow; (after == before) != same || !same && after.Concurrency != 3 {
			t.Errorf("after %s there are %d sessions, the same limits: %v", more, after.Concurrency, after == before)
		}
	}
}
