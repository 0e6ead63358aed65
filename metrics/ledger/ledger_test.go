package ledger

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"postern/proxy"
	"postern/proxy/state"
)

func login(account, protocol string, version uint16) proxy.Opened {
	return proxy.Opened{Account: account, Client: proxy.Client{Protocol: protocol, TLS: &tls.ConnectionState{Version: version}}}
}

func entries(t *testing.T, s Store, account string) (all []Entry) {
	t.Helper()
	err := Entries(t.Context(), s, account, func(e Entry) error {
		all = append(all, e)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func write(t *testing.T, l *Ledger) {
	t.Helper()
	if err := l.Write(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestLedgerKnowsWhoStillNeedsWhat(t *testing.T) {
	now := time.Date(2026, 11, 20, 9, 0, 0, 0, time.UTC)
	s := new(state.Memory)
	l := New(s, slog.New(slog.DiscardHandler), func() time.Time { return now })
	l.Observe(login("alice@example.org", proxy.POP3, tls.VersionTLS10))
	l.Observe(login("alice@example.org", proxy.POP3, tls.VersionTLS12))
	l.Observe(login("alice@example.org", proxy.IMAP, tls.VersionTLS13))
	write(t, l)
	now = now.AddDate(0, 0, 2)
	l.Observe(login("alice@example.org", proxy.POP3, tls.VersionTLS12))
	l.Observe(login("alice@example.org.example", proxy.POP3, tls.VersionTLS12))
	write(t, l)

	want := []Entry{
		{Account: "alice@example.org", Protocol: proxy.IMAP, First: "2026-11-20", Last: "2026-11-20", Logins: 1, TLS: "1.3", Days: 1},
		{Account: "alice@example.org", Protocol: proxy.POP3, First: "2026-11-20", Last: "2026-11-22", Logins: 3, TLS: "1.2", Days: 2},
	}
	got := entries(t, s, "alice@example.org")
	if len(got) != len(want) || got[0] != want[0] || got[1] != want[1] {
		t.Errorf("got %v, want %v", got, want)
	}
	if err := l.count(t.Context()); err != nil {
		t.Fatal(err)
	}
	c := l.Counts()
	if c.Protocols[proxy.POP3] != 2 || c.Protocols[proxy.IMAP] != 1 || c.TLS[[2]string{proxy.POP3, "1.2"}] != 2 {
		t.Errorf("counted %v", c)
	}
}

func TestTheOldestVersionOfADayIsKept(t *testing.T) {
	now := time.Date(2026, 11, 20, 9, 0, 0, 0, time.UTC)
	s := new(state.Memory)
	l := New(s, slog.New(slog.DiscardHandler), func() time.Time { return now })
	for _, version := range []uint16{tls.VersionTLS10, tls.VersionTLS13} {
		l.Observe(login("bob", proxy.POP3, version))
		write(t, l)
	}
	if got := entries(t, s, "bob"); got[0].TLS != "1.0" {
		t.Errorf("got %v", got)
	}
}

func TestLedgerForgets(t *testing.T) {
	now := time.Date(2025, 1, 1, 9, 0, 0, 0, time.UTC)
	s := new(state.Memory)
	l := New(s, slog.New(slog.DiscardHandler), func() time.Time { return now })
	for _, account := range []string{"old", "both", "named"} {
		l.Observe(login(account, proxy.POP3, tls.VersionTLS12))
	}
	write(t, l)
	now = now.AddDate(1, 6, 0)
	l.Observe(login("both", proxy.IMAP, tls.VersionTLS12))
	l.Observe(login("named", proxy.POP3, tls.VersionTLS12))
	write(t, l)

	gone, err := Expire(t.Context(), s, now.AddDate(0, 0, -400))
	if err != nil || len(gone) != 1 || gone[0] != "old" {
		t.Errorf("expired %v, %v", gone, err)
	}
	if got := entries(t, s, "both"); len(got) != 1 || got[0].Protocol != proxy.IMAP {
		t.Errorf("left of both: %v", got)
	}
	if n, err := Forget(t.Context(), s, "named"); n != 1 || err != nil {
		t.Errorf("forgot %d, %v", n, err)
	}
	if got := entries(t, s, "named"); got != nil {
		t.Errorf("left of the forgotten: %v", got)
	}
}

// failing fails until it is mended.
type failing struct {
	*state.Memory
	err error
}

func (f *failing) UpdateAll(ctx context.Context, keys []string, change func(string, []byte) ([]byte, error)) error {
	if f.err != nil {
		return f.err
	}
	return f.Memory.UpdateAll(ctx, keys, change)
}

func TestWhatCouldNotBeWrittenIsWrittenLater(t *testing.T) {
	s := &failing{new(state.Memory), errors.New("disk full")}
	l := New(s, slog.New(slog.DiscardHandler), nil)
	l.Observe(login("alice", proxy.IMAP, tls.VersionTLS13))
	if err := l.Write(t.Context()); !errors.Is(err, s.err) {
		t.Errorf("got %v", err)
	}
	l.Observe(login("alice", proxy.IMAP, tls.VersionTLS13))
	s.err = nil
	write(t, l)
	if got := entries(t, s, ""); len(got) != 1 || got[0].Logins != 2 {
		t.Errorf("got %v", got)
	}
}

func TestLedgerIsWrittenEveryMinuteAndAtTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := new(state.Memory)
		l := New(s, slog.New(slog.DiscardHandler), nil)
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); l.Run(ctx) }()
		l.Observe(login("alice", proxy.IMAP, tls.VersionTLS13))
		time.Sleep(writeEvery + time.Second)
		synctest.Wait()
		if got := entries(t, s, ""); len(got) != 1 {
			t.Errorf("after a minute: %v", got)
		}
		l.Observe(login("bob", proxy.IMAP, tls.VersionTLS13))
		stop()
		<-done
		if got := entries(t, s, ""); len(got) != 2 {
			t.Errorf("at the end: %v", got)
		}
	})
}

