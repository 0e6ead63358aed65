package main

import (
	"bytes"
	"fmt"
	"path/filepath"
	"testing"
)

// Criterion: POP3 moves from the old server to Postern, back and to Postern again, with mail coming and going on both: every unique id stays the same.
func TestPOP3MovesToPosternAndBack(t *testing.T) {
	s := open(t)
	u := s.user(t)
	s.deliver(t, u, "one", "two", "three")
	p := startPostern(t, behind{imap: fmt.Sprintf("{address: %q, ca: %q, server_name: localhost}", s.backend.IMAPS, s.backend.CA)},
		fmt.Sprintf("state: {path: %q}\n", filepath.Join(t.TempDir(), "state")))
	uidls := func(address, ca string) []byte {
		t.Helper()
		c := loginPOP3(t, address, ca, u)
		defer c.command("QUIT")
		return c.body("UIDL")
	}
	before := uidls(s.reference.POP3S, s.reference.CA)
	if n := bytes.Count(before, []byte("\n")); n != 3 {
		t.Fatalf("the old server shows %d messages, want 3", n)
	}
	for _, stop := range []struct {
		name, address, ca string
		other, otherCA    string
	}{
		{"Postern", p.pop3, p.ca, s.reference.POP3S, s.reference.CA},
		{"the old server again", s.reference.POP3S, s.reference.CA, p.pop3, p.ca},
		{"Postern again", p.pop3, p.ca, s.reference.POP3S, s.reference.CA},
	} {
		wantBytes(t, "UIDL on "+stop.name, uidls(stop.address, stop.ca), before)
		s.deliver(t, u, "came to "+stop.name)
		c := loginPOP3(t, stop.address, stop.ca, u)
		c.body("RETR 2")
		c.command("DELE 1")
		c.command("QUIT")
		before = uidls(stop.address, stop.ca)
		wantBytes(t, "UIDL elsewhere, after "+stop.name, uidls(stop.other, stop.otherCA), before)
	}
}
