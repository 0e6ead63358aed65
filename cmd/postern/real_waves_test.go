package main

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"net/textproto"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"postern/metrics/ledger"
	"postern/proxy/proxytest"
)

// A migration moves accounts from an old server to Postern, wave by wave, while their
// clients poll, mail is delivered, and another client expunges mail by IMAP.
//
// The old server is a Dovecot with POP3 and IMAP of one store; the new one has IMAP
// alone. The accounts of the wave "same" stay in the old store, and the bridge reads them
// there; those of the other waves are copied to the new store.
type migration struct {
	dir, config, routes string
	pop3, imap          string // addresses of Postern
	ca                  string
	roots               *x509.CertPool
	old, new            *proxytest.Dovecot
	accounts            []*moving
	pace                time.Duration // of one client, from poll to poll

	postern *postern
	polls   sync.RWMutex // held for reading in each poll
	over    bool         // the old POP3 server is not in the configuration any more
}

// A moving is an account that moves.
type moving struct {
	user
	wave    string
	line    string // of the routes' file, behind the name
	moved   bool   // line was another one before
	habit   string // of its client, as report pop3 calls it
	program bool   // the client is a real one

	// mailbox is held by whoever changes the mailbox, so that nothing is lost between a
	// copy and the switch: deliveries, expunges, and clients that delete.
	mailbox  sync.Mutex
	store    *proxytest.Dovecot
	pop3Only bool // the new store has a copy of the mailbox, and IMAP clients would be sent there
	poll     func() error

	mu        sync.Mutex
	delivered []string        // marks of the messages, in order
	removed   map[string]bool // expunged by IMAP: a client may have come too late
	fetched   map[string]int  // how often a message was downloaded, by its mark
	polled    int             // polls without an error
	failures  map[string]int  // the other ones, by error
	longest   time.Duration   // of a poll
}

// mark is the header by which the test knows a message.
const mark = "X-Mark: "

// markOf returns the mark of a message.
func markOf(raw []byte) string {
	_, rest, _ := bytes.Cut(raw, []byte(mark))
	line, _, _ := bytes.Cut(rest, []byte("\n"))
	return string(bytes.TrimSpace(line))
}

// deliver delivers a message to the store that has the account now.
func (a *moving) deliver(t *testing.T) {
	a.mailbox.Lock()
	defer a.mailbox.Unlock()
	a.mu.Lock()
	id := fmt.Sprintf("%s-%d", a.name, len(a.delivered))
	a.delivered = append(a.delivered, id)
	size := len(a.delivered) * 37 % 5 * 100 // many are of equal size
	a.mu.Unlock()
	a.store.Deliver(t, a.name, fmt.Appendf(nil, "Return-Path: <a@example.org>\nMessage-ID: <%s@example.org>\n%s%s\n\n%s\n", id, mark, id, strings.Repeat("x", size)))
}

// download notes that the client has downloaded a message.
func (a *moving) download(raw []byte) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.fetched[markOf(raw)]++
}

// missing returns how many messages of the first n the client has not downloaded,
// although they were there.
func (a *moving) missing(n int) (missing int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, id := range a.delivered[:n] {
		if a.fetched[id] == 0 && !a.removed[id] {
			missing++
		}
	}
	return missing
}

// downloads returns the number of downloads, and the marks of messages that were
// downloaded more than once or never delivered.
func (a *moving) downloads() (n int, wrong []string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for id, times := range a.fetched {
		if n += times; times > 1 || !slices.Contains(a.delivered, id) {
			wrong = append(wrong, fmt.Sprintf("%q %d times", id, times))
		}
	}
	return n, wrong
}

// visit polls once, and notes what came of it.
func (a *moving) visit(m *migration) {
	m.polls.RLock()
	defer m.polls.RUnlock()
	if a.habit != ledger.HabitLeaves {
		a.mailbox.Lock()
		defer a.mailbox.Unlock()
	}
	begun := time.Now()
	err := a.poll()
	a.mu.Lock()
	defer a.mu.Unlock()
	a.longest = max(a.longest, time.Since(begun))
	if err == nil {
		a.polled++
		return
	}
	a.failures[err.Error()]++
}

