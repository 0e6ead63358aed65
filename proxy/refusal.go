package proxy

import "errors"

// A Reason is why a client is refused. The list is closed, and the table reasons
// says everything that observers need to know about each: the word in logs, the
// result in metrics and the row of the status page. The words that clients get are
// each protocol's own (package front).
type Reason uint8

// The reasons.
const (
	Wrong           Reason = iota + 1 // user or password are wrong: the backend, the policy server, or the guard (the same wrong password again) says so
	Malformed                         // such credentials can never be right: NUL, CR, a foreign authzid, bad base64
	Unsupported                       // no such mechanism
	ProtocolOff                       // the account may not use this protocol
	Suspended                         // the account may use nothing: expired, disabled
	Unusable                          // the mailbox lacks what the configuration needs
	Plaintext                         // no TLS: a password in the clear is never taken
	Throttled                         // the guard: too many wrong passwords
	TooMany                           // too many connections
	TooManySessions                   // of this account, from this network
	Unavailable                       // the backend is away, or cannot say
	Maintenance                       // announced: the operator's text says until when
	MailboxFull                       // too full to be used at all
	TooSoon                           // RFC 2449 section 8.1.1: the account has logged in a moment ago
	InUse                             // RFC 2449 section 8.1.2: the maildrop is locked
	TimedOut                          // the client was silent for too long
	ShuttingDown                      // Postern stops
	Kicked                            // an operator ended it
	Internal                          // a bug of ours
	POP3Ended                         // as ProtocolOff: the account's last day of POP3 is over. A new reason comes last: an upgrade hands the numbers over (metrics/outcomes)
)

// The results of attempts to log in: the label result of metrics.
const (
	ResultOK          = "ok"
	ResultWrong       = "invalid_credentials"
	ResultTemporary   = "temporary_failure" // clients try again by themselves
	ResultThrottled   = "rate_limited"      // the same, after a limit of Postern's own
	ResultMalformed   = "malformed"
	ResultUnsupported = "unsupported_mechanism"
	ResultPlaintext   = "tls_required"
	ResultForbidden   = "forbidden"
	ResultClientAbort = "client_abort" // the client left before its answer
)

// Results returns all results of attempts.
func Results() []string {
	return []string{
		ResultOK, ResultWrong, ResultTemporary, ResultThrottled, ResultMalformed, ResultUnsupported, ResultClientAbort,
		ResultPlaintext, ResultForbidden,
	}
}

// An Outcome is a row of the status page: how attempts to log in ended, coarser
// than the results.
type Outcome uint8

// The outcomes. Outcomes is their number.
const (
	OutcomeOK        Outcome = iota
	OutcomeWrong             // user or password
	OutcomeThrottled         // by a limit of Postern's own: the backend was not asked
	OutcomeFailed            // temporarily
	OutcomeForbidden         // until the client, or its user, changes something
	Outcomes
)

// reasons says what each Reason is called and counted as.
var reasons = [...]struct {
	name    string // in logs, metrics and configuration
	result  string // of an attempt, in metrics
	outcome Outcome
	final   bool // the connection ends
}{
	Wrong:           {"wrong", ResultWrong, OutcomeWrong, false},
	Malformed:       {"malformed", ResultMalformed, OutcomeForbidden, false},
	Unsupported:     {"unsupported", ResultUnsupported, OutcomeForbidden, false},
	ProtocolOff:     {"protocol_off", ResultForbidden, OutcomeForbidden, false},
	Suspended:       {"suspended", ResultForbidden, OutcomeForbidden, false},
	Unusable:        {"unusable", ResultForbidden, OutcomeForbidden, false},
	Plaintext:       {"plaintext", ResultPlaintext, OutcomeForbidden, true},
	Throttled:       {"throttled", ResultThrottled, OutcomeThrottled, false},
	TooMany:         {"too_many", ResultTemporary, OutcomeFailed, true},
	TooManySessions: {"too_many_sessions", ResultTemporary, OutcomeFailed, false},
	Unavailable:     {"unavailable", ResultTemporary, OutcomeFailed, false},
	Maintenance:     {"maintenance", ResultTemporary, OutcomeFailed, false},
	MailboxFull:     {"mailbox_full", ResultTemporary, OutcomeFailed, false},
	TooSoon:         {"too_soon", ResultThrottled, OutcomeThrottled, false},
	InUse:           {"in_use", ResultTemporary, OutcomeFailed, false},
	TimedOut:        {"timed_out", ResultTemporary, OutcomeFailed, true},
	ShuttingDown:    {"shutting_down", ResultTemporary, OutcomeFailed, true},
	Kicked:          {"kicked", ResultTemporary, OutcomeFailed, true},
	Internal:        {"internal", ResultTemporary, OutcomeFailed, true},
	POP3Ended:       {"pop3_ended", ResultForbidden, OutcomeForbidden, false},
}

