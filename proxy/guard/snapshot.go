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
	b = g.section(b, func() int { return segments }, func(b []byte, part int) ([]byte, int) {
		return g.buckets.appendPart(b, part, now)
	})
	b = g.section(b, func() int { return len(g.buckets.evicted.rows) }, func(b []byte, part int) ([]byte, int) {
		return g.buckets.evicted.appendPart(b, part, now)
	})
	b = g.section(b, func() int { return segments }, func(b []byte, part int) ([]byte, int) {
		return appendWrong(b, g.wrong, part, now)
	})
	b = g.section(b, func() int { return len(g.known.chunks) }, func(b []byte, part int) ([]byte, int) {
		return g.known.appendPart(b, part, now)
	})
	b = binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
	g.mu.Lock()
	g.snapshotSize = len(b)
	g.mu.Unlock()
	return b
}

// section appends a number of records and the records. appendPart appends the records of
// one part, and returns their number. The guard is locked for one part at a time.
func (g *Guard) section(b []byte, parts func() int, appendPart func(b []byte, part int) ([]byte, int)) []byte {
	at, count := len(b), 0
	b = append(b, 0, 0, 0, 0)
	g.mu.Lock()
	total := parts()
	g.mu.Unlock()
	for i := range total {
		g.mu.Lock()
		more, n := appendPart(b, i)
		g.mu.Unlock()
		b, count = more, count+n
	}
	binary.LittleEndian.PutUint32(b[at:], uint32(count))
	return b
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
	g.buckets.restore(&r, then, g.now)
	g.buckets.evicted.restore(&r, then, g.now)
	restoreWrong(g.wrong, &r, then, g.now)
	g.known.restore(&r, then, g.now)
	if r.short || len(r.b) > 0 {
		return fmt.Errorf("%w: wrong length", ErrSnapshot)
	}
	return nil
}
