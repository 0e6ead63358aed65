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

const (
	// DefaultSubmissionIdle is what RFC 5321 section 4.5.3.2.7 asks for.
	DefaultSubmissionIdle = 5 * time.Minute

	window     = 64               // commands without a reply, if the server takes more than one
	maxWaiting = 16 << 10         // octets that wait to be written in one go
	writeTime  = 5 * time.Minute  // for the server to take what is written at once
	replyTime  = 5 * time.Minute  // RFC 5321 section 4.5.3.2
	finalTime  = 10 * time.Minute // for the reply to a message
	maxBad     = 20               // commands that are refused here
	maxSwallow = 64 << 20         // octets of a message that is refused for its line ends
)

// Submission is a proxy.Session that passes on what it knows, command by
// command: the server trusts Postern more than the client, so a client must
// not say there what it likes, be it XCLIENT or a second message in the first.
type Submission struct {
	Server     string        // the backend's name
	Conn       Leg           // logged in
	Hostname   string        // in the answer to EHLO
	Extensions []string      // the lines of that answer: the same as before the login
	Lacks      []string      // keywords of them, upper case, that the server does not have for this client
	Idle       time.Duration // how long a client may owe a command; 0: DefaultSubmissionIdle
	Newlines   Newlines
	submitted  int
}

// Open implements proxy.Session.
func (s *Submission) Open(context.Context) (welcome string, err error) { return "", nil }

// Close implements proxy.Session.
func (s *Submission) Close() error { return s.Conn.Close() }

// Backend implements proxy.Reporter.
func (s *Submission) Backend() string { return s.Server }

// Totals implements proxy.Reporter.
func (s *Submission) Totals() proxy.Totals { return proxy.Totals{Submitted: s.submitted} }

// Run implements proxy.Session.
func (s *Submission) Run(ctx context.Context, client *proxy.Conn) error {
	q := newQueue(client, s)
	c := &commands{
		in: input{client: client, raw: rawConn(client)}, queue: q, server: s.Conn,
		chunking: announces(s.Extensions, "CHUNKING") && !slices.Contains(s.Lacks, "CHUNKING"), newlines: s.Newlines,
		lacks: s.Lacks, extensions: without(s.Extensions, s.Lacks),
	}
	defer c.in.release()
	// A server may owe a reply for longer than anybody waits for the end.
	defer context.AfterFunc(ctx, func() {
		client.Interrupt(context.Cause(ctx))
		time.AfterFunc(drainTime, func() { q.end(context.Cause(ctx)) })
	})()
	wait := apart(func() { q.end(q.relay()) }, func() { q.end(errPanic) })
	err := c.serve()
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if err = c.goodbye(err); !errors.Is(err, errQuit) { // then the server closes first
		q.end(err)
	}
	wait()
	s.submitted = q.submitted
	if errors.Is(q.cause, errQuit) {
		return nil
	}
	return q.cause
}

// commands is what the client says.
type commands struct {
	in       input
	queue    *queue
	server   Leg
	out      []byte // commands not yet written to the server
	chunking bool
	newlines Newlines
	lacks    []string // see Submission

	extensions []string // without those
	bad        int
	chunk      body // of a message that comes by BDAT
	chunkOf    int  // its transaction
}

// serve passes commands on until something ends the session.
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

// command parses a line strictly and writes it anew.
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

// refuse answers what the server must not see.
func (c *commands) refuse(reply string) error {
	if c.bad++; c.bad > maxBad {
		_, _ = c.settled()
		c.queue.say("421 4.7.0 Too many bad commands")
		return errTooManyBad
	}
	return c.answer(reply)
}

// answer gives our own reply when its turn has come.
func (c *commands) answer(reply string) error {
	return c.push(pending{local: reply})
}

// push takes a place in the queue. When there is none the server must have
// read what it is to answer.
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

// forward gives the server a command.
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

// longest is how long a command to the server may be, in octets: RFC 5321 section
// 4.5.3.1.4, and what its extensions add to it. A server that cuts a longer line
// would take its end for a command of its own.
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

// longerMAIL is what extensions add to MAIL: RFC 1870 section 3, RFC 6152 section
// 2, RFC 6531 section 3.1, RFC 3461 sections 4.3 and 4.4.
var longerMAIL = map[string]int{
	"SIZE": 26, "8BITMIME": 17, "SMTPUTF8": 10, "DSN": len(" RET=HDRS") + len(" ENVID=") + 100,
}

// flush writes what waits, to both sides.
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
	// The other direction may bring the reason.
	return c.queue.lost(fmt.Errorf("write to backend: %w", err))
}

