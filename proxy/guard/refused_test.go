package guard

import (
	"fmt"
	"testing"
	"time"
)

// Criterion: The operator sees who is being refused; a name that never logged in is not among what he sees.
func TestList(t *testing.T) {
	t.Parallel()
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
