package bridge

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/emersion/go-imap/v2"
)

const (
	// maxMessages bounds what a server can make a session remember: 64 MiB.
	maxMessages = 4 << 20
	// trusted is up to where memory is taken at the server's word.
	trusted = 1 << 20
)

// A listing collects messages as the server names them. While it is asked for,
// it belongs to the goroutine that reads from the server.
type listing struct {
	below    imap.UID // UIDNEXT: what came later has its own session; 0: unknown
	messages []message
	expunged bool // somebody has removed messages meanwhile
	overflow bool
}

func (l *listing) add(uid uint32, size int64) {
	switch {
	case l.below != 0 && imap.UID(uid) >= l.below:
	case len(l.messages) >= maxMessages:
		l.overflow = true
	default:
		l.messages = append(l.messages, message{uid: uid, size: size})
	}
}

// tidy sorts by UID and leaves each of them once.
func (l *listing) tidy() {
	byUID := func(a, b message) int { return cmp.Compare(a.uid, b.uid) }
	if !slices.IsSortedFunc(l.messages, byUID) {
		slices.SortStableFunc(l.messages, byUID)
	}
	l.messages = slices.CompactFunc(l.messages, func(a, b message) bool { return a.uid == b.uid })
}

// keep drops what is not in present, and returns what of present is missing.
func (l *listing) keep(present imap.UIDSet) (missing imap.UIDSet) {
	l.messages = slices.DeleteFunc(l.messages, func(m message) bool { return !present.Contains(imap.UID(m.uid)) })
	rest := l.messages
	for _, r := range present {
		if l.below != 0 {
			r.Stop = min(r.Stop, l.below-1)
		}
		next := r.Start // the first UID of the range that is not accounted for
		for len(rest) > 0 && imap.UID(rest[0].uid) <= r.Stop {
			if uid := imap.UID(rest[0].uid); uid > next {
				missing = append(missing, imap.UIDRange{Start: next, Stop: uid - 1})
			}
			next = imap.UID(rest[0].uid) + 1
			rest = rest[1:]
		}
		if next != 0 && next <= r.Stop { // 0: the last UID there can be was accounted for
			missing = append(missing, imap.UIDRange{Start: next, Stop: r.Stop})
		}
	}
	return missing
}

// list opens the maildrop: one SELECT and one FETCH. What they disagree about
// is decided by one SEARCH; what has no size after it is asked for once more
// and then left out, until the next session.
func (in *inbox) list(ctx context.Context) (*maildrop, error) {
	box, err := in.selectInbox(ctx)
	if err != nil {
		return nil, err
	}
	if box.UIDValidity == 0 {
		return nil, errors.New("server gives no UIDVALIDITY")
	}
	l := &listing{below: box.UIDNext, messages: make([]message, 0, min(box.NumMessages, trusted))}
	if box.NumMessages > 0 {
		err = in.fill(ctx, l, int(box.NumMessages))
	}
	if err == nil && l.overflow {
		err = fmt.Errorf("more than %d messages", maxMessages)
	}
	if err != nil {
		return nil, err
	}
	return newMaildrop(l.messages, box.UIDValidity), nil
}

func (in *inbox) fill(ctx context.Context, l *listing, exists int) error {
	err := in.sizes(ctx, imap.UIDSet{{Start: 1}}, l)
	if err != nil && !refused(err) {
		return err
	}
	l.tidy()
	if err == nil && !l.expunged && len(l.messages) == exists {
		return nil
	}
	present, err := in.search(ctx)
	if err != nil {
		return err
	}
	for some := range slices.Chunk(l.keep(present), maxRanges) {
		if err := in.sizes(ctx, some, l); err != nil && !refused(err) {
			return err
		}
	}
	l.tidy()
	return nil
}
