package proxy_test

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"postern/proxy"
	"postern/proxy/proxytest"
)

// startWith serves the certificate to all, in TLS 1.0 to 1.3.
func startWith(t *testing.T, cert tls.Certificate) (d *recorder, address string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	d = newRecorder()
	d.closed = make(chan proxy.Closed, 1000)
	s := &proxy.Server{Guard: &fakeBackend{}, Observer: d}
	err = s.Apply([]proxy.Binding{{Listener: ln, Service: &proxy.Service{
		Name: "imap", Protocol: "plain", TLS: tlsWithProfile(t, cert, proxy.Legacy),
		Dialogue: func(c *proxy.Conn) proxy.Dialogue { return &testDialogue{Conn: c} },
		Account:  func(user string) (string, error) { return user, nil },
		Backend:  &fakeBackend{},
	}}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Shutdown(context.WithoutCancel(t.Context()), 0) })
	return d, ln.Addr().String()
}

// outcome waits for the end of one connection, and returns what its handshake and its
// certificate came to, as "result/reason", and "/alert" of CertificateRejected.
func (d *recorder) outcome(t *testing.T) (words []string) {
	t.Helper()
	select {
	case <-d.closed:
	case <-time.After(10 * time.Second):
		t.Fatal("the connection has not ended")
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, e := range d.events {
		switch e := e.(type) {
		case proxy.Handshake:
			words = append(words, e.Result+"/"+e.Reason)
		case proxy.CertificateRejected:
			if e.NotAfter.IsZero() || e.Version < tls.VersionTLS12 || e.ServerName != "mail.example.org" {
				t.Errorf("%+v: a field is missing", e)
			}
			words = append(words, "/"+e.Alert)
		}
	}
	d.events = nil
	return words
}

// certificateUntil returns a self-signed certificate that ends at end.
func certificateUntil(t *testing.T, end time.Time) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{"mail.example.org"}, NotBefore: end.Add(-48 * time.Hour), NotAfter: end,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

// Criterion: A client that rejects our certificate is named with its alert, whether it is OpenSSL, GnuTLS or Go, with TLS 1.2 or 1.3.
func TestRejectedCertificateIsNamedForRealClients(t *testing.T) {
	proxytest.Need(t, "openssl", "gnutls-cli")
	now := time.Now()
	for kind, end := range map[string]time.Time{"unknown": now.Add(time.Hour), "expired": now.Add(-time.Hour)} {
		cert := certificateUntil(t, end)
		ca := t.TempDir() + "/ca.pem"
		if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Leaf.Raw}), 0o600); err != nil {
			t.Fatal(err)
		}
		d, address := startWith(t, cert)
		host, port, _ := net.SplitHostPort(address)
		pool := x509.NewCertPool()
		trust := []string{"-no-CAfile", "-no-CApath", "-no-CAstore"}
		openssl := "unknown_ca"
		if kind == "expired" {
			pool.AddCert(cert.Leaf)
			trust = []string{"-CAfile", ca}
			openssl = "certificate_expired"
		}
		for _, v := range []struct {
			name    string
			version uint16
		}{{"1.2", tls.VersionTLS12}, {"1.3", tls.VersionTLS13}} {
			run := func(program string, args ...string) {
				t.Helper()
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
				defer cancel()
				if out, err := exec.CommandContext(ctx, program, args...).CombinedOutput(); err == nil {
					t.Errorf("%s, %s, TLS %s: the certificate was accepted\n%s", program, kind, v.name, out)
				}
			}
			for client, test := range map[string]struct {
				alert string
				dial  func()
			}{
				"openssl": {openssl, func() {
					run("openssl", append([]string{"s_client", "-connect", address, "-servername", "mail.example.org", "-verify_return_error",
						"-quiet", "-tls" + strings.ReplaceAll(v.name, ".", "_")}, trust...)...)
				}},
				"gnutls-cli": {"bad_certificate", func() {
					run("gnutls-cli", "--x509cafile", ca, "--priority", "NORMAL:-VERS-ALL:+VERS-TLS"+v.name, "--sni-hostname", "mail.example.org",
						"--verify-hostname", "other.example.org", "-p", port, host)
				}},
				"Go": {"bad_certificate", func() {
					c := tls.Client(dialFrom(t, "127.0.0.1", address), &tls.Config{
						RootCAs: pool, ServerName: "mail.example.org", MinVersion: v.version, MaxVersion: v.version,
					})
					if err := c.HandshakeContext(t.Context()); err == nil {
						t.Error("the certificate was accepted")
					}
					_ = c.Close()
				}},
			} {
				test.dial()
				if got, want := d.outcome(t), []string{"client_abort/certificate_rejected", "/" + test.alert}; !slices.Equal(got, want) {
					t.Errorf("%s, %s, TLS %s: %q, want %q", client, kind, v.name, got, want)
				}
			}
		}
	}
}

// A tap is a client's connection that keeps what comes, and the secrets of TLS.
type tap struct {
	net.Conn
	mu       sync.Mutex
	received bytes.Buffer
	keys     bytes.Buffer // in NSS' key log format
}

