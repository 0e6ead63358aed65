package bridge

import (
	"bufio"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"postern/bridge/inbox"
	"postern/proxy"
	"postern/proxy/proxytest"
)

// bodies is the part of a script that has rows with short messages.
func bodies(uids ...int) string {
	var b strings.Builder
	for _, uid := range uids {
		fmt.Fprintf(&b, "S- * %d FETCH (UID %d BODY[] {5}\\r\\n%03d\\r\\n)\\r\\n\n", uid-10, uid, uid)
	}
	return b.String()
}

// rows is the part of a script that answers a command with short messages.
func rows(tag string, uids ...int) string { return bodies(uids...) + "S: " + tag + " OK x\n" }

// got is the part of a script of a client that gets such a message.
func got(uid int) string { return fmt.Sprintf("S: +OK 5 octets\nS: %03d\nS: .\n", uid) }

// Criterion: the second RETR in order asks for what follows by one command, of a run that ascends, and what is deleted is left out.
func TestReadAhead(t *testing.T) {
	r := faulty(t, &Backend{}, opened(5, 5, 5, 5, 5, 5)+
		"C: F1 UID FETCH 11 (UID BODY.PEEK[])\n"+rows("F1", 11)+
		"C: F2 UID FETCH 12:14,16 (UID BODY.PEEK[])\n"+rows("F2", 12, 13, 14, 16)+
		"C: T1 UID STORE 15 *\nS: T1 OK x\nC: T2 UID EXPUNGE 15\nS: T2 OK x\nC: Q LOGOUT\nS: Q OK x")
	proxytest.Transcript(t, r.conn, "C: DELE 5\nS: +OK *\nC: RETR 1\n"+got(11)+"C: RETR 2\n"+got(12)+
		"C: RETR 3\n"+got(13)+"C: RETR 4\n"+got(14)+"C: RETR 6\n"+got(16)+"C: QUIT\nS: +OK Goodbye")
}

// Criterion: a command that does not fit what was read ahead neither hangs nor gets another message.
func TestReadAheadThatWasWrong(t *testing.T) {
	for _, test := range []struct{ name, server, client string }{
		{"an earlier message", bodies(12) + "C: F3 UID FETCH 11 *\n" + rows("F2", 13, 14, 15) + rows("F3", 11),
			"C: RETR 1\n" + got(11)},
		{"one passed over", rows("F2", 12, 13, 14, 15),
			"C: RETR 4\n" + got(14) + "C: RETR 5\n" + got(15)},
		{"one that was passed over", rows("F2", 12, 13, 14, 15) + "C: F3 UID FETCH 13 *\n" + rows("F3", 13),
			"C: RETR 4\n" + got(14) + "C: RETR 3\n" + got(13)},
		{"the same again", rows("F2", 12, 13, 14, 15) + "C: F3 UID FETCH 12 *\n" + rows("F3", 12),
			"C: RETR 2\n" + got(12)},
		{"TOP of one that comes", bodies(12) + "C: F3 UID FETCH 13 (UID BODY.PEEK[HEADER])\n" + rows("F2", 13, 14, 15) +
			`S- * 3 FETCH (UID 13 BODY[HEADER] {2}\r\n\r\n)\r\nF3 OK x\r\n`,
			"C: TOP 3 0\nS: +OK *\nS:\nS: .\n"},
		{"another order of the rows", rows("F2", 15, 14, 13, 12) + "C: F3 UID FETCH 13:15 *\n" + rows("F3", 13, 14, 15),
			"C: RETR 3\n" + got(13) + "C: RETR 4\n" + got(14) + "C: RETR 5\n" + got(15)},
		{"rows of two commands before their ends", bodies(12, 13, 14, 15) + "C: F3 UID FETCH 11 *\n" + bodies(11) + "S: F2 OK x\nS: F3 OK x",
			"C: RETR 3\n" + got(13) + "C: RETR 1\n" + got(11)},
		{"one that vanished", rows("F2", 12, 14, 15) + "C: F3 UID FETCH 13 *\nS: F3 OK x\nC: T1 UID SEARCH UID 13\nS: * 3 EXPUNGE\nS: * SEARCH\nS: T1 OK x",
			"C: RETR 3\nS: -ERR Message 3 is no longer in the maildrop\n"},
		{"one that cannot be read", bodies(12) + "S: F2 NO x\nC: F3 UID FETCH 13 (UID BODY.PEEK[])\nS: F3 NO x\nC: F4 UID FETCH 14:15 *\n" + rows("F4", 14, 15),
			"C: RETR 3\nS: -ERR \\[SYS/TEMP] *\nC: RETR 4\n" + got(14) + "C: RETR 5\n" + got(15)},
		{"UPDATE", rows("F2", 12, 13, 14, 15) + "C: T1 UID STORE 15 *\nS: T1 OK x\nC: T2 UID EXPUNGE 15\nS: T2 OK x\nC: Q LOGOUT\nS: Q OK x",
			"C: DELE 5\nS: +OK *\nC: QUIT\nS: +OK Goodbye\n"},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := faulty(t, &Backend{}, opened(5, 5, 5, 5, 5)+"C: F1 UID FETCH 11 *\n"+rows("F1", 11)+
				"C: F2 UID FETCH 12:15 (UID BODY.PEEK[])\n"+test.server)
			proxytest.Transcript(t, r.conn, "C: RETR 1\n"+got(11)+"C: RETR 2\n"+got(12)+test.client)
		})
	}
}

