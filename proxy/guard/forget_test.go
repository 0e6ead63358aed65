package guard

import (
	"fmt"
	"net/netip"
	"testing"
	"time"
)

func TestANetworkIsKnownForAsLongAsConfigured(t *testing.T) {
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

func TestWhoIsForgottenIsAStranger(t *testing.T) {
	s, _ := newServer(t, Config{})
	for i := range 3 {
		for _, account := range []string{"alice", "bob"} {
			if err := s.login(fmt.Sprintf("192.0.2.%d", i), account, "right"); err != nil {
				t.Fatal(err)
			}
		}
	}
	s.guesses(3, "192.0.2.1", "alice")
	if a, b := s.Known("alice"), s.Known("bob"); a != 3 || b != 3 {
		t.Fatalf("%d and %d networks are known, want 3 and 3", a, b)
	}
	s.Forget("alice")
	s.Forget("carol")
	if a, b := s.Known("alice"), s.Known("bob"); a != 0 || b != 3 {
		t.Errorf("%d and %d networks are known, want 0 and 3", a, b)
	}
	e := s.Explain("", "alice", netip.MustParseAddr("192.0.2.1"))
	if e.Tier == KnownGood || !e.Last.IsZero() {
		t.Errorf("after it: %+v", e)
	}
	if e := s.Explain("", "bob", netip.MustParseAddr("192.0.2.1")); e.Tier != KnownGood {
		t.Errorf("of bob: %+v", e)
	}
	if err := s.login("192.0.2.1", "alice", "right"); err != nil || s.Known("alice") != 1 {
		t.Errorf("who comes again: %v, %d networks", err, s.Known("alice"))
	}
}
