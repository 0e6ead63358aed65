package service

import (
	"fmt"
	"log/slog"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"postern/bridge"
	"postern/bridge/uidl"
	"postern/cmd/postern/internal/stored"
	"postern/configs"
)

// Criterion: a subcommand gets the same answer from the Postern that runs and from its files.
func TestAnswersOfTheRunningAndOfTheFilesAreTheSame(t *testing.T) {
	cfg := &configs.Config{State: configs.State{Path: filepath.Join(t.TempDir(), "state")}}
	s := New(cfg, nil, slog.New(slog.DiscardHandler), nil)
	m := s.Storage
	if err := m.Open(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		r := bridge.AccountRecord{Account: fmt.Sprintf("user%d@example.org", i), Record: uidl.New(7, uidl.Dovecot)}
		if err := bridge.Import(t.Context(), m.Record, r); err != nil {
			t.Fatal(err)
		}
	}
	const damaged = "user1@example.org\x00INBOX"
	if err := m.Record.Put(t.Context(), damaged, []byte("damaged")); err != nil {
		t.Fatal(err)
	}
	answers := func() (accounts []string, err error) {
		err = stored.ExportUIDLs.Ask(t.Context(), cfg, stored.Selection{}, func(r bridge.AccountRecord) error {
			accounts = append(accounts, r.Account)
			return nil
		})
		return accounts, err
	}
	compare := func(who string) {
		t.Helper()
		got, err := answers()
		if want := []string{"user0@example.org", "user2@example.org"}; !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %q, want %q", who, got, want)
		}
		// What cannot be read is told after all that can.
		if err == nil || !strings.Contains(err.Error(), "user1@example.org: record of unique-ids is damaged") {
			t.Errorf("%s: %v", who, err)
		}
	}

	cfg.Control.Socket = filepath.Join(cfg.State.Path, "control.sock")
	h := newGeneration(cfg, s)
	h.gid = -1
	if err := s.openControl(h); err != nil {
		t.Fatal(err)
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		s.serveControl(t.Context(), s.controlListener)
	}()
	compare("running")
	_ = s.controlListener.Close()
	<-served

	if _, err := answers(); err == nil || !strings.Contains(err.Error(), "state is in use by process ") {
		t.Errorf("with the files in other hands: %v", err)
	}
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	compare("its files")
	if n, err := stored.ForgetUIDLs.One(t.Context(), cfg, stored.Selection{Account: "user1@example.org"}); n != 1 || err != nil {
		t.Errorf("forget of a damaged record: %d, %v", n, err)
	}
	if _, err := answers(); err != nil {
		t.Error(err)
	}
}
