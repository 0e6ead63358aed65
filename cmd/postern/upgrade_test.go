package main

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"postern/proxy/memserver"
	"postern/proxy/proxytest"
)

// A processes is a Postern at ports of its own, with a user for each session.
type processes struct {
	*postern
	config string
	body   string // of the configuration, without what a test adds
	roots  *x509.CertPool
	users  int
}

// startProcesses starts a Postern for users, each with three messages.
func startProcesses(t *testing.T, users int, more string) *processes {
	t.Helper()
	var accounts []memserver.Account
	for i := range users {
		accounts = append(accounts, memserver.Account{User: fmt.Sprint("u", i), Password: fmt.Sprint("secret of u", i)})
	}
	m := memserver.New(memserver.Options{UIDValidity: 7, Accounts: accounts})
	t.Cleanup(func() { _ = m.Close() })
	for i := range users {
		for n := range 3 {
			if err := m.Append(fmt.Sprint("u", i), fmt.Appendf(nil, "Subject: %d\r\n\r\nhello %d\r\n", n, i)); err != nil {
				t.Fatal(err)
			}
		}
	}
	imap, err := serveInMemory(m.ServeIMAP)
	if err != nil {
		t.Fatal(err)
	}
	cert, key, ca := proxytest.CertFiles(t)
	dir := t.TempDir()
	f := &processes{postern: newPostern(dir, ca), users: users}
	f.imap, f.pop3, f.metrics = proxytest.FreeAddress(t), proxytest.FreeAddress(t), proxytest.FreeAddress(t)
	f.body = fmt.Sprintf(`
hostname: mail.example.org
listeners:
  - {protocol: imap, address: %q}
  - {protocol: pop3, address: %q}
tls: {certificates: [{cert: %q, key: %q}]}
backends: {main: {imap: {address: %q, tls: none}}}
trusted_networks: [127.0.0.0/8]
metrics: {address: %q}
log: {format: json}
state: {path: state}
%s`, f.imap, f.pop3, cert, key, imap, f.metrics, more)
	f.config = file(t, dir, "postern.yaml", f.body)
	if err := os.Mkdir(filepath.Join(dir, "state"), 0o700); err != nil {
		t.Fatal(err)
	}
	pem, err := os.ReadFile(ca)
	if err != nil {
		t.Fatal(err)
	}
	f.roots = x509.NewCertPool()
	f.roots.AppendCertsFromPEM(pem)
	f.startUntil(t, f.config, f.end)
	within(t, patience, "Postern listens", func() bool { return len(f.logged(t, "listening")) == 2 })
	return f
}

// end stops all processes of the fleet.
func (f *processes) end(t testing.TB) {
	_ = f.cmd.Process.Signal(syscall.SIGTERM)
	for _, line := range f.logged(t, "upgraded: the sessions that are left are this process's") {
		if pid, ok := line["successor"].(float64); ok {
			_ = syscall.Kill(int(pid), syscall.SIGTERM)
		}
	}
	select {
	case <-f.done:
	case <-time.After(2 * patience):
		_ = f.cmd.Process.Kill()
		<-f.done
		t.Errorf("Postern did not end within %v of SIGTERM", 2*patience)
	}
	if f.err != nil {
		t.Errorf("Postern ended with %v", f.err)
	}
}

// say runs a subcommand and returns all that it printed.
func (f *processes) say(args ...string) (string, error) {
	out, err := exec.Command("postern", append(args, "--config", f.config)...).CombinedOutput()
	return string(out), err
}

// A visit is a session of a client's.
type visit struct {
	*tls.Conn
	in    *bufio.Reader
	uidls string
}

func (f *processes) dial(address string) (*visit, error) {
	d := tls.Dialer{NetDialer: &net.Dialer{Timeout: patience}, Config: &tls.Config{RootCAs: f.roots, ServerName: "localhost"}}
	conn, err := d.Dial("tcp", address)
	if err != nil {
		return nil, err
	}
	_ = conn.SetDeadline(time.Now().Add(10 * patience))
	c := &visit{Conn: conn.(*tls.Conn), in: bufio.NewReader(conn)}
	return c, c.wants("", "")
}

