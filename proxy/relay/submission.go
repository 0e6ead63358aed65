package relay

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strconv"
	"time"

	"postern/proxy"
	"postern/proxy/wire"
)

// The limits of a submission session.
const (
	maxWaiting = 16 << 10        // octets collected for one write
	writeTime  = 5 * time.Minute // for the server to read what is written at once
	maxBad     = 20              // commands that Postern itself refuses
	maxDiscard = 64 << 20        // octets of a message that is refused for its line ends
)

// Submission is a proxy.Session that forwards the commands that it knows, one by
// one. The server trusts Postern more than the client, so a client must not be
// able to send it anything else, be it XCLIENT or a second message within the
// first.
type Submission struct {
	BackendName string        // the backend's name
	Conn        Upstream      // logged in
	Hostname    string        // in the reply to EHLO
	Extensions  []string      // the lines of that reply: the same as before the login
	Lacks       []string      // keywords of Extensions, in upper case, that the server does not offer to this client
	Idle        time.Duration // for the client to send the next command; 0: proxy.DefaultSubmissionIdle
	Newlines    Newlines
	submitted   int
}

// Open implements proxy.Session.
func (s *Submission) Open(context.Context) (welcome string, err error) { return "", nil }

// Close implements proxy.Session.
func (s *Submission) Close() error { return s.Conn.Close() }

// Backend implements proxy.Reporter.
func (s *Submission) Backend() string { return s.BackendName }

// Totals implements proxy.Reporter.
func (s *Submission) Totals() proxy.Totals { return proxy.Totals{Submitted: s.submitted} }

// Run implements proxy.Session.
func (s *Submission) Run(ctx context.Context, client *proxy.Conn) error {
	extensions := without(s.Extensions, s.Lacks)
	q := newReplyQueue(client, s.Conn, s.Hostname, extensions, s.Idle)
	c := &commands{
		in: input{client: client}, queue: q, server: s.Conn,
		chunking: announces(s.Extensions, "CHUNKING") && !slices.Contains(s.Lacks, "CHUNKING"), newlines: s.Newlines,
		lacks: s.Lacks, extensions: extensions,
	}
	defer c.in.release()
	// A server may take longer for its reply than the end may wait.
	defer context.AfterFunc(ctx, func() {
		client.Interrupt(context.Cause(ctx))
		time.AfterFunc(drainTime, func() { q.end(context.Cause(ctx)) })
	})()
	wait := goRecover(func() { q.end(q.relayReplies()) }, func() { q.end(errPanic) })
	err := c.serve()
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if err = c.finish(err); !errors.Is(err, errQuit) { // after QUIT the server closes first
		q.end(err)
	}
	wait()
	s.submitted = q.submitted
	if errors.Is(q.cause, errQuit) {
		return nil
	}
	return q.cause
}

// commands is the direction from the client to the server.
type commands struct {
	in       input
	queue    *replyQueue
	server   Upstream
	out      []byte // for the server, not yet written
	chunking bool
	newlines Newlines
	lacks    []string // as Submission.Lacks

	extensions []string // Submission.Extensions without those of lacks
	bad        int
	chunk      body // of the message that comes by BDAT
	chunkOf    int  // number of its transaction
}

// serve forwards commands until something ends the session.
func (c *commands) serve() error {
	for {
		if !c.in.hasLine() {
			if err := c.flush(); err != nil {
				return err
			}
		}
		line, err := c.in.line()
		if errors.Is(err, proxy.ErrLineTooLong) {
			err = c.refuse("500 5.5.2 Line too long")
		} else if err == nil {
			err = c.command(line)
		}
		if err != nil {
			return err
		}
	}
}

