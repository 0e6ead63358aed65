package main

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"postern/bridge"
	"postern/bridge/uidl"
	"postern/configs"
	"postern/proxy/state"
)

// Criterion: postern state check names each record that is damaged, of the Postern that runs and of its files, and fails.
func TestDamagedRecordsAreNamed(t *testing.T) {
	imap, _ := inMemory(t, "mail", "alice", "bob")
	r, do := operated(t, "listeners: [{protocol: pop3, address: \"127.0.0.1:0\"}]\nbackends: {main: {imap: {address: "+imap+", tls: none}}}\n")
	for _, user := range []string{"alice", "bob"} {
		_ = r.login(t, user).Close()
	}
	if out, ok := do("state", "check"); !ok || !strings.Contains(out, "records: 2\n") || strings.Contains(out, "damaged") {
		t.Errorf("of what is good it says\n%s", out)
	}
	if err := r.site.memory.record.Put(t.Context(), "bob\x00INBOX", []byte("damaged")); err != nil {
		t.Fatal(err)
	}
	out, ok := do("state", "check")
	if ok || !strings.Contains(out, "record.db: bob: record of unique-ids is damaged") || strings.Contains(out, "alice") {
		t.Errorf("of what is damaged it says\n%s", out)
	}
}

func TestABackupIsWholeOrNotThere(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "backup")
	lost := errors.New("the socket is gone")
	err := createFile(path, func(w io.Writer) error {
		_, _ = io.WriteString(w, "half of it")
		return lost
	})
	if !errors.Is(err, lost) {
		t.Errorf("got %v", err)
	}
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("left is %v", left)
	}
	if err := createFile(path, func(w io.Writer) error { _, err := io.WriteString(w, "all"); return err }); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 || info.Size() != 3 {
		t.Errorf("%v, %v", info, err)
	}
}

// What was backed up while others write is one moment: all of it can be read.
func TestABackupIsOfOneMoment(t *testing.T) {
	dir := t.TempDir()
	cfg := &configs.Config{State: configs.State{Path: filepath.Join(dir, "state")}}
	a := newAttic(t)
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			default:
				if err := bridge.Import(t.Context(), a.record, bridge.Recorded{Account: "alice", Record: uidl.New(7, uidl.Dovecot)}); err != nil {
					t.Error(err)
					return
				}
			}
		}
	}()
	err := createFile(filepath.Join(dir, "backup"), func(w io.Writer) error {
		return backupState.answer(t.Context(), a.memory, struct{}{}, func(p []byte) error { _, err := w.Write(p); return err })
	})
	close(stop)
	<-stopped
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(filepath.Join(dir, "backup"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if err := state.Restore(t.Context(), filepath.Join(cfg.State.Path, recordFile), f); err != nil {
		t.Fatal(err)
	}
	if err := checkState.ask(t.Context(), cfg, struct{}{}, func(c checked) error {
		if len(c.Damaged) > 0 {
			t.Errorf("%s: %v", c.File, c.Damaged)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
}
