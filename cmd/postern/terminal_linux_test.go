package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"unsafe"
)

// openTerminal returns a terminal, and the side of it where somebody types.
func openTerminal(t *testing.T) (typist, terminal *os.File) {
	t.Helper()
	typist, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = typist.Close() })
	var number, locked int32
	for request, value := range map[uintptr]*int32{syscall.TIOCGPTN: &number, syscall.TIOCSPTLCK: &locked} {
		if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, typist.Fd(), request, uintptr(unsafe.Pointer(value))); errno != 0 {
			t.Fatal(errno)
		}
	}
	terminal, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = terminal.Close() })
	return typist, terminal
}

// A collector keeps what is written to it.
type collector struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (c *collector) Write(b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.b.Write(b)
}

func (c *collector) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.b.String()
}

// Criterion: a password that is typed is not shown, and the terminal shows again what is typed after it, also after Ctrl-C.
func TestTypedPasswordIsNotShown(t *testing.T) {
	dir := t.TempDir()
	config := file(t, dir, "postern.yaml", `
listeners: [{protocol: pop3, address: "127.0.0.1:0"}]
tls: {certificates: [{cert: mail.pem, key: mail.key}]}
backends: {main: {imap: {address: "127.0.0.1:1", tls: none}}}
`)
	for name, test := range map[string]struct{ typed, want string }{
		"typed":  {"top secret\n", "old server 127.0.0.1:1: dial tcp 127.0.0.1:1: connect: connection refused"},
		"Ctrl-C": {"top sec\x03", "interrupt"},
	} {
		t.Run(name, func(t *testing.T) {
			typist, terminal := openTerminal(t)
			var shown, said collector
			go func() { _, _ = io.Copy(&shown, typist) }()
			cmd := exec.Command("postern", "uidl", "detect", "--old", "127.0.0.1:1", "--user", "alice", "--config", config)
			cmd.Stdin, cmd.Stderr = terminal, &said
			cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true} // of descriptor 0, so that Ctrl-C is a signal
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			within(t, patience, "the password is asked for", func() bool { return strings.Contains(said.String(), "Password of alice: ") })
			if _, err := io.WriteString(typist, test.typed); err != nil {
				t.Fatal(err)
			}
			if err := cmd.Wait(); err == nil {
				t.Error("there is no server, and still no error")
			}
			if _, err := io.WriteString(typist, "visible\n"); err != nil {
				t.Fatal(err)
			}
			within(t, patience, "what is typed later is shown", func() bool { return strings.Contains(shown.String(), "visible") })
			if strings.Contains(shown.String()+said.String(), "sec") {
				t.Errorf("the terminal shows %q, the command said %q", shown.String(), said.String())
			}
			if !strings.Contains(said.String(), test.want) {
				t.Errorf("the command said %q, want %q", said.String(), test.want)
			}
		})
	}
}
