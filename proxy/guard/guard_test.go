package guard

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"postern/proxy"
)

var (
	wrong       = proxy.Refuse(proxy.Wrong, nil)
	unavailable = proxy.Refuse(proxy.Unavailable, nil)
)

func from(addr string) proxy.Client {
	return proxy.Client{Addr: netip.AddrPortFrom(netip.MustParseAddr(addr), 1024)}
}

func admit(t testing.TB, g *Guard, addr string) proxy.Permit {
	t.Helper()
	p, err := g.Admit(from(addr), nil)
	if err != nil {
		t.Fatalf("Admit(%s): %v", addr, err)
	}
	return p
}

// guess makes one attempt from addr that ends with answer, and reports whether
// the backend was asked.
func guess(t testing.TB, g *Guard, addr, account string, answer error) bool {
	t.Helper()
	p := admit(t, g, addr)
	defer p.Leave()
	err := p.Try(t.Context(), &proxy.Login{Account: account})
	if err == nil {
		p.Settle(answer)
		return true
	}
	p.Settle(err)
	if got := proxy.ReasonOf(err); got != proxy.Throttled && !errors.Is(err, ErrUnsettled) {
		t.Fatalf("Try(%s, %s) refused: %v, want throttled, or nothing left but what is reserved", addr, account, err)
	}
	return false
}

// count makes n attempts and returns how many of them the backend saw.
func count(n int, attempt func(i int) bool) (verified int) {
	for i := range n {
		if attempt(i) {
			verified++
		}
	}
	return verified
}

func want(t *testing.T, what string, got, want int) {
	t.Helper()
	if got != want {
		t.Errorf("%s: the backend was asked %d times, want %d", what, got, want)
	}
}

func TestGuardStopsGuessingFromOneNetwork(t *testing.T) {
	g := New(Config{Network: Rate{5, time.Hour}})
	want(t, "many accounts, one network", count(50, func(i int) bool {
		return guess(t, g, "192.0.2.1", fmt.Sprint("user", i), wrong)
	}), 5)
	want(t, "another network", count(1, func(int) bool { return guess(t, g, "192.0.2.2", "other", wrong) }), 1)
}

func TestGuardStopsGuessingOfOneAccount(t *testing.T) {
	g := New(Config{Account: Rate{5, time.Hour}})
	want(t, "one account, many networks", count(50, func(i int) bool {
		return guess(t, g, fmt.Sprint("192.0.2.", i), "alice", wrong)
	}), 5)
	want(t, "another account", count(1, func(int) bool { return guess(t, g, "192.0.2.1", "bob", wrong) }), 1)
}

// Criterion: 500 connections that guess in one instant get no more answers than the burst.
func TestParallelGuessesGetNoMoreThanTheBurst(t *testing.T) {
	g := New(Config{Network: Rate{5, time.Hour}, Account: Rate{7, time.Hour}, ConnectionsPerNetwork: 500})
	var verified, throttled atomic.Int32
	var start, settle, done sync.WaitGroup
	start.Add(1)
	settle.Add(500)
	for range 500 {
		p := admit(t, g, "192.0.2.1")
		done.Go(func() {
			defer p.Leave()
			start.Wait()
			err := p.Try(t.Context(), &proxy.Login{Account: "alice"})
			settle.Done()
			settle.Wait() // nobody is answered before all have tried
			if err == nil {
				verified.Add(1)
				err = wrong
			} else {
				throttled.Add(1)
			}
			p.Settle(err)
		})
	}
	start.Done()
	done.Wait()
	if verified.Load() != 5 || throttled.Load() != 495 {
		t.Errorf("%d asked the backend and %d were throttled, want 5 and 495", verified.Load(), throttled.Load())
	}
}

func TestOnlyWrongIsCharged(t *testing.T) {
	verified := proxy.Refuse(proxy.Wrong, nil)
	verified.Verified = true
	for _, answer := range []error{
		nil, unavailable, proxy.Refuse(proxy.InUse, nil), proxy.Refuse(proxy.Malformed, nil),
		proxy.Refuse(proxy.ProtocolOff, nil), proxy.Refuse(proxy.Internal, nil), verified,
		fmt.Errorf("log in: %w", unavailable), context.Canceled,
	} {
		g := New(Config{Network: Rate{2, time.Hour}, Account: Rate{2, time.Hour}})
		want(t, fmt.Sprint("answer ", answer), count(1000, func(int) bool {
			return guess(t, g, "192.0.2.1", "alice", answer)
		}), 1000)
		want(t, fmt.Sprint("guesses after ", answer), count(9, func(int) bool {
			return guess(t, g, "192.0.2.1", "alice", fmt.Errorf("log in: %w", wrong))
		}), 2)
		if left := entries(g); left != 2 {
			t.Errorf("%d entries are kept, want 2: one network and one account", left)
		}
	}
}

