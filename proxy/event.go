package proxy

import (
	"crypto/tls"
	"errors"
	"io"
	"time"
)

// An Observer gets the events. Observe is called from many goroutines, must not
// block and must not keep the event's pointers.
type Observer interface{ Observe(Event) }

// Observers is an Observer that calls each of its members, in order.
type Observers []Observer

// Observe implements Observer.
func (o Observers) Observe(e Event) {
	for _, one := range o {
		one.Observe(e)
	}
}

// An Event is one of the structs of this file, which is the table of all that can
// happen. Events carry what log lines need (accounts, addresses). Metrics use only
// the fields that have few fixed values.
type Event interface{ event() }

// The values of Login.Via and Attempt.Via: how credentials can be sent.
const (
	ViaPlain        = "plain"         // AUTHENTICATE or AUTH PLAIN
	ViaLogin        = "login"         // AUTH LOGIN
	ViaLoginCommand = "login_command" // IMAP LOGIN
	ViaUserPass     = "userpass"      // POP3 USER and PASS
	ViaXOAuth2      = "xoauth2"
	ViaOAuthBearer  = "oauthbearer"
	ViaOther        = "other"
)

// The values of Handshake.Result.
const (
	HandshakeOK          = "ok"
	HandshakeTimeout     = "timeout"      // bytes came, but not all in time
	HandshakeSilent      = "silent"       // no byte came in time
	HandshakeClientAbort = "client_abort" // the client left or sent an alert
	HandshakeBadProtocol = "bad_protocol" // not TLS
	HandshakeEarly       = "early"        // TLS on a port where STARTTLS comes first
	HandshakeChallenge   = "acme"         // a certificate authority validated who holds a name, and has left
	HandshakeError       = "error"        // all others: Postern refused it
)

// The values of Handshake.Reason: of what the client offers nothing that the
// listener accepts.
const (
	NoVersion     = "version"
	NoCipher      = "cipher"      // or key exchange
	NoProtocol    = "protocol"    // ALPN: the client wants another service
	NoCertificate = "certificate" // there is none for the name that the client sent
	NoOther       = "other"
)

// The values of Handshake.Reason when the client has left after the certificate was
// sent.
const (
	RejectedCertificate  = "certificate_rejected"     // by an alert: CertificateRejected follows
	LeftAfterCertificate = "closed_after_certificate" // without an alert, or with one that is not about certificates
)

// Why a connection ends before its handshake: the results of RejectionOf.
const (
	RejectTooMany          = "too_many"
	RejectNoHeader         = "no_proxy_header"         // a balancer of proxy_from has sent none
	RejectBadHeader        = "bad_proxy_header"        // or one that is none, or not all of it in time
	RejectUnexpectedHeader = "unexpected_proxy_header" // the connection was Accepted, and Closed has the error
	RejectCheck            = "health_check"            // closed by a balancer of proxy_from before anything came
	RejectOther            = "other"
)

// RejectionOf returns the Reject... constant of Rejected.Err, or of a Closed.Err
// that is ErrUnexpectedProxyHeader.
func RejectionOf(err error) string {
	switch {
	case errors.Is(err, ErrUnexpectedProxyHeader):
		return RejectUnexpectedHeader
	case errors.Is(err, ErrNoProxyHeader):
		return RejectNoHeader
	case errors.Is(err, ErrProxyHeader):
		return RejectBadHeader
	case errors.Is(err, io.EOF):
		return RejectCheck
	case ReasonOf(err) == TooMany:
		return RejectTooMany
	}
	return RejectOther
}

// The values of Closed.End.
const (
	EndClientQuit       = "client_quit"    // after QUIT or LOGOUT
	EndClientAbort      = "client_abort"   // the client closed without QUIT or LOGOUT, where Postern reads commands
	EndBackendClosed    = "backend_closed" // the backend closed first, as it does after an IMAP LOGOUT
	EndIdleTimeout      = "idle_timeout"
	EndToken            = "token" // Postern ended it before the backend would, with the token that Postern has logged in with
	EndDrain            = "drain" // shutdown
	EndKicked           = "kicked"
	EndRefused          = "refused"           // before login, with a refusal
	EndForbiddenCommand = "forbidden_command" // IMAP UNAUTHENTICATE or COMPRESS, where the server offers UNAUTHENTICATE
	EndError            = "error"
)

// The values of UpdateFailed.Stage: setting \Seen, setting \Deleted, removing.
const (
	StageSeen    = "seen"
	StageStore   = "store"
	StageExpunge = "expunge"
)

