package bridge

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math"
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
	if err := in.finish(); err != nil {
		return nil, err
	}
	line, err := in.link.responses.line()
	if err != nil {
		return nil, err
	}
	if ended, ok, status := parseTagged(line); ok {
		if in.ended(ended, uid) && ended == tag {
			return nil, status
		}
		return nil, nil
	}
	r, ok := in.parse(line)
	if !ok {
		return nil, in.noise(line)
	}
	in.row = r
	if err := r.next(); err != nil {
		return nil, err
	}
	if r.section == nil {
		in.row = nil
		return nil, nil
	}
	return r, nil
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

// noise reads on to the end of a response that is no row.
func (in *inbox) noise(line []byte) error {
	_, data := in.link.responses.look(line)
	if literal, announced := wire.TrailingLiteral(line); announced && data {
		return in.link.responses.skip(literal.Size)
	}
	return nil
}

// parseTagged reads the end of a command. The status is errVanished if it was
// OK, and an *imap.Error if it was not.
func parseTagged(line []byte) (tag uint64, ok bool, status error) {
	if line[0] != 'F' {
		return 0, false, nil
	}
	text, _ := wire.TrimLine(line)
	word, text := wire.CutWord(text)
	n, ok := parseNumber(word[1:])
	if !ok {
		return 0, false, nil
	}
	word, text = wire.CutWord(text)
	status = errVanished
	if name := wire.Keyword(word); name != "OK" {
		code, _, _ := bytes.Cut(bytes.TrimPrefix(text, []byte("[")), []byte("]"))
		if !bytes.HasPrefix(text, []byte("[")) {
			code = nil
		}
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

// A row is a FETCH response as it comes.
type row struct {
	in      *inbox
	uid     uint32   // 0: not told yet
	section *section // where the row is; nil: at its end

	items     []byte // of the present line, not looked at yet; valid until the next read
	announced bool   // after them comes a literal
	size      int64  // of that
	broken    bool   // the rest is not understood
}

// parse returns the row that begins with line.
func (in *inbox) parse(line []byte) (*row, bool) {
	text, ok := bytes.CutPrefix(line, []byte("* "))
	if !ok {
		return nil, false
	}
	number, text := wire.CutWord(text)
	if _, ok := parseNumber(number); !ok {
		return nil, false
	}
	name, text := wire.CutWord(text)
	if !bytes.EqualFold(name, fetched) || !bytes.HasPrefix(text, []byte("(")) {
		return nil, false
	}
	r := &row{in: in}
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
		name, value, literal := r.item()
		switch {
		case len(name) > 5 && bytes.EqualFold(name[:5], []byte("BODY[")):
			r.section = newSection(r, string(name), value, literal)
			return nil
		case literal:
			if err := r.goOn(); err != nil {
				return err
			}
		case name == nil:
			return nil
		case bytes.EqualFold(name, []byte("UID")):
			if n, ok := parseNumber(value); ok && n <= math.MaxUint32 {
				r.uid = uint32(n)
			}
		}
	}
}

// item cuts the next item off the line. What the rest of the line has no item
// for is a literal, or the end.
func (r *row) item() (name, value []byte, literal bool) {
	s := bytes.TrimPrefix(r.items, []byte(" "))
	if len(s) == 0 || s[0] == ')' && !r.announced || r.broken {
		r.items = nil
		return nil, nil, r.announced
	}
	name, s = wire.CutWord(s)
	if r.announced && bytes.HasPrefix(s, []byte("{")) {
		r.items = nil
		return name, nil, true
	}
	value, rest, ok := cutValue(s)
	if !ok {
		r.broken, r.items = true, nil
		return nil, nil, r.announced
	}
	r.items = rest
	return name, value, false
}

// goOn takes the line that follows what is left of a literal.
func (r *row) goOn() error {
	if err := r.in.link.responses.discard(r.size); err != nil {
		return err
	}
	line, err := r.in.link.responses.line()
	if err == nil {
		r.begin(line)
	}
	return err
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

// passed says that n octets of what peek has returned are read.
func (s *section) passed(n int) {
	s.left -= int64(n)
	if !s.literal {
		s.inline = s.inline[n:]
		return
	}
	_ = s.row.in.link.responses.discard(int64(n)) // they are in the buffer
}
