package listen

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"postern/proxy"
	"postern/proxy/proxytest"
)

var loopback = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}

type proxyHeaderConn interface {
	net.Conn
	ProxyHeader(time.Time) (client, local netip.AddrPort, err error)
}

// acceptProxied returns both ends of a connection that a ProxyListener has
// accepted.
func acceptProxied(t testing.TB, trusted []netip.Prefix) (client, server net.Conn) {
	t.Helper()
	tcp, err := listenTCP(context.Background(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ln := Proxied(tcp, trusted)
	defer func() { _ = ln.Close() }()
	if client, err = net.Dial("tcp", ln.Addr().String()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	if server, err = ln.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = server.Close() })
	return client, server
}

// headerV2 returns a header of version 2 with command, family and payload.
func headerV2(command, family byte, payload string) string {
	return "\r\n\r\n\x00\r\nQUIT\n" + string([]byte{command, family, byte(len(payload) >> 8), byte(len(payload))}) + payload
}

const (
	v4 = "\xC0\x00\x02\x01\xC6\x33\x64\x07\x12\x67\x03\xE1" // 192.0.2.1:4711 to 198.51.100.7:993
	v6 = "\x20\x01\x0d\xb8\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01" +
		"\x20\x01\x0d\xb8\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x12\x67\x03\xE1"
	v4in6 = "\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\xff\xff\xC0\x00\x02\x01" +
		"\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\xff\xff\xC6\x33\x64\x07\x12\x67\x03\xE1"
)

// Criterion: a load balancer says in a PROXY header, v1 or v2, whom a
// connection is from, and what follows the header is the client's.
func TestProxiedReadsTheHeaderAndNoMore(t *testing.T) {
	for header, want := range map[string]string{
		"PROXY TCP4 192.0.2.1 198.51.100.7 4711 993\r\n":                  "192.0.2.1:4711 198.51.100.7:993",
		"PROXY TCP6 2001:db8::1 2001:db8::2 4711 993\r\n":                 "[2001:db8::1]:4711 [2001:db8::2]:993",
		headerV2(0x21, 0x11, v4):                                          "192.0.2.1:4711 198.51.100.7:993",
		headerV2(0x21, 0x11, v4+"\x05\x00\x03abc"):                        "192.0.2.1:4711 198.51.100.7:993",
		headerV2(0x21, 0x21, v6):                                          "[2001:db8::1]:4711 [2001:db8::2]:993",
		headerV2(0x21, 0x21, v4in6):                                       "192.0.2.1:4711 198.51.100.7:993",
		headerV2(0x21, 0x11, v4+"\x04\x0f\x9d"+strings.Repeat("x", 3997)): "192.0.2.1:4711 198.51.100.7:993",
		// These speak for the balancer: the socket's addresses hold.
		"PROXY UNKNOWN\r\n": "",
		"PROXY UNKNOWN ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 65535 65535\r\n": "",
		headerV2(0x20, 0x00, ""): "",
		headerV2(0x20, 0x11, v4): "",
	} {
		client, server := acceptProxied(t, loopback)
		const after = "\x16\x03\x01"
		_, _ = io.WriteString(client, header+after)
		if want == "" {
			want = client.LocalAddr().String() + " " + client.RemoteAddr().String()
		}
		from, to, err := server.(proxyHeaderConn).ProxyHeader(time.Now().Add(time.Second))
		if got := from.String() + " " + to.String(); got != want || err != nil {
			t.Errorf("%q: %s, %v, want %s", header, got, err, want)
		}
		rest := make([]byte, len(after)+1)
		if n, _ := server.Read(rest); string(rest[:n]) != after {
			t.Errorf("%q: read %q behind it, want %q", header, rest[:n], after)
		}
	}
}

func TestProxiedReadsAHeaderThatComesOctetByOctet(t *testing.T) {
	for _, header := range []string{"PROXY TCP4 192.0.2.1 198.51.100.7 4711 993\r\n", headerV2(0x21, 0x11, v4)} {
		client, server := acceptProxied(t, loopback)
		go func() {
			for i := range header {
				_, _ = io.WriteString(client, header[i:i+1])
				time.Sleep(time.Millisecond)
			}
		}()
		from, _, err := server.(proxyHeaderConn).ProxyHeader(time.Now().Add(5 * time.Second))
		if got, want := from.String(), "192.0.2.1:4711"; got != want || err != nil {
			t.Errorf("%q: %s, %v, want %s", header, got, err, want)
		}
	}
}

// Criterion: a trusted balancer that sends no header, a bad one or one without
// end is not served.
func TestProxiedRefusesWhatIsNoHeader(t *testing.T) {
	for _, header := range []string{
		"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\x00\x00",
		"a LOGIN x y\r\n",
		"PROXY TCP4 192.0.2.1",
		"PROXY TCP4 192.0.2.1 198.51.100.7 4711 993\n",
		"PROXY TCP4 192.0.2.1 198.51.100.7 4711\r\n",
		"PROXY TCP4 192.0.2.1 198.51.100.7 4711 65536\r\n",
		"PROXY TCP4 2001:db8::1 2001:db8::2 4711 993\r\n",
		"PROXY UDP4 192.0.2.1 198.51.100.7 4711 993\r\n",
		"PROXY UNKNOWN " + strings.Repeat("x", 200) + "\r\n",
		headerV2(0x31, 0x11, v4),
		headerV2(0x22, 0x11, v4),
		headerV2(0x21, 0x12, v4), // UDP
		headerV2(0x21, 0x31, strings.Repeat("\x00", 216)),
		headerV2(0x21, 0x00, ""),
		headerV2(0x21, 0x11, v4[:11]),
		headerV2(0x21, 0x11, v4+strings.Repeat("x", 4096)),
		headerV2(0x21, 0x11, v4)[:20],
	} {
		client, server := acceptProxied(t, loopback)
		_, _ = io.WriteString(client, header)
		_ = client.(*net.TCPConn).CloseWrite()
		if from, _, err := server.(proxyHeaderConn).ProxyHeader(time.Now().Add(time.Second)); !errors.Is(err, proxy.ErrProxyHeader) {
			t.Errorf("%q: %v, %v, want ErrProxyHeader", header, from, err)
		}
	}
}

func TestProxiedGivesASilentBalancerItsTimeAndNoMore(t *testing.T) {
	_, server := acceptProxied(t, loopback)
	_, _, err := server.(proxyHeaderConn).ProxyHeader(time.Now().Add(10 * time.Millisecond))
	if e, ok := errors.AsType[net.Error](err); !ok || !e.Timeout() || !errors.Is(err, proxy.ErrProxyHeader) {
		t.Errorf("ProxyHeader = %v, want ErrProxyHeader for a timeout", err)
	}
}

func TestProxiedTakesAnEmptyConnectionForAHealthCheck(t *testing.T) {
	for _, linger := range []int{-1, 0} { // FIN; RST, as HAProxy
		client, server := acceptProxied(t, loopback)
		_ = client.(*net.TCPConn).SetLinger(linger)
		_ = client.Close()
		if _, _, err := server.(proxyHeaderConn).ProxyHeader(time.Now().Add(time.Second)); !errors.Is(err, io.EOF) || errors.Is(err, proxy.ErrProxyHeader) {
			t.Errorf("ProxyHeader = %v, want io.EOF", err)
		}
	}
}

func TestProxiedTellsAMissingHeaderFromABadOne(t *testing.T) {
	for begun, missing := range map[string]bool{
		"":                             true, // a client that waits for the greeting
		"\x16\x03\x01\x02\x00\x01\x00": true,
		"a LOGIN alice secret\r\n":     true,
		"QUIT\r\n":                     true,
		"\r\n\r\n\x00\r\nQUIT\n\x21":   false,
		"\r\n\r\n":                     false,
		"PRO":                          false,
		"PROXY TCP4 192.0.2.1":         false,
		"PROXY TCP4 192.0.2.1 198.51.100.7 4711 65536\r\n": false,
	} {
		client, server := acceptProxied(t, loopback)
		_, _ = io.WriteString(client, begun)
		_, _, err := server.(proxyHeaderConn).ProxyHeader(time.Now().Add(50 * time.Millisecond))
		if !errors.Is(err, proxy.ErrProxyHeader) || errors.Is(err, proxy.ErrNoProxyHeader) != missing {
			t.Errorf("%q: %v, want a missing header: %t", begun, err, missing)
		}
	}
}

// Criterion: nobody but the balancers says in a header where it comes from.
func TestProxiedReadsHeadersOfTrustedNetworksOnly(t *testing.T) {
	for _, trusted := range [][]netip.Prefix{nil, {netip.MustParsePrefix("127.0.0.2/32"), netip.MustParsePrefix("::/0")}} {
		client, server := acceptProxied(t, trusted)
		_, _ = io.WriteString(client, "PROXY")
		if _, ok := server.(proxyHeaderConn); ok {
			t.Fatalf("trusted %v: a header is asked for", trusted)
		}
		b := make([]byte, 10)
		if n, err := server.Read(b); string(b[:n]) != "PROXY" {
			t.Errorf("read %q, %v, want the client's octets", b[:n], err)
		}
	}
}

func TestProxiedTrustReplacesTheNetworks(t *testing.T) {
	tcp, err := listenTCP(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ln := Proxied(tcp, nil)
	defer func() { _ = ln.Close() }()
	for _, networks := range [][]netip.Prefix{nil, loopback, nil} {
		ln.Trust(networks)
		client, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		server, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		if _, ok := server.(proxyHeaderConn); ok != (networks != nil) {
			t.Errorf("trusted %v: a header is asked for: %v", networks, ok)
		}
		_, _ = client.Close(), server.Close()
	}
}

// Criterion: HAProxy's headers are understood, and TLS begins behind them.
func TestProxiedBehindARealHAProxy(t *testing.T) {
	cert, pool := proxytest.Cert(t)
	for _, version := range []string{"v1", "v2", "v2-ssl"} {
		tcp, err := listenTCP(t.Context(), "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		ln := Proxied(tcp, loopback)
		h := proxytest.StartHAProxy(t, ln.Addr().String(), version)
		client, err := net.Dial("tcp", h.Addr)
		if err != nil {
			t.Fatal(err)
		}
		received := make(chan error, 1)
		go func() {
			_, err := io.WriteString(proxytest.ClientTLS(client, pool), "hello")
			received <- err
		}()
		server, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		from, to, err := server.(proxyHeaderConn).ProxyHeader(time.Now().Add(5 * time.Second))
		if from.String() != client.LocalAddr().String() || to.String() != h.Addr || err != nil {
			t.Errorf("%s: from %v to %v, %v, want %v to %s", version, from, to, err, client.LocalAddr(), h.Addr)
		}
		secure := tls.Server(server, proxytest.ServerTLS(cert))
		b := make([]byte, 10)
		if n, err := secure.Read(b); string(b[:n]) != "hello" {
			t.Errorf("%s: read %q, %v", version, b[:n], err)
		}
		if err := <-received; err != nil {
			t.Error(err)
		}
		_, _, _ = client.Close(), server.Close(), ln.Close()
	}
}

// A header of ours says what one of HAProxy's would.
func TestHeaderIsReadBack(t *testing.T) {
	for _, version := range []byte{1, 2} {
		for _, want := range []proxy.Client{
			{ID: "S1", Addr: netip.MustParseAddrPort("192.0.2.1:4711"), Local: netip.MustParseAddrPort("198.51.100.7:993")},
			{ID: "S2", Addr: netip.MustParseAddrPort("[2001:db8::1]:4711"), Local: netip.MustParseAddrPort("[2001:db8::2]:993"),
				TLS: &tls.ConnectionState{Version: tls.VersionTLS12, ServerName: "mail.customer.example"}},
			{ID: "S3"},
		} {
			header, err := Header(version, want)
			if err != nil {
				t.Fatal(err)
			}
			client, server := acceptProxied(t, loopback)
			_, _ = client.Write(header)
			from, to, err := server.(proxyHeaderConn).ProxyHeader(time.Now().Add(time.Second))
			if !want.Addr.IsValid() {
				want.Addr, want.Local = client.LocalAddr().(*net.TCPAddr).AddrPort(), client.RemoteAddr().(*net.TCPAddr).AddrPort()
			}
			if from != want.Addr || to != want.Local || err != nil {
				t.Errorf("v%d: %v, %v, %v, want %v, %v", version, from, to, err, want.Addr, want.Local)
			}
		}
	}
}

// Criterion: a PROXY v2 header of ours carries the name asked for in TLS and
// its version.
func TestHeaderDescribesTLS(t *testing.T) {
	header, err := Header(2, proxy.Client{
		ID: "S1", Addr: netip.MustParseAddrPort("192.0.2.1:4711"), Local: netip.MustParseAddrPort("198.51.100.7:993"),
		TLS: &tls.ConnectionState{
			Version: tls.VersionTLS13, ServerName: "mail.customer.example", NegotiatedProtocol: "imap", CipherSuite: tls.TLS_AES_128_GCM_SHA256,
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	const subs = "\x21\x00\x07TLSv1.3\x23\x00\x16TLS_AES_128_GCM_SHA256"
	want := headerV2(0x21, 0x11, v4+"\x05\x00\x02S1\x02\x00\x15mail.customer.example\x01\x00\x04imap"+
		"\x20\x00"+string([]byte{byte(5 + len(subs))})+"\x01\x00\x00\x00\x01"+subs)
	if string(header) != want {
		t.Errorf("Header = %q, want %q", header, want)
	}
}

// FuzzProxyHeader: whatever a balancer sends, what is behind the header stays, and
// addresses are there if there is no error.
func FuzzProxyHeader(f *testing.F) {
	f.Add([]byte("PROXY TCP4 192.0.2.1 198.51.100.7 4711 993\r\nafter"))
	f.Add([]byte(headerV2(0x21, 0x11, v4) + "after"))
	f.Add([]byte(headerV2(0x20, 0x00, "") + "after"))
	f.Fuzz(func(t *testing.T, in []byte) {
		r := bytes.NewReader(in)
		header, err := readHeader(r)
		if err != nil {
			return
		}
		if rest := in[len(in)-r.Len():]; !bytes.Equal(in, append(bytes.Clone(header), rest...)) {
			t.Fatalf("%q: header %q and %q behind it", in, header, rest)
		}
		client, local, err := parseHeader(header)
		if err == nil && client.IsValid() != local.IsValid() {
			t.Errorf("%q: from %v to %v", header, client, local)
		}
	})
}