// The values of Reconnected.Cause: how the connection to the server was lost.
const (
	LostClosed = "closed" // without BYE
	LostBye    = "bye"    // the server said BYE
	LostSilent = "silent" // the server did not answer in time
)

// The values of Reconnected.Result.
const (
	ReconnectOK         = "ok"
	ReconnectFailed     = "failed"     // the server was not reached, or refused the login: the session ends
	ReconnectRenumbered = "renumbered" // UIDVALIDITY has changed: the session deletes nothing from then on
)

// The values of MaildropNoticed.Kind.
const (
	NoticeCache      = "cache_failed"  // the cache of the listing could not be read or written: it only costs time
	NoticeNotProven  = "not_proven"    // the server contradicted itself about a listing: a temporary refusal
	NoticeUnreadable = "unreadable"    // the server refuses the sizes of Messages: they are listed, and cannot be retrieved
	NoticeRecord     = "record_failed" // the record of UIDLs, or of deletions, could not be read or written: a temporary refusal, or nothing was recorded after QUIT
	NoticeRecomputed = "recomputed"    // the record of UIDLs could not be read and was begun anew, as configured
	NoticeChanged    = "uidls_changed" // some messages of the last session have another UIDL now
	NoticeRenumbered = "renumbered"    // UIDVALIDITY has changed, or UIDNEXT is lower: Messages were not found again and have new UIDLs
)

// The values of Totals.Mode: what serves a POP3 session.
const (
	ModeBridge      = "bridge"      // Postern, from an INBOX
	ModePassthrough = "passthrough" // an old POP3 server
	ModeShadow      = "shadow"      // an old POP3 server; the bridge compares after it
)

// The values of ShadowCompared.Result.
const (
	ShadowClean     = "clean"      // clients would notice nothing
	ShadowDiffers   = "differs"    // clients would notice Missing, Extra or UIDLs
	ShadowUnproven  = "unproven"   // messages are left that could not be matched yet
	ShadowNoUIDLs   = "no_uidls"   // the client has not asked for unique-ids: it keeps none, and nothing was compared
	ShadowNotCopied = "not_copied" // INBOX has none of the messages: nothing was recorded
	ShadowSkipped   = "skipped"    // no comparison was begun: Err says why
	ShadowFailed    = "error"      // Err says why
)

// ShadowResults are the values of ShadowCompared.Result.
func ShadowResults() []string {
	return []string{ShadowClean, ShadowDiffers, ShadowUnproven, ShadowNoUIDLs, ShadowNotCopied, ShadowSkipped, ShadowFailed}
}

// The values of MailboxChanged.Kind.
const (
	ChangeUIDValidity = "uidvalidity" // UIDVALIDITY has changed
	ChangeUIDNext     = "uidnext"     // UIDNEXT is lower: a backup was restored
	ChangeEmptied     = "emptied"     // no message is left of 20 or more
	ChangeShrunk      = "shrunk"      // at least half and at least 20 of the messages are gone
)

// The values of ListingRefused.Reason.
const (
	ListingsFull   = "full"     // the listings of all sessions use limits.listing_memory
	ListingTooLong = "too_long" // the listing alone needs more than limits.listing_memory
)

// The values of CertificateDenied.Reason.
const (
	DeniedUnknown = "not_allowed"
	DeniedLimit   = "rate_limited"
)

// The values of PasswordChecked.Store.
const (
	StoreDevices = "devices"
	StoreFile    = "file"
	StoreBackend = "backend"
)

// PasswordStores returns the values of PasswordChecked.Store.
func PasswordStores() []string { return []string{StoreDevices, StoreFile, StoreBackend} }

// The values of TokenRequested.Result.
const (
	TokenOK            = "ok"
	TokenTemporary     = "temporary"     // the authorization server is away or throttles
	TokenAccount       = "account"       // there is no token for this mailbox
	TokenConfiguration = "configuration" // there is no token for any mailbox
)

// TokenResults returns the values of TokenRequested.Result.
func TokenResults() []string {
	return []string{TokenOK, TokenTemporary, TokenAccount, TokenConfiguration}
}

// The values of AccountQueued.Result.
const (
	QueueOK        = "ok"           // the login has waited, and goes on
	QueueFull      = "full"         // all connections of the account were in use for too long, or too many logins wait
	QueueThrottled = "throttled"    // the server wants no login of the account now
	QueueAbandoned = "client_abort" // the client has left, or the operator has ended the wait
)

