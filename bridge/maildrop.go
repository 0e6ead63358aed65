package bridge

import (
	"cmp"
	"slices"
)

// A message is what a session remembers of one message: 16 octets, for there
// may be 200,000 of them.
type message struct {
	size  int64 // octets, as LIST shows them
	uid   uint32
	marks marks
}

type marks uint16

const (
	exact         marks = 1 << iota // size was counted
	fingerprinted                   // its short fingerprint is remembered
	headerHashed                    // the fingerprint of its header is remembered
	endSkipped                      // its last octets are not fetched: that has cost the connection
	unsized                         // the server refuses its size: it cannot be had now
	removed                         // QUIT has removed it, if the server still has it; of the session before: see brake
	deleted                         // DELE
	retrieved                       // RETR has sent it
	gone                            // the server has confirmed that it has the message no more
)

// empty reports whether the message may have no octet on the server. Its size
// is that of the CRLF once it was counted.
func (m *message) empty() bool { return m.size == 0 || m.size == 2 && m.marks&exact != 0 }

// A maildrop is the messages of one session. The number of a message is its
// place, from 1, and does not change.
type maildrop struct {
	messages    []message
	uidValidity uint32
	uidNext     uint32 // there are no others with a UID below, if proven
	proven      bool
	hash        uint64    // hash of the UIDLs of all, without those that were deleted
	goneHash    uint64    // hash of the UIDLs of those that are gone
	changed     bool      // against what is remembered
	hidden      []message // messages that are not shown
	count       int       // not marked as deleted
	octets      int64     // of those
}

// newMaildrop takes the messages in the order of their numbers.
func newMaildrop(messages []message, uidValidity uint32) *maildrop {
	d := &maildrop{messages: messages, uidValidity: uidValidity, count: len(messages)}
	for i := range messages {
		d.octets += messages[i].size
	}
	return d
}

// hide leaves out messages, for good. It must come before all other methods.
func (d *maildrop) hide(hidden func(uid uint32) bool) {
	var shown []message
	for _, m := range d.messages {
		if hidden(m.uid) {
			d.hidden = append(d.hidden, m)
		} else {
			shown = append(shown, m)
		}
	}
	d.messages, d.count, d.octets = shown, len(shown), 0
	for i := range shown {
		d.octets += shown[i].size
	}
}

// snapshot returns what is to be remembered.
func (d *maildrop) snapshot() snapshot {
	s := snapshot{uidValidity: d.uidValidity, uidNext: d.uidNext, proven: d.proven, hash: d.hash - d.goneHash, messages: d.messages}
	if len(d.hidden) > 0 || d.goneHash != 0 {
		s.messages = slices.DeleteFunc(slices.Concat(d.messages, d.hidden), func(m message) bool { return m.marks&gone != 0 })
		slices.SortFunc(s.messages, byUID)
	}
	return s
}

// find returns the message with a UID, or nil.
func (d *maildrop) find(uid uint32) *message { return find(d.messages, uid) }

func find(messages []message, uid uint32) *message {
	i, ok := slices.BinarySearchFunc(messages, uid, func(m message, uid uint32) int { return cmp.Compare(m.uid, uid) })
	if !ok {
		return nil
	}
	return &messages[i]
}

// findAny is find also among those that are hidden.
func (d *maildrop) findAny(uid uint32) *message {
	if m := d.find(uid); m != nil {
		return m
	}
	return find(d.hidden, uid)
}

// anyGone reports whether messages are gone since the session began.
func (d *maildrop) anyGone() bool {
	return slices.ContainsFunc(d.messages, func(m message) bool { return m.marks&gone != 0 })
}

// lacks reports whether there was certainly no message with that UID.
func (d *maildrop) lacks(uid uint32) bool {
	return d.proven && uid < d.uidNext && find(d.messages, uid) == nil && find(d.hidden, uid) == nil
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

// setRemoved marks what QUIT removes: the server may have it all the same, maybe for
// a moment only.
func (d *maildrop) setRemoved() {
	for i := range d.messages {
		if m := &d.messages[i]; m.marks&(deleted|gone) == deleted && m.marks&removed == 0 {
			m.marks |= removed
			d.changed = true
		}
	}
}

// setNotRemoved unmarks what QUIT was refused to remove.
func (d *maildrop) setNotRemoved() {
	for i := range d.messages {
		if m := &d.messages[i]; m.marks&(deleted|removed) == deleted|removed {
			m.marks &^= removed
			d.changed = true
		}
	}
}

// setExactSize corrects the size of a message that is not marked: RFC822.SIZE may
// be an estimate, and does not count the CRLF that ends what has none.
func (d *maildrop) setExactSize(m *message, octets int64) {
	if m.size == octets && m.marks&exact != 0 {
		return
	}
	d.octets += octets - m.size
	m.size = octets
	m.marks |= exact
	d.changed = true
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
