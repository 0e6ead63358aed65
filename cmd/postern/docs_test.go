package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"postern/proxy/memserver"
	"postern/proxy/proxytest"
)

// A console is a block of a document: commands behind "$ ", and what they print.
type console struct {
	line  int
	norun string // why it is not run; "": it is
	steps []step
}

type step struct{ command, output string }

var fence = regexp.MustCompile("^```console(?: norun: (.+))?$")

func consoles(text string) (all []console, err error) {
	var c *console
	n := 0
	for line := range strings.SplitSeq(text, "\n") {
		n++
		switch begun := fence.FindStringSubmatch(line); {
		case begun != nil:
			c = &console{line: n, norun: begun[1]}
		case strings.HasPrefix(line, "```console"):
			return nil, fmt.Errorf("line %d: a console block is run, or marked: ```console norun: reason", n)
		case c == nil:
		case line == "```":
			all = append(all, *c)
			c = nil
		case strings.HasPrefix(line, "$ "):
			c.steps = append(c.steps, step{command: line[2:]})
		case len(c.steps) == 0:
			return nil, fmt.Errorf("line %d: output without a command", n)
		default:
			c.steps[len(c.steps)-1].output += line + "\n"
		}
	}
	return all, nil
}

// matches reports whether got is what a document shows: "..." is anything within
// a line, and a line "..." any number of lines.
func matches(want, got string) bool {
	var b strings.Builder
	for line := range strings.Lines(want) {
		if line == "...\n" {
			b.WriteString(`(?:.*\n)*?`)
			continue
		}
		b.WriteString(strings.ReplaceAll(regexp.QuoteMeta(line), `\.\.\.`, `.*`))
	}
	return regexp.MustCompile(`^` + b.String() + `$`).MatchString(got)
}

func TestOutputOfADocumentMatches(t *testing.T) {
	for _, test := range []struct {
		want, got string
		match     bool
	}{
		{"a\n", "a\n", true},
		{"a\n", "a\nb\n", false},
		{"a\n...\n", "a\nb\nc\n", true},
		{"a ... c\n", "a (b) c\n", true},
		{"a ... c\n", "a\nc\n", false},
		{"", "a\n", false},
	} {
		if got := matches(test.want, test.got); got != test.match {
			t.Errorf("%q matches %q: %v, want %v", test.want, test.got, got, test.match)
		}
	}
}

// Criterion: Every console block of the documentation is run against a Postern and prints what it says, or is marked as not run, with a reason.
func TestConsoleBlocksOfTheDocumentation(t *testing.T) {
	proxytest.Need(t, "sh", "curl")
	documents, err := filepath.Glob("../../docs/*.md")
	if err != nil || len(documents) == 0 {
		t.Fatalf("documents: %v, %v", documents, err)
	}
	ran := 0
	for _, path := range append(documents, "../../README.md") {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		blocks, err := consoles(string(text))
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		if len(blocks) == 0 {
			continue
		}
		ran += len(blocks)
		t.Run(filepath.Base(path), func(t *testing.T) {
			t.Parallel()
			var r *reader
			for _, block := range blocks {
				if block.norun != "" {
					continue
				}
				if r == nil {
					r = newReader(t, filepath.Base(path) == "retire-pop3.md")
				}
				for _, s := range block.steps {
					r.run(t, block.line, s)
				}
			}
		})
	}
	if ran == 0 {
		t.Error("no document has a console block")
	}
}

// A reader is an operator who tries what the documents say, on a machine with a
// Postern.
type reader struct {
	folder  string
	machine *strings.Replacer // from a document to this machine
	paper   *strings.Replacer // and back
}

const readersConfiguration = `
hostname: mail.example.org
listeners:
  - {protocol: imap, address: "127.0.0.1:0"}
  - {protocol: pop3, address: "127.0.0.1:%[3]d"}
  - {protocol: submission, address: "127.0.0.1:0"}
tls: {certificates: [{cert: mail.pem, key: mail.key}]}
backends:
  main:
    imap: {address: "%[1]s", tls: none}
    submission: {address: "%[2]s", tls: none}
%[5]spop3: {uidl: dovecot%[6]s}
limits: {max_connections: 1000}
state: {path: ../state}
metrics: {address: "127.0.0.1:%[4]d"}
`

// retiring is more of the backends, and more keys, of a reader with an old POP3 server.
const retiring = `  old:
    imap: {address: "%[1]s", tls: none}
    submission: {address: "%[2]s", tls: none}
    pop3: {address: "%[3]s", tls: none, kind: courier}
routes:
  - {file: moved, backend: main}
  - {backend: old, pop3_mode: passthrough}
`

