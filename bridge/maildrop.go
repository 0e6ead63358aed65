package bridge

// A message is what a session remembers of one message: 16 octets, for there
// may be 200,000 of them.
type message struct {
	size  int64 // octets, as LIST shows them
	uid   uint32
	marks marks
}

type marks uint8

const (
	deleted   marks = 1 << iota // DELE
	retrieved                   // RETR has sent it
	exact                       // size was counted
)

// empty reports whether the message may have no octet on the server. Its size
// is that of the CRLF once it was counted.
func (m *message) empty() bool { return m.size == 0 || m.size == 2 && m.marks&exact != 0 }

// A maildrop is the messages of one session. The number of a message is its
// place, from 1, and does not change.
type maildrop struct {
	messages    []message
	uidValidity uint32
	count       int   // not marked as deleted
	octets      int64 // of those
}

// newMaildrop takes the messages in the order of their numbers.
func newMaildrop(messages []message, uidValidity uint32) *maildrop {
	d := &maildrop{messages: messages, uidValidity: uidValidity, count: len(messages)}
	for i := range messages {
		d.octets += messages[i].size
	}
	return d
}

// delete marks a message that is not marked.
func (d *maildrop) delete(m *message) {
	m.marks |= deleted
	d.count--
	d.octets -= m.size
}

// reset unmarks all that are marked as deleted.
func (d *maildrop) reset() {
	for i := range d.messages {
		if m := &d.messages[i]; m.marks&deleted != 0 {
			m.marks &^= deleted
			d.count++
			d.octets += m.size
		}
	}
}

// measured corrects the size of a message that is not marked: RFC822.SIZE may
// be an estimate, and does not count the CRLF that ends what has none.
func (d *maildrop) measured(m *message, octets int64) {
	d.octets += octets - m.size
	m.size = octets
	m.marks |= exact
}

// uids returns those with the mark but without the other one, ascending.
func (d *maildrop) uids(mark, without marks) (uids []uint32) {
	for i := range d.messages {
		if m := &d.messages[i]; m.marks&mark != 0 && m.marks&without == 0 {
			uids = append(uids, m.uid)
		}
	}
	return uids
}
