package bridge

import (
	"errors"
	"slices"

	"github.com/emersion/go-imap/v2"

	"postern/bridge/inbox"
	"postern/proxy"
)

// isolations bounds the searches of isolate for marks of other clients.
const isolations = 4

var (
	errMarks      = errors.New("other clients mark messages as deleted all the time")
	errNotRemoved = errors.New("server has not removed the messages")
)

// isolate removes messages from a server without UID EXPUNGE. A bare EXPUNGE removes all
// messages with the \Deleted flag, so isolate removes the flag from messages that other
// clients have marked before EXPUNGE, and restores the flag after EXPUNGE.
//
// The operator must configure isolate, because of its risks. A message that another
// client marks between the last search and EXPUNGE, a round trip, is removed with ours.
// Another client sees its marks disappear meanwhile. If Postern ends, or loses the server
// before the marks are restored and cannot reach the server again, the marks stay
// removed, and the other client has to mark again. The marks are stored nowhere: else a
// user who has removed a mark on purpose would get the mark back.
//
// Another session with isolate may take our marks for marks of other clients. So isolate
// ends with a search for our messages.
func (u *update) isolate(in *inbox.Inbox) error {
	for _, uids := range u.toRemove {
		u.addPending(proxy.StageStore, in.Store(u.ctx, uids, imap.StoreFlagsAdd, imap.FlagDeleted))
	}
	removed := u.unmarkOthers(in)
	if removed == nil {
		u.addPending(proxy.StageExpunge, in.Expunge(u.ctx))
		removed = u.wait()
	}
	if errors.Is(removed, proxy.ErrBackendClosed) {
		return removed // update reconnects and repeats all commands
	}
	u.restoreMarks(in)
	if removed == nil {
		removed = u.checkRemoved(in)
	}
	return errors.Join(removed, u.wait())
}

// unmarkOthers removes the flag from messages that other clients have marked, until two
// searches in a row find no such message: EXPUNGE would destroy a message that a search
// leaves out.
func (u *update) unmarkOthers(in *inbox.Inbox) error {
	ours := make(map[uint32]bool, len(u.marked))
	for _, uid := range u.marked {
		ours[uid] = true
	}
	clean := false
	for range isolations {
		marked, err := u.search(in, &imap.SearchCriteria{Flag: []imap.Flag{imap.FlagDeleted}})
		if err != nil {
			return err
		}
		var others []uint32
		for _, uid := range marked {
			if !ours[uid] {
				others = append(others, uid)
			}
		}
		if len(others) == 0 && clean {
			return nil
		}
		clean = len(others) == 0
		u.unmarked = append(u.unmarked, others...)
		for _, uids := range inbox.Sets(others) {
			u.addPending(proxy.StageStore, in.Store(u.ctx, uids, imap.StoreFlagsDel, imap.FlagDeleted))
		}
	}
	return errors.Join(u.wait(), errMarks)
}

// restoreMarks sets the flag of the unmarked messages again, as a best effort: QUIT
// succeeds without it.
func (u *update) restoreMarks(in *inbox.Inbox) {
	slices.Sort(u.unmarked)
	for _, uids := range inbox.Sets(slices.Compact(u.unmarked)) {
		u.pending = append(u.pending, step{proxy.StageStore, in.Store(u.ctx, uids, imap.StoreFlagsAdd, imap.FlagDeleted), true})
	}
}

// checkRemoved returns errNotRemoved if the server still has one of the messages.
func (u *update) checkRemoved(in *inbox.Inbox) error {
	for _, uids := range u.toRemove {
		left, err := u.search(in, &imap.SearchCriteria{UID: []imap.UIDSet{uids}})
		if err != nil {
			return err
		}
		if len(left) > 0 {
			return errNotRemoved
		}
	}
	return nil
}

// search waits for all pending commands and returns the UIDs that match criteria.
func (u *update) search(in *inbox.Inbox, criteria *imap.SearchCriteria) (uids []uint32, err error) {
	search := in.StartSearch(u.ctx, criteria)
	u.addPending(proxy.StageStore, func() error {
		found, err := search()
		if err == nil {
			uids, err = inbox.UIDs(found)
		}
		return err
	})
	err = u.wait()
	return uids, err
}
