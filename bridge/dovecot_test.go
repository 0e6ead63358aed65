package bridge

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"postern/proxy"
	"postern/proxy/proxytest"
)

// Criterion: UIDL and RETR are those of Dovecot's own POP3 on the same store, but for NUL, which IMAP turns into 0x80, and for the first-byte dot, which Dovecot forgets to double.
func TestSameAsDovecotsOwnPOP3(t *testing.T) {
	d := proxytest.StartDovecot(t, proxytest.DovecotOptions{Users: map[string]string{"alice": "secret"}, POP3: true})
	nasty := proxytest.HostileMessages()
	for _, m := range nasty {
		d.Deliver(t, "alice", m.Raw)
	}
	b := &Backend{LogIn: dialIMAP(d.IMAP)}
	ours := newPOP3(t, run(t, b).conn)
	theirs := newPOP3(t, dialPOP3(t, d.POP3))
	if got, want := ours.lines("UIDL"), theirs.lines("UIDL"); len(got) != len(nasty) || !slices.Equal(got, want) {
		t.Errorf("UIDL: %d lines %q, want %q", len(got), got, want)
	}
	for i, m := range nasty {
		t.Run(m.Name, func(t *testing.T) {
			for _, command := range []string{"RETR %d", "TOP %d 0", "TOP %d 2", "TOP %d 1000000"} {
				command := fmt.Sprintf(command, i+1)
				got := ours.body(command)
				var want []byte
				if bytes.HasPrefix(m.Raw, []byte(".")) {
					want = append([]byte("."), theirs.octets(command, len(got)-1)...)
				} else {
					want = bytes.ReplaceAll(theirs.body(command), []byte{0}, []byte{0x80})
				}
				if !bytes.Equal(got, want) {
					t.Errorf("%s: %d octets %.200q, want %d, %.200q", command, len(got), got, len(want), want)
				}
			}
			var listed int
			retrieved := ours.body(fmt.Sprintf("RETR %d", i+1))
			if _, err := fmt.Sscanf(ours.line(fmt.Sprintf("LIST %d", i+1)), "+OK %d %d", new(int), &listed); err != nil {
				t.Fatal(err)
			}
			if unstuffed := len(retrieved) - dots(retrieved); listed != unstuffed {
				t.Errorf("LIST says %d, RETR gives %d octets", listed, unstuffed)
			}
		})
	}
	_ = ours.line("QUIT")
}

// Criterion: a message that another client has marked as \Deleted survives QUIT.
func TestForeignMarksSurvive(t *testing.T) {
	d := proxytest.StartDovecot(t, proxytest.DovecotOptions{Users: map[string]string{"alice": "secret"}})
	for i := range 4 {
		d.Deliver(t, "alice", fmt.Appendf(nil, "Subject: %d\r\n\r\n", i+1))
	}
	r := run(t, &Backend{LogIn: dialIMAP(d.IMAP)})
	d.Doveadm(t, "flags", "add", "-u", "alice", `\Deleted`, "mailbox", "INBOX", "uid", "2")
	d.Doveadm(t, "expunge", "-u", "alice", "mailbox", "INBOX", "uid", "1")
	proxytest.Transcript(t, r.conn, `
		C: RETR 1
		S: -ERR Message 1 is no longer in the maildrop
		C: DELE 1
		S: +OK *
		C: RETR 3
		S: +OK 14 octets
		S: Subject: 3
		S:
		S: .
		C: DELE 4
		S: +OK *
		C: QUIT
		S: +OK *
	`)
	left := d.Doveadm(t, "fetch", "-u", "alice", "uid flags", "mailbox", "INBOX", "all")
	if got, want := strings.Join(strings.Fields(left), " "), `uid: 2 flags: \Deleted \Recent uid: 3 flags: \Seen \Recent`; strings.ReplaceAll(got, ` \Recent`, "") != strings.ReplaceAll(want, ` \Recent`, "") {
		t.Errorf("left: %s, want %s", got, want)
	}
}

// dots counts the dots that were doubled.
func dots(stuffed []byte) (n int) {
	for line := range bytes.Lines(stuffed) {
		if line[0] == '.' {
			n++
		}
	}
	return n
}

func dialPOP3(t *testing.T, addr string) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	proxytest.Transcript(t, conn, "S: +OK*\nC: USER alice\nS: +OK*\nC: PASS secret\nS: +OK*")
	return conn
}

// A pop3 is a simple client.
type pop3 struct {
	t    testing.TB
	conn net.Conn
	in   *bufio.Reader
}

func newPOP3(t testing.TB, conn net.Conn) *pop3 { return &pop3{t, conn, bufio.NewReader(conn)} }