// QueueResults returns the values of AccountQueued.Result.
func QueueResults() []string {
	return []string{QueueOK, QueueFull, QueueThrottled, QueueAbandoned}
}

// The values of PolicyRequested.Result.
const (
	PolicyAllow  = "allow" // of a report: it was accepted
	PolicyTarpit = "tarpit"
	PolicyReject = "reject"
	PolicyFailed = "failed"
)

// The values of Routed.Source: the kind of rule.
const (
	RouteFile    = "file"
	RouteHook    = "hook"
	RouteCached  = "hook_cache" // a cached answer of a hook
	RouteDomain  = "domain"
	RouteDefault = "default"
	RouteOther   = "other"
)

// The values of Routed.Result.
const (
	RouteFound = "found"
	RouteNone  = "none" // the rule does not apply: the next one decides
	RouteError = "error"
)

// The values of IMAPCommand.Result.
const (
	CommandOK   = "ok"
	CommandNo   = "no"
	CommandBad  = "bad"
	CommandLost = "lost" // the connection was lost before the answer
)

// CommandBody is the IMAPCommand.Command of each message that a session waited for,
// even if one FETCH asked for several.
const CommandBody = "FETCH BODY"

// POP3Commands are the values of POP3Command.Command: the commands of the
// TRANSACTION state that are counted by name (RFC 1939, RFC 2449). All others are
// CommandOther.
var POP3Commands = [...]string{"STAT", "LIST", "RETR", "DELE", "NOOP", "RSET", "QUIT", "TOP", "UIDL", "CAPA"}

// CommandOther is the POP3Command.Command of all other commands.
const CommandOther = "OTHER"

// The values of Dialed.Result.
const (
	DialOK       = "ok"
	DialRefused  = "refused"
	DialTimeout  = "timeout"
	DialTLS      = "tls"
	DialGreeting = "greeting"
	DialOther    = "other"
)

