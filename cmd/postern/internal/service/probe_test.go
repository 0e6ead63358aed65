package service

import (
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"postern/configs"
	"postern/proxy"
	"postern/proxy/backend"
	"postern/proxy/proxytest"
)

// probing returns a generation of a configuration that nothing serves.
func probing(t *testing.T, config string) *generation {
	t.Helper()
	cfg, err := configs.Parse("test.yaml", []byte(config))
	if err != nil {
		t.Fatal(err)
	}
	g := newGeneration(cfg, New(cfg, nil, slog.New(slog.DiscardHandler), nil))
	if _, err := g.newBackends(); err != nil {
		t.Fatal(err)
	}
	if err := g.setPOP3(); err != nil {
		t.Fatal(err)
	}
	return g
}

// Criterion: each fault of a backend comes with the next step, and with file, line and key of the setting.
func TestEachFaultHasAKeyAndANextStep(t *testing.T) {
	g := probing(t, `hostname: localhost
listeners: [{protocol: imap, address: ":993"}]
tls: {certificates: [{cert: a.pem, key: a.key}]}
backends:
  main:
    imap:
      addresses:
        - 10.0.0.5:993
        - 10.0.0.6:993
      server_name: mx.internal
      tls: implicit
    submission:
      address: localhost:587
      tls: none
`)
	const first, second, here = "10.0.0.5:993", "10.0.0.6:993", "localhost:587"
	for _, test := range []struct {
		protocol, address string
		e                 backend.ConnectError
		where, text       string
	}{
		{proxy.IMAP, first, backend.ConnectError{Fault: backend.NameNotFound}, "test.yaml:8: backends.main.imap.addresses[0]", "an IP address"},
		{proxy.IMAP, second, backend.ConnectError{Fault: backend.LookupFailed}, "test.yaml:9: backends.main.imap.addresses[1]", "/etc/resolv.conf"},
		{proxy.IMAP, first, backend.ConnectError{Fault: backend.NoSource}, "test.yaml:6: backends.main.imap.source", "leave source out"},
		{proxy.Submission, here, backend.ConnectError{Fault: backend.ConnectionRefused}, "test.yaml:13: backends.main.submission.address", "start the server"},
		{proxy.Submission, here, backend.ConnectError{Fault: backend.NoRoute}, "test.yaml:13: backends.main.submission.address", "routes"},
		{proxy.Submission, here, backend.ConnectError{Fault: backend.ConnectTimeout}, "test.yaml:13: backends.main.submission.address", "firewalls"},
		{proxy.IMAP, first, backend.ConnectError{Fault: backend.NotTLS, Speaks: "IMAP"}, "test.yaml:11: backends.main.imap.tls", "write tls: starttls, or give the address of its TLS port, usually 993"},
		{proxy.Submission, here, backend.ConnectError{Fault: backend.NotTLS, Speaks: "SMTP"}, "test.yaml:14: backends.main.submission.tls", "write tls: starttls or tls: none, or give the address of its TLS port, usually 465"},
		{proxy.IMAP, first, backend.ConnectError{Fault: backend.NotTLS, Speaks: "SMTP"}, "test.yaml:8: backends.main.imap.addresses[0]", "a port of SMTP without TLS: give that of an IMAP server"},
		{proxy.IMAP, first, backend.ConnectError{Fault: backend.TLSTimeout}, "test.yaml:11: backends.main.imap.tls", "tls: starttls"},
		{proxy.IMAP, first, backend.ConnectError{Fault: backend.TLSTooOld}, "test.yaml:8: backends.main.imap.addresses[0]", "TLS 1.2"},
		{proxy.IMAP, first, backend.ConnectError{Fault: backend.NoCommonCipher}, "test.yaml:8: backends.main.imap.addresses[0]", "ECDHE"},
		{proxy.IMAP, first, backend.ConnectError{Fault: backend.SelfSigned}, "test.yaml:6: backends.main.imap.ca", "copy the certificate of the server"},
		{proxy.IMAP, first, backend.ConnectError{Fault: backend.UnknownAuthority}, "test.yaml:6: backends.main.imap.ca", "put the certificate of this authority in a PEM file"},
		{proxy.IMAP, first, backend.ConnectError{Fault: backend.WrongName, Names: []string{"*.internal", "mx2.internal"}}, "test.yaml:10: backends.main.imap.server_name", "write server_name: mx2.internal"},
		{proxy.IMAP, first, backend.ConnectError{Fault: backend.WrongName}, "test.yaml:10: backends.main.imap.server_name", "another certificate"},
		{proxy.IMAP, first, backend.ConnectError{Fault: backend.CertificateExpired}, "test.yaml:8: backends.main.imap.addresses[0]", "renew"},
		{proxy.IMAP, first, backend.ConnectError{Fault: backend.CertificateNotYet}, "test.yaml:8: backends.main.imap.addresses[0]", "clock"},
		{proxy.IMAP, first, backend.ConnectError{Fault: backend.ConnectionClosed}, "test.yaml:6: backends.main.imap.identity", "identity: proxy-v2"},
		{proxy.IMAP, first, backend.ConnectError{Fault: backend.GreetingTimeout}, "test.yaml:8: backends.main.imap.addresses[0]", "the port of an IMAP server"},
		{proxy.Submission, here, backend.ConnectError{Fault: backend.GreetingTimeout}, "test.yaml:14: backends.main.submission.tls", "write tls: implicit"},
		{proxy.IMAP, first, backend.ConnectError{Fault: backend.OtherProtocol, Speaks: "SMTP"}, "test.yaml:8: backends.main.imap.addresses[0]", "a port of SMTP: give that of an IMAP server"},
		{proxy.Submission, here, backend.ConnectError{Fault: backend.OtherProtocol, Speaks: "TLS"}, "test.yaml:14: backends.main.submission.tls", "write tls: implicit"},
		{proxy.Submission, here, backend.ConnectError{Fault: backend.Rejected}, "test.yaml:13: backends.main.submission.address", "log of the server"},
		{proxy.Submission, here, backend.ConnectError{Fault: backend.HeaderRefused}, "test.yaml:12: backends.main.submission.identity", "identity: none"},
		{proxy.Submission, here, backend.ConnectError{Fault: backend.NoSTARTTLS}, "test.yaml:14: backends.main.submission.tls", "write tls: none, or give the address of its TLS port"},
		{proxy.IMAP, first, backend.ConnectError{Fault: backend.NoSTARTTLS}, "test.yaml:11: backends.main.imap.tls", "needs a certificate"},
		{proxy.IMAP, first, backend.ConnectError{Fault: backend.PasswordsDisabled}, "test.yaml:8: backends.main.imap.addresses[0]", "auth_mechanisms"},
		{proxy.Submission, here, backend.ConnectError{Fault: backend.NoMechanism}, "test.yaml:14: backends.main.submission.tls", "many servers offer AUTH only with TLS"},
	} {
		got := g.adviser("main", test.protocol, test.address)(&test.e)
		if got.Where != test.where || !strings.Contains(got.Text, test.text) {
			t.Errorf("fault %d of %s: %q, want %q with %q", test.e.Fault, test.protocol, got, test.where, test.text)
		}
	}
	for fault := backend.OtherFault + 1; fault <= backend.NoMechanism; fault++ {
		if got := g.adviser("main", proxy.IMAP, first)(&backend.ConnectError{Fault: fault}); got.Text == "" {
			t.Errorf("fault %d has no advice", fault)
		}
	}
}

