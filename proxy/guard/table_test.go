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
		size += len(s.buckets.segments[i]) + len(s.rings.segments[i])
	}
	if size > 1<<12+1<<10 || s.evicted.rows == nil {
		t.Errorf("%d entries, want at most %d and a sketch in use", size, 1<<12+1<<10)
	}
	at.advance(10 * time.Minute)
	if err := s.login("203.0.113.1", "alice", "right"); err != nil {
		t.Errorf("the owner is refused: %v", err)
	}
}

func TestTableKeepsWhatIsWorthMost(t *testing.T) {
	const limit = 1 << 10
	table := newTable[bucket](limit)
	evicted := 0
	put := func(k key, full time.Duration) {
		b := table.put(k, 0, func(*bucket) { evicted++ })
		b.key, b.full = k, full
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
	for k, full := range want {
		if b := table.get(k); b == nil || b.full != full {
			t.Errorf("%x: %+v", k, b)
		}
	}
	if n := table.len(0); n != limit || evicted == 0 {
		t.Errorf("%d entries and %d evicted, want %d and some", n, evicted, limit)
	}
	if n := table.len(time.Hour); n != 200 {
		t.Errorf("%d entries are worth something after an hour, want 200", n)
	}
	evicted = 0
	for k := range want { // the rest is worth nothing now: there is room
		table.put(k^1<<40, 2*time.Hour, func(*bucket) { evicted++ })
	}
	if evicted != 0 {
		t.Errorf("%d were evicted beside places that are as good as free", evicted)
	}
}

func TestTableAsAMap(t *testing.T) {
	table, m := newTable[bucket](1<<20), map[key]time.Duration{}
	for range 50_000 {
		k := key(rand.Uint64())
		b := table.put(k, 0, func(*bucket) { t.Error("evicted") })
		b.key, b.full = k, time.Duration(1+rand.IntN(1000))
		m[k] = b.full
	}
	for k, full := range m {
		if b := table.get(k); b == nil || b.full != full {
			t.Fatalf("get(%x) = %+v, want %v", k, b, full)
		}
	}
	if n := table.len(0); n != len(m) {
		t.Errorf("len %d, want %d", n, len(m))
	}
	if b := table.get(key(rand.Uint64())); b != nil {
		t.Errorf("get of another key: %+v", b)
	}
}

func TestSketchNeverForgives(t *testing.T) {
	var s sketch
	if got := s.full(1); got != 0 {
		t.Errorf("an empty sketch says %v", got)
	}
	m := map[key]time.Duration{}
	for range 20_000 {
		k := key(rand.Uint64())
		m[k] = rand.N(day)
		s.raise(k, m[k])
	}
	more := 0
	for k, full := range m {
		switch got := s.full(k); {
		case got < full:
			t.Errorf("full(%x) = %v, want %v at least", k, got, full)
		case got > full+2*time.Second:
			more++
		}
	}
	if more > 200 {
		t.Errorf("%d of 20000 owe more than they do", more)
	}
	for k := range m {
		s.forget(k)
		if got := s.full(k); got != 0 {
			t.Errorf("after forget: %v", got)
		}
	}
}

func TestRegulars(t *testing.T) {
	r := newRegulars(100)
	type pair struct{ account, network key }
	model := map[pair]bool{}
	for i := range 10_000 {
		p := pair{key(1 + rand.N(20)), key(1 + rand.N(30))}
		at := epoch + time.Duration(i)*time.Second
		if isNew := r.greet(p.account, p.network, 7, at); isNew == model[p] && i < 100 {
			t.Fatalf("greet %d: new %v", i, isNew)
		}
		model[p] = true
		checkRegulars(t, r)
	}
	if r.len() != 100 {
		t.Errorf("%d are known, want 100", r.len())
	}
	r = newRegulars(1000)
	for i := range 100 {
		r.greet(1, key(100+i), 7, epoch+time.Duration(i)*time.Second)
		checkRegulars(t, r)
	}
	for i := range 100 {
		f := r.look(1, key(100+i), 7, epoch)
		if known := f.known != nil; known != (i >= 68) || !f.area || f.last != epoch+99*time.Second {
			t.Errorf("network %d: %+v, want the last 32 to be known", i, f)
		}
	}
	later := epoch + knownFor + 70*time.Second
	if f := r.look(1, 170, 7, later); f.known != nil {
		t.Errorf("after 30 days: %+v", f)
	}
	if !r.welcomes(171, later) || r.welcomes(170, later) || r.welcomes(1, later) {
		t.Error("who is welcome is not who came in the last 30 days")
	}
}

// checkRegulars walks all lists.
func checkRegulars(t *testing.T, r *regulars) {
	t.Helper()
	places := func(walk func(each func(p place, k *known))) map[place]bool {
		seen := map[place]bool{}
		walk(func(p place, k *known) {
			if seen[p] || k.account == 0 {
				t.Fatalf("place %d is in a list twice, or free", p)
			}
			seen[p] = true
		})
		return seen
	}
	byAccount := places(func(each func(place, *known)) {
		for a, p := range r.accounts {
			for ; p != 0; p = r.at(p).ofAccount {
				if r.at(p).account != a {
					t.Fatalf("place %d is in a list of another account", p)
				}
				each(p, r.at(p))
			}
		}
	})
	byNetwork := places(func(each func(place, *known)) {
		for n, h := range r.houses {
			last := place(0)
			for p := h.first; p != 0; p = r.at(p).ofNetwork {
				if r.at(p).network != n || r.at(p).toNetwork != last {
					t.Fatalf("place %d is in a list of another network, or linked wrongly", p)
				}
				last = p
				each(p, r.at(p))
			}
		}
	})
	if len(byAccount) != r.len() || len(byNetwork) != r.len() {
		t.Fatalf("%d are known, %d by account, %d by network", r.len(), len(byAccount), len(byNetwork))
	}
}

func TestRing(t *testing.T) {
	var r ring
	r.key = 1
	now := epoch
	for i := range 20 {
		r.add(tag(uint64(i+1)<<40), now)
		now += time.Minute
	}
	for i := range 20 {
		m, exact := r.find(tag(uint64(i+1)<<40), now)
		if found := m != 0; found != (i >= 12) || found && (!exact || m.age(now) != time.Duration(20-i)*time.Minute) {
			t.Errorf("password %d: found %v, exact %v, age %v, want the last eight", i, found, exact, m.age(now))
		}
	}
	r.add(tag(13<<40), now)
	if n := r.count(now); n != 8 {
		t.Errorf("%d passwords after a repeat, want 8", n)
	}
	r.remove(tag(13<<40), now)
	if m, _ := r.find(tag(13<<40), now); m != 0 || r.count(now) != 7 {
		t.Errorf("a password that was removed is found: %v, of %d", m, r.count(now))
	}
	if r.count(now+day) != 0 || r.worth(now+day) > 0 {
		t.Error("passwords are remembered for more than a day")
	}
}

// The vectors are those of the reference implementation: for 00 01 02 .., under
// the key 00 01 .. 0f.
func TestSipHash(t *testing.T) {
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
