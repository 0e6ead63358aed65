package bridge

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/emersion/go-imap/v2"

	"postern/proxy"
	"postern/proxy/wire"
)

// Messages are asked for by UID FETCH, of one or of many, and one command may
// follow another before it is answered. The session reads the answers itself,
// in whatever order they come: a row is known by its UID, and a row that is
// passed over (the client has asked for something else) is read to its end and
// forgotten. Dovecot sends the rows of several commands before the first of
// their tagged answers, which is why nothing waits for a tag but the one whose
// row is missing.

// What is asked of messages; none of it sets \Seen.
const (
	itemsWhole  = "BODY.PEEK[]"
	itemsHeader = "BODY.PEEK[HEADER]"
)

var errItems = errors.New("server answers with other parts than were asked for")

// fetching is what of an inbox belongs to FETCH.
type fetching struct {
	tags   uint64 // of the last command
	wants  []want // what was asked for and has not come, in order
	ahead  int64  // octets of wants
	budget *atomic.Int64
	row    *row   // that is being read
	line   []byte // commands, not yet sent
	blamed uint32 // UID of the row that broke the grammar; 0: none, or not known
}

// A want is one message that was asked for.
type want struct {
	uid    uint32
	octets int64 // as far as known; more may come
	tag    uint64
	items  string
}

// ask asks for items of messages, the UIDs of which ascend. What comes is
// awaited with the tag.
func (in *inbox) ask(items string, messages ...want) (tag uint64, err error) {
	tag = in.put(items, messages...)
	return tag, in.send()
}

// put is ask, up to send.
func (in *inbox) put(items string, messages ...want) (tag uint64) {
	in.tags++
	b := append(strconv.AppendUint(append(in.line, 'F'), in.tags, 10), " UID FETCH "...)
	for i, w := range messages {
		b = appendUID(b, messages, i)
		w.tag, w.items = in.tags, items
		in.wants = append(in.wants, w)
		in.ahead += w.octets
		if in.budget != nil {
			in.budget.Add(w.octets)
		}
	}
	in.line = append(append(append(b, " (UID "...), items...), ")\r\n"...)
	return in.tags
}

func (in *inbox) send() error {
	_, err := in.link.Write(in.line)
	in.line = in.line[:0]
	return err
}

// appendUID appends the i-th UID as part of a set: alone, or as the begin or the
// end of a range.
func appendUID(b []byte, messages []want, i int) []byte {
	uid := messages[i].uid
	follows := i > 0 && messages[i-1].uid+1 == uid
	goesOn := i+1 < len(messages) && messages[i+1].uid == uid+1
	switch {
	case follows && goesOn:
		return b
	case follows:
		b = append(b, ':')
	case i > 0:
		b = append(b, ',')
	}
	return strconv.AppendUint(b, uint64(uid), 10)
}

// wanting returns the tag of what was asked for and has not come.
func (in *inbox) wanting(uid uint32, items string) (tag uint64, ok bool) {
	for _, w := range in.wants {
		if w.uid == uid && w.items == items {
			return w.tag, true
		}
	}
	return 0, false
}

// came removes a want.
func (in *inbox) came(i int) {
	in.ahead -= in.wants[i].octets
	if in.budget != nil {
		in.budget.Add(-in.wants[i].octets)
	}
	if i == 0 {
		in.wants = in.wants[1:]
		return
	}
	in.wants = slices.Delete(in.wants, i, i+1)
}

// forget gives up what was asked for.
func (in *inbox) forget() {
	for len(in.wants) > 0 {
		in.came(0)
	}
	in.wants, in.line, in.row = nil, nil, nil
}

// await is receive, and tells how long it took.
func (in *inbox) await(ctx context.Context, uid uint32, tag uint64) (*row, error) {
	begun := time.Now()
	r, err := in.receive(ctx, uid, tag)
	if result := resultOf(err); result != "" && ctx.Err() == nil {
		in.tell(proxy.IMAPCommand{Command: proxy.CommandBody, Result: result, Duration: time.Since(begun)})
	}
	return r, err
}

// receive returns the row of a message that was asked for with tag, at its first
// section. It returns errVanished if the command has ended without the row,
// and an *imap.Error if it was refused. Rows on the way there are passed over.
func (in *inbox) receive(ctx context.Context, uid uint32, tag uint64) (*row, error) {
	for {
		r, err := in.response(uid, tag)
		if errors.Is(err, errVanished) {
			return nil, err
		}
		if err != nil {
			return nil, in.explain(ctx, err)
		}
		if r == nil {
			continue
		}
		if i := in.find(r.uid); i >= 0 {
			w := in.wants[i]
			in.came(i)
			r.wanted = w.uid
			if w.tag == tag && w.uid == uid {
				return r, nil
			}
		}
	}
}

