package bridge

import (
	"context"
	"encoding/binary"
	"errors"
	"math"

	"postern/bridge/inbox"
	"postern/proxy"
)

const (
	// cacheVersion is the first octet of a snapshot in the cache.
	cacheVersion = 3
	// formerCache is the first octet of a snapshot without the stamp of a record, which
	// is only read.
	formerCache = 2
)

// remembered has the marks that a snapshot stores. A size is shifted by shift bits to
// make place for them.
const (
	remembered  = exact | fingerprinted | headerHashed | endSkipped | unsized | removed
	shift       = 6
	formerShift = 4 // of formerCache, without unsized and removed
)

// encode returns the stored form of s: a few octets for each message, and a checksum.
func (s snapshot) encode() []byte {
	b := make([]byte, 0, 32+6*len(s.messages))
	b = append(b, cacheVersion, 0)
	if s.proven {
		b[1] = 1
	}
	b = binary.AppendUvarint(b, uint64(s.uidValidity))
	b = binary.AppendUvarint(b, uint64(s.uidNext))
	b = binary.LittleEndian.AppendUint64(b, s.hash)
	b = binary.LittleEndian.AppendUint64(b, s.record.version)
	b = binary.LittleEndian.AppendUint64(b, uint64(s.record.sum))
	b = binary.AppendUvarint(b, uint64(len(s.messages)))
	last := uint32(0)
	for i := range s.messages {
		m := &s.messages[i]
		b = binary.AppendUvarint(b, uint64(m.uid-last))
		b = binary.AppendUvarint(b, uint64(m.size)<<shift|uint64(m.marks&remembered))
		last = m.uid
	}
	return sealFrame(b)
}

// decodeSnapshot is the inverse of encode. It returns an error for any other input but
// the earlier form.
func decodeSnapshot(b []byte) (s snapshot, err error) {
	version, r, err := openFrame(b, cacheVersion, formerCache)
	if err != nil {
		return snapshot{}, err
	}
	former, by := version == formerCache, shift
	s.proven = r.octet() == 1
	s.uidValidity, s.uidNext = uint32(r.uvarint(math.MaxUint32)), uint32(r.uvarint(math.MaxUint32))
	s.hash = r.uint64()
	if !former {
		s.record.version = r.uint64()
		sum := r.uint64()
		s.record.sum, r.bad = uint32(sum), r.bad || sum > math.MaxUint32
	} else {
		by = formerShift
		if s.hash != 0 {
			s.record = formerStamp
		}
	}
	count := r.uvarint(min(inbox.MaxMessages, uint64(len(r.b)/2)))
	s.messages = make([]message, count)
	uid, rest := uint64(0), r.b // rest is local: writing r.b costs a write barrier for each number
	for i := range s.messages {
		delta, n := binary.Uvarint(rest)
		if n <= 0 {
			return snapshot{}, errDamaged
		}
		size, k := binary.Uvarint(rest[n:])
		if uid += delta; k <= 0 || delta == 0 || delta > math.MaxUint32 || uid > math.MaxUint32 {
			return snapshot{}, errDamaged
		}
		rest = rest[n+k:]
		s.messages[i] = message{uid: uint32(uid), size: int64(size >> by), marks: marks(size) & (1<<by - 1)}
	}
	r.b = rest
	if err := r.end(); err != nil {
		return snapshot{}, err
	}
	return s, nil
}

// loadSnapshot returns the snapshot of INBOX in the cache, or an empty one.
func (s *session) loadSnapshot(ctx context.Context) snapshot {
	if s.backend.Cache == nil {
		return snapshot{}
	}
	value, err := s.backend.Cache.Get(ctx, key(s.login.Account))
	if err != nil || value == nil {
		if err != nil {
			s.notice(proxy.NoticeCache, 0, err)
		}
		return snapshot{}
	}
	known, err := decodeSnapshot(value)
	if err != nil {
		s.notice(proxy.NoticeCache, 0, err)
	}
	s.cacheSum = frameSum(value)
	return known
}

// saveSnapshot puts a changed listing into the cache. The session may be over, so the
// end of ctx does not stop saveSnapshot.
func (s *session) saveSnapshot(ctx context.Context) {
	if s.maildrop == nil || !s.maildrop.changed {
		return
	}
	s.maildrop.changed = false
	known := s.maildrop.snapshot()
	known.record = s.record.stamp
	if known.record != (stamp{}) && s.recordForgotten(ctx) {
		return
	}
	s.putSnapshot(ctx, known)
}

// recordForgotten reports whether the record of the account is gone. An operator may
// have removed the record meanwhile. A cached listing with the stamp of a record would
// then make the next session report a lost record.
func (s *session) recordForgotten(ctx context.Context) bool {
	value, err := s.backend.Record.Get(context.WithoutCancel(ctx), key(s.login.Account))
	return err == nil && value == nil
}

// putSnapshot puts a snapshot into the cache. If another session has put one meanwhile,
// that snapshot stays; putSnapshot only marks the messages that this session has removed.
func (s *session) putSnapshot(ctx context.Context, known snapshot) {
	if s.backend.Cache == nil {
		return
	}
	value := known.encode()
	err := s.backend.Cache.Update(context.WithoutCancel(ctx), key(s.login.Account), func(old []byte) (_ []byte, err error) {
		if frameSum(old) != s.cacheSum {
			value, err = s.withRemoved(old)
		}
		return value, err
	})
	switch {
	case err == nil:
		s.cacheSum = frameSum(value)
	case !errors.Is(err, errConflict):
		s.notice(proxy.NoticeCache, len(known.messages), err)
	}
}

// withRemoved marks, in the snapshot of another session, the messages that this session
// has removed. It returns errConflict if there is nothing to mark.
func (s *session) withRemoved(value []byte) ([]byte, error) {
	other, err := decodeSnapshot(value)
	if err != nil || s.maildrop == nil || other.uidValidity != s.maildrop.uidValidity {
		return nil, errConflict
	}
	marked := false
	for i := range other.messages {
		theirs := &other.messages[i]
		if m := s.maildrop.find(theirs.uid); m != nil && m.marks&removed != 0 && theirs.marks&removed == 0 {
			theirs.marks |= removed
			marked = true
		}
	}
	if !marked {
		return nil, errConflict
	}
	return other.encode(), nil
}
