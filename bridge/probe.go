package bridge

import (
	"bytes"
	"context"
	"strconv"
)

// maxProbes is how many messages a session looks at the end of.
const maxProbes = 200

// probe makes the sizes exact that LIST is about to show for the first time:
// RETR adds a CRLF to what does not end in one, which RFC822.SIZE does not
// count. It looks at the last two octets of all messages of a small maildrop,
// and of a large one at those of messages that no session has seen yet. What
// goes wrong with that is not worth a word: RETR counts again. But Dovecot hangs
// up over a message that ends in CR CR LF: the one it was at is not asked for its
// end again, or every session would lose its connection so.
func (s *session) probe(ctx context.Context) {
	if s.probed || s.backend.Estimates {
		return
	}
	s.probed = true
	var unsure []*message
	for i := len(s.drop.messages) - 1; i >= 0 && len(unsure) < maxProbes; i-- {
		m := &s.drop.messages[i]
		switch {
		case m.marks&(exact|unprobed|unsized|deleted) != 0:
		case m.size < 2:
			s.drop.measured(m, m.size+2)
		case len(s.drop.messages) <= maxProbes || s.seen != 0 && m.uid >= s.seen:
			unsure = append(unsure, m)
		}
	}
	if len(unsure) > 0 && !s.inbox.link.dead() {
		_ = s.flush()
		defer context.AfterFunc(ctx, s.inbox.abort)()
		if err := s.lookAtEnds(unsure); err != nil {
			s.inbox.abort()
			s.blameEnd(ctx)
		}
	}
}

// blameEnd marks the message that the server was at when probing went wrong.
func (s *session) blameEnd(ctx context.Context) {
	if len(s.inbox.wants) == 0 || ctx.Err() != nil {
		return
	}
	s.drop.find(s.inbox.wants[0].uid).marks |= unprobed
	s.drop.changed = true
}

// lookAtEnds asks for all ends at once, and for each by a command of its own:
// where it is depends on the message.
func (s *session) lookAtEnds(messages []*message) error {
	in := s.inbox
	byUID := make(map[uint32]*message, len(messages))
	for _, m := range messages {
		byUID[m.uid] = m
		in.put(itemsWhole+"<"+strconv.FormatInt(m.size-2, 10)+".2>", want{uid: m.uid})
	}
	if err := in.send(); err != nil {
		return err
	}
	for len(in.wants) > 0 {
		r, err := in.response(0, 0)
		if err != nil {
			return err
		}
		if r == nil {
			continue
		}
		i := in.find(r.uid)
		if i < 0 {
			continue
		}
		m := byUID[in.wants[i].uid]
		r.wanted = in.wants[i].uid
		if m != nil && r.section.size == 2 && r.section.is("BODY[]<") { // else RFC822.SIZE was a guess
			end, err := r.section.peek(2)
			if err != nil {
				return err
			}
			crlf := bytes.Equal(end, []byte("\r\n"))
			if err := in.finish(); err != nil { // else these may be other octets
				return err
			}
			if crlf {
				s.drop.measured(m, m.size)
			} else {
				s.drop.measured(m, m.size+2)
			}
		}
		in.came(i)
	}
	return nil
}
