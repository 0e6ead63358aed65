package bridge

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"

	"github.com/emersion/go-imap/v2"

	"postern/bridge/inbox"
	"postern/proxy"
	"postern/proxy/wire"
)

const (
	// smallBody is the number of octets in the first packets of a response, RFC 6928. A
	// body up to smallBody is read whole before the client gets a response.
	smallBody = 8 << 10

	// minText is the least part of the text that TOP fetches first. Each further part is
	// twice as large, up to maxText, which bounds the octets fetched in vain.
	minText, maxText = 2 << 10, 64 << 10
	// lineGuess is the assumed length of a line.
	lineGuess = 80
	// allLines is the number of lines from which TOP sends the whole message, without
	// \Seen: clients that keep mail on the server fetch messages by TOP with a huge number.
	allLines = 10_000
)

var errEmpty = errors.New("server gives no octets of the message")

// retr sends a message.
func (s *session) retr(ctx context.Context, args []string) error {
	n, m, err := s.single(args)
	if err != nil {
		return err
	}
	if m.marks&unsized != 0 {
		return s.unavailable(n)
	}
	if err := s.send(ctx, "RETR", n, m); err != nil {
		return err
	}
	s.highestRetrieved = max(s.highestRetrieved, n)
	if m.marks&retrieved == 0 {
		m.marks |= retrieved
		s.totals.Retrieved++
	}
	return nil
}

// send sends a whole message in response to a command.
func (s *session) send(ctx context.Context, command string, n int, m *message) error {
	r, err := s.openMessage(ctx, n-1, inbox.Body, "BODY[]")
	if err != nil {
		return s.fetchFailed(ctx, n, m, err)
	}
	s.ok(octets(m, r.Section))
	d := wire.NewDotWriter(s.out)
	w := s.hashHeader(m, d)
	size := r.Section.Size
	var sent *sentHash // nil: the body needs no comparison with another transfer
	agrees := agree(m, size)
	if !agrees || s.fault(ctx, m).unconfirmed != (digest{}) {
		sent = s.backend.faults.newHash()
	}
	if err := s.sendBody(ctx, n-1, w, r, sent); err != nil {
		return fmt.Errorf("message %d: %w", n, s.noteCut(ctx, m, err))
	}
	given := d.Octets() // without the CRLF that Close may add
	if err := d.Close(); err != nil {
		return clientLost(err)
	}
	s.keepHeaderHash(m, w)
	s.backend.observe(proxy.MessageSent{
		Command: command, Octets: d.Octets(), Mismatched: d.Octets() != m.size && !s.backend.Estimates, Completed: d.Octets() != given,
	})
	if m.marks&downloaded == 0 {
		m.marks |= downloaded
		s.totals.Downloaded++
		s.totals.Octets += d.Octets()
	}
	if !s.doubtful(ctx, m, agrees, sent) {
		s.maildrop.setExactSize(m, d.Octets())
	}
	return nil
}

// agree reports whether size, of a body, agrees with the listed size of the message.
// RFC822.SIZE does not count the CRLF that is added to a body without one at its end.
// A listed size of up to 1 is an unknown size.
func agree(m *message, size int64) bool {
	return size == m.size || size+2 == m.size || size-2 == m.size || m.size <= 1
}

// doubtful calls bodyReceived for a message with the digest of sent, which may be nil.
// With Backend.Estimates every size agrees.
func (s *session) doubtful(ctx context.Context, m *message, agrees bool, sent *sentHash) bool {
	if s.backend.Estimates {
		agrees = true
	}
	var got digest
	if sent != nil {
		got = sent.digest()
	}
	return s.bodyReceived(ctx, m, agrees, got)
}

// openMessage is openWithReconnect, with an error for a message that was cut too often.
func (s *session) openMessage(ctx context.Context, i int, items, name string) (*inbox.FetchResponse, error) {
	m := &s.maildrop.messages[i]
	if s.fault(ctx, m).refused() {
		s.forbidDelete(m.uid)
		return nil, errTruncated
	}
	return s.openWithReconnect(ctx, i, items, name)
}

var errTruncated = errors.New("message did not come to its end, twice")

// noteCut records that the server has cut a message, unless the client has gone or ctx
// is over. It returns err.
func (s *session) noteCut(ctx context.Context, m *message, err error) error {
	if ctx.Err() == nil && !errors.Is(err, proxy.ErrClientClosed) {
		s.recordCut(ctx, m)
	}
	return err
}

// checkDeletable returns the response to DELE for a message that must not be removed,
// because its body came cut or doubtful; nil if DELE is allowed. A body that came whole,
// but not with the listed size, is fetched a second time here: else a client that
// retrieves and deletes every message once could never delete the message.
func (s *session) checkDeletable(ctx context.Context, n int, m *message) error {
	doubt := s.fault(ctx, m).unconfirmed
	if !s.undeletable[m.uid] && doubt == (digest{}) {
		return nil
	}
	if doubt != (digest{}) {
		switch again, err := s.fetchDigest(ctx, n-1); {
		case err == nil && again == doubt:
			s.bodyReceived(ctx, m, true, again)
			return nil
		case err != nil:
			return s.fetchFailed(ctx, n, m, err)
		}
	}
	return &errReply{text: s.temporary(fmt.Sprintf("Message %d did not come whole, and is kept", n))}
}