// wants sends a line, if there is one, and reads up to a line with want in it. A
// refusal in between is an error.
func (c *visit) wants(line, want string) error {
	if line != "" {
		if _, err := io.WriteString(c, line+"\r\n"); err != nil {
			return err
		}
	}
	for {
		got, err := c.in.ReadString('\n')
		switch {
		case err != nil:
			return fmt.Errorf("after %.4q: %w", line, err)
		case strings.Contains(got, want):
			return nil
		case strings.HasPrefix(got, "-ERR"), strings.HasPrefix(got, "a NO"), strings.HasPrefix(got, "* BYE"):
			return fmt.Errorf("after %.4q: %s", line, got)
		}
	}
}

// pop3 logs a user in and reads the unique ids.
func (f *processes) popSession(user int) (*visit, error) {
	c, err := f.dial(f.pop3)
	if err != nil {
		return nil, err
	}
	if err := c.wants(fmt.Sprint("USER u", user), "+OK"); err != nil {
		return c, err
	}
	if err := c.wants(fmt.Sprint("PASS secret of u", user), "+OK"); err != nil {
		return c, err
	}
	c.uidls, err = c.list()
	return c, err
}

// list returns the answer to UIDL.
func (c *visit) list() (all string, err error) {
	if err := c.wants("UIDL", "+OK"); err != nil {
		return "", err
	}
	for {
		line, err := c.in.ReadString('\n')
		if err != nil || line == ".\r\n" {
			return all, err
		}
		all += line
	}
}

func (f *processes) imapSession(user int) (*visit, error) {
	c, err := f.dial(f.imap)
	if err != nil {
		return nil, err
	}
	return c, c.wants(fmt.Sprintf("a LOGIN u%d \"secret of u%d\"", user, user), "a OK")
}

// sessions opens one for each user: IMAP for the first half, POP3 for the rest.
func (f *processes) sessions(t *testing.T, from, to int) (imap, pop3 []*visit) {
	t.Helper()
	for user := from; user < to; user++ {
		open, list := f.imapSession, &imap
		if user >= (from+to)/2 {
			open, list = f.popSession, &pop3
		}
		c, err := open(user)
		if err != nil {
			t.Fatalf("session of u%d: %v", user, err)
		}
		t.Cleanup(func() { _ = c.Close() })
		*list = append(*list, c)
	}
	return imap, pop3
}

// loginsUntil logs users in, one after the other, until stop is called, which
// returns how many succeeded. None may fail.
func (f *processes) loginsUntil(t *testing.T, users ...int) (stop func() int64) {
	var succeeded atomic.Int64
	end := make(chan struct{})
	var wg sync.WaitGroup
	for _, user := range users {
		wg.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-end:
					return
				default:
				}
				open, bye, answer := f.imapSession, "a LOGOUT", "* BYE"
				if n%2 == 0 {
					open, bye, answer = f.popSession, "QUIT", "+OK"
				}
				c, err := open(user)
				if err == nil {
					err = c.wants(bye, answer)
				}
				if c != nil {
					_ = c.Close()
				}
				if err != nil {
					t.Errorf("login %d of u%d: %v", n, user, err)
					return
				}
				succeeded.Add(1)
			}
		})
	}
	return sync.OnceValue(func() int64 {
		close(end)
		wg.Wait()
		return succeeded.Load()
	})
}

func wantAlive(t *testing.T, imap, pop3 []*visit) {
	t.Helper()
	for _, c := range imap {
		if err := c.wants("a NOOP", "a OK"); err != nil {
			t.Errorf("IMAP session: %v", err)
		}
	}
	for _, c := range pop3 {
		uidls, err := c.list()
		if err != nil || uidls != c.uidls {
			t.Errorf("POP3 session: %v, unique ids\n%swere\n%s", err, uidls, c.uidls)
		}
	}
}

const (
	liveSessions = 200
	comers       = 4 // who log in all the time
)

