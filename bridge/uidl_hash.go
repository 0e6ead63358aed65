package bridge

import (
	"context"
	"encoding/binary"

	"postern/proxy"
)

// Dovecot logs a hash of UIDLs at logout, which has shown many unintended changes of
// UIDLs. The hash here does not depend on the order of messages.

// hashes returns the hashes of the UIDLs at the beginning and, after the session, at the
// end of the session.
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

// hashUIDL returns FNV-1a over words of eight octets. It is the same in every process.
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

// compareHash compares the present UIDLs with those that the last session showed, and
// reports a difference. If known messages have other UIDLs, the record was changed by
// hand, or was lost.
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
