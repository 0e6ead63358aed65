package service

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// What is refused before anything is given up: this process serves on.
func TestAnUpgradeThatWouldLoseStateIsRefused(t *testing.T) {
	imap, _ := inMemory(t, "m", "alice")
	dir := t.TempDir()
	r := startService(t, fmt.Sprintf(`
hostname: mail.example.org
listeners: [{protocol: imap, address: "127.0.0.1:0"}]
backends: {main: {imap: {address: %q, tls: none}}}
tls: {certificates: [{cert: c, key: k}]}
state: {path: %q}
`, imap, dir))
	upgrade := func(control string) error {
		next := &successor{cmd: exec.Command("sleep", "60"), back: make(chan struct{}), ended: make(chan struct{})}
		if err := next.cmd.Start(); err != nil {
			t.Fatal(err)
		}
		go func() { defer close(next.ended); _ = next.cmd.Wait() }()
		ours, theirs := net.Pipe()
		next.Peer = &Peer{conn: ours, in: json.NewDecoder(ours)}
		go func() { _ = json.NewEncoder(theirs).Encode(message{Built: true, Control: control}) }()
		done := make(chan error, 1)
		r.service.changes <- changeRequest{func(ctx context.Context) error { return r.service.handOver(ctx, next) }, done}
		return <-done
	}
	if err := upgrade("/elsewhere/control.sock"); err == nil || !strings.Contains(err.Error(), "control.socket") {
		t.Errorf("another control socket: %v", err)
	}
	r.service.Storage.Reading.RLock() // as a backup does that nobody reads
	if err := upgrade(filepath.Join(dir, "control.sock")); !errors.Is(err, errStateBusy) {
		t.Errorf("while a command reads the state: %v", err)
	}
	r.service.Storage.Reading.RUnlock()
	if r.service.fatal != nil || r.dial(t, "imap") == nil {
		t.Errorf("this process does not serve: %v", r.service.fatal)
	}
}

func TestAContainerIsNotUpgraded(t *testing.T) {
	if checkUpgradable(1) == nil || checkUpgradable(os.Getpid()) != nil {
		t.Error("want an error for the first process, and for no other")
	}
}