type (
	// Accepted: the guard has admitted a connection. Each connection that came in is
	// either Accepted or Rejected.
	Accepted struct{ Client Client }

	// AcceptFailed: a listener could not accept a connection, which waits in the
	// kernel or in the accept loop. Each further try emits another AcceptFailed.
	AcceptFailed struct {
		Service string // the name of one of the listener's Services
		Err     error
	}

	// Rejected: a connection was refused before its handshake: by the guard, or for
	// its PROXY header.
	Rejected struct {
		Client Client
		Err    error // usually a *Refusal
	}

	// Handshake: a TLS handshake ended. Client.TLS is set when it succeeded.
	Handshake struct {
		Client   Client
		Result   string // Handshake...
		Version  uint16 // of TLS, or the newest that the client offers; 0: nothing came that is TLS
		Duration time.Duration
		Err      error

		Hello  *tls.ClientHelloInfo // of a failed handshake; nil: none came
		Reason string               // No..., with HandshakeError; ...Certificate, with HandshakeClientAbort; empty without Hello
		Alert  string               // of CertificateAlerts, with RejectedCertificate
		Needs  string               // with NoVersion and NoCipher: the strictest Profile that accepts the client; empty: none does
	}

	// CertificateRejected: a client has rejected the certificate by an alert, in its
	// handshake, or after it and before anything else: some clients verify then.
	CertificateRejected struct {
		Client     Client
		ServerName string // that the client asked for
		Version    uint16 // of TLS
		Alert      string // of CertificateAlerts
		NotAfter   time.Time
	}

	// Attempt: an attempt to log in was answered, also one that was refused before
	// credentials came.
	Attempt struct {
		Client   Client
		Via      string            // Via...
		User     string            // as typed: may be anything, even a password
		Account  string            // empty when User could not be rewritten
		ID       map[string]string // IMAP ID
		Backend  string            // empty: no backend has accepted the password
		Device   string            // Login.Device
		Duration time.Duration
		Err      error // nil: logged in; a *Refusal; anything else: the client left

		Decision Decision      // the guard's
		Delay    time.Duration // of the answer, as the guard asked for
	}

	// Opened: a session began.
	Opened struct {
		Client  Client
		Account string
		Backend string
	}

	// Closed: a connection ended. Closed is the last event of every Accepted
	// connection.
	Closed struct {
		Client         Client
		Account        string // empty: never logged in
		Backend        string
		Duration       time.Duration
		Received, Sent int64 // octets from and to the client, as plaintext
		Totals         Totals
		End            string // End...
		Err            error
	}

	// Dialed: a connection to a backend was tried: TCP, TLS and greeting.
	Dialed struct {
		Backend, Protocol string
		Result            string // Dial...
		Duration          time.Duration
		Err               error
	}

	// BackendLogin: a backend answered credentials.
	BackendLogin struct {
		Backend, Protocol string
		Duration          time.Duration
		Err               error // nil, a *Refusal
	}

	// AccountQueued: a login has waited for one of the connections that its account may
	// have to a backend, or was refused because there was none. A login that finds one at
	// once emits nothing.
	AccountQueued struct {
		Client            Client
		Account           string
		Backend, Protocol string
		Result            string        // Queue...
		Duration          time.Duration // of the wait
		Err               error         // with QueueFull and QueueThrottled
	}

	// AccountThrottled: a backend wants no login of an account for Backoff.
	AccountThrottled struct {
		Client            Client
		Account           string
		Backend, Protocol string
		Backoff           time.Duration
	}

	// Probed: a backend was asked what it offers.
	Probed struct {
		Backend, Protocol string
		Up                bool
		Err               error
	}

	// Identified: a backend offers, or does not offer, the configured way to tell it
	// who the client is.
	Identified struct {
		Backend, Protocol string
		OK                bool
	}

	// MaildropOpened: the listing of a POP3 session is complete.
	MaildropOpened struct {
		Client   Client
		Source   string // "full": listed anew; "cache": unchanged; "delta": what was known was brought up to date
		Messages int
		Octets   int64
		Duration time.Duration
	}

	// POP3Command: a command of the TRANSACTION state was answered.
	POP3Command struct {
		Command  string // one of POP3Commands, or CommandOther
		OK       bool
		Duration time.Duration
	}

	// MessageSent: RETR or TOP delivered a message.
	MessageSent struct {
		Command    string // RETR, TOP
		Octets     int64
		Mismatched bool // RETR's octets were not those of LIST
		Completed  bool // the message did not end in CRLF, and got one
	}

	// MaildropNoticed: there is something about the maildrop of a POP3 session
	// that an operator should know.
	MaildropNoticed struct {
		Client   Client
		Account  string
		Kind     string // Notice...
		Messages int    // that the notice is about
		Err      error
	}

	// MailboxChanged: the mailbox of a POP3 account differs from the last poll in
	// a way that no session of this Postern has made.
	MailboxChanged struct {
		Backend  string
		Account  string
		Kind     string // Change...
		Repeated bool   // the account was counted already, within the last 10 minutes
		Accepted bool   // an operator expects such changes: the account is not counted
		Refused  bool   // the brake is on: the client got a temporary refusal
	}

	// BrakeChanged: the brake of a backend is on, or off. While it is on, accounts
	// whose mailbox has changed are refused.
	BrakeChanged struct {
		Backend         string
		On              bool
		Since           time.Time // when On began; zero: not known
		Accepted        time.Time // until when an operator accepts changes; zero: not accepted
		Counted, Polled int       // accounts within the last 10 minutes: with a change, and all
		Err             error     // why the state could not be read or kept
	}

	// ListingRefused: there was no memory for the listing of a POP3 session, which
	// was refused as temporary.
	ListingRefused struct {
		Reason string // Listing...
	}

	// UIDLsLearnt: the unique-ids that an old POP3 server shows of an account were taken
	// over, or not.
	UIDLsLearnt struct {
		Client   Client
		Account  string
		Backend  string
		Messages int // of the old maildrop
		Found    int // of them, with their unique-id
		Duration time.Duration
		Err      error
	}

	// ShadowCompared: what an old POP3 server has shown of an account in a session was
	// compared with INBOX, or not. An account that was clean, and has the same number of
	// messages, is compared again after a day.
	ShadowCompared struct {
		Client   Client
		Account  string
		Backend  string // of the IMAP server
		Result   string // Shadow...
		Messages int    // that the old server has shown, and that the session has not deleted
		Found    int    // of Messages, in INBOX
		Late     int    // of Messages, newer than all that were found: not in INBOX yet
		Unproven int    // messages that could not be matched yet, because a header has not been seen
		Learnt   int    // unique-ids recorded

		// Differences: messages that are not in INBOX; that are only in INBOX, so that
		// clients would download them; that the bridge would list with another unique-id,
		// with another size, or in another place.
		Missing, Extra, UIDLs, Sizes, Order int

		Duration time.Duration // from the end of the session
		Err      error         // with ShadowSkipped and ShadowFailed
	}

	// Reconnected: a POP3 session has lost its connection to the server, and has tried
	// to connect again.
	Reconnected struct {
		Client  Client
		Account string
		Backend string
		Cause   string // Lost...
		Result  string // Reconnect...
		Err     error  // nil: the session goes on
	}

	// UpdateFailed: QUIT could not delete what DELE has marked.
	UpdateFailed struct {
		Client Client
		Stage  string // Stage...
		Err    error
	}

	// PolicyRequested: the policy server got a request.
	PolicyRequested struct {
		Command  string // "allow", "report"
		Result   string // Policy...
		Duration time.Duration
		Err      error // with PolicyFailed
	}

	// PasswordChecked: a store of passwords of Postern's own was asked.
	PasswordChecked struct {
		Store    string // Store...
		Duration time.Duration
		Err      error // nil: the password was right; a *Refusal; anything else: the client left
	}

	// TokenRequested: an authorization server was asked for a token.
	TokenRequested struct {
		Provider string // its name in the configuration
		Kind     string // likewise
		Result   string // Token...
		Duration time.Duration
		Err      error // nil: a token came
	}

	// Routed: a rule was asked for the backend of a login.
	Routed struct {
		Source   string // Route...
		Result   string // Route...
		Duration time.Duration
		Err      error // with RouteError
	}

	// IMAPCommand: the server of a POP3 session has answered a command.
	IMAPCommand struct {
		Command  string // SELECT, STORE, ... whether by UID or not; CommandBody
		Result   string // Command...
		Duration time.Duration
	}

	// StateUsed: a bucket of the state was read or written.
	StateUsed struct {
		Store     string // a bucket
		Operation string // get, scan, update
		Duration  time.Duration
		Err       error // of the state, not of its user
	}

	// CertificateObtained: a CA has issued a certificate.
	CertificateObtained struct {
		Name     string
		Renewal  bool
		Duration time.Duration
	}

	// CertificateFailed: a CA has issued none.
	CertificateFailed struct {
		Name     string
		Renewal  bool
		Duration time.Duration
		Err      error
	}

	// CertificateDenied: a client has sent a name for which no certificate is
	// requested.
	CertificateDenied struct {
		Name   string // as sent by the client
		Reason string // Denied...
	}

	// Panicked: a bug was caught; the connection is closed.
	Panicked struct {
		Client Client
		Value  any
		Stack  []byte
	}
)