func TestOwnAccountResetsNothing(t *testing.T) {
	g := New(Config{Network: Rate{5, time.Hour}})
	want(t, "guesses between good logins", count(50, func(int) bool {
		guess(t, g, "192.0.2.1", "attacker", nil)
		return guess(t, g, "192.0.2.1", "alice", wrong)
	}), 5)
}

func TestThrottledReservesNothing(t *testing.T) {
	g := New(Config{Network: Rate{3, time.Hour}, Account: Rate{1, time.Hour}})
	guess(t, g, "192.0.2.1", "alice", wrong)
	want(t, "an account without budget", count(50, func(int) bool { return guess(t, g, "192.0.2.1", "alice", wrong) }), 0)
	want(t, "the rest of the network's budget", count(9, func(i int) bool {
		return guess(t, g, "192.0.2.1", fmt.Sprint("user", i), wrong)
	}), 2)
}

func TestBudgetsComeBackWithTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := New(Config{Network: Rate{3, time.Minute}})
		try := func(int) bool { return guess(t, g, "192.0.2.1", "alice", wrong) }
		want(t, "at first", count(10, try), 3)
		time.Sleep(59 * time.Second)
		want(t, "after 59 s", count(10, try), 0)
		time.Sleep(time.Second)
		want(t, "after 60 s", count(10, try), 1)
		time.Sleep(90 * time.Second)
		want(t, "after 150 s", count(10, try), 1)
		time.Sleep(24 * time.Hour)
		want(t, "after a day", count(10, try), 3)
	})
}

// A token that came back while the backend took its time must not be given
// back again.
func TestSlowSuccessEarnsNoGuess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := New(Config{Network: Rate{3, time.Minute}})
		slow := admit(t, g, "192.0.2.1")
		defer slow.Leave()
		if err := slow.Try(t.Context(), &proxy.Login{Account: "attacker"}); err != nil {
			t.Fatal(err)
		}
		try := func(int) bool { return guess(t, g, "192.0.2.1", "alice", wrong) }
		time.Sleep(time.Hour)
		want(t, "beside the one reserved", count(10, try), 2)
		slow.Settle(nil)
		want(t, "after it was given back", count(10, try), 1)
	})
}

// Criterion: an office of 60 behind one address logs in at once, and nobody is told of failed logins.
func TestLoginsThatAreRightWaitForEachOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := New(Config{})
		begun := time.Now()
		var wg sync.WaitGroup
		for i := range 60 {
			wg.Go(func() {
				p := admit(t, g, "192.0.2.1")
				defer p.Leave()
				if err := p.Try(t.Context(), &proxy.Login{Account: fmt.Sprint(i)}); err != nil {
					t.Errorf("login %d: %v", i, err)
				}
				time.Sleep(time.Second) // the backend's
				p.Settle(nil)
			})
		}
		wg.Wait()
		if got := time.Since(begun); got != 3*time.Second {
			t.Errorf("60 logins took %v, want 3 s: 20 at a time", got)
		}
	})
}

func TestLoginsThatNobodySettlesAreUnavailable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := New(Config{Account: Rate{1, time.Minute}})
		stuck := admit(t, g, "192.0.2.1")
		defer stuck.Leave()
		if err := stuck.Try(t.Context(), &proxy.Login{Account: "alice"}); err != nil {
			t.Fatal(err)
		}
		begun := time.Now()
		p := admit(t, g, "192.0.2.2")
		defer p.Leave()
		err := p.Try(t.Context(), &proxy.Login{Account: "alice"})
		if proxy.ReasonOf(err) != proxy.Unavailable || time.Since(begun) != 5*time.Second {
			t.Errorf("Try: %v after %v", err, time.Since(begun))
		}
		if delay := p.Settle(err); delay != 0 {
			t.Errorf("Settle: %v, want no delay", delay)
		}
		stuck.Settle(wrong)
		if err := p.Try(t.Context(), &proxy.Login{Account: "alice"}); proxy.ReasonOf(err) != proxy.Throttled {
			t.Errorf("Try: %v after the only token was spent", err)
		}
		p.Settle(nil)
	})
}