// counting passes connections to address on and counts them.
func counting(t *testing.T, address string) (near string, count *atomic.Int32) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var copies sync.WaitGroup
	t.Cleanup(copies.Wait)
	t.Cleanup(func() { _ = ln.Close() })
	count = new(atomic.Int32)
	copies.Go(func() {
		for {
			client, err := ln.Accept()
			if err != nil {
				return
			}
			count.Add(1)
			server, err := net.Dial("tcp", address)
			if err != nil {
				_ = client.Close()
				continue
			}
			copies.Go(func() { _, _ = io.Copy(server, client); _ = server.Close() })
			copies.Go(func() { _, _ = io.Copy(client, server); _ = client.Close() })
		}
	})
	return ln.Addr().String(), count
}

// Criterion: check --probe --user logs in at IMAP and at submission, and tries a wrong password once.
func TestProbeLogsInAtEachProtocol(t *testing.T) {
	imap, submission := inMemory(t, "mail", "alice")
	submission, count := counting(t, submission)
	g := probing(t, baseConfig+fmt.Sprintf(`
listeners: [{protocol: pop3, address: "127.0.0.1:0"}]
backends: {main: {imap: {address: %q, tls: none}, submission: {address: %q, tls: none}}}
`, imap, submission))
	for _, test := range []struct {
		password, out, err string
		connections        int32 // to submission
	}{
		{"secret of alice", "login of alice on backend main: accepted by imap and submission (AUTH, then QUIT: no mail was sent)\n", "", 2},
		{"wrong of alice", "", "counts there as a wrong password (delays, fail2ban), and no other was made", 1},
	} {
		count.Store(0)
		var out strings.Builder
		err := g.probe(t.Context(), &out, CheckOptions{User: "alice", Password: func() (*proxy.Secret, error) {
			return proxy.NewSecret([]byte(test.password)), nil
		}})
		if (err == nil) != (test.err == "") || err != nil && !strings.Contains(err.Error(), test.err) || !strings.Contains(out.String(), test.out) {
			t.Errorf("with %q:\n%s%v", test.password, out.String(), err)
		}
		if text := fmt.Sprint(out.String(), err); strings.Contains(text, test.password) {
			t.Errorf("the password is shown:\n%s", text)
		}
		if n := count.Load(); n != test.connections {
			t.Errorf("with %q: %d connections to submission, want %d", test.password, n, test.connections)
		}
	}
}