// find returns which want a row is for, or -1. The UID may come after the body:
// then the row can only be that of the only want.
func (in *inbox) find(uid uint32) int {
	if uid == 0 && len(in.wants) == 1 {
		return 0
	}
	return slices.IndexFunc(in.wants, func(w want) bool { return w.uid == uid })
}

// response reads one response, and returns it if it is a row, at its first
// section. The error is errVanished or an *imap.Error if it is the end of the
// command with tag and the row of uid has not come.
func (in *inbox) response(uid uint32, tag uint64) (*row, error) {
	r, end, err := in.read()
	if r != nil || err != nil {
		return r, err
	}
	if end.status != nil && in.ended(end.tag, uid) && end.tag == tag {
		return nil, end.status
	}
	return nil, nil
}

// An ending is the tagged answer to a command.
type ending struct {
	tag    uint64
	status error // errVanished: OK; an *imap.Error; nil: there was none
}

// read reads one response, behind the rest of the one before: a row, at its
// first section, the end of a command, or something else.
func (in *inbox) read() (*row, ending, error) {
	if err := in.finish(); err != nil {
		return nil, ending{}, err
	}
	line, err := in.link.responses.line()
	if err != nil {
		return nil, ending{}, err
	}
	if tag, ok, status := parseTagged(line); ok {
		return nil, ending{tag, status}, nil
	}
	r, ok := in.parse(line)
	if !ok {
		return nil, ending{}, in.noise(line)
	}
	in.row = r
	if err := r.next(); err != nil {
		return nil, ending{}, err
	}
	if r.section == nil {
		in.row = nil
		return nil, ending{}, nil
	}
	return r, ending{}, nil
}

// ended gives up what a command has not brought. It reports whether uid is
// among that.
func (in *inbox) ended(tag uint64, uid uint32) (missing bool) {
	for i := 0; i < len(in.wants); {
		if in.wants[i].tag != tag {
			i++
			continue
		}
		missing = missing || in.wants[i].uid == uid
		in.came(i)
	}
	return missing
}

// noise takes a response that is no row.
func (in *inbox) noise(line []byte) error {
	err := in.link.responses.take(line)
	in.link.responses.pending = nil // nobody waits for a tag but ours
	return err
}

// parseTagged reads the end of a command. The status is errVanished if it was
// OK, and an *imap.Error if it was not.
func parseTagged(line []byte) (tag uint64, ok bool, status error) {
	if line[0] != 'F' {
		return 0, false, nil
	}
	text, _ := wire.TrimLine(line)
	word, text := nextWord(text)
	n, ok := parseNumber(word[1:])
	if !ok {
		return 0, false, nil
	}
	word, text = nextWord(text)
	name := wire.Keyword(word)
	if results[name] == "" {
		return 0, false, nil
	}
	status = errVanished
	if name != "OK" {
		code, _ := cutCode(text)
		status = &imap.Error{
			Type: imap.StatusResponseType(name), Code: imap.ResponseCode(code), Text: string(text[:min(len(text), maxSaid)]),
		}
	}
	return uint64(n), true, status
}

// drain reads to the end of what was asked for. The ends of commands may still
// come: imapclient does not get to see them.
func (in *inbox) drain() error {
	for len(in.wants) > 0 {
		r, err := in.response(0, 0)
		if err != nil {
			return err
		}
		if r == nil {
			continue
		}
		if i := in.find(r.uid); i >= 0 {
			r.wanted = in.wants[i].uid
			in.came(i)
		}
	}
	return in.finish()
}

// settle reads, when nothing is wanted any more, what has come but was not
// waited for: the ends of commands.
func (in *inbox) settle() {
	for len(in.wants) == 0 && bytes.IndexByte(in.link.responses.buffered(), '\n') >= 0 {
		if _, err := in.response(0, 0); err != nil {
			in.abort()
			return
		}
	}
}

// logout says LOGOUT and waits until the server agrees.
func (in *inbox) logout() {
	if _, err := io.WriteString(in.link, "Q LOGOUT\r\n"); err != nil {
		return
	}
	for {
		line, err := in.link.responses.line()
		if err != nil || bytes.HasPrefix(line, []byte("Q ")) || in.noise(line) != nil {
			return
		}
	}
}

