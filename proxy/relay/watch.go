package relay

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"

	"postern/proxy"
	"postern/proxy/wire"
)

// The bounds of what a commandWatch keeps.
const (
	maxWatchedTag   = 64      // octets of the tag of a command that waits for the server
	watchedTailSize = 32      // octets of the end of a line, where a literal is announced
	watchedHeadSize = 128     // octets of the beginning of a response, with its tag and name
	maxOpenCommands = 1000    // commands without an answer
	maxNonSync      = 1 << 30 // octets of a non-synchronizing literal
	maxLiteralMinus = 4096    // octets of a non-synchronizing literal with LITERAL-: RFC 7888 section 5
)

// forbidden are the commands that end a watched session. UNAUTHENTICATE (RFC
// 8437) takes the connection back to the state in which passwords are tried,
// where nothing would count them. After COMPRESS (RFC 4978) nothing can be
// watched. A longer name that begins with one of them ends the session, too: a
// server may compare no more than the beginning.
var forbidden = []string{"UNAUTHENTICATE", "COMPRESS"}

// longestForbidden is how many octets of a command's name are compared.
const longestForbidden = len("UNAUTHENTICATE")

// A commandWatch follows an IMAP session in both directions, as far as needed to
// know where the client's commands begin. Octets of a literal are no commands,
// only the server decides whether a literal follows, and the lines of
// AUTHENTICATE belong to the SASL mechanism. Where client and server could
// disagree about it, the session ends. No octet is changed, and only octets that
// follow a command that waits for the server are held back.
type commandWatch struct {
	plus, minus bool // the server has LITERAL+, or LITERAL-

	// The state of the client's octets, used by one goroutine.
	part    part
	cr      bool  // the last octet was CR
	literal int64 // octets of the literal that are still to come
	tag     []byte
	name    []byte
	tail    []byte // of the line
	quoted  bool   // the line is within a quoted string
	escaped bool   // the last octet was the backslash of a quoted string

	response responseScanner // state of the server's octets: used by the other goroutine

	mu          sync.Mutex
	changed     sync.Cond
	open        map[string]int // number of commands without an answer, by tag
	waiting     string         // the tag of the command that waits for the server; empty: none waits
	verdict     verdict
	midResponse bool // the client does not yet have the end of a response
	closed      bool
}

// A part is where in a line the client's octets are.
type part uint8

const (
	inTag part = iota // in the tag, or before it
	inName
	inArgs
	inSASL // in a line of AUTHENTICATE or IDLE
)

// A verdict is the server's answer to a command that waits.
type verdict uint8

const (
	undecided verdict = iota
	continues         // a continuation request came
	completed         // the command was completed
)

// newWatch returns a commandWatch for a session in which the server has these
// capabilities.
func newWatch(capabilities string) *commandWatch {
	words := strings.Fields(strings.ToUpper(capabilities))
	w := &commandWatch{
		plus:  slices.Contains(words, "LITERAL+"),
		minus: slices.Contains(words, "LITERAL-") || slices.Contains(words, "IMAP4REV2"), // RFC 9051 section 4.3
		open:  make(map[string]int),
	}
	w.changed.L = &w.mu
	return w
}

// forbid returns the error of a session that must not go on.
func forbid(format string, args ...any) error {
	return fmt.Errorf("%w: %s", proxy.ErrForbidden, fmt.Sprintf(format, args...))
}

// toServer implements watch.
func (w *commandWatch) toServer(server io.Writer) io.Writer { return fromClient{w, server} }

// toClient implements watch.
func (w *commandWatch) toClient(client io.Writer) io.Writer { return fromServer{w, client} }

// fromClient is the server as the writer for the client's octets.
type fromClient struct {
	*commandWatch
	server io.Writer
}

// Write forwards the octets that are allowed. After a command that waits for the
// server, it waits for the server's answer.
func (c fromClient) Write(p []byte) (n int, err error) {
	for n < len(p) {
		k, wait, scanned := c.scan(p[n:])
		if k > 0 {
			m, err := c.server.Write(p[n : n+k])
			if n += m; err != nil {
				return n, err
			}
		}
		if scanned != nil {
			return n, scanned
		}
		if wait {
			if err := c.waitVerdict(); err != nil {
				return n, err
			}
		}
	}
	return n, nil
}

// scan reads from p. It returns how many octets may be forwarded, and whether the
// server's answer has to come first before the next octet can be understood.
func (w *commandWatch) scan(p []byte) (n int, wait bool, err error) {
	for n < len(p) {
		switch {
		case w.literal > 0:
			k := int(min(w.literal, int64(len(p)-n)))
			w.literal -= int64(k)
			n += k
		case w.cr && p[n] != '\n':
			return n, false, forbid("a bare CR in a command")
		case p[n] == '\n':
			w.cr = false
			if wait, err = w.endLine(); err != nil {
				return n, false, err
			}
			if n++; wait {
				return n, true, nil
			}
		case p[n] == '\r':
			w.cr = true
			n++
		default:
			k, err := w.scanText(p[n:])
			if err != nil {
				return n, false, err
			}
			n += k
		}
	}
	return n, false, nil
}

