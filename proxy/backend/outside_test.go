package backend

import (
	"crypto/tls"
	"net"
	"slices"
	"strings"
	"testing"

	"postern/proxy"
	"postern/proxy/proxytest"
	"postern/proxy/relay"
)

// xclientScript is the dialogue of a submission server up to the reply to EHLO
// after XCLIENT with this address.
func xclientScript(address string, before, after []string) string {
	lines := func(extensions []string) string {
		return "\nC: EHLO *\nS: 250-mx.example\nS: 250-" + strings.Join(extensions, "\nS: 250-") + "\nS: 250 HELP"
	}
	return "S: 220 mx.example" + lines(append([]string{postfix}, before...)) +
		"\nC: XCLIENT * ADDR=" + address + "\nS: 220 mx.example" + lines(after) + "\n"
}

const quits = "C: QUIT\nS: 221 bye\nS: <EOF>"

// Criterion: what submission announces is what the server offers to a client
// outside and to Postern: a probe introduces such a client with XCLIENT.
func TestProbeAsksForAClientOutside(t *testing.T) {
	for _, test := range []struct {
		name          string
		before, after []string
		mechanisms    string
		offered       string
	}{
		{"less outside", []string{"DSN", "SIZE 9", "AUTH PLAIN"}, []string{"SIZE 5", "AUTH PLAIN"}, "PLAIN", "SIZE 5"},
		{"more outside", []string{"SIZE 9"}, []string{"DSN", "SIZE 9", "AUTH PLAIN"}, "PLAIN", "SIZE 9"},
	} {
		for _, how := range []Identity{XCLIENT, XCLIENTLogin} {
			s, _ := startServer(t, proxy.Submission, None, xclientScript("192.0.2.1", test.before, test.after)+quits)
			identified := recordIdentified(s, how)
			report, err := s.Probe(t.Context())
			if err != nil {
				t.Errorf("%s: %v", test.name, err)
				continue
			}
			if got := strings.Join(s.Offer().Extensions, ","); got != test.offered {
				t.Errorf("%s: offered %s, want %s", test.name, got, test.offered)
			}
			if got := strings.Join(report.Mechanisms, ","); got != test.mechanisms {
				t.Errorf("%s: mechanisms %s, want %s", test.name, got, test.mechanisms)
			}
			if identified() != "0 0" {
				t.Errorf("a probe counts as a login: %s", identified())
			}
		}
	}
}

func TestProbeOfAServerForClientsInsideAsksForPosternsOwnAddress(t *testing.T) {
	list := []string{"SIZE 9", "AUTH PLAIN"}
	s, _ := startServer(t, proxy.Submission, None,
		strings.Replace(xclientScript("192.0.2.1", list, nil), "S: 220 mx.example\nC: EHLO *\nS: 250-mx.example\nS: 250-\nS: 250 HELP", "S: 554 5.7.1 Client host rejected\nC: <EOF>", 1),
		xclientScript("127.0.0.1", list, list)+quits)
	recordIdentified(s, XCLIENT)
	if _, err := s.Probe(t.Context()); err != nil {
		t.Error(err)
	}
}

// Criterion: an extension that the server has for Postern and not for this
// client costs no login: the session goes on without it.
func TestLoginSMTPGoesOnWithoutWhatTheClientDoesNotGet(t *testing.T) {
	s, _ := startServer(t, proxy.Submission, None, xclientScript("203.0.113.9", []string{"DSN", "SIZE 9", "AUTH PLAIN"}, []string{"SIZE 9", "AUTH PLAIN"})+`
		C: AUTH PLAIN *
		S: 235 in`)
	recordIdentified(s, XCLIENT)
	session, err := (&Submission{Server: s}).Login(t.Context(), withAddr(testSMTPLogin(password, "DSN", "SIZE 9"), customer))
	if err != nil {
		t.Fatal(err)
	}
	_ = session.Close()
	if got := session.(*relay.Submission).Lacks; !slices.Equal(got, []string{"DSN"}) {
		t.Errorf("Lacks = %v, want DSN", got)
	}
}

func TestLoginSMTPRefusesAServerThatHasLostAnExtensionForAll(t *testing.T) {
	list := []string{"SIZE 9", "AUTH PLAIN"}
	s, _ := startServer(t, proxy.Submission, None, xclientScript("203.0.113.9", list, list)+quits)
	recordIdentified(s, XCLIENT)
	_, err := s.LoginSMTP(t.Context(), withAddr(testSMTPLogin(password, "DSN"), customer))
	checkRefusal(t, err, proxy.Unavailable)
}

// A client from a network that gets less, or more, changes what others are
// announced only towards less.
func TestOfferAfterXCLIENTIsNotThatOfOneClient(t *testing.T) {
	all, less := []string{"DSN", "SIZE 9", "AUTH PLAIN"}, []string{"SIZE 9", "AUTH PLAIN"}
	login := "C: AUTH PLAIN *\nS: 235 in"
	s, _ := startServer(t, proxy.Submission, None, xclientScript("192.0.2.1", all, less)+quits, xclientScript("203.0.113.9", all, all)+login,
		xclientScript("192.0.2.1", all, all)+quits, xclientScript("203.0.113.9", all, less)+login)
	recordIdentified(s, XCLIENT)
	for _, want := range []string{"SIZE 9", "SIZE 9"} {
		if _, err := s.Probe(t.Context()); err != nil {
			t.Fatal(err)
		}
		conn, err := s.LoginSMTP(t.Context(), withAddr(testSMTPLogin(password, "SIZE 9"), customer))
		if err != nil {
			t.Fatal(err)
		}
		_ = conn.Close()
		if got := strings.Join(s.Offer().Extensions, ","); got != want {
			t.Errorf("offered %s, want %s", got, want)
		}
	}
}

