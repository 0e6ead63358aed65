package main

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"postern/proxy/proxytest"
)

// carryPatience is how long a client may fetch all mail: getmail runs programs for each
// message.
const carryPatience = 5 * time.Minute

// An oldPOP3 is an old server that runs, without TLS.
type oldPOP3 struct {
	addr    string
	deliver func(raw []byte) // a message with LF at the end of lines
	shares  bool             // exact copies have one UIDL, which getmail takes for an error
}

// oldPOP3Servers start the old servers that Postern replaces.
var oldPOP3Servers = []struct {
	name  string
	start func(t *testing.T, u user) oldPOP3
}{
	{"Dovecot", oldDovecot("%08Xu%08Xv")},
	{"Dovecot %g", oldDovecot("%g")},
	{"Dovecot %f", oldDovecot("%f")},
	{"Courier", func(t *testing.T, u user) oldPOP3 {
		c := proxytest.StartCourier(t, proxytest.CourierOptions{Users: map[string]string{u.name: u.password}})
		return oldPOP3{addr: c.POP3, deliver: func(raw []byte) { c.Deliver(t, u.name, raw) }}
	}},
	{"Cyrus", func(t *testing.T, u user) oldPOP3 {
		c := proxytest.StartCyrus(t, proxytest.CyrusOptions{Users: map[string]string{u.name: u.password}})
		return oldPOP3{addr: c.POP3, deliver: func(raw []byte) { c.Deliver(t, u.name, crlf(raw)) }}
	}},
	{"popa3d", oldMbox("popa3d")},
	{"solid-pop3d", oldMbox("solid-pop3d")},
	{"mailutils-pop3d", oldMbox("mailutils-pop3d")},
}

func oldDovecot(format string) func(*testing.T, user) oldPOP3 {
	return func(t *testing.T, u user) oldPOP3 {
		d := proxytest.StartDovecot(t, proxytest.DovecotOptions{
			Users: map[string]string{u.name: u.password}, POP3: true, Config: quick + "pop3_uidl_format = " + format + "\n",
		})
		return oldPOP3{addr: d.POP3, deliver: func(raw []byte) { d.Deliver(t, u.name, raw) }}
	}
}

func oldMbox(name string) func(*testing.T, user) oldPOP3 {
	return func(t *testing.T, u user) oldPOP3 {
		s := proxytest.StartMboxServer(t, name, map[string]string{u.name: u.password})
		return oldPOP3{addr: s.Addr, deliver: func(raw []byte) { s.Deliver(t, u.name, raw) }, shares: name != "mailutils-pop3d"}
	}
}

func crlf(raw []byte) []byte { return bytes.ReplaceAll(raw, []byte("\n"), []byte("\r\n")) }

// oldMail returns n messages, some of them exact copies, of equal size, without a final
// line end, or with fields that servers write themselves.
func oldMail(n int) (messages [][]byte) {
	for i := range n {
		m := fmt.Appendf(nil, "Return-Path: <a@example.org>\nReceived: from a by b; id %d\nMessage-ID: <%d@example.org>\nSubject: %06d\n", i, i, i)
		switch i % 10 {
		case 1:
			m = fmt.Appendf(m, "X-UIDL: %x\nStatus: RO\n", i*7919)
		case 2:
			m = append(m, "Content-Length: 7\n"...)
		}
		m = append(m, "\n.dot\nFrom here\n"...)
		switch i % 10 {
		case 3:
			m = append(m, "no line end"...)
		case 4:
			m = append(m, strings.Repeat("as long as others\n", 30)...)
		case 5:
			m = messages[i-1] // an exact copy
		default:
			m = append(m, strings.Repeat("x", i%70)+"\n"...)
		}
		messages = append(messages, m)
	}
	return messages
}

// A switchboard is the address that clients know. It connects them with one server, and
// later with another one.
type switchboard struct {
	addr string
	dial atomic.Pointer[func() (net.Conn, error)]
}

func newSwitchboard(t *testing.T) *switchboard {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &switchboard{addr: ln.Addr().String()}
	var wg sync.WaitGroup
	t.Cleanup(func() {
		_ = ln.Close()
		wg.Wait()
	})
	wg.Go(func() {
		for {
			client, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer func() { _ = client.Close() }()
				server, err := (*s.dial.Load())()
				if err != nil {
					return
				}
				defer func() { _ = server.Close() }()
				go func() {
					_, _ = io.Copy(server, client)
					_ = server.Close()
				}()
				_, _ = io.Copy(client, server)
			})
		}
	})
	return s
}

func (s *switchboard) to(dial func() (net.Conn, error)) { s.dial.Store(&dial) }

