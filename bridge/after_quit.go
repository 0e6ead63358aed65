package bridge

import (
	"context"

	"postern/bridge/inbox"
)

// confirmRemoved searches, after the response to QUIT, for removed messages that the
// server still has. The tagged OK of UID EXPUNGE does not prove the removal: UID EXPUNGE
// passes over a message that has lost its flag meanwhile. A message that the search
// does not find is left out of the snapshot, so that EXISTS adds up at the next poll,
// which then costs one SELECT in place of a search for all messages.
//
// The proof is that of listing: all messages below UIDNEXT are in a proven snapshot
// without the certainly gone messages. So if EXISTS is the number of messages in that
// snapshot, the snapshot is right.
func (s *session) confirmRemoved() {
	d := s.backend.Delete
	if !s.updated || s.totals.Deleted == 0 || s.backend.Cache == nil || !s.maildrop.proven || s.renumbered || d == Hide || d.flags(s.inbox.Traits()) {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), fingerprintsTime)
	defer cancel()
	if s.readUIDLs(ctx) != nil {
		return
	}
	for _, uids := range inbox.Sets(s.maildrop.uids(deleted, 0)) {
		left, err := s.inbox.Search(ctx, uids)
		if err != nil {
			return
		}
		for i := range s.maildrop.messages {
			m := &s.maildrop.messages[i]
			if m.marks&deleted != 0 && inbox.Contains(uids, m.uid) && !inbox.Contains(left, m.uid) {
				s.maildrop.goneHash += hashUIDL(s.uniqueID(nil, m))
				m.marks |= gone
				s.maildrop.changed = true
			}
		}
	}
}