// scanText reads octets of a line up to its end.
func (w *commandWatch) scanText(p []byte) (n int, err error) {
	for n < len(p) && (w.part == inTag || w.part == inName) && p[n] != '\r' && p[n] != '\n' {
		if err := w.scanWord(p[n]); err != nil {
			return n, err
		}
		w.scanQuotes(p[n : n+1])
		n++
	}
	rest := p[n:]
	if i := bytes.IndexAny(rest, "\r\n"); i >= 0 {
		rest = rest[:i]
	}
	w.scanQuotes(rest)
	w.keepTail(p[:n+len(rest)])
	return n + len(rest), nil
}

// scanQuotes follows quoted strings: RFC 9051 section 4.3.
func (w *commandWatch) scanQuotes(p []byte) {
	for _, c := range p {
		switch {
		case w.escaped:
			w.escaped = false
		case w.quoted && c == '\\':
			w.escaped = true
		case c == '"':
			w.quoted = !w.quoted
		}
	}
}

// ambiguous reports whether servers may disagree about the non-synchronizing
// literal at the end of the line. Some read it as text within a quoted string, as
// the name of a command, directly after an atom, or when it has more digits than
// a number may have: then its octets would be commands.
func (w *commandWatch) ambiguous(announced bool) bool {
	if !announced { // the brace may be before the tail
		digits := bytes.TrimSuffix(bytes.TrimSuffix(w.tail, []byte("}")), []byte("+"))
		return len(w.tail)-len(digits) == len("+}") && len(w.tail) == watchedTailSize && len(bytes.Trim(digits, "0123456789")) == 0
	}
	before := bytes.TrimSuffix(w.tail[:bytes.LastIndexByte(w.tail, '{')], []byte("~"))
	return w.quoted || !bytes.HasSuffix(before, []byte(" ")) && !bytes.HasSuffix(before, []byte("("))
}

// keepTail remembers the end of the line.
func (w *commandWatch) keepTail(b []byte) {
	if len(b) >= watchedTailSize {
		w.tail = append(w.tail[:0], b[len(b)-watchedTailSize:]...)
		return
	}
	w.tail = append(w.tail, b...)
	w.tail = append(w.tail[:0], w.tail[max(0, len(w.tail)-watchedTailSize):]...)
}

// scanWord reads an octet of the tag or of the command's name. A server may
// accept several spaces, and may or may not take control characters for spaces.
func (w *commandWatch) scanWord(c byte) error {
	blank := c == ' '
	switch {
	case c < ' ' || c > '~':
		return forbid("an octet %#02x in a tag or in the name of a command", c)
	case w.part == inTag && blank && len(w.tag) > 0:
		w.part = inName
	case w.part == inTag && !blank && len(w.tag) <= maxWatchedTag:
		w.tag = append(w.tag, c)
	case w.part == inName && blank && len(w.name) > 0:
		return w.beginCommand()
	case w.part == inName && !blank && len(w.name) < longestForbidden:
		w.name = append(w.name, upper(c))
		for _, command := range forbidden {
			if strings.HasPrefix(string(w.name), command) {
				return forbid("%s", command)
			}
		}
	}
	return nil
}

func upper(c byte) byte {
	if 'a' <= c && c <= 'z' {
		c -= 'a' - 'A'
	}
	return c
}

// beginCommand counts a command once its name is complete.
func (w *commandWatch) beginCommand() error {
	w.part = inArgs
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.open) >= maxOpenCommands {
		return forbid("more than %d commands without an answer", maxOpenCommands)
	}
	w.open[string(w.tag)]++
	return nil
}

// endLine handles the end of a line: the command is complete, a literal follows,
// or the server has to answer first (wait).
func (w *commandWatch) endLine() (wait bool, err error) {
	named := w.part == inArgs
	if w.part == inName && len(w.name) > 0 {
		if err := w.beginCommand(); err != nil {
			return false, err
		}
	}
	literal, more := wire.TrailingLiteral(w.tail)
	ambiguous := !(more && literal.Sync) && (w.ambiguous(more) || more && !named)
	w.tail, w.quoted, w.escaped = w.tail[:0], false, false
	switch name := string(w.name); {
	case w.part == inSASL, w.part == inArgs && (name == "AUTHENTICATE" || name == "IDLE"):
		w.part = inSASL
		return true, w.expectVerdict()
	case w.part == inArgs && more && literal.Sync:
		w.literal = literal.Size
		return true, w.expectVerdict()
	case w.part == inArgs && ambiguous:
		return false, forbid("a literal that servers read in two ways")
	case w.part == inArgs && more:
		if !w.plus && !(w.minus && literal.Size <= maxLiteralMinus) || literal.Size > maxNonSync {
			return false, forbid("a literal that does not wait, of %d octets", literal.Size)
		}
		w.literal = literal.Size
		return false, nil
	}
	w.resetCommand()
	return false, nil
}

