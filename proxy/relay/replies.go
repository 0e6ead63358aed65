package relay

import (
	"cmp"
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

// The ends of a submission session that are known only in this package.
var (
	errQuit       = errors.New("the server has answered QUIT")
	errTooManyBad = errors.New("too many bad commands")
	errBadChunk   = errors.New("malformed BDAT")
	errUnexpected = errors.New("the server answered what was not asked")

	errBareNewline = errors.New("bare CR or LF in a message")
	errNUL         = errors.New("NUL in a message")
)

const (
	window    = 64               // commands without a reply, if the server offers PIPELINING
	replyTime = 5 * time.Minute  // RFC 5321 section 4.5.3.2
	finalTime = 10 * time.Minute // for the reply to a message
	drainTime = 4 * time.Second  // how long a session that has to end waits for replies
	maxKept   = 4 << 10          // octets: an empty buffer of replies that is larger is given back
)

// A replyTo is the kind of command that a reply answers.
type replyTo uint8

const (
	replyToOther replyTo = iota
	replyToMAIL
	replyToRCPT
	replyToRSET
	replyToEHLO // sent to the server as RSET
	replyToHELO // sent to the server as RSET
	replyToDATA
	replyToMessage // the end of DATA, or the last chunk
	replyToChunk
	replyToPart // a part of the client's chunk: the client gets no reply to it
	replyToQUIT
)

// A pending reply is one that the client waits for.
type pending struct {
	what  replyTo
	local string // Postern's own reply; empty: the server's is awaited
}

// A replyQueue holds the replies that the client waits for, in the order of its
// commands. Two goroutines call its methods: the one that forwards commands, and
// the one that runs relayReplies. A method whose name ends in Locked needs mu to
// be held.
type replyQueue struct {
	client     *proxy.Conn
	server     Upstream
	replies    *wire.ReplyReader
	ehlo, helo []byte
	idle       time.Duration
	window     int

	mu            sync.Mutex // also held while the client is written to
	changed       sync.Cond  // of any field below
	waiting       []pending
	out           []byte // for the client, not yet written
	lastCode      int    // code of the last reply
	inBody        bool   // DATA was answered with 354, and the end of the message is not yet sent
	refusedEarly  bool   // the server has refused the message before its end
	abandoned     bool   // the connection to the server was closed in the middle of a message
	quit          bool   // QUIT was answered
	inTransaction bool   // MAIL was accepted
	recipients    int    // accepted in this transaction
	transaction   int    // number of accepted MAIL commands
	submitted     int    // number of accepted messages
	cause         error  // why the session has ended; nil: it has not
}

// newReplyQueue returns a replyQueue of a server that offers extensions, the lines
// of a reply to EHLO.
func newReplyQueue(client *proxy.Conn, server Upstream, hostname string, extensions []string, idle time.Duration) *replyQueue {
	q := &replyQueue{
		client: client, server: server, replies: wire.NewReplyReader(server), window: 1,
		idle: cmp.Or(idle, proxy.DefaultSubmissionIdle),
		ehlo: wire.AppendEHLO(nil, hostname, extensions), helo: wire.AppendEHLO(nil, hostname, nil),
	}
	q.changed.L = &q.mu
	if announces(extensions, "PIPELINING") {
		q.window = window
	}
	q.setDeadlinesLocked()
	return q
}

// setDeadlinesLocked sets the read deadline of the server if the server owes a
// reply, else the read deadline of the client.
func (q *replyQueue) setDeadlinesLocked() {
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

// extendDeadline restarts the idle time of a client that is sending a message.
func (q *replyQueue) extendDeadline() { _ = q.client.SetReadDeadline(time.Now().Add(q.idle)) }

// push appends p to the queue. When the queue is full, push waits if wait is
// true, and returns false if it is not.
func (q *replyQueue) push(p pending, wait bool) bool {
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
		q.appendLocked(p.local)
		return true
	}
	q.waiting = append(q.waiting, p)
	if len(q.waiting) == 1 {
		q.setDeadlinesLocked()
	}
	q.changed.Broadcast()
	return true
}

// waitDrained waits until the queue is empty or the session has ended. It returns
// the code of the last reply, and why the session has ended.
func (q *replyQueue) waitDrained() (code int, err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.waiting) > 0 && q.cause == nil {
		q.changed.Wait()
	}
	if q.quit {
		return q.lastCode, errQuit
	}
	return q.lastCode, q.cause
}

