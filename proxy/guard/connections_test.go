package guard

import (
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"time"

	"postern/proxy"
)

// admitAll admits connections until one is refused. It returns their permits and the
// error of the refused one.
func admitAll(t testing.TB, g *Guard, addr func(i int) string) (permits []*permit, err error) {
	t.Helper()
	for i := range 100_000 {
		p, err := g.Admit(clientAt(addr(i)), nil)
		if err != nil {
			if r := refusal(err); r == nil || r.Reason != proxy.TooMany {
				t.Fatalf("Admit: %v, want too many", err)
			}
			return permits, err
		}
		permits = append(permits, p.(*permit))
	}
	t.Fatal("there is no limit")
	return nil, nil
}

func leaveAll(permits []*permit) {
	for _, p := range permits {
		p.Leave()
	}
}

func TestConnectionsOfANetwork(t *testing.T) {
	t.Parallel()
	one := func(int) string { return "192.0.2.1" }
	site := func(i int) string { return fmt.Sprintf("2001:db8:1:%x::1", i) }
	for _, test := range []struct {
		name     string
		addr     func(int) string
		loggedIn bool
		want     int
		err      error
	}{
		{"not logged in", one, false, 40, ErrLoginsPerNetwork},
		{"logged in", one, true, 200, ErrConnectionsPerNetwork},
		{"IPv6 /48, not logged in", site, false, 160, ErrLoginsPerNetwork},
		{"IPv6 /48, logged in", site, true, 800, ErrConnectionsPerNetwork},
	} {
		t.Run(test.name, func(t *testing.T) {
			g, _ := newGuardWithClock(Config{Connections: 5000, Reserve: 1})
			var permits []*permit
			var err error
			for i := 0; err == nil; i++ {
				var p proxy.Permit
				if p, err = g.Admit(clientAt(test.addr(i)), nil); err == nil {
					permits = append(permits, p.(*permit))
				}
				if err == nil && test.loggedIn {
					if denied := p.Try(t.Context(), loginWith(fmt.Sprint(i), "right")); denied != nil {
						t.Fatal(denied)
					}
					p.Settle(nil)
				}
			}
			if len(permits) != test.want || !errors.Is(err, test.err) {
				t.Errorf("%d connections, then %v, want %d and %v", len(permits), err, test.want, test.err)
			}
			mustAdmit(t, g, "198.51.100.1").Leave()
			permits[0].Leave()
			mustAdmit(t, g, test.addr(0)).Leave()
			leaveAll(permits[1:])
			if len(g.conns.counts) != 0 || g.conns.open != 0 || g.conns.strangers != 0 || g.conns.oldest != nil || g.conns.newest != nil {
				t.Errorf("after all have left: %+v", g.conns)
			}
		})
	}
}

// Criterion: A network that is used by accounts known for a day may have more connections, guesses and attempts under way, for each of them.
func TestNetworkGrowsWithItsAccounts(t *testing.T) {
	t.Parallel()
	g, at := newGuardWithClock(Config{})
	addr := netip.MustParseAddr("192.0.2.1")
	for i := range 150 {
		g.Seed([]Success{{fmt.Sprint("user", i), addr, at.now.Add(-25 * time.Hour)}})
	}
	if e := g.Explain("", "stranger", addr); e.Shared != 100 {
		t.Errorf("%d accounts share the network, want 100, which is the most that count", e.Shared)
	}
	for i := range 50 { // too new, or too old
		g.Seed([]Success{{fmt.Sprint("new", i), addr, at.now.Add(-23 * time.Hour)}, {fmt.Sprint("old", i), addr, at.now.Add(-8 * day)}})
	}
	e := g.Explain("", "stranger", addr)
	if e.Shared != 100 {
		t.Errorf("%d accounts share the network, want 100, which is the most that count", e.Shared)
	}
	for _, s := range e.Buckets {
		if s.Bucket == Network && (s.Burst != 220 || s.Every != 30*time.Minute/101 || s.AtOnce != 108) {
			t.Errorf("the network's bucket is %+v", s)
		}
	}
	permits, err := admitAll(t, g, func(int) string { return "192.0.2.1" })
	if len(permits) != 440 || !errors.Is(err, ErrLoginsPerNetwork) {
		t.Errorf("%d connections, then %v", len(permits), err)
	}
	leaveAll(permits)
}

