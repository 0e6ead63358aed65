package wire

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
)

// The limits of a server's reply.
const (
	MaxReplyLine  = 8 << 10  // octets of a line, with its CRLF; the text of an IMAP status response may be longer
	MaxReplyLines = 128      // lines of one SMTP reply
	MaxReply      = 64 << 10 // octets of one reply, with its literals
)

// ErrReply is wrapped by every error about a reply that is malformed or exceeds
// the limits. The connection cannot be used after it.
var ErrReply = errors.New("unusable reply")

const minReplyBuffer = 512

// A ReplyReader reads the replies of an IMAP or SMTP server, one at a time,
// within the limits. It may read ahead; Read returns what was read ahead. It
// allocates its buffer with the first read.
type ReplyReader struct {
	src  io.Reader
	buf  []byte // buf[r:w] is read and not yet consumed
	r, w int
}

// NewReplyReader returns a ReplyReader of src.
func NewReplyReader(src io.Reader) *ReplyReader { return &ReplyReader{src: src} }

// Buffered returns how many octets were read ahead.
func (r *ReplyReader) Buffered() int { return r.w - r.r }

// Received returns the octets in the buffer: after the first reply, or an error in its
// place, all that the server has sent. They are valid until the next read.
func (r *ReplyReader) Received() []byte { return r.buf[:r.w] }

// Read returns what was read ahead, then what the server sends.
func (r *ReplyReader) Read(p []byte) (int, error) {
	if r.r == r.w {
		r.buf, r.r, r.w = nil, 0, 0
		return r.src.Read(p)
	}
	n := copy(p, r.buf[r.r:r.w])
	r.r += n
	return n, nil
}

// Response reads one response of an IMAP server. The end of the connection within
// a response is io.ErrUnexpectedEOF, before one io.EOF.
func (r *ReplyReader) Response() (Response, error) {
	b, err := r.nextUnit(responseLength)
	if err != nil {
		return Response{}, err
	}
	return parseResponse(string(b)), nil
}

// Reply reads one reply of an SMTP server with all its lines. It is valid until
// the next read. The end of the connection is as for Response.
func (r *ReplyReader) Reply() (Reply, error) {
	b, err := r.nextUnit(replyLength)
	if err != nil {
		return Reply{}, err
	}
	return Reply{Code: code(b), Raw: b}, nil
}

// HasReply reports whether Reply would return without reading.
func (r *ReplyReader) HasReply() bool {
	n, err := replyLength(r.buf[r.r:r.w])
	return n > 0 || err != nil
}

// nextUnit reads until length returns the length of a complete reply, and returns
// the reply.
func (r *ReplyReader) nextUnit(length func([]byte) (int, error)) ([]byte, error) {
	for {
		n, err := length(r.buf[r.r:r.w])
		if err != nil {
			return nil, err
		}
		if n > 0 {
			b := r.buf[r.r : r.r+n]
			r.r += n
			return b, nil
		}
		if err := r.fill(); err != nil {
			return nil, err
		}
	}
}

func (r *ReplyReader) fill() error {
	if r.r > 0 {
		r.w = copy(r.buf, r.buf[r.r:r.w])
		r.r = 0
	}
	if r.w == 0 && len(r.buf) > minReplyBuffer {
		r.buf = nil // the next reply may be far
	}
	if r.w == len(r.buf) {
		if r.w >= MaxReply {
			return fmt.Errorf("%w: more than %d octets", ErrReply, MaxReply)
		}
		r.buf = append(r.buf, make([]byte, max(minReplyBuffer, len(r.buf)))...)
	}
	n, err := r.src.Read(r.buf[r.w:])
	r.w += n
	switch {
	case n > 0:
		return nil
	case err == io.EOF && r.w > 0:
		return io.ErrUnexpectedEOF
	}
	return err
}

// cutLine returns the first line of b without its CRLF, and its length with it; 0
// if it is not complete. Only CRLF ends a line.
func cutLine(b []byte) (line []byte, n int, err error) {
	line, n, err = cutText(b, MaxReplyLine)
	if err == nil && (bytes.IndexByte(line, '\r') >= 0 || bytes.IndexByte(line, 0) >= 0) {
		return nil, 0, errBare
	}
	return line, n, err
}

var errBare = fmt.Errorf("%w: bare CR, LF or NUL", ErrReply)

// cutText is cutLine for a line of at most limit octets that may have CR and NUL in it.
func cutText(b []byte, limit int) (line []byte, n int, err error) {
	i := bytes.IndexByte(b, '\n')
	if i < 0 && len(b) < limit {
		return nil, 0, nil
	}
	if i < 0 || i >= limit {
		return nil, 0, fmt.Errorf("%w: line of more than %d octets", ErrReply, limit)
	}
	line, ok := bytes.CutSuffix(b[:i], []byte("\r"))
	if !ok {
		return nil, 0, errBare
	}
	return line, i + 1, nil
}

