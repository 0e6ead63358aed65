package bridge

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	"postern/proxy"
)

// A LockMode says what happens to a second session of a maildrop, RFC 1939 section 4.
// A session that is allowed takes no lock: where backends that share Locks have
// different modes, the others do not see it.
type LockMode uint8

// The lock modes.
const (
	Allow    LockMode = iota // it opens: messages are known by UID, so both are right
	Wait                     // it waits for the first to end, up to 20 s, and is refused then
	Refuse                   // it is refused
	Takeover                 // it ends the first one, and waits up to 5 s for what that one has to remove
)

var lockModes = [...]string{Allow: "allow", Wait: "wait", Refuse: "refuse", Takeover: "takeover"}

// String returns the mode's name in the configuration.
func (p LockMode) String() string { return lockModes[p] }

// ParseLockMode returns the LockMode with that name.
func ParseLockMode(name string) (LockMode, bool) {
	i := slices.Index(lockModes[:], name)
	return LockMode(max(i, 0)), i >= 0
}

const (
	waitTime     = 20 * time.Second
	takeoverTime = 5 * time.Second
)

var (
	errInUse     = errors.New("another session has the maildrop")
	errTakenOver = errors.New("another session has taken the maildrop over")
)

// Locks is which maildrops are open. The zero value is ready. Backends of the
// same accounts share one; other machines know nothing of it.
type Locks struct {
	mu     sync.Mutex
	held   map[string]*lock
	notify func(maildrop string, open bool) // nil: nobody is notified
}

// A lock is held by one session, from when it opens to its end.
type lock struct {
	locks *Locks
	name  string
	free  chan struct{} // closed when it is no longer held

	mu                sync.Mutex
	evictionRequested bool // another session takes over
	evict             func()
	evicted           bool
}

// acquire returns the lock of a maildrop as soon as p lets it, or a Refusal.
func (l *Locks) acquire(ctx context.Context, name string, p LockMode) (*lock, error) {
	patience := map[LockMode]time.Duration{Wait: waitTime, Takeover: takeoverTime}[p]
	ctx, cancel := context.WithTimeoutCause(ctx, patience, errInUse)
	defer cancel()
	for {
		holder, mine := l.take(name)
		if mine != nil {
			return mine, nil
		}
		if p == Takeover {
			holder.requestEviction()
		}
		select {
		case <-holder.free:
		case <-ctx.Done():
			if err := context.Cause(ctx); !errors.Is(err, errInUse) {
				return nil, err
			}
			return nil, &proxy.Refusal{Reason: proxy.InUse, Verified: true, Err: errInUse}
		}
	}
}

// take returns the lock if nobody has it, or who has it.
func (l *Locks) take(name string) (holder, mine *lock) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if holder := l.held[name]; holder != nil {
		return holder, nil
	}
	if l.held == nil {
		l.held = make(map[string]*lock)
	}
	mine = &lock{locks: l, name: name, free: make(chan struct{})}
	l.held[name] = mine
	if l.notify != nil {
		l.notify(name, true)
	}
	return nil, mine
}

// release lets others have the maildrop. It may be called on nil, and once.
func (k *lock) release() {
	if k == nil {
		return
	}
	k.locks.mu.Lock()
	defer k.locks.mu.Unlock()
	delete(k.locks.held, k.name)
	close(k.free)
	if k.locks.notify != nil {
		k.locks.notify(k.name, false)
	}
}

// HandOver returns the maildrops that are open, for a successor's Hold. From now
// on notify is called for each that is opened, by a login that was under way, and
// for each that is closed; it must not block.
func (l *Locks) HandOver(notify func(maildrop string, open bool)) (maildrops []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.notify = notify
	return slices.Sorted(maps.Keys(l.held))
}

// Hold makes maildrops locked that another process has open. change is for what
// HandOver's notify gets, end for the end of that process. want is called when
// somebody takes one over.
func (l *Locks) Hold(maildrops []string, want func(maildrop string)) (change func(maildrop string, open bool), end func()) {
	var mu sync.Mutex
	theirs := make(map[string]*lock)
	change = func(name string, open bool) {
		mu.Lock()
		defer mu.Unlock()
		if !open {
			theirs[name].release()
			delete(theirs, name)
			return
		}
		if _, k := l.take(name); k != nil {
			k.setEvict(func() { want(name) })
			theirs[name] = k
		}
	}
	for _, name := range maildrops {
		change(name, true)
	}
	return change, func() {
		mu.Lock()
		defer mu.Unlock()
		for _, k := range theirs {
			k.release()
		}
		clear(theirs)
	}
}

// Evict ends the session that has a maildrop open, for one in another process.
func (l *Locks) Evict(maildrop string) {
	l.mu.Lock()
	k := l.held[maildrop]
	l.mu.Unlock()
	if k != nil {
		k.requestEviction()
	}
}

// requestEviction asks the session that has the lock to end.
func (k *lock) requestEviction() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.evictionRequested = true
	k.tryEvict()
}

// tryEvict ends the session, once, when its eviction was requested and it can be ended.
func (k *lock) tryEvict() {
	if k.evictionRequested && !k.evicted && k.evict != nil {
		k.evicted = true
		k.evict()
	}
}

// setEvict makes evict what ends the session; nil when it ends by itself.
func (k *lock) setEvict(evict func()) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.evict = evict
	k.tryEvict()
}

// acquireLock takes the lock of the maildrop, if the operator wants one.
func (s *session) acquireLock(ctx context.Context) (err error) {
	b := s.backend
	if b.Lock == Allow {
		return nil
	}
	locks := b.Locks
	if locks == nil {
		locks = &b.own
	}
	s.lock, err = locks.acquire(ctx, b.Name+"\x00"+s.login.Account, b.Lock)
	return err
}

// unlock lets others have the maildrop. It may be called again.
func (s *session) unlock() {
	s.lock.release()
	s.lock = nil
}

// withEviction returns a context that ends, as the connection's reads do, when
// another session takes the maildrop over.
func (s *session) withEviction(ctx context.Context, client *proxy.Conn) (context.Context, func()) {
	k := s.lock
	if k == nil {
		return ctx, func() {}
	}
	ctx, cancel := context.WithCancelCause(ctx)
	over := proxy.NewRefusal(proxy.Kicked, errTakenOver)
	k.setEvict(func() {
		cancel(over)
		client.Interrupt(over)
	})
	return ctx, func() {
		k.setEvict(nil)
		cancel(nil)
	}
}