// Criterion: When an office moves to another address, each account that logs in from there makes room for the next.
func TestOfficeMoves(t *testing.T) {
	t.Parallel()
	s, at := newServer(t, Config{})
	from, to := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("203.0.113.1")
	for i := range 50 {
		s.Seed([]Success{{fmt.Sprint("user", i), from, at.now.Add(-25 * time.Hour)}})
	}
	_ = s.login("203.0.113.1", "made for the purpose", "right")
	if e := s.Explain("", "stranger", to); e.Shared != 0 {
		t.Errorf("%d accounts share the network, want none", e.Shared)
	}
	for i := range 50 {
		if err := s.login("203.0.113.1", fmt.Sprint("user", i), "right"); err != nil {
			t.Errorf("login %d: %v", i, err)
		}
		if e := s.Explain("", "stranger", to); e.Shared != i+1 {
			t.Errorf("%d accounts share the network after %d logins", e.Shared, i+1)
		}
	}
	at.advance(time.Hour)
	if e := s.Explain("", "stranger", to); e.Shared != 50 {
		t.Errorf("%d accounts share the network an hour later", e.Shared)
	}
}

// Criterion: While strangers fill all places that they may have, the oldest of them make room, and networks with known-good accounts have places in reserve.
func TestFloodShedsTheOldestStrangers(t *testing.T) {
	t.Parallel()
	g, at := newGuardWithClock(Config{Connections: 100, Reserve: 20})
	g.Seed([]Success{{"alice", netip.MustParseAddr("192.0.2.1"), at.now}})
	var shed []int
	var permits []*permit
	admit := func(i int) error {
		p, err := g.Admit(clientAt(fmt.Sprintf("198.18.%d.%d", i/200, i%200)), func(err error) {
			if proxy.ReasonOf(err) != proxy.TooMany || !errors.Is(err, ErrShed) {
				t.Errorf("shed: %v", err)
			}
			shed = append(shed, i)
		})
		if err == nil {
			permits = append(permits, p.(*permit))
		}
		return err
	}
	for i := range 80 {
		if err := admit(i); err != nil || len(shed) > 0 {
			t.Fatalf("stranger %d: %v, shed %v", i, err, shed)
		}
	}
	// One of them logs in and is a stranger no more.
	if err := permits[0].Try(t.Context(), loginWith("bob", "right")); err != nil {
		t.Fatal(err)
	}
	permits[0].Settle(nil)
	if err := admit(80); err != nil || len(shed) != 0 {
		t.Errorf("in the place of who logged in: %v, shed %v", err, shed)
	}
	for i := 81; i < 84; i++ {
		if err := admit(i); err != nil {
			t.Errorf("stranger %d: %v", i, err)
		}
	}
	if fmt.Sprint(shed) != "[1 2 3]" {
		t.Errorf("shed %v, want the oldest three", shed)
	}
	for i := range 19 {
		if p, err := g.Admit(clientAt("192.0.2.1"), nil); err != nil {
			t.Errorf("known-good connection %d: %v", i, err)
		} else {
			permits = append(permits, p.(*permit))
		}
	}
	p, err := g.Admit(clientAt("192.0.2.1"), nil)
	if err != nil || fmt.Sprint(shed) != "[1 2 3 4]" {
		t.Errorf("one more known-good: %v, shed %v, want one more stranger", err, shed)
	}
	p.Leave()
	// Those that are shed do not leave at once: not too many at a time.
	for i := range 50 {
		_ = admit(1000 + i)
	}
	if g.conns.shedding != 6 || g.conns.open > 100 {
		t.Errorf("%d are leaving, %d open", g.conns.shedding, g.conns.open)
	}
	leaveAll(permits)
	if g.conns.open != 0 || g.conns.strangers != 0 || g.conns.shedding != 0 || g.conns.oldest != nil || g.conns.newest != nil || len(g.conns.counts) != 0 {
		t.Errorf("after all have left: %+v", g.conns)
	}
}

// Criterion: A flood from one IPv4 address or one IPv6 /48 keeps nobody else out.
func TestFloodOfOneNetwork(t *testing.T) {
	t.Parallel()
	for _, addr := range []func(int) string{
		func(int) string { return "198.18.0.1" },
		func(i int) string { return fmt.Sprintf("2001:db8:1:%x::1", i%65536) },
	} {
		g, _ := newGuardWithClock(Config{})
		shed := 0
		count := func(error) { shed++ }
		var open []proxy.Permit
		other := mustAdmit(t, g, "192.0.2.1")
		for i := range 20_000 {
			if p, err := g.Admit(clientAt(addr(i)), count); err == nil {
				open = append(open, p)
			}
		}
		if len(open) > 160 || shed > 0 {
			t.Errorf("%d connections of one site are open, %d others were shed", len(open), shed)
		}
		mustAdmit(t, g, "192.0.2.1").Leave()
		other.Leave()
	}
}

