package bridge

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/emersion/go-imap/v2"
)

const (
	// maxMessages bounds what a server can make a session remember: 64 MiB.
	maxMessages = 4 << 20
	// maxSize bounds the size of a message: what a snapshot has room for.
	maxSize = 1 << 57
	// trusted is up to where memory is taken at the server's word.
	trusted = 1 << 20
)

var errTooMany = fmt.Errorf("more than %d messages", maxMessages)

// The values of proxy.MaildropOpened.Source: what a listing was made of.
const (
	fromCache = "cache" // what was remembered, and SELECT
	fromDelta = "delta" // what was remembered and what has changed
	fromFull  = "full"
)

// A view is INBOX as the server shows it at one moment.
type view struct {
	uidValidity uint32
	uidNext     uint32 // 0: the server does not say
	exists      int
	selected    int // EXISTS of SELECT if the rest is of STATUS, before it; else -1
}

// A snapshot is what is known of INBOX at one moment: the messages with a UID
// below uidNext, ascending.
type snapshot struct {
	uidValidity, uidNext uint32
	proven               bool   // there were no others
	shown                uint64 // hash of their UIDLs; 0: not known
	record               stamp  // of the record that they are of
	messages             []message
}

// A listing is a snapshot that is brought up to date. Rows come from the
// goroutine that reads from the server.
//
// It may say unchanged, because UIDs only grow: with the same UIDVALIDITY no
// message comes to be below the UIDNEXT of a proven snapshot, so that one is as
// it was when it still has as many. For the same reason the messages that are
// known are all there if the last of them has the number that it had: the rows
// from that one on are asked for. If their numbers follow each other up to
// EXISTS, none is missing.
type listing struct {
	view
	known int // messages that were remembered

	mu         sync.Mutex
	from       uint32 // what is below is known; "n:*" has the last message, whatever its UID
	messages   []message
	proven     bool
	disordered bool // rows did not come in the order of UIDs
	expunged   bool // somebody has removed messages meanwhile
	room       *reservation
	overflow   error     // there are more messages than may be listed
	later      []message // rows with a UID from UIDNEXT on
	unsized    []message // known messages whose size the server has refused so far
	untrue     bool      // UIDNEXT was not above all UIDs
	odd        int       // rows with a UID or a size that cannot be read
	anchor     uint32    // UID of the last message that is known; 0: none
	anchored   bool      // its row has come, with the number that says that all known are there
	gaps       bool      // the numbers of rows do not follow each other
}

// newListing returns the listing of v, of which known is remembered. A UIDNEXT
// that has become lower is that of a restored backup or of a replica that lags:
// its UIDs may be those of other messages, as after a new UIDVALIDITY.
func newListing(v view, known snapshot, room *reservation) *listing {
	l := &listing{view: v, room: room}
	if !v.continues(known) {
		known = snapshot{}
	}
	l.from, l.messages, l.known = known.uidNext, known.messages, len(known.messages)
	l.proven = known.proven || known.uidNext == 0
	if v.exists == 0 {
		l.messages, l.proven = nil, true
	}
	if n := len(l.messages); n > 0 {
		l.anchor = l.messages[n-1].uid
	}
	l.anchored = l.anchor == 0
	l.setUnsizedAside()
	if more := min(l.missing(), trusted); more > 0 {
		if l.overflow = room.grow(len(l.messages) + more); l.overflow == nil {
			l.messages = slices.Grow(l.messages, more)
		}
	}
	return l
}

// continues reports whether UIDs mean in v what they meant in known.
func (v view) continues(known snapshot) bool {
	return v.uidValidity == known.uidValidity && (v.uidNext == 0 || v.uidNext >= known.uidNext)
}

// missing returns how many messages are there that are not known; negative
// when there are fewer.
func (l *listing) missing() int { return l.exists - len(l.messages) }

