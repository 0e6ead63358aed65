package relay

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"postern/proxy"
)

// Criterion: An IMAP client whose session an operator ends, or a restart, hears BYE between two lines of the server's, and never within something longer.
func TestBYEIsSentBetweenTwoResponses(t *testing.T) {
	long := strings.Repeat("x", 200)
	for _, test := range []struct {
		received string        // the last octets of the server
		before   time.Duration // how long before the end
		reason   proxy.Reason
		want     string
	}{
		{"+ idling\r\n", time.Minute, proxy.ShuttingDown, "* BYE The service is restarting: try again in a moment (session 7)\r\n"},
		{"+ idling\r\n* 3 EXISTS\r\n", time.Minute, proxy.Kicked, "* BYE Disconnected by an administrator (session 7)\r\n"},
		{"a1 OK [READ-WRITE] done\r\n", time.Minute, proxy.ShuttingDown, "* BYE The service is restarting: try again in a moment (session 7)\r\n"},
		{"* LIST () \"/\" " + long[:60] + "\r\n" + "a2 NO " + long[:60] + "\r\n", time.Minute, proxy.Kicked, "* BYE Disconnected by an administrator (session 7)\r\n"},
		{"a1 OK done\r\n", quietTime / 2, proxy.ShuttingDown, ""},           // it may continue
		{"* 1 FETCH (BODY[] {2000}\r\n", time.Minute, proxy.Kicked, ""},     // a literal begins
		{"Dear all,\r\n", time.Minute, proxy.Kicked, ""},                    // a line of one
		{"* 1 FETCH (FLAGS ", time.Minute, proxy.Kicked, ""},                // half a line
		{"\x78\x9c\x01\x00\xff\r\n", time.Minute, proxy.Kicked, ""},         // COMPRESS
		{"* OK " + long + "\r\n", time.Minute, proxy.Kicked, ""},            // its beginning is not known
		{"* 1 FETCH (FLAGS (\\Seen))\r\na1", time.Minute, proxy.Kicked, ""}, // the next has begun
	} {
		synctest.Test(t, func(t *testing.T) {
			ctx, end := context.WithCancelCause(context.Background())
			s := syntheticSpliceWith(ctx, proxy.Client{ID: "7"})
			got := make(chan string, 1)
			go func() {
				b, _ := io.ReadAll(s.client)
				got <- string(b)
			}()
			go func() { _, _ = io.Copy(io.Discard, s.server) }()
			_, _ = io.WriteString(s.server, test.received)
			time.Sleep(test.before)
			cause := proxy.NewRefusal(test.reason, nil)
			end(cause)
			if err := <-s.done; !errors.Is(err, cause) {
				t.Errorf("Run = %v, want the cause", err)
			}
			if after, _ := strings.CutPrefix(<-got, test.received); after != test.want {
				t.Errorf("after %q the client got %q, want %q", test.received, after, test.want)
			}
		})
	}
}

// When the server ends the session, Postern sends nothing: the server has sent
// its own BYE.
func TestNoBYEWhenTheServerHasEnded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := syntheticSpliceWith(context.Background(), proxy.Client{ID: "7"})
		got := make(chan string, 1)
		go func() {
			b, _ := io.ReadAll(s.client)
			got <- string(b)
		}()
		_, _ = io.WriteString(s.server, "* BYE logging out\r\na1 OK done\r\n")
		time.Sleep(time.Minute)
		_ = s.server.Close()
		if err := <-s.done; !errors.Is(err, proxy.ErrBackendClosed) {
			t.Errorf("Run = %v", err)
		}
		if text := <-got; text != "* BYE logging out\r\na1 OK done\r\n" {
			t.Errorf("the client got %q", text)
		}
	})
}
