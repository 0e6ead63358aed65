package uidl

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// computed returns what f computes for uids.
func computed(t *testing.T, format string, uids []uint32, uidValidity uint32) (shown []string) {
	t.Helper()
	f := parsed(t, format)
	for _, uid := range uids {
		shown = append(shown, string(f.Append(nil, uid, uidValidity)))
	}
	return shown
}

// Criterion: unique-ids that are computable and have no named format give the format, in the notation that pop3.uidl takes.
func TestDetectInfersAFormatWithoutAName(t *testing.T) {
	uids := []uint32{1, 2, 7, 10, 11, 255, 4096}
	for _, format := range []string{
		"UID%u-%v", "%u.%v", "%vU%u", "msg%u@%v", "%08Xu-%v", "%08XUu.%08XUv", "%Xu_%Xv", "%010u", "x%u", "%v%%%u", "%08Xv.%08Xu", "%010v-%010u",
	} {
		const validity = 1700000000
		shown := computed(t, format, uids, validity)
		got := Detect(shown, uids, validity)
		if len(got) == 0 || got[0].Matched != len(uids) {
			t.Errorf("%s: %v of %q", format, got, shown)
			continue
		}
		if again := computed(t, got[0].Format.String(), uids, validity); !slices.Equal(again, shown) {
			t.Errorf("%s is taken for %s", format, got[0].Format)
		}
		if parsed(t, format).hasValidity() != got[0].Format.hasValidity() {
			t.Errorf("%s is taken for %s, which is wrong for another UIDVALIDITY", format, got[0].Format)
		}
	}
	// UIDs below 10 do not show whether larger ones are decimal: all that fit are named.
	var fit []string
	for _, g := range Detect([]string{"1_6b0b5142", "2_6b0b5142", "3_6b0b5142"}, []uint32{1, 2, 3}, 0x6b0b5142) {
		fit = append(fit, g.Name)
	}
	if got, want := strings.Join(fit, " "), "%u_%08Xv %Xu_%08Xv %XUu_%08Xv"; got != want {
		t.Errorf("of UIDs below 10: %s, want %s", got, want)
	}
	// Of two messages nothing is inferred, and mail that came in between is no matter.
	if got := Detect([]string{"x1", "x2"}, uids, 1700000000); got != nil {
		t.Errorf("of two messages: %v", got)
	}
	many := make([]uint32, 50)
	for i := range many {
		many[i] = uint32(3*i + 1)
	}
	shown := append(computed(t, "UID%u-%v", many, 1700000000), "UID900-1700000000")
	if got := Detect(shown, many, 1700000000); len(got) == 0 || got[0].Name != "UID%u-%v" || got[0].Names != nil || got[0].Matched != 50 {
		t.Errorf("with a message more: %v", got)
	}
}

func TestDetectNamesAllNamesOfAFormat(t *testing.T) {
	got := Detect(computed(t, "%v.%u", []uint32{1, 2, 3}, 1700000000), []uint32{1, 2, 3}, 1700000000)
	if len(got) != 1 || !slices.Equal(got[0].Names, []string{"dovecot-0.99", "cyrus"}) {
		t.Errorf("%+v", got)
	}
}

// Criterion: the right format of a mailbox that was copied, with another UIDVALIDITY or other UIDs, is told as that and never
// as a format of its own.
func TestDetectCopyFindsOtherNumbers(t *testing.T) {
	old, now := []uint32{1, 2, 7, 10, 4096}, []uint32{1, 2, 3, 4, 5}
	for _, format := range []string{"dovecot", "dovecot-0.99", "courier", "uw", "UID%u-%v", "cyrus-old"} {
		for _, uids := range [][]uint32{old, now} {
			const before, behind = 1300000001, 1700000000
			shown := computed(t, format, uids, before)
			if format != "cyrus-old" || &uids[0] == &old[0] {
				if got := Detect(shown, now, behind); len(got) > 0 && got[0].Matched*10 >= len(shown)*9 {
					t.Errorf("%s: %v for other numbers", format, got)
				}
			}
			got, ok := DetectCopy(shown, now)
			want := uint32(before)
			if format == "cyrus-old" {
				want = 0
			}
			if !ok || got.Format.String() != parsed(t, format).String() || got.UIDValidity != want || got.Matched != len(shown) {
				t.Errorf("%s: %+v, %v", format, got, ok)
			}
			if same := got.SameUIDs == len(shown); same != (&uids[0] == &now[0]) {
				t.Errorf("%s: %d of %d UIDs are the same", format, got.SameUIDs, len(shown))
			}
		}
	}
}

func TestUniqueIDsThatNoFormatComputes(t *testing.T) {
	uids := []uint32{1, 2, 3, 4, 12, 123}
	for _, test := range []struct {
		id    func(i int) string
		shape string
	}{
		{func(i int) string { return fmt.Sprintf("%032x", 0x9e3779b97f4a7c15*uint64(i+1)) }, "GUID"},
		{func(i int) string { return fmt.Sprintf("17000%05d.M%dP%d.mx", i*977, i*7919, i*31) }, "maildir"},
		{func(i int) string { return strings.Repeat(string(rune('a'+i)), 24) }, "random"},
		{func(i int) string { return fmt.Sprint("m", i*i*7919+5) }, ""},
	} {
		var shown []string
		for i := range uids {
			shown = append(shown, test.id(i))
		}
		if got := Detect(shown, uids, 1700000000); len(got) > 0 && got[0].Matched*10 >= len(shown)*9 {
			t.Errorf("%q is taken for %v", shown, got)
		}
		if got, ok := DetectCopy(shown, uids); ok {
			t.Errorf("%q is taken for a copy: %v", shown, got)
		}
		if got := Shape(shown); !strings.Contains(got, test.shape) || (got == "") != (test.shape == "") {
			t.Errorf("%q looks like %q, want %q", shown, got, test.shape)
		}
	}
}

// FuzzDetect: whatever an old server shows, a format that is inferred computes what it
// is said to compute.
func FuzzDetect(f *testing.F) {
	f.Add("UID1-7\nUID2-7\nUID3-7", uint32(7))
	f.Add("00000001\n00000002\nff\x00%u\n%%", uint32(1))
	f.Fuzz(func(t *testing.T, text string, uidValidity uint32) {
		shown := strings.Split(text, "\n")
		uids := []uint32{1, 2, 3, 10, 255}
		for _, g := range Detect(shown, uids, uidValidity) {
			n := 0
			for _, uid := range uids {
				if slices.Contains(shown, string(g.Format.Append(nil, uid, uidValidity))) {
					n++
				}
			}
			if n != g.Matched {
				t.Errorf("%s matches %d, and it says %d", g.Format, n, g.Matched)
			}
		}
		if c, ok := DetectCopy(shown, uids); ok && c.Matched > len(shown) {
			t.Errorf("%+v of %d", c, len(shown))
		}
		_ = Shape(shown)
	})
}
