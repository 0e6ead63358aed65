package bridge

import (
	"context"
	"testing"
	"time"

	"postern/proxy"
	"postern/proxy/proxytest"
)

// A slowStore writes nothing while it is stuck.
type slowStore struct {
	*memory
	waits chan struct{} // a write waits
	stuck chan struct{} // nil: writes do not wait
}

func (s *slowStore) wait() {
	if s.stuck != nil {
		s.waits <- struct{}{}
		<-s.stuck
	}
}

func (s *slowStore) Update(ctx context.Context, key string, change func([]byte) ([]byte, error)) error {
	s.wait()
	return s.memory.Update(ctx, key, change)
}

func (s *slowStore) UpdateAll(ctx context.Context, keys []string, change func(string, []byte) ([]byte, error)) error {
	s.wait()
	return s.memory.UpdateAll(ctx, keys, change)
}

// Criterion: no login waits for what the session before stores after its QUIT.
func TestNoLoginWaitsForTheEndOfTheSessionBefore(t *testing.T) {
	for name, choose := range map[string]func(cache, record *slowStore) *slowStore{
		"cache":  func(cache, _ *slowStore) *slowStore { return cache },
		"record": func(_, record *slowStore) *slowStore { return record },
	} {
		for _, lock := range []LockMode{Allow, Wait, Refuse, Takeover} {
			t.Run(name+" "+lock.String(), func(t *testing.T) {
				t.Parallel()
				m := newModel("")
				m.deliver(3)
				cache, record := &slowStore{memory: &memory{}}, &slowStore{memory: &memory{}}
				b := &Backend{Name: "main", LogIn: m.dial(t), Cache: cache, Record: record, Lock: lock}
				_ = run(t, b).wait(t) // the account is known, and without QUIT no fingerprint
				slow := choose(cache, record)
				slow.waits, slow.stuck = make(chan struct{}, 10), make(chan struct{})
				first := run(t, b)
				proxytest.Transcript(t, first.conn, "C: QUIT\nS: +OK Goodbye")
				<-slow.waits

				opened := make(chan error, 1)
				session, err := b.Login(t.Context(), &proxy.Login{Account: "alice"})
				if err != nil {
					t.Fatal(err)
				}
				go func() {
					_, err := session.Open(t.Context())
					opened <- err
				}()
				select {
				case err := <-opened:
					if err != nil {
						t.Error(err)
					}
				case <-time.After(10 * time.Second):
					t.Error("the login waits for the session before")
				}
				select {
				case <-first.done:
					t.Error("the session before has ended: the store was not slow")
				default:
				}
				close(slow.stuck)
				<-first.done
				_ = session.Close()
			})
		}
	}
}
