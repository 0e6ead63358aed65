package bridge

import (
	"context"
	"encoding/binary"

	"postern/proxy"
)

// Dovecot has such a hash in its logout line, and it has found many a change of
// UIDLs that nobody meant. It does not depend on the order.

// showed returns the hashes of the UIDLs that the session began with and, once
// it is over, of those that it has left.
func (s *session) showed() (before, after uint64) {
	if len(s.drop.aside) == 0 && s.totals.Deleted == 0 {
		return s.drop.shown, s.drop.shown
	}
	if s.readUIDLs(context.Background()) != nil {
		return 0, 0
	}
	before = s.drop.shown - s.sum(s.drop.aside)
	after = before
	for i := range s.drop.messages {
		if m := &s.drop.messages[i]; s.totals.Deleted > 0 && m.marks&deleted != 0 {
			after -= hash(s.uniqueID(nil, m))
		}
	}
	return before, after
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
	if s.record.settled {
		s.drop.shown = known.shown
		return
	}
	s.drop.shown = s.sum(s.drop.messages)
	if !continues || known.shown == 0 {
		return
	}
	was := s.drop.shown
	if before != nil {
		was = s.sum(before)
	}
	if was != known.shown {
		s.notice(proxy.NoticeChanged, len(known.messages), nil)
	}
}
