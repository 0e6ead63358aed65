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

// A LockMode decides about a second session of a maildrop, RFC 1939 section 4. With
// Allow a session takes no lock: sessions of other backends with the same Locks and
// another mode do not see that session.
type LockMode uint8

// The lock modes.
const (
	Allow    LockMode = iota // the second session opens: UIDs identify the messages in both sessions
	Wait                     // the second session waits up to 20 s for the end of the first, and is refused then
	Refuse                   // the second session is refused
	Takeover                 // the second session ends the first, and waits up to 5 s for its removals
)

var lockModes = [...]string{Allow: "allow", Wait: "wait", Refuse: "refuse", Takeover: "takeover"}

// String returns the mode's name in the configuration.
func (p LockMode) String() string { return lockModes[p] }

// ParseLockMode returns the LockMode with a name in the configuration; false if there is none.
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

// Locks has the locks of the open maildrops. The zero value is ready. Backends of the
// same accounts share one Locks. Other machines do not see these locks.
type Locks struct {
	mu     sync.Mutex
	held   map[string]*lock
	notify func(maildrop string, open bool) // nil: nobody is notified
}

// A lock is held by one session, from its opening to its end.
type lock struct {
	locks *Locks
	name  string
	free  chan struct{} // closed by release

	mu                sync.Mutex
	evictionRequested bool // another session takes over
	evict             func()
	evicted           bool
}

// acquire returns the lock of a maildrop, after the wait that p allows, or a
// *proxy.Refusal with the reason InUse, or the cause of ctx.
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

// take takes the lock of a maildrop and returns it as mine. If another session holds
// the lock, take returns that lock as holder.
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

// release unlocks the maildrop. It must be called once only. On nil it does nothing.
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

// HandOver returns the open maildrops, for the Hold of a successor process. From now
// on notify is called for each maildrop that a login under way opens, and for each
// maildrop that is closed. notify must not block.
func (l *Locks) HandOver(notify func(maildrop string, open bool)) (maildrops []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.notify = notify
	return slices.Sorted(maps.Keys(l.held))
}

// Hold locks the maildrops that another process has open. The caller passes each call
// of HandOver's notify to change, and calls end at the end of that process. Hold calls
// want when a session of this process takes over a maildrop.
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

// Evict ends the session that holds a maildrop, for a session in another process.
func (l *Locks) Evict(maildrop string) {
	l.mu.Lock()
	k := l.held[maildrop]
	l.mu.Unlock()
	if k != nil {
		k.requestEviction()
	}
}

// requestEviction requests the end of the session that holds the lock.
func (k *lock) requestEviction() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.evictionRequested = true
	k.tryEvict()
}

// tryEvict ends the session, once, if its eviction was requested and evict is set.
func (k *lock) tryEvict() {
	if k.evictionRequested && !k.evicted && k.evict != nil {
		k.evicted = true
		k.evict()
	}
}

// setEvict sets the function that ends the session; nil while the session ends by itself.
func (k *lock) setEvict(evict func()) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.evict = evict
	k.tryEvict()
}

// acquireLock takes the lock of the maildrop, unless the lock mode is Allow.
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

// unlock releases the lock of the maildrop. It may be called again.
func (s *session) unlock() {
	s.lock.release()
	s.lock = nil
}

// withEviction returns a context that ends when another session takes the maildrop
// over. The reads from the client end then, too. end is called at the end of Run; a
// session that parks can still be ended.
func (s *session) withEviction(ctx context.Context, client *proxy.Conn) (evictable context.Context, end func(parks bool)) {
	k := s.lock
	if k == nil {
		return ctx, func(bool) {}
	}
	ctx, cancel := context.WithCancelCause(ctx)
	over := proxy.NewRefusal(proxy.Kicked, errTakenOver)
	k.setEvict(func() {
		cancel(over)
		client.Interrupt(over)
	})
	return ctx, func(parks bool) {
		if parks {
			k.setEvict(func() { client.End(over) })
		} else {
			k.setEvict(nil)
		}
		cancel(nil)
	}
}
