package main

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"postern/proxy/proxytest"
)

// A manager is the socket at which systemd hears of a service.
type manager struct {
	mu   sync.Mutex
	told []string
}

func listenAsManager(t *testing.T) *manager {
	t.Helper()
	path := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	t.Setenv("NOTIFY_SOCKET", path)
	m := new(manager)
	go func() {
		b := make([]byte, 4096)
		for {
			n, err := conn.Read(b)
			if err != nil {
				return
			}
			m.mu.Lock()
			m.told = append(m.told, string(b[:n]))
			m.mu.Unlock()
		}
	}()
	return m
}

func (m *manager) heard(state string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Contains(m.told, state)
}

// Criterion: systemd is told when Postern is ready, reloads, is alive, has another main process, and stops.
func TestSystemdIsTold(t *testing.T) {
	m := listenAsManager(t)
	t.Setenv("WATCHDOG_USEC", "200000")
	f := startProcesses(t, 1, "")
	within(t, patience, "it is ready", func() bool { return m.heard(fmt.Sprintf("READY=1\nMAINPID=%d", f.cmd.Process.Pid)) })
	within(t, patience, "it is alive", func() bool { return m.heard("WATCHDOG=1") })
	_ = f.cmd.Process.Signal(syscall.SIGHUP)
	within(t, patience, "it reloads", func() bool { return m.heard("RELOADING=1") })

	if out, err := f.say("upgrade"); err != nil {
		t.Fatalf("upgrade: %v\n%s", err, out)
	}
	var successor string
	within(t, patience, "the upgrade is logged", func() bool {
		for _, l := range f.logged(t, "upgraded: the sessions that are left are this process's") {
			successor = l.text("successor")
		}
		return successor != ""
	})
	within(t, patience, "the main process is another", func() bool { return m.heard("READY=1\nMAINPID=" + successor) })
	f.end(t)
	within(t, patience, "it stops", func() bool { return m.heard("STOPPING=1") })
}

// Criterion: Sockets that systemd holds are served, and who came before Postern had started is not refused.
func TestSocketActivation(t *testing.T) {
	proxytest.Need(t, "systemd-socket-activate")
	imap, _ := inMemory(t, "mail", "alice")
	cert, key, ca := proxytest.CertFiles(t)
	dir, address := t.TempDir(), proxytest.FreeAddress(t)
	config := file(t, dir, "postern.yaml", fmt.Sprintf(`
hostname: mail.example.org
listeners: [{protocol: imap, address: %q}]
tls: {certificates: [{cert: %q, key: %q}]}
backends: {main: {imap: {address: %q, tls: none}}}
metrics: {address: off}
timeouts: {shutdown: 0s}
log: {format: json}
`, address, cert, key, imap))
	postern, err := exec.LookPath("postern")
	if err != nil {
		t.Fatal(err)
	}
	var log strings.Builder
	systemd := exec.Command("systemd-socket-activate", "-l", address, postern, "run", "--config", config)
	systemd.Stdout, systemd.Stderr = &log, &log
	systemd.Env = append(os.Environ(), "SYSTEMD_LOG_LEVEL=err")
	if err := systemd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = systemd.Process.Signal(syscall.SIGTERM) // it has become Postern
		if err := systemd.Wait(); err != nil {
			t.Errorf("Postern ended with %v\n%s", err, log.String())
		}
		if strings.Contains(log.String(), "inherited a socket that no listener has") {
			t.Errorf("the socket was not used:\n%s", log.String())
		}
	}()
	within(t, patience, "systemd listens", func() bool {
		conn, err := net.DialTimeout("tcp", address, time.Second)
		if err == nil {
			_ = conn.Close()
		}
		return err == nil
	})
	proxytest.Transcript(t, dialTLS(t, address, ca), `
		S: * OK *
		C: a LOGIN alice "secret of alice"
		S: a OK *
	`)
}
