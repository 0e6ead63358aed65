package audit_test

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"postern/proxy"
)

func TestAuditWritesWhatAFailedHandshakeNeeds(t *testing.T) {
	a, out := newLog()
	a.Observe(proxy.Handshake{
		Client: visitor, Result: proxy.HandshakeError, Err: errors.New("tls: no"), Reason: proxy.NoVersion, Needs: "legacy",
		Hello: &tls.ClientHelloInfo{
			ServerName:        "pop.example.org\nlevel=INFO msg=login " + strings.Repeat("x", 1000),
			SupportedVersions: []uint16{0x0a0a, tls.VersionTLS10, tls.VersionTLS11},
		},
	})
	line := out.String()
	_, line, _ = strings.Cut(line, "level=")
	want := `INFO msg="handshake failed" listener=pop3 ip=192.0.2.1 session=S1 result=error server_name=`
	if !strings.HasPrefix(line, want) || !strings.Contains(line, ` offered="TLS 1.1 TLS 1.0" reason=version needs=legacy err="tls: no"`) ||
		!strings.Contains(line, "pop.example.org?level=INFO?msg=login?") || len(line) > 500 {
		t.Errorf("wrote %s", line)
	}
	out.Reset()
	for range 100 {
		a.Observe(proxy.Handshake{Client: visitor, Result: proxy.HandshakeError, Reason: proxy.NoOther, Hello: &tls.ClientHelloInfo{}, Err: io.EOF})
	}
	if n := strings.Count(out.String(), "\n"); n > 40 { // ten each second, and a slow machine
		t.Errorf("%d lines about a flood", n)
	}
}

func TestAuditBoundsWhatAClientOffers(t *testing.T) {
	a, out := newLog()
	h := proxy.Handshake{Client: visitor, Result: proxy.HandshakeError, Reason: proxy.NoProtocol, Hello: &tls.ClientHelloInfo{}}
	h.Err = fmt.Errorf("tls: client requested unsupported application protocols (%q)", strings.Repeat("\x00h2", 20_000))
	a.Observe(h)
	if line := out.String(); len(line) > 500 || !strings.Contains(line, "unsupported application protocols") {
		t.Errorf("wrote %d octets: %.600s", len(line), line)
	}
}

func TestAuditWritesHowASessionWasEncrypted(t *testing.T) {
	a, out := newLog()
	old := visitor
	old.TLS = &tls.ConnectionState{Version: tls.VersionTLS10, CipherSuite: tls.TLS_RSA_WITH_3DES_EDE_CBC_SHA}
	a.Observe(proxy.Attempt{Client: old, Account: "alice"})
	if want := `tls="TLS 1.0" cipher=TLS_RSA_WITH_3DES_EDE_CBC_SHA needs=legacy`; !strings.Contains(out.String(), want) {
		t.Errorf("wrote %s, want %s in it", out, want)
	}
}