// Criterion: A reload under 200 sessions and continuous logins breaks no session and refuses no connection, and a bad file changes nothing.
func TestReloadBreaksNoSession(t *testing.T) {
	f := startProcesses(t, liveSessions+comers, "")
	imap, pop3 := f.sessions(t, 0, liveSessions)
	stop := f.loginsUntil(t, liveSessions, liveSessions+1, liveSessions+2, liveSessions+3)
	defer stop()
	extra := proxytest.FreeAddress(t)
	write := func(body string) {
		t.Helper()
		if err := os.WriteFile(f.config, []byte(body), 0o600); err != nil {
			t.Fatal(err)
		}
	}

	write(f.body + "texts: {wrong: Ask us}\nlimits: {max_connections: 5000}\n")
	if out, err := f.say("reload"); err != nil {
		t.Errorf("reload: %v\n%s", err, out)
	}
	write(strings.Replace(f.body, "listeners:\n", fmt.Sprintf("listeners:\n  - {name: another, protocol: imap, address: %q}\n", extra), 1))
	if out, err := f.say("reload"); err != nil {
		t.Errorf("reload with another listener: %v\n%s", err, out)
	}
	if conn, err := net.Dial("tcp", extra); err != nil {
		t.Errorf("the new listener: %v", err)
	} else {
		_ = conn.Close()
	}

	write(f.body + "backends: {}\nno_such_key: 1\n")
	out, err := f.say("reload")
	if want := fmt.Sprintf("%s:%d: no_such_key", f.config, strings.Count(f.body, "\n")+2); err == nil || !strings.Contains(out, want) {
		t.Errorf("reload of a bad file: %v\n%swant %s", err, out, want)
	}
	if conn, err := net.Dial("tcp", extra); err != nil {
		t.Errorf("a bad file has closed a listener: %v", err)
	} else {
		_ = conn.Close()
	}
	write(strings.Replace(f.body, "state: {path: state}", "state: {path: elsewhere}", 1))
	_ = f.cmd.Process.Signal(syscall.SIGHUP)
	within(t, patience, "another state.path is refused", func() bool {
		return strings.Contains(f.printed(t), "state.path: a change from ")
	})

	write(f.body)
	_ = f.cmd.Process.Signal(syscall.SIGHUP)
	within(t, patience, "the listener that is gone is closed", func() bool {
		conn, err := net.Dial("tcp", extra)
		if err == nil {
			_ = conn.Close()
		}
		return errors.Is(err, syscall.ECONNREFUSED)
	})
	wantAlive(t, imap, pop3)
	t.Logf("%d logins meanwhile", stop())
	if values, _ := f.scrape(t); values["postern_config_last_reload_successful"] != "1" {
		t.Errorf("postern_config_last_reload_successful is %s", values["postern_config_last_reload_successful"])
	}
}

// Criterion: An upgrade under 200 sessions and continuous logins breaks no session, refuses no connection, keeps every unique id and every lock.
func TestUpgradeBreaksNoSession(t *testing.T) {
	f := startProcesses(t, liveSessions+comers, "pop3: {lock: refuse}\n")
	imap, pop3 := f.sessions(t, 0, liveSessions)
	stop := f.loginsUntil(t, liveSessions, liveSessions+1, liveSessions+2, liveSessions+3)
	defer stop()

	if out, err := f.say("upgrade"); err != nil {
		t.Fatalf("upgrade: %v\n%s", err, out)
	}
	wantAlive(t, imap, pop3)

	// The lock of a session in the old process holds in the new one.
	holder := pop3[0]
	user := liveSessions / 2
	if _, err := f.popSession(user); err == nil || !strings.Contains(err.Error(), "[IN-USE]") {
		t.Errorf("a second session: %v, want IN-USE", err)
	}
	// What it deletes is gone, and its locks with it; ids stay.
	if err := holder.wants("DELE 1", "+OK"); err != nil {
		t.Error(err)
	}
	if err := holder.wants("QUIT", "+OK"); err != nil {
		t.Error(err)
	}
	var next *visit
	within(t, patience, "the lock is free", func() bool {
		var err error
		next, err = f.popSession(user)
		return err == nil
	})
	before := strings.Split(strings.TrimSpace(holder.uidls), "\r\n")
	after := strings.Split(strings.TrimSpace(next.uidls), "\r\n")
	strip := func(lines []string) (ids []string) {
		for _, line := range lines {
			_, id, _ := strings.Cut(line, " ")
			ids = append(ids, id)
		}
		return ids
	}
	if !slices.Equal(strip(after), strip(before)[1:]) {
		t.Errorf("unique ids %q, were %q", after, before)
	}
	if err := next.wants("QUIT", "+OK"); err != nil {
		t.Error(err)
	}

	t.Logf("%d logins meanwhile", stop())
	for _, c := range slices.Concat(imap, pop3) {
		_ = c.Close()
	}
	f.wantEnded(t)
	if values, _ := f.scrape(t); values["postern_panics_total"] != "0" {
		t.Error("the new process does not serve its metrics")
	}
}

