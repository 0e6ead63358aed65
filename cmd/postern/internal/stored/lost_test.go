package stored

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"postern/bridge"
	"postern/configs"
	"postern/proxy/state"
)

// Criterion: A record.db that is empty, or missing, beside a cache.db that knows accounts is a lost one, and the start and postern state check say so; a backup, or files of before, are none.
func TestARecordThatWasLostIsNoNewOne(t *testing.T) {
	ctx := t.Context()
	cfg := &configs.Config{State: configs.State{Path: filepath.Join(t.TempDir(), "state")}}
	record := filepath.Join(cfg.State.Path, RecordFile)
	lost := func(what string, want int64) {
		t.Helper()
		m, err := Open(ctx, cfg)
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		defer func() { _ = m.Close() }()
		if m.Files.Unidentified != nil {
			t.Errorf("%s: %v", what, m.Files.Unidentified)
		}
		if got := m.Files.Lost.Load(); got != want {
			t.Errorf("%s: lost are %d, want %d", what, got, want)
		}
	}
	change := func(f func(*Files) error) {
		t.Helper()
		m, err := Open(ctx, cfg)
		if err == nil {
			err = errors.Join(f(m.Files), m.Close())
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	comes := func(accounts ...string) func(*Files) error {
		return func(a *Files) error {
			for _, account := range accounts {
				for _, in := range []*state.Bucket{a.Cache.Bucket(ListingsBucket), a.Record.Bucket(UIDLBucket)} {
					if err := in.Put(ctx, account+"\x00INBOX", []byte("x")); err != nil {
						return err
					}
				}
			}
			return nil
		}
	}
	nameless := func(a *Files) error { // as an older Postern left them
		return errors.Join(a.Record.Bucket(identityBucket).Put(ctx, identityKey, nil), a.Cache.Bucket(identityBucket).Put(ctx, identityKey, nil))
	}
	lost("new files", 0)
	change(comes("alice", "bob"))
	lost("files that are used", 0)
	var backup, old bytes.Buffer
	change(func(a *Files) error { _, err := a.Record.WriteTo(&backup); return err })
	change(comes("carol"))
	change(func(a *Files) error {
		if err := a.Record.Bucket(identityBucket).Put(ctx, identityKey, nil); err != nil {
			return err
		}
		_, err := a.Record.WriteTo(&old)
		return err
	})
	for name, content := range map[string][]byte{"a backup": backup.Bytes(), "a backup of an older version": old.Bytes()} {
		if err := state.Restore(ctx, record, bytes.NewReader(content)); err != nil {
			t.Fatal(err)
		}
		lost(name, 0)
	}
	if err := os.Remove(record); err != nil {
		t.Fatal(err)
	}
	lost("no record", 3)
	lost("no record, the second time", 3)
	change(comes("alice", "dave"))
	lost("after some have come", 2)
	if err := os.Truncate(record, 0); err != nil {
		t.Fatal(err)
	}
	lost("an empty record", 4)
	change(func(a *Files) error {
		n, err := a.forgetLost(ctx, func(account string) bool { return account == "alice" })
		if err == nil && n != 1 {
			err = fmt.Errorf("forgotten: %d", n)
		}
		return err
	})
	lost("one of them forgotten", 3)
	change(func(a *Files) error { _, err := a.forgetLost(ctx, func(string) bool { return true }); return err })
	lost("all forgotten", 0)
	change(comes("alice"))
	lost("as new", 0)
	change(nameless)
	lost("files of before", 0)
	change(nameless)
	if err := os.Truncate(record, 0); err != nil {
		t.Fatal(err)
	}
	lost("files of before, and the record is lost", 1)
	change(func(a *Files) error { return a.Accept(ctx) })
	lost("begun anew, as the operator wants", 0)
	if err := os.Remove(filepath.Join(cfg.State.Path, CacheFile)); err != nil {
		t.Fatal(err)
	}
	lost("no cache", 0)
}

// An import puts a lost record back as well as a backup does: readiness and the
// alert end with it, not with the next start.
func TestAnImportEndsALostRecord(t *testing.T) {
	ctx := t.Context()
	cfg := &configs.Config{State: configs.State{Path: filepath.Join(t.TempDir(), "state")}}
	open := func() *Storage {
		t.Helper()
		m, err := Open(ctx, cfg)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = m.Close() })
		return m
	}
	m := open()
	for _, account := range []string{"alice", "bob"} {
		if err := m.Files.Cache.Bucket(ListingsBucket).Put(ctx, account+"\x00INBOX", []byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(filepath.Join(cfg.State.Path, RecordFile), 0); err != nil {
		t.Fatal(err)
	}
	m = open()
	for _, step := range []struct {
		account string
		want    int64
	}{{"", 2}, {"alice", 1}, {"bob", 0}} {
		if step.account != "" {
			var r bridge.AccountRecord
			if err := json.Unmarshal([]byte(`{"account":"`+step.account+`","record":{"uidvalidity":1,"eras":[{"from":1,"format":"dovecot"}]}}`), &r); err != nil {
				t.Fatal(err)
			}
			if err := ImportUIDLs.Answer(ctx, m, []bridge.AccountRecord{r}, func(int) error { return nil }); err != nil {
				t.Fatal(err)
			}
		}
		if got := m.Files.Lost.Load(); got != step.want {
			t.Errorf("after the import of %q lost are %d, want %d", step.account, got, step.want)
		}
	}
}

// Criterion: the error about a record.db that is damaged at a start says what to do.
func TestADamagedRecordStopsAStartWithARemedy(t *testing.T) {
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, RecordFile), bytes.Repeat([]byte("damaged"), 5000), 0o600); err != nil {
		t.Fatal(err)
	}
	m, err := Open(t.Context(), &configs.Config{State: configs.State{Path: dir}})
	if err == nil {
		_ = m.Close()
	}
	if !errors.Is(err, state.ErrDamaged) || !strings.Contains(err.Error(), "postern state restore") {
		t.Errorf("%v, want one that names postern state restore", err)
	}
}
