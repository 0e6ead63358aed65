package guard

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"postern/proxy"
)

// restart returns a server whose guard has the snapshot of s, and the same clock.
func (s *server) restart(at *fakeClock, c Config) *server {
	s.t.Helper()
	c.Now = at.Now
	g := newGuard(c)
	if err := g.Restore(s.Snapshot()); err != nil {
		s.t.Fatal(err)
	}
	return &server{Guard: g, t: s.t, passwords: s.passwords, checked: s.checked}
}

func TestRestartsDoNotMakeANetworkKnownForLonger(t *testing.T) {
	t.Parallel()
	c := Config{KnownFor: 500 * day}
	s, at := newServer(t, c)
	if err := s.login("203.0.113.1", "alice", "right"); err != nil {
		t.Fatal(err)
	}
	for i := range 60 {
		if got, want := s.Explain("", "alice", netip.MustParseAddr("203.0.113.1")).Tier == KnownGood, i < 50; got != want {
			t.Errorf("%d days after the login: known-good %v, want %v", 10*i, got, want)
		}
		at.advance(10 * day)
		s = s.restart(at, c)
	}
}

// Criterion: Restarts in the middle of an attack earn no guesses, a crash at most those of the minute before; known-good networks stay so.
func TestRestartsEarnNothing(t *testing.T) {
	t.Parallel()
	const restarts = 24
	for _, crash := range []bool{false, true} {
		s, at := newServer(t, Config{})
		if err := s.login("203.0.113.1", "alice", "right"); err != nil {
			t.Fatal(err)
		}
		var last *server
		for i := range int(day / time.Minute) {
			if i%(60*24/restarts) == 0 {
				last = s.restart(at, Config{})
				if !crash {
					s = last
				}
			}
			s.guesses(1, "192.0.2.1", "alice")
			at.advance(time.Minute)
			if crash && i%(60*24/restarts) == 0 {
				last.checked = s.checked
				s = last
			}
		}
		most := 41
		if crash {
			most += restarts
		}
		if s.checked > most {
			t.Errorf("crashes %v: %d attempts came to the backend, want at most %d", crash, s.checked, most)
		}
		if e := s.Explain("", "alice", netip.MustParseAddr("203.0.113.1")); e.Tier != KnownGood || e.Refused != NoBucket || e.Last.IsZero() {
			t.Errorf("crashes %v, the owner: %+v", crash, e)
		}
	}
}

func TestSnapshotKeepsAll(t *testing.T) {
	t.Parallel()
	s, at := newServer(t, Config{Entries: 1 << 10, StrictNIST: true})
	s.passwords["alice"] = "secret"
	if err := s.login("203.0.113.1", "alice", "secret"); err != nil {
		t.Fatal(err)
	}
	s.guesses(7, "203.0.113.1", "alice")
	for i := range 5000 { // more than there is room for
		s.guesses(1, fmt.Sprintf("198.18.%d.%d", i/200, i%200), fmt.Sprint("user", i))
	}
	_ = s.login("192.0.2.1", "alice", "stale")
	s.guesses(4, "192.0.2.1", "alice")
	at.advance(time.Hour)
	again := s.restart(at, Config{Entries: 1 << 10, StrictNIST: true})
	for _, from := range []string{"203.0.113.1", "192.0.2.1", "198.18.0.0", "198.18.0.9", "198.18.20.9"} {
		for _, account := range []string{"alice", "user0", "user9", "user4009", "nobody"} {
			a, b := s.Explain("", account, netip.MustParseAddr(from)), again.Explain("", account, netip.MustParseAddr(from))
			if d := a.Last.Sub(b.Last).Abs(); d > 2*time.Second {
				t.Errorf("%s from %s: last success %v, was %v", account, from, b.Last, a.Last)
			}
			a.Last, b.Last = time.Time{}, time.Time{}
			for i := range b.Buckets { // debts are rounded up
				if d := a.Buckets[i].Next.Sub(b.Buckets[i].Next).Abs(); d <= 3*time.Second {
					b.Buckets[i].Next = a.Buckets[i].Next
				}
			}
			if fmt.Sprint(a) != fmt.Sprint(b) {
				t.Errorf("%s from %s:\n%+v, was\n%+v", account, from, b, a)
			}
		}
	}
	before := again.checked
	if err := again.login("192.0.2.1", "alice", "stale"); proxy.ReasonOf(err) != proxy.Wrong {
		t.Errorf("a repeat: %v", err)
	}
	wantChecked(t, "a repeat, with only 16 bits of the tag", again.checked-before, 1)
	if v := again.Stats(); v.Repeated != 1 || v.Failed != 0 {
		t.Errorf("a repeat is counted so: %+v", v)
	}
}

// Criterion: A snapshot has no name, no address and no password in it.
func TestSnapshotHasNoNames(t *testing.T) {
	t.Parallel()
	s, _ := newServer(t, Config{})
	s.passwords["canary-name"] = "canary-right"
	_ = s.login("203.0.113.1", "canary-name", "canary-wrong")
	_ = s.login("203.0.113.1", "canary-name", "canary-right")
	b := s.Snapshot()
	for _, word := range []string{"canary", "\xcb\x00\x71\x01"} {
		if bytes.Contains(b, []byte(word)) {
			t.Errorf("%q is in the snapshot", word)
		}
	}
}

