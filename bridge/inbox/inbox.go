// Package inbox reads and changes the INBOX of an IMAP connection that is logged
// in. It knows no other mailbox but the one for deleted mail, and nothing of what
// its caller does with the messages.
//
// An Inbox is INBOX. Its methods that open, list, search and change it use
// imapclient. Messages are fetched without imapclient: Fetch requests them, Await
// returns a FetchResponse, whose Section is read as the octets come. One FETCH may
// be sent before the one before is answered.
//
// All that a server sends passes through this package: imapclient sees tagged
// responses only, see docs/decisions/0033-fetch-is-read-by-us.md. An error of a
// method is the cause of its context, an *imap.Error (the server answered NO or
// BAD), ErrAnswer, ErrVanished, ErrItems, an error with proxy.ErrClientClosed from
// BeforeWait, or a tree that has proxy.ErrBackendClosed: then the connection is of
// no use any more. A panic in reading becomes proxy.ErrBackendClosed, too, and is
// reported as proxy.Panicked.
package inbox

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime/debug"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/emersion/go-imap/v2"
	"github.com/emersion/go-imap/v2/imapclient"

	"postern/proxy"
)

// ErrVanished says that a command was answered OK without the response for a
// message: the server may not have the message any more.
var ErrVanished = errors.New("message is no longer there")

var errDetached = errors.New("the connection was detached")

// logoutTime is how long a server may take to answer LOGOUT.
const logoutTime = 500 * time.Millisecond

// Options are what an Inbox does beside what it is asked for. The zero value is
// valid but for Timeout.
type Options struct {
	Timeout       time.Duration     // how long the server may be silent within a command
	UTF8          bool              // ENABLE UTF8=ACCEPT comes before SELECT, if the server offers UTF8=ACCEPT; with UTF8=ONLY always
	Keyword       imap.Flag         // the keyword that Mailbox.Keyword and SearchKeyword are about
	SearchKeyword bool              // Select and Open search for the messages with Keyword in the same flight: see TakeKeywordMatches
	Budget        *atomic.Int64     // grows by the octets of messages that are requested and have not come; nil: not counted
	Client        proxy.Client      // of the events
	Observe       func(proxy.Event) // gets proxy.IMAPCommand and proxy.Panicked, also from other goroutines; nil: nobody does
}

// Traits are what the capabilities of a server say.
type Traits struct {
	UIDPlus    bool // RFC 4315: UID EXPUNGE
	Move       bool // RFC 6851
	ESearch    bool // RFC 4731
	SpecialUse bool // RFC 6154
	UTF8       bool // RFC 6855: the server offers UTF8=ACCEPT
	UTF8Only   bool // RFC 6855: SELECT needs ENABLE UTF8=ACCEPT
}

// extensions are the capabilities that imapclient learns of: it does nothing on
// its own because of them.
var extensions = []string{"UIDPLUS", "MOVE", "ESEARCH", "SPECIAL-USE"}

// ParseTraits returns the Traits of a list of capabilities.
func ParseTraits(capabilities string) Traits {
	known := parseCapabilities(capabilities)
	has := func(name string) bool { return slices.Contains(known, name) }
	return Traits{
		UIDPlus: has("UIDPLUS"), Move: has("MOVE"), ESearch: has("ESEARCH"), SpecialUse: has("SPECIAL-USE"),
		UTF8: has("UTF8=ACCEPT"), UTF8Only: has("UTF8=ONLY"),
	}
}

func parseCapabilities(list string) []string {
	known := strings.Fields(strings.ToUpper(list))
	if slices.Contains(known, "IMAP4REV2") { // RFC 9051 appendix E includes the extensions
		known = append(known, extensions...)
	}
	return known
}

// An Inbox is INBOX on the server. Its methods but Abort are for one goroutine at
// a time.
//
// imapclient gets the connection behind a greeting of our own that says PREAUTH:
// so it sends no command on its own. It has no context and fixed deadlines, so
// both are implemented below it, by link. The end of a context closes the
// connection first: Close of a command or of the client would wait for a literal
// that nobody reads. A session waits for its client most of the time: there is an
// imapclient only from the first command after ReleaseBuffers to the next ReleaseBuffers.
type Inbox struct {
	options      Options
	traits       Traits
	link         *link
	capabilities string // in the greeting for imapclient
	conn         *clientConn
	client       *imapclient.Client // nil between ReleaseBuffers and begin

	enabled    bool        // ENABLE UTF8=ACCEPT was answered OK
	flagged    imap.UIDSet // what SELECT's search has found
	beforeWait func() error

	fetching
}

