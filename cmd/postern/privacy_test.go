package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"testing"

	"postern/proxy/proxytest"
)

// A syncedLog is what a test reads while others write.
type syncedLog struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (w *syncedLog) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.b.Write(p)
}

func (w *syncedLog) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.b.String()
}

// Criterion: with privacy, no line of the log has a client's address or an account, whatever happens.
func TestNoLineHasAnAddressOrAnAccount(t *testing.T) {
	imap, _ := inMemory(t, "mail", "alice@example.org")
	w := new(syncedLog)
	r, do := startWithCommandsAndLog(t, w, fmt.Sprintf("listeners: [{protocol: pop3, address: \"127.0.0.1:0\"}]\nbackends: {main: {imap: {address: %q, tls: none}}}\nprivacy: {addresses: none, users: pseudonym}\n", imap))
	c := r.login(t, "alice@example.org")
	proxytest.Transcript(t, c, "C: QUIT\nS: +OK *\nS: <EOF>")
	proxytest.Transcript(t, r.secure(r.dial(t, "pop3")), "S: +OK *\nC: USER alice@example.org\nS: +OK *\nC: PASS wrong\nS: -ERR *")
	within(t, patience, "the sessions are in the log", func() bool {
		return strings.Contains(w.String(), "connection ended") && strings.Contains(w.String(), "login refused")
	})
	out, ok := do("account", "export", "alice@example.org")
	if !ok {
		t.Fatal(out)
	}
	var export struct{ Pseudonym string }
	if err := json.Unmarshal([]byte(out), &export); err != nil || !strings.HasPrefix(export.Pseudonym, "u-") {
		t.Fatalf("the export names no pseudonym, %v: %s", err, out)
	}
	pseudonym := export.Pseudonym
	for line := range strings.Lines(w.String()) {
		if strings.Contains(line, "alice") || strings.Contains(line, "127.0.0.1") && !strings.Contains(line, "listening") {
			t.Errorf("the log has\n%s", line)
		}
	}
	if n := strings.Count(w.String(), "account="+pseudonym); n != 4 {
		t.Errorf("%d lines name the account, want that of the login, of the refusal, of the end and of the export\n%s", n, w.String())
	}
}