func TestNetworks(t *testing.T) {
	tests := []struct {
		name, a, b string
		same       bool
	}{
		{"two IPv4 addresses", "192.0.2.1", "192.0.2.2", false},
		{"an IPv4 address and itself in IPv6", "192.0.2.1", "::ffff:192.0.2.1", true},
		{"two mapped addresses", "::ffff:192.0.2.1", "::ffff:192.0.2.2", false},
		{"one IPv6 /64", "2001:db8::1", "2001:db8::ffff:ffff:ffff:ffff", true},
		{"two IPv6 /64", "2001:db8:0:1::1", "2001:db8:0:2::1", false},
		{"a zone", "fe80::1%eth0", "fe80::1", true},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			g := New(Config{Network: Rate{1, time.Hour}})
			guess(t, g, test.a, "alice", wrong)
			if asked := guess(t, g, test.b, "bob", wrong); asked == test.same {
				t.Errorf("after a wrong password from %s, one from %s was tried: %v, want %v", test.a, test.b, asked, !test.same)
			}
		})
	}
}

func TestClientsWithoutAddressShareABudget(t *testing.T) {
	g := New(Config{Network: Rate{1, time.Hour}})
	for i, wanted := range []error{nil, proxy.Refuse(proxy.Throttled, nil)} {
		p, err := g.Admit(proxy.Client{}, nil)
		if err != nil {
			t.Fatal(err)
		}
		err = p.Try(t.Context(), &proxy.Login{Account: fmt.Sprint(i)})
		if proxy.ReasonOf(err) != proxy.ReasonOf(wanted) {
			t.Errorf("attempt %d: %v, want %v", i, err, wanted)
		}
		p.Settle(wrong)
		p.Leave()
	}
}

func TestTrustedNetworksSkipTheirOwnLimitsOnly(t *testing.T) {
	g := New(Config{
		Network: Rate{2, time.Hour}, Account: Rate{3, time.Hour}, ConnectionsPerNetwork: 1,
		Trusted: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("2001:db8::/32")},
	})
	for _, addr := range []string{"10.1.2.3", "::ffff:10.1.2.3", "2001:db8::1"} {
		hold := admit(t, g, addr)
		want(t, "many accounts from "+addr, count(50, func(i int) bool {
			return guess(t, g, addr, fmt.Sprint(addr, i), wrong)
		}), 50)
		want(t, "one account from "+addr, count(50, func(int) bool {
			return guess(t, g, addr, addr, wrong)
		}), 3)
		hold.Leave()
	}
}

// Criterion: A wrong password is answered 2 s after it came, give or take a tenth, a throttled one as well; nothing else is held back.
func TestOnlyWrongAndThrottledAreHeldBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := New(Config{Account: Rate{100, time.Hour}, Network: Rate{100, time.Hour}})
		answer := func(took time.Duration, err error) time.Duration {
			p := admit(t, g, "192.0.2.1")
			defer p.Leave()
			if tried := p.Try(t.Context(), &proxy.Login{Account: "alice"}); tried != nil {
				err = tried
			}
			time.Sleep(took)
			return took + p.Settle(err)
		}
		held := func(what string, took time.Duration, err error) map[time.Duration]bool {
			seen := make(map[time.Duration]bool)
			for range 100 {
				total := answer(took, err)
				if total < 1800*time.Millisecond || total > 2200*time.Millisecond {
					t.Errorf("%s is answered after %v, want 1.8 s to 2.2 s", what, total)
				}
				seen[total] = true
			}
			return seen
		}
		for _, err := range []error{nil, unavailable, context.Canceled} {
			if total := answer(time.Second, err); total != time.Second {
				t.Errorf("answer %v is given after %v, want at once, after 1s", err, total)
			}
		}
		if different := len(held("a wrong password", time.Millisecond, wrong)); different < 10 {
			t.Errorf("100 wrong passwords were answered after only %d different times", different)
		}
		held("a throttled attempt", time.Millisecond, nil)
		time.Sleep(1000 * time.Hour)
		if total := answer(time.Minute, wrong); total != time.Minute {
			t.Errorf("a wrong password is answered %v after a backend that took a minute, want at once", total-time.Minute)
		}
	})
}

func TestGuardTakesItsTimeFromItsClock(t *testing.T) {
	now := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	g := New(Config{Network: Rate{1, time.Hour}, Now: func() time.Time { return now }})
	try := func(int) bool { return guess(t, g, "192.0.2.1", "alice", wrong) }
	want(t, "at first", count(3, try), 1)
	now = now.Add(time.Hour)
	want(t, "an hour later", count(3, try), 1)
}

