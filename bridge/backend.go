// Package bridge serves POP3 to a client from the INBOX of an IMAP server.
//
// A Backend is a proxy.Backend: its sessions are POP3 sessions in the TRANSACTION and
// UPDATE states of RFC 1939. Backends of the same accounts share Locks, of the same
// server a Queue, of the same name a Brake, and all backends of a process a
// ListingMemory. A Bucket stores the listings of mailboxes and the record of UIDLs;
// Export, Import, Forget, Undo, Lookup, Erase and Check read and change these for an
// operator. Package inbox speaks IMAP, and package uidl knows the record.
//
// A session opens INBOX with SELECT, numbers the messages, and keeps these numbers to
// its end: it names messages to the server by UID. DELE marks a message in memory;
// QUIT, and nothing else, removes the marked messages, with UID STORE and UID EXPUNGE.
// A server without UIDPLUS gets the \Deleted flag only: a bare EXPUNGE, or CLOSE,
// would remove the messages that other clients have marked. The record then has the
// messages that POP3 has deleted, before QUIT is answered, and later sessions do not
// show them; CAPA has X-SPACE-FREED-BY IMAP, because they stay until another client
// expunges. Without a record the keyword $POP3Deleted serves the same purpose, and
// where INBOX allows no keyword the messages are shown again. With Isolate they are
// removed all the same: update.isolate describes the cost.
//
// Messages are read ahead when a client reads them in their order, and are passed on
// while they come: memory does not depend on their size.
//
// A connection to the server that is lost is replaced by another one; for this the
// session keeps the client's secret. Faults of the server or of the connection to it,
// and what the client gets:
//
//	SELECT fails                   login refused for now
//	messages and EXISTS differ     login refused for now, after more searches; nothing of it is stored
//	sizes of up to 3, or 1 %, NO   listed with size 1; RETR, TOP and DELE: -ERR [SYS/TEMP]; asked again at the next login
//	sizes of more refused          login refused for now
//	no keywords, with Hide         login refused: [SYS/PERM]
//	no UIDPLUS                     nothing but the line of CAPA
//	[READ-ONLY]                    DELE: -ERR [SYS/PERM]; all else works
//	message vanished               -ERR, without a code; the session goes on
//	no octets of a message         the same if a search does not find it, else as NO
//	header in UTF-8, with UTF8     -ERR [UTF8], unless the client is in UTF-8 mode
//	FETCH answered NO              -ERR [SYS/TEMP], also with [LIMIT], [THROTTLED], [OVERQUOTA]; the session goes on
//	BYE, silence, lost             nothing, once the session is on a new connection
//	the same, within a message     nothing, if the server gives the same octets again, at most once;
//	                               else the connection is cut: no message that looks complete
//	a literal of the wrong length  -ERR [SYS/TEMP] before +OK, or the connection is cut; DELE -ERR [SYS/TEMP]
//	a body of another size         passes; DELE is +OK once the same octets have come a second time
//	a body cut twice               -ERR [SYS/TEMP] to RETR, TOP and DELE for an hour
//	no new connection, login NO    -ERR [SYS/TEMP], never [AUTH]; the session ends, and nothing is deleted
//	new UIDVALIDITY                -ERR [SYS/TEMP] to all that needs the server; nothing is deleted
//	STORE, EXPUNGE, MOVE, COPY NO  -ERR [SYS/TEMP] to QUIT, also when the record cannot be written
//	no \Trash mailbox, with Trash  -ERR [SYS/PERM] to QUIT; nothing is deleted
//	\Seen could not be set         nothing
//	a panic in reading             as a connection that is lost
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

// hidden is the keyword of messages that POP3 does not show any more. Dovecot uses
// the same one for the same purpose.
const hidden imap.Flag = "$POP3Deleted"

const (
	// minIdle is RFC 1939 section 3: an autologout timer must be of at least
	// 10 minutes.
	minIdle        = 10 * time.Minute
	defaultTimeout = time.Minute
)

// A LogIn logs l in to an IMAP server. It returns the connection after the
// server's OK, with what was read ahead, and the capabilities that hold then.
// An error is a *proxy.Refusal.
type LogIn func(ctx context.Context, l *proxy.Login) (conn net.Conn, capabilities string, err error)

// A Backend serves maildrops from an IMAP server. Its fields must not change
// once it is used.
type Backend struct {
	Name     string
	LogIn    LogIn
	UIDL     uidl.Format    // of messages that come; the zero value is Dovecot's
	Idle     time.Duration  // how long a client may be silent; at least, and by default, 10 minutes
	Timeout  time.Duration  // how long the server may be silent within a command; 0: a minute
	Observer proxy.Observer // nil: nobody

	Cache  Bucket      // what makes listings cheap; it may be lost. nil: nothing is remembered
	Record Bucket      // what UIDLs were shown, and what was deleted without UIDPLUS; it must not be lost. nil: nothing of it
	Lock   LockMode    // what comes of a second session for a maildrop
	Locks  *Locks      // shared by backends of the same accounts; nil: this one's own
	Queue  *Queue      // shared by backends of the same server; nil: this one's own
	Delay  *LoginDelay // between two sessions of an account; nil: none
	Brake  *Brake      // shared by backends of the same name; nil: nothing is braked

	Listings *ListingMemory // shared by all backends of a process; nil: no limit

	// Recompute says what comes of an account whose record cannot be read, or was
	// lost: new UIDLs, with which clients download all again; else the login is
	// refused for now.
	Recompute bool

	Delete       Deletion // what DELE means at QUIT; the zero value is Expunge
	KeepUnseen   bool     // what is retrieved does not become \Seen
	StableBodies bool     // the server gives the same octets of a message always, also by their offset
	Estimates    bool     // RFC822.SIZE of the server is a guess, not worth a look at the ends of messages
	ExpireNever  bool     // CAPA says so, RFC 2449 section 6.7: nothing is ever deleted unasked
	UTF8         bool     // RFC 6856: messages with headers in UTF-8 are for clients that have said UTF8
	Anonymous    bool     // CAPA has no IMPLEMENTATION
	Last         bool     // LAST is answered, which RFC 1725 has abolished

	writers   sync.Pool // *bufio.Writer
	ownQueue  Queue
	own       Locks       // if there are no others
	noUIDNext atomic.Bool // of SELECT's, seen: STATUS is asked as well
	// untrueUIDNext is set once a UIDNEXT was not above all UIDs: none is believed.
	untrueUIDNext atomic.Bool
	faults        faultList    // messages that did not come as they should
	aheadOctets   atomic.Int64 // octets that sessions have asked for before their clients did
}

// Login implements proxy.Backend: it asks for the server's yes or no.
func (b *Backend) Login(ctx context.Context, l *proxy.Login) (proxy.Session, error) {
	b.queue().stopBackground(l.Account)
	conn, capabilities, err := b.LogIn(ctx, l)
	if err != nil {
		return nil, err
	}
	return &session{backend: b, login: l, inbox: b.open(conn, capabilities, l.Client, true)}, nil
}

// Capabilities returns the lines of CAPA that are the operator's choice, the
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

// open returns the INBOX of a connection that is logged in, for a session that has
// not listed it (first) or that has lost its connection.
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

// writerSize is two records of TLS.
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
