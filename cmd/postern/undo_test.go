package main

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"postern/bridge"
	"postern/bridge/uidl"
	"postern/cmd/postern/internal/stored"
	"postern/proxy/proxytest"
)

// Criterion: uidl undo is refused while a POP3 session of the account is open, and not for a session of another account.
func TestUndoIsRefusedWhileASessionIsOpen(t *testing.T) {
	imap, _ := inMemory(t, "mail", "alice", "bob")
	r, do := startWithCommands(t, fmt.Sprintf("listeners: [{protocol: pop3, address: \"127.0.0.1:0\"}]\nbackends: {main: {imap: {address: %q, tls: none}}}\n", imap))
	record := uidl.New(5, uidl.Dovecot)
	record.Current().Put([]uidl.Entry{{UID: 1, UIDL: "UID1-900", Short: 7}})
	record.Renumber(6, uidl.Dovecot, []uidl.Entry{{UID: 3, Short: 7}}, 20000)
	if err := bridge.Import(t.Context(), r.storage.Record, bridge.AccountRecord{Account: "carol", Record: record}); err != nil {
		t.Fatal(err)
	}
	alice := r.login(t, "alice")
	waitForSessions(t, do, 1)
	if out, ok := do("uidl", "undo", "--yes", "alice"); ok || !strings.Contains(out, "a POP3 session of alice is open: end it with postern kick --protocol pop3 --account alice") {
		t.Errorf("while a session is open: %v, %s", ok, out)
	}
	if out, ok := do("uidl", "undo", "--yes", "carol"); !ok || out != "changed: 1\n" {
		t.Errorf("of another account: %v, %s", ok, out)
	}
	proxytest.Transcript(t, alice, "C: QUIT\nS: +OK *\nS: <EOF>")
	waitForSessions(t, do, 0)
	if out, ok := do("uidl", "undo", "--yes", "alice"); ok || !strings.Contains(out, "no generation before") {
		t.Errorf("after it: %v, %s", ok, out)
	}
}

// Criterion: a session of a process that was upgraded reads and writes the record through the process that has the state, whole or not at all.
func TestTheRecordIsWrittenThroughTheSuccessor(t *testing.T) {
	r, do := startWithCommands(t, "listeners: [{protocol: pop3, address: \"127.0.0.1:0\"}]\nbackends: {main: {imap: {address: \"127.0.0.1:1\", tls: none}}}\n")
	far := stored.NewBucket("uidl", stored.NewRemoteBucket(r.cfg.Control.Socket, "uidl", make(chan struct{})))
	record := uidl.New(5, uidl.Dovecot)
	var entries []uidl.Entry
	for uid := range uint32(1000) {
		entries = append(entries, uidl.Entry{UID: uid + 1, UIDL: fmt.Sprintf("OLD-%d", uid)})
	}
	record.Current().Put(entries)
	for _, want := range []int{1000, 999} {
		if err := bridge.Import(t.Context(), far, bridge.AccountRecord{Account: "alice", Record: record}); err != nil {
			t.Fatal(err)
		}
		got, err := bridge.Lookup(t.Context(), nil, far, "alice")
		if err != nil || got.Record == nil || len(got.Record.Current().Entries) != want {
			t.Fatalf("it reads %v, %v, want %d entries", got, err, want)
		}
		if out, ok := do("uidl", "export", "alice"); !ok || strings.Count(out, `"uidl":"OLD-`) != want {
			t.Errorf("exported are %d of %d names", strings.Count(out, `"uidl":"OLD-`), want)
		}
		record.Current().Entries = entries[1:]
	}
	if out, ok := do("uidl", "history", "alice"); !ok || !strings.Contains(out, "present     5") {
		t.Errorf("history: %s", out)
	}
	failed := errors.New("no")
	err := far.UpdateAll(t.Context(), []string{"x", "y"}, func(key string, _ []byte) ([]byte, error) {
		if key == "y" {
			return nil, failed
		}
		return []byte("x"), nil
	})
	if value, _ := far.Get(t.Context(), "x"); !errors.Is(err, failed) || value != nil {
		t.Errorf("a change of two that fails leaves %q, %v", value, err)
	}
}
