package bridge

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"postern/bridge/uidl"
	"postern/proxy"
)

// imported gives alice's messages names that no format computes.
func imported(t testing.TB, b *Backend, m *model) {
	t.Helper()
	r := uidl.New(m.uidValidity, b.UIDL)
	var entries []uidl.Entry
	for _, x := range m.mails {
		entries = append(entries, uidl.Entry{UID: x.uid, UIDL: fmt.Sprintf("OLD-%d", m.content[x.uid])})
	}
	r.Current().Put(entries)
	put(t, b.Record, "alice", r)
}

// Criterion: when a store is not mounted for a while (an empty INBOX with another UIDVALIDITY) and is back, all UIDLs are those of before, imported ones too.
func TestUIDLsSurviveAStoreThatIsNotMounted(t *testing.T) {
	for name, during := range map[string]func(m *model){
		"empty":                    func(*model) {},
		"mail comes meanwhile":     func(m *model) { m.deliver(2) },
		"the cache is lost, too":   nil,
		"UIDVALIDITY stays":        func(m *model) { m.uidValidity = 7; m.uidNext = 6 },
		"another store after that": func(m *model) { m.uidValidity = 100 },
	} {
		t.Run(name, func(t *testing.T) {
			m := newModel("")
			m.deliver(5)
			b, cache, _, _ := m.bases(t)
			imported(t, b, m)
			before := shown(t, b)
			mails, content := m.mails, m.content
			m.mails, m.content, m.uidValidity, m.uidNext = nil, map[uint32]int{}, 99, 1
			for range 2 {
				shown(t, b)
				if during != nil {
					during(m)
				} else {
					cache.values = nil
				}
			}
			shown(t, b)
			m.mails, m.content, m.uidValidity, m.uidNext = mails, content, 7, 6
			for range 2 {
				if got := shown(t, b); !maps.Equal(got, before) {
					t.Errorf("they are %v, want %v", got, before)
				}
			}
			m.deliver(1)
			if got := shown(t, b); len(got) != 6 || got[6] == "" || got[1] != before[1] {
				t.Errorf("with one more they are %v", got)
			}
		})
	}
}

// Criterion: messages that are copied to another server while clients poll keep their UIDLs, also those that come late.
func TestUIDLsSurviveAMoveThatTakesHours(t *testing.T) {
	m := newModel("")
	m.deliver(6)
	b, _, _, _ := m.bases(t)
	imported(t, b, m)
	before := shown(t, b)
	content := m.content
	m.renumber(99, 1)
	all := m.mails
	for n := range 7 {
		m.mails, m.uidNext = all[:n], uint32(n+1)
		got := shown(t, b)
		for uid, id := range got {
			if id != before[uid] || content[uid] != m.content[uid] {
				t.Errorf("after %d, %d is %s, want %s", n, uid, id, before[uid])
			}
		}
	}
}

// Criterion: what a server does not answer about fingerprints is no proof that a message is new: nothing is written, and the client is told to come again.
func TestHalfAnsweredFingerprintsAreTemporary(t *testing.T) {
	m := newModel("")
	m.deliver(400)
	b, _, record, notices := m.bases(t)
	b.Estimates = true
	before := shown(t, b)
	for range 3 {
		shown(t, b)
	}
	m.renumber(99, 1001)
	*notices = nil
	whole := maps.Clone(record.values)
	unanswered := func(n int) {
		m.hidden = make(map[uint32]bool)
		for i := range n {
			m.hidden[m.mails[i*7].uid] = true
		}
	}
	unanswered(5) // 1 % is 4
	if _, err := show(t, b); proxy.ReasonOf(err) != proxy.Unavailable || !errors.Is(err, errUnanswered) {
		t.Errorf("five without a print: %v", err)
	}
	if !maps.EqualFunc(record.values, whole, bytes.Equal) {
		t.Error("the record is another one")
	}
	unanswered(4)
	after := shown(t, b)
	others := 0
	for uid, id := range after {
		if before[uid-1000] != id {
			others++
		}
	}
	if others != 4 || (*notices)[len(*notices)-1].Messages != 4 {
		t.Errorf("%d messages have other UIDLs, want the four that are never answered; notices %v", others, *notices)
	}
}

