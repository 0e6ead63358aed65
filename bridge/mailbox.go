package bridge

import (
	"bytes"
	"fmt"
	"io"
	"strings"

	"postern/proxy/wire"
)

// maxName bounds the name of a mailbox.
const maxName = 1024

// A mailbox is what the server said of INBOX, since SELECT was sent last. It is
// written while responses are read, and for whoever waits for a command.
type mailbox struct {
	readOnly    bool   // SELECT was answered so
	permanent   bool   // PERMANENTFLAGS was told
	keywords    bool   // $POP3Deleted can be set
	uidValidity uint32 // the last that was told; 0: none
	uidNext     uint32 // the last that was told; 0: none
	validity    bool   // UIDVALIDITY was told
	exists      int    // the last EXISTS
	told        bool   // there was one
	expunged    int    // messages removed after that
	removed     int    // messages removed since SELECT
	odd         error  // a number that cannot be read, and whose it is

	status *status // takes STATUS; nil: nobody asked
	lists  *lists  // takes LIST; nil: nobody asked
}

// A status is the answer to STATUS, RFC 9051 section 7.3.4.
type status struct {
	told                 bool
	messages             int // -1: not told
	uidNext, uidValidity uint32
}

// lists is what matters of the answer to LIST.
type lists struct {
	trash []byte // name of the first mailbox with \Trash, as the server writes it, without quotes
	found bool
}

// reset forgets what belongs to the SELECT before and may have changed.
func (m *mailbox) reset() {
	*m = mailbox{status: m.status, lists: m.lists, permanent: m.permanent, keywords: m.keywords, readOnly: m.readOnly}
}

// count returns how many messages INBOX has now: those of the last EXISTS less
// those that were removed after it. It reports false if no EXISTS has come
// since SELECT was sent.
func (m *mailbox) count() (n int, ok bool) { return max(m.exists-m.expunged, 0), m.told }

// removals returns how many messages the server has said to be removed, by
// EXPUNGE or VANISHED, since SELECT was sent.
func (m *mailbox) removals() int { return m.removed }

// complete returns an error if the answer to SELECT lacks what is needed.
func (m *mailbox) complete() error {
	switch {
	case m.odd != nil:
		return m.odd
	case !m.told:
		return fmt.Errorf("%w: no EXISTS", errAnswer)
	case m.uidValidity == 0 && m.exists == 0 && m.validity:
		return nil // there is nothing of which a UID could be believed
	case m.uidValidity == 0:
		return fmt.Errorf("%w: no UIDVALIDITY", errAnswer)
	}
	return nil
}

func (m *mailbox) exist(number []byte) {
	n, err := parseUint32(number)
	if err != nil {
		m.odd = fmt.Errorf("EXISTS: %w", err)
		return
	}
	m.exists, m.told, m.expunged = int(n), true, 0
}

func (m *mailbox) remove(n int) {
	m.expunged += n
	m.removed += n
}

// note keeps what a response code says.
func (m *mailbox) note(code []byte) {
	name, value := nextWord(code)
	switch wire.Keyword(name) {
	case "UIDVALIDITY":
		if m.number("UIDVALIDITY", value, &m.uidValidity) {
			m.validity = true
		}
	case "UIDNEXT":
		m.number("UIDNEXT", value, &m.uidNext)
	case "PERMANENTFLAGS":
		value = bytes.ToUpper(value)
		m.permanent = true
		m.keywords = bytes.Contains(value, []byte(`\*`)) || bytes.Contains(value, []byte(strings.ToUpper(string(hidden))))
	case "READ-ONLY":
		m.readOnly = true
	}
}

// number reads the value of a field, of 32 bits.
func (m *mailbox) number(field string, value []byte, to *uint32) bool {
	n, err := parseUint32(bytes.Trim(value, " "))
	if err != nil {
		m.odd = fmt.Errorf("%s: %w", field, err)
		return false
	}
	*to = n
	return true
}

