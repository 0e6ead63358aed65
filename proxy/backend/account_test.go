package backend

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"postern/proxy"
)

// countedPool returns a Pool of one server that is never reached by its address, and what
// has happened to its logins. logInFor gives connections to it.
func countedPool(protocol string, limit AccountLimit) (*Pool, *recorder) {
	seen := &recorder{}
	return &Pool{
		Name: "main", Protocol: protocol, Members: []*Server{{Name: "main", Protocol: protocol, Address: "192.0.2.1:993"}},
		Observer: seen, Accounts: new(Accounts), AccountLimit: limit,
	}, seen
}

// loginFor returns a login of an account by a client of a protocol.
func loginFor(account, protocol string) *proxy.Login {
	return &proxy.Login{Account: account, Client: proxy.Client{Protocol: protocol}, Verified: true}
}

// connect is a login that the server accepts at once.
func connect(*Server) (*Conn, error) {
	here, there := net.Pipe()
	_ = there.Close()
	return &Conn{Conn: here}, nil
}

func (p *Pool) mustLogIn(t *testing.T, l *proxy.Login) *Conn {
	t.Helper()
	c, err := p.login(t.Context(), l, connect)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// checkNothingIsHeld checks that no connection is counted, and that no login waits.
func checkNothingIsHeld(t *testing.T, p *Pool) {
	t.Helper()
	p.Accounts.mu.Lock()
	defer p.Accounts.mu.Unlock()
	if n := len(p.Accounts.counts); n != 0 || p.Accounts.waiting != 0 {
		t.Errorf("%d accounts have connections, %d logins wait; want none", n, p.Accounts.waiting)
	}
	if n := p.all()[0].connections; n != 0 {
		t.Errorf("the server has %d connections, want none", n)
	}
}

func checkFull(t *testing.T, err error) {
	t.Helper()
	checkRefusal(t, err, proxy.TooManySessions)
	if r, ok := errors.AsType[*proxy.Refusal](err); ok && (!r.Verified || r.Doubtful) {
		t.Errorf("refusal %+v, want one that costs no guess", r)
	}
}

// Criterion: The fourth login of an account that may have three connections waits for one of them to end, and is refused temporarily, at no cost, if none ends within account_wait; other accounts do not wait.
func TestALoginWaitsForAConnectionOfItsAccount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, seen := countedPool(proxy.Submission, AccountLimit{Connections: 3, Wait: 10 * time.Second})
		var open []*Conn
		for range 3 {
			open = append(open, p.mustLogIn(t, loginFor(account, proxy.Submission)))
		}
		_ = p.mustLogIn(t, loginFor("bob@example.org", proxy.Submission)).Close()
		time.AfterFunc(4*time.Second, func() { _ = open[0].Close() })
		begun := time.Now()
		open[0], open = p.mustLogIn(t, loginFor(account, proxy.Submission)), append(open, open[0])
		if got := time.Since(begun); got != 4*time.Second {
			t.Errorf("the fourth waits for %v, want 4s", got)
		}
		begun = time.Now()
		_, err := p.login(t.Context(), loginFor(account, proxy.Submission), connect)
		checkFull(t, err)
		if got := time.Since(begun); got != 10*time.Second {
			t.Errorf("the fifth waits for %v, want 10s", got)
		}
		for _, want := range []string{"all 3 connections", "account_connections", "backend main, submission"} {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("error %q has no %q", err, want)
			}
		}
		for _, c := range open {
			_, _ = c.Close(), c.Close()
		}
		checkNothingIsHeld(t, p)
		if got, want := seen.queued(), "ok 4s, full 10s"; got != want {
			t.Errorf("events %s, want %s", got, want)
		}
	})
}

// queued returns the results of the logins that have waited.
func (r *recorder) queued() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var all []string
	for _, e := range r.events {
		switch e := e.(type) {
		case proxy.AccountQueued:
			all = append(all, fmt.Sprint(e.Result, " ", e.Duration))
		case proxy.AccountThrottled:
			all = append(all, fmt.Sprint("backoff ", e.Backoff))
		}
	}
	return strings.Join(all, ", ")
}

// Criterion: One of an account's connections to an IMAP server is not for IMAP clients, so that a POP3 client of the account comes in beside them.
func TestAConnectionIsKeptForOtherProtocols(t *testing.T) {
	p, _ := countedPool(proxy.IMAP, AccountLimit{Connections: 3, Kept: 1})
	first := p.mustLogIn(t, loginFor(account, proxy.IMAP))
	_ = p.mustLogIn(t, loginFor(account, proxy.IMAP))
	_, err := p.login(t.Context(), loginFor(account, proxy.IMAP), connect)
	checkFull(t, err)
	kept := p.mustLogIn(t, loginFor(account, proxy.POP3))
	_, err = p.login(t.Context(), loginFor(account, proxy.POP3), connect)
	checkFull(t, err)
	_ = first.Close()
	second := p.mustLogIn(t, loginFor(account, proxy.POP3))
	_, err = p.login(t.Context(), loginFor(account, proxy.IMAP), connect)
	checkFull(t, err)
	_, _ = kept.Close(), second.Close()
	_ = p.mustLogIn(t, loginFor(account, proxy.IMAP)).Close()
}

