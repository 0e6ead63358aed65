package proxytest

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// CourierOptions describe a Courier IMAP server. The zero value has no users.
type CourierOptions struct {
	// Users are passwords by user name; a name may be an address.
	Users map[string]string
	// Config is more of Courier's imapd and pop3d files, which are lines of
	// shell, and overrides what is there, e.g. MAXPERIP=4. A wrong password
	// costs 5 s, whatever is set.
	Config string
}

// A Courier is a real Courier IMAP server with a private configuration, on free
// ports of 127.0.0.1. Addresses are host:port. No file alteration monitor runs,
// so the server sends an ALERT about that before its response to LOGIN.
type Courier struct {
	IMAP, POP3 string
	// Store holds a folder for each user.
	Store string
	// Log is the path of the log of its IMAP server.
	Log string
	// Users are passwords by user name.
	Users map[string]string

	imap, pop3 program
}

// StartCourier starts a Courier IMAP server, with its POP3, and waits until
// both greet; the end of the test stops them. It needs root.
func StartCourier(t testing.TB, o CourierOptions) *Courier {
	t.Helper()
	u := unpack(t, "courier")
	c := &Courier{
		IMAP: address(freePort(t)), POP3: address(freePort(t)),
		Store: filepath.Join(u.dir, "mail"), Log: filepath.Join(u.dir, "imap.log"), Users: o.Users,
	}
	uid, gid := lookupUser(t, mailUser)
	mkdir(t, c.Store, uid, gid, 0o711)
	for user := range o.Users {
		makeMaildir(t, c.maildir(user))
	}
	c.startAuthdaemon(t, filepath.Join(u.dir, "run/courier/authdaemon"))
	config := filepath.Join(u.dir, "config")
	writeConf(t, config, "courier.in", map[string]any{"Config": o.Config})
	const lib = "usr/lib/courier/courier/"
	c.imap = program{
		args: c.command(u, c.IMAP, "imapd", config, u.path(lib+"imaplogin"), u.path("usr/bin/imapd"), "Maildir"),
		env:  u.env(), log: c.Log, output: c.Log, ready: c.IMAP, greeting: "* OK",
	}
	popLog := filepath.Join(u.dir, "pop3.log")
	c.pop3 = program{
		args: c.command(u, c.POP3, "pop3d", config, u.path(lib+"courierpop3login"), u.path(lib+"courierpop3d"), "Maildir"),
		env:  u.env(), log: popLog, output: popLog, ready: c.POP3, greeting: "+OK",
	}
	c.imap.run(t)
	c.pop3.run(t)
	return c
}

// command returns the arguments that start server at addr as Courier's own
// scripts do, with the package's settings of that name and then the test's.
func (c *Courier) command(u unpacked, addr, name, config string, server ...string) []string {
	host, port, _ := net.SplitHostPort(addr)
	script := `
		set -a
		. "$1"
		. "$2"
		tcpd=$3 host=$4 port=$5
		shift 5
		exec "$tcpd" -address="$host" -maxprocs="$MAXDAEMONS" -maxperip="$MAXPERIP" $TCPDOPTS "$port" "$@"
	`
	args := []string{"sh", "-ec", script, name, u.path("etc/courier/" + name), config, u.path("usr/sbin/couriertcpd"), host, port}
	return u.command([][2]string{{"run", "/run"}}, append(args, server...)...)
}

func (c *Courier) maildir(user string) string { return filepath.Join(c.Store, user, "Maildir") }

// Deliver stores a message in the INBOX of user, atomically and unchanged, and
// returns its path. IMAP and POP3 return every LF as CRLF, also one after a CR: a
// maildir of Courier has LF.
func (c *Courier) Deliver(t testing.TB, user string, raw []byte) string {
	t.Helper()
	return deliver(t, c.maildir(user), raw)
}

// Stored returns the messages in the INBOX of user as they are on disk, in the
// order of their file names.
func (c *Courier) Stored(t testing.TB, user string) [][]byte {
	t.Helper()
	return stored(t, c.maildir(user))
}

// Stop stops Courier, sessions included, and waits until it is gone.
func (c *Courier) Stop(t testing.TB) {
	t.Helper()
	c.imap.stop(t)
	c.pop3.stop(t)
}

// Start starts a stopped Courier again on the same ports.
func (c *Courier) Start(t testing.TB) {
	t.Helper()
	c.imap.start(t)
	c.pop3.start(t)
}

// startAuthdaemon replaces Courier's authdaemond, at the path compiled into its
// servers, until the end of the test.
func (c *Courier) startAuthdaemon(t testing.TB, dir string) {
	t.Helper()
	mkdir(t, dir, 0, 0, 0o755)
	ln, err := net.Listen("unix", filepath.Join(dir, "socket"))
	if err != nil {
		t.Fatal(err)
	}
	uid, gid := lookupUser(t, mailUser)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer func() { _ = conn.Close() }()
				_ = conn.SetDeadline(time.Now().Add(stepTimeout))
				user, ok := c.authenticate(conn)
				if !ok {
					_, _ = io.WriteString(conn, "FAIL\n")
					return
				}
				home := filepath.Join(c.Store, user)
				_, _ = fmt.Fprintf(conn, "UID=%d\nGID=%d\nHOME=%s\nMAILDIR=%s\nADDRESS=%s\n.\n", uid, gid, home, c.maildir(user), user)
			})
		}
	})
	t.Cleanup(func() {
		_ = ln.Close()
		wg.Wait()
	})
}

// authenticate reads a request and checks its password:
//
//	TCPREMOTEIP=::ffff:127.0.0.1
//	AUTH octets
//	service
//	login
//	user
//	password
func (c *Courier) authenticate(conn io.Reader) (user string, ok bool) {
	br := bufio.NewReader(io.LimitReader(conn, 64<<10))
	for {
		line, err := br.ReadString('\n')
		if err != nil {
			return "", false
		}
		octets, found := strings.CutPrefix(strings.TrimSpace(line), "AUTH ")
		if !found {
			continue // what else is known of the client
		}
		n, err := strconv.ParseUint(octets, 10, 15)
		if err != nil {
			return "", false
		}
		body := make([]byte, n)
		if _, err := io.ReadFull(br, body); err != nil {
			return "", false
		}
		fields := strings.Split(string(body), "\n")
		if len(fields) < 4 || !slices.Contains([]string{"imap", "pop3"}, fields[0]) || fields[1] != "login" {
			return "", false
		}
		password, known := c.Users[fields[2]]
		return fields[2], known && password == fields[3]
	}
}
