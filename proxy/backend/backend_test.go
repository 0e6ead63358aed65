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

func testLogin(account, password string) *proxy.Login {
	return &proxy.Login{User: "as typed", Account: account, Mechanism: "PLAIN", Secret: proxy.NewSecret([]byte(password))}
}

// A recorder keeps the events that it observes.
type recorder struct {
	mu     sync.Mutex
	events []proxy.Event
}

func (r *recorder) Observe(e proxy.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, e)
}

// String returns the results of the events.
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

// startServer returns a Server whose first connections are served by scripts, one
// each, in the notation of proxytest.ServeTranscript. A line that ends in "begin
// TLS" is the last one before TLS.
func startServer(t *testing.T, protocol string, mode Mode, scripts ...string) (*Server, *recorder) {
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
			proxytest.ServeTranscript(t, &startTLSConn{Conn: conn, config: proxytest.ServerTLS(cert)}, script)
		}
	})
	seen := &recorder{}
	return &Server{
		Name: "main", Protocol: protocol, Address: ln.Addr().String(), TLS: mode, Hostname: "postern.example",
		Config:       &tls.Config{RootCAs: pool, ServerName: "localhost", MinVersion: tls.VersionTLS12},
		ReplyTimeout: 2 * time.Second, Observer: seen,
	}, seen
}

// accept performs a handshake. If it fails, the script cannot go on.
func accept(conn net.Conn, config *tls.Config) net.Conn {
	t := tls.Server(conn, config)
	_ = t.Handshake()
	return t
}

// A startTLSConn begins TLS after a line that ends in "begin TLS".
type startTLSConn struct {
	net.Conn
	config *tls.Config
}

func (u *startTLSConn) Write(p []byte) (int, error) {
	n, err := u.Conn.Write(p)
	if strings.HasSuffix(string(p), "begin TLS\r\n") {
		u.Conn = accept(u.Conn, u.config)
	}
	return n, err
}

// logoutScript returns how a login that was answered with answer ends: with
// words, unless the server has closed.
func logoutScript(answer, words string) string {
	if strings.HasSuffix(answer, "<EOF>") {
		return ""
	}
	return "\nC: " + words + "\nS: <EOF>"
}

// checkRefusal fails the test unless err is a Refusal for reason that does not
// show the password.
func checkRefusal(t *testing.T, err error, reason proxy.Reason) {
	t.Helper()
	r, ok := errors.AsType[*proxy.Refusal](err)
	if !ok || r.Reason != reason || r.Text != "" {
		t.Errorf("error = %v, want a refusal: %v", err, reason)
	}
	if text := fmt.Sprintf("%v %+v", err, err); strings.Contains(text, password) {
		t.Errorf("the error shows the password: %s", text)
	}
}

func (u *startTLSConn) CloseWrite() error {
	return u.Conn.(interface{ CloseWrite() error }).CloseWrite()
}
