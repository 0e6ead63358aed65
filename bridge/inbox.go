package bridge

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/emersion/go-imap/v2"
	"github.com/emersion/go-imap/v2/imapclient"

	"postern/proxy"
)

var errVanished = errors.New("message is no longer there")

// logoutTime is how long a server may take to answer LOGOUT.
const logoutTime = 500 * time.Millisecond

// hidden is the keyword of messages that POP3 does not show any more; Dovecot
// has the same one for the same purpose.
const hidden imap.Flag = "$POP3Deleted"

// An inbox is INBOX on the server. It is for one goroutine at a time.
//
// imapclient gets the connection logged in, behind a greeting of our own: it
// asks nothing on its own then. It has no context and fixed deadlines, so both
// are done below it, by link, and an abort closes the connection first: Close
// of a command or of the client would wait for a literal that nobody reads.
//
// Messages are fetched on the same connection without it (see fetch.go): it
// takes one command after the other, each to its end. And since a session
// mostly waits, there is an imapclient only while one of its commands runs.
type inbox struct {
	link         *link
	capabilities string // for imapclient
	hatch        *hatch
	client       *imapclient.Client // nil between rest and begin

	uidPlus    bool // RFC 4315: UID EXPUNGE
	moves      bool // RFC 6851
	specialUse bool // RFC 6154
	utf8       bool // RFC 6855: ENABLE UTF8=ACCEPT comes before SELECT
	utf8Only   bool // without it nothing can be had
	enabled    bool // it was OK

	hides  bool        // SELECT asks for messages with the keyword hidden
	hidden imap.UIDSet // those

	flush func() error // before a read that may wait; nil: nothing to do

	owner proxy.Client      // for events
	tell  func(proxy.Event) // of the answers of the server

	fetching
}

// ours are the capabilities that imapclient may know of: those that it does
// nothing on its own with.
var ours = []string{"UIDPLUS", "MOVE", "ESEARCH", "SPECIAL-USE"}

// newInbox returns the INBOX of a connection that is logged in.
func newInbox(conn net.Conn, capabilities string, timeout time.Duration) *inbox {
	known := strings.Fields(strings.ToUpper(capabilities))
	if slices.Contains(known, "IMAP4REV2") { // RFC 9051 appendix E has them in it
		known = append(known, ours...)
	}
	has := func(name string) bool { return slices.Contains(known, name) }
	in := &inbox{link: newLink(conn, timeout), capabilities: "IMAP4rev1", tell: func(proxy.Event) {}}
	for _, name := range ours {
		if has(name) {
			in.capabilities += " " + name
		}
	}
	in.uidPlus, in.moves, in.specialUse = has("UIDPLUS"), has("MOVE"), has("SPECIAL-USE")
	in.utf8, in.utf8Only = has("UTF8=ACCEPT"), has("UTF8=ONLY")
	return in
}

// begin gets the imapclient ready for commands, which ctx ends by closing the
// connection, until the end is called.
func (in *inbox) begin(ctx context.Context) (end func()) {
	stop := context.AfterFunc(ctx, in.abort)
	if in.client == nil {
		if err := in.drain(); err != nil {
			in.abort()
		}
		in.link.before = nil // imapclient reads in a goroutine of its own
		greeting := "* PREAUTH [CAPABILITY " + in.capabilities + "] ready\r\n"
		if in.enabled {
			greeting += "* ENABLED UTF8=ACCEPT\r\n" // how it writes the names of mailboxes depends on it
		}
		in.hatch = newHatch(in.link, greeting, in.owner, in.tell)
		in.client = imapclient.New(in.hatch, nil)
	}
	return func() { stop() }
}

// rest gives back what costs memory while nothing is asked.
func (in *inbox) rest() {
	if in.client != nil {
		in.hatch.shutdown()
		<-in.client.Closed()
		in.client, in.hatch = nil, nil
	}
	in.link.before, in.line = in.flush, nil
	in.link.responses.rest()
}

// abort closes the connection at once. It may be called from any goroutine.
func (in *inbox) abort() { _ = in.link.Close() }

// discard closes the connection of a server that is gone, or not wanted.
func (in *inbox) discard() {
	in.abort()
	in.forget()
	in.rest()
}

// close says goodbye if that takes but a moment, and closes the connection.
func (in *inbox) close() error {
	if len(in.wants) == 0 && (in.row == nil || in.row.section == nil || in.row.section.left == 0) && !in.link.dead() {
		defer time.AfterFunc(logoutTime, in.abort).Stop()
		in.rest()
		if in.finish() == nil {
			in.logout()
		}
	}
	in.discard()
	return nil
}

// explain returns err as the cause of ctx, an *imap.Error (the server said NO
// or BAD), errAnswer, an error of the client's connection, or a tree that has
// proxy.ErrBackendClosed.
func (in *inbox) explain(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if refused(err) || errors.Is(err, errAnswer) || errors.Is(err, proxy.ErrClientClosed) {
		return err
	}
	if broken := in.link.responses.broken.Load(); broken != nil {
		err = *broken // imapclient has only its text
	}
	if stalled := in.link.stalled(); stalled != nil {
		err = stalled
	}
	return in.link.responses.said(fmt.Errorf("%w: %w", proxy.ErrBackendClosed, err))
}

func refused(err error) bool {
	_, ok := errors.AsType[*imap.Error](err)
	return ok
}

