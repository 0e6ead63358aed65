package proxy

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"io"
	"math/big"
	"net"
	"testing"
	"time"
)

// firstFlight returns what a client of crypto/tls sends first.
func firstFlight(config *tls.Config) []byte {
	client, server := net.Pipe()
	defer func() { _ = server.Close() }()
	go func() {
		_ = tls.Client(client, config).Handshake()
		_ = client.Close()
	}()
	b := make([]byte, 16<<10)
	n, _ := server.Read(b)
	return b[:n]
}

// Whatever a client sends, in two pieces: a handshake ends with one Handshake, and a
// certificate is rejected at most once, by an alert that CertificateAlerts has, after it was
// sent.
func FuzzHandshake(f *testing.F) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"mail.example.org"}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		f.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		f.Fatal(err)
	}
	cert := tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
	config := InstrumentTLS(&tls.Config{
		MinVersion:     tls.VersionTLS10,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &cert, nil },
	})
	alert := []byte{21, 3, 3, 0, 2, 2, 42}
	for _, version := range []uint16{tls.VersionTLS10, tls.VersionTLS12, tls.VersionTLS13} {
		hello := firstFlight(&tls.Config{ServerName: "mail.example.org", MinVersion: version, MaxVersion: version})
		f.Add(hello, alert)
		f.Add(hello, append([]byte{20, 3, 3, 0, 1, 1}, alert...)) // as OpenSSL in TLS 1.3
		f.Add(hello[:5], append(hello[5:], alert...))
	}
	f.Add(alert, alert)
	f.Add([]byte("a001 LOGIN alice secret\r\n"), []byte{})
	f.Fuzz(func(t *testing.T, first, second []byte) {
		if len(first)+len(second) > 32<<10 {
			return
		}
		client, server := net.Pipe()
		go func() { _, _ = io.Copy(io.Discard, client) }()
		go func() {
			_, _ = client.Write(first)
			_, _ = client.Write(second)
			_ = client.Close()
		}()
		c := NewConn(server, Client{}, config, time.Second)
		handshakes, rejections, known := 0, 0, false
		c.observe = func(e Event) {
			switch e := e.(type) {
			case Handshake:
				handshakes++
				known = e.Hello != nil
			case CertificateRejected:
				rejections++
				named := false
				for _, name := range CertificateAlerts() {
					named = named || name == e.Alert
				}
				if !named || e.NotAfter.IsZero() || !known {
					t.Errorf("%+v", e)
				}
			}
		}
		if err := c.StartTLS(context.Background()); err == nil {
			_, _ = c.Read(make([]byte, 100))
		}
		_ = server.Close()
		if handshakes != 1 || rejections > 1 {
			t.Errorf("%d Handshake, %d CertificateRejected", handshakes, rejections)
		}
	})
}
