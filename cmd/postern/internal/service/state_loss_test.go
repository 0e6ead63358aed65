package service

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"postern/cmd/postern/internal/stored"
	"postern/proxy/memserver"
	"postern/proxy/proxytest"
	"postern/proxy/state"
)

// Criterion: a state folder that is lost, restored from an older copy, or written in part by another version costs a listing; no unique id changes that can be known, and what cannot be read is a temporary refusal.
func TestStateThatIsLostOrOld(t *testing.T) {
	m := memserver.New(memserver.Options{Accounts: []memserver.Account{{User: "alice", Password: "secret"}}})
	t.Cleanup(func() { _ = m.Close() })
	imap, err := serveInMemory(m.ServeIMAP)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	path, backup := filepath.Join(dir, "state"), filepath.Join(dir, "backup")
	poll := func(name, uidl, source string, ids ...string) {
		t.Helper()
		t.Run(name, func(t *testing.T) {
			r := startService(t, baseConfig+fmt.Sprintf(`
listeners: [{protocol: pop3, address: "127.0.0.1:0"}]
backends: {main: {imap: {address: %q, tls: none}}}
state: {path: %q}
pop3: {uidl: %q}
`, imap, path, uidl))
			const login = "S: +OK *\nC: USER alice\nS: +OK *\nC: PASS secret\n"
			if source == "" {
				proxytest.Transcript(t, r.secure(r.dial(t, "pop3")), login+`S: -ERR \[SYS/TEMP] *`)
				return
			}
			listing := ""
			for i, id := range ids {
				listing += fmt.Sprintf("S: %d %s\n", i+1, id)
			}
			proxytest.Transcript(t, r.secure(r.dial(t, "pop3")), login+"S: +OK *\nC: UIDL\nS: +OK *\n"+listing+"S: .\nC: QUIT\nS: +OK *\nS: <EOF>")
			if got := r.metrics("maildrop_load_duration_seconds_count"); !strings.Contains(got, `{source="`+source+`"} 1`) {
				t.Errorf("maildrop not opened from %s:\n%s", source, got)
			}
		})
	}
	deliver := func() {
		t.Helper()
		if err := m.Append("alice", []byte("Subject: x\r\n\r\nhello\r\n")); err != nil {
			t.Fatal(err)
		}
	}
	remove := func(path string) {
		t.Helper()
		if err := os.RemoveAll(path); err != nil {
			t.Fatal(err)
		}
	}
	// version makes all that a file holds another version's.
	version := func(file, bucket string) {
		t.Helper()
		b, err := state.Open(filepath.Join(path, file), state.Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = b.Close() }()
		var keys []string
		if err := b.Bucket(bucket).Scan(t.Context(), "", func(key string, _ []byte) error { keys = append(keys, key); return nil }); err != nil || len(keys) == 0 {
			t.Fatal(keys, err)
		}
		for _, key := range keys {
			if err := b.Bucket(bucket).Put(t.Context(), key, []byte{9, 1, 2, 3, 4, 5, 6, 7}); err != nil {
				t.Fatal(err)
			}
		}
	}

	const before, now = "%v.%u", "UID%u-%v"
	deliver()
	poll("first", before, "full", "1.1")
	remove(path)
	poll("all is lost", before, "full", "1.1")
	poll("another format", now, "cache", "1.1")
	if out, err := exec.CommandContext(t.Context(), "cp", "-a", path, backup).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	deliver()
	poll("new mail", now, "delta", "1.1", "UID2-1")
	remove(path)
	if err := os.Rename(backup, path); err != nil {
		t.Fatal(err)
	}
	poll("an older copy", now, "delta", "1.1", "UID2-1")
	version("cache.db", "listings")
	poll("a cache of another version", now, "full", "1.1", "UID2-1")
	remove(filepath.Join(path, "cache.db"))
	poll("no cache", now, "full", "1.1", "UID2-1")
	version(stored.RecordFile, "uidl")
	poll("a record of another version", now, "")
}
