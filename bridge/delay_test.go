package bridge

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"postern/proxy"
)

// Criterion: LOGIN-DELAY is announced and enforced: an account that comes again too soon is refused after the right password, at the cost of no guess, and not counted as a login; one that failed may come at once.
func TestLoginDelay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &LoginDelay{Every: time.Minute}
		login := func(account string, ok bool) error {
			done, err := d.enter(account)
			if err == nil {
				time.Sleep(5 * time.Second) // what it takes to open
				done(ok)
			}
			return err
		}
		for i, step := range []struct {
			after   time.Duration
			account string
			ok      bool
			refused bool
		}{
			{0, "alice", true, false},
			{0, "bob", true, false},
			{54 * time.Second, "alice", true, true}, // bob has taken 5 s
			{time.Second, "alice", false, false},
			{0, "alice", true, false},
			{time.Minute, "alice", true, false},
		} {
			time.Sleep(step.after)
			err := login(step.account, step.ok)
			r, refused := errors.AsType[*proxy.Refusal](err)
			if refused != step.refused || refused && (r.Reason != proxy.TooSoon || !r.Verified) {
				t.Errorf("login %d of %s: %v, want a refusal: %v", i, step.account, err, step.refused)
			}
		}
		done, err := d.enter("carol")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := d.enter("carol"); err == nil {
			t.Error("two logins at the same time were both let in")
		}
		done(false)
		if _, err := d.enter("carol"); err != nil {
			t.Errorf("after one that failed: %v", err)
		}
	})
}

func TestLoginDelayForgets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &LoginDelay{Every: time.Minute}
		for i := range 10_000 {
			if done, err := d.enter(fmt.Sprint("account", i)); err == nil {
				done(true)
			}
			time.Sleep(time.Second)
		}
		if got := len(d.last); got > 121 {
			t.Errorf("%d accounts are remembered, want those of two minutes", got)
		}
	})
}

func TestSessionsKeepTheDelay(t *testing.T) {
	_, b := serve(t, hello)
	b.Delay = &LoginDelay{Every: 90*time.Second - time.Nanosecond}
	open := func() error {
		session, err := b.Login(t.Context(), &proxy.Login{Account: "alice", Secret: proxy.NewSecret([]byte("secret"))})
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = session.Close() }()
		_, err = session.Open(t.Context())
		return err
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	session, err := b.Login(t.Context(), &proxy.Login{Account: "alice", Secret: proxy.NewSecret([]byte("secret"))})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := session.Open(gone); err == nil {
		t.Error("opened for a client that has left")
	}
	_ = session.Close()
	if err := open(); err != nil {
		t.Errorf("after one that failed: %v", err)
	}
	if err := open(); proxy.ReasonOf(err) != proxy.TooSoon {
		t.Errorf("the next one: %v, want a refusal", err)
	}
	if got := b.Capabilities()[0]; got != "LOGIN-DELAY 90" {
		t.Errorf("CAPA says %s", got)
	}
}
