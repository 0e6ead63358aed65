package proxytest

import (
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

func TestFaultyCutsAfterSoManyBytes(t *testing.T) {
	a, b := Pipe(t)
	if _, err := b.Write([]byte("0123456789")); err != nil {
		t.Fatal(err)
	}
	conn := Faulty(a, Faults{CutRead: 7, CutWrite: 3, Slice: 2})
	if n, err := conn.Write([]byte("abcd")); n != 3 || !errors.Is(err, syscall.EPIPE) {
		t.Errorf("Write = %d, %v, want 3, EPIPE", n, err)
	}
	sent, err := io.ReadAll(b)
	if string(sent) != "abc" && !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the other side got %q, %v, want abc", sent, err)
	}
	a, b = Pipe(t)
	if _, err := b.Write([]byte("0123456789")); err != nil {
		t.Fatal(err)
	}
	conn = Faulty(a, Faults{CutRead: 7, Slice: 2})
	if n, err := conn.Read(make([]byte, 9)); n != 2 || err != nil {
		t.Errorf("Read = %d, %v, want a slice of 2", n, err)
	}
	rest, err := io.ReadAll(conn)
	if string(rest) != "23456" || err != nil {
		t.Errorf("rest = %q, %v, want 23456 and the end", rest, err)
	}
	if _, err := a.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("after the cut the connection is open: %v", err)
	}
}

func TestFaultyStallsUntilDeadlineOrClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := net.Pipe()
		go func() { _, _ = b.Write([]byte("0123456789")) }()
		conn := Faulty(a, Faults{StallRead: 4, StallWrite: 1, Delay: time.Second})
		start := time.Now()
		_ = conn.SetReadDeadline(start.Add(time.Hour))
		got, err := io.ReadAll(conn)
		if string(got) != "0123" || !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(start) != time.Hour {
			t.Errorf("ReadAll = %q, %v after %v, want 0123 and a timeout after 1h", got, err, time.Since(start))
		}
		go func() {
			_, _ = b.Read(make([]byte, 1))
			time.Sleep(time.Minute)
			_ = conn.Close()
		}()
		// The reader of b is still in its Write; it ends with conn.
		n, err := conn.Write([]byte("xy"))
		if n != 1 || !errors.Is(err, io.ErrClosedPipe) {
			t.Errorf("Write = %d, %v, want 1 and the end by Close", n, err)
		}
		_ = b.Close()
	})
}

func TestRelayPassesHalfCloseAndFaults(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	serve := func(script string) {
		conn, err := ln.Accept()
		if err != nil {
			t.Error(err)
			return
		}
		t.Cleanup(func() { _ = conn.Close() })
		ServeTranscript(t, conn, script)
	}
	r := StartRelay(t, ln.Addr().String())
	conn := dial(t, r.Addr)
	serve(`
		C: hello
		C: <EOF>
		S: bye
		S: <EOF>
	`)
	Transcript(t, conn, `
		C: hello
		C: <EOF>
		S: bye
		S: <EOF>
	`)
	r.SetFaults(Faults{CutRead: 5})
	conn = dial(t, r.Addr)
	serve(`S: 0123456789`)
	Transcript(t, conn, `
		S- 01234
		S: <EOF>
	`)
	r.SetFaults(Faults{})
	conn = dial(t, r.Addr)
	serve(`S: up`)
	Transcript(t, conn, `S: up`)
	r.Cut()
	if _, err := conn.Read(make([]byte, 1)); err == nil || strings.Contains(err.Error(), "timeout") {
		t.Errorf("Read after Cut = %v, want the end", err)
	}
}
