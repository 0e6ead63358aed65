package bridge

import (
	"bufio"
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/emersion/go-imap/v2"

	"postern/proxy"
)

// A mail is a message of a model.
type mail struct {
	uid  uint32
	size int64
}

// A model is a mailbox whose every change a test knows, behind as much of an
// IMAP server as a listing needs.
type model struct {
	mu          sync.Mutex
	uidValidity uint32
	uidNext     uint32
	mails       []mail
	delivered   int             // ever
	epoch       int64           // of INTERNALDATE
	content     map[uint32]int  // of a UID: the same one is the same message
	marked      map[uint32]bool // UIDs with the \Deleted flag

	capabilities string
	silent       bool                      // about UIDNEXT in SELECT
	dumb         bool                      // and in STATUS
	unreadable   map[uint32]bool           // UIDs for which FETCH gives no row, and says NO
	hidden       map[uint32]bool           // UIDs for which FETCH of a header gives no row
	before       func(command string)      // called before a command is carried out
	refused      func(command string) bool // it is not carried out: NO
	cutAfter     func(command string) bool // it is carried out, and the connection goes instead of the answer
	within       func(sent int, u uint32)  // called before each row of a FETCH

	lost bool                  // the cache has been lost, for who asks
	slow time.Duration         // for each row of a FETCH
	cut  func(uid uint32) bool // the connection goes instead of the row

	told     []mail // what the client knows to be there
	commands []string
	octets   int64 // sent
	asked    map[uint32]int
}

func newModel(capabilities string) *model {
	return &model{uidValidity: 7, uidNext: 1, capabilities: "IMAP4rev1 UIDPLUS " + capabilities, asked: make(map[uint32]int), content: make(map[uint32]int), marked: make(map[uint32]bool)}
}

func (m *model) deliver(n int) {
	for range n {
		m.mails = append(m.mails, mail{m.uidNext, int64(m.uidNext)*10 + 1})
		m.content[m.uidNext] = m.delivered
		m.uidNext++
		m.delivered++
	}
}

func (m *model) expunge(i int) { m.mails = slices.Delete(slices.Clone(m.mails), i, i+1) }

// has reports whether x is there. UIDs ascend.
func (m *model) has(x mail) bool {
	i, ok := slices.BinarySearchFunc(m.mails, x.uid, func(m mail, uid uint32) int { return cmp.Compare(m.uid, uid) })
	return ok && m.mails[i] == x
}

// dial is a LogIn.
func (m *model) dial(t testing.TB) LogIn {
	return func(context.Context, *proxy.Login) (net.Conn, string, error) {
		near, far := net.Pipe()
		done := make(chan struct{})
		go func() { defer close(done); m.serve(far) }()
		t.Cleanup(func() { _ = near.Close(); <-done })
		return near, m.capabilities, nil
	}
}

func (m *model) serve(conn net.Conn) {
	defer func() { _ = conn.Close() }()
	counter := &countingWriter{w: conn}
	in, out := bufio.NewScanner(conn), bufio.NewWriter(counter)
	for in.Scan() {
		tag, command, _ := strings.Cut(in.Text(), " ")
		m.mu.Lock()
		if command != "LOGOUT" {
			m.commands = append(m.commands, command)
		}
		if m.before != nil {
			m.before(command)
		}
		result := "NO x"
		if m.refused == nil || !m.refused(command) {
			result = m.answer(out, tag, command)
		}
		if m.cutAfter != nil && m.cutAfter(command) {
			result = ""
		}
		m.mu.Unlock()
		if result == "" {
			return
		}
		_, _ = fmt.Fprintf(out, "%s %s\r\n", tag, result)
		if out.Flush() != nil {
			return
		}
		m.mu.Lock()
		m.octets, counter.octets = m.octets+counter.octets, 0
		m.mu.Unlock()
		if command == "LOGOUT" {
			return
		}
	}
}

