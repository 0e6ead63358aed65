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

// Bounds of what a watch keeps.
const (
	watchedTag    = 64   // octets of a tag: of a command that waits for the server it must not be longer
	watchedTail   = 32   // octets of a line's end, in which a literal is announced
	watchedHead   = 128  // octets of a response: its tag and its name
	mostCommands  = 1000 // that are not answered
	mostUnwatched = 1 << 30
	mostMinus     = 4096 // octets of a literal that does not wait, with LITERAL-: RFC 7888 section 5
)

// forbidden are the commands that end a watched session. UNAUTHENTICATE, RFC
// 8437, takes the connection back to where passwords are tried, and nobody would
// count them; with COMPRESS, RFC 4978, nothing could be watched any more. What
// begins so is taken for them: some server may not look further.
var forbidden = []string{"UNAUTHENTICATE", "COMPRESS"}

// longestForbidden is how much of a command's name it takes to know.
const longestForbidden = len("UNAUTHENTICATE")

// A watch follows a session of IMAP from both sides, as far as it takes to know
// where the commands of the client begin: octets of a literal are none, whether
// there is a literal is for the server to say, and the lines of AUTHENTICATE are
// for a mechanism. Where client and server could see it in different ways, the
// session ends. Octets are not changed and, but for those that come before the
// server's word, not held back.
type watch struct {
	plus, minus bool // the server has LITERAL+, or LITERAL-

	// Of the client's octets: for one goroutine.
	part    part
	cr      bool  // CR was the last octet
	literal int64 // octets that are still to come
	tag     []byte
	name    []byte
	tail    []byte // of the line
	quoted  bool   // the line is within a quoted string
	escaped bool   // behind a backslash there

	heard answer // of the server's octets: for another one

	mu      sync.Mutex
	changed sync.Cond
	open    map[string]int // commands that are not answered, by tag
	waiting string         // the tag of the command that waits for the server; empty: none does
	verdict verdict
	talking bool // the server's octets are on the way to the client, or within a line
	closed  bool
}

// A part is where in a line the client is.
type part uint8

const (
	inTag part = iota // and before it
	inName
	inArgs
	inSASL // a line of AUTHENTICATE's
)

// A verdict is what the server says to a command that waits.
type verdict uint8

const (
	undecided verdict = iota
	goOn              // a continuation request
	refused           // the command was answered
)

// newWatch returns a watch of a session with these capabilities.
func newWatch(capabilities string) *watch {
	words := strings.Fields(strings.ToUpper(capabilities))
	w := &watch{
		plus:  slices.Contains(words, "LITERAL+"),
		minus: slices.Contains(words, "LITERAL-") || slices.Contains(words, "IMAP4REV2"), // RFC 9051 section 4.3
		open:  make(map[string]int),
	}
	w.changed.L = &w.mu
	return w
}

// endsWith is the error of a session that must not go on.
func endsWith(format string, args ...any) error {
	return fmt.Errorf("%w: %s", proxy.ErrForbidden, fmt.Sprintf(format, args...))
}

// fromClient is the server, as the client's octets go to it.
type fromClient struct {
	*watch
	server io.Writer
}

// Write passes on what is allowed. Behind a command that waits for the server it
// waits, too.
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
			if err := c.await(); err != nil {
				return n, err
			}
		}
	}
	return n, nil
}

// scan takes from p. It returns how many octets may go on, and whether the
// server has to say what comes next.
func (w *watch) scan(p []byte) (n int, wait bool, err error) {
	for n < len(p) {
		switch {
		case w.literal > 0:
			k := int(min(w.literal, int64(len(p)-n)))
			w.literal -= int64(k)
			n += k
		case w.cr && p[n] != '\n':
			return n, false, endsWith("a bare CR in a command")
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
			k, err := w.text(p[n:])
			if err != nil {
				return n, false, err
			}
			n += k
		}
	}
	return n, false, nil
}

