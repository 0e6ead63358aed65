package bridge

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"postern/bridge/inbox"
	"postern/proxy"
	"postern/proxy/wire"
)

const (
	maxCommand = 255 // octets of a command with its CRLF, RFC 2449 section 4
	maxBad     = 20  // invalid commands in a row
)

var errBadCommands = errors.New("too many bad commands")

// A session is a POP3 session in its TRANSACTION and UPDATE states, RFC 1939
// sections 5 and 6.
type session struct {
	backend          *Backend
	login            *proxy.Login // kept to reconnect
	inbox            *inbox.Inbox
	maildrop         *maildrop
	cacheSum         uint32 // checksum of the snapshot in the cache; 0: no snapshot
	record           recordState
	deletedUIDs      []uint32          // UIDs of the tombstones, until hide
	unhidden         []uint32          // UIDs of tombstones whose keyword another client has removed
	staleTombstones  bool              // some tombstones are of unhidden messages, or of messages that the server no longer has
	undeletable      map[uint32]bool   // UIDs of messages whose bodies came cut or doubtful: DELE is refused
	headerHashes     map[uint32]uint64 // fingerprints of the headers that were sent, by UID
	reservation      *reservation      // for the listing
	lock             *lock             // nil: other sessions may open the maildrop
	updated          bool
	endRemoval       func() // ends Brake.beginRemoval; nil: nothing was removed
	renumbered       bool   // UIDVALIDITY has changed: the UIDs belong to other messages
	readAhead        readAhead
	highestRetrieved int    // the highest number that was retrieved
	seenBelow        uint32 // earlier sessions have seen the UIDs below seenBelow; 0: no session has
	sizesExact       bool
	totals           proxy.Totals
	bad              int // invalid commands in a row

	idleUntil time.Time // when the client has been silent for too long; zero: it has just sent something

	conn *proxy.Conn   // set by Run
	out  *bufio.Writer // nil while the client sends nothing
}

// An errReply is a -ERR response.
type errReply struct {
	text   string
	syntax bool  // the command was not valid
	end    error // the error that ends the session after the response; nil: the session goes on
}

func (n *errReply) Error() string { return n.text }

// Open lists the maildrop and returns the text of the +OK after login.
func (s *session) Open(ctx context.Context) (welcome string, err error) {
	done, err := s.backend.Delay.enter(s.login.Account)
	if err != nil {
		return "", err
	}
	welcome, err = s.open(ctx)
	done(err == nil)
	return welcome, err
}

func (s *session) open(ctx context.Context) (welcome string, err error) {
	begun := time.Now()
	source, err := s.list(ctx)
	if ctx.Err() != nil {
		return "", context.Cause(ctx)
	}
	if err != nil {
		return "", cannotOpen(err)
	}
	if err := s.hide(ctx); err != nil {
		return "", err
	}
	s.inbox.BeforeWait(s.flush)
	s.inbox.ReleaseBuffers()
	s.backend.observe(proxy.MaildropOpened{
		Client: s.login.Client, Source: source, Messages: s.maildrop.count, Octets: s.maildrop.octets, Duration: time.Since(begun),
	})
	return s.summary(), nil
}

// Backend implements proxy.Reporter.
func (s *session) Backend() string { return s.backend.Name }

// Totals implements proxy.Reporter.
func (s *session) Totals() proxy.Totals {
	t := s.totals
	t.Mode = proxy.ModeBridge
	t.Messages, t.Marked = len(s.maildrop.messages), len(s.maildrop.messages)-s.maildrop.count
	if t.Downloaded > 0 {
		t.Kept = s.maildrop.kept()
	}
	t.UIDLsBefore, t.UIDLsAfter = s.hashes()
	return t
}

// Close logs out of the server, stores what the session has learnt, and clears the
// secret. The lock and the reserved memory are released also after a panic.
func (s *session) Close() error {
	s.login.Secret.Clear()
	defer s.unlock()
	defer s.reservation.close()
	if s.endRemoval != nil {
		defer s.endRemoval()
	}
	defer s.inbox.Discard()
	s.confirmRemoved()
	s.collectFingerprints()
	err := s.inbox.Close()
	if s.totals.Deleted > 0 {
		s.maildrop.setRemoved()
	}
	s.saveSnapshot(context.Background())
	if s.staleTombstones {
		_ = s.recordTombstones(context.Background(), nil) // else the next session tries
	}
	return err
}

