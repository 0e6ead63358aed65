package bridge

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"postern/proxy"
)

func TestWhatOfAMailboxIsCounted(t *testing.T) {
	same := comparison{oldUIDValidity: 7, newUIDValidity: 7, oldUIDNext: 100, newUIDNext: 100}
	tests := []struct {
		name  string
		alter func(*comparison)
		want  Change
	}{
		{"unchanged", func(c *comparison) { c.known, c.exists = 50, 50 }, Unchanged},
		{"the first poll", func(c *comparison) { c.oldUIDValidity, c.oldUIDNext, c.exists = 0, 0, 50 }, Unchanged},
		{"new mail", func(c *comparison) { c.known, c.exists, c.newUIDNext = 50, 90, 140 }, Unchanged},
		{"another UIDVALIDITY", func(c *comparison) { c.newUIDValidity, c.known, c.exists = 8, 1, 1 }, NewUIDValidity},
		{"another UIDVALIDITY, all gone", func(c *comparison) { c.newUIDValidity, c.known = 8, 50 }, NewUIDValidity},
		{"another UIDVALIDITY of what a client has emptied", func(c *comparison) { c.newUIDValidity, c.exists = 8, 5 }, NewUIDValidity},
		{"another UIDVALIDITY, empty before and after", func(c *comparison) { c.newUIDValidity = 8 }, Unchanged},
		{"another UIDVALIDITY, empty, and not known what was there", func(c *comparison) { c.newUIDValidity, c.known = 8, -1 }, NewUIDValidity},
		{"not known what was there", func(c *comparison) { c.known = -1 }, Unchanged},
		{"no UIDVALIDITY", func(c *comparison) { c.newUIDValidity, c.known = 0, 50 }, Unchanged},
		{"a lower UIDNEXT", func(c *comparison) { c.newUIDNext, c.known, c.exists = 99, 50, 49 }, LowerUIDNext},
		{"no UIDNEXT any more", func(c *comparison) { c.newUIDNext, c.known, c.exists = 0, 50, 50 }, Unchanged},
		{"19 known and none there", func(c *comparison) { c.known = 19 }, Unchanged},
		{"20 known and none there", func(c *comparison) { c.known = 20 }, Emptied},
		{"19 of 38 gone", func(c *comparison) { c.known, c.exists, c.gone = 38, 19, 19 }, Unchanged},
		{"20 of 40 gone", func(c *comparison) { c.known, c.exists, c.gone = 40, 20, 20 }, Shrunk},
		{"20 of 40 gone, by EXISTS alone", func(c *comparison) { c.known, c.exists = 40, 20 }, Shrunk},
		{"20 of 41 gone", func(c *comparison) { c.known, c.exists, c.gone = 41, 21, 20 }, Unchanged},
		{"20 of 40 gone, as many have come", func(c *comparison) { c.known, c.exists, c.gone, c.newUIDNext = 40, 40, 20, 120 }, Shrunk},
	}
	for _, test := range tests {
		c := same
		test.alter(&c)
		if got := c.change(); got != test.want {
			t.Errorf("%s: %v, want %v", test.name, got, test.want)
		}
	}
}

// events keeps what a Brake reports.
type events struct {
	mu  sync.Mutex
	all []proxy.Event
}

func (e *events) Observe(one proxy.Event) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.all = append(e.all, one)
}

// brakes returns how often the state changed, to what.
func (e *events) brakes() (all []proxy.BrakeChanged) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, one := range e.all {
		if b, ok := one.(proxy.BrakeChanged); ok {
			all = append(all, b)
		}
	}
	return all
}

// polls lets n accounts poll, and returns how many of them were refused.
func polls(t testing.TB, b *Brake, kind string, n int, c Change) (refused int) {
	t.Helper()
	for i := range n {
		err := b.Admit(t.Context(), fmt.Sprintf("%s%d@example.org", kind, i), c)
		if err == nil {
			continue
		}
		refused++
		if r, ok := errors.AsType[*proxy.Refusal](err); !ok || r.Reason != proxy.Unavailable || !r.Verified {
			t.Fatalf("refused by %v, want a verified Unavailable", err)
		}
	}
	return refused
}

