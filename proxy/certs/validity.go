package certs

import (
	"crypto/x509"
	"log/slog"
	"time"
)

// A Validity is the time in which a name has a valid certificate.
type Validity struct {
	Name, Source        string
	NotBefore, NotAfter time.Time
	State               string     // in words, such as "expires in 5 days, wrong order"; with the findings of its files
	Level               slog.Level // of the worst Finding; Debug: there is none
}

// validity judges the certificate leaf for name at now. more are the Findings that do not
// depend on the time.
func validity(name, source string, leaf *x509.Certificate, more []Finding, now time.Time) Validity {
	v := Validity{name, source, leaf.NotBefore, leaf.NotAfter, "", slog.LevelDebug}
	if f := judgeTime(leaf, source, now); f.class != "" {
		v.Level = f.level
	}
	for _, f := range more {
		v.Level = max(v.Level, f.Level)
	}
	v.State = state(leaf, more, now)
	return v
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
