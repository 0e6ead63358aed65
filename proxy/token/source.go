package token

import (
	"context"
	"math/rand/v2"
	"slices"
	"time"

	"postern/proxy"
)

// A Source has the tokens of a Provider for the accounts of a backend. It is the
// backend.Credentials of the backend's servers.
type Source struct {
	Provider *Provider
	Names    *Names // nil: each account's mailbox has the account's name
}

// Credentials returns the mailbox of account at servers of a protocol, a token for it,
// and when a session with the token should end; zero: the servers let it go on. Errors are
// as for Provider.Token.
func (s *Source) Credentials(ctx context.Context, account, protocol string, force bool) (user string, token *proxy.Secret, until time.Time, err error) {
	user = s.Mailbox(account, protocol)
	token, ends, err := s.Provider.Token(ctx, user, force)
	if err == nil && s.Provider.EndsSessions {
		until = sessionEnd(time.Now(), ends)
	}
	return user, token, until, err
}

// sessionEnd returns when a session ends that begins now with a token that lasts until
// ends: after 70 to 95 % of that time. So sessions that began together do not end
// together, and they end with a goodbye, before the server ends them.
func sessionEnd(now, ends time.Time) time.Time {
	left := max(0, ends.Sub(now))
	return now.Add(left*7/10 + rand.N(left/4+1))
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