func (c *tap) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.received.Write(p[:n])
	return n, err
}

// secret returns the client random and the secret with a label.
func (c *tap) secret(t *testing.T, label string) (random, secret []byte) {
	t.Helper()
	for line := range strings.Lines(c.keys.String()) {
		if words := strings.Fields(line); words[0] == label {
			random, _ = hex.DecodeString(words[1])
			secret, _ = hex.DecodeString(words[2])
			return random, secret
		}
	}
	t.Fatalf("no %s", label)
	panic("unreachable")
}

// seal13 returns an alert that is the record with a number under a secret of TLS 1.3
// with AES-128-GCM: RFC 8446 sections 5.2, 5.3, 7.1 and 7.3.
func seal13(t *testing.T, secret []byte, number, level, alert byte) []byte {
	t.Helper()
	expand := func(label string, n int) []byte {
		label = "tls13 " + label
		info := append([]byte{0, byte(n), byte(len(label))}, label...)
		key, err := hkdf.Expand(sha256.New, secret, string(append(info, 0)), n)
		if err != nil {
			t.Fatal(err)
		}
		return key
	}
	inner := []byte{level, alert, 21}
	header := []byte{23, 3, 3, 0, byte(len(inner) + 16)}
	nonce := expand("iv", 12)
	nonce[11] ^= number
	return gcm(t, expand("key", 16)).Seal(header, nonce, inner, header)
}

// seal12 returns an alert that is the second record, after Finished, of TLS 1.2 with
// AES-128-GCM: RFC 5246 sections 5 and 6.3, RFC 5288 section 3.
func seal12(t *testing.T, master, clientRandom, serverRandom []byte, level, alert byte) []byte {
	t.Helper()
	mac := func(parts ...[]byte) []byte {
		h := hmac.New(sha256.New, master)
		for _, p := range parts {
			h.Write(p)
		}
		return h.Sum(nil)
	}
	seed := slices.Concat([]byte("key expansion"), serverRandom, clientRandom)
	var block []byte // client key, server key, client salt, server salt
	for a := mac(seed); len(block) < 40; a = mac(a) {
		block = append(block, mac(a, seed)...)
	}
	sequence := binary.BigEndian.AppendUint64(nil, 1)
	data := append(slices.Clone(sequence), 21, 3, 3, 0, 2)
	record := append([]byte{21, 3, 3, 0, 8 + 2 + 16}, sequence...)
	return gcm(t, block[:16]).Seal(record, append(slices.Clone(block[32:36]), sequence...), []byte{level, alert}, data)
}

