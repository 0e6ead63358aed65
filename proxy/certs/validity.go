package certs

import "time"

// A Validity is the time in which a name has a valid certificate.
type Validity struct {
	Name, Source        string
	NotBefore, NotAfter time.Time
}

// Left returns the remaining part of the lifetime at now: from 1 to 0, and
// negative when it is over.
func (v Validity) Left(now time.Time) float64 {
	life := v.NotAfter.Sub(v.NotBefore)
	if life <= 0 {
		return -1
	}
	return float64(v.NotAfter.Sub(now)) / float64(life)
}

// AllNames is the Name of a Validity that stands for all names of its source.
const AllNames = "*"
