package memserver

import (
	"bytes"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/emersion/go-imap/v2"
	"github.com/emersion/go-imap/v2/imapserver"
)

// A message is a mail in a mailbox. Its flags are guarded by the mailbox's lock
// and are replaced, never changed, so that a copy of the message stays as it is.
type message struct {
	uid   imap.UID
	raw   []byte
	date  time.Time
	flags []imap.Flag
}

func (m *message) has(flag imap.Flag) bool {
	return slices.ContainsFunc(m.flags, func(f imap.Flag) bool { return strings.EqualFold(string(f), string(flag)) })
}

func (m *message) store(op imap.StoreFlagsOp, flags []imap.Flag) {
	change := message{flags: flags}
	switch op {
	case imap.StoreFlagsSet:
		m.flags = slices.Clone(flags)
	case imap.StoreFlagsAdd:
		kept := slices.Clone(m.flags)
		for _, flag := range flags {
			if !m.has(flag) {
				kept = append(kept, flag)
			}
		}
		m.flags = kept
	case imap.StoreFlagsDel:
		m.flags = slices.DeleteFunc(slices.Clone(m.flags), change.has)
	}
}

// section returns a BODY[...] section. The whole message, its header and its text
// are slices of it; the library's extraction would write the header again, and
// return nothing of a message whose header it cannot parse.
func (m *message) section(item *imap.FetchItemBodySection) []byte {
	header, text := m.split()
	b := m.raw
	switch {
	case len(item.Part) > 0 || len(item.HeaderFields) > 0 || len(item.HeaderFieldsNot) > 0:
		return imapserver.ExtractBodySection(bytes.NewReader(m.raw), item)
	case item.Specifier == imap.PartSpecifierHeader:
		b = header
	case item.Specifier == imap.PartSpecifierText:
		b = text
	}
	if item.Partial != nil {
		b = b[min(item.Partial.Offset, int64(len(b))):]
		b = b[:min(item.Partial.Size, int64(len(b)))]
	}
	return b
}

// split cuts the message after the first blank line. Without one all of it is
// header.
func (m *message) split() (header, text []byte) {
	rest := m.raw
	for len(rest) > 0 {
		line := rest
		if i := bytes.IndexByte(rest, '\n'); i >= 0 {
			line = rest[:i+1]
		}
		rest = rest[len(line):]
		if s := string(line); s == "\r\n" || s == "\n" {
			break
		}
	}
	return m.raw[:len(m.raw)-len(rest)], rest
}

// A mailbox holds messages in the order of their UIDs.
type mailbox struct {
	uidValidity uint32
	tracker     *imapserver.MailboxTracker // changes that each session has not yet been sent

	mu       sync.Mutex
	messages []*message
	uidNext  imap.UID
}

func newMailbox(uidValidity uint32) *mailbox {
	return &mailbox{uidValidity: uidValidity, tracker: imapserver.NewMailboxTracker(0), uidNext: 1}
}

func (b *mailbox) append(raw []byte, date time.Time, flags []imap.Flag) imap.UID {
	b.mu.Lock()
	defer b.mu.Unlock()
	m := &message{uid: b.uidNext, raw: raw, date: date, flags: flags}
	b.uidNext++
	b.messages = append(b.messages, m)
	b.tracker.QueueNumMessages(uint32(len(b.messages)))
	return m.uid
}

// remove expunges the messages for which doomed returns true.
func (b *mailbox) remove(doomed func(*message) bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	// From the end, so that the numbers still to be told stay right.
	for i, m := range slices.Backward(b.messages) {
		if doomed(m) {
			b.tracker.QueueExpunge(uint32(i) + 1)
		}
	}
	b.messages = slices.DeleteFunc(b.messages, doomed)
}

func (b *mailbox) status(name string) *imap.StatusData {
	b.mu.Lock()
	defer b.mu.Unlock()
	var recent, unseen, deleted uint32
	var size int64
	for _, m := range b.messages {
		size += int64(len(m.raw))
		if !m.has(imap.FlagSeen) {
			unseen++
		}
		if m.has(imap.FlagDeleted) {
			deleted++
		}
	}
	exists := uint32(len(b.messages))
	return &imap.StatusData{
		Mailbox: name, UIDValidity: b.uidValidity, UIDNext: b.uidNext,
		NumMessages: &exists, NumRecent: &recent, NumUnseen: &unseen, NumDeleted: &deleted, Size: &size,
	}
}

// flags returns the system flags and the keywords in use.
func (b *mailbox) flags() []imap.Flag {
	all := message{flags: []imap.Flag{imap.FlagAnswered, imap.FlagFlagged, imap.FlagDeleted, imap.FlagSeen, imap.FlagDraft}}
	for _, m := range b.messages {
		all.store(imap.StoreFlagsAdd, m.flags)
	}
	return all.flags
}

// selectData begins a session's view of the mailbox.
func (b *mailbox) selectData() (*imap.SelectData, *imapserver.SessionTracker) {
	b.mu.Lock()
	defer b.mu.Unlock()
	flags := b.flags()
	return &imap.SelectData{
		Flags:             flags,
		PermanentFlags:    append(slices.Clone(flags), imap.FlagWildcard),
		NumMessages:       uint32(len(b.messages)),
		FirstUnseenSeqNum: uint32(slices.IndexFunc(b.messages, func(m *message) bool { return !m.has(imap.FlagSeen) }) + 1),
		UIDNext:           b.uidNext,
		UIDValidity:       b.uidValidity,
	}, b.tracker.NewSession()
}

// each calls f with the messages in set that the view knows, and with their
// numbers in the mailbox and in the view. The lock must be held.
func (b *mailbox) each(view *imapserver.SessionTracker, set imap.NumSet, f func(m *message, num, seen uint32)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	contains := b.resolve(set)
	for i, m := range b.messages {
		num := uint32(i) + 1
		if seen := view.EncodeSeqNum(num); seen > 0 && contains(m.uid, seen) {
			f(m, num, seen)
		}
	}
}

// resolve replaces * by the last message.
func (b *mailbox) resolve(set imap.NumSet) func(uid imap.UID, seq uint32) bool {
	switch set := set.(type) {
	case imap.UIDSet:
		var last imap.UID
		if n := len(b.messages); n > 0 {
			last = b.messages[n-1].uid
		}
		var static imap.UIDSet
		for _, r := range set {
			static.AddRange(resolveRange(r.Start, r.Stop, last))
		}
		return func(uid imap.UID, _ uint32) bool { return static.Contains(uid) }
	case imap.SeqSet:
		var static imap.SeqSet
		for _, r := range set {
			static.AddRange(resolveRange(r.Start, r.Stop, uint32(len(b.messages))))
		}
		return func(_ imap.UID, seq uint32) bool { return static.Contains(seq) }
	}
	return func(imap.UID, uint32) bool { return false }
}

// resolveRange returns a range in ascending order; 0 means *.
func resolveRange[N imap.UID | uint32](start, stop, last N) (N, N) {
	if start == 0 {
		start = last
	}
	if stop == 0 {
		stop = last
	}
	return max(min(start, stop), 1), max(start, stop, 1)
}
