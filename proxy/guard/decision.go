package guard

import "postern/proxy"

// Decision implements proxy.DecisionReporter.
func (p *permit) Decision() proxy.Decision {
	f := p.found
	d := proxy.Decision{Network: p.from.prefix(), Tier: f.tier.String(), Repeat: f.repeat, New: f.first}
	if f.rejected {
		d.RetryAfter, d.DryRun = f.retryAfter, p.limits.DryRun
		if f.bucket != NoBucket {
			d.Bucket, d.Shared = f.bucket.String(), f.bucket == Attempts
		}
	}
	return d
}
