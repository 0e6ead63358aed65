package relay

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"postern/proxy"
	"postern/proxy/wire"
)

// Ends of a submission session that nobody else has a name for.
var (
	errQuit       = errors.New("the server has answered QUIT")
	errTooManyBad = errors.New("too many bad commands")
	errBadChunk   = errors.New("malformed BDAT")
	errUnexpected = errors.New("the server answered what was not asked")

	errBareNewline = errors.New("bare CR or LF in a message")
	errNUL         = errors.New("NUL in a message")
)

const (
	drainTime = 4 * time.Second // for replies to come when the session is to end
	closeTime = time.Second     // for the server to close first: TIME_WAIT stays there
	maxKept   = 4 << 10         // octets of memory for replies that a session keeps
)

// A replyTo is what a reply answers.
type replyTo uint8

const (
	replyToOther replyTo = iota
	replyToMAIL
	replyToRCPT
	replyToRSET
	replyToEHLO // was RSET to the server
	replyToHELO // was RSET to the server
	replyToDATA
	replyToMessage // the end of DATA, or the last chunk
	replyToChunk
	replyToPiece // of a chunk: nothing the client has asked for
	replyToQUIT
)

// A pending reply is one that the client waits for.
type pending struct {
	what  replyTo
	local string // said by Postern when its turn comes; empty: by the server
}

// A queue is what the client waits for, in order. Its methods are called by two
// goroutines: the one that passes commands on, and relay.
type queue struct {
	client     *proxy.Conn
	server     Leg
	replies    *wire.ReplyReader
	ehlo, helo []byte
	idle       time.Duration
	window     int

	mu          sync.Mutex // also held while the client is written to
	changed     sync.Cond  // of all below
	waiting     []pending
	out         []byte // to the client, not yet written
	last        int    // code of the last reply
	inBody      bool   // DATA was answered with 354, the end of the message is not yet passed on
	early       bool   // the server has refused the message before its end
	dropped     bool   // the server was left in the middle of a message
	quit        bool   // QUIT was answered
	mail        bool   // MAIL was accepted
	recipients  int    // accepted since
	transaction int    // counts accepted MAILs
	submitted   int
	cause       error // why it has ended; nil: it goes on
}

func newQueue(client *proxy.Conn, s *Submission) *queue {
	extensions := without(s.Extensions, s.Lacks)
	q := &queue{
		client: client, server: s.Conn, replies: wire.NewReplyReader(s.Conn), idle: s.Idle, window: 1,
		ehlo: wire.AppendEHLO(nil, s.Hostname, extensions), helo: wire.AppendEHLO(nil, s.Hostname, nil),
	}
	q.changed.L = &q.mu
	if q.idle == 0 {
		q.idle = DefaultSubmissionIdle
	}
	if announces(extensions, "PIPELINING") {
		q.window = window
	}
	q.turn()
	return q
}

// turn sets the deadlines: the server's if it owes a reply, else the client's.
func (q *queue) turn() {
	now := time.Now()
	if len(q.waiting) == 0 {
		_ = q.server.SetReadDeadline(time.Time{})
		_ = q.client.SetReadDeadline(now.Add(q.idle))
		return
	}
	limit := replyTime
	if q.waiting[0].what == replyToMessage {
		limit = finalTime
	}
	_ = q.client.SetReadDeadline(time.Time{})
	_ = q.server.SetReadDeadline(now.Add(limit))
}

// extend gives a client that sends a message more time.
func (q *queue) extend() { _ = q.client.SetReadDeadline(time.Now().Add(q.idle)) }

// push takes p to the end of the queue. If that is full it waits, or returns
// false.
func (q *queue) push(p pending, wait bool) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.waiting) >= q.window && q.cause == nil {
		if !wait {
			return false
		}
		q.changed.Wait()
	}
	q.inBody = false
	if p.local != "" && len(q.waiting) == 0 {
		q.append(p.local)
		return true
	}
	q.waiting = append(q.waiting, p)
	if len(q.waiting) == 1 {
		q.turn()
	}
	q.changed.Broadcast()
	return true
}

// settled waits until the queue is empty and returns the code of the last reply.
func (q *queue) settled() (code int, err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.waiting) > 0 && q.cause == nil {
		q.changed.Wait()
	}
	if q.quit {
		return q.last, errQuit
	}
	return q.last, q.cause
}

// err returns why the session has ended, or nil.
func (q *queue) err() error {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.cause
}

// open returns a number for the transaction in which a chunk can be sent, 0
// for none.
func (q *queue) open() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.mail || q.recipients == 0 {
		return 0
	}
	return q.transaction
}

// relay passes replies on until the server or the session ends.
func (q *queue) relay() error {
	for {
		r, err := q.replies.Reply()
		if err != nil {
			return q.broken(err)
		}
		if err := q.deliver(r); err != nil {
			if errors.Is(err, errQuit) {
				_ = q.server.SetReadDeadline(time.Now().Add(closeTime))
				_, _ = io.Copy(io.Discard, io.LimitReader(q.server, wire.MaxReply))
			}
			return err
		}
	}
}

