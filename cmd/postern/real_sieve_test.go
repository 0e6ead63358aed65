package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"postern/proxy/proxytest"
)

// sieveListeners are ManageSieve as the RFC has it, with TLS from the first octet, and IMAP
// for what both share.
var sieveListeners = []string{
	"protocol: sieve, name: sieve",
	"protocol: sieve, name: sieves, tls: implicit",
	"protocol: imap, name: imap",
}

// A sieveServer is a real server of ManageSieve.
type sieveServer struct{ name, sieve, imap, ca string }

// behindSieve starts a Postern in front of a server.
func behindSieve(t testing.TB, s sieveServer, more string) *postern {
	t.Helper()
	return launch(t, sieveListeners, []string{
		"main:",
		fmt.Sprintf("  imap: {address: %q, tls: none}", s.imap),
		fmt.Sprintf("  sieve: {address: %q, ca: %q, server_name: localhost}", s.sieve, s.ca),
	}, more)
}

func sieveDovecot(t testing.TB, passwords map[string]string) (*proxytest.Dovecot, sieveServer) {
	t.Helper()
	d := proxytest.StartDovecot(t, proxytest.DovecotOptions{Users: passwords, Sieve: true, Config: quick})
	return d, sieveServer{"Dovecot", d.Sieve, d.IMAP, d.CA}
}

func sieveCyrus(t testing.TB, passwords map[string]string) (*proxytest.Cyrus, sieveServer) {
	t.Helper()
	c := proxytest.StartCyrus(t, proxytest.CyrusOptions{Users: passwords, Sieve: true, Config: "failedloginpause: 0\nsieve_maxscriptsize: 2048\n"})
	return c, sieveServer{"Cyrus", c.Sieve, c.IMAP, c.CA}
}

// aScript is a script with a long line, a dot alone, quotes and octets of 8 bits.
const aScript = "require [\"fileinto\", \"vacation\"];\r\n" +
	"if header :contains \"Subject\" \"[list]\" {\r\n  fileinto \"Lists\";\r\n}\r\n" +
	"vacation text:\r\nGr\xc3\xbc\xc3\x9fe {5+}\r\n..\r\n\"quoted\" \\\r\n.\r\n;\r\n"

// A sieveProgram is a client of ManageSieve. Each action is a connection of its own, as
// sieve-connect and webmail have it.
type sieveProgram struct {
	name     string
	programs []string
	// command returns what does an action with a script: put, activate, list, get,
	// deactivate or delete. Put reads path and get writes it.
	command func(t testing.TB, dir string, at sieveAddress, u user, action, script, path string) []string
}

// A sieveAddress is where a client finds ManageSieve with STARTTLS.
type sieveAddress struct{ port, ca string }

var sievePrograms = []sieveProgram{
	{"sieve-connect", []string{"sieve-connect"}, sieveConnect},
	{"sievelib", []string{"/usr/bin/python3"}, sieveLib},
	{"Net_Sieve", []string{"php"}, netSieve},
}

func sieveConnect(_ testing.TB, _ string, at sieveAddress, u user, action, script, path string) []string {
	args := []string{"sieve-connect", "--server", "localhost", "--port", at.port, "--user", u.name, "--passwordfd", "0", "--tlscafile", at.ca}
	return append(args, map[string][]string{
		"put":        {"--upload", "--localsieve", path, "--remotesieve", script},
		"activate":   {"--activate", "--remotesieve", script},
		"list":       {"--list"},
		"get":        {"--download", "--localsieve", path, "--remotesieve", script},
		"deactivate": {"--deactivate"},
		"delete":     {"--delete", "--remotesieve", script},
	}[action]...)
}

func sieveLib(t testing.TB, dir string, at sieveAddress, u user, action, script, path string) []string {
	program := file(t, dir, "sieve.py", `
import sys
from sievelib.managesieve import Client
port, user, action, name, path = sys.argv[1:]
c = Client("localhost", int(port))
if not c.connect(user, sys.stdin.readline().rstrip("\n"), starttls=True):
    sys.exit("refused: %s %s" % (c.errcode, c.errmsg))
ok = True
if action == "put":
    ok = c.putscript(name, open(path, newline="", encoding="utf-8").read())
elif action == "get":
    open(path, "w", newline="", encoding="utf-8").write(c.getscript(name))
elif action == "list":
    active, others = c.listscripts()
    print("\n".join(others + ["%s ACTIVE" % active]))
elif action == "delete":
    ok = c.deletescript(name)
else:
    ok = c.setactive(name if action == "activate" else "")
c.logout()
if not ok:
    sys.exit("failed: %s %s" % (c.errcode, c.errmsg))
`)
	return []string{"/usr/bin/python3", "-W", "ignore", program, at.port, u.name, action, script, path}
}

