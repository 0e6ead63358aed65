package shadow

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"postern/bridge"
	"postern/proxy"
	"postern/proxy/backend"
	"postern/proxy/memserver"
	"postern/proxy/proxytest"
	"postern/proxy/state"
)

// A pair of servers with the maildrop and the INBOX of alice.
type pair struct {
	old      *proxytest.POP3Server
	imap     *memserver.Server
	backend  *Backend
	compared chan proxy.ShadowCompared
	logins   chan *proxy.Secret // of logins to the IMAP server

	mu     sync.Mutex
	others []proxy.Event
}

// Observe implements proxy.Observer.
func (p *pair) Observe(e proxy.Event) {
	if e, ok := e.(proxy.ShadowCompared); ok {
		p.compared <- e
		return
	}
	p.mu.Lock()
	p.others = append(p.others, e)
	p.mu.Unlock()
}

func raw(i int) string {
	return fmt.Sprintf("Message-ID: <%d@example.org>\r\nSubject: %d\r\n\r\n.text\r\n", i, i)
}

// mail returns the messages with these numbers as the old server shows them.
func mail(numbers ...int) (all []proxytest.POP3Message) {
	for _, i := range numbers {
		all = append(all, proxytest.POP3Message{UIDL: fmt.Sprintf("old-%d", i), Raw: raw(i)})
	}
	return all
}

