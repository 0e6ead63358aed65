package guard

import "time"

// A bucket is kept as the generic cell rate algorithm does: by the one time at
// which all that was spent will have come back, and without a timer. A bucket
// that was never used is full at any time.

// A holding is what a bucket has for an attempt.
type holding uint8

const (
	empty     holding = iota
	unsettled         // nothing but what is reserved, and may come back
	token             // one at least
)

func (r Rate) all() time.Duration { return time.Duration(r.Burst) * r.Every }

// owed returns how long it takes until the bucket is full. It is never more
// than all: a rate may have become another one.
func (r Rate) owed(full, now time.Duration) time.Duration {
	return min(max(0, full-now), r.all())
}

// has reports what there is besides what is reserved.
func (r Rate) has(full, now time.Duration, reserved int32) holding {
	spent := r.owed(full, now) + r.Every
	switch {
	case spent+time.Duration(reserved)*r.Every <= r.all():
		return token
	case spent <= r.all():
		return unsettled
	}
	return empty
}

// spend returns when the bucket is full after one more token is gone.
func (r Rate) spend(full, now time.Duration) time.Duration {
	return now + r.owed(full, now) + r.Every
}

// tokens returns how many there are.
func (r Rate) tokens(full, now time.Duration) int {
	return int((r.all() - r.owed(full, now)) / r.Every)
}

// next returns how long it takes until there is a token.
func (r Rate) next(full, now time.Duration) time.Duration {
	return max(0, r.owed(full, now)+r.Every-r.all())
}

// times returns a budget n times as large.
func (r Rate) times(n int) Rate {
	return Rate{Burst: r.Burst * n, Every: max(1, r.Every/time.Duration(n))}
}

// shared returns the budget of a network that so many accounts use: two more
// at once for each, and as many more come back.
func (r Rate) shared(accounts int) Rate {
	return Rate{Burst: r.Burst + 2*accounts, Every: max(1, r.Every/time.Duration(1+accounts))}
}
