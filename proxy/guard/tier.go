package guard

import (
	"fmt"
	"slices"
)

// A Tier says how well an account knows the network that an attempt comes from.
type Tier uint8

// The tiers. Each tier but KnownGood has an Account bucket of its own, so that an
// attacker who empties the bucket of one tier leaves the others.
const (
	KnownGood     Tier = iota // the account has logged in from the network within Config.KnownFor
	AreaFresh                 // the account has logged in from the area; at most 2 attempts from the network were wrong or refused in 24 h
	AreaUsed                  // the account has logged in from the area; more than 2 such attempts
	StrangerFresh             // the account has not logged in from the area; at most 2 such attempts
	StrangerUsed              // the account has not logged in from the area; more than 2 such attempts
	tiers
)

// maxFreshTries is the number of wrong or refused attempts at an account in a day
// with which a network still counts as fresh.
const maxFreshTries = 2

// Tiers returns the names of all tiers.
func Tiers() (all []string) {
	for t := range tiers {
		all = append(all, t.String())
	}
	return all
}

// String returns the tier's name in logs.
func (t Tier) String() string {
	return [...]string{"known_good", "area_fresh", "area_used", "stranger_fresh", "stranger_used", "unknown"}[min(t, tiers)]
}

// MarshalText implements encoding.TextMarshaler.
func (t Tier) MarshalText() ([]byte, error) { return []byte(t.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (t *Tier) UnmarshalText(text []byte) error {
	i := slices.Index(Tiers(), string(text))
	if i < 0 {
		return fmt.Errorf("%q is not a tier", text)
	}
	*t = Tier(i)
	return nil
}

func (t Tier) stranger() bool { return t == StrangerFresh || t == StrangerUsed }
