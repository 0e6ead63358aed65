package shadow

import (
	"context"
	"fmt"
	"net"
	"slices"
	"testing"
	"time"

	"postern/proxy"
)

// BenchmarkSession measures what a client waits for in a session of LIST, UIDL and QUIT with
// an old server that answers after 1 ms and has 100 messages: in passthrough, in shadow, and
// in shadow with an IMAP server that never answers or takes 5 s for a login, in turns. Every
// session asks for headers before QUIT, and is compared: in a running Postern most are not.
//
//	go test ./bridge/shadow -run '^$' -bench Session -benchtime 300x
func BenchmarkSession(b *testing.B) {
	ways := []struct {
		name  string
		limit Limits
		wait  time.Duration // of the IMAP server, for a login
		pair  *pair
		took  []time.Duration
	}{
		{name: "passthrough"},
		{name: "shadow", limit: Limits{Concurrency: 1 << 20, PerSecond: 1 << 20}},
		{name: "dead", limit: Limits{Concurrency: 1 << 20, PerSecond: 1 << 20}, wait: time.Hour},
		{name: "slow", limit: Limits{Concurrency: 1 << 20, PerSecond: 1 << 20}, wait: 5 * time.Second},
	}
	var numbers []int
	for i := range 100 {
		numbers = append(numbers, i+1)
	}
	for i := range ways {
		w := &ways[i]
		w.pair = start(b, numbers...)
		w.pair.old.SetRTT(time.Millisecond)
		w.pair.old.SetMaildrop("alice", mail(numbers...))
		w.pair.compared, w.pair.logins = make(chan proxy.ShadowCompared, 1<<20), make(chan *proxy.Secret, 1<<20)
		bridge := w.pair.backend.Bridge
		bridge.Cache, bridge.Timeout = nil, 10*time.Second
		logIn := bridge.LogIn
		bridge.LogIn = func(ctx context.Context, l *proxy.Login) (net.Conn, string, error) {
			select {
			case <-time.After(w.wait):
				return logIn(ctx, l)
			case <-ctx.Done():
				return nil, "", proxy.NewRefusal(proxy.Unavailable, context.Cause(ctx))
			}
		}
	}
	for b.Loop() {
		for i := range ways {
			w := &ways[i]
			w.pair.backend.Limits = &Limits{Concurrency: w.limit.Concurrency, PerSecond: w.limit.PerSecond} // not paused
			begun := time.Now()
			w.pair.session(b, poll...)
			w.took = append(w.took, time.Since(begun))
		}
	}
	for i := range ways {
		w := &ways[i]
		slices.Sort(w.took)
		for _, percent := range []int{50, 99} {
			b.ReportMetric(float64(w.took[len(w.took)*percent/100].Microseconds())/1000, fmt.Sprintf("%s-p%d-ms", w.name, percent))
		}
	}
}
