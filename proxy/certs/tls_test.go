package certs

import (
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"postern/proxy"
	"postern/proxy/proxytest"
)

var profiles = []proxy.Profile{proxy.Modern, proxy.Compatible, proxy.Legacy}

// Criterion: A client that offers a foreign protocol by ALPN, or another of the mail protocols, is refused with alert 120; one that offers the listener's, or none, is served.
func TestALPN(t *testing.T) {
	s, _ := newStore(t, certTemplate{names: []string{"mail.example.org"}})
	tests := []struct {
		protocol string
		offered  []string
		ok       bool
		want     string
	}{
		{proxy.IMAP, nil, true, ""},
		{proxy.IMAP, []string{"imap"}, true, "imap"},
		{proxy.IMAP, []string{"h2", "imap"}, true, "imap"},
		{proxy.IMAP, []string{"h2", "http/1.1"}, false, ""},
		{proxy.IMAP, []string{"ftp"}, false, ""},
		{proxy.IMAP, []string{"pop3"}, false, ""},
		{proxy.IMAP, []string{"acme-tls/1", "imap"}, true, "imap"},
		{proxy.IMAP, []string{"h2", "acme-tls/1"}, true, "acme-tls/1"}, // its connection ends with the handshake
		{proxy.POP3, nil, true, ""},
		{proxy.POP3, []string{"pop3"}, true, "pop3"},
		{proxy.POP3, []string{"imap"}, false, ""},
		{proxy.Submission, nil, true, ""},
		{proxy.Submission, []string{"smtp"}, true, "smtp"},
		{proxy.Submission, []string{"submission"}, true, "submission"},
		{proxy.Submission, []string{"http/1.1"}, false, ""},
	}
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		for _, test := range tests {
			config := clientConfig("mail.example.org")
			config.NextProtos, config.MaxVersion = test.offered, version
			c, _, err := handshake(t, s.TLS(test.protocol, proxy.Modern), config)
			if test.ok != (err == nil) || !test.ok && !isAlert(err, "no application protocol") {
				t.Errorf("%s: a client that offers %q: %v, want accepted %v, else alert 120", test.protocol, test.offered, err, test.ok)
			} else if got := c.ConnectionState().NegotiatedProtocol; got != test.want {
				t.Errorf("%s: a client that offers %q gets %q, want %q", test.protocol, test.offered, got, test.want)
			}
		}
	}
}

// isAlert reports whether err is an alert of the peer. crypto/tls does not export
// the type.
func isAlert(err error, name string) bool {
	op, ok := errors.AsType[*net.OpError](err)
	return ok && op.Op == "remote error" && op.Err.Error() == "tls: "+name
}

func TestEachProfileTakesItsVersionsAndSuites(t *testing.T) {
	ecdsa, _ := newStore(t, certTemplate{names: []string{"mail.example.org"}})
	rsa, _ := newStore(t, certTemplate{names: []string{"mail.example.org"}, rsa: true})
	for _, test := range []struct {
		name  string
		store *Store
		max   uint16
		suite uint16
		from  proxy.Profile // the strictest that takes it; none does: 99
	}{
		{"TLS 1.3", ecdsa, tls.VersionTLS13, 0, proxy.Modern},
		{"TLS 1.2", ecdsa, tls.VersionTLS12, 0, proxy.Modern},
		{"GCM", rsa, tls.VersionTLS12, tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, proxy.Modern},
		{"ChaCha20", rsa, tls.VersionTLS12, tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256, proxy.Modern},
		{"CBC with ECDSA", ecdsa, tls.VersionTLS12, tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA, proxy.Compatible},
		{"CBC with RSA", rsa, tls.VersionTLS12, tls.TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA, proxy.Compatible},
		{"CBC with SHA-256", rsa, tls.VersionTLS12, tls.TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA256, 99},
		{"RSA key exchange", rsa, tls.VersionTLS12, tls.TLS_RSA_WITH_AES_128_GCM_SHA256, proxy.Legacy},
		{"RSA key exchange, CBC", rsa, tls.VersionTLS12, tls.TLS_RSA_WITH_AES_256_CBC_SHA, proxy.Legacy},
		{"RSA key exchange, CBC with SHA-256", rsa, tls.VersionTLS12, tls.TLS_RSA_WITH_AES_128_CBC_SHA256, 99},
		{"3DES", rsa, tls.VersionTLS12, tls.TLS_ECDHE_RSA_WITH_3DES_EDE_CBC_SHA, proxy.Legacy},
		{"RC4", rsa, tls.VersionTLS12, tls.TLS_ECDHE_RSA_WITH_RC4_128_SHA, 99},
		{"TLS 1.1", ecdsa, tls.VersionTLS11, tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA, proxy.Legacy},
		{"TLS 1.0", rsa, tls.VersionTLS10, tls.TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA, proxy.Legacy},
		{"TLS 1.0 with RSA key exchange", rsa, tls.VersionTLS10, tls.TLS_RSA_WITH_AES_128_CBC_SHA, proxy.Legacy},
		{"TLS 1.0 with 3DES", rsa, tls.VersionTLS10, tls.TLS_RSA_WITH_3DES_EDE_CBC_SHA, proxy.Legacy},
	} {
		for _, p := range profiles {
			config := clientConfig("mail.example.org")
			config.MinVersion, config.MaxVersion = tls.VersionTLS10, test.max
			if test.suite != 0 {
				config.CipherSuites = []uint16{test.suite}
			}
			c, _, err := handshake(t, test.store.TLS(proxy.IMAP, p), config)
			if (err == nil) != (p >= test.from) {
				t.Errorf("%s, profile %v: %v, want accepted: %v", test.name, p, err, p >= test.from)
			}
			if state := c.ConnectionState(); err == nil && proxy.ProfileOf(&state) != test.from {
				t.Errorf("%s: needs %v, want %v", test.name, proxy.ProfileOf(&state), test.from)
			}
		}
	}
}

