package service

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"slices"
	"time"

	"postern/configs"
	"postern/proxy"
	"postern/proxy/token"
	"postern/proxy/wire"
)

// CheckProvider gets a token of the provider name, and logs in with it as account at each
// backend that takes its tokens. account may be "": then nobody is logged in. What was
// found goes to out, a line each. CheckProvider reports whether all is right.
func CheckProvider(ctx context.Context, path, name, account string, out io.Writer) (bool, error) {
	cfg, store, err := load(path)
	if err != nil {
		return false, err
	}
	c, known := cfg.Providers[name]
	if !known {
		return false, fmt.Errorf("there is no provider %s; those of %s: %v", name, path, slices.Sorted(maps.Keys(cfg.Providers)))
	}
	g, err := build(cfg, New(cfg, store, slog.New(slog.DiscardHandler), nil))
	if err != nil {
		return false, err
	}
	for _, w := range cfg.ProviderWarnings(time.Now()) {
		_, _ = fmt.Fprintln(out, w.Warning())
	}
	if account == "" {
		if c.Kind == configs.ProviderGoogle {
			return false, errors.New("google gives a token for a mailbox: write an account behind the provider")
		}
		return checkToken(ctx, out, g.providers[name].Provider, "postmaster@"+c.Domains[0]), nil
	}
	r, mistakes := NewAccounts(cfg)
	if mistakes != nil {
		return false, mistakes
	}
	login := &proxy.Login{User: account, Mechanism: wire.MechanismPlain, Verified: true}
	if login.Account, err = r.Account(account); err != nil {
		return false, err
	}
	pools, err := g.newBackends()
	if err != nil {
		return false, err
	}
	right := true
	for _, backend := range slices.Sorted(maps.Keys(cfg.Backends)) {
		if cfg.Backends[backend].Token == name {
			right = g.checkLogins(ctx, out, backend, pools, c.Kind, login) && right
		}
	}
	return right, nil
}

// checkToken gets a token for a mailbox, and forgets it.
func checkToken(ctx context.Context, out io.Writer, p *token.Provider, mailbox string) bool {
	begun := time.Now()
	secret, err := p.Token(ctx, mailbox, false)
	secret.Clear()
	if err != nil {
		_, _ = fmt.Fprintf(out, "token: no: %v\n", err)
		return false
	}
	_, _ = fmt.Fprintf(out, "token: ok, from %s in %v\n", p.TokenURL, time.Since(begun).Round(time.Millisecond))
	return true
}

// checkLogins logs l in at each server of a backend. At IMAP it opens INBOX. No mail is sent
// or changed.
func (g *generation) checkLogins(ctx context.Context, out io.Writer, name string, pools backends, kind string, l *proxy.Login) bool {
	source, right := g.source(name), true
	if !source.Serves(l.Account) || !checkToken(ctx, out, source.Provider, source.Mailbox(l.Account, proxy.IMAP)) {
		if !source.Serves(l.Account) {
			_, _ = fmt.Fprintf(out, "token: no: providers.%s.domains does not have the domain of %s\n", source.Provider.Name, source.Mailbox(l.Account, proxy.IMAP))
		}
		return false
	}
	report := func(protocol string, err error) {
		mailbox := source.Mailbox(l.Account, protocol)
		switch refusal, refused := errors.AsType[*proxy.Refusal](err); {
		case err == nil:
			_, _ = fmt.Fprintf(out, "backend %s, %s as %s: ok\n", name, protocol, mailbox)
			return
		case refused:
			_, _ = fmt.Fprintf(out, "backend %s, %s as %s: the login is refused: %v\n", name, protocol, mailbox, refusal)
		default:
			_, _ = fmt.Fprintf(out, "backend %s, %s as %s: the login is accepted, and INBOX cannot be opened: %v\n", name, protocol, mailbox, err)
		}
		right = false
		for _, line := range remedies(kind, protocol, mailbox) {
			_, _ = fmt.Fprintf(out, "  %s\n", line)
		}
	}
	if pool := pools.imap[name]; pool != nil {
		own := *l
		own.Client.Protocol = proxy.IMAP
		_, err := g.newBridge(name, pool, g.cfg.POP3).Inspect(ctx, &own)
		report(proxy.IMAP, err)
	}
	if pool := pools.submission[name]; pool != nil {
		own := *l
		own.Client.Protocol = proxy.Submission
		report(proxy.Submission, pool.TryLogin(ctx, &own))
	}
	if pool := pools.sieve[name]; pool != nil {
		own := *l
		own.Client.Protocol = proxy.Sieve
		report(proxy.Sieve, pool.TryLogin(ctx, &own))
	}
	return right
}

// remedies returns what most often mends a login that a provider's mail server refuses.
func remedies(kind, protocol, mailbox string) []string {
	switch {
	case kind == configs.ProviderMicrosoft && protocol == proxy.Submission:
		return []string{
			"is SMTP AUTH on? Set-CASMailbox " + mailbox + " -SmtpClientAuthenticationDisabled $false",
			`may the application send? New-ManagementRoleAssignment -Role "Application SMTP.SendAsApp" -App OBJECT_ID -CustomResourceScope SCOPE`,
		}
	case kind == configs.ProviderMicrosoft:
		return []string{
			"may the application open the mailbox? Add-MailboxPermission -Identity " + mailbox + " -User OBJECT_ID -AccessRights FullAccess",
			"is IMAP on? Set-CASMailbox " + mailbox + " -ImapEnabled $true",
			"is the application known to Exchange? New-ServicePrincipal -AppId CLIENT_ID -ObjectId OBJECT_ID, with the object id of the enterprise application",
		}
	case kind == configs.ProviderGoogle:
		return []string{"is IMAP on for the user, and is the scope https://mail.google.com/ delegated to the service account in the admin console?"}
	}
	return nil
}
