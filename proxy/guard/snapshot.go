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

// A Store keeps one value for each key. Get returns nil if there is none.
type Store interface {
	Get(ctx context.Context, key string) ([]byte, error)
	Put(ctx context.Context, key string, value []byte) error
}

const (
	snapshotKey   = "guard"
	snapshotEvery = time.Minute
	snapshotPut   = 10 * time.Second // for one to be stored

	// The last octet is the version.
	snapshotMagic = "postern guard\x01"
)

// ErrSnapshot is in the tree of an error about a snapshot that is damaged, or
// of another version.
var ErrSnapshot = errors.New("not a snapshot of the guard")

// Load restores what a store has. After an error the guard remembers nothing,
// and learns: it can be used. Load must come before the first Admit.
func (g *Guard) Load(ctx context.Context, s Store) error {
	b, err := s.Get(ctx, snapshotKey)
	if err != nil {
		return fmt.Errorf("load what the guard remembers: %w", err)
	}
	if b == nil {
		return nil
	}
	return g.Restore(b)
}

// Run stores a snapshot every minute and, when ctx ends, the last one.
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
		log.Warn("what the guard remembers is not stored", "err", err)
	}
}

// Save stores a snapshot.
func (g *Guard) Save(ctx context.Context, s Store) error {
	return s.Put(ctx, snapshotKey, g.Snapshot())
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// A snapshot is, little endian, the magic; the time on the wall; what is left
// of learning, in seconds; the secret; the buckets, the sketch's cells, the
// rings and the known-good networks, each after their number; a CRC-32C. Times
// are seconds before that on the wall, and debts seconds after.

// Snapshot returns what the guard remembers. There is no name, no address and
// no password in it: keyed hashes, their key, and 16 bits of a keyed hash of
// each wrong password.
func (g *Guard) Snapshot() []byte {
	g.lock()
	now := g.latest
	b := append(make([]byte, 0, g.stored+g.stored/8), snapshotMagic...) // about as large as the last one
	b = binary.LittleEndian.AppendUint64(b, uint64(g.wall(now).Unix()))
	b = binary.LittleEndian.AppendUint32(b, debt(g.learning, now))
	b = g.secret.append(b)
	g.mu.Unlock()
	b = g.appendBuckets(b, now)
	b = g.appendSketch(b, now)
	b = g.appendRings(b, now)
	b = g.appendRegulars(b, now)
	b = binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
	g.mu.Lock()
	g.stored = len(b)
	g.mu.Unlock()
	return b
}

// debt returns the seconds from now until full, rounded up.
func debt(full, now time.Duration) uint32 {
	if full <= now {
		return 0
	}
	return uint32((full - now + time.Second - 1) / time.Second)
}

// section appends what each appends, after the number of it. The guard is
// locked for one part at a time.
func (g *Guard) section(b []byte, parts int, each func(b []byte, part int) ([]byte, int)) []byte {
	at, count := len(b), 0
	b = append(b, 0, 0, 0, 0)
	for i := range parts {
		g.mu.Lock()
		more, n := each(b, i)
		g.mu.Unlock()
		b, count = more, count+n
	}
	binary.LittleEndian.PutUint32(b[at:], uint32(count))
	return b
}

func (g *Guard) appendBuckets(b []byte, now time.Duration) []byte {
	return g.section(b, segments, func(b []byte, part int) (_ []byte, n int) {
		g.buckets.each(part, func(one *bucket) {
			if one.worth(now) <= 0 {
				return
			}
			n++
			b = binary.LittleEndian.AppendUint64(b, uint64(one.key))
			b = binary.LittleEndian.AppendUint32(b, debt(one.full, now))
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
	sketched := g.evicted.rows != nil
	g.mu.Unlock()
	if !sketched {
		return binary.LittleEndian.AppendUint32(b, 0)
	}
	return g.section(b, rows, func(b []byte, part int) ([]byte, int) {
		for _, full := range &g.evicted.rows[part] {
			b = binary.LittleEndian.AppendUint32(b, debt(time.Duration(full)*time.Second, now))
		}
		return b, cells
	})
}

func (g *Guard) appendRings(b []byte, now time.Duration) []byte {
	return g.section(b, segments, func(b []byte, part int) (_ []byte, n int) {
		g.rings.each(part, func(one *ring) {
			if one.worth(now) <= 0 {
				return
			}
			n++
			b = binary.LittleEndian.AppendUint64(b, uint64(one.key))
			for _, m := range one.marks {
				age := uint32(remembered / time.Second)
				if m != 0 {
					age = min(age, uint32(m.age(now)/time.Second))
				}
				b = binary.LittleEndian.AppendUint16(b, uint16(m>>48))
				b = binary.LittleEndian.AppendUint32(b, age)
			}
		})
		return b, n
	})
}

func (g *Guard) appendRegulars(b []byte, now time.Duration) []byte {
	g.mu.Lock()
	chunks := len(g.regulars.chunks)
	g.mu.Unlock()
	seconds := uint32(now / time.Second)
	return g.section(b, chunks, func(b []byte, part int) (_ []byte, n int) {
		for i := range g.regulars.chunks[part] {
			k := &g.regulars.chunks[part][i]
			if k.account == 0 || g.regulars.expired(k, now) {
				continue
			}
			n++
			b = binary.LittleEndian.AppendUint64(b, uint64(k.account))
			b = binary.LittleEndian.AppendUint64(b, uint64(k.network))
			b = binary.LittleEndian.AppendUint32(b, k.area)
			b = binary.LittleEndian.AppendUint32(b, seconds-min(seconds, k.first))
			b = binary.LittleEndian.AppendUint32(b, seconds-min(seconds, k.last))
			b = binary.LittleEndian.AppendUint32(b, debt(k.full, now))
		}
		return b, n
	})
}

// Restore makes the guard remember what a snapshot says. Tokens have come back
// meanwhile, as far as the clock on the wall is to be believed: if it went
// back, none. After an error the guard remembers nothing, and learns. Restore
// must come before the first Admit.
func (g *Guard) Restore(b []byte) error {
	g.lock()
	defer g.mu.Unlock()
	g.forget(newSecret())
	if err := g.restore(b); err != nil {
		g.forget(newSecret())
		return fmt.Errorf("restore what the guard remembers: %w", err)
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
	r := reader{b: body[len(snapshotMagic):]}
	stored := time.Unix(int64(r.uint64()), 0)
	// What is stored is counted from the time it was stored at.
	then := g.latest - min(max(0, g.config.Now().Sub(stored)), epoch)
	learning := r.seconds()
	g.forget(secretOf(r.next(16)))
	g.learning = then + min(learning, max(0, g.config.Learning))
	g.restoreBuckets(&r, then)
	g.restoreSketch(&r, then)
	g.restoreRings(&r, then)
	g.restoreRegulars(&r, then)
	if r.short || len(r.b) > 0 {
		return fmt.Errorf("%w: wrong length", ErrSnapshot)
	}
	return nil
}

func (g *Guard) restoreBuckets(r *reader, then time.Duration) {
	for range r.count(26) {
		one := bucket{key: key(r.uint64()), full: then + r.seconds(), since: before(then, r.uint32())}
		one.account, one.network = r.uint32(), r.uint32()
		one.kind, one.tries = Bucket(r.uint8()), r.uint8()
		if one.worth(g.latest) > 0 && one.key != 0 {
			*g.buckets.put(one.key, g.latest, g.evict) = one
		}
	}
}

func (g *Guard) restoreSketch(r *reader, then time.Duration) {
	n := r.count(4)
	if n == 0 {
		return
	}
	if n != rows*cells {
		r.short = true
		return
	}
	g.evicted.rows = make([][cells]uint32, rows)
	for row := range g.evicted.rows {
		for i := range &g.evicted.rows[row] {
			if full := then + r.seconds(); full > g.latest {
				g.evicted.rows[row][i] = uint32(full/time.Second) + 1
			}
		}
	}
}

func (g *Guard) restoreRings(r *reader, then time.Duration) {
	for range r.count(8 + 8*6) {
		one := ring{key: key(r.uint64())}
		for i := range one.marks {
			short, age := r.uint16(), r.uint32()
			if m := mark(short)<<48 | mark(before(then, age))&markSeconds; m.age(g.latest) < remembered {
				one.marks[i] = m
			}
		}
		if one.worth(g.latest) > 0 && one.key != 0 {
			*g.rings.put(one.key, g.latest, func(*ring) {}) = one
		}
	}
}

func (g *Guard) restoreRegulars(r *reader, then time.Duration) {
	for range r.count(32) {
		k := known{account: key(r.uint64()), network: key(r.uint64()), area: r.uint32()}
		k.first, k.last, k.full = before(then, r.uint32()), before(then, r.uint32()), then+r.seconds()
		if k.account != 0 && !g.regulars.expired(&k, g.latest) && g.regulars.find(k.account, k.network) == nil {
			g.regulars.add(k)
		}
	}
}

// before returns the second so many before then.
func before(then time.Duration, seconds uint32) uint32 {
	return uint32(then/time.Second) - min(uint32(then/time.Second), seconds)
}

// A reader reads a snapshot. What is not there is zero, and makes it short.
type reader struct {
	b     []byte
	short bool
}

var zeros [16]byte

func (r *reader) next(n int) (b []byte) {
	if len(r.b) < n {
		r.b, r.short = nil, true
		return zeros[:n]
	}
	b, r.b = r.b[:n], r.b[n:]
	return b
}

func (r *reader) uint8() uint8   { return r.next(1)[0] }
func (r *reader) uint16() uint16 { return binary.LittleEndian.Uint16(r.next(2)) }
func (r *reader) uint32() uint32 { return binary.LittleEndian.Uint32(r.next(4)) }
func (r *reader) uint64() uint64 { return binary.LittleEndian.Uint64(r.next(8)) }

func (r *reader) seconds() time.Duration { return time.Duration(r.uint32()) * time.Second }

// count reads how many records of a size follow. It believes no number that the
// rest has no room for.
func (r *reader) count(size int) int {
	n := r.uint32()
	if int64(n)*int64(size) > int64(len(r.b)) {
		r.b, r.short = nil, true
		return 0
	}
	return int(n)
}
