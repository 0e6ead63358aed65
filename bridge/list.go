package bridge

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"postern/bridge/inbox"
	"postern/proxy"
)

// cannotOpen returns what the client learns of an error of list.
func cannotOpen(err error) error {
	if r, ok := errors.AsType[*proxy.Refusal](err); ok {
		return r
	}
	return &proxy.Refusal{Reason: proxy.Unavailable, Verified: true, Err: fmt.Errorf("open maildrop: %w", err)}
}

// list makes the maildrop, and says what of.
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

// tryList is list, unless an earlier session begins a long one: errListingRuns.
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
	if v.UIDValidity == 0 { // and empty: there is nothing to be shown or remembered
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
	var before []message // what was there in the last session
	if known.continuesIn(v) && !l.unchanged() {
		before = slices.Clone(known.messages) // the listing changes these
	}
	if l.missing() <= shortListing {
		return s.complete(ctx, known, before, l, seen, admitted, false)
	}
	leave, err := s.awaitTurn(ctx)
	if err != nil {
		return "", err
	}
	defer leave()
	source, err = s.complete(ctx, known, before, l, seen, admitted, true)
	if err == nil {
		s.saveSnapshot(ctx) // before the turn of others
	}
	return source, err
}

// complete brings a listing up to date, asks the brake about the messages that are
// gone unless that has admitted the view already, and makes the maildrop.
func (s *session) complete(ctx context.Context, known snapshot, before []message, l *listing, last comparison, admitted, long bool) (source string, err error) {
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

// lastSession returns what is known of INBOX at the end of the last session, for the
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

// admitView asks the brake about what EXISTS, UIDVALIDITY and UIDNEXT show, before
// anything is recorded. It reports whether that has decided.
func (s *session) admitView(ctx context.Context, c comparison) (decided bool, err error) {
	change := c.change()
	if change == Unchanged {
		return false, nil
	}
	return true, s.backend.Brake.Admit(ctx, s.login.Account, change)
}

// awaitTurn waits until a long listing may begin. It returns errListingRuns if an earlier
// session has begun one.
func (s *session) awaitTurn(ctx context.Context) (leave func(), err error) {
	leave, err = s.backend.queue().enter(ctx, s.login.Account)
	if err == nil && leave == nil {
		err = errListingRuns
	}
	return leave, err
}

// bringUpToDate makes l complete. Of a long listing that fails it keeps what has
// come.
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

// makeMaildrop makes the maildrop of a listing that is complete, with unique-ids that are
// on the disk. before are the messages of the last session, if they have changed.
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

// openInbox opens INBOX. A UIDNEXT below that of before is that of a restored backup,
// unless messages have UIDs above it: then this server's UIDNEXT says nothing,
// now and later.
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

// notRemoved returns how many of the messages the last session has not removed.
func notRemoved(messages []message) (n int) {
	for i := range messages {
		if messages[i].marks&removed == 0 {
			n++
		}
	}
	return n
}

// vanished returns how many messages of before are not there now, without those
// that the last session has removed. Both ascend.
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

// withoutSize returns how many of the messages have no size of the server's.
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
