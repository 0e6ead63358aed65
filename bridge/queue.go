package bridge

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"sync"
	"time"

	"postern/proxy"
)

const (
	// shortListing bounds the messages that are listed without a turn: the response of
	// the server has at most about ten packets.
	shortListing = 1000
	// FirstListings is the number of long listings that a server gets at a time, unless
	// Queue.Limit is set.
	FirstListings = 8
	// queueTime bounds the wait of a session for its turn, or for the listing that an
	// earlier session of the same account has begun.
	queueTime = 45 * time.Second
	// progressEvery is the interval at which a part of a long listing is stored.
	progressEvery = 10 * time.Second
)

var (
	errNoTurn      = errors.New("too many long listings at a time")
	errListingRuns = errors.New("an earlier session still lists the mailbox")
)

// A Queue lets one long listing of an account run at a time, and Limit long listings of
// a server. The zero value is ready. Backends of the same server share one Queue.
type Queue struct {
	Limit int // listings at a time; 0: FirstListings

	mu         sync.Mutex
	running    map[string]chan struct{} // by account; closed at its end
	slots      chan struct{}
	background map[string]context.CancelFunc // by account: stops background work at the next login
}

// wait waits until no long listing of the account runs.
func (q *Queue) wait(ctx context.Context, account string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, queueTime, errListingRuns)
	defer cancel()
	for {
		q.mu.Lock()
		done := q.running[account]
		q.mu.Unlock()
		if done == nil {
			return nil
		}
		select {
		case <-done:
		case <-ctx.Done():
			return queueRefusal(context.Cause(ctx))
		}
	}
}

// enter waits for a turn; leave ends the turn. If leave and err are nil, another session
// of the account lists already.
func (q *Queue) enter(ctx context.Context, account string) (leave func(), err error) {
	q.mu.Lock()
	if q.running == nil {
		q.running = make(map[string]chan struct{})
		q.slots = make(chan struct{}, cmp.Or(q.Limit, FirstListings))
	}
	if q.running[account] != nil {
		q.mu.Unlock()
		return nil, nil
	}
	done := make(chan struct{})
	q.running[account] = done
	q.mu.Unlock()
	end := func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		delete(q.running, account)
		close(done)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, queueTime, errNoTurn)
	defer cancel()
	select {
	case q.slots <- struct{}{}: // a channel serves its senders in order
		return func() { <-q.slots; end() }, nil
	case <-ctx.Done():
		end()
		return nil, queueRefusal(context.Cause(ctx))
	}
}

// startBackground begins work that no client waits for. The account's next login cancels
// ctx; the work must stop soon then. Only one session of an account does such work at a
// time; other sessions get a ctx that is already cancelled. end must be called.
func (q *Queue) startBackground(account string) (ctx context.Context, end func()) {
	ctx, stop := context.WithCancel(context.Background())
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.background[account] != nil {
		stop()
		return ctx, stop
	}
	if q.background == nil {
		q.background = make(map[string]context.CancelFunc)
	}
	q.background[account] = stop
	return ctx, func() {
		stop()
		q.mu.Lock()
		defer q.mu.Unlock()
		delete(q.background, account)
	}
}

// stopBackground cancels the account's background work, if there is any.
func (q *Queue) stopBackground(account string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if stop := q.background[account]; stop != nil {
		stop()
	}
}

// queueRefusal returns the temporary refusal of a session that has waited too long.
func queueRefusal(err error) error {
	if errors.Is(err, errNoTurn) || errors.Is(err, errListingRuns) {
		return &proxy.Refusal{Reason: proxy.Unavailable, Verified: true, Err: err}
	}
	return err
}

// progress stores the rows of a long listing, every progressEvery, until stop is called:
// if this session fails, the next session need not fetch these rows again. A panic closes
// the connection to the server; stop returns the panic as an error.
func (s *session) progress(ctx context.Context, l *listing) (stop func() error) {
	ticker := time.NewTicker(progressEvery)
	over, done := make(chan struct{}), make(chan struct{})
	var failed error
	go func() {
		defer close(done)
		defer func() {
			if v := recover(); v != nil {
				s.backend.observe(proxy.Panicked{Client: s.login.Client, Value: v, Stack: debug.Stack()})
				failed = fmt.Errorf("%w: keep a part of the listing: panic: %v", proxy.ErrBackendClosed, v)
				s.inbox.Abort()
			}
		}()
		for {
			select {
			case <-ticker.C:
				s.savePart(ctx, l)
			case <-over:
				return
			}
		}
	}()
	return func() error {
		ticker.Stop()
		close(over)
		<-done
		return failed
	}
}

func (s *session) savePart(ctx context.Context, l *listing) {
	if part, ok := l.snapshot(false); ok && len(part.messages) > l.known {
		s.putSnapshot(ctx, part)
	}
}