// Logins go on in their order, but a session that has lost its connection is the first, and
// a login that may not have the connection that ends does not stop the one behind it.
func TestTheQueueOfAnAccount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, _ := countedPool(proxy.IMAP, AccountLimit{Connections: 2, Kept: 1, Wait: time.Minute})
		imap := p.mustLogIn(t, loginFor(account, proxy.IMAP))
		pop3 := p.mustLogIn(t, loginFor(account, proxy.POP3))
		var order []string
		conns := make(chan *Conn, 4)
		enqueue := func(name string, l *proxy.Login) {
			go func() {
				c, err := p.login(t.Context(), l, connect)
				if err != nil {
					t.Error(err)
				}
				order = append(order, name)
				conns <- c
			}()
			synctest.Wait()
		}
		enqueue("imap", loginFor(account, proxy.IMAP))
		enqueue("pop3", loginFor(account, proxy.POP3))
		again := loginFor(account, proxy.POP3)
		again.Again = true
		enqueue("again", again)
		if n := p.Accounts.Waiting(); n != 3 {
			t.Errorf("%d wait, want 3", n)
		}
		_ = pop3.Close()
		_ = (<-conns).Close()
		_ = (<-conns).Close()
		synctest.Wait()
		_ = imap.Close()
		_ = (<-conns).Close()
		synctest.Wait()
		if got, want := strings.Join(order, " "), "again pop3 imap"; got != want {
			t.Errorf("the order is %s, want %s", got, want)
		}
		checkNothingIsHeld(t, p)
	})
}

// Criterion: Two accounts with the same mailbox share its connections to the backend, and so do all listeners and the servers of a backend.
func TestAnAccountIsCountedByItsNameAtTheBackend(t *testing.T) {
	p, _ := countedPool(proxy.Submission, AccountLimit{Connections: 2})
	p.Mailbox = func(account string) string {
		if account == "scanner@example.org" || account == "Copier@example.org" {
			return "Shared@example.org"
		}
		return account
	}
	p.mustLogIn(t, loginFor("scanner@example.org", proxy.Submission))
	p.mustLogIn(t, loginFor("Copier@example.org", proxy.Submission))
	for _, l := range []*proxy.Login{loginFor("scanner@example.org", proxy.Submission), loginFor("shared@example.org", proxy.Submission)} {
		_, err := p.login(t.Context(), l, connect)
		checkFull(t, err)
	}
	// A reload that changes the limit makes another Pool, which counts on.
	next := &Pool{Name: p.Name, Protocol: p.Protocol, Members: p.Members, Accounts: p.Accounts, AccountLimit: AccountLimit{Connections: 3}}
	c := next.mustLogIn(t, loginFor("shared@example.org", proxy.Submission))
	_, err := next.login(t.Context(), loginFor("shared@example.org", proxy.Submission), connect)
	checkFull(t, err)
	_ = c.Close()
	next.AccountLimit.Connections = 1
	_, err = next.login(t.Context(), loginFor("shared@example.org", proxy.Submission), connect)
	checkFull(t, err)
	next.AccountLimit.Connections = 0
	_ = next.mustLogIn(t, loginFor("shared@example.org", proxy.Submission)).Close()
}

// Criterion: The logins that wait for a connection of their account are bounded, for each account and in all; a password that was not checked yet is not called right.
func TestTheQueueIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, _ := countedPool(proxy.IMAP, AccountLimit{Connections: 1, Wait: time.Minute})
		ctx, cancel := context.WithCancel(t.Context())
		full := func(account, want string) {
			t.Helper()
			l := loginFor(account, proxy.IMAP)
			l.Verified = false
			_, err := p.login(ctx, l, connect)
			checkRefusal(t, err, proxy.TooManySessions)
			if r, ok := errors.AsType[*proxy.Refusal](err); ok && (r.Verified || r.Doubtful || !strings.Contains(err.Error(), want)) {
				t.Errorf("refusal %+v, want an unverified one with %q", r, want)
			}
		}
		for i := range mostWaiting / mostQueued {
			name := fmt.Sprintf("user%d@example.org", i)
			p.mustLogIn(t, loginFor(name, proxy.IMAP))
			for range mostQueued {
				go func() { _, _ = p.login(ctx, loginFor(name, proxy.IMAP), connect) }()
			}
			synctest.Wait()
			full(name, fmt.Sprintf("and %d logins wait", mostQueued))
		}
		p.mustLogIn(t, loginFor(account, proxy.IMAP))
		full(account, fmt.Sprintf("%d logins of all accounts", mostWaiting))
		cancel()
		synctest.Wait()
		if n := p.Accounts.Waiting(); n != 0 {
			t.Errorf("%d wait after the end, want none", n)
		}
	})
}