// rows asks for items of messages and takes the rows that come: part gets each
// section of a row and reads of it what it needs, whole gets the row when it has
// come to its end. An error is an *imap.Error if the server refuses some.
func (in *inbox) rows(ctx context.Context, uids imap.UIDSet, items string, part func(*section) error, whole func(*row)) error {
	defer context.AfterFunc(ctx, in.abort)()
	begun := time.Now()
	err := in.drain()
	if err == nil {
		in.tags++
		in.line = fmt.Appendf(in.line, "F%d UID FETCH %s (UID %s)\r\n", in.tags, uids, items)
		err = in.send()
	}
	for tag := in.tags; err == nil; {
		var r *row
		var end ending
		if r, end, err = in.read(); err != nil {
			break
		}
		if end.status != nil && end.tag == tag {
			err = end.status
			break
		}
		for r != nil && r.section != nil && err == nil {
			if err = part(r.section); err == nil {
				err = r.next()
			}
		}
		if in.row = nil; r != nil && err == nil && r.uid != 0 {
			whole(r)
		}
	}
	if !errors.Is(err, errVanished) {
		err = in.explain(ctx, err)
	}
	if result := resultOf(err); result != "" && ctx.Err() == nil {
		in.tell(proxy.IMAPCommand{Command: "FETCH", Result: result, Duration: time.Since(begun)})
	}
	if errors.Is(err, errVanished) {
		return nil
	}
	return err
}

// A row is a FETCH response as it comes. It is read by the grammar (RFC 9051
// section 9: msg-att), for its end is the only proof that what it announced as
// the octets of a message were these: behind a literal of the wrong length
// comes something else.
type row struct {
	in      *inbox
	uid     uint32   // 0: not told yet
	wanted  uint32   // the UID that it was taken for; 0: none yet
	octets  int64    // RFC822.SIZE; -1: not told yet
	date    string   // INTERNALDATE; "": not told yet
	section *section // where the row is; nil: at its end

	items     []byte    // of the present line, not looked at yet; valid until the next read
	announced bool      // after them comes a literal
	size      int64     // of that
	depth     int       // of the list that goes on behind a literal; 0: there is none
	body      bool      // there was a literal, or a section
	sections  []string  // names of those that came: none comes twice, unless a literal was too long
	few       [2]string // room for them
}

// parse returns the row that begins with line.
func (in *inbox) parse(line []byte) (*row, bool) {
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
	r := &row{in: in, octets: -1}
	r.sections = r.few[:0]
	r.begin(text[1:])
	return r, true
}

// begin takes a line, or what of it is left.
func (r *row) begin(text []byte) {
	literal, announced := wire.TrailingLiteral(text)
	r.items, _ = wire.TrimLine(text)
	r.announced, r.size = announced, literal.Size
}

// next goes on to the next section of a body, or to the end of the row.
func (r *row) next() error {
	if s := r.section; s != nil {
		r.section = nil
		if s.literal {
			r.size = s.left
			if err := r.goOn(); err != nil {
				return err
			}
		}
	}
	for {
		name, value, literal, ok := r.item()
		if !ok || r.body && name != nil && !knownItem(name) {
			return r.breaks()
		}
		r.body = r.body || literal
		switch {
		case len(name) > 5 && bytes.EqualFold(name[:5], []byte("BODY[")):
			r.body = true
			if !literal && !nstring(value) || slices.Contains(r.sections, string(name)) {
				return r.breaks()
			}
			r.section = newSection(r, string(name), value, literal)
			r.sections = append(r.sections, r.section.name)
			return nil
		case literal:
			if err := r.goOn(); err != nil {
				return err
			}
		case name == nil:
			if r.wanted != 0 && r.uid != r.wanted {
				return r.breaks()
			}
			return nil
		case bytes.EqualFold(name, []byte("UID")):
			n, err := parseUint32(value)
			if err != nil || n == 0 || r.uid != 0 && r.uid != n {
				return r.breaks()
			}
			r.uid = n
		case bytes.EqualFold(name, []byte("RFC822.SIZE")):
			if n, ok := parseNumber(value); ok {
				r.octets = n
			}
		case bytes.EqualFold(name, []byte("INTERNALDATE")) && len(value) < maxSaid:
			r.date = string(unquote(value))
		}
	}
}

// fetchItems are what FETCH may tell, unasked too: RFC 9051 section 7.5.2, RFC 3516, RFC
// 7162, RFC 8474, RFC 8514 and RFC 8970.
var fetchItems = []string{
	"UID", "FLAGS", "RFC822.SIZE", "INTERNALDATE", "MODSEQ", "ENVELOPE", "BODY", "BODYSTRUCTURE", "RFC822", "RFC822.HEADER", "RFC822.TEXT",
	"EMAILID", "THREADID", "SAVEDATE", "PREVIEW",
}

