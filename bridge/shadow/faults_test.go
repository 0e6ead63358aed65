package shadow

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"postern/bridge"
	"postern/proxy"
	"postern/proxy/proxytest"
)

// failing lets the IMAP server fail at a command, in one of the ways of faults.
func (p *pair) failing(t *testing.T, command, fault string) {
	logIn := p.backend.Bridge.LogIn
	p.backend.Bridge.Timeout = 200 * time.Millisecond
	p.backend.Bridge.LogIn = func(ctx context.Context, l *proxy.Login) (net.Conn, string, error) {
		server, capabilities, err := logIn(ctx, l)
		if err != nil {
			return nil, "", err
		}
		near, far := proxytest.Pipe(t)
		go func() {
			defer func() { _ = server.Close() }()
			defer func() { _ = far.Close() }()
			go func() { _, _ = io.Copy(far, server) }()
			in := bufio.NewReader(far)
			for {
				line, err := in.ReadString('\n')
				if err != nil {
					return
				}
				tag, rest, _ := strings.Cut(line, " ")
				switch {
				case !strings.HasPrefix(strings.TrimPrefix(rest, "UID "), command):
					_, _ = io.WriteString(server, line)
				case fault == "silence":
				case fault == "gone":
					return
				case strings.HasPrefix(fault, "*"):
					_, _ = io.WriteString(far, fault)
					return
				default:
					_, _ = fmt.Fprintf(far, "%s %s\r\n", tag, fault)
				}
			}
		}()
		return near, capabilities, nil
	}
}

// Criterion: Whatever the IMAP server does - NO, BAD, silence, half an answer, BYE, gone, at each step - the client's session goes on as if there were none, nothing is recorded, and the comparison says that it failed.
func TestTheIMAPServerFails(t *testing.T) {
	for _, command := range []string{"SELECT", "SEARCH", "FETCH", "FETCH 1:2 (UID BODY.PEEK"} {
		for _, fault := range []string{"NO no", "NO [LIMIT] later", "BAD what", "silence", "* 2 EXI", "* BYE\r\n", "gone"} {
			t.Run(command+" "+strings.TrimSpace(fault), func(t *testing.T) {
				t.Parallel()
				p := start(t, 1, 2)
				p.old.SetMaildrop("alice", mail(1, 2))
				p.failing(t, command, fault)
				p.session(t, poll...)
				if e := p.next(t); e.Result != proxy.ShadowFailed || e.Err == nil {
					t.Errorf("compared: %+v", e)
				}
				p.notRecorded(t)
			})
		}
	}
}

// awaitEnd waits until no session is compared, for a second at most.
func (p *pair) awaitEnd() {
	for range 1000 {
		p.backend.Limits.mu.Lock()
		running := len(p.backend.Limits.running)
		p.backend.Limits.mu.Unlock()
		if running == 0 {
			return
		}
		time.Sleep(time.Millisecond)
	}
}

func (p *pair) notRecorded(t testing.TB) {
	t.Helper()
	if all, err := bridge.Accounts(t.Context(), p.backend.Bridge.Record); len(all) > 0 || err != nil {
		t.Errorf("a record of %v, %v", all, err)
	}
}

// Criterion: A wrong password at the IMAP server is reported, and the client does not learn of it; a server that is away or slow is spared for a minute, and sessions go on without it.
func TestTheIMAPServerRefusesTheLogin(t *testing.T) {
	p := start(t, 1)
	p.old.SetMaildrop("alice", mail(1))
	refusal := proxy.NewRefusal(proxy.Wrong, errors.New("no"))
	p.backend.Bridge.LogIn = func(context.Context, *proxy.Login) (net.Conn, string, error) { return nil, "", refusal }
	for range 2 {
		p.session(t, poll...)
		if e := p.next(t); e.Result != proxy.ShadowFailed || proxy.ReasonOf(e.Err) != proxy.Wrong {
			t.Errorf("a wrong password: %+v", e)
		}
	}
	refusal = proxy.NewRefusal(proxy.Unavailable, errors.New("away"))
	p.session(t, poll...)
	if e := p.next(t); e.Result != proxy.ShadowFailed || proxy.ReasonOf(e.Err) != proxy.Unavailable {
		t.Errorf("the server is away: %+v", e)
	}
	p.session(t, poll...)
	if e := p.next(t); e.Result != proxy.ShadowSkipped || !errors.Is(e.Err, errPaused) {
		t.Errorf("the server was away: %+v", e)
	}
	p.notRecorded(t)
}