// selectInbox opens INBOX. Always by SELECT: there are servers that do not keep
// UIDVALIDITY for EXAMINE. What POP3 must not show is asked for in the same
// flight: RFC 9051 section 5.5 lets SEARCH follow SELECT at once, because the
// one changes what the other means in one way only. What the server tells is
// in the mailbox of its responses; an answer that lacks EXISTS or UIDVALIDITY
// is an error.
func (in *inbox) selectInbox(ctx context.Context) error {
	defer in.begin(ctx)()
	in.link.responses.mailbox.reset()
	return in.selected(ctx)
}

// selected is selectInbox between a begin and its end. The mailbox was reset
// before anything was sent.
func (in *inbox) selected(ctx context.Context) error {
	box := &in.link.responses.mailbox
	var enable *imapclient.EnableCommand
	if in.utf8 {
		enable = in.client.Enable(imap.CapUTF8Accept)
	}
	selected := in.client.Select("INBOX", nil)
	var search func() (imap.UIDSet, error)
	if in.hides {
		search = in.beginSearch(&imap.SearchCriteria{Flag: []imap.Flag{hidden}}, nil)
	}
	if enable != nil {
		_, err := enable.Wait()
		in.enabled = err == nil // else SELECT tells what matters
	}
	_, err := selected.Wait()
	if search != nil {
		hidden, searchErr := search()
		switch {
		case searchErr == nil:
			in.hidden = hidden
		case err == nil && (box.keywords || !box.permanent || !refused(searchErr) && !errors.Is(searchErr, errAnswer)): // where none can be set, there is none
			err = fmt.Errorf("UID SEARCH KEYWORD: %w", searchErr)
		}
	}
	if err == nil {
		err = box.complete()
	}
	if err != nil {
		return fmt.Errorf("SELECT: %w", in.explain(ctx, err))
	}
	return nil
}

// look opens INBOX. With ask it also asks for what SELECT of this server does
// not say; the answer is of the moment before. UIDVALIDITY is 0 in the view if
// the server says so of an INBOX that is empty.
func (in *inbox) look(ctx context.Context, ask bool) (view, error) {
	defer in.begin(ctx)()
	box := &in.link.responses.mailbox
	box.reset()
	var before func() error
	var told status
	if ask {
		box.status = &told
		defer func() { box.status = nil }()
		command := in.client.Status("INBOX", &imap.StatusOptions{NumMessages: true, UIDNext: true, UIDValidity: true})
		before = func() error { _, err := command.Wait(); return err }
	}
	err := in.selected(ctx)
	var statusErr error
	if before != nil {
		statusErr = before() // also after an error: told is ours again then
	}
	if err != nil {
		return view{}, err
	}
	exists, _ := box.count()
	v := view{box.uidValidity, box.uidNext, exists, -1}
	if before != nil {
		err := statusErr
		if err == nil && (!told.told || told.messages < 0 || told.uidValidity == 0 && v.uidValidity != 0) {
			err = fmt.Errorf("%w: no MESSAGES or no UIDVALIDITY", errAnswer)
		}
		if err != nil && !refused(err) {
			return view{}, fmt.Errorf("STATUS: %w", in.explain(ctx, err))
		}
		if err == nil && told.uidNext != 0 && told.uidValidity == v.uidValidity {
			v.uidNext, v.exists, v.selected = told.uidNext, told.messages, v.exists
		}
	}
	return v, nil
}

// sizes asks for the sizes of messages; l takes the answers.
func (in *inbox) sizes(ctx context.Context, uids imap.UIDSet, l *listing) error {
	defer in.begin(ctx)()
	in.link.responses.listing.Store(l)
	err := in.client.Fetch(uids, &imap.FetchOptions{UID: true, RFC822Size: true}).Close()
	if err != nil {
		return fmt.Errorf("UID FETCH RFC822.SIZE: %w", in.explain(ctx, err))
	}
	return nil
}

// trash returns the name of the mailbox that deleted mail goes to, RFC 6154, as
// octets of the server's; nil if there is none. A server without the extension
// may still tell.
func (in *inbox) trash(ctx context.Context) ([]byte, error) {
	defer in.begin(ctx)()
	var found lists
	in.link.responses.mailbox.lists = &found
	err := in.client.List("", "*", &imap.ListOptions{SelectSpecialUse: in.specialUse}).Close()
	in.link.responses.mailbox.lists = nil
	if err != nil {
		return nil, fmt.Errorf("LIST: %w", in.explain(ctx, err))
	}
	return found.trash, nil
}

// move begins to move messages to the mailbox that trash has returned.
func (in *inbox) move(uids imap.UIDSet, trash []byte) *imapclient.MoveCommand {
	in.hatch.to(trash)
	return in.client.Move(uids, placeholder)
}

// copy begins to copy messages to the mailbox that trash has returned.
func (in *inbox) copy(uids imap.UIDSet, trash []byte) *imapclient.CopyCommand {
	in.hatch.to(trash)
	return in.client.Copy(uids, placeholder)
}

// store begins to add flags to messages, or to take them away.
func (in *inbox) store(uids imap.UIDSet, op imap.StoreFlagsOp, flags ...imap.Flag) *imapclient.FetchCommand {
	return in.client.Store(uids, &imap.StoreFlags{Op: op, Silent: true, Flags: flags}, nil)
}
