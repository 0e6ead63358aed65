package bridge

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"postern/bridge/oldserver"
	"postern/bridge/uidl"
	"postern/proxy"
	"postern/proxy/proxytest"
	"postern/proxy/state"
)

// An oldMaildrop is a maildrop of a proxytest.POP3Server, as package service makes it.
type oldMaildrop struct {
	*oldserver.Maildrop
	hold <-chan struct{} // Carry waits for it; nil: it does not
}

func (m oldMaildrop) Carry(ctx context.Context, in *Reader, f uidl.Format, kept []byte, save func([]byte)) (*uidl.Record, int, int, error) {
	if m.hold != nil {
		<-m.hold
	}
	headers, err := oldserver.DecodeHeaders(kept)
	if err != nil {
		headers = new(oldserver.Headers)
	}
	known := headers.Len()
	m.Keep(headers, func() { save(headers.Encode()) })
	if err := m.Meanwhile(func() error { return in.List(ctx) }); err != nil {
		return nil, 0, 0, err
	}
	record, report, err := oldserver.Carry(ctx, m.Maildrop, oldserver.Inbox{
		UIDValidity: in.UIDValidity, UIDNext: in.UIDNext, UIDs: in.UIDs, Side: oldserver.NewSide(in.Sizes, in.Headers, in.Contents),
	}, f, 0)
	if err == nil {
		err = report.Copied()
	}
	if err != nil && headers.Len() != known {
		save(headers.Encode())
	}
	return record, report.Old, report.Found(), err
}

// learnFrom makes b learn UIDLs from an old server.
func learnFrom(b *Backend, old *proxytest.POP3Server, hold <-chan struct{}) {
	server := &oldserver.Server{Dial: func(ctx context.Context) (net.Conn, error) { return new(net.Dialer).DialContext(ctx, "tcp", old.Addr) }}
	b.Record = new(state.Memory)
	b.Learner = &Learner{LogIn: func(ctx context.Context, l *proxy.Login) (OldMaildrop, error) {
		d, err := server.Open(context.WithoutCancel(ctx), l.Account, l.Secret)
		if err != nil {
			return nil, err
		}
		return oldMaildrop{d, hold}, nil
	}}
}

func learnable(i int) string {
	return fmt.Sprintf("Message-ID: <%d@example.org>\r\n\r\ntext\r\n", i)
}

// Criterion: With an old server to learn from, the first session of an account shows the UIDLs that this server shows, and asks it once.
func TestTheFirstSessionLearnsUIDLs(t *testing.T) {
	_, b := serve(t, learnable(2), learnable(1))
	old := proxytest.StartPOP3Server(t)
	old.SetMaildrop("alice", []proxytest.POP3Message{{UIDL: "one", Raw: learnable(1)}, {UIDL: "two", Raw: learnable(2)}, {UIDL: "gone", Raw: learnable(3)}})
	learnFrom(b, old, nil)
	for range 2 {
		proxytest.Transcript(t, run(t, b).conn, `
			C: UIDL
			S: +OK *
			S: 1 two
			S: 2 one
			S: .
			C: QUIT
			S: +OK *
		`)
	}
	if old.Commands("PASS") != 1 || old.Commands("QUIT") != 1 || old.Commands("RETR")+old.Commands("DELE") != 0 {
		t.Errorf("the old server got PASS %d, QUIT %d, RETR %d, DELE %d times", old.Commands("PASS"), old.Commands("QUIT"), old.Commands("RETR"), old.Commands("DELE"))
	}
}

// Criterion: While the old server is away, refuses the password or breaks off, the client gets a temporary refusal and no UIDL is recorded.
func TestWithoutTheOldServerNothingIsShown(t *testing.T) {
	for name, spoil := range map[string]func(old *proxytest.POP3Server){
		"away":         func(old *proxytest.POP3Server) { old.Addr = "127.0.0.1:1" },
		"refuses":      func(old *proxytest.POP3Server) { old.Password = "another" },
		"no such user": func(old *proxytest.POP3Server) { old.Remove("alice") },
		"breaks off":   func(old *proxytest.POP3Server) { old.Addr = cut(t, old.Addr, 105) },
	} {
		t.Run(name, func(t *testing.T) {
			_, b := serve(t, learnable(1))
			old := proxytest.StartPOP3Server(t)
			old.SetMaildrop("alice", []proxytest.POP3Message{{UIDL: "one", Raw: learnable(1)}})
			addr, password := old.Addr, old.Password
			spoil(old)
			learnFrom(b, old, nil)
			refused(t, b)
			logins := old.Commands("PASS")
			refused(t, b) // the old server is not asked again at once
			if n := old.Commands("PASS"); n != logins {
				t.Errorf("%d logins at the old server, want %d", n, logins)
			}
			b.Learner.Retry = time.Nanosecond
			if all, err := Accounts(t.Context(), b.Record); len(all) > 0 || err != nil {
				t.Errorf("a record of %v, %v", all, err)
			}
			old.Addr, old.Password = addr, password
			old.SetMaildrop("alice", []proxytest.POP3Message{{UIDL: "one", Raw: learnable(1)}})
			proxytest.Transcript(t, run(t, b).conn, `
				C: UIDL 1
				S: +OK 1 one
			`)
		})
	}
}

