package token

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"strings"
	"sync/atomic"

	"postern/proxy"
	"postern/proxy/wire"
)

// Names are the mailboxes of accounts whose mailbox has another name: a file that is read
// again when it changes. Each line is an account and its mailboxes; case does not count in
// accounts (ASCII):
//
//	scanner@example.org  shared@example.net
//	anna@example.org     imap=shared@example.net submission=anna@example.net
//
// ManageSieve has the name of IMAP. Empty lines and lines that begin with # are ignored.
type Names struct {
	proxy.WatchedFile
	serves func(mailbox string) bool
	table  atomic.Pointer[map[string]mailboxes] // by account
}

// mailboxes are those of an account. "" stands for none.
type mailboxes struct{ all, imap, submission string }

// mostNames is the largest file, in octets.
const mostNames = 64 << 20

const mostShown = 100 // octets of a mailbox in an error

// maxMistakes is how many wrong lines of a file are named.
const maxMistakes = 20

// OpenNames reads the file at path. serves reports whether there are tokens for a mailbox:
// another one is a mistake. The error names each wrong line.
func OpenNames(path string, serves func(mailbox string) bool) (*Names, error) {
	n := &Names{serves: serves}
	n.Path, n.Parse = path, n.parse
	return n, n.Load()
}

// Equal reports whether n and other have the same mailboxes now. Both may be nil.
func (n *Names) Equal(other *Names) bool {
	return n == other || n != nil && other != nil && maps.Equal(*n.table.Load(), *other.table.Load())
}

// mailbox returns the mailbox of account at servers of a protocol.
func (n *Names) mailbox(account, protocol string) string {
	if n == nil {
		return account
	}
	m := (*n.table.Load())[lower(account)]
	switch protocol {
	case proxy.IMAP, proxy.Sieve:
		return cmp.Or(m.imap, m.all, account)
	case proxy.Submission:
		return cmp.Or(m.submission, m.all, account)
	}
	return cmp.Or(m.all, account)
}

func (n *Names) parse(file *os.File, info os.FileInfo) (entries int, err error) {
	if !info.Mode().IsRegular() || info.Size() > mostNames {
		return 0, fmt.Errorf("not a regular file of at most %d MiB", mostNames>>20)
	}
	table := map[string]mailboxes{}
	var mistakes []error
	lines := bufio.NewScanner(io.LimitReader(file, mostNames))
	for number := 1; lines.Scan() && len(mistakes) < maxMistakes; number++ {
		fields := strings.Fields(lines.Text())
		if len(fields) == 0 || strings.HasPrefix(fields[0], "#") {
			continue
		}
		account := lower(fields[0])
		_, twice := table[account]
		m, why := n.parseMailboxes(fields[1:])
		if twice {
			why = "the account stands in an earlier line as well"
		}
		if why != "" {
			mistakes = append(mistakes, fmt.Errorf("line %d: %s", number, why))
		}
		table[account] = m
	}
	if err := lines.Err(); err != nil {
		mistakes = append(mistakes, err)
	}
	if mistakes == nil && len(table) == 0 { // cut off by a full disk, for example: accounts would open other mailboxes
		mistakes = append(mistakes, errors.New("the file has no account: write lines of an account and its mailbox, or remove names_file"))
	}
	if mistakes != nil {
		return 0, errors.Join(mistakes...)
	}
	n.table.Store(&table)
	return len(table), nil
}

// parseMailboxes reads the fields behind an account. It returns what is wrong with them,
// or "".
func (n *Names) parseMailboxes(fields []string) (m mailboxes, wrong string) {
	if len(fields) == 0 {
		return m, "there is no mailbox: write an account and its mailbox"
	}
	for _, field := range fields {
		protocol, mailbox, ok := strings.Cut(field, "=")
		if !ok {
			protocol, mailbox = "", field
		}
		place, known := map[string]*string{"": &m.all, proxy.IMAP: &m.imap, proxy.Submission: &m.submission}[protocol]
		switch {
		case !known:
			return m, "before = stands imap or submission"
		case !strings.Contains(mailbox, "@"):
			return m, "a mailbox is an address, such as shared@example.net"
		case *place != "":
			return m, "two mailboxes for the same protocol"
		case !n.serves(mailbox):
			return m, "the provider's domains do not have that of " + wire.Excerpt(mailbox, mostShown)
		}
		*place = mailbox
	}
	return m, ""
}

// lower returns s with letters of ASCII in lower case.
func lower(s string) string {
	return strings.Map(func(r rune) rune {
		if 'A' <= r && r <= 'Z' {
			return r + 'a' - 'A'
		}
		return r
	}, s)
}
