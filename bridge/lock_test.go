package bridge

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"postern/proxy"
	"postern/proxy/proxytest"
)

// Criterion: a second session is refused at once, or waits up to 20 s, or takes over within 5 s, as configured.
func TestLockPolicies(t *testing.T) {
	for _, test := range []struct {
		policy LockMode
		leaves time.Duration // when the first session ends
		took   time.Duration
		ok     bool
	}{
		{Refuse, time.Hour, 0, false},
		{Wait, 7 * time.Second, 7 * time.Second, true},
		{Wait, time.Hour, waitTime, false},
		{Takeover, 3 * time.Second, 3 * time.Second, true}, // it is in UPDATE
		{Takeover, time.Hour, takeoverTime, false},
	} {
		synctest.Test(t, func(t *testing.T) {
			var locks Locks
			first, err := locks.acquire(t.Context(), "a", test.policy)
			if err != nil {
				t.Fatal(err)
			}
			if other, err := locks.acquire(t.Context(), "b", test.policy); err != nil {
				t.Errorf("another maildrop: %v", err)
			} else {
				other.release()
			}
			asked := false
			first.setEvict(func() { asked = true })
			timer := time.AfterFunc(test.leaves, first.release)
			begun := time.Now()
			second, err := locks.acquire(t.Context(), "a", test.policy)
			if took := time.Since(begun); took != test.took || (err == nil) != test.ok {
				t.Errorf("%s: %v after %v, want %v", test.policy, err, took, test.took)
			}
			if asked != (test.policy == Takeover) {
				t.Errorf("%s: the first one was asked to leave: %v", test.policy, asked)
			}
			if r, ok := errors.AsType[*proxy.Refusal](err); !test.ok && (!ok || r.Reason != proxy.InUse || !r.Verified) {
				t.Errorf("%s: %v, want a refusal as in use that costs no guess", test.policy, err)
			}
			second.release()
			if timer.Stop() {
				first.release()
			}
			if len(locks.held) > 0 {
				t.Errorf("%d locks are still held", len(locks.held))
			}
		})
	}
}

func TestWaitingForALockEndsWithItsContext(t *testing.T) {
	var locks Locks
	first, err := locks.acquire(t.Context(), "a", Wait)
	if err != nil {
		t.Fatal(err)
	}
	defer first.release()
	ctx, cancel := context.WithCancelCause(t.Context())
	kicked := proxy.NewRefusal(proxy.Kicked, nil)
	cancel(kicked)
	if _, err := locks.acquire(ctx, "a", Wait); !errors.Is(err, kicked) {
		t.Errorf("got %v, want %v", err, kicked)
	}
}

// Criterion: with lock: takeover the older session ends with a word, and its lock with it.
func TestTakeover(t *testing.T) {
	_, b := serve(t, hello)
	b.Lock = Takeover
	first := run(t, b)
	proxytest.Transcript(t, first.conn, "C: NOOP\nS: +OK *")
	second := run(t, b)
	proxytest.Transcript(t, first.conn, `
		S: -ERR \[SYS/TEMP\] Another session has taken the maildrop over (session ID42)
		S: <EOF>
	`)
	if err := first.wait(t); proxy.ReasonOf(err) != proxy.Kicked {
		t.Errorf("the first session ends with %v", err)
	}
	proxytest.Transcript(t, second.conn, `
		C: STAT
		S: +OK 1 35
		C: QUIT
		S: +OK *
	`)
	_ = second.wait(t)
	b.Lock = Refuse
	third := run(t, b)
	defer func() { _ = third.wait(t) }()
	session, err := b.Login(t.Context(), &proxy.Login{Account: "alice", Secret: proxy.NewSecret([]byte("secret"))})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := session.Open(t.Context()); proxy.ReasonOf(err) != proxy.InUse {
		t.Errorf("a fourth session gives %v, want in use", err)
	}
	_ = session.Close()
}

func TestPoliciesHaveNames(t *testing.T) {
	for _, name := range []string{"allow", "wait", "refuse", "takeover"} {
		if p, ok := ParseLockMode(name); !ok || p.String() != name {
			t.Errorf("%s: %v, %v", name, p, ok)
		}
	}
	if _, ok := ParseLockMode("never"); ok {
		t.Error("never is a policy")
	}
}

// Criterion: Locks pass to the successor of a process: nobody has a maildrop twice, and takeover still works.
func TestLocksPassToASuccessor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var old, successor Locks
		mine, err := old.acquire(t.Context(), "alice", Refuse)
		if err != nil {
			t.Fatal(err)
		}
		evicted := false
		mine.setEvict(func() { evicted = true; mine.release() })

		var change func(string, bool)
		change, _ = successor.Hold(old.HandOver(func(maildrop string, open bool) { change(maildrop, open) }), old.Evict)

		if _, err := successor.acquire(t.Context(), "alice", Refuse); proxy.ReasonOf(err) != proxy.InUse {
			t.Errorf("refuse: %v", err)
		}
		if other, err := successor.acquire(t.Context(), "bob", Refuse); err != nil {
			t.Errorf("another maildrop: %v", err)
		} else {
			other.release()
		}
		k, err := successor.acquire(t.Context(), "alice", Takeover)
		if err != nil || !evicted {
			t.Errorf("takeover: %v, the session in the other process was asked to leave: %v", err, evicted)
		}
		late, err := old.acquire(t.Context(), "carol", Refuse) // was logging in meanwhile
		if err != nil {
			t.Fatal(err)
		}
		if _, err := successor.acquire(t.Context(), "carol", Refuse); proxy.ReasonOf(err) != proxy.InUse {
			t.Errorf("opened in the other process meanwhile: %v", err)
		}
		late.release()
		if other, err := successor.acquire(t.Context(), "carol", Refuse); err != nil {
			t.Errorf("and closed: %v", err)
		} else {
			other.release()
		}
		change("alice", false) // a word that comes twice frees nobody else's
		if _, err := successor.acquire(t.Context(), "alice", Refuse); proxy.ReasonOf(err) != proxy.InUse {
			t.Errorf("after a second word: %v", err)
		}
		k.release()
	})
}
