package guard

import (
	"net/netip"
	"testing"
	"time"
)

// Criterion: The operator is told which bucket refuses an account from an address, and when there is a token.
func TestExplain(t *testing.T) {
	t.Parallel()
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
		{Pair, 5, 30 * time.Minute, 0, next, 0, 1, 0, false},
		{Network, 20, 30 * time.Minute, 15, time.Time{}, 0, 8, 0, false},
		{Account, 8, time.Hour, 6, time.Time{}, 0, 0, 0, false}, // used: fresh has 5
		{Network24, 60, 10 * time.Minute, 55, time.Time{}, 0, 0, 0, false},
		{Strangers, 0, 0, 0, time.Time{}, 0, 4, 0, false},
		{Attempts, 0, 0, 0, time.Time{}, 0, 768, 0, false},
		{Sessions, 0, 0, 0, time.Time{}, 0, 50, 0, false},
		{Connections, 0, 0, 0, time.Time{}, 0, 200, 0, false},
		{Logins, 0, 0, 0, time.Time{}, 0, 40, 0, false},
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
