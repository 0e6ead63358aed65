package bridge

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"

	"postern/proxy"
)

var (
	errRenumbered = errors.New("UIDVALIDITY has changed")
	errChanged    = errors.New("message is not what was begun to send")
)

// reconnect replaces the connection to the server by a new one on which the
// numbers of the session still hold. It asks neither the guard nor the route.
// An error has proxy.ErrBackendClosed in its tree and never a *proxy.Refusal:
// whatever the server says of the password now, it was right.
func (s *session) reconnect(ctx context.Context) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	cause := s.inbox.lost()
	s.inbox.discard()
	if s.renumbered {
		return fmt.Errorf("%w: %w", proxy.ErrBackendClosed, errRenumbered)
	}
	err := s.connect(ctx)
	result := proxy.ReconnectOK
	switch {
	case ctx.Err() != nil:
		return err
	case errors.Is(err, errRenumbered):
		result = proxy.ReconnectRenumbered
	case err != nil:
		result = proxy.ReconnectFailed
	}
	s.backend.observe(proxy.Reconnected{
		Client: s.login.Client, Account: s.login.Account, Backend: s.backend.Name, Cause: cause, Result: result, Err: err,
	})
	return err
}

// connect is reconnect once the old connection is closed.
func (s *session) connect(ctx context.Context) error {
	conn, capabilities, err := s.backend.Dial(ctx, s.login)
	if ctx.Err() != nil {
		if err == nil {
			_ = conn.Close()
		}
		return context.Cause(ctx)
	}
	if err != nil {
		return fmt.Errorf("%w: log in again: %s", proxy.ErrBackendClosed, err.Error())
	}
	in := s.backend.inbox(conn, capabilities, s.login.Client)
	in.hides = false
	err = in.selectInbox(ctx)
	if err == nil && in.link.responses.mailbox.uidValidity != s.drop.uidValidity {
		s.renumbered = true
		in.discard()
		return fmt.Errorf("%w: %w", proxy.ErrBackendClosed, errRenumbered)
	}
	if err != nil {
		in.discard()
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return fmt.Errorf("%w: open INBOX again: %s", proxy.ErrBackendClosed, err.Error())
	}
	in.flush = s.flush
	in.rest()
	s.inbox, s.ahead = in, ahead{}
	return nil
}

// lost names how the connection was lost.
func (in *inbox) lost() string {
	switch {
	case in.link.responses.bye.Load() != nil:
		return proxy.LostBye
	case in.link.stalled() != nil:
		return proxy.LostSilent
	}
	return proxy.LostClosed
}

// moved reports whether the server has given new UIDs to the messages.
func (s *session) moved() bool {
	if n := s.inbox.link.responses.mailbox.uidValidity; n != 0 && n != s.drop.uidValidity {
		s.renumbered = true
	}
	return s.renumbered
}

// A seal is what is known of the octets of a message that were sent.
type seal struct {
	octets int64
	hash   maphash.Hash
}

func (s *seal) digest() digest { return digest{s.octets, s.hash.Sum64()} }

func (s *seal) add(p []byte) {
	s.octets += int64(len(p))
	_, _ = s.hash.Write(p)
}

// resume opens a message again of which a part was sent, on a new connection,
// and goes to where the sending has stopped. It is an error if the server
// gives other octets now than it gave before.
func (s *session) resume(ctx context.Context, i int, size int64, sent *seal) (*row, error) {
	if err := s.reconnect(ctx); err != nil {
		return nil, err
	}
	in := s.inbox
	defer context.AfterFunc(ctx, in.abort)()
	if s.backend.StableBodies && sent.octets < size {
		return s.resumeAt(ctx, i, size, sent.octets)
	}
	r, err := s.fetch(ctx, i, itemsWhole)
	if err != nil {
		return nil, err
	}
	if !r.section.is("BODY[]") || r.section.size != size {
		return nil, errChanged
	}
	var again seal
	again.hash.SetSeed(sent.hash.Seed())
	for again.octets < sent.octets {
		chunk, err := r.section.peek(1)
		if err != nil {
			return nil, in.explain(ctx, err)
		}
		chunk = chunk[:min(int64(len(chunk)), sent.octets-again.octets)]
		again.add(chunk)
		r.section.passed(len(chunk))
	}
	if again.hash.Sum64() != sent.hash.Sum64() {
		return nil, errChanged
	}
	return r, nil
}

// resumeAt asks for the rest only, of a server known to give the same octets
// always.
func (s *session) resumeAt(ctx context.Context, i int, size, offset int64) (*row, error) {
	r, err := s.fetch(ctx, i, fmt.Sprintf("%s<%d.%d>", itemsWhole, offset, size-offset))
	if err != nil {
		return nil, err
	}
	if !r.section.is(fmt.Sprintf("BODY[]<%d>", offset)) || r.section.size != size-offset {
		return nil, errChanged
	}
	return r, nil
}
