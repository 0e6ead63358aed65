package proxytest

import (
	"net"
	"testing"
)

// Pipe returns both ends of a TCP connection over 127.0.0.1: real descriptors,
// buffers and half-close, unlike net.Pipe. The end of the test closes them.
func Pipe(t testing.TB) (client, server net.Conn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	// The kernel accepts before Accept does, so Dial needs no goroutine.
	client, err = net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	server, err = ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = server.Close() })
	return client, server
}
