package bridge

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"postern/proxy"
)

// begin opens a session of an account, and returns what it tells in the end.
func begin(t *testing.T, b *Backend, account string) <-chan error {
	t.Helper()
	result := make(chan error, 1)
	go func() {
		session, err := b.Login(t.Context(), &proxy.Login{Account: account})
		if err == nil {
			_, err = session.Open(t.Context())
			_ = session.Close()
		}
		result <- err
	}()
	return result
}

// Criterion: where a first listing takes 3 minutes, a client that gives up after 60 s is in by the fourth poll, and the server was asked for every message once.
func TestFirstListingOutlivesItsClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newModel("")
		m.deliver(3000)
		m.slow = 3 * time.Minute / 3000
		b := &Backend{LogIn: m.dial(t), Cache: &memory{}}
		var polls []<-chan error
		in := 0
		for poll := 1; poll <= 4; poll++ {
			polls = append(polls, begin(t, b, "alice"))
			patience := time.NewTimer(60 * time.Second)
			select {
			case err := <-polls[poll-1]:
				if err == nil {
					in = poll
				} else if proxy.ReasonOf(err) != proxy.Unavailable {
					t.Errorf("poll %d: %v", poll, err)
				}
				if poll < 4 {
					<-patience.C // it comes each minute
				}
			case <-patience.C:
			}
		}
		if in != 4 {
			t.Errorf("the client is in with poll %d, want 4", in)
		}
		for uid := range uint32(3000) {
			if n := m.asked[uid+1]; n != 1 {
				t.Fatalf("%d was asked for %d times", uid+1, n)
			}
		}
		if err := <-polls[0]; err != nil {
			t.Errorf("the first session: %v", err)
		}
	})
}

// Criterion: a long listing that is cut goes on where it was.
func TestFirstListingGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newModel("ESEARCH")
		m.deliver(5000)
		m.slow = time.Millisecond
		cuts := []uint32{1500, 3100}
		m.cut = func(uid uint32) bool {
			if len(cuts) == 0 || uid != cuts[0] {
				return false
			}
			cuts = cuts[1:]
			return true
		}
		b := &Backend{LogIn: m.dial(t), Cache: &memory{}}
		for range 2 {
			if err := <-begin(t, b, "alice"); proxy.ReasonOf(err) != proxy.Unavailable {
				t.Fatalf("a listing that is cut gives %v", err)
			}
		}
		_, listed := poll(t, b)
		if !slices.Equal(listed, m.mails) {
			t.Errorf("%d messages are listed, want %d", len(listed), len(m.mails))
		}
		for _, x := range m.mails {
			if n := m.asked[x.uid]; n != 1 {
				t.Fatalf("%d was asked for %d times", x.uid, n)
			}
		}
		m.take()
		poll(t, b)
		if commands, _ := m.take(); len(commands) != 1 {
			t.Errorf("unchanged it costs %q", commands)
		}
	})
}

// Criterion: what a long listing has learnt survives the end of the process.
func TestFirstListingIsKeptAsItGoes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newModel("")
		m.deliver(2000)
		m.slow = 50 * time.Millisecond
		cache := &memory{}
		b := &Backend{LogIn: m.dial(t), Cache: cache}
		result := begin(t, b, "alice")
		time.Sleep(31 * time.Second)
		value, _ := cache.Get(t.Context(), key("alice"))
		s, err := decodeSnapshot(value)
		if n := len(s.messages); err != nil || n < 550 || n > 650 || s.proven {
			t.Errorf("after 31 s %d messages are kept, %v", n, err)
		}
		if err := <-result; err != nil {
			t.Error(err)
		}
	})
}

// Criterion: at most first_listings run at a time, the others wait in order, and are refused for now after 45 s.
func TestLongListingsTakeTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newModel("")
		m.deliver(2000)
		m.slow = 10 * time.Millisecond // 20 s each
		b := &Backend{LogIn: m.dial(t), Cache: &memory{}, Queue: &Queue{Limit: 1}}
		var mu sync.Mutex
		var ended []string
		var wg sync.WaitGroup
		for i := range 4 {
			result := begin(t, b, fmt.Sprint(i))
			wg.Go(func() {
				err := <-result
				mu.Lock()
				defer mu.Unlock()
				ended = append(ended, fmt.Sprintf("%d %s", i, proxy.ReasonOf(err)))
			})
			time.Sleep(time.Second)
		}
		small := newModel("")
		small.deliver(shortListing)
		direct := &Backend{LogIn: small.dial(t), Cache: &memory{}, Queue: b.Queue}
		begun := time.Now()
		if err := <-begin(t, direct, "x"); err != nil || time.Since(begun) > 0 {
			t.Errorf("a short listing takes %v, %v", time.Since(begun), err)
		}
		wg.Wait()
		// The third begins at 40 s and ends at 60 s; the fourth, of 3 s, has waited up to 48 s.
		if want := []string{"0 unknown", "1 unknown", "3 unavailable", "2 unknown"}; !slices.Equal(ended, want) {
			t.Errorf("they end as %q, want %q", ended, want)
		}
		if len(b.Queue.running) > 0 || len(b.Queue.slots) > 0 {
			t.Error("a turn was not given back")
		}
	})
}

func TestWaitingForATurnEndsWithItsContext(t *testing.T) {
	q := &Queue{Limit: 1}
	leave, err := q.enter(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	kicked := proxy.NewRefusal(proxy.Kicked, nil)
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(kicked)
	if _, err := q.enter(ctx, "b"); !errors.Is(err, kicked) {
		t.Errorf("enter gives %v", err)
	}
	if err := q.wait(ctx, "a"); !errors.Is(err, kicked) {
		t.Errorf("wait gives %v", err)
	}
	if again, err := q.enter(t.Context(), "a"); again != nil || err != nil {
		t.Errorf("a second listing of the account: %v", err)
	}
	leave()
	if err := q.wait(t.Context(), "a"); err != nil {
		t.Error(err)
	}
}