// Totals counts what a session did. A field that the protocol does not have is 0.
type Totals struct {
	Retrieved int // messages: RETR
	Deleted   int // messages, at QUIT
	Submitted int // messages the backend accepted

	Mode string // Mode...: what served a POP3 session

	// What a POP3 client does with its mail. The marks are those of DELE at the end of
	// the session, whether QUIT could delete the messages or not.
	Messages   int   // in the maildrop at login
	Downloaded int   // messages sent whole: by RETR, or by TOP with all lines
	Octets     int64 // of the downloaded messages
	Kept       int   // downloaded messages without a mark
	Marked     int   // messages with a mark

	// Hashes of the set of UIDLs when a POP3 session began and when it ended. If the
	// hashes of two sessions differ, and no mail came or went, UIDLs have changed.
	UIDLsBefore, UIDLsAfter uint64
}

func (Accepted) event()            {}
func (AcceptFailed) event()        {}
func (Rejected) event()            {}
func (Handshake) event()           {}
func (CertificateRejected) event() {}
func (Attempt) event()             {}
func (Opened) event()              {}
func (Closed) event()              {}
func (Dialed) event()              {}
func (BackendLogin) event()        {}
func (AccountQueued) event()       {}
func (AccountThrottled) event()    {}
func (Probed) event()              {}
func (Identified) event()          {}
func (MaildropOpened) event()      {}
func (POP3Command) event()         {}
func (MessageSent) event()         {}
func (MaildropNoticed) event()     {}
func (MailboxChanged) event()      {}
func (BrakeChanged) event()        {}
func (ListingRefused) event()      {}
func (Reconnected) event()         {}
func (UIDLsLearnt) event()         {}
func (ShadowCompared) event()      {}
func (UpdateFailed) event()        {}
func (PasswordChecked) event()     {}
func (TokenRequested) event()      {}
func (PolicyRequested) event()     {}
func (Routed) event()              {}
func (IMAPCommand) event()         {}
func (StateUsed) event()           {}
func (CertificateObtained) event() {}
func (CertificateFailed) event()   {}
func (CertificateDenied) event()   {}
func (Panicked) event()            {}
