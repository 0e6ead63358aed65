package proxy_test

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"postern/proxy"
	"postern/proxy/proxytest"
)

func TestASocketReadsAndWritesAsItsConnection(t *testing.T) {
	near, far := proxytest.Pipe(t)
	s := proxy.NewSocket(far)
	message := strings.Repeat("more than the socket's buffers hold\r\n", 1<<18)
	got := make(chan string)
	go func() {
		b, _ := io.ReadAll(near)
		got <- string(b)
	}()
	if n, err := s.Write([]byte(message)); n != len(message) || err != nil {
		t.Fatalf("Write = %d, %v", n, err)
	}
	if err := s.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if b := <-got; b != message {
		t.Fatalf("%d octets came, want %d", len(b), len(message))
	}
	go func() { _, _ = io.WriteString(near, message); _ = near.(*net.TCPConn).CloseWrite() }()
	if b, err := io.ReadAll(s); string(b) != message || err != nil {
		t.Fatalf("ReadAll has %d octets, %v, want %d", len(b), err, len(message))
	}
	if n, err := s.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
		t.Errorf("Read at the end = %d, %v, want EOF", n, err)
	}
}

// Every error has the text and the types that it would have without Socket.
func TestErrorsOfASocketAreThoseOfItsConnection(t *testing.T) {
	past := time.Unix(1, 0)
	for name, fail := range map[string]struct {
		prepare func(near, far net.Conn)
		want    error
	}{
		"deadline": {func(_, far net.Conn) { _ = far.SetDeadline(past) }, os.ErrDeadlineExceeded},
		"closed":   {func(_, far net.Conn) { _ = far.Close() }, net.ErrClosed},
		"reset": {func(near, far net.Conn) {
			_, _ = far.Write([]byte("unread"))
			_ = near.(*net.TCPConn).SetLinger(0)
			_ = near.Close()
		}, syscall.ECONNRESET},
	} {
		t.Run(name, func(t *testing.T) {
			text := func(wrap func(net.Conn) net.Conn) string {
				near, far := proxytest.Pipe(t)
				fail.prepare(near, far)
				_, err := wrap(far).Read(make([]byte, 1))
				if !errors.Is(err, fail.want) {
					t.Errorf("Read = %v, want %v", err, fail.want)
				}
				return strings.NewReplacer(near.LocalAddr().String(), "CLIENT", far.LocalAddr().String(), "SERVER").Replace(err.Error())
			}
			want := text(func(c net.Conn) net.Conn { return c })
			if got := text(func(c net.Conn) net.Conn { return proxy.NewSocket(c) }); got != want {
				t.Errorf("a Socket says %q, its connection %q", got, want)
			}
		})
	}
}

func TestASocketWaitsForInputUntilItsDeadline(t *testing.T) {
	_, far := proxytest.Pipe(t)
	s := proxy.NewSocket(far)
	if n, err := s.ReadNoWait(make([]byte, 1)); n != 0 || err == nil || errors.Is(err, io.EOF) {
		t.Errorf("ReadNoWait = %d, %v, want a temporary error", n, err)
	}
	_ = s.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
	if n, err := s.Read(make([]byte, 1)); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("Read = %d, %v, want %v", n, err, os.ErrDeadlineExceeded)
	}
}

// secured returns the Conn of a client with TLS, and the client's end with the
// connection under it.
func secured(t *testing.T) (client *tls.Conn, c *proxy.Conn, wire *heldConn) {
	t.Helper()
	near, far := proxytest.Pipe(t)
	cert, roots := proxytest.Cert(t, "localhost")
	c = proxy.NewConn(far, proxy.Client{}, proxytest.ServerTLS(cert), time.Minute)
	wire = &heldConn{Conn: near}
	client = tls.Client(wire, &tls.Config{RootCAs: roots, ServerName: "localhost"})
	done := make(chan error)
	go func() { done <- client.Handshake() }()
	if err := errors.Join(c.StartTLS(t.Context()), <-done); err != nil {
		t.Fatal(err)
	}
	return client, c, wire
}

// A Read returns one record, ReadAvailable all that have come, without waiting for the
// rest of the next one, which a later Read returns.
func TestReadAvailableGathersRecords(t *testing.T) {
	client, c, _ := secured(t)
	p := make([]byte, 64<<10)
	if n := c.ReadAvailable(p); n != 0 {
		t.Fatalf("ReadAvailable = %d before the client has sent anything", n)
	}
	const records, size = 20, 1000
	for range records {
		if _, err := client.Write([]byte(strings.Repeat("x", size))); err != nil {
			t.Fatal(err)
		}
	}
	n, err := c.Read(p) // waits
	if n != size || err != nil {
		t.Fatalf("Read = %d, %v, want one record", n, err)
	}
	for deadline := time.Now().Add(10 * time.Second); n < records*size && time.Now().Before(deadline); {
		n += c.ReadAvailable(p[n:])
	}
	if n != records*size || c.Received() != records*size {
		t.Fatalf("%d octets were read and %d counted, want %d", n, c.Received(), records*size)
	}
	if n := c.ReadAvailable(p); n != 0 {
		t.Errorf("ReadAvailable = %d, and nothing is left", n)
	}
	_, _ = client.Write([]byte("more"))
	if n, err := c.Read(p); string(p[:n]) != "more" || err != nil {
		t.Errorf("Read = %q, %v after ReadAvailable had found nothing", p[:n], err)
	}
	_ = client.Close()
	for range 2 {
		if n, err := c.Read(p); n != 0 || !errors.Is(err, io.EOF) {
			t.Errorf("Read = %d, %v, want EOF", n, err)
		}
	}
}

// A record comes in two parts: ReadAvailable does not wait for the second.
func TestReadAvailableKeepsAPartOfARecord(t *testing.T) {
	client, c, wire := secured(t)
	record := wire.hold(func() { _, _ = client.Write([]byte("a record")) })
	if _, err := wire.Conn.Write(record[:10]); err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 1<<10)
	for range 100 {
		if n := c.ReadAvailable(p); n != 0 {
			t.Fatalf("ReadAvailable = %d of a part of a record", n)
		}
	}
	if _, err := wire.Conn.Write(record[10:]); err != nil {
		t.Fatal(err)
	}
	if n, err := c.Read(p); string(p[:n]) != "a record" || err != nil {
		t.Errorf("Read = %q, %v", p[:n], err)
	}
}

// A heldConn is a client's connection that can keep what is written.
type heldConn struct {
	net.Conn
	held *bytes.Buffer // nil: it is sent
}

func (h *heldConn) Write(p []byte) (int, error) {
	if h.held != nil {
		return h.held.Write(p)
	}
	return h.Conn.Write(p)
}

// hold returns what f writes.
func (h *heldConn) hold(f func()) []byte {
	h.held = new(bytes.Buffer)
	defer func() { h.held = nil }()
	f()
	return h.held.Bytes()
}
