package bridge_test

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"regexp"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"postern/bridge"
	"postern/proxy"
	"postern/proxy/state"
)

// A seed is a life of one account in five polls, ten minutes apart or more: in
// the first three the server misbehaves once or twice, then it is well again.
// What is right is said by an oracle: a POP3 client that keeps its mail on the
// server, deletes some, and compares all that it sees with what is really in
// the mailbox.
//
// Where the bridge may choose, the oracle takes this for right:
//
//   - Any command may be refused for now, with [SYS/TEMP], in a session in
//     which the server has misbehaved, and the session may be cut, but not
//     within what looks like a complete answer.
//   - A listing, once there is one, is complete: it hides no message that was
//     in the mailbox from the begin of the login to the end of the listing,
//     whatever went wrong, except those that this client has deleted.
//   - A message that the server has removed may be shown for the rest of the
//     session, and while a cache is old.
//   - The size in LIST is not looked at: servers guess.
//   - A deletion that QUIT has refused may have been made. One that was made
//     may be refused.
//   - A store that is not mounted looks like a mailbox that was emptied: the
//     listing may be empty, and what the client forgets by it is not the
//     bridge's fault. The names after it are those of before.
//   - After a new UIDVALIDITY a message may have a new unique-id unless it was
//     shown before in a session without a fault that ended with QUIT: its
//     fingerprint may not have been gathered. What POP3 had deleted on a server
//     without UIDPLUS may be shown again then.
//   - A body that came cut twice may be refused for an hour.
//   - A body that is well-formed and shorter than RFC822.SIZE may be passed as it
//     is, and the client takes it for the message. But the message must not go
//     from the server then, and DELE of it may be refused for ever.
type life struct {
	kind   kind
	box    *mailbox
	random *rand.Rand // of the client
	cache  *state.Memory
	record *state.Memory
	back   bridge.Backend

	forgets  bool                              // the client has Thunderbird's rule
	known    map[string]bool                   // unique-ids that the client remembers as downloaded
	got      map[int]int                       // complete downloads, by id
	names    map[int]string                    // unique-ids, by id
	ids      map[string]int                    // and back
	wants    map[int]bool                      // the client has said DELE, and then QUIT
	removed  map[int]bool                      // and QUIT was answered by +OK
	excused  map[int]bool                      // may be downloaded again
	settled  map[int]bool                      // fingerprint was gathered
	cuts     int                               // connections of the client that the bridge has cut
	hour     bool                              // more than an hour since the last fault
	well     bool                              // the server is
	tamper   func(command, line string) string // changes what the client reads; nil: nothing does
	event    string                            // what happens to the whole mailbox in this life
	before   []string                          // faults in earlier polls
	failures []failure
}

// A kind says what is wrong with the server of a life.
type kind uint8

const (
	calm         kind = iota // nothing
	grammar                  // it takes liberties with the grammar
	misbehaviour             // faults
)

// A failure is something that must not be.
type failure struct {
	kind, text string
	after      string // what had gone wrong at the server until then
}

func (f failure) String() string { return f.kind + ": " + f.text + " (after " + f.after + ")" }

func (l *life) fail(kind, format string, args ...any) {
	l.box.mu.Lock()
	defer l.box.mu.Unlock()
	f := failure{kind, fmt.Sprintf(format, args...), l.event + strings.Join(append(slices.Clone(l.before), l.box.fired...), ", ")}
	l.failures = append(l.failures, f)
	l.box.note("!!! %s", f)
}

func (l *life) logf(format string, args ...any) {
	l.box.mu.Lock()
	defer l.box.mu.Unlock()
	l.box.note(format, args...)
}

// note writes a line of the dialogue.
func (b *mailbox) note(format string, args ...any) {
	if b.log != nil {
		fmt.Fprintf(b.log, format+"\n", args...)
	}
}