// New returns the INBOX of a connection that is logged in, with the capabilities
// that hold after login.
func New(conn net.Conn, capabilities string, o Options) *Inbox {
	if o.Observe == nil {
		o.Observe = func(proxy.Event) {}
	}
	in := &Inbox{options: o, traits: ParseTraits(capabilities), link: newLink(conn, o.Timeout), capabilities: "IMAP4rev1"}
	known := parseCapabilities(capabilities)
	for _, name := range extensions {
		if slices.Contains(known, name) {
			in.capabilities += " " + name
		}
	}
	in.link.responses.mailbox.keyword = bytes.ToUpper([]byte(o.Keyword))
	return in
}

// Traits returns what the server can do.
func (in *Inbox) Traits() Traits { return in.traits }

// BeforeWait makes f what is called before a read that may wait for the server,
// unless imapclient reads; nil: nothing is. An error of f is returned as it is.
// It takes effect with the next ReleaseBuffers.
func (in *Inbox) BeforeWait(f func() error) { in.beforeWait = f }

// begin readies imapclient for commands. Until end is called, the end of ctx
// closes the connection.
func (in *Inbox) begin(ctx context.Context) (end func()) {
	stop := context.AfterFunc(ctx, in.Abort)
	if in.client == nil {
		if err := in.drain(); err != nil {
			in.Abort()
		}
		in.link.beforeWait = nil // imapclient reads in a goroutine of its own
		greeting := "* PREAUTH [CAPABILITY " + in.capabilities + "] ready\r\n"
		if in.enabled {
			greeting += "* ENABLED UTF8=ACCEPT\r\n" // how imapclient writes the names of mailboxes depends on it
		}
		in.conn = newClientConn(in, greeting)
		in.client = imapclient.New(in.conn, nil)
	}
	return func() { stop() }
}

// ReleaseBuffers gives back what costs memory while no command runs. It is to be called
// when the session waits for its client.
func (in *Inbox) ReleaseBuffers() {
	if in.client != nil {
		in.conn.shutdown()
		<-in.client.Closed()
		in.client, in.conn = nil, nil
	}
	in.link.beforeWait, in.line = in.beforeWait, nil
	in.link.responses.rest()
}

// Abort closes the connection at once. It may be called from any goroutine.
func (in *Inbox) Abort() { _ = in.link.Close() }

// AbortOnDone makes the end of ctx close the connection, until stop is called.
func (in *Inbox) AbortOnDone(ctx context.Context) (stop func() bool) {
	return context.AfterFunc(ctx, in.Abort)
}

// Discard closes the connection without LOGOUT. It may be called again.
func (in *Inbox) Discard() {
	in.Abort()
	in.forgetPending()
	in.ReleaseBuffers()
}

// Close sends LOGOUT, unless the server is gone or a message would have to be read
// first, and closes the connection. It takes half a second at most.
func (in *Inbox) Close() error {
	if in.idle() && !in.link.dead() {
		defer time.AfterFunc(logoutTime, in.Abort).Stop()
		in.ReleaseBuffers()
		if in.Finish() == nil {
			_ = in.logout()
		}
	}
	in.Discard()
	return nil
}

// idle reports whether nothing is left to be read of the messages that were
// requested.
func (in *Inbox) idle() bool {
	return len(in.pending) == 0 && (in.response == nil || in.response.Section == nil || in.response.Section.Left == 0)
}

// Detach ends the Inbox and returns its connection, without LOGOUT, for another
// New. What the server has sent and nobody has read comes first from the
// connection. The error says why the connection cannot be used further; then it is
// still that of the Inbox. No message may be requested or half read.
func (in *Inbox) Detach() (net.Conn, error) {
	if !in.idle() {
		return nil, errors.New("detach the connection: a message has not been read to its end")
	}
	in.ReleaseBuffers()
	err := in.Finish()
	if err == nil && in.link.dead() {
		err = net.ErrClosed
	}
	if err == nil {
		err = in.link.Conn.SetDeadline(time.Time{})
	}
	if err != nil {
		return nil, fmt.Errorf("detach the connection: %w", err)
	}
	conn := in.link.detach()
	if unread := bytes.Clone(in.link.responses.buffered()); len(unread) > 0 {
		return &unreadConn{Conn: conn, r: io.MultiReader(bytes.NewReader(unread), conn)}, nil
	}
	return conn, nil
}

// recovered makes an error of a panic in reading what the server has sent: a bug
// ends the connection to the server, as if the server had closed it. It is to be
// deferred.
func (in *Inbox) recovered(err *error) {
	if v := recover(); v != nil {
		*err = in.panicked(v)
	}
}

