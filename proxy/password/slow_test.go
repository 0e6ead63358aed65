package password

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"postern/proxy"
)

// A sleeper is a hash that takes a time.
type sleeper struct {
	takes  time.Duration
	octets int64
	state  *struct {
		sync.Mutex
		running, most, runs int
		used, mostUsed      int64
	}
}

func newSleeper(takes time.Duration, octets int64) *sleeper {
	return &sleeper{takes, octets, new(struct {
		sync.Mutex
		running, most, runs int
		used, mostUsed      int64
	})}
}

func (s *sleeper) memory() int64 { return s.octets }

func (s *sleeper) verify(password []byte) bool {
	s.state.Lock()
	s.state.runs++
	s.state.running++
	s.state.most = max(s.state.most, s.state.running)
	s.state.used += s.octets
	s.state.mostUsed = max(s.state.mostUsed, s.state.used)
	s.state.Unlock()
	time.Sleep(s.takes)
	s.state.Lock()
	s.state.running--
	s.state.used -= s.octets
	s.state.Unlock()
	return string(password) == "right"
}

// Criterion: Slow hashes of parallel logins run within the configured memory; who gets no turn in time is refused temporarily, and no right password is called wrong.
func TestSlowHashesWaitForTheirTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const mib = 1 << 20
		s := &Slow{Memory: 200 * mib, Wait: 10 * time.Second, parallel: 4}
		h := newSleeper(100*time.Millisecond, 64*mib) // 3 fit
		var right, busy, other int
		var mu sync.Mutex
		var wg sync.WaitGroup
		for i := range 1000 {
			wg.Go(func() {
				ok, err := s.verify(t.Context(), h, fmt.Sprint("user", i), "hash", []byte("right"))
				mu.Lock()
				defer mu.Unlock()
				switch {
				case err == nil && ok:
					right++
				case proxy.ReasonOf(err) == proxy.Unavailable:
					busy++
				default:
					other++
				}
			})
		}
		wg.Wait()
		if h.state.most != 3 || h.state.mostUsed != 3*64*mib {
			t.Errorf("%d ran at once with %d MiB, want 3", h.state.most, h.state.mostUsed/mib)
		}
		if right < 297 || right > 303 || busy != 1000-right || other != 0 {
			t.Errorf("right %d, busy %d, other %d; want 300 in 10 s, and the others busy", right, busy, other)
		}
		if s.running != 0 || s.used != 0 || len(s.waiting) != 0 {
			t.Errorf("left: running %d, used %d, waiting %d", s.running, s.used, len(s.waiting))
		}
	})
}

func TestAHashThatNeedsMoreThanAllRunsAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &Slow{Memory: 100, parallel: 4}
		large, small := newSleeper(time.Second, 1000), newSleeper(time.Second, 10)
		var wg sync.WaitGroup
		for i := range 3 {
			wg.Go(func() { _, _ = s.verify(t.Context(), small, fmt.Sprint(i), "", []byte("right")) })
		}
		synctest.Wait()
		for i := range 2 {
			wg.Go(func() { _, _ = s.verify(t.Context(), large, fmt.Sprint("large", i), "", []byte("right")) })
		}
		begun := time.Now()
		wg.Wait()
		if took := time.Since(begun); took != 3*time.Second || large.state.most != 1 {
			t.Errorf("took %v with %d large at once, want 3s and 1", took, large.state.most)
		}
	})
}

func TestWhoLeavesGivesTheTurnToTheNext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &Slow{Memory: 100, parallel: 2}
		long, huge, small := newSleeper(5*time.Second, 10), newSleeper(time.Second, 100), newSleeper(time.Second, 10)
		var wg sync.WaitGroup
		wg.Go(func() { _, _ = s.verify(t.Context(), long, "long", "", []byte("right")) })
		synctest.Wait()
		ctx, leave := context.WithCancelCause(t.Context())
		left := errors.New("the client has left")
		wg.Go(func() {
			if _, err := s.verify(ctx, huge, "huge", "", []byte("right")); !errors.Is(err, left) {
				t.Errorf("verify after the client has left = %v", err)
			}
		})
		synctest.Wait()
		wg.Go(func() { _, _ = s.verify(t.Context(), small, "small", "", []byte("right")) })
		synctest.Wait()
		if small.state.runs != 0 {
			t.Error("the last overtakes")
		}
		leave(left)
		synctest.Wait()
		if small.state.runs != 1 || huge.state.runs != 0 {
			t.Error("the next does not begin")
		}
		wg.Wait()
	})
}

