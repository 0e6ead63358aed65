package wire

import "unicode/utf8"

// Excerpt returns the first octets of s, at most limit, without a part of a UTF-8
// sequence at the end: for text of a server in a log line.
func Excerpt(s string, limit int) string {
	if len(s) <= limit {
		return s
	}
	end := limit
	for end > 0 && limit-end < utf8.UTFMax && !utf8.RuneStart(s[end]) {
		end--
	}
	if !utf8.RuneStart(s[end]) { // not UTF-8
		end = limit
	}
	return s[:end]
}
