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

// Criterion: An IMAP or ManageSieve client whose server closes the connection without a goodbye, as Gmail does when a token ends, hears BYE between two responses, and never within something longer; after the server's own goodbye it hears no other.
func TestBYEIsSentWhenTheServerHasNone(t *testing.T) {
	const bye = "* BYE The mail server has closed the connection: log in again (session 7)\r\n"
	for _, test := range []struct {
		received string
		before   time.Duration // how long before the end
		want     string
	}{
		{"", 0, bye}, // the client has the response to its login
		{"+ idling\r\n", 30 * time.Minute, bye},
		{"+ idling\r\n* 3 EXISTS\r\n", 0, bye},
		{"a1 OK done\r\n", 0, bye},
		{"* BYE logging out\r\na1 OK done\r\n", 0, ""},
		{"* BYE logging out\r\na1 OK done\r\n", time.Minute, ""},
		{"+ idling\r\n* BYE Session invalidated - AccessTokenExpired\r\n", 0, ""}, // Exchange
		{"* bye so long\r\n", 0, ""},
		{"* 1 FETCH (BODY[] {2000}\r\n", 0, ""},
		{"* 1 FETCH (BODY[] {2000}\r\nDear all,\r\n", 0, ""},
		{"* 1 FETCH (FLAGS ", 0, ""},
		{"\x78\x9c\x01\x00\xff\r\n", 0, ""},
	} {
		checkBYE(t, &IMAP{}, test.received, test.before, test.want)
	}
	const sieveBye = "BYE \"The mail server has closed the connection: log in again (session 7)\"\r\n"
	for received, want := range map[string]string{
		"OK\r\n": sieveBye, "OK \"done\"\r\n": sieveBye, "BYE \"too long\"\r\n": "", "{20}\r\n": "", "\"a\" ACTIVE\r\n": "",
	} {
		checkBYE(t, &Sieve{}, received, time.Minute, want)
	}
	checkBYE(t, &Sieve{}, "OK \"Logout completed.\"\r\n", 0, "") // which has no BYE: RFC 5804 section 2.3
}

// checkBYE checks what a client gets whose server sends received and closes after a time.
func checkBYE(t *testing.T, session proxy.Session, received string, after time.Duration, want string) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s := syntheticSession(session)
		got := make(chan string, 1)
		go func() {
			b, _ := io.ReadAll(s.client)
			got <- string(b)
		}()
		_, _ = io.WriteString(s.server, received)
		time.Sleep(after)
		_ = s.server.Close()
		if err := <-s.done; !errors.Is(err, proxy.ErrBackendClosed) {
			t.Errorf("Run = %v", err)
		}
		if after, _ := strings.CutPrefix(<-got, received); after != want {
			t.Errorf("%T: after %q the client got %q, want %q", session, received, after, want)
		}
	})
}

// Criterion: A session ends before the token with which its server would end it, with a BYE, and never while a command is under way: a download, an upload, a slow answer. A client that goes on until the token ends is ended by the server.
func TestASessionEndsBeforeItsTokenBetweenTwoCommands(t *testing.T) {
	const (
		bye  = "* BYE This session has lasted for as long as it may: log in again (session 7)\r\n"
		life = 30 * time.Minute
	)
	idle := func(s *spliceFixture) {
		_, _ = io.WriteString(s.client, "a IDLE\r\n")
		time.Sleep(time.Millisecond) // the server has it
		_, _ = io.WriteString(s.server, "+ idling\r\n")
	}
	for _, test := range []struct {
		name string
		do   func(s *spliceFixture)
		ends time.Duration
		want string // the last octets
	}{
		{"silent since the login", func(*spliceFixture) {}, life, bye},
		{"IDLE", idle, life, "+ idling\r\n" + bye},
		{"IDLE, and mail comes", func(s *spliceFixture) {
			idle(s)
			time.Sleep(life - quietTime/2)
			_, _ = io.WriteString(s.server, "* 3 EXISTS\r\n")
		}, life + quietTime, "* 3 EXISTS\r\n" + bye},
		{"a slow answer", func(s *spliceFixture) {
			time.Sleep(life - time.Minute)
			_, _ = io.WriteString(s.client, "a SEARCH BODY x\r\n")
			time.Sleep(2 * time.Minute)
			_, _ = io.WriteString(s.server, "a OK done\r\n")
		}, life + time.Minute + quietTime, "a OK done\r\n" + bye},
		{"an upload that stops now and then", func(s *spliceFixture) {
			_, _ = io.WriteString(s.client, "a APPEND x {100}\r\n")
			_, _ = io.WriteString(s.server, "+ go on\r\n")
			for range 7 {
				_, _ = io.WriteString(s.client, "0123456789")
				time.Sleep(5 * time.Minute)
			}
			_, _ = io.WriteString(s.server, "a OK done\r\n")
		}, 35*time.Minute + quietTime, "a OK done\r\n" + bye},
		{"a download that stops", func(s *spliceFixture) {
			time.Sleep(life - time.Minute)
			_, _ = io.WriteString(s.server, "* 1 FETCH (BODY[] {2000}\r\nDear all,\r\n")
			time.Sleep(2 * time.Minute)
			_ = s.server.Close() // the token has ended
		}, life + time.Minute, "Dear all,\r\n"},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				begun := time.Now()
				s := syntheticSession(&IMAP{Until: begun.Add(life)})
				got := make(chan string, 1)
				go func() {
					b, _ := io.ReadAll(s.client)
					got <- string(b)
				}()
				go func() { _, _ = io.Copy(io.Discard, s.server) }()
				go test.do(s)
				err := <-s.done
				if took := time.Since(begun); took < test.ends || took > test.ends+leaveTime {
					t.Errorf("ended after %v, want %v", took, test.ends)
				}
				if strings.HasSuffix(test.want, bye) != errors.Is(err, proxy.ErrTokenEnds) {
					t.Errorf("Run = %v", err)
				}
				if text := <-got; !strings.HasSuffix(text, test.want) {
					t.Errorf("the client got %q, want %q at its end", text, test.want)
				}
			})
		})
	}
}