// Criterion: check --probe --user logs in at the old POP3 server, too, and retrieves and deletes nothing there.
func TestProbeLogsInAtTheOldServer(t *testing.T) {
	old := proxytest.StartPOP3Server(t)
	old.SetMaildrop("alice", []proxytest.POP3Message{{Raw: "x\r\n"}})
	g := probing(t, baseConfig+fmt.Sprintf(`
listeners: [{protocol: pop3, address: "127.0.0.1:0"}]
backends: {main: {pop3: {address: %q, tls: none, kind: other}}}
pop3: {mode: passthrough}
`, old.Addr))
	for password, want := range map[string]string{
		old.Password: "login of alice on backend main: accepted by pop3 (of backend main: the old server; nothing was retrieved or deleted)",
		"no":         "this attempt may count there as a wrong password",
	} {
		var out strings.Builder
		err := g.probe(t.Context(), &out, CheckOptions{User: "alice", Password: func() (*proxy.Secret, error) { return proxy.NewSecret([]byte(password)), nil }})
		if got := out.String() + fmt.Sprint(err); !strings.Contains(got, want) {
			t.Errorf("probe prints %s, want %s", got, want)
		}
	}
	if n := old.Commands("RETR") + old.Commands("DELE") + old.Commands("TOP"); n != 0 {
		t.Errorf("%d commands about messages", n)
	}
}

