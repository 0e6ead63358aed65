package inbox

import (
	"bytes"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/emersion/go-imap/v2"
	"go.uber.org/goleak"

	"postern/proxy"
	"postern/proxy/proxytest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A recorder keeps the panics that are reported.
type recorder struct {
	mu     sync.Mutex
	panics []proxy.Panicked
}

func (r *recorder) observe(e proxy.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if p, ok := e.(proxy.Panicked); ok {
		r.panics = append(r.panics, p)
	}
}

// A scriptedConn answers each write with the next of its answers. After the last one
// Read panics.
type scriptedConn struct {
	net.Conn
	answers []string

	mu      sync.Mutex
	change  *sync.Cond
	written bool
	unread  bytes.Buffer
	closed  bool
}

func newScriptedConn(answers ...string) *scriptedConn {
	c := &scriptedConn{answers: answers}
	c.change = sync.NewCond(&c.mu)
	return c
}

func (c *scriptedConn) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.answers) > 0 {
		c.unread.WriteString(c.answers[0])
		c.answers = c.answers[1:]
	}
	c.written = true
	c.change.Broadcast()
	return len(p), nil
}

func (c *scriptedConn) Read(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for !c.written && !c.closed {
		c.change.Wait()
	}
	if c.closed {
		return 0, net.ErrClosed
	}
	if c.unread.Len() == 0 {
		panic("bug in Read")
	}
	return c.unread.Read(p)
}

func (c *scriptedConn) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	c.change.Broadcast()
	return nil
}

func (c *scriptedConn) isClosed() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.closed
}

func (c *scriptedConn) SetReadDeadline(time.Time) error  { return nil }
func (c *scriptedConn) SetWriteDeadline(time.Time) error { return nil }

// panickingRows panics with the first row.
type panickingRows struct{ Rows }

func (panickingRows) Row(int64, uint32, int64) { panic("bug in Row") }