// Criterion: When within 10 minutes the mailboxes of more than 5 accounts and of more than 1 % of those that poll look different, accounts whose mailbox looks different are refused for now; all others are served.
func TestTheBrakeComesOnAfterSoManyAccounts(t *testing.T) {
	for _, test := range []struct{ polling, admitted int }{
		{20, 10}, {50, 10}, {80, 10}, // below 100 in all: the eleventh
		{94, 5}, {200, 5}, {400, 5}, // the sixth
		{1000, 10}, {5000, 50},
	} {
		synctest.Test(t, func(t *testing.T) {
			b := NewBrake("main", nil)
			if n := polls(t, b, "quiet", test.polling, Unchanged); n > 0 {
				t.Errorf("of %d unchanged accounts %d were refused", test.polling, n)
			}
			if n := polls(t, b, "changed", test.admitted, NewUIDValidity); n > 0 {
				t.Errorf("of the first %d changed accounts of %d %d were refused", test.admitted, test.polling, n)
			}
			if n := polls(t, b, "more", 3, Emptied); n != 3 {
				t.Errorf("with %d polling, after %d changed ones %d of 3 more were refused, want 3", test.polling, test.admitted, n)
			}
			if n := polls(t, b, "quiet", test.polling, Unchanged); n > 0 {
				t.Errorf("with the brake on %d of %d unchanged accounts were refused", n, test.polling)
			}
		})
	}
}

func TestAnAccountCountsOnceInTenMinutes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := NewBrake("main", nil)
		polls(t, b, "quiet", 300, Unchanged)
		for range 50 {
			if n := polls(t, b, "changed", 5, Emptied); n > 0 {
				t.Fatal("five accounts that come again and again were refused")
			}
		}
		if s := b.Status(); s.Counted != 5 || s.Polled != 305 {
			t.Errorf("counted %d of %d, want 5 of 305", s.Counted, s.Polled)
		}
	})
}

func TestAccountsCountForTenMinutes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := NewBrake("main", nil)
		for i := range 30 { // one every three minutes
			polls(t, b, "quiet", 200, Unchanged)
			if n := polls(t, b, fmt.Sprint("changed", i), 1, Shrunk); n > 0 {
				t.Fatalf("account %d of one in three minutes was refused", i)
			}
			time.Sleep(3 * time.Minute)
		}
		if s := b.Status(); s.Counted != 3 || s.Polled != 203 {
			t.Errorf("counted %d of %d in the last ten minutes, want 3 of 203", s.Counted, s.Polled)
		}
		time.Sleep(time.Hour)
		if s := b.Status(); s.Counted != 0 || s.Polled != 0 {
			t.Errorf("counted %d of %d after a quiet hour, want none", s.Counted, s.Polled)
		}
	})
}

// The sizes of windows are those of a slow count of everything.
func TestRecentCountsAsASlowCountDoes(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	var r recent
	last := make(map[uint64]int64)
	slot := int64(0)
	for range 20_000 {
		if random.IntN(10) == 0 {
			slot += int64(random.IntN(20))
		}
		if random.IntN(2000) == 0 {
			slot += random.Int64N(3 * brakeSlots)
		}
		hash := uint64(random.IntN(500))
		before, was := last[hash]
		if got, want := r.add(hash, slot), was && slot-before < brakeSlots; got != want {
			t.Fatalf("slot %d: seen %v, want %v", slot, got, want)
		}
		last[hash] = slot
		want := 0
		for _, s := range last {
			if slot-s < brakeSlots {
				want++
			}
		}
		if got := r.count(slot); got != want {
			t.Fatalf("slot %d: %d accounts, want %d", slot, got, want)
		}
	}
}

// Criterion: The brake stays on until an operator accepts the changes, also over a restart; accepted before a planned move it does not come on for that time.
func TestTheBrakeStaysOnUntilAccepted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, seen := &memory{}, &events{}
		start := func() *Brake {
			b := NewBrake("main", seen)
			if err := b.Open(t.Context(), store); err != nil {
				t.Fatal(err)
			}
			return b
		}
		b := start()
		polls(t, b, "changed", 11, NewUIDValidity)
		begun := time.Now()
		time.Sleep(26 * time.Hour)
		if n := polls(t, b, "late", 1, NewUIDValidity); n != 1 {
			t.Error("a day later the brake is off")
		}
		b = start()
		if n := polls(t, b, "restarted", 1, NewUIDValidity); n != 1 {
			t.Error("after a restart the brake is off")
		}
		if s := b.Status(); !s.On.Equal(begun) {
			t.Errorf("on since %v, want %v", s.On, begun)
		}
		until, err := b.Accept(t.Context(), time.Hour)
		if err != nil || !until.Equal(time.Now().Add(time.Hour)) {
			t.Errorf("accepted until %v, %v; want an hour", until, err)
		}
		if n := polls(t, b, "accepted", 500, NewUIDValidity); n > 0 {
			t.Errorf("%d of 500 accepted changes were refused", n)
		}
		b = start()
		if n := polls(t, b, "again", 500, NewUIDValidity); n > 0 {
			t.Errorf("%d of 500 accepted changes were refused after a restart", n)
		}
		time.Sleep(time.Hour)
		if n := polls(t, b, "afterwards", 12, NewUIDValidity); n != 2 {
			t.Errorf("when the time is over %d of 12 were refused, want 2", n)
		}
		var states []bool
		for _, e := range seen.brakes() {
			states = append(states, e.On)
		}
		if want := []bool{true, true, false, true}; !slices.Equal(states, want) {
			t.Errorf("reported %v, want %v: on, on at the restart, accepted, on", states, want)
		}
	})
}