// Criterion: a server with which nobody could log in is not ready.
func TestProbeOfAServerThatTakesNoLoginIsAnError(t *testing.T) {
	for _, test := range []struct{ protocol, script, want string }{
		{proxy.Submission, "S: 220 x\nC: EHLO *\nS: 250-x\nS: 250 SIZE 9\n" + quits, "no AUTH"},
		{proxy.Submission, "S: 220 x\nC: EHLO *\nS: 250-x\nS: 250 AUTH GSSAPI\n" + quits, "GSSAPI"},
		{proxy.IMAP, "S: * OK [CAPABILITY IMAP4rev1 LOGINDISABLED AUTH=PLAIN] x\nC: P1 LOGOUT\nS: * BYE\nS: <EOF>", "LOGINDISABLED"},
		{proxy.IMAP, "S: * OK [CAPABILITY IMAP4rev1 LOGINDISABLED STARTTLS] x\nC: P1 LOGOUT\nS: * BYE\nS: <EOF>", "LOGINDISABLED"},
	} {
		s, _ := startServer(t, test.protocol, None, test.script, test.script)
		p, seen := newTestPool(test.protocol, s)
		p.Probe(t.Context())
		if got, want := seen.String(), "probed false"; !strings.HasPrefix(got, want) || p.Up() {
			t.Errorf("%q: %s, want %s", test.script, got, want)
		}
		if _, err := s.Probe(t.Context()); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("Probe of %q: %v, want an error with %s", test.script, err, test.want)
		}
		if s.Offer().Mechanisms != nil {
			t.Errorf("%q: something is offered", test.script)
		}
	}
}

func TestProbeIMAPSendsIDAsLoginsDo(t *testing.T) {
	s, _ := startServer(t, proxy.IMAP, None, `
		S: * OK [CAPABILITY IMAP4rev1 ID AUTH=PLAIN] ready
		C: P1 ID ("x-session-id" "probe" "x-originating-ip" "192.0.2.1" *)
		S: * ID NIL
		S: P1 NO what
		C: P2 CAPABILITY
		S: * CAPABILITY IMAP4rev1 LOGINDISABLED
		S: P2 OK done
		C: P3 LOGOUT
		S: * BYE
		S: <EOF>`)
	recordIdentified(s, ID)
	if _, err := s.Probe(t.Context()); err == nil {
		t.Error("no error of a server that disables the login of clients outside")
	}
}

// Criterion: the error about a server whose TLS is too old says so: TLS 1.0 or
// 1.1 alone, or RSA key exchange alone.
func TestErrorExplainsTLSThatIsTooOld(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(*tls.Config)
		want   string
	}{
		{"TLS 1.0", func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS10, tls.VersionTLS10 }, "speaks no TLS 1.2"},
		{"TLS 1.1", func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS10, tls.VersionTLS11 }, "speaks no TLS 1.2"},
		{"RSA key exchange", func(c *tls.Config) {
			c.MaxVersion, c.CipherSuites = tls.VersionTLS12, []uint16{tls.TLS_RSA_WITH_AES_128_GCM_SHA256}
		}, "RSA key exchange"},
	} {
		cert, _ := proxytest.Cert(t)
		config := proxytest.ServerTLS(cert)
		test.change(config)
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			if conn, err := ln.Accept(); err == nil {
				_ = tls.Server(conn, config).HandshakeContext(t.Context())
				_ = conn.Close()
			}
		}()
		s := &Server{Protocol: proxy.IMAP, Address: ln.Addr().String(), Config: &tls.Config{ServerName: "localhost", MinVersion: tls.VersionTLS12}}
		if _, err := s.Probe(t.Context()); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q in it", test.name, err, test.want)
		}
		<-done
		_ = ln.Close()
	}
}

// A server that only speaks TLS 1.0 chooses that, and does not look at the list
// of versions that came with TLS 1.3.
func TestErrorExplainsAnOldTLSVersion(t *testing.T) {
	hello := []byte("\x16\x03\x01\x00\x2a\x02\x00\x00\x26\x03\x01" + strings.Repeat("r", 32) + "\x00\xc0\x14\x00")
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	done := make(chan struct{})
	go func() {
		defer close(done)
		if conn, err := ln.Accept(); err == nil {
			_, _ = conn.Read(make([]byte, 4096))
			_, _ = conn.Write(hello)
			_, _ = conn.Read(make([]byte, 4096))
			_ = conn.Close()
		}
	}()
	s := &Server{Protocol: proxy.IMAP, Address: ln.Addr().String(), Config: &tls.Config{ServerName: "localhost", MinVersion: tls.VersionTLS12}}
	if _, err := s.Probe(t.Context()); err == nil || !strings.Contains(err.Error(), "speaks no TLS 1.2") {
		t.Errorf("%v, want that the server speaks no TLS 1.2", err)
	}
	<-done
}
