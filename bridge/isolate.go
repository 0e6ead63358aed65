package bridge

import (
	"errors"
	"slices"

	"github.com/emersion/go-imap/v2"

	"postern/bridge/inbox"
	"postern/proxy"
)

// isolations is how often isolate looks for marks of other clients.
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
// another client marks between the last look and EXPUNGE, a round trip, is
// removed with ours; a client that looks meanwhile sees its marks gone; and when
// the server is lost before they are back and cannot be reached again, or
// Postern ends, they stay gone, so that the other client has to mark again.
// Nothing remembers them longer: who has taken a mark away on purpose would get
// it back.
//
// Another session of this kind may take our marks for those of others. So the
// end is a look whether ours have gone.
func (u *update) isolate(in *inbox.Inbox) error {
	for _, uids := range u.gone {
		u.expect(proxy.StageStore, in.Store(u.ctx, uids, imap.StoreFlagsAdd, imap.FlagDeleted))
	}
	removed := u.clear(in)
	if removed == nil {
		u.expect(proxy.StageExpunge, in.Expunge(u.ctx))
		removed = u.wait()
	}
	if errors.Is(removed, proxy.ErrBackendClosed) {
		return removed // maybe all of it can be done again
	}
	u.remark(in)
	if removed == nil {
		removed = u.look(in)
	}
	return errors.Join(removed, u.wait())
}

// clear takes the flag from what others have marked, until two looks in a row show
// that there is nothing of the kind: a search that leaves out one message would
// destroy the message.
func (u *update) clear(in *inbox.Inbox) error {
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
			u.expect(proxy.StageStore, in.Store(u.ctx, uids, imap.StoreFlagsDel, imap.FlagDeleted))
		}
	}
	return errors.Join(u.wait(), errMarks)
}

// remark gives the flag back. The client is not concerned.
func (u *update) remark(in *inbox.Inbox) {
	slices.Sort(u.unmarked)
	for _, uids := range inbox.Sets(slices.Compact(u.unmarked)) {
		u.pending = append(u.pending, step{proxy.StageStore, in.Store(u.ctx, uids, imap.StoreFlagsAdd, imap.FlagDeleted), true})
	}
}

// look is an error if the messages are there.
func (u *update) look(in *inbox.Inbox) error {
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
	u.expect(proxy.StageStore, func() error {
		found, err := search()
		if err == nil {
			uids, err = inbox.UIDs(found)
		}
		return err
	})
	err = u.wait()
	return uids, err
}
