package bridge

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"testing"

	"postern/bridge/uidl"
	"postern/proxy"
	"postern/proxy/proxytest"
)

var histories = flag.Int("histories", 400, "mailboxes of TestUIDLsNeverChange")

// show opens a session, returns its unique-ids by UID, and ends it with QUIT.
func show(t testing.TB, b *Backend) (ids map[uint32]string, err error) {
	t.Helper()
	session, err := show1(t, b)
	if err != nil {
		return nil, err
	}
	if err := session.readUIDLs(t.Context()); err != nil {
		_ = session.Close()
		return nil, err
	}
	ids = make(map[uint32]string)
	for i := range session.maildrop.messages {
		m := &session.maildrop.messages[i]
		ids[m.uid] = string(session.uniqueID(nil, m))
	}
	session.updated = true
	return ids, session.Close()
}

func show1(t testing.TB, b *Backend) (*session, error) {
	t.Helper()
	opened, err := b.Login(t.Context(), &proxy.Login{Account: "alice"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := opened.Open(t.Context()); err != nil {
		_ = opened.Close()
		return nil, err
	}
	return opened.(*session), nil
}

func shown(t testing.TB, b *Backend) map[uint32]string {
	t.Helper()
	ids, err := show(t, b)
	if err != nil {
		t.Fatal(err)
	}
	return ids
}

// bases returns a Backend of m that remembers all, and what it tells.
func (m *model) bases(t testing.TB) (b *Backend, cache, record *memory, told *notices) {
	cache, record, told = &memory{}, &memory{}, &notices{}
	return &Backend{LogIn: m.dial(t), Cache: cache, Record: record, Observer: told}, cache, record, told
}

// notices are what was told of maildrops, in order.
type notices []proxy.MaildropNoticed

func (n *notices) Observe(e proxy.Event) {
	if e, ok := e.(proxy.MaildropNoticed); ok {
		*n = append(*n, e)
	}
}

func format(t testing.TB, s string) uidl.Format {
	t.Helper()
	f, err := uidl.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// Criterion: after a change of UIDVALIDITY a message that is known again keeps its UIDL, another one gets a new one and is counted.
func TestUIDLsSurviveUIDVALIDITY(t *testing.T) {
	m := newModel("")
	m.deliver(10)
	b, _, _, notices := m.bases(t)
	before := shown(t, b)
	if got, want := before[3], "0000000300000007"; got != want || len(before) != 10 {
		t.Fatalf("%d UIDLs, the third %s, want %s", len(before), got, want)
	}
	// The third has gone, the others have moved, two have come.
	m.uidValidity, m.uidNext = 99, 21
	var moved []mail
	content := map[uint32]int{}
	for _, x := range slices.Delete(m.mails, 2, 3) {
		content[x.uid+10] = m.content[x.uid]
		moved = append(moved, mail{x.uid + 10, x.size})
	}
	m.mails, m.content = moved, content
	m.deliver(2)
	after := shown(t, b)
	for uid, id := range before {
		if uid != 3 && after[uid+10] != id {
			t.Errorf("%d was %s and is, as %d, %s", uid, id, uid+10, after[uid+10])
		}
	}
	if after[21] != "0000001500000063" || after[22] != "0000001600000063" {
		t.Errorf("the new ones are %s and %s", after[21], after[22])
	}
	if len(*notices) != 1 || (*notices)[0].Kind != proxy.NoticeRenumbered || (*notices)[0].Messages != 2 {
		t.Errorf("notices %v, want two that were not found again", *notices)
	}
	m.take()
	if again := shown(t, b); !maps.Equal(again, after) {
		t.Errorf("then they are %v, want %v", again, after)
	}
	if commands, _ := m.take(); len(commands) != 1 {
		t.Errorf("an unchanged mailbox costs %q", commands)
	}
}

func TestWithoutFingerprintsUIDLsAreNew(t *testing.T) {
	m := newModel("")
	m.deliver(3)
	b, _, _, notices := m.bases(t)
	session, err := show1(t, b)
	if err != nil {
		t.Fatal(err)
	}
	_ = session.Close() // without QUIT nothing is gathered
	m.uidValidity = 99
	if got := shown(t, b); got[1] != "0000000100000063" {
		t.Errorf("UIDLs %v", got)
	}
	if len(*notices) != 1 || (*notices)[0].Messages != 3 {
		t.Errorf("notices %v, want three that were not found again", *notices)
	}
}

// Criterion: fingerprints are gathered after QUIT, of each message once, and never before its answer.
func TestFingerprintsAreGatheredAfterQUIT(t *testing.T) {
	m := newModel("")
	m.deliver(250)
	b, _, _, _ := m.bases(t)
	session, err := show1(t, b)
	if err != nil {
		t.Fatal(err)
	}
	_ = session.Close() // the client has left
	if commands, _ := m.take(); len(commands) != 2 {
		t.Errorf("without QUIT: %q", commands)
	}
	shown(t, b)
	commands, _ := m.take()
	if len(commands) != 14 || !strings.HasPrefix(commands[1], "UID FETCH 231:250 (") || !strings.HasPrefix(commands[13], "UID FETCH 1:10 (") {
		t.Errorf("after QUIT: %q", commands)
	}
	m.deliver(1)
	shown(t, b)
	if commands, _ := m.take(); len(commands) != 3 || !strings.HasPrefix(commands[2], "UID FETCH 251 (") {
		t.Errorf("after one more: %q", commands)
	}
	shown(t, b)
	if commands, _ := m.take(); len(commands) != 1 {
		t.Errorf("unchanged: %q", commands)
	}
}

// An interrupted is a connection on which something happens before a write.
type interrupted struct {
	net.Conn
	at string // what is written
	do func()
}

func (i *interrupted) Write(p []byte) (int, error) {
	if strings.Contains(string(p), i.at) {
		i.do()
	}
	return i.Conn.Write(p)
}

// Criterion: gathering fingerprints gives way to the next login of the account.
func TestGatheringGivesWayToTheNextLogin(t *testing.T) {
	near, far := proxytest.Pipe(t)
	b := &Backend{LogIn: connected(near, capabilities), Cache: &memory{}, Record: &memory{}, Estimates: true}
	again := func() {
		_, err := b.Login(context.Background(), &proxy.Login{Account: "alice"})
		if proxy.ReasonOf(err) != proxy.Unavailable {
			t.Errorf("Login = %v, want no connection", err)
		}
	}
	proxytest.ServeTranscript(t, &interrupted{far, "40 INTERNALDATE", again}, opened(make([]int, 30)...)+`
		C: F1 UID FETCH 21:40 (*
		S- * 30 FETCH (UID 40 INTERNALDATE "22-Nov-2026 02:36:17 +0000" RFC822.SIZE 0 BODY[HEADER.FIELDS (Message-ID)] "")\r\n
		S: F1 OK x
		C: Q LOGOUT
		S: Q OK x
	`)
	r := run(t, b)
	proxytest.Transcript(t, r.conn, "C: QUIT\nS: +OK Goodbye")
	if err := r.wait(t); err != nil {
		t.Error(err)
	}
}

// Criterion: an account whose record of UIDLs cannot be read is refused for now, unless the operator wants new UIDLs.
func TestRecordThatCannotBeRead(t *testing.T) {
	m := newModel("")
	m.deliver(2)
	b, _, record, notices := m.bases(t)
	before := shown(t, b)
	b.UIDL = format(t, "cyrus")
	for name, spoil := range map[string]func([]byte) []byte{
		"damaged":                    func(v []byte) []byte { v[3] ^= 1; return v },
		"cut":                        func(v []byte) []byte { return v[:len(v)-1] },
		"written by a later version": func([]byte) []byte { return []byte{9, 1, 2, 3, 4, 5} },
		"empty":                      func([]byte) []byte { return []byte{} },
	} {
		whole := slices.Clone(record.values[key("alice")])
		record.values[key("alice")] = spoil(slices.Clone(whole))
		*notices = nil
		if ids, err := show(t, b); proxy.ReasonOf(err) != proxy.Unavailable || !errors.Is(err, uidl.ErrDamaged) {
			t.Errorf("%s: %v, %v, want a temporary refusal", name, ids, err)
		}
		if len(*notices) != 1 || (*notices)[0].Kind != proxy.NoticeRecord {
			t.Errorf("%s: notices %v", name, *notices)
		}
		record.values[key("alice")] = whole
	}
	if again := shown(t, b); !maps.Equal(before, again) {
		t.Errorf("once it can be read they are %v, want %v", again, before)
	}
	record.err = errors.New("disk on fire")
	if _, err := show(t, b); proxy.ReasonOf(err) != proxy.Unavailable {
		t.Errorf("a disk that fails gives %v", err)
	}
	record.err = nil
	record.values[key("alice")][0] ^= 1
	b.Recompute = true
	if got := shown(t, b); got[1] != "7.1" {
		t.Errorf("recomputed they are %v", got)
	}
}

// Criterion: what is shown is on the disk before it is shown.
func TestRecordIsWrittenFirst(t *testing.T) {
	m := newModel("")
	m.deliver(2)
	b, _, record, _ := m.bases(t)
	session, err := show1(t, b)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = session.Close() }()
	if r := recordOf(t, record, "alice"); string(r.Current().Append(nil, 2)) != "0000000200000007" {
		t.Errorf("while the session begins the record is %v", r)
	}
}

// Criterion: a lost cache changes no UIDL, nor does another format.
func TestUIDLsSurviveCacheAndFormat(t *testing.T) {
	m := newModel("")
	m.deliver(3)
	b, cache, _, _ := m.bases(t)
	before := shown(t, b)
	cache.values = nil
	b.UIDL = format(t, "UID%u-%v")
	if got := shown(t, b); !maps.Equal(got, before) {
		t.Errorf("UIDLs %v, want %v", got, before)
	}
	m.deliver(1)
	cache.values = map[string][]byte{key("alice"): {1, 2, 3}}
	got := shown(t, b)
	before[4] = "UID4-7"
	if !maps.Equal(got, before) {
		t.Errorf("UIDLs %v, want %v", got, before)
	}
}

func TestTwoSessionsAgreeAboutNewUIDLs(t *testing.T) {
	m := newModel("")
	m.deliver(3)
	b, _, record, _ := m.bases(t)
	shown(t, b)
	// While one session decides, another one does.
	first := true
	b.Record = &hooked{memory: record, before: func() {
		if first {
			first = false
			record.forget("alice")
			put(t, record, "alice", uidl.New(7, format(t, "cyrus")))
		}
	}}
	b.UIDL = format(t, "uw")
	if got := shown(t, b); got[1] != "7.1" {
		t.Errorf("UIDLs %v, want those of the other session", got)
	}
}

// A hooked is a memory that something happens to before an update.
type hooked struct {
	*memory
	before func()
}

func (h *hooked) Update(ctx context.Context, key string, change func([]byte) ([]byte, error)) error {
	h.before()
	return h.memory.Update(ctx, key, change)
}

func (h *hooked) UpdateAll(ctx context.Context, keys []string, change func(string, []byte) ([]byte, error)) error {
	h.before()
	return h.memory.UpdateAll(ctx, keys, change)
}

// recordOf returns the record of an account.
func recordOf(t testing.TB, bucket Bucket, account string) *uidl.Record {
	t.Helper()
	st, err := readStored(t.Context(), bucket, account)
	if err != nil {
		t.Fatal(err)
	}
	record, err := uidl.Decode(st.head, st.blocks)
	if err != nil {
		t.Fatal(err)
	}
	return record
}

// put makes a record the one of an account.
func put(t testing.TB, bucket Bucket, account string, record *uidl.Record) {
	t.Helper()
	if err := Import(t.Context(), bucket, AccountRecord{account, record}); err != nil {
		t.Fatal(err)
	}
}

// forget makes an account one of which the record has nothing.
func (m *memory) forget(account string) {
	for k := range m.values {
		if strings.HasPrefix(k, key(account)) {
			delete(m.values, k)
		}
	}
}

// Criterion: no UIDL ever changes, nor is given to another message, whatever is delivered and removed, and with UIDVALIDITY, backups, formats and caches that come and go.
func TestUIDLsNeverChange(t *testing.T) {
	formats := []string{"dovecot", "cyrus", "cyrus-old", "courier", "uw", "UID%u-%v"}
	for seed := range uint64(*histories) {
		random := rand.New(rand.NewPCG(seed, 3))
		m := newModel([]string{"", "ESEARCH"}[random.IntN(2)])
		m.uidValidity = 1700000000
		b, cache, record, _ := m.bases(t)
		owner, ids := map[string]int{}, map[int]string{}
		var hidden []mail
		var away *store
		changes := 0
		gathered := map[int]bool{}
		seen := uint32(1)
		for round := range 10 {
			for range random.IntN(4) {
				m.deliver(1)
			}
			if len(m.mails) > 0 && random.IntN(2) == 0 {
				m.expunge(random.IntN(len(m.mails)))
			}
			lost := false
			switch random.IntN(10) {
			case 0: // another UIDVALIDITY
				lost = true
				validity := 1700000000 + (m.uidValidity+1+random.Uint32N(3))%4
				if away != nil { // a UIDVALIDITY is not that of two mailboxes at once
					validity = 1900000000 + uint32(round)
					changes++
				}
				m.renumber(validity, 1+random.Uint32N(5))
			case 1: // a backup, on which other mail arrives
				// One that is no lower than what was seen is no backup to anybody.
				if n := len(m.mails); n > 2 && m.mails[n-1].uid+1 == m.uidNext && m.uidNext-1 < seen {
					lost = true
					m.mails = m.mails[:n-2]
					m.uidNext -= 2
					m.deliver(1)
				}
			case 2:
				b.UIDL = format(t, formats[random.IntN(len(formats))])
			case 3:
				cache.values = nil
			case 4: // a store that is not mounted, or is again
				lost = true
				if away == nil {
					changes = 1
					away = &store{m.uidValidity, m.uidNext, m.mails, m.content}
					m.uidValidity, m.uidNext, m.mails, m.content = 1800000000+uint32(round), 1, nil, map[uint32]int{}
				} else {
					if changes > 3 {
						clear(gathered) // the record has three generations of before
					}
					m.uidValidity, m.uidNext, m.mails, m.content, away = away.uidValidity, away.uidNext, away.mails, away.content, nil
				}
			case 5: // messages are hidden, or shown again
				if hidden == nil && len(m.mails) > 1 {
					hidden, m.mails = m.mails[:2], m.mails[2:]
				}
			case 6:
				if record.values[key("alice")] != nil { // exported and imported
					exported := recordOf(t, record, "alice")
					record.forget("alice")
					put(t, record, "alice", exported)
				}
			}
			if lost {
				hidden = nil
			}
			if hidden != nil && random.IntN(3) == 0 {
				m.mails, hidden = slices.Concat(hidden, m.mails), nil
			}
			m.take()
			got, err := show(t, b)
			if err != nil {
				commands, _ := m.take()
				t.Fatalf("seed %d, round %d: %v; mails %v, UIDNEXT %d, commands %q", seed, round, err, m.mails, m.uidNext, commands)
			}
			seen = m.uidNext
			for uid, id := range got {
				content := m.content[uid]
				if was, ok := owner[id]; ok && was != content {
					t.Fatalf("seed %d, round %d: %s was of message %d and is of %d", seed, round, id, was, content)
				}
				if was, ok := ids[content]; ok && was != id && (!lost || gathered[content]) {
					t.Fatalf("seed %d, round %d: message %d was %s and is %s", seed, round, content, was, id)
				}
				owner[id], ids[content] = content, id
			}
			for uid := range got {
				gathered[m.content[uid]] = true
			}
			if len(got) != len(m.mails) {
				t.Fatalf("seed %d, round %d: %d UIDLs for %d messages", seed, round, len(got), len(m.mails))
			}
		}
	}
}

// A store is a mailbox that is not mounted.
type store struct {
	uidValidity, uidNext uint32
	mails                []mail
	content              map[uint32]int
}

// renumber gives all messages other UIDs.
func (m *model) renumber(uidValidity, first uint32) {
	content := make(map[uint32]int)
	var moved []mail
	for _, x := range m.mails {
		content[first] = m.content[x.uid]
		moved = append(moved, mail{first, x.size})
		first++
	}
	m.uidValidity, m.uidNext, m.mails, m.content = uidValidity, first, moved, content
}

func TestKeysAreOfAccounts(t *testing.T) {
	if a, b := key("a"), fingerprintsKey("a"); a == b || !strings.HasPrefix(b, "a\x00") || fmt.Sprintf("%q", a) != `"a\x00INBOX"` {
		t.Errorf("%q, %q", a, b)
	}
}

// Criterion: the log of a session has a hash of the UIDLs before and after, and a change that nobody meant is a warning.
func TestUIDLsAreAudited(t *testing.T) {
	m := newModel("")
	m.deliver(3)
	b, _, record, notices := m.bases(t)
	poll := func() proxy.Totals {
		session, err := show1(t, b)
		if err != nil {
			t.Fatal(err)
		}
		_ = session.Close()
		return session.Totals()
	}
	first, second := poll(), poll()
	if first.UIDLsBefore == 0 || first.UIDLsAfter != first.UIDLsBefore || second != first {
		t.Errorf("two sessions of the same: %x, %x", first, second)
	}
	m.deliver(1)
	m.expunge(0)
	if third := poll(); third.UIDLsBefore == second.UIDLsAfter || len(*notices) > 0 {
		t.Errorf("with other messages: %x, notices %v", third, *notices)
	}
	session, err := show1(t, b)
	if err != nil {
		t.Fatal(err)
	}
	session.maildrop.delete(&session.maildrop.messages[0])
	if now := session.Totals(); now.UIDLsAfter != now.UIDLsBefore {
		t.Error("what is only marked has gone")
	}
	session.totals.Deleted = 1
	if now := session.Totals(); now.UIDLsAfter != now.UIDLsBefore-hashUIDL([]byte("0000000200000007")) {
		t.Errorf("after a removal: %x", now)
	}
	_ = session.Close()
	b.UIDL = format(t, "cyrus")
	put(t, record, "alice", uidl.New(7, b.UIDL)) // an operator has replaced them
	poll()
	if len(*notices) != 1 || (*notices)[0].Kind != proxy.NoticeChanged || (*notices)[0].Messages != 3 {
		t.Errorf("notices %v, want one of a change", *notices)
	}
}

// Criterion: the header of a message that was retrieved finds it again where INTERNALDATE is not what it was.
func TestHeadersFindMessagesAgain(t *testing.T) {
	m := newModel("")
	m.deliver(5)
	b, _, record, notices := m.bases(t)
	before := shown(t, b)
	session, err := show1(t, b)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		x := &session.maildrop.messages[i]
		w := session.hashHeader(x, io.Discard)
		_, _ = fmt.Fprintf(w, "Message-ID: <%d@x>\r\n\r\nbody\r\n", m.content[x.uid])
		session.keepHeaderHash(x, w)
	}
	session.updated = true
	_ = session.Close()
	if session, err = show1(t, b); err != nil {
		t.Fatal(err)
	}
	if w := session.hashHeader(&session.maildrop.messages[0], io.Discard); w != io.Discard {
		t.Error("a header is looked at again")
	}
	_ = session.Close()
	m.epoch += 1000
	m.renumber(99, 11)
	after := shown(t, b)
	for uid := range uint32(3) {
		if after[uid+11] != before[uid+1] {
			t.Errorf("%d was %s and is, as %d, %s", uid+1, before[uid+1], uid+11, after[uid+11])
		}
	}
	if len(*notices) != 1 || (*notices)[0].Messages != 2 {
		t.Errorf("notices %v, want two that were not found again", *notices)
	}
	if prints := recordOf(t, record, "alice").Current().Entries; len(prints) != 5 || prints[0].Header == 0 {
		t.Errorf("prints %v", prints)
	}
}

// The octets of RETR and TOP are looked at as they pass.
func TestHeadersAreSeenInPassing(t *testing.T) {
	_, b := serve(t, hello, short, first)
	record := &memory{}
	b.Cache, b.Record = &memory{}, record
	r := run(t, b)
	c := newPOP3(t, r.conn)
	_ = c.body("RETR 1")
	_ = c.body("TOP 2 0")
	_ = c.line("QUIT")
	_ = r.wait(t)
	prints := recordOf(t, record, "alice").Current().Entries
	if len(prints) != 3 || prints[2].Header != 0 || prints[2].Short == 0 {
		t.Fatalf("prints %v", prints)
	}
	for i, message := range []string{hello, short} {
		var h uidl.HeaderHash
		_, _ = io.WriteString(&h, message)
		if prints[i].Header != h.Sum() || h.Sum() == 0 {
			t.Errorf("message %d has the print %d, want %d", i+1, prints[i].Header, h.Sum())
		}
	}
}

func TestPrintsAreRemembered(t *testing.T) {
	prints := []uidl.Fingerprint{{UID: 1, Short: 5}, {UID: 2, Header: 7}, {UID: 1<<32 - 1, Short: 8, Header: 9}}
	b := encodePrints(prints)
	if got, err := decodeFingerprints(b); err != nil || !slices.Equal(got, prints) {
		t.Errorf("%v come back as %v, %v", prints, got, err)
	}
	for i := range b {
		spoilt := slices.Clone(b)
		spoilt[i] ^= 4
		if _, err := decodeFingerprints(spoilt); err == nil {
			t.Errorf("octet %d damaged is not noticed", i)
		}
		if _, err := decodeFingerprints(b[:i]); err == nil {
			t.Errorf("%d octets are taken for all", i)
		}
	}
}

func FuzzPrints(f *testing.F) {
	f.Add(encodePrints([]uidl.Fingerprint{{UID: 1, Short: 5}, {UID: 9, Short: 8, Header: 9}}))
	f.Fuzz(func(t *testing.T, b []byte) {
		prints, err := decodeFingerprints(b)
		if err != nil {
			return
		}
		if again, err := decodeFingerprints(encodePrints(prints)); err != nil || !slices.Equal(again, prints) {
			t.Fatalf("%v come back as %v, %v", prints, again, err)
		}
	})
}