func netSieve(t testing.TB, dir string, at sieveAddress, u user, action, script, path string) []string {
	return netSieveAt(t, dir, "localhost", at, u, action, script, path)
}

// netSieveAt is netSieve at a host, which ssl:// may stand before.
func netSieveAt(t testing.TB, dir, host string, at sieveAddress, u user, action, script, path string) []string {
	t.Helper()
	program := file(t, dir, "sieve.php", `<?php
require_once 'Net/Sieve.php';
[, $host, $port, $ca, $user, $action, $name, $path] = $argv;
function must($r) {
    if ((new PEAR)->isError($r)) { fwrite(STDERR, "refused: {$r->getMessage()}\n"); exit(1); }
    return $r;
}
$s = new Net_Sieve();
must($s->connect($host, $port, ['ssl' => ['cafile' => $ca, 'peer_name' => 'localhost']], !str_starts_with($host, 'ssl://')));
must($s->login($user, trim(fgets(STDIN))));
switch ($action) {
case 'put': must($s->installScript($name, file_get_contents($path))); break;
case 'activate': must($s->setActive($name)); break;
case 'list':
    $active = '';
    foreach (must($s->listScripts($active)) as $script) { echo $script, $script == $active ? " ACTIVE\n" : "\n"; }
    break;
case 'get': file_put_contents($path, must($s->getScript($name))); break;
case 'deactivate': must($s->setActive('')); break;
case 'delete': must($s->removeScript($name)); break;
}
must($s->disconnect());
`)
	return []string{"php", program, host, at.port, at.ca, u.name, action, script, path}
}

// Criterion: sieve-connect, python's sievelib and PEAR's Net_Sieve, with which Roundcube works, put, activate, list, get and delete scripts through Postern on Dovecot and on Cyrus, and hear that a wrong password is one.
func TestSieveProgramsEditScripts(t *testing.T) {
	t.Parallel()
	for _, start := range []func(testing.TB, map[string]string) sieveServer{
		func(t testing.TB, p map[string]string) sieveServer { _, s := sieveDovecot(t, p); return s },
		func(t testing.TB, p map[string]string) sieveServer { _, s := sieveCyrus(t, p); return s },
	} {
		var names []string
		for i := range sievePrograms {
			names = append(names, fmt.Sprint("user", i))
		}
		users, passwords := people(names...)
		server := start(t, passwords)
		p := behindSieve(t, server, "")
		for i, program := range sievePrograms {
			t.Run(program.name+" on "+server.name, func(t *testing.T) {
				proxytest.Need(t, program.programs...)
				editByProgram(t, p, program, users[i])
			})
		}
	}
}

func editByProgram(t *testing.T, p *postern, program sieveProgram, u user) {
	t.Helper()
	dir := t.TempDir()
	at := sieveAddress{port(t, p.at(t, "sieve")), p.ca}
	put, got := file(t, dir, "put", aScript), filepath.Join(dir, "got")
	do := func(action string, statuses ...int) string {
		t.Helper()
		path := put
		if action == "get" {
			path = got
		}
		args := program.command(t, dir, at, u, action, "first", path)
		return run(t, dir, strings.NewReader(u.password+"\n"), args, statuses...)
	}
	do("put")
	do("activate")
	if list := do("list"); !strings.Contains(list, "first") || !strings.Contains(strings.ToLower(list), "active") {
		t.Errorf("list: %q", list)
	}
	do("get")
	script, err := os.ReadFile(got)
	if err != nil {
		t.Fatal(err)
	}
	// Clients change line ends, or add one.
	if normal := strings.TrimSpace(strings.ReplaceAll(string(script), "\r\n", "\n")); normal != strings.TrimSpace(strings.ReplaceAll(aScript, "\r\n", "\n")) {
		t.Errorf("get: %q", script)
	}
	do("deactivate")
	do("delete")
	if list := do("list"); strings.Contains(list, "first") {
		t.Errorf("list after delete: %q", list)
	}
}

