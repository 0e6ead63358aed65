package relay

import (
	"slices"
	"strings"
)

// extensions are the EHLO keywords that the submission relay understands well
// enough to pass. Others would promise what it refuses, or give a client that
// is logged in the means to be another: XCLIENT.
var extensions = []string{"PIPELINING", "8BITMIME", "SMTPUTF8", "DSN", "SIZE", "ENHANCEDSTATUSCODES"}

// Extensions returns those of lines, as in the answer to EHLO, whose keyword
// the relay passes.
func Extensions(lines []string) []string {
	var kept []string
	for _, line := range lines {
		keyword, _, _ := strings.Cut(line, " ")
		if slices.Contains(extensions, strings.ToUpper(keyword)) {
			kept = append(kept, line)
		}
	}
	return kept
}
