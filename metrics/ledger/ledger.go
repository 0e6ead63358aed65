// Package ledger records by the day which accounts log in, by which protocol and
// with which version of TLS, and what their POP3 clients do with their mail. Operators
// learn from it who still needs POP3, or a version of TLS that is to be switched off, and
// who has not logged in for a year.
//
// A Ledger is a proxy.Observer that writes to a Store.
package ledger

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"postern/proxy"
)

const (
	writeEvery = time.Minute
	countEvery = time.Hour
	// maxPending is how many accounts may wait to be written. Logins of further
	// accounts are not recorded.
	maxPending = 1 << 17
	// batch is how many entries are written in one transaction.
	batch = 1000

	dayForm = time.DateOnly
)

// A Store stores values by key. A bucket of package state is one.
type Store interface {
	UpdateAll(ctx context.Context, keys []string, change func(key string, old []byte) ([]byte, error)) error
	Scan(ctx context.Context, prefix string, each func(key string, value []byte) error) error
}

// Day returns the day of t, as an Entry has it.
func Day(t time.Time) string { return t.UTC().Format(dayForm) }

// An Entry is what is recorded about an account and one protocol. Days are in UTC,
// such as 2026-11-22.
type Entry struct {
	Account  string `json:"account"`
	Protocol string `json:"protocol"`
	First    string `json:"first"`    // day of the first login; "": only refused logins without TLS
	Last     string `json:"last"`     // day of the last login
	Logins   int64  `json:"logins"`   // successful ones since First
	TLS      string `json:"tls"`      // the oldest version used on the last day: 1.0, 1.1, 1.2, 1.3, none, or yes if it is not known
	Days     int    `json:"days"`     // days with a login, of the 30 up to Last; 0: not counted yet
	Networks int    `json:"networks"` // an estimate, of the 30 to 60 days up to Last; 0: not counted yet

	Plaintext      string `json:"plaintext,omitempty"`       // day of the last login that was refused because it came without TLS
	PlaintextTries int64  `json:"plaintext_tries,omitempty"` // number of them

	Sessions  *Sessions  `json:"sessions,omitempty"`  // nil: no POP3 session has ended yet
	Migration *Migration `json:"migration,omitempty"` // nil: nothing is known
}

// Sessions is what the POP3 sessions of an account have done that ended on the day of Since
// or later.
type Sessions struct {
	Since    string `json:"since"`
	Ended    int64  `json:"ended"`          // number of sessions
	Messages int64  `json:"messages"`       // downloaded
	Octets   int64  `json:"octets"`         // of the downloaded messages
	Deleted  int64  `json:"deleted"`        // messages
	Habit    string `json:"habit"`          // Habit...
	Left     *int   `json:"left,omitempty"` // messages in the maildrop after the last session; nil: not known
}

// Seen returns the day of the last login or of the last one that was refused because it
// came without TLS.
func (e Entry) Seen() string { return max(e.Last, e.Plaintext) }

// recorded returns the day of the last thing that is recorded.
func (e Entry) recorded() string {
	day := e.Seen()
	if m := e.Migration; m != nil {
		for _, at := range []time.Time{m.Since, m.Learnt.At, m.Compare.At, m.Shadow.At, m.Failed.At} {
			if !at.IsZero() {
				day = max(day, Day(at))
			}
		}
	}
	return day
}

// A Ledger is a proxy.Observer. It must be made by New.
type Ledger struct {
	// KnownElsewhere reports whether an account exists that has not logged in since there
	// is a ledger; nil: none. Refused logins of other accounts are not recorded: clients
	// choose their names.
	KnownElsewhere func(account string) bool
	// Off reports whether POP3 is switched off for an account; nil: for none.
	Off func(account string) bool
	// Days stores the days that are observed; nil: they are not stored.
	Days Store

	store Store
	log   *slog.Logger
	now   func() time.Time

	mu      sync.Mutex
	pending map[id]pending
	counts  Counts
	known   knownNames
	noted   time.Time // the end of the time that is noted in Days; zero: Run has not begun
	history []Observed
}

type id struct{ account, protocol string }

// A pending is what was recorded since the last write.
type pending struct {
	Usage
	skippable uint32 // of the first session: see Session.skippable
}

// merge adds what came later.
func (p *pending) merge(later pending) {
	p.skip(later.skippable)
	if p.Sessions == 0 {
		p.skippable = later.skippable
	}
	p.Usage.merge(later.Usage)
}

// Counts counts the accounts that have logged in within the last 30 days, and those that
// were refused within that time because they came without TLS.
type Counts struct {
	Protocols map[string]int    // by protocol
	TLS       map[[2]string]int // by protocol and Entry.TLS
	Habits    map[string]int    // of POP3, by Sessions.Habit
	Plaintext map[string]int    // that were refused without TLS, by protocol
	Stages    map[string]int    // that have ever used POP3, by stage
	Since     time.Time         // when they were counted; zero: not yet
}