// Criterion: The second login of an account within ten minutes runs no slow hash; a changed hash, another password or another account does.
func TestARightPasswordIsRememberedForTenMinutes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := new(Slow)
		h := newSleeper(time.Millisecond, 0)
		verify := func(account, text, password string, want bool, runs int) {
			t.Helper()
			before := h.state.runs
			if ok, err := s.verify(t.Context(), h, account, text, []byte(password)); ok != want || err != nil || h.state.runs-before != runs {
				t.Errorf("verify(%s, %s, %s) = %v, %v with %d runs; want %v with %d", account, text, password, ok, err, h.state.runs-before, want, runs)
			}
		}
		verify("alice", "hash", "wrong", false, 1)
		verify("alice", "hash", "wrong", false, 1)
		verify("alice", "hash", "right", true, 1)
		verify("alice", "hash", "right", true, 0)
		verify("bob", "hash", "right", true, 1)
		verify("alice", "another hash", "right", true, 1)
		verify("alice", "hash", "wrong", false, 1)
		time.Sleep(9 * time.Minute)
		verify("alice", "hash", "right", true, 0)
		time.Sleep(2 * time.Minute)
		verify("alice", "hash", "right", true, 1)
		for i := range 3 * maxRemembered {
			s.remember([32]byte{byte(i), byte(i >> 8), byte(i >> 16)})
		}
		if n := len(s.rights) + len(s.before); n > 2*maxRemembered {
			t.Errorf("%d passwords are remembered", n)
		}
	})
}

// Criterion: 1,000 parallel logins with argon2id of 4 MiB stay within passwords.memory of 16 MiB, and all right ones log in.
func TestAThousandArgon2idLoginsStayWithinTheMemory(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds of both processors")
	}
	h, err := parseHash("$argon2id$v=19$m=4096,t=1,p=1$c2FsdHNhbHQ$" + argonSum(t, "secret", "saltsalt", 4096))
	if err != nil {
		t.Fatal(err)
	}
	const limit, logins = 16 << 20, 1000
	s := &Slow{Memory: limit, Wait: 5 * time.Minute}
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	before, peak := m.HeapInuse, uint64(0)
	done := make(chan struct{})
	var watched sync.WaitGroup
	watched.Go(func() {
		for {
			select {
			case <-done:
				return
			case <-time.After(5 * time.Millisecond):
			}
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			peak = max(peak, m.HeapInuse)
		}
	})
	var wg sync.WaitGroup
	for i := range logins {
		wg.Go(func() {
			if ok, err := s.verify(t.Context(), h, fmt.Sprint(i), "hash", []byte("secret")); !ok || err != nil {
				t.Errorf("verify = %v, %v", ok, err)
			}
		})
	}
	wg.Wait()
	close(done)
	watched.Wait()
	t.Logf("%d logins: %d MiB at the peak, %d MiB before", logins, peak>>20, before>>20)
	const rest = 4 << 20 // of 1,000 goroutines
	if peak > before+limit+rest {
		t.Errorf("the heap had %d MiB more, want at most %d", (peak-before)>>20, (limit+rest)>>20)
	}
}

func TestLoadOfSlowHashes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const mib = 1 << 20
		s := &Slow{Memory: 100 * mib, Wait: time.Minute, parallel: 4}
		h := newSleeper(time.Second, 64*mib)
		for i := range 3 {
			go func() { _, _ = s.verify(t.Context(), h, fmt.Sprint("user", i), "hash", []byte("right")) }()
		}
		synctest.Wait()
		if got, want := s.Load(), (Load{Running: 1, Waiting: 2, Memory: 64 * mib, Limit: 100 * mib}); got != want {
			t.Errorf("Load = %+v, want %+v", got, want)
		}
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if got := s.Load(); got.Running != 0 || got.Waiting != 0 {
			t.Errorf("afterwards Load = %+v", got)
		}
	})
}
