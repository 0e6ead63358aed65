package uidl

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
)

func parsed(t testing.TB, s string) Format {
	t.Helper()
	f, err := Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func (r *Record) show(uid uint32) string { return string(r.Current().Append(nil, uid)) }

// A storedRecord is a record as it is stored.
type storedRecord struct {
	head   []byte
	blocks map[string][]byte
}

// write stores r, and returns how many octets that were.
func (s *storedRecord) write(r *Record) (octets int) {
	head, blocks := r.Encode()
	s.head, octets = head, len(head)
	if s.blocks == nil {
		s.blocks = make(map[string][]byte)
	}
	for _, b := range blocks {
		octets += len(b.Value)
		if b.Value == nil {
			delete(s.blocks, b.Name)
		} else {
			s.blocks[b.Name] = b.Value
		}
	}
	return octets
}

func (s *storedRecord) sorted() (blocks []Block) {
	for _, name := range slices.Sorted(maps.Keys(s.blocks)) {
		blocks = append(blocks, Block{name, s.blocks[name]})
	}
	return blocks
}

func (s *storedRecord) read() (*Record, error) { return Decode(s.head, s.sorted()) }

// again returns r as it comes back from a store.
func again(t testing.TB, r *Record) *Record {
	t.Helper()
	var s storedRecord
	for _, g := range r.Generations { // all is written
		g.stored = nil
	}
	s.write(r)
	back, err := s.read()
	if err != nil {
		t.Fatal(err)
	}
	return back
}

// same reports whether two records say the same.
func same(a, b *Record) bool {
	x, err1 := json.Marshal(a)
	y, err2 := json.Marshal(b)
	return err1 == nil && err2 == nil && bytes.Equal(x, y)
}

// kept returns entries of messages that were found again.
func kept(names map[uint32]string) (entries []Entry) {
	for _, uid := range slices.Sorted(maps.Keys(names)) {
		entries = append(entries, Entry{UID: uid, UIDL: names[uid]})
	}
	return entries
}

// Criterion: a changed format concerns new messages only.
func TestChangedFormatConcernsNewMessages(t *testing.T) {
	r := New(17, Format{})
	if r.Use(parsed(t, "dovecot"), 100) || !r.Plain() {
		t.Error("the default by its name is a change")
	}
	if !r.Use(parsed(t, "cyrus"), 100) || !r.Use(parsed(t, "cyrus-old"), 120) || r.Plain() {
		t.Error("another format is no change")
	}
	for uid, want := range map[uint32]string{1: "0000000100000011", 99: "0000006300000011", 100: "17.100", 119: "17.119", 120: "120"} {
		if got := r.show(uid); got != want {
			t.Errorf("%d is %s, want %s", uid, got, want)
		}
	}
	// Nothing came between: nothing was shown with the format in between.
	if !r.Use(parsed(t, "uw"), 120) || len(r.Current().Eras) != 3 || r.show(120) != "0000001100000078" || r.show(119) != "17.119" {
		t.Errorf("eras %v", r.Current().Eras)
	}
}

// Criterion: no unique-id is ever given to another message, whatever UIDVALIDITY and the format do.
func TestUniqueIDsAreNeverGivenAgain(t *testing.T) {
	formats := []string{"dovecot", "cyrus", "cyrus-old", "courier", "uw", "UID%u-%v", "%u%v"}
	for seed := range uint64(500) {
		random := rand.New(rand.NewPCG(seed, 1))
		f := parsed(t, formats[random.IntN(len(formats))])
		validity, next := uint32(1700000000+random.IntN(3)), uint32(1)
		r, file := New(validity, f), storedRecord{}
		shown := make(map[string]int) // by message
		ids := make(map[int]string)
		type mail struct {
			id  int
			uid uint32
		}
		var box []mail
		ever := 0
		for range 12 {
			switch random.IntN(4) {
			case 0: // another UIDVALIDITY, or an old one again; some are known again
				next = uint32(1 + random.IntN(5))
				validity = uint32(1700000000 + random.IntN(3))
				var kept []Entry
				for i := range box {
					box[i].uid = next
					if random.IntN(3) > 0 {
						kept = append(kept, Entry{UID: next, UIDL: ids[box[i].id]})
					} else {
						box[i].id = ever // as good as new
						ever++
					}
					next += uint32(1 + random.IntN(2))
				}
				r.Renumber(validity, f, kept, 20000)
			case 1:
				f = parsed(t, formats[random.IntN(len(formats))])
			case 2:
				if len(box) > 0 {
					box = append(box[:0:0], box[1:]...)
				}
			}
			for range random.IntN(4) {
				box = append(box, mail{ever, next})
				ever, next = ever+1, next+1
			}
			fresh := next
			for _, m := range box { // what comes now is new
				if _, old := ids[m.id]; !old {
					fresh = min(fresh, m.uid)
				}
			}
			r.Use(f, fresh)
			var uids []uint32
			for _, m := range box {
				uids = append(uids, m.uid)
			}
			r.Separate(uids)
			r.Current().UIDNext = next
			r.Current().Mark(20000, func(uid uint32) int {
				if slices.Contains(uids, uid) {
					return 1
				}
				return -1
			}, func(uint32) bool { return false })
			file.write(r)
			again, err := file.read()
			if err != nil || !same(again, r) {
				t.Fatalf("seed %d: %v comes back as %v, %v", seed, r, again, err)
			}
			r = again
			for _, m := range box {
				id := r.show(m.uid)
				if owner, ok := shown[id]; ok && owner != m.id {
					t.Fatalf("seed %d: %s is given to %d and to %d", seed, id, owner, m.id)
				}
				if before, ok := ids[m.id]; ok && before != id {
					t.Fatalf("seed %d: message %d is %s, was %s", seed, m.id, id, before)
				}
				shown[id], ids[m.id] = m.id, id
				if !Valid(id) {
					t.Fatalf("%q is not valid", id)
				}
			}
		}
	}
}

func TestCollisionsGetASuffix(t *testing.T) {
	r := New(17, parsed(t, "cyrus-old"))
	r.Current().Entries = kept(map[uint32]string{3: "5", 4: "5-2"})
	if !r.Separate([]uint32{3, 4, 5, 6}) || r.show(5) != "5-3" || r.show(6) != "6" {
		t.Errorf("5 is %s, 6 is %s", r.show(5), r.show(6))
	}
	if r.Separate([]uint32{3, 4, 5, 6}) {
		t.Error("what is separate is separated")
	}
}

// Criterion: a name whose message has vanished is kept for 90 days and given to no other message meanwhile; its UID gets it back.
func TestNamesOfVanishedMessagesAreKept(t *testing.T) {
	r := New(17, parsed(t, "cyrus-old"))
	g := r.Current()
	g.Entries = []Entry{{UID: 3, UIDL: "50"}, {UID: 4, Short: 9}, {UID: 5, Short: 7}}
	there := map[uint32]bool{}
	mark := func(today Day) {
		g.Mark(today, func(uid uint32) int {
			if there[uid] {
				return 1
			}
			return -1
		}, func(uid uint32) bool { return uid == 5 })
	}
	mark(20000)
	if c := g.Counts(); c != (Counts{Entries: 2, Named: 1, Vanished: 2, VanishedNamed: 1}) {
		t.Errorf("after they have vanished: %+v", c)
	}
	g.UIDNext = 50
	if r.Separate([]uint32{50}); r.show(50) != "50-2" {
		t.Errorf("another message is %s", r.show(50))
	}
	mark(20000 + KeepFingerprints + 1)
	if c := g.Counts(); c.Entries != 2 || g.Find(4) != nil {
		t.Errorf("a print that is too old: %+v", c)
	}
	there[3] = true
	mark(20000 + KeepNames)
	if g.Find(3).Vanished != 0 || r.show(3) != "50" {
		t.Error("a message that has come back is taken for one that is gone")
	}
	there[3] = false
	mark(21000)
	mark(21000 + KeepNames)
	if g.Find(3) == nil {
		t.Error("a name is gone too early")
	}
	mark(21000 + KeepNames + 1)
	if g.Find(3) != nil {
		t.Error("a name is kept for too long")
	}
}

// What eras have computed, for messages that are gone, is not computed again.
func TestWhatAFormatHasGivenIsNotGivenByAnother(t *testing.T) {
	r := New(17, parsed(t, "%u"))
	r.Use(parsed(t, "%Xu"), 302)
	r.Current().UIDNext = 302
	if r.Separate([]uint32{0x301}); r.show(0x301) == "301" {
		t.Error("301 was that of UID 301")
	}
}

// Criterion: a record that is damaged, cut, mixed with blocks of another, or of another version is an error and never another record.
func TestDamagedRecords(t *testing.T) {
	r := New(17, parsed(t, "UID%u-%v"))
	r.Use(Format{}, 9)
	r.Current().Entries = []Entry{{UID: 1, UIDL: "abc", Short: 5}, {UID: 70, Short: 3, Header: 4, Vanished: 20000}}
	r.Renumber(18, Format{}, []Entry{{UID: 1, UIDL: "UID1-17"}, {UID: 2, UIDL: "UID2-17", Short: 9}, {UID: 500, UIDL: "x"}}, 20001)
	var file storedRecord
	file.write(r)
	if again, err := file.read(); err != nil || !same(again, r) || again.show(9) != r.show(9) || again.Version != 1 {
		t.Fatalf("%v comes back as %v, %v", r, again, err)
	}
	damaged := func(what string, head []byte, blocks []Block) {
		t.Helper()
		if _, err := Decode(head, blocks); !errors.Is(err, ErrDamaged) {
			t.Errorf("%s gives %v", what, err)
		}
	}
	for i := range file.head {
		spoilt := bytes.Clone(file.head)
		spoilt[i] ^= 0x10
		damaged(fmt.Sprintf("octet %d of the head", i), spoilt, file.sorted())
		damaged(fmt.Sprintf("%d octets of the head", i), file.head[:i], file.sorted())
	}
	blocks := file.sorted()
	if len(blocks) != 4 {
		t.Fatalf("there are %d blocks", len(blocks))
	}
	for n, b := range blocks {
		for i := range b.Value {
			spoilt := slices.Clone(blocks)
			spoilt[n].Value = bytes.Clone(b.Value)
			spoilt[n].Value[i] ^= 0x10
			damaged(fmt.Sprintf("octet %d of block %d", i, n), file.head, spoilt)
			spoilt[n].Value = b.Value[:i]
			damaged(fmt.Sprintf("%d octets of block %d", i, n), file.head, spoilt)
		}
		damaged(fmt.Sprintf("without block %d", n), file.head, slices.Delete(slices.Clone(blocks), n, n+1))
	}
	damaged("with one more", file.head, append(slices.Clone(blocks), Block{blockName(9, 9), encodeBlock(9, 9, []Entry{{UID: 9 * perBlock}})}))
	older := file.sorted()
	r.Current().Entries[0].UIDL = "another"
	file.write(r)
	damaged("blocks of the version before", file.head, older)
}

func TestRecordsAreCheapOnTheDisk(t *testing.T) {
	var file storedRecord
	if n := file.write(New(17, Format{})); n > 40 {
		t.Errorf("a record without entries has %d octets", n)
	}
	r := New(17, Format{})
	for uid := range uint32(10_000) {
		r.Current().Entries = append(r.Current().Entries, Entry{UID: uid + 1, Short: uint64(uid)<<40 | 1})
	}
	if n := file.write(r); n > 11*10_000 {
		t.Errorf("%d octets for the prints of 10000 messages", n)
	}
	for i := range r.Current().Entries {
		r.Current().Entries[i].UIDL = fmt.Sprintf("%08x65a1b2c3", 100_000+i*3)
	}
	if n := file.write(r); n > 25*10_000 {
		t.Errorf("%d octets for the names and prints of 10000 messages", n)
	}
}

// Criterion: to remove one name of 50,000 writes at most 8 KB, and so does a new message.
func TestChangesOfOneMessageWriteLittle(t *testing.T) {
	r := New(17, Format{})
	g := r.Current()
	for uid := range uint32(50_000) {
		g.Entries = append(g.Entries, Entry{UID: uid + 1, UIDL: fmt.Sprintf("%060d%010d", uid%7, uid), Short: 1, Header: 1})
	}
	var file storedRecord
	file.write(r)
	r, err := file.read()
	if err != nil {
		t.Fatal(err)
	}
	r.Current().Entries = slices.Delete(r.Current().Entries, 25_000, 25_001)
	if n := file.write(r); n > 8<<10 {
		t.Errorf("a name that goes writes %d octets", n)
	}
	r.Current().Entries[7].Vanished = 20000
	if n := file.write(r); n > 8<<10 {
		t.Errorf("a message that vanishes writes %d octets", n)
	}
	r.Current().Put([]Entry{{UID: 50_001, Short: 3}})
	if n := file.write(r); n > 8<<10 {
		t.Errorf("a message that comes writes %d octets", n)
	}
	if again, err := file.read(); err != nil || !same(again, r) || again.Version != 4 {
		t.Errorf("it does not come back: %v", err)
	}
}

// Criterion: what is exported says the same when it is imported: generations, prints, and names of messages that have vanished.
func TestRecordsAreExported(t *testing.T) {
	r := New(17, Format{})
	r.Use(parsed(t, "UID%u-%v"), 9)
	r.Current().Entries = []Entry{{UID: 3, UIDL: "abc", Short: 1 << 63, Header: 7, Vanished: 20000}, {UID: 4, Short: 3}}
	r.Current().UIDNext = 12
	r.Renumber(18, parsed(t, "cyrus-old"), []Entry{{UID: 1, UIDL: "abc"}}, 20001)
	b, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	var back Record
	if err := json.Unmarshal(b, &back); err != nil || back.Check() != nil || !same(&back, r) {
		t.Errorf("%s comes back as %v, %v", b, back, err)
	}
	if back := again(t, &back); !same(back, r) || back.show(2) != r.show(2) || back.show(1) != "abc" {
		t.Errorf("%s is stored as %v", b, back)
	}
	if err := json.Unmarshal([]byte(`{"uidvalidity":17,"eras":[{"from":1,"format":"dovecot"}],"named":[{"uid":3,"uidl":"x"}],"past":[5]}`), &back); err != nil || back.show(3) != "x" || back.SuffixesGiven != 1 {
		t.Errorf("an export of before gives %v, %v", back, err)
	}
	for _, wrong := range []string{`{"a":1}`, `{"named":[{"uid":3}]}`, `{"named":[{"uid":3,"uidl":"x"}],"messages":[{"uid":3}]}`, `{"messages":[{"uid":3,"short":"1"}]}`, `{"since":"x"}`, `{"since":"2200-01-01"}`} {
		if err := json.Unmarshal([]byte(wrong), &back); err == nil && back.Check() == nil {
			t.Errorf("%s passes", wrong)
		}
	}
}

func TestRecordsFromOutsideAreChecked(t *testing.T) {
	for name, spoil := range map[string]func(*Generation){
		"no UIDVALIDITY": func(g *Generation) { g.UIDValidity = 0 },
		"no era":         func(g *Generation) { g.Eras = nil },
		"a late era":     func(g *Generation) { g.Eras[0].From = 5 },
		"eras descend":   func(g *Generation) { g.Eras = append(g.Eras, Era{From: 1}) },
		"a long suffix":  func(g *Generation) { g.Eras[0].Suffix = "-123456789012" },
		"UID 0":          func(g *Generation) { g.Entries = []Entry{{UIDL: "a"}} },
		"UIDs descend":   func(g *Generation) { g.Entries = []Entry{{UID: 2, UIDL: "a"}, {UID: 1, UIDL: "b"}} },
		"a long one":     func(g *Generation) { g.Entries = []Entry{{UID: 2, UIDL: string(bytes.Repeat([]byte("a"), 71))}} },
		"a space":        func(g *Generation) { g.Entries = []Entry{{UID: 2, UIDL: "a b"}} },
		"the same of two that differ": func(g *Generation) {
			g.Entries = []Entry{{UID: 2, UIDL: "a", Header: 1}, {UID: 3, UIDL: "a", Header: 2}}
		},
	} {
		r := New(17, Format{})
		if spoil(r.Current()); r.Check() == nil {
			t.Errorf("%s passes", name)
		}
	}
	if err := New(17, Format{}).Check(); err != nil {
		t.Error(err)
	}
	if err := (&Record{}).Check(); err == nil {
		t.Error("no generation passes")
	}
}

// Criterion: exact copies that an old server showed with one UIDL keep it when it is imported, and after a change of UIDVALIDITY.
func TestExactCopiesShareAName(t *testing.T) {
	r := New(17, Format{})
	g := r.Current()
	g.Entries = []Entry{{UID: 1, UIDL: "same", Short: 5, Header: 9}, {UID: 2, UIDL: "other", Short: 6}, {UID: 3, UIDL: "same", Short: 5, Header: 9}}
	if err := r.Check(); err != nil {
		t.Fatal(err)
	}
	if r.Separate([]uint32{1, 2, 3, 4}) || r.show(1) != "same" || r.show(3) != "same" {
		t.Errorf("they are %s and %s", r.show(1), r.show(3))
	}
	entries, _ := r.Recognize([]Fingerprint{{UID: 11, Short: 6}, {UID: 12, Short: 5}, {UID: 13, Short: 5}, {UID: 14, Short: 5}})
	var got []string
	for _, e := range entries {
		got = append(got, e.UIDL)
	}
	if want := []string{"other", "same", "same", ""}; !slices.Equal(got, want) {
		t.Errorf("found again are %q, want %q", got, want)
	}
}

func TestMessagesAreRecognizedInOlderGenerations(t *testing.T) {
	r := New(17, Format{})
	r.Current().Entries = []Entry{{UID: 1, Short: 1}, {UID: 2, Short: 2}, {UID: 3, Short: 3, Vanished: 20000}, {UID: 4, Short: 4}}
	entries, _ := r.Recognize([]Fingerprint{{UID: 9, Short: 1}, {UID: 10, Short: 7}, {UID: 11, Short: 7}})
	r.Renumber(18, Format{}, entries, 20001)
	entries, _ = r.Recognize([]Fingerprint{{UID: 21, Short: 3}, {UID: 22, Short: 1}, {UID: 23, Short: 2}, {UID: 24, Short: 7}, {UID: 25, Short: 4}, {UID: 26, Short: 4}})
	var got []string
	for _, e := range entries {
		got = append(got, e.UIDL)
	}
	want := []string{"0000000300000011", "0000000100000011", "0000000200000011", "", "", ""}
	if !slices.Equal(got, want) {
		t.Errorf("found again are %q, want %q", got, want)
	}
}

func TestGenerationsReturn(t *testing.T) {
	r := New(17, Format{})
	r.Current().UIDNext = 9
	r.Current().Entries = []Entry{{UID: 1, UIDL: "abc", Short: 1}}
	r.Renumber(18, Format{}, nil, 20001)
	if r.Returns(17, 8) != nil || r.Returns(19, 9) != nil || r.Returns(18, 9) != nil {
		t.Error("what does not return returns")
	}
	if r.Returns(17, 0) == nil {
		t.Error("without UIDNEXT nothing returns")
	}
	g := r.Returns(17, 9)
	if g == nil {
		t.Fatal("nothing returns")
	}
	r.Return(g, 20002)
	if r = again(t, r); r.show(1) != "abc" || len(r.Generations) != 2 || r.Generations[1].UIDValidity != 18 {
		t.Errorf("1 is %s", r.show(1))
	}
	for v := range uint32(200) {
		r.Renumber(100+v, parsed(t, "cyrus-old"), nil, 20003)
		if r = again(t, r); len(r.Generations) > maxGenerations || len(r.Past) > maxPast {
			t.Fatalf("%d generations and %d UIDVALIDITYs are kept", len(r.Generations), len(r.Past))
		}
	}
	if r.show(5) != "5-202" {
		t.Errorf("5 is %s", r.show(5))
	}
}

// Criterion: a store that has another UIDVALIDITY at each poll, and is empty, pushes no names out of the record.
func TestEmptyGenerationsGoFirst(t *testing.T) {
	r := New(17, Format{})
	r.Current().UIDNext = 9
	r.Current().Entries = []Entry{{UID: 1, UIDL: "abc", Short: 1}}
	for v := range uint32(20) {
		r.Renumber(100+v, Format{}, nil, 20001)
		r = again(t, r)
	}
	if g := r.Returns(17, 9); g == nil || g.Find(1) == nil {
		t.Error("the names are gone")
	}
}

// Criterion: uidl undo gives messages the names of the generation before, takes none from another message, and gives no name away that was shown since.
func TestUndo(t *testing.T) {
	r := New(17, Format{})
	if r.Undo() != 0 {
		t.Error("nothing is undone")
	}
	r.Current().UIDNext = 5
	r.Current().Entries = []Entry{{UID: 1, UIDL: "one", Short: 1}, {UID: 2, Short: 2}, {UID: 3, UIDL: "three", Short: 3}, {UID: 4, Short: 4}}
	r.Renumber(18, Format{}, []Entry{{UID: 11, Short: 1}, {UID: 12, Short: 2}, {UID: 13, UIDL: "three", Short: 33}, {UID: 14, Short: 3}, {UID: 15, Short: 5}}, 20001)
	since := r.show(12)
	if n := r.Undo(); n != 2 {
		t.Errorf("%d are others, want 2", n)
	}
	r = again(t, r)
	for uid, want := range map[uint32]string{11: "one", 12: "0000000200000011", 13: "three", 14: "0000000e00000012", 15: "0000000f00000012"} {
		if r.show(uid) != want {
			t.Errorf("%d is %s, want %s", uid, r.show(uid), want)
		}
	}
	r.Use(parsed(t, "cyrus-old"), 16)
	if r.Separate([]uint32{16}); r.show(16) == since {
		t.Errorf("%s is given away", since)
	}
	if n := r.Undo(); n != 2 || r.show(12) != since {
		t.Errorf("undone again: %d, %s", n, r.show(12))
	}
}

// encodeFormer is what wrote records of version 1.
func encodeFormer(uidValidity uint32, past []uint32, eras []Era, entries []Entry) []byte {
	b := binary.AppendUvarint([]byte{formerVersion}, uint64(uidValidity))
	b = binary.AppendUvarint(b, uint64(len(past)))
	for _, v := range past {
		b = binary.AppendUvarint(b, uint64(v))
	}
	b = binary.AppendUvarint(b, uint64(len(eras)))
	for _, e := range eras {
		b = binary.AppendUvarint(b, uint64(e.From))
		b = appendString(appendString(b, e.Format.String()), e.Suffix)
	}
	b = binary.AppendUvarint(b, uint64(len(entries)))
	last := uint32(0)
	for _, e := range entries {
		b = binary.AppendUvarint(b, uint64(e.UID-last))
		b = appendString(append(b, 0), e.UIDL)
		last = e.UID
	}
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

// Criterion: a record of version 1 is read, and is converted by its first write.
func TestRecordsOfVersion1(t *testing.T) {
	value := encodeFormer(17, []uint32{5, 6, 5}, []Era{{From: 1}, {From: 9, Format: parsed(t, "UID%u-%v"), Suffix: "-4"}}, []Entry{{UID: 3, UIDL: "abc"}, {UID: 4, UIDL: "abd"}})
	r, err := Decode(value, nil)
	if err != nil || !r.Former() || !r.Current().Loaded() || r.Version != 0 || r.SuffixesGiven != 3 {
		t.Fatalf("%+v, %v", r, err)
	}
	for i := range value {
		spoilt := bytes.Clone(value)
		if spoilt[i] ^= 0x10; i > 0 {
			if _, err := Decode(spoilt, nil); !errors.Is(err, ErrDamaged) {
				t.Errorf("octet %d damaged gives %v", i, err)
			}
		}
	}
	var file storedRecord
	file.write(r)
	back, err := file.read()
	if err != nil || back.Former() || back.Version != 1 || !same(back, r) {
		t.Fatalf("it becomes %+v, %v", back, err)
	}
	for uid, want := range map[uint32]string{3: "abc", 4: "abd", 5: "0000000500000011", 9: "UID9-17-4"} {
		if back.show(uid) != want {
			t.Errorf("%d is %s, want %s", uid, back.show(uid), want)
		}
	}
}

func FuzzFormerRecord(f *testing.F) {
	b := encodeFormer(17, []uint32{5, 6}, []Era{{From: 1}}, []Entry{{UID: 3, UIDL: "abc"}, {UID: 9, UIDL: "abd"}})
	f.Add(b[:len(b)-4])
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 0 {
			b[0] = formerVersion
		}
		r, err := DecodeHead(binary.LittleEndian.AppendUint32(slices.Clip(b), crc32.Checksum(b, castagnoli)))
		if err != nil {
			return
		}
		if back := again(t, r); !same(back, r) {
			t.Fatalf("%v comes back as %v", r, back)
		}
	})
}

