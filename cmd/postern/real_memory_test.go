package main

import (
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"postern/proxy/proxytest"
)

// memory returns a figure of /proc/PID/status, in KiB.
func (p *postern) memory(t testing.TB, name string) int {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.SplitSeq(string(status), "\n") {
		if fields := strings.Fields(line); len(fields) == 3 && fields[0] == name+":" {
			n, err := strconv.Atoi(fields[1])
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatalf("no %s in %s", name, status)
	return 0
}

// Criterion: A FETCH of 200 MB grows the resident memory of Postern by less
// than 16 MB, at its highest. It is 2 MB, and 8 when a collection of garbage comes
// at the wrong moment.
func TestBigFETCHTakesNoMemory(t *testing.T) {
	s, p, u := alone(t, "")
	const size, most = 200 << 20, 16 << 10 // octets, KiB
	path := s.backend.Deliver(t, u.name, []byte(mail(u, "big")))
	grow(t, path, size)
	conn := dialTLS(t, p.imap, p.ca)
	_ = conn.SetDeadline(time.Now().Add(2 * patience))
	proxytest.Transcript(t, conn, lines("S: \\* OK *", "C: a LOGIN "+u.name+" "+u.password, "S: a OK *"))
	send(t, conn, "b SELECT INBOX\r\n")
	until(t, conn, "b OK")
	fetch(t, conn, "c FETCH 1 BODY.PEEK[]<0.20000000>") // what a session takes, however long it is

	// The high-water mark begins anew: proc(5), clear_refs.
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", p.cmd.Process.Pid), []byte("5"), 0); err != nil {
		t.Fatal(err)
	}
	before, begun := p.memory(t, "VmRSS"), time.Now()
	octets := fetch(t, conn, "d FETCH 1 BODY.PEEK[]")
	after := p.memory(t, "VmHWM")
	t.Logf("%d KiB before, %d KiB at the highest, %.0f MB/s", before, after, float64(octets)/1e6/time.Since(begun).Seconds())
	if octets < size {
		t.Errorf("%d octets, want at least %d", octets, size)
	}
	if after-before >= most {
		t.Errorf("resident memory grew from %d to %d KiB, want less than %d more", before, after, most)
	}
}

// fetch sends a FETCH of one message and returns the octets of its literal.
func fetch(t testing.TB, conn net.Conn, command string) (octets int64) {
	t.Helper()
	send(t, conn, command+"\r\n")
	answer := until(t, conn, "* 1 FETCH ")
	_, size, _ := strings.Cut(answer[len(answer)-1], "{")
	octets, err := strconv.ParseInt(strings.TrimSuffix(size, "}"), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	if n, err := io.CopyN(io.Discard, conn, octets); err != nil {
		t.Fatalf("after %d octets: %v", n, err)
	}
	until(t, conn, command[:1]+" OK")
	return octets
}

// grow appends lines to a file until it has so many octets.
func grow(t testing.TB, path string, size int) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	chunk := []byte(strings.Repeat(strings.Repeat("x", 76)+"\r\n", 10_000))
	for written := 0; written < size; written += len(chunk) {
		if _, err := f.Write(chunk); err != nil {
			t.Fatal(err)
		}
	}
}
