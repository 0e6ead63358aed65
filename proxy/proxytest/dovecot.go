package proxytest

import (
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// DovecotOptions describe a Dovecot. The zero value has no users.
type DovecotOptions struct {
	// Users are passwords by user name; a name may be an address.
	Users map[string]string
	// POP3 serves Dovecot's own POP3 as well.
	POP3 bool
	// Sieve serves ManageSieve, too.
	Sieve bool
	// Share is a Dovecot whose mail store this one serves, too; nil: its own.
	// The users need not be the same.
	Share *Dovecot
	// Trusted is login_trusted_networks, e.g. 127.0.0.1/32: clients whose ID
	// may say where a connection really comes from.
	Trusted string
	// OAuth issues the tokens that this Dovecot takes instead of passwords, by XOAUTH2
	// and OAUTHBEARER. A token that was issued for a user lets that user in alone. nil:
	// this Dovecot takes passwords.
	OAuth *OAuth
	// Tenant means that a token lets every user in, whoever it was issued for.
	Tenant bool
	// Config is more of dovecot.conf and overrides what is there. By default a
	// wrong password costs what it costs in Dovecot: 2 s, more when repeated.
	Config string
}

// A Dovecot is a real Dovecot with a configuration of its own, on free ports of
// 127.0.0.1. Addresses are host:port; what is not served is empty.
type Dovecot struct {
	IMAP, IMAPS, POP3, POP3S string
	// Sieve is ManageSieve with STARTTLS, SieveS with TLS from the first octet.
	Sieve, SieveS string
	// CA is a PEM file that vouches for localhost and 127.0.0.1.
	CA string
	// Store holds a folder for each user.
	Store string
	// Log is the path of its log.
	Log string
	// Users are passwords by user name.
	Users map[string]string

	dir        string
	authSocket string
	program    program
}

// StartDovecot starts a Dovecot and waits until it greets; the end of the test
// stops it. It needs root.
func StartDovecot(t testing.TB, o DovecotOptions) *Dovecot {
	t.Helper()
	needRoot(t)
	Need(t, "dovecot", "/usr/lib/dovecot/imap")
	dir := shortDir(t)
	d := &Dovecot{
		Store:      filepath.Join(dir, "mail"),
		Log:        filepath.Join(dir, "log"),
		Users:      o.Users,
		dir:        dir,
		authSocket: filepath.Join(dir, "run", "auth-postfix"),
	}
	uid, gid := lookupUser(t, mailUser)
	if o.Share != nil {
		d.Store = o.Share.Store
	} else {
		mkdir(t, d.Store, uid, gid, 0o711)
	}
	d.writeUsers(t)
	cert, key, ca := CertFiles(t)
	d.CA = ca
	imap, imaps, pop3, pop3s := freePort(t), freePort(t), 0, 0
	d.IMAP, d.IMAPS = address(imap), address(imaps)
	if o.POP3 {
		Need(t, "/usr/lib/dovecot/pop3")
		pop3, pop3s = freePort(t), freePort(t)
		d.POP3, d.POP3S = address(pop3), address(pop3s)
	}
	sieve, sieves := 0, 0
	if o.Sieve {
		Need(t, "/usr/lib/dovecot/managesieve")
		sieve, sieves = freePort(t), freePort(t)
		d.Sieve, d.SieveS = address(sieve), address(sieves)
	}
	passdb := ""
	if o.OAuth != nil {
		path := filepath.Join(dir, "oauth2")
		var file string
		passdb, file = o.OAuth.passdb(path, o.Tenant)
		writePrivate(t, path, "dovecot", file)
		// Else a good login after failures takes up to 15 s.
		if o.Trusted == "" {
			o.Trusted = "127.0.0.0/8"
		}
	}
	config := filepath.Join(dir, "dovecot.conf")
	writeConf(t, config, "dovecot.conf.in", map[string]any{
		"Name": filepath.Base(dir), "Dir": dir, "Log": d.Log, "Store": d.Store,
		"Cert": cert, "Key": key, "UID": uid, "GID": gid, "AuthSocket": filepath.Base(d.authSocket),
		"POP3": o.POP3, "Sieve": o.Sieve, "Trusted": o.Trusted, "Config": o.Config, "OAuth": passdb,
		"IMAPPort": imap, "IMAPSPort": imaps, "POP3Port": pop3, "POP3SPort": pop3s,
		"SievePort": sieve, "SieveSPort": sieves,
	})
	d.program = program{args: []string{"dovecot", "-F", "-c", config}, log: d.Log, ready: d.IMAP, greeting: "* OK"}
	d.program.run(t)
	return d
}

// writeUsers writes the password file, readable for Dovecot alone.
func (d *Dovecot) writeUsers(t testing.TB) {
	t.Helper()
	var b strings.Builder
	for _, user := range slices.Sorted(maps.Keys(d.Users)) {
		fmt.Fprintf(&b, "%s:{PLAIN}%s::::::\n", user, d.Users[user])
	}
	writePrivate(t, filepath.Join(d.dir, "users"), "dovecot", b.String()) // its auth process
}

// writePrivate writes a file that only the system user owner may read.
func writePrivate(t testing.TB, path, owner, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	uid, gid := lookupUser(t, owner)
	if err := os.Chown(path, uid, gid); err != nil {
		t.Fatal(err)
	}
}

// Stop stops Dovecot, sessions included, and waits until it is gone.
func (d *Dovecot) Stop(t testing.TB) {
	t.Helper()
	d.program.stop(t)
}

// Start starts a stopped Dovecot again on the same ports.
func (d *Dovecot) Start(t testing.TB) {
	t.Helper()
	d.program.start(t)
}

// Deliver puts a message into the INBOX of user, atomically and byte for byte:
// a maildir holds CRLF or LF as given, IMAP and POP3 show every line end as
// CRLF. It returns the path.
func (d *Dovecot) Deliver(t testing.TB, user string, raw []byte) string {
	t.Helper()
	return deliver(t, d.maildir(user), raw)
}

// Stored returns the messages in the INBOX of user as they are on disk, in the
// order of their file names.
func (d *Dovecot) Stored(t testing.TB, user string) [][]byte {
	t.Helper()
	return stored(t, d.maildir(user))
}

func (d *Dovecot) maildir(user string) string { return filepath.Join(d.Store, user, "Maildir") }

// Doveadm runs Dovecot's own administration, e.g. "expunge", "-u", user, query,
// and returns what it prints.
func (d *Dovecot) Doveadm(t testing.TB, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "doveadm", append([]string{"-c", filepath.Join(d.dir, "dovecot.conf")}, args...)...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("doveadm %v: %v\n%s", args, err, out)
	}
	return string(out)
}
