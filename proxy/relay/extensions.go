package relay

import (
	"slices"
	"strings"
)

// extensions are the EHLO keywords that the relay understands well enough to
// forward. Others would promise what the relay refuses, or, like XCLIENT, let a
// client that is logged in become another one.
var extensions = []string{"PIPELINING", "8BITMIME", "SMTPUTF8", "DSN", "SIZE", "ENHANCEDSTATUSCODES", "CHUNKING"}

// Extensions returns the lines of an EHLO reply whose keyword the relay forwards.
func Extensions(lines []string) []string {
	var kept []string
	for _, line := range lines {
		if slices.Contains(extensions, keyword(line)) {
			kept = append(kept, line)
		}
	}
	return kept
}

func keyword(line string) string {
	word, _, _ := strings.Cut(line, " ")
	return strings.ToUpper(word)
}

// announces reports whether one of lines has the keyword.
func announces(lines []string, word string) bool {
	return slices.ContainsFunc(lines, func(line string) bool { return keyword(line) == word })
}