// command parses a line strictly and writes the command anew.
func (c *commands) command(line []byte) error {
	text, crlf := wire.TrimLine(line)
	if !crlf || bytes.ContainsFunc(text, control) {
		return c.refuse("500 5.5.2 Lines end with CRLF and hold no control characters")
	}
	word, args := wire.CutWord(text)
	switch name := wire.Keyword(word); name {
	case "MAIL":
		return c.forward(replyToMAIL, name, withoutParams(args, c.lacks))
	case "RCPT":
		return c.forward(replyToRCPT, name, withoutParams(args, c.lacks))
	case "NOOP", "VRFY", "HELP":
		return c.forward(replyToOther, name, args)
	case "RSET":
		return c.forward(replyToRSET, name, args)
	case "EHLO":
		return c.forward(replyToEHLO, "RSET", nil)
	case "HELO":
		return c.forward(replyToHELO, "RSET", nil)
	case "DATA":
		return c.data(args)
	case "BDAT":
		return c.bdat(args)
	case "QUIT":
		return c.quit()
	case "AUTH":
		return c.refuse("503 5.5.1 Already authenticated")
	case "STARTTLS":
		return c.refuse("503 5.5.1 TLS is active already")
	case "":
		return c.refuse("500 5.5.2 Syntax error")
	}
	return c.refuse("502 5.5.1 Command not implemented")
}

func control(r rune) bool { return r < ' ' && r != '\t' || r == 0x7F }

// refuse answers a command that the server must not see.
func (c *commands) refuse(reply string) error {
	if c.bad++; c.bad > maxBad {
		_, _ = c.waitReplies()
		c.queue.sendFinal("421 4.7.0 Too many bad commands")
		return errTooManyBad
	}
	return c.answer(reply)
}

// answer queues a reply of Postern's own.
func (c *commands) answer(reply string) error {
	return c.push(pending{local: reply})
}

// push appends p to the reply queue. When the queue is full, the commands that
// the server still owes replies to are written first.
func (c *commands) push(p pending) error {
	if c.queue.push(p, false) {
		return nil
	}
	if err := c.flush(); err != nil {
		return err
	}
	c.queue.push(p, true)
	return c.queue.err()
}

// forward sends the server a command.
func (c *commands) forward(what replyTo, name string, args []byte) error {
	if len(name)+len(" ")+len(args)+len("\r\n") > c.longest(what) {
		return c.refuse("500 5.5.2 Line too long")
	}
	if err := c.push(pending{what: what}); err != nil {
		return err
	}
	c.out = append(c.out, name...)
	if args != nil {
		c.out = append(append(c.out, ' '), args...)
	}
	c.out = append(c.out, "\r\n"...)
	if len(c.out) < maxWaiting {
		return nil
	}
	return c.flush()
}

// longest returns how long a command to the server may be, in octets: RFC 5321
// section 4.5.3.1.4, and what the server's extensions add. A server that splits a
// longer line would take its rest for a command.
func (c *commands) longest(what replyTo) int {
	n := 512
	switch what {
	case replyToMAIL:
		n += 500 // AUTH: RFC 4954 section 3
		for word, more := range longerMAIL {
			if announces(c.extensions, word) {
				n += more
			}
		}
	case replyToRCPT:
		if announces(c.extensions, "DSN") {
			n += len(" NOTIFY=SUCCESS,FAILURE,DELAY") + len(" ORCPT=") + 500 // RFC 3461 sections 4.1 and 4.2
		}
	}
	return n
}

// longerMAIL is how many octets each extension adds to MAIL: RFC 1870 section 3,
// RFC 6152 section 2, RFC 6531 section 3.1, RFC 3461 sections 4.3 and 4.4.
var longerMAIL = map[string]int{
	"SIZE": 26, "8BITMIME": 17, "SMTPUTF8": 10, "DSN": len(" RET=HDRS") + len(" ENVID=") + 100,
}

// flush writes what is collected for client and server.
func (c *commands) flush() error {
	if err := c.queue.flush(); err != nil {
		return err
	}
	err := c.write(c.out)
	c.out = c.out[:0]
	return err
}