// start starts both servers; INBOX has the messages with these numbers.
func start(t testing.TB, numbers ...int) *pair {
	t.Helper()
	p := &pair{
		old: proxytest.StartPOP3Server(t), compared: make(chan proxy.ShadowCompared, 100), logins: make(chan *proxy.Secret, 10_000),
		imap: memserver.New(memserver.Options{Accounts: []memserver.Account{{User: "alice", Password: "secret"}}, UIDValidity: 7}),
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() { done <- p.imap.ServeIMAP(ln) }()
	t.Cleanup(func() {
		_ = p.imap.Close()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	p.deliver(t, numbers...)
	imap := &backend.Server{Name: "main", Protocol: proxy.IMAP, Address: ln.Addr().String(), TLS: backend.None}
	old := &backend.POP3{Server: &backend.Server{Name: "old", Protocol: proxy.POP3, Address: p.old.Addr, TLS: backend.None}}
	p.backend = &Backend{
		Limits: &Limits{Concurrency: 20, PerSecond: 1000},
		Bridge: &bridge.Backend{
			Name: "main", Observer: p, Cache: new(state.Memory), Record: new(state.Memory),
			LogIn: func(ctx context.Context, l *proxy.Login) (net.Conn, string, error) {
				p.logins <- l.Secret
				conn, capabilities, err := imap.LoginIMAP(ctx, l)
				if err != nil {
					return nil, "", err
				}
				return conn, capabilities, nil
			},
		},
		Old: func(ctx context.Context, l *proxy.Login, w *Watcher) (proxy.Session, error) {
			return old.LoginWatched(ctx, l, w)
		},
	}
	return p
}

// deliver adds messages to INBOX.
func (p *pair) deliver(t testing.TB, numbers ...int) {
	t.Helper()
	for _, i := range numbers {
		p.append(t, raw(i))
	}
}

func (p *pair) append(t testing.TB, text string) {
	t.Helper()
	if err := p.imap.Append("alice", []byte(text)); err != nil {
		t.Fatal(err)
	}
}

// session is a POP3 session of alice that sends commands, and reads all responses.
func (p *pair) session(t testing.TB, commands ...string) {
	t.Helper()
	if err := p.try(t, commands...); err != nil {
		t.Fatal(err)
	}
}

func (p *pair) try(t testing.TB, commands ...string) error {
	p.awaitEnd()
	client, server := proxytest.Pipe(t)
	login := &proxy.Login{Client: proxy.Client{ID: "ID42"}, Account: "alice", Mechanism: "PLAIN", Secret: proxy.NewSecret([]byte("secret"))}
	session, err := p.backend.Login(t.Context(), login)
	if err != nil {
		return err
	}
	if _, err := session.Open(t.Context()); err != nil {
		_ = session.Close()
		return err
	}
	conn := proxy.NewConn(server, login.Client, nil, 0)
	ended := make(chan error, 1)
	go func() {
		ended <- session.Run(t.Context(), conn)
		_ = conn.Close()
		_ = session.Close()
	}()
	in := bufio.NewReader(client)
	for _, command := range commands {
		if command == "QUIT" {
			awaitWatch(session.(*shadowed).watcher)
		}
		if _, err := io.WriteString(client, command+"\r\n"); err != nil {
			return err
		}
		line, err := in.ReadString('\n')
		if err != nil {
			return err
		}
		word, arguments, _ := strings.Cut(command, " ")
		if strings.HasPrefix(line, "+OK") && (word == "RETR" || word == "TOP" || arguments == "" && (word == "LIST" || word == "UIDL")) {
			for line != ".\r\n" && err == nil {
				line, err = in.ReadString('\n')
			}
		}
		if err != nil {
			return err
		}
	}
	_ = client.Close()
	if err := <-ended; err != nil && !errors.Is(err, proxy.ErrClientClosed) && !errors.Is(err, proxy.ErrQuit) {
		return err
	}
	return nil
}

// awaitWatch waits until w knows what is wanted, or for a moment.
func awaitWatch(w *Watcher) {
	for range 200 {
		w.mu.Lock()
		ready := w.wanted != nil || !w.on
		w.mu.Unlock()
		if ready {
			return
		}
		time.Sleep(time.Millisecond)
	}
}

// next returns the next comparison, without what differs from run to run.
func (p *pair) next(t testing.TB) proxy.ShadowCompared {
	t.Helper()
	select {
	case e := <-p.compared:
		if e.Account != "alice" || e.Backend != "main" || e.Client.ID != "ID42" {
			t.Errorf("the comparison is that of %q at %q, in the session %q", e.Account, e.Backend, e.Client.ID)
		}
		e.Client, e.Account, e.Backend, e.Duration = proxy.Client{}, "", "", 0
		return e
	case <-time.After(10 * time.Second):
		t.Fatal("nothing is compared")
		return proxy.ShadowCompared{}
	}
}

var poll = []string{"STAT", "LIST", "UIDL", "QUIT"}

// want polls, and wants what is compared then.
func (p *pair) want(t testing.TB, want proxy.ShadowCompared, commands ...string) {
	t.Helper()
	if commands == nil {
		commands = poll
	}
	p.session(t, commands...)
	if got := p.next(t); got != want {
		t.Errorf("compared: %+v, want %+v", got, want)
	}
}

func clean(n, learnt int) proxy.ShadowCompared {
	return proxy.ShadowCompared{Result: proxy.ShadowClean, Messages: n, Found: n, Learnt: learnt}
}

// Criterion: In the mode shadow a session with the old server is compared with INBOX when it has ended, and the account's UIDLs are recorded: the bridge then shows the same.
func TestASessionIsComparedAndItsUIDLsAreLearnt(t *testing.T) {
	p := start(t, 2, 1, 3)
	p.old.SetMaildrop("alice", mail(1, 2, 3))
	first := clean(3, 3)
	first.Order = 1
	p.want(t, first)
	if n := p.old.Commands("PASS"); n != 1 {
		t.Errorf("%d logins at the old server", n)
	}
	if n := p.old.Commands("TOP"); n != 3 {
		t.Errorf("TOP came %d times", n)
	}
	p.bridged(t, "1 old-2", "2 old-1", "3 old-3")
}

// bridged wants a session of the bridge to show these UIDLs.
func (p *pair) bridged(t testing.TB, want ...string) {
	t.Helper()
	client, server := proxytest.Pipe(t)
	b := p.backend.Bridge
	login := &proxy.Login{Account: "alice", Mechanism: "PLAIN", Secret: proxy.NewSecret([]byte("secret"))}
	session, err := b.Login(t.Context(), login)
	if err != nil {
		t.Fatal(err)
	}
	<-p.logins
	if _, err := session.Open(t.Context()); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		_ = session.Run(t.Context(), proxy.NewConn(server, login.Client, nil, 0))
		_ = session.Close()
		close(done)
	}()
	proxytest.Transcript(t, client, "C: UIDL\nS: +OK *\nS: "+strings.Join(append(want, "."), "\nS: ")+"\nC: QUIT\nS: +OK *")
	<-done
}

// Criterion: Shadow finds each difference: a message that is missing in INBOX, one that only INBOX has, another size, UIDL or order; and none where there is none. Messages behind the last copy are late, and are no difference.
func TestDifferencesAreFound(t *testing.T) {
	sized := mail(1, 2, 3)
	sized[1].Size = 1000
	for _, c := range []struct {
		name    string
		inbox   []int
		old     []proxytest.POP3Message
		want    proxy.ShadowCompared // after the poll that has proven all
		prepare func(t *testing.T, p *pair)
	}{
		{name: "none", inbox: []int{1, 2, 3}, old: mail(1, 2, 3), want: clean(3, 0)},
		{name: "both are empty", want: clean(0, 0)},
		{name: "one is missing", inbox: []int{1, 3}, old: mail(1, 2, 3), want: proxy.ShadowCompared{Result: proxy.ShadowDiffers, Messages: 3, Found: 2, Missing: 1}},
		{name: "one is only in INBOX", inbox: []int{1, 2, 3}, old: mail(1, 3), want: proxy.ShadowCompared{Result: proxy.ShadowDiffers, Messages: 2, Found: 2, Extra: 1}},
		{name: "the last is only in INBOX", inbox: []int{1, 2}, old: mail(1), want: proxy.ShadowCompared{Result: proxy.ShadowDiffers, Messages: 1, Found: 1, Extra: 1}},
		{name: "all are only in INBOX", inbox: []int{1, 2}, want: proxy.ShadowCompared{Result: proxy.ShadowDiffers, Extra: 2}},
		{name: "another size", inbox: []int{1, 2, 3}, old: sized, want: proxy.ShadowCompared{Result: proxy.ShadowClean, Messages: 3, Found: 3, Sizes: 1}},
		{name: "another order", inbox: []int{1, 3, 2}, old: mail(1, 2, 3), want: proxy.ShadowCompared{Result: proxy.ShadowClean, Messages: 3, Found: 3, Order: 1}},
		{name: "two are late", inbox: []int{1, 2}, old: mail(1, 2, 3, 4), want: proxy.ShadowCompared{Result: proxy.ShadowClean, Messages: 4, Found: 2, Late: 2}},
		{name: "one is missing, one late", inbox: []int{1, 3}, old: mail(1, 2, 3, 4), want: proxy.ShadowCompared{Result: proxy.ShadowDiffers, Messages: 4, Found: 2, Missing: 1, Late: 1}},
		{name: "INBOX is empty", old: mail(1, 2), want: proxy.ShadowCompared{Result: proxy.ShadowNotCopied, Messages: 2, Late: 2}},
		{name: "INBOX has other mail", inbox: []int{8, 9}, old: mail(1, 2), want: proxy.ShadowCompared{Result: proxy.ShadowNotCopied, Messages: 2, Late: 2, Extra: 2}},
		{
			name: "another UIDL was shown before", inbox: []int{1, 2}, old: mail(1, 2), want: proxy.ShadowCompared{Result: proxy.ShadowDiffers, Messages: 2, Found: 2, UIDLs: 2},
			prepare: func(t *testing.T, p *pair) { p.bridged(t, "1 0000000100000007", "2 0000000200000007") },
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := start(t, c.inbox...)
			p.old.SetMaildrop("alice", c.old)
			if c.prepare != nil {
				c.prepare(t, p)
			}
			for p.session(t, poll...); p.next(t).Unproven > 0; p.session(t, poll...) {
			}
			p.forgetClean(t)
			p.want(t, c.want)
		})
	}
}

// forgetClean makes the account one that is due.
func (p *pair) forgetClean(t testing.TB) {
	t.Helper()
	c := &comparison{backend: p.backend, login: &proxy.Login{Account: "alice"}}
	c.state = c.load(t.Context())
	c.state.Clean = false
	c.save(t.Context())
}

// Criterion: A message that is copied to INBOX, or comes new, after the UIDLs were recorded gets the UIDL of the old server at the next session.
func TestLateAndNewMessagesAreLearnt(t *testing.T) {
	p := start(t, 1, 2)
	p.old.SetMaildrop("alice", mail(1, 2, 3, 4))
	p.want(t, proxy.ShadowCompared{Result: proxy.ShadowClean, Messages: 4, Found: 2, Late: 2, Learnt: 2})
	p.deliver(t, 3)
	p.old.SetMaildrop("alice", mail(1, 2, 3, 4, 5))
	p.want(t, proxy.ShadowCompared{Result: proxy.ShadowClean, Messages: 5, Found: 3, Late: 2, Learnt: 1}, "LIST", "UIDL", "RETR 5", "QUIT")
	p.deliver(t, 4)
	p.deliver(t, 6, 5) // another one has come to INBOX alone
	p.forgetClean(t)
	p.want(t, proxy.ShadowCompared{Result: proxy.ShadowDiffers, Messages: 5, Found: 5, Extra: 1, Learnt: 2})
	p.bridged(t, "1 old-1", "2 old-2", "3 old-3", "4 old-4", "5 0000000500000007", "6 old-5")
}

// Criterion: A message that stays late for three days is missing.
func TestAMessageIsNotLateForEver(t *testing.T) {
	p := start(t, 1)
	p.old.SetMaildrop("alice", mail(1, 2))
	p.want(t, proxy.ShadowCompared{Result: proxy.ShadowClean, Messages: 2, Found: 1, Late: 1, Learnt: 1})
	c := &comparison{backend: p.backend, login: &proxy.Login{Account: "alice"}}
	c.state = c.load(t.Context())
	c.state.LateSince, c.state.Compared = c.state.LateSince.Add(-lateTime-time.Hour), c.state.Compared.Add(-again)
	c.save(t.Context())
	p.want(t, proxy.ShadowCompared{Result: proxy.ShadowDiffers, Messages: 2, Found: 1, Missing: 1})
}

// Criterion: A session whose client asks for no UIDLs is not compared, and says so; a client that asks for those of single messages is one that keeps them: all are then asked for before its QUIT.
func TestClientsWithoutUIDLs(t *testing.T) {
	p := start(t, 1, 2)
	p.old.SetMaildrop("alice", mail(1, 2))
	p.want(t, proxy.ShadowCompared{Result: proxy.ShadowNoUIDLs, Messages: 2}, "STAT", "LIST", "RETR 1", "QUIT")
	p.notRecorded(t)
	if n := p.old.Commands("UIDL") + p.old.Commands("TOP"); n != 0 {
		t.Errorf("the old server was asked %d times", n)
	}
	p.old.SetMaildrop("alice", mail(1, 2, 3))
	p.deliver(t, 3)
	p.want(t, clean(3, 3), "UIDL 3", "QUIT")
}

// Criterion: Messages with the same header are told apart by all that they contain; exact copies have the UIDLs of the old server, one for each or one for all.
func TestCopiesAreToldApart(t *testing.T) {
	twin := "Message-ID: <1@example.org>\r\n\r\nanother text\r\n"
	for name, old := range map[string][]proxytest.POP3Message{
		"one UIDL each":    {{UIDL: "a", Raw: raw(1)}, {UIDL: "b", Raw: raw(1)}, {UIDL: "c", Raw: raw(2)}, {UIDL: "d", Raw: twin}},
		"one UIDL for all": {{UIDL: "a", Raw: raw(1)}, {UIDL: "a", Raw: raw(1)}, {UIDL: "c", Raw: raw(2)}, {UIDL: "d", Raw: twin}},
	} {
		t.Run(name, func(t *testing.T) {
			p := start(t)
			for _, text := range []string{twin, raw(1), raw(2), raw(1)} {
				p.append(t, text)
			}
			p.old.SetMaildrop("alice", old)
			for range 5 {
				p.session(t, poll...)
				if e := p.next(t); e.Result == proxy.ShadowClean {
					break
				}
			}
			p.bridged(t, "1 d", "2 "+old[0].UIDL, "3 c", "4 "+old[1].UIDL)
			p.forgetClean(t)
			again := clean(4, 0)
			again.Order = 3
			p.want(t, again)
			if n := p.old.Commands("RETR"); n > 0 {
				t.Errorf("RETR came %d times", n)
			}
		})
	}
}

// Criterion: What a session has deleted is not compared; when the old server does not confirm it, nothing is.
func TestDeletedMessages(t *testing.T) {
	p := start(t, 2)
	p.old.SetMaildrop("alice", mail(1, 2, 3))
	p.want(t, proxy.ShadowCompared{Result: proxy.ShadowUnproven, Messages: 1, Unproven: 1}, "LIST", "UIDL", "DELE 1", "DELE 3", "QUIT")
	p.want(t, clean(1, 1))
	p.forgetClean(t)
	p.want(t, proxy.ShadowCompared{Result: proxy.ShadowDiffers, Extra: 1}, "DELE 1", "QUIT")
}

// Criterion: An account that was served by the bridge, and shown other UIDLs, keeps these: a comparison says that moving it is not safe. On the same store with the same UIDLs it is safe.
func TestMovingBack(t *testing.T) {
	p := start(t, 1, 2)
	p.bridged(t, "1 0000000100000007", "2 0000000200000007")
	p.old.SetMaildrop("alice", mail(1, 2))
	p.want(t, proxy.ShadowCompared{Result: proxy.ShadowDiffers, Messages: 2, Found: 2, UIDLs: 2})
	p.bridged(t, "1 0000000100000007", "2 0000000200000007")
	same := mail(1, 2)
	same[0].UIDL, same[1].UIDL = "0000000100000007", "0000000200000007"
	p.old.SetMaildrop("alice", same)
	for range 3 {
		p.session(t, poll...)
		if e := p.next(t); e.Result == proxy.ShadowClean {
			return
		}
	}
	t.Error("the same UIDLs are not clean")
}

// Criterion: A message that comes to a store that both servers have, after the old one has counted its messages, is no difference, and is recorded with the UIDL of the old server at the next session.
func TestAMessageComesDuringTheSession(t *testing.T) {
	p := start(t, 1, 2, 3)
	p.old.SetMaildrop("alice", mail(1, 2))
	p.want(t, proxy.ShadowCompared{Result: proxy.ShadowUnproven, Messages: 2, Found: 2, Unproven: 1, Learnt: 2})
	p.old.SetMaildrop("alice", mail(1, 2, 3))
	p.deliver(t, 4)
	p.want(t, clean(3, 1), "LIST", "UIDL", "RETR 3", "QUIT")
	p.old.SetMaildrop("alice", mail(1, 2, 3, 4))
	p.want(t, clean(4, 1), "LIST", "UIDL", "RETR 4", "QUIT")
	p.bridged(t, "1 old-1", "2 old-2", "3 old-3", "4 old-4")
}

// Criterion: The copy is made anew, so that INBOX has another UIDVALIDITY: the next session records the UIDLs of the old server for it.
func TestACopyIsMadeAnew(t *testing.T) {
	p := start(t, 1, 2)
	p.old.SetMaildrop("alice", mail(1, 2))
	p.want(t, clean(2, 2))
	if err := p.imap.Renew("alice"); err != nil {
		t.Fatal(err)
	}
	p.deliver(t, 2, 1)
	p.forgetClean(t)
	again := clean(2, 2)
	again.Order = 1
	p.want(t, again)
	p.bridged(t, "1 old-2", "2 old-1")
}

// Criterion: A server without TOP proves what clients retrieve; the rest stays unproven, and is recorded when it is proven.
func TestAServerWithoutTOP(t *testing.T) {
	for _, more := range []int{0, 50} { // messages that are never retrieved
		p := start(t, 1, 2, 3)
		p.old.NoTop = true
		maildrop := mail(1, 2, 3)
		for i := range more {
			maildrop = append(maildrop, mail(100+i)...)
			p.deliver(t, 100+i)
		}
		p.old.SetMaildrop("alice", maildrop)
		n := 3 + more
		p.want(t, proxy.ShadowCompared{Result: proxy.ShadowUnproven, Messages: n, Unproven: n})
		p.notRecorded(t)
		p.want(t, proxy.ShadowCompared{Result: proxy.ShadowUnproven, Messages: n, Found: 2, Unproven: 1 + more, Learnt: 2}, "LIST", "UIDL", "RETR 1", "RETR 3", "QUIT")
		p.want(t, proxy.ShadowCompared{Result: proxy.ShadowUnproven, Messages: n, Found: 2, Unproven: 1 + more})
		last := proxy.ShadowCompared{Result: proxy.ShadowUnproven, Messages: n, Found: 3, Unproven: more, Learnt: 1}
		if more == 0 {
			last.Result = proxy.ShadowClean
			p.want(t, last, "LIST", "UIDL", "RETR 2", "QUIT")
			p.bridged(t, "1 old-1", "2 old-2", "3 old-3")
		} else {
			p.want(t, last, "LIST", "UIDL", "RETR 2", "QUIT")
		}
	}
}

// Criterion: A message that is copied to INBOX after the last session in shadow has, in the bridge, the UIDL that the old server has shown.
func TestALateCopyComesToTheBridge(t *testing.T) {
	p := start(t, 1, 2)
	p.old.SetMaildrop("alice", mail(1, 2, 3))
	p.want(t, proxy.ShadowCompared{Result: proxy.ShadowClean, Messages: 3, Found: 2, Late: 1, Learnt: 2})
	p.deliver(t, 4, 3)
	p.bridged(t, "1 old-1", "2 old-2", "3 0000000300000007", "4 old-3")
}

// Criterion: The headers of a large maildrop are gathered by many sessions; the IMAP server is asked again when they are there.
func TestALargeMaildropIsGathered(t *testing.T) {
	var numbers []int
	for i := range 1500 {
		numbers = append(numbers, i+1)
	}
	p := start(t, numbers...)
	p.old.Pipelining = true
	p.old.SetMaildrop("alice", mail(numbers...))
	sessions, begun := 1, time.Now()
	for ; ; sessions++ {
		p.session(t, poll...)
		e := p.next(t)
		if e.Result == proxy.ShadowClean {
			break
		}
		if e.Result != proxy.ShadowUnproven || e.Messages != 1500 || e.Unproven != 1500 || time.Since(begun) > 3*time.Minute {
			t.Fatalf("after %d sessions: %+v", sessions, e)
		}
	}
	if n := p.old.Commands("TOP"); n != 1500 {
		t.Errorf("TOP came %d times", n)
	}
	if n := len(p.logins); n > sessions-4 || sessions < 8 {
		t.Errorf("%d logins to the IMAP server in %d sessions", n, sessions)
	}
}