// New returns a Ledger that writes to store. now is time.Now if it is nil.
func New(store Store, log *slog.Logger, now func() time.Time) *Ledger {
	if now == nil {
		now = time.Now
	}
	return &Ledger{store: store, log: log, now: now, pending: make(map[id]pending), known: newKnownNames()}
}

// Observe implements proxy.Observer.
func (l *Ledger) Observe(e proxy.Event) {
	switch e := e.(type) {
	case proxy.Opened:
		version := uint16(0)
		if e.Client.TLS != nil {
			version = e.Client.TLS.Version
		}
		var login Usage
		login.Login(l.now(), e.Account, e.Client.Addr.Addr(), version)
		l.add(id{e.Account, e.Client.Protocol}, pending{Usage: login}, true)
	case proxy.Closed:
		if e.Client.Protocol != proxy.POP3 || e.Account == "" {
			return
		}
		s := Session{e.Totals, e.End == proxy.EndClientQuit}
		end := pending{skippable: s.skippable()}
		end.End(l.now(), s)
		end.Migration = s.migration(l.now(), e.Backend)
		l.add(id{e.Account, e.Client.Protocol}, end, false)
	case proxy.UIDLsLearnt:
		l.addMigration(e.Account, learnt(l.now(), e))
	case proxy.ShadowCompared:
		l.addMigration(e.Account, shadowed(l.now(), e))
	case proxy.Attempt:
		if proxy.ReasonOf(e.Err) != proxy.Plaintext || e.Account == "" ||
			!l.Known(e.Account) && (l.KnownElsewhere == nil || !l.KnownElsewhere(e.Account)) {
			return
		}
		var refused Usage
		refused.RefusePlaintext(l.now())
		l.add(id{e.Account, e.Client.Protocol}, pending{Usage: refused}, false)
	}
}

func (l *Ledger) addMigration(account string, m Migration) {
	if account != "" && m != (Migration{}) {
		l.add(id{account, proxy.POP3}, pending{Usage: Usage{Migration: m}}, false)
	}
}

// add adds to what is not written yet. A login makes an account known.
func (l *Ledger) add(who id, some pending, login bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if login {
		l.known.add(who.account)
	}
	p, ok := l.pending[who]
	if !ok && len(l.pending) >= maxPending {
		return
	}
	p.merge(some)
	l.pending[who] = p
}

// Run writes every minute, and counts accounts and notes the day every hour, until ctx ends.
// Then it writes and notes once more.
func (l *Ledger) Run(ctx context.Context) {
	write, count := time.NewTicker(writeEvery), time.NewTicker(countEvery)
	defer write.Stop()
	defer count.Stop()
	l.logCount(ctx)
	defer l.logObserved(context.WithoutCancel(ctx))
	for {
		select {
		case <-write.C:
			l.logWrite(ctx)
		case <-count.C:
			l.logCount(ctx)
		case <-ctx.Done():
			l.logWrite(context.WithoutCancel(ctx))
			return
		}
	}
}

// logWrite writes, and logs a failure.
func (l *Ledger) logWrite(ctx context.Context) {
	if err := l.Write(ctx); err != nil && ctx.Err() == nil {
		l.log.Warn("ledger write failed", "err", err)
	}
}

// logCount counts and notes the day, and logs a failure.
func (l *Ledger) logCount(ctx context.Context) {
	if err := l.count(ctx); err != nil && ctx.Err() == nil {
		l.log.Warn("ledger count failed", "err", err)
	}
	l.logObserved(ctx)
}

// logObserved notes the day, and logs a failure.
func (l *Ledger) logObserved(ctx context.Context) {
	if err := l.observed(ctx); err != nil && ctx.Err() == nil {
		l.log.Warn("ledger has not noted the day", "err", err)
	}
}

// Write writes what was recorded since the last call. What cannot be written is written by
// the next call.
func (l *Ledger) Write(ctx context.Context) error {
	l.mu.Lock()
	all := l.pending
	l.pending = make(map[id]pending)
	l.mu.Unlock()
	byKey := make(map[string]id, len(all))
	for who := range all {
		byKey[key(who)] = who
	}
	var errs []error
	for keys := range slices.Chunk(slices.Sorted(maps.Keys(byKey)), batch) {
		err := l.store.UpdateAll(ctx, keys, func(key string, old []byte) ([]byte, error) {
			return update(old, all[byKey[key]])
		})
		if err != nil {
			errs = append(errs, err)
			l.restore(keys, byKey, all)
		}
	}
	return errors.Join(errs...)
}

