package main

import (
	"os"
	"strings"
	"testing"
)

// The functions of this file return the commands of programs that send, or fetch the mail of
// a user by POP3, into files of dir/new. ca is a PEM file that vouches for the server; "": no TLS.
// What a program remembers, it keeps in dir.

// fetchmail leaves mail on the server by the option keep.
func fetchmail(t testing.TB, dir, address, ca string, u user, options string) []string {
	t.Helper()
	maildir(t, dir)
	security := `sslproto ""`
	if ca != "" {
		security = `ssl sslproto "TLS1.2+" sslcertck sslcertfile "` + ca + `"`
	}
	return []string{"fetchmail", "--nosyslog", "--idfile", dir + "/ids", "--pidfile", dir + "/pid", "--fetchmailrc", file(t, dir, "fetchmailrc", `
poll localhost with protocol POP3 service `+port(t, address)+` timeout 60 uidl:
  user "`+u.name+`" password "`+u.password+`"
  `+security+`
  `+options+` no rewrite no dropdelivered
  mda "cat > $(mktemp `+dir+`/new/XXXXXX)"
`)}
}

// mpop takes --keep=on and --keep=off.
func mpop(t testing.TB, dir, address, ca string, u user, auth string) []string {
	t.Helper()
	maildir(t, dir)
	security := "tls off"
	if ca != "" {
		security = "tls on\ntls_starttls off\ntls_trust_file " + ca
	}
	return []string{"mpop", "--file", file(t, dir, "mpoprc", `
account default
host localhost
port `+port(t, address)+`
`+security+`
timeout 60
user `+u.name+`
password `+u.password+`
auth `+auth+`
delivery maildir `+dir+`
received_header off
uidls_file `+dir+`/uidls
`)}
}

// getmail leaves mail on the server, and takes --delete. It runs a program for each message,
// and hangs if one ends before getmail has begun to wait for its end.
func getmail(t testing.TB, dir, address, ca string, u user) []string {
	t.Helper()
	maildir(t, dir)
	retriever := "type = SimplePOP3Retriever"
	if ca != "" {
		retriever = "type = SimplePOP3SSLRetriever\nca_certs = " + ca
	}
	return []string{"getmail", "--getmaildir=" + dir, "--rcfile=" + file(t, dir, "getmailrc", `
[retriever]
`+retriever+`
server = localhost
port = `+port(t, address)+`
username = `+u.name+`
password = `+u.password+`
[destination]
type = MDA_external
path = /bin/sh
arguments = ("-c", "cat >$(mktemp `+dir+`/new/XXXXXX); sleep 0.05")
allow_root_commands = true
[options]
read_all = false
delivered_to = false
received = false
`)}
}

// msmtp sends what it reads from its input to the addresses behind its arguments.
func msmtp(t testing.TB, dir, address, ca string, u user, auth string) []string {
	t.Helper()
	return []string{"msmtp", "--file", file(t, dir, "msmtprc", `
account default
host localhost
port `+port(t, address)+`
tls on
tls_starttls off
tls_trust_file `+ca+`
timeout 60
auth `+auth+`
user `+u.name+`
password `+u.password+`
from `+u.address+`
`)}
}

// getmailIMAP is getmail for the INBOX of an IMAP server.
func getmailIMAP(t testing.TB, dir, address, ca string, u user) []string {
	t.Helper()
	command := getmail(t, dir, address, ca, u)
	rc := dir + "/getmailrc"
	text, err := os.ReadFile(rc)
	if err != nil {
		t.Fatal(err)
	}
	file(t, dir, "getmailrc", strings.ReplaceAll(string(text), "SimplePOP3SSLRetriever", "SimpleIMAPSSLRetriever"))
	return command
}
