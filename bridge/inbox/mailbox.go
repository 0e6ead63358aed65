package inbox

import (
	"bytes"
	"fmt"
	"io"

	"postern/proxy/wire"
)

// maxName bounds the name of a mailbox.
const maxName = 1024

// A mailboxData is what the server has said of INBOX since SELECT was sent last. It
// is written while responses are read, and read by who waits for a command.
type mailboxData struct {
	readOnly       bool   // READ-ONLY was received
	permanentFlags bool   // PERMANENTFLAGS was received
	keyword        []byte // Options.Keyword in capitals
	keywordAllowed bool   // PERMANENTFLAGS says that keyword can be set
	uidValidity    uint32 // the last that was received; 0: none
	uidNext        uint32 // the last that was received; 0: none
	hasUIDValidity bool   // UIDVALIDITY was received, maybe 0
	exists         int    // the last EXISTS
	hasExists      bool   // EXISTS was received
	expunged       int    // messages removed after the last EXISTS
	removed        int    // messages removed since SELECT
	malformed      error  // why a number could not be read

	status *statusData // takes STATUS; nil: no STATUS runs
	list   *listData   // takes LIST; nil: no LIST runs
}

// A statusData is the answer to STATUS, RFC 9051 section 7.3.3.
type statusData struct {
	received             bool
	messages             int // -1: not received
	uidNext, uidValidity uint32
}

// A listData is the part of the answer to LIST that is of use.
type listData struct {
	trash []byte // name of the first mailbox with \Trash, as the server writes it, without quotes
	found bool
}

// reset forgets what belongs to the SELECT before and may have changed.
func (m *mailboxData) reset() {
	*m = mailboxData{
		status: m.status, list: m.list, permanentFlags: m.permanentFlags, keyword: m.keyword, keywordAllowed: m.keywordAllowed, readOnly: m.readOnly,
	}
}

// count returns how many messages INBOX has now: those of the last EXISTS less
// those that were removed after it. It reports false if no EXISTS has come
// since SELECT was sent.
func (m *mailboxData) count() (n int, ok bool) { return max(m.exists-m.expunged, 0), m.hasExists }

// complete returns an error if the answer to SELECT lacks what is needed.
func (m *mailboxData) complete() error {
	switch {
	case m.malformed != nil:
		return m.malformed
	case !m.hasExists:
		return fmt.Errorf("%w: no EXISTS", ErrAnswer)
	case m.uidValidity == 0 && m.exists == 0 && m.hasUIDValidity:
		return nil // there is no message that UIDVALIDITY could be about
	case m.uidValidity == 0:
		return fmt.Errorf("%w: no UIDVALIDITY", ErrAnswer)
	}
	return nil
}

func (m *mailboxData) takeExists(number []byte) {
	n, err := parseUint32(number)
	if err != nil {
		m.malformed = fmt.Errorf("EXISTS: %w", err)
		return
	}
	m.exists, m.hasExists, m.expunged = int(n), true, 0
}

func (m *mailboxData) remove(n int) {
	m.expunged += n
	m.removed += n
}

// takeCode keeps the data of a response code.
func (m *mailboxData) takeCode(code []byte) {
	name, value := nextWord(code)
	switch wire.Keyword(name) {
	case "UIDVALIDITY":
		if m.number("UIDVALIDITY", value, &m.uidValidity) {
			m.hasUIDValidity = true
		}
	case "UIDNEXT":
		m.number("UIDNEXT", value, &m.uidNext)
	case "PERMANENTFLAGS":
		value = bytes.ToUpper(value)
		m.permanentFlags = true
		m.keywordAllowed = bytes.Contains(value, []byte(`\*`)) || len(m.keyword) > 0 && bytes.Contains(value, m.keyword)
	case "READ-ONLY":
		m.readOnly = true
	}
}

// number reads the value of a field, a number of 32 bits.
func (m *mailboxData) number(field string, value []byte, to *uint32) bool {
	n, err := parseUint32(bytes.Trim(value, " "))
	if err != nil {
		m.malformed = fmt.Errorf("%s: %w", field, err)
		return false
	}
	*to = n
	return true
}

// takeStatus reads "INBOX (MESSAGES 3 UIDNEXT 4)". The name may be anything: STATUS
// is sent for no other mailbox.
func (m *mailboxData) takeStatus(text []byte) {
	open := bytes.LastIndexByte(text, '(')
	if m.status == nil || open < 0 {
		return
	}
	list, _, closed := bytes.Cut(text[open+1:], []byte(")"))
	if !closed {
		return
	}
	s := statusData{received: true, messages: -1}
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

// takeList reads a LIST response: the attributes, the delimiter and the name of a
// mailbox. A name is octets: some servers have names that are no modified UTF-7
// (RFC 3501 section 5.1.3), and get them back as they sent them.
func (r *responses) takeList(line, text []byte) error {
	literal, announced := wire.TrailingLiteral(line)
	l := r.mailbox.list
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
		l.setTrash(octets)
		literal.Size = 0
	case named && bytes.HasPrefix(name, []byte(`"`)):
		if len(name) > 1 && bytes.HasSuffix(name, []byte(`"`)) {
			l.setTrash(unquote(name))
		}
	case named:
		l.setTrash(name)
	}
	if announced {
		return r.skip(literal.Size)
	}
	return nil
}

// setTrash keeps a name that can be sent in a quoted string.
func (l *listData) setTrash(name []byte) {
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

// quote returns s as a quoted string, RFC 9051 section 4.3.
func quote(s []byte) []byte {
	b := []byte{'"'}
	for _, c := range s {
		if c == '"' || c == '\\' {
			b = append(b, '\\')
		}
		b = append(b, c)
	}
	return append(b, '"')
}