// statusRow takes "INBOX (MESSAGES 3 UIDNEXT 4)". The name may be anything: no
// other mailbox is asked for.
func (m *mailbox) statusRow(text []byte) {
	open := bytes.LastIndexByte(text, '(')
	if m.status == nil || open < 0 {
		return
	}
	list, _, closed := bytes.Cut(text[open+1:], []byte(")"))
	if !closed {
		return
	}
	s := status{told: true, messages: -1}
	for name, rest := nextWord(list); len(name) > 0; name, rest = nextWord(rest) {
		var value []byte
		value, rest = nextWord(rest)
		switch wire.Keyword(name) {
		case "MESSAGES":
			var n uint32
			if m.number("MESSAGES", value, &n) {
				s.messages = int(n)
			}
		case "UIDNEXT":
			m.number("UIDNEXT", value, &s.uidNext)
		case "UIDVALIDITY":
			m.number("UIDVALIDITY", value, &s.uidValidity)
		}
	}
	*m.status = s
}

// list takes a LIST response: the attributes, the delimiter and the name of a
// mailbox. A name is octets here: some servers have names that are no modified
// UTF-7 (RFC 3501 section 5.1.3), which is for them to understand.
func (r *responses) list(line, text []byte) error {
	literal, announced := wire.TrailingLiteral(line)
	l := r.mailbox.lists
	name, named := []byte(nil), false
	if l != nil && !l.found {
		name, named = trashName(text)
	}
	switch {
	case named && announced && bytes.HasPrefix(name, []byte("{")):
		if literal.Size > maxName {
			break
		}
		octets := make([]byte, literal.Size)
		if _, err := io.ReadFull(r.reader(), octets); err != nil {
			return err
		}
		l.takes(octets)
		literal.Size = 0
	case named && bytes.HasPrefix(name, []byte(`"`)):
		if len(name) > 1 && bytes.HasSuffix(name, []byte(`"`)) {
			l.takes(unquote(name))
		}
	case named:
		l.takes(name)
	}
	if announced {
		return r.skip(literal.Size)
	}
	return nil
}

// takes keeps a name that can be sent in a quoted string.
func (l *lists) takes(name []byte) {
	if len(name) > 0 && len(name) <= maxName && !bytes.ContainsAny(name, "\r\n\x00") {
		l.trash, l.found = bytes.Clone(name), true
	}
}

// trashName returns the name in a LIST response if it is that of the mailbox for
// deleted mail, RFC 6154, and can be opened.
func trashName(text []byte) (name []byte, ok bool) {
	attributes, text, ok := cutValue(bytes.TrimLeft(text, " "))
	if !ok {
		return nil, false
	}
	trash := false
	for attribute := range bytes.FieldsSeq(bytes.Trim(attributes, "()")) {
		trash = trash || bytes.EqualFold(attribute, []byte(`\Trash`))
		if bytes.EqualFold(attribute, []byte(`\Noselect`)) || bytes.EqualFold(attribute, []byte(`\NonExistent`)) {
			return nil, false
		}
	}
	text, ok = cutDelimiter(bytes.TrimLeft(text, " "))
	if !ok || !trash {
		return nil, false
	}
	text = bytes.TrimLeft(text, " ")
	if name, _, ok = cutValue(text); ok { // something follows
		return name, true
	}
	return bytes.TrimRight(text, " "), len(text) > 0
}

// cutDelimiter cuts NIL or a quoted octet off s.
func cutDelimiter(s []byte) (rest []byte, ok bool) {
	if !bytes.HasPrefix(s, []byte(`"`)) {
		_, rest, ok = bytes.Cut(s, []byte(" "))
		return rest, ok
	}
	for i := 1; i < len(s); i++ {
		switch s[i] {
		case '\\':
			i++
		case '"':
			return s[i+1:], true
		}
	}
	return nil, false
}

// quoted returns s as a quoted string, RFC 9051 section 4.3.
func quoted(s []byte) []byte {
	b := []byte{'"'}
	for _, c := range s {
		if c == '"' || c == '\\' {
			b = append(b, '\\')
		}
		b = append(b, c)
	}
	return append(b, '"')
}
