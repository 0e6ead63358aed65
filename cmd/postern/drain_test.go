package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"

	"postern/cmd/postern/internal/service"
)

// readiness returns status and text of /readyz.
func (f *processes) readiness(t *testing.T) (int, string) {
	t.Helper()
	response, err := http.Get("http://" + f.metrics + "/readyz")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, strings.TrimSpace(string(text))
}

// Criterion: postern drain --self makes /readyz say 503 while sessions stay and clients that come are served; a reload and an upgrade keep it, a restart and --undo end it.
func TestAPosternIsDrainedForItsLoadBalancer(t *testing.T) {
	f := startProcesses(t, 3, "limits: {max_connections: 100}\n")
	imap, pop3 := f.sessions(t, 0, 2)
	drained := func(when string, want bool) {
		t.Helper()
		status, text := f.readiness(t)
		gauges, _ := f.scrape(t)
		if want {
			if status != http.StatusServiceUnavailable || text != "drained by postern drain --self" || gauges["postern_drained"] != "1" || gauges["postern_ready"] != "0" {
				t.Errorf("%s: /readyz says %d %q, the gauges are %s and %s", when, status, text, gauges["postern_drained"], gauges["postern_ready"])
			}
		} else if status != http.StatusOK || text != "ready" || gauges["postern_drained"] != "0" || gauges["postern_ready"] != "1" {
			t.Errorf("%s: /readyz says %d %q, the gauges are %s and %s", when, status, text, gauges["postern_drained"], gauges["postern_ready"])
		}
		wantAlive(t, imap, pop3)
		c, err := f.popSession(2)
		if err != nil {
			t.Fatalf("%s: a client that comes: %v", when, err)
		}
		if err := c.wants("QUIT", "+OK"); err != nil {
			t.Error(err)
		}
	}
	drained("at first", false)
	out, err := f.say("drain", "--self")
	if err != nil || !strings.HasPrefix(out, "drained: /readyz says 503; clients that come are served, and sessions stay: ") {
		t.Errorf("drain --self: %v\n%s", err, out)
	}
	drained("drained", true)
	if out, err := f.say("reload"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	drained("after a reload", true)
	if out, err := f.say("upgrade"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	drained("after an upgrade", true)
	if out, err := f.say("drain", "--self", "--undo"); err != nil || out != "not drained: /readyz says \"ready\"\n" {
		t.Errorf("drain --self --undo: %v\n%s", err, out)
	}
	drained("after --undo", false)
	if got := len(f.logged(t, "this Postern is drained for load balancers")); got != 2 {
		t.Errorf("%d lines of the log say it, want 2", got)
	}
	for _, c := range append(imap, pop3...) {
		_ = c.Close()
	}
	f.wantEnded(t)
}

// Criterion: after an upgrade the sessions that the old process still has are listed, with its process id, and ended by kick; a backend that was drained stays drained.
func TestSessionsOfTheProcessBeforeAnUpgradeAreListedAndEnded(t *testing.T) {
	f := startProcesses(t, 4, "limits: {max_connections: 100}\n")
	imap, pop3 := f.sessions(t, 0, 2)
	first := f.cmd.Process.Pid
	if out, err := f.say("upgrade"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	second, err := f.imapSession(2)
	if err != nil {
		t.Fatal(err)
	}
	if out, err := f.say("upgrade"); err != nil { // now there are two before
		t.Fatalf("%v\n%s", err, out)
	}
	third, err := f.imapSession(3)
	if err != nil {
		t.Fatal(err)
	}
	processes := func() map[string]int {
		t.Helper()
		out, err := f.say("sessions", "--json")
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		of := make(map[string]int)
		for line := range strings.Lines(out) {
			var l service.Session
			if err := json.Unmarshal([]byte(line), &l); err != nil {
				t.Fatal(err)
			}
			if l.Account != "" {
				of[l.Account] = l.Process
			}
		}
		return of
	}
	of := processes()
	if len(of) != 4 || of["u0"] != first || of["u1"] != first || of["u2"] == 0 || of["u2"] == first || of["u3"] != 0 {
		t.Errorf("the sessions are of %v; the first process is %d", of, first)
	}
	out, err := f.say("sessions", "--account", "u0")
	if want := fmt.Sprintf("session (process %d, before the upgrade)\n", first); err != nil || !strings.HasSuffix(out, want) {
		t.Errorf("printed is %v\n%s, want %s", err, out, want)
	}
	if out, err := f.say("kick", "--account", "u1"); err != nil || out != "ended: 1\n" {
		t.Errorf("kick of a session two processes before: %v %s", err, out)
	}
	if err := pop3[0].wants("", "-ERR [SYS/TEMP]"); err != nil {
		t.Errorf("the session that was ended: %v", err)
	}
	wantAlive(t, append(imap, second, third), nil)
	within(t, patience, "it is not listed any more", func() bool { return len(processes()) == 3 })
	if out, err := f.say("kick", "--protocol", "imap"); err != nil || out != "ended: 3\n" {
		t.Errorf("kick of all: %v %s", err, out)
	}
	within(t, patience, "none is left", func() bool { return len(processes()) == 0 })
	f.wantEnded(t)
}

// Criterion: a drained backend stays drained through a reload that changes its configuration and through an upgrade.
func TestADrainOfABackendOutlivesReloadsAndUpgrades(t *testing.T) {
	f := startProcesses(t, 1, "limits: {max_connections: 100}\n")
	state := func(args ...string) string {
		t.Helper()
		out, err := f.say(append([]string{"drain"}, args...)...)
		lines := strings.Split(strings.TrimSpace(out), "\n")
		if err != nil || len(lines) != 2 {
			t.Fatalf("drain %s: %v\n%s", args, err, out)
		}
		return strings.Fields(lines[1])[3]
	}
	if got := state(); got != "up" {
		t.Errorf("at first it is %s", got)
	}
	if got := state("main"); got != "drained" {
		t.Errorf("drained it is %s", got)
	}
	if err := os.WriteFile(f.config, []byte(f.body+"timeouts: {dial: 7s}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, change := range []string{"reload", "upgrade"} {
		if out, err := f.say(change); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		if got := state(); got != "drained" {
			t.Errorf("after %s it is %s", change, got)
		}
	}
	if status, text := f.readiness(t); status != http.StatusServiceUnavailable || text != "no backend accepts logins: main (imap) is drained" {
		t.Errorf("/readyz says %d %q", status, text)
	}
	if got := state("main", "--undo"); got != "up" {
		t.Errorf("after --undo it is %s", got)
	}
}

func TestDrainNamesWhatIsWrongWithItsArguments(t *testing.T) {
	imap, _ := inMemory(t, "mail")
	_, do := startWithCommands(t, fmt.Sprintf("listeners: [{protocol: pop3, address: \"127.0.0.1:0\"}]\nbackends: {main: {imap: {address: %q, tls: none}}}\n", imap))
	for _, c := range []struct{ args, want string }{
		{"mian", "postern: drain: there is no backend \"mian\"; there are: main\n"},
		{"main 192.0.2.1:993", fmt.Sprintf("postern: drain: backend main has no server \"192.0.2.1:993\"; there are: %s\n", imap)},
		{"--undo", "postern: --undo needs BACKEND or --self\n"},
		{"--self main", "postern: --self takes no backend\n"},
	} {
		if out, ok := do(append([]string{"drain"}, strings.Fields(c.args)...)...); ok || !strings.HasSuffix(out, c.want) {
			t.Errorf("drain %s: %s, want %s", c.args, out, c.want)
		}
	}
	out, ok := do("drain", "--json")
	var m service.DrainedServer
	if err := json.Unmarshal([]byte(out), &m); !ok || err != nil || m.Backend != "main" || m.State != "up" || m.Address != imap || m.Since.IsZero() {
		t.Errorf("%v\n%s", err, out)
	}
}
