// Package authpolicy lets a policy server such as wforce refuse login attempts, by
// Dovecot's auth-policy protocol over HTTP
// (https://doc.dovecot.org/latest/core/config/auth/policy.html).
//
// A Guard decorates another proxy.Guard. When that guard allows an attempt, the
// decorator sends the Server an "allow" request before the backend checks the
// password, and a second "allow" request after the backend has accepted the
// password. A "report" request carries the result of the attempt.
package authpolicy

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"postern/proxy"
)

// Bucket is the bucket of attempts that the policy server refused, in logs and
// metrics.
const Bucket = "policy_server"

// maxTarpit bounds the delay of a refusal that a server can request.
const maxTarpit = 30 * time.Second

// ErrRejected is in the tree of the error of an attempt that the policy server
// refused.
var ErrRejected = errors.New("the policy server refuses")

// A Guard is a proxy.Guard that asks a Server about each attempt that the
// decorated guard allows.
type Guard struct {
	proxy.Guard // the decorated guard
	server      atomic.Pointer[Server]
	reports     sync.WaitGroup // under way
}

// SetServer makes s the server for later attempts; nil: none.
func (g *Guard) SetServer(s *Server) { g.server.Store(s) }

// Wait returns when all reports are sent or have failed. It must be called after
// the last connection has ended.
func (g *Guard) Wait() { g.reports.Wait() }

// Admit implements proxy.Guard.
func (g *Guard) Admit(c proxy.Client, shed context.CancelCauseFunc) (proxy.Permit, error) {
	p, err := g.Guard.Admit(c, shed)
	if err != nil || g.server.Load() == nil {
		return p, err
	}
	return &permit{Permit: p, guard: g}, nil
}

// A permit decorates the decorated guard's proxy.Permit.
type permit struct {
	proxy.Permit
	guard   *Guard
	server  *Server   // of the present attempt
	request *request  // about the present attempt; nil: the server is not involved
	failed  bool      // the server did not answer: no second request
	refused bool      // by the server
	until   time.Time // end of the tarpit
}

// Try implements proxy.Permit. The server gets no request about attempts that the
// decorated guard refuses.
func (p *permit) Try(ctx context.Context, l *proxy.Login) error {
	p.request, p.failed, p.refused, p.until = nil, false, false, time.Time{}
	if err := p.Permit.Try(ctx, l); err != nil {
		return err
	}
	if p.server = p.guard.server.Load(); p.server == nil {
		return nil
	}
	p.server.once.Do(p.server.open)
	p.request = p.server.request(l)
	// The password is not verified yet, so the client must not be told that it is
	// wrong.
	return p.check(ctx, proxy.Throttled)
}

// CheckPostAuth implements proxy.PostAuthChecker.
func (p *permit) CheckPostAuth(ctx context.Context, _ *proxy.Login) error {
	if p.failed || p.request == nil {
		return nil
	}
	// Any other reason would reveal that the password is right.
	return p.check(ctx, proxy.Wrong)
}

// check requests a decision. It returns a refusal for reason if the server rejects
// the attempt.
func (p *permit) check(ctx context.Context, reason proxy.Reason) error {
	begun := time.Now()
	status, err := p.server.requestAllow(ctx, p.request)
	p.failed = err != nil
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case p.server.LogOnly:
		return nil
	case err != nil && p.server.RejectOnFail:
		p.refused = true
		return proxy.NewRefusal(proxy.Unavailable, fmt.Errorf("%w: %w", ErrRejected, err))
	case status < 0:
		p.refused = true
		return proxy.NewRefusal(reason, ErrRejected)
	case status > 0:
		p.until = begun.Add(min(time.Duration(min(status, 3600))*time.Second, maxTarpit))
	}
	return nil
}

// Settle implements proxy.Permit. A tarpit delays only the answer to a wrong
// password, and occupies nothing, like the decorated guard's own delay.
func (p *permit) Settle(err error) time.Duration {
	r := p.request
	p.request = nil
	if p.refused {
		// For the decorated guard the attempt is neither a guess nor a success, and
		// its answer is delayed like the decorated guard's own refusals.
		err = proxy.NewRefusal(proxy.Throttled, &proxy.Decision{Bucket: Bucket})
	}
	delay := p.Permit.Settle(err)
	if r == nil {
		return delay
	}
	if p.setResult(r, err) {
		server := p.server
		p.guard.reports.Go(func() { server.report(r) })
	}
	if delay > 0 {
		return max(delay, time.Until(p.until))
	}
	return delay
}

// setResult writes the result of the attempt into r. It reports false if the
// attempt has no result: nobody has checked the password.
func (p *permit) setResult(r *request, err error) bool {
	success, refused := err == nil, p.refused
	if !success && !refused {
		refusal, ok := errors.AsType[*proxy.Refusal](err)
		switch {
		case !ok:
			return false
		case refusal.Verified:
			success = true
		case refusal.Doubtful:
			r.Fail = "internal"
		case refusal.Reason == proxy.Wrong:
			r.Fail = "credentials"
		case refusal.Reason == proxy.Suspended:
			r.Fail = "disabled"
		default:
			return false
		}
	}
	if refused {
		r.Fail = "policy"
	}
	r.Success, r.Reject = &success, &refused
	return true
}

// Decision implements proxy.DecisionReporter.
func (p *permit) Decision() (d proxy.Decision) {
	if inner, ok := p.Permit.(proxy.DecisionReporter); ok {
		d = inner.Decision()
	}
	if p.refused {
		d.Bucket = Bucket
	}
	return d
}
