package guard

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"log/slog"
	"time"
)

// A Store stores a value for each key. Get returns nil if there is none.
type Store interface {
	Get(ctx context.Context, key string) ([]byte, error)
	Put(ctx context.Context, key string, value []byte) error
}

const (
	snapshotKey   = "guard"
	snapshotEvery = time.Minute
	snapshotPut   = 10 * time.Second // timeout of Store.Put

	// The last octet is the version.
	snapshotMagic = "postern guard\x01"
)

// ErrSnapshot is in the tree of the error about a snapshot that is damaged or of another
// version.
var ErrSnapshot = errors.New("not a snapshot of the guard")

// Load restores the snapshot in a Store, if there is one. After an error the guard has
// an empty memory and learns, and can be used. Load must be called before the first
// Admit.
func (g *Guard) Load(ctx context.Context, s Store) error {
	b, err := s.Get(ctx, snapshotKey)
	if err != nil {
		return fmt.Errorf("load the snapshot: %w", err)
	}
	if b == nil {
		return nil
	}
	return g.Restore(b)
}

// Run stores a snapshot every minute, and the last one when ctx ends. Then it returns.
func (g *Guard) Run(ctx context.Context, s Store, log *slog.Logger) {
	tick := time.NewTicker(snapshotEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			g.save(ctx, s, log)
		case <-ctx.Done():
			g.save(context.WithoutCancel(ctx), s, log)
			return
		}
	}
}

func (g *Guard) save(ctx context.Context, s Store, log *slog.Logger) {
	ctx, cancel := context.WithTimeout(ctx, snapshotPut)
	defer cancel()
	if err := g.Save(ctx, s); err != nil {
		log.Warn("guard snapshot not stored", "err", err)
	}
}

