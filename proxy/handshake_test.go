package proxy_test

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"postern/proxy"
	"postern/proxy/proxytest"
)

// tlsWithProfile returns the configuration of a listener with an RSA certificate.
func tlsWithProfile(t *testing.T, cert tls.Certificate, p proxy.Profile) *tls.Config {
	t.Helper()
	return proxy.InstrumentTLS(&tls.Config{
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &cert, nil },
		MinVersion:     p.MinVersion(), CipherSuites: p.CipherSuites(), NextProtos: []string{"imap", proxy.ACMETLS},
	})
}

// startProfiles serves two services at one address: for clients from 127.0.0.2 legacy,
// for all others modern.
func startProfiles(t *testing.T, wrap func(net.Listener) net.Listener) (d *recorder, address string) {
	t.Helper()
	cert, err := tls.LoadX509KeyPair(proxytest.RSACertFiles(t, "mail.example.org"))
	if err != nil {
		t.Fatal(err)
	}
	service := func(name string, p proxy.Profile, networks ...netip.Prefix) *proxy.Service {
		return &proxy.Service{
			Name: name, Protocol: "plain", Networks: networks, TLS: tlsWithProfile(t, cert, p),
			Dialogue: func(c *proxy.Conn) proxy.Dialogue { return &testDialogue{Conn: c} },
			Account:  func(user string) (string, error) { return user, nil },
			Backend:  &fakeBackend{},
		}
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address = ln.Addr().String()
	ln = wrap(ln)
	d = newRecorder()
	s := &proxy.Server{Guard: &fakeBackend{}, Observer: d}
	err = s.Apply([]proxy.Binding{
		{Listener: ln, Service: service("modern", proxy.Modern)},
		{Listener: ln, Service: service("legacy", proxy.Legacy, netip.MustParsePrefix("127.0.0.2/32"))},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Shutdown(t.Context(), 0) })
	return d, address
}

func sameListener(ln net.Listener) net.Listener { return ln }

func dialFrom(t *testing.T, source, address string) net.Conn {
	t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(source)}, Timeout: 10 * time.Second}
	c, err := d.DialContext(t.Context(), "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// handshakeOf waits for the event of a handshake.
func (d *recorder) handshakeOf(t *testing.T) proxy.Handshake {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		d.mu.Lock()
		for i, e := range d.events {
			if h, ok := e.(proxy.Handshake); ok {
				d.events = slices.Delete(d.events, i, i+1)
				d.mu.Unlock()
				return h
			}
		}
		d.mu.Unlock()
	}
	t.Fatal("no handshake has ended")
	panic("unreachable")
}

// Criterion: Of listeners that share an address, the client's network alone decides which one it gets: old TLS for those that need it, and nothing of it for their neighbours.
func TestLegacyServiceIsForItsNetworksAlone(t *testing.T) {
	d, address := startProfiles(t, sameListener)
	for _, test := range []struct {
		source, service, result string
	}{
		{"127.0.0.2", "legacy", proxy.HandshakeOK},
		{"127.0.0.1", "modern", proxy.HandshakeError},
		{"127.0.0.3", "modern", proxy.HandshakeError},
	} {
		c := tls.Client(dialFrom(t, test.source, address), &tls.Config{
			InsecureSkipVerify: true, MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS10,
		})
		err := c.HandshakeContext(t.Context())
		h := d.handshakeOf(t)
		if h.Result != test.result || h.Client.Service != test.service || (err == nil) != (test.result == proxy.HandshakeOK) {
			t.Errorf("TLS 1.0 from %s: %s on %s (%v), want %s on %s", test.source, h.Result, h.Client.Service, err, test.result, test.service)
		}
	}
}

// prefaceListener is a listener whose connections have a PROXY header of another
// address.
type prefaceListener struct {
	net.Listener
	from string
}

func (a prefaceListener) Accept() (net.Conn, error) {
	c, err := a.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return proxyHeaderConn{c.(*net.TCPConn), netip.AddrPortFrom(netip.MustParseAddr(a.from), 1)}, nil
}

type proxyHeaderConn struct {
	*net.TCPConn
	from netip.AddrPort
}

func (p proxyHeaderConn) ProxyHeader(time.Time) (client, local netip.AddrPort, err error) {
	return p.from, p.from, nil
}

