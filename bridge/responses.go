package bridge

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
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

// errSyntax says that where a response begins, or ends, is not certain any more.
// Nothing that the connection still brings is believed.
var errSyntax = errors.New("response of the server breaks the grammar")

// Responses is what the server sends, less what imapclient must not see. Of all
// responses imapclient gets the tagged ones only, without what it would parse
// in them: its parsers close the connection over a liberty of grammar, take
// what another client has changed for an answer, and some of them cost more
// than linear work. What the others tell is kept here:
//
//   - the rows of a listing, in listing;
//   - the results of SEARCH, in result;
//   - what SELECT, STATUS and LIST tell, and what changes after that, in mailbox.
//
// FETCH responses with bodies are read by the session itself: see fetch.go.
type responses struct {
	src     io.Reader
	br      *bufio.Reader // nil: nothing is buffered
	long    []byte        // a line that br cannot hold
	pending []byte        // passes next: a tagged line
	passed  bool          // such a line has passed with the last Read
	tag     string        // of it
	status  string        // OK, NO, BAD

	listing atomic.Pointer[listing] // takes rows, up to the next tag; nil: nobody asked for any
	result  atomic.Pointer[result]  // takes what SEARCH finds; nil: nobody asked
	bye     atomic.Pointer[string]  // what the server said in its BYE
	broken  atomic.Pointer[error]   // why nothing more is read; nil: it is
	mailbox mailbox
}

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

// Read implements io.Reader.
func (r *responses) Read(p []byte) (int, error) {
	for len(r.pending) == 0 {
		line, err := r.line()
		if err != nil {
			return 0, err
		}
		if err := r.take(line); err != nil {
			return 0, err
		}
	}
	n := copy(p, r.pending)
	r.pending = r.pending[n:]
	r.passed = len(r.pending) == 0
	return n, nil
}

// answered reports whether with the last Read a tagged line has passed whole.
func (r *responses) answered() bool {
	passed := r.passed
	r.passed = false
	return passed
}

// take takes the response that begins with line, to its end. What imapclient
// has to see of it is pending then.
func (r *responses) take(line []byte) error {
	text, _ := wire.TrimLine(line)
	switch {
	case len(text) == 0, text[0] == '+': // nobody waits for a continuation
		return nil
	case text[0] == '*':
		return r.untagged(line, text[1:])
	}
	if _, ours, _ := parseTagged(line); ours { // of a command that imapclient does not know of
		return nil
	}
	tag, status, rest := parseStatus(text)
	if status == "" {
		return r.breaks("neither a tag nor an asterisk")
	}
	r.listing.Store(nil) // it belongs to the one who waits for the tag
	r.tag, r.status = tag, status
	code, said := cutCode(rest)
	r.mailbox.note(code)
	r.pending = r.tagged(code, said, line[len(text):])
	return nil
}

// tagged returns a tagged line as imapclient can bear it. Of the code of a
// refusal the name is left, for the log.
func (r *responses) tagged(code, text, end []byte) []byte {
	b := append(append([]byte(r.tag), ' '), r.status...)
	if name := wire.Keyword(firstWord(code)); r.status != "OK" && name != "" && !slices.Contains(parsed, name) {
		b = append(append(append(b, " ["...), name...), ']')
	}
	text = bytes.TrimLeft(text[:min(len(text), maxSaid)], "[ ")
	if len(text) > 0 {
		b = append(append(b, ' '), bytes.ReplaceAll(text, []byte("\r"), []byte(" "))...)
	}
	return append(b, end...)
}

// parsed are the codes that imapclient wants arguments of.
var parsed = []string{"CAPABILITY", "APPENDUID", "COPYUID"}

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

// breaks ends reading, for what was read is not IMAP.
func (r *responses) breaks(what string) error {
	err := fmt.Errorf("%w: %s", errSyntax, what)
	r.broken.CompareAndSwap(nil, &err)
	return err
}

// panicked ends reading after a panic with the value v: nothing is certain of what
// was read.
func (r *responses) panicked(v any) error {
	err := fmt.Errorf("panic: %v", v)
	r.broken.CompareAndSwap(nil, &err)
	return err
}

// line returns the next line with its end, valid until the next read.
func (r *responses) line() ([]byte, error) {
	if broken := r.broken.Load(); broken != nil {
		return nil, *broken
	}
	line, err := r.reader().ReadSlice('\n')
	if !errors.Is(err, bufio.ErrBufferFull) {
		return line, err
	}
	r.long = append(r.long[:0:0], line...) // not kept for longer than the line
	for errors.Is(err, bufio.ErrBufferFull) {
		if len(r.long) > maxLine {
			r.broken.CompareAndSwap(nil, &errLongLine)
			return nil, errLongLine
		}
		line, err = r.br.ReadSlice('\n')
		r.long = append(r.long, line...)
	}
	return r.long, err
}