func TestConnectionsAreLimited(t *testing.T) {
	g := New(Config{Connections: 5, ConnectionsPerNetwork: 2})
	refused := func(addr string, reason error) {
		t.Helper()
		_, err := g.Admit(from(addr), nil)
		if proxy.ReasonOf(err) != proxy.TooMany || !errors.Is(err, reason) {
			t.Errorf("Admit(%s): %v, want %v", addr, err, reason)
		}
	}
	first := admit(t, g, "2001:db8::1")
	admit(t, g, "2001:db8::2")
	refused("2001:db8::3", ErrConnectionsPerNetwork)
	for i := range 3 {
		admit(t, g, fmt.Sprint("192.0.2.", i))
	}
	refused("192.0.2.9", ErrConnections)
	first.Leave()
	admit(t, g, "2001:db8::3").Leave()
	admit(t, g, "192.0.2.9")
	refused("2001:db8::3", ErrConnections)
}

func TestConnectionsThatEndedAreForgotten(t *testing.T) {
	g := New(Config{})
	for i := range 1000 {
		admit(t, g, fmt.Sprint("2001:db8:0:", i, "::1")).Leave()
	}
	if g.open != 0 || len(g.from) != 0 {
		t.Errorf("%d connections from %d networks are left, want none", g.open, len(g.from))
	}
}

// Criterion: Memory is bounded while a million names and networks go by, and who was throttled stays so.
func TestMillionNamesNeitherGrowMemoryNorForgive(t *testing.T) {
	g := New(Config{Entries: 1 << 14, Network: Rate{10, 24 * time.Hour}, Account: Rate{10, 24 * time.Hour}})
	for range 20 {
		guess(t, g, "192.0.2.1", "alice", wrong)
	}
	before := heap()
	for i := range 1_000_000 {
		addr := netip.AddrFrom16([16]byte{0x20, 0x01, 4: byte(i >> 16), byte(i >> 8), byte(i)})
		p, err := g.Admit(proxy.Client{Addr: netip.AddrPortFrom(addr, 1)}, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := p.Try(t.Context(), &proxy.Login{Account: addr.String()}); err != nil {
			t.Fatal(err)
		}
		p.Settle(wrong)
		p.Leave()
	}
	if n := entries(g); n > 1<<14 {
		t.Errorf("%d entries are kept, want at most %d", n, 1<<14)
	}
	if grown := heap() - before; grown > 4<<20 {
		t.Errorf("memory grew by %d octets, want at most 4 MiB", grown)
	}
	want(t, "the network that was throttled", count(1, func(int) bool { return guess(t, g, "192.0.2.1", "bob", wrong) }), 0)
	want(t, "the account that was throttled", count(1, func(int) bool { return guess(t, g, "192.0.2.2", "alice", wrong) }), 0)
}

func TestReservationsAreNotForgotten(t *testing.T) {
	g := New(Config{Entries: 1, Account: Rate{1, time.Hour}, Wait: time.Millisecond})
	var open []proxy.Permit
	for i := range 1000 {
		p := admit(t, g, fmt.Sprint("2001:db8:0:", i, "::1"))
		if err := p.Try(t.Context(), &proxy.Login{Account: fmt.Sprint(i)}); err != nil {
			t.Fatal(err)
		}
		open = append(open, p)
	}
	want(t, "accounts that are being tried", count(1000, func(i int) bool {
		return guess(t, g, "192.0.2.1", fmt.Sprint(i), wrong)
	}), 0)
	for _, p := range open {
		p.Settle(nil)
		p.Leave()
	}
	if n := entries(g); n != 0 {
		t.Errorf("%d entries are left of attempts that succeeded, want none", n)
	}
}

func entries(g *Guard) (n int) {
	for _, b := range []*buckets{g.networks, g.accounts} {
		for i := range b.shards {
			n += len(b.shards[i].m)
		}
	}
	return n
}

func heap() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC() // the second empties pools
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// A decision is all that one connection with one wrong password asks of the
// guard, in parallel, while new networks and names go by.
func BenchmarkDecision(b *testing.B) {
	g := New(Config{Connections: 1 << 30})
	names := make([]string, 1<<16)
	for i := range names {
		names[i] = fmt.Sprintf("user%d@example.org", i)
	}
	var next atomic.Uint64
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		login := new(proxy.Login)
		for pb.Next() {
			n := next.Add(1)
			addr := netip.AddrFrom4([4]byte{10, byte(n >> 16), byte(n >> 8), byte(n)})
			p, err := g.Admit(proxy.Client{Addr: netip.AddrPortFrom(addr, 1)}, nil)
			if err != nil {
				b.Error(err)
				return
			}
			login.Account = names[n%uint64(len(names))]
			if err = p.Try(context.Background(), login); err == nil {
				err = wrong
			}
			p.Settle(err)
			p.Leave()
		}
	})
}
