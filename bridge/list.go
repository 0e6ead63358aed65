package bridge

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"postern/bridge/inbox"
	"postern/proxy"
)

// cannotOpen returns err as a *proxy.Refusal: a Refusal in err, or a temporary one.
func cannotOpen(err error) error {
	if r, ok := errors.AsType[*proxy.Refusal](err); ok {
		return r
	}
	return &proxy.Refusal{Reason: proxy.Unavailable, Verified: true, Err: fmt.Errorf("open maildrop: %w", err)}
}

// list makes the maildrop, and returns the value of proxy.MaildropOpened.Source.
func (s *session) list(ctx context.Context) (source string, err error) {
	if err := s.acquireLock(ctx); err != nil {
		return "", err
	}
	for {
		if err := s.backend.queue().wait(ctx, s.login.Account); err != nil {
			return "", err
		}
		if source, err = s.tryList(ctx); errors.Is(err, errListingRuns) {
			continue
		}
		if errors.Is(err, errUnaccounted) || errors.Is(err, errUnsized) || errors.Is(err, inbox.ErrAnswer) {
			s.notice(proxy.NoticeNotProven, 0, err)
		}
		return source, err
	}
}

// tryList makes the maildrop. It returns errListingRuns if another session of the account
// has begun a long listing first.
func (s *session) tryList(ctx context.Context) (source string, err error) {
	known := s.loadSnapshot(ctx)
	if s.reservation == nil {
		s.reservation = s.backend.Listings.reservation()
	}
	if err := s.reservation.grow(len(known.messages)); err != nil {
		return "", err
	}
	v, err := s.openInbox(ctx, known)
	if err != nil {
		return "", err
	}
	if v.UIDValidity == 0 { // the mailbox is empty, too: nothing is shown or stored
		s.maildrop = newMaildrop(nil, 0)
		return fromFull, nil
	}
	seen, err := s.lastSession(ctx, known)
	if err != nil {
		return "", err
	}
	admitted, err := s.admitView(ctx, seen.with(v))
	if err != nil {
		return "", err
	}
	if err := s.loadTombstones(ctx, known, v); err != nil {
		return "", err
	}
	if known.continuesIn(v) {
		s.seenBelow = known.uidNext
	}
	l := newListing(v, known, s.reservation)
	var before []message // messages of the last session
	if known.continuesIn(v) && !l.unchanged() {
		before = slices.Clone(known.messages) // the listing changes known.messages
	}
	if l.missing() <= shortListing {
		return s.completeListing(ctx, known, before, l, seen, admitted, false)
	}
	leave, err := s.awaitTurn(ctx)
	if err != nil {
		return "", err
	}
	defer leave()
	source, err = s.completeListing(ctx, known, before, l, seen, admitted, true)
	if err == nil {
		s.saveSnapshot(ctx) // before leave lets the next session list
	}
	return source, err
}

// completeListing brings a listing up to date and makes the maildrop. Unless the brake has
// admitted the view already, completeListing first lets the brake decide about the messages
// that are gone.
func (s *session) completeListing(ctx context.Context, known snapshot, before []message, l *listing, last comparison, admitted, long bool) (source string, err error) {
	asked, err := s.bringUpToDate(ctx, l, long)
	if err != nil {
		return "", err
	}
	if !admitted {
		changed := last.with(l.View)
		changed.gone = vanished(before, l.messages)
		if err := s.backend.Brake.Admit(ctx, s.login.Account, changed.change()); err != nil {
			return "", err
		}
	}
	if err := s.makeMaildrop(ctx, known, before, l, asked); err != nil {
		return "", err
	}
	return l.source(asked), nil
}

// lastSession returns the figures of INBOX at the end of the last session, for the
// brake: from the cache or, if the cache was lost, from the record.
func (s *session) lastSession(ctx context.Context, known snapshot) (comparison, error) {
	if known.uidValidity != 0 || s.backend.Record == nil || s.backend.Brake == nil {
		return comparison{oldUIDValidity: known.uidValidity, oldUIDNext: known.uidNext, known: notRemoved(known.messages)}, nil
	}
	head, err := s.backend.Record.Get(ctx, key(s.login.Account))
	if err != nil {
		return comparison{}, err
	}
	record, err := s.decodeHead(head)
	if err != nil || record == nil {
		return comparison{known: -1}, err
	}
	g := record.Current()
	return comparison{oldUIDValidity: g.UIDValidity, oldUIDNext: g.UIDNext, known: -1}, nil
}

// with returns the comparison of the last session with a view.
func (c comparison) with(v inbox.View) comparison {
	c.newUIDValidity, c.newUIDNext, c.exists = v.UIDValidity, v.UIDNext, v.Exists
	return c
}

