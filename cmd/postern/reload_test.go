package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"postern/proxy/admin"
)

// Who rotates logs sends SIGHUP to all that are called postern.
func TestSIGHUPDoesNotEndADrain(t *testing.T) {
	f := startProcesses(t, 2, "")
	imap, pop3 := f.sessions(t, 0, 2)
	_ = f.cmd.Process.Signal(syscall.SIGTERM)
	within(t, patience, "it is stopping", func() bool {
		return strings.Contains(f.printed(t), "stopping: sessions may end by themselves")
	})
	_ = f.cmd.Process.Signal(syscall.SIGHUP)
	_ = f.cmd.Process.Signal(syscall.SIGUSR2)
	time.Sleep(100 * time.Millisecond)
	wantAlive(t, imap, pop3)
	for _, c := range append(imap, pop3...) {
		_ = c.Close()
	}
}

// Criterion: after a change of state.path, postern reload names the socket at which Postern runs, and asks it with --control.
func TestReloadNamesTheSocketThatPosternHas(t *testing.T) {
	imap, _ := inMemory(t, "mail")
	r, _ := startWithCommands(t, fmt.Sprintf("listeners: [{protocol: pop3, address: \"127.0.0.1:0\"}]\nbackends: {main: {imap: {address: %q, tls: none}}}\n", imap))
	dir := t.TempDir()
	path := filepath.Join(dir, "postern.yaml")
	config := baseConfig + fmt.Sprintf("listeners: [{protocol: pop3, address: \":0\"}]\nbackends: {main: {imap: {address: %q, tls: none}}}\nstate: {path: %s/other}\n", imap, dir)
	if err := os.WriteFile(path, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	reload := func(more ...string) string {
		var out bytes.Buffer
		if command(t.Context(), append([]string{"reload", "-c", path}, more...), &out, &out) != 1 {
			t.Error("exit status is not 1")
		}
		return out.String()
	}
	old := r.cfg.Control.Socket
	if got := reload(); !strings.HasPrefix(got, "postern: no Postern is running at "+dir+"/other/control.sock") || !strings.Contains(got, filepath.Base(old)) || !slices.Contains(admin.Listening("control.sock"), old) {
		t.Errorf("printed is %s, want %s in it", got, old)
	}
	// The Postern in this process has no file to read again.
	if got, want := reload("--control", old), "postern: reload: there is no configuration file to read again\n"; got != want {
		t.Errorf("printed is %s, want %s", got, want)
	}
}