// setUnsizedAside takes the messages without a size out of those that are
// known, so that the server is asked for their sizes again.
func (l *listing) setUnsizedAside() {
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

// unchanged reports whether nothing needs to be asked.
func (l *listing) unchanged() bool {
	return l.proven && len(l.unsized) == 0 && l.missing() == 0 && (l.exists == 0 || l.uidNext != 0 && l.uidNext == l.from)
}

// adds reports whether what is known and what came is all that SELECT showed.
// After STATUS that must include what came since: one removed in between would
// not be missed.
func (l *listing) adds() bool {
	if l.selected < 0 {
		return l.missing() == 0
	}
	return len(l.messages)+len(l.later) == l.selected
}

// correct takes back a UIDNEXT that is not true, which it reports: now, the
// number of messages as the server says it, is what it was at SELECT, so that
// none has come since, and still there are rows from UIDNEXT on. Then the rows
// are those of messages as any other.
func (l *listing) correct(now int) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	atSelect := l.exists
	if l.selected >= 0 {
		atSelect = l.selected
	}
	if len(l.later) == 0 || now != atSelect || l.expunged || l.missing() <= 0 || l.missing() > len(l.later) {
		return false
	}
	l.messages = append(l.messages, l.later...)
	l.later, l.uidNext, l.exists, l.selected = nil, 0, atSelect, -1
	l.disordered, l.untrue = true, true
	return true
}

// add takes a row: the message sequence number, the UID and the size.
func (l *listing) add(number int64, uid uint32, size int64) {
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
	case l.uidNext != 0 && uid >= l.uidNext:
		if len(l.later) < maxMessages {
			l.later = append(l.later, message{uid: uid, size: size})
		}
	case l.overflow != nil:
	case len(l.messages) >= maxMessages:
		l.overflow = errTooMany
	default:
		if l.overflow = l.room.grow(len(l.messages) + 1); l.overflow != nil {
			return
		}
		if n := len(l.messages); n > 0 && uid < l.messages[n-1].uid {
			l.disordered = true
		}
		l.messages = append(l.messages, message{uid: uid, size: size})
	}
}

func byUID(a, b message) int { return cmp.Compare(a.uid, b.uid) }

// tidy sorts by UID and leaves each of them once.
func (l *listing) tidy() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.disordered {
		slices.SortStableFunc(l.messages, byUID)
		l.disordered = false
	}
	l.messages = slices.CompactFunc(l.messages, func(a, b message) bool { return a.uid == b.uid })
}

