package audit_test

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

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

// Criterion: A certificate that clients reject is one line for each network, alert and minute, and 600 lines at most: nobody can fill the log with it.
func TestAuditWritesWhoRejectsTheCertificate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		time.Sleep(time.Until(time.Now().Truncate(time.Minute).Add(time.Minute)))
		a, out := newLog()
		from := func(addr, alert string) {
			c := visitor
			c.Addr = netip.AddrPortFrom(netip.MustParseAddr(addr), 1)
			a.Observe(proxy.Handshake{
				Client: c, Result: proxy.HandshakeClientAbort, Reason: proxy.RejectedCertificate, Alert: alert, Hello: &tls.ClientHelloInfo{}, Err: io.EOF,
			})
			a.Observe(proxy.CertificateRejected{
				Client: c, ServerName: "mail.example.org\n", Version: tls.VersionTLS13, Alert: alert, NotAfter: time.Date(2026, 11, 27, 12, 4, 0, 0, time.UTC),
			})
		}
		from("192.0.2.1", "certificate_expired")
		const want = `level=INFO msg="certificate rejected" listener=pop3 ip=192.0.2.1 session=S1 result=client_abort reason=certificate_rejected ` +
			`alert=certificate_expired tls="TLS 1.3" server_name=mail.example.org? not_after=2026-11-27T12:04:00Z` + "\n"
		if _, line, _ := strings.Cut(out.String(), " "); line != want {
			t.Errorf("wrote %s, want %s", line, want)
		}
		for i := range 100 {
			from("192.0.2.1", "certificate_expired")
			from(fmt.Sprintf("2001:db8::%x", i), "certificate_expired")
		}
		from("192.0.2.1", "unknown_ca")
		if n := strings.Count(out.String(), "\n"); n != 3 {
			t.Errorf("%d lines about an address, a network of IPv6 and another alert, want 3:\n%s", n, out)
		}
		for i := range 10_000 {
			from(fmt.Sprintf("10.0.%d.%d", i/256, i%256), "certificate_expired")
		}
		if n := strings.Count(out.String(), "\n"); n != 600 {
			t.Errorf("%d lines in a minute, want 600", n)
		}
		out.Reset()
		time.Sleep(time.Minute)
		from("192.0.2.1", "certificate_expired")
		if n := strings.Count(out.String(), "\n"); n != 1 {
			t.Errorf("a minute later %d lines, want 1", n)
		}
	})
}

// Criterion: A balancer that is set up wrong, and a limit on connections, are a warning a minute for each listener, with what to set; a balancer's health check is none.
func TestAuditSaysWhatIsWrongWithABalancer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		balancer := visitor
		balancer.Addr = netip.MustParseAddrPort("10.0.0.7:4711")
		unexpected := proxy.Closed{Client: balancer, End: proxy.EndRefused, Err: proxy.NewRefusal(proxy.Plaintext, proxy.ErrUnexpectedProxyHeader)}
		for _, test := range []struct {
			event proxy.Event
			want  string
		}{
			{proxy.Rejected{Client: balancer, Err: proxy.ErrNoProxyHeader}, `reason=no_proxy_header remedy="send-proxy-v2 at the balancer 10.0.0.7, or take its address out of proxy_from of this listener" err=`},
			{proxy.Rejected{Client: balancer, Err: proxy.ErrProxyHeader}, `reason=bad_proxy_header remedy="send-proxy-v2 at the balancer 10.0.0.7: it sends something else" err=`},
			{unexpected, `reason=unexpected_proxy_header remedy="proxy_from: [10.0.0.7] at this listener, if 10.0.0.7 is your balancer" err=`},
			{proxy.Rejected{Client: balancer, Err: proxy.NewRefusal(proxy.TooMany, nil)}, `reason=too_many err=`},
			{proxy.Rejected{Client: balancer, Err: io.EOF}, ""},
		} {
			a, out := newLog()
			for range 100 {
				a.Observe(test.event)
			}
			if test.want == "" {
				if out.Len() > 0 {
					t.Errorf("%+v: wrote %s", test.event, out)
				}
				continue
			}
			want := `level=WARN msg="connection refused" listener=pop3 ip=10.0.0.7 session=S1 ` + test.want
			if got := out.String(); !strings.Contains(got, want) || strings.Count(got, "\n") != 1 {
				t.Errorf("%+v: wrote %s, want one line with %s", test.event, got, want)
			}
			out.Reset()
			time.Sleep(time.Minute)
			a.Observe(test.event)
			if got := out.String(); !strings.Contains(got, want) || !strings.Contains(got, " repeated=99\n") {
				t.Errorf("%+v: after a minute %s, want %s and repeated=99", test.event, got, want)
			}
		}
	})
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
