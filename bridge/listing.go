package bridge

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"sync"

	"github.com/emersion/go-imap/v2"

	"postern/bridge/inbox"
)

const (
	// maxSize is the largest size of a message that a snapshot can hold.
	maxSize = 1 << 57
	// trusted bounds the messages for which memory is allocated by EXISTS alone.
	trusted = 1 << 20
)

// The values of proxy.MaildropOpened.Source: the sources of a listing.
const (
	fromCache = "cache" // the cached snapshot and SELECT
	fromDelta = "delta" // the cached snapshot and the changes since
	fromFull  = "full"  // the server alone
)

// A snapshot has the known messages of INBOX at one moment: those with a UID below
// uidNext, ascending.
type snapshot struct {
	uidValidity, uidNext uint32
	proven               bool   // there were no other messages below uidNext
	hash                 uint64 // of the UIDLs of messages; 0: not known
	record               stamp  // of the record that has these UIDLs
	messages             []message
}

// A listing brings a snapshot up to date. The goroutine that reads from the server
// calls Row.
//
// UIDs only grow: while UIDVALIDITY is the same, no message appears below the UIDNEXT
// of a proven snapshot. So the snapshot is unchanged if the number of messages is
// unchanged. For the same reason all known messages are there if the last known
// message still has its number. So update fetches the rows from the last known message
// on. If the numbers of these rows follow each other up to EXISTS, no message is
// missing.
type listing struct {
	inbox.View
	known int // messages of the cached snapshot

	mu          sync.Mutex
	from        uint32 // UIDs below are known; the answer to "n:*" has the last message, whatever its UID
	messages    []message
	proven      bool
	disordered  bool // rows did not come in the order of UIDs
	expunged    bool // another client has removed messages meanwhile
	reservation *reservation
	overflow    error     // there are more messages than may be listed
	later       []message // rows with a UID from UIDNEXT on
	unsized     []message // known messages whose size the server has refused so far
	untrue      bool      // UIDNEXT was not above all UIDs
	malformed   int       // rows with a UID or a size that cannot be read
	anchor      uint32    // UID of the last known message; 0: none
	anchored    bool      // the row of anchor has come, and its number proves that all known messages are there
	gaps        bool      // the numbers of rows do not follow each other
}

// newListing returns the listing of v, which starts with the cached snapshot known. A
// lower UIDNEXT is that of a restored backup or of a replica that lags: the UIDs may
// belong to other messages, as after a new UIDVALIDITY. Then known is not used.
func newListing(v inbox.View, known snapshot, res *reservation) *listing {
	l := &listing{View: v, reservation: res}
	if !known.continuesIn(v) {
		known = snapshot{}
	}
	l.from, l.messages, l.known = known.uidNext, known.messages, len(known.messages)
	l.proven = known.proven || known.uidNext == 0
	if v.Exists == 0 {
		l.messages, l.proven = nil, true
	}
	if n := len(l.messages); n > 0 {
		l.anchor = l.messages[n-1].uid
	}
	l.anchored = l.anchor == 0
	l.separateUnsized()
	if more := min(l.missing(), trusted); more > 0 {
		if l.overflow = res.grow(len(l.messages) + more); l.overflow == nil {
			l.messages = slices.Grow(l.messages, more)
		}
	}
	return l
}

// continuesIn reports whether the UIDs of s belong to the same messages in v.
func (s snapshot) continuesIn(v inbox.View) bool {
	return v.UIDValidity == s.uidValidity && (v.UIDNext == 0 || v.UIDNext >= s.uidNext)
}

// missing returns EXISTS less the number of known messages; negative if there are
// fewer messages than known ones.
func (l *listing) missing() int { return l.Exists - len(l.messages) }

// separateUnsized moves the known messages without a size to l.unsized, so that
// sizeAgain requests their sizes again.
func (l *listing) separateUnsized() {
	lacks := func(m message) bool { return m.marks&unsized != 0 }
	for _, m := range l.messages {
		if lacks(m) {
			l.unsized = append(l.unsized, m)
		}
	}
	if len(l.unsized) > 0 {
		l.messages = slices.DeleteFunc(slices.Clone(l.messages), lacks)
	}
}

// unchanged reports whether the snapshot is up to date without a further command.
func (l *listing) unchanged() bool {
	return l.proven && len(l.unsized) == 0 && l.missing() == 0 && (l.Exists == 0 || l.UIDNext != 0 && l.UIDNext == l.from)
}

