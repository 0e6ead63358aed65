package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"postern/cmd/postern/internal/service"
	"postern/proxy"
	"postern/proxy/proxytest"
)

// Criterion: an operator sees each session with protocol, account, client, TLS, backend, octets and state, and ends those of an account, a network, a backend, or one.
func TestSessionsAreListedAndEnded(t *testing.T) {
	imap, _ := inMemory(t, "mail", "alice", "bob")
	r, do := startWithCommands(t, fmt.Sprintf("listeners: [{protocol: pop3, address: \"127.0.0.1:0\"}, {protocol: imap, address: \"127.0.0.1:0\"}]\nbackends: {main: {imap: {address: %q, tls: none}}}\n", imap))
	alice, bob := r.login(t, "alice"), r.login(t, "bob")
	again, stranger := r.login(t, "bob"), r.secure(r.dial(t, "imap"))
	proxytest.Transcript(t, stranger, `S: \* OK *`)
	waitForSessions(t, do, 3)

	list := func(args ...string) (all []service.Session) {
		t.Helper()
		out, ok := do(append([]string{"sessions", "--json"}, args...)...)
		if !ok {
			t.Fatal(out)
		}
		out, _ = strings.CutPrefix(out, "postern: bo has never logged in here, as far as is stored: is the name right?\n")
		for line := range strings.Lines(out) {
			var l service.Session
			if err := json.Unmarshal([]byte(line), &l); err != nil {
				t.Fatal(err)
			}
			all = append(all, l)
		}
		return all
	}
	if got := list(); len(got) != 4 || got[0].Account != "alice" {
		t.Errorf("there are %+v", got)
	}
	for _, c := range []struct {
		args string
		want int
	}{
		{"--account bob", 2},
		{"--account bo", 0},
		{"--address 127.0.0.1", 4},
		{"--address 127.0.0.0/8 --protocol pop3", 3},
		{"--address 192.0.2.0/24", 0},
		{"--backend main", 3},
		{"--protocol submission", 0},
	} {
		if got := list(strings.Fields(c.args)...); len(got) != c.want {
			t.Errorf("%s: %+v, want %d", c.args, got, c.want)
		}
	}
	l := list("--account", "alice")[0]
	if l.Protocol != proxy.POP3 || l.Listener != "pop3" || l.Backend != "main" || l.TLS != "TLS 1.3" || !isServed(l.State) ||
		l.Client.String() != alice.LocalAddr().String() || l.Received == 0 || l.Sent == 0 || l.Since.IsZero() {
		t.Errorf("alice is %+v", l)
	}
	if l := list("--protocol", "imap")[0]; l.Account != "" || l.State != "login" {
		t.Errorf("the stranger is %+v", l)
	}
	out, _ := do("sessions", "--account", "alice")
	if fields := strings.Fields(out); len(fields) < 20 || fields[0] != "SESSION" || fields[10] != l.ID || !isServed(fields[len(fields)-1]) {
		t.Errorf("printed is\n%s", out)
	}

	for _, c := range []struct{ args, want string }{
		{"", "postern: missing --session, --account, --address, --backend or --protocol: with none of them this would end all connections\n"},
		{"--protocol http", "postern: \"http\" is not a protocol; use imap, pop3, submission or sieve\n"},
		{"--address mx", "postern: \"mx\" is not a network; it is written 10.0.0.0/24 or 2001:db8::/64, a single address 10.0.0.40\n"},
		{"--account carol", "postern: carol has never logged in here, as far as is stored: is the name right?\nended: 0\n"},
		{"--account alice --protocol imap", "ended: 0\n"},
		{"--session " + l.ID, "ended: 1\n"},
		{"--account bob", "ended: 2\n"},
		{"--address 127.0.0.0/24 --protocol imap", "ended: 1\n"},
	} {
		if out, _ := do(append([]string{"kick"}, strings.Fields(c.args)...)...); out != c.want {
			t.Errorf("kick %s: %s, want %s", c.args, out, c.want)
		}
		if c.args == "--session "+l.ID {
			proxytest.Transcript(t, alice, "S: -ERR \\[SYS/TEMP] *\nS: <EOF>")
		}
	}
	proxytest.Transcript(t, bob, "S: -ERR \\[SYS/TEMP] *\nS: <EOF>")
	proxytest.Transcript(t, again, "S: -ERR \\[SYS/TEMP] *\nS: <EOF>")
	proxytest.Transcript(t, stranger, `S: \* BYE *`)
}

