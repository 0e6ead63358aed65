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
	// After a pause of more than longPause, in which nobody could come, or after
	// a clock that was wrong, nobody is forgotten for a while.
	longPause configs.Days = 7
	afterLong configs.Days = 30

	retirementNote = "retirement"
	begunNote      = "begun/" // and an account: the day since when it is known, if it never came
)

// A retirement is what is noted of the last time.
type retirement struct {
	Last  string `json:"last"`            // a day
	Until string `json:"until,omitempty"` // nobody is forgotten before that day
}

// Retire forgets who has not logged in for as long as r says, and returns of
// whom POP3 and the ledger have nothing any more. Who was never in the ledger,
// but has something, is as one who came at the first time this is called.
func (m *Storage) Retire(ctx context.Context, r configs.Retention, now time.Time) (pop3, all []string, err error) {
	a, err := m.open(ctx)
	if err != nil {
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
	all, err = ledger.Expire(ctx, a.ledger, r.Ledger.Before(now))
	return pop3, all, err
}

// inGracePeriod notes that this is a time to forget, and reports whether nobody may be
// forgotten all the same.
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

// lastDays returns the last day of each account of which POP3 has something.
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
		if last[account] != begun[account] { // it has come, or is gone
			done = append(done, account)
		}
	}
	if err := a.note(ctx, fresh, []byte(today)); err != nil {
		return nil, err
	}
	return last, a.note(ctx, done, nil)
}

// note sets since when accounts are known that never came; nil: the note is removed.
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

// erase forgets what POP3 has of accounts.
func (a *Files) erase(ctx context.Context, accounts []string) error {
	if err := bridge.Erase(ctx, a.listings, a.uidls, accounts); err != nil {
		return err
	}
	return a.note(ctx, accounts, nil)
}
