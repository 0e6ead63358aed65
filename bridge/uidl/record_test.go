package uidl

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
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

func (r *Record) show(uid uint32) string { return string(r.Append(nil, uid)) }

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
	if !r.Use(parsed(t, "uw"), 120) || len(r.Eras) != 3 || r.show(120) != "0000001100000078" || r.show(119) != "17.119" {
		t.Errorf("eras %v", r.Eras)
	}
}

// Criterion: no unique-id is ever given to another message, whatever UIDVALIDITY and the format do.
func TestUniqueIDsAreNeverGivenAgain(t *testing.T) {
	formats := []string{"dovecot", "cyrus", "cyrus-old", "courier", "uw", "UID%u-%v", "%u%v"}
	for seed := range uint64(500) {
		random := rand.New(rand.NewPCG(seed, 1))
		f := parsed(t, formats[random.IntN(len(formats))])
		validity, next := uint32(1700000000+random.IntN(3)), uint32(1)
		r := New(validity, f)
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
				var kept []Named
				for i := range box {
					box[i].uid = next
					if random.IntN(3) > 0 {
						kept = append(kept, Named{next, ids[box[i].id]})
					} else {
						box[i].id = ever // as good as new
						ever++
					}
					next += uint32(1 + random.IntN(2))
				}
				r = r.Renumber(validity, f, kept)
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
			again, err := Decode(r.Encode())
			if err != nil || !slices.Equal(again.Named, r.Named) || len(again.Eras) != len(r.Eras) {
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
	r.Named = []Named{{3, "5"}, {4, "5-2"}}
	if !r.Separate([]uint32{3, 4, 5, 6}) || r.show(5) != "5-3" || r.show(6) != "6" {
		t.Errorf("5 is %s, 6 is %s", r.show(5), r.show(6))
	}
	if r.Separate([]uint32{3, 4, 5, 6}) {
		t.Error("what is separate is separated")
	}
	if !r.Separate([]uint32{4, 5, 6}) || len(r.Named) != 2 || r.show(5) != "5-3" {
		t.Errorf("after a removal: %v", r.Named)
	}
}

// Criterion: a record that is damaged, cut or of another version is an error and never another record.
func TestDamagedRecords(t *testing.T) {
	r := New(17, parsed(t, "UID%u-%v"))
	r.Use(Format{}, 9)
	r = r.Renumber(18, Format{}, []Named{{1, "UID1-17"}, {2, "UID2-17"}, {5, "x"}})
	b := r.Encode()
	if again, err := Decode(b); err != nil || !slices.Equal(again.Named, r.Named) || again.show(9) != r.show(9) {
		t.Fatalf("%v comes back as %v, %v", r, again, err)
	}
	for i := range b {
		spoilt := bytes.Clone(b)
		spoilt[i] ^= 0x10
		if _, err := Decode(spoilt); !errors.Is(err, ErrDamaged) {
			t.Errorf("octet %d damaged gives %v", i, err)
		}
		if _, err := Decode(b[:i]); !errors.Is(err, ErrDamaged) {
			t.Errorf("%d octets give %v", i, err)
		}
	}
}

func TestRecordsAreCheapOnTheDisk(t *testing.T) {
	r := New(17, Format{})
	if n := len(r.Encode()); n > 24 {
		t.Errorf("a record without exceptions has %d octets", n)
	}
	var kept []Named
	for uid := range uint32(10_000) {
		kept = append(kept, Named{uid + 1, fmt.Sprintf("%08x65a1b2c3", 100_000+uid*3)})
	}
	if n := len(r.Renumber(18, Format{}, kept).Encode()); n > 20*10_000 {
		t.Errorf("%d octets for 10000 messages", n)
	}
}

func TestRecordsAreExported(t *testing.T) {
	r := New(17, Format{})
	r.Use(parsed(t, "UID%u-%v"), 9)
	r.Named = []Named{{3, "abc"}}
	b, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	var again Record
	if err := json.Unmarshal(b, &again); err != nil || again.Check() != nil || again.show(9) != "UID9-17" || again.show(3) != "abc" || again.show(1) != r.show(1) {
		t.Errorf("%s comes back as %v, %v", b, again, err)
	}
}

func TestRecordsFromOutsideAreChecked(t *testing.T) {
	good := func() *Record { return New(17, Format{}) }
	for name, spoil := range map[string]func(*Record){
		"no UIDVALIDITY": func(r *Record) { r.UIDValidity = 0 },
		"no era":         func(r *Record) { r.Eras = nil },
		"a late era":     func(r *Record) { r.Eras[0].From = 5 },
		"eras descend":   func(r *Record) { r.Eras = append(r.Eras, Era{From: 1}) },
		"a long suffix":  func(r *Record) { r.Eras[0].Suffix = "-123456789012" },
		"UID 0":          func(r *Record) { r.Named = []Named{{0, "a"}} },
		"UIDs descend":   func(r *Record) { r.Named = []Named{{2, "a"}, {1, "b"}} },
		"an empty one":   func(r *Record) { r.Named = []Named{{2, ""}} },
		"a long one":     func(r *Record) { r.Named = []Named{{2, string(bytes.Repeat([]byte("a"), 71))}} },
		"a space":        func(r *Record) { r.Named = []Named{{2, "a b"}} },
		"the same twice": func(r *Record) { r.Named = []Named{{2, "a"}, {3, "a"}} },
	} {
		r := good()
		if spoil(r); r.Check() == nil {
			t.Errorf("%s passes", name)
		}
	}
	if err := good().Check(); err != nil {
		t.Error(err)
	}
}

func FuzzRecord(f *testing.F) {
	r := New(17, Format{})
	r.Use(parsed(f, "UID%u-%v"), 9)
	r.Named, r.Past = []Named{{3, "abc"}, {9, "abd"}}, []uint32{5, 6}
	f.Add(r.Encode()[:len(r.Encode())-4])
	f.Fuzz(func(t *testing.T, b []byte) {
		d := decoder{b: b[min(1, len(b)):]}
		r := d.record()
		if d.err != nil || r.Check() != nil {
			return
		}
		if again, err := Decode(r.Encode()); err != nil || !slices.Equal(again.Named, r.Named) {
			t.Fatalf("%v comes back as %v, %v", r, again, err)
		}
	})
}

func BenchmarkRecord(b *testing.B) {
	r := New(17, Format{})
	uids := make([]uint32, 50_000)
	for i := range uids {
		uids[i] = uint32(i + 1)
		if i < 25_000 {
			r.Named = append(r.Named, Named{uids[i], fmt.Sprintf("%08x65a1b2c3", 100_000+i*3)})
		}
	}
	value := r.Encode()
	b.Run("decode", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := Decode(value); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("separate", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			r.Separate(uids)
		}
	})
}
