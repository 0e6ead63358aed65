package guard

import "postern/proxy"

// Decision implements proxy.DecisionReporter.
func (p *permit) Decision() proxy.Decision {
	f := p.found
	d := proxy.Decision{Network: p.from.prefix(), Tier: f.tier.String(), Repeat: f.repeat, New: f.first}
	if r := f.rejected; r != nil {
		d.RetryAfter, d.DryRun = r.retryAfter, p.limits.DryRun
		if r.bucket != NoBucket {
			d.Bucket = r.bucket.String()
		}
	}
	return d
}