func TestAPanicInReadingEndsTheConnection(t *testing.T) {
	one := imap.UIDSetNum(11)
	section := func(in *Inbox) (*FetchResponse, error) {
		tag, err := in.Fetch(Body, Request{UID: 11})
		if err != nil {
			return nil, err
		}
		return in.Await(t.Context(), 11, tag)
	}
	for _, test := range []struct {
		name, answer, value string
		do                  func(*Inbox) error
	}{
		{"SELECT", "* 1 EXISTS\r\n", "bug in Read", func(in *Inbox) error { return in.Select(t.Context()) }},
		{"rows", "* 1 FETCH (UID 11 RFC822.SIZE 3)\r\nT1 OK x\r\n", "bug in Row", func(in *Inbox) error { return in.Sizes(t.Context(), one, panickingRows{}) }},
		{"SEARCH", "* SEARCH", "bug in Read", func(in *Inbox) error { _, err := in.Search(t.Context()); return err }},
		{"STORE", "", "bug in Read", func(in *Inbox) error { return in.Store(t.Context(), one, imap.StoreFlagsAdd, imap.FlagSeen)() }},
		{"FETCH", "* 1 FETCH (UID 11", "bug in Read", func(in *Inbox) error { _, err := section(in); return err }},
		{"a body", "* 1 FETCH (UID 11 BODY[] {3}\r\n", "bug in Read", func(in *Inbox) error {
			r, err := section(in)
			if err == nil {
				_, err = r.Section.Peek(1)
			}
			return err
		}},
		{"the end of a body", "* 1 FETCH (UID 11 BODY[] {3}\r\nabc", "bug in Read", func(in *Inbox) error {
			r, err := section(in)
			if err == nil {
				err = r.Section.CheckEnd()
			}
			return err
		}},
		{"after a body", "* 1 FETCH (UID 11 BODY[] {3}\r\nabc", "bug in Read", func(in *Inbox) error {
			if _, err := section(in); err != nil {
				return err
			}
			return in.Finish()
		}},
		{"the next section", "* 1 FETCH (UID 11 BODY[] {3}\r\nabc", "bug in Read", func(in *Inbox) error {
			r, err := section(in)
			if err == nil {
				err = r.Next()
			}
			return err
		}},
		{"fingerprints", "* 1 FETCH (UID 11 RFC822.SIZE 3 INTERNALDATE \" 1-Jan-2026 00:00:00 +0000\" BODY[HEADER.FIELDS (\"Message-ID\")] \"\")\r\n", "bug in each", func(in *Inbox) error {
			return in.Fingerprints(t.Context(), one, func(Fingerprint) { panic("bug in each") })
		}},
		{"last octets", "* 1 FETCH (UID 11 BODY[]<1> {2}\r\n", "bug in Read", func(in *Inbox) error {
			_, err := in.LastOctets(t.Context(), []Request{{UID: 11, Octets: 3}}, func(uint32, []byte) {})
			return err
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			conn := newScriptedConn(test.answer)
			var events recorder
			in := New(conn, "IMAP4rev1", Options{Timeout: time.Minute, Client: proxy.Client{ID: "ID42"}, Observe: events.observe})
			if err := test.do(in); !errors.Is(err, proxy.ErrBackendClosed) || !strings.Contains(err.Error(), test.value) {
				t.Errorf("error %v, want %v, for the panic", err, proxy.ErrBackendClosed)
			}
			if len(events.panics) != 1 || events.panics[0].Value != test.value || events.panics[0].Client.ID != "ID42" || len(events.panics[0].Stack) == 0 {
				t.Errorf("reported %+v, want one panic with %q", events.panics, test.value)
			}
			if !in.Dead() || !conn.isClosed() {
				t.Error("the connection is still used")
			}
			if err := in.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestAPanicInLogoutIsReported(t *testing.T) {
	var events recorder
	in := New(newScriptedConn(), "IMAP4rev1", Options{Timeout: time.Minute, Observe: events.observe})
	if err := in.Close(); err != nil {
		t.Error(err)
	}
	if len(events.panics) != 1 {
		t.Errorf("reported %+v, want one panic", events.panics)
	}
}

func TestADetachedConnectionServesAnotherInbox(t *testing.T) {
	near, far := proxytest.Pipe(t)
	proxytest.ServeTranscript(t, far, `
		C: T1 UID SEARCH ALL
		S: * SEARCH 11 12
		S: T1 OK x
		C: F1 UID FETCH 11 (UID BODY.PEEK[])
		S: * 1 FETCH (UID 11 BODY[] {3}
		S: abc)
		S: F1 OK x
		C: T1 UID SEARCH ALL
		S: * SEARCH 12
		S: T1 OK x
		C: Q LOGOUT
		S: Q OK x
	`)
	in := New(near, "IMAP4rev1", Options{Timeout: time.Minute})
	if found, err := in.Search(t.Context()); err != nil || found.String() != "11:12" {
		t.Fatalf("Search = %v, %v", found, err)
	}
	tag, err := in.Fetch(Body, Request{UID: 11})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := in.Detach(); err == nil {
		t.Fatal("a connection is detached while a message is to come")
	}
	r, err := in.Await(t.Context(), 11, tag)
	if err != nil {
		t.Fatal(err)
	}
	var body []byte
	if err := r.Section.Each(func(chunk []byte) { body = append(body, chunk...) }); err != nil || string(body) != "abc" {
		t.Fatalf("body %q, %v", body, err)
	}
	conn, err := in.Detach()
	if err != nil {
		t.Fatal(err)
	}
	if err := in.Close(); err != nil {
		t.Error(err)
	}
	if _, err := in.Search(t.Context()); !errors.Is(err, proxy.ErrBackendClosed) {
		t.Errorf("Search of a detached Inbox = %v", err)
	}
	if _, err := in.Detach(); err == nil {
		t.Error("a connection is detached twice")
	}
	next := New(conn, "IMAP4rev1", Options{Timeout: time.Minute})
	if found, err := next.Search(t.Context()); err != nil || found.String() != "12" {
		t.Errorf("Search = %v, %v, want 12", found, err)
	}
	if err := next.Close(); err != nil {
		t.Error(err)
	}
}

// What the server has sent before Detach is not lost.
func TestADetachedConnectionKeepsUnreadOctets(t *testing.T) {
	near, far := net.Pipe()
	var wg sync.WaitGroup
	wg.Go(func() {
		_, _ = io.ReadAtLeast(far, make([]byte, 100), 10)
		_, _ = io.WriteString(far, "* 1 EXISTS\r\n* OK [UIDVALIDITY 7] x\r\nT1 OK x\r\n* 2 EXISTS\r\n* 3 EX")
		_, _ = io.WriteString(far, "ISTS\r\n")
	})
	in := New(near, "IMAP4rev1", Options{Timeout: time.Minute})
	if err := in.Select(t.Context()); err != nil {
		t.Fatal(err)
	}
	conn, err := in.Detach()
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len("* 2 EXISTS\r\n* 3 EXISTS\r\n"))
	if _, err := io.ReadFull(conn, got); err != nil || string(got) != "* 2 EXISTS\r\n* 3 EXISTS\r\n" {
		t.Errorf("read %q, %v", got, err)
	}
	_ = conn.Close()
	wg.Wait()
}

// A throttledConn records the texts of refusals.
type throttledConn struct {
	net.Conn
	texts []string
}

func (c *throttledConn) CommandRefused(text string) {
	c.texts = append(c.texts, strings.TrimSpace(text))
}

// Criterion: What a server says when it refuses a command of a POP3 session reaches the connection: it may be that it wants no login of the account for some time.
func TestTheConnectionGetsTheTextsOfRefusals(t *testing.T) {
	near, far := proxytest.Pipe(t)
	proxytest.ServeTranscript(t, far, `
		C: T1 SELECT INBOX
		S: T1 BAD Request is throttled. Suggested Backoff Time: 2000 milliseconds
		C: F1 UID FETCH 11 (UID BODY.PEEK[])
		S: F1 NO [THROTTLED] Suggested Backoff Time: 3000 milliseconds
		C: T2 UID SEARCH ALL
		S: * SEARCH
		S: T2 OK Suggested Backoff Time: 4000 milliseconds
		S: * NO Suggested Backoff Time: 5000 milliseconds
		C: T1 UID SEARCH ALL
		S: T1 NO no more
		C: Q LOGOUT
		S: Q OK x
	`)
	conn := &throttledConn{Conn: near}
	in := New(conn, "IMAP4rev1", Options{Timeout: time.Minute})
	if err := in.Select(t.Context()); !Refused(err) {
		t.Errorf("Select = %v", err)
	}
	tag, err := in.Fetch(Body, Request{UID: 11})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := in.Await(t.Context(), 11, tag); !Refused(err) {
		t.Errorf("Await = %v", err)
	}
	if _, err := in.Search(t.Context()); err != nil {
		t.Error(err)
	}
	detached, err := in.Detach()
	if err != nil {
		t.Fatal(err)
	}
	next := New(&unreadConn{Conn: detached, r: detached}, "IMAP4rev1", Options{Timeout: time.Minute})
	if _, err := next.Search(t.Context()); !Refused(err) {
		t.Errorf("Search = %v", err)
	}
	if err := next.Close(); err != nil {
		t.Error(err)
	}
	want := []string{
		"Request is throttled. Suggested Backoff Time: 2000 milliseconds", "[THROTTLED] Suggested Backoff Time: 3000 milliseconds", "no more",
	}
	if !slices.Equal(conn.texts, want) {
		t.Errorf("texts %q, want %q", conn.texts, want)
	}
}

func TestADeadConnectionIsNotDetached(t *testing.T) {
	near, far := net.Pipe()
	_ = far.Close()
	in := New(near, "IMAP4rev1", Options{Timeout: time.Minute})
	if err := in.Select(t.Context()); !errors.Is(err, proxy.ErrBackendClosed) {
		t.Errorf("Select = %v", err)
	}
	if conn, err := in.Detach(); err == nil {
		t.Errorf("Detach = %v of a connection that is dead", conn)
	}
	in.Discard()
}

func TestTraitsOfCapabilities(t *testing.T) {
	for list, want := range map[string]Traits{
		"":                              {},
		"IMAP4rev1 uidplus Move":        {UIDPlus: true, Move: true},
		"IMAP4rev2":                     {UIDPlus: true, Move: true, ESearch: true, SpecialUse: true},
		"IMAP4rev1 UTF8=ACCEPT ESEARCH": {UTF8: true, ESearch: true},
		"UTF8=ONLY":                     {UTF8Only: true},
	} {
		if got := ParseTraits(list); got != want {
			t.Errorf("ParseTraits(%q) = %+v, want %+v", list, got, want)
		}
	}
	in := New(newScriptedConn(), "IMAP4rev2 X", Options{})
	if words := strings.Fields(in.capabilities); !slices.Equal(words, append([]string{"IMAP4rev1"}, extensions...)) || in.Traits() != ParseTraits("IMAP4rev2") {
		t.Errorf("imapclient learns of %q", words)
	}
}
