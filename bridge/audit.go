package bridge

import "encoding/binary"

// Dovecot has such a hash in its logout line, and it has found many a change of
// UIDLs that nobody meant.

// A UIDLs is what the log of a session says of the UIDLs that it showed. The
// hashes do not depend on the order.
type UIDLs struct {
	Last   uint64 // of the maildrop at the end of the last session; 0: not known
	Before uint64 // when this one began
	After  uint64 // when it ended: without what it has deleted
}

// UIDLs returns what was shown. It is complete after Run.
func (s *session) UIDLs() UIDLs {
	showed := s.showed
	for i := range s.drop.messages {
		if m := &s.drop.messages[i]; s.totals.Deleted > 0 && m.marks&deleted != 0 {
			showed.After -= hash(s.uniqueID(nil, m))
		}
	}
	return showed
}

// sum hashes the unique-ids of messages.
func (s *session) sum(messages []message) (sum uint64) {
	var b []byte
	for i := range messages {
		b = s.uniqueID(b[:0], &messages[i])
		sum += hash(b)
	}
	return sum
}

// hash is FNV-1a over words of eight octets: the same in every process.
func hash(b []byte) uint64 {
	const offset, prime = 14695981039346656037, 1099511628211
	h := uint64(offset)
	for ; len(b) >= 8; b = b[8:] {
		h = (h ^ binary.LittleEndian.Uint64(b)) * prime
		h ^= h >> 32
	}
	for _, c := range b {
		h = (h ^ uint64(c)) * prime
	}
	return h ^ h>>29
}

// audit compares what is shown now with what the last session showed. If
// messages that were there have other UIDLs, somebody has changed the record by
// hand, or has lost it.
func (s *session) audit(known snapshot, before []message, continues bool) {
	s.drop.shown = s.sum(s.drop.messages)
	s.showed = UIDLs{Last: known.shown, Before: s.drop.shown, After: s.drop.shown}
	if !continues || known.shown == 0 {
		return
	}
	was := s.drop.shown
	if before != nil {
		was = s.sum(before)
	}
	if was != known.shown {
		s.notice(NoticeChanged, len(known.messages), nil)
	}
}