func gcm(t *testing.T, key []byte) cipher.AEAD {
	t.Helper()
	block, err := aes.NewCipher(key)
	if err != nil {
		t.Fatal(err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		t.Fatal(err)
	}
	return aead
}

var errStop = errors.New("the test ends the handshake here")

// Criterion: An alert about our certificate is recognised unencrypted, encrypted, before and after the handshake, in one piece or in many; a client that closes without one is not said to have rejected it.
func TestAlertOfAClientIsReadHoweverItComes(t *testing.T) {
	cert := certificateUntil(t, time.Now().Add(time.Hour))
	clear := func(level, alert byte) []byte { return []byte{21, 3, 3, 0, 2, level, alert} }
	const rejected, left, ok = "client_abort/certificate_rejected", "client_abort/closed_after_certificate", "ok/"
	// during is called when the client has the certificate, after when its handshake
	// is complete.
	type client struct {
		name    string
		version uint16
		during  func(c *tap)
		after   func(c *tap, session *tls.Conn)
		want    []string
	}
	all := []client{
		{"OpenSSL: unencrypted", tls.VersionTLS13, func(c *tap) { _, _ = c.Write(clear(2, 48)) }, nil, []string{rejected, "/unknown_ca"}},
		{"after ChangeCipherSpec, in one piece", tls.VersionTLS13, func(c *tap) {
			_, _ = c.Write(append([]byte{20, 3, 3, 0, 1, 1}, clear(2, 45)...))
		}, nil, []string{rejected, "/certificate_expired"}},
		{"octet by octet", tls.VersionTLS13, func(c *tap) {
			for _, octet := range clear(2, 44) {
				_, _ = c.Write([]byte{octet})
				time.Sleep(time.Millisecond)
			}
		}, nil, []string{rejected, "/certificate_revoked"}},
		{"a warning, unencrypted", tls.VersionTLS12, func(c *tap) { _, _ = c.Write(clear(1, 42)) }, nil, []string{rejected, "/bad_certificate"}},
		{"NSS, BoringSSL: encrypted, before Finished", tls.VersionTLS13, func(c *tap) {
			_, secret := c.secret(t, "CLIENT_HANDSHAKE_TRAFFIC_SECRET")
			_, _ = c.Write(seal13(t, secret, 0, 2, 49))
		}, nil, []string{rejected, "/access_denied"}},
		{"SChannel, .NET: encrypted, after Finished", tls.VersionTLS13, nil, func(c *tap, _ *tls.Conn) {
			_, secret := c.secret(t, "CLIENT_TRAFFIC_SECRET_0")
			_, _ = c.Write(seal13(t, secret, 0, 2, 46))
		}, []string{ok, "/certificate_unknown"}},
		{"SChannel, .NET: encrypted, after Finished", tls.VersionTLS12, nil, func(c *tap, _ *tls.Conn) {
			random, master := c.secret(t, "CLIENT_RANDOM")
			const toRandom = 5 + 4 + 2 // record, handshake, version: RFC 5246 section 7.4.1.3
			_, _ = c.Write(seal12(t, master, random, c.received.Bytes()[toRandom:toRandom+32], 2, 46))
		}, []string{ok, "/certificate_unknown"}},
		{"an alert about something else", tls.VersionTLS12, func(c *tap) { _, _ = c.Write(clear(2, 40)) }, nil, []string{left}},
		{"an alert about something else", tls.VersionTLS13, func(c *tap) { _, _ = c.Write(clear(2, 80)) }, nil, []string{left}},
		{"close_notify, unencrypted", tls.VersionTLS13, func(c *tap) { _, _ = c.Write(clear(1, 0)) }, nil, []string{left}},
		{"FIN", tls.VersionTLS12, func(*tap) {}, nil, []string{left}},
		{"FIN", tls.VersionTLS13, func(*tap) {}, nil, []string{left}},
		{"RST", tls.VersionTLS12, func(c *tap) { _ = c.Conn.(*net.TCPConn).SetLinger(0) }, nil, []string{left}},
		{"RST", tls.VersionTLS13, func(c *tap) { _ = c.Conn.(*net.TCPConn).SetLinger(0) }, nil, []string{left}},
		{"garbage", tls.VersionTLS13, func(c *tap) { _, _ = c.Write([]byte{23, 3, 3, 0, 3, 2, 42, 21}) }, nil, []string{"error/other"}},
		{"a client that leaves after its handshake", tls.VersionTLS13, nil, func(_ *tap, session *tls.Conn) { _ = session.Close() }, []string{ok}},
		{"an alert of a client that went on", tls.VersionTLS13, nil, func(c *tap, session *tls.Conn) {
			_, _ = session.Write([]byte("QUI"))
			_, secret := c.secret(t, "CLIENT_TRAFFIC_SECRET_0")
			_, _ = c.Write(seal13(t, secret, 1, 2, 46))
		}, []string{ok}},
	}
	d, address := startWith(t, cert)
	for _, test := range all {
		c := &tap{Conn: dialFrom(t, "127.0.0.1", address)}
		config := &tls.Config{
			InsecureSkipVerify: true, ServerName: "mail.example.org", MinVersion: test.version, MaxVersion: test.version, KeyLogWriter: &c.keys,
			CipherSuites: []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256},
		}
		if test.during != nil {
			config.VerifyConnection = func(tls.ConnectionState) error {
				test.during(c)
				_ = c.Close()
				return errStop
			}
		}
		session := tls.Client(c, config)
		err := session.HandshakeContext(t.Context())
		if want := test.during != nil; errors.Is(err, errStop) != want {
			t.Errorf("%s, %s: the handshake ends with %v", test.name, tls.VersionName(test.version), err)
		}
		if test.after != nil {
			test.after(c, session)
			_ = c.Close()
		}
		if got := d.outcome(t); !slices.Equal(got, test.want) {
			t.Errorf("%s, %s: %q, want %q", test.name, tls.VersionName(test.version), got, test.want)
		}
	}

	// Before the certificate there is nothing to reject.
	c := dialFrom(t, "127.0.0.1", address)
	_, _ = c.Write(clear(2, 42))
	_ = c.Close()
	if got, want := d.outcome(t), []string{"client_abort/"}; !slices.Equal(got, want) {
		t.Errorf("an alert alone: %q, want %q", got, want)
	}
}

func TestResumedSessionHasNoCertificateToReject(t *testing.T) {
	d, address := startWith(t, certificateUntil(t, time.Now().Add(time.Hour)))
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		cache := tls.NewLRUClientSessionCache(1)
		for _, resumed := range []bool{false, true} {
			raw := dialFrom(t, "127.0.0.1", address)
			config := &tls.Config{
				InsecureSkipVerify: true, ServerName: "mail.example.org", ClientSessionCache: cache, MinVersion: version, MaxVersion: version,
			}
			want := []string{"ok/"}
			if resumed {
				want = []string{"client_abort/"}
				config.VerifyConnection = func(s tls.ConnectionState) error {
					if !s.DidResume {
						t.Errorf("%s: not resumed", tls.VersionName(version))
					}
					_ = raw.Close()
					return errStop
				}
			}
			c := tls.Client(raw, config)
			if err := c.HandshakeContext(t.Context()); err == nil {
				_, _ = c.Write([]byte("QUIT\r\n"))
				_, _ = io.Copy(io.Discard, c)
			}
			_ = c.Close()
			if got := d.outcome(t); !slices.Equal(got, want) {
				t.Errorf("%s, resumed %t: %q, want %q", tls.VersionName(version), resumed, got, want)
			}
		}
	}
}
