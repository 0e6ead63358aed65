package bridge

import (
	"bytes"
	"context"

	"postern/bridge/inbox"
)

// maxProbes bounds the messages whose last octets a session fetches.
const maxProbes = 200

// exactSizes makes the sizes exact that LIST shows for the first time. RETR adds a CRLF
// to a body without one at its end, which RFC822.SIZE does not count. exactSizes fetches
// the last two octets of all messages of a small maildrop, and of the new messages, which
// no session has seen, of a large one. An error is ignored: RETR counts again. But
// Dovecot closes the connection at a message that ends in CR CR LF. The end of such a
// message is not fetched again, else every session would lose its connection.
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

// lookAtEnds fetches the ends of messages. If the connection is lost, lookAtEnds marks
// the message whose end came next.
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
