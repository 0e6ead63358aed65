package bridge

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"runtime"
	"strings"
	"testing"

	"postern/proxy"
)

// benchmarked returns a backend that has f behind it, by TCP.
func benchmarked(t testing.TB, f *fakeIMAP) (*fakeIMAP, *Backend) {
	t.Helper()
	return f, &Backend{LogIn: dialFake(t, f, true)}
}

// open opens a session and closes it.
func open(t testing.TB, b *Backend) {
	t.Helper()
	session, err := b.Login(t.Context(), &proxy.Login{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := session.Open(t.Context()); err != nil {
		t.Fatal(err)
	}
	_ = session.Close()
}

// Every line has exactly one answer, whatever it is.
func FuzzSession(f *testing.F) {
	f.Add("STAT\r\nLIST\r\nUIDL\nRETR 1\r\nTOP 2 1\r\nDELE 3\r\nRSET\r\nCAPA\r\nQUIT\r\nNOOP")
	f.Add("list 1 \r\n\r\n\nTOP 1\r\nPASS x\r\nRETR 999999999999999999999\r\nquit")
	f.Add("LIST " + strings.Repeat("1", 300) + "\nDELE 1\nRETR 1\n" + strings.Repeat("x\n", 25))
	f.Fuzz(func(t *testing.T, in string) {
		if len(in) > 4<<10 {
			return
		}
		lines := strings.Split(in, "\n")
		client, server := net.Pipe()
		r := runOn(t, &Backend{LogIn: dialFake(t, &fakeIMAP{bodies: []string{hello, short, first, ""}}, true)}, client, server)
		written := make(chan struct{})
		go func() {
			defer close(written)
			_, _ = io.WriteString(client, in+"\r\nQUIT\r\n")
		}()
		replies := bufio.NewReader(client)
		ended, bad := false, 0
		for _, line := range append(lines, "QUIT") {
			ended, bad = expectReply(t, replies, line+"\n", bad)
			if ended {
				break
			}
		}
		if rest, _ := io.ReadAll(replies); len(rest) > 0 || !ended {
			t.Errorf("after the last reply %q (ended: %v)", rest, ended)
		}
		_ = client.Close()
		<-written
		<-r.done
	})
}

// expectReply reads the reply to line, with all its lines.
func expectReply(t *testing.T, r *bufio.Reader, line string, bad int) (ended bool, bads int) {
	t.Helper()
	status, err := r.ReadString('\n')
	ok := strings.HasPrefix(status, "+OK ")
	if err != nil || !ok && !strings.HasPrefix(status, "-ERR ") || !strings.HasSuffix(status, "\r\n") {
		t.Fatalf("%q is answered by %q, %v", line, status, err)
	}
	keyword, args := parse([]byte(line))
	if !ok {
		if strings.Contains(status, " deleted") || strings.Contains(status, "No such") || strings.Contains(status, "unavailable") {
			return false, 0
		}
		return bad+1 >= maxBad, bad + 1
	}
	many := keyword == "RETR" || keyword == "TOP" || keyword == "CAPA" || (keyword == "LIST" || keyword == "UIDL") && len(args) == 0
	for many {
		text, err := r.ReadString('\n')
		if err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		many = text != ".\r\n"
	}
	return keyword == "QUIT", 0
}

// Criterion: a message of 100 MB takes no more memory than a small one.
func TestMemoryOfALargeMessage(t *testing.T) {
	for _, size := range []int64{1 << 20, 100 << 20} {
		f, b := benchmarked(t, &fakeIMAP{exists: 1, size: size})
		r := run(t, b)
		retr := func() {
			if err := retrieve(r.conn, f.size+2); err != nil {
				t.Fatal(err)
			}
		}
		retr()
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		retr()
		runtime.ReadMemStats(&after)
		if got := after.TotalAlloc - before.TotalAlloc; got > 1<<20 {
			t.Errorf("%d octets are allocated for %d octets", got, size)
		}
		if got := testing.AllocsPerRun(1, retr); got > 300 && !raceEnabled {
			t.Errorf("%v allocations for %d octets", got, size)
		}
		_, _ = io.WriteString(r.conn, "QUIT\r\n")
		if err := r.wait(t); err != nil {
			t.Errorf("Run = %v", err)
		}
	}
}

// retrieve fetches message 1, which has no dots and no line end.
func retrieve(conn net.Conn, octets int64) error {
	if _, err := io.WriteString(conn, "RETR 1\r\n"); err != nil {
		return err
	}
	b := make([]byte, 1)
	for b[0] != '\n' {
		if _, err := conn.Read(b); err != nil {
			return err
		}
	}
	n, err := io.CopyN(io.Discard, conn, octets+3)
	if err != nil {
		return fmt.Errorf("after %d octets: %w", n, err)
	}
	return nil
}

func BenchmarkRetrieve100MB(b *testing.B) {
	f, backend := benchmarked(b, &fakeIMAP{exists: 1, size: 100 << 20})
	r := run(b, backend)
	b.SetBytes(f.size)
	b.ReportAllocs()
	for b.Loop() {
		if err := retrieve(r.conn, f.size+2); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkRetrieve4KB(b *testing.B) {
	_, backend := benchmarked(b, &fakeIMAP{exists: 1, size: 4 << 10})
	r := run(b, backend)
	b.SetBytes(4 << 10)
	b.ReportAllocs()
	for b.Loop() {
		if err := retrieve(r.conn, 4<<10+2); err != nil {
			b.Fatal(err)
		}
	}
}