// admitView lets the brake decide about a change that EXISTS, UIDVALIDITY and UIDNEXT
// show, before anything is recorded. decided is false if they show no change.
func (s *session) admitView(ctx context.Context, c comparison) (decided bool, err error) {
	change := c.change()
	if change == Unchanged {
		return false, nil
	}
	return true, s.backend.Brake.Admit(ctx, s.login.Account, change)
}

// awaitTurn waits for the turn of a long listing. It returns errListingRuns if another
// session of the account has begun a long listing.
func (s *session) awaitTurn(ctx context.Context) (leave func(), err error) {
	leave, err = s.backend.queue().enter(ctx, s.login.Account)
	if err == nil && leave == nil {
		err = errListingRuns
	}
	return leave, err
}

// bringUpToDate makes l complete. If a long listing fails, bringUpToDate stores the rows
// that have come.
func (s *session) bringUpToDate(ctx context.Context, l *listing, long bool) (asked bool, err error) {
	stop := func() error { return nil }
	if long {
		stop = s.progress(ctx, l)
	}
	asked, err = l.update(ctx, s.inbox)
	if panicked := stop(); panicked != nil {
		return asked, panicked
	}
	if l.untrue {
		s.backend.untrueUIDNext.Store(true)
	}
	if err == nil {
		return asked, nil
	}
	if long {
		s.savePart(ctx, l)
	}
	return asked, err
}

// makeMaildrop makes the maildrop of a complete listing. The unique-ids are on the disk
// when it returns. before has the messages of the last session, if they have changed.
func (s *session) makeMaildrop(ctx context.Context, known snapshot, before []message, l *listing, asked bool) error {
	v := l.View
	listed, ok := l.snapshot(true)
	if n := withoutSize(listed.messages); n > 0 {
		s.notice(proxy.NoticeUnreadable, n, nil)
	}
	if err := s.identify(ctx, known, v, &listed, asked); err != nil {
		return err
	}
	s.maildrop = newMaildrop(listed.messages, listed.uidValidity)
	s.maildrop.uidNext, s.maildrop.proven = listed.uidNext, listed.proven
	s.compareHash(known, before, known.continuesIn(v))
	s.maildrop.changed = ok && (asked || len(known.messages) != len(listed.messages) || known.hash != s.maildrop.hash || known.record != s.record.stamp || known.uidNext != listed.uidNext || known.uidValidity != listed.uidValidity)
	return nil
}

// openInbox opens INBOX. A UIDNEXT lower than in known is that of a restored backup,
// unless a message has a UID from UIDNEXT on: then the server's UIDNEXT is wrong, and is
// ignored now and later.
func (s *session) openInbox(ctx context.Context, known snapshot) (inbox.View, error) {
	b := s.backend
	untrue := b.untrueUIDNext.Load()
	v, err := s.inbox.Open(ctx, b.noUIDNext.Load() && !untrue)
	switch {
	case err != nil:
		return inbox.View{}, err
	case untrue:
		v.UIDNext = 0
		return v, nil
	case v.UIDNext == 0:
		b.noUIDNext.Store(true)
	}
	if known.continuesIn(v) || v.UIDValidity != known.uidValidity {
		return v, nil
	}
	present, agrees, err := s.inbox.Present(ctx)
	if err != nil {
		return inbox.View{}, err
	}
	if !agrees {
		return inbox.View{}, errUnaccounted
	}
	l := listing{View: v}
	l.checkUIDNext(present, s.inbox.Mailbox())
	if l.untrue {
		b.untrueUIDNext.Store(true)
	}
	return l.View, nil
}

// notRemoved returns the number of messages that the last session has not removed.
func notRemoved(messages []message) (n int) {
	for i := range messages {
		if messages[i].marks&removed == 0 {
			n++
		}
	}
	return n
}

// vanished returns the number of messages of before that are missing now and that the
// last session has not removed. Both lists ascend by UID.
func vanished(before, now []message) (n int) {
	for i := range before {
		m := &before[i]
		for len(now) > 0 && now[0].uid < m.uid {
			now = now[1:]
		}
		if (len(now) == 0 || now[0].uid != m.uid) && m.marks&removed == 0 {
			n++
		}
	}
	return n
}

// withoutSize returns the number of messages whose size the server has refused.
func withoutSize(messages []message) (n int) {
	for i := range messages {
		if messages[i].marks&unsized != 0 {
			n++
		}
	}
	return n
}

func (b *Backend) queue() *Queue {
	if b.Queue != nil {
		return b.Queue
	}
	return &b.ownQueue
}
