package bridge

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"net"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"postern/proxy"
	"postern/proxy/proxytest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A recorder keeps events.
type recorder struct {
	mu     sync.Mutex
	events []proxy.Event
}

func (r *recorder) Observe(e proxy.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, e)
}

// of returns the events of one type.
func of[E proxy.Event](r *recorder) (some []E) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range r.events {
		if e, ok := e.(E); ok {
			some = append(some, e)
		}
	}
	return some
}

const capabilities = "IMAP4rev1 UIDPLUS"

// A bridged is a POP3 session that runs.
type bridged struct {
	conn    net.Conn // the client's end
	session proxy.Session
	welcome string
	cancel  context.CancelCauseFunc
	events  *recorder
	err     error // why it ended, after wait
	done    chan struct{}
}

// run opens a session with b and serves the client's end of a TCP connection.
func run(t testing.TB, b *Backend) *bridged {
	t.Helper()
	client, server := proxytest.Pipe(t)
	return runOn(t, b, client, server)
}

func runOn(t testing.TB, b *Backend, client, server net.Conn) *bridged {
	t.Helper()
	r := &bridged{conn: client, events: &recorder{}, done: make(chan struct{})}
	b.Observer = r.events
	var ctx context.Context
	ctx, r.cancel = context.WithCancelCause(context.Background())
	login := &proxy.Login{Client: proxy.Client{ID: "ID42"}, Account: "alice", Secret: proxy.NewSecret([]byte("secret"))}
	session, err := b.Login(ctx, login)
	if err != nil {
		t.Fatal(err)
	}
	r.session = session
	if r.welcome, err = session.Open(ctx); err != nil {
		_ = session.Close()
		t.Fatal(err)
	}
	go func() {
		defer close(r.done)
		conn := proxy.NewConn(server, login.Client, nil, 0)
		defer context.AfterFunc(ctx, func() { conn.Interrupt(context.Cause(ctx)) })()
		r.err = session.Run(ctx, conn)
		_ = session.Close()
		if login.Secret.Reveal() != nil {
			t.Error("the secret is still there after Close")
		}
		_ = conn.Close()
	}()
	t.Cleanup(func() {
		_ = client.Close()
		r.cancel(nil)
		<-r.done
	})
	return r
}

// wait returns why the session ended. The client leaves when it must be over.
func (r *bridged) wait(t testing.TB) error {
	t.Helper()
	_ = r.conn.Close()
	select {
	case <-r.done:
		return r.err
	case <-time.After(5 * time.Second):
		t.Fatal("the session does not end")
		return nil
	}
}

// connected is a LogIn that gives these connections, one after the other, and
// then reaches nobody.
func connected(conn net.Conn, capabilities string, more ...net.Conn) LogIn {
	conns := append([]net.Conn{conn}, more...)
	return func(context.Context, *proxy.Login) (net.Conn, string, error) {
		if len(conns) == 0 {
			return nil, "", proxy.NewRefusal(proxy.Unavailable, errors.New("connection refused"))
		}
		next := conns[0]
		conns = conns[1:]
		return next, capabilities, nil
	}
}

// scripted runs a session whose server plays a script. It does not look at the
// ends of messages.
func scripted(t testing.TB, script string) *bridged {
	t.Helper()
	near, far := proxytest.Pipe(t)
	proxytest.ServeTranscript(t, far, script)
	return run(t, &Backend{Name: "main", LogIn: connected(near, capabilities), Estimates: true})
}

// opened is the script of a mailbox with messages of the given sizes, whose
// UIDs are 11, 12, ...
func opened(sizes ...int) string {
	var b strings.Builder
	b.WriteString("C: T1 SELECT INBOX\n")
	fmt.Fprintf(&b, "S: * %d EXISTS\n", len(sizes))
	b.WriteString("S: * OK [UIDVALIDITY 7] of today\nS: * OK [UIDNEXT 99] next\nS: T1 OK [READ-WRITE] done\n")
	b.WriteString("C: T2 UID FETCH 1:\\* (UID RFC822.SIZE)\n")
	for i, size := range sizes {
		fmt.Fprintf(&b, "S: * %d FETCH (UID %d RFC822.SIZE %d)\n", i+1, 11+i, size)
	}
	b.WriteString("S: T2 OK done\n")
	return b.String()
}

// A fakeIMAP serves one connection from messages with the UIDs 1, 2, ... and
// agrees to everything. It is fast, and has what memserver has not: a body
// that is not in memory.
type fakeIMAP struct {
	bodies []string
	size   int64 // of each body, which is all zeros; 0: bodies count
	exists int   // with size

	removed atomic.Int64 // octets sent up to the answer to UID EXPUNGE
}

func (f *fakeIMAP) count() int { return max(len(f.bodies), f.exists) }

func (f *fakeIMAP) serve(conn net.Conn) {
	defer func() { _ = conn.Close() }()
	counter := &countingWriter{w: conn}
	in, out := bufio.NewScanner(conn), bufio.NewWriter(counter)
	for in.Scan() {
		tag, command, _ := strings.Cut(in.Text(), " ")
		f.answer(out, strings.TrimPrefix(command, "UID "))
		_, _ = fmt.Fprintf(out, "%s OK done\r\n", tag)
		if strings.HasPrefix(command, "UID EXPUNGE") {
			f.removed.Store(counter.octets + int64(out.Buffered()))
		}
		if out.Flush() != nil || command == "LOGOUT" {
			return
		}
	}
}

