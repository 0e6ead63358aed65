package certs

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"postern/proxy"
	"postern/proxy/proxytest"
)

// Criterion: clients without a name, or with an unknown one, are refused with the alert unrecognized_name when the configuration says so.
func TestUnknownNamesAreRefusedIfConfigured(t *testing.T) {
	p := pairPaths(t)
	writePair(t, p, certTemplate{names: []string{"mail.example.org"}})
	s, err := New(Config{Pairs: []Pair{p}, RefuseUnknown: true})
	if err != nil {
		t.Fatal(err)
	}
	for name, ok := range map[string]bool{"mail.example.org": true, "other.example.org": false, "": false} {
		_, _, err := handshake(t, s.TLS(proxy.IMAP, proxy.Modern), clientConfig(name))
		if ok != (err == nil) || !ok && err.Error() != "remote error: tls: unrecognized name" {
			t.Errorf("%q: %v, want accepted %v, else unrecognized name", name, err, ok)
		}
	}
}

func TestCertificateThatIsValidComesBeforeOneThatExpired(t *testing.T) {
	names := []string{"mail.example.org"}
	s, certs := newStore(t, certTemplate{names: names, ended: time.Hour}, certTemplate{names: names, rsa: true})
	config := s.TLS(proxy.IMAP, proxy.Modern)
	if got := servedCertificate(t, config, clientConfig("mail.example.org")); !got.Equal(certs[1]) {
		t.Error("the one that has expired is shown, though ECDSA, before RSA")
	}
	s, certs = newStore(t, certTemplate{names: []string{"other.example.org"}}, certTemplate{names: names, ended: time.Hour})
	config = s.TLS(proxy.IMAP, proxy.Modern)
	if got := servedCertificate(t, config, clientConfig("mail.example.org")); !got.Equal(certs[1]) {
		t.Error("another name's is shown, not the one that has expired")
	}
}

func TestConfigureReplacesSources(t *testing.T) {
	one, two := pairPaths(t), pairPaths(t)
	writePair(t, one, certTemplate{names: []string{"one.example.org"}})
	s, err := New(Config{Pairs: []Pair{one}})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Configure(Config{Pairs: []Pair{two}}); err == nil {
		t.Error("Configure with files that are not there: no error")
	}
	config := s.TLS(proxy.IMAP, proxy.Modern)
	if got := servedCertificate(t, config, clientConfig("")).DNSNames[0]; got != "one.example.org" {
		t.Errorf("after a mistake %s is shown", got)
	}
	writePair(t, two, certTemplate{names: []string{"two.example.org"}})
	if err := s.Configure(Config{Pairs: []Pair{two}}); err != nil {
		t.Fatal(err)
	}
	if err := s.Configure(Config{Pairs: []Pair{two}, RefuseUnknown: true}); err != nil {
		t.Fatal(err)
	}
	if _, _, err := handshake(t, config, clientConfig("one.example.org")); err == nil {
		t.Error("an unknown name is not refused after it was told so")
	}
	if err := s.Configure(Config{Pairs: []Pair{two}}); err != nil {
		t.Fatal(err)
	}
	if got := servedCertificate(t, config, clientConfig("one.example.org")).DNSNames[0]; got != "two.example.org" {
		t.Errorf("after it was replaced %s is shown", got)
	}
}

func TestNoQuestionOfACAIsOpen(t *testing.T) {
	s, _ := newStore(t, certTemplate{names: []string{"mail.example.org"}})
	conn, _ := proxytest.Pipe(t)
	hello := &tls.ClientHelloInfo{ServerName: "mail.example.org", SupportedProtos: []string{proxy.ACMETLS}, Conn: conn}
	if cert, err := s.GetCertificate(hello); err == nil || cert != nil {
		t.Errorf("without ACME a question by TLS-ALPN-01 gets %v, %v", cert, err)
	}
	s = openStore(t, Config{ACME: &ACME{Names: []string{"mail.example.org"}}})
	for _, name := range []string{"mail.example.org", "..", "../../x", ""} {
		hello.ServerName = name
		if cert, err := s.GetCertificate(hello); err == nil || cert != nil {
			t.Errorf("a question for %q gets %v, %v", name, cert, err)
		}
	}
	hello.SupportedProtos, hello.ServerName = nil, "mail.example.org"
	if _, err := s.GetCertificate(hello); !errors.Is(err, errNone) {
		t.Errorf("before the first certificate: %v, want %v", err, errNone)
	}
}

