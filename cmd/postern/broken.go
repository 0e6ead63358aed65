package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"

	"postern/bridge"
	"postern/configs"
	"postern/metrics"
	"postern/proxy"
	"postern/proxy/state"
)

// What can be wrong with the files of the state while Postern runs: one of them
// is broken (see state.Bolt), or the record is not the one that the cache was
// written beside. Then it was lost: a record that is empty, or of another
// Postern, has no word of accounts whose UIDLs were shown.

// identityBucket is of a file; in it, identityKey has a random name of the
// record: in record.db its own, in cache.db that of the record beside it. A
// backup of the record has its name.
const (
	identityBucket = "meta"
	identityKey    = "record"
)

// identify compares the names of the files, gives one to those that have none,
// and sets a.lost. After an error nothing is known of it.
func (a *archive) identify(ctx context.Context) error {
	ours, beside := a.record.Bucket(identityBucket), a.cache.Bucket(identityBucket)
	record, err := ours.Get(ctx, identityKey)
	if err != nil {
		return err
	}
	cache, err := beside.Get(ctx, identityKey)
	if err != nil {
		return err
	}
	if record == nil {
		empty, err := a.recordIsEmpty(ctx)
		if err != nil {
			return err
		}
		record = []byte(rand.Text())
		switch {
		case !empty && cache != nil: // a backup from before there were names
			record = cache
		case empty && cache == nil: // from before there were names, if the cache has accounts
			cache = []byte(rand.Text())
			if err := beside.Put(ctx, identityKey, cache); err != nil {
				return err
			}
		}
		if err := ours.Put(ctx, identityKey, record); err != nil {
			return err
		}
	}
	if cache != nil && string(cache) != string(record) {
		return a.countLost(ctx)
	}
	return a.accept(ctx)
}

// countLost sets a.lost, of a record that is another than before. If nothing is
// lost any more, it is accepted.
func (a *archive) countLost(ctx context.Context) error {
	lost, err := a.unrecorded(ctx)
	if err != nil {
		return err
	}
	if a.lost.Store(int64(len(lost))); len(lost) > 0 {
		return nil
	}
	return a.accept(ctx)
}

// accept makes the record the one that the cache was written beside.
func (a *archive) accept(ctx context.Context) error {
	record, err := a.record.Bucket(identityBucket).Get(ctx, identityKey)
	if err != nil {
		return err
	}
	beside := a.cache.Bucket(identityBucket)
	if cache, err := beside.Get(ctx, identityKey); err != nil || string(cache) == string(record) {
		return err
	}
	if err := beside.Put(ctx, identityKey, record); err != nil {
		return err
	}
	a.lost.Store(0)
	return nil
}

var errOne = errors.New("there is one")

// recordIsEmpty reports whether nothing was ever written into the record.
func (a *archive) recordIsEmpty(ctx context.Context) (bool, error) {
	for _, shelf := range []bridge.Shelf{a.uidls, a.ledger, a.notes} {
		err := shelf.Scan(ctx, "", func(string, []byte) error { return errOne })
		if err != nil {
			if errors.Is(err, errOne) {
				err = nil
			}
			return false, err
		}
	}
	return true, nil
}

// unrecorded returns the accounts that the cache knows and the record does not.
func (a *archive) unrecorded(ctx context.Context) (accounts []string, err error) {
	known, err := bridge.Accounts(ctx, a.listings)
	if err != nil {
		return nil, err
	}
	recorded, err := bridge.Accounts(ctx, a.uidls)
	if err != nil {
		return nil, err
	}
	has := make(map[string]bool, len(recorded))
	for _, account := range recorded {
		has[account] = true
	}
	for _, account := range known {
		if !has[account] {
			accounts = append(accounts, account)
		}
	}
	return accounts, nil
}

// forgetLost forgets the accounts that match whose record was lost, and returns
// how many they were. When none is left, nothing is lost any more.
func (a *archive) forgetLost(ctx context.Context, match func(account string) bool) (n int, err error) {
	if a.lost.Load() == 0 {
		return 0, nil
	}
	lost, err := a.unrecorded(ctx)
	if err != nil {
		return 0, err
	}
	var some []string
	for _, account := range lost {
		if match(account) {
			some = append(some, account)
		}
	}
	if err := bridge.Erase(ctx, a.listings, a.uidls, some); err != nil {
		return 0, err
	}
	return len(some), a.countLost(ctx)
}

// recount counts again what was lost, after records have come.
func (a *archive) recount(ctx context.Context) error {
	if a == nil || a.lost.Load() == 0 {
		return nil
	}
	return a.countLost(ctx)
}

