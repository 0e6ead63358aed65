package bridge

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"math"
	"slices"

	"postern/proxy"
)

// tombstonesVersion is the first octet of tombstones in the record.
const tombstonesVersion = 1

// tombstones are the messages that POP3 has deleted and that the server has all
// the same: without UIDPLUS they can only be marked. They stand for what QUIT
// has promised, so they are in the record and not in the cache, and what the
// \Deleted flag says is not asked: a message that another client has marked is
// shown, and one that another client has unmarked stays hidden. A POP3 client
// was told that it is gone, and who unmarks it has it in IMAP.
type tombstones struct {
	uidValidity, uidNext uint32   // when the last was added; uidNext 0: not known
	uids                 []uint32 // ascending
}

// deletedOf is at the end of the keys of tombstones.
const deletedOf = "\x00deleted"

func tombstonesKey(account string) string { return key(account) + deletedOf }

// encode returns t as it is remembered; nil if there is nothing to remember.
func (t tombstones) encode() []byte {
	if len(t.uids) == 0 {
		return nil
	}
	b := append(make([]byte, 0, 24+2*len(t.uids)), tombstonesVersion)
	b = binary.AppendUvarint(b, uint64(t.uidValidity))
	b = binary.AppendUvarint(b, uint64(t.uidNext))
	b = binary.AppendUvarint(b, uint64(len(t.uids)))
	last := uint32(0)
	for _, uid := range t.uids {
		b = binary.AppendUvarint(b, uint64(uid-last))
		last = uid
	}
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

// decodeTombstones is the inverse of encode. What is not exactly that is an
// error.
func decodeTombstones(b []byte) (t tombstones, err error) {
	if b == nil {
		return tombstones{}, nil
	}
	if len(b) < 5 || b[0] != tombstonesVersion {
		return tombstones{}, errSpoilt
	}
	b, sum := b[:len(b)-4], b[len(b)-4:]
	if crc32.Checksum(b, castagnoli) != binary.LittleEndian.Uint32(sum) {
		return tombstones{}, errSpoilt
	}
	r := varints{b: b[1:]}
	t.uidValidity, t.uidNext = uint32(r.next(math.MaxUint32)), uint32(r.next(math.MaxUint32))
	t.uids = make([]uint32, r.next(min(maxMessages, uint64(len(r.b)))))
	uid := uint64(0)
	for i := range t.uids {
		delta := r.next(math.MaxUint32)
		if uid += delta; delta == 0 || uid > math.MaxUint32 {
			return tombstones{}, errSpoilt
		}
		t.uids[i] = uint32(uid)
	}
	if r.bad || len(r.b) > 0 {
		return tombstones{}, errSpoilt
	}
	return t, nil
}

// decodeTombstones returns those that are stored; none if they cannot be read
// and the operator wants to begin anew.
func (s *session) decodeTombstones(stored []byte) (tombstones, error) {
	t, err := decodeTombstones(stored)
	if err != nil && s.backend.Recompute {
		s.notice(proxy.NoticeRecomputed, 0, err)
		return tombstones{}, nil
	}
	return t, err
}

// recall reads which messages earlier sessions have deleted. After a change of
// UIDVALIDITY, or behind a UIDNEXT that has become lower, the UIDs are those of
// other messages: then it forgets them, before anything else is remembered of
// the new ones.
func (s *session) recall(ctx context.Context, known snapshot, v view) (err error) {
	if s.backend.Record == nil {
		return nil
	}
	restored := known.uidValidity == v.uidValidity && !v.continues(known)
	for range 3 {
		if err = s.tryRecall(ctx, restored, v); !errors.Is(err, errOvertaken) {
			break
		}
	}
	if err != nil {
		s.notice(proxy.NoticeRecord, 0, err)
	}
	return err
}

func (s *session) tryRecall(ctx context.Context, restored bool, v view) error {
	k := tombstonesKey(s.login.Account)
	stored, err := s.backend.Record.Get(ctx, k)
	if err != nil || stored == nil {
		return err
	}
	t, err := s.decodeTombstones(stored)
	if err != nil {
		return err
	}
	if !restored && v.continues(snapshot{uidValidity: t.uidValidity, uidNext: t.uidNext}) {
		s.buried = t.uids
		return nil
	}
	return s.backend.Record.Update(ctx, k, func(old []byte) ([]byte, error) {
		if !bytes.Equal(old, stored) {
			return nil, errOvertaken
		}
		return nil, nil
	})
}

// bury remembers that messages were deleted, and forgets the tombstones of those
// that the server has no more.
func (s *session) bury(ctx context.Context, uids []uint32) error {
	d := s.drop
	err := s.backend.Record.Update(context.WithoutCancel(ctx), tombstonesKey(s.login.Account), func(old []byte) ([]byte, error) {
		t, err := s.decodeTombstones(old)
		if err != nil {
			return nil, err
		}
		if len(t.uids) > 0 && t.uidValidity != d.uidValidity {
			return old, errRenumbered // another session knows better
		}
		t.uids = append(slices.DeleteFunc(t.uids, d.lacks), uids...)
		slices.Sort(t.uids)
		t.uids = slices.Compact(t.uids)
		t.uidValidity, t.uidNext = d.uidValidity, max(t.uidNext, d.uidNext)
		return t.encode(), nil
	})
	if err != nil {
		s.notice(proxy.NoticeRecord, len(uids), err)
	}
	return err
}
