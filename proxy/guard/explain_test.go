package guard

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"postern/proxy"
)

// Criterion: The operator is told which bucket refuses an account from an address, and when there is a token.
func TestExplain(t *testing.T) {
	s, at := newServer(t, Config{})
	addr := netip.MustParseAddr("192.0.2.1")
	if e := s.Explain("", "alice", addr); e.Refused != NoBucket || e.Tier != StrangerFresh || e.Network != netip.MustParsePrefix("192.0.2.1/32") || !e.Last.IsZero() {
		t.Errorf("nothing has happened: %+v", e)
	}
	s.guesses(9, "192.0.2.1", "alice")
	e := s.Explain("", "alice", addr)
	if e.Refused != Pair || e.Tier != StrangerUsed || e.Wrong != 5 {
		t.Errorf("after five wrong passwords: %+v", e)
	}
	got := map[Bucket]State{}
	for _, b := range e.Buckets {
		got[b.Bucket] = b
	}
	next := at.now.Add(30 * time.Minute)
	for _, want := range []State{
		{Pair, 5, 30 * time.Minute, 0, next, 0, 1, 0},
		{Network, 20, 30 * time.Minute, 15, time.Time{}, 0, 8, 0},
		{Account, 8, time.Hour, 6, time.Time{}, 0, 0, 0}, // used: fresh has 5
		{Network24, 60, 10 * time.Minute, 55, time.Time{}, 0, 0, 0},
		{Strangers, 0, 0, 0, time.Time{}, 0, 4, 0},
		{Attempts, 0, 0, 0, time.Time{}, 0, 768, 0},
		{Sessions, 0, 0, 0, time.Time{}, 0, 50, 0},
		{Connections, 0, 0, 0, time.Time{}, 0, 200, 0},
		{Logins, 0, 0, 0, time.Time{}, 0, 40, 0},
	} {
		if got[want.Bucket] != want {
			t.Errorf("%v: %+v, want %+v", want.Bucket, got[want.Bucket], want)
		}
	}
	at.now = next
	if e := s.Explain("", "alice", addr); e.Refused != NoBucket {
		t.Errorf("when there is a token: %+v", e)
	}
	if err := s.login("192.0.2.1", "alice", "right"); err != nil {
		t.Fatal(err)
	}
	if e := s.Explain("", "alice", addr); e.Tier != KnownGood || !e.Last.Equal(at.now) || len(e.Buckets) != 6 {
		t.Errorf("after a login: %+v", e)
	}
}

// Criterion: The operator sees who is being refused; a name that never logged in is not among what he sees.
func TestList(t *testing.T) {
	s, at := newServer(t, Config{})
	if err := s.login("203.0.113.1", "alice", "right"); err != nil {
		t.Fatal(err)
	}
	s.guesses(15, "192.0.2.1", "alice")
	s.guesses(8, "192.0.2.1", "a password typed for a name")
	_ = s.login("203.0.113.1", "alice", "stale")
	_ = s.login("203.0.113.1", "alice", "stale")
	list := s.List()
	if len(list) != 2 {
		t.Fatalf("%+v, want two", list)
	}
	a, b := list[0], list[1]
	if a.Account != "alice" || a.Count != 10 || a.Bucket != Pair || !a.Until.Equal(at.now.Add(30*time.Minute)) || a.Network.String() != "192.0.2.1/32" {
		t.Errorf("the account: %+v", a)
	}
	if b.Account != "" || len(b.Hash) != 16 || b.Count != 3 {
		t.Errorf("the name that is none: %+v", b)
	}
	at.advance(30 * time.Minute)
	if list := s.List(); len(list) != 0 {
		t.Errorf("half an hour later: %+v", list)
	}
	for i := range 3 * maxRefused {
		s.guesses(6, fmt.Sprintf("198.18.%d.%d", i/250, i%250), fmt.Sprint("user", i))
	}
	if len(s.refused.index) > maxRefused {
		t.Errorf("%d are remembered", len(s.refused.index))
	}
}

func TestUnlockAccount(t *testing.T) {
	s, _ := newServer(t, Config{StrictNIST: true})
	for i := range 20 {
		s.guesses(5, fmt.Sprintf("198.%d.0.1", i), "alice")
	}
	if err := s.login("192.0.2.1", "bob", "right"); err != nil {
		t.Fatal(err)
	}
	s.guesses(20, "192.0.2.1", "bob")
	for _, addr := range []string{"198.0.0.1", "198.19.0.1", "203.0.113.1"} {
		if e := s.Explain("", "alice", netip.MustParseAddr(addr)); e.Refused == NoBucket {
			t.Errorf("before, from %s: %+v", addr, e)
		}
	}
	s.Unlock("alice")
	s.Unlock("bob")
	for _, addr := range []string{"198.0.0.1", "198.19.0.1", "203.0.113.1"} {
		if err := s.login(addr, "alice", "right"); err != nil {
			t.Errorf("unlocked, from %s: %v", addr, err)
		}
	}
	if err := s.login("192.0.2.1", "bob", "right"); err != nil {
		t.Errorf("unlocked, from a known-good network: %v", err)
	}
	if list := s.List(); len(list) != 0 {
		t.Errorf("still listed: %+v", list)
	}
}

