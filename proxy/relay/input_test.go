package relay

import (
	"bytes"
	"crypto/tls"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"postern/proxy"
	"postern/proxy/proxytest"
)

// A gathered writes in one piece what is written while hold runs.
type gathered struct {
	net.Conn
	held *bytes.Buffer // nil: it is sent at once
}

func (g *gathered) Write(p []byte) (int, error) {
	if g.held != nil {
		return g.held.Write(p)
	}
	return g.Conn.Write(p)
}

func (g *gathered) hold(t *testing.T, write func()) {
	t.Helper()
	g.held = new(bytes.Buffer)
	write()
	all := g.held.Bytes()
	g.held = nil
	if _, err := g.Conn.Write(all); err != nil {
		t.Fatal(err)
	}
}

// A message comes in records of TLS; the server gets those that have come in one
// write.
func TestInputGathersRecords(t *testing.T) {
	near, far := proxytest.Pipe(t)
	cert, roots := proxytest.Cert(t, "localhost")
	conn := proxy.NewConn(far, proxy.Client{ID: "TEST"}, proxytest.ServerTLS(cert), time.Minute)
	g := &gathered{Conn: near}
	client := tls.Client(g, &tls.Config{RootCAs: roots, ServerName: "localhost"})
	done := make(chan error)
	go func() { done <- client.Handshake() }()
	if err := errors.Join(conn.StartTLS(t.Context()), <-done); err != nil {
		t.Fatal(err)
	}
	var want strings.Builder
	g.hold(t, func() {
		for _, record := range []string{"one", "two", "three", "four"} {
			piece := strings.Repeat(record, 1000)
			want.WriteString(piece)
			_, _ = client.Write([]byte(piece))
		}
	})
	in := &input{client: conn}
	defer in.release()
	if err := in.fillLarge(); err != nil || string(in.ahead()) != want.String() {
		t.Errorf("%d octets are read at once, want %d (%v)", len(in.ahead()), want.Len(), err)
	}
}
