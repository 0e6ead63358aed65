package stored

import (
	"bytes"
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

func TestABackupIsWholeOrNotThere(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "backup")
	lost := errors.New("the socket is gone")
	err := CreateFile(path, func(w io.Writer) error {
		_, _ = io.WriteString(w, "half of it")
		return lost
	})
	if !errors.Is(err, lost) {
		t.Errorf("got %v", err)
	}
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("left is %v", left)
	}
	if err := CreateFile(path, func(w io.Writer) error { _, err := io.WriteString(w, "all"); return err }); err != nil {
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
	a := newAccountFixture(t)
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			default:
				if err := bridge.Import(t.Context(), a.Record, bridge.AccountRecord{Account: "alice", Record: uidl.New(7, uidl.Dovecot)}); err != nil {
					t.Error(err)
					return
				}
			}
		}
	}()
	err := CreateFile(filepath.Join(dir, "backup"), func(w io.Writer) error {
		return BackupState.Answer(t.Context(), a.Storage, struct{}{}, func(p []byte) error { _, err := w.Write(p); return err })
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
	if err := state.Restore(t.Context(), filepath.Join(cfg.State.Path, RecordFile), f); err != nil {
		t.Fatal(err)
	}
	if err := CheckState.Ask(t.Context(), cfg, struct{}{}, func(c FileReport) error {
		if len(c.Damaged) > 0 {
			t.Errorf("%s: %v", c.File, c.Damaged)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
}

// Criterion: A brake that is on stays on when a backup from before is restored.
func TestARestoreKeepsTheBrake(t *testing.T) {
	ctx, record := t.Context(), filepath.Join(t.TempDir(), "state", RecordFile)
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
	if err := b.Bucket(BrakeBucket).Put(ctx, "main", []byte(`{"version":1,"on":"2026-11-28T16:00:00Z"}`)); err != nil {
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
	if value, err := b.Bucket(BrakeBucket).Get(ctx, "main"); err != nil || !strings.Contains(string(value), "16:00:00") {
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