func TestAcceptKnowsItsLimits(t *testing.T) {
	b := NewBrake("main", nil)
	for _, d := range []time.Duration{-time.Hour, 0, time.Second, MaxAccept + 1} {
		if _, err := b.Accept(t.Context(), d); err == nil {
			t.Errorf("accepted for %v", d)
		}
	}
}

// During an upgrade there are two processes with one store.
func TestTwoProcessesHaveOneBrake(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &memory{}
		older, newer := NewBrake("main", nil), NewBrake("main", nil)
		if err := errors.Join(older.Open(t.Context(), store), newer.Open(t.Context(), store)); err != nil {
			t.Fatal(err)
		}
		polls(t, older, "changed", 11, NewUIDValidity)
		if n := polls(t, newer, "changed", 1, NewUIDValidity); n != 1 {
			t.Error("the newer process lets a change through that the older one brakes")
		}
		if _, err := newer.Accept(t.Context(), time.Minute); err != nil {
			t.Fatal(err)
		}
		if n := polls(t, older, "more", 50, NewUIDValidity); n != 0 {
			t.Errorf("the older process refuses %d changes that the newer one has accepted", n)
		}
		time.Sleep(time.Minute)
		if n := polls(t, older, "afterwards", 10, NewUIDValidity); n != 0 {
			t.Errorf("the older process counts what was accepted: %d refused", n)
		}
	})
}

// Criterion: While the state of the brake cannot be read, accounts whose mailbox looks different are refused for now, and all others are served.
func TestAStateThatIsNotKnownBrakes(t *testing.T) {
	broken := errors.New("disk on fire")
	t.Run("refused", func(t *testing.T) {
		store, seen := &memory{err: broken}, &events{}
		b := NewBrake("main", seen)
		if err := b.Open(t.Context(), store); !errors.Is(err, broken) {
			t.Errorf("Open: %v, want %v", err, broken)
		}
		if n := polls(t, b, "quiet", 5, Unchanged); n != 0 {
			t.Errorf("%d unchanged accounts were refused", n)
		}
		if err := b.Admit(t.Context(), "alice", Emptied); !errors.Is(err, broken) || !errors.Is(err, errBrakeUnknown) {
			t.Errorf("Admit: %v, want %v", err, broken)
		}
		if _, err := b.Accept(t.Context(), time.Hour); !errors.Is(err, broken) {
			t.Errorf("Accept: %v, want %v", err, broken)
		}
		store.err = nil
		if n := polls(t, b, "back", 1, Emptied); n != 0 {
			t.Error("refused when the store is back")
		}
		if got := seen.brakes(); len(got) != 2 || !got[0].On || got[0].Err == nil || got[1].On || got[1].Err != nil {
			t.Errorf("reported %+v, want on with the error and off", got)
		}
	})
	for _, damaged := range []string{"{", "null", "7", `{"version":2}`, `{"version":1,"on":"yesterday"}`} {
		t.Run("of another shape: "+damaged, func(t *testing.T) {
			store := &memory{}
			if err := store.Put(t.Context(), "main", []byte(damaged)); err != nil {
				t.Fatal(err)
			}
			b := NewBrake("main", nil)
			if err := b.Open(t.Context(), store); err == nil {
				t.Error("Open says nothing of it")
			}
			if n := polls(t, b, "changed", 1, Emptied); n != 1 {
				t.Error("a change was let through")
			}
			if _, err := b.Accept(t.Context(), time.Hour); err != nil {
				t.Fatal(err)
			}
			if n := polls(t, b, "accepted", 100, Emptied); n != 0 {
				t.Errorf("%d accepted changes were refused", n)
			}
		})
	}
	t.Run("accepted by a clock that was wrong", func(t *testing.T) {
		store := &memory{}
		if err := store.Put(t.Context(), "main", BrakeStatus{Accepted: time.Now().Add(MaxAccept + time.Hour)}.encode()); err != nil {
			t.Fatal(err)
		}
		b := NewBrake("main", nil)
		if err := b.Open(t.Context(), store); err != nil {
			t.Fatal(err)
		}
		if n := polls(t, b, "changed", 12, Emptied); n != 2 {
			t.Errorf("%d of 12 were refused, want 2", n)
		}
	})
}

