package bridge

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"math"

	"postern/bridge/inbox"
)

const (
	// cacheVersion is the first octet of a snapshot in the cache.
	cacheVersion = 3
	// formerCache is that of a snapshot which does not say of which version of
	// the record it is. It is read.
	formerCache = 2
)

// What of the marks of a message is remembered, and how far a size is shifted
// to make place for it.
const (
	remembered  = exact | printed | headed | unprobed | unsized | removed
	shift       = 6
	formerShift = 4 // of formerCache, without unsized and removed
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

var errSpoilt = errors.New("what was remembered is damaged or of another version")

// encode returns s as it is remembered: a few octets for each message, and a
// checksum.
func (s snapshot) encode() []byte {
	b := make([]byte, 0, 32+6*len(s.messages))
	b = append(b, cacheVersion, 0)
	if s.proven {
		b[1] = 1
	}
	b = binary.AppendUvarint(b, uint64(s.uidValidity))
	b = binary.AppendUvarint(b, uint64(s.uidNext))
	b = binary.LittleEndian.AppendUint64(b, s.shown)
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
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

// decodeSnapshot is the inverse of encode. What is not exactly that is an error.
func decodeSnapshot(b []byte) (s snapshot, err error) {
	if len(b) < 6 || b[0] != cacheVersion && b[0] != formerCache {
		return snapshot{}, errSpoilt
	}
	b, sum := b[:len(b)-4], b[len(b)-4:]
	if crc32.Checksum(b, castagnoli) != binary.LittleEndian.Uint32(sum) {
		return snapshot{}, errSpoilt
	}
	r, former, by := varints{b: b[2:]}, b[0] == formerCache, shift
	s.proven = b[1] == 1
	s.uidValidity, s.uidNext = uint32(r.next(math.MaxUint32)), uint32(r.next(math.MaxUint32))
	s.shown = r.fixed()
	if !former {
		s.record.version = r.fixed()
		sum := r.fixed()
		s.record.sum, r.bad = uint32(sum), r.bad || sum > math.MaxUint32
	} else {
		by = formerShift
		if s.shown != 0 {
			s.record = formerStamp
		}
	}
	count := r.next(min(inbox.MaxMessages, uint64(len(r.b)/2)))
	s.messages = make([]message, count)
	uid, rest := uint64(0), r.b // a variable: r costs a write barrier for each number
	for i := range s.messages {
		delta, n := binary.Uvarint(rest)
		if n <= 0 {
			return snapshot{}, errSpoilt
		}
		size, k := binary.Uvarint(rest[n:])
		if uid += delta; k <= 0 || delta == 0 || delta > math.MaxUint32 || uid > math.MaxUint32 {
			return snapshot{}, errSpoilt
		}
		rest = rest[n+k:]
		s.messages[i] = message{uid: uint32(uid), size: int64(size >> by), marks: marks(size) & (1<<by - 1)}
	}
	r.b = rest
	if r.bad || len(r.b) > 0 {
		return snapshot{}, errSpoilt
	}
	return s, nil
}

// checksumOf returns that of an encoded snapshot, which tells one from another; 0 of
// what is none.
func checksumOf(b []byte) uint32 {
	if len(b) < 6 {
		return 0
	}
	return binary.LittleEndian.Uint32(b[len(b)-4:])
}

// varints reads numbers. After the first that is none, all are 0 and bad is set.
type varints struct {
	b   []byte
	bad bool
}

func (r *varints) next(most uint64) uint64 {
	n, size := binary.Uvarint(r.b)
	if size <= 0 || n > most {
		r.bad, r.b = true, nil
		return 0
	}
	r.b = r.b[size:]
	return n
}

// fixed reads a number of eight octets.
func (r *varints) fixed() uint64 {
	if len(r.b) < 8 {
		r.bad, r.b = true, nil
		return 0
	}
	n := binary.LittleEndian.Uint64(r.b)
	r.b = r.b[8:]
	return n
}
