package main

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"postern/proxy/proxytest"
)

// allow sets how many descriptors a process may have open.
func allow(t *testing.T, pid, descriptors int) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "prlimit", "--pid", strconv.Itoa(pid), fmt.Sprintf("--nofile=%[1]d:%[1]d", descriptors)).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

// Criterion: a Postern that has no file descriptor left for clients says so in its log, its metrics and its readiness, answers
// there and at its control socket, and serves again as soon as it has some.
func TestNoDescriptorsAreLeft(t *testing.T) {
	proxytest.Need(t, "prlimit")
	imap, _ := inMemory(t, "mail", "alice")
	socket := filepath.Join(t.TempDir(), "control.sock")
	p := launch(t, []string{`protocol: imap`}, []string{fmt.Sprintf("main: {imap: {address: %q, tls: none}}", imap)},
		fmt.Sprintf("timeouts: {handshake: 30s}\ncontrol: {socket: %q}\n", socket))
	allow(t, p.cmd.Process.Pid, 40)
	_ = p.cmd.Process.Signal(syscall.SIGHUP)
	within(t, patience, "a reload says that these are few", func() bool {
		return strings.Contains(p.printed(t), "10000 needs 20192 file descriptors, two for each, and 40 are allowed here")
	})
	if err := checkReady(t.Context(), p.metrics); err != nil {
		t.Error(err)
	}
	var crowd []net.Conn
	for i := range 60 { // the kernel takes them all, Postern has no descriptor for the last ones
		crowd = append(crowd, dialFrom(t, fmt.Sprintf("127.4.0.%d", 1+i), p.imap))
	}
	within(t, patience, "Postern has no descriptor left for clients", func() bool {
		used, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.cmd.Process.Pid))
		return err == nil && len(used) >= 30 && strings.Contains(p.printed(t), "connections are not accepted")
	})
	select {
	case <-p.done:
		t.Fatalf("Postern has ended: %v", p.err)
	default:
	}
	values, _ := p.scrape(t)
	if n, err := strconv.Atoi(values[`postern_accept_errors_total{listener="imap"}`]); err != nil || n == 0 {
		t.Errorf("%d failures were counted, %v", n, err)
	}
	if err := checkReady(t.Context(), p.metrics); err == nil || !strings.Contains(err.Error(), "no file descriptor is left for clients") {
		t.Errorf("readiness: %v", err)
	}
	config := p.cmd.Args[len(p.cmd.Args)-1]
	if out, err := exec.CommandContext(t.Context(), "postern", "sessions", "--config", config).CombinedOutput(); err != nil {
		t.Errorf("sessions: %v\n%s", err, out)
	}
	for _, c := range crowd {
		_ = c.Close()
	}
	talk(t, p.imap, p.ca, lines("S: \\* OK *", `C: a LOGIN alice "secret of alice"`, "S: a OK *", "C: b LOGOUT", "S: \\* BYE *", "S: b OK *"))
	within(t, patience, "it is ready again", func() bool { return checkReady(t.Context(), p.metrics) == nil })
}

// Criterion: check says when the process may not have the file descriptors that limits.max_connections needs.
func TestCheckSaysThatDescriptorsAreFew(t *testing.T) {
	proxytest.Need(t, "prlimit")
	cert, key, _ := proxytest.CertFiles(t)
	config := file(t, t.TempDir(), "postern.yaml", fmt.Sprintf(`
hostname: mail.example.org
listeners: [{protocol: imap, address: "127.0.0.1:0"}]
tls: {certificates: [{cert: %q, key: %q}]}
backends: {main: {imap: {address: "127.0.0.1:1", tls: none}}}
limits: {max_connections: 400}
`, cert, key))
	for allowed, want := range map[int]bool{900: true, 1000: false} {
		out, err := exec.CommandContext(t.Context(), "prlimit", fmt.Sprintf("--nofile=%[1]d:%[1]d", allowed), "postern", "check", "--config", config).CombinedOutput()
		if err != nil {
			t.Errorf("%v\n%s", err, out)
		}
		if got := strings.Contains(string(out), "limits.max_connections: warning: 400 needs 992 file descriptors, two for each, and 900 are allowed here"); got != want {
			t.Errorf("with %d:\n%s", allowed, out)
		}
	}
}