// A mobile operator's customers have a /64 each, and thousands share a /48.
func TestNeighboursInASiteDoNotLockAnOwnerOut(t *testing.T) {
	t.Parallel()
	phone := func(i int) string { return fmt.Sprintf("2001:db8:1:%x::1", i) }
	const owner, customers, attacker = 0x8000, 1000, 0x9000
	s, _ := newServer(t, Config{Connections: 5000, Reserve: 1})
	for i := range customers {
		if err := s.login(phone(owner+i), fmt.Sprint(i), "right"); err != nil {
			t.Fatal(err)
		}
	}
	var permits []*permit
	for i := 0; ; i++ {
		p, err := s.Admit(clientAt(phone(attacker+i)), nil)
		if err != nil {
			break
		}
		permits = append(permits, p.(*permit))
	}
	if len(permits) != 160 {
		t.Errorf("%d connections of strangers in a site, want 160", len(permits))
	}
	for i := range customers {
		p, err := s.Admit(clientAt(phone(owner+i)), nil)
		if err != nil {
			t.Fatalf("known-good customer %d beside them: %v", i, err)
		}
		permits = append(permits, p.(*permit))
	}
	leaveAll(permits)
	if len(s.conns.counts) != 0 {
		t.Errorf("after all have left: %v", s.conns.counts)
	}
}

// Criterion: A refusal that is held back holds no token, no place among the attempts under way and no session.
func TestDelayedRefusalHoldsNothing(t *testing.T) {
	t.Parallel()
	s, _ := newServer(t, Config{})
	p := mustAdmit(t, s.Guard, "192.0.2.1")
	defer p.Leave()
	if err := p.Try(t.Context(), loginWith("alice", "guess")); err != nil {
		t.Fatal(err)
	}
	if delay := p.Settle(errWrong); delay < time.Second {
		t.Errorf("delay %v", delay)
	}
	if st := s.Stats(); st.InFlight != 0 || st.Sessions != 0 || len(s.inFlight) != 0 || p.attempt != nil {
		t.Errorf("while the refusal waits: %+v", st)
	}
	if err := s.login("192.0.2.1", "alice", "right"); err != nil {
		t.Errorf("beside it: %v", err)
	}
}

func TestAdmitWithoutShed(t *testing.T) {
	t.Parallel()
	g, _ := newGuardWithClock(Config{Connections: 2, Reserve: 1})
	p := mustAdmit(t, g, "192.0.2.1")
	defer p.Leave()
	if _, err := g.Admit(clientAt("192.0.2.2"), func(error) {}); !errors.Is(err, ErrConnections) {
		t.Errorf("Admit: %v", err)
	}
}

// Criterion: All of the guard's functions may be called at the same time.
func TestGuardIsSafeForConcurrentUse(t *testing.T) {
	t.Parallel()
	g := newGuard(Config{Entries: 1 << 10, Wait: time.Millisecond, Connections: 64})
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			for n := range 200 {
				p, err := g.Admit(clientAt(fmt.Sprintf("198.18.%d.%d", i%3, n%100)), func(error) {})
				if err != nil {
					continue
				}
				for range 3 {
					account := fmt.Sprint("user", n%7)
					err := p.Try(t.Context(), loginWith(account, fmt.Sprint(n%5)))
					if err == nil && n%5 > 0 {
						err = errWrong
					}
					p.Settle(err)
					_ = p.(*permit).Decision()
				}
				p.Leave()
			}
		})
	}
	for n := range 20 {
		g.Stats()
		g.List()
		g.Explain("", "user1", netip.MustParseAddr("198.18.1.1"))
		g.Unlock(fmt.Sprint("user", n%7))
		g.UnlockNetwork(netip.MustParseAddr("198.18.1.1"))
		g.Seed([]Success{{fmt.Sprint("user", n), netip.MustParseAddr("198.18.1.1"), time.Now()}})
		g.Snapshot()
		g.Reload(withDefaults(Config{Connections: 64 + n, Wait: time.Millisecond}))
	}
	wg.Wait()
	if st := g.Stats(); st.Connections != 0 || st.Strangers != 0 || st.InFlight != 0 || st.Waiting != 0 || st.Sessions != 0 || len(g.inFlight) != 0 || len(g.conns.counts) != 0 {
		t.Errorf("after all have left: %+v", st)
	}
	checkKnownNetworks(t, g.known)
}

func TestStrangersHaveAtLeastOneConnection(t *testing.T) {
	t.Parallel()
	for connections := 1; connections < 20; connections++ {
		g, _ := newGuardWithClock(Config{Connections: connections})
		p := mustAdmit(t, g, "192.0.2.1")
		p.Leave()
	}
}
