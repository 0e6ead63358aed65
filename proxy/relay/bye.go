package relay

import (
	"bytes"
	"io"
	"regexp"
	"sync"
	"time"

	"postern/proxy"
)

const (
	// quietTime is how long a server has to have said nothing: what ends with a line
	// is then no part of something longer.
	quietTime = time.Second
	// longestLast is how much of the last line is kept, in octets.
	longestLast = 96
	// byeTime is for a client to take the last word.
	byeTime = time.Second
)

// last is the end of what the client was sent.
type last struct {
	mu      sync.Mutex
	writing bool
	at      time.Time
	tail    [longestLast]byte
	n       int // octets of tail
}

// answering is the client, as the server's words go to it.
type answering struct {
	*splicing
	to io.Writer
}

func (a answering) Write(b []byte) (int, error) { return a.answer(a.to, b) }

// answer writes the server's words and keeps their end.
func (s *splicing) answer(client io.Writer, b []byte) (int, error) {
	s.last.begin()
	n, err := client.Write(b)
	s.last.end(b[:n])
	return n, err
}

func (l *last) begin() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.writing = true
}

func (l *last) end(b []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.writing, l.at = false, time.Now()
	if len(b) >= longestLast {
		l.n = copy(l.tail[:], b[len(b)-longestLast:])
		return
	}
	keep := min(l.n, longestLast-len(b))
	copy(l.tail[:], l.tail[l.n-keep:l.n])
	l.n = keep + copy(l.tail[keep:], b)
}

// response is a line of a server's that nothing follows: an untagged one, that
// of IDLE, or the end of a command.
var response = regexp.MustCompile(`^(\* ([0-9]+ )?[A-Z]+( [^{]*)?|\+( [^{]*)?|[^ {]+ (OK|NO|BAD)( .*)?)\r\n$`)

// whole reports whether the client is between two lines of IMAP. Octets that
// nobody reads can only be judged by their end, and by the silence since. Within
// a literal or compressed, RFC 4978, the end is another.
func (l *last) whole(now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.writing || l.n == 0 || now.Sub(l.at) < quietTime {
		return false
	}
	tail := l.tail[:l.n]
	if i := bytes.LastIndexByte(bytes.TrimSuffix(tail, []byte("\r\n")), '\n'); i >= 0 {
		tail = tail[i+1:]
	} else if l.n == longestLast {
		return false // the line's beginning is not known
	}
	return response.Match(tail)
}

// bye tells a client why its session is ended by us, if that can be said.
func (s *splicing) bye() {
	cause := s.ours()
	text := "The service is restarting: come again in a moment"
	switch {
	case banned(s.cause):
		if !s.watch.between() {
			return
		}
		text = "This command is not to be had here"
	case cause == nil || !s.last.whole(time.Now()):
		return
	case proxy.ReasonOf(cause) == proxy.Kicked:
		text = "Disconnected by an administrator"
	}
	_ = s.client.SetWriteDeadline(time.Now().Add(byeTime))
	_, _ = io.WriteString(s.client, "* BYE "+text+" (session "+s.client.Client.ID+")\r\n")
}
