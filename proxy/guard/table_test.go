package guard

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"
)

// Criterion: While half a million failures go by, each from another network at another account, memory stays bounded, whoever was refused before stays refused, and known-good networks stay so.
func TestMillionsOfKeysNeitherGrowMemoryNorForgive(t *testing.T) {
	t.Parallel()
	s, at := newServer(t, Config{Entries: 1 << 12, Pairs: 1 << 12})
	if err := s.login("203.0.113.1", "alice", "right"); err != nil {
		t.Fatal(err)
	}
	s.guesses(20, "203.0.113.1", "alice") // its own bucket: in no table
	for i := range 9 {
		s.guesses(5, fmt.Sprint("192.0.2.", i), "alice")
	}
	blocked := func(when string) {
		t.Helper()
		for i := range 9 {
			e := s.Explain("", "alice", netip.MustParseAddr(fmt.Sprint("192.0.2.", i)))
			if e.Refused == NoBucket {
				t.Errorf("%s network %d may guess: %+v", when, i, e)
			}
		}
		if e := s.Explain("", "alice", netip.MustParseAddr("203.0.113.1")); e.Tier != KnownGood || e.Refused != Known {
			t.Errorf("%s the owner's network: %+v", when, e)
		}
	}
	blocked("before,")
	p := mustAdmit(t, s.Guard, "192.0.2.200")
	defer p.Leave()
	for i := range 500_000 / 10 {
		p.from = s.secret.originOf(netip.AddrFrom4([4]byte{11, byte(i >> 16), byte(i >> 8), byte(i)}))
		for j := range 10 {
			if err := p.Try(t.Context(), loginWith(fmt.Sprint(i, j), "guess")); err == nil {
				p.Settle(errWrong)
			} else {
				p.Settle(err)
			}
		}
	}
	p.from = s.secret.originOf(netip.MustParseAddr("192.0.2.200"))
	blocked("after,")
	size := 0
	for i := range segments {
		size += len(s.buckets.table.segments[i]) + len(s.wrong.segments[i])
	}
	if size > 1<<12+1<<10 || s.buckets.evicted.rows == nil {
		t.Errorf("%d entries, want at most %d and a sketch in use", size, 1<<12+1<<10)
	}
	at.advance(10 * time.Minute)
	if err := s.login("203.0.113.1", "alice", "right"); err != nil {
		t.Errorf("the owner is refused: %v", err)
	}
}

func TestTableKeepsTheHighestPriorities(t *testing.T) {
	t.Parallel()
	const limit = 1 << 10
	table := newTable[bucket](limit)
	evicted := 0
	put := func(k key, fullAt time.Duration) {
		b := table.put(k, 0, func(*bucket) { evicted++ })
		b.key, b.fullAt = k, fullAt
	}
	want := map[key]time.Duration{}
	for range 200 {
		k := key(rand.Uint64())
		want[k] = day
		put(k, day)
	}
	for range 20 * limit {
		put(key(rand.Uint64()), time.Hour)
	}
	for k, fullAt := range want {
		if b := table.get(k); b == nil || b.fullAt != fullAt {
			t.Errorf("%x: %+v", k, b)
		}
	}
	if n := tableLen(table, 0); n != limit || evicted == 0 {
		t.Errorf("%d entries and %d evicted, want %d and some", n, evicted, limit)
	}
	if n := tableLen(table, time.Hour); n != 200 {
		t.Errorf("%d entries have a priority after an hour, want 200", n)
	}
	evicted = 0
	for k := range want { // the other entries have no priority any more, so there is room
		table.put(k^1<<40, 2*time.Hour, func(*bucket) { evicted++ })
	}
	if evicted != 0 {
		t.Errorf("%d were evicted although entries of their sets are free", evicted)
	}
}

func TestTableAsAMap(t *testing.T) {
	t.Parallel()
	table, m := newTable[bucket](1<<20), map[key]time.Duration{}
	for range 50_000 {
		k := key(rand.Uint64())
		b := table.put(k, 0, func(*bucket) { t.Error("evicted") })
		b.key, b.fullAt = k, time.Duration(1+rand.IntN(1000))
		m[k] = b.fullAt
	}
	for k, fullAt := range m {
		if b := table.get(k); b == nil || b.fullAt != fullAt {
			t.Fatalf("get(%x) = %+v, want %v", k, b, fullAt)
		}
	}
	if n := tableLen(table, 0); n != len(m) {
		t.Errorf("len %d, want %d", n, len(m))
	}
	if b := table.get(key(rand.Uint64())); b != nil {
		t.Errorf("get of another key: %+v", b)
	}
}

// tableLen returns the number of entries with a priority above 0.
func tableLen(t *table[bucket, *bucket], now time.Duration) (n int) {
	for i := range t.segments {
		t.each(i, func(b *bucket) {
			if b.priority(now) > 0 {
				n++
			}
		})
	}
	return n
}

func TestSketchNeverForgives(t *testing.T) {
	t.Parallel()
	var s sketch
	if got := s.fullAt(1); got != 0 {
		t.Errorf("an empty sketch returns %v", got)
	}
	m := map[key]time.Duration{}
	for range 20_000 {
		k := key(rand.Uint64())
		m[k] = rand.N(day)
		s.raise(k, m[k])
	}
	more := 0
	for k, fullAt := range m {
		switch got := s.fullAt(k); {
		case got < fullAt:
			t.Errorf("fullAt(%x) = %v, want %v at least", k, got, fullAt)
		case got > fullAt+2*time.Second:
			more++
		}
	}
	if more > 200 {
		t.Errorf("%d of 20000 have more debt than they should", more)
	}
	for k := range m {
		s.reset(k)
		if got := s.fullAt(k); got != 0 {
			t.Errorf("after reset: %v", got)
		}
	}
}