// resetCommand sets the state to the beginning of a command.
func (w *commandWatch) resetCommand() {
	w.part, w.tag, w.name, w.literal = inTag, w.tag[:0], w.name[:0], 0
}

// expectVerdict records that the command waits for the server. It is called
// before the server gets the line. The command's answer must be distinguishable
// from every other one.
func (w *commandWatch) expectVerdict() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.tag) > maxWatchedTag || w.open[string(w.tag)] != 1 {
		return forbid("a tag that is too long or in use")
	}
	w.waiting, w.verdict = string(w.tag), undecided
	return nil
}

// waitVerdict waits until the server has answered the command that waits.
func (w *commandWatch) waitVerdict() error {
	w.mu.Lock()
	for w.verdict == undecided && !w.closed {
		w.changed.Wait()
	}
	v := w.verdict
	w.waiting = ""
	w.mu.Unlock()
	switch {
	case v == completed:
		w.resetCommand()
	case v == undecided:
		return io.ErrClosedPipe
	case w.part == inSASL && string(w.name) == "IDLE":
		w.resetCommand() // after IDLE, DONE is the tag of no command
	}
	return nil
}

// close ends the waiting for the server.
func (w *commandWatch) close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closed = true
	w.changed.Broadcast()
}

// fromServer is the client as the writer for the server's octets.
type fromServer struct {
	*commandWatch
	client io.Writer
}

// Write records the server's answers before the client can see them.
func (s fromServer) Write(p []byte) (int, error) {
	s.observe(p)
	n, err := s.client.Write(p)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.midResponse = !s.response.done()
	return n, err
}

// observe reads the server's octets.
func (w *commandWatch) observe(p []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.midResponse = true
	for len(p) > 0 {
		n, line := w.response.scan(p)
		p = p[n:]
		switch {
		case line == "":
		case line[0] == '+':
			w.decideLocked(continues)
		case line[0] != '*':
			w.completeLocked(line)
		}
	}
}

// completeLocked records the tagged response to a command.
func (w *commandWatch) completeLocked(line string) {
	tag, text, _ := strings.Cut(line, " ")
	status, _, _ := strings.Cut(text, " ")
	if !slices.Contains([]string{"OK", "NO", "BAD"}, strings.ToUpper(status)) {
		return
	}
	if w.open[tag]--; w.open[tag] <= 0 {
		delete(w.open, tag)
	}
	if w.waiting == tag {
		w.decideLocked(completed)
	}
}

func (w *commandWatch) decideLocked(v verdict) {
	if w.waiting != "" && w.verdict == undecided {
		w.verdict = v
		w.changed.Broadcast()
	}
}

// betweenResponses reports whether the client has all of the last response.
func (w *commandWatch) betweenResponses() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return !w.midResponse
}

// A responseScanner finds the beginnings of the server's responses.
type responseScanner struct {
	head      []byte // the beginning of the response's first line
	tail      []byte // the end of the line
	continued bool   // the line continues a response after a literal
	literal   int64
	inLine    bool // a line has begun
}

// done reports whether the last response is complete.
func (r *responseScanner) done() bool { return !r.inLine && !r.continued && r.literal == 0 }

// scan reads octets of p and returns how many. When the first line of a response
// is complete, it returns the beginning of that line.
func (r *responseScanner) scan(p []byte) (n int, line string) {
	if r.literal > 0 {
		n = int(min(r.literal, int64(len(p))))
		r.literal -= int64(n)
		return n, ""
	}
	n = bytes.IndexByte(p, '\n') + 1
	ended := n > 0
	if !ended {
		n = len(p)
	}
	r.inLine = true
	if free := watchedHeadSize - len(r.head); !r.continued && free > 0 {
		r.head = append(r.head, p[:min(n, free)]...)
	}
	r.tail = append(r.tail, p[max(0, n-watchedTailSize):n]...)
	r.tail = append(r.tail[:0], r.tail[max(0, len(r.tail)-watchedTailSize):]...)
	if !ended {
		return n, ""
	}
	if !r.continued {
		line = strings.TrimRight(string(r.head), "\r\n")
	}
	literal, more := wire.TrailingLiteral(r.tail)
	data := r.continued || isData(line)
	r.head, r.tail, r.inLine = r.head[:0], r.tail[:0], false
	if r.continued = more && data; r.continued {
		r.literal = literal.Size
	}
	return n, line
}

// isData reports whether a response with this first line may contain literals. In
// the text of a status response, {5} is text.
func isData(line string) bool {
	text, untagged := strings.CutPrefix(line, "* ")
	name, _, _ := strings.Cut(text, " ")
	return untagged && !wire.Response{Name: strings.ToUpper(name)}.Status()
}

// isForbidden reports whether err is that of a session that must not go on.
func isForbidden(err error) bool { return errors.Is(err, proxy.ErrForbidden) }
