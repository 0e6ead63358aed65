package bridge

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"

	"postern/bridge/inbox"
	"postern/proxy"
	"postern/proxy/proxytest"
)

// plain returns a Backend of m, which lacks UIDPLUS, and its record.
func (m *model) plain(t testing.TB) (b *Backend, cache, record *memory) {
	m.capabilities = "IMAP4rev1"
	b, cache, record, _ = m.bases(t)
	b.Estimates, b.KeepUnseen = true, true
	return b, cache, record
}

// listed returns the UIDs that a session shows, by their UIDLs of Dovecot.
func listed(t testing.TB, b *Backend) (uids []uint32) {
	t.Helper()
	_, mails := poll(t, b)
	for _, m := range mails {
		uids = append(uids, m.uid)
	}
	return uids
}

// dele runs a session that deletes messages by their numbers, and returns what
// QUIT was answered.
func dele(t *testing.T, b *Backend, numbers ...string) string {
	t.Helper()
	r := run(t, b)
	c := newPOP3(t, r.conn)
	for _, n := range numbers {
		if got := c.line("DELE " + n); !strings.HasPrefix(got, "+OK") {
			t.Errorf("DELE %s: %q", n, got)
		}
	}
	if _, err := io.WriteString(r.conn, "QUIT\r\n"); err != nil {
		t.Fatal(err)
	}
	answer, err := c.in.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	_ = r.wait(t)
	return answer
}

// Criterion: without UIDPLUS only the flag is set, never EXPUNGE, never CLOSE, and later sessions do not show the message, by a record of our own that outlives the cache and costs no command.
func TestDeletedMessagesHaveTombstones(t *testing.T) {
	m := newModel("")
	m.deliver(4)
	m.marked[1] = true // by another client
	b, cache, _ := m.plain(t)
	if got := dele(t, b, "2", "3"); got != "+OK Goodbye\r\n" {
		t.Fatalf("QUIT: %q", got)
	}
	commands, _ := m.take()
	want := []string{"SELECT INBOX", "UID FETCH 1:* (UID RFC822.SIZE)", `UID STORE 2:3 +FLAGS.SILENT (\Deleted)`}
	if len(commands) < 3 || !slices.Equal(commands[:3], want) || slices.ContainsFunc(commands, func(c string) bool { return strings.Contains(c, "EXPUNGE") || c == "CLOSE" }) {
		t.Errorf("commands %q", commands)
	}
	want = []string{"SELECT INBOX"}
	for _, step := range []struct {
		name   string
		change func()
		uids   []uint32
	}{
		{"unchanged", func() {}, []uint32{1, 4}},
		{"unmarked by another client", func() { m.marked[2] = false }, []uint32{1, 4}},
		{"the cache is lost", func() { cache.values = nil }, []uint32{1, 4}},
		{"UIDPLUS has come", func() { m.capabilities = "IMAP4rev1 UIDPLUS" }, []uint32{1, 4}},
		{"kept from now on", func() { b.Delete = Keep }, []uint32{1, 4}},
		{"one more", func() { m.deliver(1) }, []uint32{1, 4, 5}},
	} {
		step.change()
		if got := listed(t, b); !slices.Equal(got, step.uids) {
			t.Errorf("%s: %v is listed, want %v", step.name, got, step.uids)
		}
		if got, _ := m.take(); step.name == "unchanged" && !slices.Equal(got, want) {
			t.Errorf("%s: commands %q, want %q", step.name, got, want)
		}
	}
}

// Criterion: tombstones are no more than there are messages, stand for nothing while UIDVALIDITY is another one or in a restored backup, and stand for their messages again when UIDVALIDITY returns.
func TestTombstonesGoWithTheirMessages(t *testing.T) {
	for name, step := range map[string]struct {
		change func(m *model, cache *memory, b *Backend)
		uids   []uint32
		left   int
	}{
		"expunged by another client": {func(m *model, _ *memory, _ *Backend) { m.expunge(1) }, []uint32{1, 4, 5}, 1},
		"all of them":                {func(m *model, _ *memory, _ *Backend) { m.expunge(1); m.expunge(1) }, []uint32{1, 4, 5}, 0},
		"UIDVALIDITY":                {func(m *model, _ *memory, _ *Backend) { m.renumber(99, 1) }, []uint32{1, 2, 3, 4, 5}, 2},
		"UIDVALIDITY, and back": {func(m *model, _ *memory, b *Backend) {
			uidValidity, uidNext, mails := m.uidValidity, m.uidNext, m.mails
			m.uidValidity, m.uidNext, m.mails = 99, 1, nil
			listed(t, b)
			m.uidValidity, m.uidNext, m.mails = uidValidity, uidNext, mails
		}, []uint32{1, 4, 5}, 2},
		"backup":                    {func(m *model, _ *memory, _ *Backend) { m.mails, m.uidNext = m.mails[:3], 4 }, []uint32{1, 2, 3}, 0},
		"backup, without the cache": {func(m *model, c *memory, _ *Backend) { m.mails, m.uidNext, c.values = m.mails[:3], 4, nil }, []uint32{1, 2, 3}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			m := newModel("")
			m.deliver(5)
			b, cache, record := m.plain(t)
			dele(t, b, "2", "3")
			step.change(m, cache, b)
			if got := listed(t, b); !slices.Equal(got, step.uids) {
				t.Errorf("%v is listed, want %v", got, step.uids)
			}
			if stones, err := decodeTombstones(record.values[tombstonesKey("alice")]); err != nil || stones.number() != step.left {
				t.Errorf("tombstones %v, %v, want %d", stones, err, step.left)
			}
			m.deliver(3) // UIDs that have been there before are those of other messages
			if got := listed(t, b); len(got) != len(step.uids)+3 {
				t.Errorf("with three more %v is listed", got)
			}
		})
	}
}

