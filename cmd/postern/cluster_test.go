package main

import (
	"crypto/x509"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"postern/proxy/memserver"
	"postern/proxy/proxytest"
)

// A cluster is several Posterns in front of one IMAP server.
type cluster struct {
	server *memserver.Server
	imap   string
	ca     string
	keys   [2]string // of the certificate
	users  int
	nodes  []*processes
}

// newCluster makes the IMAP server, with three messages for each user.
func newCluster(t *testing.T, users int) *cluster {
	t.Helper()
	c := &cluster{users: users}
	var accounts []memserver.Account
	for i := range users {
		accounts = append(accounts, memserver.Account{User: fmt.Sprint("u", i), Password: fmt.Sprint("secret of u", i)})
	}
	c.server = memserver.New(memserver.Options{UIDValidity: 7, Accounts: accounts})
	t.Cleanup(func() { _ = c.server.Close() })
	for i := range users {
		for n := range 3 {
			c.deliver(t, i, fmt.Sprint("first ", n))
		}
	}
	var err error
	if c.imap, err = serveInMemory(c.server.ServeIMAP); err != nil {
		t.Fatal(err)
	}
	c.keys[0], c.keys[1], c.ca = proxytest.CertFiles(t)
	return c
}

func (c *cluster) deliver(t *testing.T, user int, subject string) {
	t.Helper()
	message := fmt.Appendf(nil, "Subject: %s\r\nMessage-ID: <%s.%d@example.org>\r\n\r\nhello\r\n", subject, strings.ReplaceAll(subject, " ", "."), user)
	if err := c.server.Append(fmt.Sprint("u", user), message); err != nil {
		t.Fatal(err)
	}
}

