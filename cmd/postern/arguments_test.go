package main

import (
	"bytes"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"
)

// walk calls visit for cmd and all commands below it, with their names: "guard explain".
func walk(cmd *cobra.Command, visit func(name string, cmd *cobra.Command)) {
	visit(strings.TrimPrefix(strings.TrimPrefix(cmd.CommandPath(), "postern"), " "), cmd)
	for _, c := range cmd.Commands() {
		walk(c, visit)
	}
}

// Criterion: every command that takes an account finds it however clients write its name, and the log says who ran it and on whom.
// Criterion: a name that no account has, such as a password in the wrong place of a command, is not written to the log.
func TestEveryCommandTakesAnAccountAsClientsWriteIt(t *testing.T) {
	imap, _ := inMemory(t, "mail", "alice@example.org")
	var log syncBuffer
	r, do := startWithCommandsAndLog(t, &log, fmt.Sprintf(`
listeners: [{protocol: pop3, address: "127.0.0.1:0"}]
backends: {main: {imap: {address: %q, tls: none}}}
accounts: {default_domain: example.org}
`, imap))
	const typed = "Alice"
	tests := []struct{ command, args, want string }{
		{"sessions", "--account " + typed, `(?m)^[0-9A-Za-z]+ .* alice@example.org `},
		{"guard explain", typed + " 127.0.0.1", `tier +known_good`},
		{"guard unlock", typed, `all budgets of alice@example.org are full`},
		{"why", typed, `alice@example.org`},
		{"account show", typed, `(?m)^account +alice@example.org$`},
		{"account export", typed, `"account": "alice@example.org"`},
		{"uidl export", typed, `"account":"alice@example.org"`},
		{"uidl history", typed, `present`},
		{"uidl undo", typed + " --yes", `a POP3 session of alice@example.org is open`},
		{"uidl forget", typed + " --yes", `^forgotten: 1\n$`},
		{"password add", typed + " --name phone", `device passwords need state.key_file: make the key with`},
		{"password list", typed, `^ACCOUNT +ID`},
		{"password remove", typed + " 01234567", `there is no such device of alice@example.org`},
		{"kick", "--account " + typed, `^ended: 1\n$`},
		{"account forget", typed + " --yes", `^forgotten: alice@example.org\n$`},
		// These log in by the name, as a client does.
		{"check", "", ""},
		{"uidl detect", "", ""},
		{"uidl compare", "", ""},
		{"uidl import", "", ""},
		{"provider check", "", ""},
	}
	tested := map[string]bool{}
	for _, c := range tests {
		tested[c.command] = true
	}
	walk(rootCommand(), func(name string, cmd *cobra.Command) {
		takesAccount := strings.Contains(cmd.Use, "ACCOUNT") || cmd.Flags().Lookup("account") != nil || cmd.Flags().Lookup("user") != nil
		if takesAccount && !tested[name] {
			t.Errorf("postern %s takes an account and is not tested here", name)
		}
	})
	r.login(t, "alice@example.org")
	waitForSessions(t, do, 1)
	within(t, patience, "the login is in the ledger", func() bool {
		_, ok := do("account", "show", "alice@example.org")
		return ok
	})
	for _, c := range tests {
		if c.args == "" {
			continue
		}
		out, _ := do(append(strings.Fields(c.command), strings.Fields(c.args)...)...)
		if !regexp.MustCompile(c.want).MatchString(out) {
			t.Errorf("postern %s %s prints\n%swant %s", c.command, c.args, out, c.want)
		}
		request := strings.ReplaceAll(c.command, " ", "/")
		if c.command == "account show" {
			request = "account/export"
		}
		logged := regexp.MustCompile(fmt.Sprintf(`(?m)msg="control request" request=%s uid=%d .*account=alice@example.org( |$)`, request, os.Getuid()))
		if !logged.MatchString(log.String()) {
			t.Errorf("postern %s: the log has\n%s", c.command, log.String())
		}
	}
	for _, name := range []string{"Tr0ub4dor", "Tr0ub4dor*3", "Tr0ub4dor\u202e3"} { // the last two can be no accounts
		for _, c := range tests {
			if c.args == "" {
				continue
			}
			do(append(strings.Fields(c.command), strings.Fields(strings.ReplaceAll(c.args, typed, name))...)...)
		}
		do("why", name, "--json")
	}
	if strings.Contains(strings.ToLower(log.String()), "tr0ub4dor") || !strings.Contains(log.String(), "name_shape=no_domain") {
		t.Errorf("the log has\n%s", log.String())
	}
}

