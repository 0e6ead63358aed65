// Package wire holds the words of the protocols, in both directions: lines,
// literals, SASL messages, replies. It has no policy, does no I/O and imports
// the standard library only.
package wire

import "bytes"

// TrimLine returns line without its end, LF or CRLF, and whether that was CRLF.
func TrimLine(line []byte) (text []byte, crlf bool) {
	text = bytes.TrimSuffix(line, []byte("\n"))
	if len(text) < len(line) && bytes.HasSuffix(text, []byte("\r")) {
		return text[:len(text)-1], true
	}
	return text, false
}

// CutWord cuts line around its first space. Without one, rest is nil; with
// one, it is not, even when nothing follows.
func CutWord(line []byte) (word, rest []byte) {
	word, rest, found := bytes.Cut(line, []byte(" "))
	if !found {
		return word, nil
	}
	return word, rest
}

// maxKeyword is what RFC 4422 section 3.1 gives to a mechanism's name.
const maxKeyword = 20

// Keyword returns the upper case of b when it can be the name of a command or
// of a SASL mechanism: up to 20 ASCII letters, digits, hyphens and underscores.
// Else it returns "".
func Keyword(b []byte) string {
	if len(b) > maxKeyword {
		return ""
	}
	var upper [maxKeyword]byte
	for i, c := range b {
		switch {
		case 'a' <= c && c <= 'z':
			c -= 'a' - 'A'
		case 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '-', c == '_':
		default:
			return ""
		}
		upper[i] = c
	}
	return string(upper[:len(b)])
}

// AppendEHLO appends the reply to EHLO, RFC 5321 section 4.1.1.1: the server's
// hostname and one line for each of its extensions.
func AppendEHLO(dst []byte, hostname string, extensions []string) []byte {
	text := hostname
	for _, next := range extensions {
		dst = append(append(append(dst, "250-"...), text...), "\r\n"...)
		text = next
	}
	return append(append(append(dst, "250 "...), text...), "\r\n"...)
}