// A poller is a client by script. It sends what Thunderbird sends, and keeps to its rule:
// what has an unknown unique id is downloaded, and an id that a listing does not show is
// forgotten at once.
type poller struct {
	m     *migration
	a     *moving
	stays int            // polls for which a message stays on the server; -1: for ever
	known map[string]int // polls that have seen a message, by unique id
}

func (p *poller) poll() error {
	c, err := p.m.dial(p.m.pop3)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	for _, command := range []string{"", "USER " + p.a.name, "PASS " + p.a.password, "STAT", "LIST"} {
		if err := okay(c, command); err != nil {
			return err
		}
	}
	if _, err := c.ReadDotLines(); err != nil {
		return errors.New("LIST: lost")
	}
	if err := okay(c, "UIDL"); err != nil {
		return err
	}
	list, err := c.ReadDotLines()
	if err != nil {
		return errors.New("UIDL: lost")
	}
	shown := make(map[string]int, len(list))
	for _, line := range list {
		n, id, _ := strings.Cut(line, " ")
		seen := p.known[id]
		if seen == 0 {
			err := okay(c, "RETR "+n)
			if err != nil && strings.HasPrefix(err.Error(), "RETR: -ERR") && !strings.Contains(err.Error(), "[") {
				continue // another client has just expunged it
			}
			if err != nil {
				return err
			}
			raw, err := c.ReadDotBytes()
			if err != nil {
				return errors.New("RETR: lost")
			}
			p.a.download(raw)
			p.known[id] = 1 // also if the session breaks now
		}
		shown[id] = seen + 1
		if p.stays >= 0 && seen >= p.stays {
			if err := okay(c, "DELE "+n); err != nil {
				return err
			}
		}
	}
	if err := okay(c, "QUIT"); err != nil {
		return err
	}
	p.known = shown
	return nil
}

// dial connects to Postern.
func (m *migration) dial(address string) (*textproto.Conn, error) {
	d := tls.Dialer{NetDialer: &net.Dialer{Timeout: patience}, Config: &tls.Config{RootCAs: m.roots, ServerName: "localhost"}}
	conn, err := d.Dial("tcp", address)
	if err != nil {
		return nil, errors.New("no connection")
	}
	return textproto.NewConn(conn), conn.SetDeadline(time.Now().Add(2 * patience))
}

// okay sends a command, if there is one, and reads an answer. An error names the command
// and has the answer without what differs from session to session.
func okay(c *textproto.Conn, command string) error {
	verb, _, _ := strings.Cut(command, " ")
	if command != "" {
		if err := c.PrintfLine("%s", command); err != nil {
			return errors.New(verb + ": lost")
		}
	}
	line, err := c.ReadLine()
	if err != nil {
		return errors.New(verb + ": lost")
	}
	if !strings.HasPrefix(line, "+OK") {
		line, _, _ = strings.Cut(line, "(session")
		return errors.New(verb + ": " + line)
	}
	return nil
}

// program makes the client of a a real one, which puts each message into a file of dir/new.
func (m *migration) program(a *moving, dir string, args []string) {
	a.program = true
	a.poll = func() error {
		cmd := exec.Command("timeout", append([]string{"60"}, args...)...)
		cmd.Dir, cmd.Env = dir, []string{"HOME=" + dir, "PATH=/usr/bin:/bin", "LC_ALL=C"}
		err := cmd.Run()
		paths, _ := filepath.Glob(filepath.Join(dir, "new", "*"))
		for _, path := range paths {
			raw, err := os.ReadFile(path)
			if err == nil {
				err = os.Remove(path)
			}
			if err != nil {
				return err
			}
			a.download(raw)
		}
		if status := cmd.ProcessState.ExitCode(); err != nil && (args[0] != "fetchmail" || status != 1) { // 1: there was no mail
			return fmt.Errorf("%s: exit status %d", args[0], status)
		}
		return nil
	}
}

