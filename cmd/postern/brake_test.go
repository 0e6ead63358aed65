package main

import (
	"bytes"
	"fmt"
	"log/slog"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"postern/bridge"
	"postern/configs"
	"postern/proxy/state"
)

// trip lets so many accounts of main have another UIDVALIDITY that the brake is
// on, and returns the brake.
func trip(t *testing.T, h *house) *bridge.Brake {
	t.Helper()
	b := h.pop3.shared["main"].brake
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
		r.site.metrics.Handler().ServeHTTP(w, httptest.NewRequest("GET", path, nil))
		return w.Body.String()
	}
	t.Run("before", func(t *testing.T) {
		r := inhabit(t, config)
		h := r.site.house.Load()
		b := trip(t, h)
		if got, want := r.metrics("postern_pop3_brake{"), `postern_pop3_brake{backend="main"} 1`; !strings.Contains(got, want) {
			t.Errorf("metrics have no %s:\n%s", want, got)
		}
		if !strings.Contains(get(r, "/"), "many mailboxes look different") {
			t.Error("the status page says nothing of it")
		}
		if got := get(r, "/readyz"); strings.TrimSpace(got) != "ready" {
			t.Errorf("/readyz says %q", got)
		}
		next, err := build(cfg, r.site)
		if err != nil {
			t.Fatal(err)
		}
		if next.pop3.shared["main"].brake != b || next.bridges[0].Brake == nil {
			t.Error("the next configuration has a brake of its own, or none")
		}
	})
	t.Run("after a restart", func(t *testing.T) {
		r := inhabit(t, config)
		b := r.site.house.Load().pop3.shared["main"].brake
		if err := b.Admit(t.Context(), "bob", bridge.Emptied); err == nil {
			t.Error("the brake is off")
		}
		if err := b.Admit(t.Context(), "bob", bridge.Unchanged); err != nil {
			t.Errorf("unchanged, and refused: %v", err)
		}
		if _, err := acceptChanges.one(t.Context(), cfg, acceptance{"other", time.Hour}); err == nil ||
			!strings.Contains(err.Error(), `there is no backend "other" that serves POP3; there are: main, old`) {
			t.Errorf("accepted for an unknown backend: %v", err)
		}
		if _, err := acceptChanges.one(t.Context(), cfg, acceptance{"main", time.Second}); err == nil {
			t.Error("accepted for a second")
		}
		until, err := acceptChanges.one(t.Context(), cfg, acceptance{"main", time.Hour})
		if err != nil || time.Until(until) < 59*time.Minute {
			t.Fatalf("accepted until %v: %v", until, err)
		}
		trust(t, b)
		if got, want := r.metrics("postern_pop3_brake{"), `postern_pop3_brake{backend="main"} 0`; !strings.Contains(got, want) {
			t.Errorf("metrics have no %s:\n%s", want, got)
		}
	})
	t.Run("while none runs", func(t *testing.T) {
		if _, err := acceptChanges.one(t.Context(), cfg, acceptance{"other", time.Hour}); err == nil || !strings.Contains(err.Error(), "there are: main, old") {
			t.Errorf("accepted for an unknown backend: %v", err)
		}
		if _, err := acceptChanges.one(t.Context(), cfg, acceptance{"old", time.Hour}); err != nil {
			t.Fatal(err)
		}
		m, err := openMemory(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		b, err := m.brake(t.Context(), "old")
		if err != nil {
			t.Fatal(err)
		}
		trust(t, b)
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
}

// trust wants b to let changes of many accounts through.
func trust(t *testing.T, b *bridge.Brake) {
	t.Helper()
	for i := range 50 {
		if err := b.Admit(t.Context(), fmt.Sprint("more", i), bridge.NewUIDValidity); err != nil {
			t.Fatalf("what is accepted is refused: %v", err)
		}
	}
}

func TestBackendsWithoutPOP3HaveNoBrake(t *testing.T) {
	cfg := &configs.Config{Backends: map[string]configs.Backend{"main": {IMAP: &configs.Server{}}}}
	if err := hasPOP3(cfg, "main"); err == nil || !strings.Contains(err.Error(), "no backend serves POP3") {
		t.Errorf("without a pop3 listener: %v", err)
	}
	cfg.Listeners = []configs.Listener{{Protocol: "pop3"}}
	if err := hasPOP3(cfg, "main"); err != nil {
		t.Error(err)
	}
}

// Without state.path the brake lives as long as the process.
func TestABrakeWithoutState(t *testing.T) {
	s := newSite(nil, slog.New(slog.DiscardHandler), nil)
	h := newHouse(&configs.Config{}, s)
	h.pop3.shared = map[string]maildrops{}
	h.maildropsOf("main")
	h.openBrakes(t.Context(), &memory{})
	b := trip(t, h)
	if _, err := b.Accept(t.Context(), time.Hour); err != nil {
		t.Error(err)
	}
	trust(t, b)
}

// Criterion: A brake that is on stays on when a backup from before is restored.
func TestARestoreKeepsTheBrake(t *testing.T) {
	ctx, record := t.Context(), filepath.Join(t.TempDir(), "state", recordFile)
	open := func() *state.Bolt {
		t.Helper()
		b, err := state.Open(record, state.Options{})
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	b := open()
	var backup bytes.Buffer
	if _, err := b.WriteTo(&backup); err != nil {
		t.Fatal(err)
	}
	if err := b.Bucket(brakeBucket).Put(ctx, "main", []byte(`{"version":1,"on":"2026-11-28T16:00:00Z"}`)); err != nil {
		t.Fatal(err)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	restore := func() string {
		t.Helper()
		if err := state.Restore(ctx, record, bytes.NewReader(backup.Bytes())); err != nil {
			t.Fatal(err)
		}
		var said strings.Builder
		if err := keepBrakes(ctx, record, &said); err != nil {
			t.Fatal(err)
		}
		return said.String()
	}
	if got, want := restore(), "the brake of main stays as it was before\n"; got != want {
		t.Errorf("it said %q, want %q", got, want)
	}
	b = open()
	if value, err := b.Bucket(brakeBucket).Get(ctx, "main"); err != nil || !strings.Contains(string(value), "16:00:00") {
		t.Errorf("the brake is %s, %v", value, err)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(record, bytes.Repeat([]byte("garbage"), 5000), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, want := restore(), "whether a brake was on cannot be read"; !strings.HasPrefix(got, want) {
		t.Errorf("over a record that cannot be read it said %q, want %q", got, want)
	}
}