// prepare makes the files of a node with more in its configuration. It does not run yet.
func (c *cluster) prepare(t *testing.T, more string) *processes {
	t.Helper()
	dir := t.TempDir()
	f := &processes{postern: newPostern(dir, c.ca), users: c.users}
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
%s`, f.imap, f.pop3, c.keys[0], c.keys[1], c.imap, f.metrics, more)
	f.config = file(t, dir, "postern.yaml", f.body)
	if err := os.Mkdir(filepath.Join(dir, "state"), 0o700); err != nil {
		t.Fatal(err)
	}
	pem, err := os.ReadFile(c.ca)
	if err != nil {
		t.Fatal(err)
	}
	f.roots = x509.NewCertPool()
	f.roots.AppendCertsFromPEM(pem)
	c.nodes = append(c.nodes, f)
	return f
}

// configure gives a node another configuration, for its next start.
func (f *processes) configure(t *testing.T, from, to string) {
	t.Helper()
	if !strings.Contains(f.body, from) {
		t.Fatalf("the configuration has no %q", from)
	}
	f.body = strings.Replace(f.body, from, to, 1)
	if err := os.WriteFile(f.config, []byte(f.body), 0o600); err != nil {
		t.Fatal(err)
	}
}

// serve starts a node that does not run. What it prints is in a file of its own.
func (f *processes) serve(t *testing.T) {
	t.Helper()
	f.postern = &postern{ca: f.ca, log: filepath.Join(t.TempDir(), "log"), done: make(chan struct{}), imap: f.imap, pop3: f.pop3, metrics: f.metrics}
	f.startUntil(t, f.config, f.gone)
	within(t, patience, "Postern listens", func() bool {
		select {
		case <-f.done:
			t.Fatalf("Postern has ended: %v\n%s", f.err, f.printed(t))
		default:
		}
		return len(f.logged(t, "listening")) == 2
	})
}

// gone ends a node at the end of the test, if it still runs.
func (f *processes) gone(testing.TB) { f.kill() }

// kill ends a node as a crash does.
func (f *processes) kill() {
	_ = f.cmd.Process.Kill()
	<-f.done
}

// halt ends a node as systemd does.
func (f *processes) halt(t *testing.T) {
	t.Helper()
	_ = f.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-f.done:
	case <-time.After(2 * patience):
		t.Fatal("Postern does not end")
	}
}

// wantSaid runs a subcommand, which must succeed and say so.
func (f *processes) wantSaid(t *testing.T, want string, args ...string) string {
	t.Helper()
	out, err := f.say(args...)
	if err != nil || !strings.Contains(out, want) {
		t.Fatalf("postern %s: %v\n%s\nwant %q", strings.Join(args, " "), err, out, want)
	}
	return out
}

// named returns a record of a user, for import, in which the first three messages have names
// of an old server.
func named(user int) string {
	return fmt.Sprintf(`{"account":"u%[1]d","record":{"uidvalidity":7,"eras":[{"from":1,"format":"%%08Xu%%08Xv"}],"messages":[`+
		`{"uid":1,"uidl":"old-%[1]d-1"},{"uid":2,"uidl":"old-%[1]d-2"},{"uid":3,"uidl":"old-%[1]d-3"}]}}`+"\n", user)
}

// importing imports records and returns what the command has printed.
func (f *processes) importing(lines string) (string, error) {
	cmd := exec.Command("postern", "uidl", "import", "--config", f.config)
	cmd.Stdin = strings.NewReader(lines)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func (f *processes) wantImported(t *testing.T, lines string) {
	t.Helper()
	if out, err := f.importing(lines); err != nil || !strings.Contains(out, "imported: ") {
		t.Fatalf("%v\n%s", err, out)
	}
}

// poll returns what POP3 shows to a user at a node: the unique-ids by message, in its order,
// or the refusal.
func (c *cluster) poll(f *processes, user int) (uidls string, err error) {
	v, err := f.popSession(user)
	if err == nil {
		err = v.wants("QUIT", "+OK")
	}
	if v != nil {
		_ = v.Close()
		uidls = v.uidls
	}
	return uidls, err
}

// A shownTo is what was shown to each user. What was shown once is shown always.
type shownTo struct {
	mu    sync.Mutex
	uidls map[int]string
	polls int
}

// add compares what is shown with what was shown before: messages are added at the end.
func (s *shownTo) add(t *testing.T, node int, user int, uidls string) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.polls++
	before := s.uidls[user]
	if !strings.HasPrefix(uidls, before) && !strings.HasPrefix(before, uidls) {
		t.Errorf("node %d shows u%d\n%s\nand before it was\n%s", node, user, uidls, before)
	}
	if len(uidls) > len(before) {
		s.uidls[user] = uidls
	}
}

// Criterion: Two Posterns with the record in PostgreSQL, polled in turn while either of them or PostgreSQL is killed, also both in the same second, show every unique id as it was first shown, and keep every import that was confirmed; other refusals than [SYS/TEMP] there are none.
func TestTwoPosternsShowTheSameUniqueIDs(t *testing.T) {
	t.Parallel()
	pg := proxytest.StartPostgres(t)
	const users, rounds = 50, 6
	c := newCluster(t, users+rounds)
	record := fmt.Sprintf("state: {path: state, record: {postgres: {url: %q, password_file: %q, ca: %q}}}\n", pg.URL(), pg.PasswordFile, pg.CA)
	a, b := c.prepare(t, "state: {path: state}\n"), c.prepare(t, record)
	shown := &shownTo{uidls: map[int]string{}}

	// A alone, at first, with a record that has names which no format computes.
	a.serve(t)
	var lines strings.Builder
	for user := range users / 2 {
		lines.WriteString(named(user))
	}
	a.wantImported(t, lines.String())
	for user := range users {
		uidls, err := c.poll(a, user)
		if err != nil {
			t.Fatal(err)
		}
		if shown.add(t, 0, user, uidls); user < users/2 && !strings.HasPrefix(uidls, fmt.Sprintf("1 old-%d-1\r\n", user)) {
			t.Fatalf("u%d: %s", user, uidls)
		}
	}
	a.halt(t)
	a.configure(t, "state: {path: state}\n", record)
	a.wantSaid(t, "the record is in PostgreSQL", "state", "migrate", "--to", "postgres")
	a.wantSaid(t, "the record is in PostgreSQL", "state", "migrate", "--to", "postgres") // again: nothing is left to do
	a.serve(t)
	b.serve(t)
	var nodes [2]sync.RWMutex // locked while a node is down
	stop := make(chan struct{})
	var polling sync.WaitGroup
	for worker := range 4 {
		polling.Go(func() {
			r := rand.New(rand.NewPCG(1, uint64(worker)))
			for {
				select {
				case <-stop:
					return
				default:
				}
				node, user := r.IntN(2), r.IntN(users)
				if !nodes[node].TryRLock() {
					continue
				}
				begun := time.Now()
				f := c.nodes[node]
				uidls, err := c.poll(f, user)
				nodes[node].RUnlock()
				switch {
				case err == nil:
					shown.add(t, node, user, uidls)
				case strings.Contains(err.Error(), "-ERR") && !strings.Contains(err.Error(), "-ERR [SYS/TEMP]"):
					t.Errorf("node %d, u%d: %v", node, user, err)
				}
				if took := time.Since(begun); took > 3*time.Second {
					t.Errorf("node %d, u%d was answered after %v", node, user, took)
				}
				if r.IntN(10) == 0 {
					c.deliver(t, user, fmt.Sprint("more ", r.Int32()))
				}
			}
		})
	}
	fall := func(node int) func() { // kill it; the result starts it again
		c.nodes[node].kill()
		nodes[node].Lock()
		return func() {
			c.nodes[node].serve(t)
			nodes[node].Unlock()
		}
	}
	imported := map[int]bool{}
	for round := range rounds {
		time.Sleep(500 * time.Millisecond)
		// An import that was confirmed stays, whatever is killed in the same moment.
		user, at, done := users+round, c.nodes[round/3], make(chan bool)
		go func() {
			out, err := at.importing(named(user))
			done <- err == nil && strings.Contains(out, "imported: 1")
		}()
		time.Sleep(time.Duration(rand.IntN(60)+60) * time.Millisecond)
		switch round % 3 {
		case 0:
			rise := fall(round / 3)
			imported[user] = <-done
			rise()
		case 1:
			pg.Kill(t)
			imported[user] = <-done
			pg.Start(t)
		case 2:
			pg.Kill(t)
			rise := fall(round / 3)
			imported[user] = <-done
			pg.Start(t)
			rise()
		}
	}
	time.Sleep(time.Second)
	close(stop)
	polling.Wait()
	for node, f := range c.nodes {
		within(t, 5*time.Second, "the record is back", func() bool { _, err := c.poll(f, 0); return err == nil })
		for user := range users {
			uidls, err := c.poll(f, user)
			if err != nil {
				t.Fatal(err)
			}
			if shown.add(t, node, user, uidls); len(uidls) < len(shown.uidls[user]) {
				t.Errorf("node %d, u%d: messages are missing", node, user)
			}
		}
	}
	confirmed := 0
	for user, sure := range imported {
		first, err := c.poll(a, user)
		if err != nil {
			t.Fatal(err)
		}
		if second, err := c.poll(b, user); err != nil || first != second {
			t.Errorf("u%d is shown\n%s\nand\n%s\n%v", user, first, second, err)
		}
		if sure {
			confirmed++
		}
		if sure && !strings.HasPrefix(first, fmt.Sprintf("1 old-%d-1\r\n", user)) {
			t.Errorf("u%d: an import that was confirmed is lost: %s", user, first)
		}
	}
	t.Logf("%d of %d imports were confirmed", confirmed, rounds)
	if shown.polls < 200 {
		t.Errorf("only %d polls", shown.polls)
	}
	t.Logf("%d polls", shown.polls)
}
