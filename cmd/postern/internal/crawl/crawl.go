// Package crawl visits many accounts, a few at once and no faster than allowed, and goes
// on where it was stopped. What a visit does is its caller's.
//
// Run visits accounts and keeps the outcomes in a file. ReadList reads accounts and their
// passwords, and a Pace bounds how often something is done.
package crawl

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"postern/proxy"
)

// refusedInARow is how many visits may fail from the beginning: then something is wrong
// with all of them, and more wrong passwords would lock this machine out.
const refusedInARow = 10

// An Account is to be visited.
type Account struct {
	User   string
	Secret *proxy.Secret // nil: of the master user
}

// An Outcome is how a visit ended.
type Outcome[T any] struct {
	User   string    `json:"user"`
	Time   time.Time `json:"time"`
	Error  string    `json:"error,omitempty"` // "": Result is valid
	Result T         `json:"result,omitzero"`
}

// Progress is how far Run has come.
type Progress struct{ Done, Failed, All int }

// Options are how Run visits.
type Options struct {
	AtOnce   int            // visits at the same time; at least 1
	Progress func(Progress) // is called after each visit, by one goroutine at a time; nil: nobody is told
}

// Run visits the accounts that have no result in the journal, and calls each for the
// outcome of every account, first for those in the journal. It ends early if ctx ends,
// each fails, or the first visits all fail: a later Run with the same journal goes on.
func Run[T any](ctx context.Context, accounts []Account, journal *Journal[T], o Options,
	visit func(context.Context, Account) (T, error), each func(Outcome[T]) error,
) error {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	p := Progress{All: len(accounts)}
	var left []Account
	for _, a := range accounts {
		done, ok := journal.outcome(a.User)
		if !ok {
			left = append(left, a)
			continue
		}
		p.Done++
		if err := each(done); err != nil {
			return err
		}
	}
	var mu sync.Mutex
	good := p.Done > 0
	take := func(a Account, result T, err error) {
		mu.Lock()
		defer mu.Unlock()
		if ctx.Err() != nil && err != nil {
			return // the visit was broken off
		}
		outcome := Outcome[T]{User: a.User, Time: time.Now().UTC().Truncate(time.Second), Result: result}
		if err != nil {
			outcome.Error = err.Error()
			p.Failed++
		}
		p.Done, good = p.Done+1, good || err == nil
		if err := errors.Join(journal.add(outcome), each(outcome)); err != nil {
			stop(err)
			return
		}
		if o.Progress != nil {
			o.Progress(p)
		}
		if !good && p.Failed >= refusedInARow {
			stop(fmt.Errorf("stopped: the first %d accounts failed, the last with: %w", p.Failed, err))
		}
	}
	var next atomic.Int64
	var visits sync.WaitGroup
	for range max(o.AtOnce, 1) {
		visits.Go(func() {
			for ctx.Err() == nil {
				i := int(next.Add(1)) - 1
				if i >= len(left) {
					return
				}
				result, err := visit(ctx, left[i])
				take(left[i], result, err)
			}
		})
	}
	visits.Wait()
	return context.Cause(ctx)
}

// A Pace bounds how often something is done. The zero value does not.
type Pace struct {
	interval time.Duration
	mu       sync.Mutex
	next     time.Time
}

// NewPace returns a Pace of so many a second; 0: no bound.
func NewPace(perSecond int) *Pace {
	p := new(Pace)
	if perSecond > 0 {
		p.interval = time.Second / time.Duration(perSecond)
	}
	return p
}

// Wait waits until n more may be done, or ctx ends.
func (p *Pace) Wait(ctx context.Context, n int) error {
	p.mu.Lock()
	now := time.Now()
	if p.next.Before(now) {
		p.next = now
	}
	wait := p.next.Sub(now)
	p.next = p.next.Add(time.Duration(n) * p.interval)
	p.mu.Unlock()
	if wait <= 0 {
		return context.Cause(ctx)
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
