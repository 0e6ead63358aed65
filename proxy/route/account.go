// Package route finds out who a client is and which backend serves it.
package route

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
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
	ErrSeparator = errors.New("user name with a separator of master users")
)

// DefaultSeparators is what no account has: the wildcards of IMAP, of which
// Dovecot also makes the separator of master users.
const DefaultSeparators = "*%"

// Accounts say which account a user name means. All spellings that the backend
// takes for one account must give one result, for that is what the guard counts
// by, and what logs, state and the backend see.
type Accounts struct {
	Lowercase  bool      // ASCII only: what case means beyond that is the backend's to say
	Domain     string    // of names that have none; "": they stay as they are
	Rewrites   []Rewrite // the first that matches
	Separators string    // characters that no account has
}

// DefaultAccounts returns Accounts in lower case, with DefaultSeparators.
func DefaultAccounts() *Accounts { return &Accounts{Lowercase: true, Separators: DefaultSeparators} }

// Account returns the account that user means: without the spaces around it,
// in lower case, with a domain, rewritten, in this order. It does no I/O and
// takes time linear in the length of user. Where no Rewrite does otherwise,
// Account of its result is the same.
//
// What cannot be seen is refused, and what has a separator after all that: a
// Rewrite may be there to replace it.
func (a *Accounts) Account(user string) (string, error) {
	account := strings.Trim(user, " ")
	if err := check(account); err != nil {
		return "", err
	}
	account = a.lower(account)
	if a.Domain != "" && !strings.Contains(account, "@") {
		account = a.lower(account + "@" + a.Domain)
	}
	for _, r := range a.Rewrites {
		if to, ok := r.rewrite(account); ok {
			account = a.lower(strings.Trim(to, " "))
			break
		}
	}
	if err := check(account); err != nil {
		return "", err
	}
	if strings.ContainsAny(account, a.Separators) {
		return "", ErrSeparator
	}
	return account, nil
}

func (a *Accounts) lower(s string) string {
	if a.Lowercase {
		return strings.Map(lower, s)
	}
	return s
}

func lower(r rune) rune {
	if 'A' <= r && r <= 'Z' {
		return r + 'a' - 'A'
	}
	return r
}

func check(account string) error {
	switch {
	case account == "":
		return ErrEmpty
	case len(account) > maxAccount:
		return ErrTooLong
	case !utf8.ValidString(account):
		return ErrEncoding
	case strings.ContainsFunc(account, invisible):
		return ErrInvisible
	}
	return nil
}

// invisible reports whether two names that look the same may differ by r:
// controls, spaces other than the one of ASCII, marks of direction, joiners,
// fillers, variation selectors.
func invisible(r rune) bool {
	return !unicode.IsPrint(r) ||
		unicode.In(r, unicode.Other_Default_Ignorable_Code_Point, unicode.Variation_Selector)
}

// A Rewrite replaces names.
type Rewrite struct {
	match *regexp.Regexp
	to    string
}

// reference finds what package regexp takes for a group in a replacement.
var reference = regexp.MustCompile(`\$(?:\$|\{([\pL\p{Nd}_]*)\}|([\pL\p{Nd}_]+))?`)

// NewRewrite returns a Rewrite of the names that match fits as a whole; they
// become to, in which ${1} is the first group of match, as in package regexp.
// A group that match does not have is an error: $1x is one, ${1}x is meant.
func NewRewrite(match, to string) (Rewrite, error) {
	if _, err := regexp.Compile(match); err != nil { // before it is put in parentheses
		return Rewrite{}, err
	}
	re, err := regexp.Compile(`^(?:` + match + `)$`)
	if err != nil {
		return Rewrite{}, err
	}
	for _, found := range reference.FindAllStringSubmatch(to, -1) {
		name := found[1] + found[2]
		if found[0] == "$$" {
			continue
		}
		if n := number(name); n < 0 && !slices.Contains(re.SubexpNames(), name) || n > re.NumSubexp() || name == "" {
			return Rewrite{}, fmt.Errorf("%s is no group of the expression; write ${1} for the first, $$ for a $", found[0])
		}
	}
	return Rewrite{re, to}, nil
}

// number returns that of a group, or -1 if name is a name.
func number(name string) int {
	if len(name) > 1 && name[0] == '0' {
		return -1
	}
	n := 0
	for _, c := range name {
		if c < '0' || c > '9' || n > 1000 {
			return -1
		}
		n = 10*n + int(c-'0')
	}
	return n
}

func (r Rewrite) rewrite(account string) (string, bool) {
	found := r.match.FindStringSubmatchIndex(account)
	if found == nil {
		return "", false
	}
	return string(r.match.ExpandString(nil, r.to, account, found)), true
}
