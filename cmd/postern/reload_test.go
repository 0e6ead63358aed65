package main

import (
	"strings"
	"syscall"
	"testing"
	"time"
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