// newLife returns the life of a seed.
func newLife(seed uint64, k kind, log *strings.Builder) *life {
	r := rand.New(rand.NewPCG(seed, 11))
	b := &mailbox{
		uidValidity: 1_700_000_000, uidNext: 1 + uint32(r.IntN(5)), gone: make(map[int]string), lied: make(map[int]bool),
		broken: make(map[int]int), cut: make(map[int]bool), unreadable: -1, seed: seed, log: log, capabilities: "IMAP4rev1",
	}
	for _, c := range []struct {
		name string
		of   int
	}{{" UIDPLUS", 4}, {" MOVE", 2}, {" ESEARCH", 2}, {" SPECIAL-USE", 2}} {
		if r.IntN(c.of) > 0 {
			b.capabilities += c.name
		}
	}
	b.silent = r.IntN(5) == 0
	b.dumb = r.IntN(2) == 0
	l := &life{
		kind: k, box: b, random: r, cache: new(state.Memory), record: new(state.Memory), forgets: r.IntN(2) == 0,
		known: make(map[string]bool), got: make(map[int]int), names: make(map[int]string), ids: make(map[string]int),
		wants: make(map[int]bool), removed: make(map[int]bool), excused: make(map[int]bool), settled: make(map[int]bool),
	}
	n := 1 + r.IntN(6)
	if r.IntN(40) == 0 { // more than are asked for with one command
		n = 20 + r.IntN(12)
	}
	for range n {
		b.deliver(randomBody(r, len(b.ever)))
		b.uidNext += uint32(r.IntN(2))
	}
	l.back = bridge.Backend{
		Name: "main", Cache: l.cache, Record: l.record, Delete: []bridge.Deletion{bridge.Expunge, bridge.Expunge, bridge.Expunge, bridge.Trash, bridge.Hide, bridge.Isolate, bridge.Keep}[r.IntN(7)],
		KeepUnseen: r.IntN(2) == 0, StableBodies: r.IntN(2) == 0, Estimates: r.IntN(3) == 0,
		LogIn: func(context.Context, *proxy.Login) (net.Conn, string, error) {
			conn := b.dial()
			if conn == nil {
				return nil, "", proxy.NewRefusal(proxy.Unavailable, errors.New("connection refused"))
			}
			return conn, b.capabilities, nil
		},
	}
	b.guesses = l.back.Estimates
	return l
}

// imports gives the account the unique-ids of an old server, of which the
// client has downloaded some. It writes what uidl import reads.
func (l *life) imports() error {
	var named []string
	for _, m := range l.box.mails {
		name := "old-" + strconv.Itoa(m.id*7+1)
		named = append(named, fmt.Sprintf(`{"uid": %d, "uidl": %q}`, m.uid, name))
		l.names[m.id], l.ids[name] = name, m.id
		if l.random.IntN(2) == 0 {
			l.known[name] = true
			l.got[m.id]++
		}
	}
	line := fmt.Sprintf(`{"account": "alice", "record": {"uidvalidity": %d, "eras": [{"from": 1, "format": "dovecot"}], "named": [%s]}}`,
		l.box.uidValidity, strings.Join(named, ", "))
	var recorded bridge.AccountRecord
	if err := json.Unmarshal([]byte(line), &recorded); err != nil {
		return err
	}
	return bridge.Import(context.Background(), l.record, recorded)
}

