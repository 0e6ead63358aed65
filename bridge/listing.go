package bridge

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/emersion/go-imap/v2"
)

const (
	// maxMessages bounds what a server can make a session remember: 64 MiB.
	maxMessages = 4 << 20
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
	messages             []message
}

// A listing is a snapshot that is brought up to date. Rows come from the
// goroutine that reads from the server.
//
// It may say unchanged, because UIDs only grow: with the same UIDVALIDITY no
// message comes to be below the UIDNEXT of a proven snapshot, so that one is as
// it was when it still has as many. For the same reason what is known and what
// is new is exact when it adds up to EXISTS.
type listing struct {
	view
	known int // messages that were remembered

	mu         sync.Mutex
	from       uint32 // what is below is known; "n:*" has the last message, whatever its UID
	messages   []message
	proven     bool
	disordered bool // rows did not come in the order of UIDs
	expunged   bool // somebody has removed messages meanwhile
	overflow   bool
	later      int // rows with a UID from UIDNEXT on
}

// newListing returns the listing of v, of which known is remembered. A UIDNEXT
// that has become lower is that of a restored backup or of a replica that lags:
// its UIDs may be those of other messages, as after a new UIDVALIDITY.
func newListing(v view, known snapshot) *listing {
	l := &listing{view: v}
	if !v.continues(known) {
		known = snapshot{}
	}
	l.from, l.messages, l.known = known.uidNext, known.messages, len(known.messages)
	l.proven = known.proven || known.uidNext == 0
	if v.exists == 0 {
		l.messages, l.proven = nil, true
	}
	if more := min(l.missing(), trusted); more > 0 {
		l.messages = slices.Grow(l.messages, more)
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

// unchanged reports whether nothing needs to be asked.
func (l *listing) unchanged() bool {
	return l.proven && l.missing() == 0 && (l.exists == 0 || l.uidNext != 0 && l.uidNext == l.from)
}

// adds reports whether what is known and what came is all that SELECT showed.
// After STATUS that must include what came since: one removed in between would
// not be missed.
func (l *listing) adds() bool {
	if l.selected < 0 {
		return l.missing() == 0
	}
	return len(l.messages)+l.later == l.selected
}

func (l *listing) add(uid uint32, size int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case uid < l.from:
	case l.uidNext != 0 && uid >= l.uidNext:
		l.later++
	case len(l.messages) >= maxMessages:
		l.overflow = true
	default:
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
// nothing; for what is new; or, when that does not add up, for the UIDs of all
// there is, once. What has no size after that is asked for once more and then
// left out, until the next session. It returns whether anything was asked.
func (in *inbox) update(ctx context.Context, l *listing) (asked bool, err error) {
	if l.unchanged() {
		return false, nil
	}
	failed := false
	if l.uidNext == 0 || l.uidNext > l.from {
		err := in.sizes(ctx, imap.UIDSet{{Start: imap.UID(max(l.from, 1))}}, l)
		if err != nil && !refused(err) {
			return true, err
		}
		failed = err != nil
		if l.tidy(); l.overflow {
			return true, errTooMany
		}
	}
	if !failed && l.proven && !l.expunged && l.adds() {
		return true, nil
	}
	return true, in.rebuild(ctx, l)
}

// rebuild lets a search decide which messages there are.
func (in *inbox) rebuild(ctx context.Context, l *listing) error {
	present, err := in.all(ctx)
	if err != nil {
		return err
	}
	missing := l.keep(present)
	l.from = 0
	for some := range slices.Chunk(missing, maxRanges) {
		if err := in.sizes(ctx, some, l); err != nil && !refused(err) {
			return err
		}
	}
	if l.overflow {
		return errTooMany
	}
	if len(missing) > 0 {
		l.tidy()
		missing = l.keep(present)
	}
	l.proven = len(missing) == 0
	return nil
}

// look opens INBOX. With ask it also asks for what SELECT of this server does
// not say; the answer is of the moment before.
func (in *inbox) look(ctx context.Context, ask bool) (view, error) {
	defer in.begin(ctx)()
	var before func() (*imap.StatusData, error)
	if ask {
		before = in.client.Status("INBOX", &imap.StatusOptions{NumMessages: true, UIDNext: true, UIDValidity: true}).Wait
	}
	box, err := in.selected(ctx)
	if err != nil {
		return view{}, err
	}
	if box.UIDValidity == 0 {
		return view{}, errors.New("server gives no UIDVALIDITY")
	}
	v := view{box.UIDValidity, uint32(box.UIDNext), int(box.NumMessages), -1}
	if before != nil {
		status, err := before()
		if err != nil && !refused(err) {
			return view{}, fmt.Errorf("STATUS: %w", in.explain(ctx, err))
		}
		if err == nil && status.NumMessages != nil && status.UIDNext != 0 && status.UIDValidity == v.uidValidity {
			v.uidNext, v.exists, v.selected = uint32(status.UIDNext), int(*status.NumMessages), v.exists
		}
	}
	return v, nil
}

// all returns the UIDs of all messages.
func (in *inbox) all(ctx context.Context) (imap.UIDSet, error) {
	defer in.begin(ctx)()
	var options *imap.SearchOptions
	if strings.Contains(in.capabilities, "ESEARCH") { // RFC 4731: ranges
		options = &imap.SearchOptions{ReturnAll: true}
	}
	data, err := in.client.UIDSearch(&imap.SearchCriteria{}, options).Wait()
	if err != nil {
		return nil, fmt.Errorf("UID SEARCH: %w", in.explain(ctx, err))
	}
	found, _ := data.All.(imap.UIDSet)
	return found, nil
}
