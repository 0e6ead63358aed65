package inbox

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"

	"github.com/emersion/go-imap/v2"
)

// MaxMessages bounds how many messages a server can make a session remember.
const MaxMessages = 4 << 20

// ErrTooMany says that a server shows more than MaxMessages.
var ErrTooMany = fmt.Errorf("more than %d messages", MaxMessages)

// MaxRanges bounds the UID set of one command to 8 KiB: a range takes up to 22
// octets, and servers bound the length of a line.
const MaxRanges = 370

// Sets returns ascending UIDs as sets of which each fits one command.
func Sets(uids []uint32) (sets []imap.UIDSet) {
	var set imap.UIDSet
	for _, uid := range uids {
		uid := imap.UID(uid)
		if last := len(set) - 1; last >= 0 && set[last].Stop+1 == uid {
			set[last].Stop = uid
			continue
		}
		if len(set) == MaxRanges {
			sets, set = append(sets, set), nil
		}
		set = append(set, imap.UIDRange{Start: uid, Stop: uid})
	}
	if len(set) > 0 {
		sets = append(sets, set)
	}
	return sets
}

// UIDs returns the UIDs of a set. The error is ErrTooMany.
func UIDs(set imap.UIDSet) (uids []uint32, err error) {
	count := uint64(0)
	for _, r := range set {
		if count += uint64(r.Stop) - uint64(r.Start) + 1; r.Start == 0 || r.Stop < r.Start || count > MaxMessages {
			return nil, ErrTooMany
		}
		for uid := uint64(r.Start); uid <= uint64(r.Stop); uid++ {
			uids = append(uids, uint32(uid))
		}
	}
	return uids, nil
}

// Count returns how many UIDs are in a set whose ranges do not overlap.
func Count(set imap.UIDSet) (n uint64) {
	for _, r := range set {
		n += uint64(r.Stop) - uint64(r.Start) + 1
	}
	return n
}

// Contains reports whether uid is in a set whose ranges ascend and do not overlap,
// as those of Search, TakeKeywordMatches and Sets.
func Contains(set imap.UIDSet, uid uint32) bool {
	i, _ := slices.BinarySearchFunc(set, imap.UID(uid), func(r imap.UIDRange, uid imap.UID) int { return cmp.Compare(r.Stop, uid) })
	return i < len(set) && uint32(set[i].Start) <= uid
}

// normalize sorts the ranges of a set and unites those that touch or overlap, in
// place.
func normalize(set imap.UIDSet) imap.UIDSet {
	byStart := func(a, b imap.UIDRange) int { return cmp.Compare(a.Start, b.Start) }
	if !slices.IsSortedFunc(set, byStart) {
		slices.SortFunc(set, byStart)
	}
	united := set[:0]
	for _, r := range set {
		if last := len(united) - 1; last >= 0 && uint64(r.Start) <= uint64(united[last].Stop)+1 {
			united[last].Stop = max(united[last].Stop, r.Stop)
			continue
		}
		united = append(united, r)
	}
	return united
}

// parseSet reads "1:3,5", RFC 9051 section 9: sequence-set, without *. A range
// may be written either way round.
func parseSet(text []byte) (imap.UIDSet, error) {
	var set imap.UIDSet
	for part := range bytes.SplitSeq(text, []byte(",")) {
		first, second, isRange := bytes.Cut(part, []byte(":"))
		if !isRange {
			second = first
		}
		start, err := parseUint32(first)
		stop, err2 := parseUint32(second)
		if err = cmp.Or(err, err2); err != nil {
			return nil, err
		}
		if start, stop = min(start, stop), max(start, stop); start == 0 {
			return nil, fmt.Errorf("%w: UID 0", ErrAnswer)
		}
		if len(set) >= MaxMessages {
			return nil, ErrTooMany
		}
		set = append(set, imap.UIDRange{Start: imap.UID(start), Stop: imap.UID(stop)})
	}
	return set, nil
}