// untagged takes an untagged response. Its text is the first line without the
// asterisk.
func (r *responses) untagged(line, text []byte) error {
	word, rest := nextWord(text)
	data := true // there may be literals in it
	if len(word) > 0 && '0' <= word[0] && word[0] <= '9' {
		name, rest := nextWord(rest)
		r.numbered(word, name, rest)
	} else {
		switch wire.Keyword(word) {
		case "OK", "NO", "BAD", "PREAUTH": // in the text of a status {5} is just text
			data = false
			code, _ := cutCode(rest)
			r.mailbox.note(code)
		case "BYE":
			data = false
			said := string(rest[:min(len(rest), maxSaid)])
			r.bye.Store(&said)
		case "SEARCH":
			if result := r.result.Load(); result != nil {
				result.search(rest)
			}
		case "ESEARCH":
			if result := r.result.Load(); result != nil {
				result.esearch(rest)
			}
		case "STATUS":
			r.mailbox.statusRow(rest)
		case "VANISHED":
			r.vanished(rest)
		case "LIST":
			return r.list(line, rest)
		case "":
			if bytes.HasPrefix(word, []byte("[")) { // a response code without its OK
				data = false
				code, _ := cutCode(bytes.TrimLeft(text, " "))
				r.mailbox.note(code)
			}
		}
	}
	if literal, announced := wire.TrailingLiteral(line); announced && data {
		return r.skip(literal.Size)
	}
	return nil
}

// nextWord cuts the next word off s, with all spaces around it but those that
// follow the first space behind it.
func nextWord(s []byte) (word, rest []byte) { return wire.CutWord(bytes.TrimLeft(s, " ")) }

func firstWord(s []byte) []byte {
	word, _ := nextWord(s)
	return word
}

// parseStatus reads a tagged line. The status is "" if it is none.
func parseStatus(text []byte) (tag, status string, rest []byte) {
	word, text := nextWord(text)
	name, rest := nextWord(text)
	status = wire.Keyword(name)
	if results[status] == "" || len(word) > maxSaid {
		return "", "", nil
	}
	return string(word), status, rest
}

// cutCode cuts the response code off the text of a status, RFC 9051 section 7.1.
func cutCode(text []byte) (code, rest []byte) {
	text = bytes.TrimLeft(text, " ")
	if !bytes.HasPrefix(text, []byte("[")) {
		return nil, text
	}
	end := bytes.IndexByte(text, ']')
	if end < 0 {
		return nil, nil
	}
	return text[1:end], text[end+1:]
}

var (
	exists  = []byte("EXISTS")
	expunge = []byte("EXPUNGE")
	fetched = []byte("FETCH")
)

// numbered takes the responses that begin with a number.
func (r *responses) numbered(number, name, rest []byte) {
	listing := r.listing.Load()
	switch {
	case bytes.EqualFold(name, exists):
		r.mailbox.exist(number)
	case bytes.EqualFold(name, expunge):
		r.mailbox.remove(1)
		if listing != nil {
			listing.expunged = true
		}
	case bytes.EqualFold(name, fetched) && listing != nil:
		if uid, size, ok := parseRow(rest); ok {
			n, _ := parseNumber(number)
			listing.add(n, uid, size)
		} else if bytes.Contains(bytes.ToUpper(rest), []byte("RFC822.SIZE")) {
			listing.odd++
		}
	}
}

// vanished takes a VANISHED response, RFC 7162 section 3.2.10: several EXPUNGE
// in one, unless it tells of what was removed before SELECT.
func (r *responses) vanished(rest []byte) {
	word, _ := nextWord(rest)
	if bytes.EqualFold(word, []byte("(EARLIER)")) {
		return
	}
	uids, err := parseSet(word)
	if err != nil {
		r.mailbox.odd = fmt.Errorf("VANISHED: %w", err)
		return
	}
	r.mailbox.remove(uids.count())
	if listing := r.listing.Load(); listing != nil {
		listing.expunged = true
	}
}

// parseRow reads "(UID 5 RFC822.SIZE 1234)", with other items between as the
// server likes. It reports false if one of the two is missing.
func parseRow(s []byte) (uid uint32, size int64, ok bool) {
	s, ok = bytes.CutPrefix(bytes.TrimLeft(s, " "), []byte("("))
	size = -1
	for s = bytes.TrimLeft(s, " "); ok && len(s) > 0 && s[0] != ')'; s = bytes.TrimLeft(s, " ") {
		var name, value []byte
		name, s = wire.CutWord(s)
		value, s, ok = cutValue(bytes.TrimLeft(s, " "))
		switch {
		case bytes.EqualFold(name, []byte("UID")):
			n, err := parseUint32(value)
			if err != nil || n == 0 || uid != 0 && uid != n {
				return 0, 0, false
			}
			uid = n
		case bytes.EqualFold(name, []byte("RFC822.SIZE")):
			n, valid := parseNumber(value)
			if !valid {
				return 0, 0, false
			}
			size = n
		}
	}
	return uid, size, ok && len(s) > 0 && uid != 0 && size >= 0
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

// maxDigits is how many digits a number has at most, without leading zeros.
const maxDigits = 18

// parseNumber reads a number. Leading zeros mean nothing.
func parseNumber(digits []byte) (n int64, ok bool) {
	if len(digits) == 0 {
		return 0, false
	}
	digits = bytes.TrimLeft(digits, "0")
	if len(digits) > maxDigits {
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

// parseUint32 reads a number of up to 32 bits, RFC 9051 section 9: number.
func parseUint32(digits []byte) (uint32, error) {
	n, ok := parseNumber(digits)
	if !ok || n > math.MaxUint32 {
		return 0, fmt.Errorf("%w: %.20q is no number of 32 bits", errAnswer, digits)
	}
	return uint32(n), nil
}

// said returns err with what the server said of its leaving.
func (r *responses) said(err error) error {
	if bye := r.bye.Load(); bye != nil {
		return fmt.Errorf("%w: server said BYE %s", err, *bye)
	}
	return err
}