// cut returns the address of a relay that closes after so many octets of the server.
func cut(t *testing.T, addr string, octets int64) string {
	r := proxytest.StartRelay(t, addr)
	r.SetFaults(proxytest.Faults{CutRead: octets})
	return r.Addr
}

// refused opens a session of alice that must be refused temporarily.
func refused(t *testing.T, b *Backend) {
	t.Helper()
	login := &proxy.Login{Account: "alice", Secret: proxy.NewSecret([]byte("secret"))}
	session, err := b.Login(t.Context(), login)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = session.Close() }()
	if _, err := session.Open(t.Context()); proxy.ReasonOf(err) != proxy.Unavailable {
		t.Fatalf("got %v, want a temporary refusal", err)
	}
}

// A client that does not wait gets a temporary refusal, and the learning goes on without
// it: the next session finds it done. Meanwhile no second one begins.
func TestLearningGoesOnWithoutTheClient(t *testing.T) {
	_, b := serve(t, learnable(1))
	old := proxytest.StartPOP3Server(t)
	old.SetMaildrop("alice", []proxytest.POP3Message{{UIDL: "one", Raw: learnable(1)}})
	hold := make(chan struct{})
	learnFrom(b, old, hold)
	b.Learner.Wait = time.Second // the logins are within it
	var learnt atomic.Int64
	b.Observer = observerFunc(func(e proxy.Event) {
		if e, ok := e.(proxy.UIDLsLearnt); ok && e.Err == nil && e.Messages == 1 && e.Found == 1 {
			learnt.Add(1)
		}
	})
	refused(t, b)
	refused(t, b)
	if n := old.Commands("PASS"); n != 1 {
		t.Errorf("%d logins at the old server", n)
	}
	close(hold)
	for begun := time.Now(); learnt.Load() == 0; time.Sleep(time.Millisecond) {
		if time.Since(begun) > 10*time.Second {
			t.Fatal("nothing is learnt")
		}
	}
	b.Learner.Wait = 0
	proxytest.Transcript(t, run(t, b).conn, `
		C: UIDL 1
		S: +OK 1 one
	`)
	if n := old.Commands("PASS"); n != 1 {
		t.Errorf("%d logins at the old server", n)
	}
}

type observerFunc func(proxy.Event)

func (f observerFunc) Observe(e proxy.Event) { f(e) }

// A record that is there is never replaced, and one that was lost is not learnt again.
func TestARecordIsNotLearntAgain(t *testing.T) {
	_, b := serve(t, learnable(1))
	old := proxytest.StartPOP3Server(t)
	old.SetMaildrop("alice", []proxytest.POP3Message{{UIDL: "one", Raw: learnable(1)}})
	learnFrom(b, old, nil)
	learner := b.Learner
	b.Learner, b.Cache = nil, new(state.Memory)
	r := run(t, b)
	proxytest.Transcript(t, r.conn, `
		C: QUIT
		S: +OK *
	`)
	<-r.done
	_ = r.session.Close()
	b.Learner = learner
	r = run(t, b)
	proxytest.Transcript(t, r.conn, `
		C: UIDL 1
		S: +OK 1 0000000100000007
		C: QUIT
		S: +OK *
	`)
	<-r.done
	_ = r.session.Close()
	b.Record = new(state.Memory)
	login := &proxy.Login{Account: "alice", Secret: proxy.NewSecret([]byte("secret"))}
	session, err := b.Login(t.Context(), login)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = session.Close() }()
	if _, err := session.Open(t.Context()); err == nil || !strings.Contains(err.Error(), errRecordLost.Error()) && !errors.Is(err, errRecordLost) {
		t.Errorf("a record that was lost: %v", err)
	}
	if n := old.Commands("PASS"); n != 0 {
		t.Errorf("%d logins at the old server", n)
	}
}