// Criterion: a command that lacks an argument names it, and one that has too many names the one too many.
func TestMissingArgumentsAreNamed(t *testing.T) {
	for _, c := range []struct{ args, want string }{
		{"guard unlock", "missing ACCOUNT, ADDRESS or NETWORK: postern guard unlock ACCOUNT | ADDRESS | NETWORK"},
		{"account show", "missing ACCOUNT: postern account show ACCOUNT"},
		{"account show a b", `unexpected argument "b": postern account show ACCOUNT`},
		{"reload now", `unexpected argument "now": postern reload`},
		{"uidl forget", "missing ACCOUNT, --domain DOMAIN or --all: postern uidl forget ACCOUNT | --domain DOMAIN | --all"},
		{"uidl forget a --all", "only one of ACCOUNT, --domain and --all can be given"},
		{"uidl export a b", `unexpected argument "b": postern uidl export [ACCOUNT | --domain DOMAIN | --all]`},
		{"guard seed", "missing --from LOG: postern guard seed --from LOG"},
		{"account shwo a", `unknown command "shwo" for "postern account"; use export, forget, list or show`},
		{"log-level loud", `"loud" is not a level; use debug, info, warn or error`},
		{"uidl accept main --for 1y", `invalid argument "1y" for "--for" flag: not a duration; write 90m, 12h, 31d or 2w`},
	} {
		if got := runOffline(t, c.args); got != "postern: "+c.want+"\n" {
			t.Errorf("postern %s: %swant %s", c.args, got, c.want)
		}
	}
	// Whatever a Use line requires is missed by its name.
	walk(rootCommand(), func(name string, cmd *cobra.Command) {
		_, line, _ := strings.Cut(cmd.Use, " ")
		required := alternatives(cmd, optional.ReplaceAllString(line, ""))
		if !cmd.Runnable() || required == nil {
			return
		}
		if got := runOffline(t, name); !strings.HasPrefix(got, "postern: missing "+required[0][0].text) {
			t.Errorf("postern %s: %s", name, got)
		}
	})
}

func runOffline(t *testing.T, args string) string {
	t.Helper()
	var out bytes.Buffer
	if command(t.Context(), strings.Fields(args), &out, &out) == 0 {
		t.Errorf("postern %s: exit status 0", args)
	}
	return out.String()
}

func TestDurationsAreWrittenInDaysAndWeeks(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"31d": 31 * 24 * time.Hour, "2w": 14 * 24 * time.Hour, "1h30m": 90 * time.Minute, "0d": 0,
		"": -1, "d": -1, "-1d": -1, "1.5d": -1, "99999d": -1, "7": -1,
	} {
		d := longDuration(-1)
		if err := d.Set(text); time.Duration(d) != want || (err != nil) != (want < 0) {
			t.Errorf("%q: %v, %v, want %v", text, time.Duration(d), err, want)
		}
	}
	for d, want := range map[time.Duration]string{
		time.Hour: "1h", 48 * time.Hour: "2d", 90 * time.Minute: "1h30m", 10 * time.Minute: "10m", 30 * time.Second: "30s", 0: "0s",
	} {
		l := longDuration(d)
		if got := l.String(); got != want {
			t.Errorf("%v: %s, want %s", d, got, want)
		}
	}
}

// withoutJSON are the commands that have no --json, with the reason.
var withoutJSON = map[string]string{
	"run": "it serves", "demo": "it serves",
	"health":          "its exit status is the answer",
	"account export":  "it prints JSON always",
	"account forget":  "its exit status is the answer",
	"uidl export":     "it prints JSON always",
	"uidl forget":     "its exit status is the answer",
	"uidl undo":       "its exit status is the answer",
	"uidl accept":     "its exit status is the answer",
	"guard unlock":    "its exit status is the answer",
	"guard seed":      "its exit status is the answer",
	"certs renew":     "its exit status is the answer",
	"state backup":    "it writes a file",
	"state restore":   "its exit status is the answer",
	"certs obtain":    "its exit status is the answer",
	"man":             "it writes files",
	"provider check":  "its exit status is the answer",
	"help":            "it prints help",
	"completion bash": "it prints a script", "completion fish": "it prints a script", "completion powershell": "it prints a script", "completion zsh": "it prints a script",
}

// Criterion: every command that lists or shows something has --json.
func TestCommandsThatListHaveJSON(t *testing.T) {
	walk(rootCommand(), func(name string, cmd *cobra.Command) {
		if !cmd.Runnable() {
			return
		}
		reason, without := withoutJSON[name]
		if has := cmd.Flags().Lookup("json") != nil; has == without {
			t.Errorf("postern %s: --json is %v, and the reason to have none is %q", name, has, reason)
		}
	})
}

