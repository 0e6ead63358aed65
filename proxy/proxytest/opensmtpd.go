package proxytest

import (
	"cmp"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// OpenSMTPDOptions describe an OpenSMTPD.
type OpenSMTPDOptions struct {
	// Users are passwords by user name; a name may be an address.
	Users map[string]string
	// Domain is that of the users whose name is no address; empty stands for
	// example.org.
	Domain string
	// Config is more of smtpd.conf; its rules come first.
	Config string
}

// An OpenSMTPD is a real OpenSMTPD with a configuration of its own, on free
// ports of 127.0.0.1. It takes mail only under TLS, after AUTH and for its own
// users. It knows neither PIPELINING nor a second EHLO.
type OpenSMTPD struct {
	// SMTP offers STARTTLS and SMTPS speaks TLS from the first byte: host:port.
	SMTP, SMTPS string
	// CA is a PEM file that vouches for localhost and 127.0.0.1.
	CA string
	// Domain is that of the users whose name is no address.
	Domain string
	// Store holds a folder for each user.
	Store string
	// Log is the path of its log.
	Log string

	program program
}

// StartOpenSMTPD starts an OpenSMTPD and waits until it greets; the end of the
// test stops it. It needs root.
func StartOpenSMTPD(t testing.TB, o OpenSMTPDOptions) *OpenSMTPD {
	t.Helper()
	u := unpack(t, "opensmtpd")
	Need(t, "openssl")
	o.Domain = cmp.Or(o.Domain, "example.org")
	smtp, smtps := freePort(t), freePort(t)
	s := &OpenSMTPD{
		SMTP: address(smtp), SMTPS: address(smtps),
		Domain: o.Domain, Store: filepath.Join(u.dir, "mail"), Log: filepath.Join(u.dir, "output"),
	}
	cert, key, ca := CertFiles(t)
	s.CA = ca
	copyFile(t, cert, filepath.Join(u.dir, "cert.pem"), 0, 0)
	copyFile(t, key, filepath.Join(u.dir, "key.pem"), 0, 0)
	config := filepath.Join(u.dir, "smtpd.conf")
	writeConf(t, config, "smtpd.conf.in", map[string]any{
		"Dir": u.dir, "Domain": o.Domain, "Domains": s.writeUsers(t, u.dir, o.Users), "Config": o.Config,
		"SMTPPort": smtp, "SMTPSPort": smtps,
	})
	s.program = program{
		args: u.command(smtpdBinds(t, u), u.path("usr/sbin/smtpd"), "-d", "-f", config),
		env:  u.env(), log: s.Log, output: s.Log, ready: s.SMTP, greeting: "220 ",
	}
	s.program.run(t)
	return s
}

// writeUsers writes the tables of passwords, mailboxes and addresses, and
// returns the domains.
func (s *OpenSMTPD) writeUsers(t testing.TB, dir string, users map[string]string) (domains []string) {
	t.Helper()
	uid, gid := lookupUser(t, mailUser)
	mkdir(t, s.Store, uid, gid, 0o711)
	var credentials, mailboxes, addresses strings.Builder
	all := map[string]bool{s.Domain: true}
	for i, user := range slices.Sorted(maps.Keys(users)) {
		cmd := exec.CommandContext(t.Context(), "openssl", "passwd", "-6", "-stdin")
		cmd.Stdin = strings.NewReader(users[user] + "\n")
		hash, err := cmd.Output()
		if err != nil {
			t.Fatalf("openssl passwd: %v", err)
		}
		home, addr := filepath.Join(s.Store, user), s.Address(user)
		mkdir(t, home, uid, gid, 0o700)
		all[addr[strings.LastIndexByte(addr, '@')+1:]] = true
		fmt.Fprintf(&credentials, "%s %s", user, hash)
		fmt.Fprintf(&mailboxes, "user%d %d:%d:%s\n", i, uid, gid, home)
		fmt.Fprintf(&addresses, "%s user%d\n", addr, i)
	}
	writeFile(t, filepath.Join(dir, "credentials"), []byte(credentials.String()))
	writeFile(t, filepath.Join(dir, "users"), []byte(mailboxes.String()))
	writeFile(t, filepath.Join(dir, "addresses"), []byte(addresses.String()))
	return slices.Sorted(maps.Keys(all))
}

// smtpdBinds are the paths that OpenSMTPD insists on: its two users, its queue, the
// empty folder that its processes lock themselves into, its control socket and
// its delivery agents.
func smtpdBinds(t testing.TB, u unpacked) [][2]string {
	t.Helper()
	for _, name := range []string{"passwd", "group"} {
		table, err := os.ReadFile(filepath.Join("/etc", name))
		if err != nil {
			t.Fatal(err)
		}
		for i, account := range []string{"opensmtpd", "opensmtpq"} {
			if name == "passwd" {
				table = fmt.Appendf(table, "%s:x:%d:%d::/nonexistent:/bin/false\n", account, 63001+i, 63001+i)
			} else {
				table = fmt.Appendf(table, "%s:x:%d:\n", account, 63001+i)
			}
		}
		writeFile(t, filepath.Join(u.dir, name), table)
	}
	mkdir(t, filepath.Join(u.dir, "spool/smtpd"), 0, 0, 0o711)
	mkdir(t, filepath.Join(u.dir, "spool"), 0, 0, 0o755)
	mkdir(t, filepath.Join(u.dir, "run"), 0, 0, 0o755)
	return [][2]string{
		{"passwd", "/etc/passwd"}, {"group", "/etc/group"}, {"spool", "/var/spool"}, {"run", "/run"},
		{u.path("var/lib"), "/var/lib"}, {u.path("usr/libexec"), "/usr/libexec"},
	}
}

// Address returns the mail address of a user.
func (s *OpenSMTPD) Address(user string) string {
	if strings.Contains(user, "@") {
		return user
	}
	return user + "@" + s.Domain
}

// Stored returns the messages of user as they are on disk.
func (s *OpenSMTPD) Stored(t testing.TB, user string) [][]byte {
	t.Helper()
	return stored(t, filepath.Join(s.Store, user, "Maildir"))
}

// Stop stops OpenSMTPD, sessions included, and waits until it is gone.
func (s *OpenSMTPD) Stop(t testing.TB) {
	t.Helper()
	s.program.stop(t)
}

// Start starts a stopped OpenSMTPD again on the same ports.
func (s *OpenSMTPD) Start(t testing.TB) {
	t.Helper()
	s.program.start(t)
}