// addsUp reports whether the known messages and the rows are all messages of EXISTS.
// With EXISTS of SELECT the rows of later messages count, too: without them a removal
// in between would not be noticed.
func (l *listing) addsUp() bool {
	if l.ExistsAtSelect < 0 {
		return l.missing() == 0
	}
	return len(l.messages)+len(l.later) == l.ExistsAtSelect
}

// correct discards a wrong UIDNEXT, and reports whether there was one. UIDNEXT is wrong
// if the number of messages, now, is the same as at SELECT, so that no message has come
// since, but there are rows from UIDNEXT on. The rows then become ordinary messages of
// the listing.
func (l *listing) correct(now int) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	atSelect := l.Exists
	if l.ExistsAtSelect >= 0 {
		atSelect = l.ExistsAtSelect
	}
	if len(l.later) == 0 || now != atSelect || l.expunged || l.missing() <= 0 || l.missing() > len(l.later) {
		return false
	}
	l.messages = append(l.messages, l.later...)
	l.later, l.UIDNext, l.Exists, l.ExistsAtSelect = nil, 0, atSelect, -1
	l.disordered, l.untrue = true, true
	return true
}

// Row implements inbox.Rows.
func (l *listing) Row(number int64, uid uint32, size int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch known := int64(len(l.messages) + len(l.unsized)); {
	case uid == l.anchor && number == known:
		l.anchored = true
	case uid >= l.from && number != known+1 && (len(l.messages) == 0 || uid != l.messages[len(l.messages)-1].uid):
		l.gaps = true
	}
	switch {
	case uid < l.from, size > maxSize:
	case l.UIDNext != 0 && uid >= l.UIDNext:
		if len(l.later) < inbox.MaxMessages {
			l.later = append(l.later, message{uid: uid, size: size})
		}
	case l.overflow != nil:
	case len(l.messages) >= inbox.MaxMessages:
		l.overflow = inbox.ErrTooMany
	default:
		if l.overflow = l.reservation.grow(len(l.messages) + 1); l.overflow != nil {
			return
		}
		if n := len(l.messages); n > 0 && uid < l.messages[n-1].uid {
			l.disordered = true
		}
		l.messages = append(l.messages, message{uid: uid, size: size})
	}
}

// MalformedRow implements inbox.Rows.
func (l *listing) MalformedRow() { l.malformed++ }

// Expunged implements inbox.Rows.
func (l *listing) Expunged() { l.expunged = true }

func byUID(a, b message) int { return cmp.Compare(a.uid, b.uid) }

// sortRows sorts the messages by UID and removes duplicates.
func (l *listing) sortRows() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.disordered {
		slices.SortStableFunc(l.messages, byUID)
		l.disordered = false
	}
	l.messages = slices.CompactFunc(l.messages, func(a, b message) bool { return a.uid == b.uid })
}

// snapshot returns a snapshot of the listing; ok is false if there is none to keep. It
// may be called while rows come: then complete is false, and the last row is the bound
// of the snapshot, if the rows come in order.
func (l *listing) snapshot(complete bool) (s snapshot, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s = snapshot{uidValidity: l.UIDValidity, uidNext: l.UIDNext, proven: complete && l.proven, messages: l.messages}
	if !complete {
		s.messages = slices.Clone(l.messages)
	}
	if complete && s.uidNext != 0 {
		return s, true
	}
	if l.disordered || len(s.messages) == 0 {
		return s, false
	}
	s.uidNext = s.messages[len(s.messages)-1].uid + 1
	return s, s.uidNext != 0
}

// retain removes the messages that are not in present, and returns the UIDs of present
// that the listing lacks.
func (l *listing) retain(present imap.UIDSet) (missing imap.UIDSet) {
	l.mu.Lock()
	defer l.mu.Unlock()
	kept, rest := l.messages[:0], l.messages
	for _, r := range present {
		start, stop := uint32(r.Start), uint32(r.Stop)
		if l.UIDNext != 0 {
			stop = min(stop, l.UIDNext-1)
		}
		for len(rest) > 0 && rest[0].uid < start {
			rest = rest[1:]
		}
		next := start // the first UID of the range that is not accounted for
		for len(rest) > 0 && rest[0].uid <= stop {
			m := rest[0]
			if m.uid > next {
				missing = append(missing, imap.UIDRange{Start: imap.UID(next), Stop: imap.UID(m.uid - 1)})
			}
			kept, rest, next = append(kept, m), rest[1:], m.uid+1
		}
		if next != 0 && next <= stop { // 0: the largest possible UID was accounted for
			missing = append(missing, imap.UIDRange{Start: imap.UID(next), Stop: imap.UID(stop)})
		}
	}
	l.messages = kept
	return missing
}

