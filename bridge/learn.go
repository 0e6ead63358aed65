package bridge

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"sync"
	"time"

	"postern/bridge/uidl"
	"postern/proxy"
)

const (
	// learnTime bounds the learning of an account's UIDLs, and learnWait the time that its
	// client waits for it, unless Learner.Wait is set: clients give up after a minute.
	learnTime = 10 * time.Minute
	learnWait = 40 * time.Second
	// learnAtOnce bounds the accounts that are learnt at a time.
	learnAtOnce = 16
	// learnRetry is how long after a failure an account does not ask the old server again,
	// unless Learner.Retry is set: servers lock out who comes with wrong passwords each
	// minute. It is less than 5 minutes, after which many clients poll again. maxFailures
	// bounds the failures that are remembered.
	learnRetry, maxFailures = 4 * time.Minute, 10_000
)

var (
	errLearning   = errors.New("the unique ids of the old server are still being read")
	errLearnQueue = errors.New("the unique ids of many accounts are being read from the old server")
)

// A Learner takes over the UIDLs that an old POP3 server has shown, at the first session
// of each account: the client's own password opens the old maildrop. Until they are
// recorded the client gets a temporary refusal, and never a UIDL that is only computed.
// Backends of the same accounts share one Learner.
//
// What was read of an old maildrop is kept in the cache until the account is learnt, so
// that an attempt goes on where the last one ended, also after the process has ended.
type Learner struct {
	// LogIn logs l in to the old server. Whatever the old server says of the password,
	// the IMAP server has taken it: an error is temporary.
	LogIn func(ctx context.Context, l *proxy.Login) (OldMaildrop, error)
	Wait  time.Duration // the longest that a client waits; 0: 40 s
	Retry time.Duration // from a failure in which nothing new was read to the next try for the same account; 0: 4 minutes

	mu       sync.Mutex
	running  map[string]*learning // by account
	failures map[string]failure   // by account; old ones, too
}

// A failure is why the last learning of an account failed.
type failure struct {
	at  time.Time
	err error
}

// begin returns the learning of an account that runs, or a new one that the caller has to
// end. An error says why none begins now.
func (r *Learner) begin(account string) (job *learning, begun bool, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if job := r.running[account]; job != nil {
		return job, false, nil
	}
	retry := r.Retry
	if retry == 0 {
		retry = learnRetry
	}
	if f, failed := r.failures[account]; failed && time.Since(f.at) < retry {
		return nil, false, fmt.Errorf("%v ago, and not tried again yet: %w", time.Since(f.at).Round(time.Second), f.err)
	}
	if len(r.running) >= learnAtOnce {
		return nil, false, errLearnQueue
	}
	job = &learning{done: make(chan struct{})}
	if r.running == nil {
		r.running, r.failures = make(map[string]*learning), make(map[string]failure)
	}
	r.running[account] = job
	return job, true, nil
}

// end ends the learning of an account.
func (r *Learner) end(account string, job *learning, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.running, account)
	delete(r.failures, account)
	if err != nil && !job.progress { // else the next session goes on
		if len(r.failures) >= maxFailures {
			clear(r.failures)
		}
		r.failures[account] = failure{time.Now(), err}
	}
	job.err = err
	close(job.done)
}

// An OldMaildrop is a session with the old server.
type OldMaildrop interface {
	// Carry lists in, and makes the record of an INBOX in which messages have the UIDLs of
	// the old maildrop. It says how many messages that has, and how many of them were found.
	// If there are messages and none of them was found, that is an error. kept is what an
	// earlier Carry has saved last; nil: nothing.
	Carry(ctx context.Context, in *Reader, f uidl.Format, kept []byte, save func([]byte)) (r *uidl.Record, old, found int, err error)
	// Close ends the session. Nothing was deleted.
	Close() error
}

// A learning is the learning of one account's UIDLs.
type learning struct {
	done     chan struct{}
	err      error // valid when done is closed
	progress bool  // something was read that the next attempt need not read
}

