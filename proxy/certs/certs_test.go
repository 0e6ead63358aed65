package certs

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"postern/proxy"
	"postern/proxy/proxytest"
)

// A certTemplate says what certificate a test needs.
type certTemplate struct {
	names []string // DNS names; none: a certificate without SAN
	cn    string
	rsa   bool
	ended time.Duration // ago; 0: it ends in an hour
}

// writePair makes a certificate and writes it, and its key, to p.
func writePair(t *testing.T, p Pair, o certTemplate) *x509.Certificate {
	t.Helper()
	key := newKey(t, o.rsa)
	template := &x509.Certificate{
		Subject: pkix.Name{CommonName: o.cn}, DNSNames: o.names,
		NotBefore: time.Now().Add(-24 * time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	if o.ended != 0 {
		template.NotAfter = time.Now().Add(-o.ended)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	writePEM(t, p.Cert, "CERTIFICATE", der)
	writeKey(t, p.Key, key)
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return leaf
}

func newKey(t *testing.T, useRSA bool) (key crypto.Signer) {
	t.Helper()
	var err error
	if useRSA {
		key, err = rsa.GenerateKey(rand.Reader, 2048)
	} else {
		key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	}
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func writeKey(t *testing.T, path string, key crypto.Signer) {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	writePEM(t, path, "PRIVATE KEY", der)
}

// writePEM replaces the file as ACME clients do.
func writePEM(t *testing.T, path, kind string, der []byte) {
	t.Helper()
	if err := os.WriteFile(path+".new", pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

func pairPaths(t *testing.T) Pair {
	t.Helper()
	dir := t.TempDir()
	return Pair{filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")}
}

// newStore returns a Store with a certificate for each template, and the
// certificates.
func newStore(t *testing.T, orders ...certTemplate) (*Store, []*x509.Certificate) {
	t.Helper()
	var pairs []Pair
	var leaves []*x509.Certificate
	for _, o := range orders {
		pairs = append(pairs, pairPaths(t))
		leaves = append(leaves, writePair(t, pairs[len(pairs)-1], o))
	}
	s, err := New(Config{Pairs: pairs})
	if err != nil {
		t.Fatal(err)
	}
	return s, leaves
}

// handshake returns both ends of a TLS connection and the client's error.
func handshake(t *testing.T, server, client *tls.Config) (c, s *tls.Conn, err error) {
	t.Helper()
	rawClient, rawServer := proxytest.Pipe(t)
	c, s = tls.Client(rawClient, client), tls.Server(rawServer, server)
	var done sync.WaitGroup
	done.Go(func() { // an error is seen by the client as well
		if s.HandshakeContext(t.Context()) == nil {
			_, _ = s.Write([]byte("+")) // session tickets come with the first read
		}
	})
	err = c.HandshakeContext(t.Context())
	done.Wait()
	if err == nil {
		_, err = io.ReadFull(c, make([]byte, 1))
	}
	return c, s, err
}

// clientConfig accepts every certificate.
func clientConfig(name string) *tls.Config {
	return &tls.Config{ServerName: name, InsecureSkipVerify: true}
}

func servedCertificate(t *testing.T, server, client *tls.Config) *x509.Certificate {
	t.Helper()
	c, _, err := handshake(t, server, client)
	if err != nil {
		t.Fatalf("handshake for %q: %v", client.ServerName, err)
	}
	return c.ConnectionState().PeerCertificates[0]
}

func TestCertificateIsChosenByName(t *testing.T) {
	s, certs := newStore(t,
		certTemplate{names: []string{"mail.example.org", "imap.example.org"}},
		certTemplate{names: []string{"mail.example.net"}},
		certTemplate{names: []string{"*.example.com"}},
		certTemplate{names: []string{"special.example.com"}},
		certTemplate{cn: "old.example.org"})
	config := s.TLS(proxy.IMAP, proxy.Modern)
	for name, want := range map[string]int{
		"mail.example.org":    0,
		"IMAP.Example.ORG":    0,
		"mail.example.net":    1,
		"any.example.com":     2,
		"special.example.com": 3,
		"old.example.org":     4,
		"a.b.example.com":     0, // a wildcard is for one label
		"example.com":         0,
		"unknown.example":     0,
		"localhost":           0,
		"":                    0,
	} {
		if got := servedCertificate(t, config, clientConfig(name)); !got.Equal(certs[want]) {
			t.Errorf("%q is shown the certificate of %q %q, want that of %q %q",
				name, got.DNSNames, got.Subject, certs[want].DNSNames, certs[want].Subject)
		}
	}
}

func TestCertificateIsChosenByWhatTheClientSupports(t *testing.T) {
	names := []string{"mail.example.org"}
	s, certs := newStore(t, certTemplate{names: names, rsa: true}, certTemplate{names: names})
	config := s.TLS(proxy.IMAP, proxy.Modern)
	for _, name := range []string{"mail.example.org", "", "unknown.example"} {
		if got := servedCertificate(t, config, clientConfig(name)); !got.Equal(certs[1]) {
			t.Errorf("%q is shown %v, want ECDSA first, whatever the order", name, got.PublicKeyAlgorithm)
		}
		old := clientConfig(name)
		old.MaxVersion = tls.VersionTLS12
		old.CipherSuites = []uint16{tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256}
		if got := servedCertificate(t, config, old); !got.Equal(certs[0]) {
			t.Errorf("%q without ECDSA is shown %v, want RSA", name, got.PublicKeyAlgorithm)
		}
	}
}

// Criterion: A session lives on when its listener's certificate is replaced; the next handshake has the new one.
func TestOpenSessionLivesThroughReload(t *testing.T) {
	p := pairPaths(t)
	old := writePair(t, p, certTemplate{names: []string{"mail.example.org"}})
	s, err := New(Config{Pairs: []Pair{p}})
	if err != nil {
		t.Fatal(err)
	}
	config := s.TLS(proxy.IMAP, proxy.Modern)
	c, server, err := handshake(t, config, clientConfig("mail.example.org"))
	if err != nil {
		t.Fatal(err)
	}
	if got := c.ConnectionState().PeerCertificates[0]; !got.Equal(old) {
		t.Fatal("the first certificate is not served")
	}
	renewed := writePair(t, p, certTemplate{names: []string{"mail.example.org"}})
	if _, err := s.reload(); err != nil {
		t.Fatal(err)
	}
	if got := servedCertificate(t, config, clientConfig("mail.example.org")); !got.Equal(renewed) {
		t.Error("the old certificate is served after it was replaced")
	}
	if _, err := server.Write([]byte("* OK still here\r\n")); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 17)
	if _, err := io.ReadFull(c, got); err != nil || string(got) != "* OK still here\r\n" {
		t.Errorf("the open session read %q, %v", got, err)
	}
}

func TestReloadKeepsTheOldCertificateWhenTheNewOneIsBad(t *testing.T) {
	good := certTemplate{names: []string{"mail.example.org"}}
	spoil := map[string]struct {
		do   func(t *testing.T, p Pair)
		want string
	}{
		"the key of another": {func(t *testing.T, p Pair) {
			writePair(t, p, good)
			writeKey(t, p.Key, newKey(t, false))
		}, "private key does not match public key"},
		"a key of another kind": {func(t *testing.T, p Pair) {
			writePair(t, p, good)
			writeKey(t, p.Key, newKey(t, true))
		}, "private key type does not match public key type"},
		"an expired one": {func(t *testing.T, p Pair) {
			writePair(t, p, certTemplate{names: good.names, ended: time.Hour})
		}, "expired on 2"},
		"one without a name": {func(t *testing.T, p Pair) { writePair(t, p, certTemplate{}) }, "it has no name"},
		"garbage":            {func(t *testing.T, p Pair) { writePEM(t, p.Cert, "CERTIFICATE", []byte("no")) }, "malformed certificate"},
		"an empty file": {func(t *testing.T, p Pair) {
			if err := os.WriteFile(p.Cert, nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}, "failed to find any PEM data in certificate input"},
		"no certificate file": {func(_ *testing.T, p Pair) { _ = os.Remove(p.Cert) }, "no such file"},
		"no key file":         {func(_ *testing.T, p Pair) { _ = os.Remove(p.Key) }, "no such file"},
	}
	for name, test := range spoil {
		t.Run(name, func(t *testing.T) {
			bad, other := pairPaths(t), pairPaths(t)
			old := writePair(t, bad, good)
			writePair(t, other, certTemplate{names: []string{"mail.example.net"}})
			s, err := New(Config{Pairs: []Pair{bad, other}})
			if err != nil {
				t.Fatal(err)
			}
			test.do(t, bad)
			renewed := writePair(t, other, certTemplate{names: []string{"mail.example.net"}})
			_, err = s.reload()
			if err == nil || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), filepath.Dir(bad.Cert)) {
				t.Errorf("reload: %v, want the file and %q", err, test.want)
			}
			if got := servedCertificate(t, s.TLS(proxy.IMAP, proxy.Modern), clientConfig("mail.example.org")); !got.Equal(old) {
				t.Error("the old certificate is not served any more")
			}
			if got := servedCertificate(t, s.TLS(proxy.IMAP, proxy.Modern), clientConfig("mail.example.net")); !got.Equal(renewed) {
				t.Error("the other, good, certificate was not reloaded")
			}
			if _, err := New(Config{Pairs: []Pair{other, bad}}); (err == nil) != (name == "an expired one") {
				t.Errorf("New: %v; at a start only an expired certificate is better than none", err)
			}
		})
	}
}

// A hook that copies a key as root, and gives it to the service's user
// afterwards, changes neither its size nor its time in the end.
func TestPairThatCouldNotBeUsedIsReadAgain(t *testing.T) {
	p := pairPaths(t)
	writePair(t, p, certTemplate{names: []string{"mail.example.org"}})
	s, err := New(Config{Pairs: []Pair{p}})
	if err != nil {
		t.Fatal(err)
	}
	renewed := writePair(t, p, certTemplate{names: []string{"mail.example.org"}})
	good, err := os.ReadFile(p.Key)
	if err != nil {
		t.Fatal(err)
	}
	writeKey(t, p.Key, newKey(t, false))
	if _, err := s.reload(); err == nil {
		t.Fatal("the key of another: no error")
	}
	before := statFile(p.Key)
	if err := os.WriteFile(p.Key, good, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(p.Key, before.ModTime(), before.ModTime()); err != nil {
		t.Fatal(err)
	}
	if !sameFile(before, statFile(p.Key)) {
		t.Fatal("the key can be seen to have changed")
	}
	if _, err := s.reload(); err != nil {
		t.Error(err)
	}
	if got := servedCertificate(t, s.TLS(proxy.IMAP, proxy.Modern), clientConfig("mail.example.org")); !got.Equal(renewed) {
		t.Error("the new certificate is not served")
	}
}

func TestCertificateThatEndsEarlierIsServed(t *testing.T) {
	p := pairPaths(t)
	writePair(t, p, certTemplate{names: []string{"mail.example.org"}})
	s, err := New(Config{Pairs: []Pair{p}})
	if err != nil {
		t.Fatal(err)
	}
	short := writePair(t, p, certTemplate{names: []string{"mail.example.org"}, ended: -time.Minute})
	if _, err := s.reload(); err != nil {
		t.Fatal(err)
	}
	if got := servedCertificate(t, s.TLS(proxy.IMAP, proxy.Modern), clientConfig("mail.example.org")); !got.Equal(short) {
		t.Error("a certificate with less time left than the old one, but some, is not served")
	}
}

func TestReplacedFileWithTheSameTimeIsReloaded(t *testing.T) {
	dir, now := t.TempDir(), time.Now()
	var infos []os.FileInfo
	for _, name := range []string{"old", "new"} { // both exist, so their inodes differ
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(name), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, now, now); err != nil {
			t.Fatal(err)
		}
		infos = append(infos, statFile(path))
	}
	if sameFile(infos[0], infos[1]) {
		t.Error("a file of the same size and time counts as the same file")
	}
	if !sameFile(infos[0], statFile(filepath.Join(dir, "old"))) {
		t.Error("a file that did not change counts as another")
	}
}

func TestNewNamesAllThatIsWrong(t *testing.T) {
	one, two := pairPaths(t), pairPaths(t)
	_, err := New(Config{Pairs: []Pair{one, two}})
	if err == nil || !strings.Contains(err.Error(), one.Cert) || !strings.Contains(err.Error(), two.Cert) {
		t.Errorf("New without files: %v, want both named", err)
	}
	if _, err := New(Config{}); err == nil {
		t.Error("New without pairs: no error")
	}
}

// Criterion: A renewed certificate file is served within 5 seconds, and one that is bad is said once.
func TestWatchServesRenewedFiles(t *testing.T) {
	// A link to a folder that is replaced, as certbot has it.
	dir := t.TempDir()
	at := func(name string) Pair {
		return Pair{filepath.Join(dir, name, "cert.pem"), filepath.Join(dir, name, "key.pem")}
	}
	for _, name := range []string{"1", "2"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	link := func(to string) {
		_ = os.Remove(filepath.Join(dir, "live"))
		if err := os.Symlink(to, filepath.Join(dir, "live")); err != nil {
			t.Fatal(err)
		}
	}
	writePair(t, at("1"), certTemplate{names: []string{"mail.example.org"}})
	link("1")
	s, err := New(Config{Pairs: []Pair{at("live")}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var log lockedBuffer
	var watching sync.WaitGroup
	defer watching.Wait()
	defer cancel()
	watching.Go(func() { s.Watch(ctx, 10*time.Millisecond, slog.New(slog.NewTextHandler(&log, nil))) })

	serving := func(want *x509.Certificate) {
		t.Helper()
		for end := time.Now().Add(5 * time.Second); ; time.Sleep(5 * time.Millisecond) {
			if s.current.Load().byDefault[0].Leaf.Equal(want) {
				return
			}
			if time.Now().After(end) {
				t.Fatalf("the new certificate is not served after 5 s; log:\n%s", log.String())
			}
		}
	}
	second := writePair(t, at("2"), certTemplate{names: []string{"mail.example.org"}})
	link("2")
	serving(second)

	if err := os.WriteFile(at("2").Key, []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(5 * time.Second); !strings.Contains(log.String(), "certificate not reloaded"); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("the bad key is not logged; log:\n%s", log.String())
		}
	}
	time.Sleep(100 * time.Millisecond)
	if n := strings.Count(log.String(), "certificate not reloaded"); n > 2 { // once for the old content cut off, once for the new
		t.Errorf("the bad key is logged %d times:\n%s", n, log.String())
	}
	serving(writePair(t, at("2"), certTemplate{names: []string{"mail.example.org"}}))
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func TestExpiryHasEachNameOnce(t *testing.T) {
	s, certs := newStore(t,
		certTemplate{names: []string{"mail.example.org", "*.example.com"}},
		certTemplate{names: []string{"mail.example.org"}, ended: time.Hour},
		certTemplate{cn: "old.example.org"})
	got := s.Expiry()
	slices.SortFunc(got, func(a, b Validity) int { return strings.Compare(a.Name, b.Name) })
	want := []Validity{
		{"*.example.com", SourceFile, certs[0].NotBefore, certs[0].NotAfter, "expires in 59 minutes, self-signed", slog.LevelWarn},
		{"mail.example.org", SourceFile, certs[1].NotBefore, certs[1].NotAfter, "EXPIRED, self-signed", slog.LevelError},
		{"old.example.org", SourceFile, certs[2].NotBefore, certs[2].NotAfter, "expires in 59 minutes, no SAN, self-signed", slog.LevelWarn},
	}
	if !slices.Equal(got, want) {
		t.Errorf("Expiry() = %v, want %v", got, want)
	}
}

func TestSelfSignedIsGoodForItsNamesAndLoopback(t *testing.T) {
	cert, err := SelfSigned("demo.example.org", "localhost", "192.0.2.1")
	if err != nil {
		t.Fatal(err)
	}
	s, err := Static(tls.Certificate{Certificate: cert.Certificate, PrivateKey: cert.PrivateKey})
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(cert.Leaf)
	for _, name := range []string{"localhost", "demo.example.org", "127.0.0.1", "::1", "192.0.2.1"} {
		if _, _, err := handshake(t, s.TLS(proxy.POP3, proxy.Modern), &tls.Config{ServerName: name, RootCAs: roots}); err != nil {
			t.Errorf("handshake with %s: %v", name, err)
		}
	}
	if got := s.Expiry()[0]; got.Name != "localhost" || got.Source != SourceMemory {
		t.Errorf("Expiry() begins with %v, want localhost from %q", got, SourceMemory)
	}
	if _, err := s.reload(); err != nil {
		t.Errorf("Reload of what has no files: %v", err)
	}
	if _, err := Static(tls.Certificate{}); err == nil {
		t.Error("Static without a certificate: no error")
	}
}

func BenchmarkGetCertificate(b *testing.B) {
	cert, err := SelfSigned("mail.example.org")
	if err != nil {
		b.Fatal(err)
	}
	s, err := Static(cert)
	if err != nil {
		b.Fatal(err)
	}
	hello := &tls.ClientHelloInfo{
		ServerName: "mail.example.org", SupportedVersions: []uint16{tls.VersionTLS13},
		SignatureSchemes: []tls.SignatureScheme{tls.ECDSAWithP256AndSHA256}, SupportedCurves: []tls.CurveID{tls.X25519},
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := s.GetCertificate(hello); err != nil {
			b.Fatal(err)
		}
	}
}
