package main

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"postern/proxy"
	"postern/proxy/proxytest"
)

// Criterion: In the mode shadow the sessions of the clients themselves - fetchmail, mpop, getmail and one with Thunderbird's rule - compare real old servers - Dovecot with three formats, Courier, Cyrus, popa3d, solid-pop3d, mailutils-pop3d - with INBOX and record their UIDLs; then a line of the routes' file moves the account to the bridge, and the clients fetch nothing again, and the next new message once.
func TestAccountsMoveFromShadowToTheBridge(t *testing.T) {
	const messages = 60
	for _, kind := range oldPOP3Servers {
		t.Run(kind.name, func(t *testing.T) {
			s := open(t, "fetchmail", "mpop", "getmail")
			u := s.user(t)
			old := kind.start(t, u)
			mail := oldMail(messages)
			for _, m := range mail {
				old.deliver(m)
			}
			// The mail is copied by IMAP in another order.
			rand.New(rand.NewPCG(1, 16)).Shuffle(len(mail), func(i, j int) { mail[i], mail[j] = mail[j], mail[i] })
			for _, m := range mail {
				s.backend.Deliver(t, u.name, m)
			}
			dir := t.TempDir()
			wave := file(t, dir, "wave", u.name+" pop3=shadow\n")
			server := fmt.Sprintf("address: %q, tls: none", old.addr)
			if kind.name == "popa3d" {
				server += ", kind: popa3d"
			}
			p := startPostern(t, behind{
				imap: fmt.Sprintf("{address: %q, ca: %q, server_name: localhost}", s.backend.IMAPS, s.backend.CA), pop3: "{" + server + "}",
			}, fmt.Sprintf("routes: [{file: %q, backend: main}, {backend: main}]\nstate: {path: %q}\n", wave, filepath.Join(dir, "state")))
			front := newSwitchboard(t)
			front.to(func() (net.Conn, error) { return dialTLS(t, p.pop3, p.ca), nil })
			clients := slices.DeleteFunc(keepers(t, front.addr, u), func(k keeper) bool { return old.shares && k.name == "getmail" })
			fetched := make([]int, len(clients))
			for i, c := range clients {
				fetched[i] = c.poll(t)
			}
			results := func() (all []string) {
				for _, l := range p.logged(t, "old server compared with INBOX") {
					all = append(all, l.text("result"))
				}
				return all
			}
			last := clients[len(clients)-1]
			within(t, carryPatience, "the account is clean", func() bool {
				n := last.poll(t)
				if n != fetched[len(clients)-1] {
					t.Errorf("%s fetches %d messages again from the old server", last.name, n-fetched[len(clients)-1])
				}
				return slices.Contains(results(), proxy.ShadowClean)
			})
			if err := os.WriteFile(wave, []byte(u.name+" pop3=bridge\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			within(t, patience, "the account has moved", func() bool {
				conn := dialTLS(t, p.pop3, p.ca)
				loginOn(t, conn, u).command("QUIT")
				_, _ = io.Copy(io.Discard, conn) // the session has ended, and another one may begin
				_ = conn.Close()
				return slices.ContainsFunc(p.logged(t, "connection ended"), func(l line) bool { return l.text("mode") == proxy.ModeBridge })
			})
			for i, c := range clients {
				if n := c.poll(t); n != fetched[i] {
					t.Errorf("%s fetches %d messages again", c.name, n-fetched[i])
				}
			}
			s.backend.Deliver(t, u.name, []byte("Message-ID: <new@example.org>\nSubject: new\n\nnew\n"))
			for i, c := range clients {
				n := c.poll(t)
				if c.poll(t) != n || n != fetched[i]+1 {
					t.Errorf("%s fetches %d messages, and not the new one once", c.name, n-fetched[i])
				}
			}
		})
	}
}