// restore makes pending again what could not be written.
func (l *Ledger) restore(keys []string, byKey map[string]id, all map[id]pending) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, key := range keys {
		who := byKey[key]
		p := all[who]
		if later, ok := l.pending[who]; ok {
			p.merge(later)
		}
		l.pending[who] = p
	}
}

// key returns the key of an entry. It begins with the account, so that the entries
// of an account are next to each other. An account with a NUL cannot log in.
func key(who id) string { return who.account + "\x00" + who.protocol }

// update adds to a stored entry. An entry that cannot be read is begun anew: no login
// depends on it.
func update(old []byte, some pending) ([]byte, error) {
	var p pending
	if old != nil && p.decode(old) != nil {
		p = pending{}
	}
	p.merge(some)
	return p.encode(), nil
}

// Entries calls each for all entries of an account, or of all accounts if account is
// empty, in the order of accounts. It ends with the first error of each. What is not
// written yet is missing.
func Entries(ctx context.Context, store Store, account string, each func(Entry) error) error {
	prefix := ""
	if account != "" {
		prefix = account + "\x00"
	}
	return store.Scan(ctx, prefix, func(key string, value []byte) error {
		var u Usage
		account, protocol, ok := strings.Cut(key, "\x00")
		if !ok || u.decode(value) != nil {
			return nil // the next login begins it anew
		}
		return each(u.Entry(account, protocol))
	})
}

// Forget removes the entries of an account and returns their number.
func Forget(ctx context.Context, store Store, account string) (int, error) {
	return remove(ctx, store, account, func(Entry) bool { return true })
}

// Expire removes the entries of which nothing is recorded on the day of before or later, and
// returns the accounts that have no entry any more.
func Expire(ctx context.Context, store Store, before time.Time) (gone []string, err error) {
	day := Day(before)
	left := make(map[string]bool)
	err = Entries(ctx, store, "", func(e Entry) error {
		left[e.Account] = left[e.Account] || e.recorded() >= day
		return nil
	})
	if err != nil {
		return nil, err
	}
	if _, err := remove(ctx, store, "", func(e Entry) bool { return e.recorded() < day }); err != nil {
		return nil, err
	}
	for account, some := range left {
		if !some {
			gone = append(gone, account)
		}
	}
	slices.Sort(gone)
	return gone, nil
}

// remove removes the entries that match and returns their number.
func remove(ctx context.Context, store Store, account string, match func(Entry) bool) (n int, err error) {
	var keys []string
	err = Entries(ctx, store, account, func(e Entry) error {
		if match(e) {
			keys = append(keys, key(id{e.Account, e.Protocol}))
		}
		return nil
	})
	if err != nil {
		return 0, err
	}
	for some := range slices.Chunk(keys, batch) {
		err := store.UpdateAll(ctx, some, func(key string, old []byte) ([]byte, error) {
			var u Usage
			account, protocol, _ := strings.Cut(key, "\x00")
			if u.decode(old) == nil && !match(u.Entry(account, protocol)) {
				return old, nil // a login came meanwhile
			}
			return nil, nil
		})
		if err != nil {
			return n, err
		}
		n += len(some)
	}
	return n, nil
}

// Counts returns the last count, which is up to an hour old.
func (l *Ledger) Counts() Counts {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.counts
}

// add counts an entry that was seen on day or later.
func (c *Counts) add(e Entry, day string) {
	if e.Plaintext >= day {
		c.Plaintext[e.Protocol]++
	}
	if e.Last < day {
		return
	}
	c.Protocols[e.Protocol]++
	c.TLS[[2]string{e.Protocol, e.TLS}]++
	switch {
	case e.Protocol != proxy.POP3:
	case e.Sessions == nil:
		c.Habits[HabitUnknown]++
	default:
		c.Habits[e.Sessions.Habit]++
	}
}

// count counts the accounts. Known then has only those that the store still has.
func (l *Ledger) count(ctx context.Context) error {
	now := l.now()
	day := Day(now.AddDate(0, 0, -30))
	c := Counts{Protocols: make(map[string]int), TLS: make(map[[2]string]int), Habits: make(map[string]int), Plaintext: make(map[string]int), Stages: make(map[string]int), Since: now}
	conditions := Conditions{Now: now, Since: day, Off: l.Off}
	all := newKnownNames()
	err := Entries(ctx, l.store, "", func(e Entry) error {
		all.add(e.Account)
		c.add(e, day)
		if e.Protocol == proxy.POP3 {
			if stage := conditions.Stage(e); stage != "" {
				c.Stages[stage]++
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.counts = c
	l.setKnown(all)
	return nil
}
