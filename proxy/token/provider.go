// Package token gets the tokens with which Postern logs in at mail servers that take no
// passwords. A Provider is an application at an authorization server (RFC 6749); a Source
// is a Provider for the accounts of one backend.
//
// There are two grants, and neither needs a user: client credentials (RFC 6749 section
// 4.4), whose token opens every mailbox that the application may open, and Google's
// service accounts (RFC 7523 section 2.1), whose token opens one.
//
// A token is in memory alone. The Provider hands it out while it lasts for long enough,
// and replaces it before: the login that finds it old starts the request and does not
// wait for it. No error removes a token. A Fault says whether the authorization server,
// the account or the configuration is at fault; its text has no octet of the answer but
// the error's name and numbers.
package token

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"net/http"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"postern/proxy"
)

// The times of tokens and of requests for them.
const (
	requestTimeout = 10 * time.Second
	defaultLife    = time.Hour        // of a token whose answer does not say
	wantedLeft     = 10 * time.Minute // of a token that is handed out: mail servers end the session with it
	leastLeft      = time.Minute      // the same while no new one can be had
	forcedEvery    = time.Minute      // between two tokens for an account because the server refused one
	newToken       = 10 * time.Second // age up to which a token is another one than the server has refused
	firstBackoff   = time.Second
	longestBackoff = 5 * time.Minute
	faultInterval  = time.Minute // between two requests while the configuration is at fault
	longestRetry   = time.Hour   // that a Retry-After is believed
)

// The limits in number.
const (
	MaxSlots     = 8       // tokens of an application, of different ages
	mostRequests = 16      // at once
	mostForced   = 1 << 16 // mailboxes that are remembered for forcedEvery
	pruneEvery   = 1 << 10 // new tokens of single mailboxes, after which those that have ended are dropped
)

// A Provider is an application at an authorization server. The exported fields must not
// change once it is in use. It must not be copied.
type Provider struct {
	Name      string // in the configuration
	Kind      string // likewise
	TokenURL  string
	Grant     Grant
	Domains   []string          // of mailboxes, in lower case; there is no token for any other
	Slots     int               // tokens of an application, by the hash of the mailbox: at most MaxSlots; 0: MaxSlots
	Transport http.RoundTripper // see NewTransport
	// EndsSessions says that mail servers end a session with its token.
	EndsSessions bool
	Observer     proxy.Observer // nil: none

	once     sync.Once
	requests chan struct{} // has a value for each request under way

	mu      sync.Mutex
	entries map[string]*entry
	forced  map[string]time.Time // by mailbox
	fault   *Fault               // of the configuration, for every mailbox
	retryAt time.Time            // after fault

	status        Status
	failed        *entry // whose request was the last to fail; nil: none, since a token came
	failedSubject string // of failed
}

// An entry is a token: of a slot, or of a mailbox. Provider.mu guards it.
type entry struct {
	secret    *proxy.Secret // nil: none yet
	issued    time.Time
	expires   time.Time
	refreshAt time.Time
	margin    time.Duration // wantedLeft, or less for a short life
	share     float64       // of its life that the first token is used, so that slots have different ages
	flight    *flight
	failures  int // in a row
	retryAt   time.Time
	err       error // of the last request; nil: it succeeded
}

// A flight is a request for a token. It ends within requestTimeout, and goes on when the
// logins that wait for it have ended.
type flight struct {
	done chan struct{} // closed at the end
}

// Serves reports whether the Provider gives tokens for a mailbox: its domain is one of
// Domains.
func (p *Provider) Serves(mailbox string) bool {
	at := strings.LastIndexByte(mailbox, '@')
	domain := lower(mailbox[at+1:])
	for _, d := range p.Domains {
		if at > 0 && d == domain {
			return true
		}
	}
	return false
}

// Token returns a token for mailbox, which the caller clears, and its end. force means
// that the mail server has refused the last one: then Token returns another one, at most
// once a minute for a mailbox. An error is a *Fault, or that of ctx.
func (p *Provider) Token(ctx context.Context, mailbox string, force bool) (token *proxy.Secret, ends time.Time, err error) {
	if !p.Serves(mailbox) {
		return nil, ends, p.fail(Account, fmt.Sprintf("providers.%s.domains does not have the domain of the mailbox", p.Name))
	}
	p.init()
	p.mu.Lock()
	if force && !p.mayForce(mailbox) {
		p.mu.Unlock()
		return nil, ends, p.fail(Temporary, "the server has refused the last token, too, within a minute")
	}
	e, subject := p.entryFor(mailbox)
	for waited := false; ; waited = true {
		//nolint:contextcheck // A request goes on when the login that has started it ends.
		secret, flight, err := p.use(e, subject, force, waited)
		if force && flight == nil && (err != nil || !waited) {
			delete(p.forced, mailbox) // no token was requested, or none came
		}
		ends = e.expires
		p.mu.Unlock()
		if flight == nil {
			return secret, ends, err
		}
		select {
		case <-ctx.Done():
			return nil, ends, context.Cause(ctx)
		case <-flight.done:
		}
		p.mu.Lock()
	}
}

// use returns the token of e, or an error, or the request to wait for. waited means that
// there was one.
func (p *Provider) use(e *entry, subject string, force, waited bool) (*proxy.Secret, *flight, error) {
	now := time.Now()
	left := e.expires.Sub(now)
	blocked := e.blocked(p, now)
	switch {
	case e.secret == nil || left < min(leastLeft, e.margin):
	case force && now.Sub(e.issued) >= newToken:
	case left >= e.margin:
		if !now.Before(e.refreshAt) && blocked == nil {
			p.start(e, subject)
		}
		return proxy.NewSecret(e.secret.Reveal()), nil, nil
	case blocked != nil: // no new one can be had: this one is used to its end
		return proxy.NewSecret(e.secret.Reveal()), nil, nil
	}
	if e.flight == nil {
		switch {
		case waited && e.err != nil:
			return nil, nil, e.err
		case waited:
			return nil, nil, p.fail(Temporary, "the token has ended before it could be used")
		}
		if blocked != nil {
			return nil, nil, blocked
		}
		p.start(e, subject)
	}
	return nil, e.flight, nil
}

