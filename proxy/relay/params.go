package relay

import (
	"bytes"
	"slices"
	"strings"
)

// optional are the parameters of MAIL and RCPT on which the message does not
// depend, by extension: without SIZE (RFC 1870) the server counts itself, without
// DSN (RFC 3461) only failures are reported. The parameters of 8BITMIME and
// SMTPUTF8 say how to read the message: they stay, and the server may refuse
// them.
var optional = map[string][]string{
	"SIZE": {"SIZE"},
	"DSN":  {"RET", "ENVID", "NOTIFY", "ORCPT"},
}

// without returns the lines of an EHLO reply without those of keywords.
func without(lines, keywords []string) []string {
	return slices.DeleteFunc(slices.Clone(lines), func(line string) bool { return slices.Contains(keywords, keyword(line)) })
}

// withoutParams returns the arguments of MAIL or RCPT without the parameters of
// the extensions in lacks, as far as a message does not depend on them. It
// changes args. Arguments without a path stay as they are.
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

// pathEnd returns the index after the path of FROM:<path> or TO:<path> (RFC 5321
// section 4.1.2), or 0 if there is no path. A quoted string may contain > and
// spaces.
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
