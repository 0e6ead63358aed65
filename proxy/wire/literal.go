package wire

import (
	"bytes"
	"errors"
	"math"
)

// A Literal is what the end of a line of IMAP announces, RFC 3501 section 4.3.
type Literal struct {
	Size int64 // octets; what is no int64 is its maximum
	Sync bool  // the client waits for a continuation; else RFC 7888
}

// TrailingLiteral returns the literal that the end of line announces. RFC 7888
// section 3 wants every line looked at so, be it nonsense or not: the octets
// come in any case.
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
	size, ok := number(digits)
	return Literal{Size: size, Sync: !nonSync}, ok
}

// number reads digits. What is too large becomes the largest.
func number(digits []byte) (n int64, ok bool) {
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

// ErrSyntax says that a command is not what its grammar wants.
var ErrSyntax = errors.New("syntax error")

// A Scanner reads the words of one IMAP command. The command is complete: its
// literals stand in it as they were sent, and its last line end may be missing.
// What a Scanner returns are parts of the command, which it unescapes in place:
// nothing is copied that may be a password.
type Scanner struct{ rest []byte }

// NewScanner returns a Scanner of command.
func NewScanner(command []byte) *Scanner {
	text, _ := TrimLine(command)
	return &Scanner{text}
}

// Tag reads a tag, RFC 3501 section 9. It also refuses < and >, so that no
// markup comes back to whoever made a browser send it.
func (s *Scanner) Tag() ([]byte, error) {
	return s.takeWhile(func(c byte) bool { return atomChar(c) && c != '+' && c != '<' && c != '>' })
}

// Atom reads an atom, as are the names of commands and mechanisms, or base64.
func (s *Scanner) Atom() ([]byte, error) { return s.takeWhile(atomChar) }

// Space reads one space.
func (s *Scanner) Space() error { return s.skip(' ') }

// End returns an error when something is left.
func (s *Scanner) End() error {
	if len(s.rest) > 0 {
		return ErrSyntax
	}
	return nil
}

// Next returns whether the next octet is c, and reads it if so.
func (s *Scanner) Next(c byte) bool { return s.skip(c) == nil }

// AString reads an atom, a quoted string or a literal. Where an atom could be
// read otherwise in no way, it is given octets that the grammar keeps from it,
// like * or 8-bit: people type passwords by hand and programs forget to quote.
func (s *Scanner) AString() ([]byte, error) {
	if s.stringNext() {
		return s.String()
	}
	return s.takeWhile(func(c byte) bool {
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

// NString reads a quoted string, a literal or NIL, which gives nil.
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

// quoted reads on behind the opening quote. 8-bit is let through: RFC 3501
// forbids it, RFC 6855 and many clients do not.
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

// takeWhile reads at least one octet.
func (s *Scanner) takeWhile(want func(byte) bool) ([]byte, error) {
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

// atomChar reports whether c is an ATOM-CHAR or ], RFC 3501 section 9.
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