// settled waits for all replies and returns the code of the last.
func (c *commands) settled() (code int, err error) {
	if err := c.flush(); err != nil {
		return 0, err
	}
	return c.queue.settled()
}

// quit ends with the server's answer.
func (c *commands) quit() error {
	if err := c.forward(replyToQUIT, "QUIT", nil); err != nil {
		return err
	}
	_, err := c.settled()
	return err
}

// data passes a message on. Nothing behind DATA is looked at before its reply:
// it makes a body of what follows, or commands.
func (c *commands) data(args []byte) error {
	if err := c.forward(replyToDATA, "DATA", args); err != nil {
		return err
	}
	if code, err := c.settled(); err != nil || code != 354 {
		return err
	}
	text := body{dots: true, as: c.newlines}
	recent := []byte("\r\n")
	scratch := buffers.Get().(*[bufferSize]byte)
	defer buffers.Put(scratch)
	for end := false; !end; {
		in, err := c.more(1)
		if err != nil {
			return err
		}
		for len(in) > 0 && !end {
			var out []byte
			var n int
			out, n, end = text.next(scratch[:], in)
			if why := c.unfit(in[:n], text.bare); why != nil {
				next := func(in []byte) (int, bool) {
					_, n, end := text.next(scratch[:], in)
					c.in.discard(n)
					recent = lastOctets(recent, in[:n])
					return n, end || len(c.in.ahead()) == 0 && loneDot(recent)
				}
				c.in.discard(n)
				recent = lastOctets(recent, in[:n])
				return c.reject(why, next, end || len(c.in.ahead()) == 0 && loneDot(recent))
			}
			recent = lastOctets(recent, in[:n])
			if end { // before the reply can come
				if err := c.push(pending{what: replyToMessage}); err != nil {
					return err
				}
			}
			if err := c.write(out); err != nil {
				return err
			}
			c.in.discard(n)
			in = in[n:]
		}
	}
	return nil
}

// more returns a part of a message, of at least want octets if the buffer has
// room for them. A client that sends on is not idle.
func (c *commands) more(want int) ([]byte, error) {
	for len(c.in.ahead()) < want {
		c.queue.extend()
		if err := c.in.fillLarge(); err != nil {
			return nil, err
		}
	}
	return c.in.ahead(), nil
}

// bdat passes a chunk of a message on: RFC 3030. As line ends are made CRLF the
// client's lengths do not hold, so the server gets chunks of our own.
func (c *commands) bdat(args []byte) error {
	size, last, ok := parseBDAT(args)
	if !ok { // where the next command begins nobody knows
		_, _ = c.settled()
		c.queue.say("501 5.5.4 Syntax: BDAT size [LAST]")
		return errBadChunk
	}
	if _, err := c.settled(); err != nil {
		return err
	}
	open := c.queue.open()
	if !c.chunking || open == 0 {
		if err := c.swallow(size); err != nil {
			return err
		}
		return c.refuse("503 5.5.1 Bad sequence of commands")
	}
	if c.newlines == Pass {
		return c.passChunk(size, last)
	}
	if c.chunkOf != open {
		c.chunk, c.chunkOf = body{as: c.newlines}, open
	}
	scratch := buffers.Get().(*[bufferSize]byte)
	defer buffers.Put(scratch)
	for {
		in, err := c.piece(size)
		if err != nil {
			return err
		}
		out, n, _ := c.chunk.next(scratch[:], in)
		size -= int64(n)
		if why := c.unfit(in[:n], c.chunk.bare || c.newlines == Reject && size == 0 && last && c.chunk.finish() != nil); why != nil {
			c.in.discard(n)
			return c.rejectChunk(why, size)
		}
		if size == 0 {
			return c.lastPiece(out, n, last)
		}
		code, err := c.send(replyToPiece, out, "")
		c.in.discard(n)
		if err != nil {
			return err
		}
		if code/100 != 2 { // said to the client already
			return c.swallow(size)
		}
	}
}

// passChunk passes a chunk on as it is.
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
	if err := c.take(size, c.write); err != nil {
		return err
	}
	_, err := c.settled()
	return err
}

// An unfitness is why a message is refused for its octets.
type unfitness struct {
	reply string
	err   error // of the session, which ends
}

// unfit returns why a message with these octets is refused; nil: it is not. bare
// says that it has a bare CR or LF. A NUL is in no message (RFC 2045 section 2.8;
// BINARYMIME is not offered): a server that drops it could find the end of the
// message where Postern finds none.
func (c *commands) unfit(octets []byte, bare bool) *unfitness {
	switch {
	case c.newlines != Pass && bytes.IndexByte(octets, 0) >= 0:
		return &unfitness{"554 5.6.0 NUL in the message", errNUL}
	case c.newlines == Reject && bare:
		return &unfitness{"554 5.5.2 Bare CR or LF in the message: lines end with CRLF", errBareNewline}
	}
	return nil
}

