package service

import (
	"fmt"
	"net"
	"slices"
	"strings"

	"postern/proxy"
	"postern/proxy/backend"
	"postern/proxy/wire"
)

// advice has settings for the servers behind. A server behind Postern sees one client:
// Postern. Its limits for single clients must not apply to all users together.
// docs/backends.md has the reason for each line.
var advice = []struct {
	greeting string // a word of the server's greeting
	protocol string
	name     string
	lines    []string // ADDRESS stands for Postern's address from the view of the server
}{
	{"Dovecot", proxy.IMAP, "Dovecot", []string{
		"login_trusted_networks = ADDRESS    # takes the client's address from ID, also for the penalty of wrong passwords",
		"mail_max_userip_connections = 50    # 10 are too few for phone, tablet, laptop and webmail of one user",
		"service imap-login { client_limit = 10000 }   # with service_count = 0; the default ends at 100 processes",
		"service imap { process_limit = 10000 }        # a process for each session; the default is 1024",
	}},
	{"Cyrus", proxy.IMAP, "Cyrus IMAP", []string{
		"maxlogins_per_host: 0    # in imapd.conf: Postern is one host",
		"maxchild=10000           # or nothing, on the imap line of cyrus.conf",
	}},
	{"Courier", proxy.IMAP, "Courier", []string{
		"MAXPERIP=10000    # in imapd: sessions from one address; Debian sets 20",
		"MAXDAEMONS=10000  # in all; Debian sets 40",
	}},
	{"Postfix", proxy.Submission, "Postfix", []string{
		"smtpd_authorized_xclient_hosts = ADDRESS            # for identity: xclient",
		"smtpd_client_event_limit_exceptions = ADDRESS       # 50 connections at once are the limit for others",
		"# not in mynetworks: permit_mynetworks would take mail from whoever comes through Postern",
	}},
	{"Exim", proxy.Submission, "Exim", []string{
		"smtp_accept_max_per_host = ${if eq{$sender_host_address}{ADDRESS}{10000}{20}}",
		"smtp_ratelimit_hosts = !ADDRESS : *",
		"hosts_proxy = ADDRESS    # with identity: proxy-v2",
	}},
}

// advise returns the settings for a server with this greeting, or "".
func advise(protocol, greeting, address string) string {
	for _, a := range advice {
		if a.protocol != protocol || !strings.Contains(greeting, a.greeting) {
			continue
		}
		own := ownAddress(address)
		var b strings.Builder
		fmt.Fprintf(&b, "  this is %s; what it should know of Postern at %s (docs/backends.md):\n", a.name, own)
		for _, line := range append(a.lines, "ignoreip = "+own+"    # fail2ban's jail.local, if there is one") {
			fmt.Fprintf(&b, "    %s\n", strings.ReplaceAll(line, "ADDRESS", own))
		}
		return b.String()
	}
	return ""
}

// adviseTokens returns what to set on a Dovecot that takes tokens, or nothing. Its
// passdbs take every mechanism unless they say which, and a token for a password.
func adviseTokens(r backend.Report) string {
	bearer := func(mechanism string) bool {
		return mechanism == wire.MechanismXOAuth2 || mechanism == wire.MechanismOAuthBearer
	}
	if r.Kind != backend.Dovecot || !slices.ContainsFunc(r.Mechanisms, bearer) {
		return ""
	}
	return `  it takes tokens; a passdb without mechanisms takes them for passwords (docs/backends.md):
    passdb { driver = oauth2 mechanisms = xoauth2 oauthbearer }
    passdb { ... mechanisms = plain login }    # each of the others
`
}

// ownAddress returns the local address for connections to address. It sends nothing:
// connecting a UDP socket only looks up the route.
func ownAddress(address string) string {
	c, err := net.Dial("udp", address)
	if err != nil {
		return "Postern's address"
	}
	defer func() { _ = c.Close() }()
	host, _, err := net.SplitHostPort(c.LocalAddr().String())
	if err != nil {
		return "Postern's address"
	}
	return host
}
