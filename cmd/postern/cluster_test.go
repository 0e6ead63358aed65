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
	testTwoPosterns(t, 50, 6)
}

// testTwoPosterns polls users at two nodes while something is killed in each round.
func testTwoPosterns(t *testing.T, users, rounds int) {
	t.Helper()
	pg := proxytest.StartPostgres(t)
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
				if took := time.Since(begun); took > 5*time.Second {
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
		user, at, done := users+round, c.nodes[round/3%2], make(chan bool)
		go func() {
			out, err := at.importing(named(user))
			done <- err == nil && strings.Contains(out, "imported: 1")
		}()
		time.Sleep(time.Duration(rand.IntN(60)+60) * time.Millisecond)
		switch round % 3 {
		case 0:
			rise := fall(round / 3 % 2)
			imported[user] = <-done
			rise()
		case 1:
			pg.Kill(t)
			imported[user] = <-done
			pg.Start(t)
		case 2:
			pg.Kill(t)
			rise := fall(round / 3 % 2)
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

// stateKey makes a state.key_file.
func stateKey(t *testing.T) string {
	t.Helper()
	return file(t, t.TempDir(), "state.key", base64Of(strings.Repeat("k", 31)+"e")+"\n")
}

// computed reports whether no message has a name of an old server.
func computed(uidls string) bool { return !strings.Contains(uidls, "old-") }

// wantRefused wants that a node refuses POP3 to users temporarily, each within a second of
// PASS, and serves IMAP.
func (c *cluster) wantRefused(t *testing.T, f *processes, users ...int) {
	t.Helper()
	for _, user := range users {
		begun := time.Now()
		if _, err := c.poll(f, user); err == nil || !strings.Contains(err.Error(), "-ERR [SYS/TEMP]") {
			t.Errorf("u%d: %v, want [SYS/TEMP]", user, err)
		}
		// With the TLS handshake and the login at the server, beside other tests. That the record
		// itself keeps nobody waiting for a second is tested in package state.
		if took := time.Since(begun); took > 3*time.Second {
			t.Errorf("u%d was refused after %v", user, took)
		}
		v, err := f.imapSession(user)
		if err != nil {
			t.Errorf("IMAP of u%d: %v", user, err)
			continue
		}
		_ = v.Close()
	}
}

// Criterion: A Postern that asks the owner of the record shows the same unique ids as the owner; while the owner is down its POP3 clients get [SYS/TEMP] within a second and IMAP goes on; within 5 seconds of the owner's return, and through an upgrade of the owner, POP3 is served again.
// Criterion: postern state migrate adds to a shared record the accounts that it does not have, names those that differ and stay, and what record.db had is not served any more.
func TestAPosternAsksTheOwnerOfTheRecord(t *testing.T) {
	t.Parallel()
	const users = 6
	c := newCluster(t, users)
	key, address := stateKey(t), proxytest.FreeAddress(t)
	alone := fmt.Sprintf("state: {path: state, key_file: %q}\n", key)
	asks := fmt.Sprintf("state: {path: state, key_file: %q, record: {owner: %q}}\n", key, address)
	owner, b := c.prepare(t, alone), c.prepare(t, alone)

	// Both were alone before: u0 has other names at each, u1 is known to b alone, u2 to the owner.
	owner.serve(t)
	b.serve(t)
	owner.wantImported(t, named(0)+named(2))
	b.wantImported(t, strings.ReplaceAll(named(0), "old-", "older-")+named(1))
	for _, f := range c.nodes {
		if _, err := c.poll(f, 0); err != nil {
			t.Fatal(err)
		}
	}
	served, err := c.poll(b, 1)
	if err != nil || computed(served) {
		t.Fatal(served, err)
	}
	b.halt(t)
	b.configure(t, alone, asks)
	owner.halt(t)
	owner.configure(t, alone, alone+fmt.Sprintf("cluster: {serve_record: %q}\n", address))
	owner.serve(t)

	b.serve(t) // not migrated: its own record is not forgotten
	c.wantRefused(t, b, 1)
	within(t, 5*time.Second, "status names the remedy", func() bool {
		out, _ := b.say("status")
		return strings.Contains(out, "AWAY") && strings.Contains(strings.Join(strings.Fields(out), " "), "run postern state migrate")
	})
	if out, err := b.say("state", "migrate", "--to", "owner"); err == nil || !strings.Contains(out, "stop it first") {
		t.Errorf("migrated while it runs: %v %s", err, out)
	}
	b.halt(t)
	out := b.wantSaid(t, "the record is in the owner at "+address, "state", "migrate", "--to", "owner")
	if !strings.Contains(out, "is another one, and stays: 1;") || !strings.Contains(out, ": u0\n") {
		t.Errorf("migrate said %s", out)
	}
	b.serve(t)
	for user := range users {
		first, err := c.poll(owner, user)
		if err != nil {
			t.Fatal(err)
		}
		if second, err := c.poll(b, user); err != nil || first != second {
			t.Errorf("u%d is shown\n%s\nand\n%s\n%v", user, first, second, err)
		}
		if computed(first) != (user > 2) || strings.Contains(first, "older-") {
			t.Errorf("u%d is shown %s", user, first)
		}
	}

	// What one removes is not lost for the other, which has the mailbox in its cache.
	owner.wantSaid(t, "forgotten: 1", "uidl", "forget", "u2", "--yes")
	if uidls, err := c.poll(b, 2); err != nil || !computed(uidls) {
		t.Errorf("after it was forgotten at the owner: %s %v", uidls, err)
	}

	owner.kill()
	c.wantRefused(t, b, 0, 3, 4)
	owner.serve(t)
	begun := time.Now()
	within(t, 5*time.Second, "b serves again", func() bool { _, err := c.poll(b, 0); return err == nil })
	t.Logf("served %v after the owner's return", time.Since(begun).Round(time.Millisecond))

	// An upgrade hands the address over as well. b may refuse once meanwhile.
	owner.wantSaid(t, "", "upgrade")
	within(t, 5*time.Second, "b serves after the upgrade", func() bool { _, err := c.poll(b, 3); return err == nil })
	defer owner.endSuccessors(t)

	// Without state.record the node does not start with what it had before.
	b.halt(t)
	b.configure(t, asks, alone)
	if out, err := b.say("run"); err == nil || !strings.Contains(out, "was moved to the owner at "+address) {
		t.Errorf("run: %v %s", err, out)
	}
}

// Criterion: A PostgreSQL that is frozen stops POP3 alone: each POP3 login is refused with [SYS/TEMP] within a second, IMAP goes on, postern status says why, and 5 seconds after its return POP3 is served again.
func TestAFrozenRecordStopsPOP3Alone(t *testing.T) {
	t.Parallel()
	pg := proxytest.StartPostgres(t)
	const users = 4
	c := newCluster(t, users)
	f := c.prepare(t, fmt.Sprintf("state: {path: state, record: {postgres: {url: %q, password_file: %q, ca: %q}}}\n", pg.URL(), pg.PasswordFile, pg.CA))

	// Without a table nothing is believed to be absent.
	f.serve(t)
	c.wantRefused(t, f, 0)
	f.halt(t)
	f.wantSaid(t, "the record is in PostgreSQL", "state", "migrate", "--to", "postgres")
	f.wantSaid(t, "synchronous_standby_names", "check")
	f.serve(t)
	var shown []string
	for user := range users {
		uidls, err := c.poll(f, user)
		if err != nil {
			t.Fatal(err)
		}
		shown = append(shown, uidls)
	}
	pg.Freeze(t)
	c.wantRefused(t, f, 0, 1, 2, 3)
	if out, _ := f.say("status"); !strings.Contains(out, "record in PostgreSQL, AWAY") || !strings.Contains(out, "no answer within") {
		t.Errorf("status says %s", out)
	}
	pg.Thaw(t)
	begun := time.Now()
	within(t, 5*time.Second, "POP3 is served again", func() bool { _, err := c.poll(f, 0); return err == nil })
	t.Logf("served %v after the return", time.Since(begun).Round(time.Millisecond))
	for user := range users {
		if uidls, err := c.poll(f, user); err != nil || uidls != shown[user] {
			t.Errorf("u%d: %s %v, before %s", user, uidls, err, shown[user])
		}
	}

	// Another database at the same place is not believed. The right one is, without a restart.
	name := pg.SQL(t, "postern", "SELECT encode(value, 'escape') FROM postern_record WHERE bucket = 'meta' AND key = 'record'")
	pg.SQL(t, "postern", "UPDATE postern_record SET value = 'another' WHERE bucket = 'meta' AND key = 'record'")
	f.halt(t)
	f.serve(t)
	c.wantRefused(t, f, 0)
	if out, _ := f.say("status"); !strings.Contains(strings.Join(strings.Fields(out), " "), "another record than the one that this node has used") {
		t.Errorf("status says %s", out)
	}
	pg.SQL(t, "postern", fmt.Sprintf("UPDATE postern_record SET value = '%s' WHERE bucket = 'meta' AND key = 'record'", name))
	within(t, 5*time.Second, "the right record is used", func() bool { _, err := c.poll(f, 0); return err == nil })

	// An upgrade: a session of before ends well, and the new process has the record.
	open, err := f.popSession(1)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = open.Close() }()
	f.wantSaid(t, "", "upgrade")
	defer f.endSuccessors(t)
	if err := open.wants("DELE 1", "+OK"); err != nil {
		t.Error(err)
	}
	if err := open.wants("QUIT", "+OK"); err != nil {
		t.Error(err)
	}
	for user := range users {
		uidls, err := c.poll(f, user)
		if want := shown[user]; err != nil || user != 1 && uidls != want || user == 1 && len(uidls) >= len(want) {
			t.Errorf("after the upgrade u%d: %s %v, before %s", user, uidls, err, want)
		}
	}
}

// endSuccessors ends the processes that have replaced f.
func (f *processes) endSuccessors(t *testing.T) {
	t.Helper()
	for _, line := range f.logged(t, "upgraded: the sessions that are left are this process's") {
		if pid, ok := line["successor"].(float64); ok {
			_ = syscall.Kill(int(pid), syscall.SIGKILL)
		}
	}
}

// Criterion: A migration that is interrupted is resumed and ends with the same record on both sides, there and back; a record that was moved away is used by nobody.
func TestAMigrationIsResumedAndCompared(t *testing.T) {
	t.Parallel()
	pg := proxytest.StartPostgres(t)
	const users = 300
	c := newCluster(t, 1)
	alone, record := "state: {path: state}\n", fmt.Sprintf("state: {path: state, record: {postgres: {url: %q, password_file: %q, ca: %q}}}\n", pg.URL(), pg.PasswordFile, pg.CA)
	f := c.prepare(t, alone)
	f.serve(t)
	var lines strings.Builder
	for user := range users {
		lines.WriteString(named(user))
	}
	f.wantImported(t, lines.String())
	before := f.wantSaid(t, "", "uidl", "export", "--all")
	f.halt(t)
	if out, err := f.say("state", "migrate", "--to", "postgres"); err == nil || !strings.Contains(out, "state.record is not set") {
		t.Errorf("%v %s", err, out)
	}
	f.configure(t, alone, record)

	// The database is full after some of the record.
	pg.SQL(t, "postern", `SET ROLE postern; CREATE TABLE postern_record (bucket text NOT NULL, key bytea NOT NULL, version bigint NOT NULL, value bytea NOT NULL, PRIMARY KEY (bucket, key));
		CREATE FUNCTION full_disk() RETURNS trigger AS 'BEGIN IF (SELECT count(*) FROM postern_record) > 450 THEN RAISE ''disk full'' USING ERRCODE = ''53100''; END IF; RETURN NEW; END' LANGUAGE plpgsql;
		CREATE TRIGGER full_disk AFTER INSERT ON postern_record FOR EACH STATEMENT EXECUTE FUNCTION full_disk();`)
	if out, err := f.say("state", "migrate", "--to", "postgres"); err == nil || !strings.Contains(out, "disk full") {
		t.Fatalf("%v %s", err, out)
	}
	f.serve(t) // not complete: refused
	c.wantRefused(t, f, 0)
	f.halt(t)
	pg.SQL(t, "postern", "DROP TRIGGER full_disk ON postern_record")
	if out := f.wantSaid(t, "the record is in PostgreSQL: 900 values", "state", "migrate", "--to", "postgres"); strings.Contains(out, "900 of them") {
		t.Errorf("nothing was left of the first try: %s", out)
	}
	if after := f.wantSaid(t, "", "uidl", "export", "--all"); after != before {
		t.Error("the record in PostgreSQL is another one")
	}
	f.wantSaid(t, "records: 300", "state", "check")
	if out, err := f.say("state", "backup", "-"); err == nil || !strings.Contains(out, "pg_dump") {
		t.Errorf("backup: %v %s", err, out)
	}

	other := c.prepare(t, record) // a node without a record of its own
	other.serve(t)
	if _, err := c.poll(other, 0); err != nil {
		t.Error(err)
	}
	before = f.wantSaid(t, "", "uidl", "export", "--all")
	f.wantSaid(t, "remove state.record", "state", "migrate", "--to", "bbolt")
	c.wantRefused(t, other, 0)
	if out, err := other.say("state", "migrate", "--to", "bbolt"); err == nil {
		t.Errorf("moved away twice: %s", out)
	}
	f.configure(t, record, alone)
	_, before, _ = strings.Cut(before, "\n") // of u0, which was polled, fingerprints may have been recorded meanwhile
	if _, after, _ := strings.Cut(f.wantSaid(t, "", "uidl", "export", "--all"), "\n"); after != before || before == "" {
		t.Error("the record that came back is another one")
	}
	f.serve(t)
	if uidls, err := c.poll(f, 0); err != nil || computed(uidls) {
		t.Errorf("%s %v", uidls, err)
	}
}