func (in *Inbox) panicked(v any) error {
	in.options.Observe(proxy.Panicked{Client: in.options.Client, Value: v, Stack: debug.Stack()})
	err := fmt.Errorf("%w: panic: %v", proxy.ErrBackendClosed, v)
	in.link.responses.broken.CompareAndSwap(nil, &err)
	in.Abort()
	return err
}

// explain returns err as the errors of the package are: see there.
func (in *Inbox) explain(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if Refused(err) || errors.Is(err, ErrAnswer) || errors.Is(err, proxy.ErrClientClosed) {
		return err
	}
	if broken := in.link.responses.broken.Load(); broken != nil {
		err = *broken // imapclient has only its text
	}
	if stalled := in.link.stalled(); stalled != nil {
		err = stalled
	}
	return in.link.responses.withBye(fmt.Errorf("%w: %w", proxy.ErrBackendClosed, err))
}

// Explain returns the error of a FetchResponse or a Section as the errors of the
// package are. ctx is the one whose end closes the connection.
func (in *Inbox) Explain(ctx context.Context, err error) error { return in.explain(ctx, err) }

// Refused reports whether the server answered a command with NO or BAD.
func Refused(err error) bool {
	_, ok := errors.AsType[*imap.Error](err)
	return ok
}

// RefusedForNow reports whether the server refused a command for a reason that has
// nothing to do with the messages: RFC 5530, and [THROTTLED] of Gmail. BAD is what
// Exchange answers when it throttles.
func RefusedForNow(err error) bool {
	refusal, ok := errors.AsType[*imap.Error](err)
	if !ok {
		return false
	}
	switch refusal.Code {
	case imap.ResponseCodeUnavailable, imap.ResponseCodeInUse, imap.ResponseCodeLimit, "THROTTLED", "OVERQUOTA":
		return true
	}
	return refusal.Type == imap.StatusResponseTypeBad
}

// Dead reports whether nothing more can be read from the server.
func (in *Inbox) Dead() bool { return in.link.dead() }

// LossCause returns how the connection was lost: proxy.LostBye, proxy.LostSilent
// or proxy.LostClosed.
func (in *Inbox) LossCause() string {
	switch {
	case in.link.responses.bye.Load() != nil:
		return proxy.LostBye
	case in.link.stalled() != nil:
		return proxy.LostSilent
	}
	return proxy.LostClosed
}

// Select opens INBOX. It sends SELECT and never EXAMINE: there are servers that do
// not keep UIDVALIDITY for EXAMINE. With Options.SearchKeyword it searches in the
// same flight: RFC 9051 section 5.5 lets SEARCH follow SELECT at once, because the
// one changes what the other means in one way only. An answer that lacks EXISTS or
// UIDVALIDITY is an error with ErrAnswer.
func (in *Inbox) Select(ctx context.Context) error {
	defer in.begin(ctx)()
	in.link.responses.mailbox.reset()
	return in.sendSelect(ctx)
}