// line returns the first line of the answer.
func (p *pop3) line(command string) string {
	p.t.Helper()
	_ = p.conn.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.WriteString(p.conn, command+"\r\n"); err != nil {
		p.t.Fatal(err)
	}
	line, err := p.in.ReadString('\n')
	if err != nil || !strings.HasPrefix(line, "+OK") {
		p.t.Fatalf("%s: %q, %v", command, line, err)
	}
	return line
}

// body returns what follows the first line, as it is on the wire, without its end.
func (p *pop3) body(command string) []byte {
	p.t.Helper()
	p.line(command)
	var all bytes.Buffer
	for crlf := true; ; {
		line, err := p.in.ReadBytes('\n')
		if err != nil {
			p.t.Fatal(command, err)
		}
		if crlf && string(line) == ".\r\n" {
			return all.Bytes()
		}
		crlf = bytes.HasSuffix(line, []byte("\r\n"))
		all.Write(line)
	}
}

// octets returns n octets that follow the first line; then the end must come.
func (p *pop3) octets(command string, n int) []byte {
	p.t.Helper()
	p.line(command)
	all := make([]byte, n+3)
	if _, err := io.ReadFull(p.in, all); err != nil || !bytes.HasSuffix(all, []byte(".\r\n")) {
		p.t.Fatalf("%s: %q, %v", command, all, err)
	}
	return all[:n]
}

func (p *pop3) lines(command string) []string {
	p.t.Helper()
	return strings.Split(strings.TrimSuffix(string(p.body(command)), "\r\n"), "\r\n")
}

// Criterion: with Dovecot behind, UIDLs are the same after new mail, removals and another UIDVALIDITY, and an unchanged mailbox is not listed again.
func TestUIDLsWithDovecot(t *testing.T) {
	d := proxytest.StartDovecot(t, proxytest.DovecotOptions{Users: map[string]string{"alice": "secret"}})
	b := &Backend{LogIn: dialIMAP(d.IMAP), Cache: &memory{}, Record: &memory{}}
	var notices []proxy.MaildropNoticed
	ids := make(map[string]string) // by Subject
	poll := func(source string, subjects ...string) {
		t.Helper()
		r := run(t, b)
		c := newPOP3(t, r.conn)
		now := make(map[string]string)
		for i, line := range c.lines("UIDL") {
			subject := string(c.body(fmt.Sprintf("TOP %d 0", i+1)))
			now[strings.TrimSpace(subject)] = strings.Fields(line)[1]
		}
		_ = c.line("QUIT")
		_ = r.wait(t)
		notices = append(notices, of[proxy.MaildropNoticed](r.events)...)
		if got := of[proxy.MaildropOpened](r.events)[0].Source; got != source {
			t.Errorf("listed from %s, want %s", got, source)
		}
		for _, subject := range subjects {
			subject = "Subject: " + subject
			if was, ok := ids[subject]; now[subject] == "" || ok && was != now[subject] {
				t.Errorf("%s was %q and is %q", subject, was, now[subject])
			}
			ids[subject] = now[subject]
		}
		if len(now) != len(subjects) {
			t.Errorf("%d messages, want %d: %v", len(now), len(subjects), now)
		}
	}
	deliver := func(subject string) {
		d.Deliver(t, "alice", []byte("Subject: "+subject+"\r\n\r\nof "+strings.Repeat(subject, 3)+"\r\n"))
	}
	for _, subject := range []string{"one", "three", "five", "eleven"} {
		deliver(subject)
	}
	poll("full", "one", "three", "five", "eleven")
	poll("cache", "one", "three", "five", "eleven")
	deliver("nineteen")
	d.Doveadm(t, "expunge", "-u", "alice", "mailbox", "INBOX", "uid", "2")
	poll("delta", "one", "five", "eleven", "nineteen")
	poll("cache", "one", "five", "eleven", "nineteen")
	d.Stop(t)
	for _, name := range []string{"dovecot-uidlist", "dovecot-uidvalidity", "dovecot.index", "dovecot.index.log", "dovecot.index.cache"} {
		if err := os.RemoveAll(filepath.Join(d.Store, "alice", "Maildir", name)); err != nil {
			t.Fatal(err)
		}
	}
	time.Sleep(time.Until(time.Now().Truncate(time.Second).Add(1100 * time.Millisecond))) // UIDVALIDITY is a second
	d.Start(t)
	b.LogIn = dialIMAP(d.IMAP)
	poll("full", "one", "five", "eleven", "nineteen")
	if len(notices) != 1 || notices[0].Kind != proxy.NoticeRenumbered || notices[0].Messages != 0 {
		t.Errorf("notices %v, want one of another UIDVALIDITY", notices)
	}
	poll("cache", "one", "five", "eleven", "nineteen")
}