// Criterion: A login that waits for a connection of its account ends with its client, with a kick and with a shutdown, and gives back the connection that it gets in that moment.
func TestTheWaitEndsWithItsClient(t *testing.T) {
	kicked := proxy.NewRefusal(proxy.Kicked, nil)
	for name, test := range map[string]struct {
		end  func(leave, cancel context.CancelCauseFunc)
		want error
	}{
		"left":   {func(leave, _ context.CancelCauseFunc) { leave(io.EOF) }, io.EOF},
		"kicked": {func(_, cancel context.CancelCauseFunc) { cancel(kicked) }, kicked},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p, seen := countedPool(proxy.IMAP, AccountLimit{Connections: 1, Wait: time.Minute})
				open := p.mustLogIn(t, loginFor(account, proxy.IMAP))
				ctx, cancel := context.WithCancelCause(t.Context())
				var leave context.CancelCauseFunc
				stopped := false
				l := loginFor(account, proxy.IMAP)
				l.Watch = func(ctx context.Context) (watched context.Context, stop func()) {
					watched, leave = context.WithCancelCause(ctx)
					return watched, func() { stopped = true }
				}
				done := make(chan error, 1)
				go func() {
					_, err := p.login(ctx, l, connect)
					done <- err
				}()
				synctest.Wait()
				test.end(leave, cancel)
				_ = open.Close()
				if err := <-done; !errors.Is(err, test.want) {
					t.Errorf("error %v, want %v", err, test.want)
				}
				if !stopped {
					t.Error("the client is still watched")
				}
				checkNothingIsHeld(t, p)
				if got, want := seen.queued(), "client_abort 0s"; got != want {
					t.Errorf("events %s, want %s", got, want)
				}
				cancel(nil)
			})
		})
	}
}

// Criterion: Whatever becomes of 200 sessions of ten accounts (a server that dies or refuses, a panic, a client that leaves, a kick, a limit that changes), the backend never sees more connections of an account than the limit, and none is counted in the end.
func TestEveryConnectionIsGivenBack(t *testing.T) {
	const limit = 3
	p, _ := countedPool(proxy.IMAP, AccountLimit{Connections: limit, Kept: 1, Wait: 200 * time.Millisecond})
	pools := []*Pool{p, {Name: "main", Protocol: proxy.IMAP, Members: p.Members, Accounts: p.Accounts, AccountLimit: AccountLimit{Connections: limit - 1, Wait: 50 * time.Millisecond}}}
	var connections [10]atomic.Int32
	var sessions sync.WaitGroup
	for i := range 200 {
		sessions.Go(func() {
			defer func() { _ = recover() }()
			n := i % len(connections)
			l := loginFor(fmt.Sprintf("user%d@example.org", n), []string{proxy.IMAP, proxy.POP3}[rand.IntN(2)])
			l.Again = rand.IntN(4) == 0
			ctx, cancel := context.WithCancelCause(t.Context())
			defer cancel(nil)
			time.AfterFunc(rand.N(300*time.Millisecond), func() { cancel(proxy.NewRefusal(proxy.Kicked, nil)) })
			c, err := pools[rand.IntN(len(pools))].login(ctx, l, func(s *Server) (*Conn, error) {
				if got := connections[n].Add(1); got > limit {
					t.Errorf("%d connections of an account, want at most %d", got, limit)
				}
				ended := sync.OnceFunc(func() { connections[n].Add(-1) })
				time.Sleep(rand.N(20 * time.Millisecond))
				switch rand.IntN(5) {
				case 0:
					ended()
					panic("in a login")
				case 1:
					ended()
					return nil, s.unavailable(io.ErrUnexpectedEOF)
				}
				c, err := connect(s)
				c.Conn = closer{c.Conn, ended}
				return c, err
			})
			if err != nil {
				return
			}
			time.Sleep(rand.N(50 * time.Millisecond))
			if rand.IntN(2) == 0 {
				_ = c.Close()
			}
			_ = c.Close()
		})
	}
	sessions.Wait()
	checkNothingIsHeld(t, p)
}

// A closer calls a function when it is closed.
type closer struct {
	net.Conn
	closed func()
}

func (c closer) Close() error {
	c.closed()
	return c.Conn.Close()
}

