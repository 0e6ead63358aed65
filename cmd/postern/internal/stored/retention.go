package stored

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"postern/bridge"
	"postern/configs"
	"postern/metrics/ledger"
)

const (
	// longPause is a pause in which no user could log in. After a longer pause, or
	// after a wrong clock, no account is removed for a while.
	longPause configs.Days = 7
	afterLong configs.Days = 30

	retirementNote = "retirement"
	begunNote      = "begun/" // begins the note of an account that never logged in: the first day on which it was known
)

// A retirement is the note of the last call of Retire.
type retirement struct {
	Last  string `json:"last"`            // a day
	Until string `json:"until,omitempty"` // no account is removed before that day
}

// Retire removes the data of accounts without a login for the times in r. It returns in
// pop3 the accounts whose POP3 data it removed, and in all the accounts of which it removed
// the last ledger entry.
// An account with data that was never in the ledger counts as logged in on the day of the
// first call of Retire.
func (m *Storage) Retire(ctx context.Context, r configs.Retention, now time.Time) (pop3, all []string, err error) {
	a, err := m.open(ctx)
	if err != nil {
		return nil, nil, err
	}
	if err := a.sweepForgotten(ctx, now); err != nil {
		return nil, nil, err
	}
	rest, err := a.inGracePeriod(ctx, now)
	if err != nil {
		return nil, nil, err
	}
	last, err := a.lastDays(ctx, ledger.Day(now))
	if err != nil || rest {
		return nil, nil, err
	}
	before := ledger.Day(r.UIDLs.Before(now))
	for account, day := range last {
		if day < before {
			pop3 = append(pop3, account)
		}
	}
	slices.Sort(pop3)
	if err := a.erase(ctx, pop3); err != nil {
		return nil, nil, err
	}
	if len(pop3) > 0 {
		err := ledger.Disprove(ctx, a.ledger, func(account string) bool { _, gone := slices.BinarySearch(pop3, account); return gone })
		if err != nil {
			return nil, nil, err
		}
	}
	all, err = ledger.Expire(ctx, a.ledger, r.Ledger.Before(now))
	return pop3, all, err
}

// inGracePeriod notes the day of this call of Retire, and reports whether no account may
// be removed today.
func (a *Files) inGracePeriod(ctx context.Context, now time.Time) (rest bool, err error) {
	err = a.notes.Update(ctx, retirementNote, func(old []byte) ([]byte, error) {
		var r retirement
		if old != nil {
			if err := json.Unmarshal(old, &r); err != nil {
				return nil, fmt.Errorf("note of the last time: %w", err)
			}
		}
		today := ledger.Day(now)
		if r.Last != "" && r.Last < ledger.Day(longPause.Before(now)) {
			r.Until = ledger.Day(now.AddDate(0, 0, int(afterLong)))
		}
		r.Last, rest = today, today < r.Until
		return json.Marshal(r)
	})
	return rest, err
}

// lastDays returns the last day of each account with POP3 data.
func (a *Files) lastDays(ctx context.Context, today string) (last map[string]string, err error) {
	last = make(map[string]string)
	for _, bucket := range []bridge.Bucket{a.uidls, a.listings} {
		accounts, err := bridge.Accounts(ctx, bucket)
		if err != nil {
			return nil, err
		}
		for _, account := range accounts {
			last[account] = ""
		}
	}
	err = ledger.Entries(ctx, a.ledger, "", func(e ledger.Entry) error {
		if day, ok := last[e.Account]; ok {
			last[e.Account] = max(day, e.Last)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	begun := make(map[string]string)
	err = a.notes.Scan(ctx, begunNote, func(key string, value []byte) error {
		begun[strings.TrimPrefix(key, begunNote)] = string(value)
		return nil
	})
	if err != nil {
		return nil, err
	}
	var fresh, done []string
	for account, day := range last {
		if day != "" {
			continue
		}
		if last[account] = begun[account]; last[account] == "" {
			last[account] = today
			fresh = append(fresh, account)
		}
	}
	for account := range begun {
		if last[account] != begun[account] { // the account has logged in, or is gone
			done = append(done, account)
		}
	}
	if err := a.note(ctx, fresh, []byte(today)); err != nil {
		return nil, err
	}
	return last, a.note(ctx, done, nil)
}

// note sets the first known day of accounts that never logged in; nil removes the notes.
func (a *Files) note(ctx context.Context, accounts []string, day []byte) error {
	const together = 1000
	for some := range slices.Chunk(accounts, together) {
		keys := make([]string, len(some))
		for i, account := range some {
			keys[i] = begunNote + account
		}
		if err := a.notes.UpdateAll(ctx, keys, func(string, []byte) ([]byte, error) { return day, nil }); err != nil {
			return err
		}
	}
	return nil
}

// erase removes the POP3 data of accounts.
func (a *Files) erase(ctx context.Context, accounts []string) error {
	if err := a.markForgotten(ctx, accounts); err != nil {
		return err
	}
	if err := bridge.Erase(ctx, a.listings, a.uidls, accounts); err != nil {
		return err
	}
	return a.note(ctx, accounts, nil)
}
