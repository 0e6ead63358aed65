package main

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"postern/proxy/proxytest"
)

// passThrough starts a Postern whose POP3 clients an old server answers.
func passThrough(t *testing.T, s *stage, old oldPOP3, kind string) *postern {
	t.Helper()
	server := fmt.Sprintf("address: %q, tls: none", old.addr)
	if kind == "popa3d" { // the others are guessed, or say [AUTH]
		server += ", kind: popa3d"
	}
	return startPostern(t, behind{
		imap: fmt.Sprintf("{address: %q, ca: %q, server_name: localhost}", s.backend.IMAPS, s.backend.CA), pop3: "{" + server + "}",
	}, "pop3: {mode: passthrough}\n")
}

// Criterion: Real old servers - Dovecot with three formats, Courier, Cyrus, popa3d, solid-pop3d, mailutils-pop3d - answer through Postern octet for octet as directly; fetchmail, mpop and getmail, which leave mail there, fetch nothing again, and the next new message once; a wrong password is told as one.
func TestOldServersAnswerThroughPostern(t *testing.T) {
	const messages = 30
	for _, kind := range oldPOP3Servers {
		t.Run(kind.name, func(t *testing.T) {
			s := open(t, "fetchmail", "mpop", "getmail")
			u := s.user(t)
			old := kind.start(t, u)
			for _, m := range oldMail(messages) {
				old.deliver(m)
			}
			front := newSwitchboard(t)
			front.to(func() (net.Conn, error) { return tryDial(old.addr) })
			clients := slices.DeleteFunc(keepers(t, front.addr, u), func(k keeper) bool { return old.shares && k.name == "getmail" })
			fetched := make([]int, len(clients))
			for i, c := range clients {
				if fetched[i] = c.poll(t); fetched[i] == 0 {
					t.Fatalf("%s: no messages from the old server", c.name)
				}
			}
			direct := answersOf(loginOn(t, dial(t, old.addr), u))

			p := passThrough(t, s, old, kind.name)
			front.to(func() (net.Conn, error) { return dialTLS(t, p.pop3, p.ca), nil })
			through := answersOf(loginPOP3(t, p.pop3, p.ca, u))
			for command, want := range direct {
				wantBytes(t, command, through[command], want)
			}
			for i, c := range clients {
				if n := c.poll(t); n != fetched[i] {
					t.Errorf("%s fetches %d messages again", c.name, n-fetched[i])
				}
			}
			old.deliver([]byte("Message-ID: <new@example.org>\nSubject: new\n\nnew\n"))
			for i, c := range clients {
				n := c.poll(t)
				if c.poll(t) != n || n != fetched[i]+1 {
					t.Errorf("%s fetches %d messages, and not the new one once", c.name, n-fetched[i])
				}
			}

			wrong := dialTLS(t, p.pop3, p.ca)
			defer func() { _ = wrong.Close() }()
			_, _ = fmt.Fprintf(wrong, "USER %s\r\nPASS wrong\r\n", u.name)
			answer := make([]byte, 4096)
			for n := 0; bytes.Count(answer[:n], []byte("\n")) < 3; {
				_ = wrong.SetReadDeadline(time.Now().Add(patience))
				more, err := wrong.Read(answer[n:])
				if n += more; err != nil {
					t.Fatalf("a wrong password: %q, %v", answer[:n], err)
				}
				if bytes.Count(answer[:n], []byte("\n")) == 3 && !bytes.Contains(answer[:n], []byte("\n-ERR [AUTH] ")) {
					t.Errorf("a wrong password is answered with %q", answer[:n])
				}
			}

			c := loginPOP3(t, p.pop3, p.ca, u)
			c.body("RETR 1")
			c.command("DELE 1")
			c.command("QUIT")
			if got := strings.Count(string(loginPOP3(t, p.pop3, p.ca, u).body("LIST")), "\n"); got != messages {
				t.Errorf("after DELE and QUIT there are %d messages, want %d", got, messages)
			}
			within(t, patience, "the log has what the session did", func() bool {
				return slices.ContainsFunc(p.logged(t, "connection ended"), func(l line) bool {
					return l.text("account") == u.name && fmt.Sprint(l["retrieved"], l["deleted"]) == "1 1"
				})
			})
		})
	}
}

// Criterion: A line of the routes' file moves an account from the old POP3 server to the bridge and back while Postern runs; the session that is open stays where it is.
func TestAnAccountMovesToTheBridgeAndBack(t *testing.T) {
	s := open(t)
	u := s.user(t)
	old := proxytest.StartPOP3Server(t)
	old.Password = u.password
	old.SetMaildrop(u.name, []proxytest.POP3Message{{UIDL: "old-1", Raw: "Subject: old\r\n\r\nx\r\n"}})
	s.deliver(t, u, "new")
	wave := file(t, t.TempDir(), "wave", u.name+" pop3=passthrough\n")
	p := startPostern(t, behind{
		imap: fmt.Sprintf("{address: %q, ca: %q, server_name: localhost}", s.backend.IMAPS, s.backend.CA),
		pop3: fmt.Sprintf("{address: %q, tls: none, kind: other}", old.Addr),
	}, fmt.Sprintf("routes: [{file: %q, backend: main}, {backend: main}]\n", wave))
	uidl := func() string {
		conn := dialTLS(t, p.pop3, p.ca)
		defer func() { _ = conn.Close() }()
		c := loginOn(t, conn, u)
		defer c.command("QUIT")
		return strings.TrimSpace(string(c.body("UIDL")))
	}
	if got := uidl(); got != "1 old-1" {
		t.Errorf("by the old server UIDL is %q", got)
	}
	stays := loginPOP3(t, p.pop3, p.ca, u)
	for _, move := range []struct {
		word  string
		isOld bool
	}{{"", false}, {" pop3=passthrough", true}, {" pop3=bridge", false}} {
		if err := os.WriteFile(wave, []byte(u.name+move.word+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		within(t, patience, "the account has moved", func() bool { return (uidl() == "1 old-1") == move.isOld })
	}
	if got := string(stays.body("UIDL")); got != "1 old-1\r\n" {
		t.Errorf("in the session that was open UIDL is %q", got)
	}
	stays.command("QUIT")
}

// answersOf returns the answers of a session that deletes nothing, by command.
func answersOf(c *pop3) map[string][]byte {
	c.t.Helper()
	answers := map[string][]byte{}
	for _, command := range []string{"LIST", "UIDL", "RETR 1", "RETR 2", "RETR 4", "RETR 5", "RETR 6", "TOP 1 0", "TOP 2 3"} {
		answers[command] = c.body(command)
	}
	for _, command := range []string{"STAT", "LIST 3", "UIDL 3", "QUIT"} {
		answers[command] = []byte(c.command(command))
	}
	return answers
}
