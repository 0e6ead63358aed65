package backend

import (
	"fmt"
	"strings"
)

// A Kind is the software of a server. It decides what an answer to credentials
// means where its code does not: see the package documentation.
type Kind uint8

// The values of Kind. Guessed is found out from the server's greeting and ID.
const (
	Guessed   Kind = iota
	Other          // any other
	Dovecot        // IMAP, POP3, submission and ManageSieve
	Cyrus          // IMAP, POP3 and ManageSieve
	Courier        // IMAP and POP3
	Postfix        // submission
	Exim           // submission
	Exchange       // Exchange Online, and Exchange Server
	Gmail          // and Google Workspace
	Stalwart       // IMAP, submission and ManageSieve
	Popa3d         // POP3
	SolidPOP3      // POP3
	Mailutils      // POP3
	Qpopper        // POP3
	kinds
)

var kindNames = [kinds]string{
	"guessed", "other", "dovecot", "cyrus", "courier", "postfix", "exim", "exchange", "gmail", "stalwart", "popa3d", "solid-pop3d", "mailutils", "qpopper",
}

// String returns the kind's name in the configuration.
func (k Kind) String() string { return kindNames[min(k, kinds-1)] }

// ParseKind returns the Kind with this name in the configuration; "" is Guessed.
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

// A signature is a word in greetings and ID responses, in lower case.
type signature struct {
	word string
	kind Kind
}

var signatures = []signature{
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
	{"solid", SolidPOP3},
	{"qpopper", Qpopper},
	{"qpop", Qpopper},
}

// matches reports whether word is the signature, alone or before a hyphen. A host
// name contains a dot and does not match.
func (s signature) matches(word string) bool {
	rest, ok := strings.CutPrefix(word, s.word)
	return ok && (rest == "" || rest[0] == '-' && !strings.Contains(rest, "."))
}

// guessKind returns the kind that the texts of a server suggest, or Other.
func guessKind(texts ...string) Kind {
	for _, text := range texts {
		for word := range strings.FieldsSeq(strings.ToLower(text)) {
			word = strings.Trim(word, `"'()[]<>,;:.`)
			for _, s := range signatures {
				if s.matches(word) {
					return s.kind
				}
			}
		}
	}
	return Other
}

// kindOf returns the configured Kind, or the one that the texts suggest.
func (s *Server) kindOf(words ...string) Kind {
	if s.Kind != Guessed {
		return s.Kind
	}
	return guessKind(words...)
}

// knownKind returns what kindOf does, or the Kind of the last Report if the texts
// suggest none: a login asks for less than a probe.
func (s *Server) knownKind(words ...string) Kind {
	k, report := s.kindOf(words...), s.report.Load()
	if k == Other && s.Kind == Guessed && report != nil && report.Kind != Guessed {
		return report.Kind
	}
	return k
}
