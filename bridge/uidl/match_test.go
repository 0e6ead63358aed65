package uidl

import (
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestMatches(t *testing.T) {
	short := func(ids ...uint64) (prints []Fingerprint) {
		for i, id := range ids {
			prints = append(prints, Fingerprint{UID: uint32(i + 1), Short: id})
		}
		return prints
	}
	header := func(ids ...uint64) (prints []Fingerprint) {
		for i, id := range ids {
			prints = append(prints, Fingerprint{UID: uint32(i + 1), Short: 1000 + id + uint64(i), Header: id})
		}
		return prints
	}
	for _, test := range []struct {
		name          string
		before, after []Fingerprint
		want          []Match
	}{
		{"all", short(1, 2, 3), short(1, 2, 3), []Match{{0, 0}, {1, 1}, {2, 2}}},
		{"some are gone, some are new", short(1, 2, 3), short(2, 4, 3), []Match{{1, 0}, {2, 2}}},
		{"in another order", short(1, 2, 3), short(3, 1, 2), []Match{{2, 0}, {0, 1}, {1, 2}}},
		{"without a print", short(0, 2), short(0, 2), []Match{{1, 1}}},
		{"twice on one side", short(1, 2), short(1, 1, 2), []Match{{1, 2}}},
		{"a run", short(1, 5, 5, 2), short(1, 5, 5, 2), []Match{{0, 0}, {1, 1}, {2, 2}, {3, 3}}},
		{"a run that has grown", short(1, 5, 5, 2), short(1, 5, 5, 5, 2), []Match{{0, 0}, {3, 4}}},
		{"a run that is elsewhere", short(1, 5, 5, 2), short(1, 2, 5, 5), []Match{{0, 0}, {3, 1}}},
		{"equal ones apart", short(5, 1, 5), short(5, 1, 5), []Match{{0, 0}, {1, 1}, {2, 2}}},
		{"by header", header(1, 2), []Fingerprint{{UID: 9, Short: 7, Header: 2}, {UID: 10, Short: 8, Header: 3}}, []Match{{1, 0}}},
		{"nothing", nil, short(1), []Match{}},
	} {
		if got := Matches(test.before, test.after); !slices.Equal(got, test.want) {
			t.Errorf("%s: %v, want %v", test.name, got, test.want)
		}
	}
}

// Whatever the mailboxes look like, only equals are matched, each once.
func TestMatchesAreNeverGuessed(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		some := func() (prints []Fingerprint) {
			for range random.IntN(12) {
				prints = append(prints, Fingerprint{Short: random.Uint64N(6), Header: random.Uint64N(4)})
			}
			return prints
		}
		before, after := some(), some()
		old, fresh := map[int]bool{}, map[int]bool{}
		for _, m := range Matches(before, after) {
			a, b := before[m.Old], after[m.New]
			if old[m.Old] || fresh[m.New] || (a.Short == 0 || a.Short != b.Short) && (a.Header == 0 || a.Header != b.Header) {
				t.Fatalf("%v and %v: match %v", before, after, m)
			}
			old[m.Old], fresh[m.New] = true, true
		}
	}
}

func TestHeaderHash(t *testing.T) {
	sum := func(s string) uint64 {
		var h HeaderHash
		for b := range strings.SplitSeq(s, "") { // octet by octet
			_, _ = h.Write([]byte(b))
		}
		return h.Sum()
	}
	const header = "From: a\r\nSubject: x\r\n y\r\n\r\n"
	want := sum(header)
	for name, same := range map[string]string{
		"LF":              "From: a\nSubject: x\n y\n\n",
		"with a body":     header + "body\r\n\r\nX: y\r\n\r\n",
		"added by server": "X-UID: 5\r\n folded\r\nStatus : RO\r\n" + header,
		"mbox":            "From a@b Mon\r\n" + header,
	} {
		if got := sum(same); got != want || got == 0 {
			t.Errorf("%s: %d, want %d", name, got, want)
		}
	}
	for name, different := range map[string]string{
		"another":   "From: a\r\nSubject: x\r\n z\r\n\r\n",
		"cut short": "From: a\r\nSubject: x\r\n y\r\n",
		"none":      "\r\n",
		"endless":   "From: a\r\n" + strings.Repeat("x", maxHeader) + "\r\n\r\n",
	} {
		if got := sum(different); got == want {
			t.Errorf("%s gives the same", name)
		}
	}
	var h HeaderHash
	if _, _ = h.Write([]byte(header)); h.Sum() != want || !h.Done() {
		t.Error("in one piece it is another")
	}
}

func TestShortPrints(t *testing.T) {
	date := time.Date(2026, 3, 1, 12, 0, 0, 0, time.FixedZone("", 3600))
	if ShortHash(5, date, "<a@b>") != ShortHash(5, date.UTC(), " <a@b>\r\n") {
		t.Error("the zone of INTERNALDATE or a space matters")
	}
	if ShortHash(5, date, "<a@b>") == ShortHash(6, date, "<a@b>") || ShortHash(5, date, "<a@b>") == ShortHash(5, date.Add(time.Second), "<a@b>") || ShortHash(5, date, "<a@b>") == ShortHash(5, date, "") {
		t.Error("different messages have the same print")
	}
}
