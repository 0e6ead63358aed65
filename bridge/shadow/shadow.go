// Package shadow serves POP3 clients from the old POP3 server, and finds out what they
// would notice if the bridge served them.
//
// A Backend logs a client in to the old server, whose answer alone counts, and relays the
// session. Beside it, in the background, it logs in to the IMAP server with the same
// credentials. When the session has ended, it lists INBOX and compares it with what the old
// server has shown, less what the session has deleted: not before, because servers that
// keep mbox files hold the maildrop until then. A message is found again by its header, as
// in package oldserver. Headers come from the messages that the client retrieves, and from
// TOP, which is sent within 50 ms before the client's QUIT. So no second session with the
// old server is needed. When all messages are either found or certainly not there, their
// UIDLs are recorded, and the bridge will show the same ones.
//
// The client never waits for the IMAP server, and never learns of it. What was compared is
// a proxy.ShadowCompared.
package shadow

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"sync"
	"time"

	"postern/bridge"
	"postern/proxy"
)

const (
	// again is after how long an account that was clean, with as many messages, is compared
	// again.
	again = 24 * time.Hour
	// sessionTime bounds the session after which messages are compared: until its end the
	// connection to the IMAP server waits.
	sessionTime = 10 * time.Minute
	// compareTime bounds the comparison.
	compareTime = 10 * time.Minute
	// slowLogin is how long a login to the IMAP server may take before others are spared
	// for pauseTime.
	slowLogin = 2 * time.Second
	pauseTime = time.Minute
	// spareTime is how long the old server is asked for no header after a late answer.
	spareTime = time.Minute
)

// An Old logs l in to the old POP3 server for a session that w watches, and clears the
// secret of l.
type Old func(ctx context.Context, l *proxy.Login, w *Watcher) (proxy.Session, error)

// A Backend serves maildrops from an old server, and compares them with INBOX. Its fields
// must not change after the first Login.
type Backend struct {
	Old     Old
	Bridge  *bridge.Backend // to the IMAP server; with a Record
	Limits  *Limits         // of the comparisons with the IMAP server; shared by all Backends with that server
	Healthy func() bool     // reports whether the IMAP server accepts logins; nil: it does
}

// Login implements proxy.Backend.
func (b *Backend) Login(ctx context.Context, l *proxy.Login) (proxy.Session, error) {
	login := *l
	login.Watch = nil
	login.Secret = proxy.NewSecret(l.Secret.Reveal())
	w := new(Watcher)
	session, err := b.Old(ctx, l, w)
	if err != nil {
		login.Secret.Clear()
		return nil, err
	}
	return &shadowed{Session: session, backend: b, login: &login, watcher: w}, nil
}

// shadowed is a session with the old server.
type shadowed struct {
	proxy.Session
	backend *Backend
	login   *proxy.Login // for the IMAP server
	watcher *Watcher
	ended   chan struct{} // closed at the end of the session; nil: nothing is compared
}

// Open implements proxy.Session.
func (s *shadowed) Open(ctx context.Context) (welcome string, err error) {
	begun := time.Now()
	welcome, err = s.Session.Open(ctx)
	if err != nil {
		return welcome, err
	}
	c := &comparison{
		backend: s.backend, login: s.login, watcher: s.watcher, begun: begun, ended: make(chan struct{}),
		event: proxy.ShadowCompared{Client: s.login.Client, Account: s.login.Account, Backend: s.backend.Bridge.Name},
	}
	s.watcher.begin(s.totals().Messages)
	switch err := s.backend.Limits.enter(s.login.Account); {
	case errors.Is(err, errRunning): // that comparison says what there is to say
		s.watcher.stop()
		return welcome, nil
	case err != nil:
		c.skip(err)
		return welcome, nil
	}
	s.ended = c.ended
	go c.run(context.WithoutCancel(ctx))
	return welcome, nil
}

// Close implements proxy.Session.
func (s *shadowed) Close() error {
	err := s.Session.Close()
	if s.ended == nil {
		s.login.Secret.Clear()
		return err
	}
	close(s.ended)
	s.ended = nil
	return err
}

// Backend implements proxy.Reporter.
func (s *shadowed) Backend() string {
	if r, ok := s.Session.(proxy.Reporter); ok {
		return r.Backend()
	}
	return ""
}

// Totals implements proxy.Reporter.
func (s *shadowed) Totals() proxy.Totals {
	t := s.totals()
	t.Mode = proxy.ModeShadow
	return t
}

func (s *shadowed) totals() proxy.Totals {
	if r, ok := s.Session.(proxy.Reporter); ok {
		return r.Totals()
	}
	return proxy.Totals{}
}

// A comparison is what happens beside one session, and after it.
type comparison struct {
	backend *Backend
	login   *proxy.Login
	watcher *Watcher
	begun   time.Time     // before the old server said how many messages there are
	ended   chan struct{} // closed when the session has ended
	over    time.Time     // when that was
	event   proxy.ShadowCompared
	state   accountState
}

var (
	errUnhealthy = errors.New("the IMAP server does not accept logins")
	errTooLong   = errors.New("the session was longer than 10 minutes")
	errQuit      = errors.New("the old server did not confirm what the session has deleted")
)

// skip reports that nothing is compared after the session.
func (c *comparison) skip(err error) {
	c.login.Secret.Clear()
	c.watcher.stop()
	c.event.Result, c.event.Err = proxy.ShadowSkipped, err
	c.observe(c.event)
}

func (c *comparison) observe(e proxy.Event) {
	if o := c.backend.Bridge.Observer; o != nil {
		o.Observe(e)
	}
}