func FuzzRecordHead(f *testing.F) {
	r := New(17, Format{})
	r.Use(parsed(f, "UID%u-%v"), 9)
	r.Current().Entries = kept(map[uint32]string{3: "abc"})
	r.Renumber(18, Format{}, nil, 20000)
	head, _ := r.Encode()
	f.Add(head[:len(head)-4])
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := DecodeHead(binary.LittleEndian.AppendUint32(slices.Clip(b), crc32.Checksum(b, castagnoli)))
		if err != nil {
			return
		}
		head, blocks := r.Encode()
		if back, err := DecodeHead(head); err != nil || back.Version != r.Version || len(back.Generations) != len(r.Generations) || back.Current().Counts() != r.Current().Counts() {
			t.Fatalf("%v comes back as %v with %d blocks, %v", r, back, len(blocks), err)
		}
	})
}

func FuzzRecordBlock(f *testing.F) {
	b := encodeBlock(3, 1, []Entry{{UID: 64, UIDL: "abc", Short: 1}, {UID: 70, UIDL: "abd", Header: 2, Vanished: 3}, {UID: 127, Short: 9}})
	f.Add(uint32(3), uint32(1), b[:len(b)-4])
	f.Fuzz(func(t *testing.T, serial, number uint32, b []byte) {
		value := binary.LittleEndian.AppendUint32(slices.Clip(b), seal(serial, number, b))
		var entries []Entry
		err := decodeBlock(serial, number, value, func(e Entry, name []byte) {
			e.UIDL = string(name)
			entries = append(entries, e)
		})
		if err != nil {
			return
		}
		var back []Entry
		if err := decodeBlock(serial, number, encodeBlock(serial, number, entries), func(e Entry, name []byte) {
			e.UIDL = string(name)
			back = append(back, e)
		}); err != nil || !slices.Equal(entries, back) {
			t.Fatalf("%v comes back as %v, %v", entries, back, err)
		}
	})
}

func BenchmarkRecord(b *testing.B) {
	r := New(17, Format{})
	for i := range uint32(50_000) {
		e := Entry{UID: i + 1, Short: uint64(i) << 40}
		if i < 25_000 {
			e.UIDL = fmt.Sprintf("%08x65a1b2c3", 100_000+i*3)
		}
		r.Current().Entries = append(r.Current().Entries, e)
	}
	var file storedRecord
	b.Logf("%d octets", file.write(r))
	blocks := file.sorted()
	b.Run("decode", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := Decode(file.head, blocks); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("decode UIDLs", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			r, err := DecodeHead(file.head)
			if err == nil {
				_, err = r.Current().DecodeUIDLs(blocks)
			}
			if err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("encode", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			r.Encode()
		}
	})
}
