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
	// tombstonesVersion is the first octet of tombstones in the record. formerTombstones
	// is the first octet of the earlier form, with one UIDVALIDITY, which is only read.
	tombstonesVersion = 2
	formerTombstones  = 1
	// maxTombstoneSets bounds the UIDVALIDITYs whose tombstones are kept: the number of
	// generations of a record of UIDLs.
	maxTombstoneSets = 4
)

// tombstones are the messages that POP3 has deleted and the server still has: without
// UIDPLUS Postern can only mark a message. Tombstones keep the promise of QUIT, so they
// are in the record and not in the cache. The \Deleted flag is not consulted: a message
// that another client has marked is shown, and a tombstoned message that another client
// has unmarked stays hidden. The POP3 client had +OK for the deletion, and the user who
// unmarks a message sees that message in IMAP.
type tombstones struct {
	uidValidity, uidNext uint32   // of the mailbox at the last addition; uidNext 0: not known
	uids                 []uint32 // ascending
}

// tombstoneSets are the tombstones of an account, one set for each UIDVALIDITY, the last
// used first: a UIDVALIDITY that returns finds its set again.
type tombstoneSets []tombstones

// deletedOf ends the keys of tombstones.
const deletedOf = "\x00deleted"

func tombstonesKey(account string) string { return key(account) + deletedOf }

// encode returns the stored form of d; nil if there are no tombstones.
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

// decodeTombstones is the inverse of encode. It returns an error for any other input
// but the earlier form.
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

// decodeTombstones returns the stored tombstones. It returns none if they are damaged
// and Backend.Recompute is set.
func (s *session) decodeTombstones(stored []byte) (tombstoneSets, error) {
	d, err := decodeTombstones(stored)
	if err != nil && s.backend.Recompute {
		s.notice(proxy.NoticeRecomputed, 0, err)
		return nil, nil
	}
	return d, err
}

// loadTombstones reads the tombstones of the present UIDVALIDITY. Tombstones of another
// UIDVALIDITY stay stored until that UIDVALIDITY returns. A lower UIDNEXT means that the
// UIDs belong to other messages: then loadTombstones removes the tombstones, before the
// session stores anything else about the new messages.
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

// recordTombstones adds tombstones for the messages uids. It removes the tombstones of
// messages that the server no longer has, and of unhidden ones.
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
