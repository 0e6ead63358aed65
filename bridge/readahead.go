package bridge

import (
	"context"
	"errors"
	"fmt"

	"postern/bridge/inbox"
	"postern/proxy"
)

const (
	// maxWindow bounds the octets that a session may request before its client does.
	// The octets wait in the buffers of the connection: unread octets slow the server
	// down.
	maxWindow = 1 << 20
	// firstWindow is the first window; each further run doubles the window. 32
	// messages of 4 KB a round trip of 20 ms are 1,600 messages a second.
	firstWindow = 128 << 10
	// rowOctets is the length of a FETCH response without its body. headerOctets is
	// the assumed length of a header.
	rowOctets, headerOctets = 256, 4 << 10
	// maxAheadOctets bounds the octets that all sessions of a backend have requested ahead.
	maxAheadOctets = 256 << 20
)

// A readAhead requests the messages that the client will probably request next: the
// following ones in their order.
type readAhead struct {
	items  string
	last   int   // index of the last message that the client has requested
	until  int   // index of the first message that was not requested from the server
	window int64 // bound of the octets on their way; 0: the client does not read in order
	missed int   // messages that had to be requested twice
}

// maxMissed is the number of missed messages after which a session stops reading ahead:
// the server responds in an order of its own.
const maxMissed = 3

// advance moves a to the client's next message, and reports whether the client reads in
// order: the message is the next one that is not marked as deleted, and the client
// requests the same items.
func (a *readAhead) advance(d *maildrop, i int, items string) bool {
	inOrder := a.items == items && i > a.last && d.messages[i].uid > d.messages[a.last].uid
	for j := a.last + 1; inOrder && j < i; j++ {
		inOrder = d.messages[j].marks&deleted != 0
	}
	switch {
	case !inOrder:
		*a = readAhead{items: items, until: i + 1, missed: a.missed}
	case a.window == 0:
		a.window = firstWindow
	}
	a.last, a.until = i, max(a.until, i+1)
	return inOrder
}

// nextRun returns the messages to request next: a run ascending in number and UID. It
// returns nil while more than half of the window is pending. Messages for which refused
// returns true are left out.
func (a *readAhead) nextRun(d *maildrop, pending int64, refused func(*message) bool) (run []inbox.Request) {
	if a.window == 0 || a.missed >= maxMissed || pending > a.window/2 {
		return nil
	}
	ranges, last := 0, d.messages[a.until-1].uid
	for a.until < len(d.messages) {
		m := &d.messages[a.until]
		w := inbox.Request{UID: m.uid, Octets: m.size + rowOctets}
		if a.items != inbox.Body {
			w.Octets = headerOctets
		}
		if m.uid != last+1 {
			ranges++
		}
		if m.uid <= last || pending+w.Octets > a.window || ranges == inbox.MaxRanges {
			break
		}
		last = m.uid
		a.until++
		if m.marks&deleted == 0 && !refused(m) {
			run = append(run, w)
			pending += w.Octets
		}
	}
	if run != nil {
		a.window = min(2*a.window, maxWindow)
	}
	return run
}

// fetch returns the response for the i-th message, at its first section. It requests
// the message unless that was done ahead, and requests the next run of messages.
func (s *session) fetch(ctx context.Context, i int, items string) (*inbox.FetchResponse, error) {
	in, m := s.inbox, &s.maildrop.messages[i]
	one := inbox.Request{UID: m.uid}
	tag, asked := in.Requested(m.uid, items)
	missed := !asked && i < s.readAhead.until
	var run []inbox.Request
	if s.readAhead.advance(s.maildrop, i, items) && (items == inbox.Body || items == inbox.Header) && s.backend.aheadOctets.Load() < maxAheadOctets {
		if missed {
			s.readAhead.missed++
			s.readAhead.until = i + 1
		}
		run = s.readAhead.nextRun(s.maildrop, in.PendingOctets(), func(m *message) bool { return s.fault(ctx, m).refused() })
	}
	var err error
	switch {
	case !asked:
		tag, err = in.Fetch(items, append([]inbox.Request{one}, run...)...)
	case run != nil:
		_, err = in.Fetch(items, run...)
	}
	if err != nil {
		return nil, in.Explain(ctx, err)
	}
	r, err := in.Await(ctx, m.uid, tag)
	if (errors.Is(err, inbox.ErrVanished) || inbox.Refused(err)) && (asked || run != nil) {
		// The refusal may concern another message of the same command.
		if tag, err = in.Fetch(items, one); err != nil {
			return nil, in.Explain(ctx, err)
		}
		r, err = in.Await(ctx, m.uid, tag)
	}
	return r, err
}

// openWithReconnect returns the response for a message when its first octets are there.
// It replaces a lost connection once.
func (s *session) openWithReconnect(ctx context.Context, i int, items, name string) (*inbox.FetchResponse, error) {
	if s.renumberedNow() {
		return nil, fmt.Errorf("%w: %w", proxy.ErrBackendClosed, errRenumbered)
	}
	if s.inbox.Dead() {
		if err := s.reconnect(ctx); err != nil {
			return nil, err
		}
	}
	m := &s.maildrop.messages[i]
	r, err := s.awaitFirstOctets(ctx, i, items, name)
	if !errors.Is(err, proxy.ErrBackendClosed) {
		return r, err
	}
	broken := errors.Is(err, inbox.ErrSyntax)
	switch {
	case broken && s.inbox.MalformedUID() == m.uid:
		return nil, err // the response would be malformed again; other messages can be sent
	case broken && s.inbox.MalformedUID() != 0: // a message that was read ahead
		s.recordCut(ctx, &message{uid: s.inbox.MalformedUID()})
	}
	if again := s.reconnect(ctx); again != nil && broken {
		return nil, fmt.Errorf("%w; %s", again, err.Error())
	} else if again != nil {
		return nil, fmt.Errorf("%w; %w", err, again)
	}
	r, err = s.awaitFirstOctets(ctx, i, items, name)
	if errors.Is(err, proxy.ErrBackendClosed) && !errors.Is(err, inbox.ErrSyntax) {
		err = s.noteCut(ctx, m, err)
	}
	return r, err
}

// awaitFirstOctets returns the response for a message when the first octets of the
// section called name are there; a small section is read whole. It returns errEmpty for
// an empty section: Dovecot sends empty sections of a message that has vanished.
func (s *session) awaitFirstOctets(ctx context.Context, i int, items, name string) (*inbox.FetchResponse, error) {
	in := s.inbox
	defer in.AbortOnDone(ctx)()
	r, err := s.fetch(ctx, i, items)
	if err != nil {
		return nil, err
	}
	for !r.Section.Is(name) {
		if err = r.Next(); err == nil && r.Section == nil {
			err = inbox.ErrItems
		}
		if err != nil {
			in.Abort()
			return nil, in.Explain(ctx, err)
		}
	}
	want := 1
	if r.Section.Left <= smallBody {
		want = smallBody
	}
	_, err = r.Section.Peek(want)
	if err == nil && r.Section.Left <= smallBody {
		err = r.Section.CheckEnd()
	}
	if err != nil {
		return nil, in.Explain(ctx, err)
	}
	if r.Section.Size == 0 && !s.maildrop.messages[i].empty() {
		return nil, errEmpty
	}
	if err := s.admissible(ctx, r.Section); err != nil {
		return nil, err
	}
	return r, nil
}
