package guard

import (
	"fmt"
	"slices"

	"postern/proxy"
)

// Judgement implements proxy.Judge.
func (p *permit) Judgement() proxy.Judgement {
	v := p.verdict
	j := proxy.Judgement{Network: p.from.prefix(), Tier: v.Tier.String(), Repeat: v.Repeat, New: v.New}
	if d := v.Denied; d != nil {
		j.RetryAfter, j.DryRun = d.RetryAfter, p.policy.DryRun
		if d.Bucket != NoBucket {
			j.Bucket = d.Bucket.String()
		}
	}
	return j
}

// Tiers returns the values of a proxy.Judgement's Tier.
func Tiers() (all []string) {
	for t := range tiers {
		all = append(all, t.String())
	}
	return all
}

// Buckets returns the values of a proxy.Judgement's Bucket.
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
