package uidl

import (
	"maps"
	"slices"
	"testing"
)

// shownBy returns the record of an INBOX in which an old server shows these UIDLs, by UID.
func shownBy(uidValidity uint32, ids map[uint32]string, foreign ...string) *Record {
	r := New(uidValidity, Dovecot)
	var entries []Entry
	for _, uid := range slices.Sorted(maps.Keys(ids)) {
		e := Entry{UID: uid, UIDL: ids[uid], Header: uint64(uid)}
		if string(Dovecot.Append(nil, uid, uidValidity)) == e.UIDL {
			e.UIDL = ""
		}
		entries = append(entries, e)
		r.Current().UIDNext = uid + 1
	}
	r.Current().Put(entries)
	var others []Entry
	for i, id := range foreign {
		others = append(others, Entry{UID: uint32(i) + 1, UIDL: id, Header: 99})
	}
	r.AddForeign(others)
	return r
}

func shows(t *testing.T, r *Record, want map[uint32]string) {
	t.Helper()
	if err := r.Check(); err != nil {
		t.Error(err)
	}
	for uid, id := range want {
		if got := string(r.Current().Append(nil, uid)); got != id {
			t.Errorf("UID %d has the UIDL %s, want %s", uid, got, id)
		}
	}
}

// Criterion: A record is completed by what an old server shows of new messages; a UIDL that the record has, or that clients were shown, stays.
func TestARecordLearnsOfNewMessages(t *testing.T) {
	r := shownBy(7, map[uint32]string{1: "a", 2: "0000000200000007"}, "late")
	fresh := shownBy(7, map[uint32]string{1: "other", 2: "b", 3: "c", 4: "0000000400000007", 5: "0000000200000007"}, "late", "later")
	if n, changed := r.Learn(fresh, 20); n != 2 || !changed { // the UIDL of UID 5 is that of UID 2
		t.Errorf("learnt %d, %v", n, changed)
	}
	shows(t, r, map[uint32]string{1: "a", 2: "0000000200000007", 3: "c", 4: "0000000400000007"})
	if last := r.Generations[len(r.Generations)-1]; len(r.Generations) != 2 || last.Counts().Named != 2 {
		t.Errorf("%d generations, %+v", len(r.Generations), last.Counts())
	}
	if n, changed := r.Learn(fresh, 20); n != 0 || changed {
		t.Errorf("learnt %d again, %v", n, changed)
	}
	if n, changed := r.Learn(shownBy(7, nil, "latest"), 20); n != 0 || !changed {
		t.Errorf("learnt %d of a late message, %v", n, changed)
	}
	if err := r.Check(); err != nil {
		t.Error(err)
	}
}

// Criterion: When INBOX has another UIDVALIDITY, the UIDLs that the old server shows are those of the new UIDs.
func TestARecordLearnsOfACopyMadeAnew(t *testing.T) {
	r := shownBy(7, map[uint32]string{1: "a", 2: "b"}, "late")
	for uidValidity := uint32(8); uidValidity < 14; uidValidity++ { // more copies than generations
		n, changed := r.Learn(shownBy(uidValidity, map[uint32]string{1: "b", 2: "a", 3: "late"}, "x"), 20)
		if n != 3 || !changed {
			t.Errorf("learnt %d, %v", n, changed)
		}
		shows(t, r, map[uint32]string{1: "b", 2: "a", 3: "late"})
		if g := r.Current(); g.UIDValidity != uidValidity || g.UIDNext != 4 {
			t.Errorf("UIDVALIDITY %d, UIDNEXT %d", g.UIDValidity, g.UIDNext)
		}
	}
	head, blocks := r.Encode()
	back, err := Decode(head, slices.DeleteFunc(blocks, func(b Block) bool { return b.Value == nil }))
	if err != nil {
		t.Fatal(err)
	}
	shows(t, back, map[uint32]string{1: "b", 2: "a", 3: "late"})
}
