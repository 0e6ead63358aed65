package proxy

import "errors"

// A Reason is why a client is refused. The list is closed: each protocol has
// its words for each of them (package front), metrics and logs their label.
type Reason uint8

// The reasons. Wrong, Malformed, Unsupported, ProtocolOff, Suspended, Unusable
// and Plaintext are permanent: the client, or its user, must change something. All
// others are temporary, and a client that comes again with the same password
// may succeed.
const (
	Wrong           Reason = iota + 1 // the backend said that user or password are wrong
	Malformed                         // such credentials can never be right: NUL, CR, a foreign authzid, bad base64
	Unsupported                       // no such mechanism
	ProtocolOff                       // the account may not use this protocol
	Suspended                         // the account may use nothing: expired, disabled
	Unusable                          // the mailbox lacks what the configuration needs of it
	Plaintext                         // no TLS: a password in the clear is never taken
	Throttled                         // the guard: too many wrong passwords
	TooMany                           // too many connections
	TooManySessions                   // of this account, from this network
	Unavailable                       // the backend is away, or cannot say
	Maintenance                       // announced: the operator's text says until when
	MailboxFull                       // too full to be used at all
	TooSoon                           // RFC 2449 section 8.1.1: the account has logged in a moment ago
	InUse                             // RFC 2449 section 8.1.1: the maildrop is locked
	TimedOut                          // the client was silent for too long
	ShuttingDown                      // Postern stops
	Kicked                            // an operator ended it
	Internal                          // a bug of ours
)

var reasons = [...]string{
	Wrong: "wrong", Malformed: "malformed", Unsupported: "unsupported", ProtocolOff: "protocol_off",
	Suspended: "suspended", Unusable: "unusable", Maintenance: "maintenance", MailboxFull: "mailbox_full", Plaintext: "plaintext", Throttled: "throttled", TooMany: "too_many", TooManySessions: "too_many_sessions", Unavailable: "unavailable",
	TooSoon: "too_soon", InUse: "in_use", TimedOut: "timed_out", ShuttingDown: "shutting_down", Kicked: "kicked", Internal: "internal",
}

// Reasons returns the closed list.
func Reasons() []Reason {
	all := make([]Reason, 0, len(reasons))
	for r := Wrong; int(r) < len(reasons); r++ {
		all = append(all, r)
	}
	return all
}

// String returns the reason's name in logs, metrics and configuration.
func (r Reason) String() string {
	if r == 0 || int(r) >= len(reasons) {
		return "unknown"
	}
	return reasons[r]
}

// MarshalText implements encoding.TextMarshaler, for logs in JSON.
func (r Reason) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// Temporary reports whether the same client may succeed later without
// changing anything. Clients forget a stored password over a permanent answer
// and come again after a temporary one.
func (r Reason) Temporary() bool {
	switch r {
	case Wrong, Malformed, Unsupported, ProtocolOff, Suspended, Unusable, Plaintext:
		return false
	}
	return true
}

// Final reports whether the connection ends with this refusal. Plaintext does
// not end one that may still begin TLS.
func (r Reason) Final() bool {
	switch r {
	case Plaintext, TooMany, TimedOut, ShuttingDown, Kicked, Internal:
		return true
	}
	return false
}

// A Refusal is an error that the client may learn.
type Refusal struct {
	Reason    Reason
	Text      string // the operator's words, never the backend's (see Alert); empty: the protocol's own for the Reason
	Alert     string // what the backend has for the user, RFC 3501 section 7.1: one printable line without names or secrets; Text goes before it
	Challenge []byte // RFC 7628 section 3.2.3: the failure challenge of an OAuth mechanism; nil if none
	Verified  bool   // the password was right: costs no guess
	Doubtful  bool   // nobody has verified the password: told as the Reason says, and costs what a wrong one does
	Err       error  // for the log only
}

func (r *Refusal) Error() string {
	if r.Err != nil {
		return r.Reason.String() + ": " + r.Err.Error()
	}
	return r.Reason.String()
}

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