// A sieveConn is a client of ManageSieve that reads responses with their literals.
type sieveConn struct {
	t    testing.TB
	conn net.Conn
	r    *bufio.Reader
}

func newSieveConn(t testing.TB, conn net.Conn) *sieveConn {
	t.Helper()
	_ = conn.SetDeadline(time.Now().Add(patience))
	return &sieveConn{t, conn, bufio.NewReader(conn)}
}

func (c *sieveConn) send(text string) {
	c.t.Helper()
	if _, err := io.WriteString(c.conn, text); err != nil {
		c.t.Fatal(err)
	}
}

// response reads up to the line that ends a response, and returns that line and, before it, all
// the rest.
func (c *sieveConn) response() (end string, data []byte) {
	c.t.Helper()
	end, data, err := c.read()
	if err != nil {
		c.t.Fatalf("%v after %q", err, hidden(string(data)))
	}
	return end, data
}

func (c *sieveConn) read() (end string, data []byte, err error) {
	for {
		line, err := c.r.ReadString('\n')
		if err != nil {
			return "", append(data, line...), err
		}
		if word, _, _ := strings.Cut(strings.TrimRight(line, "\r\n"), " "); word == "OK" || word == "NO" || word == "BYE" {
			return strings.TrimRight(line, "\r\n"), data, nil
		}
		data = append(data, line...)
		if size, ok := strings.CutPrefix(strings.TrimRight(line, "}\r\n"), "{"); ok {
			n, err := strconv.Atoi(size)
			if err != nil || n > 4<<20 {
				return "", data, fmt.Errorf("literal %q", line)
			}
			literal := make([]byte, n)
			if _, err := io.ReadFull(c.r, literal); err != nil {
				return "", data, err
			}
			data = append(data, literal...)
		}
	}
}

// wants sends a command, and checks how its response begins that line which ends it.
func (c *sieveConn) wants(command, want string) (data []byte) {
	c.t.Helper()
	if command != "" {
		c.send(command + "\r\n")
	}
	end, data := c.response()
	if !strings.HasPrefix(end, want) {
		word, _, _ := strings.Cut(command, " ")
		c.t.Fatalf("%s: %q, want %q", word, end, want)
	}
	return data
}

// secure begins TLS on a connection to p.
func (c *sieveConn) secure(p *postern) *sieveConn {
	c.t.Helper()
	c.wants("STARTTLS", "OK")
	return newSieveConn(c.t, p.tlsOn(c.t, c.conn))
}

// dialSieve returns a connection with STARTTLS done.
func dialSieve(t testing.TB, p *postern) *sieveConn {
	t.Helper()
	c := newSieveConn(t, dial(t, p.at(t, "sieve")))
	c.wants("", "OK")
	c = c.secure(p)
	c.wants("", "OK")
	return c
}

func plainOf(u user, password string) string {
	return "AUTHENTICATE \"PLAIN\" \"" + base64Of("\x00"+u.name+"\x00"+password) + "\""
}

// loginSieve logs in, with STARTTLS.
func loginSieve(t testing.TB, p *postern, u user) *sieveConn {
	t.Helper()
	c := dialSieve(t, p)
	c.wants(plainOf(u, u.password), "OK")
	return c
}

