package proxy

import (
	"cmp"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	maxKnown = 1 << 17     // accounts an Audit remembers: 8 octets each, and the map's own
	repeat   = time.Minute // how often the same trouble of a backend is written
)

// An Audit is an Observer that writes the lines an operator searches: one for
// each session that ends, one for each login that is refused, one for what is
// wrong with a backend.
//
// People type passwords into the field of the user name. So a refused name is
// written only if it has logged in before, or Known says that it exists; else
// the line has a keyed hash, which is the same for the same name as long as
// the process lives.
type Audit struct {
	Log   *slog.Logger
	Known func(account string) bool // nil: nobody is known but by a login

	// Failures gets a line for each wrong password, in one Write, as Dovecot
	// writes it to its log. The same wrong password again is not in it, nor what
	// was refused unseen: what reads it bans addresses. nil: nobody reads it.
	Failures io.Writer

	key    []byte
	mu     sync.Mutex
	seen   map[[8]byte]struct{}
	said   map[string]told // by backend and kind of trouble
	downed map[string]bool // backends whose last probe failed

	refused quota // lines about handshakes: whoever likes can make us refuse them
}

// NewAudit returns an Audit that writes to log.
func NewAudit(log *slog.Logger) *Audit {
	a := &Audit{
		Log: log, key: make([]byte, 32), seen: make(map[[8]byte]struct{}),
		said: make(map[string]told), downed: make(map[string]bool),
	}
	_, _ = rand.Read(a.key) // never fails
	return a
}

// Observe implements Observer.
func (a *Audit) Observe(e Event) {
	switch e := e.(type) {
	case Attempt:
		a.attempt(e)
		a.fail2ban(e)
	case Closed:
		a.closed(e)
	case Rejected:
		a.Log.Debug("connection refused", "client", e.Client, "err", e.Err)
	case AcceptFailed:
		if more, ok := a.due(true, "accept", e.Service); ok {
			a.Log.Warn("connections are not accepted", append(more, "service", e.Service, "err", e.Err)...)
		}
	case Handshake:
		a.handshake(e)
	case Dialed:
		if more, ok := a.due(e.Err != nil, e.Backend, e.Protocol, e.Result); ok {
			a.Log.Warn("backend not reached", append(more, "backend", e.Backend, "protocol", e.Protocol, "result", e.Result, "err", e.Err)...)
		}
	case BackendLogin:
		if more, ok := a.due(ReasonOf(e.Err) == Unavailable, e.Backend, e.Protocol, "login"); ok {
			a.Log.Warn("backend could not log in", append(more, "backend", e.Backend, "protocol", e.Protocol, "err", e.Err)...)
		}
	case Probed:
		a.probed(e)
	case Identified:
		if more, ok := a.due(!e.OK, e.Backend, e.Protocol, "identity"); ok {
			a.Log.Warn("backend does not offer the identity asked for: it takes Postern for the client",
				append(more, "backend", e.Backend, "protocol", e.Protocol)...)
		}
	case MaildropNoticed:
		a.noticed(e)
	case MailboxChanged:
		a.mailboxChanged(e)
	case BrakeChanged:
		a.brakeChanged(e)
	case ListingRefused:
		if more, ok := a.due(true, "listing", e.Reason); ok {
			a.Log.Warn("no memory for a listing: see limits.listing_memory", append(more, "reason", e.Reason)...)
		}
	case Reconnected:
		a.reconnected(e)
	case PolicyAsked:
		if more, ok := a.due(e.Err != nil, "policy", e.Command); ok {
			a.Log.Warn("policy server not asked", append(more, "command", e.Command, "err", e.Err)...)
		}
	case UpdateFailed:
		a.updateFailed(e)
	case Panicked:
		a.Log.Error("panic", "client", e.Client, "value", e.Value, "stack", string(e.Stack))
	}
}

// handshake writes why a client could not begin TLS. What nobody who wants mail
// would send is for those who look closer.
func (a *Audit) handshake(e Handshake) {
	if e.Err == nil {
		return
	}
	level := slog.LevelDebug
	fields := []any{"service", e.Client.Service, "ip", e.Client.Addr.Addr(), "session", e.Client.ID, "result", e.Result}
	if e.Hello != nil {
		fields = append(fields, "server_name", clean(e.Hello.ServerName), "offered", versions(e.Hello))
	}
	if e.Reason != "" {
		level = slog.LevelInfo
		fields = append(fields, "reason", e.Reason)
	}
	if e.Reason == NoVersion || e.Reason == NoCipher {
		fields = append(fields, "needs", cmp.Or(e.Needs, "none"))
	}
	if level == slog.LevelInfo && !a.refused.take(time.Now()) {
		level = slog.LevelDebug
	}
	// That of crypto/tls may quote all that the client offered: 64 KiB.
	a.Log.Log(context.Background(), level, "handshake failed", append(fields, "err", name(e.Err.Error()))...)
}

