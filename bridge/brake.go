package bridge

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/maphash"
	"sync"
	"time"

	"postern/proxy"
)

const (
	// brakeWindow is the time in which accounts are counted. brakeSlot is the precision:
	// an account leaves the count up to one slot early.
	brakeWindow = 10 * time.Minute
	brakeSlot   = 10 * time.Second
	brakeSlots  = int64(brakeWindow / brakeSlot)
	// With fewPolls polling accounts or more, a backend is braked by more than
	// fewChanges changed accounts that are more than one in changedShare; with fewer
	// polling accounts, by more than fewPollsChanges.
	fewPolls, fewChanges, changedShare, fewPollsChanges = 100, 5, 100, 10
	// manyMessages is the least number of messages, known or gone, for which a
	// mailbox with the same UIDVALIDITY is counted.
	manyMessages = 20
	// maxRecent bounds the accounts of one window: about 40 MB. Accounts beyond it do
	// not count as polling, so that the brake comes sooner.
	maxRecent = 1 << 20
	// brakeTime bounds the time in which the store must keep a brake that trips.
	brakeTime = 10 * time.Second
	// brakeVersion is the version of the state in the store.
	brakeVersion = 1
)

// The time for which Accept accepts changes.
const (
	DefaultAccept = time.Hour // unless an operator says otherwise
	MinAccept     = time.Minute
	MaxAccept     = 30 * 24 * time.Hour
)

// A Change is a difference of INBOX from the last poll that no session of this Postern
// has made.
type Change uint8

// The changes. All but Unchanged are counted.
const (
	Unchanged      Change = iota
	NewUIDValidity        // the UIDs belong to other messages
	LowerUIDNext          // the UIDs may belong to other messages: a backup was restored
	Emptied               // EXISTS 0, and 20 messages or more were known
	Shrunk                // half of the messages known and 20 or more are gone
)

var changes = [...]string{
	Unchanged: "unchanged", NewUIDValidity: proxy.ChangeUIDValidity, LowerUIDNext: proxy.ChangeUIDNext,
	Emptied: proxy.ChangeEmptied, Shrunk: proxy.ChangeShrunk,
}

// String returns the value of proxy.MailboxChanged.Kind for c.
func (c Change) String() string { return changes[c] }

// A comparison has the figures of INBOX, at the end of the last session and now.
type comparison struct {
	oldUIDValidity, newUIDValidity uint32 // old 0: there was no session; new 0: the server does not say
	oldUIDNext, newUIDNext         uint32 // 0: not known
	known                          int    // messages at the end of the last session, less the removed ones; -1: not known
	exists                         int    // messages now
	gone                           int    // messages of known that are certainly not there now; 0 if only EXISTS is known yet
}

// change returns the Change that the comparison shows. A mailbox that was empty and is
// empty is Unchanged: there is nothing to lose, and some servers give such a mailbox
// another UIDVALIDITY at each SELECT.
func (c comparison) change() Change {
	gone := max(c.gone, c.known-c.exists)
	switch {
	case c.oldUIDValidity == 0 || c.newUIDValidity == 0 || c.known == 0 && c.exists == 0:
		return Unchanged
	case c.newUIDValidity != c.oldUIDValidity:
		return NewUIDValidity
	case c.newUIDNext != 0 && c.newUIDNext < c.oldUIDNext:
		return LowerUIDNext
	case c.exists == 0 && c.known >= manyMessages:
		return Emptied
	case gone >= manyMessages && 2*gone >= c.known:
		return Shrunk
	}
	return Unchanged
}

