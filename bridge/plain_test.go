package bridge

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"postern/proxy"
)

// Criterion: with Dovecot, Cyrus and Courier, taken for servers without UIDPLUS, a message that another client has marked survives, with its mark, and what POP3 has deleted is hidden or gone.
func TestRealServersWithoutUIDPLUS(t *testing.T) {
	for _, server := range realServers {
		t.Run(server.name, func(t *testing.T) {
			addr, deliver := server.start(t)
			for i := range 4 {
				deliver(fmt.Appendf(nil, "From: a@example.org\r\nSubject: message %d\r\n\r\nbody\r\n", i+1))
			}
			dial := dialIMAP(addr)
			b := &Backend{Cache: &memory{}, Record: &memory{}, LogIn: func(ctx context.Context, l *proxy.Login) (net.Conn, string, error) {
				conn, _, err := dial(ctx, l)
				return conn, "IMAP4rev1", err
			}}
			traits, err := (&Backend{LogIn: dial}).Inspect(t.Context(), &proxy.Login{Account: "alice", Secret: proxy.NewSecret([]byte("secret"))})
			if want := server.name != "Courier"; err != nil || !traits.StatusUIDNext || traits.UIDNext != want {
				t.Errorf("Inspect = %+v, %v, want UIDNEXT of STATUS, of SELECT: %v", traits, err, want)
			}
			other := newOther(t, dial)
			other.ask("SELECT INBOX")
			other.ask(`STORE 1 +FLAGS (\Deleted)`)

			if got := dele(t, b, "2"); got != "+OK Goodbye\r\n" {
				t.Fatalf("QUIT: %q", got)
			}
			if got := subjects(t, b); got != "1 3 4" {
				t.Errorf("POP3 shows %s, want 1 3 4", got)
			}
			other.ask("NOOP") // hears of the mark
			if got := other.ask("SEARCH DELETED"); !strings.Contains(got, "* SEARCH 1 2\r\n") {
				t.Errorf("IMAP has as deleted: %q, want 1 and 2", got)
			}
			b.Delete = Isolate
			if got := dele(t, b, "2"); got != "+OK Goodbye\r\n" { // message 3
				t.Fatalf("QUIT: %q", got)
			}
			if got := subjects(t, b); got != "1 4" {
				t.Errorf("after isolate POP3 shows %s, want 1 4", got)
			}
			other.ask("NOOP") // hears of the EXPUNGE
			if got := other.ask("SEARCH DELETED"); !strings.Contains(got, "* SEARCH 1 2\r\n") {
				t.Errorf("after isolate IMAP has as deleted: %q, want 1 and 2", got)
			}
			other.ask("EXPUNGE")
			b.Delete = Expunge
			if got := subjects(t, b); got != "4" {
				t.Errorf("after EXPUNGE of another client POP3 shows %s, want 4", got)
			}
			if stones, _ := b.Record.Get(t.Context(), tombstonesKey("alice")); stones != nil {
				t.Errorf("there are tombstones of nobody: %v", stones)
			}
		})
	}
}

// subjects returns the numbers in the subjects of all that POP3 shows.
func subjects(t *testing.T, b *Backend) string {
	t.Helper()
	r := run(t, b)
	c := newPOP3(t, r.conn)
	var n int
	if _, err := fmt.Sscanf(c.line("STAT"), "+OK %d", &n); err != nil {
		t.Fatal(err)
	}
	var all []string
	for i := range n {
		_, subject, _ := strings.Cut(string(c.body(fmt.Sprintf("TOP %d 0", i+1))), "Subject: message ")
		all = append(all, subject[:1])
	}
	_ = c.line("QUIT")
	_ = r.wait(t)
	return strings.Join(all, " ")
}

// An other is an IMAP client beside POP3.
type other struct {
	t    *testing.T
	conn net.Conn
	in   *bufio.Reader
}

func newOther(t *testing.T, dial LogIn) *other {
	t.Helper()
	conn, _, err := dial(t.Context(), &proxy.Login{Account: "alice", Secret: proxy.NewSecret([]byte("secret"))})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return &other{t, conn, bufio.NewReader(conn)}
}

// ask returns what the server says to a command, which must be OK.
func (o *other) ask(command string) (said string) {
	o.t.Helper()
	_ = o.conn.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.WriteString(o.conn, "x "+command+"\r\n"); err != nil {
		o.t.Fatal(err)
	}
	for {
		line, err := o.in.ReadString('\n')
		if err != nil || strings.HasPrefix(line, "x ") && !strings.HasPrefix(line, "x OK") {
			o.t.Fatalf("%s: %q, %v", command, line, err)
		}
		if strings.HasPrefix(line, "x ") {
			return said
		}
		said += line
	}
}
