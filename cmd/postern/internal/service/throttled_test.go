package service

import (
	"bufio"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"

	"postern/proxy/proxytest"
)

// throttlingServer starts an IMAP server that takes every password, and throttles
// who opens INBOX. logins returns how many there were.
func throttlingServer(t *testing.T) (address string, logins func() int) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	n := 0
	var serving sync.WaitGroup
	t.Cleanup(serving.Wait)
	t.Cleanup(func() { _ = ln.Close() })
	serve := func(c net.Conn) {
		defer func() { _ = c.Close() }()
		_, _ = fmt.Fprint(c, "* OK [CAPABILITY IMAP4rev1] The Microsoft Exchange IMAP4 service is ready.\r\n")
		for lines := bufio.NewScanner(c); lines.Scan(); {
			tag, command, _ := strings.Cut(lines.Text(), " ")
			answer := "OK done"
			switch word, _, _ := strings.Cut(command, " "); word {
			case "LOGIN":
				mu.Lock()
				n++
				mu.Unlock()
				answer = "OK [CAPABILITY IMAP4rev1 UIDPLUS] LOGIN completed."
			case "SELECT", "STATUS":
				answer = "BAD Request is throttled. Suggested Backoff Time: 90000 milliseconds"
			}
			if _, err := fmt.Fprintf(c, "%s %s\r\n", tag, answer); err != nil {
				return
			}
		}
	}
	serving.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			serving.Go(func() { serve(c) })
		}
	})
	return ln.Addr().String(), func() int {
		mu.Lock()
		defer mu.Unlock()
		return n
	}
}

// Criterion: When Exchange throttles an account within its POP3 session, the account's next logins are refused temporarily without a connection to Exchange, by POP3 and IMAP, and the log and the metrics say so; those of another account are not.
func TestAThrottledAccountIsLeftAlone(t *testing.T) {
	address, logins := throttlingServer(t)
	r := startService(t, fmt.Sprintf(baseConfig+`
listeners: [{protocol: pop3, address: "127.0.0.1:0"}, {protocol: imap, address: "127.0.0.1:0"}]
backends: {main: {imap: {address: %q, tls: none}}}
control: {socket: off}
`, address))
	pop3 := func(user string) {
		t.Helper()
		proxytest.Transcript(t, r.secure(r.dial(t, "pop3")), fmt.Sprintf("S: +OK *\nC: USER %s\nS: +OK *\nC: PASS secret\nS: -ERR \\[SYS/TEMP] The mail server is temporarily unavailable: try again later *", user))
	}
	pop3("alice")
	if got := logins(); got != 1 {
		t.Fatalf("%d logins at the server, want 1", got)
	}
	pop3("alice")
	proxytest.Transcript(t, r.secure(r.dial(t, "imap")), "S: \\* OK *\nC: a LOGIN alice secret\nS: a NO \\[UNAVAILABLE] The mail server is temporarily unavailable*")
	if got := logins(); got != 1 {
		t.Errorf("%d logins at the server, want none within the backoff", got-1)
	}
	pop3("bob")
	if got := logins(); got != 2 {
		t.Errorf("bob is not let in: %d logins at the server, want 2", got)
	}
	metrics := r.metrics("account_")
	for _, want := range []string{
		`postern_account_throttles_total{backend="main",protocol="imap"} 2`,
		`postern_account_queue_logins_total{backend="main",protocol="imap",result="throttled"} 2`,
	} {
		if !strings.Contains(metrics, want) {
			t.Errorf("no %s in\n%s", want, metrics)
		}
	}
}
