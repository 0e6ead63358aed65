package guard

import (
	"context"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"postern/proxy"
)

// A storm is clients that log in at once, to a backend that takes some time.
type storm struct {
	guard   *Guard
	latency time.Duration
	wg      sync.WaitGroup

	mu            sync.Mutex
	running, most int
	order         []int // of clients, as they came to the backend
	failed        []error
	took          map[int]time.Duration // from the dial of a client to its answer
}

// login lets the client number i come from its home and log in.
func (s *storm) login(t testing.TB, i int) {
	begun := time.Now()
	s.wg.Go(func() {
		p := mustAdmit(t, s.guard, homeOf(i).String())
		defer p.Leave()
		err := p.Try(t.Context(), loginWith(fmt.Sprint("user", i), "right"))
		if err == nil {
			s.enter(i)
			time.Sleep(s.latency)
			s.leave()
		}
		p.Settle(err)
		s.mu.Lock()
		defer s.mu.Unlock()
		s.took[i] = time.Since(begun)
		if err != nil {
			s.failed = append(s.failed, err)
		}
	})
}

func (s *storm) enter(i int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.running++
	s.most = max(s.most, s.running)
	s.order = append(s.order, i)
}

func (s *storm) leave() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.running--
}

// homeOf returns the address of the client number i: none has a neighbour.
func homeOf(i int) netip.Addr { return addressOf(uint32(i) << 8) }

// quiet fails the test if something of the storm is left.
func (s *storm) quiet(t testing.TB) {
	t.Helper()
	g := s.guard
	if g.slots != (slotQueue{knownInRow: g.slots.knownInRow}) || g.stats.waiting.Load() != 0 || len(g.inFlight) != 0 {
		t.Errorf("after the storm: slots %+v, %d wait, %d in flight", g.slots, g.stats.waiting.Load(), len(g.inFlight))
	}
}

func newStorm(c Config, latency time.Duration) *storm {
	return &storm{guard: newGuard(c), latency: latency, took: make(map[int]time.Duration)}
}

// Criterion: 9,000 clients with the right passwords that come at once, behind a restart, are all let in, in their order, with never more than limits.attempts of them at the servers behind.
func TestARestartStormRefusesNobody(t *testing.T) {
	const clients = 9000
	synctest.Test(t, func(t *testing.T) {
		const attempts = 256
		s := newStorm(Config{Attempts: attempts}, 50*time.Millisecond)
		for i := range clients {
			s.login(t, i)
			synctest.Wait() // so that they come in their order
		}
		s.wg.Wait()
		if len(s.failed) > 0 {
			t.Errorf("%d of %d are refused, the first by %v", len(s.failed), clients, s.failed[0])
		}
		if s.most != attempts {
			t.Errorf("%d were under way at once, want %d", s.most, attempts)
		}
		for place, i := range s.order {
			if place/attempts != i/attempts { // those who begin in the same instant have no order
				t.Fatalf("client %d was served as number %d", i, place)
			}
		}
		s.quiet(t)
	})
}

// Criterion: While strangers crowd, known-good networks are served within 5 s: four turns of five are theirs, and a quarter of limits.attempts is for nobody else.
func TestKnownNetworksDoNotWaitForStrangers(t *testing.T) {
	const strangers, known, attempts = 6000, 1000, 256
	synctest.Test(t, func(t *testing.T) {
		s := newStorm(Config{Attempts: attempts, Learning: -1}, 200*time.Millisecond)
		var seed []Success
		for i := range known {
			seed = append(seed, Success{fmt.Sprint("user", i), homeOf(i), time.Now()})
		}
		s.guard.Seed(seed)
		for i := range strangers {
			s.login(t, known+i)
		}
		synctest.Wait()
		if s.running != attempts-attempts/4 {
			t.Errorf("%d strangers are under way, want %d", s.running, attempts-attempts/4)
		}
		for i := range known {
			s.login(t, i)
		}
		s.wg.Wait()
		if len(s.failed) > 0 {
			t.Errorf("%d are refused, the first by %v", len(s.failed), s.failed[0])
		}
		for i := range known {
			if s.took[i] > 5*time.Second {
				t.Fatalf("the known-good client %d waited for %v", i, s.took[i])
			}
		}
		first := map[bool]int{} // of those served while both waited
		for _, i := range s.order[attempts : attempts+known/2] {
			first[i < known]++
		}
		if ratio := float64(first[true]) / float64(first[false]); ratio < 3.5 || ratio > 4.5 {
			t.Errorf("of %d turns strangers had %d, want one of five", known/2, first[false])
		}
		s.quiet(t)
	})
}

