package main

import (
	"fmt"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// Criterion: postern report pop3 says what fetchmail, mpop and getmail do with the mail of an account - leave it on the server, delete all, delete it
// days after - and who tries without TLS.
func TestReportSaysWhatRealClientsDo(t *testing.T) {
	s := open(t, "fetchmail", "mpop", "getmail")
	state := t.TempDir()
	p := launch(t, []string{"protocol: pop3, name: pop3s", "protocol: pop3, name: pop3-110, tls: starttls"}, []string{
		"main:", fmt.Sprintf("  imap: {address: %q, tls: none}", s.backend.IMAP),
	}, fmt.Sprintf("state: {path: %q}\n", state))
	pop3s := port(t, p.at(t, "pop3s"))
	keeps, deletes, later, empty := s.user(t), s.user(t), s.user(t), s.user(t)
	for _, u := range []user{keeps, deletes, later} {
		s.deliver(t, u, "one", "two")
	}

	fetchmail := func(u user, port, options string, statuses ...int) {
		t.Helper()
		dir := t.TempDir()
		mkdir(t, dir, "got")
		rc := file(t, dir, "fetchmailrc", `
poll localhost with protocol POP3 service `+port+` uidl:
  user "`+u.name+`" password "`+u.password+`"
  `+options+` no rewrite no dropdelivered
  mda "cat > $(mktemp `+dir+`/got/XXXXXX)"
`)
		run(t, dir, nil, []string{"fetchmail", "--nosyslog", "--fetchmailrc", rc, "--idfile", dir + "/ids", "--pidfile", dir + "/pid"}, statuses...)
	}
	overTLS := `ssl sslproto "TLS1.2+" sslcertck sslcertfile "` + p.ca + `"`
	const none, failed = 1, 3 // exit statuses: no mail, login refused
	fetchmail(keeps, pop3s, overTLS+" keep")
	fetchmail(keeps, port(t, p.at(t, "pop3-110")), `sslproto "" keep`, failed)
	fetchmail(empty, pop3s, overTLS+" keep", none)

	dir := t.TempDir()
	maildir(t, dir)
	run(t, dir, nil, []string{"mpop", "--file", file(t, dir, "mpoprc", `
account default
host localhost
port `+pop3s+`
tls on
tls_starttls off
tls_trust_file `+p.ca+`
user `+deletes.name+`
password `+deletes.password+`
delivery maildir `+dir+`
uidls_file `+dir+`/uidls
`), "--keep=off"})

	dir = t.TempDir()
	mkdir(t, dir, "got")
	getmail := []string{"getmail", "--getmaildir=" + dir, "--rcfile=" + file(t, dir, "getmailrc", `
[retriever]
type = SimplePOP3SSLRetriever
server = localhost
port = `+pop3s+`
username = `+later.name+`
password = `+later.password+`
ca_certs = `+p.ca+`
[destination]
type = MDA_external
path = /bin/sh
arguments = ("-c", "cat >$(mktemp `+dir+`/got/XXXXXX)")
allow_root_commands = true
[options]
read_all = false
delivered_to = false
received = false
`)}
	run(t, dir, nil, getmail)
	s.deliver(t, later, "three")
	run(t, dir, nil, append(getmail, "--delete"))

	config := filepath.Join(filepath.Dir(p.log), "postern.yaml")
	report := ""
	within(t, patience, "all sessions have ended", func() bool {
		report = run(t, dir, nil, []string{"postern", "report", "pop3", "--config", config})
		return strings.Contains(report, "messages: 7, ")
	})
	for u, want := range map[user]string{
		keeps:   `1.3 D D 0d 1 1 1 2 N leaves on server D`,
		deletes: `1.3 D D 0d 1 1 1 2 N deletes all -`,
		later:   `1.3 D D 0d 2 1 1 3 N deletes after days -`,
		empty:   `1.3 D D 0d 1 1 1 0 0 unknown -`,
	} {
		if !strings.Contains(simplified(report), "\n"+u.name+" "+want+"\n") {
			t.Errorf("the report has no line %s %s", u.name, want)
		}
	}
	if !strings.HasSuffix(simplified(report), `
accounts that logged in by POP3 since D: 4
 TLS: 1.3 4
 habit: leaves on server 1, deletes after days 1, deletes all 1, unknown 1
 logins: 5, messages: 7, bytes: N
accounts refused without TLS: 1, of which have never logged in by POP3: 0
`) {
		t.Error("the totals are others")
	}
}

var (
	dates  = regexp.MustCompile(`\b20\d\d-\d\d-\d\d\b`)
	octets = regexp.MustCompile(`\b\d{3,}\b`)
	spaces = regexp.MustCompile(` +`)
)

// simplified returns a report with D for dates, N for large numbers and single spaces.
func simplified(report string) string {
	report = octets.ReplaceAllString(dates.ReplaceAllString(report, "D"), "N")
	return spaces.ReplaceAllString(report, " ")
}