// newHello returns the ClientHello of a present-day client.
func newHello(name string) *tls.ClientHelloInfo {
	return &tls.ClientHelloInfo{
		ServerName: name, SupportedVersions: []uint16{tls.VersionTLS13},
		SignatureSchemes: []tls.SignatureScheme{tls.ECDSAWithP256AndSHA256}, SupportedCurves: []tls.CurveID{tls.X25519},
	}
}

// manyCertificates returns 1,000 certificates, each with 100 names.
func manyCertificates(b *testing.B) (certs []tls.Certificate) {
	b.Helper()
	for i := range 1000 {
		var names []string
		for j := range 100 {
			names = append(names, fmt.Sprintf("n%d-%d.customer.example.org", i, j))
		}
		cert, _ := proxytest.Cert(b, names...)
		if err := fillLeaf(&cert); err != nil {
			b.Fatal(err)
		}
		certs = append(certs, cert)
	}
	return certs
}

// BenchmarkGetCertificateOf100000 is for one of 100,000 names.
func BenchmarkGetCertificateOf100000(b *testing.B) {
	certs := manyCertificates(b)
	b.Run("files", func(b *testing.B) {
		var all []servedCert
		for i := range certs {
			all = append(all, servedCert{Certificate: &certs[i], source: SourceFile})
		}
		s := new(Store)
		s.current.Store(newSet(all, ""))
		getCertificates(b, s)
	})
	b.Run("acme", func(b *testing.B) {
		s := openStore(b, Config{ACME: &ACME{Names: []string{"mail.example.org"}}})
		m := s.acme.Load()
		for _, cert := range certs {
			if _, err := m.magic.CacheUnmanagedTLSCertificate(context.Background(), cert, nil); err != nil {
				b.Fatal(err)
			}
		}
		getCertificates(b, s)
	})
}

func getCertificates(b *testing.B, s *Store) {
	b.Helper()
	var hellos []*tls.ClientHelloInfo
	for i := range 1000 {
		hellos = append(hellos, newHello(fmt.Sprintf("n%d-%d.customer.example.org", i, i%100)))
	}
	b.ReportAllocs()
	began, i := cpuTime(b), 0
	defer func() { b.ReportMetric(float64(cpuTime(b)-began)/float64(b.N), "cpu-ns/op") }()
	for b.Loop() {
		i++
		cert, err := s.GetCertificate(hellos[i%len(hellos)])
		if err != nil || len(cert.Leaf.DNSNames) != 100 {
			b.Fatal(err)
		}
	}
}

// cpuTime returns the CPU time of this process: unlike the clock, it stands still
// while others use the machine.
func cpuTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// Any client may send 64 KiB of labels in its first message.
func TestEndlessNameIsNotLookedUp(t *testing.T) {
	s := openStore(t, Config{ACME: &ACME{Names: []string{"mail.example.org"}}})
	hello := newHello(strings.Repeat("a.", 30_000) + "example.org")
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	if _, err := s.GetCertificate(hello); !errors.Is(err, errNone) {
		t.Error(err)
	}
	runtime.ReadMemStats(&after)
	if took := after.TotalAlloc - before.TotalAlloc; took > 8<<20 {
		t.Errorf("the name of %d octets took %d MiB of memory", len(hello.ServerName), took>>20)
	}
}

// A reload that fails configures twice before Run looks: what renews by the one
// in between would go on for ever.
func TestAConfigurationThatNeverRanIsStopped(t *testing.T) {
	maintained := func() int {
		stacks := make([]byte, 1<<20)
		return strings.Count(string(stacks[:runtime.Stack(stacks, true)]), "created by github.com/caddyserver/certmagic.NewCache ")
	}
	at := func(name string) Config {
		return Config{ACME: &ACME{Names: []string{name}, Challenge: HTTP01, Storage: filepath.Join(t.TempDir(), "certs")}}
	}
	before := maintained()
	s, err := New(at("one.example.org"))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Open(slog.New(slog.DiscardHandler), proxy.Observers{}); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"two.example.org", "one.example.org"} {
		if err := s.Configure(at(name)); err != nil {
			t.Fatal(err)
		}
	}
	for deadline := time.Now().Add(5 * time.Second); maintained()-before != 1; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d configurations renew, want 1", maintained()-before)
		}
	}
	s.acme.Load().cache.Stop()
}
