package wire

import (
	"bytes"
	"errors"
	"math"
)

// A Literal is announced at the end of a line of IMAP: RFC 3501 section 4.3.
type Literal struct {
	Size int64 // octets; a larger number than int64 can hold is its maximum
	Sync bool  // the client waits for a continuation request; else it is a non-synchronizing literal, RFC 7888
}

// TrailingLiteral returns the literal that the end of line announces. RFC 7888
// section 3 requires this for every line, also for an invalid one, because the
// octets follow in any case.
func TrailingLiteral(line []byte) (Literal, bool) {
	text, _ := TrimLine(line)
	text, ok := bytes.CutSuffix(text, []byte("}"))
	if !ok {
		return Literal{}, false
	}
	open := bytes.LastIndexByte(text, '{')
	if open < 0 {
		return Literal{}, false
	}
	digits, nonSync := bytes.CutSuffix(text[open+1:], []byte("+"))
	size, ok := parseNumber(digits)
	return Literal{Size: size, Sync: !nonSync}, ok
}

// parseNumber parses digits. A number that is too large becomes the maximum.
func parseNumber(digits []byte) (n int64, ok bool) {
	for _, c := range digits {
		if c < '0' || c > '9' {
			return 0, false
		}
		if n > (math.MaxInt64-9)/10 {
			n = math.MaxInt64
			continue
		}
		n = 10*n + int64(c-'0')
	}
	return n, len(digits) > 0
}

// ErrSyntax means that a command violates its grammar.
var ErrSyntax = errors.New("syntax error")

// A Scanner reads the parts of one IMAP command. The command is complete: it
// contains its literals as they were sent; its last line end may be missing. A
// Scanner returns slices of the command, which it unescapes in place: a password
// is not copied.
type Scanner struct{ rest []byte }

// NewScanner returns a Scanner of command.
func NewScanner(command []byte) *Scanner {
	text, _ := TrimLine(command)
	return &Scanner{text}
}

// Tag reads a tag: RFC 3501 section 9. It also rejects < and >, so that no markup
// is returned to a browser that was made to send it.
func (s *Scanner) Tag() ([]byte, error) {
	return s.scanWhile(func(c byte) bool { return atomChar(c) && c != '+' && c != '<' && c != '>' })
}

// Atom reads an atom: the name of a command or mechanism, or base64.
func (s *Scanner) Atom() ([]byte, error) { return s.scanWhile(atomChar) }

// Space reads one space.
func (s *Scanner) Space() error { return s.skip(' ') }

// End returns an error if octets are left.
func (s *Scanner) End() error {
	if len(s.rest) > 0 {
		return ErrSyntax
	}
	return nil
}

// Next reads the next octet if it is c, and reports whether it was.
func (s *Scanner) Next(c byte) bool { return s.skip(c) == nil }

// AString reads an atom, a quoted string or a literal. The atom may contain
// octets that the grammar excludes, like * or 8-bit, where this is not ambiguous:
// people type passwords by hand, and programs forget to quote them.
func (s *Scanner) AString() ([]byte, error) {
	if s.stringNext() {
		return s.String()
	}
	return s.scanWhile(func(c byte) bool {
		return c > ' ' && c != 0x7F && c != '(' && c != ')' && c != '{' && c != '"'
	})
}

// String reads a quoted string or a literal.
func (s *Scanner) String() ([]byte, error) {
	if s.Next('"') {
		return s.quoted()
	}
	return s.literal()
}

// NString reads a quoted string, a literal or NIL, for which it returns nil.
func (s *Scanner) NString() ([]byte, error) {
	if s.stringNext() {
		return s.String()
	}
	if atom, err := s.Atom(); err != nil || Keyword(atom) != "NIL" {
		return nil, ErrSyntax
	}
	return nil, nil
}

func (s *Scanner) stringNext() bool {
	return len(s.rest) > 0 && (s.rest[0] == '"' || s.rest[0] == '{')
}

// quoted reads a quoted string after the opening quote. It allows 8-bit: RFC 3501
// forbids that, RFC 6855 and many clients do not.
func (s *Scanner) quoted() ([]byte, error) {
	n := 0
	for i := 0; i < len(s.rest); i++ {
		c := s.rest[i]
		switch c {
		case '"':
			text := s.rest[:n:n]
			s.rest = s.rest[i+1:]
			return text, nil
		case '\\':
			if i++; i == len(s.rest) || s.rest[i] != '\\' && s.rest[i] != '"' {
				return nil, ErrSyntax
			}
			c = s.rest[i]
		case 0, '\r', '\n':
			return nil, ErrSyntax
		}
		s.rest[n] = c
		n++
	}
	return nil, ErrSyntax
}

func (s *Scanner) literal() ([]byte, error) {
	end := bytes.IndexByte(s.rest, '\n')
	if end < 0 || s.rest[0] != '{' {
		return nil, ErrSyntax
	}
	head, body := s.rest[:end+1], s.rest[end+1:]
	lit, ok := TrailingLiteral(head)
	if !ok || bytes.LastIndexByte(head, '{') != 0 || lit.Size > int64(len(body)) {
		return nil, ErrSyntax
	}
	s.rest = body[lit.Size:]
	return body[:lit.Size:lit.Size], nil
}

func (s *Scanner) skip(c byte) error {
	if len(s.rest) == 0 || s.rest[0] != c {
		return ErrSyntax
	}
	s.rest = s.rest[1:]
	return nil
}

// scanWhile reads one or more octets.
func (s *Scanner) scanWhile(want func(byte) bool) ([]byte, error) {
	n := 0
	for n < len(s.rest) && want(s.rest[n]) {
		n++
	}
	if n == 0 {
		return nil, ErrSyntax
	}
	word := s.rest[:n:n]
	s.rest = s.rest[n:]
	return word, nil
}

// atomChar reports whether c is an ATOM-CHAR or ]: RFC 3501 section 9.
func atomChar(c byte) bool {
	if c <= ' ' || c >= 0x7F {
		return false
	}
	switch c {
	case '(', ')', '{', '%', '*', '"', '\\':
		return false
	}
	return true
}