// live is a life from its begin to its end.
func (l *life) live() {
	r, b := l.random, l.box
	if imported := r.IntN(2) == 0; imported {
		if err := l.imports(); err != nil {
			l.fail("import", "%v", err)
			return
		}
	}
	event := r.IntN(10)
	if l.kind != misbehaviour {
		event = -1
	}
	if l.kind == grammar {
		for range 1 + r.IntN(2) {
			b.liberties = append(b.liberties, liberties[r.IntN(len(liberties))])
		}
	}
	switch event { // one for the whole life
	case 0:
		b.unreadable = r.IntN(len(b.ever))
		b.refuses.size = r.IntN(2) == 0
		b.refuses.how = []string{"NO [SERVERBUG] cannot read the message", "NO cannot read the message", "OK done", "empty"}[r.IntN(4)]
		if b.refuses.size && b.refuses.how == "empty" {
			b.refuses.how = "NO [SERVERBUG] cannot read the message"
		}
	}
	l.event = map[int]string{0: "one cannot be read: ", 1: "store away: ", 2: "store away: ", 3: "moved: ", 4: "cache lost: ", 5: "cache lost: "}[event] + strings.Join(b.liberties, " and ")
	first, away := 1+r.IntN(3), 1+r.IntN(2)
	for poll := range 4 { // the first of them with a server that is well
		if poll == 0 && r.IntN(3) == 0 {
			continue
		}
		time.Sleep(10 * time.Minute)
		b.mu.Lock()
		l.between()
		switch {
		case event == 1 || event == 2: // the store is not mounted for one poll or two
			b.absent = poll >= first && poll < first+away && poll < 4
		case event == 3 && poll == first:
			for _, m := range b.mails {
				if !l.settled[m.id] || l.wants[m.id] {
					l.rename(m.id)
				}
			}
			clear(l.settled)
			b.move()
			b.note("=== moved, UIDVALIDITY is %d", b.uidValidity)
		case event == 4 || event == 5:
			if r.IntN(2) == 0 {
				l.cache = new(state.Memory)
				l.back.Cache = l.cache
				b.note("=== the cache is lost")
			}
		}
		if poll > 0 && l.kind == misbehaviour {
			b.plan = nil
			for range 1 + r.IntN(2) {
				b.plan = append(b.plan, &fault{class: classes[r.IntN(len(classes))], after: r.IntN(3) * r.IntN(2), kind: kinds[r.IntN(len(kinds))]})
			}
		}
		b.mu.Unlock()
		l.poll(fmt.Sprintf("poll %d", poll))
	}
	time.Sleep(10 * time.Minute)
	b.mu.Lock()
	b.plan, b.absent, l.well = nil, false, true
	b.mu.Unlock()
	l.poll("well")
	time.Sleep(2 * time.Hour)
	l.hour = true
	l.poll("well after two hours")
	l.judge()
}

// rename says that a message may have a new unique-id from now on.
func (l *life) rename(id int) {
	l.excused[id] = true
	delete(l.names, id)
	delete(l.removed, id)
}

// between is what happens to the mailbox between two polls.
func (l *life) between() {
	r, b := l.random, l.box
	if b.absent || r.IntN(4) == 0 {
		return
	}
	for range r.IntN(3) {
		b.deliver(randomBody(r, len(b.ever)))
	}
	if len(b.mails) > 0 && r.IntN(3) == 0 {
		doomed := b.mails[r.IntN(len(b.mails))]
		b.remove("IMAP", func(m *mail) bool { return m == doomed && m.id != b.unreadable })
	}
	if len(b.mails) > 0 && r.IntN(4) == 0 {
		m := b.mails[r.IntN(len(b.mails))]
		m.deleted, m.foreign = true, true
	}
}

// judge compares the end with what should have been.
func (l *life) judge() {
	b := l.box
	if b.unknown != "" {
		l.fail("model", "the server does not know %s", b.unknown)
	}
	for _, m := range b.ever {
		who, gone := b.gone[m.id]
		switch {
		case gone && who != "IMAP" && (!l.wants[m.id] || l.got[m.id] == 0):
			l.fail("lost", "message %d was removed by %s, wanted %t, downloaded %d times", m.id, who, l.wants[m.id], l.got[m.id])
		case !gone && (m.marked || m.hidden) && !l.wants[m.id]:
			l.fail("lost", "message %d was marked as deleted, and nobody wanted it", m.id)
		case !gone && l.got[m.id] == 0 && m.id != b.unreadable && !b.cut[m.id]:
			l.fail("missed", "message %d (UID %d) was never downloaded", m.id, m.uid)
		}
	}
}