func (c *commands) write(p []byte) error {
	if len(p) == 0 {
		return nil
	}
	_ = c.server.SetWriteDeadline(time.Now().Add(writeTime))
	_, err := c.server.Write(p)
	if err == nil {
		return nil
	}
	// A reply of the server may give the reason.
	return c.queue.waitCause(fmt.Errorf("write to backend: %w", err))
}

// waitReplies waits for all replies and returns the code of the last one.
func (c *commands) waitReplies() (code int, err error) {
	if err := c.flush(); err != nil {
		return 0, err
	}
	return c.queue.waitDrained()
}

// quit forwards QUIT and waits for the reply, which ends the session.
func (c *commands) quit() error {
	if err := c.forward(replyToQUIT, "QUIT", nil); err != nil {
		return err
	}
	_, err := c.waitReplies()
	return err
}

// data forwards a message. What the client sends after DATA is not read before
// the reply, which decides whether it is a message or commands.
func (c *commands) data(args []byte) error {
	if err := c.forward(replyToDATA, "DATA", args); err != nil {
		return err
	}
	if code, err := c.waitReplies(); err != nil || code != 354 {
		return err
	}
	c.in.client.SetBusy(true)
	scratch := buffers.Get().(*[bufferSize]byte)
	defer buffers.Put(scratch)
	message := dataReader{in: &c.in, body: body{dots: true, as: c.newlines}, scratch: scratch[:], last: []byte("\r\n")}
	for end := false; !end; {
		if _, err := c.readBody(1); err != nil {
			return err
		}
		var out, read []byte
		out, read, end = message.next()
		if why := c.checkOctets(read, message.body.bare); why != nil {
			return c.rejectMessage(why, message.skip, end || message.loneDot())
		}
		if end { // before the reply can come
			if err := c.push(pending{what: replyToMessage}); err != nil {
				return err
			}
		}
		if err := c.write(out); err != nil {
			return err
		}
	}
	return nil
}

// A dataReader reads the message of a DATA command.
type dataReader struct {
	in      *input
	body    body
	scratch []byte
	last    []byte // octets that were read last, as many as loneDot needs
}

// next reads octets that are ahead. It returns what to send on, what it has read,
// and whether the message is complete.
func (r *dataReader) next() (out, read []byte, end bool) {
	ahead := r.in.ahead()
	out, n, end := r.body.next(r.scratch, ahead)
	r.in.discard(n)
	r.last = lastOctets(r.last, ahead[:n])
	return out, ahead[:n], end
}

// skip reads octets of a message that is refused. It returns how many, and whether
// the message is complete.
func (r *dataReader) skip() (n int, end bool) {
	_, read, end := r.next()
	return len(read), end || r.loneDot()
}

// loneDot reports whether the client may take a dot between two LF for the end of
// its message, and has sent nothing after it.
func (r *dataReader) loneDot() bool { return len(r.in.ahead()) == 0 && loneDot(r.last) }

// readBody returns octets of a message, at least want if the buffer can hold
// them. A client that keeps sending is not idle.
func (c *commands) readBody(want int) ([]byte, error) {
	for len(c.in.ahead()) < want {
		c.queue.extendDeadline()
		if err := c.in.fillLarge(); err != nil {
			return nil, err
		}
	}
	return c.in.ahead(), nil
}

// bdat forwards a chunk: RFC 3030. Where line ends are made CRLF, the sizes of
// the client's chunks do not hold, and the server gets chunks of Postern's own.
func (c *commands) bdat(args []byte) error {
	size, last, ok := parseBDAT(args)
	if !ok { // it is not known where the next command begins
		_, _ = c.waitReplies()
		c.queue.sendFinal("501 5.5.4 Syntax: BDAT size [LAST]")
		return errBadChunk
	}
	if _, err := c.waitReplies(); err != nil {
		return err
	}
	transaction := c.queue.openTransaction()
	switch {
	case !c.chunking || transaction == 0:
		if err := c.skipChunk(size); err != nil {
			return err
		}
		return c.refuse("503 5.5.1 Bad sequence of commands")
	case c.newlines == Pass:
		c.in.client.SetBusy(true)
		return c.passChunk(size, last)
	case c.chunkOf != transaction:
		c.chunk, c.chunkOf = body{as: c.newlines}, transaction
	}
	c.in.client.SetBusy(true)
	return c.rewriteChunk(size, last)
}

