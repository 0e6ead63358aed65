// Package ledger records by the day which accounts log in, by which protocol and
// with which version of TLS. Operators learn from it who still needs POP3, or a
// version of TLS that is to be switched off, and who has not logged in for a year.
//
// A Ledger is a proxy.Observer that writes to a Store.
package ledger

import (
	"context"
	"crypto/tls"
	"encoding/json"
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
	First    string `json:"first"`  // day of the first login
	Last     string `json:"last"`   // day of the last login
	Logins   int64  `json:"logins"` // successful ones since First
	TLS      string `json:"tls"`    // the oldest version used on the last day: 1.0, 1.1, 1.2, 1.3 or none
}

// A Ledger is a proxy.Observer. It must be made by New.
type Ledger struct {
	store Store
	log   *slog.Logger
	now   func() time.Time

	mu      sync.Mutex
	pending map[id]logins
	counts  Counts
	known   knownNames
}

type id struct{ account, protocol string }

// logins are the logins of an account since the last write.
type logins struct {
	day string // of the last one
	n   int64
	tls uint16 // the oldest version of day; 0: none
}

// Counts counts the accounts that have logged in within the last 30 days.
type Counts struct {
	Protocols map[string]int    // by protocol
	TLS       map[[2]string]int // by protocol and Entry.TLS
	Since     time.Time         // when they were counted; zero: not yet
}

// New returns a Ledger that writes to store. now is time.Now if it is nil.
func New(store Store, log *slog.Logger, now func() time.Time) *Ledger {
	if now == nil {
		now = time.Now
	}
	return &Ledger{store: store, log: log, now: now, pending: make(map[id]logins), known: newKnownNames()}
}

// Observe implements proxy.Observer.
func (l *Ledger) Observe(e proxy.Event) {
	opened, ok := e.(proxy.Opened)
	if !ok {
		return
	}
	day := Day(l.now())
	who := id{opened.Account, opened.Client.Protocol}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.known.add(who.account)
	s, known := l.pending[who]
	if !known && len(l.pending) >= maxPending {
		return
	}
	if s.day != day {
		s.day, s.tls = day, 0
	}
	s.n++
	if state := opened.Client.TLS; state != nil && (s.tls == 0 || state.Version < s.tls) {
		s.tls = state.Version
	}
	l.pending[who] = s
}

// Run writes every minute and counts accounts every hour, until ctx ends. Then it
// writes once more.
func (l *Ledger) Run(ctx context.Context) {
	write, count := time.NewTicker(writeEvery), time.NewTicker(countEvery)
	defer write.Stop()
	defer count.Stop()
	l.logCount(ctx)
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

// logCount counts, and logs a failure.
func (l *Ledger) logCount(ctx context.Context) {
	if err := l.count(ctx); err != nil && ctx.Err() == nil {
		l.log.Warn("ledger count failed", "err", err)
	}
}

// Write writes the logins since the last call. Logins that cannot be written are
// written by the next call.
func (l *Ledger) Write(ctx context.Context) error {
	l.mu.Lock()
	pending := l.pending
	l.pending = make(map[id]logins)
	l.mu.Unlock()
	byKey := make(map[string]id, len(pending))
	for who := range pending {
		byKey[key(who)] = who
	}
	var errs []error
	for keys := range slices.Chunk(slices.Sorted(maps.Keys(byKey)), batch) {
		err := l.store.UpdateAll(ctx, keys, func(key string, old []byte) ([]byte, error) {
			return merge(old, byKey[key], pending[byKey[key]])
		})
		if err != nil {
			errs = append(errs, err)
			l.restore(keys, byKey, pending)
		}
	}
	return errors.Join(errs...)
}

// restore makes logins pending again that could not be written.
func (l *Ledger) restore(keys []string, byKey map[string]id, pending map[id]logins) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, key := range keys {
		who := byKey[key]
		s, known := l.pending[who]
		if !known {
			l.pending[who] = pending[who]
			continue
		}
		was := pending[who]
		s.n += was.n
		if s.day == was.day && (s.tls == 0 || was.tls != 0 && was.tls < s.tls) {
			s.tls = was.tls
		}
		l.pending[who] = s
	}
}

// key returns the key of an entry. It begins with the account, so that the entries
// of an account are next to each other. An account with a NUL cannot log in.
func key(who id) string { return who.account + "\x00" + who.protocol }

// merge adds logins to an entry. An entry that cannot be read is begun anew: no
// login depends on it.
func merge(old []byte, who id, s logins) ([]byte, error) {
	var e Entry
	if old == nil || json.Unmarshal(old, &e) != nil {
		e = Entry{First: s.day}
	}
	version := strings.TrimPrefix(tls.VersionName(s.tls), "TLS ")
	if s.tls == 0 {
		version = "none"
	}
	if e.Last != s.day || version < e.TLS {
		e.TLS = version
	}
	e.Account, e.Protocol, e.Last = who.account, who.protocol, s.day
	e.Logins += s.n
	return json.Marshal(e)
}

// Entries calls each for all entries of an account, or of all accounts if account is
// empty, in the order of accounts. It ends with the first error of each. Logins that
// are not written yet are missing.
func Entries(ctx context.Context, store Store, account string, each func(Entry) error) error {
	prefix := ""
	if account != "" {
		prefix = account + "\x00"
	}
	return store.Scan(ctx, prefix, func(_ string, value []byte) error {
		var e Entry
		if json.Unmarshal(value, &e) != nil {
			return nil // the next login begins it anew
		}
		return each(e)
	})
}

// Forget removes the entries of an account and returns their number.
func Forget(ctx context.Context, store Store, account string) (int, error) {
	return remove(ctx, store, account, func(Entry) bool { return true })
}

// Expire removes the entries whose last login was before the day of before, and
// returns the accounts that have no entry any more.
func Expire(ctx context.Context, store Store, before time.Time) (gone []string, err error) {
	day := Day(before)
	left := make(map[string]bool)
	err = Entries(ctx, store, "", func(e Entry) error {
		left[e.Account] = left[e.Account] || e.Last >= day
		return nil
	})
	if err != nil {
		return nil, err
	}
	if _, err := remove(ctx, store, "", func(e Entry) bool { return e.Last < day }); err != nil {
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
		err := store.UpdateAll(ctx, some, func(_ string, old []byte) ([]byte, error) {
			var e Entry
			if json.Unmarshal(old, &e) == nil && !match(e) {
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

// count counts the accounts. Known then has only those that the store still has.
func (l *Ledger) count(ctx context.Context) error {
	now := l.now()
	day := Day(now.AddDate(0, 0, -30))
	c := Counts{Protocols: make(map[string]int), TLS: make(map[[2]string]int), Since: now}
	all := newKnownNames()
	err := Entries(ctx, l.store, "", func(e Entry) error {
		all.add(e.Account)
		if e.Last >= day {
			c.Protocols[e.Protocol]++
			c.TLS[[2]string{e.Protocol, e.TLS}]++
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