// Criterion: check --probe names what a backend offers and the configuration does not use, and the other way round.
func TestProbeComparesOfferAndConfiguration(t *testing.T) {
	for _, test := range []struct {
		protocol, server string
		report           backend.Report
		want             string
	}{
		{proxy.Submission, `address: "127.0.0.1:25", tls: none`, backend.Report{Capabilities: []string{"XCLIENT NAME ADDR"}}, "test.yaml:4: backends.main.submission.identity: warning: the server offers XCLIENT"},
		{proxy.Submission, `address: "127.0.0.1:25", tls: none, identity: xclient`, backend.Report{Identified: true}, ""},
		{proxy.Submission, `address: "127.0.0.1:25", tls: none, identity: xclient`, backend.Report{}, "the server does not offer XCLIENT to Postern, and identity is xclient"},
		{proxy.Submission, `address: "10.0.0.5:25", tls: none, insecure: true`, backend.Report{Capabilities: []string{"STARTTLS"}}, "test.yaml:4: backends.main.submission.tls: warning: the server offers STARTTLS"},
		{proxy.Submission, `address: "[::1]:25", tls: none`, backend.Report{Capabilities: []string{"STARTTLS"}}, ""},
		{proxy.POP3, `address: "10.0.0.5:995"`, backend.Report{Kind: backend.Other}, "test.yaml:4: backends.main.pop3.kind: warning: the server does not say by a code which password is wrong"},
		{proxy.POP3, `address: "10.0.0.5:995", kind: popa3d`, backend.Report{Kind: backend.Popa3d}, ""},
		{proxy.POP3, `address: "10.0.0.5:995"`, backend.Report{Kind: backend.Other, Capabilities: []string{"AUTH-RESP-CODE"}}, ""},
		{proxy.POP3, `address: "10.0.0.5:110", tls: none, insecure: true, kind: other`, backend.Report{Capabilities: []string{"STLS"}}, "the server offers STLS, and tls is none"},
		{proxy.IMAP, `address: "10.0.0.5:993", identity: none`, backend.Report{Kind: backend.Dovecot, Capabilities: []string{"ID"}}, "write identity: id"},
		{proxy.IMAP, `address: "10.0.0.5:993"`, backend.Report{Kind: backend.Dovecot, Capabilities: []string{"ID"}, Identified: true}, ""},
	} {
		g := probing(t, fmt.Sprintf(`hostname: localhost
listeners: [{protocol: %[1]s, address: ":993"}]
tls: {certificates: [{cert: a.pem, key: a.key}]}
backends: {main: {%[1]s: {%[2]s}}}
pop3: {mode: passthrough}
`, test.protocol, test.server))
		got := strings.Join(g.differences(&probed{Server: &backend.Server{Name: "main", Protocol: test.protocol, Address: serverOf(g.cfg, "main", test.protocol).Address}, report: test.report}), "\n")
		if !strings.Contains(got, test.want) || (got == "") != (test.want == "") {
			t.Errorf("{%s}: %q, want %q in it", test.server, got, test.want)
		}
	}
}

func TestAdviceLeavesOutWhatIsFollowed(t *testing.T) {
	s := &backend.Server{Protocol: proxy.Submission, Address: "127.0.0.1:1"}
	got := advise(s, backend.Report{Greeting: "mx ESMTP Postfix", Capabilities: []string{"XCLIENT NAME ADDR"}})
	if strings.Contains(got, "smtpd_authorized_xclient_hosts =") || !strings.Contains(got, "already so: smtpd_authorized_xclient_hosts") {
		t.Errorf("advice to a Postfix that offers XCLIENT:\n%s", got)
	}
}

// A server's words reach a terminal without what the terminal obeys.
func TestTextsOfServersAreVisible(t *testing.T) {
	imap := greets(t, "* OK [CAPABILITY IMAP4rev1 AUTH=PLAIN] \x1b[2J\x07 ready\r\n")
	g := probing(t, baseConfig+fmt.Sprintf(`
listeners: [{protocol: imap, address: "127.0.0.1:0"}]
backends: {main: {imap: {address: %q, tls: none, identity: none}}}
`, imap))
	var out strings.Builder
	if err := g.probe(t.Context(), &out, CheckOptions{}); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(out.String(), "greeting:     ?[2J? ready\n") {
		t.Errorf("%q", out.String())
	}
}

// greets returns the address of a server that greets, and closes after the next command.
func greets(t *testing.T, greeting string) string {
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
			_, _ = io.WriteString(conn, greeting)
			_, _ = conn.Read(make([]byte, 512))
			_ = conn.Close()
		}
	})
	return ln.Addr().String()
}