// poll is one session of the client.
func (l *life) poll(name string) {
	b := l.box
	b.mu.Lock()
	l.before = append(l.before, b.fired...)
	b.fired = nil
	before := slices.Clone(b.mails)
	b.note("=== %s: %d messages, absent %t, planned %s", name, len(before), b.absent, describe(b.plan))
	b.mu.Unlock()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	login := &proxy.Login{Client: proxy.Client{ID: "ID42"}, Account: "alice", Secret: proxy.NewSecret([]byte("secret"))}
	session, err := l.back.Login(ctx, login)
	if err == nil {
		if _, err = session.Open(ctx); err != nil {
			_ = session.Close()
		}
	}
	if err != nil {
		l.logf("pop3 S: login refused: %v", err)
		if reason := proxy.ReasonOf(err); reason != proxy.Unavailable {
			l.fail("code", "login refused by %v: %v", reason, err)
		}
		if !l.disturbed() {
			l.fail("refused without a fault", "login: %v", err)
		}
		return
	}
	near, far := pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		conn := proxy.NewConn(far, login.Client, nil, 0)
		_ = session.Run(ctx, conn)
		_ = session.Close()
		_ = conn.Close()
	}()
	c := &client{life: l, conn: near, in: bufio.NewReader(near), before: before, opened: b.count()}
	c.session()
	_ = near.Close()
	<-done
	if l.undisturbed() && c.quitted {
		for _, id := range c.shown {
			l.settled[id] = true
		}
	}
}

func describe(plan []*fault) string {
	var b strings.Builder
	for _, f := range plan {
		fmt.Fprintf(&b, "[%s at %q after %d] ", f.kind, f.class, f.after)
	}
	return b.String()
}

func (b *mailbox) count() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.mails)
}

// disturbed reports whether a temporary refusal is right.
func (l *life) disturbed() bool {
	l.box.mu.Lock()
	defer l.box.mu.Unlock()
	return len(l.box.fired) > 0 || l.box.absent
}

func (l *life) undisturbed() bool { return !l.disturbed() }

// A client is one session of the client.
type client struct {
	life    *life
	conn    net.Conn
	in      *bufio.Reader
	before  []*mail // at the begin of the login
	opened  int
	quitted bool // QUIT was answered by +OK
	over    bool // the connection is
	uidls   []string
	shown   []int       // ids
	ids     map[int]int // by number
	dele    []int       // ids
}

// patience is how long the client waits for an answer. It is more than what
// all timeouts of the bridge add up to.
const patience = time.Hour

// line says a command and returns the first line of the answer; "" at the end
// of the connection.
func (c *client) line(command string) string {
	c.life.logf("pop3 C: %s", command)
	_ = c.conn.SetReadDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(c.conn, command+"\r\n"); err != nil {
		c.ended(err)
		return ""
	}
	answer, err := c.in.ReadString('\n')
	if err != nil {
		c.ended(err)
		return ""
	}
	if c.life.tamper != nil {
		answer = c.life.tamper(command, answer)
	}
	c.life.logf("pop3 S: %s", strings.TrimSpace(answer))
	if strings.HasPrefix(answer, "-ERR") {
		c.refused(command, answer)
	}
	return answer
}

func (c *client) ended(err error) {
	c.life.logf("pop3 S: <%v>", err)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		c.life.fail("hangs", "no answer within %v", patience)
	}
	if !c.over && c.life.undisturbed() {
		c.life.fail("cut without a fault", "%v", err)
	}
	c.life.cuts++ // maybe of a message that the server gave half of
	c.over = true
}

// refused looks at an answer that is -ERR.
func (c *client) refused(command, answer string) {
	l := c.life
	coded := strings.HasPrefix(answer, "-ERR [")
	word, rest, _ := strings.Cut(command, " ")
	n, _ := strconv.Atoi(strings.Fields(rest + " 0")[0])
	id, known := c.ids[n]
	if !known && n > 0 && n <= len(c.uidls) {
		id, known = l.ids[c.uidls[n-1]]
	}
	l.box.mu.Lock()
	_, gone := l.box.gone[id]
	often := l.box.broken[id]+l.cuts > 1
	for _, n := range l.box.broken { // it may be this one, which was never downloaded
		often = often || !known && n > 1
	}
	doubtful := l.box.cut[id]
	unreadable := l.box.unreadable
	l.box.mu.Unlock()
	switch {
	case strings.Contains(answer, "no longer in the maildrop"):
		if !gone && known {
			l.fail("said gone", "%q is answered %q: message %d is there", command, strings.TrimSpace(answer), id)
		}
		return
	case !coded:
		l.fail("code", "%q is answered %q", command, strings.TrimSpace(answer))
		return
	case l.disturbed(), gone, known && id == unreadable, !known && unreadable >= 0, often && !l.hour && word != "QUIT", doubtful:
		return
	}
	l.fail("refused without a fault", "%q is answered %q", command, strings.TrimSpace(answer))
}