// A Brake protects the mailboxes of one backend from a fault that shows in many
// mailboxes at once: a store that is not mounted, a wrong route, a restored backup.
// The brake goes on when, within 10 minutes, more than 5 accounts and more than 1 %
// of the polling accounts have a Change (of fewer than 100: more than 10 accounts).
// While the brake is on, an account with a Change gets a temporary refusal. The brake
// stays on until an operator accepts the changes, also over a restart.
//
// The accounts of the last 10 to 20 minutes are in memory, with about 75 octets
// each. The state is in the store, so that two processes with one store have one
// state: a brake or an acceptance of one process holds in the other at the next
// Change. Each process counts its own polls.
//
// A nil Brake admits every poll. A Brake must be made by NewBrake. Its methods may
// be called from many goroutines.
type Brake struct {
	backend  string
	observer proxy.Observer
	seed     maphash.Seed
	now      func() time.Time
	begun    time.Time

	held chan struct{} // a lock of the state, which a context can interrupt

	mu       sync.Mutex
	store    Bucket         // nil: the state ends with the process
	removing map[uint64]int // accounts with sessions that have removed messages and whose listings are not in the cache yet
	polled   recent         // accounts
	counted  recent         // polled accounts with a change that was not accepted
	status   BrakeStatus
}

// A BrakeStatus is the state of a Brake.
type BrakeStatus struct {
	On       time.Time // start of the refusals; zero: the brake is off
	Accepted time.Time // end of the time in which changes are accepted; in the past or zero: changes are counted
	Polled   int       // accounts that polled within the last 10 minutes
	Counted  int       // polled accounts with a change that was not accepted
	Err      error     // an error in reading or keeping the state; not nil: the brake is on
}

// Braked reports whether an account with a change is refused.
func (s BrakeStatus) Braked() bool { return s.Err != nil || !s.On.IsZero() }

// Accepts reports whether changes are accepted at now. A time of acceptance beyond
// MaxAccept is ignored: a wrong clock has written it.
func (s BrakeStatus) Accepts(now time.Time) bool {
	return s.Err == nil && now.Before(s.Accepted) && s.Accepted.Sub(now) <= MaxAccept
}

// NewBrake returns the Brake of a backend. The observer may be nil. Until Open is
// called, the state is in memory only.
func NewBrake(backend string, o proxy.Observer) *Brake {
	return newBrake(backend, o, time.Now)
}

func newBrake(backend string, o proxy.Observer, now func() time.Time) *Brake {
	return &Brake{backend: backend, observer: o, seed: maphash.MakeSeed(), now: now, begun: now(), held: make(chan struct{}, 1)}
}

// Open makes the Brake keep its state in store, under the backend's name, and reads
// the state. Open may be called again. While the state cannot be read, the brake is
// on: accounts with a change are refused until a read or Accept succeeds.
func (b *Brake) Open(ctx context.Context, store Bucket) error {
	if err := b.enter(ctx); err != nil {
		return err
	}
	defer b.leave()
	b.mu.Lock()
	b.store = store
	b.mu.Unlock()
	return b.setStatus(b.load(ctx)).Err
}

var (
	errBraked       = errors.New("too many mailboxes of the backend look different, see postern uidl accept")
	errBrakeUnknown = errors.New("whether the backend's mailboxes may look different is not known")
)

// Admit counts a poll of an account, and refuses a poll with a change while the
// brake is on. After a refusal the caller must record nothing of the mailbox. Admit
// must be called once a poll, before anything is recorded. The error is a temporary
// *proxy.Refusal, or the cause of ctx. A poll without a change gets no error, and
// takes less than a microsecond.
func (b *Brake) Admit(ctx context.Context, account string, c Change) error {
	if b == nil {
		return nil
	}
	hash, slot := maphash.String(b.seed, account), b.slot()
	b.mu.Lock()
	b.polled.add(hash, slot)
	if b.removing[hash] > 0 && (c == Emptied || c == Shrunk) {
		c = Unchanged // a session of this Postern may have removed the messages
	}
	b.mu.Unlock()
	if c == Unchanged {
		return nil
	}
	if err := b.enter(ctx); err != nil {
		return err
	}
	defer b.leave()
	status := b.load(ctx)
	if status.Err != nil && ctx.Err() != nil { // the end of ctx may be the cause of the store's error
		return context.Cause(ctx)
	}
	accepted := status.Accepts(b.now())
	seen, trips := b.count(hash, slot, accepted)
	if trips && !status.Braked() {
		status = b.trip(ctx)
	}
	status = b.setStatus(status)
	b.observe(proxy.MailboxChanged{
		Backend: b.backend, Account: account, Kind: c.String(), Repeated: seen, Accepted: accepted, Refused: status.Braked(),
	})
	switch {
	case status.Err != nil:
		return &proxy.Refusal{Reason: proxy.Unavailable, Verified: true, Err: fmt.Errorf("%w: %w", errBrakeUnknown, status.Err)}
	case status.Braked():
		return &proxy.Refusal{Reason: proxy.Unavailable, Verified: true, Err: fmt.Errorf("%w %s; this one: %v", errBraked, b.backend, c)}
	}
	return nil
}

