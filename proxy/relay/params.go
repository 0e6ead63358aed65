package relay

import (
	"bytes"
	"slices"
	"strings"
)

// optional are the parameters of MAIL and RCPT that say nothing a message
// depends on, by their extensions: without SIZE (RFC 1870) the server finds out
// itself, without DSN (RFC 3461) nobody is notified of more than a failure. Those
// of 8BITMIME and SMTPUTF8 say how to read the message: they stay, for the server
// to refuse.
var optional = map[string][]string{
	"SIZE": {"SIZE"},
	"DSN":  {"RET", "ENVID", "NOTIFY", "ORCPT"},
}

// without returns lines, as in the answer to EHLO, but for those of keywords.
func without(lines, keywords []string) []string {
	return slices.DeleteFunc(slices.Clone(lines), func(line string) bool { return slices.Contains(keywords, keyword(line)) })
}

// withoutParams returns the arguments of MAIL or RCPT without the parameters of
// the extensions that lacks names, as far as a message does not depend on them.
// It changes args. Arguments that are no path stay as they are.
func withoutParams(args []byte, lacks []string) []byte {
	end := pathEnd(args)
	if len(lacks) == 0 || end == 0 || end == len(args) || args[end] != ' ' {
		return args
	}
	kept := args[:end]
	for param := range bytes.FieldsSeq(slices.Clone(args[end:])) {
		name, _, _ := strings.Cut(string(param), "=")
		if !slices.ContainsFunc(lacks, func(word string) bool { return slices.Contains(optional[word], strings.ToUpper(name)) }) {
			kept = append(append(kept, ' '), param...)
		}
	}
	return kept
}

// pathEnd returns where the path of FROM:<path> or TO:<path> ends, RFC 5321
// section 4.1.2; 0: there is none. A quoted string may hold > and spaces.
func pathEnd(args []byte) int {
	start := bytes.IndexByte(args, '<')
	if start < 0 {
		return 0
	}
	quoted := false
	for i := start + 1; i < len(args); i++ {
		switch c := args[i]; {
		case c == '\\' && quoted:
			i++
		case c == '"':
			quoted = !quoted
		case c == '>' && !quoted:
			return i + 1
		}
	}
	return 0
}
