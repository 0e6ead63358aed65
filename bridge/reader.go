package bridge

import (
	"context"
	"fmt"
	"io"
	"slices"

	"github.com/emersion/go-imap/v2"

	"postern/bridge/inbox"
	"postern/proxy"
)

// A Reader reads the messages of an INBOX for an operator. It changes nothing on the
// server, and stores nothing. Its methods are for one goroutine at a time. Their errors
// are those of package inbox.
type Reader struct {
	UIDValidity uint32
	UIDNext     uint32   // 0: the server does not say
	UIDs        []uint32 // ascending
	Sizes       []int64  // RFC822.SIZE by the index of the message; 0: the server does not say

	inbox *inbox.Inbox
}

// Read logs l in and lists INBOX. UIDs has all messages: a listing that differs from
// EXISTS is an error.
func (b *Backend) Read(ctx context.Context, l *proxy.Login) (*Reader, error) {
	r, err := b.logInReader(ctx, l)
	if err != nil {
		return nil, err
	}
	if err := r.List(ctx); err != nil {
		r.inbox.Discard()
		return nil, err
	}
	return r, nil
}

// OpenReader logs l in. The Reader has no messages, and INBOX is not open, before List.
func (b *Backend) OpenReader(ctx context.Context, l *proxy.Login) (*Reader, error) {
	return b.logInReader(ctx, l)
}

func (b *Backend) logInReader(ctx context.Context, l *proxy.Login) (*Reader, error) {
	conn, capabilities, err := b.LogIn(ctx, l)
	if err != nil {
		return nil, err
	}
	return &Reader{inbox: inbox.New(conn, capabilities, inbox.Options{Timeout: b.timeout(), Keyword: hidden, Client: l.Client, Observe: b.observe})}, nil
}

// List opens INBOX and lists it, once. A listing that differs from EXISTS is an error.
func (r *Reader) List(ctx context.Context) error {
	v, err := r.inbox.Open(ctx, false)
	if err != nil {
		return err
	}
	r.UIDValidity, r.UIDNext = v.UIDValidity, v.UIDNext
	all, agrees, err := r.inbox.Present(ctx)
	if err != nil {
		return err
	}
	if !agrees {
		return fmt.Errorf("%w: the search and EXISTS differ", inbox.ErrAnswer)
	}
	numbers, _ := all.Nums()
	for _, uid := range numbers {
		r.UIDs = append(r.UIDs, uint32(uid))
	}
	r.Sizes = make([]int64, len(r.UIDs))
	if len(r.UIDs) == 0 {
		return nil
	}
	return r.inbox.Sizes(ctx, all, (*sizeRows)(r))
}

// sizeRows takes the sizes of a Reader's messages.
type sizeRows Reader

// Row implements inbox.Rows.
func (r *sizeRows) Row(_ int64, uid uint32, size int64) {
	if i, ok := slices.BinarySearch(r.UIDs, uid); ok {
		r.Sizes[i] = size
	}
}

// MalformedRow implements inbox.Rows.
func (*sizeRows) MalformedRow() {}

// Expunged implements inbox.Rows.
func (*sizeRows) Expunged() {}

// Headers fetches the headers of messages by their index, in the order of the server.
// Each is written to the writer that begin returns, and end is called with its index when
// it is whole. Messages that the server does not send are left out, unless it says that the
// reason is temporary: that is an error.
func (r *Reader) Headers(ctx context.Context, indexes []int, begin func() io.Writer, end func(i int)) error {
	return r.each(ctx, r.inbox.Headers, indexes, begin, end)
}

// Contents is Headers for whole messages.
func (r *Reader) Contents(ctx context.Context, indexes []int, begin func() io.Writer, end func(i int)) error {
	return r.each(ctx, r.inbox.Bodies, indexes, begin, end)
}

type fetch func(ctx context.Context, uids imap.UIDSet, begin func() io.Writer, end func(uid uint32)) error

func (r *Reader) each(ctx context.Context, f fetch, indexes []int, begin func() io.Writer, end func(i int)) error {
	for some := range slices.Chunk(indexes, headersAtOnce) {
		var uids imap.UIDSet
		for _, i := range some {
			uids.AddNum(imap.UID(r.UIDs[i]))
		}
		err := f(ctx, uids, begin, func(uid uint32) {
			if i, ok := slices.BinarySearch(r.UIDs, uid); ok {
				end(i)
			}
		})
		if err != nil && (!inbox.Refused(err) || inbox.RefusedForNow(err)) {
			return err
		}
	}
	return nil
}

// Close ends the session.
func (r *Reader) Close() error { return r.inbox.Close() }