// A Response is one response of an IMAP server: RFC 9051 section 7.
type Response struct {
	Tag  string // of a command; or "*" or "+"
	Name string // upper case: OK, NO, BAD, BYE, PREAUTH, CAPABILITY, ...; empty after "+"
	Code string // of a status response, without the brackets; empty: none
	Text string // the rest, with literals as they were sent
}

// Status reports whether the response is OK, NO, BAD, BYE or PREAUTH.
func (r Response) Status() bool {
	switch r.Name {
	case "OK", "NO", "BAD", "BYE", "PREAUTH":
		return true
	}
	return false
}

// CodeName returns the first word of the Code, in upper case.
func (r Response) CodeName() string {
	name, _, _ := strings.Cut(r.Code, " ")
	return strings.ToUpper(name)
}

// responseLength returns the length of the first response in b; 0 if it is not
// complete. Only data has literals; in the text of a status response {5} is text.
func responseLength(b []byte) (int, error) {
	if hasText(b) {
		_, n, err := cutText(b, MaxReply)
		return n, err
	}
	data := false
	for at := 0; ; {
		line, n, err := cutLine(b[at:])
		if n == 0 || err != nil {
			return 0, err
		}
		if at == 0 {
			r := parseResponse(string(line))
			data = r.Tag == "*" && !r.Status()
		}
		at += n
		literal, ok := TrailingLiteral(line)
		if !ok || !data {
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

// hasText reports whether b begins with a status response whose code is ALERT, or which
// has none. Its text is for people, and no octet of it changes what the response means.
func hasText(b []byte) bool {
	const mostBefore = 64 // octets up to the text
	head, _, _ := bytes.Cut(b[:min(len(b), mostBefore)], []byte("\r"))
	if bytes.Count(head, []byte(" ")) < 2 {
		return false
	}
	r := parseResponse(string(head))
	return r.Tag != "+" && r.Status() && (r.Code == "" && !strings.HasPrefix(r.Text, "[") || r.CodeName() == "ALERT")
}

// parseResponse is lenient: nonsense gets an unknown Name.
func parseResponse(s string) (r Response) {
	s = strings.TrimSuffix(s, "\r\n")
	r.Tag, r.Text, _ = strings.Cut(s, " ")
	if r.Tag == "+" {
		return r
	}
	name, text, _ := strings.Cut(r.Text, " ")
	r.Name, r.Text = strings.ToUpper(name), text
	if !r.Status() || !strings.HasPrefix(text, "[") {
		return r
	}
	if end := strings.IndexByte(text, ']'); end > 0 {
		r.Code, r.Text = text[1:end], strings.TrimPrefix(text[end+1:], " ")
	}
	return r
}

// A Reply is one reply of an SMTP server: RFC 5321 section 4.2.
type Reply struct {
	Code int    // 200 to 599
	Raw  []byte // all lines, each with its CRLF
}

// Positive reports whether the reply is 2yz: RFC 5321 section 4.2.1.
func (r Reply) Positive() bool { return r.Code/100 == 2 }

// Lines returns the text of each line.
func (r Reply) Lines() []string {
	var lines []string
	for line := range bytes.Lines(r.Raw) {
		lines = append(lines, string(bytes.TrimSuffix(line, []byte("\r\n"))[min(4, len(line)-2):]))
	}
	return lines
}

// replyLength returns how many octets the first reply of b takes; 0: it is
// not complete.
func replyLength(b []byte) (int, error) {
	at := 0
	for range MaxReplyLines {
		line, n, err := cutLine(b[at:])
		if n == 0 || err != nil {
			return 0, err
		}
		if code(line) == 0 || code(line) != code(b) {
			return 0, fmt.Errorf("%w: line without its code", ErrReply)
		}
		at += n
		switch {
		case len(line) == 3 || line[3] == ' ':
			return at, nil
		case line[3] != '-':
			return 0, fmt.Errorf("%w: line without its code", ErrReply)
		}
	}
	return 0, fmt.Errorf("%w: more than %d lines", ErrReply, MaxReplyLines)
}

// code returns the code that b begins with, 200 to 599, or 0.
func code(b []byte) int {
	if len(b) < 3 || b[0] < '2' || b[0] > '5' {
		return 0
	}
	n := 0
	for _, c := range b[:3] {
		if c < '0' || c > '9' {
			return 0
		}
		n = 10*n + int(c-'0')
	}
	return n
}
