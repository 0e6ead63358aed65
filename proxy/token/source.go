package token

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"postern/proxy"
)

// A Source has the tokens of a Provider for the accounts of a backend. It is the
// backend.Credentials of the backend's servers.
type Source struct {
	Provider *Provider
	Names    Names
}

// Credentials returns the mailbox of account at servers of a protocol, and a token for
// it. Errors are as for Provider.Token.
func (s *Source) Credentials(ctx context.Context, account, protocol string, force bool) (user string, token *proxy.Secret, err error) {
	user = s.Mailbox(account, protocol)
	token, err = s.Provider.Token(ctx, user, force)
	return user, token, err
}

// Serves reports whether there may be tokens for account: the domain of its mailbox, for
// some protocol, is one of the Provider's.
func (s *Source) Serves(account string) bool {
	return slices.ContainsFunc([]string{proxy.IMAP, proxy.Submission}, func(protocol string) bool {
		return s.Provider.Serves(s.Mailbox(account, protocol))
	})
}

// Mailbox returns the mailbox of account at servers of a protocol.
func (s *Source) Mailbox(account, protocol string) string { return s.Names.mailbox(account, protocol) }

// Names are the mailboxes of accounts whose mailbox has another name: by account, then by
// protocol; "" stands for the protocols that have no name of their own.
type Names map[string]map[string]string

// mailbox returns the mailbox of account.
func (n Names) mailbox(account, protocol string) string {
	byProtocol := n[account]
	return cmp.Or(byProtocol[protocol], byProtocol[""], account)
}

// ReadNames reads a file of Names. Each line is an account and its mailboxes:
//
//	scanner@example.org  shared@example.net
//	anna@example.org     imap=shared@example.net submission=anna@example.net
//
// Empty lines and lines that begin with # are ignored. The error names each wrong line.
// The octets are those of the file.
func ReadNames(path string) (names Names, octets []byte, err error) {
	if octets, err = readFile(path); err != nil {
		return nil, nil, err
	}
	names = Names{}
	var mistakes []error
	lines := bufio.NewScanner(bytes.NewReader(octets))
	for number := 1; lines.Scan(); number++ {
		fields := strings.Fields(lines.Text())
		if len(fields) == 0 || strings.HasPrefix(fields[0], "#") {
			continue
		}
		if why := names.add(fields); why != "" {
			mistakes = append(mistakes, fmt.Errorf("line %d: %s", number, why))
		}
	}
	if err := lines.Err(); err != nil {
		mistakes = append(mistakes, err)
	}
	return names, octets, errors.Join(mistakes...)
}

// add adds a line. It returns what is wrong with the line, or "".
func (n Names) add(fields []string) string {
	account := fields[0]
	if n[account] != nil {
		return "the account stands in an earlier line as well"
	}
	mailboxes := map[string]string{}
	for _, field := range fields[1:] {
		protocol, mailbox, ok := strings.Cut(field, "=")
		if !ok {
			protocol, mailbox = "", field
		}
		switch {
		case protocol != "" && protocol != proxy.IMAP && protocol != proxy.Submission:
			return "before = stands imap or submission"
		case !strings.Contains(mailbox, "@"):
			return "a mailbox is an address, such as shared@example.net"
		case mailboxes[protocol] != "":
			return "two mailboxes for the same protocol"
		}
		mailboxes[protocol] = mailbox
	}
	if len(mailboxes) == 0 {
		return "there is no mailbox: write an account and its mailbox"
	}
	n[account] = mailboxes
	return ""
}
