package bridge

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"postern/proxy"
	"postern/proxy/wire"
)

var errStalled = errors.New("server was silent, or slow, for too long")

const (
	// maxTimeouts is how many times its timeout the server may take for a command,
	// and minRate how many octets in a second it has to send beyond that. A
	// listing of 50,000 rows is over in that time on any line; 100 MB may take
	// days; and a server that drips an octet a second has come to its end in
	// that time.
	maxTimeouts = 10
	minRate     = 128
)

// A link is the connection to the server. Its reader is whoever waits for an
// answer: the session itself, or the imapclient that a hatch lets to it. So
// nothing reads while a session is idle, and every read has a deadline.
type link struct {
	net.Conn
	timeout   time.Duration
	responses *responses
	before    func() error // called before a read that may wait; nil: nothing to do

	mu     sync.Mutex
	failed error         // of reading; imapclient reads again after an error
	waited time.Duration // for the server, since a command was sent last
	came   int64         // octets, in that time
}

func newLink(conn net.Conn, timeout time.Duration) *link {
	l := &link{Conn: conn, timeout: timeout}
	l.responses = newResponses(source{l})
	return l
}

// Write implements net.Conn.
func (l *link) Write(p []byte) (int, error) {
	if err := l.Conn.SetWriteDeadline(time.Now().Add(l.timeout)); err != nil {
		return 0, err
	}
	l.mu.Lock()
	l.waited, l.came = 0, 0
	l.mu.Unlock()
	return l.Conn.Write(p)
}

// stalled returns errStalled if the server was silent for too long.
func (l *link) stalled() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if errors.Is(l.failed, os.ErrDeadlineExceeded) {
		return errStalled
	}
	return nil
}

// dead reports whether reading has failed.
func (l *link) dead() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.failed != nil || l.responses.broken.Load() != nil
}

// A source reads from the connection under a link.
type source struct{ link *link }

func (s source) Read(p []byte) (int, error) {
	l := s.link
	if l.before != nil {
		if err := l.before(); err != nil {
			return 0, err
		}
	}
	l.mu.Lock()
	failed := l.failed
	left := maxTimeouts*l.timeout + time.Duration(l.came/minRate)*time.Second - l.waited
	l.mu.Unlock()
	if failed != nil {
		return 0, failed
	}
	begun := time.Now()
	err := l.Conn.SetReadDeadline(begun.Add(min(l.timeout, left)))
	n := 0
	if err == nil {
		n, err = l.Conn.Read(p)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.waited += time.Since(begun) // not what a slow client takes
	l.came += int64(n)
	if err != nil {
		l.failed = err
	}
	return n, err
}

// A hatch is the link as one imapclient gets it: behind a greeting of our own,
// and readable only while one of its commands is not answered. Between them
// the session may read the link itself, and close the hatch without closing
// the link.
//
// The deadlines that imapclient sets (5 minutes for a literal, however large)
// do nothing.
type hatch struct {
	*link
	greeting []byte
	line     []byte // of a command that is not complete
	mailbox  []byte // what placeholder stands for, quoted; nil: nothing

	mu     sync.Mutex
	change *sync.Cond
	due    int // commands without their tagged answer
	shut   bool

	watch  *watch
	client proxy.Client
	tell   func(proxy.Event)
}

func newHatch(l *link, greeting string, client proxy.Client, tell func(proxy.Event)) *hatch {
	h := &hatch{link: l, greeting: []byte(greeting), watch: &watch{tell: tell}, client: client, tell: tell}
	h.change = sync.NewCond(&h.mu)
	return h
}

// Read implements net.Conn. imapclient calls Read in a goroutine of its own: a
// panic is reported, and ends the connection to the server.
func (h *hatch) Read(p []byte) (n int, err error) {
	defer func() {
		if v := recover(); v != nil {
			err = h.link.responses.panicked(v)
			h.tell(proxy.Panicked{Client: h.client, Value: v, Stack: debug.Stack()})
		}
	}()
	if len(h.greeting) > 0 {
		n := copy(p, h.greeting)
		h.greeting = h.greeting[n:]
		return n, nil
	}
	h.mu.Lock()
	for h.due == 0 && !h.shut {
		h.change.Wait()
	}
	shut := h.shut
	h.mu.Unlock()
	if shut {
		return 0, io.EOF
	}
	n, err = h.responses.Read(p)
	if err != nil {
		h.watch.lost(err)
	}
	if h.responses.answered() {
		h.watch.answered(h.responses.tag, h.responses.status)
		h.mu.Lock()
		h.due--
		h.mu.Unlock()
	}
	return n, err
}

// placeholder is the name of a mailbox that stands for another one in what
// imapclient writes: it knows only names that are modified UTF-7.
const placeholder = "postern-trash"

// to sets what placeholder stands for, in octets of the server's.
func (h *hatch) to(mailbox []byte) { h.mailbox = quoted(mailbox) }

// Write implements net.Conn. The bridge sends no literals, so that each line
// is a command. It is sent when it is complete.
func (h *hatch) Write(p []byte) (int, error) {
	h.line = append(h.line, p...)
	end := bytes.LastIndexByte(h.line, '\n') + 1
	if end == 0 {
		return len(p), nil
	}
	commands := h.line[:end]
	if command, ok := bytes.CutSuffix(commands, []byte(`"`+placeholder+"\"\r\n")); ok && h.mailbox != nil {
		commands = slices.Concat(command, h.mailbox, []byte("\r\n"))
	}
	h.watch.sent(commands)
	for line := range bytes.Lines(commands) {
		tag, text := wire.CutWord(line)
		if result := h.responses.result.Load(); result != nil && commandName(text) == "SEARCH" {
			result.asked(string(tag))
		}
	}
	h.mu.Lock()
	h.due += bytes.Count(commands, []byte("\n"))
	h.change.Signal()
	h.mu.Unlock()
	if _, err := h.link.Write(commands); err != nil {
		return 0, err
	}
	h.line = append(h.line[:0], h.line[end:]...)
	return len(p), nil
}

// shutdown ends the imapclient behind the hatch, whose commands are answered,
// without closing the link.
func (h *hatch) shutdown() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.shut = true
	h.change.Signal()
}

// Close implements net.Conn. The link stays open after shutdown.
func (h *hatch) Close() error {
	h.mu.Lock()
	shut := h.shut
	h.shut = true
	h.change.Signal()
	h.mu.Unlock()
	if shut {
		return nil
	}
	return h.link.Close()
}

// SetDeadline implements net.Conn. It does nothing, as the two below.
func (h *hatch) SetDeadline(time.Time) error { return nil }

// SetReadDeadline implements net.Conn.
func (h *hatch) SetReadDeadline(time.Time) error { return nil }

// SetWriteDeadline implements net.Conn.
func (h *hatch) SetWriteDeadline(time.Time) error { return nil }