// Run answers commands, one at a time. It returns nil after QUIT, a *proxy.Idle when the
// client is silent, else the error that has ended the session.
func (s *session) Run(ctx context.Context, client *proxy.Conn) error {
	s.conn = client
	ctx, end := s.withEviction(ctx, client)
	parks := false
	defer func() { end(parks) }()
	defer s.releaseBuffers()
	for {
		line, err := s.next()
		if _, parks = errors.AsType[*proxy.Idle](err); parks {
			return err
		}
		s.takeBuffers()
		if err == nil || errors.Is(err, proxy.ErrLineTooLong) {
			err = s.answer(ctx, line)
		} else {
			err = s.clientGone(ctx, err)
		}
		if err == nil {
			continue
		}
		flushed := s.flush()
		switch {
		case errors.Is(err, proxy.ErrQuit) && flushed != nil:
			return flushed
		case errors.Is(err, proxy.ErrQuit):
			return nil
		}
		return err
	}
}

// next returns the next command, or nil and ErrLineTooLong. Responses are flushed only
// when no further command is buffered: RFC 2449 section 6.6 (PIPELINING). A *proxy.Idle
// says that the client is silent.
func (s *session) next() (line []byte, err error) {
	defer func() {
		if _, parks := errors.AsType[*proxy.Idle](err); !parks {
			s.idleUntil = time.Time{}
		}
	}()
	if s.conn.Buffered() > 0 {
		// The buffer may hold only a part of a line.
		if err := s.conn.SetReadDeadline(time.Unix(1, 0)); err != nil {
			return nil, err
		}
		line, err := s.conn.ReadLine(maxCommand)
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return line, err
		}
	}
	if err := s.flush(); err != nil {
		return nil, err
	}
	s.inbox.DrainCompletions()
	s.releaseBuffers()
	now := time.Now()
	if s.idleUntil.IsZero() {
		s.idleUntil = now.Add(s.backend.idle())
	}
	if after := s.conn.ParkAfter(); after > 0 && now.Add(after).Before(s.idleUntil) {
		line, err = s.readUntil(now.Add(after))
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return line, err
		}
		if s.conn.Buffered() == 0 {
			return nil, &proxy.Idle{Until: s.idleUntil} // the server may close unseen, as before
		}
	}
	return s.readUntil(s.idleUntil)
}

// readUntil reads a line up to a deadline.
func (s *session) readUntil(deadline time.Time) ([]byte, error) {
	if err := s.conn.SetReadDeadline(deadline); err != nil {
		return nil, err
	}
	return s.conn.ReadLine(maxCommand)
}

// releaseBuffers returns the buffers to their pools while the client sends nothing.
func (s *session) releaseBuffers() {
	s.inbox.ReleaseBuffers()
	if s.out != nil {
		s.backend.putWriter(s.out)
		s.out = nil
	}
}

// takeBuffers gets a writer for a response, if the session has none.
func (s *session) takeBuffers() {
	if s.out == nil {
		s.out = s.backend.getWriter(s.conn)
	}
}

// flush sends the buffered responses.
func (s *session) flush() error {
	if s.out == nil || s.out.Buffered() == 0 {
		return nil
	}
	if err := s.out.Flush(); err != nil {
		return clientLost(err)
	}
	return nil
}

// clientGone returns the error that ends the session after err of a read from the
// client. It writes the last response, if there is one.
func (s *session) clientGone(ctx context.Context, err error) error {
	switch {
	case ctx.Err() != nil:
		s.refuse(s.endReply(ctx))
		return context.Cause(ctx)
	case errors.Is(err, proxy.ErrFlood):
		s.refuse(&errReply{text: "Line too long"})
		return err
	case errors.Is(err, os.ErrDeadlineExceeded):
		// RFC 1939 section 3: no UPDATE state and no response.
		return proxy.ErrIdleTimeout
	}
	return clientLost(err)
}

// clientLost wraps an error of the connection to the client.
func clientLost(err error) error { return fmt.Errorf("%w: %w", proxy.ErrClientClosed, err) }

// answer answers one command. An error ends the session.
func (s *session) answer(ctx context.Context, line []byte) error {
	begun := time.Now()
	keyword, args := parse(line)
	err := s.do(ctx, keyword, args)
	ok := err == nil || errors.Is(err, proxy.ErrQuit)
	if n, said := errors.AsType[*errReply](err); said {
		s.refuse(n)
		ok, err = false, s.countBad(n)
	} else if ok {
		s.bad = 0
	} else {
		s.conn.Abort() // the response has begun: the client must not take it as complete
	}
	s.backend.observe(proxy.POP3Command{Command: label(keyword), OK: ok, Duration: time.Since(begun)})
	return err
}

// countBad counts invalid commands. It returns the error that ends the session, or nil.
func (s *session) countBad(n *errReply) error {
	if !n.syntax {
		s.bad = 0
		return n.end
	}
	if s.bad++; s.bad >= maxBad {
		return errBadCommands
	}
	return n.end
}