// rewriteChunk forwards a chunk with line ends made CRLF, in chunks of Postern's
// own.
func (c *commands) rewriteChunk(size int64, last bool) error {
	scratch := buffers.Get().(*[bufferSize]byte)
	defer buffers.Put(scratch)
	for {
		in, err := c.readChunk(size)
		if err != nil {
			return err
		}
		out, n, _ := c.chunk.next(scratch[:], in)
		size -= int64(n)
		bare := c.chunk.bare || c.newlines == Reject && size == 0 && last && c.chunk.finish() != nil
		if why := c.checkOctets(in[:n], bare); why != nil {
			c.in.discard(n)
			return c.rejectChunk(why, size)
		}
		if size == 0 {
			return c.sendChunkEnd(out, n, last)
		}
		code, err := c.sendChunk(replyToPart, out, "")
		c.in.discard(n)
		if err != nil {
			return err
		}
		if code/100 != 2 { // the client has the reply already
			return c.skipChunk(size)
		}
	}
}

// passChunk forwards a chunk unchanged.
func (c *commands) passChunk(size int64, last bool) error {
	what, end := replyToChunk, ""
	if last {
		what, end = replyToMessage, " LAST"
	}
	if err := c.push(pending{what: what}); err != nil {
		return err
	}
	c.out = append(strconv.AppendInt(append(c.out, "BDAT "...), size, 10), end+"\r\n"...)
	if err := c.flush(); err != nil {
		return err
	}
	if err := c.copyChunk(size, c.write); err != nil {
		return err
	}
	_, err := c.waitReplies()
	return err
}

// An octetError is why a message is refused for its octets.
type octetError struct {
	reply string
	err   error // ends the session
}

// checkOctets returns why a message with these octets is refused, or nil. bare
// says that the message has a bare CR or LF. No message may contain NUL (RFC 2045
// section 2.8; BINARYMIME is not offered): a server that drops it could find the
// end of the message where Postern finds none.
func (c *commands) checkOctets(octets []byte, bare bool) *octetError {
	switch {
	case c.newlines != Pass && bytes.IndexByte(octets, 0) >= 0:
		return &octetError{"554 5.6.0 NUL in the message", errNUL}
	case c.newlines == Reject && bare:
		return &octetError{"554 5.5.2 Bare CR or LF in the message: lines end with CRLF", errBareNewline}
	}
	return nil
}

// lastOctets returns the last octets of before and in, as many as loneDot needs.
// It reuses before.
func lastOctets(before, in []byte) []byte {
	const most = len("\n.\r\n")
	if len(in) >= most {
		return append(before[:0], in[len(in)-most:]...)
	}
	before = append(before, in...)
	return append(before[:0], before[max(0, len(before)-most):]...)
}

// loneDot reports whether octets that end a message would end it for a client
// that ends its lines with LF. It matters only for a message that is refused,
// when the client has sent nothing after it.
func loneDot(end []byte) bool {
	return bytes.HasSuffix(end, []byte("\n.\n")) || bytes.HasSuffix(end, []byte("\n.\r\n"))
}

// rejectMessage refuses a message for its octets. The server must not see the end
// of the message, so the session ends. A client reads the reply only when it has
// sent the whole message, so the rest is read first: next reads from the octets
// that are buffered.
func (c *commands) rejectMessage(why *octetError, next func() (n int, end bool), end bool) error {
	c.queue.abandonServer()
	for discarded := 0; !end && discarded < maxDiscard; {
		if _, err := c.readBody(1); err != nil {
			return err
		}
		var n int
		n, end = next()
		discarded += n
	}
	c.queue.sendFinal(why.reply)
	return why.err
}