// blocked returns why there is no request now; nil: there may be one.
func (e *entry) blocked(p *Provider, now time.Time) error {
	switch {
	case p.fault != nil && now.Before(p.retryAt):
		return p.fault
	case e.err != nil && now.Before(e.retryAt):
		return e.err
	}
	return nil
}

// mayForce reports whether mailbox may have another token now, and notes that it has.
func (p *Provider) mayForce(mailbox string) bool {
	now := time.Now()
	if last, ok := p.forced[mailbox]; ok && now.Sub(last) < forcedEvery {
		return false
	}
	if len(p.forced) >= mostForced {
		for name, last := range p.forced {
			if now.Sub(last) >= forcedEvery {
				delete(p.forced, name)
			}
		}
		if len(p.forced) >= mostForced {
			return false
		}
	}
	p.forced[mailbox] = now
	return true
}

// entryFor returns the entry that has the token for mailbox, and the subject of requests
// for it.
func (p *Provider) entryFor(mailbox string) (*entry, string) {
	key, share := lower(mailbox), 1.0
	subject := mailbox
	if !p.Grant.perMailbox() {
		slots := min(cmp.Or(p.Slots, MaxSlots), MaxSlots)
		h := fnv.New64a()
		_, _ = h.Write([]byte(key))
		slot := int(h.Sum64() % uint64(slots))
		key, subject, share = string(rune('0'+slot)), "", float64(slot+1)/float64(slots)
	}
	e := p.entries[key]
	if e == nil {
		p.prune()
		e = &entry{share: share}
		p.entries[key] = e
	}
	return e, subject
}

// prune drops the entries that have ended, when there are many.
func (p *Provider) prune() {
	if len(p.entries) == 0 || len(p.entries)%pruneEvery != 0 {
		return
	}
	now := time.Now()
	for key, e := range p.entries {
		if e.flight == nil && now.After(e.expires) && now.After(e.retryAt) {
			e.secret.Clear()
			delete(p.entries, key)
		}
	}
}

func (p *Provider) init() {
	p.once.Do(func() {
		p.entries, p.forced = map[string]*entry{}, map[string]time.Time{}
		p.requests = make(chan struct{}, mostRequests)
	})
}

// start requests a token for e unless a request is under way. Provider.mu is locked.
func (p *Provider) start(e *entry, subject string) {
	if e.flight != nil {
		return
	}
	f := &flight{done: make(chan struct{})}
	e.flight = f
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), requestTimeout)
		defer cancel()
		begun := time.Now()
		a, err := p.request(ctx, subject)
		p.report(begun, err)
		p.mu.Lock()
		defer p.mu.Unlock()
		p.record(e, subject, a, err)
		e.flight = nil
		close(f.done)
	}()
}

// request asks the authorization server, one of mostRequests at once.
func (p *Provider) request(ctx context.Context, subject string) (a answer, err error) {
	defer func() { // no connection's recover covers this goroutine, which parses what a server sends
		if v := recover(); v != nil {
			a, err = answer{}, p.fail(Temporary, fmt.Sprintf("panic: %v", v))
			if p.Observer != nil {
				p.Observer.Observe(proxy.Panicked{Value: v, Stack: debug.Stack()})
			}
		}
	}()
	select {
	case p.requests <- struct{}{}:
		defer func() { <-p.requests }()
	case <-ctx.Done():
		return answer{}, p.fail(Temporary, fmt.Sprintf("%d requests for tokens are under way, and none has ended within %v", mostRequests, requestTimeout))
	}
	return p.ask(ctx, subject)
}

// report emits the result of a request.
func (p *Provider) report(begun time.Time, err error) {
	if p.Observer == nil {
		return
	}
	e := proxy.TokenRequested{Provider: p.Name, Kind: p.Kind, Result: proxy.TokenOK, Duration: time.Since(begun), Err: err}
	if fault, ok := errors.AsType[*Fault](err); ok {
		e.Result = fault.Class.String()
	}
	p.Observer.Observe(e)
}

// record puts the answer to a request into e. subject is that of the request.
func (p *Provider) record(e *entry, subject string, a answer, err error) {
	now := time.Now()
	e.err = err
	fault, _ := errors.AsType[*Fault](err)
	p.note(e, subject, fault)
	if err == nil {
		e.secret.Clear()
		e.secret, e.issued, e.expires = a.token, now, now.Add(a.life)
		e.margin = min(wantedLeft, a.life/5)
		wait := a.life * time.Duration(70+rand.IntN(11)) / 100
		e.refreshAt = now.Add(time.Duration(float64(min(wait, a.life-e.margin)) * e.share))
		e.share, e.failures, e.retryAt, p.fault = 1, 0, time.Time{}, nil
		return
	}
	backoff := min(firstBackoff<<min(e.failures, 16), longestBackoff)
	e.failures++
	switch {
	case fault == nil:
	case fault.RetryAfter > 0:
		backoff = min(fault.RetryAfter, longestRetry)
		if fault.Class != Account { // the server asks the application to wait
			p.fault, p.retryAt = fault, now.Add(backoff)
		}
	case fault.Class == Configuration:
		backoff = faultInterval
		p.fault, p.retryAt = fault, now.Add(backoff)
	case fault.Class == Account:
		backoff = longestBackoff
	}
	e.retryAt = now.Add(backoff)
}
