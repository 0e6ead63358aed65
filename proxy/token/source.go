package token

import (
	"context"
	"slices"

	"postern/proxy"
)

// A Source has the tokens of a Provider for the accounts of a backend. It is the
// backend.Credentials of the backend's servers.
type Source struct {
	Provider *Provider
	Names    *Names // nil: each account's mailbox has the account's name
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
