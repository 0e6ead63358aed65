package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
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

// echoes reports whether a terminal shows what is typed.
func echoes(t testing.TB, terminal *os.File) bool {
	t.Helper()
	var state syscall.Termios
	if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, terminal.Fd(), syscall.TCGETS, uintptr(unsafe.Pointer(&state))); errno != 0 {
		t.Fatal(errno)
	}
	return state.Lflag&syscall.ECHO != 0
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
			within(t, patience, "the password is asked for, and not shown", func() bool {
				return strings.Contains(said.String(), "Password of alice: ") && !echoes(t, terminal)
			})
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

// Criterion: a terminal obeys nothing that a server, a certificate or a client has put into what a command prints.
func TestATerminalObeysNothingThatIsPrinted(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"\x1b]0;owned\a"}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	server, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = server.Close() }()
	go func() {
		for {
			conn, err := server.Accept()
			if err != nil {
				return
			}
			_ = conn.(*tls.Conn).Handshake()
			_ = conn.Close()
		}
	}()
	dir := t.TempDir()
	config := file(t, dir, "postern.yaml", `
listeners: [{protocol: pop3, address: "127.0.0.1:0"}]
tls: {certificates: [{cert: mail.pem, key: mail.key}]}
backends: {main: {imap: {address: "127.0.0.1:1", tls: none}}}
`)
	typist, terminal := openTerminal(t)
	var shown collector
	go func() { _, _ = io.Copy(&shown, typist) }()
	cmd := exec.Command("postern", "uidl", "detect", "--old", server.Addr().String(), "--server-name", "pop3.example.org", "--user", "alice",
		"--password-file", file(t, dir, "password", "top secret\n"), "--config", config)
	cmd.Stdout, cmd.Stderr = terminal, terminal
	if err := cmd.Run(); err == nil {
		t.Error("the certificate is no good, and still no error")
	}
	within(t, patience, "the error is shown", func() bool { return strings.Contains(shown.String(), "pop3.example.org") })
	if got := shown.String(); strings.ContainsAny(got, "\x1b\a") || !strings.Contains(got, "?]0;owned?") {
		t.Errorf("the terminal got %q", got)
	}
}

// Criterion: what check runs as the service's user has no terminal: that user could type into it as root.
func TestTheServicesUserGetsNoTerminal(t *testing.T) {
	h := newHosted(t)
	_, terminal := openTerminal(t)
	command := "check\x00--open\x00--json\x00--config\x00" + h.config
	for range 50 { // its process may be gone before somebody looks
		cmd := h.as(t, 0, "check", "--as", "nobody")
		cmd.Stdin = terminal
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
		must(t, cmd.Start())
		ended := make(chan error, 1)
		go func() { ended <- cmd.Wait() }()
		found := ""
		for found == "" && len(ended) == 0 {
			found = terminalOf(command)
		}
		must(t, <-ended)
		switch found {
		case "":
			continue
		case "0":
		default:
			t.Errorf("the process of the service's user has the terminal %s", found)
		}
		return
	}
	t.Error("there was no process of the service's user")
}

// terminalOf returns the number of the controlling terminal of the process with a command
// line, "0" if it has none, "" if there is no such process: proc_pid_stat(5).
func terminalOf(command string) string {
	const ttyNumber = 4 // after the name in parentheses
	paths, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, path := range paths {
		line, _ := os.ReadFile(path)
		if !bytes.Contains(line, []byte(command)) {
			continue
		}
		stat, _ := os.ReadFile(filepath.Join(filepath.Dir(path), "stat"))
		if fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:])); len(fields) > ttyNumber {
			return fields[ttyNumber]
		}
	}
	return ""
}

func TestHarmless(t *testing.T) {
	for text, want := range map[string]string{
		"alice\tanna\n":                "alice\tanna\n",
		"Grüße, 日本 \u00a0":             "Grüße, 日本 \u00a0",
		"\x1b[2J\r\b\x7f\u009b31m":     "?[2J????31m",
		"moc.\u202eexample\u2066":      "moc.?example?",
		"a\x9bb\xff":                   "a?b?",
		"the half of a rune: \xe6\x97": "the half of a rune: \xe6\x97",
	} {
		if got := string(harmless([]byte(text))); got != want {
			t.Errorf("%q: got %q, want %q", text, got, want)
		}
	}
}
