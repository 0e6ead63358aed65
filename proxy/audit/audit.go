// Package audit writes the log that an operator searches: one line for each
// login, for each session that ends, and for trouble with a backend, a maildrop
// or a listener. It also writes the file of wrong passwords that fail2ban reads.
//
// A Log is a proxy.Observer.
package audit

import (
	"crypto/rand"
	"io"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"time"

	"postern/proxy"
)

// repeatAfter is how often the same trouble is written.
const repeatAfter = time.Minute

// A Log is a proxy.Observer that writes lines for operators. It must be made by
// New.
//
// People type passwords into the field of the user name. So the name of a refused
// login is written only if the account has logged in at this Log before, or Known
// reports that it exists. Otherwise the line has the Hash of the name, and what shape
// the name has.
type Log struct {
	Known       func(account string) bool // nil: only accounts that have logged in at this Log are known
	KnownDomain func(domain string) bool  // reports whether accounts of a domain exist; nil: none is known

	// HashFirst is applied to a name before Hash: an observer that has only its result
	// can name the hash, too. nil: Hash gets the name itself.
	HashFirst func(name string) string

	// Failures gets a line for each wrong password, in one Write, in the format of
	// Dovecot's log. Whatever reads it bans addresses, so it has no repeats of the
	// same wrong password, and nothing that was refused without asking the backend.
	// nil: nothing is written.
	Failures io.Writer

	log *slog.Logger

	key  []byte // of the hashes; see Key
	mu   sync.Mutex
	seen map[NameHash]struct{} // hashes of accounts that have logged in

	written map[string]occurrence // trouble, by its words
	down    map[string]bool       // backends whose last probe failed, and providers that gave no token to anybody

	handshakes quota // of lines about failed handshakes: any client can cause one
}

// New returns a Log that writes to log.
func New(log *slog.Logger) *Log {
	l := &Log{
		log: log, key: make([]byte, 32), seen: make(map[NameHash]struct{}),
		written: make(map[string]occurrence), down: make(map[string]bool),
	}
	_, _ = rand.Read(l.key) // never fails
	return l
}

// Observe implements proxy.Observer.
func (l *Log) Observe(e proxy.Event) {
	switch e := e.(type) {
	case proxy.Attempt:
		l.attempt(e)
		l.fail2ban(e)
	case proxy.Closed:
		l.closed(e)
	case proxy.Rejected:
		l.rejected(e.Client, e.Err)
	case proxy.AcceptFailed:
		if more, ok := l.due(true, "accept", e.Service); ok {
			l.log.Warn("connections are not accepted", append(more, "listener", e.Service, "err", e.Err)...)
		}
	case proxy.Handshake:
		l.handshake(e)
	case proxy.CertificateRejected:
		l.certificateRejected(e)
	case proxy.Dialed:
		if more, ok := l.due(e.Err != nil, e.Backend, e.Protocol, e.Result); ok {
			l.log.Warn("backend not reached", append(more, "backend", e.Backend, "protocol", e.Protocol, "result", e.Result, "err", e.Err)...)
		}
	case proxy.BackendLogin:
		if more, ok := l.due(proxy.ReasonOf(e.Err) == proxy.Unavailable, e.Backend, e.Protocol, "login"); ok {
			l.log.Warn("backend could not log in", append(more, "backend", e.Backend, "protocol", e.Protocol, "err", e.Err)...)
		}
	case proxy.AccountQueued:
		l.queued(e)
	case proxy.AccountThrottled:
		l.log.Warn("backend throttles an account: it gets no login of the account for retry_after",
			l.clientFields(e.Client, "account", printable(e.Account), "backend", e.Backend, "protocol", e.Protocol, "retry_after", e.Backoff.Round(time.Second).String())...)
	case proxy.Probed:
		l.probed(e)
	case proxy.Identified:
		if more, ok := l.due(!e.OK, e.Backend, e.Protocol, "identity"); ok {
			l.log.Warn("backend does not offer the identity asked for: it takes Postern for the client",
				append(more, "backend", e.Backend, "protocol", e.Protocol)...)
		}
	case proxy.MaildropNoticed:
		l.noticed(e)
	case proxy.MailboxChanged:
		l.mailboxChanged(e)
	case proxy.BrakeChanged:
		l.brakeChanged(e)
	case proxy.ListingRefused:
		if more, ok := l.due(true, "listing", e.Reason); ok {
			l.log.Warn("no memory for a listing: see limits.listing_memory", append(more, "reason", e.Reason)...)
		}
	case proxy.Reconnected:
		l.reconnected(e)
	case proxy.UIDLsLearnt:
		l.uidlsLearnt(e)
	case proxy.ShadowCompared:
		l.shadowCompared(e)
	case proxy.PolicyRequested:
		if more, ok := l.due(e.Err != nil, "policy", e.Command); ok {
			l.log.Warn("policy server request failed", append(more, "command", e.Command, "err", e.Err)...)
		}
	case proxy.TokenRequested:
		if more, ok := l.due(e.Err != nil, "token", e.Provider, e.Result); ok {
			l.log.Warn("provider gives no token", append(more, "provider", e.Provider, "result", e.Result, "err", e.Err)...)
		}
		if l.tokensAgain(e) {
			l.log.Info("provider gives tokens again", "provider", e.Provider)
		}
	case proxy.UpdateFailed:
		l.updateFailed(e)
	case proxy.Panicked:
		l.log.Error("panic", append(connectionFields(e.Client), "value", e.Value, "stack", string(e.Stack))...)
	}
}

// An occurrence is when trouble was last written, and how often it came after
// that.
type occurrence struct {
	at   time.Time
	more int
}

// due reports whether a line about trouble is due, and returns the fields that
// say how often it came since the last line. words name the trouble.
func (l *Log) due(trouble bool, words ...string) (more []any, ok bool) {
	if !trouble {
		return nil, false
	}
	key := strings.Join(words, " ")
	l.mu.Lock()
	defer l.mu.Unlock()
	last, now := l.written[key], time.Now()
	if now.Sub(last.at) < repeatAfter {
		last.more++
		l.written[key] = last
		return nil, false
	}
	l.written[key] = occurrence{at: now}
	if last.more > 0 {
		more = []any{"repeated", last.more}
	}
	return more, true
}

// A quota allows one line a minute about each network and reason, and 600 in all.
type quota struct {
	mu      sync.Mutex
	minute  int64
	written map[string]struct{}
}

func (q *quota) allow(now time.Time, addr netip.Addr, reason string) bool {
	const most, bits = 600, 64 // of IPv6; an IPv4 address is a network of its own
	network := netip.PrefixFrom(addr.WithZone(""), min(bits, addr.BitLen())).Masked()
	key := network.String() + " " + reason
	q.mu.Lock()
	defer q.mu.Unlock()
	if m := now.Unix() / 60; m != q.minute || q.written == nil {
		q.minute, q.written = m, make(map[string]struct{})
	}
	if _, ok := q.written[key]; ok || len(q.written) >= most {
		return false
	}
	q.written[key] = struct{}{}
	return true
}