func TestServiceIsChosenByTheAddressInThePROXYHeader(t *testing.T) {
	for from, want := range map[string]string{"127.0.0.2": "legacy", "192.0.2.1": "modern"} {
		d, address := startProfiles(t, func(ln net.Listener) net.Listener { return prefaceListener{ln, from} })
		c := tls.Client(dialFrom(t, "127.0.0.2", address), &tls.Config{InsecureSkipVerify: true})
		if err := c.HandshakeContext(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := d.handshakeOf(t).Client.Service; got != want {
			t.Errorf("a client that the balancer says is from %s gets %s, want %s", from, got, want)
		}
	}
}

// Criterion: A handshake that fails tells why, what the client offered, and the strictest profile that would have taken it.
func TestFailedHandshakeTellsWhatTheClientNeeds(t *testing.T) {
	d, address := startProfiles(t, sameListener)
	old := func(h proxytest.ClientHello) []byte { return h.Record("mail.example.org") }
	for _, test := range []struct {
		name          string
		hello         []byte
		reason, needs string
		name2         string
	}{
		{"Windows 7", old(proxytest.Windows7), proxy.NoCipher, "compatible", "mail.example.org"},
		{"Windows 7 without TLS 1.2", old(proxytest.Windows7TLS10), proxy.NoVersion, "legacy", "mail.example.org"},
		{"Windows XP", old(proxytest.WindowsXP), proxy.NoVersion, "legacy", ""},
		{"RC4 alone", old(proxytest.ClientHello{Version: 0x0301, Suites: []uint16{5}}), proxy.NoVersion, "", "mail.example.org"},
		{"SSL 3.0", old(proxytest.ClientHello{Version: 0x0300, Suites: []uint16{10}}), proxy.NoVersion, "", "mail.example.org"},
		{"nothing in common", old(proxytest.ClientHello{Version: 0x0303, Suites: []uint16{0x009f}}), proxy.NoCipher, "", "mail.example.org"},
	} {
		c := dialFrom(t, "127.0.0.1", address)
		if _, err := c.Write(test.hello); err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, c)
		h := d.handshakeOf(t)
		if h.Result != proxy.HandshakeError || h.Reason != test.reason || h.Needs != test.needs || h.Hello == nil || h.Hello.ServerName != test.name2 {
			t.Errorf("%s: %+v, want %s, %s, needs %q", test.name, h, proxy.HandshakeError, test.reason, test.needs)
		}
	}
	// A name that ends in a dot is none, RFC 6066 section 3: docs/tls.md.
	c := dialFrom(t, "127.0.0.1", address)
	if _, err := c.Write(proxytest.Android44.Record("mail.example.org.")); err != nil {
		t.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, c)
	if h := d.handshakeOf(t); h.Result != proxy.HandshakeError || h.Hello != nil || !strings.Contains(h.Err.Error(), "error decoding message") {
		t.Errorf("a name with a dot: %+v, want an error of decoding", h)
	}
	// What a certificate authority does, and a browser.
	for protocol, want := range map[string]proxy.Handshake{
		proxy.ACMETLS: {Result: proxy.HandshakeChallenge},
		"h2":          {Result: proxy.HandshakeError, Reason: proxy.NoProtocol},
	} {
		c := tls.Client(dialFrom(t, "127.0.0.1", address), &tls.Config{InsecureSkipVerify: true, NextProtos: []string{protocol}})
		err := c.HandshakeContext(t.Context())
		if h := d.handshakeOf(t); h.Result != want.Result || h.Reason != want.Reason || h.Needs != "" || (err == nil) != (protocol == proxy.ACMETLS) {
			t.Errorf("ALPN %s: %v, %+v, want %+v", protocol, err, h, want)
		}
		if err != nil {
			continue
		}
		if n, err := c.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
			t.Errorf("ALPN %s: read %d, %v, want the end", protocol, n, err)
		}
	}
}

func TestShutdownSaysNothingIntoAHandshake(t *testing.T) {
	dial, s := startServer(t, &fakeBackend{}, newRecorder(), func(svc *proxy.Service, _ *proxy.Server) { svc.StartTLS = false })
	c := dial().(*tls.Conn).NetConn()
	hello := proxytest.Windows81.Record("mail.example.org")
	if _, err := c.Write(hello[:len(hello)/2]); err != nil {
		t.Fatal(err)
	}
	for all := s.Sessions(); len(all) == 0 || all[0].Step != proxy.StepHandshake; all = s.Sessions() {
		time.Sleep(time.Millisecond)
	}
	begun := time.Now()
	if err := s.Shutdown(t.Context(), 0); err != nil {
		t.Error(err)
	}
	if took := time.Since(begun); took > 5*time.Second {
		t.Errorf("the shutdown took %v", took)
	}
	if said, _ := io.ReadAll(c); len(said) > 0 {
		t.Errorf("said %q", said)
	}
}
