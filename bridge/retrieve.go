package bridge

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/emersion/go-imap/v2"

	"postern/proxy"
	"postern/proxy/wire"
)

const (
	// small is what comes with the first packets of an answer, RFC 6928. It is
	// read whole before the client is told anything: its octets are known then,
	// and when the server fails the session can go on.
	small = 8 << 10

	// TOP asks for so much of the text, and doubles that up to maxText, which
	// is the most that is fetched in vain.
	minText, maxText = 2 << 10, 64 << 10
	// lineGuess is how long it takes a line to be.
	lineGuess = 80
	// allLines is from where TOP asks for all of the text at once: clients that
	// keep mail on the server fetch it by TOP with a huge number, and servers
	// that look for each part from the beginning would take very long.
	allLines = 10_000
)

var errEmpty = errors.New("server gives no octets of the message")

// retr sends a message.
func (s *session) retr(ctx context.Context, args []string) error {
	n, m, err := s.single(args)
	if err != nil {
		return err
	}
	if err := s.out.Flush(); err != nil {
		return lost(err)
	}
	buf := s.backend.takeBuffer()
	defer s.backend.giveBuffer(buf)
	f := s.inbox.fetch(ctx, m.uid, &imap.FetchItemBodySection{Peek: true})
	part, first, err := f.start(imap.PartSpecifierNone, *buf)
	if err == nil && part.size == 0 && !m.empty() {
		err = errEmpty
	}
	if err != nil {
		_ = f.close()
		return s.cannot(ctx, n, m, err)
	}
	s.ok(octets(m, part, first))
	d := wire.NewDotWriter(s.out)
	if err := s.pass(d, part, first, *buf); err != nil {
		_ = f.close()
		return fmt.Errorf("RETR: %w", err)
	}
	if err := s.finish(d, f); err != nil {
		return err
	}
	s.backend.observe(proxy.MessageSent{Command: "RETR", Octets: d.Octets(), Mismatched: d.Octets() != m.size})
	s.drop.measured(m, d.Octets())
	if m.marks&retrieved == 0 {
		m.marks |= retrieved
		s.totals.Retrieved++
	}
	return nil
}

// octets announces how many octets follow, if that is certain: it depends on
// the last two whether a CRLF is added.
func octets(m *message, part *section, first []byte) string {
	switch {
	case part.left == 0 && bytes.HasSuffix(first, []byte("\r\n")):
		return fmt.Sprintf("%d octets", part.size)
	case part.left == 0:
		return fmt.Sprintf("%d octets", part.size+2)
	case m.marks&exact != 0 && (m.size == part.size || m.size == part.size+2):
		return fmt.Sprintf("%d octets", m.size)
	}
	return "Message follows"
}

// top sends the header of a message, the blank line, and the first lines of
// its text.
func (s *session) top(ctx context.Context, args []string) error {
	if len(args) != 2 {
		return &no{text: "TOP takes a message number and a number of lines", bad: true}
	}
	lines, err := number(args[1])
	if err != nil {
		return err
	}
	n, m, err := s.message(args[0])
	if err != nil {
		return err
	}
	if err := s.out.Flush(); err != nil {
		return lost(err)
	}
	buf := s.backend.takeBuffer()
	defer s.backend.giveBuffer(buf)
	sections := []*imap.FetchItemBodySection{{Specifier: imap.PartSpecifierHeader, Peek: true}}
	chunk := firstChunk(lines, m.size)
	if lines > 0 {
		sections = append(sections, textSection(0, chunk))
	}
	f := s.inbox.fetch(ctx, m.uid, sections...)
	part, first, err := f.start(imap.PartSpecifierHeader, *buf)
	if err != nil {
		_ = f.close()
		return s.cannot(ctx, n, m, err)
	}
	s.ok("Top of message follows")
	d := wire.NewDotWriter(s.out)
	err = s.pass(d, part, first, *buf)
	if err == nil && lines > 0 {
		f, err = s.text(ctx, f, m, &lineWriter{w: d, left: lines}, chunk, *buf)
	}
	if err != nil {
		_ = f.close()
		return fmt.Errorf("TOP: %w", err)
	}
	if err := s.finish(d, f); err != nil {
		return err
	}
	s.backend.observe(proxy.MessageSent{Command: "TOP", Octets: d.Octets()})
	return nil
}

