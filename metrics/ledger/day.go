package ledger

import (
	"context"
	"encoding/json"
	"time"
)

// keepDays is how long days are kept, and enough is how much of a day must have been
// observed: in the rest clients try again.
const (
	keepDays = 400
	enough   = 20 * time.Hour
)

// An Observed is a day, in UTC, on which a Ledger has observed sessions.
type Observed struct {
	Day     string         `json:"day"`
	Seconds int64          `json:"seconds"`          // of the day that were observed; a crash loses up to an hour
	Stages  map[string]int `json:"stages,omitempty"` // accounts, by stage, at the end of the day
}

// Enough reports whether so much of the day was observed that an account that uses POP3
// each day was seen.
func (o Observed) Enough() bool { return time.Duration(o.Seconds)*time.Second >= enough }

// ObservedDays returns the observed days in a store of them from the day since on, in their order.
func ObservedDays(ctx context.Context, store Store, since string) (all []Observed, err error) {
	err = store.Scan(ctx, "", func(key string, value []byte) error {
		var o Observed
		if key >= since && json.Unmarshal(value, &o) == nil {
			o.Day = key
			all = append(all, o)
		}
		return nil
	})
	return all, err
}

// observed notes the time since the last call, and the stages of today. The days are kept
// for keepDays.
func (l *Ledger) observed(ctx context.Context) error {
	if l.Days == nil {
		return nil
	}
	now := l.now().UTC()
	l.mu.Lock()
	begun, stages := l.noted, l.counts.Stages
	l.mu.Unlock()
	if begun.IsZero() || begun.After(now) || now.Sub(begun) > 2*countEvery {
		begun = now // the first call, or the clock was set
	}
	seconds := map[string]int64{Day(now): 0}
	for begun.Before(now) {
		end := begun.Truncate(24 * time.Hour).Add(24 * time.Hour)
		if end.After(now) {
			end = now
		}
		seconds[Day(begun)] += int64(end.Sub(begun).Round(time.Second) / time.Second)
		begun = end
	}
	var keys []string
	for day := range seconds {
		keys = append(keys, day)
	}
	old := Day(now.AddDate(0, 0, -keepDays))
	err := l.Days.Scan(ctx, "", func(key string, _ []byte) error {
		if key < old {
			keys = append(keys, key)
		}
		return nil
	})
	if err != nil {
		return err
	}
	err = l.Days.UpdateAll(ctx, keys, func(day string, value []byte) ([]byte, error) {
		more, ok := seconds[day]
		if !ok {
			return nil, nil // too old
		}
		var o Observed
		_ = json.Unmarshal(value, &o) // a day that cannot be read is begun anew
		o.Day, o.Seconds = day, min(o.Seconds+more, 24*60*60)
		if day == Day(now) && stages != nil {
			o.Stages = stages
		}
		return json.Marshal(o)
	})
	if err != nil {
		return err
	}
	history, err := ObservedDays(ctx, l.Days, Day(now.AddDate(0, 0, 1-HistoryDays)))
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.noted, l.history = now, history
	return nil
}

// HistoryDays is how many days History returns at most.
const HistoryDays = 90

// History returns the last observed days, as of the last hour.
func (l *Ledger) History() []Observed {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.history
}
