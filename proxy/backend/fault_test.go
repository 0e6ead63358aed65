package backend

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"postern/proxy"
	"postern/proxy/proxytest"
)

// A faultyServer says one thing to each connection, and then waits or closes.
type faultyServer struct {
	tls    *tls.Config // nil: no TLS
	says   string
	closes bool
}

func (f faultyServer) serve(conn net.Conn) {
	defer func() { _ = conn.Close() }()
	if f.tls != nil {
		conn = accept(conn, f.tls)
	}
	if _, err := io.WriteString(conn, f.says); err != nil || f.closes {
		return
	}
	_, _ = io.Copy(io.Discard, conn)
}

// start serves until the test ends, and returns the address.
func (f faultyServer) start(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	t.Cleanup(serving.Wait)
	t.Cleanup(func() { _ = ln.Close() })
	serving.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			serving.Go(func() { f.serve(conn) })
		}
	})
	return ln.Addr().String()
}

const (
	greetsIMAP  = "* OK [CAPABILITY IMAP4rev1] Mx.internal ready\r\n"
	greetsSMTP  = "220 Mx.internal ESMTP\r\n"
	greetsLMTP  = "220 Mx.internal LMTP ready\r\n"
	greetsPOP3  = "+OK Mx.internal ready\r\n"
	greetsSieve = "\"IMPLEMENTATION\" \"Mx.internal\"\r\n\"SIEVE\" \"fileinto\"\r\nOK\r\n"
	greetsHTTP  = "HTTP/1.1 400 Bad Request\r\n\r\n"
)