// Reasons returns the closed list.
func Reasons() []Reason {
	all := make([]Reason, 0, len(reasons))
	for r := Wrong; int(r) < len(reasons); r++ {
		all = append(all, r)
	}
	return all
}

// known reports whether r is one of the list.
func (r Reason) known() bool { return r != 0 && int(r) < len(reasons) }

// String returns the reason's name in logs, metrics and configuration.
func (r Reason) String() string {
	if !r.known() {
		return "unknown"
	}
	return reasons[r].name
}

// MarshalText implements encoding.TextMarshaler, for logs in JSON.
func (r Reason) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// Temporary reports whether the same client may succeed later without changing
// anything. Clients forget a stored password over a permanent answer and come
// again after a temporary one. After a permanent reason the client, or its user,
// must change something.
func (r Reason) Temporary() bool {
	return !r.known() || reasons[r].result == ResultTemporary || reasons[r].result == ResultThrottled
}

// Final reports whether the connection ends with this refusal. Plaintext does
// not end one that may still begin TLS: the Dialogue decides.
func (r Reason) Final() bool { return r.known() && reasons[r].final }

// ResultOf returns the result of an attempt that ended with err. An error that is
// no Refusal means that the client left. A temporary refusal by a limit of the guard
// for one client or account, whatever its Reason, is ResultThrottled: it says nothing
// about the backends.
func ResultOf(err error) string {
	r := ReasonOf(err)
	switch {
	case err == nil:
		return ResultOK
	case r.known() && reasons[r].result == ResultTemporary && limitedByGuard(err):
		return ResultThrottled
	case r.known():
		return reasons[r].result
	}
	return ResultClientAbort
}

// limitedByGuard reports whether err says which limit for one client or account refused
// the attempt.
func limitedByGuard(err error) bool {
	d, ok := errors.AsType[*Decision](err)
	return ok && d.Bucket != "" && !d.Shared
}

// OutcomeOf returns the outcome of an attempt that ended with err, and false if
// the client left before its answer. As in ResultOf, a limit of the guard is
// OutcomeThrottled.
func OutcomeOf(err error) (o Outcome, answered bool) {
	r := ReasonOf(err)
	switch {
	case err == nil:
		return OutcomeOK, true
	case r.known() && reasons[r].outcome == OutcomeFailed && limitedByGuard(err):
		return OutcomeThrottled, true
	case r.known():
		return reasons[r].outcome, true
	}
	return 0, false
}

// A Refusal is an error that the client may learn.
type Refusal struct {
	Reason    Reason
	Text      string // the operator's words, never the backend's (see Alert); empty: the protocol's own words for the Reason
	Alert     string // the backend's ALERT for the user, RFC 3501 section 7.1: one printable line without names or secrets; Text takes precedence
	Challenge []byte // RFC 7628 section 3.2.3: the failure challenge of an OAuth mechanism; nil if none
	Verified  bool   // the password was right: costs no guess
	Doubtful  bool   // the server may have checked the password, and the answer does not say so: the client learns the Reason, and the attempt costs a guess
	Err       error  // for the log only
}

// Error implements error.
func (r *Refusal) Error() string {
	if r.Err != nil {
		return r.Reason.String() + ": " + r.Err.Error()
	}
	return r.Reason.String()
}

// Unwrap returns Err.
func (r *Refusal) Unwrap() error { return r.Err }

// NewRefusal returns a Refusal for reason, with err for the log.
func NewRefusal(reason Reason, err error) *Refusal { return &Refusal{Reason: reason, Err: err} }

// ReasonOf returns the Reason of the first Refusal in err's tree, or 0.
func ReasonOf(err error) Reason {
	if r, ok := errors.AsType[*Refusal](err); ok {
		return r.Reason
	}
	return 0
}

// Goodbye returns what a client learns whose session Postern ends for reason:
// Kicked, or anything else when Postern stops.
func Goodbye(reason Reason) string {
	if reason == Kicked {
		return "Disconnected by an administrator"
	}
	return "The service is restarting: try again in a moment"
}
