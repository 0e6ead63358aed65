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
	maxBad     = 20  // commands in a row that are none
)

var errBadCommands = errors.New("too many bad commands")

// A session is a POP3 session in its TRANSACTION and UPDATE states, RFC 1939
// sections 5 and 6.
type session struct {
	backend          *Backend
	login            *proxy.Login // also to reconnect
	inbox            *inbox.Inbox
	maildrop         *maildrop
	cacheSum         uint32 // checksum of the snapshot in the cache; 0: there is none
	record           recordState
	deletedUIDs      []uint32          // UIDs of the tombstones, until hide
	unhidden         []uint32          // UIDs of tombstones of messages that another client has shown again
	staleTombstones  bool              // some tombstones are of messages that the server has no more, or of unhidden
	undeletable      map[uint32]bool   // UIDs of messages that did not come as they should: no DELE
	headerHashes     map[uint32]uint64 // fingerprints of the headers that were sent, by UID
	reservation      *reservation      // for the listing
	lock             *lock             // nil: nobody is kept out
	updated          bool
	endRemoval       func() // ends the removal that the brake knows of; nil: nothing was removed
	renumbered       bool   // UIDVALIDITY has changed: the UIDs are those of other messages
	readAhead        readAhead
	highestRetrieved int    // the highest number that was retrieved
	seenBelow        uint32 // earlier sessions have seen the UIDs below; 0: none has
	sizesExact       bool
	totals           proxy.Totals
	bad              int // commands in a row that were none

	conn *proxy.Conn   // while it runs
	out  *bufio.Writer // while there is something to answer
}

// An errReply is the answer -ERR.
type errReply struct {
	text   string
	syntax bool  // it was not a valid command
	end    error // why the session ends with it; nil: it goes on
}

func (n *errReply) Error() string { return n.text }

// Open lists the maildrop.
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
	t.UIDLsBefore, t.UIDLsAfter = s.hashes()
	return t
}

// Close says goodbye to the server, and forgets the secret. What other sessions
// wait for is given back also after a panic.
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

