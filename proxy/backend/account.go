package backend

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"postern/proxy"
)

// An AccountLimit bounds the connections of each account to the servers of a Pool.
type AccountLimit struct {
	Connections int           // open ones, and logins in progress; 0: no limit
	Kept        int           // of Connections: not for clients of the Pool's own protocol, so that a POP3 client finds room beside IMAP clients
	Wait        time.Duration // longest time that a login waits for another connection to end; 0: it does not wait
}

// The limits in number of Accounts.
const (
	mostQueued   = 32              // waiting logins of an account
	mostWaiting  = 256             // waiting logins in all: each holds one of limits.attempts
	mostBackoffs = 1 << 16         // accounts
	mostBackoff  = 5 * time.Minute // that a server is believed
)

// Accounts counts the connections of each account to the servers of a backend for one
// protocol. Accounts also has the logins that wait for a connection, and the accounts that
// the servers throttle. A new Pool for the same servers gets the Accounts of the Pool
// before: their connections count on. The zero value is ready for use.
//
// An account is counted by its name at the servers, in lower case: two accounts with one
// mailbox share its connections.
type Accounts struct {
	mu       sync.Mutex
	counts   map[string]*accountCount // accounts with a connection
	waiting  int
	backoffs map[string]time.Time // until when the servers want no login of an account
}

// An accountCount has the connections of an account. Accounts.mu guards it.
type accountCount struct {
	connections int
	own         int // of connections: for clients of the servers' own protocol
	queue       []*queued
}

// A queued is a login that waits for a connection of its account.
type queued struct {
	own   bool
	limit AccountLimit
	ready chan struct{} // closed when the connection is counted
}

// allows reports whether one more connection may be counted.
func (c *accountCount) allows(own bool, limit AccountLimit) bool {
	return c.connections < limit.Connections && (!own || c.own < limit.Connections-limit.Kept)
}

func (c *accountCount) add(own bool, n int) {
	c.connections += n
	if own {
		c.own += n
	}
}

// take counts a connection of an account, or returns the login in the queue (w), or why
// there is no place in the queue (err). An urgent login goes to the front.
func (a *Accounts) take(name string, own, urgent bool, limit AccountLimit) (w *queued, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	c := a.counts[name]
	if c == nil {
		c = &accountCount{}
		if a.counts == nil {
			a.counts = make(map[string]*accountCount)
		}
		a.counts[name] = c
	}
	switch { // whoever waits is not allowed now: nobody is overtaken
	case c.allows(own, limit):
		c.add(own, +1)
		return nil, nil
	case limit.Wait == 0:
		return nil, fmt.Errorf("all %d connections of the account are in use (account_connections)", limit.Connections)
	case len(c.queue) >= mostQueued:
		return nil, fmt.Errorf("all %d connections of the account are in use (account_connections), and %d logins wait", limit.Connections, mostQueued)
	case a.waiting >= mostWaiting:
		return nil, fmt.Errorf("all %d connections of the account are in use (account_connections), and %d logins of all accounts wait", limit.Connections, mostWaiting)
	}
	w = &queued{own: own, limit: limit, ready: make(chan struct{})}
	at := len(c.queue)
	if urgent {
		at = 0
	}
	c.queue = slices.Insert(c.queue, at, w)
	a.waiting++
	return w, nil
}

// leaveQueue ends the wait of w, and reports whether w has got a connection meanwhile.
func (a *Accounts) leaveQueue(name string, w *queued) (counted bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	select {
	case <-w.ready:
		return true
	default:
	}
	c := a.counts[name]
	c.queue = slices.DeleteFunc(c.queue, func(other *queued) bool { return other == w })
	a.waiting--
	a.forget(name)
	return false
}

// release ends a connection that was counted.
func (a *Accounts) release(name string, own bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	c := a.counts[name]
	c.add(own, -1)
	c.queue = slices.DeleteFunc(c.queue, func(w *queued) bool {
		if !c.allows(w.own, w.limit) {
			return false
		}
		c.add(w.own, +1)
		a.waiting--
		close(w.ready)
		return true
	})
	a.forget(name)
}

// forget drops an account that has nothing left to count.
func (a *Accounts) forget(name string) {
	if c := a.counts[name]; c.connections == 0 && len(c.queue) == 0 {
		delete(a.counts, name)
	}
}

// Waiting returns how many logins wait for a connection of their account.
func (a *Accounts) Waiting() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.waiting
}

// backOff records that the servers want no login of an account for d.
func (a *Accounts) backOff(name string, d time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := time.Now()
	if len(a.backoffs) >= mostBackoffs {
		for other, until := range a.backoffs {
			if !now.Before(until) {
				delete(a.backoffs, other)
			}
		}
		if len(a.backoffs) >= mostBackoffs {
			return
		}
	}
	if a.backoffs == nil {
		a.backoffs = make(map[string]time.Time)
	}
	if until := now.Add(d); until.After(a.backoffs[name]) {
		a.backoffs[name] = until
	}
}

// backoff returns how long the servers want no login of an account; 0: they take logins.
func (a *Accounts) backoff(name string) time.Duration {
	a.mu.Lock()
	defer a.mu.Unlock()
	until, ok := a.backoffs[name]
	if !ok {
		return 0
	}
	left := time.Until(until)
	if left <= 0 {
		delete(a.backoffs, name)
	}
	return max(left, 0)
}

// A place is a connection that Accounts counts. The zero place is none.
type place struct {
	pool     *Pool
	client   proxy.Client
	account  string
	name     string // of the account at the servers
	own      bool
	counted  bool
	verified bool // Postern has checked the password itself
}

