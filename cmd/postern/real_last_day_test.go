package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Criterion: After the last day of POP3 fetchmail (with -v), mpop and getmail show their user the text that says what to do, download
// nothing and lose nothing; a later day in policy.file is in force without a reload, and nothing is downloaded twice.
func TestClientsAreToldThatPOP3HasEnded(t *testing.T) {
	policy := filepath.Join(t.TempDir(), "protocols")
	lastDay := func(day string) {
		t.Helper()
		if err := os.WriteFile(policy+".new", []byte("* pop3:off-after="+day+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(policy+".new", policy); err != nil {
			t.Fatal(err)
		}
	}
	today := time.Now().Format(time.DateOnly)
	lastDay(today)
	s, p, fetcher := alone(t, "policy: {file: "+policy+"}\n")
	mover, getter := s.user(t), s.user(t)
	clients := []struct {
		u               user
		dir             string
		command         func(password string) []string
		ok, none, ended int // exit statuses: mail came, there was none, the login was refused
	}{
		{fetcher, t.TempDir(), nil, 0, 1, 3},
		{mover, t.TempDir(), nil, 0, 0, 77},
		{getter, t.TempDir(), nil, 0, 0, 127},
	}
	with := func(u user, password string) user {
		u.password = password
		return u
	}
	clients[0].command = func(password string) []string {
		return append(fetchmail(t, clients[0].dir, p.at(t, "pop3"), p.ca, with(fetcher, password), "keep"), "-v")
	}
	clients[1].command = func(password string) []string {
		return append(mpop(t, clients[1].dir, p.at(t, "pop3"), p.ca, with(mover, password), "user"), "--keep=on")
	}
	clients[2].command = func(password string) []string {
		return getmail(t, clients[2].dir, p.at(t, "pop3"), p.ca, with(getter, password))
	}
	got := func(i int) []string { return sorted(subjects(files(t, clients[i].dir+"/new/*"))) }
	loaded := 0
	wait := func() {
		t.Helper()
		loaded++
		within(t, patience, "the policy is read again", func() bool { return len(p.logged(t, "file loaded")) >= loaded })
	}

	for i, c := range clients {
		s.deliver(t, c.u, "one", "two")
		run(t, c.dir, nil, c.command(c.u.password), c.ok)
		wantSubjects(t, "on the last day", got(i), "one", "two")
	}
	lastDay("2025-01-31")
	wait()
	const text = "Set up this account with IMAP in your mail program: POP3 is switched off for it."
	for i, c := range clients {
		s.deliver(t, c.u, "three")
		out := run(t, c.dir, nil, c.command(c.u.password), c.ended)
		t.Logf("%s, after the last day, says:\n%s", c.command("")[0], hidden(out))
		if !strings.Contains(out, text) {
			t.Errorf("%s does not show %q", c.command("")[0], text)
		}
		out = run(t, c.dir, nil, c.command("wrong"), c.ended)
		if strings.Contains(out, text) || !strings.Contains(out, "Wrong user name or password") {
			t.Errorf("%s with a wrong password says:\n%s", c.command("")[0], hidden(out))
		}
		wantSubjects(t, "after the last day", got(i), "one", "two")
		wantSubjects(t, "kept", s.stored(t, c.u), "one", "two", "three")
	}
	lastDay("2099-12-31")
	wait()
	for i, c := range clients {
		run(t, c.dir, nil, c.command(c.u.password), c.ok)
		wantSubjects(t, "with a later day", got(i), "one", "three", "two")
		run(t, c.dir, nil, c.command(c.u.password), c.none)
	}
	reasons := map[string]int{}
	for _, l := range p.logged(t, "login refused") {
		reasons[l.text("reason")]++
	}
	if reasons["pop3_ended"] != len(clients) || reasons["wrong"] != len(clients) {
		t.Errorf("reasons in the log: %v, want pop3_ended and wrong once for each client", reasons)
	}
	if values, _ := p.scrape(t); values["postern_pop3_ended_refusals_total"] != "3" || values[`postern_policy_pop3_lines{name="all",state="ending"}`] != "1" {
		t.Errorf("metrics: refusals %q, lines %q", values["postern_pop3_ended_refusals_total"], values[`postern_policy_pop3_lines{name="all",state="ending"}`])
	}
}
