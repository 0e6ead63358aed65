// Package route determines the account of a user name and the backend of an
// account. Accounts normalize user names. A Mux is the proxy.Backend that chooses
// a backend by Rules: a File, a Hook, a Domain or a Default. Protocols say which
// protocols an account may use.
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

// maxAccount is the length of the longest address, in octets: 64 of the local
// part, @, and 255 of the domain, RFC 5321 section 4.5.3.1.
const maxAccount = 320

// Why a name cannot be an account. No error contains the name: people type
// passwords into the field of the user name.
var (
	ErrEmpty     = errors.New("empty user name")
	ErrTooLong   = errors.New("user name of more than 320 octets")
	ErrEncoding  = errors.New("user name that is not UTF-8")
	ErrInvisible = errors.New("user name with a control or invisible character")
	ErrSeparator = errors.New("user name with a separator of master users")
)

// Accounts determine the account of a user name. All spellings that the backend
// accepts for one account must give one result: the guard counts by it, and logs,
// state and backend use it.
type Accounts struct {
	Lowercase  bool      // ASCII letters only: other letters are the backend's to compare
	Domain     string    // added to names without a domain; "": none is added
	Rewrites   []Rewrite // the first that matches is applied
	Separators string    // characters that no account contains
}

// Account returns the account of user: without spaces around it, in lower case,
// with a domain, rewritten, in this order. It does no I/O and takes time linear
// in the length of user. Unless a Rewrite matches again, Account of its result is
// the same.
//
// A name with invisible characters is refused, and so is one that has a separator
// after all this: a Rewrite may replace it.
func (a *Accounts) Account(user string) (string, error) {
	account := strings.Trim(user, " ")
	if err := checkName(account); err != nil {
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
	if err := checkName(account); err != nil {
		return "", err
	}
	if strings.ContainsAny(account, a.Separators) {
		return "", ErrSeparator
	}
	return account, nil
}

func (a *Accounts) lower(s string) string {
	if a.Lowercase {
		return strings.Map(lowerRune, s)
	}
	return s
}

func lowerRune(r rune) rune {
	if 'A' <= r && r <= 'Z' {
		return r + 'a' - 'A'
	}
	return r
}

func checkName(account string) error {
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
// controls, spaces other than that of ASCII, direction marks, joiners, fillers,
// variation selectors.
func invisible(r rune) bool {
	return !unicode.IsPrint(r) ||
		unicode.In(r, unicode.Other_Default_Ignorable_Code_Point, unicode.Variation_Selector)
}

// A Rewrite replaces a name that matches a regular expression.
type Rewrite struct {
	match *regexp.Regexp
	to    string
}

// groupReference matches a group in a replacement as package regexp does.
var groupReference = regexp.MustCompile(`\$(?:\$|\{([\pL\p{Nd}_]*)\}|([\pL\p{Nd}_]+))?`)

// NewRewrite returns a Rewrite of the names that match as a whole. They become
// to, in which ${1} is the first group of match, as in package regexp. A group
// that match does not have is an error: $1x is one, ${1}x is meant.
func NewRewrite(match, to string) (Rewrite, error) {
	if _, err := regexp.Compile(match); err != nil { // before it is put in parentheses
		return Rewrite{}, err
	}
	re, err := regexp.Compile(`^(?:` + match + `)$`)
	if err != nil {
		return Rewrite{}, err
	}
	for _, found := range groupReference.FindAllStringSubmatch(to, -1) {
		name := found[1] + found[2]
		if found[0] == "$$" {
			continue
		}
		if n := groupNumber(name); n < 0 && !slices.Contains(re.SubexpNames(), name) || n > re.NumSubexp() || name == "" {
			return Rewrite{}, fmt.Errorf("%s is no group of the expression; write ${1} for the first, $$ for a $", found[0])
		}
	}
	return Rewrite{re, to}, nil
}

// groupNumber returns the number of a group, or -1 if name is a name.
func groupNumber(name string) int {
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