// text takes octets of a line up to its end.
func (w *watch) text(p []byte) (n int, err error) {
	for n < len(p) && (w.part == inTag || w.part == inName) && p[n] != '\r' && p[n] != '\n' {
		if err := w.word(p[n]); err != nil {
			return n, err
		}
		w.quotes(p[n : n+1])
		n++
	}
	rest := p[n:]
	if i := bytes.IndexAny(rest, "\r\n"); i >= 0 {
		rest = rest[:i]
	}
	w.quotes(rest)
	w.keep(p[:n+len(rest)])
	return n + len(rest), nil
}

// quotes follows quoted strings, RFC 9051 section 4.3.
func (w *watch) quotes(p []byte) {
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

// ambiguous reports whether servers may differ about the literal that does not
// wait which the line announces at its end. Some take one within a quoted string,
// as the name of a command, directly behind an atom, or of more digits than any
// number has, for text: then its octets would be commands.
func (w *watch) ambiguous(announced bool) bool {
	if !announced { // the brace may stand before the tail
		digits := bytes.TrimSuffix(bytes.TrimSuffix(w.tail, []byte("}")), []byte("+"))
		return len(w.tail)-len(digits) == len("+}") && len(w.tail) == watchedTail && len(bytes.Trim(digits, "0123456789")) == 0
	}
	before := bytes.TrimSuffix(w.tail[:bytes.LastIndexByte(w.tail, '{')], []byte("~"))
	return w.quoted || !bytes.HasSuffix(before, []byte(" ")) && !bytes.HasSuffix(before, []byte("("))
}

// keep remembers the end of the line.
func (w *watch) keep(b []byte) {
	if len(b) >= watchedTail {
		w.tail = append(w.tail[:0], b[len(b)-watchedTail:]...)
		return
	}
	w.tail = append(w.tail, b...)
	w.tail = append(w.tail[:0], w.tail[max(0, len(w.tail)-watchedTail):]...)
}

// word takes an octet of the tag or of the name. More spaces than one may be
// fine for the server, and control characters may be spaces for it, or not.
func (w *watch) word(c byte) error {
	blank := c == ' '
	switch {
	case c < ' ' || c > '~':
		return endsWith("an octet %#02x in a tag or in the name of a command", c)
	case w.part == inTag && blank && len(w.tag) > 0:
		w.part = inName
	case w.part == inTag && !blank && len(w.tag) <= watchedTag:
		w.tag = append(w.tag, c)
	case w.part == inName && blank && len(w.name) > 0:
		return w.named()
	case w.part == inName && !blank && len(w.name) < longestForbidden:
		w.name = append(w.name, upper(c))
		for _, command := range forbidden {
			if strings.HasPrefix(string(w.name), command) {
				return endsWith("%s", command)
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

// named counts a command whose name has come.
func (w *watch) named() error {
	w.part = inArgs
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.open) >= mostCommands {
		return endsWith("more than %d commands without an answer", mostCommands)
	}
	w.open[string(w.tag)]++
	return nil
}

// endLine ends a line: the command is complete, or a literal comes, or the
// server has to be waited for.
func (w *watch) endLine() (wait bool, err error) {
	named := w.part == inArgs
	if w.part == inName && len(w.name) > 0 {
		if err := w.named(); err != nil {
			return false, err
		}
	}
	literal, more := wire.TrailingLiteral(w.tail)
	ambiguous := !(more && literal.Sync) && (w.ambiguous(more) || more && !named)
	w.tail, w.quoted, w.escaped = w.tail[:0], false, false
	switch name := string(w.name); {
	case w.part == inSASL, w.part == inArgs && (name == "AUTHENTICATE" || name == "IDLE"):
		w.part = inSASL
		return true, w.wait()
	case w.part == inArgs && more && literal.Sync:
		w.literal = literal.Size
		return true, w.wait()
	case w.part == inArgs && ambiguous:
		return false, endsWith("a literal that servers read in two ways")
	case w.part == inArgs && more:
		if !w.plus && !(w.minus && literal.Size <= mostMinus) || literal.Size > mostUnwatched {
			return false, endsWith("a literal that does not wait, of %d octets", literal.Size)
		}
		w.literal = literal.Size
		return false, nil
	}
	w.begin()
	return false, nil
}

// begin is at the beginning of a command.
func (w *watch) begin() { w.part, w.tag, w.name, w.literal = inTag, w.tag[:0], w.name[:0], 0 }

// wait notes that the command waits for the server, before the server can know
// of it. Its answer must be told from that of every other command.
func (w *watch) wait() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.tag) > watchedTag || w.open[string(w.tag)] != 1 {
		return endsWith("a tag that is too long or in use")
	}
	w.waiting, w.verdict = string(w.tag), undecided
	return nil
}

// await waits until the server has said whether the command goes on.
func (w *watch) await() error {
	w.mu.Lock()
	for w.verdict == undecided && !w.closed {
		w.changed.Wait()
	}
	v := w.verdict
	w.waiting = ""
	w.mu.Unlock()
	switch {
	case v == refused:
		w.begin()
	case v == undecided:
		return io.ErrClosedPipe
	case w.part == inSASL && string(w.name) == "IDLE":
		w.begin() // DONE is a tag without a command
	}
	return nil
}

// close ends waiting.
func (w *watch) close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closed = true
	w.changed.Broadcast()
}

// fromServer is the client, as the server's octets go to it.
type fromServer struct {
	*watch
	client io.Writer
}

// Write takes notice before the client can.
func (s fromServer) Write(p []byte) (int, error) {
	s.hear(p)
	n, err := s.client.Write(p)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.talking = !s.heard.over()
	return n, err
}

func (w *watch) hear(p []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.talking = true
	for len(p) > 0 {
		n, line := w.heard.take(p)
		p = p[n:]
		switch {
		case line == "":
		case line[0] == '+':
			w.decide(goOn)
		case line[0] != '*':
			w.answered(line)
		}
	}
}

// answered takes the answer to a command.
func (w *watch) answered(line string) {
	tag, text, _ := strings.Cut(line, " ")
	status, _, _ := strings.Cut(text, " ")
	if !slices.Contains([]string{"OK", "NO", "BAD"}, strings.ToUpper(status)) {
		return
	}
	if w.open[tag]--; w.open[tag] <= 0 {
		delete(w.open, tag)
	}
	if w.waiting == tag {
		w.decide(refused)
	}
}

func (w *watch) decide(v verdict) {
	if w.waiting != "" && w.verdict == undecided {
		w.verdict = v
		w.changed.Broadcast()
	}
}

// between reports whether the client is between two responses.
func (w *watch) between() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return !w.talking
}