func (f *fakeIMAP) answer(out *bufio.Writer, command string) {
	word, rest, _ := strings.Cut(command, " ")
	set, items, _ := strings.Cut(rest, " ")
	switch {
	case word == "SELECT":
		_, _ = fmt.Fprintf(out, "* %d EXISTS\r\n* OK [UIDVALIDITY 7] x\r\n* OK [UIDNEXT %d] x\r\n", f.count(), f.count()+1)
	case word == "SEARCH":
		_, _ = fmt.Fprintf(out, "* SEARCH %s\r\n", strings.TrimPrefix(rest, "UID "))
	case word == "FETCH" && strings.Contains(items, "RFC822.SIZE"):
		for i := range f.count() {
			size := f.size
			if size == 0 {
				size = int64(len(f.bodies[i]))
			}
			b := strconv.AppendInt(append(out.AvailableBuffer(), "* "...), int64(i+1), 10)
			b = strconv.AppendInt(append(b, " FETCH (UID "...), int64(i+1), 10)
			b = strconv.AppendInt(append(b, " RFC822.SIZE "...), size, 10)
			_, _ = out.Write(append(b, ")\r\n"...))
		}
	case word == "FETCH":
		for uid := range uidsOf(set) {
			if f.size == 0 {
				_, _ = fmt.Fprintf(out, "* %d FETCH (UID %d%s)\r\n", uid, uid, sections(f.bodies[uid-1], items))
				continue
			}
			_, _ = fmt.Fprintf(out, "* %d FETCH (UID %d BODY[] {%d}\r\n", uid, uid, f.size)
			_, _ = io.CopyN(out, zeros{}, f.size)
			_, _ = out.WriteString(")\r\n")
		}
	}
}

// uidsOf returns the UIDs of a set without *.
func uidsOf(set string) iter.Seq[int] {
	return func(yield func(int) bool) {
		for one := range strings.SplitSeq(set, ",") {
			first, last, found := strings.Cut(one, ":")
			start, _ := strconv.Atoi(first)
			stop := start
			if found {
				stop, _ = strconv.Atoi(last)
			}
			for uid := start; uid <= stop; uid++ {
				if !yield(uid) {
					return
				}
			}
		}
	}
}

type countingWriter struct {
	w              io.Writer
	octets, writes int64
}

func (c *countingWriter) Write(p []byte) (int, error) {
	c.writes++
	c.octets += int64(len(p))
	return c.w.Write(p)
}

// sections returns the items of a FETCH response that items ask for.
func sections(body, items string) string {
	header, text, found := strings.Cut(body, "\r\n\r\n")
	if found {
		header += "\r\n\r\n"
	}
	var b strings.Builder
	for item := range strings.FieldsSeq(strings.Trim(items, "()")) {
		name, from, _ := strings.Cut(strings.Replace(item, ".PEEK", "", 1), "<")
		part := map[string]string{"BODY[]": body, "BODY[HEADER]": header, "BODY[TEXT]": text}[name]
		var offset, size int
		if n, _ := fmt.Sscanf(from, "%d.%d>", &offset, &size); n == 2 {
			part = part[min(offset, len(part)):min(offset+size, len(part))]
			name += fmt.Sprintf("<%d>", offset)
		}
		if name != "UID" {
			fmt.Fprintf(&b, " %s {%d}\r\n%s", name, len(part), part)
		}
	}
	return b.String()
}

// dialFake is a LogIn that connects to f by a pipe in memory, or by TCP.
func dialFake(t testing.TB, f *fakeIMAP, tcp bool) LogIn {
	return func(context.Context, *proxy.Login) (net.Conn, string, error) {
		near, far := net.Pipe()
		if tcp {
			near, far = proxytest.Pipe(t)
		}
		done := make(chan struct{})
		go func() { defer close(done); f.serve(far) }()
		t.Cleanup(func() { <-done })
		return near, capabilities, nil
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// dialIMAP is a LogIn that logs in at addr.
func dialIMAP(addr string) LogIn {
	return func(ctx context.Context, l *proxy.Login) (net.Conn, string, error) {
		var d net.Dialer
		conn, err := d.DialContext(ctx, "tcp", addr)
		if err != nil {
			return nil, "", proxy.NewRefusal(proxy.Unavailable, err)
		}
		r := bufio.NewReader(conn)
		_, _ = fmt.Fprintf(conn, "a LOGIN %s %s\r\n", l.Account, l.Secret.Reveal())
		for {
			line, err := r.ReadString('\n')
			if err != nil {
				_ = conn.Close()
				return nil, "", proxy.NewRefusal(proxy.Unavailable, err)
			}
			if strings.HasPrefix(line, "a OK") {
				return conn, line, nil
			}
			if strings.HasPrefix(line, "a ") {
				_ = conn.Close()
				return nil, "", proxy.NewRefusal(proxy.Wrong, errors.New("server said no"))
			}
		}
	}
}
