package backend

import (
	"fmt"
	"strings"
)

// A Kind is the software of a server. It decides what an answer to credentials
// means where codes leave that open: see the package's doc.
type Kind uint8

// The kinds. The zero value is found out from what the server says of itself.
const (
	Guessed  Kind = iota
	Other         // none of those below
	Dovecot       // IMAP and submission
	Cyrus         // IMAP
	Courier       // IMAP
	Postfix       // submission
	Exim          // submission
	Exchange      // Exchange Online, and Exchange Server
	Gmail         // and Google Workspace
	Stalwart      // IMAP and submission
	kinds
)

var kindNames = [kinds]string{"guessed", "other", "dovecot", "cyrus", "courier", "postfix", "exim", "exchange", "gmail", "stalwart"}

// String returns the kind's name in the configuration.
func (k Kind) String() string { return kindNames[min(k, kinds-1)] }

// ParseKind returns the kind that the configuration names; "" is Guessed.
func ParseKind(name string) (Kind, error) {
	if name == "" {
		return Guessed, nil
	}
	for k := Other; k < kinds; k++ {
		if k.String() == name {
			return k, nil
		}
	}
	return Guessed, fmt.Errorf("%q is not a kind of server", name)
}

// A sign is a word of greetings and of answers to ID, in lower case.
type sign struct {
	word string
	kind Kind
}

var signs = []sign{
	{"dovecot", Dovecot},
	{"cyrus", Cyrus},
	{"courier", Courier},
	{"postfix", Postfix},
	{"exim", Exim},
	{"microsoft", Exchange},
	{"microsoft.exchange.imap4.imap4server", Exchange},
	{"gimap", Gmail},
	{"gsmtp", Gmail},
	{"stalwart", Stalwart},
}

// matches reports whether word is the sign, alone or in front of a hyphen. The
// name of a host, which may be called after anything, has a dot and is not.
func (s sign) matches(word string) bool {
	rest, ok := strings.CutPrefix(word, s.word)
	return ok && (rest == "" || rest[0] == '-' && !strings.Contains(rest, "."))
}

// guessKind returns the kind that a server's words tell, or Other.
func guessKind(said ...string) Kind {
	for _, text := range said {
		for word := range strings.FieldsSeq(strings.ToLower(text)) {
			word = strings.Trim(word, `"'()[]<>,;:.`)
			for _, s := range signs {
				if s.matches(word) {
					return s.kind
				}
			}
		}
	}
	return Other
}

// said returns the Kind in the configuration, or what the server's words tell.
func (s *Server) said(words ...string) Kind {
	if s.Kind != Guessed {
		return s.Kind
	}
	return guessKind(words...)
}

// kind returns what said does, or what the last Report says where the words tell
// nothing: a login does not ask for all that a probe does.
func (s *Server) kind(words ...string) Kind {
	k, report := s.said(words...), s.report.Load()
	if k == Other && s.Kind == Guessed && report != nil && report.Kind != Guessed {
		return report.Kind
	}
	return k
}
