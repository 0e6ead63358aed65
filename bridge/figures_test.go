package bridge

import (
	"context"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"postern/proxy"
	"postern/proxy/proxytest"
)

// Criterion: of 50,000 messages the first session costs 8 commands at most, an unchanged poll 1 kB and two commands, also with hide, and one with 10 new messages and 3 removed 4 kB; the server sees one login for each.
func TestCommandsAndOctetsOfALargeMailbox(t *testing.T) {
	for _, deletion := range []Deletion{Expunge, Hide} {
		m := newModel("ESEARCH")
		m.deliver(50_000)
		logins, dial := 0, m.dial(t)
		b := &Backend{Delete: deletion, Cache: &memory{}, Record: &memory{}}
		b.LogIn = func(ctx context.Context, l *proxy.Login) (net.Conn, string, error) {
			logins++
			return dial(ctx, l)
		}
		for _, step := range []struct {
			name     string
			change   func()
			commands int
			octets   int64
		}{
			{"first sight", func() {}, 8, 3_000_000},
			{"unchanged", func() {}, 2, 1000},
			{"10 new and 3 removed", func() { m.deliver(10); m.expunge(7); m.expunge(20_000); m.expunge(40_000) }, 14, 4000},
			{"unchanged after that", func() {}, 2, 1000},
		} {
			step.change()
			logins = 0
			r := run(t, b)
			c := newPOP3(t, r.conn)
			stat, ids, sizes := c.line("STAT"), c.lines("UIDL"), c.lines("LIST")
			commands, octets := m.take()
			_ = c.line("QUIT")
			if err := r.wait(t); err != nil {
				t.Errorf("%s: %v", step.name, err)
			}
			if len(commands) > step.commands || octets > step.octets || logins != 1 {
				t.Errorf("%s, %s: %d commands, %d octets, %d logins, want at most %d, %d, 1: %.300q",
					deletion, step.name, len(commands), octets, logins, step.commands, step.octets, commands)
			}
			if n := len(m.mails); len(ids) != n || len(sizes) != n || !strings.HasPrefix(stat, fmt.Sprintf("+OK %d ", n)) {
				t.Errorf("%s, %s: %d UIDLs, %d sizes, %s, want %d", deletion, step.name, len(ids), len(sizes), stat, n)
			}
			m.take() // fingerprints
		}
	}
}

// A counted is a connection that knows what was written to it.
type counted struct {
	net.Conn
	writes, octets atomic.Int64
}

func (c *counted) Write(p []byte) (int, error) {
	c.writes.Add(1)
	n, err := c.Conn.Write(p)
	c.octets.Add(int64(n))
	return n, err
}

// Criterion: 100 RETR at once go to the server in few round trips.
func TestPipelinedRETRsArePipelined(t *testing.T) {
	f := &fakeIMAP{bodies: slices.Repeat([]string{strings.Repeat("x", 4094) + "\r\n"}, 100)}
	near, far := proxytest.Pipe(t)
	done := make(chan struct{})
	go func() { defer close(done); f.serve(far) }()
	t.Cleanup(func() { <-done })
	conn := &counted{Conn: near}
	r := run(t, &Backend{LogIn: connected(conn, capabilities), Estimates: true, KeepUnseen: true})
	opened := conn.writes.Load()
	var all strings.Builder
	for n := range f.bodies {
		fmt.Fprintf(&all, "RETR %d\r\n", n+1)
	}
	go func() { _, _ = io.WriteString(r.conn, all.String()) }()
	want := strings.Repeat("+OK 4096 octets\r\n"+f.bodies[0]+".\r\n", len(f.bodies))
	got := make([]byte, len(want))
	if _, err := io.ReadFull(r.conn, got); err != nil || string(got) != want {
		t.Errorf("not what was asked for, %v", err)
	}
	if n := conn.writes.Load() - opened; n > 10 {
		t.Errorf("%d commands in turn, want at most 10", n)
	}
}

// Criterion: a client that takes nothing stops the server: what is on its way does not depend on the size of the message.
func TestSlowClientSlowsTheServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeIMAP{exists: 1, size: 100 << 20}
		near, far := net.Pipe()
		server := &counted{Conn: far}
		done := make(chan struct{})
		go func() { defer close(done); f.serve(server) }()
		client, ours := net.Pipe()
		r := runOn(t, &Backend{LogIn: connected(near, capabilities), Estimates: true}, client, ours)
		_, _ = io.WriteString(client, "RETR 1\r\n")
		time.Sleep(time.Second)
		synctest.Wait()
		if got := server.octets.Load(); got > 1<<20 {
			t.Errorf("%d octets of the message were taken for a client that takes none", got)
		}
		if n, err := io.CopyN(io.Discard, client, 10<<20); err != nil {
			t.Errorf("after %d octets: %v", n, err)
		}
		synctest.Wait()
		if got := server.octets.Load(); got > 11<<20 {
			t.Errorf("%d octets were taken for a client that has taken 10 MiB", got)
		}
		_ = client.Close()
		<-r.done
		<-done
	})
}

