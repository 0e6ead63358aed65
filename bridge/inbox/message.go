package inbox

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"strings"

	"postern/proxy/wire"
)

// A FetchResponse is a FETCH response while it is read. It is read by the grammar
// (RFC 9051 section 9: msg-att), because its end is the only proof that a literal had
// the octets of the message: after a literal of the wrong length comes something
// else.
type FetchResponse struct {
	UID     uint32   // 0: not received yet
	Section *Section // the one that comes next; nil: the response has ended

	in           *Inbox
	requested    uint32 // the UID of the request that it was taken for; 0: none yet
	rfc822Size   int64  // -1: not received yet
	internalDate string // "": not received yet

	items      []byte    // of the present line, not parsed yet; valid until the next read
	announced  bool      // a literal follows items
	literal    int64     // the size of that literal
	depth      int       // of the list that goes on after a literal; 0: there is none
	body       bool      // there was a literal, or a section
	names      []string  // of the sections: none comes twice, unless a literal was too long
	namesArray [2]string // room for names
}

// parseFetch returns the FETCH response that begins with line. It reports false if
// line begins another response.
func (in *Inbox) parseFetch(line []byte) (*FetchResponse, bool) {
	text, ok := bytes.CutPrefix(line, []byte("* "))
	if !ok {
		return nil, false
	}
	number, text := nextWord(text)
	if _, ok := parseNumber(number); !ok {
		return nil, false
	}
	name, text := nextWord(text)
	text = bytes.TrimLeft(text, " ")
	if !bytes.EqualFold(name, fetched) || !bytes.HasPrefix(text, []byte("(")) {
		return nil, false
	}
	r := &FetchResponse{in: in, rfc822Size: -1}
	r.names = r.namesArray[:0]
	r.begin(text[1:])
	return r, true
}

// begin takes the next line, or the rest of one.
func (r *FetchResponse) begin(text []byte) {
	literal, announced := wire.TrailingLiteral(text)
	r.items, _ = wire.TrimLine(text)
	r.announced, r.literal = announced, literal.Size
}

// Next goes on to the next section, or to the end of the response.
func (r *FetchResponse) Next() (err error) {
	defer r.in.recovered(&err)
	return r.next()
}

func (r *FetchResponse) next() error {
	if s := r.Section; s != nil {
		r.Section = nil
		if s.literal {
			r.literal = s.Left
			if err := r.nextLine(); err != nil {
				return err
			}
		}
	}
	for {
		name, value, literal, ok := r.item()
		if !ok || r.body && name != nil && !knownItem(name) {
			return r.malformed()
		}
		r.body = r.body || literal
		switch {
		case len(name) > 5 && bytes.EqualFold(name[:5], []byte("BODY[")):
			r.body = true
			if !literal && !nstring(value) || slices.Contains(r.names, string(name)) {
				return r.malformed()
			}
			r.Section = newSection(r, string(name), value, literal)
			r.names = append(r.names, r.Section.name)
			return nil
		case literal:
			if err := r.nextLine(); err != nil {
				return err
			}
		case name == nil:
			if r.requested != 0 && r.UID != r.requested {
				return r.malformed()
			}
			return nil
		case bytes.EqualFold(name, []byte("UID")):
			n, err := parseUint32(value)
			if err != nil || n == 0 || r.UID != 0 && r.UID != n {
				return r.malformed()
			}
			r.UID = n
		case bytes.EqualFold(name, []byte("RFC822.SIZE")):
			if n, ok := parseNumber(value); ok {
				r.rfc822Size = n
			}
		case bytes.EqualFold(name, []byte("INTERNALDATE")) && len(value) < maxText:
			r.internalDate = string(unquote(value))
		}
	}
}

// fetchItems are the items that a FETCH response may have, also without a request:
// RFC 9051 section 7.5.2, RFC 3516, RFC 7162, RFC 8474, RFC 8514 and RFC 8970.
var fetchItems = []string{
	"UID", "FLAGS", "RFC822.SIZE", "INTERNALDATE", "MODSEQ", "ENVELOPE", "BODY", "BODYSTRUCTURE", "RFC822", "RFC822.HEADER", "RFC822.TEXT",
	"EMAILID", "THREADID", "SAVEDATE", "PREVIEW",
}