func (a *Audit) closed(e Closed) {
	level := slog.LevelDebug
	if e.Account != "" {
		level = slog.LevelInfo
	}
	fields := a.about(e.Client, "account", name(e.Account), "backend", e.Backend, "end", e.End, "duration", round(e.Duration),
		"received", e.Received, "sent", e.Sent)
	switch e.Client.Protocol {
	case POP3:
		fields = append(fields, "retrieved", e.Totals.Retrieved, "deleted", e.Totals.Deleted)
		if e.Account != "" {
			fields = append(fields, "uidls_before", hash16(e.Totals.UIDLsBefore), "uidls_after", hash16(e.Totals.UIDLsAfter))
		}
	case Submission:
		fields = append(fields, "submitted", e.Totals.Submitted)
	}
	if e.Err != nil && (e.End == EndError || e.End == EndForbidden) {
		fields = append(fields, "err", e.Err)
	}
	if e.End == EndForbidden {
		level = slog.LevelWarn
	}
	a.Log.Log(context.Background(), level, "connection ended", fields...)
}

// hash16 has all its digits: so it can be searched for.
func hash16(n uint64) string { return fmt.Sprintf("%016x", n) }

func (a *Audit) noticed(e MaildropNoticed) {
	var more []any
	if e.Kind == NoticeCache { // of all mailboxes alike, if the file is broken, and it only costs time
		var ok bool
		if more, ok = a.due(true, "maildrop", e.Kind); !ok {
			return
		}
	}
	level := slog.LevelWarn
	if e.Kind == NoticeRenumbered && e.Messages == 0 {
		level = slog.LevelInfo // all UIDLs are what they were
	}
	fields := a.about(e.Client, "account", name(e.Account), "kind", e.Kind, "messages", e.Messages)
	if e.Err != nil {
		fields = append(fields, "err", e.Err)
	}
	a.Log.Log(context.Background(), level, "maildrop", append(fields, more...)...)
}

// mailboxChanged writes which mailboxes were let through: their unique ids may
// have to be put back. Of those that the brake has refused nothing has changed, so
// that one line a minute is enough.
func (a *Audit) mailboxChanged(e MailboxChanged) {
	if e.Repeated {
		return
	}
	fields := []any{"backend", e.Backend, "account", name(e.Account), "kind", e.Kind}
	switch {
	case e.Accepted:
		a.Log.Info("mailbox looks different, as expected", fields...)
	case !e.Refused:
		a.Log.Warn("mailbox looks different", fields...)
	default:
		if more, ok := a.due(true, e.Backend, "braked"); ok {
			a.Log.Warn("mailbox looks different: refused", append(fields, more...)...)
		}
	}
}

func (a *Audit) brakeChanged(e BrakeChanged) {
	fields := []any{"backend", e.Backend, "counted", e.Counted, "polled", e.Polled}
	if !e.Since.IsZero() {
		fields = append(fields, "since", e.Since.UTC())
	}
	if !e.Accepted.IsZero() {
		fields = append(fields, "accepted_until", e.Accepted.UTC())
	}
	switch {
	case e.Err != nil:
		a.Log.Error("brake is on: its state cannot be read or kept; mailboxes that look different are refused", append(fields, "err", e.Err)...)
	case e.On:
		a.Log.Error("brake is on: too many mailboxes look different and are refused until postern uidl accept", fields...)
	case !e.Accepted.IsZero():
		a.Log.Warn("brake is off: mailboxes may look different", fields...)
	default:
		a.Log.Warn("brake is off", fields...)
	}
}

func (a *Audit) reconnected(e Reconnected) {
	fields := a.about(e.Client, "account", name(e.Account), "backend", e.Backend, "cause", e.Cause, "result", e.Result)
	if e.Err != nil {
		a.Log.Warn("backend lost within a session", append(fields, "err", e.Err)...)
		return
	}
	a.Log.Info("backend lost within a session", fields...)
}