// newMigration starts the servers and a Postern with all accounts at the old server. Seven
// of ten accounts are in the wave "same": of 20 accounts, as many as put the brake on.
func newMigration(t *testing.T, n int) *migration {
	t.Helper()
	m := &migration{dir: t.TempDir(), pop3: proxytest.FreeAddress(t), imap: proxytest.FreeAddress(t), roots: x509.NewCertPool()}
	m.pace = time.Duration(n) * 40 * time.Millisecond
	passwords := map[string]string{}
	for i := range n {
		u := user{name: fmt.Sprintf("w%03d", i), password: newSecret()}
		passwords[u.name] = u.password
		a := &moving{user: u, habit: ledger.HabitLeaves, removed: map[string]bool{}, fetched: map[string]int{}, failures: map[string]int{}}
		a.wave = []string{"same", "same", "same", "first", "second", "same", "same", "same", "first", "same"}[i%10]
		m.accounts = append(m.accounts, a)
	}
	many := quick + "mail_max_userip_connections = 50\nservice imap {\n  process_limit = 1000\n}\nservice imap-login {\n  process_limit = 1000\n}\n"
	m.old = proxytest.StartDovecot(t, proxytest.DovecotOptions{
		Users: passwords, POP3: true, Config: many + "service pop3 {\n  process_limit = 1000\n}\nservice pop3-login {\n  process_limit = 1000\n}\n",
	})
	m.new = proxytest.StartDovecot(t, proxytest.DovecotOptions{Users: passwords, Config: many})

	cert, key, ca := proxytest.CertFiles(t)
	m.ca = ca
	pem, err := os.ReadFile(ca)
	must(t, err)
	m.roots.AppendCertsFromPEM(pem)
	m.routes = filepath.Join(m.dir, "accounts")
	m.config = file(t, m.dir, "postern.yaml", fmt.Sprintf(`
hostname: mail.example.org
listeners:
  - {protocol: imap, address: %q}
  - {protocol: pop3, address: %q}
tls: {certificates: [{cert: %q, key: %q}]}
backends:
  old:
    imap: {address: %q, ca: %[6]q, server_name: localhost}
    pop3: {address: %[7]q, ca: %[6]q, server_name: localhost}
  new:
    imap: {address: %[8]q, ca: %[9]q, server_name: localhost}
routes:
  - {file: %[10]q, backend: new}
  - {backend: new}
pop3: {old_server: old, learn_from: old, shadow: {per_second: 50}}
state: {path: %[11]q}
trusted_networks: [127.0.0.0/8]
metrics: {address: "127.0.0.1:0"}
log: {format: json}
`, m.imap, m.pop3, cert, key, m.old.IMAPS, m.old.CA, m.old.POP3S, m.new.IMAPS, m.new.CA, m.routes, filepath.Join(m.dir, "state")))

	for i, a := range m.accounts {
		a.store, a.line = m.old, "old pop3=passthrough"
		p := &poller{m: m, a: a, stays: -1, known: map[string]int{}}
		a.poll = p.poll
		switch i {
		case 0, 3:
			dir := t.TempDir()
			m.program(a, dir, fetchmail(t, dir, m.pop3, m.ca, a.user, "keep"))
		case 1, 4:
			dir := t.TempDir()
			m.program(a, dir, append(mpop(t, dir, m.pop3, m.ca, a.user, "user"), "--quiet", "--keep=on"))
		case 5, 8:
			a.habit, p.stays = ledger.HabitDeletes, 0
		case 6, 13, 14:
			a.habit, p.stays = ledger.HabitLater, 1
		}
		for range 5 {
			a.deliver(t)
		}
	}
	m.writeRoutes(t)
	m.start(t)
	return m
}

// start starts Postern.
func (m *migration) start(t *testing.T) {
	t.Helper()
	m.postern = newPostern(t.TempDir(), m.ca)
	m.postern.start(t, m.config)
	m.postern.listens(t, 2)
}

