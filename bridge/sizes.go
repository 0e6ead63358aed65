package bridge

import (
	"bytes"
	"context"

	"postern/bridge/inbox"
)

// maxProbes is of how many messages a session fetches the last octets.
const maxProbes = 200

// exactSizes makes the sizes exact that LIST is about to show for the first time:
// RETR adds a CRLF to what does not end in one, which RFC822.SIZE does not
// count. It fetches the last two octets of all messages of a small maildrop,
// and of a large one at those of messages that no session has seen yet. What
// goes wrong with that is not worth a word: RETR counts again. But Dovecot hangs
// up over a message that ends in CR CR LF: the one it was at is not asked for its
// end again, or every session would lose its connection so.
func (s *session) exactSizes(ctx context.Context) {
	if s.sizesExact || s.backend.Estimates {
		return
	}
	s.sizesExact = true
	var unsure []*message
	for i := len(s.maildrop.messages) - 1; i >= 0 && len(unsure) < maxProbes; i-- {
		m := &s.maildrop.messages[i]
		switch {
		case m.marks&(exact|endSkipped|unsized|deleted) != 0:
		case m.size < 2:
			s.maildrop.setExactSize(m, m.size+2)
		case len(s.maildrop.messages) <= maxProbes || s.seenBelow != 0 && m.uid >= s.seenBelow:
			unsure = append(unsure, m)
		}
	}
	if len(unsure) > 0 && !s.inbox.Dead() {
		_ = s.flush()
		s.lookAtEnds(ctx, unsure)
	}
}

// lookAtEnds asks for the ends of messages. The message that the server was at when
// the connection was lost is marked.
func (s *session) lookAtEnds(ctx context.Context, messages []*message) {
	requests := make([]inbox.Request, len(messages))
	byUID := make(map[uint32]*message, len(messages))
	for i, m := range messages {
		requests[i], byUID[m.uid] = inbox.Request{UID: m.uid, Octets: m.size}, m
	}
	at, _ := s.inbox.LastOctets(ctx, requests, func(uid uint32, octets []byte) {
		m := byUID[uid]
		if bytes.Equal(octets, []byte("\r\n")) {
			s.maildrop.setExactSize(m, m.size)
		} else {
			s.maildrop.setExactSize(m, m.size+2)
		}
	})
	if at != 0 {
		s.maildrop.find(at).marks |= endSkipped
		s.maildrop.changed = true
	}
}
