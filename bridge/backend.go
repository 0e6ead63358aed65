// Package bridge serves POP3 to a client from the INBOX of an IMAP server.
//
// A Backend is a proxy.Backend: its sessions are POP3 sessions in the TRANSACTION and
// UPDATE states of RFC 1939. Backends of the same accounts share Locks, of the same
// server a Queue, of the same name a Brake, and all backends of a process a
// ListingMemory. A Bucket stores the listings of mailboxes and the record of UIDLs;
// Export, Import, Add, Forget, Undo, Lookup, Erase and Check read and change these for an
// operator, for whom a Reader reads an INBOX. A Learner takes over the UIDLs of an old
// POP3 server at the first session of an account. Package inbox speaks IMAP, package uidl
// knows the record, and package oldserver is the client of the old server.
//
// A session opens INBOX with SELECT, numbers the messages, and keeps these numbers to
// its end: it names messages to the server by UID. DELE marks a message in memory;
// QUIT, and nothing else, removes the marked messages, with UID STORE and UID EXPUNGE.
// A server without UIDPLUS gets the \Deleted flag only: a bare EXPUNGE, or CLOSE,
// would remove the messages that other clients have marked. The record then has the
// messages that POP3 has deleted, before QUIT is answered, and later sessions do not
// show them; CAPA has X-SPACE-FREED-BY IMAP, because they stay until another client
// expunges. Without a record the keyword $POP3Deleted serves the same purpose, and
// where INBOX allows no keyword the messages are shown again. With Isolate the marked
// messages are removed at once: update.isolate describes the cost.
//
// Messages are read ahead when a client reads them in their order, and are passed on
// while they come: memory does not depend on their size.
//
// A connection to the server that is lost is replaced by another one; for this the
// session keeps the client's secret. Faults of the server or of the connection to it,
// and what the client gets:
//
//	SELECT fails                   login refused: [SYS/TEMP]
//	the old server fails           with a Learner: login refused: [SYS/TEMP]; nothing is recorded
//	messages and EXISTS differ     login refused: [SYS/TEMP], after more searches; nothing is stored
//	sizes of up to 3, or 1 %, NO   listed with size 1; RETR, TOP and DELE: -ERR [SYS/TEMP]; asked again at the next login
//	sizes of more refused          login refused: [SYS/TEMP]
//	no keywords, with Hide         login refused: [SYS/PERM]
//	no UIDPLUS                     nothing but the line of CAPA
//	[READ-ONLY]                    DELE: -ERR [SYS/PERM]; all else works
//	message vanished               -ERR, without a code; the session goes on
//	no octets of a message         -ERR, without a code, if a search does not find the message; else -ERR [SYS/TEMP]
//	header in UTF-8, with UTF8     -ERR [UTF8], unless the client is in UTF-8 mode
//	FETCH answered NO              -ERR [SYS/TEMP], also with [LIMIT], [THROTTLED], [OVERQUOTA]; the session goes on
//	BYE, silence, lost connection  nothing, once the session is on a new connection
//	lost within a message          nothing, if the server gives the same octets again, at most once;
//	                               else the connection is cut: no message that looks complete
//	a literal of the wrong length  -ERR [SYS/TEMP] before +OK, or the connection is cut; DELE -ERR [SYS/TEMP]
//	a body of another size         passes; DELE is +OK once the same octets have come a second time
//	a body cut twice               -ERR [SYS/TEMP] to RETR, TOP and DELE for an hour
//	no new connection, login NO    -ERR [SYS/TEMP], never [AUTH]; the session ends, and nothing is deleted
//	new UIDVALIDITY                -ERR [SYS/TEMP] to all that needs the server; nothing is deleted
//	STORE, EXPUNGE, MOVE, COPY NO  -ERR [SYS/TEMP] to QUIT, also when the record cannot be written
//	no \Trash mailbox, with Trash  -ERR [SYS/PERM] to QUIT; nothing is deleted
//	\Seen could not be set         nothing
//	a panic while Postern reads    the same as for a lost connection
//
// The server's own codes and words go to the log, never to the client.
package bridge

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"math"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/emersion/go-imap/v2"

	"postern/bridge/inbox"
	"postern/bridge/uidl"
	"postern/proxy"
)

// hidden is the keyword of messages that POP3 no longer shows. Dovecot uses the same
// keyword for the same purpose.
const hidden imap.Flag = "$POP3Deleted"

const (
	// minIdle is the least autologout timer, 10 minutes: RFC 1939 section 3.
	minIdle        = 10 * time.Minute
	defaultTimeout = time.Minute
)

// A LogIn logs l in to an IMAP server. It returns the connection after the server's OK,
// which includes bytes already read, and the capabilities after login. An error is a
// *proxy.Refusal.
type LogIn func(ctx context.Context, l *proxy.Login) (conn net.Conn, capabilities string, err error)