// snapshot returns what can be remembered of the listing as it is, also while
// rows come: then the last of them is the bound, if they come in order.
func (l *listing) snapshot(complete bool) (s snapshot, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s = snapshot{uidValidity: l.uidValidity, uidNext: l.uidNext, proven: complete && l.proven, messages: l.messages}
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

// keep drops what is not in present, and returns what of present is missing.
func (l *listing) keep(present imap.UIDSet) (missing imap.UIDSet) {
	l.mu.Lock()
	defer l.mu.Unlock()
	kept, rest := l.messages[:0], l.messages
	for _, r := range present {
		start, stop := uint32(r.Start), uint32(r.Stop)
		if l.uidNext != 0 {
			stop = min(stop, l.uidNext-1)
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
		if next != 0 && next <= stop { // 0: the last UID there can be was accounted for
			missing = append(missing, imap.UIDRange{Start: imap.UID(next), Stop: imap.UID(stop)})
		}
	}
	l.messages = kept
	return missing
}

// source says what the listing was made of, once it is complete.
func (l *listing) source(asked bool) string {
	switch {
	case !asked:
		return fromCache
	case l.known > 0:
		return fromDelta
	}
	return fromFull
}

// update brings l up to date with the least that the server must be asked: for
// nothing; for what is new; or, when that does not add up to EXISTS, for the UIDs
// of all there is. It returns whether anything was asked. With an error the
// listing is not one that may be shown.
func (in *inbox) update(ctx context.Context, l *listing) (asked bool, err error) {
	if l.unchanged() || l.overflow != nil {
		return false, l.overflow
	}
	var refusal error
	sure := l.missing() == len(l.unsized)
	if l.uidNext == 0 || l.uidNext > l.from {
		from := l.from
		if l.proven {
			from = cmp.Or(l.anchor, from)
		}
		refusal = in.sizes(ctx, imap.UIDSet{{Start: imap.UID(max(from, 1))}}, l)
		sure = l.anchored && (l.known == 0 || !l.gaps)
		if refusal != nil && !refused(refusal) {
			return true, refusal
		}
		if l.tidy(); l.overflow != nil {
			return true, l.overflow
		}
	}
	if err := in.sizeAgain(ctx, l); err != nil {
		return true, err
	}
	now, _ := in.link.responses.mailbox.count()
	if refusal == nil && l.correct(now) {
		l.tidy()
	}
	if l.uidNext == 0 && len(l.messages) != now { // what came since SELECT is among the rows
		sure = false
	}
	if refusal == nil && sure && l.proven && !l.expunged && l.adds() {
		return true, nil
	}
	return true, in.rebuild(ctx, l)
}

// sizeAgain asks for the sizes that the server has refused in earlier sessions.
// Messages whose size is refused again stay what they were.
func (in *inbox) sizeAgain(ctx context.Context, l *listing) error {
	if len(l.unsized) == 0 {
		return nil
	}
	uids := make([]uint32, len(l.unsized))
	for i, m := range l.unsized {
		uids[i] = m.uid
	}
	from := l.from
	l.from = 0
	err := in.sizesOfEach(ctx, uids, l, len(uids))
	l.from = from
	if err != nil && !refused(err) {
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

// looks is how often rebuild looks at the whole INBOX: messages may be removed
// meanwhile.
const looks = 3

// errUnaccounted says that the messages a server shows are not as many as it
// says there are.
var errUnaccounted = errors.New("server says of how many messages INBOX consists, and shows others")

// rebuild lets a search decide which messages there are. The search is believed
// if it finds as many as EXISTS says before or after it.
func (in *inbox) rebuild(ctx context.Context, l *listing) error {
	for i := range looks {
		if i > 0 { // a server may not say with UID SEARCH what has changed
			if err := in.noop(ctx); err != nil {
				return err
			}
		}
		present, agrees, err := in.present(ctx)
		if err != nil {
			return err
		}
		if !agrees {
			continue
		}
		removals := in.link.responses.mailbox.removals()
		l.believe(present, in.link.responses.mailbox)
		l.from = 0
		missing, err := numbers(l.keep(present))
		if err != nil {
			return err
		}
		refusal := in.sizesOfEach(ctx, missing, l, l.tolerated(present))
		if refusal != nil && !refused(refusal) {
			return refusal
		}
		if l.overflow != nil {
			return l.overflow
		}
		if missing, err = numbers(l.keep(present)); err != nil {
			return err
		}
		if len(missing) > 0 && removals != in.link.responses.mailbox.removals() {
			if len(missing) > l.tolerated(present) {
				continue
			}
			if missing, err = in.stillThere(ctx, missing); err != nil {
				return err
			}
		}
		return l.complete(missing, refusal)
	}
	return errUnaccounted
}

// stillThere returns which of the messages have not been removed meanwhile.
func (in *inbox) stillThere(ctx context.Context, uids []uint32) (there []uint32, err error) {
	for _, set := range uidSets(uids) {
		found, err := in.search(ctx, set)
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

// present returns the UIDs of all messages, and whether they are as many as the
// server says.
func (in *inbox) present(ctx context.Context) (uids imap.UIDSet, agrees bool, err error) {
	before, known := in.link.responses.mailbox.count()
	if uids, err = in.all(ctx); err != nil {
		return nil, false, err
	}
	after, _ := in.link.responses.mailbox.count()
	n := size(uids)
	return uids, known && (n == uint64(before) || n == uint64(after)), nil
}

// size returns how many UIDs are in a set whose ranges do not overlap.
func size(set imap.UIDSet) (n uint64) {
	for _, r := range set {
		n += uint64(r.Stop) - uint64(r.Start) + 1
	}
	return n
}

// believe takes back a UIDNEXT that is not above all UIDs, though no message
// has come since SELECT.
func (l *listing) believe(present imap.UIDSet, m mailbox) {
	atSelect := l.exists
	if l.selected >= 0 {
		atSelect = l.selected
	}
	now, _ := m.count()
	if l.uidNext == 0 || len(present) == 0 || uint32(present[len(present)-1].Stop) < l.uidNext || now != atSelect || m.removals() > 0 {
		return
	}
	l.uidNext, l.exists, l.selected, l.untrue = 0, atSelect, -1, true
}

// tolerated returns of how many messages the sizes may be refused: 1 %, or 3.
func (l *listing) tolerated(present imap.UIDSet) int {
	return max(3, int(min(size(present), maxMessages)/100))
}

// errUnsized says that sizes of too many messages are refused for the listing to
// be shown.
var errUnsized = errors.New("server refuses the sizes of too many messages")

// complete takes the messages whose sizes the server has not told into the
// listing; refusal is its last one, nil if it said OK. It is an error if the
// server tells no size at all and says that it cannot answer now.
func (l *listing) complete(untold []uint32, refusal error) error {
	if len(untold) > 0 && len(l.messages) == 0 && concernsServer(refusal) || len(untold) > max(3, (len(l.messages)+len(untold))/100) {
		return errors.Join(errUnsized, refusal)
	}
	for _, uid := range untold {
		l.insert(message{uid: uid, size: 1, marks: unsized})
	}
	l.proven = true
	return nil
}

// concernsServer reports whether a server refuses a FETCH for a reason that is
// not the message's: RFC 5530, and [THROTTLED] of Gmail. BAD is what Exchange
// says when it throttles.
func concernsServer(err error) bool {
	refusal, ok := errors.AsType[*imap.Error](err)
	if !ok {
		return false
	}
	switch refusal.Code {
	case imap.ResponseCodeUnavailable, imap.ResponseCodeInUse, imap.ResponseCodeLimit, "THROTTLED", "OVERQUOTA":
		return true
	}
	return refusal.Type == imap.StatusResponseTypeBad
}

// sizesOfEach asks for the sizes of messages, and where the server refuses, of
// half of them at a time: a message that it cannot read must not hide the
// others. It returns the last refusal, at once when more than so many messages
// are refused alone.
func (in *inbox) sizesOfEach(ctx context.Context, uids []uint32, l *listing, tolerated int) (refusal error) {
	var parts []imap.UIDSet
	for _, set := range slices.Backward(uidSets(uids)) {
		parts = append(parts, set)
	}
	for alone := 0; len(parts) > 0 && alone <= tolerated; {
		set := parts[len(parts)-1]
		parts = parts[:len(parts)-1]
		err := in.sizes(ctx, set, l)
		if err != nil && !refused(err) {
			return err
		}
		if err != nil {
			refusal = err
		}
		l.tidy()
		rest, err := l.lacking(set)
		switch {
		case err != nil:
			return err
		case len(rest) == 0:
		case size(set) == 1:
			alone++
		case len(rest) == 1:
			parts = append(parts, uidSets(rest)...)
		default:
			half := len(rest) / 2
			parts = append(append(parts, uidSets(rest[half:])...), uidSets(rest[:half])...)
		}
	}
	return refusal
}

// lacking returns which messages of a set have no size.
func (l *listing) lacking(set imap.UIDSet) (rest []uint32, err error) {
	uids, err := numbers(set)
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.DeleteFunc(uids, func(uid uint32) bool { return find(l.messages, uid) != nil }), err
}

// noop lets the server say what has changed.
func (in *inbox) noop(ctx context.Context) error {
	defer in.begin(ctx)()
	if err := in.client.Noop().Wait(); err != nil {
		return fmt.Errorf("NOOP: %w", in.explain(ctx, err))
	}
	return nil
}
