package guard

import "time"

// The token buckets use the generic cell rate algorithm, GCRA (ITU-T I.371): a
// bucket stores only the time at which it will be full again, and needs no timer. A
// bucket that was never used is full at any time. The methods of Rate get that time
// as fullAt.

// An availability is what a bucket has for an attempt.
type availability uint8

const (
	tokensExhausted availability = iota
	tokensReserved               // all tokens are reserved; some of them may be returned
	tokenAvailable               // at least one token is not reserved
)

// fillTime returns how long an empty bucket takes to become full.
func (r Rate) fillTime() time.Duration { return time.Duration(r.Burst) * r.Every }

// debt returns how long it takes until the bucket is full. It is at most fillTime,
// also when the rate has been changed since the tokens were spent.
func (r Rate) debt(fullAt, now time.Duration) time.Duration {
	return min(max(0, fullAt-now), r.fillTime())
}

// availability returns what the bucket has when some tokens are reserved.
func (r Rate) availability(fullAt, now time.Duration, reserved int32) availability {
	debt := r.debt(fullAt, now) + r.Every
	switch {
	case debt+time.Duration(reserved)*r.Every <= r.fillTime():
		return tokenAvailable
	case debt <= r.fillTime():
		return tokensReserved
	}
	return tokensExhausted
}

// spend returns the new fullAt after one more token is spent.
func (r Rate) spend(fullAt, now time.Duration) time.Duration {
	return now + r.debt(fullAt, now) + r.Every
}

// tokens returns how many tokens there are.
func (r Rate) tokens(fullAt, now time.Duration) int {
	return int((r.fillTime() - r.debt(fullAt, now)) / r.Every)
}

// next returns how long it takes until there is a token.
func (r Rate) next(fullAt, now time.Duration) time.Duration {
	return max(0, r.debt(fullAt, now)+r.Every-r.fillTime())
}

// times returns a budget n times as large.
func (r Rate) times(n int) Rate {
	return Rate{Burst: r.Burst * n, Every: max(1, r.Every/time.Duration(n))}
}

// sharedBy returns the budget of a network that some accounts use: each account adds
// two to Burst, and one token per Every.
func (r Rate) sharedBy(accounts int) Rate {
	return Rate{Burst: r.Burst + 2*accounts, Every: max(1, r.Every/time.Duration(1+accounts))}
}
