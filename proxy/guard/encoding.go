package guard

import (
	"encoding/binary"
	"time"
)

// A snapshot has, in little endian: the magic; the wall clock's time; the rest of
// Learning, in seconds; the secret; the number of buckets, and the buckets; in the same
// way the cells of the sketch, the wrong passwords and the known pairs; and a CRC-32C.
// Times are seconds before the wall clock's time, and debts are seconds after it.

// secondsUntil returns the seconds from now until at, rounded up.
func secondsUntil(at, now time.Duration) uint32 {
	if at <= now {
		return 0
	}
	return uint32((at - now + time.Second - 1) / time.Second)
}

// appendPart appends the buckets of one segment. It returns their number.
func (t *bucketTable) appendPart(b []byte, segment int, now time.Duration) (_ []byte, n int) {
	t.table.each(segment, func(one *bucket) {
		if one.priority(now) <= 0 {
			return
		}
		n++
		b = binary.LittleEndian.AppendUint64(b, uint64(one.key))
		b = binary.LittleEndian.AppendUint32(b, secondsUntil(one.fullAt, now))
		b = binary.LittleEndian.AppendUint32(b, uint32(now/time.Second)-one.since)
		b = binary.LittleEndian.AppendUint32(b, one.account)
		b = binary.LittleEndian.AppendUint32(b, one.network)
		b = append(b, byte(one.kind), one.tries)
	})
	return b, n
}

// appendPart appends the cells of one row. It returns their number.
func (s *sketch) appendPart(b []byte, row int, now time.Duration) ([]byte, int) {
	for _, fullAt := range &s.rows[row] {
		b = binary.LittleEndian.AppendUint32(b, secondsUntil(time.Duration(fullAt)*time.Second, now))
	}
	return b, sketchCells
}

// appendWrong appends the wrong passwords of one segment of t. It returns the number of
// entries.
func appendWrong(b []byte, t *table[wrongPasswords, *wrongPasswords], segment int, now time.Duration) (_ []byte, n int) {
	t.each(segment, func(one *wrongPasswords) {
		if one.priority(now) <= 0 {
			return
		}
		n++
		b = binary.LittleEndian.AppendUint64(b, uint64(one.key))
		for _, w := range one.passwords {
			age := uint32(repeatFor / time.Second)
			if w != 0 {
				age = min(age, uint32(w.age(now)/time.Second))
			}
			b = binary.LittleEndian.AppendUint16(b, uint16(w>>48))
			b = binary.LittleEndian.AppendUint32(b, age)
		}
	})
	return b, n
}

// appendPart appends the pairs of one chunk. It returns their number.
func (n *knownNetworks) appendPart(b []byte, chunk int, now time.Duration) (_ []byte, count int) {
	seconds := uint32(now / time.Second)
	for i := range n.chunks[chunk] {
		k := &n.chunks[chunk][i]
		if k.account == 0 || n.expired(k, now) {
			continue
		}
		count++
		b = binary.LittleEndian.AppendUint64(b, uint64(k.account))
		b = binary.LittleEndian.AppendUint64(b, uint64(k.network))
		b = binary.LittleEndian.AppendUint32(b, k.area)
		b = binary.LittleEndian.AppendUint32(b, seconds-min(seconds, k.first))
		b = binary.LittleEndian.AppendUint32(b, seconds-min(seconds, k.last))
		b = binary.LittleEndian.AppendUint32(b, secondsUntil(k.fullAt, now))
	}
	return b, count
}

// restore reads buckets; then is the time of the snapshot.
func (t *bucketTable) restore(r *snapshotReader, then, now time.Duration) {
	for range r.length(26) {
		one := bucket{key: key(r.uint64()), fullAt: then + r.seconds(), since: secondsBefore(then, r.uint32())}
		one.account, one.network = r.uint32(), r.uint32()
		one.kind, one.tries = Bucket(r.uint8()), r.uint8()
		if one.priority(now) > 0 && one.key != 0 {
			*t.put(one.key, now) = one
		}
	}
}

// restore reads the cells.
func (s *sketch) restore(r *snapshotReader, then, now time.Duration) {
	n := r.length(4)
	if n == 0 {
		return
	}
	if n != sketchRows*sketchCells {
		r.short = true
		return
	}
	s.rows = make([][sketchCells]uint32, sketchRows)
	for row := range s.rows {
		for i := range &s.rows[row] {
			if fullAt := then + r.seconds(); fullAt > now {
				s.rows[row][i] = uint32(fullAt/time.Second) + 1
			}
		}
	}
}

// restoreWrong reads wrong passwords into t.
func restoreWrong(t *table[wrongPasswords, *wrongPasswords], r *snapshotReader, then, now time.Duration) {
	for range r.length(8 + 8*6) {
		one := wrongPasswords{key: key(r.uint64())}
		for i := range one.passwords {
			short, age := r.uint16(), r.uint32()
			if w := wrongPassword(short)<<48 | wrongPassword(secondsBefore(then, age))&secondsMask; w.age(now) < repeatFor {
				one.passwords[i] = w
			}
		}
		if one.priority(now) > 0 && one.key != 0 {
			*t.put(one.key, now, func(*wrongPasswords) {}) = one
		}
	}
}

// restore reads known pairs.
func (n *knownNetworks) restore(r *snapshotReader, then, now time.Duration) {
	for range r.length(32) {
		k := knownPair{account: key(r.uint64()), network: key(r.uint64()), area: r.uint32()}
		k.first, k.last, k.fullAt = secondsBefore(then, r.uint32()), secondsBefore(then, r.uint32()), then+r.seconds()
		if k.account != 0 && !n.expired(&k, now) && n.find(k.account, k.network) == nil {
			n.insert(k)
		}
	}
}

// secondsBefore returns the time, in seconds, that is some seconds before then.
func secondsBefore(then time.Duration, seconds uint32) uint32 {
	return uint32(then/time.Second) - min(uint32(then/time.Second), seconds)
}

// A snapshotReader reads a snapshot. At the end it returns zeros and sets short.
type snapshotReader struct {
	b     []byte
	short bool
}

var zeros [16]byte

// octets returns the next n octets.
func (r *snapshotReader) octets(n int) (b []byte) {
	if len(r.b) < n {
		r.b, r.short = nil, true
		return zeros[:n]
	}
	b, r.b = r.b[:n], r.b[n:]
	return b
}

func (r *snapshotReader) uint8() uint8   { return r.octets(1)[0] }
func (r *snapshotReader) uint16() uint16 { return binary.LittleEndian.Uint16(r.octets(2)) }
func (r *snapshotReader) uint32() uint32 { return binary.LittleEndian.Uint32(r.octets(4)) }
func (r *snapshotReader) uint64() uint64 { return binary.LittleEndian.Uint64(r.octets(8)) }

func (r *snapshotReader) seconds() time.Duration { return time.Duration(r.uint32()) * time.Second }

// length reads the number of records of a size, in octets. If the rest is too short for
// them it returns 0 and sets short.
func (r *snapshotReader) length(size int) int {
	n := r.uint32()
	if int64(n)*int64(size) > int64(len(r.b)) {
		r.b, r.short = nil, true
		return 0
	}
	return int(n)
}