// Criterion: a record that is not there, of an account that the cache knows, was lost: the client is told to come again, and nothing is recomputed unless the operator wants that.
func TestARecordThatWasLostIsNoNewOne(t *testing.T) {
	m := newModel("")
	m.deliver(3)
	b, cache, record, notices := m.bases(t)
	imported(t, b, m)
	before := shown(t, b)
	kept := maps.Clone(record.values)
	record.forget("alice")
	for range 2 {
		if _, err := show(t, b); proxy.ReasonOf(err) != proxy.Unavailable || !errors.Is(err, errRecordLost) {
			t.Fatalf("a lost record gives %v", err)
		}
	}
	record.values = maps.Clone(kept)
	if got := shown(t, b); !maps.Equal(got, before) {
		t.Errorf("when it is back they are %v", got)
	}
	for k := range record.values {
		if strings.Contains(k, blocksOf) {
			delete(record.values, k)
		}
	}
	session, err := show1(t, b) // nothing has changed, so that nothing is read
	if err != nil {
		t.Fatal(err)
	}
	if err := session.readUIDLs(t.Context()); !errors.Is(err, uidl.ErrDamaged) {
		t.Errorf("a record without blocks gives %v", err)
	}
	_ = session.Close()
	if _, err := show(t, b); !errors.Is(err, uidl.ErrDamaged) {
		t.Errorf("a record without blocks gives %v in the next session", err)
	}
	record.forget("alice")
	b.Recompute = true
	*notices = nil
	if got := shown(t, b); got[1] != "0000000100000007" || len(*notices) == 0 || (*notices)[0].Kind != proxy.NoticeRecomputed {
		t.Errorf("recomputed they are %v, notices %v", got, *notices)
	}
	// What an operator has forgotten is not lost.
	b.Recompute = false
	if n, err := Forget(t.Context(), cache, record, func(string) bool { return true }); n != 1 || err != nil {
		t.Errorf("forgotten: %d, %v", n, err)
	}
	if _, err := show(t, b); err != nil {
		t.Errorf("forgotten: %v", err)
	}
	// Nor is it when a session was open meanwhile.
	if session, err = show1(t, b); err != nil {
		t.Fatal(err)
	}
	if _, err := Forget(t.Context(), cache, record, func(string) bool { return true }); err != nil {
		t.Error(err)
	}
	session.updated, session.maildrop.changed, session.cacheSum = true, true, 0
	_ = session.Close()
	if _, err := show(t, b); err != nil {
		t.Errorf("forgotten while a session was open: %v", err)
	}
}

// Criterion: UIDL is -ERR [SYS/TEMP] when the names in the record cannot be read, and nothing else fails.
func TestNamesThatCannotBeRead(t *testing.T) {
	m := newModel("")
	m.deliver(3)
	b, _, record, notices := m.bases(t)
	b.Estimates = true
	imported(t, b, m)
	shown(t, b)
	r := run(t, b)
	c := newPOP3(t, r.conn)
	record.mu.Lock()
	record.err = errors.New("disk on fire")
	record.mu.Unlock()
	_, _ = io.WriteString(r.conn, "UIDL 1\r\n")
	if got, _ := c.in.ReadString('\n'); !strings.HasPrefix(got, "-ERR [SYS/TEMP] ") {
		t.Errorf("UIDL: %q", got)
	}
	if got := c.line("LIST 1"); !strings.HasPrefix(got, "+OK ") {
		t.Errorf("LIST: %q", got)
	}
	record.mu.Lock()
	record.err = nil
	record.mu.Unlock()
	if got := c.line("UIDL 1"); got != "+OK 1 OLD-0\r\n" {
		t.Errorf("UIDL when it can be read: %q, notices %v", got, *notices)
	}
	_ = c.line("QUIT")
	_ = r.wait(t)
}

