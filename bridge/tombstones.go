package bridge

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"math"
	"slices"

	"postern/bridge/inbox"
	"postern/proxy"
)

const (
	// tombstonesVersion is the first octet of tombstones in the record, and
	// formerTombstones that of the tombstones of one UIDVALIDITY, which are read.
	tombstonesVersion = 2
	formerTombstones  = 1
	// maxTombstoneSets is of how many UIDVALIDITYs tombstones are kept: as many as a
	// record of UIDLs has generations.
	maxTombstoneSets = 4
)

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

// tombstoneSets are the tombstones of an account by UIDVALIDITY, the last that was
// used first: a UIDVALIDITY that returns has its own.
type tombstoneSets []tombstones

// deletedOf is at the end of the keys of tombstones.
const deletedOf = "\x00deleted"

func tombstonesKey(account string) string { return key(account) + deletedOf }

// encode returns d as it is remembered; nil if there is nothing to remember.
func (d tombstoneSets) encode() []byte {
	d = slices.DeleteFunc(slices.Clone(d), func(t tombstones) bool { return len(t.uids) == 0 })
	if len(d) == 0 {
		return nil
	}
	d = d[:min(len(d), maxTombstoneSets)]
	b := []byte{tombstonesVersion, byte(len(d))}
	for _, t := range d {
		b = t.append(b)
	}
	return sealFrame(b)
}

func (t tombstones) append(b []byte) []byte {
	b = binary.AppendUvarint(b, uint64(t.uidValidity))
	b = binary.AppendUvarint(b, uint64(t.uidNext))
	b = binary.AppendUvarint(b, uint64(len(t.uids)))
	last := uint32(0)
	for _, uid := range t.uids {
		b = binary.AppendUvarint(b, uint64(uid-last))
		last = uid
	}
	return b
}

// decodeTombstones is the inverse of encode. What is not exactly that is an
// error.
func decodeTombstones(b []byte) (d tombstoneSets, err error) {
	if b == nil {
		return nil, nil
	}
	version, r, err := openFrame(b, tombstonesVersion, formerTombstones)
	if err != nil {
		return nil, err
	}
	sets := uint64(1)
	if version == tombstonesVersion {
		sets = r.uvarint(maxTombstoneSets)
	}
	for range sets {
		t := tombstones{uidValidity: uint32(r.uvarint(math.MaxUint32)), uidNext: uint32(r.uvarint(math.MaxUint32))}
		t.uids = make([]uint32, r.uvarint(min(inbox.MaxMessages, uint64(len(r.b)))))
		uid := uint64(0)
		for i := range t.uids {
			delta := r.uvarint(math.MaxUint32)
			if uid += delta; delta == 0 || uid > math.MaxUint32 {
				return nil, errDamaged
			}
			t.uids[i] = uint32(uid)
		}
		d = append(d, t)
	}
	if err := r.end(); err != nil {
		return nil, err
	}
	return d, nil
}

// of returns the index of the tombstones of a UIDVALIDITY, or -1.
func (d tombstoneSets) of(uidValidity uint32) int {
	return slices.IndexFunc(d, func(t tombstones) bool { return t.uidValidity == uidValidity })
}

// decodeTombstones returns those that are stored; none if they cannot be read
// and the operator wants to begin anew.
func (s *session) decodeTombstones(stored []byte) (tombstoneSets, error) {
	d, err := decodeTombstones(stored)
	if err != nil && s.backend.Recompute {
		s.notice(proxy.NoticeRecomputed, 0, err)
		return nil, nil
	}
	return d, err
}

// loadTombstones reads which messages earlier sessions have deleted. Those of another
// UIDVALIDITY wait until it returns. Behind a UIDNEXT that has become lower, the
// UIDs are those of other messages: then tryLoadTombstones forgets the tombstones, before
// anything else is remembered of the new messages.
func (s *session) loadTombstones(ctx context.Context, known snapshot, v inbox.View) (err error) {
	if s.backend.Record == nil {
		return nil
	}
	restored := known.uidValidity == v.UIDValidity && !known.continuesIn(v)
	for range 3 {
		if err = s.tryLoadTombstones(ctx, restored, v); !errors.Is(err, errConflict) {
			break
		}
	}
	if err != nil {
		s.notice(proxy.NoticeRecord, 0, err)
	}
	return err
}

func (s *session) tryLoadTombstones(ctx context.Context, restored bool, v inbox.View) error {
	k := tombstonesKey(s.login.Account)
	stored, err := s.backend.Record.Get(ctx, k)
	if err != nil || stored == nil {
		return err
	}
	d, err := s.decodeTombstones(stored)
	if err != nil {
		return err
	}
	i := d.of(v.UIDValidity)
	if i < 0 {
		return nil
	}
	if !restored && (snapshot{uidValidity: d[i].uidValidity, uidNext: d[i].uidNext}).continuesIn(v) {
		s.deletedUIDs = d[i].uids
		return nil
	}
	return s.backend.Record.Update(ctx, k, func(old []byte) ([]byte, error) {
		if !bytes.Equal(old, stored) {
			return nil, errConflict
		}
		return slices.Delete(d, i, i+1).encode(), nil
	})
}

// recordTombstones remembers that messages were deleted, and forgets the tombstones of those
// that the server has no more.
func (s *session) recordTombstones(ctx context.Context, uids []uint32) error {
	m := s.maildrop
	err := s.backend.Record.Update(context.WithoutCancel(ctx), tombstonesKey(s.login.Account), func(old []byte) ([]byte, error) {
		d, err := s.decodeTombstones(old)
		if err != nil {
			return nil, err
		}
		t := tombstones{uidValidity: m.uidValidity}
		if i := d.of(m.uidValidity); i >= 0 {
			t = d[i]
			d = slices.Delete(d, i, i+1)
		}
		t.uids = slices.DeleteFunc(t.uids, func(uid uint32) bool { return m.lacks(uid) || slices.Contains(s.unhidden, uid) })
		t.uids = append(t.uids, uids...)
		slices.Sort(t.uids)
		t.uids = slices.Compact(t.uids)
		t.uidNext = max(t.uidNext, m.uidNext)
		return slices.Insert(d, 0, t).encode(), nil
	})
	if err != nil {
		s.notice(proxy.NoticeRecord, len(uids), err)
	}
	return err
}
