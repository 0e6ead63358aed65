// Package route finds out who a client is and which backend serves it.
package route

import (
	"errors"
	"strings"
	"unicode"
	"unicode/utf8"
)

// maxAccount is the length of the longest address, in octets: 64 for the local
// part, 255 for the domain and the @, RFC 5321 section 4.5.3.1.
const maxAccount = 320

// Why a name cannot be an account. None of them quotes it: people type
// passwords into the field of the user name.
var (
	ErrEmpty     = errors.New("empty user name")
	ErrTooLong   = errors.New("user name of more than 320 octets")
	ErrEncoding  = errors.New("user name that is not UTF-8")
	ErrInvisible = errors.New("user name with a control or invisible character")
	ErrWildcard  = errors.New("user name with % or *")
)

// Account returns the account that a user name means: without the spaces
// around it, in lower case (ASCII only: what case means beyond that is the
// backend's to say). All spellings that the backend takes for one account must
// give one result, for that is what the guard counts by. It is pure, and
// Account of its result is the same.
//
// What no account has is refused: the wildcards of IMAP, of which Dovecot also
// makes the separator of master users, and all that does not show.
func Account(user string) (string, error) {
	user = strings.Trim(user, " ")
	switch {
	case user == "":
		return "", ErrEmpty
	case len(user) > maxAccount:
		return "", ErrTooLong
	case !utf8.ValidString(user):
		return "", ErrEncoding
	case strings.ContainsFunc(user, invisible):
		return "", ErrInvisible
	case strings.ContainsAny(user, "%*"):
		return "", ErrWildcard
	}
	return strings.Map(lower, user), nil
}

// invisible reports whether two names that look the same may differ by r:
// controls, spaces other than the one of ASCII, marks of direction, joiners,
// fillers, variation selectors.
func invisible(r rune) bool {
	return !unicode.IsPrint(r) ||
		unicode.In(r, unicode.Other_Default_Ignorable_Code_Point, unicode.Variation_Selector)
}

func lower(r rune) rune {
	if 'A' <= r && r <= 'Z' {
		return r + 'a' - 'A'
	}
	return r
}
