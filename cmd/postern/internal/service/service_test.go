package service

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"io"
	"log/slog"
	"net"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"postern/cmd/postern/internal/logs"
	"postern/configs"
	"postern/proxy"
	"postern/proxy/certs"
	"postern/proxy/memserver"
	"postern/proxy/proxytest"
)

// A running is a Service in this process, of a configuration whose listeners are
// at port 0.
type running struct {
	addresses map[string]string // of listeners, by name
	roots     *x509.CertPool
	service   *Service
}

// metrics returns those whose line has word in it.
func (r *running) metrics(word string) string {
	w := httptest.NewRecorder()
	r.service.metrics.Handler().ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	return grep(w.Body.String(), word)
}

func startService(t *testing.T, config string) *running {
	t.Helper()
	cfg, err := configs.Parse("test.yaml", []byte(config))
	if err != nil {
		t.Fatal(err)
	}
	cert, roots := proxytest.Cert(t, "localhost")
	store, err := certs.Static(cert)
	if err != nil {
		t.Fatal(err)
	}
	r := startServiceWith(t, cfg, store, t.Output())
	r.roots = roots
	return r
}

// startServiceWith is startService with other certificates, and a log for the test. edit
// changes the generation before it is served.
func startServiceWith(t *testing.T, cfg *configs.Config, store *certs.Store, log io.Writer, edit ...func(*generation)) *running {
	t.Helper()
	if !cfg.IsSet("metrics.address") {
		cfg.Metrics.Address = "" // the default is another Postern's, if one runs here
	}
	level := new(slog.LevelVar)
	s := New(cfg, store, logs.New(log, cfg.Log.Format, level), level)
	if err := s.Storage.Open(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Storage.Close() })
	h, err := build(cfg, s)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range edit {
		f(h)
	}
	r := &running{addresses: map[string]string{}, service: s}
	opened := make(chan []proxy.Binding, 1)
	s.Ready = func(b []proxy.Binding) { opened <- b }
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.serve(ctx, h) }()
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
		done <- nil // for the cleanup
		t.Fatalf("serve: %v", err)
	case <-time.After(20 * time.Second):
		t.Fatal("not ready")
	}
	return r
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

// A lockedBuffer is a log that a test reads.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// startWithLog is inhabit with a log that the test reads.
func startWithLog(t *testing.T, config string) (*running, *lockedBuffer) {
	t.Helper()
	cfg, err := configs.Parse("test.yaml", []byte(config))
	if err != nil {
		t.Fatal(err)
	}
	cert, roots := proxytest.Cert(t, "localhost")
	store, err := certs.Static(cert)
	if err != nil {
		t.Fatal(err)
	}
	log := new(lockedBuffer)
	r := startServiceWith(t, cfg, store, io.MultiWriter(log, t.Output()))
	r.roots = roots
	return r, log
}

// baseConfigWith is frame with more timeouts.
func baseConfigWith(timeouts string) string {
	return strings.Replace(baseConfig, "{shutdown: 0s}", "{shutdown: 0s, "+timeouts+"}", 1)
}

// from connects from an address, and speaks TLS.
func (r *running) from(t testing.TB, source, listener string) (*tls.Conn, error) {
	t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(source)}, Timeout: patience}
	conn, err := d.DialContext(t.Context(), "tcp", r.addresses[listener])
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(patience))
	return tls.Client(conn, &tls.Config{ServerName: "localhost", RootCAs: r.roots}), nil
}

// say sends a line, and returns the next one that has the word.
func say(c net.Conn, in *bufio.Reader, line, word string) (string, error) {
	if _, err := io.WriteString(c, line); err != nil {
		return "", err
	}
	for {
		answer, err := in.ReadString('\n')
		if err != nil || strings.Contains(answer, word) {
			return answer, err
		}
	}
}

// count returns the value of a metric's only line that has the words.
func (r *running) count(t testing.TB, words string) int {
	t.Helper()
	fields := strings.Fields(strings.TrimSpace(r.metrics(words)))
	if len(fields) != 2 {
		t.Fatalf("%s is %q", words, fields)
	}
	n, err := strconv.Atoi(fields[1])
	if err != nil {
		t.Fatal(err)
	}
	return n
}

const patience = 30 * time.Second // for something that has to come

// within waits until done, and fails the test when that is not so in time.
func within(t testing.TB, limit time.Duration, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(limit); !done(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("after %v it is not so that %s", limit, what)
		}
	}
}

// serveInMemory serves on a free port of the loopback until the server is
// closed, and returns its address.
func serveInMemory(serve func(net.Listener) error) (address string, err error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	go func() { _ = serve(ln) }()
	return ln.Addr().String(), nil
}

// file writes a file that only its owner may read, and returns its path.
func file(t testing.TB, dir, name, content string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// grep returns the lines of text that have word in them.
func grep(text, word string) string {
	var found []string
	for line := range strings.Lines(text) {
		if strings.Contains(line, word) {
			found = append(found, line)
		}
	}
	return strings.Join(found, "")
}

func base64Of(text string) string { return base64.StdEncoding.EncodeToString([]byte(text)) }
