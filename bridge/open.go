package bridge

import (
	"context"
	"errors"
	"fmt"

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
	l := newListing(v, known)
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
		stop = s.progress(l)
	}
	asked, err := s.inbox.update(ctx, l)
	if stop(); err != nil {
		if long {
			s.keepPart(l)
		}
		return "", err
	}
	listed, ok := l.snapshot(true)
	if !listed.proven {
		s.notice(NoticeNotProven, len(listed.messages), nil)
	}
	if err := s.identify(ctx, known, v, &listed, asked); err != nil {
		return "", err
	}
	if long && ok {
		s.keep(listed) // before the turn of others
	}
	s.drop = newMaildrop(listed.messages, listed.uidValidity)
	s.drop.uidNext, s.drop.proven = listed.uidNext, listed.proven
	s.drop.changed = ok && !long && (asked || len(known.messages) != len(listed.messages) || known.uidNext != listed.uidNext || known.uidValidity != listed.uidValidity)
	return l.source(asked), nil
}

func (b *Backend) queue() *Queue {
	if b.Queue != nil {
		return b.Queue
	}
	return &b.ownQueue
}
