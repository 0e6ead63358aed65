package bridge

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"
	"sync"
	"sync/atomic"

	"postern/proxy/wire"
)

// maxLine bounds a line of the server's. The answer to SEARCH is one line: this
// is about a million UIDs.
const maxLine = 8 << 20

// maxSaid bounds what is kept of the server's last words, for the log.
const maxSaid = 200

var errLongLine = errors.New("line of the server without end")

// Responses is what the server sends, less what imapclient must not see:
//
//   - the rows of a listing, which cost imapclient 30 times what they cost here;
//   - FETCH responses without a body: one that has the UID of a pending command
//     (flags that another client has changed) is taken for its answer, and the
//     body that follows for noise;
//   - responses it does not know, as VANISHED, and those that nobody asked for:
//     it closes the connection if there is something in them it cannot parse.
type responses struct {
	src     io.Reader
	br      *bufio.Reader // nil: nothing is buffered
	long    []byte        // a line that br cannot hold
	pending []byte        // passes next
	literal int64         // octets that pass then, as they are
	within  bool          // the next line belongs to a response that passes
	tagged  bool          // pending is the last of a command's answer
	passed  bool          // such a line has passed with the last Read
	tag     string        // of it
	status  string        // OK, NO, BAD

	listing atomic.Pointer[listing] // takes rows, up to the next tag; nil: nobody asked for any
	bye     atomic.Pointer[string]  // what the server said in its BYE
	mailbox mailbox
}

// A mailbox is what the server said of INBOX beside what imapclient tells.
type mailbox struct {
	lists       bool   // LIST was asked for
	readOnly    bool   // SELECT was answered so
	keywords    bool   // $POP3Deleted can be set
	uidValidity uint32 // the last that was told
	exists      int    // the last EXISTS less the EXPUNGEs after it
	existsTold  bool
	expunged    int
}

// count returns how many messages there are, as far as the server has said.
func (m *mailbox) count() (n int, ok bool) { return m.exists, m.existsTold }

// removals returns how many messages the server has said to be removed.
func (m *mailbox) removals() int { return m.expunged }

// newResponses returns the responses that come from src.
func newResponses(src io.Reader) *responses { return &responses{src: src} }

// readerSize is what is read from a server at once: larger ones gain nothing.
const readerSize = 64 << 10

var readers = sync.Pool{New: func() any { return bufio.NewReaderSize(nil, readerSize) }}

// reader returns the buffer, which is there while somebody reads.
func (r *responses) reader() *bufio.Reader {
	if r.br == nil {
		r.br = readers.Get().(*bufio.Reader)
		r.br.Reset(r.src)
	}
	return r.br
}

// buffered returns what can be read without waiting.
func (r *responses) buffered() []byte {
	if r.br == nil {
		return nil
	}
	ahead, _ := r.br.Peek(r.br.Buffered())
	return ahead
}

// rest gives the buffer back if there is nothing in it.
func (r *responses) rest() {
	if r.br != nil && r.br.Buffered() == 0 && len(r.pending) == 0 {
		r.br.Reset(nil)
		readers.Put(r.br)
		r.br, r.long = nil, nil
	}
}

// Read implements io.Reader. The octets of a literal are not copied on the way.
func (r *responses) Read(p []byte) (int, error) {
	for len(r.pending) == 0 {
		if r.literal > 0 {
			n, err := r.reader().Read(p[:min(int64(len(p)), r.literal)])
			r.literal -= int64(n)
			return n, err
		}
		if err := r.next(); err != nil {
			return 0, err
		}
	}
	n := copy(p, r.pending)
	r.pending = r.pending[n:]
	r.passed = r.tagged && len(r.pending) == 0
	return n, nil
}

// answered reports whether with the last Read a tagged line has passed whole.
func (r *responses) answered() bool {
	passed := r.passed
	r.passed = false
	return passed
}

// next reads one line and lets it pass, or drops the response it begins.
func (r *responses) next() error {
	line, err := r.line()
	if err != nil {
		return err
	}
	passes, data := true, true
	r.tagged = false
	if !r.within {
		passes, data = r.look(line)
	}
	literal, announced := wire.TrailingLiteral(line)
	announced = announced && data // in the text of a status {5} is just text
	if passes {
		r.pending, r.within = line, announced
		if announced {
			r.literal = literal.Size
		}
		return nil
	}
	if !announced {
		return nil
	}
	return r.skip(literal.Size)
}

// skip reads on to the end of a response of which a literal comes next.
func (r *responses) skip(literal int64) error {
	for announced := true; announced; {
		if err := r.discard(literal); err != nil {
			return err
		}
		line, err := r.line()
		if err != nil {
			return err
		}
		var next wire.Literal
		next, announced = wire.TrailingLiteral(line)
		literal = next.Size
	}
	return nil
}

func (r *responses) discard(n int64) error {
	for n > 0 {
		k, err := r.reader().Discard(int(min(n, 1<<30)))
		n -= int64(k)
		if err != nil {
			return err
		}
	}
	return nil
}

// line returns the next line with its end, valid until the next read.
func (r *responses) line() ([]byte, error) {
	line, err := r.reader().ReadSlice('\n')
	if !errors.Is(err, bufio.ErrBufferFull) {
		return line, err
	}
	r.long = append(r.long[:0:0], line...) // not kept for longer than the line
	for errors.Is(err, bufio.ErrBufferFull) {
		if len(r.long) > maxLine {
			return nil, errLongLine
		}
		line, err = r.br.ReadSlice('\n')
		r.long = append(r.long, line...)
	}
	return r.long, err
}

