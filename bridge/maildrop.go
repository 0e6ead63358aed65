package bridge

import (
	"cmp"
	"slices"
)

// A message is one message of a session, in 16 octets: a mailbox may have 200,000
// messages.
type message struct {
	size  int64 // octets, for LIST
	uid   uint32
	marks marks
}

type marks uint16

const (
	exact         marks = 1 << iota // size was counted
	fingerprinted                   // the record has the message's short fingerprint
	headerHashed                    // the record has the hash of the message's header
	endSkipped                      // the last octets are not fetched: the fetch has cost the connection
	unsized                         // the server refuses the size: the message cannot be fetched now
	removed                         // QUIT of this session or of an earlier one has removed the message: see brake
	deleted                         // DELE has marked the message
	retrieved                       // RETR has sent the message
	downloaded                      // RETR, or TOP with all lines, has sent the message
	gone                            // a search has confirmed that the server no longer has the message
)

// empty reports whether the message may be empty on the server. The counted size of an
// empty message is 2, for the CRLF that is added.
func (m *message) empty() bool { return m.size == 0 || m.size == 2 && m.marks&exact != 0 }

// A maildrop has the messages of one session. The number of a message is its place, from
// 1, and does not change.
type maildrop struct {
	messages    []message
	uidValidity uint32
	uidNext     uint32 // if proven, there are no other messages with a UID below uidNext
	proven      bool
	hash        uint64    // of the UIDLs of all messages at login, hidden ones included
	goneHash    uint64    // of the UIDLs of the messages with the mark gone
	changed     bool      // the snapshot differs from the cached one
	hidden      []message // messages that POP3 does not show
	count       int       // number of messages not marked as deleted
	octets      int64     // sum of the sizes of these messages
}

// newMaildrop returns the maildrop of messages, which are in the order of their numbers.
func newMaildrop(messages []message, uidValidity uint32) *maildrop {
	d := &maildrop{messages: messages, uidValidity: uidValidity, count: len(messages)}
	for i := range messages {
		d.octets += messages[i].size
	}
	return d
}

// hide removes messages from the maildrop, for good. It must be called before all other
// methods.
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

// snapshot returns the snapshot for the cache: all messages but the gone ones.
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

// findAny returns the message with a UID, hidden or not, or nil.
func (d *maildrop) findAny(uid uint32) *message {
	if m := d.find(uid); m != nil {
		return m
	}
	return find(d.hidden, uid)
}

// anyGone reports whether a message has the mark gone.
func (d *maildrop) anyGone() bool {
	return slices.ContainsFunc(d.messages, func(m message) bool { return m.marks&gone != 0 })
}

// lacks reports whether INBOX certainly had no message with a UID.
func (d *maildrop) lacks(uid uint32) bool {
	return d.proven && uid < d.uidNext && find(d.messages, uid) == nil && find(d.hidden, uid) == nil
}

// delete marks a message as deleted. The message must not be marked.
func (d *maildrop) delete(m *message) {
	m.marks |= deleted
	d.count--
	d.octets -= m.size
}

// kept returns the number of messages that were downloaded and are not marked as deleted.
func (d *maildrop) kept() (n int) {
	for i := range d.messages {
		if d.messages[i].marks&(downloaded|deleted) == downloaded {
			n++
		}
	}
	return n
}

// reset unmarks all messages that are marked as deleted.
func (d *maildrop) reset() {
	for i := range d.messages {
		if m := &d.messages[i]; m.marks&deleted != 0 {
			m.marks &^= deleted
			d.count++
			d.octets += m.size
		}
	}
}

// setRemoved marks the messages that QUIT removes. The server may still have them, maybe
// for a moment only.
func (d *maildrop) setRemoved() {
	for i := range d.messages {
		if m := &d.messages[i]; m.marks&(deleted|gone) == deleted && m.marks&removed == 0 {
			m.marks |= removed
			d.changed = true
		}
	}
}

// setNotRemoved unmarks the messages whose removal the server has refused.
func (d *maildrop) setNotRemoved() {
	for i := range d.messages {
		if m := &d.messages[i]; m.marks&(deleted|removed) == deleted|removed {
			m.marks &^= removed
			d.changed = true
		}
	}
}

// setExactSize corrects the size of a message that is not marked as deleted. RFC822.SIZE
// may be an estimate, and does not count the CRLF that is added to a body without one at
// its end.
func (d *maildrop) setExactSize(m *message, octets int64) {
	if m.size == octets && m.marks&exact != 0 {
		return
	}
	d.octets += octets - m.size
	m.size = octets
	m.marks |= exact
	d.changed = true
}

// uids returns the UIDs of the messages with mark but not with without, in their order.
func (d *maildrop) uids(mark, without marks) (uids []uint32) {
	for i := range d.messages {
		if m := &d.messages[i]; m.marks&mark != 0 && m.marks&without == 0 {
			uids = append(uids, m.uid)
		}
	}
	return uids
}
