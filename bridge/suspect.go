package bridge

import (
	"context"
	"fmt"
	"hash/maphash"
	"sync"
	"time"
)

const (
	// maxSuspects bounds how many messages a backend remembers that did not come
	// as they should. The oldest is forgotten first.
	maxSuspects = 1024
	// mostCuts is after how many cuts a message is refused before +OK, so that
	// its client goes on with the next one, and suspectTime for how long.
	mostCuts, suspectTime = 2, time.Hour
	// trustSizes is how many sizes have to agree for each that does not, or
	// RFC822.SIZE of the backend is worth nothing. The first fewDiffer that do not
	// agree are exceptions, whatever came before them.
	trustSizes, fewDiffer = 16, 3
)

// suspects are the messages of a backend that did not come as they should. They
// are in memory only: a restart forgets them. The zero value is ready.
type suspects struct {
	mu      sync.Mutex
	seeded  bool
	seed    maphash.Seed
	entries map[suspectKey]suspect

	agreed, differed int // sizes of bodies against RFC822.SIZE
}

// A suspectKey is the hash of an account and of the UIDL of a message, which is
// the same after a change of UIDVALIDITY.
type suspectKey uint64

// A suspect is what is remembered of one message.
type suspect struct {
	cuts  int // bodies in a row that did not come to their end
	doubt digest
	since time.Time // of the last cut, or of the doubt
}

// A digest is the length and the hash of the octets of a message. The zero
// value is none.
type digest struct {
	octets int64
	sum    uint64
}

func (u *suspects) key(account, uidl string) suspectKey {
	if !u.seeded {
		u.seed, u.seeded = maphash.MakeSeed(), true
	}
	return suspectKey(maphash.String(u.seed, account+"\x00"+uidl))
}

// seal returns a seal of which the digest can be compared with what is
// remembered.
func (u *suspects) seal() *sentHash {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.key("", "")
	s := new(sentHash)
	s.hash.SetSeed(u.seed)
	return s
}

// empty reports whether nothing is remembered.
func (u *suspects) empty() bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return len(u.entries) == 0
}

// get returns what is remembered of a message.
func (u *suspects) get(account, uidl string) suspect {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.entries[u.key(account, uidl)]
}

// change changes what is remembered of a message. Of the zero value nothing is.
func (u *suspects) change(account, uidl string, change func(*suspect)) {
	u.mu.Lock()
	defer u.mu.Unlock()
	key := u.key(account, uidl)
	s, known := u.entries[key]
	if change(&s); s == (suspect{}) {
		delete(u.entries, key)
		return
	}
	if u.entries == nil {
		u.entries = make(map[suspectKey]suspect)
	}
	if !known && len(u.entries) >= maxSuspects {
		oldest := key
		for k, e := range u.entries {
			if oldest == key || e.since.Before(u.entries[oldest].since) {
				oldest = k
			}
		}
		delete(u.entries, oldest)
	}
	u.entries[key] = s
}

// refused reports whether a message is not asked for now.
func (s suspect) refused() bool { return s.cuts >= mostCuts && time.Since(s.since) < suspectTime }

// size counts how a size has agreed with RFC822.SIZE, and reports whether it is
// an exception that it has not.
func (u *suspects) size(agrees bool) (exception bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if agrees {
		u.agreed++
		return false
	}
	exception = u.differed < fewDiffer || u.agreed >= trustSizes*u.differed
	u.differed++
	return exception
}

// The suspects of a session are those of its backend.

func (s *session) suspect(ctx context.Context, m *message) suspect {
	if s.backend.suspects.empty() {
		return suspect{}
	}
	return s.backend.suspects.get(s.login.Account, s.nameOf(ctx, m))
}

// nameOf returns the UIDL of a message or, when the UIDLs cannot be read now,
// another name that only this message has.
func (s *session) nameOf(ctx context.Context, m *message) string {
	if s.readUIDLs(ctx) != nil {
		return fmt.Sprintf("\x00%d %d", s.drop.uidValidity, m.uid)
	}
	return string(s.uniqueID(nil, m))
}

// cut remembers that a body has not come to its end. DELE of the message is
// refused then for the rest of the session.
func (s *session) cut(ctx context.Context, m *message) {
	s.withhold(m.uid)
	s.backend.suspects.change(s.login.Account, s.nameOf(ctx, m), func(e *suspect) {
		if e.cuts++; e.cuts > mostCuts {
			e.cuts = mostCuts
		}
		e.since = time.Now()
	})
}

// withhold refuses DELE of a message for the rest of the session.
func (s *session) withhold(uid uint32) {
	if s.withheld == nil {
		s.withheld = make(map[uint32]bool)
	}
	s.withheld[uid] = true
}

// came takes a body that has come to its end; got is its digest if its length is
// not what the server has said, or if an earlier one was not. It reports whether
// the octets are doubtful: then they must come a second time before DELE may
// destroy them.
func (s *session) came(ctx context.Context, m *message, agrees bool, got digest) (doubtful bool) {
	before := s.suspect(ctx, m)
	same := before.doubt == got
	exception := s.backend.suspects.size(agrees)
	doubtful = !same && (exception || before.doubt != digest{})
	if !doubtful && before == (suspect{}) {
		delete(s.withheld, m.uid)
		return false
	}
	s.backend.suspects.change(s.login.Account, s.nameOf(ctx, m), func(e *suspect) {
		*e = suspect{}
		if doubtful {
			*e = suspect{doubt: got, since: time.Now()}
		}
	})
	delete(s.withheld, m.uid)
	if doubtful {
		s.withhold(m.uid)
	}
	return doubtful
}
