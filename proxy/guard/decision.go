package guard

import (
	"fmt"
	"slices"

	"postern/proxy"
)

// Decision implements proxy.DecisionReporter.
func (p *permit) Decision() proxy.Decision {
	f := p.found
	d := proxy.Decision{Network: p.from.prefix(), Tier: f.tier.String(), Repeat: f.repeat, New: f.first}
	if r := f.rejected; r != nil {
		d.RetryAfter, d.DryRun = r.retryAfter, p.policy.DryRun
		if r.bucket != NoBucket {
			d.Bucket = r.bucket.String()
		}
	}
	return d
}

// Tiers returns the values of a proxy.Decision's Tier.
func Tiers() (all []string) {
	for t := range tiers {
		all = append(all, t.String())
	}
	return all
}

// Buckets returns the values of a proxy.Decision's Bucket.
func Buckets() (all []string) {
	for b := Known; b < bucketKinds; b++ {
		all = append(all, b.String())
	}
	return all
}

// UnmarshalText implements encoding.TextUnmarshaler.
func (t *Tier) UnmarshalText(text []byte) error {
	i := slices.Index(Tiers(), string(text))
	if i < 0 {
		return fmt.Errorf("%q is not a tier", text)
	}
	*t = Tier(i)
	return nil
}

// UnmarshalText implements encoding.TextUnmarshaler.
func (b *Bucket) UnmarshalText(text []byte) error {
	for one := range bucketKinds {
		if one.String() == string(text) {
			*b = one
			return nil
		}
	}
	return fmt.Errorf("%q is not a bucket", text)
}