// Criterion: kill -9 at any moment of a comparison in the mode shadow loses at most what that session has learnt: the record of unique ids is whole or not there, and later sessions complete it.
func TestShadowIsKilled(t *testing.T) {
	const messages = 40
	s := open(t)
	u := s.user(t)
	old := proxytest.StartPOP3Server(t)
	old.Password, old.Pipelining = u.password, true
	var maildrop []proxytest.POP3Message
	for i := range messages {
		raw := fmt.Sprintf("Message-ID: <%d@example.org>\r\nSubject: %d\r\n\r\nx\r\n", i, i)
		maildrop = append(maildrop, proxytest.POP3Message{UIDL: fmt.Sprintf("old-%d", i), Raw: raw})
		s.backend.Deliver(t, u.name, []byte(strings.ReplaceAll(raw, "\r\n", "\n")))
	}
	old.SetMaildrop(u.name, maildrop)
	dir := t.TempDir()
	wave := file(t, dir, "wave", u.name+" pop3=shadow\n")
	state := fmt.Sprintf("state: {path: %q}\n", filepath.Join(dir, "state"))
	commands := s.forCommands(t, dir, state)
	start := func() *postern {
		return startPostern(t, behind{
			imap: fmt.Sprintf("{address: %q, ca: %q, server_name: localhost}", s.backend.IMAPS, s.backend.CA),
			pop3: fmt.Sprintf("{address: %q, tls: none, kind: other}", old.Addr),
		}, fmt.Sprintf("routes: [{file: %q, backend: main}, {backend: main}]\n%s", wave, state))
	}
	poll := func(p *postern) string {
		conn := dialTLS(t, p.pop3, p.ca)
		defer func() { _ = conn.Close() }()
		c := loginOn(t, conn, u)
		c.body("LIST")
		ids := string(c.body("UIDL"))
		c.command("QUIT")
		return ids
	}
	want, recorded := "", 0
	for round := range 16 {
		p := start()
		want = poll(p)
		time.Sleep(time.Duration(round) * time.Millisecond)
		_ = p.cmd.Process.Kill()
		<-p.done
		if got := run(t, dir, nil, []string{"postern", "state", "check", "--config", commands}); strings.Contains(got, "damaged") {
			t.Fatalf("after kill -9: %s", hidden(got))
		}
		exported := run(t, dir, nil, []string{"postern", "uidl", "export", "--config", commands})
		switch n := strings.Count(exported, "old-"); n {
		case 0:
		case messages:
			recorded++
			run(t, dir, nil, []string{"postern", "uidl", "forget", u.name, "--yes", "--config", commands})
		default:
			t.Fatalf("after kill -9 the record has %d of %d unique ids", n, messages)
		}
	}
	t.Logf("recorded before %d of 16 kills", recorded)
	p := start()
	within(t, patience, "the account is clean, or was", func() bool {
		poll(p)
		return strings.Count(run(t, dir, nil, []string{"postern", "uidl", "export", "--config", commands}), "old-") == messages
	})
	p.stop(t)
	if err := os.WriteFile(wave, []byte(u.name+" pop3=bridge\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := poll(start()); got != want {
		t.Errorf("the bridge shows %q, the old server %q", got, want)
	}
}

// Criterion: An account that moves from shadow to the bridge with `pop3.learn_from` is asked for at the old server once more, and no header that shadow has read is read again.
func TestLearningAfterShadowReadsNoHeaderTwice(t *testing.T) {
	const messages = 30
	s := open(t)
	u := s.user(t)
	old := proxytest.StartPOP3Server(t)
	old.Password, old.Pipelining = u.password, true
	var maildrop []proxytest.POP3Message
	for i := range messages {
		raw := fmt.Sprintf("Message-ID: <%d@example.org>\r\n\r\nx\r\n", i)
		maildrop = append(maildrop, proxytest.POP3Message{UIDL: fmt.Sprintf("old-%d", i), Raw: raw})
		s.backend.Deliver(t, u.name, []byte(strings.ReplaceAll(raw, "\r\n", "\n")))
	}
	old.SetMaildrop(u.name, maildrop)
	dir := t.TempDir()
	wave := file(t, dir, "wave", u.name+" pop3=shadow\n")
	p := startPostern(t, behind{
		imap: fmt.Sprintf("{address: %q, ca: %q, server_name: localhost}", s.backend.IMAPS, s.backend.CA),
		pop3: fmt.Sprintf("{address: %q, tls: none, kind: other}", old.Addr),
	}, fmt.Sprintf("routes: [{file: %q, backend: main}, {backend: main}]\nstate: {path: %q}\npop3: {learn_from: main}\n", wave, filepath.Join(dir, "state")))
	poll := func() string {
		conn := dialTLS(t, p.pop3, p.ca)
		defer func() { _ = conn.Close() }()
		c := loginOn(t, conn, u)
		c.body("LIST")
		ids := string(c.body("UIDL"))
		c.command("QUIT")
		_, _ = io.Copy(io.Discard, conn)
		return ids
	}
	want := poll()
	within(t, patience, "the account is clean", func() bool {
		poll()
		return slices.ContainsFunc(p.logged(t, "old server compared with INBOX"), func(l line) bool { return l.text("result") == proxy.ShadowClean })
	})
	top := old.Commands("TOP")
	if err := os.WriteFile(wave, []byte(u.name+" pop3=bridge\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	within(t, patience, "the unique ids are learnt", func() bool {
		if got := poll(); got != want {
			t.Fatalf("UIDL is %q, want %q", got, want)
		}
		return len(p.logged(t, "unique ids of the old server learnt")) > 0
	})
	if n := old.Commands("TOP"); n != top || top != messages {
		t.Errorf("TOP came %d times in shadow, and %d times then, want %d and 0", top, n-top, messages)
	}
}
