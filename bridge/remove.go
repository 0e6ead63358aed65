package bridge

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/emersion/go-imap/v2"

	"postern/bridge/inbox"
	"postern/proxy"
)

// A Deletion is the effect of DELE at QUIT.
type Deletion uint8

// The deletions.
const (
	Expunge Deletion = iota // UID EXPUNGE removes the message; without UIDPLUS the message is marked, and hidden from POP3
	Isolate                 // as Expunge, but without UIDPLUS a bare EXPUNGE removes the message: see update.isolate
	Trash                   // the message moves to the \Trash mailbox, RFC 6154
	Hide                    // POP3 no longer shows the message, which gets the keyword $POP3Deleted
	Keep                    // no effect
)

var deletions = [...]string{Expunge: "expunge", Isolate: "isolate", Trash: "trash", Hide: "hide", Keep: "keep"}

// String returns the deletion's name in the configuration.
func (d Deletion) String() string { return deletions[d] }

// ParseDeletion returns the Deletion with a name in the configuration; false if there is none.
func ParseDeletion(name string) (Deletion, bool) {
	i := slices.Index(deletions[:], name)
	return Deletion(max(i, 0)), i >= 0
}

// notFreed is the capability of a maildrop for which Deletion.flags is true: the space
// of deleted messages is freed by the next IMAP client that expunges. There is no
// standard capability for that; names with an X are for private use, RFC 2449 section 9.
const notFreed = "X-SPACE-FREED-BY IMAP"

// flags reports whether d can only set the \Deleted flag on a server with traits t: the
// message then stays, hidden from POP3, until another client removes it.
func (d Deletion) flags(t inbox.Traits) bool {
	return !t.UIDPlus && (d == Expunge || d == Trash && !t.Move)
}

var errNoTrash = errors.New("server has no \\Trash mailbox")

// hide removes the messages that earlier sessions have hidden from the maildrop.
func (s *session) hide(ctx context.Context) error {
	if err := s.checkKeyword(); err != nil {
		return err
	}
	flagged, tombstoned := s.inbox.TakeKeywordMatches(), s.deletedUIDs
	s.deletedUIDs = nil
	if s.backend.Delete == Hide {
		var err error
		if tombstoned, err = s.stillHidden(ctx, tombstoned, flagged); err != nil {
			return cannotOpen(err)
		}
	}
	if len(flagged)+len(tombstoned)+len(s.unhidden) == 0 {
		return nil
	}
	found := 0
	s.maildrop.hide(func(uid uint32) bool {
		_, ok := slices.BinarySearch(tombstoned, uid)
		if ok {
			found++
		}
		return ok || inbox.Contains(flagged, uid)
	})
	s.staleTombstones = s.maildrop.proven && found < len(tombstoned) || len(s.unhidden) > 0
	return nil
}

// checkKeyword returns an error if the deletion is Hide and INBOX takes no keyword.
func (s *session) checkKeyword() error {
	box := s.inbox.Mailbox()
	switch {
	case s.backend.Delete != Hide || box.Keyword:
		return nil
	case !box.PermanentFlags:
		return cannotOpen(fmt.Errorf("%w: no PERMANENTFLAGS, which say whether deleted messages can be hidden", inbox.ErrAnswer))
	}
	return &proxy.Refusal{
		Reason: proxy.Unusable, Verified: true,
		Err: errors.New("INBOX takes no keyword, which is needed to hide deleted messages"),
	}
}

// stillHidden returns the hidden messages that still have the keyword. It searches twice
// more for a message without the keyword. If the keyword is still missing, another
// client has removed it, and the message is shown again.
func (s *session) stillHidden(ctx context.Context, tombstoned []uint32, flagged imap.UIDSet) (still []uint32, err error) {
	var doubtful []uint32
	for _, uid := range tombstoned {
		if !inbox.Contains(flagged, uid) && s.maildrop.find(uid) != nil {
			doubtful = append(doubtful, uid)
		} else {
			still = append(still, uid)
		}
	}
	for range hiddenChecks {
		var lost []uint32
		for _, set := range inbox.Sets(doubtful) {
			found, err := s.inbox.SearchKeyword(ctx, set)
			if err != nil {
				return nil, err
			}
			for _, uid := range doubtful {
				switch {
				case !set.Contains(imap.UID(uid)):
				case inbox.Contains(found, uid):
					still = append(still, uid)
				default:
					lost = append(lost, uid)
				}
			}
		}
		doubtful = lost
	}
	s.unhidden = doubtful
	slices.Sort(still)
	return still, nil
}

// hiddenChecks is the number of further searches for a message that has lost the
// keyword.
const hiddenChecks = 2

