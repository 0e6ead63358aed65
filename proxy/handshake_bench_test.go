package proxy_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"syscall"
	"testing"
	"time"

	"postern/proxy"
	"postern/proxy/proxytest"
)

// greetingDialogue is a dialogue that greets, and then waits for the client to leave.
type greetingDialogue struct{ *proxy.Conn }

func (g greetingDialogue) Login(context.Context) (*proxy.Login, error) {
	if _, err := io.WriteString(g, "* OK ready\r\n"); err != nil {
		return nil, err
	}
	_, err := g.ReadLine(100)
	return nil, err
}

func (g greetingDialogue) Refuse(r *proxy.Refusal) error { return r }
func (g greetingDialogue) Accept(string) error           { return nil }

// serveTLS serves greetings at loopback until the end of the benchmark.
func serveTLS(b *testing.B) (address string, roots *x509.CertPool) {
	b.Helper()
	cert, roots := proxytest.Cert(b, "localhost")
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	s := &proxy.Server{Guard: &fakeBackend{}}
	err = s.Apply([]proxy.Binding{{Listener: ln, Service: &proxy.Service{
		Name: "imap", Protocol: proxy.IMAP, Dialogue: func(c *proxy.Conn) proxy.Dialogue { return greetingDialogue{c} },
		TLS: proxy.InstrumentTLS(&tls.Config{
			GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &cert, nil },
			MinVersion:     proxy.Modern.MinVersion(), CipherSuites: proxy.Modern.CipherSuites(),
			NextProtos: []string{"imap"},
		}),
	}}})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		_ = s.Shutdown(ctx, 0)
	})
	return ln.Addr().String(), roots
}

// BenchmarkHandshake is from connecting to the greeting, with both ends in one
// process: half of it, roughly, is the server's.
func BenchmarkHandshake(b *testing.B) {
	for _, bench := range []struct {
		name   string
		curve  tls.CurveID
		resume bool
	}{
		{"X25519", tls.X25519, false},
		{"X25519MLKEM768", tls.X25519MLKEM768, false},
		{"resumed", tls.X25519, true},
	} {
		b.Run(bench.name, func(b *testing.B) {
			address, roots := serveTLS(b)
			config := &tls.Config{ServerName: "localhost", RootCAs: roots, CurvePreferences: []tls.CurveID{bench.curve}, MinVersion: tls.VersionTLS13}
			if bench.resume {
				config.ClientSessionCache = tls.NewLRUClientSessionCache(1)
				greet(b, address, config)
			}
			before := cpu(b)
			b.ReportAllocs()
			for b.Loop() {
				if state := greet(b, address, config); state.DidResume != bench.resume || state.CurveID != bench.curve {
					b.Fatalf("resumed %v with %v", state.DidResume, state.CurveID)
				}
			}
			b.ReportMetric(float64(cpu(b)-before)/float64(b.N)/1e6, "cpu-ms/op")
		})
	}
}

func greet(b *testing.B, address string, config *tls.Config) tls.ConnectionState {
	b.Helper()
	raw, err := net.Dial("tcp", address)
	if err != nil {
		b.Fatal(err)
	}
	c := tls.Client(raw, config)
	defer func() { _ = c.Close() }()
	if _, err := io.ReadFull(c, make([]byte, len("* OK ready\r\n"))); err != nil {
		b.Fatal(err)
	}
	return c.ConnectionState()
}

// cpu returns what this process has used.
func cpu(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