// lines says a command and returns its status line, and the lines up to the
// final dot, with the dots that were doubled undone. whole says that the dot
// came.
func (c *client) lines(command string) (status, text string, whole bool) {
	status = c.line(command)
	if !strings.HasPrefix(status, "+OK") {
		return status, "", false
	}
	var b strings.Builder
	for {
		_ = c.conn.SetReadDeadline(time.Now().Add(patience))
		line, err := c.in.ReadString('\n')
		if err != nil {
			c.life.logf("pop3 S: (%d octets)", b.Len())
			c.ended(err)
			return status, b.String(), false
		}
		if c.life.tamper != nil {
			line = c.life.tamper(command, line)
		}
		if line == ".\r\n" {
			c.life.logf("pop3 S: (%d octets) .", b.Len())
			return status, b.String(), true
		}
		b.WriteString(strings.TrimPrefix(line, "."))
	}
}

// session is what the client does from login to QUIT.
func (c *client) session() {
	l, r := c.life, c.life.random
	c.ids = make(map[int]int)
	order := r.IntN(4)
	steps := [][]string{{"STAT", "UIDL", "LIST"}, {"STAT", "LIST", "UIDL"}, {"UIDL"}, {"LIST", "UIDL"}}[order]
	for _, step := range steps {
		switch step {
		case "STAT":
			c.line("STAT")
		case "LIST":
			c.lines("LIST")
		case "UIDL":
			if !c.listing() {
				return
			}
		}
		if c.over {
			return
		}
	}
	atOnce := r.IntN(2) == 0
	for n := 1; n <= len(c.uidls) && !c.over; n++ {
		name := c.uidls[n-1]
		if !l.known[name] {
			if r.IntN(6) == 0 {
				c.top(n, []int{0, 3, 40, 100_000}[r.IntN(4)])
			}
			if c.over || !c.retr(n) {
				continue
			}
		} else if r.IntN(12) == 0 {
			c.top(n, 0)
		}
		if atOnce && r.IntN(8) == 0 && !c.over {
			c.delete(n)
		}
	}
	for n := 1; !atOnce && n <= len(c.uidls) && !c.over; n++ {
		if r.IntN(8) == 0 {
			c.delete(n)
		}
	}
	if c.over {
		return
	}
	if r.IntN(15) == 0 {
		if strings.HasPrefix(c.line("RSET"), "+OK") {
			c.dele = nil
		}
	}
	if c.over || !l.well && r.IntN(15) == 0 {
		return // without QUIT
	}
	for _, id := range c.dele {
		l.wants[id] = true
	}
	if c.quitted = strings.HasPrefix(c.line("QUIT"), "+OK"); !c.quitted {
		return
	}
	l.box.mu.Lock()
	defer l.box.mu.Unlock()
	for _, id := range c.dele {
		l.removed[id] = l.back.Delete != bridge.Keep && !l.box.lied[id]
	}
}

