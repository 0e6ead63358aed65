package listen

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync/atomic"
	"testing"
	"time"
)

// startLimited returns a LimitedListener, a function that connects to it, and the
// accepted connections.
func startLimited(t *testing.T, allow func(netip.Addr) bool) (l *LimitedListener, dial func(source string) net.Conn, accepted chan net.Conn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l = Limited(ln, allow)
	accepted = make(chan net.Conn, 1000)
	ended := make(chan error, 1)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				ended <- err
				return
			}
			accepted <- c
		}
	}()
	t.Cleanup(func() {
		_ = l.Close()
		select {
		case err := <-ended:
			if !errors.Is(err, net.ErrClosed) {
				t.Errorf("Accept ended with %v", err)
			}
		case <-time.After(10 * time.Second):
			t.Error("Accept did not end with Close")
		}
	})
	return l, func(source string) net.Conn {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(source)}, Timeout: 10 * time.Second}
		c, err := d.DialContext(t.Context(), "tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		return c
	}, accepted
}

func receiveConn(t *testing.T, accepted chan net.Conn) net.Conn {
	t.Helper()
	select {
	case c := <-accepted:
		t.Cleanup(func() { _ = c.Close() })
		return c
	case <-time.After(10 * time.Second):
		t.Fatal("nothing was accepted")
		return nil
	}
}

// isClosed waits for the end of a connection whose other side never writes.
func checkClosed(t *testing.T, c net.Conn) {
	t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the connection was not closed: %v", err)
	}
}

// Criterion: An HTTP port has few connections, one network half of them, and one too many takes the place of the oldest of the network with the most.
func TestConnectionBeyondTheLimitReplacesTheOldest(t *testing.T) {
	l, dial, accepted := startLimited(t, nil)
	all, each := maxConnections()
	connect := func(source string) (ours, theirs net.Conn) {
		ours = dial(source)
		return ours, receiveConn(t, accepted)
	}
	other, _ := connect("127.0.0.2")
	first, _ := connect("127.0.0.1")
	second, theirs := connect("127.0.0.1")
	third, _ := connect("127.0.0.1")
	for range each - 3 {
		connect("127.0.0.1")
	}
	connect("127.0.0.1")
	checkClosed(t, first)
	_ = theirs.Close()
	_ = theirs.Close() // counts once
	checkClosed(t, second)
	connect("127.0.0.1")

	for i := range all - each - 1 {
		connect(fmt.Sprintf("127.0.1.%d", 1+i))
	}
	checkOpen(t, third)
	connect("127.0.2.1")
	checkClosed(t, third)
	checkOpen(t, other)
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.open) != all {
		t.Errorf("%d are open, want %d", len(l.open), all)
	}
}

// Criterion: Two networks that fill an HTTP port do not close a third one's connection.
func TestNetworkWithTheMostConnectionsYields(t *testing.T) {
	_, dial, accepted := startLimited(t, nil)
	_, each := maxConnections()
	connect := func(source string) net.Conn {
		ours := dial(source)
		receiveConn(t, accepted)
		return ours
	}
	prometheus := connect("127.0.0.3")
	for range 3 * each {
		connect("127.0.0.1")
		connect("127.0.0.2")
	}
	checkOpen(t, prometheus)
}

// isOpen sees that nobody has closed a connection yet.
func checkOpen(t *testing.T, c net.Conn) {
	t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the connection has ended: %v", err)
	}
}

// Nobody needs to send anything to be refused, and an answer holds for the next
// connection.
func TestConnectionThatIsNotAllowedIsClosed(t *testing.T) {
	var network atomic.Pointer[netip.Prefix]
	allow := func(a netip.Addr) bool { return network.Load().Contains(a) }
	set := func(text string) { p := netip.MustParsePrefix(text); network.Store(&p) }
	set("127.0.3.0/24")
	_, dial, accepted := startLimited(t, allow)
	checkClosed(t, dial("127.0.4.1"))
	dial("127.0.3.1")
	receiveConn(t, accepted)
	set("127.0.4.0/24")
	dial("127.0.4.1")
	receiveConn(t, accepted)
	checkClosed(t, dial("127.0.3.1"))
}

func TestNetworksAreWhatOneClientHas(t *testing.T) {
	for from, want := range map[string]string{
		"192.0.2.7": "192.0.2.7/32", "2001:db8:1:2:3:4:5:6": "2001:db8:1:2::/64",
	} {
		if got := networkOf(netip.MustParseAddr(from)); got.String() != want {
			t.Errorf("%s is of %s, want %s", from, got, want)
		}
	}
	if networkOf(netip.Addr{}).IsValid() {
		t.Error("no address has a network")
	}
}
