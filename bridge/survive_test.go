package bridge

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"postern/proxy"
	"postern/proxy/proxytest"
)

var (
	survivals = flag.Int("survivals", 2000, "sessions of TestNothingIsLostWhateverBreaks")
	firstSeed = flag.Uint64("survivals.seed", 0, "seed of the first of them")
)

// A letter is a message of an office.
type letter struct {
	uid    uint32
	body   string
	former []string // bodies: there are servers that change their mind
	flags  map[string]bool
}

// An office is a mailbox and the IMAP server before it, which tells what
// happened to its letters.
type office struct {
	mu          sync.Mutex
	uidValidity uint32
	letters     []*letter
	collected   map[uint32]bool // removed by EXPUNGE
	taken       map[uint32]bool // removed by another client
	foreign     map[uint32]bool // marked by another client
	swept       bool            // EXPUNGE came without UIDs
}

func newOffice(random *rand.Rand) *office {
	o := &office{uidValidity: 7, collected: make(map[uint32]bool), taken: make(map[uint32]bool), foreign: make(map[uint32]bool)}
	uid := uint32(0)
	for range 1 + random.IntN(20) {
		uid += 1 + uint32(random.IntN(2))
		l := &letter{uid: uid, body: randomBody(random), flags: make(map[string]bool)}
		if random.IntN(5) == 0 {
			l.flags[`\Deleted`], o.foreign[uid] = true, true
		}
		o.letters = append(o.letters, l)
	}
	return o
}

// randomBody returns something nasty, mostly small, now and then larger than
// every buffer.
func randomBody(random *rand.Rand) string {
	size := random.IntN(3000)
	switch random.IntN(12) {
	case 0:
		size = 0
	case 1:
		size = 60_000 + random.IntN(100_000)
	}
	var b strings.Builder
	for b.Len() < size {
		b.WriteString([]string{".", "\r\n", "\n", "\r", "..", ")\r\nF1 OK x\r\n", "\r\n.\r\n", "* 1 FETCH (UID 1 BODY[] {3}\r\n", strings.Repeat("x", random.IntN(70)), "text\r\n"}[random.IntN(10)])
	}
	return b.String()
}

func (o *office) find(uid uint32) *letter {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, l := range o.letters {
		if l.uid == uid {
			return l
		}
	}
	return nil
}

// remove takes away the letters that match.
func (o *office) remove(because map[uint32]bool, doomed func(*letter) bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.letters = slices.DeleteFunc(slices.Clone(o.letters), func(l *letter) bool {
		if doomed(l) {
			because[l.uid] = true
		}
		return doomed(l)
	})
}

// rewrite changes the bodies, some of them without changing their length.
func (o *office) rewrite(random *rand.Rand) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for i, l := range o.letters {
		changed := *l
		changed.former = append(slices.Clone(l.former), l.body)
		changed.body = strings.ReplaceAll(l.body, "x", string(rune('a'+len(l.former))))
		if random.IntN(3) == 0 {
			changed.body += "more"
		}
		o.letters[i] = &changed
	}
}

func (o *office) serve(conn net.Conn) {
	defer func() { _ = conn.Close() }()
	in, out := bufio.NewReader(conn), bufio.NewWriterSize(conn, 5000)
	for {
		line, err := in.ReadString('\n')
		if err != nil { // half a command is none
			return
		}
		tag, command, _ := strings.Cut(strings.TrimRight(line, "\r\n"), " ")
		o.answer(out, strings.TrimPrefix(command, "UID "))
		_, _ = fmt.Fprintf(out, "%s OK done\r\n", tag)
		if out.Flush() != nil || command == "LOGOUT" {
			return
		}
	}
}