// deliver gives a reply to the client in its turn.
func (q *queue) deliver(r wire.Reply) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.dropped {
		return q.ended()
	}
	if q.inBody && r.Code >= 400 && r.Code != 421 {
		q.early = true
		q.changed.Broadcast()
		for q.inBody && q.cause == nil {
			q.changed.Wait()
		}
		q.early = false
	}
	switch {
	case q.cause != nil:
		return q.cause
	case r.Code == 421: // RFC 5321 section 3.8: to whatever was asked, if anything
		q.append(string(r.Raw))
		_ = q.write()
		return proxy.ErrBackendClosed
	case len(q.waiting) == 0 || !q.waiting[0].allows(r.Code):
		q.sayLocked("421 4.3.0 The mail server has answered out of turn")
		return errUnexpected
	}
	what := q.waiting[0].what
	q.note(what, r)
	q.waiting = slices.Delete(q.waiting, 0, 1)
	for len(q.waiting) > 0 && q.waiting[0].local != "" {
		q.append(q.waiting[0].local)
		q.waiting = slices.Delete(q.waiting, 0, 1)
	}
	q.turn()
	q.changed.Broadcast()
	// They go together: what is read ahead, and so at most wire.MaxReply octets.
	if len(q.waiting) > 0 && q.replies.HasReply() {
		return nil
	}
	if err := q.write(); err != nil {
		return err
	}
	if q.quit {
		return errQuit
	}
	return nil
}

// allows reports whether code can be an answer to p: 354 makes a client send a
// message, so it must be one to DATA.
func (p pending) allows(code int) bool {
	if p.what == replyToDATA {
		return code == 354 || code >= 400
	}
	return code < 300 || code >= 400
}

// note takes the reply for the client and what follows from it.
func (q *queue) note(what replyTo, r wire.Reply) {
	q.last = r.Code
	text := r.Raw
	good := r.Positive()
	switch what {
	case replyToMAIL:
		if good {
			q.mail, q.recipients = true, 0
			q.transaction++
		}
	case replyToRCPT:
		if good {
			q.recipients++
		}
	case replyToDATA:
		q.inBody = r.Code == 354
	case replyToRSET:
		q.mail = q.mail && !good
	case replyToEHLO, replyToHELO:
		q.mail = q.mail && !good
		if good && what == replyToEHLO {
			text = q.ehlo
		} else if good {
			text = q.helo
		}
	case replyToMessage:
		q.mail = false
		if good {
			q.submitted++
		}
	case replyToPiece:
		if good {
			return
		}
		q.mail = false
	case replyToChunk:
		q.mail = q.mail && good
	case replyToQUIT:
		q.quit = true
	}
	q.out = append(q.out, text...)
}

// broken names what has kept a reply from coming, and tells the client.
func (q *queue) broken(err error) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	switch {
	case q.cause != nil:
		return q.cause
	case q.dropped:
		return q.ended()
	case len(q.waiting) > 0 && q.waiting[0].what == replyToQUIT && errors.Is(err, io.EOF):
		q.append("221 2.0.0 Goodbye")
		q.quit = true
		q.changed.Broadcast()
		_ = q.write()
		return errQuit
	}
	q.sayLocked("421 4.4.2 The connection to the mail server was lost")
	return q.endLocked(fmt.Errorf("%w: %w", proxy.ErrBackendClosed, err))
}

// drop leaves the server in the middle of a message, which it then forgets. The
// session goes on, for its last words.
func (q *queue) drop() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.dropped = true
	_ = q.server.Close()
}

// ended waits for the end.
func (q *queue) ended() error {
	for q.cause == nil {
		q.changed.Wait()
	}
	return q.cause
}

// lost is for a write to the server that failed: what it has said before may be
// the reason. If it has refused the message, it only wants no more of it: nil.
func (q *queue) lost(err error) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	timer := time.AfterFunc(closeTime, func() { _ = q.broken(err) })
	defer timer.Stop()
	for q.cause == nil && !q.early {
		q.changed.Wait()
	}
	return q.cause
}

// say tells the client something of our own, at once. The session ends with it.
func (q *queue) say(text string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.cause == nil {
		q.sayLocked(text)
	}
}

func (q *queue) sayLocked(text string) {
	q.append(text + " (session " + q.client.Client.ID + ")")
	_ = q.write()
}

// sayLast says it when the client has all replies. In the middle of a message
// it says nothing: without its end the server forgets it.
func (q *queue) sayLast(text string) {
	_, err := q.settled()
	q.mu.Lock()
	defer q.mu.Unlock()
	if err == nil && q.cause == nil && !q.inBody {
		q.sayLocked(text)
	}
}

// append takes a line to what the client gets.
func (q *queue) append(line string) {
	q.out = append(append(q.out, strings.TrimSuffix(line, "\r\n")...), "\r\n"...)
}

// flush writes what the client gets.
func (q *queue) flush() error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.cause != nil {
		return q.cause
	}
	return q.write()
}

func (q *queue) write() error {
	if len(q.out) == 0 {
		return nil
	}
	_, err := q.client.Write(q.out)
	if q.out = q.out[:0]; cap(q.out) > maxKept {
		q.out = nil
	}
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) { // it left
		return q.endLocked(fmt.Errorf("%w: %w", proxy.ErrClientClosed, err))
	}
	if err != nil {
		return q.endLocked(fmt.Errorf("write to client: %w", err))
	}
	return nil
}

// end ends the session, the first time, and makes all that waits fail.
func (q *queue) end(cause error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	_ = q.endLocked(cause)
}

func (q *queue) endLocked(cause error) error {
	if q.cause == nil {
		q.cause = cause
		q.changed.Broadcast()
		q.client.Interrupt(cause)
		_ = q.server.Close()
	}
	return q.cause
}