// listing asks for the unique-ids, and compares.
func (c *client) listing() bool {
	l, b := c.life, c.life.box
	_, text, whole := c.lines("UIDL")
	if !whole {
		return false
	}
	seen, fresh := make(map[string]bool), 0
	for i, line := range strings.Split(strings.TrimSuffix(text, "\r\n"), "\r\n") {
		number, name, ok := strings.Cut(line, " ")
		if text == "" {
			break
		}
		if !ok || number != strconv.Itoa(i+1) || seen[name] {
			l.fail("listing", "line %d is %q, after %d", i+1, line, len(seen))
		}
		seen[name] = true
		c.uidls = append(c.uidls, name)
		if id, ok := l.ids[name]; ok {
			c.ids[i+1] = id
			c.shown = append(c.shown, id)
		} else {
			fresh++
		}
	}
	l.logf("        %s", strings.ReplaceAll(strings.TrimSpace(text), "\r\n", ", "))
	b.mu.Lock()
	must := 0
	var hidden, back []string
	for _, m := range c.before {
		if b.absent || b.find(m.uid) != m || l.wants[m.id] {
			continue
		}
		must++
		if name := l.names[m.id]; name != "" && !seen[name] {
			hidden = append(hidden, fmt.Sprintf("%d %s", m.id, name))
		}
	}
	for _, id := range c.shown {
		if _, gone := b.gone[id]; !gone && l.removed[id] && !l.excused[id] {
			back = append(back, fmt.Sprintf("%d %s", id, l.names[id]))
		}
	}
	there := len(b.mails)
	b.mu.Unlock()
	switch {
	case len(hidden) > 0 && fresh >= len(hidden) && len(c.uidls) >= must:
		l.fail("renamed", "%d messages are listed, with other unique-ids: %q", len(c.uidls), hidden)
	case len(hidden) > 0, len(c.uidls) < must:
		l.fail("hidden", "%d of %d messages are listed; missing: %q", len(c.uidls), must, hidden)
	case l.well && len(c.uidls) > there:
		l.fail("ghosts", "%d messages are listed, and there are %d", len(c.uidls), there)
	}
	if len(back) > 0 {
		l.fail("deleted comes back", "%q", back)
	}
	if l.forgets {
		for name := range l.known {
			if !seen[name] {
				delete(l.known, name)
				if id, ok := l.ids[name]; ok && b.absent {
					l.excused[id] = true
				}
			}
		}
	}
	return true
}

// retr downloads a message. It reports whether it came complete.
func (c *client) retr(n int) bool {
	l := c.life
	name := c.uidls[n-1]
	_, text, whole := c.lines(fmt.Sprintf("RETR %d", n))
	if !whole {
		return false
	}
	l.known[name] = true
	m := l.box.identify(text)
	if id := l.box.short(text); m == nil && id >= 0 {
		c.learn(n, id)
		return true
	} else if m == nil {
		l.fail("wrong octets", "RETR %d: what came complete is no message: %q", n, brief(text))
		return true
	}
	c.learn(n, m.id)
	if l.got[m.id]++; l.got[m.id] > 1 && !l.excused[m.id] {
		l.fail("twice", "message %d (UID %d) is downloaded again, as %s", m.id, m.uid, name)
	}
	delete(l.excused, m.id)
	l.box.mu.Lock()
	l.box.agreed++
	l.box.mu.Unlock()
	return true
}

// short returns the id of the message of which text is what the server gave in
// a well-formed response, and not all; -1: none.
func (b *mailbox) short(text string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	for id := range b.cut {
		if body := b.ever[id].body; text != crlf(body) && strings.HasPrefix(body, strings.TrimSuffix(text, "\r\n")) {
			return id
		}
	}
	return -1
}

// learn compares the unique-id of a message with what it was.
func (c *client) learn(n, id int) {
	l, name := c.life, c.uidls[n-1]
	if was, ok := l.ids[name]; ok && was != id {
		l.fail("another message", "%s was message %d and is %d", name, was, id)
	}
	if was := l.names[id]; was != "" && was != name {
		l.fail("renamed", "message %d was %s and is %s", id, was, name)
	}
	l.ids[name], l.names[id], c.ids[n] = id, name, id
	c.shown = append(c.shown, id)
}

// identify returns the message that a client has received whole; nil: none.
func (b *mailbox) identify(text string) *mail {
	b.mu.Lock()
	defer b.mu.Unlock()
	_, rest, _ := strings.Cut(text, "X-Id: ")
	number, _, _ := strings.Cut(rest, "\r\n")
	id, err := strconv.Atoi(number)
	if err != nil || id < 0 || id >= len(b.ever) || text != crlf(b.ever[id].body) {
		return nil
	}
	return b.ever[id]
}

// crlf returns a message with the CRLF at its end that RETR adds.
func crlf(body string) string {
	if strings.HasSuffix(body, "\r\n") {
		return body
	}
	return body + "\r\n"
}