// firstChunk returns how much of the text to ask for first; 0: all. There are
// no more lines than half the octets.
func firstChunk(lines, octets int64) int64 {
	if lines >= allLines || lines > octets/2 {
		return 0
	}
	return min(max(lines*lineGuess, minText), maxText)
}

// textSection is the text of a message from offset on, size octets; 0: all.
func textSection(offset, size int64) *imap.FetchItemBodySection {
	text := &imap.FetchItemBodySection{Specifier: imap.PartSpecifierText, Peek: true}
	if size > 0 {
		text.Partial = &imap.SectionPartial{Offset: offset, Size: size}
	}
	return text
}

// text passes the text of a message, part by part, until w has its lines. The
// first part, of chunk octets or all, is asked for by f; the last fetch is returned.
func (s *session) text(ctx context.Context, f *fetch, m *message, w *lineWriter, chunk int64, buf []byte) (*fetch, error) {
	for offset := int64(0); ; chunk = min(2*chunk, maxText) {
		part, first, err := f.start(imap.PartSpecifierText, buf)
		if err == nil {
			err = s.pass(w, part, first, buf)
		}
		if err != nil {
			return f, err
		}
		offset += part.size
		if w.left == 0 || chunk == 0 || part.size != chunk {
			return f, nil
		}
		if err := f.close(); err != nil {
			return f, err
		}
		f = s.inbox.fetch(ctx, m.uid, textSection(offset, min(2*chunk, maxText)))
	}
}

// A lineWriter passes lines, and takes what follows them for nothing.
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

// start waits for the section and reads the first octets of it into buf: all
// of a small one, else what is there.
func (f *fetch) start(specifier imap.PartSpecifier, buf []byte) (part *section, first []byte, err error) {
	for part == nil || part.spec.Specifier != specifier {
		if part, err = f.next(); err != nil {
			return nil, nil, err
		}
	}
	var n int
	if part.size <= small {
		n, err = io.ReadFull(part, buf[:part.size])
	} else {
		n, err = part.Read(buf)
	}
	return part, buf[:n], err
}

// pass copies a section to w. What is there goes out before more is waited for.
func (s *session) pass(w io.Writer, part *section, first, buf []byte) error {
	for {
		if _, err := w.Write(first); err != nil {
			return lost(err)
		}
		if part.left == 0 {
			return nil
		}
		if err := s.out.Flush(); err != nil {
			return lost(err)
		}
		n, err := part.Read(buf)
		if err != nil {
			return err
		}
		first = buf[:n]
	}
}

// finish ends the answer, and then the command, whose last word says nothing
// that matters any more.
func (s *session) finish(d *wire.DotWriter, f *fetch) error {
	err := d.Close()
	if err == nil && s.conn.Buffered() == 0 {
		err = s.out.Flush()
	}
	_ = f.close()
	if err != nil {
		return lost(err)
	}
	return nil
}

// cannot returns the answer for a message that err keeps from being sent.
func (s *session) cannot(ctx context.Context, n int, m *message, err error) *no {
	if errors.Is(err, errEmpty) {
		err = s.settle(ctx, m)
	}
	switch {
	case ctx.Err() != nil:
		return s.ended(ctx)
	case errors.Is(err, errVanished):
		return &no{text: fmt.Sprintf("Message %d is no longer in the maildrop", n)}
	case errors.Is(err, proxy.ErrBackendClosed):
		return &no{text: s.temporary("The mail server is unavailable: try again later"), end: err}
	}
	return &no{text: s.temporary(fmt.Sprintf("Message %d is unavailable: try again later", n))}
}

// settle tells a message that vanished from one that the server cannot read:
// some servers give an empty literal for both.
func (s *session) settle(ctx context.Context, m *message) error {
	found, err := s.inbox.search(ctx, imap.UIDSetNum(imap.UID(m.uid)))
	switch {
	case err != nil:
		return err
	case !found.Contains(imap.UID(m.uid)):
		return errVanished
	}
	return errEmpty
}