// waiting is a store that answers nothing until the asker's time is over.
type waiting struct{ memory }

func (*waiting) Get(ctx context.Context, _ string) ([]byte, error) {
	<-ctx.Done()
	return nil, context.Cause(ctx)
}

func TestAClientThatLeavesSaysNothingOfTheStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		seen := &events{}
		b := NewBrake("main", seen)
		b.store = &waiting{}
		left := errors.New("the client has left")
		var wg sync.WaitGroup
		for i := range 3 { // two of them wait for the first
			wg.Go(func() {
				ctx, cancel := context.WithTimeoutCause(t.Context(), time.Duration(3-i)*time.Second, left)
				defer cancel()
				if err := b.Admit(ctx, "alice", Emptied); !errors.Is(err, left) {
					t.Errorf("Admit: %v, want %v", err, left)
				}
			})
		}
		wg.Wait()
		if len(seen.all) != 0 || b.Status().Braked() {
			t.Errorf("reported %v, braked %v", seen.all, b.Status().Braked())
		}
	})
}

func TestABrakeThatCannotBeKeptIsOnAndIsKeptLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		full := errors.New("no space left on device")
		store := &readOnly{err: full}
		b := NewBrake("main", nil)
		if err := b.Open(t.Context(), store); err != nil {
			t.Fatal(err)
		}
		if n := polls(t, b, "changed", 12, NewUIDValidity); n != 2 {
			t.Errorf("%d of 12 were refused, want 2", n)
		}
		time.Sleep(time.Hour)
		if n := polls(t, b, "later", 1, NewUIDValidity); n != 1 {
			t.Error("an hour later the brake is off")
		}
		store.err = nil
		if n := polls(t, b, "writable", 1, NewUIDValidity); n != 1 {
			t.Error("with a store that can be written the brake is off")
		}
		if s := decodeBrake(store.values["main"]); s.On.IsZero() {
			t.Error("the brake was not kept")
		}
	})
}

// readOnly is a store that cannot be written as long as there is an error.
type readOnly struct {
	memory
	err error
}

func (r *readOnly) Update(ctx context.Context, key string, change func([]byte) ([]byte, error)) error {
	if r.err != nil {
		return r.err
	}
	return r.memory.Update(ctx, key, change)
}

func TestABrakeIsForManyGoroutines(t *testing.T) {
	b := NewBrake("main", nil)
	if err := b.Open(t.Context(), &memory{}); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			polls(t, b, fmt.Sprint("quiet", g, "-"), 100, Unchanged)
			polls(t, b, fmt.Sprint("changed", g, "-"), 20, Shrunk)
			b.Status()
		})
	}
	wg.Wait()
	if s := b.Status(); s.On.IsZero() || s.Polled != 960 {
		t.Errorf("on since %v with %d accounts, want on with 960", s.On, s.Polled)
	}
}

func TestANilBrakeAdmitsAll(t *testing.T) {
	var b *Brake
	if err := b.Admit(t.Context(), "alice", NewUIDValidity); err != nil {
		t.Error(err)
	}
}

// BenchmarkBrakeMemory measures what a brake takes that has seen all accounts in
// both of its windows.
func BenchmarkBrakeMemory(b *testing.B) {
	for b.Loop() {
		const accounts = 500_000
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		var clock time.Time
		brake := newBrake("main", nil, func() time.Time { return clock })
		for range 2 {
			for i := range accounts {
				_ = brake.Admit(b.Context(), strconv.Itoa(i), Unchanged)
			}
			clock = clock.Add(brakeWindow)
		}
		runtime.GC()
		runtime.ReadMemStats(&after)
		b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/accounts, "octets/account")
		runtime.KeepAlive(brake)
	}
}

func BenchmarkBrakeAdmit(b *testing.B) {
	const accounts = 500_000
	names := make([]string, accounts)
	for i := range names {
		names[i] = fmt.Sprintf("customer%d@example.org", i)
	}
	brake := NewBrake("main", nil)
	polls(b, brake, "warm", 1, Unchanged)
	ctx, i := b.Context(), 0
	for b.Loop() {
		if err := brake.Admit(ctx, names[i%accounts], Unchanged); err != nil {
			b.Fatal(err)
		}
		i++
	}
}