// parse splits a command at its spaces. RFC 1939 requires one space between arguments
// and none at the end; some clients send more spaces.
func parse(line []byte) (keyword string, args []string) {
	text, _ := wire.TrimLine(line)
	words := strings.FieldsFunc(string(text), func(r rune) bool { return r == ' ' })
	if len(words) == 0 {
		return "", nil
	}
	return strings.ToUpper(words[0]), words[1:]
}

// label returns the keyword as a label of a metric: one of a fixed list.
func label(keyword string) string {
	if slices.Contains(proxy.POP3Commands[:], keyword) {
		return keyword
	}
	return proxy.CommandOther
}

// do writes the response to a command, or returns it as an *errReply. Any other error
// ends the session: ErrQuit after +OK, any other one in the middle of a response.
func (s *session) do(ctx context.Context, keyword string, args []string) error {
	switch keyword {
	case "STAT":
		s.exactSizes(ctx)
		return s.without(args, s.stat)
	case "LIST":
		s.exactSizes(ctx)
		return s.writeListing(args, "scan", s.size)
	case "UIDL":
		if err := s.readUIDLs(ctx); err != nil {
			return &errReply{text: s.temporary("The unique-ids cannot be read now")}
		}
		return s.writeListing(args, "unique-id", s.uniqueID)
	case "RETR":
		return s.retr(ctx, args)
	case "TOP":
		return s.top(ctx, args)
	case "DELE":
		return s.dele(ctx, args)
	case "NOOP":
		return s.without(args, s.noop)
	case "RSET":
		return s.without(args, s.rset)
	case "CAPA":
		return s.without(args, s.capa)
	case "LAST":
		if s.backend.Last {
			return s.without(args, s.highest)
		}
	case "QUIT":
		return s.without(args, func() error { return s.quit(ctx) })
	case "UTF8":
		if s.backend.UTF8 {
			return &errReply{text: "UTF8 comes before login", syntax: true}
		}
	case "USER", "PASS", "APOP", "AUTH", "STLS":
		return &errReply{text: "You are already logged in", syntax: true}
	}
	return &errReply{text: "Unknown command", syntax: true}
}

func (s *session) without(args []string, do func() error) error {
	if len(args) > 0 {
		return &errReply{text: "This command takes no argument", syntax: true}
	}
	return do()
}

func (s *session) stat() error {
	s.ok(fmt.Sprintf("%d %d", s.maildrop.count, s.maildrop.octets))
	return nil
}

func (s *session) noop() error {
	s.ok("Nothing done")
	return nil
}

func (s *session) rset() error {
	s.maildrop.reset()
	s.sizesExact = false // messages marked as deleted were left out
	s.highestRetrieved = 0
	s.ok(s.summary())
	return nil
}

// capa lists the capabilities after login. RFC 2449 section 5 requires the list to
// include the capabilities before login. USER, SASL and STLS are left out all the same,
// as in other servers: they do not work after login.
func (s *session) capa() error {
	s.ok("Capability list follows")
	_, _ = s.out.WriteString("TOP\r\nUIDL\r\nRESP-CODES\r\nAUTH-RESP-CODE\r\nPIPELINING\r\n")
	for _, line := range s.backend.Capabilities() {
		_, _ = s.out.WriteString(line + "\r\n")
	}
	if s.backend.Delete.flags(s.inbox.Traits()) {
		_, _ = s.out.WriteString(notFreed + "\r\n")
	}
	_, _ = s.out.WriteString(".\r\n")
	return nil
}

// highest answers LAST, a command up to RFC 1460. Old clients find new messages with
// LAST.
func (s *session) highest() error {
	s.ok(strconv.Itoa(s.highestRetrieved))
	return nil
}

// writeListing answers LIST and UIDL: about one message, or about all that are not
// marked as deleted.
func (s *session) writeListing(args []string, kind string, entry func([]byte, *message) []byte) error {
	if len(args) > 1 {
		return &errReply{text: "This command takes one message number or none", syntax: true}
	}
	if len(args) == 1 {
		n, m, err := s.message(args[0])
		if err != nil {
			return err
		}
		s.ok(string(entry(append(strconv.AppendInt(nil, int64(n), 10), ' '), m)))
		return nil
	}
	s.ok(strings.ToUpper(kind[:1]) + kind[1:] + " listing follows")
	for i := range s.maildrop.messages {
		m := &s.maildrop.messages[i]
		if m.marks&deleted != 0 {
			continue
		}
		b := strconv.AppendInt(s.out.AvailableBuffer(), int64(i+1), 10)
		b = append(entry(append(b, ' '), m), "\r\n"...)
		if _, err := s.out.Write(b); err != nil {
			return clientLost(err)
		}
	}
	_, _ = s.out.WriteString(".\r\n")
	return nil
}

