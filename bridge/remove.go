package bridge

import (
	"context"
	"fmt"

	"github.com/emersion/go-imap/v2"

	"postern/proxy"
)

// maxRanges bounds the UID set of one command to 8 KiB: a range takes up to 22
// octets, and servers bound the length of a line.
const maxRanges = 370

// update does what QUIT promises: \Seen for what was retrieved, if that can be
// had, then the removal of what is marked, which must succeed. All commands go
// at once: a server must execute in order what depends on each other (RFC 9051
// section 5.5), and UID EXPUNGE removes only what has the flag.
//
// It does not stop when the session is told to end: half of it would be worse.
func (s *session) update(ctx context.Context) error {
	seen := uidSets(s.drop.uids(retrieved, deleted))
	marked := s.drop.uids(deleted, 0)
	gone := uidSets(marked)
	if len(seen)+len(gone) == 0 {
		return nil
	}
	ctx = context.WithoutCancel(ctx)
	defer s.inbox.begin(ctx)()
	u := update{session: s, ctx: ctx}
	for _, uids := range seen {
		u.expect(proxy.StageSeen, s.inbox.store(uids, imap.FlagSeen))
	}
	for _, uids := range gone {
		u.expect(proxy.StageStore, s.inbox.store(uids, imap.FlagDeleted))
	}
	for _, uids := range gone {
		if s.inbox.uidPlus {
			u.expect(proxy.StageExpunge, s.inbox.expunge(uids))
		}
	}
	err := u.wait()
	if err == nil {
		s.totals.Deleted = len(marked)
	}
	return err
}

// An update is the commands of QUIT, in order.
type update struct {
	session *session
	ctx     context.Context //nolint:containedctx // that of one command
	stages  []string
	pending []interface{ Close() error }
}

func (u *update) expect(stage string, command interface{ Close() error }) {
	u.stages = append(u.stages, stage)
	u.pending = append(u.pending, command)
}

// wait returns the first error that keeps a promise from being kept.
func (u *update) wait() (failed error) {
	said := make(map[string]bool)
	for i, command := range u.pending {
		stage, err := u.stages[i], command.Close()
		if err == nil {
			continue
		}
		err = u.session.inbox.explain(u.ctx, err)
		if !said[stage] {
			said[stage] = true
			u.session.backend.observe(proxy.UpdateFailed{Client: u.session.client, Stage: stage, Err: err})
		}
		if failed == nil && stage != proxy.StageSeen {
			failed = fmt.Errorf("%s: %w", stage, err)
		}
	}
	return failed
}

// uidSets returns ascending UIDs as sets that are fit for a command each.
func uidSets(uids []uint32) (sets []imap.UIDSet) {
	var set imap.UIDSet
	for _, uid := range uids {
		uid := imap.UID(uid)
		if last := len(set) - 1; last >= 0 && set[last].Stop+1 == uid {
			set[last].Stop = uid
			continue
		}
		if len(set) == maxRanges {
			sets, set = append(sets, set), nil
		}
		set = append(set, imap.UIDRange{Start: uid, Stop: uid})
	}
	if len(set) > 0 {
		sets = append(sets, set)
	}
	return sets
}
