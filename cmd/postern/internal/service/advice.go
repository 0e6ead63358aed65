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

// A setting is a line for the configuration of a server.
type setting struct {
	line     string                                         // ADDRESS stands for Postern's address from the view of the server
	followed func(s *backend.Server, r backend.Report) bool // whether the server shows that it has the setting; nil: it cannot be seen
}

// advice has settings for the servers of backends. A server behind Postern sees one client:
// Postern. Its limits for single clients must not apply to all users together.
// docs/backends.md has the reason for each line.
var advice = []struct {
	greeting string // a word of the server's greeting
	protocol string
	name     string
	settings []setting
}{
	{"Dovecot", proxy.IMAP, "Dovecot", []setting{
		{"login_trusted_networks = ADDRESS    # takes the client's address from ID, also for the penalty of wrong passwords", nil},
		{"mail_max_userip_connections = 50    # 10 are too few for phone, tablet, laptop and webmail of one user", nil},
		{"service imap-login { client_limit = 10000 }   # with service_count = 0; the default ends at 100 processes", nil},
		{"service imap { process_limit = 10000 }        # a process for each session; the default is 1024", nil},
	}},
	{"Cyrus", proxy.IMAP, "Cyrus IMAP", []setting{
		{"maxlogins_per_host: 0    # in imapd.conf: Postern is one host", nil},
		{"maxchild=10000           # or nothing, on the imap line of cyrus.conf", nil},
	}},
	{"Courier", proxy.IMAP, "Courier", []setting{
		{"MAXPERIP=10000    # in imapd: sessions from one address; Debian sets 20", nil},
		{"MAXDAEMONS=10000  # in all; Debian sets 40", nil},
	}},
	{"Dovecot", proxy.Sieve, "Dovecot", []setting{
		{"login_trusted_networks = ADDRESS    # lets Postern use XCLIENT for the client's address", offersXCLIENT},
		{"service managesieve-login { client_limit = 10000 }   # with service_count = 0; the default ends at 100 processes", nil},
	}},
	{"Cyrus", proxy.Sieve, "Cyrus IMAP", []setting{
		{"maxlogins_per_host: 0    # in imapd.conf: Postern is one host", nil},
	}},
	{"Postfix", proxy.Submission, "Postfix", []setting{
		{"smtpd_authorized_xclient_hosts = ADDRESS            # for identity: xclient", offersXCLIENT},
		// Who may use XCLIENT is exempt from these limits.
		{"smtpd_client_event_limit_exceptions = ADDRESS       # 50 connections at once are the limit for others", offersXCLIENT},
		{"# not in mynetworks: permit_mynetworks would take mail from whoever comes through Postern", nil},
	}},
	{"Exim", proxy.Submission, "Exim", []setting{
		{"smtp_accept_max_per_host = ${if eq{$sender_host_address}{ADDRESS}{10000}{20}}", nil},
		{"smtp_ratelimit_hosts = !ADDRESS : *", nil},
		{"hosts_proxy = ADDRESS    # with identity: proxy-v2", takesProxyHeader},
	}},
}

// offersXCLIENT reports whether the server lets Postern use XCLIENT. After XCLIENT it no
// longer offers that, as the client of the probe may not.
func offersXCLIENT(_ *backend.Server, r backend.Report) bool {
	return r.Identified || slices.ContainsFunc(r.Capabilities, func(line string) bool { return strings.HasPrefix(strings.ToUpper(line), "XCLIENT") })
}

// takesProxyHeader reports whether a server that has answered takes a PROXY header.
func takesProxyHeader(s *backend.Server, _ backend.Report) bool {
	return s.Identity == backend.ProxyV1 || s.Identity == backend.ProxyV2
}

// advise returns the settings for a server that has answered with r, or "".
func advise(s *backend.Server, r backend.Report) string {
	for _, a := range advice {
		if a.protocol != s.Protocol || !strings.Contains(r.Greeting, a.greeting) {
			continue
		}
		own := ownAddress(s.Address)
		var b strings.Builder
		var followed []string
		fmt.Fprintf(&b, "  this is %s; what it should know of Postern at %s (docs/backends.md):\n", a.name, own)
		for _, set := range append(a.settings, setting{line: "ignoreip = ADDRESS    # fail2ban's jail.local, if there is one"}) {
			if set.followed != nil && set.followed(s, r) {
				name, _, _ := strings.Cut(set.line, " ")
				followed = append(followed, name)
				continue
			}
			fmt.Fprintf(&b, "    %s\n", strings.ReplaceAll(set.line, "ADDRESS", own))
		}
		if followed != nil {
			fmt.Fprintf(&b, "    already so: %s\n", strings.Join(followed, ", "))
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