// Save stores a snapshot in a Store.
func (g *Guard) Save(ctx context.Context, s Store) error {
	return s.Put(ctx, snapshotKey, g.Snapshot())
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// A snapshot has, in little endian: the magic; the wall clock's time; the rest of
// Learning, in seconds; the secret; the number of buckets, and the buckets; in the same
// way the cells of the sketch, the wrong passwords and the known pairs; and a CRC-32C.
// Times are seconds before the wall clock's time, and debts are seconds after it.

// Snapshot returns the guard's memory. It has no name, address or password, but keyed
// hashes of names and addresses, the key of these hashes, and 16 bits of a keyed hash of
// each wrong password.
func (g *Guard) Snapshot() []byte {
	g.lock()
	now := g.now
	b := append(make([]byte, 0, g.snapshotSize+g.snapshotSize/8), snapshotMagic...) // about the size of the last one
	b = binary.LittleEndian.AppendUint64(b, uint64(g.wallTime(now).Unix()))
	b = binary.LittleEndian.AppendUint32(b, secondsUntil(g.learningEnd, now))
	b = g.secret.append(b)
	g.mu.Unlock()
	b = g.appendBuckets(b, now)
	b = g.appendSketch(b, now)
	b = g.appendWrong(b, now)
	b = g.appendKnown(b, now)
	b = binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
	g.mu.Lock()
	g.snapshotSize = len(b)
	g.mu.Unlock()
	return b
}

// secondsUntil returns the seconds from now until at, rounded up.
func secondsUntil(at, now time.Duration) uint32 {
	if at <= now {
		return 0
	}
	return uint32((at - now + time.Second - 1) / time.Second)
}

// section appends a number of records and the records. appendPart appends the records of
// one part, and returns their number. The guard is locked for one part at a time.
func (g *Guard) section(b []byte, parts int, appendPart func(b []byte, part int) ([]byte, int)) []byte {
	at, count := len(b), 0
	b = append(b, 0, 0, 0, 0)
	for i := range parts {
		g.mu.Lock()
		more, n := appendPart(b, i)
		g.mu.Unlock()
		b, count = more, count+n
	}
	binary.LittleEndian.PutUint32(b[at:], uint32(count))
	return b
}

func (g *Guard) appendBuckets(b []byte, now time.Duration) []byte {
	return g.section(b, segments, func(b []byte, part int) (_ []byte, n int) {
		g.buckets.table.each(part, func(one *bucket) {
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
	})
}

func (g *Guard) appendSketch(b []byte, now time.Duration) []byte {
	g.mu.Lock()
	sketched := g.buckets.evicted.rows != nil
	g.mu.Unlock()
	if !sketched {
		return binary.LittleEndian.AppendUint32(b, 0)
	}
	return g.section(b, sketchRows, func(b []byte, part int) ([]byte, int) {
		for _, fullAt := range &g.buckets.evicted.rows[part] {
			b = binary.LittleEndian.AppendUint32(b, secondsUntil(time.Duration(fullAt)*time.Second, now))
		}
		return b, sketchCells
	})
}

func (g *Guard) appendWrong(b []byte, now time.Duration) []byte {
	return g.section(b, segments, func(b []byte, part int) (_ []byte, n int) {
		g.wrong.each(part, func(one *wrongPasswords) {
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
	})
}

func (g *Guard) appendKnown(b []byte, now time.Duration) []byte {
	g.mu.Lock()
	chunks := len(g.known.chunks)
	g.mu.Unlock()
	seconds := uint32(now / time.Second)
	return g.section(b, chunks, func(b []byte, part int) (_ []byte, n int) {
		for i := range g.known.chunks[part] {
			k := &g.known.chunks[part][i]
			if k.account == 0 || g.known.expired(k, now) {
				continue
			}
			n++
			b = binary.LittleEndian.AppendUint64(b, uint64(k.account))
			b = binary.LittleEndian.AppendUint64(b, uint64(k.network))
			b = binary.LittleEndian.AppendUint32(b, k.area)
			b = binary.LittleEndian.AppendUint32(b, seconds-min(seconds, k.first))
			b = binary.LittleEndian.AppendUint32(b, seconds-min(seconds, k.last))
			b = binary.LittleEndian.AppendUint32(b, secondsUntil(k.fullAt, now))
		}
		return b, n
	})
}

// Restore replaces the guard's memory by a snapshot. Tokens have come back for the time
// between Snapshot and Restore, by the wall clock; none if it went back. After an error
// the guard has an empty memory and learns. Restore must be called before the first
// Admit.
func (g *Guard) Restore(b []byte) error {
	g.lock()
	defer g.mu.Unlock()
	g.reset(newSecret())
	if err := g.restore(b); err != nil {
		g.reset(newSecret())
		return fmt.Errorf("restore the snapshot: %w", err)
	}
	return nil
}

func (g *Guard) restore(b []byte) error {
	if len(b) < len(snapshotMagic)+4 || string(b[:len(snapshotMagic)]) != snapshotMagic {
		return fmt.Errorf("%w of this version", ErrSnapshot)
	}
	body, sum := b[:len(b)-4], b[len(b)-4:]
	if crc32.Checksum(body, castagnoli) != binary.LittleEndian.Uint32(sum) {
		return fmt.Errorf("%w: wrong checksum", ErrSnapshot)
	}
	r := snapshotReader{b: body[len(snapshotMagic):]}
	stored := time.Unix(int64(r.uint64()), 0)
	// Times in the snapshot are relative to the time at which it was made.
	then := g.now - min(max(0, g.config.Now().Sub(stored)), epoch)
	learning := r.seconds()
	g.reset(secretOf(r.octets(16)))
	g.learningEnd = then + min(learning, g.config.Learning)
	g.restoreBuckets(&r, then)
	g.restoreSketch(&r, then)
	g.restoreWrong(&r, then)
	g.restoreKnown(&r, then)
	if r.short || len(r.b) > 0 {
		return fmt.Errorf("%w: wrong length", ErrSnapshot)
	}
	return nil
}

func (g *Guard) restoreBuckets(r *snapshotReader, then time.Duration) {
	for range r.length(26) {
		one := bucket{key: key(r.uint64()), fullAt: then + r.seconds(), since: secondsBefore(then, r.uint32())}
		one.account, one.network = r.uint32(), r.uint32()
		one.kind, one.tries = Bucket(r.uint8()), r.uint8()
		if one.priority(g.now) > 0 && one.key != 0 {
			*g.buckets.put(one.key, g.now) = one
		}
	}
}

func (g *Guard) restoreSketch(r *snapshotReader, then time.Duration) {
	n := r.length(4)
	if n == 0 {
		return
	}
	if n != sketchRows*sketchCells {
		r.short = true
		return
	}
	g.buckets.evicted.rows = make([][sketchCells]uint32, sketchRows)
	for row := range g.buckets.evicted.rows {
		for i := range &g.buckets.evicted.rows[row] {
			if fullAt := then + r.seconds(); fullAt > g.now {
				g.buckets.evicted.rows[row][i] = uint32(fullAt/time.Second) + 1
			}
		}
	}
}

func (g *Guard) restoreWrong(r *snapshotReader, then time.Duration) {
	for range r.length(8 + 8*6) {
		one := wrongPasswords{key: key(r.uint64())}
		for i := range one.passwords {
			short, age := r.uint16(), r.uint32()
			if w := wrongPassword(short)<<48 | wrongPassword(secondsBefore(then, age))&secondsMask; w.age(g.now) < repeatFor {
				one.passwords[i] = w
			}
		}
		if one.priority(g.now) > 0 && one.key != 0 {
			*g.wrong.put(one.key, g.now, func(*wrongPasswords) {}) = one
		}
	}
}

func (g *Guard) restoreKnown(r *snapshotReader, then time.Duration) {
	for range r.length(32) {
		k := knownPair{account: key(r.uint64()), network: key(r.uint64()), area: r.uint32()}
		k.first, k.last, k.fullAt = secondsBefore(then, r.uint32()), secondsBefore(then, r.uint32()), then+r.seconds()
		if k.account != 0 && !g.known.expired(&k, g.now) && g.known.find(k.account, k.network) == nil {
			g.known.insert(k)
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