// Criterion: Clients that are not run here find the dialogue they want: Thunderbird's Sieve add-on, which asks for capabilities behind the handshake and reads both lists, KDE, which waits for the one that comes unasked, and clients that send PLAIN in a literal or without initial response, or LOGIN.
func TestSieveDialoguesOfOtherClients(t *testing.T) {
	t.Parallel()
	users, passwords := people("alice")
	u := users[0]
	d, server := sieveDovecot(t, passwords)
	p := behindSieve(t, server, "")
	plain := base64Of("\x00" + u.name + "\x00" + u.password)

	t.Run("Thunderbird", func(t *testing.T) {
		c := newSieveConn(t, dial(t, p.at(t, "sieve")))
		if greeting := string(c.wants("", "OK")); !strings.Contains(greeting, "\"SASL\" \"\"\r\n") || !strings.Contains(greeting, "\"STARTTLS\"\r\n") || strings.Contains(greeting, "XCLIENT") {
			t.Errorf("greeting: %q", greeting)
		}
		c = c.secure(p)
		asked := c.wants("CAPABILITY", "OK") // the one that comes unasked
		again := c.wants("", "OK")
		if !bytes.Equal(asked, again) || !bytes.Contains(asked, []byte(`"SASL" "PLAIN LOGIN`)) || bytes.Contains(asked, []byte("STARTTLS")) {
			t.Errorf("under TLS: %q and %q", asked, again)
		}
		c.wants(`AUTHENTICATE "PLAIN" "`+plain+`"`, "OK")
		c.wants("CAPABILITY", "OK")
		c.wants("NOOP", "OK")
		c.wants(fmt.Sprintf("PUTSCRIPT \"of Thunderbird\" {%d+}\r\n%s", len(aScript), aScript), "OK")
		if list := c.wants("LISTSCRIPTS", "OK"); string(list) != "\"of Thunderbird\"\r\n" {
			t.Errorf("LISTSCRIPTS: %q", list)
		}
		stored, err := os.ReadFile(filepath.Join(d.Store, u.name, "sieve", "of Thunderbird.sieve"))
		if err != nil || string(stored) != aScript {
			t.Errorf("on disk: %v, %q", err, stored)
		}
		c.wants("LOGOUT", "OK")
		if _, _, err := c.read(); !errors.Is(err, io.EOF) {
			t.Errorf("after LOGOUT: %v", err)
		}
	})
	t.Run("KDE", func(t *testing.T) {
		c := newSieveConn(t, dial(t, p.at(t, "sieve")))
		c.wants("", "OK")
		c = c.secure(p)
		c.wants("", "OK")
		c.wants(plainOf(u, "wrong"), `NO "`)
		c.wants("LOGOUT", "OK")
	})
	for name, say := range map[string][]string{
		"PLAIN in a literal":             {fmt.Sprintf("AUTHENTICATE \"PLAIN\" {%d+}\r\n%s\r\n", len(plain), plain)},
		"PLAIN without initial response": {"AUTHENTICATE \"PLAIN\"\r\n", "\"" + plain + "\"\r\n"},
		"the answer in a literal":        {"AUTHENTICATE \"PLAIN\"\r\n", fmt.Sprintf("{%d+}\r\n%s\r\n", len(plain), plain)},
		"a mechanism in a literal":       {fmt.Sprintf("authenticate {5+}\r\nplain {%d+}\r\n%s\r\n", len(plain), plain)},
		"LOGIN":                          {"AUTHENTICATE \"LOGIN\"\r\n", "\"" + base64Of(u.name) + "\"\r\n", "\"" + base64Of(u.password) + "\"\r\n"},
	} {
		t.Run(name, func(t *testing.T) {
			c := dialSieve(t, p)
			for i, text := range say {
				c.send(text)
				if i < len(say)-1 {
					if challenge, err := c.r.ReadString('\n'); err != nil || !strings.HasPrefix(challenge, `"`) {
						t.Fatalf("challenge %q, %v", challenge, err)
					}
				}
			}
			c.wants("", "OK")
			c.wants("LISTSCRIPTS", "OK")
		})
	}
}

// Criterion: A wrong password of ManageSieve is told as one in front of Dovecot and of Cyrus, and counted by the guard.
func TestAWrongSievePasswordIsCounted(t *testing.T) {
	t.Parallel()
	users, passwords := people("alice")
	_, dovecot := sieveDovecot(t, passwords)
	_, cyrus := sieveCyrus(t, passwords)
	for _, server := range []sieveServer{dovecot, cyrus} {
		t.Run(server.name, func(t *testing.T) {
			p := behindSieve(t, server, "guard: {network: {burst: 1, every: 1h}, learning: 0s}\n")
			dialSieve(t, p).wants(plainOf(users[0], newSecret()), `NO "Wrong user name or password`)
			dialSieve(t, p).wants(plainOf(users[0], newSecret()), "NO (TRYLATER) ") // the server is not asked
			within(t, patience, "the attempts are counted", func() bool {
				values, _ := p.scrape(t)
				const attempts = `postern_auth_attempts_total{mechanism="plain",protocol="sieve",result=`
				return values[attempts+`"invalid_credentials"}`] == "1" && values[attempts+`"rate_limited"}`] == "1"
			})
		})
	}
}

