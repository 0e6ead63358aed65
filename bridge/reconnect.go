package bridge

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"

	"postern/bridge/inbox"
	"postern/proxy"
)

var (
	errRenumbered = errors.New("UIDVALIDITY has changed")
	errChanged    = errors.New("message is not what was begun to send")
)

// reconnect replaces the connection to the server by a new one with the same
// UIDVALIDITY, so that the numbers of the session stay valid. It consults neither the
// guard nor the route. An error has proxy.ErrBackendClosed in its tree and never a
// *proxy.Refusal: the password was right, even if the server refuses it now.
func (s *session) reconnect(ctx context.Context) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	cause := s.inbox.LossCause()
	s.inbox.Discard()
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

// connect does the work of reconnect after the old connection is closed.
func (s *session) connect(ctx context.Context) error {
	s.login.Again = true
	conn, capabilities, err := s.backend.LogIn(ctx, s.login)
	if ctx.Err() != nil {
		if err == nil {
			_ = conn.Close()
		}
		return context.Cause(ctx)
	}
	if err != nil {
		return fmt.Errorf("%w: log in again: %s", proxy.ErrBackendClosed, err.Error())
	}
	in := s.backend.open(conn, capabilities, s.login.Client, false)
	err = in.Select(ctx)
	if err == nil && in.Mailbox().UIDValidity != s.maildrop.uidValidity {
		s.renumbered = true
		in.Discard()
		return fmt.Errorf("%w: %w", proxy.ErrBackendClosed, errRenumbered)
	}
	if err != nil {
		in.Discard()
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return fmt.Errorf("%w: open INBOX again: %s", proxy.ErrBackendClosed, err.Error())
	}
	in.BeforeWait(s.flush)
	in.ReleaseBuffers()
	s.inbox, s.readAhead = in, readAhead{}
	return nil
}

// renumberedNow reports whether the server has given new UIDs to the messages.
func (s *session) renumberedNow() bool {
	if n := s.inbox.Mailbox().UIDValidity; n != 0 && n != s.maildrop.uidValidity {
		s.renumbered = true
	}
	return s.renumbered
}

// A sentHash has the number and the hash of the octets of a message that were sent.
type sentHash struct {
	octets int64
	hash   maphash.Hash
}

func (s *sentHash) digest() digest { return digest{s.octets, s.hash.Sum64()} }

func (s *sentHash) add(p []byte) {
	s.octets += int64(len(p))
	_, _ = s.hash.Write(p)
}

// resume opens a message of which a part was sent again, on a new connection, and skips
// the octets that were sent. It returns errChanged if these octets or the size differ
// now.
func (s *session) resume(ctx context.Context, i int, size int64, sent *sentHash) (*inbox.FetchResponse, error) {
	if err := s.reconnect(ctx); err != nil {
		return nil, err
	}
	in := s.inbox
	defer in.AbortOnDone(ctx)()
	if s.backend.StableBodies && sent.octets < size {
		return s.resumeAt(ctx, i, size, sent.octets)
	}
	r, err := s.fetch(ctx, i, inbox.Body)
	if err != nil {
		return nil, err
	}
	if !r.Section.Is("BODY[]") || r.Section.Size != size {
		return nil, errChanged
	}
	var again sentHash
	again.hash.SetSeed(sent.hash.Seed())
	for again.octets < sent.octets {
		chunk, err := r.Section.Peek(1)
		if err != nil {
			return nil, in.Explain(ctx, err)
		}
		chunk = chunk[:min(int64(len(chunk)), sent.octets-again.octets)]
		again.add(chunk)
		r.Section.Discard(len(chunk))
	}
	if again.hash.Sum64() != sent.hash.Sum64() {
		return nil, errChanged
	}
	return r, nil
}

// resumeAt fetches only the rest of a message, from a server with Backend.StableBodies.
func (s *session) resumeAt(ctx context.Context, i int, size, offset int64) (*inbox.FetchResponse, error) {
	r, err := s.fetch(ctx, i, fmt.Sprintf("%s<%d.%d>", inbox.Body, offset, size-offset))
	if err != nil {
		return nil, err
	}
	if !r.Section.Is(fmt.Sprintf("BODY[]<%d>", offset)) || r.Section.Size != size-offset {
		return nil, errChanged
	}
	return r, nil
}