// waitForSessions waits until n sessions are served: a client reads its welcome a
// moment earlier.
func waitForSessions(t *testing.T, do func(args ...string) (string, bool), n int) {
	t.Helper()
	within(t, patience, fmt.Sprintf("%d sessions are served", n), func() bool {
		out, ok := do("sessions", "--json")
		return ok && strings.Count(out, `"state":"session"`)+strings.Count(out, `"state":"parked"`) == n
	})
}

// isServed reports whether state is that of a client that is logged in: a second later it
// is parked.
func isServed(state string) bool { return state == "session" || state == "parked" }

// Criterion: a drained backend gets no new login, its sessions stay, and an operator sees how many are left.
func TestADrainedBackendGetsNoNewLogin(t *testing.T) {
	imap, _ := inMemory(t, "mail", "alice", "bob")
	r, do := startWithCommands(t, fmt.Sprintf("listeners: [{protocol: pop3, address: \"127.0.0.1:0\"}]\nbackends: {main: {imap: {address: %q, tls: none}}}\n", imap))
	alice := r.login(t, "alice")
	out, ok := do("drain", "main")
	if want := fmt.Sprintf("main     imap      %s  drained  1\nconnections to drained servers, which stay until they end by themselves: 1\n", imap); !ok || !strings.HasSuffix(out, want) {
		t.Errorf("printed is\n%s, want\n%s", out, want)
	}
	proxytest.Transcript(t, r.secure(r.dial(t, "pop3")), "S: +OK *\nC: USER bob\nS: +OK *\nC: PASS secret of bob\nS: -ERR \\[SYS/TEMP] *")
	proxytest.Transcript(t, alice, "C: STAT\nS: +OK 1 *\nC: QUIT\nS: +OK *")
	if out, ok := do("drain", "main", imap, "--undo"); !ok || !strings.Contains(out, "up") {
		t.Errorf("printed is\n%s", out)
	}
	r.login(t, "bob")
}

func TestTheLogLevelChangesWhileItRuns(t *testing.T) {
	imap, _ := inMemory(t, "mail")
	r, do := startWithCommands(t, fmt.Sprintf("listeners: [{protocol: pop3, address: \"127.0.0.1:0\"}]\nbackends: {main: {imap: {address: %q, tls: none}}}\n", imap))
	for _, c := range []struct{ args, want string }{{"", "info\n"}, {"debug", "debug\n"}, {"", "debug\n"}} {
		if out, ok := do(append([]string{"log-level"}, strings.Fields(c.args)...)...); !ok || out != c.want {
			t.Errorf("log-level %s: %s, want %s", c.args, out, c.want)
		}
	}
	if got := r.level.Level(); got != slog.LevelDebug {
		t.Errorf("the level is %v", got)
	}
	if out, ok := do("log-level", "loud"); ok || !strings.Contains(out, `"loud" is not a level; use debug, info, warn or error`) {
		t.Errorf("printed is %s", out)
	}
}

func TestWhatOnlyAPosternThatRunsCanDo(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "postern.yaml")
	const config = "listeners: [{protocol: pop3, address: \":0\"}]\nbackends: {main: {imap: {address: \"127.0.0.1:1\", tls: none}}}\n"
	for _, c := range []struct{ control, want string }{
		{"control: {socket: none.sock}\n", "postern: no Postern is running at " + filepath.Join(dir, "none.sock") + "\n"},
		{"control: {socket: off}\n", "postern: control.socket is off: the commands cannot reach the running Postern\n"},
	} {
		if err := os.WriteFile(path, []byte(baseConfig+config+c.control), 0o600); err != nil {
			t.Fatal(err)
		}
		for _, args := range []string{"kick --account a", "drain main", "log-level"} {
			var out bytes.Buffer
			if status := command(t.Context(), append(strings.Fields(args), "-c", path), &out, &out); status != 1 || !strings.HasSuffix(out.String(), c.want) {
				t.Errorf("%s: %s, want %s", args, out.String(), c.want)
			}
		}
	}
}
