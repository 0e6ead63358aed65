package main

import (
	"bytes"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
)

// Criterion: uidl detect names the format of a real Dovecot, which then gives what its own POP3 server gives.
func TestDetectNamesDovecotsFormat(t *testing.T) {
	s := open(t)
	u := s.user(t)
	s.deliver(t, u, "one", "two", "three")
	dir := t.TempDir()
	config := s.forCommands(t, dir, "pop3: {uidl: cyrus}")
	password := file(t, dir, "password", u.password+"\n")
	got := run(t, dir, nil, []string{"postern", "uidl", "detect", "--config", config,
		"--old", s.reference.POP3S, "--ca", s.reference.CA, "--user", u.name, "--password-file", password})
	if want := "dovecot\n3 of 3 messages have these unique ids. "; !strings.HasPrefix(got, want) || leaked(got) != 0 {
		t.Errorf("detect prints %s, want %s...", hidden(got), want)
	}
}

// forCommands writes a configuration for commands that ask a Postern in front of
// the stage's Dovecot.
func (s *stage) forCommands(t testing.TB, dir, more string) (path string) {
	t.Helper()
	return file(t, dir, "commands.yaml", fmt.Sprintf(`
listeners: [{protocol: pop3, address: "127.0.0.1:0"}]
tls: {certificates: [{cert: not/needed.pem, key: not/needed.key}]}
backends: {main: {imap: {address: %q, ca: %q, server_name: localhost}}}
%s
`, s.backend.IMAPS, s.backend.CA, more))
}

// Criterion: unique ids that were shown come back byte for byte after export, forget and import, while Postern runs; forgotten, they are Dovecot's own.
func TestExportForgetAndImportWithDovecot(t *testing.T) {
	s := open(t)
	u := s.user(t)
	s.deliver(t, u, "one", "two", "three")
	dir := t.TempDir()
	state := fmt.Sprintf("state: {path: %q}", filepath.Join(dir, "state"))
	commands := func(stdin []byte, args ...string) string {
		t.Helper()
		args = append([]string{"postern", "uidl"}, args...)
		return run(t, dir, bytes.NewReader(stdin), append(args, "--config", filepath.Join(dir, "commands.yaml")))
	}
	s.forCommands(t, dir, state)
	imap := fmt.Sprintf("{address: %q, ca: %q, server_name: localhost}", s.backend.IMAPS, s.backend.CA)
	start := func(format string) *postern {
		return startPostern(t, behind{imap: imap}, state+"\npop3: {uidl: "+format+"}\n")
	}
	uidls := func(address, ca string) []byte {
		t.Helper()
		c := loginPOP3(t, address, ca, u)
		defer c.command("QUIT")
		return c.body("UIDL")
	}
	p := start("uw")
	before := uidls(p.pop3, p.ca)
	p.stop(t)
	dovecots := uidls(s.reference.POP3S, s.reference.CA)
	if bytes.Equal(before, dovecots) {
		t.Fatal("the formats are the same: nothing is proved")
	}

	p = start("dovecot")
	wantBytes(t, "UIDL after another format", uidls(p.pop3, p.ca), before)
	exported := commands(nil, "export", u.name)
	if got, want := commands(nil, "forget", u.name, "--yes"), "forgotten: 1\n"; got != want {
		t.Errorf("forget prints %q, want %q", got, want)
	}
	wantBytes(t, "UIDL when forgotten", uidls(p.pop3, p.ca), dovecots)
	if got, want := commands([]byte(exported), "import"), "imported: 1\n"; got != want {
		t.Errorf("import prints %q, want %q", got, want)
	}
	wantBytes(t, "UIDL when imported", uidls(p.pop3, p.ca), before)
	if got := commands(nil, "export"); got != exported {
		t.Errorf("the export is %s, want %s", got, exported)
	}
}