// reroute changes the lines of a wave in the routes' file.
func (m *migration) reroute(t *testing.T, wave, line string) {
	t.Helper()
	for _, a := range m.of(wave) {
		a.line, a.moved = line, true
	}
	m.writeRoutes(t)
	m.command(t, "reload")
}

func (m *migration) writeRoutes(t *testing.T) {
	t.Helper()
	var b strings.Builder
	for _, a := range m.accounts {
		fmt.Fprintf(&b, "%s  %s\n", a.name, a.line)
	}
	must(t, os.WriteFile(m.routes+".new", []byte(b.String()), 0o600))
	must(t, os.Rename(m.routes+".new", m.routes))
}

// of returns the accounts of a wave.
func (m *migration) of(wave string) (all []*moving) {
	for _, a := range m.accounts {
		if a.wave == wave {
			all = append(all, a)
		}
	}
	return all
}

// move copies the mailboxes of a wave to another store and sends their mail and their
// clients there.
func (m *migration) move(t *testing.T, wave string, to *proxytest.Dovecot, line string) {
	t.Helper()
	accounts := m.of(wave)
	for _, a := range accounts {
		a.mailbox.Lock()
		if a.store != to {
			synchronise(t, a.name, a.store, to)
		}
	}
	m.reroute(t, wave, line)
	for _, a := range accounts {
		a.store, a.pop3Only = to, false
		a.mailbox.Unlock()
	}
}

// shadow copies the mailboxes of a wave to the new store, where the bridge compares them
// with what the old server shows. Mail is delivered to the old one, where IMAP clients do
// not come any more.
func (m *migration) shadow(t *testing.T, wave string) {
	t.Helper()
	for _, a := range m.of(wave) {
		a.mailbox.Lock()
		synchronise(t, a.name, a.store, m.new)
		a.pop3Only = true
		a.mailbox.Unlock()
	}
	m.reroute(t, wave, "new pop3=shadow")
}

// wantCompared waits until all accounts of some waves have been compared, and are clean. Of
// many accounts headers may still be wanted: the machine has too much to do. A client that
// deletes mail at the old server makes a difference to a copy.
func (m *migration) wantCompared(t *testing.T, limit time.Duration, waves ...string) {
	t.Helper()
	const line = "old server compared with INBOX"
	differs := map[string]bool{}
	within(t, limit, "all are compared", func() bool {
		time.Sleep(m.pace / 4) // to read the log takes time
		compared := map[string]bool{}
		for _, l := range m.postern.logged(t, line+": clients would notice the difference") {
			differs[l.text("account")] = true
		}
		for _, l := range m.postern.logged(t, line) {
			if l.text("result") == "clean" || len(m.accounts) >= 100 {
				compared[l.text("account")] = true
			}
		}
		for _, wave := range waves {
			if slices.ContainsFunc(m.of(wave), func(a *moving) bool { return !compared[a.name] && !differs[a.name] }) {
				return false
			}
		}
		return true
	})
	for _, a := range m.accounts {
		if differs[a.name] && (!a.pop3Only || a.habit == ledger.HabitLeaves) {
			t.Errorf("shadow finds a difference for %s (wave %s, %s)", a.name, a.wave, a.habit)
		}
	}
}

// synchronise makes the mailbox in one store that of the other, as a program does that
// speaks IMAP and keeps dates: what is missing is added, in another order, and what has
// gone is removed.
func synchronise(t *testing.T, name string, from, to *proxytest.Dovecot) {
	t.Helper()
	want, have := messagesOf(t, from, name), messagesOf(t, to, name)
	for id, m := range have {
		if _, ok := want[id]; !ok {
			must(t, os.Remove(m.path))
		}
	}
	for id, m := range want { // in the order of a map: any
		if _, ok := have[id]; !ok {
			must(t, os.Chtimes(to.Deliver(t, name, m.raw), m.date, m.date))
		}
	}
}

// A storedMessage is a file in a maildir.
type storedMessage struct {
	path string
	raw  []byte
	date time.Time // INTERNALDATE
}

