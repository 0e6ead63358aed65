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

// A loginStorm is clients that log in at the same time, at a slow backend.
type loginStorm struct {
	guard   *Guard
	latency time.Duration
	wg      sync.WaitGroup

	mu            sync.Mutex
	running, most int
	order         []int // of clients at the backend
	failed        []error
	took          map[int]time.Duration // of clients, from the connection to the answer
}

// login makes client number i log in from its home.
func (s *loginStorm) login(t testing.TB, i int) {
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

func (s *loginStorm) enter(i int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.running++
	s.most = max(s.most, s.running)
	s.order = append(s.order, i)
}

func (s *loginStorm) leave() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.running--
}

// homeOf returns the address of client number i. No two share a network.
func homeOf(i int) netip.Addr { return addressOf(uint32(i) << 8) }

// checkIdle fails the test if an attempt of the storm is still counted.
func (s *loginStorm) checkIdle(t testing.TB) {
	t.Helper()
	g := s.guard
	if g.slots != (slotQueue{knownInRow: g.slots.knownInRow}) || g.stats.waiting.Load() != 0 || len(g.inFlight) != 0 {
		t.Errorf("after the storm: slots %+v, %d wait, %d in flight", g.slots, g.stats.waiting.Load(), len(g.inFlight))
	}
}

func newLoginStorm(c Config, latency time.Duration) *loginStorm {
	return &loginStorm{guard: newGuard(c), latency: latency, took: make(map[int]time.Duration)}
}

// Criterion: 9,000 clients with the right passwords that come at once, behind a restart, are all let in, in their order, with never more than limits.attempts of them at the servers behind.
func TestLoginStormRefusesNobody(t *testing.T) {
	t.Parallel()
	const clients = 9000
	synctest.Test(t, func(t *testing.T) {
		const attempts = 256
		s := newLoginStorm(Config{Attempts: attempts}, 50*time.Millisecond)
		for i := range clients {
			s.login(t, i)
			synctest.Wait() // so that they arrive in order
		}
		s.wg.Wait()
		if len(s.failed) > 0 {
			t.Errorf("%d of %d are refused, the first by %v", len(s.failed), clients, s.failed[0])
		}
		if s.most != attempts {
			t.Errorf("%d were under way at once, want %d", s.most, attempts)
		}
		for place, i := range s.order {
			if place/attempts != i/attempts { // attempts that begin in the same instant have no order
				t.Fatalf("client %d was served as number %d", i, place)
			}
		}
		s.checkIdle(t)
	})
}

// Criterion: While strangers crowd, known-good networks are served within 5 s: four turns of five are theirs, and a quarter of limits.attempts is for nobody else.
func TestKnownNetworksDoNotWaitForStrangers(t *testing.T) {
	t.Parallel()
	const strangers, known, attempts = 6000, 1000, 256
	synctest.Test(t, func(t *testing.T) {
		s := newLoginStorm(Config{Attempts: attempts, Learning: -1}, 200*time.Millisecond)
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
		first := map[bool]int{} // of those that were served while both kinds waited
		for _, i := range s.order[attempts : attempts+known/2] {
			first[i < known]++
		}
		if ratio := float64(first[true]) / float64(first[false]); ratio < 3.5 || ratio > 4.5 {
			t.Errorf("of %d turns strangers had %d, want one of five", known/2, first[false])
		}
		s.checkIdle(t)
	})
}

// Criterion: While the guard learns who lives where, strangers have the places that are kept for known networks.
func TestStrangersHaveAllSlotsWhileLearning(t *testing.T) {
	t.Parallel()
	for _, learning := range []time.Duration{time.Hour, -1} {
		synctest.Test(t, func(t *testing.T) {
			s := newLoginStorm(Config{Attempts: 100, Connections: 400, Learning: learning}, time.Second)
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
			s.checkIdle(t)
		})
	}
}

// A pendingAttempt is an attempt that is under way or waits.
type pendingAttempt struct {
	*permit
	tried chan error
}

// startAttempt makes an attempt and returns when it is under way, waits or is refused.
func startAttempt(t testing.TB, g *Guard, i int, account string) *pendingAttempt {
	t.Helper()
	return startAttemptOn(t, mustAdmit(t, g, addressOf(uint32(i)).String()), account)
}

