package service

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"testing"

	"postern/configs"
	"postern/proxy/proxytest"
)

// Criterion: a configuration that cannot be applied, because an address is in use or because Postern is stopping, changes nothing of what is served.
func TestApplyChangesNothingAfterAnError(t *testing.T) {
	imap, _ := inMemory(t, "m", "alice")
	config := func(listeners, privacy, level string) string {
		return baseConfig + fmt.Sprintf(`
listeners: [%s]
backends: {main: {imap: {address: %q, tls: none}}}
privacy: {users: %s}
log: {level: %s}
`, listeners, imap, privacy, level)
	}
	const first = `{protocol: imap, address: "127.0.0.1:0"}`
	r := startService(t, config(first, "full", "info"))
	s, before := r.service, r.service.current.Load()
	held, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = held.Close() }()
	free := proxytest.FreeAddress(t)

	listener := s.listeners["imap 127.0.0.1:0"]
	redaction, metrics := s.redaction.Load(), r.metrics("")
	apply := func(listeners string) error {
		t.Helper()
		cfg, err := configs.Parse("test.yaml", []byte(config(listeners, "pseudonym", "debug")))
		if err != nil {
			t.Fatal(err)
		}
		next, err := build(cfg, s)
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		s.changes <- changeRequest{func(ctx context.Context) error { return s.apply(ctx, next) }, done}
		return <-done
	}
	unchanged := func(when string) {
		t.Helper()
		if s.current.Load() != before || s.redaction.Load() != redaction || s.level.Level() != slog.LevelInfo {
			t.Errorf("%s: the generation, the redaction or the log level is another", when)
		}
		if len(s.listeners) != 1 || s.listeners["imap 127.0.0.1:0"] != listener {
			t.Errorf("%s: the listeners are %v", when, s.listeners)
		}
		if got := r.metrics(""); strings.Contains(got, `"new"`) || strings.Contains(metrics, `"new"`) {
			t.Errorf("%s: the metrics have a listener that is not served", when)
		}
		if conn, err := net.Dial("tcp", free); err == nil {
			_ = conn.Close()
			t.Errorf("%s: %s is open", when, free)
		}
	}
	both := first + fmt.Sprintf(`, {protocol: pop3, name: new, address: %q}, {protocol: imap, name: taken, address: %q}`, free, held.Addr().String())
	if _, ok := errors.AsType[configs.Errors](apply(both)); !ok {
		t.Error("an address in use is no mistake")
	}
	unchanged("after an address in use")
	if r.dial(t, "imap") == nil {
		t.Error("nobody accepts")
	}

	s.draining.Store(true)
	if err := apply(first + fmt.Sprintf(`, {protocol: pop3, name: new, address: %q}`, free)); !errors.Is(err, errStopping) {
		t.Errorf("while it stops: %v, want %v", err, errStopping)
	}
	unchanged("while it stops")
	s.draining.Store(false)
	if err := apply(first + fmt.Sprintf(`, {protocol: pop3, name: new, address: %q}`, free)); err != nil {
		t.Error(err)
	}
	if s.current.Load() == before || s.level.Level() != slog.LevelDebug {
		t.Error("a configuration that can be applied is not served")
	}
}
