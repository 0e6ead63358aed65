package wire

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"
)

// MaxSieveQuoted is how many octets a quoted string of ManageSieve may have: RFC 5804
// section 4. Longer strings are literals.
const MaxSieveQuoted = 1024

// The names of a SieveResponse that ends the response to a command.
const (
	SieveOK  = "OK"
	SieveNo  = "NO"
	SieveBye = "BYE"
)

// A SieveResponse is one line of a ManageSieve server with its literals: RFC 5804 section
// 1.2. A line that begins with a string is data: a capability, or a challenge of AUTHENTICATE.
type SieveResponse struct {
	Name    string   // SieveOK, SieveNo or SieveBye; "": data
	Code    string   // of OK, NO and BYE: the name of the response code, in upper case; "": none
	Text    string   // of OK, NO and BYE: for people
	Strings []string // of data: the strings of the line, at least one
}

// SieveResponse reads one response line of a ManageSieve server. The end of the connection
// is as for Response.
func (r *ReplyReader) SieveResponse() (SieveResponse, error) {
	b, err := r.nextUnit(sieveLength)
	if err != nil {
		return SieveResponse{}, err
	}
	return parseSieve(bytes.Clone(b))
}

// sieveLength returns the length of the first response line in b with its literals; 0 if
// the line is not complete.
func sieveLength(b []byte) (int, error) {
	for at := 0; ; {
		line, n, err := cutLine(b[at:])
		if n == 0 || err != nil {
			return 0, err
		}
		at += n
		literal, ok := SieveLiteral(line)
		if !ok {
			return at, nil
		}
		if literal.Size > int64(MaxReply-at) {
			return 0, fmt.Errorf("%w: literal of %d octets", ErrReply, literal.Size)
		}
		if at += int(literal.Size); at > len(b) {
			return 0, nil
		}
	}
}

// SieveLiteral returns the literal that the end of line announces: RFC 5804 section 4. In
// a quoted string {5} is text. A literal of a client has a plus (Sync is false), and one of
// a server has none; neither of them waits.
func SieveLiteral(line []byte) (Literal, bool) {
	text, _ := TrimLine(line)
	quoted, escaped := false, false
	for _, c := range text {
		switch {
		case escaped:
			escaped = false
		case quoted && c == '\\':
			escaped = true
		case c == '"':
			quoted = !quoted
		}
	}
	if quoted {
		return Literal{}, false
	}
	return TrailingLiteral(text)
}

var errSieve = fmt.Errorf("%w: no response of ManageSieve", ErrReply)

// parseSieve parses a response line with its literals.
func parseSieve(line []byte) (r SieveResponse, err error) {
	s := NewScanner(line)
	if s.stringNext() {
		for {
			text, err := s.String()
			if err != nil {
				return SieveResponse{}, errSieve
			}
			r.Strings = append(r.Strings, string(text))
			if s.End() == nil {
				return r, nil
			}
			if s.Space() != nil {
				return SieveResponse{}, errSieve
			}
		}
	}
	name, err := s.Atom()
	if r.Name = Keyword(name); err != nil || r.Name != SieveOK && r.Name != SieveNo && r.Name != SieveBye {
		return SieveResponse{}, errSieve
	}
	spaced := s.Space() == nil
	if spaced && s.Next('(') {
		if r.Code, err = s.sieveCode(); err != nil {
			return SieveResponse{}, errSieve
		}
		spaced = s.Space() == nil
	}
	if spaced && s.End() != nil {
		r.Text = s.sieveText()
	}
	return r, nil
}

// sieveCode reads a response code behind its opening parenthesis, with its arguments.
func (s *Scanner) sieveCode() (string, error) {
	name, err := s.Atom()
	if err != nil {
		return "", err
	}
	for depth := 1; depth > 0; {
		switch {
		case s.Next(')'):
			depth--
		case s.Next('('): // of an extension
			depth++
		case s.stringNext():
			_, err = s.String()
		case s.Next(' '):
		default:
			_, err = s.Atom()
		}
		if err != nil {
			return "", err
		}
	}
	return strings.ToUpper(string(name)), nil
}

// sieveText reads the text for people. Some servers do not quote it.
func (s *Scanner) sieveText() string {
	rest := *s
	if text, err := rest.String(); err == nil {
		return string(text)
	}
	return string(s.rest)
}

// AppendSieveString appends text as a string of a server: quoted if it may be, else a
// literal. RFC 5804 section 4.
func AppendSieveString(dst, text []byte) []byte { return appendSieveString(dst, text, "}\r\n") }

// AppendSieveClientString is AppendSieveString for a client, whose literals have a plus.
func AppendSieveClientString(dst, text []byte) []byte { return appendSieveString(dst, text, "+}\r\n") }

func appendSieveString(dst, text []byte, literalEnd string) []byte {
	if len(text) > MaxSieveQuoted || bytes.ContainsAny(text, "\x00\r\n") {
		dst = strconv.AppendInt(append(dst, '{'), int64(len(text)), 10)
		return append(append(dst, literalEnd...), text...)
	}
	dst = append(dst, '"')
	for _, c := range text {
		if c == '"' || c == '\\' {
			dst = append(dst, '\\')
		}
		dst = append(dst, c)
	}
	return append(dst, '"')
}

// SieveCapability returns the value of the capability name, and reports whether the lines,
// each a name and a value (STARTTLS, SASL PLAIN LOGIN), have it: RFC 5804 section 1.7.
func SieveCapability(lines []string, name string) (value string, ok bool) {
	for _, line := range lines {
		word, value, _ := strings.Cut(line, " ")
		if strings.EqualFold(word, name) {
			return value, true
		}
	}
	return "", false
}