// update performs the UPDATE state of QUIT. After a lost connection it reconnects and
// repeats all commands: repeated, they change nothing more, except that COPY may leave
// a second copy.
//
// update does not stop at the end of the session's context: half an update would be
// worse.
func (s *session) update(ctx context.Context) error {
	var seen []uint32
	if !s.backend.KeepUnseen {
		seen = s.maildrop.uids(retrieved, deleted)
	}
	var marked []uint32
	if s.backend.Delete != Keep {
		marked = s.maildrop.uids(deleted, 0)
	}
	if len(seen)+len(marked) == 0 {
		return nil
	}
	ctx = context.WithoutCancel(ctx)
	removes := s.backend.Delete != Hide && !s.backend.Delete.flags(s.inbox.Traits())
	if removes && len(marked) >= manyMessages {
		s.maildrop.setRemoved() // whatever happens next, the brake must not take the removal for a fault
		s.saveSnapshot(ctx)
	}
	u := update{session: s, ctx: ctx, seen: inbox.Sets(seen), marked: marked, toRemove: inbox.Sets(marked)}
	err := errRenumbered
	if !s.renumberedNow() {
		err = u.do()
	}
	if len(marked) == 0 {
		return nil
	}
	if errors.Is(err, proxy.ErrBackendClosed) {
		if err = s.reconnect(ctx); err == nil {
			u.seen = nil // best effort
			err = u.do()
		}
	}
	if err == nil && s.backend.Record != nil && (s.backend.Delete == Hide || s.backend.Delete.flags(s.inbox.Traits())) {
		err = s.recordTombstones(ctx, marked)
	}
	if err != nil {
		if inbox.Refused(err) {
			s.maildrop.setNotRemoved()
		}
		u.observeFailure(err)
		return err
	}
	s.totals.Deleted = len(marked)
	return nil
}

// An update sends the commands of QUIT: \Seen for the retrieved messages, as a best
// effort, then the Deletion of the marked messages. The commands that remove are sent
// after OK for the other ones. UID EXPUNGE removes only messages with the \Deleted flag.
type update struct {
	session        *session
	ctx            context.Context //nolint:containedctx // the context of one command
	marked         []uint32
	seen, toRemove []imap.UIDSet // toRemove: the UIDs of marked
	unmarked       []uint32      // messages that other clients had marked, for isolate
	pending        []step
	stopped        string // the stage of the last failure
}

// A step is a command whose answer is awaited.
type step struct {
	stage string
	wait  func() error
	best  bool // best effort: QUIT succeeds without the command
}

func (u *update) do() error {
	in := u.session.inbox
	var trash []byte
	if u.session.backend.Delete == Trash && len(u.toRemove) > 0 {
		var err error
		if trash, err = in.TrashMailbox(u.ctx); err != nil {
			return fmt.Errorf("%s: %w", proxy.StageStore, err)
		}
		if trash == nil {
			return errNoTrash
		}
	}
	for _, uids := range u.seen {
		u.addPending(proxy.StageSeen, in.Store(u.ctx, uids, imap.StoreFlagsAdd, imap.FlagSeen))
	}
	switch {
	case u.session.backend.Delete == Isolate && !in.Traits().UIDPlus && len(u.toRemove) > 0:
		return u.isolate(in)
	case trash != nil && in.Traits().Move:
		for _, uids := range u.toRemove {
			u.addPending(proxy.StageExpunge, in.Move(u.ctx, uids, trash))
		}
		return u.wait()
	case trash != nil:
		for _, uids := range u.toRemove {
			u.addPending(proxy.StageStore, in.Copy(u.ctx, uids, trash))
		}
		if err := u.wait(); err != nil {
			return err
		}
	}
	return u.remove(in)
}

// remove removes messages, or marks them. Without a record of tombstones, the keyword
// shows later sessions which messages to hide, if the server takes a keyword.
func (u *update) remove(in *inbox.Inbox) error {
	flags := []imap.Flag{imap.FlagDeleted}
	marks := u.session.backend.Delete.flags(in.Traits())
	switch {
	case u.session.backend.Delete == Hide:
		flags = []imap.Flag{hidden}
	case marks && u.session.backend.Record == nil && in.Mailbox().Keyword:
		flags = append(flags, hidden)
	}
	for _, uids := range u.toRemove {
		u.addPending(proxy.StageStore, in.Store(u.ctx, uids, imap.StoreFlagsAdd, flags...))
	}
	// UID EXPUNGE waits for OK to STORE. Pipelined with STORE, UID EXPUNGE may remove
	// nothing and be OK, in Dovecot 2.3 while another client's changes are pending.
	if err := u.wait(); err != nil || marks || u.session.backend.Delete == Hide {
		return err
	}
	for _, uids := range u.toRemove {
		u.addPending(proxy.StageExpunge, in.UIDExpunge(u.ctx, uids))
	}
	return u.wait()
}

func (u *update) addPending(stage string, wait func() error) {
	u.pending = append(u.pending, step{stage: stage, wait: wait, best: stage == proxy.StageSeen})
}

// wait waits for all pending commands. It returns the first error of a command that is
// not a best effort. It reports refusals, but not a lost connection, which update may
// replace.
func (u *update) wait() (failed error) {
	observed := make(map[string]bool)
	for _, step := range u.pending {
		err := step.wait()
		if err == nil {
			continue
		}
		err = fmt.Errorf("%s: %w", step.stage, err)
		if step.best || inbox.Refused(err) {
			if !observed[step.stage] {
				u.observe(step.stage, err)
			}
			observed[step.stage] = true
		}
		if failed == nil && !step.best {
			failed, u.stopped = err, step.stage
		}
	}
	u.pending = nil
	return failed
}

// observeFailure reports the failure of the update, unless wait has reported it.
func (u *update) observeFailure(err error) {
	if !inbox.Refused(err) {
		u.observe(cmp.Or(u.stopped, proxy.StageStore), err)
	}
}

func (u *update) observe(stage string, err error) {
	u.session.backend.observe(proxy.UpdateFailed{Client: u.session.login.Client, Stage: stage, Err: err})
}