// A keeper is a client that leaves mail on the server. poll polls once and returns how
// many messages it has fetched in all.
type keeper struct {
	name string
	poll func(t *testing.T) int
}

// keepers returns real clients of u at address, and one that forgets at once what a
// listing does not show, as Thunderbird does.
func keepers(t *testing.T, address string, u user) []keeper {
	t.Helper()
	program := func(name string, command func(dir string) []string, statuses ...int) keeper {
		dir := t.TempDir()
		args := command(dir)
		return keeper{name, func(t *testing.T) int {
			runWithin(t, carryPatience, dir, nil, args, statuses...)
			return len(glob(t, dir+"/new/*"))
		}}
	}
	known, fetched := map[string]bool{}, 0
	return []keeper{
		program("fetchmail", func(dir string) []string { return fetchmail(t, dir, address, "", u, "keep") }, 0, 1), // 1: no mail
		program("mpop", func(dir string) []string { return append(mpop(t, dir, address, "", u, "user"), "--keep=on") }),
		program("getmail", func(dir string) []string { return getmail(t, dir, address, "", u) }),
		{"one that forgets", func(t *testing.T) int {
			conn := dial(t, address)
			c := loginOn(t, conn, u)
			if err := conn.SetDeadline(time.Now().Add(carryPatience)); err != nil {
				t.Fatal(err)
			}
			shown := map[string]bool{}
			for line := range strings.Lines(string(c.body("UIDL"))) {
				number, id, _ := strings.Cut(strings.TrimSpace(line), " ")
				id = strings.TrimSpace(id)
				if !known[id] && !shown[id] {
					c.body("RETR " + number)
					fetched++
				}
				shown[id] = true
			}
			known = shown
			c.command("QUIT")
			return fetched
		}},
	}
}

// Criterion: Clients that leave mail on an old server - Dovecot with three formats, Courier, Cyrus, popa3d, solid-pop3d, mailutils-pop3d - fetch nothing again from Postern once `uidl import --old` has run, and the next new message once.
func TestUIDLsAreCarriedOverFromOldServers(t *testing.T) {
	moveClients(t, 200, true, func(t *testing.T, m *move) {
		m.start(t, "")
		flags := []string{"--old", m.old.addr, "--tls", "none", "--user", m.user.name, "--password-file", file(t, m.dir, "password", m.user.password+"\n"), "--config", m.commands}
		got := runWithin(t, carryPatience, m.dir, nil, append([]string{"postern", "uidl", "import"}, flags...))
		if want := fmt.Sprintf("unique ids: %d of %d are carried over", m.messages, m.messages); !strings.Contains(got, want) {
			t.Errorf("import prints %s", hidden(got))
		}
		got = runWithin(t, carryPatience, m.dir, nil, append([]string{"postern", "uidl", "compare", "--bodies"}, flags...))
		if !regexp.MustCompile(`accounts: 1, equal: 1, `).MatchString(got) {
			t.Errorf("compare prints %s", hidden(got))
		}
	})
}

// Criterion: With `pop3.learn_from` the same clients fetch nothing again, and the next new message once, without any import: their own first sessions ask the old server.
func TestUIDLsAreLearntFromOldServers(t *testing.T) {
	moveClients(t, 60, false, func(t *testing.T, m *move) {
		m.start(t, fmt.Sprintf("\n  old: {pop3: {address: %q, tls: none}}", m.old.addr))
	})
}

// A move is that of one user from an old server to Postern.
type move struct {
	stage         *stage
	user          user
	old           oldPOP3
	messages      int
	dir, commands string
	postern       *postern
}

// start starts Postern, with more backends.
func (m *move) start(t *testing.T, more string) {
	t.Helper()
	m.dir = t.TempDir()
	state := fmt.Sprintf("state: {path: %q}", filepath.Join(m.dir, "state"))
	m.commands = m.stage.forCommands(t, m.dir, state)
	if more != "" {
		state += "\nroutes: [{backend: main}]\npop3: {learn_from: old}"
	}
	m.postern = startPostern(t, behind{imap: fmt.Sprintf("{address: %q, ca: %q, server_name: localhost}%s", m.stage.backend.IMAPS, m.stage.backend.CA, more)}, state+"\n")
}