// messagesOf returns the messages in a mailbox by their marks. Servers rename files
// meanwhile.
func messagesOf(t *testing.T, d *proxytest.Dovecot, name string) map[string]storedMessage {
	t.Helper()
	for {
		all, err := map[string]storedMessage{}, error(nil)
		for _, path := range append(glob(t, filepath.Join(d.Store, name, "Maildir", "cur", "*")), glob(t, filepath.Join(d.Store, name, "Maildir", "new", "*"))...) {
			var f os.FileInfo
			if f, err = os.Stat(path); err != nil {
				break
			}
			var raw []byte
			if raw, err = os.ReadFile(path); err != nil {
				break
			}
			all[markOf(raw)] = storedMessage{path, raw, f.ModTime()}
		}
		if err == nil {
			return all
		}
		if !os.IsNotExist(err) {
			t.Fatal(err)
		}
	}
}

// begin lets all clients poll, mail come, and another client expunge, until the end of the
// test.
func (m *migration) begin(t *testing.T) {
	done := make(chan struct{})
	var workers sync.WaitGroup
	t.Cleanup(func() {
		close(done)
		workers.Wait()
	})
	repeat := func(every time.Duration, work func()) {
		workers.Go(func() {
			for {
				select {
				case <-done:
					return
				case <-time.After(every/2 + rand.N(every)):
					work()
				}
			}
		})
	}
	for _, a := range m.accounts {
		repeat(m.pace, func() { a.visit(m) })
	}
	one := func() *moving { return m.accounts[rand.IntN(len(m.accounts))] }
	repeat(100*time.Millisecond, func() { one().deliver(t) })
	repeat(500*time.Millisecond, func() { m.expunge(one()) })
}

// expunge expunges one of the messages of an account by IMAP, through Postern.
func (m *migration) expunge(a *moving) {
	a.mailbox.Lock()
	defer a.mailbox.Unlock()
	if a.pop3Only {
		return
	}
	a.mu.Lock()
	id := a.delivered[rand.IntN(len(a.delivered))]
	a.removed[id] = true // whatever becomes of it now
	a.mu.Unlock()
	c, err := m.dial(m.imap)
	if err != nil {
		return // Postern is away
	}
	defer func() { _ = c.Close() }()
	found := ""
	for i, command := range []string{
		"LOGIN " + a.name + " " + a.password, "SELECT INBOX", "UID SEARCH HEADER X-Mark " + id, "", "", "LOGOUT",
	} {
		if i == 3 || i == 4 {
			if found == "" {
				continue
			}
			command = map[int]string{3: "UID STORE " + found + ` +FLAGS.SILENT (\Deleted)`, 4: "UID EXPUNGE " + found}[i]
		}
		tag := "a" + strconv.Itoa(i)
		if c.PrintfLine("%s %s", tag, command) != nil {
			return
		}
		for {
			line, err := c.ReadLine()
			if err != nil || strings.HasPrefix(line, tag+" NO") || strings.HasPrefix(line, "* BYE") {
				return // a server is away
			}
			if uids, ok := strings.CutPrefix(line, "* SEARCH "); ok { // "w1-2" is found in "w1-21", too
				found, _, _ = strings.Cut(uids, " ")
				if strings.Contains(uids, " ") {
					found = ""
				}
			}
			if strings.HasPrefix(line, tag+" ") {
				break
			}
		}
	}
}