// Criterion: the name of a message that has vanished is kept for 90 days, and the same UID gets it back.
func TestNamesOfHiddenMessagesComeBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newModel("")
		m.deliver(3)
		b, _, record, _ := m.bases(t)
		imported(t, b, m)
		before := shown(t, b)
		all := m.mails
		for _, days := range []int{1, 89, 89} {
			m.mails = all[1:]
			shown(t, b)
			time.Sleep(time.Duration(days) * 24 * time.Hour)
			shown(t, b)
			m.mails = all
			if got := shown(t, b); !maps.Equal(got, before) {
				t.Errorf("after %d days they are %v, want %v", days, got, before)
			}
		}
		m.mails = all[1:]
		shown(t, b)
		time.Sleep(92 * 24 * time.Hour)
		shown(t, b)
		if c := recordOf(t, record, "alice").Current().Counts(); c.Named != 2 {
			t.Errorf("after 92 days there are %+v", c)
		}
	})
}

// Criterion: a record and prints of before this form are taken over by the first session that ends with QUIT, with the same UIDLs, also over a change of UIDVALIDITY.
func TestRecordsOfBeforeAreConverted(t *testing.T) {
	for _, moved := range []bool{false, true} {
		m := newModel("")
		m.deliver(3)
		b, cache, record, _ := m.bases(t)
		shown(t, b)
		var prints []uidl.Fingerprint
		for _, e := range recordOf(t, record, "alice").Current().Entries {
			prints = append(prints, uidl.Fingerprint{UID: e.UID, Short: e.Short})
		}
		known, err := decodeSnapshot(cache.values[key("alice")])
		if err != nil {
			t.Fatal(err)
		}
		// As the release before has left it: %08Xu%08Xv, and 2 has a name.
		record.values = map[string][]byte{key("alice"): castagnoliOf([]byte("\x01\x07\x00\x01\x01\x0a%08Xu%08Xv\x00\x01\x02\x00\x03two"))}
		cache.values = map[string][]byte{key("alice"): formerly(known), fingerprintsKey("alice"): encodePrints(prints)}
		want := map[uint32]string{1: "0000000100000007", 2: "two", 3: "0000000300000007"}
		if moved {
			m.renumber(99, 1)
		}
		for range 2 {
			if got := shown(t, b); !maps.Equal(got, want) {
				t.Errorf("moved: %v: they are %v, want %v", moved, got, want)
			}
		}
		if r := recordOf(t, record, "alice"); r.Former() || r.Current().Counts().Entries != 3 || r.Current().Entries[0].Short != prints[0].Short {
			t.Errorf("moved: %v: the record is %v", moved, r.Current())
		}
		if cache.values[fingerprintsKey("alice")] != nil && !moved {
			t.Error("the prints are in the cache still")
		}
	}
}

// formerly returns a snapshot as the release before has encoded it.
func formerly(s snapshot) []byte {
	s.record = stamp{}
	b := s.encode()
	zero := make([]byte, 16)
	i := bytes.Index(b, zero)
	b = slices.Delete(slices.Clone(b[:len(b)-4]), i, i+16)
	b[0] = formerCache
	return castagnoliOf(b)
}

// Criterion: removing one message of 50,000 with names writes at most 8 KB to the record, and a new one, too.
func TestChangesOfALargeMaildropWriteLittle(t *testing.T) {
	m := newModel("")
	m.deliver(50_000)
	b, _, record, _ := m.bases(t)
	b.Estimates = true
	imported(t, b, m)
	poll := func() {
		t.Helper()
		session, err := show1(t, b)
		if err != nil {
			t.Fatal(err)
		}
		for i := range session.maildrop.messages {
			session.maildrop.messages[i].marks |= fingerprinted // as if that were done
		}
		session.updated, session.maildrop.changed = true, true
		_ = session.Close()
	}
	poll()
	poll() // the first one of a day takes the marks away: there are no prints
	for name, change := range map[string]func(){
		"one is removed": func() { m.expunge(20_000) },
		"one has come":   func() { m.deliver(1) },
	} {
		change()
		record.octets = 0
		session, err := show1(t, b)
		if err != nil {
			t.Fatal(err)
		}
		session.updated = true
		_ = session.Close()
		if record.octets == 0 || record.octets > 8<<10 {
			t.Errorf("%s: %d octets are written", name, record.octets)
		}
	}
}

