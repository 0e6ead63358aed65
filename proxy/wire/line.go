// Package wire has the syntax of the protocols in both directions: lines, IMAP
// literals and strings (Scanner), SASL messages, replies of servers
// (ReplyReader), bodies of POP3 (DotWriter). It has no policy, opens no
// connection and imports the standard library only.
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

// CutWord cuts line around its first space. Without a space rest is nil; with one
// rest is not nil, even if it is empty.
func CutWord(line []byte) (word, rest []byte) {
	word, rest, found := bytes.Cut(line, []byte(" "))
	if !found {
		return word, nil
	}
	return word, rest
}

// maxKeyword is the length limit of a mechanism's name: RFC 4422 section 3.1.
const maxKeyword = 20

// Keyword returns b in upper case if it can be the name of a command or of a SASL
// mechanism: up to 20 ASCII letters, digits, hyphens and underscores. Else it
// returns "".
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

// AppendEHLO appends the reply to EHLO, RFC 5321 section 4.1.1.1: hostname and
// one line for each extension.
func AppendEHLO(dst []byte, hostname string, extensions []string) []byte {
	text := hostname
	for _, next := range extensions {
		dst = append(append(append(dst, "250-"...), text...), "\r\n"...)
		text = next
	}
	return append(append(append(dst, "250 "...), text...), "\r\n"...)
}
