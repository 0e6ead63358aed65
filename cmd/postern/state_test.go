package main

import (
	"regexp"
	"strings"
	"testing"
)

// Criterion: postern state check names each record that is damaged, of the Postern that runs and of its files, and fails.
func TestDamagedRecordsAreNamed(t *testing.T) {
	imap, _ := inMemory(t, "mail", "alice", "bob")
	r, do := startWithCommands(t, "listeners: [{protocol: pop3, address: \"127.0.0.1:0\"}]\nbackends: {main: {imap: {address: "+imap+", tls: none}}}\n")
	for _, user := range []string{"alice", "bob"} {
		_ = r.login(t, user).Close()
	}
	if out, ok := do("state", "check"); !ok || !strings.Contains(out, "records: 2\n") || strings.Contains(out, "damaged") {
		t.Errorf("of what is good it says\n%s", out)
	}
	if err := r.storage.Record.Put(t.Context(), "bob\x00INBOX", []byte("damaged")); err != nil {
		t.Fatal(err)
	}
	out, ok := do("state", "check")
	if ok || !strings.Contains(out, "record.db: bob: record of unique-ids is damaged") || strings.Contains(out, "alice") {
		t.Errorf("of what is damaged it says\n%s", out)
	}
	if err := r.storage.Devices.Update(t.Context(), "alice\x00z", func([]byte) ([]byte, error) { return []byte("damaged"), nil }); err != nil {
		t.Fatal(err)
	}
	if out, ok := do("state", "check"); ok || !strings.Contains(out, "bob: record of unique-ids is damaged") ||
		!regexp.MustCompile(`record.db: alice: device (damaged-[0-9a-f]{8}) cannot be read: postern password remove alice damaged-`).MatchString(out) {
		t.Errorf("of a damaged device it says\n%s", out)
	}
}