// Criterion: Windows 7 and 8.1 are served by the profile compatible with an RSA certificate, and by modern with an ECDSA one; Android 4.4 by modern, unless its program asks for TLS 1.0 alone; these and Windows XP by legacy.
func TestOldClients(t *testing.T) {
	const refused = 0
	ecdsa, _ := newStore(t, certTemplate{names: []string{"mail.example.org"}})
	rsa, _ := newStore(t, certTemplate{names: []string{"mail.example.org"}, rsa: true})
	both, _ := newStore(t, certTemplate{names: []string{"mail.example.org"}, rsa: true}, certTemplate{names: []string{"mail.example.org"}})
	for _, test := range []struct {
		name  string
		hello proxytest.ClientHello
		store *Store
		want  [3]uint16 // suite under each profile
	}{
		{"Windows 7, RSA", proxytest.Windows7, rsa, [3]uint16{refused, tls.TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA, tls.TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA}},
		{"Windows 7, ECDSA", proxytest.Windows7, ecdsa, [3]uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256}},
		{"Windows 7, both", proxytest.Windows7, both, [3]uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256}},
		{"Windows 7 without TLS 1.2", proxytest.Windows7TLS10, rsa, [3]uint16{refused, refused, tls.TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA}},
		{"Windows 8.1, RSA", proxytest.Windows81, rsa, [3]uint16{refused, tls.TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA, tls.TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA}},
		{"Windows 8.1, ECDSA", proxytest.Windows81, ecdsa, [3]uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256}},
		{"Android 4.4", proxytest.Android44, rsa, [3]uint16{tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256}},
		{"Android 4.4 with TLS 1.0", proxytest.Android44TLS10, rsa, [3]uint16{refused, refused, tls.TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA}},
		{"Windows XP", proxytest.WindowsXP, rsa, [3]uint16{refused, refused, tls.TLS_RSA_WITH_3DES_EDE_CBC_SHA}},
		{"Windows XP, both", proxytest.WindowsXP, both, [3]uint16{refused, refused, tls.TLS_RSA_WITH_3DES_EDE_CBC_SHA}},
		{"Windows XP, ECDSA alone", proxytest.WindowsXP, ecdsa, [3]uint16{refused, refused, refused}},
	} {
		for _, p := range profiles {
			if got := cipherSuite(t, test.store.TLS(proxy.IMAP, p), test.hello); got != test.want[p] {
				t.Errorf("%s, profile %v: the server chooses %s, want %s", test.name, p, tls.CipherSuiteName(got), tls.CipherSuiteName(test.want[p]))
			}
		}
	}
}

// cipherSuite returns the suite of the answer to hello, or 0 if it is an alert.
func cipherSuite(t *testing.T, config *tls.Config, hello proxytest.ClientHello) uint16 {
	t.Helper()
	c, s := proxytest.Pipe(t)
	go func() { _ = tls.Server(s, config).HandshakeContext(t.Context()) }()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := c.Write(hello.Record("mail.example.org")); err != nil {
		t.Fatal(err)
	}
	header := make([]byte, 5)
	if _, err := io.ReadFull(c, header); err != nil {
		t.Fatal(err)
	}
	body := make([]byte, binary.BigEndian.Uint16(header[3:]))
	if _, err := io.ReadFull(c, body); err != nil {
		t.Fatal(err)
	}
	const alert, beforeSession = 21, 4 + 2 + 32
	if header[0] == alert {
		return 0
	}
	body = body[beforeSession:]
	return binary.BigEndian.Uint16(body[1+body[0]:])
}

// Criterion: A TLS session is resumed on the listener, and under the profile, that it began with, and nowhere else.
func TestSessionsAreResumedOnTheirListenerOnly(t *testing.T) {
	s, _ := newStore(t, certTemplate{names: []string{"mail.example.org"}, rsa: true})
	imap, pop3, legacy := s.TLS(proxy.IMAP, proxy.Modern), s.TLS(proxy.POP3, proxy.Modern), s.TLS(proxy.IMAP, proxy.Legacy)
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		config := clientConfig("mail.example.org")
		config.MaxVersion = version
		config.ClientSessionCache = tls.NewLRUClientSessionCache(1)
		for i, test := range []struct {
			listener *tls.Config
			want     bool
		}{{imap, false}, {imap, true}, {imap, true}, {pop3, false}, {pop3, true}, {legacy, false}, {legacy, true}, {imap, false}} {
			c, _, err := handshake(t, test.listener, config)
			if err != nil {
				t.Fatal(err)
			}
			if got := c.ConnectionState().DidResume; got != test.want {
				t.Errorf("%s, connection %d: resumed %v, want %v", tls.VersionName(version), i, got, test.want)
			}
		}
	}
}

// Criterion: Every profile agrees on X25519MLKEM768 with a client that has it, whatever that likes better.
func TestPostQuantumKeyExchangeComesFirst(t *testing.T) {
	s, _ := newStore(t, certTemplate{names: []string{"mail.example.org"}})
	for _, p := range profiles {
		config := clientConfig("mail.example.org")
		// Also where the client thinks otherwise, and has to be asked again.
		config.CurvePreferences = []tls.CurveID{tls.CurveP256, tls.X25519, tls.X25519MLKEM768}
		c, _, err := handshake(t, s.TLS(proxy.IMAP, p), config)
		if err != nil {
			t.Fatal(err)
		}
		if got := c.ConnectionState().CurveID; got != tls.X25519MLKEM768 {
			t.Errorf("profile %v, key exchange with a Go client: %v, want %v", p, got, tls.X25519MLKEM768)
		}
	}
}
