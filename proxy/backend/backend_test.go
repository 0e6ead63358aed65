package backend

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"postern/proxy"
	"postern/proxy/proxytest"
)

// No login leaves a goroutine behind.
func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	account  = "alice@example.org"
	password = "s3cret pass"
)

func login(account, password string) *proxy.Login {
	return &proxy.Login{User: "as typed", Account: account, Mechanism: "PLAIN", Secret: proxy.NewSecret([]byte(password))}
}

// recorder keeps what was observed.
type recorder struct {
	mu     sync.Mutex
	events []proxy.Event
}

func (r *recorder) Observe(e proxy.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, e)
}

// String prints results alone.
func (r *recorder) String() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var all []string
	for _, e := range r.events {
		switch e := e.(type) {
		case proxy.Dialed:
			all = append(all, "dialed "+e.Result)
		case proxy.BackendLogin:
			all = append(all, fmt.Sprintf("login %v", e.Err == nil))
		case proxy.Probed:
			all = append(all, fmt.Sprintf("probed %v", e.Up))
		}
	}
	return strings.Join(all, ", ")
}

// serve returns a Server whose first connections are served by scripts, one
// each, in the notation of proxytest.ServeTranscript. A line that ends in
// "begin TLS" is the last one in the clear.
func serve(t *testing.T, protocol string, mode Mode, scripts ...string) (*Server, *recorder) {
	t.Helper()
	cert, pool := proxytest.Cert(t)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	t.Cleanup(serving.Wait)
	t.Cleanup(func() { _ = ln.Close() })
	serving.Go(func() {
		for _, script := range scripts {
			conn, err := ln.Accept()
			if err != nil {
				t.Errorf("the server was not asked: %v", err)
				return
			}
			t.Cleanup(func() { _ = conn.Close() })
			if mode == Implicit {
				conn = accept(conn, proxytest.ServerTLS(cert))
			}
			proxytest.ServeTranscript(t, &upgrading{Conn: conn, config: proxytest.ServerTLS(cert)}, script)
		}
	})
	seen := &recorder{}
	return &Server{
		Name: "main", Protocol: protocol, Address: ln.Addr().String(), TLS: mode, Hostname: "postern.example",
		Config:       &tls.Config{RootCAs: pool, ServerName: "localhost", MinVersion: tls.VersionTLS12},
		ReplyTimeout: 2 * time.Second, Observer: seen,
	}, seen
}

// accept does a handshake, which may fail: then the script cannot go on.
func accept(conn net.Conn, config *tls.Config) net.Conn {
	t := tls.Server(conn, config)
	_ = t.Handshake()
	return t
}

// upgrading becomes TLS behind the line that says so.
type upgrading struct {
	net.Conn
	config *tls.Config
}

func (u *upgrading) Write(p []byte) (int, error) {
	n, err := u.Conn.Write(p)
	if strings.HasSuffix(string(p), "begin TLS\r\n") {
		u.Conn = accept(u.Conn, u.config)
	}
	return n, err
}

// goodbye is how a server takes leave of a login that it has answered so.
func goodbye(answer, words string) string {
	if strings.HasSuffix(answer, "<EOF>") {
		return ""
	}
	return "\nC: " + words + "\nS: <EOF>"
}

// refused fails the test unless err is a Refusal for reason that does not show
// the password.
func refused(t *testing.T, err error, reason proxy.Reason) {
	t.Helper()
	r, ok := errors.AsType[*proxy.Refusal](err)
	if !ok || r.Reason != reason || r.Text != "" {
		t.Errorf("error = %v, want a refusal: %v", err, reason)
	}
	if text := fmt.Sprintf("%v %+v", err, err); strings.Contains(text, password) {
		t.Errorf("the error shows the password: %s", text)
	}
}

func (u *upgrading) CloseWrite() error {
	return u.Conn.(interface{ CloseWrite() error }).CloseWrite()
}