// beginRemoval reports that a session of the account has removed messages that are
// still in the cached listing. Until left is called, fewer messages in INBOX are no
// Change. A client may log in again as soon as QUIT is answered.
func (b *Brake) beginRemoval(account string) (left func()) {
	if b == nil {
		return func() {}
	}
	hash := maphash.String(b.seed, account)
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.removing == nil {
		b.removing = make(map[uint64]int)
	}
	b.removing[hash]++
	return func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		if b.removing[hash]--; b.removing[hash] == 0 {
			delete(b.removing, hash)
		}
	}
}

// count counts an account with a change, unless changes are accepted. It reports
// whether the account was counted before, and whether too many accounts are counted.
func (b *Brake) count(hash uint64, slot int64, accepted bool) (seen, trips bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if accepted {
		b.counted = recent{} // another process may have accepted the changes that this one has counted
		return false, false
	}
	seen = b.counted.add(hash, slot)
	return seen, exceeds(b.counted.count(slot), b.polled.count(slot))
}

// exceeds reports whether counted changed accounts, of polled accounts, put the brake on.
func exceeds(counted, polled int) bool {
	if polled < fewPolls {
		return counted > fewPollsChanges
	}
	return counted > fewChanges && counted*changedShare > polled
}

// Accept ends the brake and accepts all changes for d, which must be from MinAccept
// to MaxAccept, also in other processes with the same store. It returns the end of
// that time. After an error nothing has changed.
func (b *Brake) Accept(ctx context.Context, d time.Duration) (until time.Time, err error) {
	if d < MinAccept || d > MaxAccept {
		return time.Time{}, fmt.Errorf("changes can be accepted for %v to %v, not for %v", MinAccept, MaxAccept, d)
	}
	if err := b.enter(ctx); err != nil {
		return time.Time{}, err
	}
	defer b.leave()
	accepted := BrakeStatus{Accepted: b.now().Add(d).Round(0)}
	if store := b.bucket(); store != nil {
		if err := store.Put(ctx, b.backend, accepted.encode()); err != nil {
			return time.Time{}, fmt.Errorf("accept changes of %s: %w", b.backend, err)
		}
	}
	b.mu.Lock()
	b.counted = recent{}
	b.status = accepted
	b.mu.Unlock()
	b.report(accepted)
	return accepted.Accepted, nil
}

// Status returns the state as of the last poll with a change.
func (b *Brake) Status() BrakeStatus {
	slot := b.slot()
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.status
	s.Polled, s.Counted = b.polled.count(slot), b.counted.count(slot)
	return s
}

