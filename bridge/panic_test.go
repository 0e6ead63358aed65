package bridge

import (
	"context"
	"errors"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"postern/proxy"
	"postern/proxy/proxytest"
)

// A panickingConn panics in Read once it is armed.
type panickingConn struct {
	net.Conn
	armed *atomic.Bool
}

func (c panickingConn) Read(p []byte) (int, error) {
	if c.armed.Load() {
		panic("bug in Read")
	}
	return c.Conn.Read(p)
}

// A panickingStore panics in Update.
type panickingStore struct{ Bucket }

func (panickingStore) Update(context.Context, string, func([]byte) ([]byte, error)) error {
	panic("bug in Update")
}

// wantPanicked checks that events have one panic with the client of openWith.
func wantPanicked(t *testing.T, events *recorder, value string) {
	t.Helper()
	got := of[proxy.Panicked](events)
	if len(got) != 1 || got[0].Value != value || got[0].Client.ID != "ID42" || len(got[0].Stack) == 0 {
		t.Errorf("reported %+v, want one panic with %q", got, value)
	}
}

// openWith logs in and lists the maildrop.
func openWith(t *testing.T, b *Backend) (proxy.Session, error) {
	t.Helper()
	session, err := b.Login(t.Context(), &proxy.Login{Client: proxy.Client{ID: "ID42"}, Account: "alice", Secret: proxy.NewSecret([]byte("secret"))})
	if err != nil {
		t.Fatal(err)
	}
	_, err = session.Open(t.Context())
	return session, err
}

func TestAPanicWhileTheAnswerIsReadEndsTheSession(t *testing.T) {
	near, far := proxytest.Pipe(t)
	_ = far.SetDeadline(time.Now().Add(10 * time.Second))
	armed := new(atomic.Bool)
	armed.Store(true)
	events := new(recorder)
	b := &Backend{LogIn: connected(panickingConn{near, armed}, capabilities), Observer: events}
	session, err := openWith(t, b)
	if proxy.ReasonOf(err) != proxy.Unavailable || !errors.Is(err, proxy.ErrBackendClosed) || !strings.Contains(err.Error(), "bug in Read") {
		t.Errorf("Open = %v, want %v, for the panic", err, proxy.ErrBackendClosed)
	}
	if err := session.Close(); err != nil {
		t.Error(err)
	}
	wantPanicked(t, events, "bug in Read")
}

func TestAPanicWhileAPartIsKeptEndsTheSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newModel("")
		m.deliver(2000)
		m.slow = 50 * time.Millisecond
		events := new(recorder)
		b := &Backend{LogIn: m.dial(t), Cache: panickingStore{&memory{}}, Observer: events}
		session, err := openWith(t, b)
		if proxy.ReasonOf(err) != proxy.Unavailable || !errors.Is(err, proxy.ErrBackendClosed) || !strings.Contains(err.Error(), "bug in Update") {
			t.Errorf("Open = %v, want %v, for the panic", err, proxy.ErrBackendClosed)
		}
		if len(b.queue().running) > 0 || len(b.queue().slots) > 0 {
			t.Error("a turn was not given back")
		}
		if err := session.Close(); err != nil {
			t.Error(err)
		}
		wantPanicked(t, events, "bug in Update")
	})
}

func TestAPanicInCloseKeepsNobodyOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newModel("")
		m.deliver(3)
		listings := NewListingMemory(1<<20, nil)
		b := &Backend{LogIn: m.dial(t), Cache: panickingStore{new(memory)}, Lock: Refuse, Listings: listings}
		session, err := openWith(t, b)
		if err != nil {
			t.Fatal(err)
		}
		func() {
			defer func() {
				if recover() == nil {
					t.Error("Close has not panicked")
				}
			}()
			_ = session.Close()
		}()
		b.Cache = nil
		again, err := openWith(t, b)
		if err != nil {
			t.Fatalf("the maildrop is locked: %v", err)
		}
		if err := again.Close(); err != nil {
			t.Error(err)
		}
		if n := listings.Reserved(); n != 0 {
			t.Errorf("%d octets are reserved", n)
		}
	})
}