func (o *office) answer(out *bufio.Writer, command string) {
	word, rest, _ := strings.Cut(command, " ")
	set, items, _ := strings.Cut(rest, " ")
	o.mu.Lock()
	letters := slices.Clone(o.letters)
	o.mu.Unlock()
	last := uint32(0)
	if len(letters) > 0 {
		last = letters[len(letters)-1].uid
	}
	switch word {
	case "SELECT":
		_, _ = fmt.Fprintf(out, "* %d EXISTS\r\n* OK [UIDVALIDITY %d] x\r\n* OK [UIDNEXT 999] x\r\n", len(letters), o.uidValidity)
	case "SEARCH":
		_, _ = out.WriteString("* SEARCH")
		for _, l := range letters {
			if (set != "UID" || contains(items, l.uid, last)) && (set != "DELETED" || l.flags[`\Deleted`]) {
				_, _ = fmt.Fprintf(out, " %d", l.uid)
			}
		}
		_, _ = out.WriteString("\r\n")
	case "FETCH":
		for i, l := range letters {
			if !contains(set, l.uid, last) {
				continue
			}
			what := sections(l.body, items)
			if strings.Contains(items, "RFC822.SIZE") {
				what = fmt.Sprintf(" RFC822.SIZE %d", len(l.body))
			}
			_, _ = fmt.Fprintf(out, "* %d FETCH (UID %d%s)\r\n", i+1, l.uid, what)
		}
	case "STORE":
		o.mu.Lock()
		defer o.mu.Unlock()
		for _, l := range o.letters {
			if contains(set, l.uid, last) {
				l.flags[strings.Trim(items[strings.IndexByte(items, '('):], "()")] = items[0] == '+'
			}
		}
	case "EXPUNGE":
		o.swept = o.swept || set == ""
		o.remove(o.collected, func(l *letter) bool {
			return (set == "" || contains(set, l.uid, last)) && l.flags[`\Deleted`]
		})
	}
}

// Criterion: whatever breaks, at any octet of both connections: no message is lost that was not marked and confirmed, no body is ever wrong, no unique-id ever changes or moves.
func TestNothingIsLostWhateverBreaks(t *testing.T) {
	var next atomic.Uint64
	var sessions, complete, resumed atomic.Int64
	var wg sync.WaitGroup
	for range max(2, runtime.GOMAXPROCS(0)) {
		wg.Go(func() {
			for {
				n := next.Add(1) - 1
				if n >= uint64(*survivals) || t.Failed() {
					return
				}
				s := &survival{t: t, seed: *firstSeed + n, random: rand.New(rand.NewPCG(*firstSeed+n, 9))}
				s.run()
				sessions.Add(1)
				if s.goodbye {
					complete.Add(1)
				}
				if s.goodbye && s.dials > 1 {
					resumed.Add(1)
				}
			}
		})
	}
	wg.Wait()
	t.Logf("%d sessions, %d to the end, %d of them over more than one connection", sessions.Load(), complete.Load(), resumed.Load())
	if resumed.Load() == 0 || complete.Load() == sessions.Load() {
		t.Error("the faults prove nothing")
	}
}

// A survival is one session with faults.
type survival struct {
	t      *testing.T
	seed   uint64
	random *rand.Rand
	office *office
	dials  int

	capabilities string
	record       *failing

	numbers []uint32 // UID by message number
	marked  map[uint32]bool
	quit    bool // was sent
	goodbye bool // was +OK
	sent    []string
	in      *bufio.Reader
}

func (s *survival) errorf(format string, args ...any) {
	s.t.Helper()
	s.t.Errorf("seed %d: %s\nafter %q", s.seed, fmt.Sprintf(format, args...), s.sent)
}

func (s *survival) run() {
	s.office, s.marked = newOffice(s.random), make(map[uint32]bool)
	var servers sync.WaitGroup
	faults := s.random.IntN(4)
	s.capabilities, s.record = capabilities, &failing{fails: s.random.IntN(8) == 0}
	b := &Backend{Estimates: s.random.IntN(2) == 0, StableBodies: s.random.IntN(4) == 0, Timeout: 20 * time.Second}
	switch s.random.IntN(3) {
	case 0:
		s.capabilities, b.Record = "IMAP4rev1", s.record
	case 1:
		s.capabilities, b.Delete = "IMAP4rev1", Isolate
	}
	b.LogIn = func(context.Context, *proxy.Login) (net.Conn, string, error) {
		if s.dials++; s.dials > 1 && s.random.IntN(10) == 0 {
			return nil, "", proxy.NewRefusal(proxy.Unavailable, errors.New("nobody there"))
		}
		if s.dials > 1 && !b.StableBodies && s.random.IntN(6) == 0 {
			s.office.rewrite(s.random)
		}
		near, far := pair(s.t)
		servers.Go(func() { s.office.serve(far) })
		f := proxytest.Faults{}
		if faults > 0 {
			faults--
			f.CutRead = int64(1 + s.random.IntN(1<<s.random.IntN(19)))
			if s.random.IntN(3) == 0 {
				f.CutRead, f.CutWrite = 0, int64(1+s.random.IntN(400))
			}
		}
		return proxytest.Faulty(near, f), s.capabilities, nil
	}
	session, err := b.Login(s.t.Context(), &proxy.Login{Account: "alice"})
	if err == nil {
		if _, err = session.Open(s.t.Context()); err == nil {
			s.serve(session)
		}
		_ = session.Close()
	}
	servers.Wait()
	if b.Record != nil {
		s.again(b, &servers)
	}
	s.check(b)
}