// Criterion: The client's secret is cleared once both servers have answered the login, or after timeouts.backend, and when the old server refuses.
func TestTheSecretIsCleared(t *testing.T) {
	p := start(t, 1)
	p.old.SetMaildrop("alice", mail(1))
	p.session(t, poll...)
	p.next(t)
	p.awaitEnd()
	if b := (<-p.logins).Reveal(); len(b) > 0 {
		t.Error("the secret is there after the login")
	}
	p.backend.Bridge.Timeout = 50 * time.Millisecond
	silent := make(chan *proxy.Secret, 1)
	p.backend.Bridge.LogIn = func(ctx context.Context, l *proxy.Login) (net.Conn, string, error) {
		silent <- l.Secret
		<-ctx.Done()
		return nil, "", proxy.NewRefusal(proxy.Unavailable, context.Cause(ctx))
	}
	p.forgetClean(t)
	p.session(t, poll...)
	p.next(t)
	p.awaitEnd()
	if b := (<-silent).Reveal(); len(b) > 0 {
		t.Error("the secret is there after the time of an answer")
	}
	p.old.Remove("alice")
	var copied *proxy.Login
	old := p.backend.Old
	p.backend.Old = func(ctx context.Context, l *proxy.Login, w *Watcher) (proxy.Session, error) {
		copied = l
		return old(ctx, l, w)
	}
	if err := p.try(t, poll...); proxy.ReasonOf(err) == 0 {
		t.Errorf("the old server refuses: %v", err)
	}
	if copied == nil || len(p.compared) > 0 {
		t.Error("a refused login is compared")
	}
}

// A panic beside a session does not touch the session.
func TestAPanicBesideTheSession(t *testing.T) {
	p := start(t, 1)
	p.old.SetMaildrop("alice", mail(1))
	p.backend.Healthy = func() bool { panic("bug") }
	p.session(t, poll...)
	if e := p.next(t); e.Result != proxy.ShadowFailed || !strings.Contains(fmt.Sprint(e.Err), "bug") {
		t.Errorf("compared: %+v", e)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if !slices.ContainsFunc(p.others, func(e proxy.Event) bool { _, ok := e.(proxy.Panicked); return ok }) {
		t.Error("the panic is not reported")
	}
}

// Criterion: At most pop3.shadow.concurrency sessions of a backend are compared at a time, and pop3.shadow.per_second of them log in to the IMAP server; the others are only relayed.
func TestComparisonsAreLimited(t *testing.T) {
	p := start(t, 1)
	p.old.SetMaildrop("alice", mail(1))
	p.backend.Limits.Concurrency = 1
	release := make(chan struct{})
	p.backend.Healthy = func() bool { <-release; return true }
	p.session(t, poll...)
	p.session(t, poll...) // of the same account: the first one speaks for both
	if err := p.backend.Limits.enter("bob"); !errors.Is(err, errBusy) {
		t.Errorf("the second one: %v", err)
	}
	p.backend.Limits.Concurrency = 2
	if err := p.backend.Limits.enter("bob"); err != nil {
		t.Errorf("one of two: %v", err)
	}
	p.backend.Limits.leave("bob")
	close(release)
	if e := p.next(t); e.Result != proxy.ShadowClean && e.Result != proxy.ShadowUnproven {
		t.Errorf("the first one: %+v", e)
	}
	p.backend.Healthy = func() bool { return false }
	p.forgetClean(t)
	p.awaitEnd()
	p.session(t, poll...)
	if e := p.next(t); e.Result != proxy.ShadowSkipped || !errors.Is(e.Err, errUnhealthy) {
		t.Errorf("an IMAP server that is down: %+v", e)
	}
	synctest.Test(t, func(t *testing.T) {
		l := &Limits{Concurrency: 20, PerSecond: 5}
		taken := 0
		for range 100 {
			if l.take(true) == nil {
				taken++
			}
			time.Sleep(100 * time.Millisecond)
		}
		if taken < 52 || taken > 55 { // 5 at once, then 5 a second for 10 seconds
			t.Errorf("%d logins in 10 seconds", taken)
		}
		l.pause()
		if err := l.enter("alice"); !errors.Is(err, errPaused) {
			t.Errorf("in a pause: %v", err)
		}
		time.Sleep(pauseTime)
		if err := l.enter("alice"); err != nil {
			t.Errorf("after the pause: %v", err)
		}
		l.spareOld()
		if l.mayAsk() {
			t.Error("a slow old server is asked")
		}
		time.Sleep(spareTime)
		if !l.mayAsk() {
			t.Error("the old server is never asked again")
		}
	})
}

// Criterion: Where there are more sessions than pop3.shadow.per_second, accounts that were never compared go before those that were.
func TestAccountsThatWereNeverComparedGoFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &Limits{Concurrency: 20, PerSecond: 5}
		allowed := map[bool]int{}
		poll := func(first bool) {
			if l.take(first) == nil {
				allowed[first]++
			}
		}
		for range 1000 { // 10 seconds: 200 polls a second, of which one in ten is a first one
			for i := range 2 {
				poll(i == 1 && time.Now().UnixMilli()%50 == 0)
			}
			time.Sleep(10 * time.Millisecond)
		}
		if allowed[true] < 50 || allowed[true]+allowed[false] > 55 {
			t.Errorf("%d of accounts that were never compared, and %d others", allowed[true], allowed[false])
		}
		clear(allowed)
		for range 1000 {
			poll(false)
			time.Sleep(10 * time.Millisecond)
		}
		if allowed[false] < 48 {
			t.Errorf("alone, %d others in 10 seconds", allowed[false])
		}
	})
}