// moveClients moves clients from each old server to Postern, which prepare starts. Where
// exact copies share a UIDL, there are either no copies or, with copies, no getmail.
func moveClients(t *testing.T, messages int, copies bool, prepare func(*testing.T, *move)) {
	if n, err := strconv.Atoi(os.Getenv("POSTERN_CARRY")); err == nil {
		messages = n
	}
	for _, kind := range oldPOP3Servers {
		t.Run(kind.name, func(t *testing.T) {
			s := open(t, "fetchmail", "mpop", "getmail")
			m := &move{stage: s, user: s.user(t), messages: messages}
			m.old = kind.start(t, m.user)
			mail := oldMail(messages)
			if m.old.shares && !copies {
				mail = slices.CompactFunc(mail, bytes.Equal)
				m.messages = len(mail)
			}
			for _, raw := range mail {
				m.old.deliver(raw)
			}
			front := newSwitchboard(t)
			front.to(func() (net.Conn, error) { return tryDial(m.old.addr) })
			clients := slices.DeleteFunc(keepers(t, front.addr, m.user), func(k keeper) bool { return m.old.shares && copies && k.name == "getmail" })
			fetched := make([]int, len(clients))
			for i, c := range clients {
				if fetched[i] = c.poll(t); fetched[i] == 0 || c.poll(t) != fetched[i] {
					t.Fatalf("%s: %d messages from the old server, and then more", c.name, fetched[i])
				}
			}

			// The mail is copied by IMAP in another order.
			rand.New(rand.NewPCG(1, 15)).Shuffle(len(mail), func(i, j int) { mail[i], mail[j] = mail[j], mail[i] })
			for _, raw := range mail {
				s.backend.Deliver(t, m.user.name, raw)
			}
			prepare(t, m)

			front.to(func() (net.Conn, error) { return dialTLS(t, m.postern.pop3, m.postern.ca), nil })
			for i, c := range clients {
				if n := c.poll(t); n != fetched[i] {
					t.Errorf("%s fetches %d messages again", c.name, n-fetched[i])
				}
			}
			s.backend.Deliver(t, m.user.name, []byte("Message-ID: <new@example.org>\nSubject: new\n\nnew\n"))
			for i, c := range clients {
				n := c.poll(t)
				if c.poll(t) != n || n != fetched[i]+1 {
					t.Errorf("%s fetches %d messages, and not the new one once", c.name, n-fetched[i])
				}
			}
		})
	}
}

// Criterion: A master user carries over the UIDLs of a list of users without their passwords.
func TestAMasterUserCarriesUIDLsOver(t *testing.T) {
	proxytest.Need(t, "dovecot", "/usr/lib/dovecot/pop3")
	if os.Getuid() != 0 && os.Getenv("POSTERN_ALL") != "1" {
		t.Skip("needs root: Dovecot changes its user")
	}
	t.Parallel()
	dir := t.TempDir()
	master := newSecret()
	if err := os.Chmod(filepath.Dir(dir), 0o711); err != nil {
		t.Fatal(err)
	}
	config := quick + `
auth_master_user_separator = *
passdb {
  driver = static
  args = password=` + master + `
  master = yes
}
pop3_uidl_format = %g
`
	users := map[string]string{"alice": newSecret(), "bob": newSecret()}
	old := proxytest.StartDovecot(t, proxytest.DovecotOptions{Users: users, POP3: true, Config: config})
	behindIt := proxytest.StartDovecot(t, proxytest.DovecotOptions{Users: users, Config: config})
	for user := range users {
		for _, m := range oldMail(20) {
			old.Deliver(t, user, m)
			behindIt.Deliver(t, user, m)
		}
	}
	state := fmt.Sprintf("state: {path: %q}", filepath.Join(dir, "state"))
	imap := fmt.Sprintf("{address: %q, ca: %q, server_name: localhost}", behindIt.IMAPS, behindIt.CA)
	commands := file(t, dir, "commands.yaml", fmt.Sprintf(`
listeners: [{protocol: pop3, address: "127.0.0.1:0"}]
tls: {certificates: [{cert: not/needed.pem, key: not/needed.key}]}
backends: {main: {imap: %s}}
%s
`, imap, state))
	startPostern(t, behind{imap: imap}, state+"\n")
	flags := []string{
		"--old", old.POP3S, "--ca", old.CA, "--server-name", "localhost", "--list", file(t, dir, "users", "alice\nbob\n"),
		"--master", "admin", "--password-file", file(t, dir, "password", master+"\n"), "--config", commands,
	}
	if got, want := run(t, dir, nil, append([]string{"postern", "uidl", "import"}, flags...)), "accounts: 2, recorded: 2, with a record already: 0, failed: 0\nunique ids: 40 of 40 are carried over\n"; got != want {
		t.Errorf("import prints %s, want %s", hidden(got), want)
	}
	if got, want := run(t, dir, nil, append([]string{"postern", "uidl", "compare"}, flags...)), "accounts: 2, equal: 2, "; !strings.HasPrefix(got, want) {
		t.Errorf("compare prints %s, want %s", hidden(got), want)
	}
}
