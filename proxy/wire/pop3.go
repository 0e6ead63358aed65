package wire

import (
	"bytes"
	"fmt"
	"strings"
)

// The names of a POP3Response.
const (
	POP3OK       = "+OK"
	POP3Err      = "-ERR"
	POP3Continue = "+" // a challenge of AUTH, RFC 5034 section 4
)

// A POP3Response is the first line of a response of a POP3 server: RFC 1939 section 3.
type POP3Response struct {
	Name string // POP3OK, POP3Err or POP3Continue
	Code string // of -ERR, without the brackets, in upper case: RFC 2449 section 8; "": none
	Text string // the rest
}

// ParsePOP3 parses the first line of a response, without its CRLF. Only +OK, -ERR and +
// begin one, in any case: RFC 1939 wants upper case, which not all servers send.
func ParsePOP3(line []byte) (r POP3Response, ok bool) {
	name, text, _ := strings.Cut(string(line), " ")
	r = POP3Response{Name: strings.ToUpper(name), Text: text}
	switch r.Name {
	case POP3OK, POP3Continue:
	case POP3Err:
		if code, rest, ok := strings.Cut(text, "]"); ok && strings.HasPrefix(code, "[") {
			r.Code, r.Text = strings.ToUpper(code[1:]), strings.TrimPrefix(rest, " ")
		}
	default:
		return r, false
	}
	return r, true
}

// POP3Response reads the first line of a response of a POP3 server. The end of the
// connection is as for Response.
func (r *ReplyReader) POP3Response() (POP3Response, error) {
	b, err := r.nextUnit(lineLength)
	if err != nil {
		return POP3Response{}, err
	}
	response, ok := ParsePOP3(bytes.TrimSuffix(b, []byte("\r\n")))
	if !ok {
		return response, fmt.Errorf("%w: neither +OK nor -ERR", ErrReply)
	}
	return response, nil
}

// POP3Lines reads the lines behind the first one of a response, up to the dot, and
// removes the dots that RFC 1939 section 3 has put before lines.
func (r *ReplyReader) POP3Lines() (lines []string, err error) {
	for octets := 0; octets < MaxReply && len(lines) < MaxReplyLines; {
		b, err := r.nextUnit(lineLength)
		if err != nil {
			return nil, err
		}
		line := string(bytes.TrimSuffix(b, []byte("\r\n")))
		if line == "." {
			return lines, nil
		}
		lines = append(lines, strings.TrimPrefix(line, "."))
		octets += len(b)
	}
	return nil, fmt.Errorf("%w: more than %d lines or %d octets", ErrReply, MaxReplyLines, MaxReply)
}

func lineLength(b []byte) (int, error) {
	_, n, err := cutLine(b)
	return n, err
}

// A POP3End finds the end of a response of many lines in the octets of a server: a line
// with a dot alone, RFC 1939 section 3. Only CRLF ends a line. The zero value is behind the
// first line.
type POP3End struct {
	Dots int64 // that RFC 1939 section 3 has put before lines
	at   pop3Place
}

// A pop3Place is a place in a line.
type pop3Place uint8

const (
	atStart    pop3Place = iota // of a line
	afterDot                    // that begins a line
	afterDotCR                  // that may be the last line
	within                      // a line
	afterCR                     // within a line
)

// Scan returns how many octets of b belong to the response, and whether it ends with them.
func (e *POP3End) Scan(b []byte) (n int, done bool) {
	for n < len(b) {
		if e.at == within {
			i := bytes.IndexByte(b[n:], '\r')
			if i < 0 {
				return len(b), false
			}
			n += i + 1
			e.at = afterCR
			continue
		}
		if e.at == afterDotCR && b[n] == '\n' {
			e.at = atStart
			return n + 1, true
		}
		if e.at == afterDot && b[n] != '\r' {
			e.Dots++
		}
		e.at = e.at.after(b[n])
		n++
	}
	return n, false
}

// after returns the place after the octet c at p, which is not the last one of a response.
func (p pop3Place) after(c byte) pop3Place {
	switch {
	case p == afterDot && c == '\r':
		return afterDotCR
	case c == '\r':
		return afterCR
	case p == atStart && c == '.':
		return afterDot
	case p == afterCR && c == '\n':
		return atStart
	}
	return within
}

// POP3Capability returns the arguments of the capability name, in upper case, and reports
// whether the lines of CAPA have it: RFC 2449 section 5.
func POP3Capability(lines []string, name string) (args []string, ok bool) {
	for _, line := range lines {
		words := strings.Fields(strings.ToUpper(line))
		if len(words) > 0 && words[0] == name {
			return words[1:], true
		}
	}
	return nil, false
}