// err returns why the session has ended, or nil.
func (q *replyQueue) err() error {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.cause
}

// openTransaction returns the number of the transaction in which a chunk may be
// sent, or 0 if there is none.
func (q *replyQueue) openTransaction() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.inTransaction || q.recipients == 0 {
		return 0
	}
	return q.transaction
}

// relayReplies forwards replies until the connection to the server or the session
// ends, and returns why.
func (q *replyQueue) relayReplies() error {
	for {
		r, err := q.replies.Reply()
		if err != nil {
			return q.fail(err)
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

// deliver forwards a reply to the client. A refusal that comes before the end of
// a message waits for that end.
func (q *replyQueue) deliver(r wire.Reply) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.abandoned {
		return q.waitEndLocked()
	}
	if q.inBody && r.Code >= 400 && r.Code != 421 {
		q.refusedEarly = true
		q.changed.Broadcast()
		for q.inBody && q.cause == nil {
			q.changed.Wait()
		}
		q.refusedEarly = false
	}
	switch {
	case q.cause != nil:
		return q.cause
	case r.Code == 421: // RFC 5321 section 3.8: answers any command, and may come without one
		q.appendLocked(string(r.Raw))
		_ = q.writeLocked()
		return proxy.ErrBackendClosed
	case len(q.waiting) == 0 || !q.waiting[0].allows(r.Code):
		q.sendFinalLocked("421 4.3.0 The mail server has answered out of turn")
		return errUnexpected
	}
	what := q.waiting[0].what
	q.recordLocked(what, r)
	q.waiting = slices.Delete(q.waiting, 0, 1)
	for len(q.waiting) > 0 && q.waiting[0].local != "" {
		q.appendLocked(q.waiting[0].local)
		q.waiting = slices.Delete(q.waiting, 0, 1)
	}
	q.setDeadlinesLocked()
	q.changed.Broadcast()
	// Replies that were read together are written together: at most wire.MaxReply octets.
	if len(q.waiting) > 0 && q.replies.HasReply() && what != replyToMessage {
		return nil
	}
	if err := q.writeLocked(); err != nil {
		return err
	}
	if what == replyToMessage || !q.inTransaction {
		q.client.SetBusy(false) // once the client has the reply: the session may end here
	}
	if q.quit {
		return errQuit
	}
	return nil
}

// allows reports whether a reply with this code may answer p. 354 makes a client
// send a message, so it may answer DATA alone.
func (p pending) allows(code int) bool {
	if p.what == replyToDATA {
		return code == 354 || code >= 400
	}
	return code < 300 || code >= 400
}

// recordLocked updates the state of the transaction by a reply, and appends the
// text that the client gets.
func (q *replyQueue) recordLocked(what replyTo, r wire.Reply) {
	q.lastCode = r.Code
	text := r.Raw
	good := r.Positive()
	switch what {
	case replyToMAIL:
		if good {
			q.inTransaction, q.recipients = true, 0
			q.transaction++
		}
	case replyToRCPT:
		if good {
			q.recipients++
		}
	case replyToDATA:
		q.inBody = r.Code == 354
	case replyToRSET:
		q.inTransaction = q.inTransaction && !good
	case replyToEHLO, replyToHELO:
		q.inTransaction = q.inTransaction && !good
		if good && what == replyToEHLO {
			text = q.ehlo
		} else if good {
			text = q.helo
		}
	case replyToMessage:
		q.inTransaction = false
		if good {
			q.submitted++
		}
	case replyToPart:
		if good {
			return
		}
		q.inTransaction = false
	case replyToChunk:
		q.inTransaction = q.inTransaction && good
	case replyToQUIT:
		q.quit = true
	}
	q.out = append(q.out, text...)
}

// fail ends the session because of an error on the connection to the server, and
// sends the client a 421. It returns why the session has ended, which may be an
// earlier cause.
func (q *replyQueue) fail(err error) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	switch {
	case q.cause != nil:
		return q.cause
	case q.abandoned:
		return q.waitEndLocked()
	case len(q.waiting) > 0 && q.waiting[0].what == replyToQUIT && errors.Is(err, io.EOF):
		q.appendLocked("221 2.0.0 Goodbye")
		q.quit = true
		q.changed.Broadcast()
		_ = q.writeLocked()
		return errQuit
	}
	q.sendFinalLocked("421 4.4.2 The connection to the mail server was lost")
	return q.endLocked(fmt.Errorf("%w: %w", proxy.ErrBackendClosed, err))
}

// abandonServer closes the connection to the server in the middle of a message,
// so that the server discards the message. The session goes on until the client
// has its reply.
func (q *replyQueue) abandonServer() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.abandoned = true
	_ = q.server.Close()
}