// Criterion: A maildrop that a POP3 session has locked stays locked through any number of reloads and upgrades, until that session ends or is taken over.
func TestALockOutlivesUpgrades(t *testing.T) {
	f := startProcesses(t, 1, "pop3: {lock: refuse}\n")
	holder, err := f.popSession(0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = holder.Close() }()
	upgrades := 0
	for _, changes := range []string{"reload", "upgrade", "reload", "upgrade", "upgrade upgrade"} {
		f.change(t, changes)
		upgrades += strings.Count(changes, "upgrade")
		for range 3 { // a process in between may end a moment later
			err := f.poll(0)
			if err == nil || !strings.Contains(err.Error(), "[IN-USE]") {
				t.Fatalf("a second session after %s, %d upgrades in all: %v, want IN-USE", changes, upgrades, err)
			}
			time.Sleep(100 * time.Millisecond)
		}
	}
	if err := holder.wants("NOOP", "+OK"); err != nil {
		t.Errorf("the first session: %v", err)
	}
	if err := holder.wants("QUIT", "+OK"); err != nil {
		t.Errorf("the first session: %v", err)
	}
	within(t, patience, "the lock is free", func() bool { return f.poll(0) == nil })
	within(t, patience, "the processes before have ended", func() bool {
		return len(f.logged(t, "the last session has ended")) == upgrades
	})
	f.wantEnded(t)
}

// poll is a POP3 session that ends as soon as it has begun.
func (f *processes) poll(user int) error {
	c, err := f.popSession(user)
	if c != nil {
		_ = c.Close()
	}
	return err
}

// change reloads and upgrades f, in the order of the words.
func (f *processes) change(t *testing.T, words string) {
	t.Helper()
	for word := range strings.FieldsSeq(words) {
		if out, err := f.say(word); err != nil {
			t.Fatalf("%s: %v\n%s", word, err, out)
		}
	}
}

// The session that is taken over is two processes away.
func TestATakeoverReachesAProcessBeforeThePredecessor(t *testing.T) {
	f := startProcesses(t, 1, "pop3: {lock: takeover}\n")
	first, err := f.popSession(0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = first.Close() }()
	f.change(t, "upgrade upgrade")
	if err := f.poll(0); err != nil {
		t.Errorf("a second session: %v", err)
	}
	if err := first.wants("NOOP", "+OK"); err == nil {
		t.Error("the first session goes on")
	}
	f.wantEnded(t)
}

// wantEnded waits for the end of the first process.
func (f *processes) wantEnded(t *testing.T) {
	t.Helper()
	select {
	case <-f.done:
	case <-time.After(2 * patience):
		t.Error("the old process has not ended with its last session")
	}
}

// Criterion: An upgrade to a binary or a configuration that cannot serve changes nothing.
func TestAnUpgradeThatFailsChangesNothing(t *testing.T) {
	f := startProcesses(t, 10, "")
	imap, pop3 := f.sessions(t, 0, 8)
	if err := os.WriteFile(f.config, []byte(f.body+"no_such_key: 1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := f.say("upgrade")
	if err == nil || !strings.Contains(out, "no_such_key") {
		t.Errorf("upgrade with a bad file: %v\n%s", err, out)
	}
	fails := func(n int) {
		t.Helper()
		_ = f.cmd.Process.Signal(syscall.SIGUSR2)
		within(t, 2*patience, "the upgrade has failed", func() bool {
			return len(f.logged(t, "not upgraded: this process goes on")) == n
		})
	}
	fails(1)
	// This one is good, but its state cannot be had: the successor gives up late.
	elsewhere := strings.Replace(f.body, "path: state", "path: postern.yaml/state", 1)
	if err := os.WriteFile(f.config, []byte(elsewhere+"control: {socket: state/control.sock}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	fails(2)
	if err := os.WriteFile(f.config, []byte(f.body), 0o600); err != nil {
		t.Fatal(err)
	}
	wantAlive(t, imap, pop3)
	stop := f.loginsUntil(t, 8, 9)
	time.Sleep(200 * time.Millisecond)
	if stop() == 0 {
		t.Error("nobody can log in")
	}
	if out, err := f.say("uidl", "export", "--all"); err != nil {
		t.Errorf("the control socket: %v\n%s", err, out)
	}
}

// With no session left the old process ends at once: not before it has answered.
func TestUpgradeWithoutSessionsIsAnswered(t *testing.T) {
	f := startProcesses(t, 1, "")
	for range 5 {
		if out, err := f.say("upgrade"); err != nil {
			t.Fatalf("upgrade: %v\n%s", err, out)
		}
	}
}