func (b *Brake) enter(ctx context.Context) error {
	select {
	case b.held <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (b *Brake) leave() { <-b.held }

func (b *Brake) bucket() Bucket {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.store
}

// load returns the state from the store, or from memory if there is no store. If an
// earlier trip could not be stored, load stores the brake now.
func (b *Brake) load(ctx context.Context) BrakeStatus {
	b.mu.Lock()
	store, status := b.store, b.status
	b.mu.Unlock()
	if store == nil {
		return status
	}
	value, err := store.Get(ctx, b.backend)
	if err != nil {
		return BrakeStatus{On: status.On, Err: err}
	}
	kept := decodeBrake(value)
	if status.Err != nil && !status.On.IsZero() && !kept.Braked() && !kept.Accepts(b.now()) {
		return b.trip(ctx)
	}
	return kept
}

// trip puts the brake on, unless another process has accepted the changes.
func (b *Brake) trip(ctx context.Context) BrakeStatus {
	now := b.now()
	on := BrakeStatus{On: now.Round(0)}
	store := b.bucket()
	if store == nil {
		return on
	}
	// The end of the client does not end the fault.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), brakeTime)
	defer cancel()
	err := store.Update(ctx, b.backend, func(old []byte) ([]byte, error) {
		if kept := decodeBrake(old); kept.Braked() || kept.Accepts(now) {
			on = kept
			return old, nil
		}
		return on.encode(), nil
	})
	if err != nil {
		on = BrakeStatus{On: now.Round(0), Err: err}
	}
	return on
}

// setStatus makes s the state in memory. It reports s if s brakes and the state before
// did not, or the reverse, and if an error has come or gone.
func (b *Brake) setStatus(s BrakeStatus) BrakeStatus {
	b.mu.Lock()
	before := b.status
	b.status = s
	b.mu.Unlock()
	if s.Braked() != before.Braked() || (s.Err == nil) != (before.Err == nil) {
		b.report(s)
	}
	return s
}

func (b *Brake) report(s BrakeStatus) {
	now := b.Status()
	b.observe(proxy.BrakeChanged{
		Backend: b.backend, On: s.Braked(), Since: s.On, Accepted: s.Accepted, Counted: now.Counted, Polled: now.Polled, Err: s.Err,
	})
}

func (b *Brake) observe(e proxy.Event) {
	if b.observer != nil {
		b.observer.Observe(e)
	}
}

func (b *Brake) slot() int64 { return int64(b.now().Sub(b.begun) / brakeSlot) }

// A brakeState is a BrakeStatus in the store, as JSON.
type brakeState struct {
	Version  int       `json:"version"`
	On       time.Time `json:"on,omitzero"`
	Accepted time.Time `json:"accepted,omitzero"`
}

func (s BrakeStatus) encode() []byte {
	value, _ := json.Marshal(brakeState{Version: brakeVersion, On: s.On.UTC(), Accepted: s.Accepted.UTC()}) // no error: years have four digits
	return value
}

// decodeBrake returns the state in a value of the store. A value that cannot be read
// gives a state with an Err, which brakes.
func decodeBrake(value []byte) BrakeStatus {
	if value == nil {
		return BrakeStatus{}
	}
	var k brakeState
	err := json.Unmarshal(value, &k)
	if err == nil && k.Version != brakeVersion {
		err = fmt.Errorf("version %d", k.Version)
	}
	if err != nil {
		return BrakeStatus{Err: fmt.Errorf("state of the brake: %w", err)}
	}
	return BrakeStatus{On: k.On, Accepted: k.Accepted}
}

// A recent is the set of accounts of the last window, by the hashes of their names.
// The zero value is empty.
type recent struct {
	slot       int64 // the present slot
	begun      int64 // first slot of young
	young, old map[uint64]int64
	slots      [brakeSlots]int // numbers of accounts, by the last slot of each account
}

// add adds an account, and reports whether the account was in the window before.
func (r *recent) add(hash uint64, slot int64) (seen bool) {
	slot = r.turn(slot)
	last, ok := r.young[hash]
	if !ok {
		if last, ok = r.old[hash]; !ok && len(r.young) >= maxRecent {
			return false
		}
	}
	if seen = ok && slot-last < brakeSlots; seen {
		r.slots[last%brakeSlots]--
	}
	if !ok || last != slot {
		if r.young == nil {
			r.young = make(map[uint64]int64)
		}
		r.young[hash] = slot
	}
	r.slots[slot%brakeSlots]++
	return seen
}

// count returns the number of accounts in the window that ends with slot.
func (r *recent) count(slot int64) (n int) {
	r.turn(slot)
	for _, k := range r.slots {
		n += k
	}
	return n
}

// turn makes slot the present slot, and removes the accounts that are too old. It
// returns the present slot, which is later than slot if another caller was faster.
func (r *recent) turn(slot int64) int64 {
	if slot <= r.slot {
		return r.slot
	}
	for passed := max(r.slot+1, slot-brakeSlots+1); passed <= slot; passed++ {
		r.slots[passed%brakeSlots] = 0
	}
	r.slot = slot
	if slot-r.begun >= brakeSlots {
		if r.old = r.young; slot-r.begun >= 2*brakeSlots {
			r.old = nil
		}
		r.young, r.begun = nil, slot
	}
	return slot
}
