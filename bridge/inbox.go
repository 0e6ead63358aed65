package bridge

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/emersion/go-imap/v2"
	"github.com/emersion/go-imap/v2/imapclient"

	"postern/proxy"
)

var errVanished = errors.New("message is no longer there")

// logoutTime is how long a server may take to answer LOGOUT.
const logoutTime = 500 * time.Millisecond

// An inbox is INBOX on the server. It is for one goroutine at a time.
//
// imapclient gets the connection logged in, behind a greeting of our own: it
// asks nothing on its own then. It has no context and fixed deadlines, so both
// are done below it, by link, and an abort closes the connection first: Close
// of a command or of the client would wait for a literal that nobody reads.
type inbox struct {
	link    *link
	client  *imapclient.Client
	uidPlus bool   // RFC 4315: UID EXPUNGE
	open    *fetch // not yet closed
}

// newInbox returns the INBOX of a connection that is logged in.
func newInbox(conn net.Conn, capabilities string, timeout time.Duration) *inbox {
	l := &link{Conn: conn, timeout: timeout}
	l.responses = newResponses(source{l}, "* PREAUTH [CAPABILITY IMAP4rev1] ready\r\n")
	known := strings.Fields(strings.ToUpper(capabilities))
	return &inbox{
		link:    l,
		client:  imapclient.New(l, nil),
		uidPlus: slices.Contains(known, "UIDPLUS") || slices.Contains(known, "IMAP4REV2"),
	}
}

// begin makes the server's silence count, and ctx close the connection, until
// the end is called.
func (in *inbox) begin(ctx context.Context) (end func()) {
	in.link.waiting(true)
	stop := context.AfterFunc(ctx, in.abort)
	return func() {
		stop()
		in.link.waiting(false)
	}
}

// abort closes the connection at once. It may be called from any goroutine.
func (in *inbox) abort() { _ = in.link.Close() }

// close says goodbye if that takes but a moment, and closes the connection.
func (in *inbox) close() error {
	if in.open != nil { // a panic
		in.abort()
		_ = in.open.close()
	}
	defer time.AfterFunc(logoutTime, in.abort).Stop()
	_ = in.client.Logout().Wait()
	in.abort()
	_ = in.client.Close() // its error is about what we have just done
	return nil
}

