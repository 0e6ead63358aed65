package service

import (
	"os"
	"strings"
	"testing"

	"postern/proxy"
	"postern/proxy/backend"
)

func TestAdviceIsForTheServerThatAnswered(t *testing.T) {
	for _, c := range []struct{ protocol, greeting, want string }{
		{proxy.IMAP, "Dovecot (Debian) ready.", "    login_trusted_networks = 127.0.0.1 "},
		{proxy.IMAP, "mx Cyrus IMAP 3.6.1 server ready", "    maxlogins_per_host: 0 "},
		{proxy.IMAP, "Courier-IMAP ready. Copyright 1998-2022", "    MAXPERIP=10000 "},
		{proxy.Submission, "mx.example.org ESMTP Postfix (Debian/GNU)", "    smtpd_authorized_xclient_hosts = 127.0.0.1 "},
		{proxy.Submission, "mx ESMTP Exim 4.96", "    hosts_proxy = 127.0.0.1 "},
		{proxy.Submission, "mx ESMTP OpenSMTPD", ""},
		{proxy.Submission, "mx ESMTP Dovecot", ""},
	} {
		got := advise(&backend.Server{Protocol: c.protocol, Address: "127.0.0.1:1"}, backend.Report{Greeting: c.greeting})
		if !strings.Contains(got, c.want) || (c.want == "") != (got == "") {
			t.Errorf("advice for %q:\n%swant %q in it", c.greeting, got, c.want)
		}
		if got != "" && !strings.Contains(got, "    ignoreip = 127.0.0.1 ") {
			t.Errorf("advice for %q forgets fail2ban:\n%s", c.greeting, got)
		}
	}
}

// A Dovecot that takes tokens is told how its passdbs keep them from passwords.
func TestAdviceForTokens(t *testing.T) {
	for _, test := range []struct {
		report backend.Report
		want   bool
	}{
		{backend.Report{Kind: backend.Dovecot, Mechanisms: []string{"PLAIN", "XOAUTH2"}}, true},
		{backend.Report{Kind: backend.Dovecot, Mechanisms: []string{"PLAIN", "OAUTHBEARER"}}, true},
		{backend.Report{Kind: backend.Dovecot, Mechanisms: []string{"PLAIN"}}, false},
		{backend.Report{Kind: backend.Gmail, Mechanisms: []string{"XOAUTH2"}}, false},
	} {
		got := adviseTokens(test.report)
		if has := strings.Contains(got, "mechanisms = plain login"); has != test.want {
			t.Errorf("advice for %+v: %q", test.report, got)
		}
	}
}

func TestSettingsOfTheAdviceAreExplained(t *testing.T) {
	doc, err := os.ReadFile("../../../../docs/backends.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range advice {
		for _, set := range a.settings {
			word := strings.FieldsFunc(strings.TrimPrefix(set.line, "# not in "), func(r rune) bool { return strings.ContainsRune(" =:", r) })[0]
			if !strings.Contains(string(doc), word) {
				t.Errorf("docs/backends.md says nothing of %s", word)
			}
		}
	}
}
