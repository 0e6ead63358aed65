package bridge

import (
	"bytes"
	"context"
	"errors"
	"unicode/utf8"

	"postern/bridge/inbox"
)

// The mode of RFC 6856: a session whose client has said UTF8 gets messages as
// they are. Another one is refused those with an internationalized header, RFC
// 6532, that were never meant for it. All that only if the operator wants it;
// else messages pass as they are to everybody.

var errInternational = errors.New("message has a header in UTF-8, and the client is not in UTF-8 mode")

// admissible returns errInternational if the client must not get the message
// that begins with part. It looks at the header as far as it fits the buffer,
// 64 KiB.
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

// cutHeader returns the header that a message begins with, and whether all of
// it is there.
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

// international reports whether a line of a header is UTF-8 and not ASCII.
// Octets that are no UTF-8 are something else: old and broken mail, which no
// mode makes better.
func international(header []byte) bool {
	for line := range bytes.Lines(header) {
		if bytes.ContainsFunc(line, func(r rune) bool { return r >= utf8.RuneSelf }) && utf8.Valid(line) {
			return true
		}
	}
	return false
}