// Criterion: QUIT is +OK only when the tombstones are on the disk; what happens before that leaves messages that are shown.
func TestTombstonesAreWrittenBeforeTheAnswer(t *testing.T) {
	m := newModel("")
	m.deliver(3)
	b, _, record := m.plain(t)
	listed(t, b)
	fails := &hooked{memory: record, before: func() { record.err = errors.New("disk on fire") }}
	b.Record = fails
	if got := dele(t, b, "2"); !strings.HasPrefix(got, "-ERR [SYS/TEMP] ") {
		t.Errorf("QUIT with a record that cannot be written: %q", got)
	}
	if !m.marked[2] {
		t.Error("STORE was not sent before")
	}
	record.err, b.Record = nil, record
	if got := listed(t, b); !slices.Equal(got, []uint32{1, 2, 3}) {
		t.Errorf("%v is listed, want all: the client was told that nothing is deleted", got)
	}
	if got := dele(t, b, "2"); got != "+OK Goodbye\r\n" {
		t.Errorf("QUIT: %q", got)
	}
	if got := listed(t, b); !slices.Equal(got, []uint32{1, 3}) {
		t.Errorf("%v is listed", got)
	}
}

func TestTwoSessionsBury(t *testing.T) {
	m := newModel("")
	m.deliver(4)
	b, _, _ := m.plain(t)
	first := run(t, b)
	c := newPOP3(t, first.conn)
	_ = c.line("DELE 1")
	if got := dele(t, b, "3"); got != "+OK Goodbye\r\n" {
		t.Errorf("QUIT: %q", got)
	}
	if got := c.line("QUIT"); got != "+OK Goodbye\r\n" {
		t.Errorf("QUIT: %q", got)
	}
	_ = first.wait(t)
	if got := listed(t, b); !slices.Equal(got, []uint32{2, 4}) {
		t.Errorf("%v is listed", got)
	}
}

// Criterion: an account whose tombstones cannot be read is refused for now, unless the operator wants to begin anew.
func TestTombstonesThatCannotBeRead(t *testing.T) {
	m := newModel("")
	m.deliver(2)
	b, _, record := m.plain(t)
	dele(t, b, "1")
	record.values[tombstonesKey("alice")][3] ^= 1
	if _, err := show(t, b); proxy.ReasonOf(err) != proxy.Unavailable || !errors.Is(err, errDamaged) {
		t.Errorf("damaged: %v, want a temporary refusal", err)
	}
	b.Recompute = true
	for range 2 {
		if got := listed(t, b); !slices.Equal(got, []uint32{1, 2}) {
			t.Errorf("begun anew: %v is listed", got)
		}
	}
	dele(t, b, "2")
	if got := listed(t, b); !slices.Equal(got, []uint32{1}) {
		t.Errorf("after that: %v is listed", got)
	}
}

// Criterion: CAPA says where another client has to free the space.
func TestCAPASaysThatSpaceIsNotFreed(t *testing.T) {
	for _, test := range []struct {
		capabilities string
		delete       Deletion
		said         bool
	}{
		{"IMAP4rev1", Expunge, true},
		{"IMAP4rev1", Trash, true},
		{"IMAP4rev1 MOVE", Trash, false},
		{"IMAP4rev1", Isolate, false},
		{"IMAP4rev1", Keep, false},
		{"IMAP4rev1 UIDPLUS", Expunge, false},
		{"IMAP4rev2", Expunge, false},
	} {
		near, far := proxytest.Pipe(t)
		go func() { _, _ = io.Copy(io.Discard, far) }()
		s := &session{backend: &Backend{Delete: test.delete}, inbox: inbox.New(near, test.capabilities, inbox.Options{})}
		s.out = s.backend.getWriter(io.Discard)
		var said strings.Builder
		s.out.Reset(&said)
		_ = s.capa()
		_ = s.out.Flush()
		if got := strings.Contains(said.String(), "\r\nX-SPACE-FREED-BY IMAP\r\n"); got != test.said {
			t.Errorf("%+v: CAPA %q", test, said.String())
		}
	}
}

