package proxy

import (
	"context"
	"net/netip"
	"time"
)

// A Judgement is what a guard has found out about an attempt, for the audit log
// and for metrics. The zero value tells nothing.
type Judgement struct {
	Network    netip.Prefix  // the client's, as far as its budget goes
	Tier       string        // how well the account knows it; few fixed values
	Bucket     string        // what there was none of, so that the backend was not asked; few fixed values
	RetryAfter time.Duration // until there is one; 0: unknown
	Repeat     bool          // the same wrong password again: no guess
	New        bool          // the account's first login from the network
	DryRun     bool          // Bucket, or Repeat, refused nobody
}

// A Judge is a Permit that tells about its last attempt, once that is settled.
type Judge interface{ Judgement() Judgement }

// A Confirmer is a Permit that has a word after the backend, too.
type Confirmer interface {
	// Confirm comes when the backend has logged the client in, before Settle.
	// After a *Refusal the session is closed.
	Confirm(context.Context, *Login) error
}