// Criterion: While the guard learns who lives where, strangers have the places that are kept for known networks.
func TestWhileLearningStrangersHaveAllPlaces(t *testing.T) {
	for _, learning := range []time.Duration{time.Hour, -1} {
		synctest.Test(t, func(t *testing.T) {
			s := newStorm(Config{Attempts: 100, Connections: 400, Learning: learning}, time.Second)
			shed := 0
			for i := range 400 {
				_, err := s.guard.Admit(clientAt(homeOf(i).String()), func(error) { shed++ })
				if err != nil {
					shed++
				}
			}
			if kept := 80; learning < 0 && shed != kept || learning > 0 && shed != 0 {
				t.Errorf("learning %v: %d of 400 connections had to go", learning, shed)
			}
			s.guard.conns = connTable{counts: make(map[key]connCount)}
			for i := range 200 {
				s.login(t, i)
			}
			s.wg.Wait()
			if want := map[bool]int{true: 100, false: 75}[learning > 0]; s.most != want {
				t.Errorf("learning %v: %d were under way at once, want %d", learning, s.most, want)
			}
			s.quiet(t)
		})
	}
}

// An attempt under way, or one that waits, by hand.
type hand struct {
	*permit
	tried chan error
}

// try begins an attempt and returns once it is under way, waits or is refused.
func try(t testing.TB, g *Guard, i int, account string) *hand {
	t.Helper()
	return trying(t, mustAdmit(t, g, addressOf(uint32(i)).String()), account)
}

func trying(t testing.TB, p *permit, account string) *hand {
	h := &hand{permit: p, tried: make(chan error, 1)}
	go func() { h.tried <- h.Try(t.Context(), loginWith(account, "right")) }()
	synctest.Wait()
	return h
}

// state returns what has become of the attempt: "waits", "goes", or why it is
// refused.
func (h *hand) state() string {
	synctest.Wait()
	select {
	case err := <-h.tried:
		h.tried <- err
		if err != nil {
			return proxy.ReasonOf(err).String()
		}
		return "goes"
	default:
		return "waits"
	}
}

// settle ends an attempt that is right; its connection stays.
func (h *hand) settle(t testing.TB) {
	t.Helper()
	if err := <-h.tried; err != nil {
		t.Error(err)
	}
	h.Settle(nil)
}

func (h *hand) end(err error) {
	if tried := <-h.tried; tried != nil {
		err = tried
	}
	h.Settle(err)
	h.Leave()
}

func wantStates(t *testing.T, when string, want string, all ...*hand) {
	t.Helper()
	got := ""
	for _, h := range all {
		got += h.state() + " "
	}
	if got != want+" " {
		t.Errorf("%s: %s, want %s", when, got, want)
	}
}

// Criterion: The place of an attempt that ends goes to the first who waits: whoever comes in that moment does not overtake.
func TestNobodyOvertakesTheQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGuard(Config{Attempts: 1})
		a := try(t, g, 1, "a")
		b := try(t, g, 2, "b")
		wantStates(t, "at first", "goes waits", a, b)
		a.settle(t) // b has not run since
		c := &hand{permit: mustAdmit(t, g, "192.0.2.3"), tried: make(chan error, 1)}
		err := c.Try(cancelled(t), loginWith("c", "right"))
		if deniedBy(t, err).Bucket != Attempts.String() {
			t.Errorf("who comes in that moment: %v", err)
		}
		c.Settle(err)
		c.Leave()
		a.Leave()
		wantStates(t, "at the end of the first", "goes", b)
		b.end(nil)
		if taken(g) != (slotQueue{}) {
			t.Errorf("slots: %+v", taken(g))
		}
	})
}