// knownItem reports whether name, after a body, is the name of an item. The rest of a
// body whose literal is too short may look like an item with another name.
func knownItem(name []byte) bool {
	if len(name) == 0 { // the value of the item before goes on
		return true
	}
	upper := strings.ToUpper(string(name))
	for _, prefix := range []string{"BODY[", "BINARY", "X-"} {
		if strings.HasPrefix(upper, prefix) {
			return true
		}
	}
	return slices.Contains(fetchItems, upper)
}

// malformed returns the error of a response that breaks the grammar. If it has a
// body, its end is not certain. Else it is passed over, without an error.
func (r *FetchResponse) malformed() error {
	if !r.body && !r.announced {
		r.items, r.Section = nil, nil
		return nil
	}
	r.in.malformed = max(r.UID, r.requested)
	return r.in.link.responses.breaks("FETCH does not go on as it should")
}

// nstring reports whether value, which is no literal, is a quoted string or NIL.
func nstring(value []byte) bool {
	return len(value) > 1 && value[0] == '"' && value[len(value)-1] == '"' || bytes.EqualFold(value, []byte("NIL"))
}

// item cuts the next item off the line. literal reports that its value is a literal
// that comes next, or has one within. Without a name the response is at its end.
func (r *FetchResponse) item() (name, value []byte, literal, ok bool) {
	s := bytes.TrimLeft(r.items, " ")
	if r.depth > 0 {
		r.items, r.depth, ok = cutList(s, r.depth)
		if !ok || r.depth > 0 {
			r.items = nil
			return []byte{}, nil, r.announced, ok && r.announced
		}
		s = bytes.TrimLeft(r.items, " ")
	}
	if bytes.HasPrefix(s, []byte(")")) {
		r.items = nil
		return nil, nil, false, !r.announced && len(bytes.TrimLeft(s[1:], " ")) == 0
	}
	name, s = cutItem(s)
	s = bytes.TrimLeft(s, " ")
	switch {
	case len(name) == 0 || len(s) == 0:
		return nil, nil, false, false
	case s[0] == '{' && r.announced && bytes.IndexByte(s, '}') == len(s)-1:
		r.items = nil
		return name, nil, true, true
	case s[0] == '(':
		rest, depth, ok := cutList(s, 0)
		if ok && depth > 0 {
			r.items, r.depth = nil, depth
			return name, nil, true, r.announced
		}
		r.items = rest
		return name, s[:len(s)-len(rest)], false, ok
	}
	value, r.items, ok = cutValue(s)
	return name, value, false, ok
}

// cutItem cuts the name of an item off s, with its section: RFC 9051 section 9,
// msg-att-static.
func cutItem(s []byte) (name, rest []byte) {
	section := false
	for i, c := range s {
		switch {
		case section:
			section = c != ']'
		case c == '[':
			section = true
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', bytes.IndexByte([]byte(".-_<>]"), c) >= 0:
		case c == ' ', c == '(', c == '{', c == '"':
			return s[:i], s[i:]
		default:
			return nil, nil
		}
	}
	return nil, nil
}

// cutList cuts a parenthesized list off s, of which depth are open already. The
// depth is not 0 if it goes on behind a literal at the end of s.
func cutList(s []byte, depth int) (rest []byte, open int, ok bool) {
	quoted := false
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case quoted:
		case c == '(':
			depth++
		case c == ')':
			if depth--; depth == 0 {
				return s[i+1:], 0, true
			}
		}
	}
	return nil, depth, !quoted
}

// nextLine takes the line that follows the rest of a literal.
func (r *FetchResponse) nextLine() error {
	if err := r.in.link.responses.discard(r.literal); err != nil {
		return err
	}
	line, err := r.in.link.responses.line()
	if err != nil {
		return err
	}
	if r.depth == 0 && line[0] != ')' && line[0] != ' ' {
		return r.malformed()
	}
	r.begin(line)
	return nil
}