func TestKnownNetworks(t *testing.T) {
	t.Parallel()
	const keepFor = 30 * day
	n := newKnownNetworks(100, keepFor)
	type pair struct{ account, network key }
	model := map[pair]bool{}
	for i := range 10_000 {
		p := pair{key(1 + rand.N(20)), key(1 + rand.N(30))}
		at := epoch + time.Duration(i)*time.Second
		if isNew := n.add(p.account, p.network, 7, at); isNew == model[p] && i < 100 {
			t.Fatalf("add %d: new %v", i, isNew)
		}
		model[p] = true
		checkKnownNetworks(t, n)
	}
	if n.len() != 100 {
		t.Errorf("%d are known, want 100", n.len())
	}
	n = newKnownNetworks(1000, keepFor)
	for i := range 100 {
		n.add(1, key(100+i), 7, epoch+time.Duration(i)*time.Second)
		checkKnownNetworks(t, n)
	}
	for i := range 100 {
		h := n.history(1, key(100+i), 7, epoch)
		if known := h.known != nil; known != (i >= 68) || !h.area || h.last != epoch+99*time.Second {
			t.Errorf("network %d: %+v, want the last 32 to be known", i, h)
		}
	}
	later := epoch + keepFor + 70*time.Second
	if h := n.history(1, 170, 7, later); h.known != nil {
		t.Errorf("after 30 days: %+v", h)
	}
	if !n.has(171, later) || n.has(170, later) || n.has(1, later) {
		t.Error("known-good are not those networks that were used in the last 30 days")
	}
}

// checkKnownNetworks walks all lists.
func checkKnownNetworks(t *testing.T, n *knownNetworks) {
	t.Helper()
	indexes := func(walk func(each func(i pairIndex, k *knownPair))) map[pairIndex]bool {
		seen := map[pairIndex]bool{}
		walk(func(i pairIndex, k *knownPair) {
			if seen[i] || k.account == 0 {
				t.Fatalf("pair %d is in a list twice, or free", i)
			}
			seen[i] = true
		})
		return seen
	}
	byAccount := indexes(func(each func(pairIndex, *knownPair)) {
		for a, i := range n.accounts {
			for ; i != 0; i = n.at(i).nextOfAccount {
				if n.at(i).account != a {
					t.Fatalf("pair %d is in a list of another account", i)
				}
				each(i, n.at(i))
			}
		}
	})
	byNetwork := indexes(func(each func(pairIndex, *knownPair)) {
		for k, network := range n.networks {
			last := pairIndex(0)
			for i := network.first; i != 0; i = n.at(i).nextOfNetwork {
				if n.at(i).network != k || n.at(i).prevOfNetwork != last {
					t.Fatalf("pair %d is in a list of another network, or linked wrongly", i)
				}
				last = i
				each(i, n.at(i))
			}
		}
	})
	if len(byAccount) != n.len() || len(byNetwork) != n.len() {
		t.Fatalf("%d are known, %d by account, %d by network", n.len(), len(byAccount), len(byNetwork))
	}
}

func TestWrongPasswords(t *testing.T) {
	t.Parallel()
	var p wrongPasswords
	p.key = 1
	now := epoch
	for i := range 20 {
		p.add(tag(uint64(i+1)<<40), now)
		now += time.Minute
	}
	for i := range 20 {
		w, exact := p.find(tag(uint64(i+1)<<40), now)
		if found := w != 0; found != (i >= 12) || found && (!exact || w.age(now) != time.Duration(20-i)*time.Minute) {
			t.Errorf("password %d: found %v, exact %v, age %v, want the last eight", i, found, exact, w.age(now))
		}
	}
	p.add(tag(13<<40), now)
	if n := p.count(now); n != 8 {
		t.Errorf("%d passwords after a repeat, want 8", n)
	}
	p.remove(tag(13<<40), now)
	if w, _ := p.find(tag(13<<40), now); w != 0 || p.count(now) != 7 {
		t.Errorf("a password that was removed is found: %v, of %d", w, p.count(now))
	}
	if p.count(now+day) != 0 || p.priority(now+day) > 0 {
		t.Error("passwords are remembered for more than a day")
	}
}

// The vectors are those of the reference implementation: for 00 01 02 .., under
// the key 00 01 .. 0f.
func TestSipHash(t *testing.T) {
	t.Parallel()
	var k [16]byte
	for i := range k {
		k[i] = byte(i)
	}
	for n, want := range map[int]string{8: "6224939a79f5f593", 15: "e545be4961ca29a1", 16: "db9bc2577fcc2a3f"} {
		data := make([]byte, n)
		for i := range data {
			data[i] = byte(i)
		}
		var got [8]byte
		binary.LittleEndian.PutUint64(got[:], sipHash(secretOf(k[:]), binary.LittleEndian.Uint64(data), data[8:]))
		if fmt.Sprintf("%x", got) != want {
			t.Errorf("%d octets: %x, want %s", n, got, want)
		}
	}
}