// lostRecord is said of a record that was lost, lostRemedy what to do.
const (
	lostRecord = "the record of unique ids was lost"
	lostRemedy = "stop Postern and put a backup back (postern state restore), or let them be computed anew (pop3.uidl_on_lost_state: recompute, or postern uidl forget --all)"

	// damagedRemedy is for a record that cannot be opened.
	damagedRemedy = "put a backup back (postern state restore FILE); without one, move the file away, and see pop3.uidl_on_lost_state"
)

// reportLost says once that the cache was begun anew, and with it what the
// login guard knew, or that the record was lost. If the operator wants that, it
// is begun anew.
func (s *site) reportLost(ctx context.Context, cfg *configs.Config) error {
	a := s.memory.archive
	if a == nil {
		return nil
	}
	if a.unidentified != nil {
		s.log.Warn("it is not known whether the record of unique ids is the one that it was", "err", a.unidentified)
	}
	if err := a.cache.Renewed(); err != nil {
		s.log.Warn("state was damaged and is begun anew: the login guard knows nobody, POP3 logins take longer",
			"file", cacheFile, "kept", cacheFile+".damaged", "err", err)
	}
	n := a.lost.Load()
	if n == 0 {
		return nil
	}
	recompute := cfg.POP3.UIDLOnLostState == "recompute"
	s.log.Error(lostRecord, "file", recordFile, "accounts", n, "begun_anew", recompute, "remedy", lostRemedy)
	if recompute {
		return a.accept(ctx)
	}
	return nil
}

// broken returns why a file of the state that is open is broken, or nil.
func (m *memory) broken() error {
	if a := m.files.Load(); a != nil {
		return errors.Join(a.record.Err(), a.cache.Err())
	}
	return nil
}

// reportBroken says once of each file that it is broken.
func (s *site) reportBroken(ctx context.Context) {
	a := s.memory.archive
	if a == nil {
		return
	}
	record, cache := a.record.Broken(), a.cache.Broken()
	for {
		select {
		case <-record:
			record = nil
			s.log.Error("state is broken: POP3 clients are told to come again later", "file", recordFile, "err", a.record.Err())
		case <-cache:
			cache = nil
			s.log.Error("state is broken: POP3 logins take longer", "file", cacheFile, "err", a.cache.Err())
		case <-ctx.Done():
			return
		}
	}
}

// whileWhole returns work that ends when the file is broken that it writes: it
// would say so for ever.
func (s *site) whileWhole(file func(*archive) *state.Bolt, work func(context.Context)) func(context.Context) {
	return func(ctx context.Context) {
		if a := s.memory.archive; a != nil {
			whole, stop := context.WithCancel(ctx)
			defer stop()
			go func() {
				defer stop()
				select {
				case <-file(a).Broken():
				case <-whole.Done():
				}
			}()
			ctx = whole
		}
		work(ctx)
	}
}

func recordOf(a *archive) *state.Bolt { return a.record }

func cacheOf(a *archive) *state.Bolt { return a.cache }

// recordUsable says why POP3 cannot be served, as far as the record decides.
func (s *site) recordUsable(h *house) error {
	a := s.memory.files.Load()
	if a == nil || a.record.Err() == nil {
		return nil
	}
	for _, l := range h.cfg.Listeners {
		if l.Protocol == proxy.POP3 {
			return fmt.Errorf("%s is broken: POP3 clients are told to come again later until Postern is restarted", recordFile)
		}
	}
	return nil
}

// stateDegraded says what of the state somebody should look at.
func (s *site) stateDegraded() error {
	a := s.memory.files.Load()
	switch {
	case a == nil:
		return nil
	case a.record.Err() != nil:
		return fmt.Errorf("%s is broken until Postern is restarted", recordFile)
	case a.cache.Err() != nil:
		return fmt.Errorf("%s is broken: POP3 logins take longer until Postern is restarted", cacheFile)
	case a.lost.Load() > 0:
		return fmt.Errorf("%s: %s has nothing of %d accounts that POP3 clients use", lostRecord, recordFile, a.lost.Load())
	}
	return nil
}

// stateGauges is the files of the state as metrics show them.
func (s *site) stateGauges() metrics.State {
	a := s.memory.files.Load()
	if a == nil {
		return metrics.State{}
	}
	return metrics.State{
		Broken: map[string]bool{recordFile: a.record.Err() != nil, cacheFile: a.cache.Err() != nil},
		Lost:   int(a.lost.Load()),
	}
}