// Criterion: An account that was clean is compared again after 24 hours, or when its number of messages has changed.
func TestACleanAccountIsDueOnceADay(t *testing.T) {
	now := time.Now()
	for _, c := range []struct {
		state accountState
		n     int
		want  bool
	}{
		{accountState{}, 0, true},
		{accountState{Unasked: now, Messages: 3}, 3, false},
		{accountState{Unasked: now, Messages: 3}, 2, true},
		{accountState{Unasked: now.Add(-24 * time.Hour), Messages: 3}, 3, true},
		{accountState{Compared: now, Messages: 3}, 3, true},
		{accountState{Compared: now, Messages: 3, Clean: true}, 3, false},
		{accountState{Compared: now, Messages: 3, Clean: true}, 4, true},
		{accountState{Compared: now.Add(-23 * time.Hour), Messages: 3, Clean: true}, 3, false},
		{accountState{Compared: now.Add(-24 * time.Hour), Messages: 3, Clean: true}, 3, true},
	} {
		if got := c.state.due(c.n, now); got != c.want {
			t.Errorf("%+v with %d messages: %v, want %v", c.state, c.n, got, c.want)
		}
	}
	p := start(t, 1)
	p.old.SetMaildrop("alice", mail(1))
	p.want(t, clean(1, 1))
	<-p.logins
	p.session(t, poll...)
	p.session(t, poll...)
	if len(p.compared) > 0 || len(p.logins) > 0 {
		t.Error("a clean account is compared again")
	}
	p.old.SetMaildrop("alice", mail(1, 2))
	p.deliver(t, 2)
	p.want(t, clean(2, 1), "UIDL", "LIST", "RETR 2", "QUIT")
}

// Criterion: A record that cannot be written is whole or none: the comparison has failed, and the next one records all.
func TestTheRecordIsNotHalfWritten(t *testing.T) {
	p := start(t, 1, 2)
	p.old.SetMaildrop("alice", mail(1, 2))
	record := p.backend.Bridge.Record
	p.backend.Bridge.Record = broken{record}
	p.session(t, poll...)
	if e := p.next(t); e.Result != proxy.ShadowFailed || !errors.Is(e.Err, errBroken) {
		t.Errorf("compared: %+v", e)
	}
	p.backend.Bridge.Record = record
	p.notRecorded(t)
	p.want(t, clean(2, 2))
	p.bridged(t, "1 old-1", "2 old-2")
}

// A broken bucket writes nothing.
type broken struct{ bridge.Bucket }

var errBroken = errors.New("disk is full")

func (broken) UpdateAll(context.Context, []string, func(string, []byte) ([]byte, error)) error {
	return errBroken
}

func (broken) Update(context.Context, string, func([]byte) ([]byte, error)) error { return errBroken }

func (broken) Put(context.Context, string, []byte) error { return errBroken }