// explain returns err as the cause of ctx, an *imap.Error (the server said NO
// or BAD), or a tree that has proxy.ErrBackendClosed.
func (in *inbox) explain(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if refused(err) {
		return err
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
// UIDVALIDITY for EXAMINE.
func (in *inbox) selectInbox(ctx context.Context) (*imap.SelectData, error) {
	defer in.begin(ctx)()
	data, err := in.client.Select("INBOX", nil).Wait()
	if err != nil {
		return nil, fmt.Errorf("SELECT: %w", in.explain(ctx, err))
	}
	return data, nil
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

// search returns the UIDs that match, out of all or of those given.
func (in *inbox) search(ctx context.Context, among ...imap.UIDSet) (imap.UIDSet, error) {
	defer in.begin(ctx)()
	data, err := in.client.UIDSearch(&imap.SearchCriteria{UID: among}, nil).Wait()
	if err != nil {
		return nil, fmt.Errorf("UID SEARCH: %w", in.explain(ctx, err))
	}
	found, _ := data.All.(imap.UIDSet)
	return found, nil
}

// store begins to add a flag to messages.
func (in *inbox) store(uids imap.UIDSet, flag imap.Flag) *imapclient.FetchCommand {
	return in.client.Store(uids, &imap.StoreFlags{Op: imap.StoreFlagsAdd, Silent: true, Flags: []imap.Flag{flag}}, nil)
}

// expunge begins to remove those of the messages that have the \Deleted flag.
func (in *inbox) expunge(uids imap.UIDSet) *imapclient.ExpungeCommand {
	return in.client.UIDExpunge(uids)
}

// A fetch is a command that asks for sections of one message. Nothing else can
// be asked before it is closed.
type fetch struct {
	in      *inbox
	ctx     context.Context //nolint:containedctx // that of one command
	end     func()
	command *imapclient.FetchCommand
	message *imapclient.FetchMessageData
	section *section // the last one
}

// A section is a part of a message as it comes from the server.
type section struct {
	spec *imap.FetchItemBodySection
	size int64 // octets
	left int64 // of them, not yet read

	literal io.Reader
	failed  bool // to be read
	fetch   *fetch
}

// fetch asks for sections of a message; none of them sets \Seen.
func (in *inbox) fetch(ctx context.Context, uid uint32, sections ...*imap.FetchItemBodySection) *fetch {
	f := &fetch{in: in, ctx: ctx, end: in.begin(ctx)}
	f.command = in.client.Fetch(imap.UIDSetNum(imap.UID(uid)), &imap.FetchOptions{UID: true, BodySection: sections})
	in.open = f
	return f
}

// next returns the next section, once the server begins to send it; the one
// before must be read to its end. Without one more it returns errVanished.
func (f *fetch) next() (*section, error) {
	for {
		if f.message == nil {
			f.message = f.command.Next()
		}
		if f.message == nil {
			if err := f.command.Close(); err != nil {
				return nil, f.in.explain(f.ctx, err)
			}
			return nil, errVanished
		}
		item := f.message.Next()
		if item == nil {
			f.message = nil
			continue
		}
		if body, ok := item.(imapclient.FetchItemDataBodySection); ok {
			f.section = &section{spec: body.Section, fetch: f}
			if body.Literal != nil { // else NIL
				f.section.literal, f.section.size = body.Literal, body.Literal.Size()
				f.section.left = f.section.size
			}
			return f.section, nil
		}
	}
}

// Read implements io.Reader. A section that is cut short does not end in
// io.EOF: imapclient's literals do.
func (s *section) Read(p []byte) (int, error) {
	if s.left == 0 {
		return 0, io.EOF
	}
	n, err := s.literal.Read(p)
	s.left -= int64(n)
	if n > 0 || err == nil {
		return n, nil
	}
	s.failed = true
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return 0, s.fetch.in.explain(s.fetch.ctx, err)
}

// close ends the command. A section that is not read to its end may be of any
// length, so the connection is closed then.
func (f *fetch) close() error {
	defer f.end()
	f.in.open = nil
	if f.section != nil && f.section.left > 0 {
		f.in.abort()
	}
	if f.section != nil && f.section.failed {
		// The command drains the literal once more, which must not meet the
		// reader of the client: that one goes on after an error.
		<-f.in.client.Closed()
	}
	return f.in.explain(f.ctx, f.command.Close())
}

var errStalled = errors.New("server was silent for too long")

// A link is the connection to the server as imapclient gets it. The deadlines
// that imapclient sets (5 minutes for a literal, however large) do nothing;
// instead each read and write within a command must make progress in time.
type link struct {
	net.Conn
	timeout   time.Duration
	responses *responses

	mu       sync.Mutex
	commands int   // outstanding
	failed   error // of reading; imapclient reads again after an error
}

// Read implements net.Conn.
func (l *link) Read(p []byte) (int, error) { return l.responses.Read(p) }

// Write implements net.Conn.
func (l *link) Write(p []byte) (int, error) {
	if err := l.Conn.SetWriteDeadline(time.Now().Add(l.timeout)); err != nil {
		return 0, err
	}
	return l.Conn.Write(p)
}

// SetDeadline implements net.Conn. It does nothing, as the two below.
func (l *link) SetDeadline(time.Time) error { return nil }

// SetReadDeadline implements net.Conn.
func (l *link) SetReadDeadline(time.Time) error { return nil }

// SetWriteDeadline implements net.Conn.
func (l *link) SetWriteDeadline(time.Time) error { return nil }

// waiting says that a command has begun, or has ended.
func (l *link) waiting(begun bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if begun {
		l.commands++
	} else {
		l.commands--
	}
	l.arm()
}

// arm sets the deadline, also of a read that has begun.
func (l *link) arm() {
	var deadline time.Time
	if l.commands > 0 {
		deadline = time.Now().Add(l.timeout)
	}
	_ = l.Conn.SetReadDeadline(deadline)
}

// stalled returns errStalled if the server was silent for too long.
func (l *link) stalled() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if errors.Is(l.failed, os.ErrDeadlineExceeded) {
		return errStalled
	}
	return nil
}

// A source reads from the connection under a link.
type source struct{ link *link }

func (s source) Read(p []byte) (int, error) {
	l := s.link
	l.mu.Lock()
	failed := l.failed
	l.arm()
	l.mu.Unlock()
	if failed != nil {
		return 0, failed
	}
	n, err := l.Conn.Read(p)
	if err != nil {
		l.mu.Lock()
		l.failed = err
		l.mu.Unlock()
	}
	return n, err
}
