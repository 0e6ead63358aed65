package proxytest

import (
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// PostfixOptions describe a Postfix.
type PostfixOptions struct {
	// Dovecot checks the passwords and holds the mail of its users. It must run
	// as long as this Postfix.
	Dovecot *Dovecot
	// Domain is that of the users whose name is no address; empty stands for
	// example.org.
	Domain string
	// XCLIENT is smtpd_authorized_xclient_hosts, e.g. 127.0.0.1; empty: nobody.
	XCLIENT string
	// Config is more of main.cf and overrides what is there.
	Config string
}

// A Postfix is a real Postfix with a configuration of its own, on free ports of
// 127.0.0.1. It takes mail only after AUTH and only for the users of its
// Dovecot: it has no SMTP client.
type Postfix struct {
	// SMTP offers STARTTLS and SMTPS speaks TLS from the first byte: host:port.
	SMTP, SMTPS string
	// CA is a PEM file that vouches for localhost and 127.0.0.1.
	CA string
	// Domain is that of the users whose name is no address.
	Domain string
	// Log is the path of its log.
	Log string

	program program
}

// StartPostfix starts a Postfix and waits until it greets; the end of the test
// stops it. It needs root.
func StartPostfix(t testing.TB, o PostfixOptions) *Postfix {
	t.Helper()
	needRoot(t)
	const master = "/usr/lib/postfix/sbin/master"
	Need(t, master)
	dir := shortDir(t)
	p := &Postfix{Domain: o.Domain, Log: filepath.Join(dir, "mail.log")}
	if p.Domain == "" {
		p.Domain = "example.org"
	}
	makeQueue(t, dir)
	mailboxes, domains := p.mailboxes(o.Dovecot.Users)
	writeFile(t, filepath.Join(dir, "mailboxes"), []byte(mailboxes))
	cert, key, ca := CertFiles(t)
	p.CA = ca
	smtp, smtps := freePort(t), freePort(t)
	p.SMTP, p.SMTPS = address(smtp), address(smtps)
	uid, gid := lookupUser(t, mailUser)
	values := map[string]any{
		"Dir": dir, "Log": p.Log, "Store": o.Dovecot.Store, "AuthSocket": o.Dovecot.authSocket,
		"Cert": cert, "Key": key, "UID": uid, "GID": gid, "Domain": p.Domain, "Domains": domains,
		"XCLIENTHosts": o.XCLIENT, "Config": o.Config, "SMTPPort": smtp, "SMTPSPort": smtps,
	}
	writeConf(t, filepath.Join(dir, "main.cf"), "main.cf.in", values)
	writeConf(t, filepath.Join(dir, "master.cf"), "master.cf.in", values)
	p.program = program{args: []string{master, "-d", "-c", dir}, log: p.Log, ready: p.SMTP, greeting: "220 "}
	p.program.run(t)
	return p
}

// Address returns the mail address of a user.
func (p *Postfix) Address(user string) string {
	if strings.Contains(user, "@") {
		return user
	}
	return user + "@" + p.Domain
}

// Stop stops Postfix, sessions included, and waits until it is gone.
func (p *Postfix) Stop(t testing.TB) {
	t.Helper()
	p.program.stop(t)
}

// Start starts a stopped Postfix again on the same ports.
func (p *Postfix) Start(t testing.TB) {
	t.Helper()
	p.program.start(t)
}

// makeQueue makes the folders that Postfix expects, with the owners that its
// own post-install gives them.
func makeQueue(t testing.TB, dir string) {
	t.Helper()
	uid, gid := lookupUser(t, "postfix")
	drop := lookupGroup(t, "postdrop")
	queue := filepath.Join(dir, "queue")
	mkdir(t, queue, 0, 0, 0o755)
	mkdir(t, filepath.Join(dir, "data"), uid, gid, 0o700)
	for _, name := range []string{"active", "bounce", "corrupt", "defer", "deferred", "flush", "hold", "incoming", "private", "saved", "trace"} {
		mkdir(t, filepath.Join(queue, name), uid, 0, 0o700)
	}
	mkdir(t, filepath.Join(queue, "pid"), 0, 0, 0o755)
	mkdir(t, filepath.Join(queue, "public"), uid, drop, 0o2710)
	mkdir(t, filepath.Join(queue, "maildrop"), uid, drop, 0o1730)
}

// mailboxes returns the map from addresses to maildirs and the domains in it.
func (p *Postfix) mailboxes(users map[string]string) (table, domains string) {
	var b strings.Builder
	all := map[string]bool{p.Domain: true}
	for user := range users {
		address := p.Address(user)
		all[address[strings.LastIndexByte(address, '@')+1:]] = true
		fmt.Fprintf(&b, "%s %s/Maildir/\n", address, user)
	}
	return b.String(), strings.Join(slices.Sorted(maps.Keys(all)), " ")
}