// source returns the value of proxy.MaildropOpened.Source for a complete listing.
func (l *listing) source(asked bool) string {
	switch {
	case !asked:
		return fromCache
	case l.known > 0:
		return fromDelta
	}
	return fromFull
}

// update brings l up to date with as few commands as possible: none; a FETCH of the
// new messages; or, if their number does not add up to EXISTS, the UIDs of all messages.
// It returns whether it has sent a command. After an error the listing must not be
// shown.
func (l *listing) update(ctx context.Context, in *inbox.Inbox) (asked bool, err error) {
	if l.unchanged() || l.overflow != nil {
		return false, l.overflow
	}
	var refusal error
	sure := l.missing() == len(l.unsized)
	if l.UIDNext == 0 || l.UIDNext > l.from {
		from := l.from
		if l.proven {
			from = cmp.Or(l.anchor, from)
		}
		refusal = in.Sizes(ctx, imap.UIDSet{{Start: imap.UID(max(from, 1))}}, l)
		sure = l.anchored && (l.known == 0 || !l.gaps)
		if refusal != nil && !inbox.Refused(refusal) {
			return true, refusal
		}
		if l.sortRows(); l.overflow != nil {
			return true, l.overflow
		}
	}
	if err := l.sizeAgain(ctx, in); err != nil {
		return true, err
	}
	now := in.Mailbox().Messages
	if refusal == nil && l.correct(now) {
		l.sortRows()
	}
	if l.UIDNext == 0 && len(l.messages) != now { // the rows include messages that came since SELECT
		sure = false
	}
	if refusal == nil && sure && l.proven && !l.expunged && l.addsUp() {
		return true, nil
	}
	return true, l.rebuild(ctx, in)
}

// sizeAgain requests the sizes that the server has refused in earlier sessions.
// Messages whose size is refused again stay unsized.
func (l *listing) sizeAgain(ctx context.Context, in *inbox.Inbox) error {
	if len(l.unsized) == 0 {
		return nil
	}
	uids := make([]uint32, len(l.unsized))
	for i, m := range l.unsized {
		uids[i] = m.uid
	}
	from := l.from
	l.from = 0
	err := l.sizesOfEach(ctx, in, uids, len(uids))
	l.from = from
	if err != nil && !inbox.Refused(err) {
		return err
	}
	for _, m := range l.unsized {
		if find(l.messages, m.uid) == nil {
			l.insert(m)
		}
	}
	l.unsized = nil
	return nil
}

// insert adds a message in the order of UIDs.
func (l *listing) insert(m message) {
	l.mu.Lock()
	defer l.mu.Unlock()
	i, _ := slices.BinarySearchFunc(l.messages, m, byUID)
	l.messages = slices.Insert(l.messages, i, m)
}

// rebuildAttempts bounds how often rebuild lists the whole INBOX: messages may be
// removed meanwhile.
const rebuildAttempts = 3

// errUnaccounted reports that the number of messages that a server shows is not EXISTS.
var errUnaccounted = errors.New("server says of how many messages INBOX consists, and shows others")

// rebuild lists INBOX by a search for all messages. It accepts the result if the number
// of messages found is EXISTS, before or after the search.
func (l *listing) rebuild(ctx context.Context, in *inbox.Inbox) error {
	for i := range rebuildAttempts {
		if i > 0 { // some servers send no changes with UID SEARCH
			if err := in.Noop(ctx); err != nil {
				return err
			}
		}
		present, agrees, err := in.Present(ctx)
		if err != nil {
			return err
		}
		if !agrees {
			continue
		}
		removals := in.Mailbox().Removals
		l.checkUIDNext(present, in.Mailbox())
		l.from = 0
		missing, err := inbox.UIDs(l.retain(present))
		if err != nil {
			return err
		}
		refusal := l.sizesOfEach(ctx, in, missing, l.tolerated(present))
		if refusal != nil && !inbox.Refused(refusal) {
			return refusal
		}
		if l.overflow != nil {
			return l.overflow
		}
		if missing, err = inbox.UIDs(l.retain(present)); err != nil {
			return err
		}
		if len(missing) > 0 && removals != in.Mailbox().Removals {
			if len(missing) > l.tolerated(present) {
				continue
			}
			if missing, err = stillThere(ctx, in, missing); err != nil {
				return err
			}
		}
		return l.complete(missing, refusal)
	}
	return errUnaccounted
}

