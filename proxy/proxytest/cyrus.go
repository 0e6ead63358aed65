package proxytest

import (
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// cyrusAdmin creates the users' mailboxes and may not read them.
const cyrusAdmin = "cyrus"

// CyrusOptions describe a Cyrus IMAP server. The zero value has no users.
type CyrusOptions struct {
	// Users are passwords by user name; a name may be an address. Each has an
	// empty INBOX.
	Users map[string]string
	// Sieve serves ManageSieve, too.
	Sieve bool
	// Config is more of imapd.conf, where Cyrus refuses a key given twice. By default a
	// wrong password costs what it costs in Cyrus: 3 s.
	Config string
}

// A Cyrus is a real Cyrus IMAP server with a configuration of its own, on free
// ports of 127.0.0.1. Addresses are host:port.
type Cyrus struct {
	IMAP, IMAPS, POP3, POP3S string
	// Sieve is ManageSieve with STARTTLS: timsieved has no other TLS. Empty if not
	// served.
	Sieve string
	// CA is a PEM file that vouches for localhost and 127.0.0.1.
	CA string
	// Log is the path of its log.
	Log string
	// Users are passwords by user name.
	Users map[string]string

	unpacked unpacked
	program  program
}

// StartCyrus starts a Cyrus IMAP server, with its POP3, and waits until it
// greets; the end of the test stops it. It needs root.
func StartCyrus(t testing.TB, o CyrusOptions) *Cyrus {
	t.Helper()
	u := unpack(t, "cyrus")
	c := &Cyrus{
		IMAP: address(freePort(t)), IMAPS: address(freePort(t)),
		POP3: address(freePort(t)), POP3S: address(freePort(t)),
		Log: u.log, Users: o.Users, unpacked: u,
	}
	if o.Sieve {
		c.Sieve = address(freePort(t))
	}
	uid, gid := lookupUser(t, mailUser)
	for _, dir := range []string{"mail", "config", "config/db", "config/socket", "config/proc", "config/lock", "sieve"} {
		mkdir(t, filepath.Join(u.dir, dir), uid, gid, 0o700)
	}
	cert, key, ca := CertFiles(t)
	c.CA = ca
	copyFile(t, cert, filepath.Join(u.dir, "cert.pem"), uid, gid)
	copyFile(t, key, filepath.Join(u.dir, "key.pem"), uid, gid)
	users := maps.Clone(o.Users)
	if users == nil {
		users = map[string]string{}
	}
	users[cyrusAdmin] = cyrusAdmin
	c.writePasswords(t, users, uid, gid)
	imapd, services := filepath.Join(u.dir, "imapd.conf"), filepath.Join(u.dir, "cyrus.conf")
	values := map[string]any{
		"Dir": u.dir, "Bin": u.path("usr/lib/cyrus/bin"), "User": mailUser, "Admin": cyrusAdmin, "Config": o.Config,
		"IMAP": c.IMAP, "IMAPS": c.IMAPS, "POP3": c.POP3, "POP3S": c.POP3S, "Sieve": c.Sieve,
	}
	writeConf(t, imapd, "imapd.conf.in", values)
	writeConf(t, services, "cyrus.conf.in", values)
	c.program = program{
		args: u.command(nil, u.path("usr/lib/cyrus/bin/master"), "-D", "-C", imapd, "-M", services, "-p", filepath.Join(u.dir, "pid")),
		env:  append(u.env(), "CYRUS_USER="+mailUser),
		log:  u.log, ready: c.IMAP, greeting: "* OK",
	}
	c.program.run(t)
	c.makeMailboxes(t)
	return c
}

// writePasswords makes Cyrus SASL's own database of users.
func (c *Cyrus) writePasswords(t testing.TB, users map[string]string, uid, gid int) {
	t.Helper()
	path := filepath.Join(c.unpacked.dir, "sasldb2")
	for _, user := range slices.Sorted(maps.Keys(users)) {
		name, realm, found := strings.Cut(user, "@")
		if !found {
			realm = "localhost"
		}
		cmd := exec.CommandContext(t.Context(), c.unpacked.path("usr/sbin/saslpasswd2"), "-p", "-c", "-f", path, "-u", realm, name)
		cmd.Env = append(os.Environ(), c.unpacked.env()...)
		cmd.Stdin = strings.NewReader(users[user])
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("saslpasswd2: %v\n%s", err, out)
		}
	}
	if err := os.Chown(path, uid, gid); err != nil {
		t.Fatal(err)
	}
}

func (c *Cyrus) makeMailboxes(t testing.TB) {
	t.Helper()
	commands := make([]string, 0, len(c.Users))
	for _, user := range slices.Sorted(maps.Keys(c.Users)) {
		commands = append(commands, "CREATE "+literal("user/"+user))
	}
	imap(t, c.IMAP, cyrusAdmin, cyrusAdmin, commands...)
}

// Stop stops Cyrus, sessions included, and waits until it is gone.
func (c *Cyrus) Stop(t testing.TB) {
	t.Helper()
	c.program.stop(t)
}

// Start starts a stopped Cyrus again on the same ports.
func (c *Cyrus) Start(t testing.TB) {
	t.Helper()
	c.program.start(t)
}

// Deliver stores a message in the INBOX of user, over IMAP. Cyrus accepts only
// lines that end in CRLF, a valid header, and no NUL.
func (c *Cyrus) Deliver(t testing.TB, user string, raw []byte) {
	t.Helper()
	imap(t, c.IMAP, user, c.Users[user], "APPEND INBOX "+literal(string(raw)))
}

// imap logs in to a server with LITERAL+ and sends the commands, one by one. Each
// response must be OK.
func imap(t testing.TB, addr, user, password string, commands ...string) {
	t.Helper()
	conn, err := net.DialTimeout("tcp", addr, stepTimeout)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	commands = slices.Concat([]string{"LOGIN " + literal(user) + " " + literal(password)}, commands, []string{"LOGOUT"})
	for _, command := range commands {
		verb, _, _ := strings.Cut(command, " ")
		if err := conn.SetDeadline(time.Now().Add(startTimeout)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(conn, "x "+command+"\r\n"); err != nil {
			t.Fatalf("%s: %v", verb, err)
		}
		for {
			line, err := readLine(conn)
			if err != nil {
				t.Fatalf("%s: %v", verb, err)
			}
			if answer, found := strings.CutPrefix(string(line), "x "); found {
				if !strings.HasPrefix(answer, "OK") {
					t.Fatalf("%s of %s: %s", verb, user, answer)
				}
				break
			}
		}
	}
}

// literal returns an IMAP string as a non-synchronizing literal.
func literal(s string) string {
	return fmt.Sprintf("{%d+}\r\n%s", len(s), s)
}