// fetchDigest fetches a message and returns the digest of its octets.
func (s *session) fetchDigest(ctx context.Context, i int) (digest, error) {
	r, err := s.openMessage(ctx, i, inbox.Body, "BODY[]")
	if err != nil {
		return digest{}, err
	}
	defer s.inbox.AbortOnDone(ctx)()
	got := s.backend.faults.newHash()
	if err = r.Section.Each(got.add); err == nil {
		err = s.inbox.Finish()
	}
	if err != nil {
		return digest{}, s.inbox.Explain(ctx, err)
	}
	return got.digest(), nil
}

// sendBody copies a message to w, and reads to the end of the response: only OK confirms
// the octets. If the connection to the server is lost meanwhile, sendBody reconnects and
// continues, if the server sends the same octets again. It adds the octets to sent,
// unless sent is nil.
func (s *session) sendBody(ctx context.Context, i int, w io.Writer, r *inbox.FetchResponse, sent *sentHash) error {
	if r.Section.Buffered() {
		return s.copyResponse(ctx, w, r.Section, sent)
	}
	size := r.Section.Size
	if sent == nil {
		sent = new(sentHash)
	}
	err := s.copyResponse(ctx, w, r.Section, sent)
	if !errors.Is(err, proxy.ErrBackendClosed) || errors.Is(err, inbox.ErrSyntax) {
		return err
	}
	r, again := s.resume(ctx, i, size, sent)
	if again != nil {
		return fmt.Errorf("%w; %w", err, again)
	}
	return s.copyResponse(ctx, w, r.Section, sent)
}

// finishResponse reads to the end of a response, unless err, of its last section, is
// not nil.
func (s *session) finishResponse(ctx context.Context, err error) error {
	if err != nil {
		return err
	}
	defer s.inbox.AbortOnDone(ctx)()
	return s.inbox.Explain(ctx, s.inbox.Finish())
}

// copyResponse copies the last section of a response as copySection does, and reads to
// the end of the response.
func (s *session) copyResponse(ctx context.Context, w io.Writer, part *inbox.Section, sent *sentHash) error {
	defer s.inbox.AbortOnDone(ctx)()
	if err := s.copy(ctx, w, part, sent); err != nil {
		return err
	}
	return s.inbox.Explain(ctx, s.inbox.Finish())
}

// octets returns the text of +OK with the number of octets that follow, if the number is
// certain: a CRLF is added if the last two octets are not CRLF.
func octets(m *message, part *inbox.Section) string {
	if part.Buffered() {
		all, _ := part.Peek(0)
		n := part.Size
		if !bytes.HasSuffix(all, []byte("\r\n")) {
			n += 2
		}
		return strconv.FormatInt(n, 10) + " octets"
	}
	if m.marks&exact != 0 && (m.size == part.Size || m.size == part.Size+2) {
		return strconv.FormatInt(m.size, 10) + " octets"
	}
	return "Message follows"
}

// top sends the header of a message, the blank line, and the first lines of
// its text.
func (s *session) top(ctx context.Context, args []string) error {
	if len(args) != 2 {
		return &errReply{text: "TOP takes a message number and a number of lines", syntax: true}
	}
	lines, err := number(args[1])
	if err != nil {
		return err
	}
	n, m, err := s.message(args[0])
	if err != nil {
		return err
	}
	if m.marks&unsized != 0 {
		return s.unavailable(n)
	}
	if lines >= allLines || lines > m.size/2 {
		return s.send(ctx, "TOP", n, m)
	}
	chunk, items := firstChunk(lines), inbox.Header
	if lines > 0 {
		items += " " + textItem(0, chunk)
	}
	r, err := s.openMessage(ctx, n-1, items, "BODY[HEADER]")
	if err != nil {
		return s.fetchFailed(ctx, n, m, err)
	}
	s.ok("Top of message follows")
	d := wire.NewDotWriter(s.out)
	w := s.hashHeader(m, d)
	err = s.copySection(ctx, w, r.Section, nil)
	if err == nil && lines > 0 {
		err = s.text(ctx, r, m, &lineWriter{w: d, left: lines}, chunk)
	}
	if err = s.finishResponse(ctx, err); err != nil {
		return fmt.Errorf("TOP: %w", s.noteCut(ctx, m, err))
	}
	s.keepHeaderHash(m, w)
	if err := d.Close(); err != nil {
		return clientLost(err)
	}
	s.backend.observe(proxy.MessageSent{Command: "TOP", Octets: d.Octets()})
	return nil
}

// firstChunk returns the number of octets of the text that TOP fetches first.
func firstChunk(lines int64) int64 { return min(max(lines*lineGuess, minText), maxText) }

