package bridge

import (
	"context"
	"fmt"
	"hash/maphash"
	"sync"
	"time"
)

const (
	// maxFaults bounds how many messages a backend remembers that did not come
	// as they should. The oldest is forgotten first.
	maxFaults = 1024
	// maxCuts is after how many cuts a message is refused before +OK, so that
	// its client goes on with the next one, and faultTime for how long.
	maxCuts, faultTime = 2, time.Hour
	// trustSizes is how many sizes have to agree for each that does not, or
	// RFC822.SIZE of the backend is worth nothing. The first fewDiffer that do not
	// agree are exceptions, whatever came before them.
	trustSizes, fewDiffer = 16, 3
)

// A faultList has the messages of a backend whose bodies did not come as they should.
// It is in memory only: a restart forgets it. The zero value is ready.
type faultList struct {
	mu      sync.Mutex
	seeded  bool
	seed    maphash.Seed
	entries map[faultKey]bodyFault

	agreed, differed int // sizes of bodies against RFC822.SIZE
}

// A faultKey is the hash of an account and of the UIDL of a message, which is
// the same after a change of UIDVALIDITY.
type faultKey uint64

// A bodyFault is what is remembered of one message.
type bodyFault struct {
	cuts        int // bodies in a row that did not come to their end
	unconfirmed digest
	since       time.Time // of the last cut, or of the doubt
}

// A digest is the length and the hash of the octets of a message. The zero
// value is none.
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

// newHash returns a sentHash whose digest can be compared with what is
// remembered.
func (u *faultList) newHash() *sentHash {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.key("", "")
	s := new(sentHash)
	s.hash.SetSeed(u.seed)
	return s
}

// empty reports whether nothing is remembered.
func (u *faultList) empty() bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return len(u.entries) == 0
}

// get returns what is remembered of a message.
func (u *faultList) get(account, uidl string) bodyFault {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.entries[u.key(account, uidl)]
}

// change changes what is remembered of a message. Of the zero value nothing is.
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

// refused reports whether a message is not asked for now.
func (s bodyFault) refused() bool { return s.cuts >= maxCuts && time.Since(s.since) < faultTime }

// sizeReceived counts how a size has agreed with RFC822.SIZE, and reports whether it is
// an exception that it has not.
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

// fault returns what is remembered of a message; sessions of a backend share its list.
func (s *session) fault(ctx context.Context, m *message) bodyFault {
	if s.backend.faults.empty() {
		return bodyFault{}
	}
	return s.backend.faults.get(s.login.Account, s.nameOf(ctx, m))
}

// nameOf returns the UIDL of a message or, when the UIDLs cannot be read now,
// another name that only this message has.
func (s *session) nameOf(ctx context.Context, m *message) string {
	if s.readUIDLs(ctx) != nil {
		return fmt.Sprintf("\x00%d %d", s.maildrop.uidValidity, m.uid)
	}
	return string(s.uniqueID(nil, m))
}

// recordCut remembers that a body has not come to its end. DELE of the message is
// refused then for the rest of the session.
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

// bodyReceived takes a body that has come to its end; got is its digest if its length is
// not what the server has said, or if an earlier one was not. It reports whether
// the octets are doubtful: then they must come a second time before DELE may
// destroy them.
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