// top looks at the begin of a message.
func (c *client) top(n, lines int) {
	_, text, whole := c.lines(fmt.Sprintf("TOP %d %d", n, lines))
	if !whole {
		return
	}
	l := c.life
	_, rest, _ := strings.Cut(text, "X-Id: ")
	number, _, _ := strings.Cut(rest, "\r\n")
	id, err := strconv.Atoi(number)
	l.box.mu.Lock()
	var want string
	if err == nil && id >= 0 && id < len(l.box.ever) {
		header, body := l.box.ever[id].split()
		n := 0
		for ; lines > 0 && n < len(body); lines-- {
			if i := strings.IndexByte(body[n:], '\n'); i >= 0 {
				n += i + 1
			} else {
				n = len(body)
			}
		}
		want = crlf(header + body[:n])
	}
	l.box.mu.Unlock()
	if text != want && l.box.short(text) < 0 {
		l.fail("wrong octets", "TOP %d: what came complete is no begin of a message: %q, want %q", n, brief(text), brief(want))
		return
	}
	c.learn(n, id)
}

// delete marks a message that the client has.
func (c *client) delete(n int) {
	if !c.life.known[c.uidls[n-1]] {
		return
	}
	if !strings.HasPrefix(c.line(fmt.Sprintf("DELE %d", n)), "+OK") {
		return
	}
	if id, ok := c.ids[n]; ok {
		c.dele = append(c.dele, id)
	}
}

// run lives the life of a seed and returns what went wrong.
func runSeed(t *testing.T, seed uint64, k kind, log *strings.Builder) (failures []failure) {
	defer func() {
		if e := recover(); e != nil {
			failures = append(failures, failure{"panic", fmt.Sprint(e), ""})
		}
	}()
	synctest.Test(t, func(*testing.T) {
		l := newLife(seed, k, log)
		l.live()
		failures = l.failures
	})
	return failures
}

// setting returns the number in an environment variable, or the default.
func setting(t *testing.T, name string, otherwise uint64) uint64 {
	value := os.Getenv(name)
	if value == "" {
		return otherwise
	}
	n, err := strconv.ParseUint(value, 10, 64)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n
}

// seeds runs many seeds, and shows the first failures of each kind.
func seeds(t *testing.T, number uint64, k kind) {
	if os.Getenv("POSTERN_SEED") != "" {
		var log strings.Builder
		failures := runSeed(t, setting(t, "POSTERN_SEED", 0), k, &log)
		t.Log("\n" + log.String())
		if len(failures) > 0 {
			t.Errorf("%q", failures)
		}
		return
	}
	number = setting(t, "POSTERN_SEEDS", number)
	defer debug.SetGCPercent(debug.SetGCPercent(400)) // most of the time would go into it
	begun := time.Now()
	var next atomic.Uint64
	var mu sync.Mutex
	type group struct {
		kind  string
		seeds int
		first uint64
		text  string
	}
	groups := make(map[string]*group)
	failed := 0
	t.Run("seeds", func(t *testing.T) {
		for worker := range runtime.GOMAXPROCS(0) {
			t.Run(strconv.Itoa(worker), func(t *testing.T) {
				t.Parallel()
				var seed uint64
				note := func(f failure) {
					mu.Lock()
					defer mu.Unlock()
					failed++
					name := f.kind
					if testing.Verbose() && !strings.Contains(f.after, ",") { // one fault: it is the cause
						name += " after " + f.after
					}
					if groups[name] == nil {
						groups[name] = &group{name, 0, seed, f.String()}
					}
					groups[name].seeds++
				}
				within := false
				defer func() {
					if within { // the race detector ends a test so
						note(failure{"race", "the test framework has ended the seed", ""})
					}
				}()
				for {
					if seed = next.Add(1) - 1; seed >= number {
						return
					}
					within = true
					failures := runSeed(t, seed, k, nil)
					if within = false; len(failures) > 0 {
						note(failures[0])
					}
					if seed > 0 && seed%50_000 == 0 {
						mu.Lock()
						fmt.Fprintf(os.Stderr, "%s: %d seeds, %d failed, %v\n", t.Name(), seed, failed, time.Since(begun).Round(time.Second))
						mu.Unlock()
					}
				}
			})
		}
	})
	t.Logf("%d seeds in %v, %d failed", number, time.Since(begun).Round(time.Millisecond), failed)
	for _, g := range slices.SortedFunc(maps.Values(groups), func(a, b *group) int { return cmp.Compare(b.seeds, a.seeds) }) {
		t.Errorf("%d seeds: %s, as POSTERN_SEED=%d: %s", g.seeds, g.kind, g.first, g.text)
	}
}