func taken(g *Guard) slotQueue {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.slots
}

func cancelled(t testing.TB) context.Context {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	return ctx
}

// Criterion: While the queue is full newcomers are told to come again, and never one who waits.
func TestAFullQueueRefusesNewcomers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGuard(Config{Attempts: 1})
		var all []*hand
		for i := range 4 {
			all = append(all, try(t, g, i, fmt.Sprint(i)))
		}
		permit := mustAdmit(t, g, "192.0.2.1")
		g.Reload(withDefaults(Config{Attempts: 1, Connections: 3}))
		newcomer := trying(t, permit, "newcomer")
		wantStates(t, "with three in the queue", "goes waits waits waits unavailable", append(all, newcomer)...)
		newcomer.end(nil)
		for i, h := range all {
			wantStates(t, fmt.Sprint("turn ", i), "goes", h)
			h.end(nil)
		}
	})
}

// Criterion: Who is woken decides anew, and hands the place on if it must not go.
func TestWhoIsWokenDecidesAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGuard(Config{Attempts: 1, Sessions: 1})
		a := try(t, g, 1, "a")
		b1 := try(t, g, 2, "b")
		b2 := try(t, g, 2, "b")
		c := try(t, g, 3, "c")
		wantStates(t, "at first", "goes waits waits waits", a, b1, b2, c)
		a.end(nil)
		wantStates(t, "after the first", "goes waits waits", b1, b2, c)
		b1.settle(t) // its session is open, and there may be no other
		wantStates(t, "after the second", "too_many_sessions goes", b2, c)
		b1.Leave()
		b2.end(nil)
		c.end(nil)
		if taken(g) != (slotQueue{}) || len(g.inFlight) != 0 {
			t.Errorf("slots: %+v, %d in flight", taken(g), len(g.inFlight))
		}
	})
}

// Who is woken and has to wait for something else lets others go meanwhile, and
// is refused by no full queue when it comes back.
func TestWhoIsWokenMayHaveToWaitOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGuard(Config{Attempts: 2})
		x := try(t, g, 1, "x")
		b1 := try(t, g, 2, "b")
		b2 := try(t, g, 2, "b") // for b1: of the pair
		y := try(t, g, 3, "y")
		z := try(t, g, 4, "z")
		wantStates(t, "at first", "goes goes waits waits waits", x, b1, b2, y, z)
		g.config.Connections = 2
		b1.end(errAway)
		wantStates(t, "b2 joins the queue", "goes waits goes waits", x, b2, y, z)
		x.end(nil)
		wantStates(t, "after x", "waits goes goes", b2, y, z)
		y.end(nil)
		wantStates(t, "after y", "goes goes", b2, z)
		b2.end(nil)
		z.end(nil)
		if taken(g) != (slotQueue{}) {
			t.Errorf("slots: %+v", taken(g))
		}
	})
}