// Criterion: A server that throttles an account and says for how long gets no login of that account meanwhile, at most 5 minutes; the clients are refused temporarily, at no cost, and the logins of other accounts go on.
func TestASuggestedBackoffIsHonoured(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, seen := countedPool(proxy.IMAP, AccountLimit{})
		s := p.Members[0]
		asked := 0
		throttle := func(text string) func(*Server) (*Conn, error) {
			return func(*Server) (*Conn, error) {
				asked++
				r := imapResponse(t, text)
				l := loginFor(account, proxy.IMAP)
				l.Mechanism = "XOAUTH2"
				return nil, s.verdictFor(l, s.imapVerdict(Exchange, r))
			}
		}
		_, err := p.login(t.Context(), loginFor(account, proxy.IMAP), throttle("BAD Request is throttled. Suggested Backoff Time: 90000 milliseconds"))
		checkRefusal(t, err, proxy.Unavailable)
		time.Sleep(30 * time.Second)
		_, err = p.login(t.Context(), loginFor(account, proxy.POP3), throttle(""))
		checkRefusal(t, err, proxy.Unavailable)
		if r, ok := errors.AsType[*proxy.Refusal](err); !ok || !r.Verified || r.Doubtful || !strings.Contains(err.Error(), "for another 1m0s") {
			t.Errorf("refusal %v, want one that costs no guess and says how long", err)
		}
		_ = p.mustLogIn(t, loginFor("bob@example.org", proxy.IMAP)).Close()
		time.Sleep(time.Minute)
		c := p.mustLogIn(t, loginFor(account, proxy.IMAP))
		if asked != 1 {
			t.Errorf("the server was asked %d times, want once", asked)
		}

		// In a session, and for longer than it is believed.
		c.CommandRefused("User is authenticated but not connected.")
		c.CommandRefused("Request is throttled. Suggested Backoff Time: 4000000000 milliseconds")
		_ = c.Close()
		time.Sleep(5*time.Minute - time.Second)
		_, err = p.login(t.Context(), loginFor(account, proxy.IMAP), connect)
		checkRefusal(t, err, proxy.Unavailable)
		time.Sleep(time.Second)
		_ = p.mustLogIn(t, loginFor(account, proxy.IMAP)).Close()
		if got, want := seen.queued(), "backoff 1m30s, throttled 0s, backoff 5m0s, throttled 0s"; got != want {
			t.Errorf("events %s, want %s", got, want)
		}
		checkNothingIsHeld(t, p)

		// Whoever may be guessing brings no backoff about.
		l := loginFor(account, proxy.IMAP)
		l.Verified = false
		_, _ = p.login(t.Context(), l, throttle("NO Request is throttled. Suggested Backoff Time: 90000 milliseconds"))
		_ = p.mustLogIn(t, loginFor(account, proxy.IMAP)).Close()

		// Nor does a session with the client's password: its next login asks the server.
		c = p.mustLogIn(t, l)
		c.CommandRefused("Request is throttled. Suggested Backoff Time: 90000 milliseconds")
		_ = c.Close()
		_ = p.mustLogIn(t, loginFor(account, proxy.IMAP)).Close()
	})
}

func TestSuggestedBackoff(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"Request is throttled. Suggested Backoff Time: 299931 milliseconds":  299931 * time.Millisecond,
		"Request is throttled. Suggested Backoff Time: 1 milliseconds.":      time.Millisecond,
		"request is throttled. suggested backoff time:   20 MILLISECONDS":    20 * time.Millisecond,
		"Request is throttled. Suggested Backoff Time: 0 milliseconds":       0,
		"Request is throttled. Suggested Backoff Time: -5 milliseconds":      0,
		"Request is throttled. Suggested Backoff Time: 5 minutes":            0,
		"Request is throttled. Suggested Backoff Time: 99999999999999999999": 0,
		"Request is throttled. Suggested Backoff Time: ":                     0,
		"Request is throttled.": 0,
		"":                      0,
	} {
		if got := suggestedBackoff(text); got != want {
			t.Errorf("suggestedBackoff(%q) = %v, want %v", text, got, want)
		}
	}
}

// The accounts whose backoff is remembered are bounded, and those that have ended go first.
func TestBackoffsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var a Accounts
		for i := range mostBackoffs {
			a.backOff(fmt.Sprint(i), time.Minute)
		}
		a.backOff("one more", time.Minute)
		if a.backoff("one more") != 0 || len(a.backoffs) != mostBackoffs {
			t.Errorf("%d backoffs, want %d", len(a.backoffs), mostBackoffs)
		}
		time.Sleep(time.Minute)
		a.backOff("one more", time.Minute)
		if got := a.backoff("one more"); got != time.Minute || len(a.backoffs) != 1 {
			t.Errorf("a backoff of %v among %d, want the only one", got, len(a.backoffs))
		}
	})
}