func (a *Audit) updateFailed(e UpdateFailed) {
	if e.Stage == StageSeen { // the client does not miss it
		a.Log.Info("messages not marked as seen", a.about(e.Client, "err", e.Err)...)
		return
	}
	a.Log.Warn("messages not deleted", a.about(e.Client, "stage", e.Stage, "err", e.Err)...)
}

func (a *Audit) probed(e Probed) {
	key := e.Backend + " " + e.Protocol
	a.mu.Lock()
	was, changed := a.downed[key]
	changed = !changed || was == e.Up
	a.downed[key] = !e.Up
	a.mu.Unlock()
	switch {
	case !changed:
	case e.Up:
		a.Log.Info("backend is up", "backend", e.Backend, "protocol", e.Protocol)
	default:
		a.Log.Warn("backend is down", "backend", e.Backend, "protocol", e.Protocol, "err", e.Err)
	}
}

// about begins the fields of a line about a client, flat: what one greps for.
func (a *Audit) about(c Client, more ...any) []any {
	fields := []any{"service", c.Service, "ip", c.Addr.Addr(), "session", c.ID, "tls", tlsVersion(c.TLS)}
	if c.TLS != nil {
		fields = append(fields, "cipher", tls.CipherSuiteName(c.TLS.CipherSuite), "needs", ProfileOf(c.TLS).String())
	}
	return append(fields, more...)
}

func tlsVersion(s *tls.ConnectionState) string {
	if s == nil {
		return "none"
	}
	return tls.VersionName(s.Version)
}

// versions lists what a client offers of TLS, the newest first.
func versions(h *tls.ClientHelloInfo) string {
	var names []string
	for v := uint16(tls.VersionTLS13); v >= tls.VersionTLS10; v-- {
		if slices.Contains(h.SupportedVersions, v) {
			names = append(names, tls.VersionName(v))
		}
	}
	if names == nil {
		return "older"
	}
	return strings.Join(names, " ")
}

// clean returns a name that a client sent, as far as it can be one.
func clean(name string) string {
	const longest = 253 // RFC 1035 section 2.3.4
	return strings.Map(func(r rune) rune {
		if r <= ' ' || r > '~' {
			return '?'
		}
		return r
	}, name[:min(len(name), longest)])
}

// A quota lets a few through in each second.
type quota struct {
	mu     sync.Mutex
	second int64
	taken  int
}

func (q *quota) take(now time.Time) bool {
	const most = 10
	q.mu.Lock()
	defer q.mu.Unlock()
	if s := now.Unix(); s != q.second {
		q.second, q.taken = s, 0
	}
	q.taken++
	return q.taken <= most
}

// round returns d as people read it, in JSON too, where slog counts nanoseconds.
func round(d time.Duration) string { return d.Round(time.Millisecond).String() }

func (a *Audit) digest(name string) string {
	d := a.hash(name)
	return hex.EncodeToString(d[:])
}

func (a *Audit) hash(name string) (d [8]byte) {
	h := hmac.New(sha256.New, a.key)
	h.Write([]byte(name))
	copy(d[:], h.Sum(nil))
	return d
}

func (a *Audit) remember(account string) {
	d := a.hash(account)
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.seen) >= maxKnown {
		for k := range a.seen { // any: the map's order is random
			delete(a.seen, k)
			break
		}
	}
	a.seen[d] = struct{}{}
}

func (a *Audit) knows(account string) bool {
	if a.Known != nil && a.Known(account) {
		return true
	}
	d := a.hash(account)
	a.mu.Lock()
	defer a.mu.Unlock()
	_, ok := a.seen[d]
	return ok
}

// A told is when trouble was last written, and how often it came since then.
type told struct {
	at   time.Time
	more int
}

// due reports whether it is trouble and worth a line again, and what the line
// says of those in between that were not.
func (a *Audit) due(trouble bool, words ...string) (more []any, ok bool) {
	if !trouble {
		return nil, false
	}
	key := strings.Join(words, " ")
	a.mu.Lock()
	defer a.mu.Unlock()
	last, now := a.said[key], time.Now()
	if now.Sub(last.at) < repeat {
		last.more++
		a.said[key] = last
		return nil, false
	}
	a.said[key] = told{at: now}
	if last.more > 0 {
		more = []any{"repeated", last.more}
	}
	return more, true
}