// Criterion: a session that is idle for minutes goes on although the server has closed its connection meanwhile.
func TestIdleSessionsOutliveTheirServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const row = `S- * 1 FETCH (UID 11 BODY[] {5}\r\n011\r\n)\r\nF1 OK x\r\n` // at once: nobody reads while a session is idle
		scripts := []string{opened(5), again + "C: F1 UID FETCH *\n" + row, again + "C: F1 UID FETCH *\n" + row}
		dials := 0
		b := &Backend{Estimates: true, KeepUnseen: true, LogIn: func(context.Context, *proxy.Login) (net.Conn, string, error) {
			near, far := net.Pipe()
			proxytest.ServeTranscript(t, far, scripts[dials])
			dials++
			time.AfterFunc(5*time.Minute, func() { _ = far.Close() })
			return near, capabilities, nil
		}}
		client, server := net.Pipe()
		r := runOn(t, b, client, server)
		for range 2 {
			time.Sleep(9 * time.Minute)
			proxytest.Transcript(t, client, "C: NOOP\nS: +OK *")
			time.Sleep(9 * time.Minute)
			proxytest.Transcript(t, client, "C: RETR 1\n"+got(11))
		}
		time.Sleep(9 * time.Minute)
		proxytest.Transcript(t, client, "C: QUIT\nS: +OK *")
		<-r.done
		if r.err != nil || dials != 3 {
			t.Errorf("Run = %v after %d logins, want nil after 3", r.err, dials)
		}
	})
}

// Criterion: with lock: allow two sessions see the same maildrop at the same time, and both may delete a message.
func TestTwoSessionsAtOnce(t *testing.T) {
	_, b := serve(t, hello, short, first)
	one, other := run(t, b), run(t, b)
	proxytest.Transcript(t, one.conn, "C: DELE 1\nS: +OK *\nC: DELE 2\nS: +OK *\nC: QUIT\nS: +OK Goodbye")
	proxytest.Transcript(t, other.conn, `
		C: UIDL 3
		S: +OK 3 0000000300000007
		C: RETR 2
		S: -ERR Message 2 is no longer in the maildrop
		C: DELE 1
		S: +OK *
		C: RETR 3
		S: +OK 15 octets
		S- ..first\r\n\r\n..\nx\r\n.\r\n
		C: QUIT
		S: +OK Goodbye
	`)
	proxytest.Transcript(t, run(t, b).conn, "C: STAT\nS: +OK 1 15")
}

// BenchmarkFirstSession50000At20ms is login, STAT and UIDL of a mailbox never
// seen before. The goal is 2 s.
func BenchmarkFirstSession50000At20ms(b *testing.B) {
	f := &fakeIMAP{exists: 50_000, size: 4096}
	for b.Loop() {
		r := run(b, &Backend{LogIn: connectedAfar(b, f, 10*time.Millisecond), Cache: &memory{}, Record: &memory{}, Estimates: true})
		c := newPOP3(b, r.conn)
		if _ = c.line("STAT"); len(c.lines("UIDL")) != f.exists {
			b.Fatal("not all are there")
		}
		_ = r.wait(b)
	}
}

// BenchmarkFirstOctetOf100MB is RETR up to the first octet of the message. The
// goal is 5 ms more than the server takes.
func BenchmarkFirstOctetOf100MB(b *testing.B) {
	_, backend := benchmarked(b, &fakeIMAP{exists: 1, size: 100 << 20})
	for b.Loop() {
		b.StopTimer()
		r := run(b, backend)
		b.StartTimer()
		_, _ = io.WriteString(r.conn, "RETR 1\r\n")
		if _, err := io.CopyN(io.Discard, r.conn, int64(len("+OK Message follows\r\n"))+1); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		_ = r.wait(b)
		b.StartTimer()
	}
}

// BenchmarkPollSmall is a whole session of a mailbox with ten messages, known
// and unchanged. The goal is 200 in a second.
func BenchmarkPollSmall(b *testing.B) {
	m := newModel("")
	m.deliver(10)
	backend := &Backend{LogIn: m.dial(b), Cache: &memory{}, Record: &memory{}}
	for b.Loop() {
		r := run(b, backend)
		c := newPOP3(b, r.conn)
		_, _, _ = c.line("STAT"), c.lines("UIDL"), c.line("QUIT")
		_ = r.wait(b)
	}
}