// Criterion: A ManageSieve server that is away is told with TRYLATER and BYE, never as a wrong password; when it is back, so is the service.
func TestAStoppedSieveServerIsTemporary(t *testing.T) {
	t.Parallel()
	users, passwords := people("alice")
	d, server := sieveDovecot(t, passwords)
	p := behindSieve(t, server, "")
	open, idle := loginSieve(t, p, users[0]), dialSieve(t, p)
	d.Stop(t)
	if _, _, err := open.read(); err == nil {
		if _, _, err = open.read(); !errors.Is(err, io.EOF) {
			t.Errorf("the session behind which the server ended: %v", err)
		}
	}
	idle.wants(plainOf(users[0], users[0].password), "NO (TRYLATER) ")
	idle.wants("", "BYE (TRYLATER) ")
	if _, _, err := idle.read(); !errors.Is(err, io.EOF) {
		t.Errorf("after BYE: %v", err)
	}
	d.Start(t)
	loginSieve(t, p, users[0]).wants("LISTSCRIPTS", "OK")
}

// Criterion: sieve:off in policy.file refuses an account's ManageSieve with the operator's own words after the right password only; IMAP stays.
func TestSieveIsOffForAnAccount(t *testing.T) {
	t.Parallel()
	users, passwords := people("alice", "bob")
	_, server := sieveDovecot(t, passwords)
	p := behindSieve(t, server, fmt.Sprintf("policy: {file: %q}\ntexts: {protocol_off: Filters are in webmail now}\n", file(t, t.TempDir(), "policy", "alice sieve:off\n")))
	c := dialSieve(t, p)
	c.wants(plainOf(users[0], newSecret()), `NO "Wrong user name or password`)
	c.wants(plainOf(users[0], users[0].password), `NO "Filters are in webmail now`)
	loginSieve(t, p, users[1]).wants("LISTSCRIPTS", "OK")
	proxytest.Transcript(t, dialTLS(t, p.imap, p.ca), lines("S: \\* OK *", "C: a LOGIN alice "+users[0].password, "S: a OK *"))
}

// Criterion: Ten connections of one account at once, as clients open them, are no obstacle: sessions of ManageSieve count apart from those of IMAP.
func TestSieveClientsOpenAConnectionForEachScript(t *testing.T) {
	t.Parallel()
	users, passwords := people("alice")
	u := users[0]
	d, server := sieveDovecot(t, passwords)
	p := behindSieve(t, server, "limits: {account_sessions: 10}\n")
	for range 10 {
		imap := dialTLS(t, p.imap, p.ca)
		proxytest.Transcript(t, imap, lines("S: \\* OK *", "C: a LOGIN "+u.name+" "+u.password, "S: a OK *"))
	}
	var conns []*sieveConn
	for range 10 {
		conns = append(conns, loginSieve(t, p, u))
	}
	var done sync.WaitGroup
	for i, c := range conns {
		done.Go(func() {
			fmt.Fprintf(c.conn, "PUTSCRIPT \"script%d\" {%d+}\r\n%s\r\n", i, len(aScript), aScript)
			if end, _, err := c.read(); err != nil || !strings.HasPrefix(end, "OK") {
				t.Errorf("script %d: %q, %v", i, end, err)
			}
		})
	}
	done.Wait()
	if n := len(glob(t, filepath.Join(d.Store, u.name, "sieve", "script*.sieve"))); n != 10 {
		t.Errorf("%d scripts are stored, want 10", n)
	}
	c := dialSieve(t, p)
	c.wants(plainOf(u, u.password), "NO (TRYLATER) ")
}