func newReader(t *testing.T, retires bool) *reader {
	t.Helper()
	folder, err := os.MkdirTemp("", "docs") // short: it has a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(folder) })
	etc := filepath.Join(folder, "etc")
	cert, key, ca := proxytest.CertFiles(t, "mail.example.org")
	for name, path := range map[string]string{"mail.pem": cert, "mail.key": key} {
		text, err := os.ReadFile(path)
		must(t, err)
		if name == "mail.pem" { // with its issuer, so that check has no warning
			issuer, err := os.ReadFile(ca)
			must(t, err)
			text = append(text, issuer...)
		}
		writeFile(t, filepath.Join(etc, name), string(text))
	}
	m := memserver.New(memserver.Options{UIDValidity: 1700000000, Accounts: []memserver.Account{{User: "alice@example.org", Password: "secret of alice@example.org"}}})
	t.Cleanup(func() { _ = m.Close() })
	if err := m.Append("alice@example.org", []byte("Subject: hello\r\n\r\nhello\r\n")); err != nil {
		t.Fatal(err)
	}
	imap, err := serveInMemory(m.ServeIMAP)
	if err != nil {
		t.Fatal(err)
	}
	submission, err := serveInMemory(m.ServeSMTP)
	if err != nil {
		t.Fatal(err)
	}
	pop3, metrics := freePort(t), freePort(t)
	more, keys := "", ""
	if retires {
		old := proxytest.StartPOP3Server(t)
		old.Password = "secret of alice@example.org"
		old.SetMaildrop("alice@example.org", []proxytest.POP3Message{{UIDL: "UID1-1700000000", Raw: "Subject: hello\r\n\r\nhello\r\n"}})
		more, keys = fmt.Sprintf(retiring, imap, submission, old.Addr), ", old_server: old, learn_from: old"
		writeFile(t, filepath.Join(etc, "moved"), "")
	}
	writeFile(t, filepath.Join(etc, "postern.yaml"), fmt.Sprintf(readersConfiguration, imap, submission, pop3, metrics, more, keys))
	writeFile(t, filepath.Join(folder, "netrc"), "machine mail.example.org login alice@example.org password \"secret of alice@example.org\"\n")
	writeFile(t, filepath.Join(folder, "password"), "secret of alice@example.org\n")
	r := &reader{folder: folder}
	var there, back []string
	for paper, here := range map[string]string{
		"/etc/postern": etc, "/var/lib/postern": filepath.Join(folder, "state"), "/root/password": filepath.Join(folder, "password"), "/root/netrc": filepath.Join(folder, "netrc"),
		"pop3s://mail.example.org/": fmt.Sprintf("--cacert %s --resolve mail.example.org:%[2]d:127.0.0.1 pop3s://mail.example.org:%[2]d/", ca, pop3),
		"10.0.0.5:993":              imap, "10.0.0.5:587": submission, "127.0.0.1:9930": fmt.Sprintf("127.0.0.1:%d", metrics),
	} {
		there, back = append(there, paper, here), append(back, here, paper)
	}
	r.machine, r.paper = strings.NewReplacer(there...), strings.NewReplacer(back...)
	r.serve(t)
	// Somebody has logged in before.
	if _, err := shownBy(ca, fmt.Sprintf("127.0.0.1:%d", pop3), "alice@example.org", "secret of alice@example.org"); err != nil {
		t.Fatal(err)
	}
	within(t, patience, "that session is over", func() bool {
		sessions, err := r.command(t, "postern sessions --json")
		return err == nil && sessions == ""
	})
	return r
}

// serve starts the Postern that commands ask.
func (r *reader) serve(t *testing.T) {
	t.Helper()
	var log syncBuffer
	cmd := exec.Command("postern", "run", "--config", filepath.Join(r.folder, "etc", "postern.yaml")) // testscript.Main has put it into $PATH
	cmd.Stderr = &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(os.Interrupt)
		if err := cmd.Wait(); err != nil || t.Failed() {
			t.Logf("Postern: %v\n%s", err, log.String())
		}
	})
}

// run types a command.
func (r *reader) run(t *testing.T, line int, s step) {
	t.Helper()
	got, err := r.command(t, s.command)
	if err != nil {
		t.Errorf("line %d: $ %s: %v\n%s", line, s.command, err, got)
	} else if !matches(s.output, got) {
		t.Errorf("line %d: $ %s\nprints\n%s\nwant\n%s", line, s.command, got, s.output)
	}
}

// command returns what a command prints. Where it takes a configuration it gets
// that of this machine.
func (r *reader) command(t *testing.T, command string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	const preamble = `postern() { case " $* " in *" --config "*|*" -c "*|*" --help "*|" version "*) command postern "$@";; *) command postern "$@" --config "$CONFIG";; esac; }; `
	cmd := exec.CommandContext(ctx, "sh", "-c", preamble+r.machine.Replace(command))
	cmd.Dir = r.folder
	cmd.WaitDelay = time.Second
	cmd.Env = append(os.Environ(), "CONFIG="+filepath.Join(r.folder, "etc", "postern.yaml"))
	out, err := cmd.CombinedOutput()
	return r.paper.Replace(string(out)), err
}

func writeFile(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// freePort returns a port that nobody listens on, and that the kernel gives to no client.
func freePort(t *testing.T) int {
	t.Helper()
	_, text, _ := net.SplitHostPort(proxytest.FreeAddress(t))
	port, err := strconv.Atoi(text)
	if err != nil {
		t.Fatal(err)
	}
	return port
}