// number returns how many tombstones there are.
func (d tombstoneSets) number() (n int) {
	for _, t := range d {
		n += len(t.uids)
	}
	return n
}

func TestTombstonesAreRemembered(t *testing.T) {
	want := tombstoneSets{{1<<32 - 1, 5, []uint32{1, 2, 900, 1<<32 - 1}}, {7, 0, []uint32{4}}}
	b := want.encode()
	got, err := decodeTombstones(b)
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%v comes back as %v, %v", want, got, err)
	}
	former := want[0].append([]byte{formerTombstones})
	former = binary.LittleEndian.AppendUint32(former, crc32.Checksum(former, castagnoli))
	if got, err := decodeTombstones(former); err != nil || !reflect.DeepEqual(got, want[:1]) {
		t.Errorf("in the form of before %v comes back as %v, %v", want[:1], got, err)
	}
	var many tombstoneSets
	for i := range uint32(9) {
		many = append(many, tombstones{uidValidity: i + 1, uids: []uint32{i + 1}})
	}
	if got, err := decodeTombstones(many.encode()); err != nil || !reflect.DeepEqual(got, many[:maxTombstoneSets]) {
		t.Errorf("of %v come back %v, %v, want the first %d", many, got, err, maxTombstoneSets)
	}
	for i := range b {
		spoilt := slices.Clone(b)
		spoilt[i] ^= 4
		if _, err := decodeTombstones(spoilt); err == nil {
			t.Errorf("octet %d damaged is not noticed", i)
		}
		if _, err := decodeTombstones(b[:i]); err == nil {
			t.Errorf("%d octets are taken for all", i)
		}
	}
	if b := (tombstoneSets{{uidValidity: 7}}).encode(); b != nil {
		t.Errorf("nothing is remembered as %v", b)
	}
}

func FuzzTombstones(f *testing.F) {
	f.Add(tombstoneSets{{7, 100, []uint32{3, 4, 99}}, {8, 0, []uint32{1}}}.encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		stones, err := decodeTombstones(b)
		if err != nil || stones.number() == 0 {
			return
		}
		if again, err := decodeTombstones(stones.encode()); err != nil || again.number() != stones.number() {
			t.Fatalf("%v comes back as %v, %v", stones, again, err)
		}
	})
}

// Criterion: whatever is delivered, marked, unmarked and removed between and during sessions, with UIDPLUS and without, POP3 lists all but what QUIT has confirmed to be deleted.
func TestDeletionsAreTrue(t *testing.T) {
	for seed := range uint64(200) {
		random := rand.New(rand.NewPCG(seed, 5))
		m := newModel([]string{"", "ESEARCH"}[random.IntN(2)])
		b, cache, _, _ := m.bases(t)
		b.KeepUnseen = true
		plain := random.IntN(2) == 0
		if plain {
			m.capabilities = strings.Replace(m.capabilities, "UIDPLUS", "", 1)
		}
		confirmed := make(map[uint32]bool)
		m.deliver(random.IntN(20))
		for round := range 10 {
			m.before = nil
			m.deliver(random.IntN(3))
			change := func() {
				if len(m.mails) == 0 {
					return
				}
				switch i := random.IntN(len(m.mails)); random.IntN(4) {
				case 0:
					m.expunge(i)
				case 1:
					m.marked[m.mails[i].uid] = true
				default: // after STORE the message survives UID EXPUNGE
					m.marked[m.mails[i].uid] = false
				}
			}
			change()
			if random.IntN(8) == 0 {
				cache.values = nil
			}
			session, err := show1(t, b)
			if err != nil {
				t.Fatal(err)
			}
			var want, got []uint32
			for _, x := range m.mails {
				if !confirmed[x.uid] {
					want = append(want, x.uid)
				}
			}
			for i := range session.maildrop.messages {
				x := &session.maildrop.messages[i]
				if got = append(got, x.uid); random.IntN(4) == 0 {
					session.maildrop.delete(x)
				}
			}
			if !slices.Equal(got, want) {
				t.Fatalf("seed %d, round %d: %v is listed, want %v; commands %q", seed, round, got, want, m.commands)
			}
			if random.IntN(2) == 0 {
				m.before = func(string) { change() }
			}
			marked := session.maildrop.uids(deleted, 0)
			if err := session.update(t.Context()); err != nil {
				t.Fatal(err)
			}
			for _, uid := range marked {
				confirmed[uid] = plain
			}
			session.inbox.ReleaseBuffers()
			session.updated = true
			_ = session.Close()
			m.take()
		}
	}
}
