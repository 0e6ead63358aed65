package bridge

import (
	"context"
	"errors"
	"fmt"
	"slices"

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
	if err := s.hold(ctx); err != nil {
		return "", err
	}
	for {
		if err := s.backend.queue().wait(ctx, s.login.Account); err != nil {
			return "", err
		}
		if source, err = s.tryList(ctx); !errors.Is(err, errListed) {
			return source, err
		}
	}
}

// tryList is list, unless an earlier session begins a long one: errListed.
func (s *session) tryList(ctx context.Context) (source string, err error) {
	known := s.remembered(ctx)
	if s.room == nil {
		s.room = s.backend.Listings.reservation()
	}
	if err := s.room.grow(len(known.messages)); err != nil {
		return "", err
	}
	v, err := s.look(ctx, known)
	if err != nil {
		return "", err
	}
	if v.uidValidity == 0 { // and empty: there is nothing to be shown or remembered
		s.drop = newMaildrop(nil, 0)
		return fromFull, nil
	}
	inLast := notRemoved(known.messages)
	change := compare(known, v, inLast, 0)
	if change != Unchanged {
		if err := s.backend.Brake.Admit(ctx, s.login.Account, change); err != nil {
			return "", err
		}
	}
	if err := s.recall(ctx, known, v); err != nil {
		return "", err
	}
	if v.continues(known) {
		s.seen = known.uidNext
	}
	l := newListing(v, known, s.room)
	var before []message // what was there in the last session
	if v.continues(known) && !l.unchanged() {
		before = slices.Clone(known.messages) // the listing changes them
	}
	long, stop := l.missing() > few, func() {}
	if long {
		leave, err := s.backend.queue().enter(ctx, s.login.Account)
		if err != nil {
			return "", err
		}
		if leave == nil {
			return "", errListed
		}
		defer leave()
		stop = s.progress(ctx, l)
	}
	asked, err := s.inbox.update(ctx, l)
	stop()
	if l.untrue {
		s.backend.untrueUIDNext.Store(true)
	}
	if err != nil {
		if long {
			s.keepPart(ctx, l)
		}
		if errors.Is(err, errUnaccounted) || errors.Is(err, errUnsized) {
			s.notice(proxy.NoticeNotProven, l.exists, err)
		}
		return "", err
	}
	v = l.view
	if change == Unchanged {
		if err := s.backend.Brake.Admit(ctx, s.login.Account, compare(known, v, inLast, vanished(before, l.messages))); err != nil {
			return "", err
		}
	}
	listed, ok := l.snapshot(true)
	if n := withoutSize(listed.messages); n > 0 {
		s.notice(proxy.NoticeUnreadable, n, nil)
	}
	if err := s.identify(ctx, known, v, &listed, asked); err != nil {
		return "", err
	}
	s.drop = newMaildrop(listed.messages, listed.uidValidity)
	s.drop.uidNext, s.drop.proven = listed.uidNext, listed.proven
	s.audit(known, before, v.continues(known))
	s.drop.changed = ok && (asked || len(known.messages) != len(listed.messages) || known.shown != s.drop.shown || known.record != s.record.stamp || known.uidNext != listed.uidNext || known.uidValidity != listed.uidValidity)
	if long {
		s.remember(ctx) // before the turn of others
	}
	return l.source(asked), nil
}

// look opens INBOX. A UIDNEXT below that of before is that of a restored backup,
// unless messages have UIDs above it: then this server's UIDNEXT says nothing,
// now and later.
func (s *session) look(ctx context.Context, known snapshot) (view, error) {
	b := s.backend
	untrue := b.untrueUIDNext.Load()
	v, err := s.inbox.look(ctx, b.noUIDNext.Load() && !untrue)
	switch {
	case err != nil:
		return view{}, err
	case untrue:
		v.uidNext = 0
		return v, nil
	case v.uidNext == 0:
		b.noUIDNext.Store(true)
	}
	if v.continues(known) || v.uidValidity != known.uidValidity {
		return v, nil
	}
	present, agrees, err := s.inbox.present(ctx)
	if err != nil {
		return view{}, err
	}
	if !agrees {
		return view{}, errUnaccounted
	}
	l := listing{view: v}
	l.believe(present, s.inbox.link.responses.mailbox)
	if l.untrue {
		b.untrueUIDNext.Store(true)
	}
	return l.view, nil
}

// compare returns how INBOX differs from the last session, which left so many
// messages, of which so many are certainly not there now.
func compare(known snapshot, v view, messages, vanished int) Change {
	return comparison{
		oldUIDValidity: known.uidValidity, newUIDValidity: v.uidValidity,
		oldUIDNext: known.uidNext, newUIDNext: v.uidNext,
		known: messages, exists: v.exists, gone: vanished,
	}.change()
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
