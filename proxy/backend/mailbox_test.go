package backend

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"postern/proxy"
)

// exchangeScript is a login with the n-th token at Exchange, which goes on with rest.
func exchangeScript(n int, rest string) string {
	return "S: * OK " + exchangeGreeting + " [RgBSADAAUAAyADgAMQ==]\n" + `
		C: P1 CAPABILITY
		S: * CAPABILITY IMAP4 IMAP4rev1 AUTH=PLAIN AUTH=XOAUTH2 SASL-IR UIDPLUS ID UNSELECT CHILDREN IDLE NAMESPACE LITERAL+
		S: P1 OK CAPABILITY completed.
		C: P2 AUTHENTICATE XOAUTH2 ` + bearer(account, fmt.Sprint("token", n)) + `
		S: P2 OK AUTHENTICATE completed.
		C: P3 CAPABILITY
		S: * CAPABILITY IMAP4 IMAP4rev1 AUTH=PLAIN AUTH=XOAUTH2 SASL-IR UIDPLUS MOVE ID UNSELECT CHILDREN IDLE NAMESPACE LITERAL+
		S: P3 OK CAPABILITY completed.
	` + rest
}

func imapClientLogin() *proxy.Login {
	l := checkedLogin()
	l.Client.Protocol = proxy.IMAP
	return l
}

const opensMailbox = `
	C: P4 STATUS INBOX (UIDVALIDITY)
	S: * STATUS INBOX (UIDVALIDITY 14)
	S: P4 OK STATUS completed.
`

// Criterion: Where Exchange accepts the token and then does not open the mailbox, an IMAP client is refused temporarily instead of logged in, the log says why, and no guess is charged; nothing but an opened mailbox is remembered.
func TestAMailboxThatDoesNotOpenIsNoLogin(t *testing.T) {
	for _, test := range []struct{ name, script, why string }{
		{"not connected", "C: P4 STATUS INBOX (UIDVALIDITY)\nS: P4 BAD User is authenticated but not connected.\nC: P5 LOGOUT\nS: * BYE Connection closed. 14\nS: <EOF>", "STATUS with BAD: " + ErrNoMailbox.Error()},
		{"no", "C: P4 STATUS INBOX (UIDVALIDITY)\nS: P4 NO Server Unavailable. 15\nC: P5 LOGOUT\nS: <EOF>", "STATUS with NO"},
		{"throttled", "C: P4 STATUS INBOX (UIDVALIDITY)\nS: P4 BAD Request is throttled. Suggested Backoff Time: 299931 milliseconds\nC: P5 LOGOUT\nS: <EOF>", ErrThrottled.Error()},
		{"bye", "C: P4 STATUS INBOX (UIDVALIDITY)\nS: * BYE Connection closed. 14\nS: <EOF>", "STATUS: the server said BYE"},
		{"gone", "C: P4 STATUS INBOX (UIDVALIDITY)\nS: <EOF>", "STATUS: EOF"},
		{"half a line", "C: P4 STATUS INBOX (UIDVALIDITY)\nS- P4 O\nS: <EOF>", "STATUS: "},
		{"another tag", "C: P4 STATUS INBOX (UIDVALIDITY)\nS: P3 OK late\nC: P5 LOGOUT\nS: <EOF>", "answered what was not asked"},
		{"a continuation", "C: P4 STATUS INBOX (UIDVALIDITY)\nS: + go on\nC: P5 LOGOUT\nS: <EOF>", "answered what was not asked"},
		{"no end", "C: P4 STATUS INBOX (UIDVALIDITY)\n" + strings.Repeat("S: * 1 EXISTS\n", 2000), "no answer within"},
	} {
		t.Run(test.name, func(t *testing.T) {
			s, seen := startServer(t, proxy.IMAP, Implicit, exchangeScript(1, test.script), exchangeScript(2, opensMailbox))
			s.Credentials = &tokens{}
			err := loginTo(t, s, imapClientLogin())
			checkRefusal(t, err, proxy.Unavailable)
			r, _ := errors.AsType[*proxy.Refusal](err)
			if r == nil || !r.Verified || r.Doubtful {
				t.Errorf("refusal %+v, want one that is verified and not doubtful", r)
			}
			if _, throttled := errors.AsType[*throttledError](err); throttled != (test.name == "throttled") {
				t.Errorf("the error says that the account is throttled: %v", throttled)
			}
			if !strings.Contains(err.Error(), test.why) {
				t.Errorf("error %q, want %q in it", err, test.why)
			}
			if throttled, ok := errors.AsType[*throttledError](err); ok != (test.name == "throttled") || ok && throttled.backoff != 299931*time.Millisecond {
				t.Errorf("suggested backoff %v", throttled)
			}
			if got, want := seen.String(), "dialed ok, login true, login false"; got != want {
				t.Errorf("events: %s, want %s", got, want)
			}
			if err := loginTo(t, s, imapClientLogin()); err != nil {
				t.Errorf("the next login: %v", err)
			}
		})
	}
}

