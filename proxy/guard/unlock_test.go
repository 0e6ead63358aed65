package guard

import (
	"fmt"
	"net/netip"
	"testing"
	"time"
)

func TestUnlockAccount(t *testing.T) {
	t.Parallel()
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
	if !s.Unlock("alice") || !s.Unlock("bob") {
		t.Error("Unlock reports that nothing was locked")
	}
	if s.Unlock("alice") || s.Unlock("nosuch") {
		t.Error("Unlock reports that something was locked: nothing was")
	}
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
	t.Parallel()
	for _, addr := range []string{"192.0.2.1", "2001:db8::1"} {
		s, _ := newServer(t, Config{Network: Rate{30, time.Hour}, Network24: Rate{30, time.Hour}, Network56: Rate{30, time.Hour}, Network48: Rate{30, time.Hour}})
		s.guesses(5, addr, "alice")
		for i := range 50 {
			s.guesses(1, addr, fmt.Sprint("user", i))
		}
		if e := s.Explain("", "bob", netip.MustParseAddr(addr)); e.Refused == NoBucket {
			t.Errorf("before: %+v", e)
		}
		if !s.UnlockNetwork(netip.MustParseAddr(addr)) || s.UnlockNetwork(netip.MustParseAddr(addr)) {
			t.Error("UnlockNetwork does not report what was locked")
		}
		for _, account := range []string{"alice", "bob"} {
			if err := s.login(addr, account, "right"); err != nil {
				t.Errorf("unlocked, %s from %s: %v", account, addr, err)
			}
		}
	}
}

func TestForget(t *testing.T) {
	t.Parallel()
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
