package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"postern/metrics/ledger"
	"postern/proxy/memserver"
	"postern/proxy/proxytest"
)

// Criterion: With accounts in ten states at once - bridged, learning refused, passthrough, one that empties its maildrop, compared equal, shadow-clean, not copied, imported, imported and polled since, switched off - and one that never polled, `report pop3 --ready` says of each what is true, and what would happen to it.
func TestReadyIsTheTruth(t *testing.T) {
	mail := func(n int) string {
		return fmt.Sprintf("Message-ID: <%d@example.org>\r\nSubject: %d\r\n\r\nhello\r\n", n, n)
	}
	computed := []proxytest.POP3Message{{UIDL: "0000000100000007", Raw: mail(1)}, {UIDL: "0000000200000007", Raw: mail(2)}}
	foreign := []proxytest.POP3Message{{UIDL: "X1", Raw: mail(1)}, {UIDL: "X2", Raw: mail(2)}}
	old := proxytest.StartPOP3Server(t)
	old.Password = "secret"
	users := map[string][]proxytest.POP3Message{
		"bridged": foreign, "failed": nil, "passed": foreign, "empties": foreign, "equal": computed, "shadow": foreign,
		"missing": foreign, "imported": foreign, "changed": foreign, "off": foreign, "quiet": foreign,
	}
	var accounts []memserver.Account
	for name := range users {
		accounts = append(accounts, memserver.Account{User: name, Password: "secret"})
	}
	m := memserver.New(memserver.Options{UIDValidity: 7, Accounts: accounts})
	t.Cleanup(func() { _ = m.Close() })
	for name, messages := range users {
		if messages != nil { // else the old server refuses its password
			old.SetMaildrop(name, messages)
		}
		for n := range 2 {
			if name == "missing" {
				break
			}
			if err := m.Append(name, []byte(mail(n+1))); err != nil {
				t.Fatal(err)
			}
		}
	}
	imap, err := serveInMemory(m.ServeIMAP)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	routes := file(t, dir, "routes", "bridged pop3=bridge\nfailed pop3=bridge\nshadow pop3=shadow\n")
	password := file(t, dir, "password", "secret\n")
	more := fmt.Sprintf("routes: [{file: %q, backend: main}, {backend: main}]\npop3: {mode: passthrough, learn_from: main, uidl: dovecot}\nstate: {path: %q}\ncontrol: {socket: off}\n",
		routes, filepath.Join(dir, "state"))
	p := startPostern(t, behind{imap: fmt.Sprintf("{address: %q, tls: none}", imap), pop3: fmt.Sprintf("{address: %q, tls: none}", old.Addr)}, more)
	config := filepath.Join(filepath.Dir(p.log), "postern.yaml")
	poll := func(name string, commands ...string) {
		t.Helper()
		c := loginPOP3(t, p.pop3, p.ca, user{name: name, password: "secret"})
		c.body("UIDL")
		for _, command := range commands {
			if command[0] == 'R' {
				c.body(command)
			} else {
				c.command(command)
			}
		}
		c.command("QUIT")
	}
	poll("bridged", "RETR 1")
	poll("passed", "RETR 1", "RETR 2")
	poll("empties", "RETR 1", "DELE 1", "RETR 2", "DELE 2")
	poll("shadow", "RETR 1", "RETR 2")
	for _, name := range []string{"equal", "missing", "imported", "changed", "off"} {
		poll(name, "RETR 1")
	}
	refused := dialTLS(t, p.pop3, p.ca)
	proxytest.Transcript(t, refused, "S: +OK *\nC: USER failed\nS: +OK*\nC: PASS secret\nS: -ERR \\[SYS/TEMP\\] *\n")
	_ = refused.Close()
	within(t, patience, "the shadow has compared", func() bool { return len(p.logged(t, "old server compared with INBOX")) > 0 })
	p.stop(t)
	run := func(want int, args ...string) []byte {
		t.Helper()
		cmd := exec.Command("postern", append(args, "-c", config)...)
		out, _ := cmd.Output()
		if got := cmd.ProcessState.ExitCode(); got != want {
			t.Errorf("postern %v: exit status %d, want %d: %s", args, got, want, out)
		}
		return out
	}
	at := []string{"--old", old.Addr, "--tls", "none", "--password-file", password, "--user"}
	run(0, append([]string{"uidl", "compare"}, append(at, "equal")...)...)
	run(2, append([]string{"uidl", "compare"}, append(at, "missing")...)...)
	for _, name := range []string{"imported", "changed", "quiet"} {
		run(0, append([]string{"uidl", "import"}, append(at, name)...)...)
	}
	p = newPostern(filepath.Dir(p.log), p.ca)
	p.start(t, config)
	p.listens(t, 2)
	poll("changed", "RETR 2")
	p.stop(t)

	policy := file(t, dir, "policy", "off pop3:off-after=2025-12-31\n")
	text, err := os.ReadFile(config)
	if err != nil {
		t.Fatal(err)
	}
	config = file(t, dir, "policy.yaml", string(text)+fmt.Sprintf("policy: {file: %q}\n", policy))
	var s statement
	if err := json.Unmarshal(run(2, "report", "pop3", "--ready", "--json"), &s); err != nil {
		t.Fatal(err)
	}
	t.Logf("%s", run(2, "report", "pop3", "--ready"))
	want := map[ledger.Class]int{
		ledger.Bridged: 1, ledger.Clean: 1, ledger.Computed: 1, ledger.Taken: 1, ledger.KeepsNone: 1, ledger.Off: 1,
		ledger.NotKnown: 1, ledger.NotLearnt: 1, ledger.NotCopied: 1, ledger.Changed: 1,
	}
	if !maps.Equal(s.Classes, want) || s.Active != 10 || s.Quiet != 1 || len(s.Reasons) != 4 {
		t.Errorf("got %v, active %d, quiet %d, reasons %q", s.Classes, s.Active, s.Quiet, s.Reasons)
	}
	var got []string
	for _, a := range s.Against {
		again := -1
		if a.Again != nil {
			again = *a.Again
		}
		got = append(got, fmt.Sprint(a.Account, " ", a.Class, " again ", again, " missing ", a.Missing))
	}
	slices.Sort(got)
	truth := []string{"changed changed again 1 missing 0", "failed not_learnt again -1 missing 0", "missing not_copied again -1 missing 2", "passed not_known again 2 missing 0"}
	if !slices.Equal(got, truth) {
		t.Errorf("got %q, want %q", got, truth)
	}
}