// settle waits until each client has polled twice from now on, and has downloaded what is
// there. No message may have been downloaded twice. settle returns how many polls were
// refused temporarily since it was called before.
func (m *migration) settle(t *testing.T, step string, limit time.Duration) (refused int) {
	t.Helper()
	begun := time.Now()
	polled, delivered := make([]int, len(m.accounts)), make([]int, len(m.accounts))
	for i, a := range m.accounts {
		a.mu.Lock()
		polled[i], delivered[i] = a.polled, len(a.delivered)
		a.mu.Unlock()
	}
	for i, a := range m.accounts {
		settled := func() bool {
			a.mu.Lock()
			polls := a.polled - polled[i]
			a.mu.Unlock()
			return polls >= 2 && a.missing(delivered[i]) == 0
		}
		for ; !settled(); time.Sleep(20 * time.Millisecond) {
			if time.Since(begun) > limit {
				t.Errorf("%s: after %v %s (wave %s, %s) misses %d messages", step, limit, a.name, a.wave, a.habit, a.missing(delivered[i]))
				break
			}
		}
	}
	downloads, failures := 0, map[string]int{}
	longest, of := time.Duration(0), ""
	for _, a := range m.accounts {
		n, wrong := a.downloads()
		downloads += n
		for _, w := range wrong {
			t.Errorf("%s: %s (wave %s, %s) has downloaded %s", step, a.name, a.wave, a.habit, w)
		}
		a.mu.Lock()
		if a.longest > longest {
			longest, of = a.longest, a.name
		}
		a.longest = 0
		for text, n := range a.failures {
			failures[text] += n
			if strings.Contains(text, "[SYS/TEMP]") {
				refused += n
			}
		}
		clear(a.failures)
		a.mu.Unlock()
	}
	t.Logf("%s: %d messages downloaded; longest poll %v, of %s; refused polls and other errors: %v; %v", step, downloads,
		longest.Round(time.Millisecond), of, failures, time.Since(begun).Round(10*time.Millisecond))
	if t.Failed() {
		t.FailNow()
	}
	return refused
}

// judge adds to wrong what postern report pop3 --ready says and is not so. An account that
// the bridge serves does not stand against switching the old server off. One that has not
// moved yet does, unless it keeps no mail there.
func (m *migration) judge(t *testing.T, wrong map[string]string) {
	t.Helper()
	args := []string{"postern", "report", "pop3", "--ready", "--days", "0", "--all", "--json", "--config", m.config}
	const safe, notSafe = 0, int(notReady) // exit statuses
	status := notSafe
	if m.over {
		status = safe
	}
	var s statement
	if err := json.Unmarshal([]byte(run(t, m.dir, nil, args, status)), &s); err != nil {
		t.Fatal(err)
	}
	against, bridged := map[string]string{}, 0
	for _, a := range s.Against {
		against[a.Account] = a.Reason
	}
	for _, a := range m.accounts {
		why := against[a.name]
		switch {
		case strings.HasSuffix(a.line, "pop3=bridge"):
			if bridged++; why != "" {
				wrong[a.name] = "stands against it: " + why
			}
		case why == "" && !a.moved && a.habit != ledger.HabitDeletes:
			wrong[a.name] = "does not stand against it"
		}
	}
	if s.Ready != m.over || s.Active != len(m.accounts) || s.Classes[ledger.Bridged] != bridged {
		wrong["all"] = fmt.Sprintf("ready %v, of %d accounts %v, want %d bridged; reasons %v", s.Ready, s.Active, s.Classes, bridged, s.Reasons)
	}
}

// end removes the old POP3 server from the configuration.
func (m *migration) end(t *testing.T) {
	t.Helper()
	config := regexp.MustCompile(`(?m)^( {4})?pop3: .*\n`).ReplaceAllString(content(t, m.config), "")
	must(t, os.WriteFile(m.config, []byte(config), 0o600))
	m.command(t, "reload")
	m.over = true
}

