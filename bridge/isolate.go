package bridge

import (
	"errors"
	"slices"

	"github.com/emersion/go-imap/v2"

	"postern/bridge/inbox"
	"postern/proxy"
)

// isolations is how often isolate searches for marks of other clients.
const isolations = 4

var (
	errMarks      = errors.New("other clients mark messages as deleted all the time")
	errNotRemoved = errors.New("server has not removed the messages")
)

// isolate removes messages from a server that knows no UID EXPUNGE, only one
// that removes all that have the \Deleted flag. Messages that other clients have
// marked lose the flag before it and get it back after it.
//
// What can go wrong, and is why the operator has to ask for it: a message that
// another client marks between the last search and EXPUNGE, a round trip, is
// removed with ours; another client sees its marks gone meanwhile; and when
// the server is lost before they are back and cannot be reached again, or
// Postern ends, they stay gone, so that the other client has to mark again.
// Nothing remembers them longer: who has taken a mark away on purpose would get
// it back.
//
// Another session of this kind may take our marks for those of others. So the
// end is a search whether ours have gone.
func (u *update) isolate(in *inbox.Inbox) error {
	for _, uids := range u.gone {
		u.addPending(proxy.StageStore, in.Store(u.ctx, uids, imap.StoreFlagsAdd, imap.FlagDeleted))
	}
	removed := u.unmarkOthers(in)
	if removed == nil {
		u.addPending(proxy.StageExpunge, in.Expunge(u.ctx))
		removed = u.wait()
	}
	if errors.Is(removed, proxy.ErrBackendClosed) {
		return removed // maybe all of it can be done again
	}
	u.restoreMarks(in)
	if removed == nil {
		removed = u.checkRemoved(in)
	}
	return errors.Join(removed, u.wait())
}

// unmarkOthers takes the flag from messages that others have marked, until two searches in a
// row find none: a search that leaves out one message would
// destroy the message.
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

// restoreMarks gives the flag back. The client is not concerned.
func (u *update) restoreMarks(in *inbox.Inbox) {
	slices.Sort(u.unmarked)
	for _, uids := range inbox.Sets(slices.Compact(u.unmarked)) {
		u.pending = append(u.pending, step{proxy.StageStore, in.Store(u.ctx, uids, imap.StoreFlagsAdd, imap.FlagDeleted), true})
	}
}

// checkRemoved is an error if the messages are there.
func (u *update) checkRemoved(in *inbox.Inbox) error {
	for _, uids := range u.gone {
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

// search waits for all that was sent, and for what matches.
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