// A failing is a memory in which no tombstone can be written.
type failing struct {
	memory
	fails bool
}

func (f *failing) Update(ctx context.Context, key string, change func([]byte) ([]byte, error)) error {
	if f.fails && key == tombstonesKey("alice") {
		return errors.New("disk on fire")
	}
	return f.memory.Update(ctx, key, change)
}

// again looks at what the next session shows on a server without UIDPLUS.
func (s *survival) again(b *Backend, servers *sync.WaitGroup) {
	b.LogIn = func(context.Context, *proxy.Login) (net.Conn, string, error) {
		near, far := pair(s.t)
		servers.Go(func() { s.office.serve(far) })
		return near, s.capabilities, nil
	}
	opened, err := b.Login(s.t.Context(), &proxy.Login{Account: "alice"})
	if err == nil {
		_, err = opened.Open(s.t.Context())
	}
	if err != nil {
		s.errorf("the next session: %v", err)
		return
	}
	shown := make(map[uint32]bool)
	for _, m := range opened.(*session).maildrop.messages {
		shown[m.uid] = true
	}
	_ = opened.Close()
	servers.Wait()
	for _, l := range s.office.letters {
		if !shown[l.uid] && !(s.quit && s.marked[l.uid]) {
			s.errorf("%d is hidden: marked %v, QUIT %v", l.uid, s.marked[l.uid], s.quit)
		}
		if shown[l.uid] && s.goodbye && s.marked[l.uid] {
			s.errorf("%d is shown again", l.uid)
		}
	}
}

// pair is a TCP connection that the caller closes.
func pair(t *testing.T) (near, far net.Conn) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	if near, err = net.Dial("tcp", ln.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if far, err = ln.Accept(); err != nil {
		t.Fatal(err)
	}
	return near, far
}

// serve runs the session, and its client.
func (s *survival) serve(opened proxy.Session) {
	for _, m := range opened.(*session).maildrop.messages {
		s.numbers = append(s.numbers, m.uid)
	}
	client, server := pair(s.t)
	f := proxytest.Faults{}
	switch s.random.IntN(6) {
	case 0:
		f.CutWrite = int64(1 + s.random.IntN(1<<s.random.IntN(19)))
	case 1:
		f.CutRead = int64(1 + s.random.IntN(300))
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		conn := proxy.NewConn(proxytest.Faulty(server, f), proxy.Client{ID: "ID42"}, nil, 0)
		_ = opened.Run(context.Background(), conn)
		_ = conn.Close()
	}()
	s.in = bufio.NewReader(client)
	_ = client.SetDeadline(time.Now().Add(30 * time.Second))
	s.talk(client)
	_ = client.Close()
	<-done
}

// talk says commands, one by one or many at once, and looks at the replies.
func (s *survival) talk(w io.Writer) {
	next, burst := 1, 1
	if s.random.IntN(2) == 0 {
		burst = 20
	}
	for range 6 {
		var commands []string
		for range 1 + s.random.IntN(burst) {
			commands = append(commands, s.command(&next))
		}
		if s.random.IntN(8) == 0 && len(s.numbers) > 0 {
			gone := s.numbers[s.random.IntN(len(s.numbers))]
			s.office.remove(s.office.taken, func(l *letter) bool { return l.uid == gone })
		}
		if !s.exchange(w, commands) {
			return
		}
	}
	if s.random.IntN(6) > 0 {
		s.exchange(w, []string{"QUIT"})
	}
}

