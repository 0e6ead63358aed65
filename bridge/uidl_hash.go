package bridge

import (
	"context"
	"encoding/binary"

	"postern/proxy"
)

// Dovecot has such a hash in its logout line, and it has found many a change of
// UIDLs that nobody meant. It does not depend on the order.

// hashes returns the hashes of the UIDLs that the session began with and, once
// it is over, of those that it has left.
func (s *session) hashes() (before, after uint64) {
	if len(s.maildrop.hidden) == 0 && s.totals.Deleted == 0 {
		return s.maildrop.hash, s.maildrop.hash
	}
	if s.readUIDLs(context.Background()) != nil {
		return 0, 0
	}
	before = s.maildrop.hash - s.hashUIDLs(s.maildrop.hidden)
	after = before
	for i := range s.maildrop.messages {
		if m := &s.maildrop.messages[i]; s.totals.Deleted > 0 && m.marks&deleted != 0 {
			after -= hashUIDL(s.uniqueID(nil, m))
		}
	}
	return before, after
}

// hashUIDLs hashes the unique-ids of messages.
func (s *session) hashUIDLs(messages []message) (sum uint64) {
	var b []byte
	for i := range messages {
		b = s.uniqueID(b[:0], &messages[i])
		sum += hashUIDL(b)
	}
	return sum
}

// hashUIDL is FNV-1a over words of eight octets: the same in every process.
func hashUIDL(b []byte) uint64 {
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

// compareHash compares what is shown now with what the last session showed. If
// messages that were there have other UIDLs, somebody has changed the record by
// hand, or has lost it.
func (s *session) compareHash(known snapshot, before []message, continues bool) {
	if s.record.unchanged {
		s.maildrop.hash = known.hash
		return
	}
	s.maildrop.hash = s.hashUIDLs(s.maildrop.messages)
	if !continues || known.hash == 0 {
		return
	}
	was := s.maildrop.hash
	if before != nil {
		was = s.hashUIDLs(before)
	}
	if was != known.hash {
		s.notice(proxy.NoticeChanged, len(known.messages), nil)
	}
}