// Criterion: With TLS from the first octet Net_Sieve works at ssl://, and the log shows each session's client, TLS, account and backend.
func TestSieveWithTLSFromTheFirstOctet(t *testing.T) {
	t.Parallel()
	proxytest.Need(t, "php")
	users, passwords := people("alice")
	u := users[0]
	d, server := sieveDovecot(t, passwords)
	p := behindSieve(t, server, "")
	dir := t.TempDir()
	put := file(t, dir, "put", aScript)
	args := netSieveAt(t, dir, "ssl://localhost", sieveAddress{port(t, p.at(t, "sieves")), p.ca}, u, "put", "first", put)
	run(t, dir, strings.NewReader(u.password+"\n"), args)
	if stored := files(t, filepath.Join(d.Store, u.name, "sieve", "first.sieve")); len(stored) != 1 || string(stored[0]) != aScript {
		t.Errorf("stored: %q", stored)
	}
	within(t, patience, "the session has ended", func() bool { return len(p.ends(t, u)) == 1 })
	if l := p.ends(t, u)[0]; l.text("listener") != "sieves" || l.text("ip") != "127.0.0.1" || !strings.HasPrefix(l.text("tls"), "TLS 1.") || l.text("backend") != "main" {
		t.Errorf("the session ended so: %v", l)
	}
	c := newSieveConn(t, dialTLS(t, p.at(t, "sieves"), p.ca))
	c.wants("", "OK")
	c.wants("STARTTLS", "NO")
	c.wants(plainOf(u, u.password), "OK")
}

// Criterion: A Dovecot that trusts Postern logs the address and the session id of the client, by XCLIENT.
func TestDovecotLearnsWhoTheSieveClientIs(t *testing.T) {
	t.Parallel()
	users, passwords := people("alice")
	d := proxytest.StartDovecot(t, proxytest.DovecotOptions{Users: passwords, Sieve: true, Trusted: "127.0.0.1", Config: quick})
	p := behindSieve(t, sieveServer{"Dovecot", d.Sieve, d.IMAP, d.CA}, "")
	c := newSieveConn(t, dialFrom(t, "127.9.8.7", p.at(t, "sieve")))
	if greeting := c.wants("", "OK"); bytes.Contains(greeting, []byte("XCLIENT")) {
		t.Errorf("a client is offered XCLIENT: %q", greeting)
	}
	c = c.secure(p)
	c.wants("", "OK")
	c.wants("XCLIENT ADDR=192.0.2.7", "NO")
	c.wants(plainOf(users[0], users[0].password), "OK")
	c.wants("LOGOUT", "OK")
	within(t, patience, "the session has ended", func() bool { return len(p.ends(t, users[0])) == 1 })
	log, err := os.ReadFile(d.Log)
	if want := p.ends(t, users[0])[0].text("session"); err != nil || !bytes.Contains(log, []byte("rip=127.9.8.7")) || !bytes.Contains(log, []byte("session=<"+want)) {
		t.Errorf("%v: Dovecot's log has not the client with session %s:\n%s", err, want, log)
	}
}

// Criterion: UNAUTHENTICATE, which Cyrus takes from every user, ends the session before Cyrus sees it: nobody goes on as another account.
func TestNobodyLeavesASieveSessionForAnotherAccount(t *testing.T) {
	t.Parallel()
	users, passwords := people("alice", "bob")
	cyrus, server := sieveCyrus(t, passwords)
	p := behindSieve(t, server, "")
	for _, say := range []string{
		"UNAUTHENTICATE\r\n",
		"noop\r\nunauthenticate\r\n",
		"NOOP {3+}\r\nabc\r\nUnauthenticate\r\n",
		"FOO {16+}\r\nUNAUTHENTICATE\r\n",
		"NOOP {99+} x\r\nUNAUTHENTICATE\r\n",
	} {
		c := newSieveConn(t, dialSieve(t, p).conn)
		c.wants(plainOf(users[0], users[0].password), "OK")
		c.send(say + plainOf(users[1], users[1].password) + "\r\nLISTSCRIPTS\r\n")
		for { // up to the end of the session
			if _, _, err := c.read(); err != nil {
				break
			}
		}
	}
	log, err := os.ReadFile(cyrus.Log)
	if err != nil || strings.Contains(string(log), "bob PLAIN") || !strings.Contains(string(log), "alice PLAIN") {
		t.Errorf("%v: Cyrus's log has a login of bob, or none of alice:\n%s", err, log)
	}
}