// Criterion: the error about a backend says which mistake it is: the wrong port or protocol, the wrong kind of TLS, a
// certificate of another authority, for another name or of another time, a server that is not there.
func TestEachFaultOfABackendIsTold(t *testing.T) {
	trusted, pool := proxytest.Cert(t)
	other, _ := proxytest.Cert(t)
	elsewhere, elsewherePool := proxytest.Cert(t, "mx.internal", "*.example.org", "192.0.2.1")
	selfSigned := selfSignedCert(t)
	both := func(text string) [2]string { return [2]string{text, text} }
	old := proxytest.ServerTLS(trusted)
	old.MinVersion, old.MaxVersion = tls.VersionTLS10, tls.VersionTLS11
	rsa := proxytest.ServerTLS(trusted)
	rsa.MaxVersion, rsa.CipherSuites = tls.VersionTLS12, []uint16{tls.TLS_RSA_WITH_AES_128_GCM_SHA256}
	later := func(c *tls.Config) { c.Time = func() time.Time { return time.Now().AddDate(1, 0, 0) } }
	earlier := func(c *tls.Config) { c.Time = func() time.Time { return time.Now().AddDate(-1, 0, 0) } }
	names := func(c *tls.Config) { c.RootCAs, c.ServerName = elsewherePool, "mx2.internal" }

	for _, test := range []struct {
		name   string
		mode   Mode
		server faultyServer
		change func(*tls.Config)
		fault  Fault
		speaks string
		text   [2]string // of IMAP and of submission; "": this protocol is right, and not tried
	}{
		{"IMAP without TLS", None, faultyServer{says: greetsIMAP}, nil, OtherProtocol, "IMAP", [2]string{"", `the server speaks IMAP: it said "* OK [CAPABILITY IMAP4rev1] Mx.internal ready"`}},
		{"SMTP without TLS", None, faultyServer{says: greetsSMTP}, nil, OtherProtocol, "SMTP", [2]string{`the server speaks SMTP: it said "220 Mx.internal ESMTP"`, ""}},
		{"LMTP without TLS", None, faultyServer{says: greetsLMTP}, nil, OtherProtocol, "LMTP", both(`the server speaks LMTP: it said "220 Mx.internal LMTP ready"`)},
		{"POP3 without TLS", STARTTLS, faultyServer{says: greetsPOP3}, nil, OtherProtocol, "POP3", both(`the server speaks POP3: it said "+OK Mx.internal ready"`)},
		{"ManageSieve without TLS", STARTTLS, faultyServer{says: greetsSieve}, nil, OtherProtocol, "ManageSieve", both(`the server speaks ManageSieve: it said "\"IMPLEMENTATION\" \"Mx.internal\""`)},
		{"HTTP without TLS", None, faultyServer{says: greetsHTTP}, nil, OtherProtocol, "HTTP", both(`the server speaks HTTP: it said "HTTP/1.1 400 Bad Request"`)},
		{"SSH", None, faultyServer{says: "SSH-2.0-OpenSSH_9.2\r\n"}, nil, OtherProtocol, "SSH", both(`the server speaks SSH: it said "SSH-2.0-OpenSSH_9.2"`)},
		{"a TLS alert", None, faultyServer{says: "\x15\x03\x01\x00\x02\x02\x46", closes: true}, nil, OtherProtocol, "TLS", both(`the server speaks TLS: it said "\x15\x03\x01\x00\x02\x02F"`)},
		{"IMAP within TLS", Implicit, faultyServer{tls: proxytest.ServerTLS(trusted), says: greetsIMAP}, nil, OtherProtocol, "IMAP", [2]string{"", `speaks IMAP`}},
		{"SMTP within TLS", Implicit, faultyServer{tls: proxytest.ServerTLS(trusted), says: greetsSMTP}, nil, OtherProtocol, "SMTP", [2]string{`speaks SMTP`, ""}},
		{"POP3 within TLS", Implicit, faultyServer{tls: proxytest.ServerTLS(trusted), says: greetsPOP3}, nil, OtherProtocol, "POP3", both(`speaks POP3`)},

		{"IMAP where TLS is wanted", Implicit, faultyServer{says: greetsIMAP}, nil, NotTLS, "IMAP", both(`TLS: the server does not begin with TLS: its first octets are "* OK "`)},
		{"SMTP where TLS is wanted", Implicit, faultyServer{says: greetsSMTP}, nil, NotTLS, "SMTP", both(`its first octets are "220 M"`)},
		{"POP3 where TLS is wanted", Implicit, faultyServer{says: greetsPOP3}, nil, NotTLS, "POP3", both(`its first octets are "+OK M"`)},
		{"ManageSieve where TLS is wanted", Implicit, faultyServer{says: greetsSieve}, nil, NotTLS, "ManageSieve", both(`its first octets are "\"IMPL"`)},
		{"HTTP where TLS is wanted", Implicit, faultyServer{says: greetsHTTP}, nil, NotTLS, "HTTP", both(`its first octets are "HTTP/"`)},
		{"noise where TLS is wanted", Implicit, faultyServer{says: "\x00\x01\x02\x03\x04\x05"}, nil, NotTLS, "", both(`its first octets are "\x00\x01\x02\x03\x04"`)},
		{"silence where TLS is wanted", Implicit, faultyServer{}, nil, TLSTimeout, "", both("TLS: no answer to the TLS handshake within 100ms")},
		{"an end in the handshake", Implicit, faultyServer{closes: true}, nil, ConnectionClosed, "", both("closed the connection in the TLS handshake")},
		{"TLS 1.1", Implicit, faultyServer{tls: old}, nil, TLSTooOld, "", both("speaks no TLS 1.2")},
		{"RSA key exchange", Implicit, faultyServer{tls: rsa}, nil, NoCommonCipher, "", both("no key exchange or cipher")},

		{"another authority", Implicit, faultyServer{tls: proxytest.ServerTLS(other)}, nil, UnknownAuthority, "", both(`TLS: the certificate of the server is signed by an authority that is not trusted ("CN=Postern test authority")`)},
		{"self-signed", Implicit, faultyServer{tls: proxytest.ServerTLS(selfSigned)}, nil, SelfSigned, "", both(`TLS: the certificate of the server is self-signed (`)},
		{"another name", Implicit, faultyServer{tls: proxytest.ServerTLS(elsewhere)}, names, WrongName, "", both("TLS: the certificate of the server is not for mx2.internal, but for mx.internal, *.example.org, 192.0.2.1")},
		{"expired", Implicit, faultyServer{tls: proxytest.ServerTLS(trusted)}, later, CertificateExpired, "", both("TLS: a certificate of the server has expired, on 20")},
		{"not yet valid", Implicit, faultyServer{tls: proxytest.ServerTLS(trusted)}, earlier, CertificateNotYet, "", both("TLS: a certificate of the server is valid only from 20")},

		{"silence", None, faultyServer{}, nil, GreetingTimeout, "", both("no greeting came within 100ms")},
		{"silence within TLS", Implicit, faultyServer{tls: proxytest.ServerTLS(trusted)}, nil, GreetingTimeout, "", both("no greeting came within 100ms")},
		{"an end before the greeting", None, faultyServer{closes: true}, nil, ConnectionClosed, "", both("closed the connection before its greeting")},
		{"goodbye", None, faultyServer{says: "* BYE Too many from Mx.internal\r\n"}, nil, Rejected, "IMAP", [2]string{`the server refuses the connection: it said "* BYE Too many from Mx.internal"`, ""}},
		{"another user's mailbox", None, faultyServer{says: "* PREAUTH Hello\r\n"}, nil, Rejected, "IMAP", [2]string{`it said "* PREAUTH Hello"`, ""}},
		{"goodbye of SMTP", None, faultyServer{says: "554-Mx.internal\r\n554 No\r\n"}, nil, Rejected, "SMTP", [2]string{"", `the server refuses the connection: it said "554-Mx.internal"`}},
		{"goodbye for a while", None, faultyServer{says: "421 Too many connections\r\n"}, nil, Rejected, "SMTP", [2]string{"", `it said "421 Too many connections"`}},
		{"another goodbye", None, faultyServer{says: "BYE Mx\r\n", closes: true}, nil, OtherFault, "", [2]string{"", `it said "BYE Mx"`}},
		{"no STARTTLS", STARTTLS, faultyServer{says: greetsIMAP}, nil, NoSTARTTLS, "", [2]string{"TLS: the server does not offer STARTTLS", ""}},
		{"no STARTTLS of SMTP", STARTTLS, faultyServer{says: greetsSMTP + "250 Mx.internal\r\n"}, nil, NoSTARTTLS, "", [2]string{"", "TLS: the server does not offer STARTTLS"}},
	} {
		address := test.server.start(t)
		for i, protocol := range []string{proxy.IMAP, proxy.Submission} {
			if test.text[i] == "" {
				continue
			}
			config := &tls.Config{RootCAs: pool, ServerName: "localhost", MinVersion: tls.VersionTLS12}
			if test.change != nil {
				test.change(config)
			}
			s := &Server{
				Name: "main", Protocol: protocol, Address: address, TLS: test.mode, Config: config, ReplyTimeout: 100 * time.Millisecond,
				Advise: func(*ConnectError) Advice { return Advice{Where: "p.yaml:7: key", Text: "do something"} },
			}
			_, err := s.Probe(t.Context())
			if err == nil || !strings.Contains(err.Error(), test.text[i]) {
				t.Errorf("%s for %s: %v, want %q in it", test.name, protocol, err, test.text[i])
				continue
			}
			e, ok := errors.AsType[*ConnectError](err)
			switch {
			case ok != (test.fault != OtherFault):
				t.Errorf("%s for %s: %#v", test.name, protocol, err)
			case ok && (e.Fault != test.fault || test.speaks != "" && e.Speaks != test.speaks):
				t.Errorf("%s for %s: fault %d of %s, want %d of %s", test.name, protocol, e.Fault, e.Speaks, test.fault, test.speaks)
			case ok && !strings.HasSuffix(err.Error(), "; do something (p.yaml:7: key)"):
				t.Errorf("%s for %s: %v, want an advice", test.name, protocol, err)
			}
		}
	}
}