// learn makes the record of an account from what the old server shows, or completes it, or
// waits for the session that does. When learn returns nil, there is a record.
func (b *Backend) learn(ctx context.Context, l *proxy.Login) error {
	wait, cancel := context.WithTimeoutCause(ctx, cmp.Or(b.Learner.Wait, learnWait), errLearning)
	defer cancel()
	job, err := b.beginLearning(wait, l)
	if err == nil {
		select {
		case <-job.done:
			err = job.err
		case <-wait.Done():
			err = context.Cause(wait)
		}
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil {
		return &proxy.Refusal{Reason: proxy.Unavailable, Verified: true, Err: fmt.Errorf("learn the unique ids of the old server: %w", err)}
	}
	return nil
}

// beginLearning returns the learning of an account: the one that runs, or a new one. A new
// one goes on when the client has left, over connections that are logged in already.
func (b *Backend) beginLearning(ctx context.Context, l *proxy.Login) (*learning, error) {
	client, account := l.Client, l.Account // not l: the session clears its secret
	job, begun, err := b.Learner.begin(account)
	if err != nil || !begun {
		return job, err
	}
	end := func(err error) { b.Learner.end(account, job, err) }
	old, in, err := b.openBoth(ctx, l)
	if err != nil {
		b.observe(proxy.UIDLsLearnt{Client: client, Account: account, Backend: b.Name, Err: err})
		end(err)
		return job, nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), learnTime)
	go func() {
		begun := time.Now()
		e := proxy.UIDLsLearnt{Client: client, Account: account, Backend: b.Name}
		defer cancel()
		defer func() {
			if v := recover(); v != nil {
				b.observe(proxy.Panicked{Client: client, Value: v, Stack: debug.Stack()})
				e.Err = fmt.Errorf("panic: %v", v)
			}
			e.Duration = time.Since(begun)
			b.observe(e)
			end(e.Err)
		}()
		defer func() { _ = in.inbox.Close() }()
		defer func() { _ = old.Close() }()
		e.Err = b.carry(ctx, account, old, in, job, &e)
	}()
	return job, nil
}

// openBoth logs in to the old server and, once more, to the IMAP server.
func (b *Backend) openBoth(ctx context.Context, l *proxy.Login) (OldMaildrop, *Reader, error) {
	old, err := b.Learner.LogIn(ctx, l)
	if err != nil {
		return nil, nil, err
	}
	in, err := b.logInReader(ctx, l)
	if err != nil {
		_ = old.Close()
		return nil, nil, err
	}
	return old, in, nil
}

// carry records what the old maildrop shows, and fills in e.
func (b *Backend) carry(ctx context.Context, account string, old OldMaildrop, in *Reader, job *learning, e *proxy.UIDLsLearnt) error {
	record, n, found, err := old.Carry(ctx, in, b.UIDL, b.loadLearnt(ctx, account), func(kept []byte) {
		job.progress = b.saveLearnt(ctx, account, kept) || job.progress
	})
	e.Messages, e.Found = n, found
	if err != nil {
		return err
	}
	if _, err = Learn(ctx, b.Record, account, record); err != nil {
		return err
	}
	b.saveLearnt(ctx, account, nil)
	if b.Cache != nil {
		return b.Cache.Put(context.WithoutCancel(ctx), servedKey(account), nil)
	}
	return nil
}

// servedKey is the key, in the cache, of the note that the old server has served an account.
func servedKey(account string) string { return key(account) + "\x00served" }

// ServedByOld notes that the old server serves a session of an account. If the account has
// a record, its next session with a Learner asks the old server again, before it shows a
// UIDL: messages may have come that only the old server has shown. The note is in the
// cache, and is lost with the cache.
func ServedByOld(ctx context.Context, cache, record Bucket, account string) error {
	head, err := record.Get(ctx, key(account))
	if err != nil || head == nil {
		return err
	}
	noted, err := cache.Get(ctx, servedKey(account))
	if err != nil || noted != nil {
		return err
	}
	return cache.Put(ctx, servedKey(account), []byte{1})
}

// learnsAgain reports whether the old server has served the account since its record was
// learnt.
func (b *Backend) learnsAgain(ctx context.Context, account string) (bool, error) {
	if b.Learner == nil || b.Cache == nil {
		return false, nil
	}
	noted, err := b.Cache.Get(ctx, servedKey(account))
	return noted != nil, err
}

// learntKey is the key, in the cache, of what was read of an old maildrop.
func learntKey(account string) string { return key(account) + "\x00old" }

func (b *Backend) loadLearnt(ctx context.Context, account string) []byte {
	if b.Cache == nil {
		return nil
	}
	kept, err := b.Cache.Get(ctx, learntKey(account))
	b.learntNotice(account, err)
	return kept
}

// saveLearnt saves what was read of an old maildrop, and reports whether it is saved.
func (b *Backend) saveLearnt(ctx context.Context, account string, kept []byte) bool {
	if b.Cache == nil {
		return false
	}
	err := b.Cache.Put(context.WithoutCancel(ctx), learntKey(account), kept) // also when the time of ctx is over
	b.learntNotice(account, err)
	return err == nil
}

func (b *Backend) learntNotice(account string, err error) {
	if err != nil {
		b.observe(proxy.MaildropNoticed{Account: account, Kind: proxy.NoticeCache, Err: err})
	}
}
