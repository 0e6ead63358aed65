package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"postern/cmd/postern/internal/logs"
	"postern/cmd/postern/internal/service"
	"postern/cmd/postern/internal/stored"
	"postern/configs"
	"postern/proxy"
	"postern/proxy/certs"
	"postern/proxy/memserver"
	"postern/proxy/proxytest"
)

// A running is a service in this process, of a configuration whose listeners are
// at port 0.
type running struct {
	addresses map[string]string // of listeners, by name
	roots     *x509.CertPool
	cfg       *configs.Config
	storage   *stored.Storage
	level     *slog.LevelVar
}

// startService serves cfg until the end of the test.
func startService(t *testing.T, cfg *configs.Config, store *certs.Store, log io.Writer) *running {
	t.Helper()
	level := new(slog.LevelVar)
	s := service.New(cfg, store, logs.New(log, cfg.Log.Format, level), level)
	if err := s.Storage.Open(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Storage.Close() })
	r := &running{addresses: map[string]string{}, cfg: cfg, storage: s.Storage, level: level}
	opened := make(chan []proxy.Binding, 1)
	s.Ready = func(b []proxy.Binding) { opened <- b }
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, cfg) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	select {
	case bindings := <-opened:
		for _, b := range bindings {
			r.addresses[b.Service.Name] = b.Addr().String()
		}
	case err := <-done:
		t.Fatalf("serve: %v", err)
	case <-time.After(20 * time.Second):
		t.Fatal("not ready")
	}
	return r
}

// startWithCommands starts a service with a control socket, and returns what runs
// a subcommand against it: all that it prints, and whether it was successful.
func startWithCommands(t *testing.T, config string) (*running, func(args ...string) (string, bool)) {
	t.Helper()
	return startWithCommandsAndLog(t, t.Output(), config)
}

// startWithCommandsAndLog is startWithCommands with a log for the test.
func startWithCommandsAndLog(t *testing.T, log io.Writer, config string) (*running, func(args ...string) (string, bool)) {
	t.Helper()
	dir, err := os.MkdirTemp("", "postern") // t.TempDir is too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	config = baseConfig + config + fmt.Sprintf("state: {path: %s}\n", filepath.Join(dir, "state"))
	path := filepath.Join(dir, "postern.yaml")
	if err := os.WriteFile(path, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg, err := configs.Read(path)
	if err != nil {
		t.Fatal(err)
	}
	cert, roots := proxytest.Cert(t, "localhost")
	store, err := certs.Static(cert)
	if err != nil {
		t.Fatal(err)
	}
	r := startService(t, cfg, store, log)
	r.roots = roots
	return r, func(args ...string) (string, bool) {
		t.Helper()
		var out bytes.Buffer
		status := command(t.Context(), append(args, "-c", path), &out, &out)
		return out.String(), status == 0
	}
}

// dial connects to a listener, without TLS.
func (r *running) dial(t *testing.T, name string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", r.addresses[name])
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func (r *running) secure(c net.Conn) net.Conn {
	return tls.Client(c, &tls.Config{ServerName: "localhost", RootCAs: r.roots})
}

// login opens a session of POP3.
func (r *running) login(t *testing.T, user string) *tls.Conn {
	t.Helper()
	c := r.secure(r.dial(t, "pop3")).(*tls.Conn)
	proxytest.Transcript(t, c, fmt.Sprintf("S: +OK *\nC: USER %s\nS: +OK *\nC: PASS secret of %s\nS: +OK *", user, user))
	return c
}

// inMemory starts a server in memory with one message, whose subject is name.
func inMemory(t testing.TB, name string, users ...string) (imap, submission string) {
	t.Helper()
	var accounts []memserver.Account
	for _, u := range users {
		accounts = append(accounts, memserver.Account{User: u, Password: "secret of " + u})
	}
	m := memserver.New(memserver.Options{Accounts: accounts})
	t.Cleanup(func() { _ = m.Close() })
	for _, u := range users {
		if err := m.Append(u, []byte("Subject: "+name+"\r\n\r\nhello\r\n")); err != nil {
			t.Fatal(err)
		}
	}
	imap, err := serveInMemory(m.ServeIMAP)
	if err != nil {
		t.Fatal(err)
	}
	submission, err = serveInMemory(m.ServeSMTP)
	if err != nil {
		t.Fatal(err)
	}
	return imap, submission
}

const baseConfig = `
tls: {certificates: [{cert: memory, key: memory}]}
metrics: {address: off}
hostname: localhost
timeouts: {shutdown: 0s}
`