// Run answers commands, one at a time, until QUIT.
func (s *session) Run(ctx context.Context, client *proxy.Conn) error {
	s.conn = client
	ctx, end := s.withEviction(ctx, client)
	defer end()
	defer s.releaseBuffers()
	for {
		line, err := s.next()
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

// next returns the next command, or nil and ErrLineTooLong. Answers wait until
// the client waits for them: RFC 2449 section 6.6.
func (s *session) next() ([]byte, error) {
	if s.conn.Buffered() > 0 {
		// There may be no more than a part of a line.
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
	if err := s.conn.SetReadDeadline(time.Now().Add(s.backend.idle())); err != nil {
		return nil, err
	}
	return s.conn.ReadLine(maxCommand)
}

// releaseBuffers gives back what costs memory while the client says nothing.
func (s *session) releaseBuffers() {
	s.inbox.ReleaseBuffers()
	if s.out != nil {
		s.backend.putWriter(s.out)
		s.out = nil
	}
}

// takeBuffers takes back what an answer needs.
func (s *session) takeBuffers() {
	if s.out == nil {
		s.out = s.backend.getWriter(s.conn)
	}
}

// flush sends what has been answered.
func (s *session) flush() error {
	if s.out == nil || s.out.Buffered() == 0 {
		return nil
	}
	if err := s.out.Flush(); err != nil {
		return clientLost(err)
	}
	return nil
}

// clientGone returns why a session ends whose client sends nothing more.
func (s *session) clientGone(ctx context.Context, err error) error {
	switch {
	case ctx.Err() != nil:
		s.refuse(s.endReply(ctx))
		return context.Cause(ctx)
	case errors.Is(err, proxy.ErrFlood):
		s.refuse(&errReply{text: "Line too long"})
		return err
	case errors.Is(err, os.ErrDeadlineExceeded):
		// RFC 1939 section 3: without UPDATE, and without a word.
		return proxy.ErrIdleTimeout
	}
	return clientLost(err)
}

// clientLost is for errors of the connection to the client.
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
		s.conn.Abort() // the answer has begun: it must not look complete
	}
	s.backend.observe(proxy.POP3Command{Command: label(keyword), OK: ok, Duration: time.Since(begun)})
	return err
}

// countBad counts what was no command, and returns why the session ends, or nil.
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

// parse splits a command at its spaces. RFC 1939 wants one between arguments
// and none at the end; some clients send more.
func parse(line []byte) (keyword string, args []string) {
	text, _ := wire.TrimLine(line)
	words := strings.FieldsFunc(string(text), func(r rune) bool { return r == ' ' })
	if len(words) == 0 {
		return "", nil
	}
	return strings.ToUpper(words[0]), words[1:]
}

// label returns the keyword as a metric may have it.
func label(keyword string) string {
	if slices.Contains(proxy.POP3Commands[:], keyword) {
		return keyword
	}
	return proxy.CommandOther
}

// do gives the answer, or returns the *errReply that is the answer. Any other error
// ends the session: after +OK ErrQuit, else in the middle of an answer.
func (s *session) do(ctx context.Context, keyword string, args []string) error {
	switch keyword {
	case "STAT":
		s.exactSizes(ctx)
		return s.without(args, s.stat)
	case "LIST":
		s.exactSizes(ctx)
		return s.listing(args, "scan", s.size)
	case "UIDL":
		if err := s.readUIDLs(ctx); err != nil {
			return &errReply{text: s.temporary("The unique-ids cannot be read now")}
		}
		return s.listing(args, "unique-id", s.uniqueID)
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
	s.sizesExact = false // not what was marked
	s.highestRetrieved = 0
	s.ok(s.summary())
	return nil
}

// capa lists what holds after login. RFC 2449 section 5 wants the list of
// before to be part of it; USER, SASL and STLS are left out all the same, as
// everybody does: they would not work.
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

// highest answers LAST, which was a command up to RFC 1460: old clients find
// with it what they have not fetched yet.
func (s *session) highest() error {
	s.ok(strconv.Itoa(s.highestRetrieved))
	return nil
}

// listing answers LIST and UIDL: about one message, or about all that are not
// marked as deleted.
func (s *session) listing(args []string, kind string, entry func([]byte, *message) []byte) error {
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
		return s.unavailable(n) // nobody has seen what would be removed
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
	s.unlock() // RFC 1939 section 6: before the answer, or who comes again at once is refused
	s.ok("Goodbye")
	s.updated = true
	return proxy.ErrQuit
}

// single returns the message that the only argument names.
func (s *session) single(args []string) (int, *message, error) {
	if len(args) != 1 {
		return 0, nil, &errReply{text: "This command takes one message number", syntax: true}
	}
	return s.message(args[0])
}

// message returns the message that arg names, if it is not marked as deleted.
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

// number reads a number. One that is too large becomes the largest.
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

// ok says +OK, always with the space that some clients wait for: RFC 1957.
// What goes wrong in writing shows when it is flushed.
func (s *session) ok(text string) {
	_, _ = s.out.WriteString("+OK " + text + "\r\n")
}

func (s *session) refuse(n *errReply) {
	_, _ = s.out.WriteString("-ERR " + n.text + "\r\n")
}

// temporary returns text with the code of RFC 3206 section 4, and with the
// session id, so that a screenshot leads to the log. The server's words are
// not for clients.
func (s *session) temporary(text string) string { return s.coded("SYS/TEMP", text) }

func (s *session) coded(code, text string) string {
	return "[" + code + "] " + s.login.Client.WithSessionID(text)
}

// endReply returns the answer to a client whose session Postern ends.
func (s *session) endReply(ctx context.Context) *errReply {
	cause := context.Cause(ctx)
	text := proxy.Goodbye(proxy.ReasonOf(cause))
	if errors.Is(cause, errTakenOver) {
		text = "Another session has taken the maildrop over"
	}
	return &errReply{text: s.temporary(text), end: cause}
}