func (m *model) answer(out *bufio.Writer, tag, command string) (result string) {
	word, rest, _ := strings.Cut(strings.TrimPrefix(command, "UID "), " ")
	if strings.HasPrefix(command, "UID ") {
		m.tell(out)
	}
	switch word {
	case "SELECT":
		m.told = slices.Clone(m.mails)
		_, _ = fmt.Fprintf(out, "* FLAGS (\\Answered \\Flagged \\Deleted \\Seen \\Draft)\r\n* OK [PERMANENTFLAGS (\\Deleted \\*)] x\r\n* %d EXISTS\r\n* 0 RECENT\r\n* OK [UIDVALIDITY %d] x\r\n", len(m.mails), m.uidValidity)
		if !m.silent {
			_, _ = fmt.Fprintf(out, "* OK [UIDNEXT %d] x\r\n", m.uidNext)
		}
		return "OK [READ-WRITE] x"
	case "STATUS":
		_, _ = fmt.Fprintf(out, "* STATUS INBOX (MESSAGES %d UIDVALIDITY %d", len(m.mails), m.uidValidity)
		if !m.dumb {
			_, _ = fmt.Fprintf(out, " UIDNEXT %d", m.uidNext)
		}
		_, _ = out.WriteString(")\r\n")
	case "SEARCH":
		var b strings.Builder
		var found imap.UIDSet
		for _, mail := range m.mails {
			of, among := strings.CutPrefix(rest, "UID ")
			if among && !contains(of, mail.uid, m.uidNext-1) || rest == "DELETED" && !m.marked[mail.uid] || strings.HasPrefix(rest, "KEYWORD") {
				continue
			}
			found.AddNum(imap.UID(mail.uid))
			fmt.Fprintf(&b, " %d", mail.uid)
		}
		switch {
		case rest == "RETURN (ALL) ALL" && len(m.mails) == 0:
			_, _ = fmt.Fprintf(out, "* ESEARCH (TAG %q) UID\r\n", tag)
		case rest == "RETURN (ALL) ALL":
			_, _ = fmt.Fprintf(out, "* ESEARCH (TAG %q) UID ALL %s\r\n", tag, found)
		default:
			_, _ = fmt.Fprintf(out, "* SEARCH%s\r\n", b.String())
		}
	case "FETCH":
		return m.fetch(out, rest)
	case "STORE":
		set, flags, _ := strings.Cut(rest, " ")
		for _, mail := range m.mails {
			if strings.Contains(flags, `\Deleted`) && contains(set, mail.uid, m.uidNext-1) {
				m.marked[mail.uid] = flags[0] == '+'
			}
		}
	case "EXPUNGE":
		m.mails = slices.DeleteFunc(slices.Clone(m.mails), func(x mail) bool {
			return m.marked[x.uid] && (rest == "" || contains(rest, x.uid, m.uidNext-1))
		})
	}
	return "OK x"
}

// tell says what has changed, as a server may with every UID command (RFC 9051
// section 7.5.1).
func (m *model) tell(out *bufio.Writer) {
	for i, mail := range slices.Backward(m.told) {
		if !m.has(mail) {
			_, _ = fmt.Fprintf(out, "* %d EXPUNGE\r\n", i+1)
		}
	}
	m.told = slices.DeleteFunc(m.told, func(x mail) bool { return !m.has(x) })
	if len(m.mails) > len(m.told) {
		_, _ = fmt.Fprintf(out, "* %d EXISTS\r\n", len(m.mails))
		m.told = slices.Clone(m.mails)
	}
}

func (m *model) fetch(out *bufio.Writer, args string) string {
	set, _, _ := strings.Cut(args, " ")
	result, sent, among := "OK x", 0, uidSet(set, m.uidNext-1)
	for n, mail := range slices.Clone(m.told) {
		if !among(mail.uid) {
			continue
		}
		if m.within != nil {
			m.within(sent, mail.uid)
		}
		if slow := m.slow; slow > 0 { // others are served meanwhile
			m.mu.Unlock()
			_ = out.Flush()
			time.Sleep(slow)
			m.mu.Lock()
		}
		if m.cut != nil && m.cut(mail.uid) {
			return ""
		}
		if !m.has(mail) { // gone meanwhile
			m.tell(out)
			continue
		}
		if m.unreadable[mail.uid] {
			result = "NO x"
			continue
		}
		if m.hidden[mail.uid] && strings.Contains(args, "BODY") {
			continue
		}
		m.asked[mail.uid]++
		_, _ = fmt.Fprintf(out, "* %d FETCH (UID %d RFC822.SIZE %d", n+1, mail.uid, mail.size)
		if strings.Contains(args, "MESSAGE-ID") || strings.Contains(args, "Message-ID") {
			id := m.content[mail.uid]
			field := fmt.Sprintf("Message-ID: <%d@x>\r\n\r\n", id)
			date := time.Unix(m.epoch+int64(id/3), 0).UTC().Format("_2-Jan-2006 15:04:05 -0700")
			_, _ = fmt.Fprintf(out, " INTERNALDATE %q BODY[HEADER.FIELDS (MESSAGE-ID)] {%d}\r\n%s", date, len(field), field)
		}
		if strings.Contains(args, "[HEADER]") {
			header := fmt.Sprintf("Message-ID: <%d@x>\r\nX-UID: %d\r\n\r\n", m.content[mail.uid], mail.uid)
			_, _ = fmt.Fprintf(out, " BODY[HEADER] {%d}\r\n%s", len(header), header)
		}
		if _, partial, ok := strings.Cut(args, "[]<"); ok {
			offset, _, _ := strings.Cut(partial, ".")
			_, _ = fmt.Fprintf(out, " BODY[]<%s> {2}\r\n\r\n", offset)
		}
		_, _ = out.WriteString(")\r\n")
		sent++
	}
	return result
}