// enter counts a connection of l's account. It waits while the account has all that it may
// have, for AccountLimit.Wait at most, until ctx ends or the client leaves. An error is a
// *proxy.Refusal, or says that ctx has ended or the client has left.
func (p *Pool) enter(ctx context.Context, l *proxy.Login) (place, error) {
	if p.Accounts == nil {
		return place{}, nil
	}
	at := place{pool: p, client: l.Client, account: l.Account, name: l.Account, own: l.Client.Protocol == p.Protocol, verified: l.Verified}
	if p.Mailbox != nil && l.Verified { // a client's own token is for the account itself
		if l.Mailbox == "" {
			l.Mailbox = p.Mailbox(l.Account)
		}
		at.name = l.Mailbox
	}
	at.name = strings.ToLower(at.name)
	if err := at.throttled(l); err != nil {
		return place{}, err
	}
	if p.AccountLimit.Connections == 0 {
		return at, nil
	}
	w, err := p.Accounts.take(at.name, at.own, l.Again, p.AccountLimit)
	if err == nil && w != nil {
		err = at.wait(ctx, l, w)
	} else if err != nil {
		at.report(0, proxy.QueueFull, err)
		err = p.refuseForAccount(l, proxy.TooManySessions, err)
	}
	if err != nil {
		return place{}, err
	}
	at.counted = true
	if err := at.throttled(l); err != nil { // since the login waits
		at.leave()
		return place{}, err
	}
	return at, nil
}

// wait waits until w's connection is counted.
func (at place) wait(ctx context.Context, l *proxy.Login, w *queued) error {
	watched, stop := ctx, func() {}
	if l.Watch != nil {
		watched, stop = l.Watch(ctx)
	}
	defer stop()
	begun, timer := time.Now(), time.NewTimer(w.limit.Wait)
	defer timer.Stop()
	select {
	case <-w.ready:
	case <-timer.C:
	case <-watched.Done():
	}
	counted := at.pool.Accounts.leaveQueue(at.name, w)
	switch {
	case watched.Err() != nil:
		if counted {
			at.pool.Accounts.release(at.name, at.own)
		}
		at.report(time.Since(begun), proxy.QueueAbandoned, nil)
		return context.Cause(watched)
	case counted:
		at.report(time.Since(begun), proxy.QueueOK, nil)
		return nil
	}
	err := fmt.Errorf("all %d connections of the account were in use for %v (account_connections, account_wait)", w.limit.Connections, w.limit.Wait)
	at.report(time.Since(begun), proxy.QueueFull, err)
	return at.pool.refuseForAccount(l, proxy.TooManySessions, err)
}

// throttled returns the Refusal of a login that the servers do not want now, or nil.
func (at place) throttled(l *proxy.Login) error {
	left := at.pool.Accounts.backoff(at.name)
	if left == 0 {
		return nil
	}
	err := fmt.Errorf("the server throttles the account, and wants no login for another %v", left.Round(time.Second))
	at.report(0, proxy.QueueThrottled, err)
	return at.pool.refuseForAccount(l, proxy.Unavailable, err)
}

// leave ends the connection of the place.
func (at place) leave() {
	if at.counted {
		at.pool.Accounts.release(at.name, at.own)
	}
}

// backOff records that a server wants no login of the account for d.
func (at place) backOff(d time.Duration) {
	if at.pool == nil || d <= 0 {
		return
	}
	d = min(d, mostBackoff)
	at.pool.Accounts.backOff(at.name, d)
	at.pool.observe(proxy.AccountThrottled{
		Client: at.client, Account: at.account, Backend: at.pool.Name, Protocol: at.pool.Protocol, Backoff: d,
	})
}

func (at place) report(waited time.Duration, result string, err error) {
	at.pool.observe(proxy.AccountQueued{
		Client: at.client, Account: at.account, Backend: at.pool.Name, Protocol: at.pool.Protocol, Result: result, Duration: waited, Err: err,
	})
}

func (p *Pool) observe(e proxy.Event) {
	if p.Observer != nil {
		p.Observer.Observe(e)
	}
}

// refuseForAccount returns the Refusal of a login for which no server was asked.
func (p *Pool) refuseForAccount(l *proxy.Login, reason proxy.Reason, err error) *proxy.Refusal {
	r := proxy.NewRefusal(reason, fmt.Errorf("backend %s, %s: %w", p.Name, p.Protocol, err))
	r.Verified = l.Verified
	return r
}

// noteThrottling records what a server's answer to credentials, err, says of the
// account. At a server that takes the client's password, the answer may be about guesses of others.
func (at place) noteThrottling(err error) {
	if t, ok := errors.AsType[*throttledError](err); ok && at.verified {
		at.backOff(t.backoff)
	}
}

// A throttledError is an answer to credentials with a suggested backoff.
type throttledError struct {
	err     error
	backoff time.Duration
}

func (e *throttledError) Error() string { return e.err.Error() }
func (e *throttledError) Unwrap() error { return e.err }

// withBackoff adds to err the backoff that a server's text suggests.
func withBackoff(err error, text string) error {
	if d := suggestedBackoff(text); d > 0 {
		return &throttledError{err: err, backoff: d}
	}
	return err
}

// suggestedBackoff returns how long a server wants no login of an account, as Exchange
// writes it: "Request is throttled. Suggested Backoff Time: 299931 milliseconds". 0: the
// text does not say.
func suggestedBackoff(text string) time.Duration {
	const words = "suggested backoff time:"
	text = strings.ToLower(text)
	_, rest, found := strings.Cut(text, words)
	if !found {
		return 0
	}
	number, unit, _ := strings.Cut(strings.TrimLeft(rest, " "), " ")
	n, err := strconv.ParseUint(number, 10, 32)
	if err != nil || !strings.HasPrefix(unit, "millisecond") {
		return 0
	}
	return time.Duration(n) * time.Millisecond
}
