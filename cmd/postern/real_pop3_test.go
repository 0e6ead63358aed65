package main

import (
	"bufio"
	"bytes"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"postern/proxy/proxytest"
)

// A pop3 is a POP3 session that is logged in.
type pop3 struct {
	t testing.TB
	r *bufio.ReadWriter
}

func loginPOP3(t testing.TB, address, ca string, u user) *pop3 {
	t.Helper()
	return loginOn(t, dialTLS(t, address, ca), u)
}

func loginOn(t testing.TB, conn net.Conn, u user) *pop3 {
	t.Helper()
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	c := &pop3{t, bufio.NewReadWriter(bufio.NewReaderSize(conn, 64<<10), bufio.NewWriter(conn))}
	c.ok()
	c.command("USER " + u.name)
	c.command("PASS " + u.password)
	return c
}

func (c *pop3) send(commands ...string) {
	c.t.Helper()
	for _, command := range commands {
		_, _ = c.r.WriteString(command + "\r\n")
	}
	if err := c.r.Flush(); err != nil {
		c.t.Fatal(err)
	}
}

func (c *pop3) line() []byte {
	c.t.Helper()
	line, err := c.r.ReadBytes('\n')
	if err != nil {
		c.t.Fatalf("got %.80q, then: %v", line, err)
	}
	return line
}

// ok returns the text of an answer that is +OK.
func (c *pop3) ok() string {
	c.t.Helper()
	line := string(c.line())
	if !strings.HasPrefix(line, "+OK") {
		c.t.Fatalf("got %q, want +OK", line)
	}
	return strings.TrimSpace(line[3:])
}

func (c *pop3) command(command string) string {
	c.t.Helper()
	c.send(command)
	return c.ok()
}

// body returns the octets between the first line of the answer and the last, as
// they come. The end of the answer is found by that of the next command: a
// server that forgets to double a dot ends it too early.
func (c *pop3) body(command string) []byte {
	c.t.Helper()
	c.send(command, "NOOP")
	c.ok()
	var body []byte
	for {
		line := c.line()
		for bytes.Equal(line, []byte(".\r\n")) {
			next := c.line()
			if bytes.HasPrefix(next, []byte("+OK")) {
				return body
			}
			body, line = append(body, line...), next
		}
		body = append(body, line...)
	}
}

// unstuffed is a body as the client stores it.
func unstuffed(body []byte) []byte {
	body = bytes.ReplaceAll(body, []byte("\n.."), []byte("\n."))
	return bytes.TrimPrefix(body, []byte(".")) // a dot at the very beginning is always a doubled one
}

// asPosternSends turns what Dovecot's POP3 server sends for a message into what
// Postern has to send, by the two differences that are meant:
//
//   - a NUL: Dovecot's IMAP server gives it as 0x80, and no IMAP server may give
//     it as it is (RFC 3501 section 4.3.1);
//   - a dot as the very first octet: Dovecot's POP3 server forgets to double it
//     (RFC 1939 section 3).
func asPosternSends(reference, message []byte) []byte {
	want := bytes.ReplaceAll(reference, []byte{0}, []byte{0x80})
	if bytes.HasPrefix(message, []byte(".")) {
		want = slices.Concat([]byte("."), want)
	}
	return want
}

// Criterion: UIDL, RETR and TOP through Postern are what Dovecot's own POP3
// server gives for the same mail, and LIST and STAT are the octets that RETR
// gives, at the latest once it has given them.
func TestPOP3IsThatOfTheServerItReplaces(t *testing.T) {
	s := open(t)
	u := s.user(t)
	nasty := proxytest.HostileMessages()
	for _, m := range nasty {
		s.backend.Deliver(t, u.name, m.Raw)
	}
	got := loginPOP3(t, s.pop3, s.ca, u)
	want := loginPOP3(t, s.reference.POP3S, s.reference.CA, u)
	if got, want := got.body("UIDL"), want.body("UIDL"); !bytes.Equal(got, want) {
		t.Errorf("UIDL = %s, want %s", got, want)
	}
	total := 0
	for i, m := range nasty {
		n := strconv.Itoa(i + 1)
		retr := got.body("RETR " + n)
		wantBytes(t, m.Name+": RETR", retr, asPosternSends(want.body("RETR "+n), m.Raw))
		for _, lines := range []string{" 0", " 1", " 5"} {
			wantBytes(t, m.Name+": TOP"+lines, got.body("TOP "+n+lines), asPosternSends(want.body("TOP "+n+lines), m.Raw))
		}
		octets := len(unstuffed(retr))
		total += octets
		if got, want := got.command("LIST "+n), fmt.Sprintf("%s %d", n, octets); got != want {
			t.Errorf("%s: LIST = %s, want %s", m.Name, got, want)
		}
	}
	if got, want := got.command("STAT"), fmt.Sprintf("%d %d", len(nasty), total); got != want {
		t.Errorf("STAT = %s, want %s", got, want)
	}
	got.command("QUIT")
	want.command("QUIT")
	if got := len(s.backend.Stored(t, u.name)); got != len(nasty) {
		t.Errorf("%d messages are left, want %d", got, len(nasty))
	}
}

func wantBytes(t testing.TB, what string, got, want []byte) {
	t.Helper()
	if bytes.Equal(got, want) {
		return
	}
	i := 0
	for i < min(len(got), len(want)) && got[i] == want[i] {
		i++
	}
	t.Errorf("%s: %d octets, want %d; from %d on %.40q, want %.40q", what, len(got), len(want), i, got[i:], want[i:])
}

// Criterion: Only what DELE named is deleted, and only at QUIT; what others have
// marked \Deleted stays.
func TestPOP3DeletesWhatDELENamedAndNothingElse(t *testing.T) {
	s := open(t)
	u := s.user(t)
	s.deliver(t, u, "one", "two", "three", "four")
	imap := dialTLS(t, s.imap, s.ca)
	proxytest.Transcript(t, imap, `
		S: \* OK *
		C: a LOGIN `+u.name+` `+u.password+`
		S: a OK *
		C: b SELECT INBOX
	`)
	until(t, imap, "b OK")
	proxytest.Transcript(t, imap, `C: c STORE 2 +FLAGS.SILENT (\Deleted)`)
	until(t, imap, "c OK")
	first := loginPOP3(t, s.pop3, s.ca, u)
	first.command("DELE 1")
	first.command("DELE 4")
	first.command("RSET")
	first.command("DELE 3")
	wantSubjects(t, "before QUIT", s.stored(t, u), "one", "two", "three", "four")
	first.command("QUIT")
	wantSubjects(t, "after QUIT", s.stored(t, u), "one", "two", "four")
	proxytest.Transcript(t, imap, `C: d LOGOUT`)
	second := loginPOP3(t, s.pop3, s.ca, u)
	if got := strings.Count(string(second.body("UIDL")), "\r\n"); got != 3 {
		t.Errorf("%d messages are listed, want 3", got)
	}
	second.command("QUIT")
}

// until reads lines up to one with this prefix.
func until(t testing.TB, conn interface{ Read([]byte) (int, error) }, prefix string) (lines []string) {
	t.Helper()
	for {
		var line []byte
		for b := make([]byte, 1); !bytes.HasSuffix(line, []byte("\n")); {
			n, err := conn.Read(b)
			if n == 0 && err != nil {
				t.Fatalf("got %.200q, then: %v, want %s", line, err, prefix)
			}
			line = append(line, b[:n]...)
		}
		lines = append(lines, strings.TrimRight(string(line), "\r\n"))
		if strings.HasPrefix(string(line), prefix) {
			return lines
		}
	}
}
