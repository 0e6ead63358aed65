package relay

import (
	"slices"
	"strings"
)

// extensions are the EHLO keywords that the submission relay understands well
// enough to pass. Others would promise what it refuses, or give a client that
// is logged in the means to be another: XCLIENT.
var extensions = []string{"PIPELINING", "8BITMIME", "SMTPUTF8", "DSN", "SIZE", "ENHANCEDSTATUSCODES", "CHUNKING"}

// Extensions returns those of lines, as in the answer to EHLO, whose keyword
// the relay passes.
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