// Criterion: what is read ahead is bounded, for a session and for all.
func TestReadAheadIsBounded(t *testing.T) {
	d := newMaildrop(make([]message, 10_000), 7)
	for i := range d.messages {
		d.messages[i] = message{uid: uint32(i + 1), size: 10_000}
	}
	d.messages[5000].size = 100 << 20
	a, pending, asked := &readAhead{}, int64(0), make(map[uint32]int64)
	for i := range d.messages {
		a.advance(d, i, inbox.Body)
		for _, w := range a.nextRun(d, pending, func(*message) bool { return false }) {
			if asked[w.UID] > 0 {
				t.Fatalf("%d is asked for again", w.UID)
			}
			asked[w.UID] = w.Octets
			pending += w.Octets
		}
		if pending > maxWindow {
			t.Fatalf("at %d: %d octets on their way", i, pending)
		}
		pending -= asked[uint32(i+1)]
	}
	if len(asked) < 9990 || asked[5001] > 0 || pending != 0 {
		t.Errorf("%d read ahead, the large one: %v; %d octets left", len(asked), asked[5001] > 0, pending)
	}
	b := &Backend{}
	b.aheadOctets.Store(maxAheadOctets)
	near, far := proxytest.Pipe(t)
	proxytest.ServeTranscript(t, far, opened(5, 5, 5)+"C: F1 UID FETCH 11 *\n"+rows("F1", 11)+"C: F2 UID FETCH 12 *\n"+rows("F2", 12))
	b.LogIn = connected(near, capabilities)
	r := run(t, b)
	proxytest.Transcript(t, r.conn, "C: RETR 1\n"+got(11)+"C: RETR 2\n"+got(12))
	if err := r.wait(t); err == nil {
		t.Error("Run = nil, want that the client has left")
	}
	if got := b.aheadOctets.Load(); got != maxAheadOctets {
		t.Errorf("%d octets are still counted", got-maxAheadOctets)
	}
}

// A distant is a connection on which all comes late, and in order.
type distant struct {
	net.Conn
	delay  time.Duration
	queue  chan late
	once   sync.Once
	closed chan struct{}
}

type late struct {
	at time.Time
	p  []byte
}

// afar returns conn with a delay for what is written: half a round trip.
func afar(conn net.Conn, delay time.Duration) net.Conn {
	d := &distant{Conn: conn, delay: delay, queue: make(chan late, 1<<16), closed: make(chan struct{})}
	go func() {
		for {
			select {
			case l := <-d.queue:
				time.Sleep(time.Until(l.at))
				if _, err := conn.Write(l.p); err != nil {
					return
				}
			case <-d.closed:
				return
			}
		}
	}()
	return d
}

func (d *distant) Write(p []byte) (int, error) {
	d.queue <- late{time.Now().Add(d.delay), append([]byte(nil), p...)}
	return len(p), nil
}

func (d *distant) Close() error {
	d.once.Do(func() { close(d.closed) })
	return d.Conn.Close()
}

// benchmarkDrain retrieves n messages of 4 KB from a server that is 20 ms away.
func benchmarkDrain(b *testing.B, n, inFlight int) {
	const rtt = 20 * time.Millisecond
	f := &fakeIMAP{bodies: make([]string, n)}
	for i := range f.bodies {
		f.bodies[i] = strings.Repeat(strings.Repeat("x", 62)+"\r\n", 64)
	}
	backend := &Backend{Observer: proxy.Observers{}, Estimates: true, KeepUnseen: true}
	backend.LogIn = connectedAfar(b, f, rtt/2)
	session, err := backend.Login(b.Context(), &proxy.Login{})
	if err != nil {
		b.Fatal(err)
	}
	if _, err := session.Open(b.Context()); err != nil {
		b.Fatal(err)
	}
	client, server := proxytest.Pipe(b)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = session.Run(b.Context(), proxy.NewConn(server, proxy.Client{}, nil, 0))
		_ = session.Close()
	}()
	in := bufio.NewReaderSize(client, 64<<10)
	begun, rounds := time.Now(), 0
	for b.Loop() {
		rounds++
		sent := 0
		for got := range n {
			for ; sent < min(n, got+inFlight); sent++ {
				_, _ = fmt.Fprintf(client, "RETR %d\r\n", sent+1)
			}
			if status, err := in.ReadString('\n'); err != nil || !strings.HasPrefix(status, "+OK") {
				b.Fatal(status, err)
			}
			if text, ended := stuffed(in); !ended || len(text) != 4096 {
				b.Fatalf("%d octets", len(text))
			}
		}
	}
	b.ReportMetric(float64(rounds*n)/time.Since(begun).Seconds(), "messages/s")
	_ = client.Close()
	<-done
}

func connectedAfar(b *testing.B, f *fakeIMAP, delay time.Duration) LogIn {
	near, far := proxytest.Pipe(b)
	go f.serve(afar(far, delay))
	return connected(afar(near, delay), capabilities)
}

// The goals are 1,000 and 800 messages in a second.
func BenchmarkDrain100Pipelined20ms(b *testing.B) { benchmarkDrain(b, 100, 100) }
func BenchmarkDrainInTurn20ms(b *testing.B)       { benchmarkDrain(b, 1000, 1) }