// Criterion: whatever answers a server gives for a while, when it is well again no message was downloaded twice, missed, lost or removed by mistake, and no UIDL has changed.
func TestAServerThatMisbehavesLosesNothing(t *testing.T) {
	seeds(t, 3000, misbehaviour)
}

// The model and the oracle agree as long as nothing goes wrong: what the other
// tests of this file find is the bridge's.
func TestAServerThatBehavesSatisfiesTheOracle(t *testing.T) {
	seeds(t, 100, calm)
}

// What would break a promise is noticed, of whichever kind it is.
func TestTheOracleNoticesWhatIsWrong(t *testing.T) {
	only := func(command string, change func(line string) string) func(string, string) string {
		return func(said, line string) string {
			if strings.HasPrefix(said, command) {
				return change(line)
			}
			return line
		}
	}
	replaced := func(old, new string) func(string) string {
		return func(line string) string { return strings.Replace(line, old, new, 1) }
	}
	for _, test := range []struct {
		want   string
		tamper func(command, line string) string
	}{
		{"hidden", only("UIDL", func(line string) string {
			if strings.HasPrefix(line, "2 ") {
				return ".\r\n"
			}
			return line
		})},
		{"listing", only("UIDL", replaced("2 ", "3 "))},
		{"listing", only("UIDL", func(line string) string { return regexp.MustCompile(`^(\d+) .*`).ReplaceAllString(line, "$1 same\r") })},
		{"wrong octets", only("RETR", replaced("e", "f"))},
		{"wrong octets", only("TOP", replaced("Subject", "Sujet"))},
		{"refused without a fault", only("RETR", replaced("+OK", "-ERR [SYS/TEMP]"))},
		{"refused without a fault", only("QUIT", replaced("+OK", "-ERR [SYS/TEMP]"))},
		{"code", only("RETR", replaced("+OK", "-ERR"))},
		{"said gone", only("TOP", replaced("+OK", "-ERR no longer in the maildrop"))},
	} {
		noticed := false
		for seed := uint64(0); seed < 40 && !noticed; seed++ {
			synctest.Test(t, func(*testing.T) {
				l := newLife(seed, calm, nil)
				l.tamper = test.tamper
				l.live()
				noticed = slices.ContainsFunc(l.failures, func(f failure) bool { return f.kind == test.want })
			})
		}
		if !noticed {
			t.Errorf("%s is not noticed", test.want)
		}
	}
	for want, change := range map[string]func(*life){
		"renamed": func(l *life) {
			for id, name := range l.names {
				l.names[id] = name + "-2"
			}
		},
		"another message": func(l *life) {
			for name := range l.ids {
				l.ids[name]++
			}
		},
		"twice":              func(l *life) { clear(l.known) },
		"missed":             func(l *life) { clear(l.got) },
		"lost":               func(l *life) { l.box.remove("UID EXPUNGE 1:*", func(*mail) bool { return true }) },
		"deleted comes back": func(l *life) { l.removed[l.box.mails[0].id] = true },
	} {
		noticed := false
		for seed := uint64(0); seed < 40 && !noticed; seed++ {
			synctest.Test(t, func(*testing.T) {
				l := newLife(seed, calm, nil)
				l.live()
				if len(l.failures) > 0 || len(l.box.mails) == 0 {
					return
				}
				change(l)
				l.poll("again")
				l.judge()
				noticed = slices.ContainsFunc(l.failures, func(f failure) bool { return f.kind == want })
			})
		}
		if !noticed {
			t.Errorf("%s is not noticed", want)
		}
	}
}

// Criterion: what servers write otherwise than the grammar of IMAP wants, and can mean one thing only, is taken for that.
func TestLibertiesOfGrammarChangeNothing(t *testing.T) {
	seeds(t, 300, grammar)
}