// rejectChunk is rejectMessage within a chunk of which size octets are still to
// come.
func (c *commands) rejectChunk(why *octetError, size int64) error {
	return c.rejectMessage(why, func() (int, bool) {
		n := int(min(size, int64(len(c.in.ahead()))))
		c.in.discard(n)
		size -= int64(n)
		return n, size == 0
	}, size == 0)
}

// readChunk returns up to size octets of a chunk.
func (c *commands) readChunk(size int64) ([]byte, error) {
	if size == 0 {
		return nil, nil
	}
	in, err := c.readBody(int(min(size, bufferSize)))
	return in[:min(size, int64(len(in)))], err
}

// sendChunkEnd sends the end of a chunk. The server's reply to it is the reply to
// the client's chunk.
func (c *commands) sendChunkEnd(out []byte, n int, last bool) error {
	if !last {
		_, err := c.sendChunk(replyToChunk, out, "")
		c.in.discard(n)
		return err
	}
	out = append(slices.Clip(out), c.chunk.finish()...)
	_, err := c.sendChunk(replyToMessage, out, " LAST")
	c.in.discard(n)
	return err
}

// sendChunk sends the server a chunk and waits for the reply.
func (c *commands) sendChunk(what replyTo, chunk []byte, last string) (code int, err error) {
	if err := c.push(pending{what: what}); err != nil {
		return 0, err
	}
	c.out = append(strconv.AppendInt(append(c.out, "BDAT "...), int64(len(chunk)), 10), last+"\r\n"...)
	if len(chunk) < maxWaiting {
		c.out = append(c.out, chunk...)
		return c.waitReplies()
	}
	if err := c.flush(); err != nil {
		return 0, err
	}
	if err := c.write(chunk); err != nil {
		return 0, err
	}
	return c.waitReplies()
}

// skipChunk reads and discards size octets of a chunk.
func (c *commands) skipChunk(size int64) error {
	return c.copyChunk(size, func([]byte) error { return nil })
}

// copyChunk calls f with size octets of the client, in parts.
func (c *commands) copyChunk(size int64, f func([]byte) error) error {
	for size > 0 {
		in, err := c.readBody(1)
		if err != nil {
			return err
		}
		in = in[:min(size, int64(len(in)))]
		if err := f(in); err != nil {
			return err
		}
		c.in.discard(len(in))
		size -= int64(len(in))
	}
	return nil
}

// parseBDAT reads 1*18DIGIT [LAST]. RFC 3030 section 2 sets no limit; int64 does.
func parseBDAT(args []byte) (size int64, last, ok bool) {
	digits, rest := wire.CutWord(bytes.TrimRight(args, " "))
	const most = 18
	if len(digits) == 0 || len(digits) > most || bytes.ContainsFunc(digits, func(r rune) bool { return r < '0' || r > '9' }) {
		return 0, false, false
	}
	size, err := strconv.ParseInt(string(digits), 10, 64)
	last = wire.Keyword(rest) == "LAST"
	return size, last, err == nil && (rest == nil || last)
}

// finish sends the last reply, if one is due, after serve has returned err, and
// returns the session's end.
func (c *commands) finish(err error) error {
	if err := c.queue.err(); err != nil {
		return err
	}
	switch _, network := errors.AsType[*net.OpError](err); {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		// The client may have ended only its own direction.
		if _, err := c.waitReplies(); errors.Is(err, errQuit) {
			return err
		}
		return proxy.ErrClientClosed
	case errors.Is(err, os.ErrDeadlineExceeded):
		c.queue.sendFinal("421 4.4.2 Nothing came for too long")
		return proxy.ErrIdleTimeout
	case network:
		return fmt.Errorf("%w: %w", proxy.ErrClientClosed, err)
	case proxy.ReasonOf(err) != 0:
		c.queue.sendFinalDrained("421 4.3.2 " + proxy.Goodbye(proxy.ReasonOf(err)))
	}
	return err
}