func startAttemptOn(t testing.TB, p *permit, account string) *pendingAttempt {
	h := &pendingAttempt{permit: p, tried: make(chan error, 1)}
	go func() { h.tried <- h.Try(t.Context(), loginWith(account, "right")) }()
	synctest.Wait()
	return h
}

// state returns the state of the attempt: "waits", "goes", or the reason of its refusal.
func (h *pendingAttempt) state() string {
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

// succeed ends an attempt with the right password. The connection stays open.
func (h *pendingAttempt) succeed(t testing.TB) {
	t.Helper()
	if err := <-h.tried; err != nil {
		t.Error(err)
	}
	h.Settle(nil)
}

func (h *pendingAttempt) end(err error) {
	if tried := <-h.tried; tried != nil {
		err = tried
	}
	h.Settle(err)
	h.Leave()
}

func checkStates(t *testing.T, when string, want string, all ...*pendingAttempt) {
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
func TestNewAttemptsDoNotOvertakeTheQueue(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := newGuard(Config{Attempts: 1})
		a := startAttempt(t, g, 1, "a")
		b := startAttempt(t, g, 2, "b")
		checkStates(t, "at first", "goes waits", a, b)
		a.succeed(t) // b has not run since then
		c := &pendingAttempt{permit: mustAdmit(t, g, "192.0.2.3"), tried: make(chan error, 1)}
		err := c.Try(cancelled(t), loginWith("c", "right"))
		if decisionOf(t, err).Bucket != Attempts.String() {
			t.Errorf("who comes in that moment: %v", err)
		}
		c.Settle(err)
		c.Leave()
		a.Leave()
		checkStates(t, "at the end of the first", "goes", b)
		b.end(nil)
		if slotsOf(g) != (slotQueue{}) {
			t.Errorf("slots: %+v", slotsOf(g))
		}
	})
}

func slotsOf(g *Guard) slotQueue {
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
func TestFullQueueRefusesNewAttempts(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := newGuard(Config{Attempts: 1})
		var all []*pendingAttempt
		for i := range 4 {
			all = append(all, startAttempt(t, g, i, fmt.Sprint(i)))
		}
		permit := mustAdmit(t, g, "192.0.2.1")
		g.Reload(withDefaults(Config{Attempts: 1, Connections: 3}))
		newcomer := startAttemptOn(t, permit, "newcomer")
		checkStates(t, "with three in the queue", "goes waits waits waits unavailable", append(all, newcomer)...)
		newcomer.end(nil)
		for i, h := range all {
			checkStates(t, fmt.Sprint("turn ", i), "goes", h)
			h.end(nil)
		}
	})
}

// Criterion: Who is woken decides anew, and hands the place on if it must not go.
func TestWokenAttemptDecidesAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := newGuard(Config{Attempts: 1, Sessions: 1})
		a := startAttempt(t, g, 1, "a")
		b1 := startAttempt(t, g, 2, "b")
		b2 := startAttempt(t, g, 2, "b")
		c := startAttempt(t, g, 3, "c")
		checkStates(t, "at first", "goes waits waits waits", a, b1, b2, c)
		a.end(nil)
		checkStates(t, "after the first", "goes waits waits", b1, b2, c)
		b1.succeed(t) // its session stays open, and the limit is 1
		checkStates(t, "after the second", "too_many_sessions goes", b2, c)
		b1.Leave()
		b2.end(nil)
		c.end(nil)
		if slotsOf(g) != (slotQueue{}) || len(g.inFlight) != 0 {
			t.Errorf("slots: %+v, %d in flight", slotsOf(g), len(g.inFlight))
		}
	})
}

// Who is woken and has to wait for something else lets others go meanwhile, and
// is refused by no full queue when it comes back.
func TestWokenAttemptMayWaitAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := newGuard(Config{Attempts: 2})
		x := startAttempt(t, g, 1, "x")
		b1 := startAttempt(t, g, 2, "b")
		b2 := startAttempt(t, g, 2, "b") // waits for b1, which has the same pair
		y := startAttempt(t, g, 3, "y")
		z := startAttempt(t, g, 4, "z")
		checkStates(t, "at first", "goes goes waits waits waits", x, b1, b2, y, z)
		g.config.Connections = 2
		b1.end(errAway)
		checkStates(t, "b2 joins the queue", "goes waits goes waits", x, b2, y, z)
		x.end(nil)
		checkStates(t, "after x", "waits goes goes", b2, y, z)
		y.end(nil)
		checkStates(t, "after y", "goes goes", b2, z)
		b2.end(nil)
		z.end(nil)
		if slotsOf(g) != (slotQueue{}) {
			t.Errorf("slots: %+v", slotsOf(g))
		}
	})
}

