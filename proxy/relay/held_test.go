package relay

import (
	"io"
	"strings"
	"testing"
	"time"

	"postern/proxy"
	"postern/proxy/proxytest"
	"postern/proxy/wire"
)

// Criterion: of the replies of a server, however long and many they are, a
// session holds no more than 64 KiB for its client, and keeps 4 KiB of memory.
func TestSubmissionHoldsFewReplies(t *testing.T) {
	for _, lines := range []int{0, 1, 8, 60} {
		client, near := proxytest.Pipe(t)
		backend, _ := proxytest.Pipe(t)
		done := make(chan struct{})
		go func() { defer close(done); _, _ = io.Copy(io.Discard, client) }()
		q := newReplyQueue(proxy.NewConn(near, proxy.Client{ID: "TEST"}, nil, time.Minute), backend.(Upstream), "", announced, 0)
		for range window {
			q.push(pending{what: replyToOther}, false)
		}
		reply := strings.Repeat("250-"+strings.Repeat("x", 1000)+"\r\n", lines) + "250 ok\r\n"
		q.replies = wire.NewReplyReader(strings.NewReader(strings.Repeat(reply, window)))
		for range window {
			r, err := q.replies.Reply()
			if err != nil {
				t.Fatal(err)
			}
			if err := q.deliver(r); err != nil {
				t.Fatal(err)
			}
			if n := len(q.out); n > wire.MaxReply || n == 0 && cap(q.out) > maxKept {
				t.Fatalf("%d octets are held, and memory for %d kept", n, cap(q.out))
			}
		}
		_ = near.Close()
		<-done
	}
}