// Criterion: A client that closes while it waits leaves the queue at once, and one whose limits.attempt_wait is over, counted from when it was accepted; its place goes on.
func TestWhoLeavesTheQueueHandsThePlaceOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGuard(Config{Attempts: 1})
		holds := try(t, g, 1, "holds")
		type client struct {
			close  context.CancelFunc
			result chan error
		}
		come := func(account string, idle time.Duration) client {
			p := mustAdmit(t, g, "192.0.2.9")
			time.Sleep(idle)
			gone, closes := context.WithCancel(t.Context())
			l := loginWith(account, "right")
			var stopped atomic.Bool
			l.Watch = func(context.Context) (context.Context, func()) { return gone, func() { stopped.Store(true) } }
			c := client{closes, make(chan error, 1)}
			go func() {
				err := p.Try(t.Context(), l)
				if !stopped.Load() {
					t.Error("the watch of the client was not stopped")
				}
				p.Settle(err)
				p.Leave()
				c.result <- err
			}()
			synctest.Wait()
			return c
		}
		closes := come("closes", 0)
		late := come("late", 20*time.Second) // 10 s are left
		slow := come("slow", 2*time.Minute)  // 5 s are left, all the same
		if err := <-late.result; deniedBy(t, err).Bucket != Attempts.String() {
			t.Error(err)
		}
		if got := taken(g); got.waiting() != 1 {
			t.Errorf("%d wait, want slow alone", got.waiting())
		}
		at := time.Now()
		if err := <-slow.result; deniedBy(t, err).Bucket != Attempts.String() || time.Since(at) != 5*time.Second {
			t.Errorf("a client that came late: %v after %v", err, time.Since(at))
		}
		if err := <-closes.result; deniedBy(t, err).Bucket != Attempts.String() {
			t.Error(err)
		}
		closes = come("closes", 0)
		at = time.Now()
		closes.close()
		if err := <-closes.result; deniedBy(t, err).Bucket != Attempts.String() || time.Since(at) != 0 {
			t.Errorf("a client that closed: %v after %v", err, time.Since(at))
		}

		// One that closes in the moment in which it is handed the place.
		last := try(t, g, 4, "last")
		closes = come("closes", 0)
		after := try(t, g, 5, "after")
		holds.end(nil)
		wantStates(t, "the first of them", "goes waits", last, after)
		if err := <-last.tried; err != nil {
			t.Error(err)
		}
		g.mu.Lock()
		closes.close()
		g.slots.release(&last.slot, g.slotLimits())
		g.mu.Unlock()
		if err := <-closes.result; deniedBy(t, err).Bucket != Attempts.String() {
			t.Error(err)
		}
		wantStates(t, "behind who left", "goes", after)
		last.Settle(nil)
		last.Leave()
		after.end(nil)
		if taken(g) != (slotQueue{}) || g.stats.waiting.Load() != 0 {
			t.Errorf("slots: %+v", taken(g))
		}
	})
}

// More places, by a new configuration, are taken at once by those who wait.
func TestReloadGivesNewPlacesToTheQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGuard(Config{Attempts: 1})
		a, b, c := try(t, g, 1, "a"), try(t, g, 2, "b"), try(t, g, 3, "c")
		g.Reload(withDefaults(Config{Attempts: 2}))
		wantStates(t, "with one more", "goes goes waits", a, b, c)
		g.Reload(withDefaults(Config{Attempts: 1}))
		a.end(nil)
		wantStates(t, "with one less again", "goes waits", b, c)
		b.end(nil)
		wantStates(t, "at the end", "goes", c)
		c.end(nil)
	})
}

// Criterion: A stranger whose network has become known while it waited takes no place of strangers: the next of them goes at once.
func TestWhoBecomesKnownInTheQueueLeavesTheStrangersPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGuard(Config{Attempts: 4, Learning: -1})
		a, b, c := try(t, g, 1, "a"), try(t, g, 2, "b"), try(t, g, 3, "c")
		d, e := try(t, g, 4, "d"), try(t, g, 5, "e")
		wantStates(t, "at first", "goes goes goes waits waits", a, b, c, d, e)
		g.Seed([]Success{{"d", d.from.addr, time.Now()}})
		a.end(nil)
		wantStates(t, "after the first", "goes goes goes goes", b, c, d, e)
		for _, x := range []*hand{b, c, d, e} {
			x.end(nil)
		}
		if taken(g) != (slotQueue{}) {
			t.Errorf("slots: %+v", taken(g))
		}
	})
}