// look decides about the response that begins with line: whether imapclient
// may see it, and whether it is data, which may have literals.
func (r *responses) look(line []byte) (passes, data bool) {
	text, ok := bytes.CutPrefix(line, []byte("* "))
	if !ok {
		if line[0] == '+' { // nobody waits for a continuation
			return false, false
		}
		if _, ours, _ := parseTagged(line); ours { // of a command that imapclient does not know of
			return false, false
		}
		r.listing.Store(nil) // it belongs to the one who waits for the tag
		r.tagged = true
		r.tag, r.status = parseStatus(line)
		if bytes.Contains(bytes.ToUpper(line[:min(len(line), maxSaid)]), []byte("[READ-ONLY]")) {
			r.mailbox.readOnly = true
		}
		return true, false
	}
	text, _ = wire.TrimLine(text)
	word, rest := wire.CutWord(text)
	if len(word) > 0 && '0' <= word[0] && word[0] <= '9' {
		number, _ := parseNumber(word)
		word, rest = wire.CutWord(rest)
		return r.numbered(number, word, rest), true
	}
	switch wire.Keyword(word) {
	case "OK": // of the codes of SELECT two matter; imapclient parses the others, too
		return r.mailbox.note(rest), false
	case "NO", "BAD":
		return false, false
	case "BYE":
		said := string(rest[:min(len(rest), maxSaid)])
		r.bye.Store(&said)
		return true, false
	case "SEARCH", "ESEARCH", "STATUS":
		return true, true
	case "LIST":
		return r.mailbox.lists, true
	}
	return false, true
}

// parseStatus reads the begin of a tagged line.
func parseStatus(line []byte) (tag, status string) {
	text, _ := wire.TrimLine(line)
	word, text := wire.CutWord(text)
	name, _ := wire.CutWord(text)
	return string(word[:min(len(word), maxSaid)]), wire.Keyword(name)
}

// note keeps what an untagged OK says, and reports whether that is UIDVALIDITY
// or UIDNEXT.
func (m *mailbox) note(text []byte) bool {
	code, ok := bytes.CutPrefix(text, []byte("["))
	if !ok {
		return false
	}
	code = bytes.ToUpper(code[:max(bytes.IndexByte(code, ']'), 0)])
	name, value := wire.CutWord(code)
	switch string(name) {
	case "UIDVALIDITY":
		if n, ok := parseNumber(value); ok && n <= math.MaxUint32 {
			m.uidValidity = uint32(n)
		}
	case "PERMANENTFLAGS":
		m.keywords = bytes.Contains(value, []byte(`\*`)) || bytes.Contains(value, []byte(strings.ToUpper(string(hidden))))
	}
	return bytes.HasPrefix(name, []byte("UID"))
}

var (
	exists  = []byte("EXISTS")
	expunge = []byte("EXPUNGE")
	fetched = []byte("FETCH")
)

// numbered decides about the responses that begin with a number.
func (r *responses) numbered(number int64, name, rest []byte) (passes bool) {
	listing := r.listing.Load()
	switch {
	case bytes.EqualFold(name, exists):
		r.mailbox.exists, r.mailbox.existsTold = int(number), true
		return true
	case bytes.EqualFold(name, expunge):
		r.mailbox.exists--
		r.mailbox.expunged++
		if listing != nil {
			listing.expunged = true
		}
	case bytes.EqualFold(name, fetched):
		if listing == nil {
			return bytes.Contains(bytes.ToUpper(rest), []byte("BODY["))
		}
		if uid, size, ok := parseRow(rest); ok {
			listing.add(uid, size)
		}
	}
	return false
}

// parseRow reads "(UID 5 RFC822.SIZE 1234)", with other items between as the
// server likes. It reports false if one of the two is missing.
func parseRow(s []byte) (uid uint32, size int64, ok bool) {
	s, ok = bytes.CutPrefix(s, []byte("("))
	size = -1
	for ok && len(s) > 0 && s[0] != ')' {
		var name, value []byte
		name, s = wire.CutWord(s)
		value, s, ok = cutValue(s)
		switch {
		case bytes.EqualFold(name, []byte("UID")):
			n, valid := parseNumber(value)
			if !valid || n == 0 || n > 1<<32-1 {
				return 0, 0, false
			}
			uid = uint32(n)
		case bytes.EqualFold(name, []byte("RFC822.SIZE")):
			n, valid := parseNumber(value)
			if !valid {
				return 0, 0, false
			}
			size = n
		}
	}
	return uid, size, ok && uid != 0 && size >= 0
}

// cutValue cuts the value of one item off s, and the space after it: a list
// with its parentheses, a quoted string with its quotes, or an atom.
func cutValue(s []byte) (value, rest []byte, ok bool) {
	depth, quoted := 0, false
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case quoted:
		case c == '(':
			depth++
		case c == ')' && depth == 0:
			return s[:i], s[i:], i > 0
		case c == ')':
			depth--
		case c == ' ' && depth == 0:
			return s[:i], s[i+1:], i > 0
		}
	}
	return nil, nil, false
}

// parseNumber reads up to 18 digits.
func parseNumber(digits []byte) (n int64, ok bool) {
	if len(digits) == 0 || len(digits) > 18 {
		return 0, false
	}
	for _, c := range digits {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = 10*n + int64(c-'0')
	}
	return n, true
}

// said returns err with what the server said of its leaving.
func (r *responses) said(err error) error {
	if bye := r.bye.Load(); bye != nil {
		return fmt.Errorf("%w: server said BYE %s", err, *bye)
	}
	return err
}
