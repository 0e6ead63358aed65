package listen

import (
	"errors"
	"net"
	"strings"
	"syscall"
	"testing"
)

func listenTest(t *testing.T, address string) net.Listener {
	t.Helper()
	ln, err := listenTCP(t.Context(), address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	return ln
}

func portOf(t *testing.T, ln net.Listener) string {
	t.Helper()
	_, port, err := net.SplitHostPort(ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return port
}

func TestPortWithoutHostListensOnIPv4AndIPv6(t *testing.T) {
	port := portOf(t, listenTest(t, ":0"))
	for _, host := range []string{"127.0.0.1", "::1"} {
		t.Run(host, func(t *testing.T) {
			needAddress(t, host)
			c, err := net.Dial("tcp", net.JoinHostPort(host, port))
			if err != nil {
				t.Fatal(err)
			}
			_ = c.Close()
		})
	}
}

// needAddress skips a test of IPv6 on a machine, or in a container, without IPv6.
func needAddress(t *testing.T, host string) {
	t.Helper()
	ln, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
	if err != nil {
		t.Skip("no such address here: ", err)
	}
	_ = ln.Close()
}

func TestErrorsAdvise(t *testing.T) {
	taken := listenTest(t, "127.0.0.1:0").Addr().String()
	tests := []struct {
		address string
		is      error
		want    string
	}{
		{taken, syscall.EADDRINUSE, "listen on " + taken + ": address already in use"},
		{"192.0.2.1:993", syscall.EADDRNOTAVAIL, "listen on 192.0.2.1:993: cannot assign requested address: this machine has no such address"},
		{"127.0.0.1:imapz", nil, "listen on 127.0.0.1:imapz: "},
		{"127.0.0.1", nil, "listen on 127.0.0.1: "},
		{"127.0.0.1:99999", nil, "listen on 127.0.0.1:99999: "},
	}
	for _, test := range tests {
		ln, err := listenTCP(t.Context(), test.address)
		if err == nil {
			_ = ln.Close()
			t.Errorf("openTCP(%s): no error", test.address)
			continue
		}
		if !strings.HasPrefix(err.Error(), test.want) || test.is != nil && !errors.Is(err, test.is) {
			t.Errorf("openTCP(%s): %v, want %q", test.address, err, test.want)
		}
	}
}

// A process of root can listen on every port, so the test makes the error.
func TestRefusedPortNamesTheCapability(t *testing.T) {
	if got := adviceFor(":993", &net.OpError{Err: syscall.EACCES}); !strings.Contains(got, "CAP_NET_BIND_SERVICE") {
		t.Errorf("advice = %q, want the capability", got)
	}
}