// lastOctets returns the last octets of those before and in, as many as loneDot
// wants.
func lastOctets(before, in []byte) []byte {
	const most = len("\n.\r\n")
	if len(in) >= most {
		return append(before[:0], in[len(in)-most:]...)
	}
	before = append(before, in...)
	return append(before[:0], before[max(0, len(before)-most):]...)
}

// loneDot reports whether a message that ends so is at its end for a client
// whose lines end in LF. It counts only for one that is refused, and when the
// client has sent nothing behind it.
func loneDot(end []byte) bool {
	return bytes.HasSuffix(end, []byte("\n.\n")) || bytes.HasSuffix(end, []byte("\n.\r\n"))
}

// reject refuses a message for its octets. The server must not see its end,
// so the session is over; but the client listens only when it has sent all. next
// takes from what is ahead.
func (c *commands) reject(why *unfitness, next func([]byte) (n int, end bool), end bool) error {
	c.queue.drop()
	for swallowed := 0; !end && swallowed < maxSwallow; {
		in, err := c.more(1)
		if err != nil {
			return err
		}
		var n int
		n, end = next(in)
		swallowed += n
	}
	c.queue.say(why.reply)
	return why.err
}

// rejectChunk is reject in a chunk, of which size octets are still to come.
func (c *commands) rejectChunk(why *unfitness, size int64) error {
	return c.reject(why, func(in []byte) (int, bool) {
		n := int(min(size, int64(len(in))))
		c.in.discard(n)
		size -= int64(n)
		return n, size == 0
	}, size == 0)
}

// piece returns up to size octets of a chunk.
func (c *commands) piece(size int64) ([]byte, error) {
	if size == 0 {
		return nil, nil
	}
	in, err := c.more(int(min(size, bufferSize)))
	return in[:min(size, int64(len(in)))], err
}

// lastPiece sends the end of a chunk. Its reply is the one to the chunk.
func (c *commands) lastPiece(out []byte, n int, last bool) error {
	if !last {
		_, err := c.send(replyToChunk, out, "")
		c.in.discard(n)
		return err
	}
	out = append(slices.Clip(out), c.chunk.finish()...)
	_, err := c.send(replyToMessage, out, " LAST")
	c.in.discard(n)
	return err
}

// send gives the server a chunk and waits for the reply.
func (c *commands) send(what replyTo, chunk []byte, last string) (code int, err error) {
	if err := c.push(pending{what: what}); err != nil {
		return 0, err
	}
	c.out = append(strconv.AppendInt(append(c.out, "BDAT "...), int64(len(chunk)), 10), last+"\r\n"...)
	if len(chunk) < maxWaiting {
		c.out = append(c.out, chunk...)
		return c.settled()
	}
	if err := c.flush(); err != nil {
		return 0, err
	}
	if err := c.write(chunk); err != nil {
		return 0, err
	}
	return c.settled()
}

// swallow reads size octets of a chunk that nobody wants.
func (c *commands) swallow(size int64) error {
	return c.take(size, func([]byte) error { return nil })
}

// take gives size octets of what the client sends to f, in parts.
func (c *commands) take(size int64, f func([]byte) error) error {
	for size > 0 {
		in, err := c.more(1)
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

// parseBDAT reads 1*18DIGIT [LAST]: RFC 3030 section 2 sets no limit, int64 does.
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

// goodbye says what is left to say when serve has ended, and gives the end its
// name.
func (c *commands) goodbye(err error) error {
	if err := c.queue.err(); err != nil {
		return err
	}
	switch _, network := errors.AsType[*net.OpError](err); {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		// The client may have ended only its own direction.
		if _, err := c.settled(); errors.Is(err, errQuit) {
			return err
		}
		return proxy.ErrClientClosed
	case errors.Is(err, os.ErrDeadlineExceeded):
		c.queue.say("421 4.4.2 Nothing came for too long")
		return proxy.ErrIdleTimeout
	case network:
		return fmt.Errorf("%w: %w", proxy.ErrClientClosed, err)
	case proxy.ReasonOf(err) == proxy.Kicked:
		c.queue.sayLast("421 4.3.2 Disconnected by an administrator")
	case proxy.ReasonOf(err) != 0:
		c.queue.sayLast("421 4.3.2 The service is restarting: try again in a moment")
	}
	return err
}
