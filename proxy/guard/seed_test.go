package guard

import (
	"net/netip"
	"testing"
	"time"
)

func TestSeed(t *testing.T) {
	t.Parallel()
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

func TestKnownFor(t *testing.T) {
	t.Parallel()
	s, at := newServer(t, Config{KnownFor: 7 * 24 * time.Hour})
	tier := func() Tier { return s.Explain("", "alice", netip.MustParseAddr("192.0.2.1")).Tier }
	if err := s.login("192.0.2.1", "alice", "right"); err != nil {
		t.Fatal(err)
	}
	at.now = at.now.Add(7*24*time.Hour - time.Second)
	if got := tier(); got != KnownGood {
		t.Errorf("within the time it is %v", got)
	}
	at.now = at.now.Add(2 * time.Second)
	if got := tier(); got == KnownGood {
		t.Errorf("after it it is %v", got)
	}
	s.Reload(withDefaults(Config{KnownFor: 30 * 24 * time.Hour}))
	if got := tier(); got != KnownGood {
		t.Errorf("with a longer time it is %v", got)
	}
}