func TestAMillionAccountsDoNotFillMemory(t *testing.T) {
	l := New(new(state.Memory), slog.New(slog.DiscardHandler), nil)
	name := []byte("00000000")
	for i := range 1_000_000 {
		for d, n := 0, i; d < len(name); d, n = d+1, n/10 {
			name[d] = byte('0' + n%10)
		}
		l.Observe(login(string(name), proxy.IMAP, tls.VersionTLS13))
	}
	if len(l.pending) > maxPending {
		t.Errorf("%d entries wait", len(l.pending))
	}
}

// A rush is a store in which somebody logs in between the look and the removal.
type rush struct {
	Store
	once func()
}

func (r *rush) UpdateAll(ctx context.Context, keys []string, change func(string, []byte) ([]byte, error)) error {
	if once := r.once; once != nil {
		r.once = nil
		once()
	}
	return r.Store.UpdateAll(ctx, keys, change)
}

func TestWhoComesAtTheLastMomentIsNotForgotten(t *testing.T) {
	now := time.Date(2025, 1, 1, 9, 0, 0, 0, time.UTC)
	s := new(state.Memory)
	l := New(s, slog.New(slog.DiscardHandler), func() time.Time { return now })
	l.Observe(login("alice", proxy.POP3, tls.VersionTLS12))
	write(t, l)
	now = now.AddDate(2, 0, 0)
	late := &rush{Store: s, once: func() {
		l.Observe(login("alice", proxy.POP3, tls.VersionTLS12))
		write(t, l)
	}}
	if _, err := Expire(t.Context(), late, now.AddDate(0, 0, -400)); err != nil {
		t.Fatal(err)
	}
	if got := entries(t, s, "alice"); len(got) != 1 || got[0].Logins != 2 {
		t.Errorf("left: %v", got)
	}
}

// Criterion: whoever has logged in before is known right after a restart, without a look into a file.
func TestALedgerKnowsWhoHasLoggedIn(t *testing.T) {
	s := new(state.Memory)
	before := New(s, slog.New(slog.DiscardHandler), nil)
	before.Observe(login("alice@example.org", proxy.POP3, tls.VersionTLS13))
	if !before.Known("alice@example.org") || !before.KnownDomain("example.org") {
		t.Error("before the first write she is not known")
	}
	write(t, before)
	l := New(s, slog.New(slog.DiscardHandler), nil)
	if l.Known("alice@example.org") {
		t.Error("known although nothing was loaded")
	}
	if err := l.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]bool{"alice@example.org": true, "@example.org": false, "alice": false, "bob@example.org": false, "": false} {
		if got := l.Known(name); got != want {
			t.Errorf("Known(%q) = %v, want %v", name, got, want)
		}
	}
	if !l.KnownDomain("example.org") || l.KnownDomain("example.net") || l.KnownDomain("") {
		t.Error("the domains are not those of the accounts")
	}
	if _, err := Forget(t.Context(), s, "alice@example.org"); err != nil {
		t.Fatal(err)
	}
	l.Forget("alice@example.org")
	if l.Known("alice@example.org") {
		t.Error("a forgotten account is known")
	}
	l.Observe(login("bob@example.net", proxy.POP3, tls.VersionTLS13))
	if err := l.count(t.Context()); err != nil {
		t.Fatal(err)
	}
	if l.KnownDomain("example.org") || !l.Known("bob@example.net") {
		t.Error("the hourly count does not set what is known")
	}
}

func TestALedgerThatCannotBeReadKnowsNobody(t *testing.T) {
	l := New(brokenStore{}, slog.New(slog.DiscardHandler), nil)
	if err := l.Load(t.Context()); err == nil {
		t.Error("no error")
	}
	l.Observe(login("alice", proxy.POP3, tls.VersionTLS13))
	if l.Known("bob") || !l.Known("alice") {
		t.Error("known are others than those of this process")
	}
}

type brokenStore struct{ Store }

func (brokenStore) Scan(context.Context, string, func(string, []byte) error) error {
	return errors.New("disk on fire")
}
