package main

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"postern/bridge/oldserver"
	"postern/proxy"
	"postern/proxy/proxytest"
)

// shownOn logs u in and returns the unique ids that it is shown.
func shownOn(ctx context.Context, conn net.Conn, u user) (ids []string, err error) {
	server := oldserver.Server{Dial: func(context.Context) (net.Conn, error) { return drained{conn}, nil }}
	m, err := server.Open(ctx, u.name, proxy.NewSecret([]byte(u.password)))
	if err != nil {
		return nil, err
	}
	for _, m := range m.Messages {
		ids = append(ids, m.UIDL)
	}
	return ids, m.Close()
}

// Criterion: kill -9 in the middle of learning from the old server records nothing of the account; the next sessions learn it, and read again only what was not saved. A message that comes to the old server later is reported by `uidl compare`.
func TestLearningIsKilled(t *testing.T) {
	const messages, rtt = 120, 60 * time.Millisecond // more than the 5 seconds after which headers are saved
	s := open(t)
	u := s.user(t)
	old := proxytest.StartPOP3Server(t)
	old.Password = u.password
	old.SetRTT(rtt)
	var maildrop []proxytest.POP3Message
	for i := range messages {
		raw := fmt.Sprintf("Message-ID: <%d@example.org>\r\n\r\nx\r\n", i)
		maildrop = append(maildrop, proxytest.POP3Message{UIDL: fmt.Sprintf("old-%d", i), Raw: raw})
		s.backend.Deliver(t, u.name, []byte(strings.ReplaceAll(raw, "\r\n", "\n")))
	}
	old.SetMaildrop(u.name, maildrop)
	dir := t.TempDir()
	state := fmt.Sprintf("state: {path: %q}\n", filepath.Join(dir, "state"))
	commands := s.forCommands(t, dir, state)
	start := func() *postern {
		return startPostern(t, behind{
			imap: fmt.Sprintf("{address: %q, ca: %q, server_name: localhost}\n  old: {pop3: {address: %q, tls: none}}", s.backend.IMAPS, s.backend.CA, old.Addr),
		}, "routes: [{backend: main}]\npop3: {learn_from: old}\n"+state)
	}
	for _, top := range []int{5, 100} { // before anything is saved, and after
		p, before := start(), old.Commands("TOP")
		shown := make(chan []string, 1)
		conn := dialTLS(t, p.pop3, p.ca)
		go func() {
			ids, _ := shownOn(t.Context(), conn, u)
			shown <- ids
		}()
		within(t, patience, "headers are read", func() bool { return old.Commands("TOP")-before >= top })
		_ = p.cmd.Process.Kill()
		<-p.done
		if ids := <-shown; len(ids) > 0 {
			t.Errorf("the client is shown %d unique ids before all are learnt", len(ids))
		}
		if got := run(t, dir, nil, []string{"postern", "state", "check", "--config", commands}); strings.Contains(got, "damaged") {
			t.Errorf("after kill -9: %s", hidden(got))
		}
		if got := run(t, dir, nil, []string{"postern", "uidl", "export", "--config", commands}); strings.Contains(got, u.name) {
			t.Errorf("after kill -9 the account has a record: %s", hidden(got))
		}
	}
	p, before := start(), old.Commands("TOP")
	ids, err := shownOn(t.Context(), dialTLS(t, p.pop3, p.ca), u)
	if err != nil || len(ids) != messages {
		t.Fatalf("after a restart: %d unique ids, %v", len(ids), err)
	}
	for i, id := range ids {
		if id != maildrop[i].UIDL {
			t.Errorf("message %d has the unique id %s", i, id)
		}
	}
	if n := old.Commands("TOP") - before; n > messages/2 {
		t.Errorf("%d headers are read again", n)
	}

	old.SetRTT(0)
	compare := []string{
		"postern", "uidl", "compare", "--old", old.Addr, "--tls", "none", "--user", u.name,
		"--password-file", file(t, dir, "password", u.password+"\n"), "--config", commands,
	}
	if got := run(t, dir, nil, compare); !strings.Contains(got, "equal: 1") {
		t.Errorf("compare prints %s", hidden(got))
	}
	old.SetMaildrop(u.name, append(maildrop, proxytest.POP3Message{UIDL: "late", Raw: "Message-ID: <late@example.org>\r\n\r\nx\r\n"}))
	got := runWithin(t, patience, dir, nil, compare, 2)
	if !strings.Contains(got, "late") || !strings.Contains(got, "it is not here") || !strings.Contains(got, "equal: 0") {
		t.Errorf("compare prints %s", hidden(got))
	}
}
