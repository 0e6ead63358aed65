package relay

import "bytes"

// A body rewrites a message, as the client sends it, into a form that every
// server reads in the same way: a line ends with CRLF and with nothing else. A
// bare LF or CR becomes CRLF. Octets that a lax server would take for the end of
// the message, and what follows for commands (SMTP smuggling, CVE-2023-51764),
// become text: a dot that stands alone only because of the rewriting is doubled.
// RFC 5321 sections 2.3.8 and 4.1.1.4.
//
// No other octet is changed. At most two octets are held back between calls.
type body struct {
	dots  bool // CRLF.CRLF is the end: true for DATA, false for BDAT
	as    Newlines
	bare  bool // a bare LF or CR was found
	state bodyState
}

// Newlines says what happens to a bare LF or CR in a message.
type Newlines uint8

// The values of Newlines.
const (
	Normalize Newlines = iota // it becomes CRLF
	Reject                    // the message is refused, and the session ends
	Pass                      // it stays: the backend is known not to take it for a line end
)

// String returns the name in the configuration.
func (n Newlines) String() string { return [...]string{"normalize", "reject", "pass"}[n] }

// A bodyState is what was read last.
type bodyState uint8

const (
	lineStart bodyState = iota // CRLF, also that of the DATA command
	softStart                  // a bare LF or CR
	inLine
	afterCR        // CR, which is held back
	afterDot       // CRLF and a dot, which is held back
	afterSoftDot   // softStart and a dot, which is held back
	afterDotCR     // CRLF, and a dot and CR, which are held back
	afterSoftDotCR // softStart, and a dot and CR, which are held back
)

// next reads from in. It returns what to send on, a part of in or in dst's array,
// how many octets of in it has read, at least one, and whether the message is
// complete. The array must hold more than a few octets.
func (b *body) next(dst, in []byte) (out []byte, n int, end bool) {
	if b.as == Pass {
		n, end := b.passed(in)
		return in[:n], n, end
	}
	if n, end := b.clean(in); n > 0 {
		return in[:n], n, end
	}
	const most = 4 // octets that one octet of in can become
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

// passed looks for CRLF.CRLF alone.
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

// plain returns how many octets at the beginning of in are no line end. It does
// not look far.
func plain(in []byte) int {
	const far = 512 // many CR without LF must not take quadratic time
	n := min(len(in), far)
	if i := bytes.IndexByte(in[:n], '\n'); i >= 0 {
		n = i
	}
	if i := bytes.IndexByte(in[:n], '\r'); i >= 0 {
		n = i
	}
	return n
}

// clean returns how many octets of in need no change: whole lines up to the end
// of the message, and the beginning of the last line.
func (b *body) clean(in []byte) (n int, end bool) {
	if b.state != lineStart && b.state != inLine {
		return 0, false
	}
	n, end, ok := b.lines(in, true)
	if !ok {
		n, end, ok = b.lines(in, false)
	}
	if !ok { // octet by octet
		return 0, false
	}
	return n, end
}

// lines is clean for octets without bare CR; ok is false if there is one. The lines of
// an encoded attachment are equally long, so with guess the end of a line is looked for
// first where it is then. That may jump over a line end; ok is false then, too.
func (b *body) lines(in []byte, guess bool) (n int, end, ok bool) {
	begun, count, length := b.state, 0, 0
	for n < len(in) && !end {
		dotted := b.dots && b.state == lineStart && in[n] == '.'
		next := n + length
		if !guess || dotted || length < 2 || next > len(in) || in[next-2] != '\r' || in[next-1] != '\n' {
			i := bytes.IndexByte(in[n:], '\n')
			if i < 0 && !dotted && in[len(in)-1] != '\r' {
				b.state, n = inLine, len(in)
				break
			}
			if i < 1 || in[n+i-1] != '\r' {
				break
			}
			length = i + 1
			next = n + length
		}
		end = dotted && length == len(".\r\n")
		b.state, n = lineStart, next
		count++
	}
	if bytes.Count(in[:n], []byte{'\r'}) != count || guess && bytes.Count(in[:n], []byte{'\n'}) != count {
		b.state = begun
		return 0, false, false
	}
	return n, end, true
}

// dotThenCR is the state after a CR that follows a dot.
var dotThenCR = [...]bodyState{afterDot: afterDotCR, afterSoftDot: afterSoftDotCR}

// step reads one octet.
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
			b.state = dotThenCR[b.state]
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
		if c == '\n' { // CRLF after a dot that stood alone only because of the rewriting
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

// finish returns the octets held back at the end of the message.
func (b *body) finish() []byte {
	if b.state != afterCR {
		return nil
	}
	b.state, b.bare = softStart, true
	return []byte("\r\n")
}