// Criterion: A client that closes while it waits leaves the queue at once, and one whose limits.attempt_wait is over, counted from when it was accepted; its place goes on.
func TestClientThatLeavesTheQueueReleasesItsSlot(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := newGuard(Config{Attempts: 1})
		holds := startAttempt(t, g, 1, "holds")
		type client struct {
			close  context.CancelFunc
			result chan error
		}
		connect := func(account string, idle time.Duration) client {
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
		closes := connect("closes", 0)
		late := connect("late", 20*time.Second) // 10 s are left
		slow := connect("slow", 2*time.Minute)  // 5 s are left, all the same
		if err := <-late.result; decisionOf(t, err).Bucket != Attempts.String() {
			t.Error(err)
		}
		if got := slotsOf(g); got.waiting() != 1 {
			t.Errorf("%d wait, want slow alone", got.waiting())
		}
		at := time.Now()
		if err := <-slow.result; decisionOf(t, err).Bucket != Attempts.String() || time.Since(at) != 5*time.Second {
			t.Errorf("a client that came late: %v after %v", err, time.Since(at))
		}
		if err := <-closes.result; decisionOf(t, err).Bucket != Attempts.String() {
			t.Error(err)
		}
		closes = connect("closes", 0)
		at = time.Now()
		closes.close()
		if err := <-closes.result; decisionOf(t, err).Bucket != Attempts.String() || time.Since(at) != 0 {
			t.Errorf("a client that closed: %v after %v", err, time.Since(at))
		}

		// One that closes in the moment in which it is handed the place.
		last := startAttempt(t, g, 4, "last")
		closes = connect("closes", 0)
		after := startAttempt(t, g, 5, "after")
		holds.end(nil)
		checkStates(t, "the first of them", "goes waits", last, after)
		if err := <-last.tried; err != nil {
			t.Error(err)
		}
		g.mu.Lock()
		closes.close()
		g.slots.release(&last.slot, g.slotLimits())
		g.mu.Unlock()
		if err := <-closes.result; decisionOf(t, err).Bucket != Attempts.String() {
			t.Error(err)
		}
		checkStates(t, "behind who left", "goes", after)
		last.Settle(nil)
		last.Leave()
		after.end(nil)
		if slotsOf(g) != (slotQueue{}) || g.stats.waiting.Load() != 0 {
			t.Errorf("slots: %+v", slotsOf(g))
		}
	})
}

// Waiting attempts get the slots of a larger Config.Attempts at once.
func TestReloadGivesNewSlotsToTheQueue(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := newGuard(Config{Attempts: 1})
		a, b, c := startAttempt(t, g, 1, "a"), startAttempt(t, g, 2, "b"), startAttempt(t, g, 3, "c")
		g.Reload(withDefaults(Config{Attempts: 2}))
		checkStates(t, "with one more", "goes goes waits", a, b, c)
		g.Reload(withDefaults(Config{Attempts: 1}))
		a.end(nil)
		checkStates(t, "with one less again", "goes waits", b, c)
		b.end(nil)
		checkStates(t, "at the end", "goes", c)
		c.end(nil)
	})
}

// Criterion: A stranger whose network has become known while it waited takes no place of strangers: the next of them goes at once.
func TestWaiterThatBecomesKnownReleasesTheStrangersSlot(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := newGuard(Config{Attempts: 4, Learning: -1})
		a, b, c := startAttempt(t, g, 1, "a"), startAttempt(t, g, 2, "b"), startAttempt(t, g, 3, "c")
		d, e := startAttempt(t, g, 4, "d"), startAttempt(t, g, 5, "e")
		checkStates(t, "at first", "goes goes goes waits waits", a, b, c, d, e)
		g.Seed([]Success{{"d", d.from.addr, time.Now()}})
		a.end(nil)
		checkStates(t, "after the first", "goes goes goes goes", b, c, d, e)
		for _, x := range []*pendingAttempt{b, c, d, e} {
			x.end(nil)
		}
		if slotsOf(g) != (slotQueue{}) {
			t.Errorf("slots: %+v", slotsOf(g))
		}
	})
}
