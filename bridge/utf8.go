package bridge

import (
	"bytes"
	"context"
	"errors"
	"unicode/utf8"

	"postern/bridge/inbox"
)

// In the mode of RFC 6856 a client that has sent UTF8 gets messages unchanged. Other
// clients are refused messages with an internationalized header, RFC 6532, which are not
// meant for them. Backend.UTF8 turns the mode on; without the mode, all clients get all
// messages unchanged.

var errInternational = errors.New("message has a header in UTF-8, and the client is not in UTF-8 mode")

// admissible returns errInternational if the client must not get the message that
// begins with part. It reads the header as far as the header fits the buffer, 64 KiB.
func (s *session) admissible(ctx context.Context, part *inbox.Section) error {
	if !s.backend.UTF8 || s.login.Hello.UTF8 {
		return nil
	}
	for n := 1; ; {
		b, err := part.Peek(n)
		if err != nil {
			return s.inbox.Explain(ctx, err)
		}
		header, whole := cutHeader(b)
		if whole || int64(len(b)) >= part.Left || len(b) >= inbox.ReaderSize {
			if international(header) {
				return errInternational
			}
			return nil
		}
		n = len(b) + 1
	}
}

// cutHeader returns the header at the beginning of a message. whole reports whether b has
// the end of the header.
func cutHeader(b []byte) (header []byte, whole bool) {
	end := 0
	for line := range bytes.Lines(b) {
		if text := bytes.TrimRight(line, "\r\n"); len(text) == 0 && line[len(line)-1] == '\n' {
			return b[:end], true
		}
		end += len(line)
	}
	return b, false
}

// international reports whether a line of a header is UTF-8 and not ASCII. Other octets
// that are not valid UTF-8 do not count: they are in old and broken mail, which no mode
// repairs.
func international(header []byte) bool {
	for line := range bytes.Lines(header) {
		if bytes.ContainsFunc(line, func(r rune) bool { return r >= utf8.RuneSelf }) && utf8.Valid(line) {
			return true
		}
	}
	return false
}