// contains reports whether uid is in set, for which last is the last message.
func contains(set string, uid, last uint32) bool { return uidSet(set, last)(uid) }

// uidSet returns what reports whether a UID is in set.
func uidSet(set string, last uint32) func(uid uint32) bool {
	number := func(s string) uint32 {
		if s == "*" {
			return last
		}
		n, _ := strconv.ParseUint(s, 10, 32)
		return uint32(n)
	}
	var ranges [][2]uint32
	for part := range strings.SplitSeq(set, ",") {
		first, second, isRange := strings.Cut(part, ":")
		from := number(first)
		to := from
		if isRange {
			to = number(second)
		}
		ranges = append(ranges, [2]uint32{min(from, to), max(from, to)})
	}
	return func(uid uint32) bool {
		return slices.ContainsFunc(ranges, func(r [2]uint32) bool { return r[0] <= uid && uid <= r[1] })
	}
}

// take returns the commands since the last time, and the octets sent for them.
func (m *model) take() (commands []string, octets int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	commands, octets = m.commands, m.octets
	m.commands, m.octets = nil, 0
	return commands, octets
}

// poll opens a session, returns what it lists, and closes it.
func poll(t testing.TB, b *Backend) (source string, listed []mail) {
	t.Helper()
	events := &recorder{}
	if told := b.Observer; told != nil {
		defer func() { b.Observer = told }()
		b.Observer = proxy.Observers{events, told}
	} else {
		b.Observer = events
	}
	opened, err := b.Login(t.Context(), &proxy.Login{Account: "alice"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := opened.Open(t.Context()); err != nil {
		_ = opened.Close()
		t.Fatal(err)
	}
	for _, m := range opened.(*session).maildrop.messages {
		listed = append(listed, mail{m.uid, m.size})
	}
	_ = opened.Close()
	return of[proxy.MaildropOpened](events)[0].Source, listed
}

// Criterion: an unchanged mailbox costs one SELECT, new mail one UID FETCH, and removed mail one search, with and without ESEARCH.
func TestPollsCostChanges(t *testing.T) {
	for _, capabilities := range []string{"", "ESEARCH"} {
		m := newModel(capabilities)
		b := &Backend{LogIn: m.dial(t), Cache: &memory{}}
		search := "UID SEARCH ALL"
		if capabilities != "" {
			search = "UID SEARCH RETURN (ALL) ALL"
		}
		m.deliver(1000)
		for _, step := range []struct {
			name   string
			change func()
			source string
			want   []string
			octets int64
		}{
			{"first sight", func() {}, "full", []string{"SELECT INBOX", "UID FETCH 1:* (UID RFC822.SIZE)"}, 50_000},
			{"unchanged", func() {}, "cache", []string{"SELECT INBOX"}, 400},
			{"unchanged again", func() {}, "cache", []string{"SELECT INBOX"}, 400},
			{"ten new", func() { m.deliver(10) }, "delta", []string{"SELECT INBOX", "UID FETCH 1000:* (UID RFC822.SIZE)"}, 1000},
			{"three removed", func() { m.expunge(5); m.expunge(700); m.expunge(0) }, "delta", []string{"SELECT INBOX", search}, 8000},
			{"new and removed", func() { m.deliver(2); m.expunge(5) }, "delta", []string{"SELECT INBOX", "UID FETCH 1010:* (UID RFC822.SIZE)", search}, 8000},
			{"one that came and went", func() { m.deliver(1); m.expunge(len(m.mails) - 1) }, "delta", []string{"SELECT INBOX", "UID FETCH 1012:* (UID RFC822.SIZE)"}, 1000},
			{"unchanged after that", func() {}, "cache", []string{"SELECT INBOX"}, 400},
			{"all removed", func() { m.mails = nil }, "cache", []string{"SELECT INBOX"}, 400},
			{"new in an empty one", func() { m.deliver(1) }, "full", []string{"SELECT INBOX", "UID FETCH 1014:* (UID RFC822.SIZE)"}, 500},
			{"new UIDVALIDITY", func() { m.uidValidity++ }, "full", []string{"SELECT INBOX", "UID FETCH 1:* (UID RFC822.SIZE)"}, 500},
			{"restored from backup", func() { m.uidNext = 5; m.mails = []mail{{3, 31}, {4, 41}} }, "full", []string{"SELECT INBOX", search, "UID FETCH 1:* (UID RFC822.SIZE)"}, 500},
		} {
			step.change()
			source, listed := poll(t, b)
			commands, octets := m.take()
			if !slices.Equal(commands, step.want) || source != step.source || octets > step.octets {
				t.Errorf("%s %s: %q, %d octets, source %s; want %q, at most %d, %s", capabilities, step.name, commands, octets, source, step.want, step.octets, step.source)
			}
			if !slices.Equal(listed, m.mails) {
				t.Errorf("%s %s: %d messages listed, want %d", capabilities, step.name, len(listed), len(m.mails))
			}
		}
	}
}

// Criterion: where SELECT gives no UIDNEXT, STATUS goes before it, and a server without any is listed right all the same.
func TestPollsWithoutUIDNEXT(t *testing.T) {
	m := newModel("")
	m.silent = true
	m.deliver(3)
	b := &Backend{LogIn: m.dial(t), Cache: &memory{}}
	const status = "STATUS INBOX (MESSAGES UIDNEXT UIDVALIDITY)"
	for _, step := range []struct {
		name   string
		change func()
		want   []string
	}{
		{"first", func() {}, []string{"SELECT INBOX", "UID FETCH 1:* (UID RFC822.SIZE)"}},
		{"unchanged", func() {}, []string{status, "SELECT INBOX"}},
		{"new", func() { m.deliver(1) }, []string{status, "SELECT INBOX", "UID FETCH 3:* (UID RFC822.SIZE)"}},
		{"new between STATUS and SELECT", func() {
			m.before = func(command string) {
				if m.before = nil; strings.HasPrefix(command, "STATUS") {
					m.before = func(string) { m.before = nil; m.deliver(1) }
				}
			}
		}, []string{status, "SELECT INBOX"}},
		{"it is there in the next", func() {}, []string{status, "SELECT INBOX", "UID FETCH 4:* (UID RFC822.SIZE)"}},
		{"not in STATUS either", func() { m.dumb = true }, []string{status, "SELECT INBOX", "UID FETCH 5:* (UID RFC822.SIZE)"}},
		{"new then", func() { m.deliver(2) }, []string{status, "SELECT INBOX", "UID FETCH 5:* (UID RFC822.SIZE)"}},
		{"removed then", func() { m.expunge(0) }, []string{status, "SELECT INBOX", "UID FETCH 7:* (UID RFC822.SIZE)", "UID SEARCH ALL"}},
	} {
		step.change()
		want := slices.Clone(m.mails)
		_, listed := poll(t, b)
		if got, _ := m.take(); len(got) != len(step.want) || !slices.EqualFunc(got, step.want, sameCommand) {
			t.Errorf("%s: %q, want %q", step.name, got, step.want)
		}
		if !slices.Equal(listed, want) {
			t.Errorf("%s: %v, want %v", step.name, listed, want)
		}
	}
}

// sameCommand compares commands; the items of STATUS come in any order.
func sameCommand(a, b string) bool {
	sorted := func(s string) []string {
		words := strings.FieldsFunc(s, func(r rune) bool { return strings.ContainsRune(" ()", r) })
		slices.Sort(words)
		return words
	}
	return a == b || strings.HasPrefix(a, "STATUS") && slices.Equal(sorted(a), sorted(b))
}

// Criterion: whatever is delivered and removed between and during sessions, a listing is what the mailbox was at one moment of the login, and never differs from the truth by a coincidence of counts.
func TestListingsAreTrue(t *testing.T) {
	for seed := range uint64(300) {
		random := rand.New(rand.NewPCG(seed, 4))
		m := newModel([]string{"", "ESEARCH"}[random.IntN(2)])
		m.silent = random.IntN(4) == 0
		m.dumb = random.IntN(3) == 0
		cache := &memory{}
		b := &Backend{LogIn: m.dial(t), Cache: cache}
		change := func() {
			for range 1 + random.IntN(3) {
				if len(m.mails) > 0 && random.IntN(2) == 0 {
					m.expunge(random.IntN(len(m.mails)))
				} else {
					m.deliver(1 + random.IntN(3))
				}
			}
		}
		m.deliver(random.IntN(20))
		for round := range 12 {
			for range random.IntN(3) {
				change()
			}
			// What may be listed: what is there all the while, at least; what
			// was there at some moment, at most.
			always, ever := slices.Clone(m.mails), slices.Clone(m.mails)
			during := func() {
				change()
				always = slices.DeleteFunc(always, func(x mail) bool { return !m.has(x) })
				ever = append(ever, m.mails...)
			}
			m.before, m.within = nil, nil
			quiet := random.IntN(2) == 0
			if !quiet {
				m.before = func(string) {
					if random.IntN(3) == 0 {
						during()
					}
				}
				m.within = func(int, uint32) {
					if random.IntN(10) == 0 {
						during()
					}
				}
			}
			m.unreadable = nil
			if random.IntN(6) == 0 && len(m.mails) > 0 {
				m.unreadable = map[uint32]bool{m.mails[random.IntN(len(m.mails))].uid: true}
			}
			switch random.IntN(12) {
			case 0:
				cache.values = nil
			case 1:
				for _, v := range cache.values {
					v[random.IntN(len(v))]++
				}
			}
			_, listed := poll(t, b)
			for i, x := range listed {
				if m.unreadable[x.uid] && x.size == 1 { // the size that is refused
					listed[i].size = int64(x.uid)*10 + 1
				}
			}
			if quiet && m.unreadable == nil && !slices.Equal(listed, m.mails) {
				t.Fatalf("seed %d, round %d: listed %v, want %v", seed, round, listed, m.mails)
			}
			for _, x := range always {
				if !slices.Contains(listed, x) {
					t.Fatalf("seed %d, round %d: %v is missing in %v; commands %q", seed, round, x, listed, m.commands)
				}
			}
			for _, x := range listed {
				if !slices.Contains(ever, x) {
					t.Fatalf("seed %d, round %d: %v was never there: %v; commands %q", seed, round, x, listed, m.commands)
				}
			}
			m.take()
			readable := m.unreadable == nil
			if m.before, m.within, m.unreadable = nil, nil, nil; !quiet || m.dumb && m.silent {
				continue
			}
			_, again := poll(t, b)
			if !slices.Equal(again, m.mails) {
				t.Fatalf("seed %d, round %d: listed again %v, want %v", seed, round, again, m.mails)
			}
			if commands, _ := m.take(); readable && !m.silent && len(commands) > 1 && !slices.ContainsFunc(listed, func(x mail) bool { return !slices.Contains(again, x) }) && len(again) == len(listed) {
				t.Fatalf("seed %d, round %d: an unchanged mailbox costs %q", seed, round, commands)
			}
		}
	}
}

// Criterion: a message whose size the server refuses stays in the listing, with its number and UIDL, and comes back with its size.
func TestAMessageWithoutSizeIsListed(t *testing.T) {
	m := newModel("")
	m.deliver(5)
	m.unreadable = map[uint32]bool{3: true}
	var told notices
	b := &Backend{LogIn: m.dial(t), Cache: &memory{}, Observer: &told}
	for _, commands := range [][]string{
		{"SELECT INBOX", "UID FETCH 1:* (UID RFC822.SIZE)", "UID SEARCH ALL", "UID FETCH 3 (UID RFC822.SIZE)"},
		{"SELECT INBOX", "UID FETCH 3 (UID RFC822.SIZE)"},
	} {
		told = nil
		_, listed := poll(t, b)
		if want := []mail{{1, 11}, {2, 21}, {3, 1}, {4, 41}, {5, 51}}; !slices.Equal(listed, want) {
			t.Errorf("listed %v, want %v", listed, want)
		}
		if len(told) != 1 || told[0].Kind != proxy.NoticeUnreadable || told[0].Messages != 1 || told[0].Account != "alice" {
			t.Errorf("notices %v, want one that the size of one message is refused", told)
		}
		if got, _ := m.take(); !slices.Equal(got, commands) {
			t.Errorf("commands %q, want %q", got, commands)
		}
	}
	m.unreadable = nil
	m.expunge(0)
	if _, listed := poll(t, b); !slices.Equal(listed, m.mails) {
		t.Errorf("listed %v, want %v", listed, m.mails)
	}
	m.take()
	poll(t, b)
	if got, _ := m.take(); len(got) != 1 {
		t.Errorf("an unchanged mailbox costs %q", got)
	}
}

// Criterion: a UIDNEXT that is not above all UIDs is believed no more, and no UIDL changes by it.
func TestAnUntrueUIDNEXT(t *testing.T) {
	m := newModel("")
	m.deliver(5)
	b := &Backend{LogIn: m.dial(t), Cache: &memory{}, Record: &memory{}}
	m.before = func(command string) {
		if strings.HasPrefix(command, "SELECT") {
			m.uidNext = 3
		}
	}
	for range 2 {
		var told notices
		b.Observer = &told
		for range 3 {
			if _, listed := poll(t, b); !slices.Equal(listed, m.mails) {
				t.Errorf("listed %v, want %v", listed, m.mails)
			}
		}
		if len(told) > 0 {
			t.Errorf("notices %v, want none", told)
		}
		m.uidNext = 6
		m.deliver(1)
		b = &Backend{LogIn: b.LogIn, Cache: b.Cache, Record: b.Record} // after a restart
	}
}

func TestCacheThatFailsCostsOnlyTime(t *testing.T) {
	m := newModel("")
	m.deliver(5)
	cache := &memory{err: fmt.Errorf("disk on fire")}
	var told notices
	b := &Backend{LogIn: m.dial(t), Cache: cache, Observer: &told}
	for range 2 {
		if _, listed := poll(t, b); !slices.Equal(listed, m.mails) {
			t.Errorf("listed %v, want %v", listed, m.mails)
		}
	}
	if len(told) != 4 { // read and write, twice
		t.Errorf("notices %v", told)
	}
}

func TestSizesThatWereLearntAreRemembered(t *testing.T) {
	_, b := serve(t, hello, short, first)
	b.Cache = &memory{}
	r := run(t, b)
	c := newPOP3(t, r.conn)
	_ = c.body("RETR 2")
	_ = c.line("QUIT")
	_ = r.wait(t)
	if got, want := newPOP3(t, run(t, b).conn).line("LIST 2"), "+OK 2 26\r\n"; got != want {
		t.Errorf("LIST 2 in the next session: %q, want %q", got, want)
	}
}

// BenchmarkPoll50000 is an unchanged mailbox of 50,000 messages.
func BenchmarkPoll50000(b *testing.B) {
	m := newModel("")
	m.deliver(50_000)
	backend := &Backend{LogIn: m.dial(b), Cache: &memory{}}
	open(b, backend)
	b.ReportAllocs()
	for b.Loop() {
		open(b, backend)
	}
}

// named returns a backend of an unchanged mailbox of 50,000 messages; with names,
// none of them has a UIDL that is computed.
func named(b *testing.B, names bool) *Backend {
	b.Helper()
	m := newModel("")
	m.deliver(50_000)
	backend := &Backend{LogIn: m.dial(b), Cache: &memory{}, Record: &memory{}}
	if names {
		imported(b, backend, m)
	}
	open(b, backend)
	return backend
}

// BenchmarkPoll50000Named is BenchmarkPoll50000 with a record: of computed UIDLs,
// of names, and of either with a listing of UIDL.
func BenchmarkPoll50000Named(b *testing.B) {
	for _, kind := range []string{"computed", "named"} {
		backend := named(b, kind == "named")
		b.Run(kind, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				open(b, backend)
			}
		})
		b.Run(kind+" and UIDL", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				session, err := show1(b, backend)
				if err == nil {
					err = session.readUIDLs(b.Context())
				}
				if err != nil {
					b.Fatal(err)
				}
				var line []byte
				for i := range session.maildrop.messages {
					line = session.uniqueID(line[:0], &session.maildrop.messages[i])
				}
				_ = session.Close()
			}
		})
	}
}
