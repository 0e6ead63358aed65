package bridge

import (
	"context"
	"errors"
	"fmt"

	"postern/proxy"
)

const (
	// aheadMost is how many octets a session may have asked for before its
	// client does. They wait in the buffers of the connection: the server is
	// slowed down by what is not read.
	aheadMost = 1 << 20
	// aheadFirst is with how many it begins; each time it was right it doubles
	// that. 32 messages of 4 KB are 1,600 in a second at 20 ms round trip.
	aheadFirst = 128 << 10
	// rowOctets is what a row has beside its body, and headerOctets what a
	// header is thought to have.
	rowOctets, headerOctets = 256, 4 << 10
	// aheadOfAll bounds what all sessions of a backend have asked for so.
	aheadOfAll = 256 << 20
)

// A reader of messages in their order: what follows is asked for before the
// client does.
type ahead struct {
	items  string
	last   int   // index of the message that the client has asked for
	until  int   // index of the first that was not asked for
	window int64 // octets that may be on their way; 0: the client does not read in order
	missed int   // messages that were asked for and had to be asked for again
}

// mostMissed is after how many such messages a session reads ahead no more:
// the server has an order of its own.
const mostMissed = 3

// turned tells of the client's next message, and returns whether it reads in
// order: this message is the first after the last one that is not marked as
// deleted, and is asked the same.
func (a *ahead) turned(d *maildrop, i int, items string) bool {
	inOrder := a.items == items && i > a.last && d.messages[i].uid > d.messages[a.last].uid
	for j := a.last + 1; inOrder && j < i; j++ {
		inOrder = d.messages[j].marks&deleted != 0
	}
	switch {
	case !inOrder:
		*a = ahead{items: items, until: i + 1, missed: a.missed}
	case a.window == 0:
		a.window = aheadFirst
	}
	a.last, a.until = i, max(a.until, i+1)
	return inOrder
}

// more returns the messages to ask for next: a run ascending in number and UID,
// when half of what may be on its way has come. What would be refused is left
// out.
func (a *ahead) more(d *maildrop, pending int64, refused func(*message) bool) (run []want) {
	if a.window == 0 || a.missed >= mostMissed || pending > a.window/2 {
		return nil
	}
	ranges, last := 0, d.messages[a.until-1].uid
	for a.until < len(d.messages) {
		m := &d.messages[a.until]
		w := want{uid: m.uid, octets: m.size + rowOctets}
		if a.items != itemsWhole {
			w.octets = headerOctets
		}
		if m.uid != last+1 {
			ranges++
		}
		if m.uid <= last || pending+w.octets > a.window || ranges == maxRanges {
			break
		}
		last = m.uid
		a.until++
		if m.marks&deleted == 0 && !refused(m) {
			run = append(run, w)
			pending += w.octets
		}
	}
	if run != nil {
		a.window = min(2*a.window, aheadMost)
	}
	return run
}

// fetch returns the row of the i-th message, at its first section. It asks for
// it unless that was done ahead, and for what is likely to be asked next.
func (s *session) fetch(ctx context.Context, i int, items string) (*row, error) {
	in, m := s.inbox, &s.drop.messages[i]
	one := want{uid: m.uid}
	tag, asked := in.wanting(m.uid, items)
	missed := !asked && i < s.ahead.until
	var run []want
	if s.ahead.turned(s.drop, i, items) && (items == itemsWhole || items == itemsHeader) && in.budget.Load() < aheadOfAll {
		if missed {
			s.ahead.missed++
			s.ahead.until = i + 1
		}
		run = s.ahead.more(s.drop, in.ahead, func(m *message) bool { return s.suspect(ctx, m).refused() })
	}
	var err error
	switch {
	case !asked:
		tag, err = in.ask(items, append([]want{one}, run...)...)
	case run != nil:
		_, err = in.ask(items, run...)
	}
	if err != nil {
		return nil, in.explain(ctx, err)
	}
	r, err := in.await(ctx, m.uid, tag)
	if (errors.Is(err, errVanished) || refused(err)) && (asked || run != nil) {
		// It may be another message that the server could not read.
		if tag, err = in.ask(items, one); err != nil {
			return nil, in.explain(ctx, err)
		}
		r, err = in.await(ctx, m.uid, tag)
	}
	return r, err
}

// first returns the row of a message when its first octets are there. A
// connection that was lost is replaced once.
func (s *session) first(ctx context.Context, i int, items, name string) (*row, error) {
	if s.moved() {
		return nil, fmt.Errorf("%w: %w", proxy.ErrBackendClosed, errRenumbered)
	}
	if s.inbox.link.dead() {
		if err := s.reconnect(ctx); err != nil {
			return nil, err
		}
	}
	m := &s.drop.messages[i]
	r, err := s.ready(ctx, i, items, name)
	if !errors.Is(err, proxy.ErrBackendClosed) {
		return r, err
	}
	broken := errors.Is(err, errSyntax)
	switch {
	case broken && s.inbox.blamed == m.uid:
		return nil, err // it would come so again, and others go on
	case broken && s.inbox.blamed != 0: // one that was read ahead
		s.cut(ctx, &message{uid: s.inbox.blamed})
	}
	if again := s.reconnect(ctx); again != nil && broken {
		return nil, fmt.Errorf("%w; %s", again, err.Error())
	} else if again != nil {
		return nil, fmt.Errorf("%w; %w", err, again)
	}
	r, err = s.ready(ctx, i, items, name)
	if errors.Is(err, proxy.ErrBackendClosed) && !errors.Is(err, errSyntax) {
		err = s.blame(ctx, m, err)
	}
	return r, err
}

// ready returns the row of a message when of its section with that name the
// first octets are there: all of a small one. Dovecot gives empty sections of a
// message that has vanished: errEmpty.
func (s *session) ready(ctx context.Context, i int, items, name string) (*row, error) {
	in := s.inbox
	defer context.AfterFunc(ctx, in.abort)()
	r, err := s.fetch(ctx, i, items)
	if err != nil {
		return nil, err
	}
	for !r.section.is(name) {
		if err = r.next(); err == nil && r.section == nil {
			err = errItems
		}
		if err != nil {
			in.abort()
			return nil, in.explain(ctx, err)
		}
	}
	want := 1
	if r.section.left <= small {
		want = small
	}
	_, err = r.section.peek(want)
	if err == nil && r.section.left <= small {
		err = r.section.complete()
	}
	if err != nil {
		return nil, in.explain(ctx, err)
	}
	if r.section.size == 0 && !s.drop.messages[i].empty() {
		return nil, errEmpty
	}
	if err := s.admissible(ctx, r.section); err != nil {
		return nil, err
	}
	return r, nil
}
