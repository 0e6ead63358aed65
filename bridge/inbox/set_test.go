package inbox

import (
	"slices"
	"testing"

	"github.com/emersion/go-imap/v2"
)

func TestSetsAreUnited(t *testing.T) {
	set := normalize(imap.UIDSet{{Start: 7, Stop: 9}, {Start: 1, Stop: 2}, {Start: 3, Stop: 3}, {Start: 8, Stop: 8}, {Start: 4294967295, Stop: 4294967295}})
	if got := set.String(); got != "1:3,7:9,4294967295" || Count(set) != 7 {
		t.Errorf("normalize = %s, %d", got, Count(set))
	}
	for uid, want := range map[uint32]bool{0: false, 1: true, 3: true, 4: false, 6: false, 7: true, 9: true, 10: false, 4294967295: true} {
		if got := Contains(set, uid); got != want {
			t.Errorf("Contains(%d) = %v", uid, got)
		}
	}
}

func TestUIDsOfASetAreBounded(t *testing.T) {
	for _, set := range []imap.UIDSet{{{Start: 1, Stop: 1<<32 - 1}}, {{Start: 1}}, {{Start: 1, Stop: MaxMessages}, {Start: MaxMessages + 2, Stop: MaxMessages + 2}}} {
		if got, err := UIDs(set); err == nil {
			t.Errorf("%v gives %d UIDs", set, len(got))
		}
	}
	if got, err := UIDs(imap.UIDSet{{Start: 1, Stop: 2}, {Start: 1<<32 - 1, Stop: 1<<32 - 1}}); err != nil || !slices.Equal(got, []uint32{1, 2, 1<<32 - 1}) {
		t.Errorf("got %v, %v", got, err)
	}
}
