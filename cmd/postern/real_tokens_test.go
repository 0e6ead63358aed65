package main

import (
	"encoding/base64"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"postern/proxy/proxytest"
)

// Criterion: Where a Dovecot takes bearer tokens for passwords, 120 guesses by token at one account from four addresses get no further than as many passwords would; a token that is a password logs in, as it does there.
func TestTokensOfARealDovecotAreNoOracle(t *testing.T) {
	t.Parallel()
	right := newSecret()
	dovecot := proxytest.StartDovecot(t, proxytest.DovecotOptions{
		Users: map[string]string{"anna": right}, Config: quick + "auth_mechanisms = plain login xoauth2 oauthbearer\n",
	})
	p := behindStorm(t, &slowServer{address: dovecot.IMAP}, "guard: {learning: 0s}\n")
	token := func(source, secret string) string {
		conn := p.tlsOn(t, dialFrom(t, source, p.imap))
		message := base64.StdEncoding.EncodeToString([]byte("user=anna\x01auth=Bearer " + secret + "\x01\x01"))
		if _, err := hear(conn, "* OK"); err != nil {
			return err.Error()
		}
		answer, err := ask(conn, "a AUTHENTICATE XOAUTH2 "+message, "")
		if strings.HasPrefix(answer, "+") { // the failure, before it is said
			answer, err = ask(conn, "", "a ")
		}
		return fmt.Sprint(answer, err)
	}
	if answer := token("127.0.0.9", right); !strings.HasPrefix(answer, "a OK") {
		t.Fatalf("Dovecot takes no token for a password: %s", answer)
	}
	var judged atomic.Int32
	var guessers sync.WaitGroup
	for i := range 120 {
		source, guess := fmt.Sprint("127.0.1.", 1+i%4), newSecret()
		guessers.Go(func() {
			switch answer := token(source, guess); {
			case strings.HasPrefix(answer, "a NO [AUTHENTICATIONFAILED]"):
				judged.Add(1)
			case !strings.HasPrefix(answer, "a NO [UNAVAILABLE]"):
				t.Errorf("a guess is answered %q", answer)
			}
		})
	}
	guessers.Wait()
	if n := judged.Load(); n == 0 || n > 20 {
		t.Errorf("%d of 120 guesses were judged, want at most 20", n)
	}
	if answer := token("127.0.0.9", right); !strings.HasPrefix(answer, "a OK") {
		t.Errorf("where she has logged in before she is told %s", answer)
	}
}