// Criterion: kick ends a session of ManageSieve with BYE; a drained server gets no login while its sessions stay; an upgrade keeps them.
func TestSieveSessionsAreKickedDrainedAndUpgraded(t *testing.T) {
	t.Parallel()
	users, passwords := people("alice", "bob")
	_, server := sieveDovecot(t, passwords)
	cert, key, ca := proxytest.CertFiles(t)
	dir := t.TempDir()
	mkdir(t, dir, "state")
	f := &processes{postern: newPostern(dir, ca)}
	address := proxytest.FreeAddress(t)
	f.config = file(t, dir, "postern.yaml", fmt.Sprintf(`
hostname: mail.example.org
listeners: [{protocol: sieve, address: %q}]
tls: {certificates: [{cert: %q, key: %q}]}
backends: {main: {sieve: {address: %q, ca: %q, server_name: localhost}}}
metrics: {address: %q}
log: {format: json}
state: {path: state}
`, address, cert, key, server.sieve, server.ca, proxytest.FreeAddress(t)))
	f.startUntil(t, f.config, f.end)
	f.listens(t, 1)
	say := func(want string, args ...string) {
		t.Helper()
		if out, err := f.say(args...); err != nil || !strings.Contains(out, want) {
			t.Fatalf("postern %v: %v\n%s", args, err, out)
		}
	}
	stays, kicked := loginSieve(t, f.postern, users[0]), loginSieve(t, f.postern, users[1])
	kicked.wants("NOOP", "OK")
	time.Sleep(1200 * time.Millisecond) // BYE is inserted only where the server has been silent for a second
	say("sieve", "sessions")
	say("ended: 1\n", "kick", "--account", "bob")
	kicked.wants("", "BYE ")
	if _, _, err := kicked.read(); !errors.Is(err, io.EOF) {
		t.Errorf("after BYE: %v", err)
	}
	stays.wants("NOOP", "OK")
	say("drained", "drain", "main", server.sieve)
	stays.wants("NOOP", "OK")
	refused := dialSieve(t, f.postern)
	refused.wants(plainOf(users[1], users[1].password), "NO (TRYLATER) ")
	say("up", "drain", "main", server.sieve, "--undo")
	say("", "upgrade")
	stays.wants(fmt.Sprintf("PUTSCRIPT \"after\" {%d+}\r\n%s", len(aScript), aScript), "OK")
	loginSieve(t, f.postern, users[0]).wants("LISTSCRIPTS", "OK")
	stays.wants("LOGOUT", "OK")
}

// Criterion: A script of 1 MB goes through Postern to Dovecot and to Cyrus and back, octet for octet.
func TestABigScriptIsTheSameBothWays(t *testing.T) {
	t.Parallel()
	users, passwords := people("alice")
	_, dovecot := sieveDovecot(t, passwords)
	_, cyrus := sieveCyrus(t, passwords)
	big := "keep;\r\n" + strings.Repeat("# "+strings.Repeat("\xc3\xa4{12+}\"", 40)+"\r\n", 1<<20)
	big = big[:strings.LastIndex(big[:1<<20], "\r\n")+2]
	for _, server := range []sieveServer{dovecot, cyrus} {
		t.Run(server.name, func(t *testing.T) {
			p := behindSieve(t, server, "")
			c := loginSieve(t, p, users[0])
			c.wants(fmt.Sprintf("PUTSCRIPT \"big\" {%d+}\r\n%s", len(big), big), "OK")
			got := c.wants(`GETSCRIPT "big"`, "OK")
			wantBytes(t, "the script", got, fmt.Appendf(nil, "{%d}\r\n%s\r\n", len(big), big))
		})
	}
}

// Criterion: ManageSieve has the same guard as IMAP: wrong passwords on one count on the other, and a right one is refused as temporary when there were too many.
func TestSieveAndIMAPShareTheGuard(t *testing.T) {
	t.Parallel()
	users, passwords := people("alice", "bob")
	alice, bob := users[0], users[1]
	_, server := sieveDovecot(t, passwords)
	p := behindSieve(t, server, "guard: {network: {burst: 2, every: 1h}, learning: 0s}\n")
	const stranger = "127.1.2.3"
	dialFromStranger := func() *sieveConn {
		c := newSieveConn(t, dialFrom(t, stranger, p.at(t, "sieve")))
		c.wants("", "OK")
		c = c.secure(p)
		c.wants("", "OK")
		return c
	}
	c := dialFromStranger()
	c.wants(plainOf(alice, "guess1"), `NO "`)
	c.wants(plainOf(alice, "guess2"), `NO "`)
	_ = c.conn.Close()
	imap := p.tlsOn(t, dialFrom(t, stranger, p.at(t, "imap")))
	proxytest.Transcript(t, imap, lines("S: \\* OK *", "C: a LOGIN "+bob.name+" "+bob.password, "S: a NO [UNAVAILABLE] *"))
	c = dialFromStranger()
	c.wants(plainOf(bob, bob.password), "NO (TRYLATER) ")
	c.wants("", "BYE (TRYLATER) ")
	loginSieve(t, p, bob)
	within(t, patience, "the refusals are counted", func() bool {
		values, _ := p.scrape(t)
		return values[`postern_auth_attempts_total{mechanism="plain",protocol="sieve",result="invalid_credentials"}`] == "2"
	})
}