// An answer is a response of the server's, as far as it has come.
type answer struct {
	head    []byte // of its first line
	tail    []byte // of the line
	goesOn  bool   // behind a literal
	literal int64
	begun   bool // a line has
}

// over reports whether all of it has come.
func (r *answer) over() bool { return !r.begun && !r.goesOn && r.literal == 0 }

// take takes octets of p. It returns how many and, when the first line of a
// response has ended, how that began.
func (r *answer) take(p []byte) (n int, line string) {
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
	r.begun = true
	if room := watchedHead - len(r.head); !r.goesOn && room > 0 {
		r.head = append(r.head, p[:min(n, room)]...)
	}
	r.tail = append(r.tail, p[max(0, n-watchedTail):n]...)
	r.tail = append(r.tail[:0], r.tail[max(0, len(r.tail)-watchedTail):]...)
	if !ended {
		return n, ""
	}
	if !r.goesOn {
		line = strings.TrimRight(string(r.head), "\r\n")
	}
	literal, more := wire.TrailingLiteral(r.tail)
	data := r.goesOn || isData(line)
	r.head, r.tail, r.begun = r.head[:0], r.tail[:0], false
	if r.goesOn = more && data; r.goesOn {
		r.literal = literal.Size
	}
	return n, line
}

// isData reports whether a line that begins so can have literals: in the text of
// a status response {5} is just text.
func isData(line string) bool {
	text, untagged := strings.CutPrefix(line, "* ")
	name, _, _ := strings.Cut(text, " ")
	return untagged && !wire.Response{Name: strings.ToUpper(name)}.Status()
}

// banned tells whether err is that of a session that must not go on.
func banned(err error) bool { return errors.Is(err, proxy.ErrForbidden) }
