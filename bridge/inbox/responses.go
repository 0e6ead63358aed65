package inbox

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

// maxText bounds what is kept of the text of a response, for the log.
const maxText = 200

var errLongLine = errors.New("line of the server without end")

// ErrSyntax says that the server broke the grammar so that where a response begins
// or ends is not certain. Nothing more is read from the connection.
var ErrSyntax = errors.New("response of the server breaks the grammar")

// A responses reads what the server sends. imapclient reads from it, and gets the
// tagged responses only, without the response codes that it would parse: its
// parsers close the connection over a liberty of grammar, take what another client
// has changed for an answer, and some of them cost more than linear work. The data
// of the other responses is kept here:
//
//   - the sizes of messages, in rows;
//   - the results of SEARCH, in result;
//   - the data of SELECT, STATUS and LIST, and what changes after that, in mailbox.
//
// FETCH responses with bodies are read by the caller of Await: see fetch.go.
type responses struct {
	src     io.Reader
	br      *bufio.Reader // nil: nothing is buffered
	long    []byte        // a line that br cannot hold
	pending []byte        // what Read returns next: a tagged line
	passed  bool          // the last Read has returned the end of a tagged line
	tag     string        // of that line
	status  string        // OK, NO, BAD
	refused func(string)  // gets the text of each command that the server has refused; nil: nothing does

	rows    atomic.Pointer[Rows]   // takes sizes, up to the next tagged response; nil: no Sizes runs
	result  atomic.Pointer[result] // takes what SEARCH finds; nil: no search runs
	bye     atomic.Pointer[string] // the text of BYE
	broken  atomic.Pointer[error]  // why nothing more is read; nil: reading goes on
	mailbox mailboxData
}

// newResponses returns the responses that come from src.
func newResponses(src io.Reader) *responses { return &responses{src: src} }

// ReaderSize is how many octets are read from a server at once, and at most how
// many Section.Peek can return. A larger buffer gains nothing.
const ReaderSize = 64 << 10

var readers = sync.Pool{New: func() any { return bufio.NewReaderSize(nil, ReaderSize) }}

// reader returns the buffer, which exists only while there is something to read.
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

// answered reports whether the last Read has returned the end of a tagged line.
func (r *responses) answered() bool {
	passed := r.passed
	r.passed = false
	return passed
}

// take reads the response that begins with line to its end, and makes pending what
// imapclient has to see of it.
func (r *responses) take(line []byte) error {
	text, _ := wire.TrimLine(line)
	switch {
	case len(text) == 0, text[0] == '+': // no command waits for a continuation
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
	r.rows.Store(nil) // Sizes waits for this tag
	r.tag, r.status = tag, status
	code, human := cutCode(rest)
	if status != "OK" {
		r.reportRefusal(human)
	}
	r.mailbox.takeCode(code)
	r.pending = r.tagged(code, human, line[len(text):])
	return nil
}

// reportRefusal passes the text of a NO or BAD on.
func (r *responses) reportRefusal(text []byte) {
	if r.refused != nil {
		r.refused(string(text[:min(len(text), maxText)]))
	}
}

// tagged returns a tagged line that imapclient can parse. Of the response code of a
// refusal only the name is left, for the log.
func (r *responses) tagged(code, text, end []byte) []byte {
	b := append(append([]byte(r.tag), ' '), r.status...)
	if name := wire.Keyword(firstWord(code)); r.status != "OK" && name != "" && !slices.Contains(parsed, name) {
		b = append(append(append(b, " ["...), name...), ']')
	}
	text = bytes.TrimLeft(text[:min(len(text), maxText)], "[ ")
	if len(text) > 0 {
		b = append(append(b, ' '), bytes.ReplaceAll(text, []byte("\r"), []byte(" "))...)
	}
	return append(b, end...)
}

// parsed are the response codes of which imapclient parses the arguments.
var parsed = []string{"CAPABILITY", "APPENDUID", "COPYUID"}

// skip reads to the end of a response of which a literal of that size comes next.
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

// breaks ends reading, because what was read is not IMAP.
func (r *responses) breaks(what string) error {
	err := fmt.Errorf("%w: %s", ErrSyntax, what)
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

// untagged reads an untagged response. text is its first line without the
// asterisk.
func (r *responses) untagged(line, text []byte) error {
	word, rest := nextWord(text)
	data := true // the response may have literals
	if len(word) > 0 && '0' <= word[0] && word[0] <= '9' {
		name, rest := nextWord(rest)
		r.numbered(word, name, rest)
	} else {
		switch wire.Keyword(word) {
		case "OK", "NO", "BAD", "PREAUTH": // in the text of a status {5} is just text
			data = false
			code, _ := cutCode(rest)
			r.mailbox.takeCode(code)
		case "BYE":
			data = false
			bye := string(rest[:min(len(rest), maxText)])
			r.bye.Store(&bye)
		case "SEARCH":
			if result := r.result.Load(); result != nil {
				result.search(rest)
			}
		case "ESEARCH":
			if result := r.result.Load(); result != nil {
				result.esearch(rest)
			}
		case "STATUS":
			r.mailbox.takeStatus(rest)
		case "VANISHED":
			r.vanished(rest)
		case "LIST":
			return r.takeList(line, rest)
		case "":
			if bytes.HasPrefix(word, []byte("[")) { // a response code without its OK
				data = false
				code, _ := cutCode(bytes.TrimLeft(text, " "))
				r.mailbox.takeCode(code)
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
	if results[status] == "" || len(word) > maxText {
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

// numbered reads a response that begins with a number.
func (r *responses) numbered(number, name, rest []byte) {
	rows := r.rows.Load()
	switch {
	case bytes.EqualFold(name, exists):
		r.mailbox.takeExists(number)
	case bytes.EqualFold(name, expunge):
		r.mailbox.remove(1)
		if rows != nil {
			(*rows).Expunged()
		}
	case bytes.EqualFold(name, fetched) && rows != nil:
		if uid, size, ok := parseRow(rest); ok {
			n, _ := parseNumber(number)
			(*rows).Row(n, uid, size)
		} else if bytes.Contains(bytes.ToUpper(rest), []byte("RFC822.SIZE")) {
			(*rows).MalformedRow()
		}
	}
}

// vanished reads a VANISHED response, RFC 7162 section 3.2.10: several EXPUNGE in
// one, unless the messages were removed before SELECT.
func (r *responses) vanished(rest []byte) {
	word, _ := nextWord(rest)
	if bytes.EqualFold(word, []byte("(EARLIER)")) {
		return
	}
	uids, err := parseSet(word)
	if err != nil {
		r.mailbox.malformed = fmt.Errorf("VANISHED: %w", err)
		return
	}
	r.mailbox.remove(int(Count(uids)))
	if rows := r.rows.Load(); rows != nil {
		(*rows).Expunged()
	}
}

// parseRow reads "(UID 5 RFC822.SIZE 1234)", in any order and with other items in
// between. It reports false if UID or RFC822.SIZE is missing.
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
		return 0, fmt.Errorf("%w: %.20q is no number of 32 bits", ErrAnswer, digits)
	}
	return uint32(n), nil
}

// withBye returns err with the text of the server's BYE, if there was one.
func (r *responses) withBye(err error) error {
	if bye := r.bye.Load(); bye != nil {
		return fmt.Errorf("%w: server said BYE %s", err, *bye)
	}
	return err
}