// waitEndLocked waits until the session has ended, and returns why.
func (q *replyQueue) waitEndLocked() error {
	for q.cause == nil {
		q.changed.Wait()
	}
	return q.cause
}

// waitCause waits for the reason of a failed write to the server: a reply may
// give a better one than err. It returns nil if the server has refused the
// message and only reads no more of it.
func (q *replyQueue) waitCause(err error) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	timer := time.AfterFunc(closeTime, func() { _ = q.fail(err) })
	defer timer.Stop()
	for q.cause == nil && !q.refusedEarly {
		q.changed.Wait()
	}
	return q.cause
}

// sendFinal writes a reply of Postern's own to the client at once. The session
// ends after it.
func (q *replyQueue) sendFinal(text string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.cause == nil {
		q.sendFinalLocked(text)
	}
}

func (q *replyQueue) sendFinalLocked(text string) {
	q.appendLocked(q.client.Client.WithSessionID(text))
	_ = q.writeLocked()
}

// sendFinalDrained is sendFinal once the client has all replies. In the middle of
// a message it writes nothing: a server discards a message that has no end.
func (q *replyQueue) sendFinalDrained(text string) {
	_, err := q.waitDrained()
	q.mu.Lock()
	defer q.mu.Unlock()
	if err == nil && q.cause == nil && !q.inBody {
		q.sendFinalLocked(text)
	}
}

// appendLocked appends a line to what the client gets.
func (q *replyQueue) appendLocked(line string) {
	q.out = append(append(q.out, strings.TrimSuffix(line, "\r\n")...), "\r\n"...)
}

// flush writes the pending octets to the client.
func (q *replyQueue) flush() error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.cause != nil {
		return q.cause
	}
	return q.writeLocked()
}

func (q *replyQueue) writeLocked() error {
	if len(q.out) == 0 {
		return nil
	}
	_, err := q.client.Write(q.out)
	if q.out = q.out[:0]; cap(q.out) > maxKept {
		q.out = nil
	}
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		return q.endLocked(fmt.Errorf("%w: %w", proxy.ErrClientClosed, err))
	}
	if err != nil {
		return q.endLocked(fmt.Errorf("write to client: %w", err))
	}
	return nil
}

// end ends the session with a cause and interrupts everything that waits. Only
// the first call counts.
func (q *replyQueue) end(cause error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	_ = q.endLocked(cause)
}

func (q *replyQueue) endLocked(cause error) error {
	if q.cause == nil {
		q.cause = cause
		q.changed.Broadcast()
		q.client.Interrupt(cause)
		_ = q.server.Close()
	}
	return q.cause
}
