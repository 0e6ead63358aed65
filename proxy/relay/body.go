package relay

import "bytes"

// A body makes of the text of a message, as a client sends it, what every
// server reads in the same way: a line ends with CRLF and with nothing else. A
// bare LF or CR becomes CRLF. What a lax server would take for the end of the
// message, and with it what follows for commands (SMTP smuggling,
// CVE-2023-51764), is so made text: a dot that stands alone only because of
// this is doubled. RFC 5321 sections 2.3.8 and 4.1.1.4.
//
// Apart from that no octet is changed. At most two are held back between calls.
type body struct {
	dots  bool // CRLF.CRLF is the end: DATA; not so for BDAT
	as    Newlines
	bare  bool // there was a bare LF or CR, if it was looked for
	state bodyState
}

// Newlines is what becomes of a bare LF or CR in a message.
type Newlines uint8

// The ways to deal with one.
const (
	Normalize Newlines = iota // it becomes CRLF
	Reject                    // the message is refused, and the session ends
	Pass                      // it stays: the server behind must be known to see no line end in it
)

// String returns the name in the configuration.
func (n Newlines) String() string { return [...]string{"normalize", "reject", "pass"}[n] }

// A bodyState is what has just been read.
type bodyState uint8

const (
	lineStart bodyState = iota // CRLF; the one of DATA, too
	softStart                  // a bare LF or CR
	inLine
	afterCR      // CR, held back
	afterDot     // CRLF and a dot, held back
	afterSoftDot // the same after a softStart
	afterDotCR   // CRLF, and dot and CR, held back
	afterSoftDotCR
)

// next takes from in. It returns what is to be sent on, a part of in or in
// dst's array, how many octets of in that was, at least one, and whether the
// message is complete. The array must have room for more than a few octets.
func (b *body) next(dst, in []byte) (out []byte, n int, end bool) {
	if b.as == Pass {
		n, end := b.passed(in)
		return in[:n], n, end
	}
	if n, end := b.clean(in); n > 0 {
		return in[:n], n, end
	}
	const most = 4 // octets that one of in can become
	out = dst[:0]
	for n < len(in) && len(out)+most <= cap(dst) && !end {
		if b.state == inLine {
			k := plain(in[n:min(len(in), n+cap(dst)-len(out))])
			out, n = append(out, in[n:n+k]...), n+k
		}
		if n < len(in) && len(out)+most <= cap(dst) {
			out, end = b.step(out, in[n])
			n++
		}
	}
	return out, n, end
}

// passed looks for nothing but CRLF.CRLF.
func (b *body) passed(in []byte) (n int, end bool) {
	if !b.dots {
		return len(in), false
	}
	for n < len(in) {
		if b.state == inLine {
			i := bytes.IndexByte(in[n:], '\r')
			if i < 0 {
				return len(in), false
			}
			n += i
		}
		c := in[n]
		n++
		switch {
		case c == '\n' && b.state == afterDotCR:
			b.state = lineStart
			return n, true
		case c == '\n' && b.state == afterCR:
			b.state = lineStart
		case c == '.' && b.state == lineStart:
			b.state = afterDot
		case c == '\r' && b.state == afterDot:
			b.state = afterDotCR
		case c == '\r':
			b.state = afterCR
		default:
			b.state = inLine
		}
	}
	return n, false
}

// plain returns how many octets of in are no line end, as far as it looks.
func plain(in []byte) int {
	const far = 512 // a CR a line and no LF must not cost the square of their number
	n := min(len(in), far)
	if i := bytes.IndexByte(in[:n], '\n'); i >= 0 {
		n = i
	}
	if i := bytes.IndexByte(in[:n], '\r'); i >= 0 {
		n = i
	}
	return n
}

// clean returns how many octets of in need no change, in whole lines but for
// the last, up to the end of the message.
func (b *body) clean(in []byte) (n int, end bool) {
	if b.state != lineStart && b.state != inLine {
		return 0, false
	}
	for n < len(in) {
		rest := in[n:]
		dotted := b.dots && b.state == lineStart && rest[0] == '.'
		i := bytes.IndexByte(rest, '\n')
		if i < 0 {
			if dotted || bytes.IndexByte(rest, '\r') >= 0 {
				return n, false
			}
			b.state = inLine
			return len(in), false
		}
		if i == 0 || bytes.IndexByte(rest[:i], '\r') != i-1 {
			return n, false
		}
		n += i + 1
		b.state = lineStart
		if dotted && i == 2 {
			return n, true
		}
	}
	return n, false
}

// step takes one octet.
func (b *body) step(dst []byte, c byte) (_ []byte, end bool) {
	switch b.state {
	case afterCR:
		dst = append(dst, "\r\n"...)
		b.state = softStart
		if c == '\n' {
			b.state = lineStart
			return dst, false
		}
		b.bare = true
	case afterDot, afterSoftDot:
		switch c {
		case '\r':
			b.state += afterDotCR - afterDot
			return dst, false
		case '\n':
			b.state, b.bare = softStart, true
			return append(dst, "..\r\n"...), false
		}
		dst = append(dst, '.')
		b.state = inLine
	case afterDotCR, afterSoftDotCR:
		if c == '\n' && b.state == afterDotCR {
			b.state = lineStart
			return append(dst, ".\r\n"...), true
		}
		dst = append(dst, "..\r\n"...)
		b.state = softStart
		if c == '\n' { // CRLF, behind a dot that stood alone only through us
			b.state = lineStart
			return dst, false
		}
		b.bare = true
	}
	switch {
	case c == '\r':
		b.state = afterCR
	case c == '\n':
		b.state, b.bare = softStart, true
		dst = append(dst, "\r\n"...)
	case c == '.' && b.dots && b.state == lineStart:
		b.state = afterDot
	case c == '.' && b.dots && b.state == softStart:
		b.state = afterSoftDot
	default:
		b.state = inLine
		dst = append(dst, c)
	}
	return dst, false
}

// finish returns what was held back when there is no more to come.
func (b *body) finish() []byte {
	if b.state != afterCR {
		return nil
	}
	b.state, b.bare = softStart, true
	return []byte("\r\n")
}
