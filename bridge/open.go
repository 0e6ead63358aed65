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
	v, err := s.inbox.look(ctx, s.backend.noUIDNext.Load())
	if err != nil {
		return "", err
	}
	if v.uidNext == 0 {
		s.backend.noUIDNext.Store(true)
	}
	if err := s.recall(ctx, known, v); err != nil {
		return "", err
	}
	if v.continues(known) {
		s.seen = known.uidNext
	}
	l := newListing(v, known)
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
	if stop(); err != nil {
		if long {
			s.keepPart(ctx, l)
		}
		return "", err
	}
	listed, ok := l.snapshot(true)
	if !listed.proven {
		s.notice(proxy.NoticeNotProven, len(listed.messages), nil)
	}
	if err := s.identify(ctx, known, v, &listed, asked); err != nil {
		return "", err
	}
	s.drop = newMaildrop(listed.messages, listed.uidValidity)
	s.drop.uidNext, s.drop.proven = listed.uidNext, listed.proven
	s.audit(known, before, v.continues(known))
	s.drop.changed = ok && (asked || len(known.messages) != len(listed.messages) || known.shown != s.drop.shown || known.uidNext != listed.uidNext || known.uidValidity != listed.uidValidity)
	if long {
		s.remember(ctx) // before the turn of others
	}
	return l.source(asked), nil
}

func (b *Backend) queue() *Queue {
	if b.Queue != nil {
		return b.Queue
	}
	return &b.ownQueue
}