// textItem returns the FETCH item for size octets of the text of a message from offset on.
func textItem(offset, size int64) string { return fmt.Sprintf("BODY.PEEK[TEXT]<%d.%d>", offset, size) }

// text copies the text of a message to w, part by part, until w has all its lines. The
// first part, of chunk octets, is in r.
func (s *session) text(ctx context.Context, r *inbox.FetchResponse, m *message, w *lineWriter, chunk int64) error {
	in := s.inbox
	defer in.AbortOnDone(ctx)()
	if err := r.Next(); err != nil {
		return in.Explain(ctx, err)
	}
	for offset := int64(0); ; {
		if r.Section == nil || !r.Section.Is("BODY[TEXT]") {
			return inbox.ErrItems
		}
		size := r.Section.Size
		if err := s.copySection(ctx, w, r.Section, nil); err != nil {
			return err
		}
		offset += size
		if w.left == 0 || size != chunk {
			return nil
		}
		chunk = min(2*chunk, maxText)
		tag, err := in.Fetch(textItem(offset, chunk), inbox.Request{UID: m.uid})
		if err != nil {
			return in.Explain(ctx, err)
		}
		if r, err = in.Await(ctx, m.uid, tag); err != nil {
			return err
		}
	}
}

// A lineWriter writes a number of lines to w, and discards the rest.
type lineWriter struct {
	w    io.Writer
	left int64
}

func (l *lineWriter) Write(p []byte) (int, error) {
	end := 0
	for l.left > 0 && end < len(p) {
		i := bytes.IndexByte(p[end:], '\n')
		if i < 0 {
			end = len(p)
			break
		}
		end += i + 1
		l.left--
	}
	if _, err := l.w.Write(p[:end]); err != nil {
		return 0, err
	}
	return len(p), nil
}

// copySection copies a section to w, and adds its octets to sent, unless sent is nil.
func (s *session) copySection(ctx context.Context, w io.Writer, part *inbox.Section, sent *sentHash) error {
	defer s.inbox.AbortOnDone(ctx)()
	return s.copy(ctx, w, part, sent)
}

// copy is copySection without AbortOnDone. The caller must have called AbortOnDone, which
// closes the connection at the end of ctx.
func (s *session) copy(ctx context.Context, w io.Writer, part *inbox.Section, sent *sentHash) error {
	for part.Left > 0 {
		chunk, err := part.Peek(1)
		if err != nil {
			return s.inbox.Explain(ctx, err)
		}
		if _, err := w.Write(chunk); err != nil {
			return clientLost(err)
		}
		if sent != nil {
			sent.add(chunk)
		}
		part.Discard(len(chunk))
	}
	return nil
}

// fetchFailed returns the response for a message that cannot be sent because of err.
func (s *session) fetchFailed(ctx context.Context, n int, m *message, err error) *errReply {
	if errors.Is(err, errEmpty) || errors.Is(err, inbox.ErrVanished) {
		err = s.checkVanished(ctx, m)
	}
	switch {
	case ctx.Err() != nil:
		return s.endReply(ctx)
	case errors.Is(err, errInternational):
		return &errReply{text: fmt.Sprintf("[UTF8] Message %d has a header in UTF-8, which your mail program does not ask for", n)}
	case errors.Is(err, inbox.ErrVanished):
		s.maildrop.proven, s.maildrop.changed = false, true // EXISTS and UIDNEXT may not show the removal
		return &errReply{text: fmt.Sprintf("Message %d is no longer in the maildrop", n)}
	case errors.Is(err, errRenumbered):
		return &errReply{text: s.temporary("The maildrop has changed: log in again"), end: err}
	case errors.Is(err, inbox.ErrSyntax):
		s.recordCut(ctx, m)
	case errors.Is(err, proxy.ErrBackendClosed):
		return &errReply{text: s.temporary("The mail server is unavailable: try again later"), end: err}
	}
	return s.unavailable(n)
}

// unavailable returns the response for a message that the server has and refuses.
func (s *session) unavailable(n int) *errReply {
	return &errReply{text: s.temporary(fmt.Sprintf("Message %d is unavailable: try again later", n))}
}

// checkVanished returns inbox.ErrVanished if a message has vanished, and errEmpty if the
// server has the message and cannot read it. Some servers send an empty literal in both
// cases, and some an OK without a response. A search decides. If the search finds
// nothing and the server has reported no removal, a second search decides.
func (s *session) checkVanished(ctx context.Context, m *message) error {
	defer s.inbox.ReleaseBuffers()
	for looked := false; ; looked = true {
		found, err := s.inbox.Search(ctx, imap.UIDSetNum(imap.UID(m.uid)))
		switch {
		case err != nil:
			return err
		case inbox.Contains(found, m.uid):
			return errEmpty
		case looked || s.inbox.Mailbox().Removals > 0:
			return inbox.ErrVanished
		}
		if err := s.inbox.Noop(ctx); err != nil {
			return err
		}
	}
}
