package proxy

import (
	"context"
	"fmt"
	"net/netip"
	"time"
)

// A Guard limits what one network may do, and what all networks together may do
// to one account.
type Guard interface {
	// Admit takes a new connection before its handshake, or refuses it with a
	// *Refusal. Under overload the guard may call shed later, to end the
	// connection.
	Admit(c Client, shed context.CancelCauseFunc) (Permit, error)
}

// A Permit is the guard's view of one connection. An attempt goes through it in
// this order: Try, the backend's login, CheckPostAuth where the Permit is a
// PostAuthChecker, Settle, Decision where it is a DecisionReporter.
type Permit interface {
	// Try reserves the cost of an attempt before it is made, so that parallel
	// attempts cannot outrun the count. After a *Refusal the backend must not be
	// asked. Try may wait, until ctx ends or the client leaves (Login.Watch).
	Try(context.Context, *Login) error

	// Settle ends the attempt with its outcome: nil after a login, else the error
	// of Try, of the backend or of CheckPostAuth. It is called once for every Try,
	// also when Try refused. The client must get its answer no earlier than after
	// delay.
	Settle(err error) (delay time.Duration)

	// Leave ends the Permit with its connection.
	Leave()
}

// A PostAuthChecker is a Permit that also checks logins that the backend has
// accepted.
type PostAuthChecker interface {
	// CheckPostAuth comes after the backend's login and before Settle. After an
	// error the session is closed; a *Refusal is what the client gets.
	CheckPostAuth(context.Context, *Login) error
}

// A DecisionReporter is a Permit that reports what it has decided.
type DecisionReporter interface {
	// Decision returns the decision about the last attempt, once Settle was called.
	Decision() Decision
}

// A Decision is what a guard has found out about an attempt, for logs and
// metrics. As the Err of a Refusal it says why the guard refused; Permit.Settle
// gives such a refusal the delay of a wrong password. The zero value says
// nothing.
type Decision struct {
	Network    netip.Prefix  // the client's, as wide as its budget; invalid: unknown
	Tier       string        // how well the account knows Network; few fixed values
	Bucket     string        // the budget that was empty, so that the backend was not asked; few fixed values; empty: none
	Shared     bool          // Bucket limits the attempts of all clients together: it is full because the backends are slow, or too many clients come
	RetryAfter time.Duration // until Bucket has something; 0: unknown, or as soon as another attempt or session ends
	Repeat     bool          // the same wrong password again: charged to no budget
	New        bool          // the account's first login from Network
	DryRun     bool          // the guard refused nothing, though Bucket or Repeat would have
}

// Error implements error.
func (d *Decision) Error() string {
	switch {
	case d.Bucket == "":
		return "the same wrong password again"
	case d.RetryAfter > 0:
		return fmt.Sprintf("guard: no token of %s (%s) for %s", d.Bucket, d.Tier, d.RetryAfter.Round(time.Second))
	}
	return fmt.Sprintf("guard: too many of %s (%s)", d.Bucket, d.Tier)
}