// A Backend serves maildrops from an IMAP server. Its fields must not change after the
// first Login.
type Backend struct {
	Name     string
	LogIn    LogIn
	UIDL     uidl.Format    // format of new messages' UIDLs; the zero value is Dovecot's
	Idle     time.Duration  // longest silence of a client; at least, and by default, 10 minutes
	Timeout  time.Duration  // longest silence of the server within a command; 0: a minute
	Observer proxy.Observer // nil: events are dropped

	Cache  Bucket      // listings, which make a poll cheap; the cache may be lost. nil: no cache
	Record Bucket      // UIDLs that were shown, and tombstones; the record must not be lost. nil: no record
	Lock   LockMode    // decides about a second session of a maildrop
	Locks  *Locks      // shared by backends of the same accounts; nil: the backend has its own
	Queue  *Queue      // shared by backends of the same server; nil: the backend has its own
	Delay  *LoginDelay // between two sessions of an account; nil: no delay
	Brake  *Brake      // shared by backends of the same name; nil: every poll is admitted

	Learner  *Learner       // takes over the UIDLs of an old server; needs Record. nil: they are computed
	Listings *ListingMemory // shared by all backends of a process; nil: no limit

	// Recompute gives an account whose record is damaged or lost new UIDLs, with which
	// clients download all mail again. If Recompute is false, the login gets a temporary
	// refusal.
	Recompute bool
	// Forgotten reports whether the record of an account was removed on purpose, maybe by
	// another Postern, so that a listing without its record is no loss; nil: none was.
	Forgotten func(ctx context.Context, account string) (bool, error)

	Delete       Deletion // effect of DELE at QUIT; the zero value is Expunge
	KeepUnseen   bool     // RETR does not set \Seen
	StableBodies bool     // the server always sends the same octets of a message, also from an offset
	Estimates    bool     // RFC822.SIZE of the server is an estimate, so that Postern does not fetch the ends of messages
	ExpireNever  bool     // CAPA has EXPIRE NEVER, RFC 2449 section 6.7: no message is deleted but by clients
	UTF8         bool     // RFC 6856: messages with headers in UTF-8 are only for clients that have sent UTF8
	Anonymous    bool     // CAPA has no IMPLEMENTATION
	Last         bool     // LAST is a command, which RFC 1725 has removed

	writers   sync.Pool // *bufio.Writer
	ownQueue  Queue
	own       Locks       // used if Locks is nil
	noUIDNext atomic.Bool // a SELECT came without UIDNEXT: sessions also send STATUS
	// untrueUIDNext is set after a UIDNEXT was not above all UIDs: then UIDNEXT is ignored.
	untrueUIDNext atomic.Bool
	faults        faultList    // messages whose bodies came cut or doubtful
	aheadOctets   atomic.Int64 // octets that sessions have requested before their clients did
}

// Login implements proxy.Backend. It logs l in to the server and lists nothing yet.
func (b *Backend) Login(ctx context.Context, l *proxy.Login) (proxy.Session, error) {
	b.queue().stopBackground(l.Account)
	conn, capabilities, err := b.LogIn(ctx, l)
	if err != nil {
		return nil, err
	}
	return &session{backend: b, login: l, inbox: b.open(conn, capabilities, l.Client, true)}, nil
}

// Capabilities returns the lines of CAPA that depend on the configuration. They are the
// same before and after login.
func (b *Backend) Capabilities() []string {
	var lines []string
	if b.ExpireNever {
		lines = append(lines, "EXPIRE NEVER")
	}
	if b.Delay != nil {
		lines = append(lines, fmt.Sprintf("LOGIN-DELAY %d", int64(math.Ceil(b.Delay.Every.Seconds()))))
	}
	if b.UTF8 {
		lines = append(lines, "UTF8")
	}
	if !b.Anonymous {
		lines = append(lines, "IMPLEMENTATION Postern")
	}
	return lines
}

// open returns the INBOX of a logged-in connection. first is true for a new session, and
// false for a session that has lost its connection.
func (b *Backend) open(conn net.Conn, capabilities string, client proxy.Client, first bool) *inbox.Inbox {
	return inbox.New(conn, capabilities, inbox.Options{
		Timeout: b.timeout(), UTF8: b.UTF8, Keyword: hidden,
		SearchKeyword: first && (b.Delete == Hide || b.Record == nil && !inbox.ParseTraits(capabilities).UIDPlus),
		Budget:        &b.aheadOctets, Client: client, Observe: b.observe,
	})
}

func (b *Backend) idle() time.Duration { return max(b.Idle, minIdle) }

func (b *Backend) timeout() time.Duration {
	if b.Timeout == 0 {
		return defaultTimeout
	}
	return b.Timeout
}

func (b *Backend) observe(e proxy.Event) {
	if b.Observer != nil {
		b.Observer.Observe(e)
	}
}

// writerSize is the size of two TLS records.
const writerSize = 32 << 10

func (b *Backend) getWriter(w io.Writer) *bufio.Writer {
	if out, ok := b.writers.Get().(*bufio.Writer); ok {
		out.Reset(w)
		return out
	}
	return bufio.NewWriterSize(w, writerSize)
}

func (b *Backend) putWriter(out *bufio.Writer) {
	out.Reset(nil)
	b.writers.Put(out)
}
