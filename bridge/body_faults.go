package bridge

import (
	"context"
	"fmt"
	"hash/maphash"
	"sync"
	"time"
)

const (
	// maxFaults bounds the entries of a faultList. The oldest entry is removed first.
	maxFaults = 1024
	// maxCuts is the number of cuts after which a message is refused before +OK, so
	// that the client goes on with the next message. faultTime is the time of refusal.
	maxCuts, faultTime = 2, time.Hour
	// trustSizes is the number of agreeing sizes for each differing one below which
	// RFC822.SIZE of the backend is not trusted. The first fewDiffer differing sizes are
	// exceptions, whatever the number of agreeing ones.
	trustSizes, fewDiffer = 16, 3
)

// A faultList has the messages of a backend whose bodies came cut or doubtful. A
// faultList is in memory only. The zero value is ready.
type faultList struct {
	mu      sync.Mutex
	seeded  bool
	seed    maphash.Seed
	entries map[faultKey]bodyFault

	agreed, differed int // numbers of bodies by agreement of their sizes with RFC822.SIZE
}

// A faultKey is the hash of an account and of the UIDL of a message, which is
// the same after a change of UIDVALIDITY.
type faultKey uint64

// A bodyFault has the faults of the body of one message.
type bodyFault struct {
	cuts        int       // transfers in a row that did not reach the end of the body
	unconfirmed digest    // of a doubtful body; zero: none
	since       time.Time // time of the last cut, or of the doubtful body
}

// A digest has the length and the hash of the octets of a message. The zero value
// stands for no message.
type digest struct {
	octets int64
	sum    uint64
}

func (u *faultList) key(account, uidl string) faultKey {
	if !u.seeded {
		u.seed, u.seeded = maphash.MakeSeed(), true
	}
	return faultKey(maphash.String(u.seed, account+"\x00"+uidl))
}

// newHash returns a sentHash whose digest can be compared with the digests in the list.
func (u *faultList) newHash() *sentHash {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.key("", "")
	s := new(sentHash)
	s.hash.SetSeed(u.seed)
	return s
}

// empty reports whether the list has no entries.
func (u *faultList) empty() bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return len(u.entries) == 0
}

// get returns the bodyFault of a message, or the zero value.
func (u *faultList) get(account, uidl string) bodyFault {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.entries[u.key(account, uidl)]
}

// change changes the bodyFault of a message. The zero value removes the entry.
func (u *faultList) change(account, uidl string, change func(*bodyFault)) {
	u.mu.Lock()
	defer u.mu.Unlock()
	key := u.key(account, uidl)
	s, known := u.entries[key]
	if change(&s); s == (bodyFault{}) {
		delete(u.entries, key)
		return
	}
	if u.entries == nil {
		u.entries = make(map[faultKey]bodyFault)
	}
	if !known && len(u.entries) >= maxFaults {
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

// refused reports whether the message is refused now, because its body was cut too often.
func (s bodyFault) refused() bool { return s.cuts >= maxCuts && time.Since(s.since) < faultTime }

// sizeReceived counts whether the size of a body agrees with RFC822.SIZE. It reports
// whether a size that differs is an exception for this server.
func (u *faultList) sizeReceived(agrees bool) (exception bool) {
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

// fault returns the bodyFault of a message. All sessions of a backend share one list.
func (s *session) fault(ctx context.Context, m *message) bodyFault {
	if s.backend.faults.empty() {
		return bodyFault{}
	}
	return s.backend.faults.get(s.login.Account, s.nameOf(ctx, m))
}

// nameOf returns the UIDL of a message. If the UIDLs cannot be read now, it returns
// another unique name.
func (s *session) nameOf(ctx context.Context, m *message) string {
	if s.readUIDLs(ctx) != nil {
		return fmt.Sprintf("\x00%d %d", s.maildrop.uidValidity, m.uid)
	}
	return string(s.uniqueID(nil, m))
}

// recordCut counts a transfer that did not reach the end of the body. DELE of the message
// is then refused for the rest of the session.
func (s *session) recordCut(ctx context.Context, m *message) {
	s.forbidDelete(m.uid)
	s.backend.faults.change(s.login.Account, s.nameOf(ctx, m), func(e *bodyFault) {
		if e.cuts++; e.cuts > maxCuts {
			e.cuts = maxCuts
		}
		e.since = time.Now()
	})
}

// forbidDelete refuses DELE of a message for the rest of the session.
func (s *session) forbidDelete(uid uint32) {
	if s.undeletable == nil {
		s.undeletable = make(map[uint32]bool)
	}
	s.undeletable[uid] = true
}

// bodyReceived records a body that has come to its end. agrees tells whether its size
// agrees with the listed one; got is its digest if this size or an earlier one differs,
// else zero. It reports whether the octets are doubtful: then the same octets must come a
// second time before DELE is allowed.
func (s *session) bodyReceived(ctx context.Context, m *message, agrees bool, got digest) (doubtful bool) {
	before := s.fault(ctx, m)
	same := before.unconfirmed == got
	exception := s.backend.faults.sizeReceived(agrees)
	doubtful = !same && (exception || before.unconfirmed != digest{})
	if !doubtful && before == (bodyFault{}) {
		delete(s.undeletable, m.uid)
		return false
	}
	s.backend.faults.change(s.login.Account, s.nameOf(ctx, m), func(e *bodyFault) {
		*e = bodyFault{}
		if doubtful {
			*e = bodyFault{unconfirmed: got, since: time.Now()}
		}
	})
	delete(s.undeletable, m.uid)
	if doubtful {
		s.forbidDelete(m.uid)
	}
	return doubtful
}