// Criterion: two Posterns, or two sessions, that write the same record do not overwrite each other.
func TestAWriteOfAnotherSessionIsNotLost(t *testing.T) {
	m := newModel("")
	m.deliver(3)
	b, _, record, _ := m.bases(t)
	shown(t, b)
	version := recordOf(t, record, "alice").Version
	hooked := &hooked{memory: record, before: func() {}}
	first := true
	hooked.before = func() {
		if !first {
			return
		}
		first = false
		if err := changeRecord(t.Context(), record, "alice", func(st stored) (*uidl.Record, error) {
			r, err := uidl.Decode(st.head, st.blocks)
			if err == nil {
				r.Current().Put([]uidl.Entry{{UID: 1, Header: 77}})
			}
			return r, err
		}); err != nil {
			t.Error(err)
		}
	}
	b.Record = hooked
	m.deliver(1)
	shown(t, b)
	r := recordOf(t, record, "alice")
	if r.Version != version+2 || r.Current().Find(1).Header != 77 || r.Current().Find(4) == nil {
		t.Errorf("version %d after %d, entries %v", r.Version, version, r.Current().Entries)
	}
}

// Criterion: while a mailbox is moved, a new message that the server cannot read keeps nobody from the others.
func TestANewMessageThatCannotBeReadAfterAMove(t *testing.T) {
	m := newModel("")
	m.deliver(3)
	b, _, _, _ := m.bases(t)
	before := shown(t, b)
	m.renumber(99, 11)
	shown(t, b)
	m.deliver(1)
	m.hidden, m.unreadable = nil, nil
	m.refused = func(command string) bool {
		return strings.HasPrefix(command, "UID FETCH") && strings.Contains(command, "INTERNALDATE") && !strings.HasPrefix(command, "UID FETCH 13") && strings.Contains(command, "14")
	}
	after := shown(t, b)
	if len(after) != 4 || after[11] != before[1] || after[13] != before[3] || after[14] != "0000000e00000063" {
		t.Errorf("they are %v, and were %v", after, before)
	}
	m.refused = nil
	if again := shown(t, b); !maps.Equal(again, after) {
		t.Errorf("then they are %v, and were %v", again, after)
	}
	// A server that answers about none is no server whose messages cannot be read.
	m.deliver(1)
	m.refused = func(command string) bool { return strings.Contains(command, "INTERNALDATE") }
	if ids, err := show(t, b); !errors.Is(err, errUnanswered) {
		t.Errorf("while the server answers about no message: %v, %v", ids, err)
	}
}

// Criterion: a server that answers about no message after a QUIT is asked again after the next one, and about a message that has had no answer on the next day.
func TestFingerprintsAreAskedForAgain(t *testing.T) {
	asks := func(m *model) (n int) {
		for _, command := range m.commands {
			if strings.Contains(command, "INTERNALDATE") {
				n++
			}
		}
		m.commands = nil
		return n
	}
	for name, refuse := range map[string]func(m *model){
		"NO":     func(m *model) { m.refused = func(c string) bool { return strings.Contains(c, "INTERNALDATE") } },
		"no row": func(m *model) { m.hidden = map[uint32]bool{1: true, 2: true, 3: true, 4: true, 5: true} },
	} {
		t.Run(name, func(t *testing.T) {
			m := newModel("")
			m.deliver(5)
			b, _, _, _ := m.bases(t)
			refuse(m)
			before := shown(t, b)
			m.refused, m.hidden = nil, nil
			shown(t, b)
			m.renumber(99, 11)
			for uid, id := range shown(t, b) {
				if before[uid-10] != id {
					t.Errorf("%d is %s, and was %s", uid, id, before[uid-10])
				}
			}
		})
	}
	synctest.Test(t, func(t *testing.T) {
		m := newModel("")
		m.deliver(3)
		b, _, _, _ := m.bases(t)
		m.unreadable = map[uint32]bool{2: true}
		m.refused = nil
		shown(t, b)
		asks(m)
		shown(t, b)
		if n := asks(m); n != 0 {
			t.Errorf("on the same day there are %d questions, want none", n)
		}
		time.Sleep(25 * time.Hour)
		m.unreadable = nil
		shown(t, b)
		shown(t, b)
		if n := asks(m); n != 1 {
			t.Errorf("on the next day there are %d questions, want 1", n)
		}
		shown(t, b)
		if n := asks(m); n != 0 {
			t.Errorf("then there are %d questions, want none", n)
		}
	})
}
