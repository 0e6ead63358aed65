package password

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"runtime"
	"sync"
	"time"

	"postern/proxy"
)

// The defaults of Slow, and its limits.
const (
	DefaultMemory = 256 << 20        // octets
	DefaultWait   = 30 * time.Second // for others to end
	rememberTime  = 10 * time.Minute
	maxRemembered = 100_000
)

// Slow bounds what slow hashes of all logins together cost: at most one a processor runs,
// and together they use at most Memory octets, the memory that the garbage collector has
// not freed yet included. Who does not get a turn within Wait is refused temporarily.
//
// A password that was right is remembered for ten minutes, as a hash with a key of this
// process: clients that log in again and again cost one slow hash in that time.
type Slow struct {
	Memory int64         // octets; 0: DefaultMemory. A hash that needs more waits until it is alone
	Wait   time.Duration // 0: DefaultWait

	parallel int // hashes at once; 0: as many as there are processors

	mu      sync.Mutex
	used    int64 // octets of those that run
	garbage int64 // octets of those that have ended since the last collection
	running int
	waiting []*turn // the first comes first

	collecting bool

	key  []byte    // of this process
	from time.Time // of rights
	// Right passwords by hash: of the present ten minutes, and of the ten before.
	rights, before map[[sha256.Size]byte]time.Time
}

// A turn is a verification that waits.
type turn struct {
	memory int64
	start  chan struct{} // closed when it may run; guarded by Slow.mu
	begun  bool
}

var errBusy = errors.New("the hashes of other logins were not done in time: give passwords.memory more, or the machine more processors")

// SetLimits sets Memory and Wait, also while hashes run and wait.
func (s *Slow) SetLimits(memory int64, wait time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.Memory, s.Wait = memory, wait
	s.startNext()
}

// A Load is what slow hashes take now.
type Load struct {
	Running, Waiting int
	Memory           int64 // octets, with the memory that is not freed yet
	Limit            int64
}

// Load returns what slow hashes take now.
func (s *Slow) Load() Load {
	s.mu.Lock()
	defer s.mu.Unlock()
	return Load{Running: s.running, Waiting: len(s.waiting), Memory: s.used + s.garbage, Limit: s.limit()}
}

func (s *Slow) limit() int64 {
	if s.Memory > 0 {
		return s.Memory
	}
	return DefaultMemory
}

// fits reports whether a verification may begin. s.mu is held.
func (s *Slow) fits(memory int64) bool {
	parallel := s.parallel
	if parallel == 0 {
		parallel = runtime.GOMAXPROCS(0)
	}
	return s.running == 0 && s.garbage == 0 || s.running < parallel && s.used+s.garbage+memory <= s.limit()
}

// begin waits for a turn. After nil, end must be called.
func (s *Slow) begin(ctx context.Context, memory int64) error {
	s.mu.Lock()
	if len(s.waiting) == 0 && s.fits(memory) {
		s.take(memory)
		s.mu.Unlock()
		return nil
	}
	t := &turn{memory: memory, start: make(chan struct{})}
	s.waiting = append(s.waiting, t)
	s.startNext()
	wait := s.Wait
	s.mu.Unlock()
	if wait == 0 {
		wait = DefaultWait
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	var err error
	select {
	case <-t.start:
		return nil
	case <-ctx.Done():
		err = context.Cause(ctx)
	case <-timer.C:
		err = proxy.NewRefusal(proxy.Unavailable, errBusy)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if t.begun {
		s.release(memory)
		return err
	}
	for i, other := range s.waiting {
		if other == t {
			s.waiting = append(s.waiting[:i], s.waiting[i+1:]...)
			break
		}
	}
	s.startNext() // the first of the queue may have needed more than the next
	return err
}

func (s *Slow) end(memory int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.release(memory)
}

func (s *Slow) take(memory int64) { s.running++; s.used += memory }

func (s *Slow) release(memory int64) {
	s.running--
	s.used -= memory
	s.garbage += memory
	s.startNext()
}

// startNext begins what fits, in the order in which it came. s.mu is held.
func (s *Slow) startNext() {
	for len(s.waiting) > 0 && s.fits(s.waiting[0].memory) {
		t := s.waiting[0]
		s.waiting = s.waiting[1:]
		s.take(t.memory)
		t.begun = true
		close(t.start)
	}
	if len(s.waiting) > 0 && s.garbage > 0 && !s.collecting {
		s.collecting = true
		go s.collect()
	}
}

// collect frees the memory of what has ended: left to itself, the garbage collector lets
// the heap grow to a multiple of what is used.
func (s *Slow) collect() {
	s.mu.Lock()
	freed := s.garbage
	s.mu.Unlock()
	runtime.GC()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.garbage -= freed
	s.collecting = false
	s.startNext()
}

// verify reports whether password is that of the hash, which text is. account is part of
// what is remembered.
func (s *Slow) verify(ctx context.Context, h hashed, account, text string, password []byte) (bool, error) {
	sum := s.sum(account, text, password)
	if s.remembers(sum) {
		return true, nil
	}
	memory := h.memory()
	if err := s.begin(ctx, memory); err != nil {
		return false, err
	}
	defer s.end(memory)
	if !h.verify(password) {
		return false, nil
	}
	s.remember(sum)
	return true, nil
}

// secret returns the key of this process.
func (s *Slow) secret() []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.key == nil {
		s.key = make([]byte, sha256.Size)
		_, _ = rand.Read(s.key) // it does not fail
	}
	return s.key
}

// sum returns the hash by which a right password is remembered.
func (s *Slow) sum(account, text string, password []byte) (sum [sha256.Size]byte) {
	h := hmac.New(sha256.New, s.secret())
	for _, part := range [...]string{"right", account, text} {
		h.Write([]byte(part))
		h.Write([]byte{0})
	}
	h.Write(password)
	h.Sum(sum[:0])
	return sum
}

func (s *Slow) remembers(sum [sha256.Size]byte) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.age()
	at, ok := s.rights[sum]
	if !ok {
		at, ok = s.before[sum]
	}
	return ok && time.Since(at) < rememberTime
}

func (s *Slow) remember(sum [sha256.Size]byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.age()
	if s.rights == nil {
		s.rights = make(map[[sha256.Size]byte]time.Time)
	}
	s.rights[sum] = time.Now()
}

// age drops what is too old. s.mu is held.
func (s *Slow) age() {
	if time.Since(s.from) >= rememberTime || len(s.rights) >= maxRemembered {
		s.from, s.before, s.rights = time.Now(), s.rights, nil
	}
}
