package main

import (
	"fmt"
	"os/exec"
	"strings"
	"testing"

	"postern/proxy/proxytest"
)

// Criterion: OpenSSL clients that do not trust our certificate are in the log at INFO with their alert, at implicit TLS and after STARTTLS of each protocol, and are counted as such and not as errors.
func TestOpenSSLThatRejectsTheCertificateIsNamed(t *testing.T) {
	proxytest.Need(t, "openssl")
	s := open(t)
	p := launch(t, []string{
		"protocol: imap, name: imap",
		"protocol: imap, name: imap-143, tls: starttls",
		"protocol: pop3, name: pop3-110, tls: starttls",
		"protocol: submission, name: submission-587, tls: starttls",
	}, []string{fmt.Sprintf("main: {imap: {address: %q, tls: none}, submission: {address: %q, tls: none}}", s.backend.IMAP, s.postfix.SMTP)}, "")
	for listener, starttls := range map[string]string{"imap": "", "imap-143": "imap", "pop3-110": "pop3", "submission-587": "smtp"} {
		for _, version := range []string{"-tls1_2", "-tls1_3"} {
			args := []string{"s_client", "-connect", p.at(t, listener), "-servername", "mail.example.org", "-verify_return_error", "-quiet", version}
			if starttls != "" {
				args = append(args, "-starttls", starttls)
			}
			if out, err := exec.CommandContext(t.Context(), "openssl", args...).CombinedOutput(); err == nil {
				t.Errorf("%s, %s: the certificate was accepted\n%s", listener, version, out)
			}
		}
		rejected := func(level string) (n int) {
			for _, l := range p.logged(t, "certificate rejected") {
				if l.text("listener") == listener && l.text("level") == level && l.text("reason") == "certificate_rejected" &&
					l.text("alert") == "unknown_ca" && l.text("server_name") == "mail.example.org" && l.text("ip") == "127.0.0.1" {
					n++
				}
			}
			return n
		}
		within(t, patience, listener+" has two lines about its clients", func() bool { return rejected("INFO")+rejected("DEBUG") == 2 })
	}
	if n := len(p.logged(t, "certificate rejected")); n != 8 {
		t.Errorf("%d lines, want 8", n)
	}
	values, _ := p.scrape(t)
	for metric, value := range values {
		switch {
		case strings.HasPrefix(metric, "postern_tls_certificate_rejections_total{") && strings.Contains(metric, `alert="unknown_ca"`):
			if value != "2" {
				t.Errorf("%s is %s, want 2", metric, value)
			}
		case strings.HasPrefix(metric, "postern_tls_handshakes_total{") && strings.Contains(metric, `result="error"`) && value != "0":
			t.Errorf("%s is %s, want 0", metric, value)
		}
	}
}