// Finish reads to the end of the response that is being read: only then the octets
// of its sections were those of the message.
func (in *Inbox) Finish() (err error) {
	defer in.recovered(&err)
	r := in.response
	if r == nil {
		return nil
	}
	in.response = nil
	for r.Section != nil {
		if err := r.next(); err != nil {
			return err
		}
	}
	return nil
}

// A Section is a part of a message while it comes from the server.
type Section struct {
	Size int64 // octets
	Left int64 // octets that have not been read

	response *FetchResponse
	name     string // as the server writes it
	literal  bool
	inline   []byte // the octets, if it is not a literal
}

func newSection(r *FetchResponse, name string, value []byte, literal bool) *Section {
	s := &Section{response: r, name: name, literal: literal}
	switch {
	case literal:
		s.Size = r.literal
	case bytes.HasPrefix(value, []byte(`"`)): // else NIL
		s.inline = unquote(value)
		s.Size = int64(len(s.inline))
	}
	s.Left = s.Size
	return s
}

// unquote returns the octets of a quoted string, RFC 9051 section 4.3.
func unquote(s []byte) []byte {
	var b []byte
	for i := 1; i < len(s)-1; i++ {
		if s[i] == '\\' {
			i++
		}
		b = append(b, s[i])
	}
	return b
}

// Is reports whether the name of the section begins with name, in any case: BODY[],
// BODY[HEADER], BODY[TEXT].
func (s *Section) Is(name string) bool {
	return len(s.name) >= len(name) && strings.EqualFold(s.name[:len(name)], name)
}

// Buffered reports whether the rest of the section can be read without waiting for
// the server.
func (s *Section) Buffered() bool {
	return !s.literal || s.Left <= int64(len(s.response.in.link.responses.buffered()))
}

// maxRest bounds how many octets after a section CheckEnd looks at.
const maxRest = 4 << 10

// CheckEnd waits for what follows a section that fits the buffer, without reading it.
// It returns an error if the grammar does not allow it there: then the section does
// not have the octets of the message.
func (s *Section) CheckEnd() (err error) {
	defer s.response.in.recovered(&err)
	if !s.literal {
		return nil
	}
	r, left := s.response.in.link.responses, int(s.Left)
	for n := 1; n <= maxRest; {
		b, err := r.reader().Peek(max(left+n, r.reader().Buffered()))
		rest := b[min(left, len(b)):]
		if len(rest) > 0 && rest[0] != ')' && rest[0] != ' ' {
			return s.response.malformed()
		}
		if end := bytes.IndexByte(rest, '\n'); end >= 0 {
			ahead := *s.response
			ahead.Section = nil
			ahead.begin(rest[:end+1])
			for {
				name, _, literal, ok := ahead.item()
				if !ok {
					return s.response.malformed()
				}
				if literal || name == nil {
					return nil
				}
			}
		}
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return err
		}
		n = len(rest) + 1
	}
	return nil
}

// Peek returns the next octets without reading them: at least n, or all that are
// left, and at least one unless none is left. n is at most ReaderSize. The octets are
// valid until the next read.
func (s *Section) Peek(n int) (_ []byte, err error) {
	defer s.response.in.recovered(&err)
	if !s.literal {
		return s.inline, nil
	}
	n = int(min(int64(max(n, 1)), s.Left))
	r := s.response.in.link.responses
	b, err := r.reader().Peek(max(n, int(min(int64(len(r.buffered())), s.Left))))
	if len(b) >= n {
		return b, nil
	}
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return nil, err
}

// Each reads the rest of the section.
func (s *Section) Each(take func(chunk []byte)) error {
	for s.Left > 0 {
		chunk, err := s.Peek(1)
		if err != nil {
			return err
		}
		take(chunk)
		s.Discard(len(chunk))
	}
	return nil
}

// Discard reads n of the octets that Peek has returned.
func (s *Section) Discard(n int) {
	s.Left -= int64(n)
	if !s.literal {
		s.inline = s.inline[n:]
		return
	}
	_ = s.response.in.link.responses.discard(int64(n)) // the octets are in the buffer
}