// Criterion: A mailbox that Exchange has opened is not asked for again for a day, and what the server said of it does not reach the client.
func TestAMailboxIsAskedForOnce(t *testing.T) {
	s, _ := startServer(t, proxy.IMAP, Implicit,
		exchangeScript(1, opensMailbox+"S: * OK behind it"), exchangeScript(2, "S: * OK behind it"))
	s.Credentials = &tokens{}
	for n := range 2 {
		conn, capabilities, err := s.LoginIMAP(t.Context(), imapClientLogin())
		if err != nil {
			t.Fatalf("login %d: %v", n+1, err)
		}
		if want := "* OK behind it\r\n"; !readsNext(conn, want) {
			t.Errorf("login %d: the client does not get %q first", n+1, want)
		}
		if !strings.Contains(capabilities, "MOVE") {
			t.Errorf("login %d: capabilities %q", n+1, capabilities)
		}
		_ = conn.Close()
	}
}

func readsNext(c *Conn, want string) bool {
	got := make([]byte, len(want))
	for n := 0; n < len(got); {
		more, err := c.Read(got[n:])
		if n += more; err != nil {
			return false
		}
	}
	return string(got) == want
}

// The bridge opens INBOX itself; other servers refuse the token instead; a client's own
// token and a password are the client's.
func TestWhoseMailboxIsNotAskedFor(t *testing.T) {
	for name, login := range map[string]func(*Server) *proxy.Login{
		"POP3": func(*Server) *proxy.Login {
			l := imapClientLogin()
			l.Client.Protocol = proxy.POP3
			return l
		},
		"another kind": func(s *Server) *proxy.Login {
			s.Kind = Dovecot
			return imapClientLogin()
		},
		"the client's token": func(*Server) *proxy.Login {
			l := bearerLogin("XOAUTH2", account, "token1")
			l.Client.Protocol = proxy.IMAP
			return l
		},
	} {
		t.Run(name, func(t *testing.T) {
			s, _ := startServer(t, proxy.IMAP, Implicit, exchangeScript(1, ""))
			s.Credentials = &tokens{}
			if err := loginTo(t, s, login(s)); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func TestOpenedMailboxesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var o openedMailboxes
		if o.has("a") {
			t.Error("opened at first")
		}
		o.add("a")
		if !o.has("a") || o.has("b") {
			t.Error("not what was added")
		}
		time.Sleep(openedFor)
		if o.has("a") {
			t.Error("still opened after a day")
		}
		for i := range mostOpened + 10 {
			o.add(fmt.Sprint(i))
		}
		if len(o.at) > mostOpened {
			t.Errorf("%d are remembered", len(o.at))
		}
		if !o.has(fmt.Sprint(mostOpened + 9)) {
			t.Error("the last is forgotten")
		}
	})
}
