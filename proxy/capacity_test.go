package proxy_test

import (
	"context"
	"errors"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"postern/proxy"
	"postern/proxy/proxytest"
)

// failures counts the AcceptFailed of d.
func (d *recorder) failures(err error) (n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, e := range d.events {
		if f, ok := e.(proxy.AcceptFailed); ok && f.Service == "plain" && errors.Is(f.Err, err) {
			n++
		}
	}
	return n
}

func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !f(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("after 10 s it is not so that %s", what)
		}
	}
}

// A connection that there is no room for is not refused: it waits, and somebody
// hears of it.
func TestAConnectionWithoutRoomWaits(t *testing.T) {
	t.Parallel()
	h, d := &fakeBackend{}, newRecorder()
	full := errors.New("no descriptor is left")
	var noRoom atomic.Bool
	noRoom.Store(true)
	dial, _ := startServer(t, h, d, func(_ *proxy.Service, s *proxy.Server) {
		s.CheckCapacity = func() error {
			if noRoom.Load() {
				return full
			}
			return nil
		}
	})
	c := dial()
	eventually(t, "the wait is said again", func() bool { return d.failures(full) > 2 })
	h.mu.Lock()
	if len(h.sheds) != 0 {
		t.Error("the guard was asked although there is no room")
	}
	h.mu.Unlock()
	noRoom.Store(false)
	proxytest.Transcript(t, c, "S: OK hello\nC: QUIT\nS: OK bye\nS: <EOF>")
}

func TestAServerWithoutRoomCanBeShutDown(t *testing.T) {
	t.Parallel()
	d := newRecorder()
	full := errors.New("no descriptor is left")
	dial, s := startServer(t, &fakeBackend{}, d, func(_ *proxy.Service, s *proxy.Server) { s.CheckCapacity = func() error { return full } })
	c := dial()
	eventually(t, "a connection waits", func() bool { return d.failures(full) > 0 })
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if err := s.Shutdown(ctx, 0); err != nil {
		t.Error(err)
	}
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Error("the connection that waited is served")
	}
}

// failingListener is a listener for which the process has no descriptor.
type failingListener struct {
	net.Listener
	failures atomic.Int32
}

var errTooMany = errors.New("accept4: too many open files")

func (l *failingListener) Accept() (net.Conn, error) {
	if l.failures.Add(1) <= 2 {
		return nil, errTooMany
	}
	return l.Listener.Accept()
}

func TestEachFailureToAcceptIsSaid(t *testing.T) {
	t.Parallel()
	d := newRecorder()
	_, s := startServer(t, &fakeBackend{}, d, nil)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Apply([]proxy.Binding{{Listener: &failingListener{Listener: ln}, Service: &proxy.Service{Name: "plain"}}}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "both failures are said", func() bool { return d.failures(errTooMany) == 2 })
}