// selfSignedCert returns a certificate that is its own authority.
func selfSignedCert(t *testing.T) tls.Certificate {
	t.Helper()
	certPath, keyPath := proxytest.RSACertFiles(t, "localhost")
	cert, err := tls.LoadX509KeyPair(certPath, keyPath)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func TestFaultsOfTheConnection(t *testing.T) {
	for _, test := range []struct {
		address, source string
		fault           Fault
		text            string
	}{
		{"127.0.0.1:1", "", ConnectionRefused, "connection refused: nothing listens at 127.0.0.1:1"},
		{"localhost:1", "", ConnectionRefused, "connection refused: nothing listens at localhost:1 ("},
		{"mx.postern.invalid:993", "", 0, "mx.postern.invalid"}, // RFC 6761 section 6.4: no such name, or no DNS here
	} {
		s := &Server{Protocol: proxy.IMAP, Address: test.address, TLS: None, DialTimeout: 5 * time.Second}
		_, err := s.Probe(t.Context())
		e, ok := errors.AsType[*ConnectError](err)
		if !ok || test.fault != 0 && e.Fault != test.fault || !strings.Contains(err.Error(), test.text) {
			t.Errorf("%s: %v", test.address, err)
		}
		if test.fault == 0 && (!ok || e.Fault != NameNotFound && e.Fault != LookupFailed) {
			t.Errorf("%s: %#v, want that there is no such name", test.address, err)
		}
	}
}

// A server chooses the names in its certificate, and its issuer.
func TestNamesOfACertificateAreFewAndPlain(t *testing.T) {
	leaf := &x509.Certificate{DNSNames: []string{"a\x1b[2Jb", strings.Repeat("x", 300), "ok.example", "é.example"}}
	if got := strings.Join(certificateNames(leaf), " "); got != "ok.example" {
		t.Errorf("names %q", got)
	}
	for range 20 {
		leaf.DNSNames = append(leaf.DNSNames, "n.example")
	}
	if got := certificateNames(leaf); len(got) != maxNames {
		t.Errorf("%d names, want %d", len(got), maxNames)
	}
}

// Criterion: what a real Dovecot and a real Postfix do with a configuration that does not fit is told as the mistake.
func TestFaultsOfRealServers(t *testing.T) {
	t.Parallel()
	d := proxytest.StartDovecot(t, proxytest.DovecotOptions{Users: users, POP3: true})
	p := proxytest.StartPostfix(t, proxytest.PostfixOptions{Dovecot: d})
	otherName := func(c *tls.Config) { c.ServerName = "mx2.internal" }
	otherCA := func(c *tls.Config) { c.RootCAs = x509.NewCertPool() }
	for _, test := range []struct {
		protocol, address string
		mode              Mode
		change            func(*tls.Config)
		fault             Fault
		speaks            string
		identity          Identity
	}{
		{proxy.IMAP, d.IMAP, Implicit, nil, NotTLS, "IMAP", Anonymous},
		{proxy.Submission, p.SMTP, Implicit, nil, NotTLS, "SMTP", Anonymous},
		{proxy.IMAP, d.IMAPS, STARTTLS, nil, GreetingTimeout, "", Anonymous},
		{proxy.Submission, p.SMTPS, None, nil, GreetingTimeout, "", Anonymous},
		{proxy.IMAP, p.SMTP, STARTTLS, nil, OtherProtocol, "SMTP", Anonymous},
		{proxy.Submission, d.IMAP, STARTTLS, nil, OtherProtocol, "IMAP", Anonymous},
		{proxy.IMAP, d.POP3, None, nil, OtherProtocol, "POP3", Anonymous},
		{proxy.Submission, d.POP3, None, nil, OtherProtocol, "POP3", Anonymous},
		{proxy.IMAP, d.IMAPS, Implicit, otherName, WrongName, "", Anonymous},
		{proxy.Submission, p.SMTP, STARTTLS, otherName, WrongName, "", Anonymous},
		{proxy.IMAP, d.IMAP, STARTTLS, otherCA, UnknownAuthority, "", Anonymous},
		{proxy.Submission, p.SMTPS, Implicit, otherCA, UnknownAuthority, "", Anonymous},

		// A server that does not expect a PROXY header greets, and then takes the header for a command.
		{proxy.IMAP, d.IMAP, None, nil, HeaderRefused, "", ProxyV1},
		{proxy.IMAP, d.IMAP, STARTTLS, nil, HeaderRefused, "", ProxyV2},
		{proxy.Submission, p.SMTP, None, nil, HeaderRefused, "", ProxyV1},
		{proxy.Submission, p.SMTP, STARTTLS, nil, HeaderRefused, "", ProxyV2},
		{proxy.IMAP, d.IMAPS, Implicit, nil, ConnectionClosed, "", ProxyV2},
		{proxy.Submission, p.SMTPS, Implicit, nil, ConnectionClosed, "", ProxyV1},
	} {
		ca := d.CA
		if test.address == p.SMTP || test.address == p.SMTPS {
			ca = p.CA
		}
		config := trustCA(t, ca)
		if test.change != nil {
			test.change(config)
		}
		s := &Server{Protocol: test.protocol, Address: test.address, TLS: test.mode, Config: config, ReplyTimeout: 2 * time.Second, Identity: test.identity}
		_, err := s.Probe(t.Context())
		e, ok := errors.AsType[*ConnectError](err)
		if !ok || e.Fault != test.fault || e.Speaks != test.speaks {
			t.Errorf("%s at %s, %v: %v, want fault %d of %q", test.protocol, test.address, test.mode, err, test.fault, test.speaks)
		}
	}
}
