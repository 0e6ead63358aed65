package bridge

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"

	"postern/proxy"
	"postern/proxy/proxytest"
)

// realServers are IMAP servers that run here, with an empty INBOX of alice.
var realServers = []struct {
	name  string
	start func(t *testing.T) (addr string, deliver func(raw []byte))
}{
	{"Dovecot", func(t *testing.T) (string, func([]byte)) {
		d := proxytest.StartDovecot(t, proxytest.DovecotOptions{Users: map[string]string{"alice": "secret"}})
		return d.IMAP, func(raw []byte) { d.Deliver(t, "alice", raw) }
	}},
	{"Cyrus", func(t *testing.T) (string, func([]byte)) {
		c := proxytest.StartCyrus(t, proxytest.CyrusOptions{Users: map[string]string{"alice": "secret"}})
		return c.IMAP, func(raw []byte) { c.Deliver(t, "alice", raw) }
	}},
	{"Courier", func(t *testing.T) (string, func([]byte)) {
		c := proxytest.StartCourier(t, proxytest.CourierOptions{Users: map[string]string{"alice": "secret"}})
		// It stores LF, and sends a CR before each.
		return c.IMAP, func(raw []byte) { c.Deliver(t, "alice", bytes.ReplaceAll(raw, []byte("\r\n"), []byte("\n"))) }
	}},
}

// Criterion: from Dovecot, Cyrus and Courier, read in turn and in flight, messages are whole and right also when the connection to them is cut every now and then.
func TestDrainOfRealServers(t *testing.T) {
	for _, server := range realServers {
		t.Run(server.name, func(t *testing.T) {
			addr, deliver := server.start(t)
			var bodies []string
			for i := range 60 {
				size := 300
				if i%13 == 5 {
					size = 150_000
				}
				body := fmt.Sprintf("From: a@example.org\r\nSubject: %d\r\n\r\n%s\r\n", i, strings.Repeat(".line of text\r\n", size/15))
				bodies = append(bodies, body)
				deliver([]byte(body))
			}
			relay := proxytest.StartRelay(t, addr)
			for _, test := range []struct {
				cut      int64
				inFlight int
			}{{0, 1}, {0, 16}, {400_000, 1}, {250_000, 16}} {
				relay.SetFaults(proxytest.Faults{CutRead: test.cut})
				dial, logins := dialIMAP(relay.Addr), 0
				got, complete := drain(t, &Backend{KeepUnseen: true, LogIn: func(ctx context.Context, l *proxy.Login) (net.Conn, string, error) {
					logins++
					return dial(ctx, l)
				}}, len(bodies), test.inFlight)
				for i, text := range got {
					if !strings.HasSuffix(text, bodies[i]) { // a server may put a field before it
						t.Fatalf("%+v: message %d has %d octets, want %d", test, i+1, len(text), len(bodies[i]))
					}
				}
				if !complete && test.cut == 0 || len(got) < 20 || test.cut > 0 && logins < 2 {
					t.Errorf("%+v: %d messages with %d logins, complete: %v", test, len(got), logins, complete)
				}
			}
		})
	}
}

// drain retrieves n messages, and says QUIT.
func drain(t *testing.T, b *Backend, n, inFlight int) (got []string, complete bool) {
	t.Helper()
	r := run(t, b)
	in, sent := bufio.NewReader(r.conn), 0
	for i := range n {
		for ; sent < min(n, i+inFlight); sent++ {
			_, _ = fmt.Fprintf(r.conn, "RETR %d\r\n", sent+1)
		}
		status, err := in.ReadString('\n')
		if err != nil || !strings.HasPrefix(status, "+OK") {
			return got, false
		}
		text, ended := stuffed(in)
		if !ended {
			return got, false
		}
		got = append(got, text)
	}
	_, _ = io.WriteString(r.conn, "QUIT\r\n")
	status, _ := in.ReadString('\n')
	return got, strings.HasPrefix(status, "+OK")
}
