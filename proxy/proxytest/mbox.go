package proxytest

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// An MboxServer is an old POP3 server on mbox files: popa3d, solid-pop3d or
// mailutils-pop3d. It has no TLS.
type MboxServer struct {
	Addr string

	unpacked unpacked
	users    []string
	command  []string
}

// mboxServers are the programs, as inetd runs them.
var mboxServers = map[string][]string{
	"popa3d":          {"usr/sbin/popa3d"},
	"solid-pop3d":     {"usr/sbin/solid-pop3d"},
	"mailutils-pop3d": {"usr/sbin/pop3d", "-i"},
}

// MboxServers are the names that StartMboxServer takes.
func MboxServers() []string { return []string{"popa3d", "solid-pop3d", "mailutils-pop3d"} }

// mboxUID is the user id of the first user of an MboxServer.
const mboxUID = 58000

// StartMboxServer starts an old server with the passwords of users, until the end of the
// test. It needs root.
func StartMboxServer(t testing.TB, name string, users map[string]string) *MboxServer {
	t.Helper()
	Need(t, "openssl")
	u := unpack(t, name)
	s := &MboxServer{unpacked: u}
	for user := range users {
		s.users = append(s.users, user)
	}
	slices.Sort(s.users)
	etc, lib := filepath.Join(u.dir, "etc"), filepath.Join(u.dir, "lib")
	for _, dir := range []string{etc, filepath.Join(etc, "pam.d"), filepath.Join(u.dir, "home"), lib, filepath.Join(lib, "popa3d"), filepath.Join(lib, "solid-pop3d/bulletins")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	_, gid := lookupUser(t, mailUser)
	spool := filepath.Join(u.dir, "spool")
	mkdir(t, spool, 0, gid, 0o777)
	if err := os.Chmod(spool, 0o777|os.ModeSticky); err != nil {
		t.Fatal(err)
	}
	s.writeEtc(t, etc, gid, users)
	program := slices.Clone(mboxServers[name])
	program[0] = u.path(program[0])
	s.command = u.command([][2]string{{etc, "/etc"}, {spool, "/var/mail"}, {lib, "/var/lib"}}, program...)
	s.listen(t)
	return s
}

// writeEtc writes the /etc of the server: its users, and PAM that knows them.
func (s *MboxServer) writeEtc(t testing.TB, etc string, gid int, users map[string]string) {
	t.Helper()
	write := func(name, text string) {
		if err := os.WriteFile(filepath.Join(etc, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	var passwd, shadow strings.Builder
	for _, name := range []string{"passwd", "shadow"} {
		b, err := os.ReadFile("/etc/" + name)
		if err != nil {
			t.Fatal(err)
		}
		map[string]*strings.Builder{"passwd": &passwd, "shadow": &shadow}[name].Write(b)
	}
	for i, service := range []string{"popa3d", "spop3d"} { // users of the servers' own
		fmt.Fprintf(&passwd, "%s:x:%d:%d::/nonexistent:/bin/false\n", service, mboxUID-10+i, gid)
	}
	for i, user := range s.users {
		home := filepath.Join(s.unpacked.dir, "home", user)
		mkdir(t, home, mboxUID+i, gid, 0o755)
		fmt.Fprintf(&passwd, "%s:x:%d:%d::%s:/bin/sh\n", user, mboxUID+i, gid, home)
		hash := exec.Command("openssl", "passwd", "-6", "-stdin")
		hash.Stdin = strings.NewReader(users[user] + "\n")
		out, err := hash.Output()
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&shadow, "%s:%s:19000:0:99999:7:::\n", user, bytes.TrimSpace(out))
	}
	write("passwd", passwd.String())
	write("shadow", shadow.String())
	write("nsswitch.conf", "passwd: files\ngroup: files\nshadow: files\n")
	write("spop3d.conf", "<Global>\nMailDropName \"/var/mail/%s\"\nMailDropType mailbox\n</Global>\n")
	for _, name := range []string{"group", "hosts", "services", "login.defs", "ld.so.cache"} {
		if b, err := os.ReadFile("/etc/" + name); err == nil {
			write(name, string(b))
		}
	}
	for _, service := range []string{"popa3d", "solid-pop3d", "mu-pop3d", "pop3", "other"} {
		write("pam.d/"+service, "auth required pam_unix.so\naccount required pam_unix.so\nsession required pam_permit.so\n")
	}
}

// listen runs the program for each connection, as inetd does.
func (s *MboxServer) listen(t testing.TB) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.Addr = ln.Addr().String()
	var sessions sync.WaitGroup
	t.Cleanup(func() {
		_ = ln.Close()
		sessions.Wait()
	})
	sessions.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			sessions.Go(func() { s.serve(t, conn) })
		}
	})
}

func (s *MboxServer) serve(t testing.TB, conn net.Conn) {
	f, err := conn.(*net.TCPConn).File()
	_ = conn.Close()
	if err != nil {
		t.Error(err)
		return
	}
	defer func() { _ = f.Close() }()
	cmd := exec.Command(s.command[0], s.command[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Env = f, f, s.unpacked.env()
	if err := cmd.Start(); err != nil {
		t.Error(err)
		return
	}
	kill := time.AfterFunc(20*time.Minute, func() { _ = cmd.Process.Kill() })
	defer kill.Stop()
	_ = cmd.Wait() // a client that leaves is no error of the test
}

// Deliver appends messages to the mbox of a user. They have LF at the end of lines.
func (s *MboxServer) Deliver(t testing.TB, user string, messages ...[]byte) {
	t.Helper()
	path := filepath.Join(s.unpacked.dir, "spool", user)
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o660)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	var b bytes.Buffer
	for _, raw := range messages {
		b.WriteString("From sender@example.org Mon Jan  1 12:00:00 2024\n")
		for line := range bytes.Lines(raw) {
			if bytes.HasPrefix(bytes.TrimLeft(line, ">"), []byte("From ")) {
				b.WriteByte('>')
			}
			b.Write(line)
		}
		if !bytes.HasSuffix(raw, []byte("\n")) {
			b.WriteByte('\n')
		}
		b.WriteByte('\n')
	}
	if _, err := f.Write(b.Bytes()); err != nil {
		t.Fatal(err)
	}
	_, gid := lookupUser(t, mailUser)
	if err := os.Chown(path, mboxUID+slices.Index(s.users, user), gid); err != nil {
		t.Fatal(err)
	}
}