// sendSelect is Select between begin and end. The mailbox was reset before
// anything was sent.
func (in *Inbox) sendSelect(ctx context.Context) error {
	box := &in.link.responses.mailbox
	var enable *imapclient.EnableCommand
	if in.traits.UTF8 && in.options.UTF8 || in.traits.UTF8Only {
		enable = in.client.Enable(imap.CapUTF8Accept)
	}
	selected := in.client.Select("INBOX", nil)
	var search func() (imap.UIDSet, error)
	if in.options.SearchKeyword {
		search = in.sendSearch(&imap.SearchCriteria{Flag: []imap.Flag{in.options.Keyword}}, nil)
	}
	if enable != nil {
		_, err := enable.Wait()
		in.enabled = err == nil // else SELECT says what matters
	}
	_, err := selected.Wait()
	if search != nil {
		found, searchErr := search()
		switch {
		case searchErr == nil:
			in.flagged = found
		case err == nil && (box.keywordAllowed || !box.permanentFlags || !Refused(searchErr) && !errors.Is(searchErr, ErrAnswer)): // where the keyword cannot be set, no message has it
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

// TakeKeywordMatches returns the messages with Options.Keyword that the last Select or Open
// has found, once.
func (in *Inbox) TakeKeywordMatches() imap.UIDSet {
	flagged := in.flagged
	in.flagged = nil
	return flagged
}

// A View is INBOX as the server shows it at one moment.
type View struct {
	UIDValidity    uint32 // 0: INBOX is empty, and the server says 0
	UIDNext        uint32 // 0: the server does not say
	Exists         int    // messages
	ExistsAtSelect int    // EXISTS of SELECT if the rest is of a STATUS before it; else -1
}

// Open opens INBOX as Select does. With status it also asks by STATUS for what
// SELECT of this server does not say; the answer is of the moment before.
func (in *Inbox) Open(ctx context.Context, status bool) (View, error) {
	defer in.begin(ctx)()
	box := &in.link.responses.mailbox
	box.reset()
	var wait func() error
	var answer statusData
	if status {
		box.status = &answer
		defer func() { box.status = nil }()
		command := in.client.Status("INBOX", &imap.StatusOptions{NumMessages: true, UIDNext: true, UIDValidity: true})
		wait = func() error { _, err := command.Wait(); return err }
	}
	err := in.sendSelect(ctx)
	var statusErr error
	if wait != nil {
		statusErr = wait() // also after an error: nothing writes to answer then
	}
	if err != nil {
		return View{}, err
	}
	exists, _ := box.count()
	v := View{box.uidValidity, box.uidNext, exists, -1}
	if wait != nil {
		err := statusErr
		if err == nil && (!answer.received || answer.messages < 0 || answer.uidValidity == 0 && v.UIDValidity != 0) {
			err = fmt.Errorf("%w: no MESSAGES or no UIDVALIDITY", ErrAnswer)
		}
		if err != nil && !Refused(err) {
			return View{}, fmt.Errorf("STATUS: %w", in.explain(ctx, err))
		}
		if err == nil && answer.uidNext != 0 && answer.uidValidity == v.UIDValidity {
			v.UIDNext, v.Exists, v.ExistsAtSelect = answer.uidNext, answer.messages, v.Exists
		}
	}
	return v, nil
}

// A Mailbox is what the server has said of INBOX since the last Select or Open.
type Mailbox struct {
	ReadOnly       bool   // SELECT was answered with [READ-ONLY]
	PermanentFlags bool   // the server has said which flags can be set
	Keyword        bool   // Options.Keyword can be set
	UIDValidity    uint32 // the last one; 0: none
	Messages       int    // the last EXISTS less the messages that were removed after it
	HasExists      bool   // there was an EXISTS
	Removals       int    // messages that were removed, by EXPUNGE and VANISHED responses
}

// Mailbox returns what the server has said of INBOX.
func (in *Inbox) Mailbox() Mailbox {
	m := &in.link.responses.mailbox
	messages, ok := m.count()
	return Mailbox{
		ReadOnly: m.readOnly, PermanentFlags: m.permanentFlags, Keyword: m.keywordAllowed, UIDValidity: m.uidValidity,
		Messages: messages, HasExists: ok, Removals: m.removed,
	}
}

// Rows takes the answer to Sizes. Its methods are called from another goroutine,
// but not after Sizes has returned.
type Rows interface {
	Row(number int64, uid uint32, size int64) // the message sequence number, and RFC822.SIZE
	MalformedRow()                            // a response has RFC822.SIZE, and no UID or no size that can be read
	Expunged()                                // messages were removed meanwhile
}

// Sizes fetches the sizes of messages.
func (in *Inbox) Sizes(ctx context.Context, uids imap.UIDSet, rows Rows) error {
	defer in.begin(ctx)()
	in.link.responses.rows.Store(&rows)
	err := in.client.Fetch(uids, &imap.FetchOptions{UID: true, RFC822Size: true}).Close()
	if err != nil {
		return fmt.Errorf("UID FETCH RFC822.SIZE: %w", in.explain(ctx, err))
	}
	return nil
}

// Noop lets the server say what has changed.
func (in *Inbox) Noop(ctx context.Context) error {
	defer in.begin(ctx)()
	if err := in.client.Noop().Wait(); err != nil {
		return fmt.Errorf("NOOP: %w", in.explain(ctx, err))
	}
	return nil
}

// TrashMailbox returns the name of the mailbox for deleted mail, RFC 6154, in the
// server's octets; nil if there is none. A server without the extension may have
// one, too.
func (in *Inbox) TrashMailbox(ctx context.Context) ([]byte, error) {
	defer in.begin(ctx)()
	var found listData
	in.link.responses.mailbox.list = &found
	err := in.client.List("", "*", &imap.ListOptions{SelectSpecialUse: in.traits.SpecialUse}).Close()
	in.link.responses.mailbox.list = nil
	if err != nil {
		return nil, fmt.Errorf("LIST: %w", in.explain(ctx, err))
	}
	return found.trash, nil
}
