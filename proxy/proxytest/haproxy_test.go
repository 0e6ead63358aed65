package proxytest

import (
	"fmt"
	"net"
	"strings"
	"testing"
	"time"
)

func TestHAProxySendsItsHeaderAndThenWhatTheClientSends(t *testing.T) {
	t.Parallel()
	for _, version := range []string{"", "v1", "v2", "v2-ssl"} {
		t.Run("version "+version, func(t *testing.T) {
			t.Parallel()
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = ln.Close() })
			h := StartHAProxy(t, ln.Addr().String(), version)
			client := dial(t, h.Addr)
			backend := accept(t, ln)
			Transcript(t, backend, header(t, version, client))
			// Both ends are played as clients: none waits for the other.
			Transcript(t, client, `C: EHLO client.example`)
			Transcript(t, backend, `
				S: EHLO client.example
				C: 250 ok
				C: <EOF>
			`)
			Transcript(t, client, `
				S: 250 ok
				S: <EOF>
			`)
		})
	}
}

// accept returns the next connection. It fails the test when none has come
// within the time of a step.
func accept(t *testing.T, ln net.Listener) net.Conn {
	t.Helper()
	if err := ln.(*net.TCPListener).SetDeadline(time.Now().Add(stepTimeout)); err != nil {
		t.Fatal(err)
	}
	conn, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// header returns the step of a transcript that expects the header for client.
func header(t *testing.T, version string, client net.Conn) string {
	t.Helper()
	from, to := client.LocalAddr().(*net.TCPAddr), client.RemoteAddr().(*net.TCPAddr)
	var tlvs string
	switch version {
	case "":
		return ""
	case "v1":
		return fmt.Sprintf("S: PROXY TCP4 127.0.0.1 127.0.0.1 %d %d", from.Port, to.Port)
	case "v2-ssl": // PP2_TYPE_SSL without a flag: the client came without TLS
		tlvs = "\x20\x00\x05\x00\x00\x00\x00\x00"
	}
	b := []byte("\r\n\r\n\x00\r\nQUIT\n\x21\x11")
	b = append(b, 0, byte(12+len(tlvs)), 127, 0, 0, 1, 127, 0, 0, 1)
	b = append(b, byte(from.Port>>8), byte(from.Port), byte(to.Port>>8), byte(to.Port))
	var escaped strings.Builder
	for _, c := range append(b, tlvs...) {
		fmt.Fprintf(&escaped, `\x%02x`, c)
	}
	return "S- " + escaped.String()
}