func (s *session) size(b []byte, m *message) []byte { return strconv.AppendInt(b, m.size, 10) }

// uniqueID appends the unique-id of a message. readUIDLs must have succeeded.
func (s *session) uniqueID(b []byte, m *message) []byte {
	if s.record.uidls == nil {
		return s.backend.UIDL.Append(b, m.uid, s.maildrop.uidValidity)
	}
	return s.record.uidls.Append(b, m.uid)
}

func (s *session) dele(ctx context.Context, args []string) error {
	n, m, err := s.single(args)
	if err != nil {
		return err
	}
	if s.inbox.Mailbox().ReadOnly && s.backend.Delete != Keep {
		return &errReply{text: s.coded("SYS/PERM", "The maildrop can only be read")}
	}
	if m.marks&unsized != 0 {
		return s.unavailable(n) // the client cannot have retrieved the message
	}
	if s.backend.Delete != Keep {
		if err := s.checkDeletable(ctx, n, m); err != nil {
			return err
		}
	}
	s.maildrop.delete(m)
	s.ok(fmt.Sprintf("Message %d deleted", n))
	return nil
}

// quit enters the UPDATE state, RFC 1939 section 6.
func (s *session) quit(ctx context.Context) error {
	_ = s.flush() // there are clients that send QUIT and leave
	err := s.update(ctx)
	s.inbox.ReleaseBuffers()
	if errors.Is(err, errNoTrash) {
		return &errReply{text: s.coded("SYS/PERM", "There is no mailbox for deleted messages: they were not removed"), end: proxy.ErrQuit}
	}
	if err != nil {
		return &errReply{text: s.temporary("Some deleted messages were not removed"), end: proxy.ErrQuit}
	}
	if s.totals.Deleted > 0 {
		s.endRemoval = s.backend.Brake.beginRemoval(s.login.Account)
	}
	s.unlock() // RFC 1939 section 6: before the response, else a client that logs in again at once is refused
	s.ok("Goodbye")
	s.updated = true
	return proxy.ErrQuit
}

// single returns the number and the message of a command with one argument.
func (s *session) single(args []string) (int, *message, error) {
	if len(args) != 1 {
		return 0, nil, &errReply{text: "This command takes one message number", syntax: true}
	}
	return s.message(args[0])
}

// message returns the message with the number arg. A message that is marked as deleted
// is an error.
func (s *session) message(arg string) (int, *message, error) {
	n, err := number(arg)
	if err != nil {
		return 0, nil, err
	}
	if n < 1 || n > int64(len(s.maildrop.messages)) {
		return 0, nil, &errReply{text: fmt.Sprintf("No such message, there are %d in the maildrop", len(s.maildrop.messages))}
	}
	m := &s.maildrop.messages[n-1]
	if m.marks&deleted != 0 {
		return 0, nil, &errReply{text: fmt.Sprintf("Message %d is deleted", n)}
	}
	return int(n), m, nil
}

// number parses a number. A number that is too large becomes math.MaxInt64.
func number(arg string) (int64, error) {
	n, err := strconv.ParseUint(arg, 10, 63)
	if errors.Is(err, strconv.ErrRange) {
		return math.MaxInt64, nil
	}
	if err != nil {
		return 0, &errReply{text: "That is not a number", syntax: true}
	}
	return int64(n), nil
}

func (s *session) summary() string {
	return fmt.Sprintf("Maildrop has %d messages (%d octets)", s.maildrop.count, s.maildrop.octets)
}

// ok writes +OK, always with the space that some clients wait for: RFC 1957. flush
// returns an error of writing.
func (s *session) ok(text string) {
	_, _ = s.out.WriteString("+OK " + text + "\r\n")
}

func (s *session) refuse(n *errReply) {
	_, _ = s.out.WriteString("-ERR " + n.text + "\r\n")
}

// temporary returns text with the code of RFC 3206 section 4 and the session id, so that
// a screenshot leads to the log. text must not have the words of the backend.
func (s *session) temporary(text string) string { return s.coded("SYS/TEMP", text) }

func (s *session) coded(code, text string) string {
	return "[" + code + "] " + s.login.Client.WithSessionID(text)
}

// endReply returns the response to a client whose session Postern ends.
func (s *session) endReply(ctx context.Context) *errReply {
	cause := context.Cause(ctx)
	text := proxy.Goodbye(proxy.ReasonOf(cause))
	if errors.Is(cause, errTakenOver) {
		text = "Another session has taken the maildrop over"
	}
	return &errReply{text: s.temporary(text), end: cause}
}