// Criterion: with --json each command prints JSON and nothing else, an object a line.
func TestJSONIsOneObjectALine(t *testing.T) {
	imap, _ := inMemory(t, "mail", "alice@example.org")
	r, do := startWithCommands(t, fmt.Sprintf(`
listeners: [{protocol: pop3, address: "127.0.0.1:0"}]
backends: {main: {imap: {address: %q, tls: none}}}
`, imap))
	r.login(t, "alice@example.org")
	waitForSessions(t, do, 1)
	within(t, patience, "the login is in the ledger", func() bool {
		_, ok := do("account", "show", "alice@example.org")
		return ok
	})
	for _, c := range []struct{ args, want string }{
		{"sessions", `{"id":"*","protocol":"pop3","listener":"pop3","state":"*","account":"alice@example.org",*`},
		{"account list", `{"account":"alice@example.org","protocol":"pop3",*`},
		{"account show alice@example.org", `{"account":"alice@example.org",*`},
		{"report pop3", `{"account":"alice@example.org","protocol":"pop3",*"quiet_days":0}`},
		{"uidl history alice@example.org", `{*"present":true,*`},
		{"drain main --undo", `{"backend":"main","protocol":"imap",*"connections":1}`},
		{"log-level", `{"level":"info"}`},
		{"guard list", ``},
		{"kick --account alice@example.org", `{"ended":1}`},
	} {
		out, ok := do(append(strings.Fields(c.args), "--json")...)
		pattern := "^" + strings.ReplaceAll(regexp.QuoteMeta(c.want), `\*`, ".*") + "\n$"
		if c.want == "" {
			pattern = "^$"
		}
		if !ok || !regexp.MustCompile(pattern).MatchString(out) {
			t.Errorf("postern %s --json: %v\n%swant %s", c.args, ok, out, c.want)
		}
	}
	for _, args := range []string{"version", "reload"} { // the service in this process has no file
		var out bytes.Buffer
		status := command(t.Context(), strings.Fields(args+" --json"), &out, &out)
		if args == "version" && (status != 0 || !strings.HasPrefix(out.String(), `{"arch":"`)) {
			t.Errorf("postern %s --json: %d, %s", args, status, out.String())
		}
	}
}

// Criterion: a backend, a session, a listener, a protocol or a version of TLS that there is not is a mistake, with those that there are.
func TestUnknownNamesAreSaidToBeUnknown(t *testing.T) {
	imap, _ := inMemory(t, "mail", "alice")
	_, do := startWithCommands(t, fmt.Sprintf(`
listeners: [{protocol: pop3, address: "127.0.0.1:0"}]
backends: {main: {imap: {address: %[1]q, tls: none}}, old: {imap: {address: %[1]q, tls: none}}}
routes: [{backend: main}]
`, imap))
	for _, c := range []struct{ args, want string }{
		{"sessions --backend mian", `sessions: there is no backend "mian"; there are: main, old`},
		{"sessions --session X", `sessions: no connection has the session id "X"`},
		{"sessions --protocol http", `"http" is not a protocol; use imap, pop3, submission or sieve`},
		{"kick --backend mian", `kick: there is no backend "mian"; there are: main, old`},
		{"kick --session X", `kick: no connection has the session id "X"`},
		{"drain mian", `drain: there is no backend "mian"; there are: main, old`},
		{"drain main 192.0.2.1:993", `drain: backend main has no server "192.0.2.1:993"; there are: ` + imap},
		{"guard explain alice 192.0.2.1 --listener imap", `guard/explain: there is no listener "imap"; there are: pop3`},
		{"uidl accept mian", `uidl/accept: there is no backend "mian"`},
		{"account list --protocol http", `"http" is not a protocol; use imap, pop3, submission or sieve`},
		{"account list --tls 1.5", `"1.5" is not a version of TLS; use 1.0, 1.1, 1.2, 1.3 or none`},
	} {
		if out, ok := do(strings.Fields(c.args)...); ok || !strings.HasPrefix(out, "postern: "+c.want) {
			t.Errorf("postern %s: %v\n%swant %s", c.args, ok, out, c.want)
		}
	}
	// Whoever has not logged in may exist all the same.
	out, ok := do("kick", "--account", "nobody")
	if want := "postern: nobody has never logged in here, as far as is stored: is the name right?\nended: 0\n"; !ok || out != want {
		t.Errorf("kick of an account that is not stored: %s", out)
	}
}