// stillThere returns the UIDs of uids that a search still finds.
func stillThere(ctx context.Context, in *inbox.Inbox, uids []uint32) (there []uint32, err error) {
	for _, set := range inbox.Sets(uids) {
		found, err := in.Search(ctx, set)
		if err != nil {
			return nil, err
		}
		for _, uid := range uids {
			if set.Contains(imap.UID(uid)) && found.Contains(imap.UID(uid)) {
				there = append(there, uid)
			}
		}
	}
	return there, nil
}

// checkUIDNext discards a UIDNEXT that is not above all UIDs, though no message has
// come since SELECT.
func (l *listing) checkUIDNext(present imap.UIDSet, m inbox.Mailbox) {
	atSelect := l.Exists
	if l.ExistsAtSelect >= 0 {
		atSelect = l.ExistsAtSelect
	}
	if l.UIDNext == 0 || len(present) == 0 || uint32(present[len(present)-1].Stop) < l.UIDNext || m.Messages != atSelect || m.Removals > 0 {
		return
	}
	l.UIDNext, l.Exists, l.ExistsAtSelect, l.untrue = 0, atSelect, -1, true
}

// tolerated returns the number of messages whose sizes may be refused: 1 %, or 3.
func (l *listing) tolerated(present imap.UIDSet) int {
	return max(3, int(min(inbox.Count(present), inbox.MaxMessages)/100))
}

// errUnsized reports that the server refuses too many sizes. The listing must not be
// shown then.
var errUnsized = errors.New("server refuses the sizes of too many messages")

// complete adds the messages without a size to the listing, as unsized. refusal is the
// last refusal of the server, nil if the server answered OK. complete returns an error
// if there are too many such messages, or if the server has sent no size at all and its
// refusal is temporary.
func (l *listing) complete(unanswered []uint32, refusal error) error {
	if len(unanswered) > 0 && len(l.messages) == 0 && inbox.RefusedForNow(refusal) || len(unanswered) > max(3, (len(l.messages)+len(unanswered))/100) {
		return errors.Join(errUnsized, refusal)
	}
	for _, uid := range unanswered {
		l.insert(message{uid: uid, size: 1, marks: unsized})
	}
	l.proven = true
	return nil
}

// sizesOfEach requests the sizes of messages. After a refusal it requests the sizes of
// each half: a message that the server cannot read must not hide the others. It returns
// the last refusal. It stops when more than tolerated messages are refused alone.
func (l *listing) sizesOfEach(ctx context.Context, in *inbox.Inbox, uids []uint32, tolerated int) (refusal error) {
	var parts []imap.UIDSet
	for _, set := range slices.Backward(inbox.Sets(uids)) {
		parts = append(parts, set)
	}
	for alone := 0; len(parts) > 0 && alone <= tolerated; {
		set := parts[len(parts)-1]
		parts = parts[:len(parts)-1]
		err := in.Sizes(ctx, set, l)
		if err != nil && !inbox.Refused(err) {
			return err
		}
		if err != nil {
			refusal = err
		}
		l.sortRows()
		rest, err := l.lacking(set)
		switch {
		case err != nil:
			return err
		case len(rest) == 0:
		case inbox.Count(set) == 1:
			alone++
		case len(rest) == 1:
			parts = append(parts, inbox.Sets(rest)...)
		default:
			half := len(rest) / 2
			parts = append(append(parts, inbox.Sets(rest[half:])...), inbox.Sets(rest[:half])...)
		}
	}
	return refusal
}

// lacking returns the UIDs of a set that the listing lacks.
func (l *listing) lacking(set imap.UIDSet) (rest []uint32, err error) {
	uids, err := inbox.UIDs(set)
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.DeleteFunc(uids, func(uid uint32) bool { return find(l.messages, uid) != nil }), err
}
