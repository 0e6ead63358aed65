package main

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"postern/proxy/proxytest"
)

// servedBy returns the subject of the one message that u has where a login by
// POP3 leads.
func servedBy(t testing.TB, p *postern, u user) string {
	t.Helper()
	conn := dialTLS(t, p.pop3, p.ca)
	defer func() { _ = conn.Close() }()
	c := loginOn(t, conn, u)
	defer c.command("QUIT")
	return strings.Join(subjects([][]byte{unstuffed(c.body("RETR 1"))}), "")
}

// Criterion: Of two Dovecots a map file says who is where; when it is changed,
// a user moves within 5 s, an open session stays where it is, and all others
// stay where they were.
func TestMapFileMovesAUserWhileRunning(t *testing.T) {
	t.Parallel()
	users, passwords := people("alice@example.org", "bob@example.net", "carol@example.net", "dave@example.com")
	alice, bob, carol, dave := users[0], users[1], users[2], users[3]
	var backends []string
	for _, name := range []string{"old", "new"} {
		d := proxytest.StartDovecot(t, proxytest.DovecotOptions{Users: passwords, Config: quick})
		for _, u := range users {
			d.Deliver(t, u.name, []byte(mail(u, name)))
		}
		backends = append(backends, fmt.Sprintf("%s: {imap: {address: %q, tls: none}}", name, d.IMAP))
	}
	dir := t.TempDir()
	moved := dir + "/moved"
	write := func(content string) {
		t.Helper()
		file(t, dir, "next", content)
		moveTo(t, dir+"/next", moved)
	}
	write("# nobody yet but one domain\nbob@example.net old\n@example.net new\n")
	p := launch(t, []string{"protocol: imap", "protocol: pop3"}, backends,
		fmt.Sprintf("routes:\n  - {file: %q, backend: new}\n  - {domain: example.com, backend: new}\n  - {backend: old}\n", moved))
	for u, want := range map[user]string{alice: "old", bob: "old", carol: "new", dave: "new"} {
		if got := servedBy(t, p, u); got != want {
			t.Errorf("%s is served by %s, want %s", u.name, got, want)
		}
	}

	staying := loginPOP3(t, p.pop3, p.ca, alice)
	write("ALICE@example.org\nbob@example.net old\n@example.net new\n")
	within(t, 5*time.Second, "alice has moved", func() bool { return servedBy(t, p, alice) == "new" })
	wantSubjects(t, "in the open session", subjects([][]byte{unstuffed(staying.body("RETR 1"))}), "old")
	staying.command("QUIT")
	for u, want := range map[user]string{bob: "old", carol: "new", dave: "new"} {
		if got := servedBy(t, p, u); got != want {
			t.Errorf("%s is served by %s, want %s", u.name, got, want)
		}
	}
	for _, l := range p.ends(t, alice) {
		if b := l.text("backend"); b != "old" && b != "new" {
			t.Errorf("a session ended so: %v, want the backend in it", l)
		}
	}
}

// Criterion: Of a pool of two Dovecots one is stopped: no login fails, by IMAP
// or POP3, whichever way the pool chooses, and backend_up stays 1.
func TestPoolServesOnWhenAMemberIsStopped(t *testing.T) {
	for _, balance := range []string{"least", "hash"} {
		t.Run(balance, func(t *testing.T) {
			t.Parallel()
			users, passwords := people("alice", "bob", "carol", "dave")
			first := proxytest.StartDovecot(t, proxytest.DovecotOptions{Users: passwords, Config: quick})
			second := proxytest.StartDovecot(t, proxytest.DovecotOptions{Users: passwords, Config: quick, Share: first})
			p := launch(t, []string{"protocol: imap", "protocol: pop3"}, []string{
				fmt.Sprintf("farm: {imap: {addresses: [%q, %q], tls: none, balance: %s}}", first.IMAP, second.IMAP, balance),
			}, "")
			for _, u := range users {
				first.Deliver(t, u.name, []byte(mail(u, "one")))
			}
			login := func() {
				t.Helper()
				for _, u := range users {
					talk(t, p.imap, p.ca, lines("S: \\* OK *", "C: a LOGIN "+u.name+" "+u.password, "S: a OK *", "C: b LOGOUT", "S: \\* BYE *", "S: b OK *"))
					if got := servedBy(t, p, u); got != "one" {
						t.Errorf("%s gets %s, want one", u.name, got)
					}
				}
			}
			login()
			if balance == "hash" {
				wantEachAtOneMember(t, users, first, second)
			}
			first.Stop(t)
			login()
			login()
			if values, _ := p.scrape(t); values[`postern_backend_up{backend="farm",protocol="imap"}`] != "1" {
				t.Error("backend_up is not 1 although a member serves")
			}
		})
	}
}

// wantEachAtOneMember checks that all logins of a user went to one server.
func wantEachAtOneMember(t *testing.T, users []user, members ...*proxytest.Dovecot) {
	t.Helper()
	for _, u := range users {
		var at []int
		for _, d := range members {
			at = append(at, strings.Count(readLog(t, d.Log), " Login: user=<"+u.name+">"))
		}
		if slices.Min(at) != 0 || slices.Max(at) != 2 {
			t.Errorf("logins of %s at the members: %v, want 2 at one of them", u.name, at)
		}
	}
}