func (s *survival) command(next *int) string {
	any := 1 + s.random.IntN(len(s.numbers)+1)
	switch s.random.IntN(14) {
	case 0:
		return "STAT"
	case 1:
		return "LIST"
	case 2:
		return "UIDL"
	case 3:
		return fmt.Sprintf("TOP %d %d", any, s.random.IntN(60))
	case 4:
		return fmt.Sprintf("RETR %d", any)
	case 5, 6:
		return fmt.Sprintf("DELE %d", any)
	case 7:
		return []string{"RSET", "NOOP", "XYZZY", fmt.Sprintf("TOP %d 0", any), fmt.Sprintf("TOP %d 99999", any)}[s.random.IntN(5)]
	}
	*next++
	return fmt.Sprintf("RETR %d", *next-1)
}

func (s *survival) exchange(w io.Writer, commands []string) bool {
	s.quit = s.quit || slices.Contains(commands, "QUIT")
	s.sent = append(s.sent, commands...)
	if _, err := io.WriteString(w, strings.Join(commands, "\r\n")+"\r\n"); err != nil {
		return false
	}
	for _, command := range commands {
		if !s.reply(command) {
			return false
		}
	}
	return true
}

// reply reads a reply; false if there is none, or none that is whole.
func (s *survival) reply(command string) bool {
	status, err := s.in.ReadString('\n')
	if err != nil {
		return false
	}
	words := strings.Fields(command)
	n := 0
	if len(words) > 1 {
		n, _ = strconv.Atoi(words[1])
	}
	ok := strings.HasPrefix(status, "+OK ")
	if !ok {
		if strings.Contains(status, "no longer") && s.office.find(s.numbers[n-1]) != nil {
			s.errorf("%s: %q, but it is there", command, status)
		}
		return true
	}
	switch words[0] {
	case "RETR":
		return s.message(command, s.numbers[n-1])
	case "TOP":
		_, ended := stuffed(s.in)
		return ended
	case "LIST", "UIDL":
		text, ended := stuffed(s.in)
		if ended {
			s.listing(words[0], text)
		}
		return ended
	case "DELE":
		s.marked[s.numbers[n-1]] = true
	case "RSET":
		clear(s.marked)
	case "QUIT":
		s.goodbye = true
	}
	return true
}

// message reads a message, which must be whole and right, or cut.
func (s *survival) message(command string, uid uint32) bool {
	text, ended := stuffed(s.in)
	if !ended {
		return false
	}
	l := s.office.find(uid)
	if l == nil {
		return true // taken meanwhile
	}
	for _, want := range append([]string{l.body}, l.former...) {
		if !strings.HasSuffix(want, "\r\n") {
			want += "\r\n"
		}
		if text == want {
			return true
		}
	}
	s.errorf("%s: %d octets, want %d, or others", command, len(text), len(l.body))
	return true
}

// listing looks whether every number has the unique-id it had, and none that
// is marked is shown.
func (s *survival) listing(command, text string) {
	shown := 0
	for line := range strings.Lines(text) {
		var n int
		var id string
		_, _ = fmt.Sscan(line, &n, &id)
		uid := s.numbers[n-1]
		if want := fmt.Sprintf("%08x%08x", uid, s.office.uidValidity); command == "UIDL" && id != want {
			s.errorf("UIDL of %d is %s, want %s", n, id, want)
		}
		if s.marked[uid] {
			s.errorf("%s shows %d, which is deleted", command, n)
		}
		shown++
	}
	if shown != len(s.numbers)-len(s.marked) {
		s.errorf("%s shows %d of %d, %d of them deleted", command, shown, len(s.numbers), len(s.marked))
	}
}

// check compares what is left with what was promised.
func (s *survival) check(b *Backend) {
	o := s.office
	for uid := range o.collected {
		if !s.quit || !s.marked[uid] {
			s.errorf("%d was removed: marked %v, QUIT %v", uid, s.marked[uid], s.quit)
		}
	}
	for _, l := range o.letters {
		if l.flags[`\Deleted`] && !(s.quit && s.marked[l.uid]) && !o.foreign[l.uid] {
			s.errorf("%d is marked as deleted", l.uid)
		}
		if !l.flags[`\Deleted`] && o.foreign[l.uid] && (s.goodbye || b.Delete != Isolate) {
			s.errorf("%d has lost the mark of another client", l.uid)
		}
		if s.goodbye && s.marked[l.uid] && (b.Record == nil || !l.flags[`\Deleted`]) {
			s.errorf("%d was not removed", l.uid)
		}
	}
	if o.swept && b.Delete != Isolate {
		s.errorf("EXPUNGE for all")
	}
}