// Criterion: What no client of ManageSieve sends before login - huge literals, strings without end, bare CR and LF, NUL, commands ahead of the handshake - is refused or ends the connection, reaches no server, and the next client is served.
func TestSieveRefusesHostileOctets(t *testing.T) {
	t.Parallel()
	users, passwords := people("alice")
	d, server := sieveDovecot(t, passwords)
	p := behindSieve(t, server, "")
	plain := plainOf(users[0], users[0].password)
	for _, secured := range []bool{false, true} {
		for name, say := range map[string]string{
			"a literal of 4 GiB":          "AUTHENTICATE \"PLAIN\" {4294967295+}\r\n",
			"a literal of 2 MB":           "AUTHENTICATE \"PLAIN\" {2000000+}\r\n" + strings.Repeat("x", 1<<20),
			"a literal that overflows":    "AUTHENTICATE \"PLAIN\" {99999999999999999999+}\r\n",
			"a literal that waits":        "AUTHENTICATE \"PLAIN\" {28}\r\n",
			"an empty literal":            "AUTHENTICATE \"PLAIN\" {0+}\r\n\r\n",
			"many literals":               "NOOP" + strings.Repeat(" {0+}\r\n", 1000) + "\r\n",
			"a string without end":        "AUTHENTICATE \"PLAIN\" \"" + strings.Repeat("A", 1<<20),
			"NUL":                         "AUTHENTICATE \"PLAIN\" \"\x00\"\r\n",
			"bare CR":                     "NOOP\rCAPABILITY\r\n",
			"no base64":                   "AUTHENTICATE \"PLAIN\" \"!!!!\"\r\n",
			"a name with a new line":      "AUTHENTICATE \"PLAIN\" \"" + base64Of("\x00al\r\nLOGOUT\r\nice\x00x") + "\"\r\n",
			"a name with a quotation":     "AUTHENTICATE \"PLAIN\" \"" + base64Of("\x00al\"{9+}ice\x00x") + "\"\r\n",
			"a mechanism with a new line": "AUTHENTICATE {7+}\r\nPLAIN\r\n \"\"\r\n",
			"HTTP":                        "POST / HTTP/1.1\r\nHost: x\r\n\r\n",
		} {
			c := newSieveConn(t, dial(t, p.at(t, "sieve")))
			c.wants("", "OK")
			if secured {
				c = c.secure(p)
				c.wants("", "OK")
			}
			_, _ = io.WriteString(c.conn, say) // which Postern may not wait for
			if end, _, err := c.read(); err == nil && !strings.HasPrefix(end, "NO") && !strings.HasPrefix(end, "BYE") {
				t.Errorf("%s, under TLS %v: %q", name, secured, end)
			}
			_ = c.conn.Close()
		}
	}
	c := newSieveConn(t, dial(t, p.at(t, "sieve")))
	c.wants("", "OK")
	c.send("STARTTLS\r\n" + plain + "\r\n")
	c.wants("", "OK") // of STARTTLS; what came behind it is no TLS
	if end, _, err := c.read(); err == nil {
		t.Errorf("a command ahead of the handshake: %q", end)
	}
	loginSieve(t, p, users[0]).wants("LISTSCRIPTS", "OK")
	if log, err := os.ReadFile(d.Log); err != nil || strings.Count(string(log), "managesieve-login: Info: Login:") != 1 {
		t.Errorf("%v: Dovecot has other logins than the one at the end:\n%s", err, log)
	}
}