func TestUnlockNetwork(t *testing.T) {
	for _, addr := range []string{"192.0.2.1", "2001:db8::1"} {
		s, _ := newServer(t, Config{Network: Rate{30, time.Hour}, Network24: Rate{30, time.Hour}, Network56: Rate{30, time.Hour}, Network48: Rate{30, time.Hour}})
		s.guesses(5, addr, "alice")
		for i := range 50 {
			s.guesses(1, addr, fmt.Sprint("user", i))
		}
		if e := s.Explain("", "bob", netip.MustParseAddr(addr)); e.Refused == NoBucket {
			t.Errorf("before: %+v", e)
		}
		s.UnlockNetwork(netip.MustParseAddr(addr))
		for _, account := range []string{"alice", "bob"} {
			if err := s.login(addr, account, "right"); err != nil {
				t.Errorf("unlocked, %s from %s: %v", account, addr, err)
			}
		}
	}
}

func TestSeed(t *testing.T) {
	s, at := newServer(t, Config{})
	seeds := []Success{
		{"alice", netip.MustParseAddr("192.0.2.1"), at.now.Add(-29 * day)},
		{"alice", netip.MustParseAddr("192.0.2.1"), at.now.Add(-time.Hour)},
		{"bob", netip.MustParseAddr("192.0.2.1"), at.now.Add(-31 * day)},
		{"carol", netip.MustParseAddr("192.0.2.1"), at.now.Add(time.Hour)},
	}
	if n := s.Seed(seeds); n != 1 {
		t.Errorf("%d networks are new, want 1", n)
	}
	for account, want := range map[string]Tier{"alice": KnownGood, "bob": StrangerFresh, "carol": StrangerFresh} {
		if e := s.Explain("", account, netip.MustParseAddr("192.0.2.1")); e.Tier != want {
			t.Errorf("%s: %+v, want %v", account, e, want)
		}
	}
}

func TestDecision(t *testing.T) {
	s, _ := newServer(t, Config{})
	p := mustAdmit(t, s.Guard, "192.0.2.1")
	defer p.Leave()
	for i, step := range []struct {
		password string
		want     finding
	}{
		{"stale", finding{tier: StrangerFresh}},
		{"stale", finding{tier: StrangerFresh, repeat: true, rejected: &rejection{tier: StrangerFresh, repeat: true}}},
		{"right", finding{tier: StrangerFresh, first: true}},
		{"right", finding{tier: KnownGood}},
		{"stale", finding{tier: KnownGood, repeat: true}},
	} {
		err := p.Try(t.Context(), loginWith("alice", step.password))
		if err == nil {
			err = s.check("alice", step.password)
		}
		p.Settle(err)
		got := p.found
		if got.rejected != nil && step.want.rejected != nil && *got.rejected == *step.want.rejected {
			got.rejected = step.want.rejected
		}
		if got != step.want {
			t.Errorf("attempt %d: %+v, want %+v", i, got, step.want)
		}
	}
	err := proxy.NewRefusal(proxy.Throttled, &proxy.Decision{Tier: "stranger_used", Bucket: "pair", RetryAfter: 90 * time.Second})
	if d, ok := errors.AsType[*proxy.Decision](error(err)); !ok || d.Bucket != "pair" || err.Error() != "throttled: guard: no token of pair (stranger_used) for 1m30s" {
		t.Errorf("%v", err)
	}
}

// Criterion: What no limit catches, one try each at many accounts from many networks, shows in the gauges: failures and successes, different accounts and networks that fail, one password tried for many.
func TestStats(t *testing.T) {
	s, at := newServer(t, Config{})
	for i := range 3000 {
		s.guesses(1, fmt.Sprintf("198.%d.%d.1", 18+i/250, i%250), fmt.Sprint("user", i))
		if i%3 == 0 {
			_ = s.login(fmt.Sprintf("203.0.113.%d", i%200), fmt.Sprint("good", i%20), "right")
		}
	}
	st := s.Stats()
	if st.Failed != 3000 || st.Succeeded != 1000 || !near(st.FailingAccounts, 3000) || !near(st.FailingNetworks, 3000) || st.SprayedAccounts > 2 {
		t.Errorf("stuffing: %+v", st)
	}
	at.advance(time.Hour)
	for i := range 100 {
		_ = s.login(fmt.Sprintf("198.%d.0.9", i), fmt.Sprint("victim", i), "summer2026")
	}
	st = s.Stats()
	if st.Failed != 100 || st.Succeeded != 0 || st.SprayedAccounts < 80 || st.SprayedAccounts > 120 {
		t.Errorf("a spray, an hour later: %+v", st)
	}
	at.advance(3 * time.Hour)
	if st := s.Stats(); st.Failed != 0 || st.FailingAccounts != 0 || st.SprayedAccounts != 0 {
		t.Errorf("three hours later: %+v", st)
	}
}

// near reports whether got is within a tenth of want.
func near(got, want int) bool { return got >= want-want/10 && got <= want+want/10 }