// wantReport compares what postern report pop3 says with the truth, while no client polls.
func (m *migration) wantReport(t *testing.T, step string) {
	t.Helper()
	m.polls.Lock()
	defer m.polls.Unlock()
	wrong := map[string]string{}
	right := func() bool {
		clear(wrong)
		entries := map[string]usage{}
		d := json.NewDecoder(strings.NewReader(run(t, m.dir, nil, []string{"postern", "report", "pop3", "--json", "--config", m.config})))
		for {
			var u usage
			if err := d.Decode(&u); err == io.EOF {
				break
			} else if err != nil {
				t.Fatal(err)
			}
			entries[u.Account] = u
		}
		for _, a := range m.accounts {
			u, ok := entries[a.name]
			n, _ := a.downloads()
			switch {
			case !ok || u.Sessions == nil:
				wrong[a.name] = "not there"
			case u.Sessions.Habit != a.habit:
				wrong[a.name] = fmt.Sprintf("habit %s, want %s", u.Sessions.Habit, a.habit)
			case u.Sessions.Messages < int64(n), u.Sessions.Messages > int64(n) && !a.program: // mpop drops what comes behind a message that has just been expunged
				wrong[a.name] = fmt.Sprintf("%d messages, want %d", u.Sessions.Messages, n)
			}
		}
		if len(entries) != len(m.accounts) {
			wrong["all"] = fmt.Sprintf("%d accounts, want %d", len(entries), len(m.accounts))
		}
		m.judge(t, wrong)
		return len(wrong) == 0
	}
	for deadline := time.Now().Add(patience / 3); !right() && time.Now().Before(deadline); { // sessions end a moment after QUIT
		time.Sleep(100 * time.Millisecond)
	}
	for _, name := range slices.Sorted(maps.Keys(wrong)) {
		t.Errorf("%s: report pop3 of %s: %s", step, name, wrong[name])
	}
}

// command runs a command of postern and returns what it prints.
func (m *migration) command(t *testing.T, args ...string) string {
	t.Helper()
	return run(t, m.dir, nil, append(append([]string{"postern"}, args...), "--config", m.config))
}

// brake reports whether the brake of a backend is on.
func (m *migration) brake(t *testing.T, backend string) bool {
	t.Helper()
	values, _ := m.postern.scrape(t)
	return values[`postern_pop3_brake{backend="`+backend+`"}`] == "1"
}

// Criterion: While accounts move in waves from an old POP3 server to Postern - passed through, bridged in the same store, copied to another one, back and forth - with Postern and both servers restarted in between, clients that poll all the time (fetchmail, mpop, scripts) download each message once, and miss none; report pop3 and report pop3 --ready are right at each step; a wave that was announced does not put the brake on, and one that was not does, at the price of refused polls alone.
func TestMigrationInWaves(t *testing.T) {
	proxytest.Need(t, "fetchmail", "mpop", "dovecot", "/usr/lib/dovecot/imap", "/usr/lib/dovecot/pop3")
	if os.Getuid() != 0 && os.Getenv("POSTERN_ALL") != "1" {
		t.Skip("needs root: the mail servers change their user")
	}
	t.Parallel()
	n := 20
	if more, err := strconv.Atoi(os.Getenv("POSTERN_WAVES")); err == nil {
		n = more
	}
	m := newMigration(t, n)
	limit := 3*patience + 10*m.pace
	m.begin(t)
	step := func(name string) (refused int) {
		t.Helper()
		refused = m.settle(t, name, limit)
		m.wantReport(t, name)
		return refused
	}
	step("passed through")

	m.postern.stop(t)
	m.start(t)
	m.old.Stop(t)
	m.old.Start(t)
	step("passed through after restarts")

	m.reroute(t, "same", "old pop3=shadow")
	m.shadow(t, "second")
	step("in the shadow")
	m.wantCompared(t, limit, "same", "second")

	m.reroute(t, "same", "old pop3=bridge")
	step("bridged in the same store")
	m.move(t, "first", m.new, "new pop3=bridge")
	if n >= 100 { // while many are learnt; each of those that fail is tried again after 5 minutes
		m.old.Stop(t)
		m.old.Start(t)
		limit += 6 * time.Minute
	}
	step("the first wave is copied")

	m.postern.stop(t)
	m.start(t)
	m.new.Stop(t)
	m.new.Start(t)
	m.old.Stop(t)
	m.old.Start(t)
	step("bridged after restarts")

	m.reroute(t, "same", "old pop3=passthrough")
	step("the same store again by the old server")
	m.reroute(t, "same", "old pop3=bridge")
	m.move(t, "second", m.new, "new pop3=bridge")
	m.postern.stop(t) // while unique ids are learnt
	m.start(t)
	step("bridged again, and the second wave is copied")

	m.command(t, "uidl", "accept", "new", "--for", "1h")
	m.move(t, "same", m.new, "new pop3=bridge")
	if refused := step("all are copied"); refused > 0 || m.brake(t, "new") {
		t.Errorf("a wave that was announced: %d polls were refused, brake %v", refused, m.brake(t, "new"))
	}

	m.move(t, "same", m.old, "old pop3=bridge") // and nobody has announced it
	within(t, limit, "the brake is on", func() bool { return m.brake(t, "old") })
	time.Sleep(2 * m.pace)
	m.command(t, "uidl", "accept", "old")
	if refused := step("copied back, and accepted late"); refused == 0 || m.brake(t, "old") {
		t.Errorf("a wave that was not announced, and then accepted: %d polls were refused, brake %v", refused, m.brake(t, "old"))
	}
	m.end(t)
	step("without the old POP3 server")
}

