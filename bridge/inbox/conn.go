package inbox

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"postern/proxy/wire"
)

// ErrStalled says that the server was silent for Options.Timeout, or slower than it may be.
var ErrStalled = errors.New("server was silent, or slow, for too long")

const (
	// maxTimeouts is how many times its timeout the server may take for a command,
	// and minRate how many octets in a second it has to send beyond that. A
	// listing of 50,000 rows is over in that time on any line; 100 MB may take
	// days; and a server that sends one octet a second is given up in that time.
	maxTimeouts = 10
	minRate     = 128
)

// A link is the connection to the server. Its reader is whoever waits for an
// answer: the caller of the Inbox itself, or imapclient through a clientConn. So
// nothing reads while a session is idle, and every read has a deadline.
type link struct {
	net.Conn
	timeout    time.Duration
	responses  *responses
	beforeWait func() error // called before a read that may wait; nil: nothing is

	mu       sync.Mutex
	failed   error         // of reading; imapclient reads again after an error
	waited   time.Duration // for the server, since a command was sent last
	received int64         // octets, in that time
	detached bool
}

// A refusalReader is a connection that gets the texts of commands that the server has
// refused: the server may say for how long it wants no login of the account.
type refusalReader interface{ CommandRefused(text string) }

func newLink(conn net.Conn, timeout time.Duration) *link {
	l := &link{Conn: conn, timeout: timeout}
	l.responses = newResponses(source{l})
	if c, ok := conn.(refusalReader); ok {
		l.responses.refused = c.CommandRefused
	}
	return l
}

// Write implements net.Conn.
func (l *link) Write(p []byte) (int, error) {
	if l.isDetached() {
		return 0, errDetached
	}
	if err := l.Conn.SetWriteDeadline(time.Now().Add(l.timeout)); err != nil {
		return 0, err
	}
	l.mu.Lock()
	l.waited, l.received = 0, 0
	l.mu.Unlock()
	return l.Conn.Write(p)
}

// Close implements net.Conn. A connection that was detached stays open.
func (l *link) Close() error {
	if l.isDetached() {
		return nil
	}
	return l.Conn.Close()
}

func (l *link) isDetached() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.detached
}

// detach returns the connection. Nothing can be read from the link any more.
func (l *link) detach() net.Conn {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.detached, l.failed = true, errDetached
	return l.Conn
}

// stalled returns ErrStalled if the server was silent for too long.
func (l *link) stalled() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if errors.Is(l.failed, os.ErrDeadlineExceeded) {
		return ErrStalled
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
	if l.beforeWait != nil {
		if err := l.beforeWait(); err != nil {
			return 0, err
		}
	}
	l.mu.Lock()
	failed := l.failed
	left := maxTimeouts*l.timeout + time.Duration(l.received/minRate)*time.Second - l.waited
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
	l.waited += time.Since(begun) // without the time that a slow client takes
	l.received += int64(n)
	if err != nil {
		l.failed = err
	}
	return n, err
}

// An unreadConn is a connection of which a part was read already.
type unreadConn struct {
	net.Conn
	r io.Reader
}

// Read implements net.Conn.
func (c *unreadConn) Read(p []byte) (int, error) { return c.r.Read(p) }

// CommandRefused implements refusalReader.
func (c *unreadConn) CommandRefused(text string) {
	if r, ok := c.Conn.(refusalReader); ok {
		r.CommandRefused(text)
	}
}

// A clientConn is the link as one imapclient gets it: behind a greeting of our
// own, and readable only while a command of imapclient is not answered. Between
// two commands the Inbox may read the link itself, and close the clientConn without
// closing the link.
//
// The deadlines that imapclient sets (5 minutes for a literal, however large) do
// nothing.
type clientConn struct {
	*link
	in       *Inbox
	greeting []byte
	line     []byte // of a command that is not complete
	mailbox  []byte // what placeholder stands for, quoted; nil: nothing

	mu         sync.Mutex
	change     *sync.Cond
	unanswered int // commands without their tagged response
	shut       bool

	commands *commandTracker
}

func newClientConn(in *Inbox, greeting string) *clientConn {
	c := &clientConn{link: in.link, in: in, greeting: []byte(greeting), commands: &commandTracker{observe: in.options.Observe}}
	c.change = sync.NewCond(&c.mu)
	return c
}

// Read implements net.Conn. imapclient calls Read in a goroutine of its own.
func (c *clientConn) Read(p []byte) (n int, err error) {
	defer c.in.recovered(&err)
	if len(c.greeting) > 0 {
		n := copy(p, c.greeting)
		c.greeting = c.greeting[n:]
		return n, nil
	}
	c.mu.Lock()
	for c.unanswered == 0 && !c.shut {
		c.change.Wait()
	}
	shut := c.shut
	c.mu.Unlock()
	if shut {
		return 0, io.EOF
	}
	n, err = c.responses.Read(p)
	if err != nil {
		c.commands.lost(err)
	}
	if c.responses.answered() {
		c.commands.answered(c.responses.tag, c.responses.status)
		c.mu.Lock()
		c.unanswered--
		c.mu.Unlock()
	}
	return n, err
}

// placeholder is the name of a mailbox that stands for another one in what
// imapclient writes: imapclient knows only names that are modified UTF-7.
const placeholder = "postern-trash"

// setMailbox sets what placeholder stands for, in the server's octets.
func (c *clientConn) setMailbox(name []byte) { c.mailbox = quote(name) }

// Write implements net.Conn. An Inbox sends no literals, so that each line is a
// command. A command is sent when its line is complete.
func (c *clientConn) Write(p []byte) (int, error) {
	c.line = append(c.line, p...)
	end := bytes.LastIndexByte(c.line, '\n') + 1
	if end == 0 {
		return len(p), nil
	}
	commands := c.line[:end]
	if command, ok := bytes.CutSuffix(commands, []byte(`"`+placeholder+"\"\r\n")); ok && c.mailbox != nil {
		commands = slices.Concat(command, c.mailbox, []byte("\r\n"))
	}
	c.commands.sent(commands)
	for line := range bytes.Lines(commands) {
		tag, text := wire.CutWord(line)
		if result := c.responses.result.Load(); result != nil && commandName(text) == "SEARCH" {
			result.setTag(string(tag))
		}
	}
	c.mu.Lock()
	c.unanswered += bytes.Count(commands, []byte("\n"))
	c.change.Signal()
	c.mu.Unlock()
	if _, err := c.link.Write(commands); err != nil {
		return 0, err
	}
	c.line = append(c.line[:0], c.line[end:]...)
	return len(p), nil
}

// shutdown ends the imapclient behind the clientConn, whose commands are answered,
// without closing the link.
func (c *clientConn) shutdown() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.shut = true
	c.change.Signal()
}

// Close implements net.Conn. The link stays open after shutdown.
func (c *clientConn) Close() error {
	c.mu.Lock()
	shut := c.shut
	c.shut = true
	c.change.Signal()
	c.mu.Unlock()
	if shut {
		return nil
	}
	return c.link.Close()
}

// SetDeadline implements net.Conn. It does nothing, as the two below.
func (c *clientConn) SetDeadline(time.Time) error { return nil }

// SetReadDeadline implements net.Conn.
func (c *clientConn) SetReadDeadline(time.Time) error { return nil }

// SetWriteDeadline implements net.Conn.
func (c *clientConn) SetWriteDeadline(time.Time) error { return nil }
