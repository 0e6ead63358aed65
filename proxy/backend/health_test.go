package backend

import (
	"context"
	"crypto/tls"
	"slices"
	"strings"
	"testing"

	"postern/proxy"
)

func TestProbeReportsWhatAServerOffers(t *testing.T) {
	for _, test := range []struct {
		protocol, script string
		mode             Mode
		want             Report
	}{
		{proxy.IMAP, `
			S: * OK [CAPABILITY IMAP4rev1 IDLE AUTH=PLAIN auth=XOAUTH2] Dovecot ready
			C: P1 LOGOUT
			S: * BYE
			S: <EOF>`, Implicit, Report{
			Greeting: "Dovecot ready", TLS: tls.VersionTLS13,
			Capabilities: []string{"IMAP4rev1", "IDLE", "AUTH=PLAIN", "auth=XOAUTH2"}, Mechanisms: []string{"PLAIN", "XOAUTH2"},
		}},
		{proxy.IMAP, `
			S: * OK ready
			C: P1 CAPABILITY
			S: * CAPABILITY IMAP4rev1
			S: P1 OK done
			C: P2 LOGOUT
			S: * BYE
			S: <EOF>`, None, Report{Greeting: "ready", Capabilities: []string{"IMAP4rev1"}, Mechanisms: []string{"PLAIN"}}},
		{proxy.Submission, `
			S: 220 mx.example ESMTP Postfix
			C: EHLO postern.example
			S: 250-mx.example
			S: 250 STARTTLS
			C: STARTTLS
			S: 220 begin TLS
			C: EHLO postern.example
			S: 250-mx.example
			S: 250-SIZE 1000
			S: 250-XCLIENT LOGIN
			S: 250-ETRN
			S: 250 AUTH PLAIN LOGIN
			C: QUIT
			S: 221 bye
			S: <EOF>`, STARTTLS, Report{
			Greeting: "mx.example ESMTP Postfix", TLS: tls.VersionTLS13,
			Capabilities: []string{"SIZE 1000", "XCLIENT LOGIN", "ETRN", "AUTH PLAIN LOGIN"}, Mechanisms: []string{"PLAIN", "LOGIN"},
		}},
	} {
		s, seen := startServer(t, test.protocol, test.mode, test.script)
		if s.Offer().Mechanisms != nil {
			t.Error("something is offered before the first probe")
		}
		got, err := s.Probe(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if got.Greeting != test.want.Greeting || got.TLS != test.want.TLS ||
			!slices.Equal(got.Capabilities, test.want.Capabilities) || !slices.Equal(got.Mechanisms, test.want.Mechanisms) {
			t.Errorf("Probe = %+v, want %+v", got, test.want)
		}
		if !slices.Equal(s.Offer().Mechanisms, got.Mechanisms) {
			t.Errorf("after a probe: offer %v", s.Offer())
		}
		if got, want := seen.String(), "dialed ok"; got != want {
			t.Errorf("events: %s, want %s", got, want)
		}
		if test.protocol == proxy.Submission {
			if got, want := strings.Join(s.Offer().Extensions, ","), "SIZE 1000"; got != want {
				t.Errorf("Offer().Extensions = %s, want %s", got, want)
			}
		}
	}
}

// Criterion: a server that is down counts with its last list.
func TestOfferOutlivesTheServer(t *testing.T) {
	s, seen := startServer(t, proxy.Submission, None, "S: 220 x\nC: EHLO *\nS: 250-x\nS: 250-DSN\nS: 250 AUTH PLAIN\nC: QUIT\nS: 221 bye\nS: <EOF>", "S: 421 down\nC: <EOF>")
	if _, err := s.Probe(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Probe(t.Context()); err == nil {
		t.Error("Probe of a server that is down succeeds")
	}
	if got := s.Offer(); len(got.Mechanisms) != 1 || len(got.Extensions) != 1 {
		t.Errorf("Offer = %v, want the last", got)
	}
	if got, want := seen.String(), "dialed ok, dialed greeting"; got != want {
		t.Errorf("events: %s, want %s", got, want)
	}
}

func TestCancelledProbeReportsNothing(t *testing.T) {
	s, _ := startServer(t, proxy.Submission, None, smtpProbe)
	p, seen := newTestPool(proxy.Submission, s)
	p.Fall = 1
	p.Probe(t.Context())
	before := seen.String()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	p.Probe(ctx)
	if got := seen.String(); !p.Up() || got != before {
		t.Errorf("up: %v; events: %s, want %s", p.Up(), got, before)
	}
}

type observerFunc func(proxy.Event)

func (o observerFunc) Observe(e proxy.Event) { o(e) }