// Criterion: An account whose unique ids are learnt, and that goes back to the old server, downloads again what came since, and nothing else; before it moves again, `uidl forget` lets Postern ask the old server once more, and nothing is downloaded twice.
func TestGoingBackAndForthWithLearntUIDLs(t *testing.T) {
	for name, test := range map[string]struct {
		forget      bool
		again, more int // messages that are downloaded a second time: back at the old server, and at Postern after that
	}{
		"forgotten":     {forget: true, again: 2},
		"not forgotten": {again: 2, more: 2},
	} {
		t.Run(name, func(t *testing.T) {
			proxytest.Need(t, "dovecot", "/usr/lib/dovecot/imap", "/usr/lib/dovecot/pop3")
			if os.Getuid() != 0 && os.Getenv("POSTERN_ALL") != "1" {
				t.Skip("needs root: the mail servers change their user")
			}
			t.Parallel()
			u := user{name: "alice", password: newSecret()}
			d := proxytest.StartDovecot(t, proxytest.DovecotOptions{Users: map[string]string{u.name: u.password}, POP3: true, Config: quick + "pop3_uidl_format = %g\n"})
			dir := t.TempDir()
			routes := file(t, dir, "accounts", u.name+" pop3=passthrough\n")
			server := func(address string) string {
				return fmt.Sprintf("{address: %q, ca: %q, server_name: localhost}", address, d.CA)
			}
			p := startPostern(t, behind{imap: server(d.IMAPS), pop3: server(d.POP3S)}, fmt.Sprintf(
				"routes: [{file: %q, backend: main}, {backend: main}]\npop3: {learn_from: main}\nstate: {path: %q}\n", routes, filepath.Join(dir, "state")))
			front := newSwitchboard(t)
			front.to(func() (net.Conn, error) { return dialTLS(t, p.pop3, p.ca), nil })
			client := keepers(t, front.addr, u)[3]
			delivered := 0
			deliver := func(n int) {
				for range n {
					delivered++
					d.Deliver(t, u.name, fmt.Appendf(nil, "Message-ID: <%d@example.org>\nSubject: %d\n\nx\n", delivered, delivered))
				}
			}
			again := 0
			want := func(when string, more int) {
				t.Helper()
				again += more
				client.poll(t)
				if got := client.poll(t) - delivered; got != again {
					t.Errorf("%s: %d messages were downloaded twice, want %d", when, got, again)
				}
			}
			command := func(args ...string) string {
				return run(t, dir, nil, append(append([]string{"postern"}, args...), "--config", filepath.Join(filepath.Dir(p.log), "postern.yaml")))
			}
			route := func(mode string) {
				must(t, os.WriteFile(routes, []byte(u.name+" pop3="+mode+"\n"), 0o600))
				command("reload")
			}
			deliver(3)
			want("at the old server", 0)
			route("bridge")
			want("bridged", 0)
			deliver(2)
			want("with new mail", 0)
			route("passthrough")
			want("back", test.again)
			deliver(1)
			want("with new mail at the old server", 0)
			if test.forget {
				command("uidl", "forget", "--yes", u.name)
			}
			route("bridge")
			want("bridged again", test.more)
		})
	}
}