// knownItem reports whether name, behind a body, is that of an item. The rest of a
// body of which the literal is too short may look like an item with another name.
func knownItem(name []byte) bool {
	if len(name) == 0 { // it was told before: its value goes on
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

// breaks returns the error of a row that is not what the grammar wants. If there
// is a body in it, where it ends is not certain. Else it is passed over.
func (r *row) breaks() error {
	if !r.body && !r.announced {
		r.items, r.section = nil, nil
		return nil
	}
	r.in.blamed = max(r.uid, r.wanted)
	return r.in.link.responses.breaks("FETCH does not go on as it should")
}

// nstring reports whether value, which is no literal, is a quoted string or NIL.
func nstring(value []byte) bool {
	return len(value) > 1 && value[0] == '"' && value[len(value)-1] == '"' || bytes.EqualFold(value, []byte("NIL"))
}

// item cuts the next item off the line. With literal its value is a literal that
// comes next, or has one within. Without a name the row is at its end.
func (r *row) item() (name, value []byte, literal, ok bool) {
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

// goOn takes the line that follows what is left of a literal.
func (r *row) goOn() error {
	if err := r.in.link.responses.discard(r.size); err != nil {
		return err
	}
	line, err := r.in.link.responses.line()
	if err != nil {
		return err
	}
	if r.depth == 0 && line[0] != ')' && line[0] != ' ' {
		return r.breaks()
	}
	r.begin(line)
	return nil
}

// finish reads to the end of the row that is being read.
func (in *inbox) finish() error {
	r := in.row
	if r == nil {
		return nil
	}
	in.row = nil
	for r.section != nil {
		if err := r.next(); err != nil {
			return err
		}
	}
	return nil
}

// A section is a part of a message as it comes from the server.
type section struct {
	row     *row
	name    string // as the server writes it
	size    int64  // octets
	left    int64  // of them, not yet read
	literal bool
	inline  []byte // if it is none
}

func newSection(r *row, name string, value []byte, literal bool) *section {
	s := &section{row: r, name: name, literal: literal}
	switch {
	case literal:
		s.size = r.size
	case bytes.HasPrefix(value, []byte(`"`)): // else NIL
		s.inline = unquote(value)
		s.size = int64(len(s.inline))
	}
	s.left = s.size
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

// is reports whether the section is the one with that name.
func (s *section) is(name string) bool {
	return len(s.name) >= len(name) && strings.EqualFold(s.name[:len(name)], name)
}

// whole reports whether all that is left can be had without waiting.
func (s *section) whole() bool {
	return !s.literal || s.left <= int64(len(s.row.in.link.responses.buffered()))
}

// maxRest bounds what is looked at behind a section before its row is read.
const maxRest = 4 << 10

// complete waits for what follows a section that is small, and returns an error
// if that is not what has to follow: then these are not the octets.
func (s *section) complete() error {
	if !s.literal {
		return nil
	}
	r, left := s.row.in.link.responses, int(s.left)
	for n := 1; n <= maxRest; {
		b, err := r.reader().Peek(max(left+n, r.reader().Buffered()))
		rest := b[min(left, len(b)):]
		if len(rest) > 0 && rest[0] != ')' && rest[0] != ' ' {
			return s.row.breaks()
		}
		if end := bytes.IndexByte(rest, '\n'); end >= 0 {
			ahead := *s.row
			ahead.section = nil
			ahead.begin(rest[:end+1])
			for {
				name, _, literal, ok := ahead.item()
				if !ok {
					return s.row.breaks()
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

// peek returns octets that have come: at least n, or all that are left, and at
// least one unless none is left. They are valid until the next read. There must
// be room for n octets in the buffer.
func (s *section) peek(n int) ([]byte, error) {
	if !s.literal {
		return s.inline, nil
	}
	n = int(min(int64(max(n, 1)), s.left))
	r := s.row.in.link.responses
	b, err := r.reader().Peek(max(n, int(min(int64(len(r.buffered())), s.left))))
	if len(b) >= n {
		return b, nil
	}
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return nil, err
}

// each reads what is left of the section.
func (s *section) each(take func(chunk []byte)) error {
	for s.left > 0 {
		chunk, err := s.peek(1)
		if err != nil {
			return err
		}
		take(chunk)
		s.passed(len(chunk))
	}
	return nil
}

// passed says that n octets of what peek has returned are read.
func (s *section) passed(n int) {
	s.left -= int64(n)
	if !s.literal {
		s.inline = s.inline[n:]
		return
	}
	_ = s.row.in.link.responses.discard(int64(n)) // they are in the buffer
}
