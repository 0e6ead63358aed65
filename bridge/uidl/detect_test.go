package uidl

import "testing"

func TestDetect(t *testing.T) {
	uids := []uint32{1, 2, 7}
	for _, name := range append(Names(), "UID%u-%v") {
		f := parsed(t, name)
		var shown []string
		for _, uid := range uids {
			shown = append(shown, string(f.Append(nil, uid, 1700000000)))
		}
		shown = append(shown, "of a message that has gone")
		got := Detect(shown, uids, 1700000000, parsed(t, "UID%u-%v"))
		if len(got) == 0 || got[0].Format.String() != f.String() || got[0].Matched != 3 {
			t.Errorf("%s is taken for %v", name, got)
		}
	}
	if got := Detect([]string{"a", "b"}, uids, 1700000000); got != nil {
		t.Errorf("nothing is taken for %v", got)
	}
}