// Criterion: A snapshot that is damaged, cut short or of another version is an error, after which the guard works and learns.
func TestBadSnapshots(t *testing.T) {
	t.Parallel()
	s, at := newServer(t, Config{})
	s.guesses(5, "192.0.2.1", "alice")
	_ = s.login("192.0.2.1", "bob", "right")
	good := s.Snapshot()
	bad := map[string][]byte{"nothing": {}, "text": []byte("hello"), "longer": append(bytes.Clone(good), 0)}
	for i := range good {
		bad[fmt.Sprint("cut at ", i)] = good[:i]
		flipped := bytes.Clone(good)
		flipped[i] ^= 1
		bad[fmt.Sprint("bit flipped at ", i)] = flipped
	}
	for name, b := range bad {
		g := newGuard(Config{Entries: 1})
		if err := g.Restore(b); !errors.Is(err, ErrSnapshot) {
			t.Fatalf("%s: %v", name, err)
		}
		if st := g.Stats(); st.Entries != 0 || st.KnownGood != 0 || st.Learning < 71*time.Hour {
			t.Errorf("%s: %+v", name, st)
		}
	}
	g := newGuard(Config{Now: at.Now})
	if err := g.Restore(good); err != nil {
		t.Fatal(err)
	}
	if st := g.Stats(); st.Learning != 0 || st.KnownGood != 1 || st.Entries == 0 {
		t.Errorf("the good one: %+v", st)
	}
}

func TestTokensComeBackWhileStopped(t *testing.T) {
	t.Parallel()
	s, at := newServer(t, Config{})
	s.guesses(5, "192.0.2.1", "alice")
	snapshot := s.Snapshot()
	at.advance(2 * time.Hour)
	again, _ := newServer(t, Config{})
	again.config.Now, again.started, again.checked = at.Now, at.now, 100
	if err := again.Restore(snapshot); err != nil {
		t.Fatal(err)
	}
	if got := again.guesses(9, "192.0.2.1", "alice"); got != 4 {
		t.Errorf("%d guesses after two hours, want 4", got)
	}
}

// A fakeStore is a Store.
type fakeStore struct {
	value []byte
	puts  int
	err   error
}

func (s *fakeStore) Get(context.Context, string) ([]byte, error) { return s.value, s.err }

func (s *fakeStore) Put(ctx context.Context, _ string, value []byte) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	s.puts++
	s.value = value
	return s.err
}

// Criterion: What the guard remembers is stored every minute and at the end.
func TestRunStores(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := &server{Guard: newGuard(Config{Learning: -1}), t: t}
		store := new(fakeStore)
		ctx, cancel := context.WithTimeout(t.Context(), 150*time.Second)
		defer cancel()
		done := make(chan struct{})
		go func() { s.Run(ctx, store, slog.New(slog.DiscardHandler)); close(done) }()
		time.Sleep(149 * time.Second)
		s.guesses(9, "192.0.2.1", "alice")
		<-done
		if store.puts != 3 {
			t.Errorf("%d snapshots in 150 s, want 3", store.puts)
		}
		again := newGuard(Config{})
		if err := again.Load(t.Context(), store); err != nil {
			t.Fatal(err)
		}
		if e := again.Explain("", "alice", netip.MustParseAddr("192.0.2.1")); e.Refused != Pair {
			t.Errorf("after Load: %+v", e)
		}
	})
}

func TestStoreFails(t *testing.T) {
	t.Parallel()
	g := newGuard(Config{})
	if err := g.Load(t.Context(), &fakeStore{}); err != nil {
		t.Errorf("an empty store: %v", err)
	}
	if err := g.Load(t.Context(), &fakeStore{err: io.ErrUnexpectedEOF}); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("Load: %v", err)
	}
	var log strings.Builder
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	g.Run(ctx, &fakeStore{err: io.ErrUnexpectedEOF}, slog.New(slog.NewTextHandler(&log, nil)))
	if !strings.Contains(log.String(), "level=WARN") {
		t.Errorf("log: %q", log.String())
	}
}

func FuzzRestore(f *testing.F) {
	s, at := newServer(f, Config{Entries: 1 << 10})
	f.Add([]byte{})
	s.guesses(3, "192.0.2.1", "bob")
	_ = s.login("203.0.113.1", "alice", "right")
	f.Add(s.Snapshot()[len(snapshotMagic):])
	f.Fuzz(func(t *testing.T, body []byte) {
		b := append([]byte(snapshotMagic), body...)
		b = binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
		g := newGuard(Config{Entries: 1 << 10, Now: at.Now})
		if err := g.Restore(b); err != nil {
			if st := g.Stats(); st.Entries != 0 || st.KnownGood != 0 {
				t.Errorf("after %v: %+v", err, st)
			}
		}
		s := &server{Guard: g, t: t}
		_ = s.login("203.0.113.1", "alice", "right")
		_ = s.login("203.0.113.1", "alice", "guess")
		g.Stats()
		if err := newGuard(Config{Entries: 1 << 10, Now: at.Now}).Restore(g.Snapshot()); err != nil {
			t.Errorf("its own snapshot: %v", err)
		}
	})
}