// run runs in a goroutine of its own, which ends soon after the session. A panic does not
// touch the session.
func (c *comparison) run(ctx context.Context) {
	defer c.backend.Limits.leave(c.login.Account)
	defer c.watcher.stop()
	defer c.login.Secret.Clear()
	defer func() {
		if v := recover(); v != nil {
			c.observe(proxy.Panicked{Client: c.login.Client, Value: v, Stack: debug.Stack()})
			c.fail(fmt.Errorf("panic: %v", v))
		}
	}()
	c.state = c.load(ctx)
	if !c.state.due(c.watcher.count, time.Now()) {
		return
	}
	if c.state.gathers() {
		c.login.Secret.Clear()
		c.want()
		c.afterSession(ctx, c.gather)
		return
	}
	if c.backend.Healthy != nil && !c.backend.Healthy() {
		c.skip(errUnhealthy)
		return
	}
	if err := c.backend.Limits.take(c.state.Compared.IsZero()); err != nil {
		c.skip(err)
		return
	}
	c.want()
	in, err := c.logIn(ctx)
	if err != nil {
		c.fail(err)
		return
	}
	defer func() { _ = in.Close() }()
	c.afterSession(ctx, func(ctx context.Context) error { return c.compare(ctx, in) })
}

// want lets the session ask for what is wanted, if the old server is not slow.
func (c *comparison) want() {
	if c.backend.Limits.mayAsk() {
		c.watcher.want(c.state)
	}
}

// afterSession does what fills in the event when the session has ended, and reports it.
func (c *comparison) afterSession(ctx context.Context, do func(context.Context) error) {
	timer := time.NewTimer(sessionTime)
	defer timer.Stop()
	select {
	case <-c.ended:
	case <-timer.C:
		c.skip(errTooLong)
		return
	}
	c.over = time.Now()
	if c.watcher.slow {
		c.backend.Limits.spareOld()
	}
	ctx, cancel := context.WithTimeout(ctx, compareTime)
	defer cancel()
	if err := do(ctx); err != nil {
		c.fail(err)
		return
	}
	c.event.Duration = time.Since(c.over)
	c.observe(c.event)
}

// logIn logs in to the IMAP server, and clears the secret.
func (c *comparison) logIn(ctx context.Context) (*bridge.Reader, error) {
	ctx, cancel := context.WithTimeout(ctx, c.timeout())
	defer cancel()
	defer c.login.Secret.Clear()
	begun := time.Now()
	in, err := c.backend.Bridge.OpenReader(ctx, c.login)
	if err == nil && time.Since(begun) > slowLogin || err != nil && proxy.ReasonOf(err) != proxy.Wrong {
		c.backend.Limits.pause()
	}
	return in, err
}

func (c *comparison) timeout() time.Duration {
	if t := c.backend.Bridge.Timeout; t > 0 {
		return t
	}
	return time.Minute
}

func (c *comparison) fail(err error) {
	c.event.Result, c.event.Err = proxy.ShadowFailed, err
	if !c.over.IsZero() {
		c.event.Duration = time.Since(c.over)
	}
	c.observe(c.event)
}

// Limits bound the comparisons with one IMAP server. The zero value allows none.
type Limits struct {
	Concurrency int     // sessions that are compared at a time
	PerSecond   float64 // logins to the IMAP server

	mu      sync.Mutex
	running map[string]bool // by account
	tokens  float64
	filled  time.Time // when tokens was right
	paused  time.Time // until then nothing is begun
	spared  time.Time // until then the old server is asked nothing
}

var (
	errRunning = errors.New("another session of the account is compared")
	errBusy    = errors.New("pop3.shadow.concurrency comparisons are running")
	errRate    = errors.New("there are more than pop3.shadow.per_second comparisons")
	errPaused  = errors.New("the IMAP server was slow, or has failed, within the last minute")
)

// enter takes a place for a session of an account, until leave.
func (l *Limits) enter(account string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.running[account]:
		return errRunning
	case time.Now().Before(l.paused):
		return errPaused
	case len(l.running) >= l.Concurrency:
		return errBusy
	}
	if l.running == nil {
		l.running = make(map[string]bool)
	}
	l.running[account] = true
	return nil
}

func (l *Limits) leave(account string) {
	l.mu.Lock()
	delete(l.running, account)
	l.mu.Unlock()
}

// take allows a login to the IMAP server: PerSecond, and as many at once. Accounts that
// were never compared go first: the others leave them half of what has gathered, so that
// accounts which are compared again and again do not crowd out the rest.
func (l *Limits) take(first bool) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	if l.filled.IsZero() {
		l.tokens = l.PerSecond
	} else {
		l.tokens = min(l.PerSecond, l.tokens+l.PerSecond*now.Sub(l.filled).Seconds())
	}
	l.tokens, l.filled = max(l.tokens, 0), now
	least := 1.0
	if !first {
		least = min(l.PerSecond, 1+l.PerSecond/2)
	}
	if l.tokens < max(least, 1) {
		return errRate
	}
	l.tokens--
	return nil
}

func (l *Limits) pause() {
	l.mu.Lock()
	l.paused = time.Now().Add(pauseTime)
	l.mu.Unlock()
}

// mayAsk reports whether sessions may ask the old server for headers.
func (l *Limits) mayAsk() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return !time.Now().Before(l.spared)
}

// spareOld lets no session ask for some time: an answer came so late that a client waited.
func (l *Limits) spareOld() {
	l.mu.Lock()
	l.spared = time.Now().Add(spareTime)
	l.mu.Unlock()
}
