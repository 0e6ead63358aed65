package service

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/url"
	"slices"
	"strings"
	"time"

	"postern/configs"
	"postern/proxy"
	"postern/proxy/backend"
	"postern/proxy/certs"
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
	if _, known := cfg.Providers[name]; !known {
		return false, fmt.Errorf("there is no provider %s; those of %s: %v", name, path, slices.Sorted(maps.Keys(cfg.Providers)))
	}
	return checkProvider(ctx, cfg, store, name, account, out)
}

func checkProvider(ctx context.Context, cfg *configs.Config, store *certs.Store, name, account string, out io.Writer) (bool, error) {
	c := cfg.Providers[name]
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
		check := &tokenCheck{out: out, config: c, provider: g.providers[name].Provider}
		return check.token(ctx, "postmaster@"+c.Domains[0]), nil
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
	for _, takes := range slices.Sorted(maps.Keys(cfg.Backends)) {
		if cfg.Backends[takes].Token == name {
			right = g.checkLogins(ctx, out, takes, pools, login) && right
		}
	}
	return right, nil
}

// A tokenCheck tries the tokens of a provider, and writes what it finds to out.
type tokenCheck struct {
	out      io.Writer
	config   configs.Provider
	provider *token.Provider
	claims   token.Claims // of the last token, if it is one of Entra's
}

func (c *tokenCheck) printf(format string, args ...any) { _, _ = fmt.Fprintf(c.out, format, args...) }

// token gets a token for a mailbox, and forgets it.
func (c *tokenCheck) token(ctx context.Context, mailbox string) bool {
	begun := time.Now()
	secret, _, err := c.provider.Token(ctx, mailbox, false)
	defer secret.Clear()
	if err != nil {
		c.printf("token: no: %v\n", err)
		return false
	}
	c.printf("token: ok, from %s in %v\n", c.provider.TokenURL, time.Since(begun).Round(time.Millisecond))
	claims, ok := token.ReadClaims(secret)
	if !ok || c.config.Kind != configs.ProviderMicrosoft {
		return true
	}
	c.claims = claims
	c.printf("  of the application %s; object id of the enterprise application: %s\n", claims.Application, claims.ObjectID)
	if !c.mayIMAP() {
		c.printf("  warning: without the permission IMAP.AccessAsApp, IMAP and POP3 are refused: %s\n", c.consent())
	}
	if slices.Contains(claims.Permissions, "SMTP.SendAsApp") {
		c.printf("  note: with the permission SMTP.SendAsApp from Entra, Exchange looks at the permissions of the mailbox instead of a management scope\n")
	}
	return true
}

// mayIMAP reports whether the last token has the permission for IMAP, or does not say.
func (c *tokenCheck) mayIMAP() bool {
	return c.claims.Application == "" || slices.Contains(c.claims.Permissions, "IMAP.AccessAsApp")
}

// consent returns what gives the application its permissions.
func (c *tokenCheck) consent() string {
	return fmt.Sprintf("add it in Entra (App registrations, %s, API permissions, APIs my organization uses, Office 365 Exchange Online, Application permissions), "+
		"then consent: https://login.microsoftonline.com/%s/adminconsent?client_id=%s", c.config.ClientID, url.PathEscape(c.config.Tenant), url.QueryEscape(c.config.ClientID))
}

// checkLogins logs l in at each server of a backend. At IMAP it opens INBOX. No mail is sent
// or changed.
func (g *generation) checkLogins(ctx context.Context, out io.Writer, name string, pools backends, l *proxy.Login) bool {
	source, right := g.source(name), true
	check := &tokenCheck{out: out, config: g.cfg.Providers[source.Provider.Name], provider: source.Provider}
	if !source.Serves(l.Account) {
		check.printf("token: no: providers.%s.domains does not have the domain of %s\n", source.Provider.Name, source.Mailbox(l.Account, proxy.IMAP))
		return false
	}
	report := func(protocol string, err error) {
		mailbox := source.Mailbox(l.Account, protocol)
		_, refused := errors.AsType[*proxy.Refusal](err)
		switch {
		case err == nil:
			check.printf("backend %s, %s as %s: ok\n", name, protocol, mailbox)
			return
		case refused && !errors.Is(err, backend.ErrNoMailbox):
			check.printf("backend %s, %s as %s: the login is refused: %v\n", name, protocol, mailbox, err)
		default:
			check.printf("backend %s, %s as %s: the login is accepted, and INBOX cannot be opened: %v\n", name, protocol, mailbox, err)
		}
		right = false
		for _, line := range check.remedies(protocol, mailbox, err) {
			check.printf("  %s\n", line)
		}
	}
	if !check.token(ctx, source.Mailbox(l.Account, proxy.IMAP)) {
		return false
	}
	if pool := pools.imap[name]; pool != nil {
		own := *l
		own.Client.Protocol = proxy.IMAP
		_, err := g.newBridge(name, pool, g.cfg.POP3).Inspect(ctx, &own)
		report(proxy.IMAP, err)
	}
	for _, pool := range []*backend.Pool{pools.submission[name], pools.sieve[name]} {
		if pool != nil {
			own := *l
			own.Client.Protocol = pool.Protocol
			report(pool.Protocol, pool.TryLogin(ctx, &own))
		}
	}
	return right
}

// remedies returns what mends a login that the provider's mail server refuses with err.
func (c *tokenCheck) remedies(protocol, mailbox string, err error) []string {
	switch c.config.Kind {
	case configs.ProviderMicrosoft:
		return c.microsoftRemedies(protocol, powerShell(mailbox), err)
	case configs.ProviderGoogle:
		return googleRemedies(err)
	}
	return nil
}

func (c *tokenCheck) microsoftRemedies(protocol, mailbox string, err error) []string {
	object := "OBJECT_ID"
	known := "the application has to be known to Exchange (object id of the enterprise application): "
	if c.claims.ObjectID != "" {
		object, known = c.claims.ObjectID, "the application has to be known to Exchange: "
	}
	known += fmt.Sprintf("New-ServicePrincipal -AppId %s -ObjectId %s", powerShell(c.config.ClientID), object)
	fullAccess := fmt.Sprintf("the application may open the mailbox after: Add-MailboxPermission -Identity %s -User %s -AccessRights FullAccess", mailbox, object)
	imapOn := fmt.Sprintf("IMAP has to be on: Set-CASMailbox -Identity %s -ImapEnabled $true", mailbox)
	smtpOn := fmt.Sprintf("SMTP AUTH has to be on for the mailbox: Set-CASMailbox -Identity %s -SmtpClientAuthenticationDisabled $false", mailbox)
	switch {
	case errors.Is(err, backend.ErrTenantSMTPOff):
		return []string{smtpOn, "or for all of the tenant: Set-TransportConfig -SmtpClientAuthenticationDisabled $false"}
	case errors.Is(err, backend.ErrSMTPOff):
		return []string{smtpOn}
	case errors.Is(err, backend.ErrPolicy):
		return []string{"security defaults, conditional access or an authentication policy: the service principal sign-ins in Entra (Monitoring, Sign-in logs) name it", smtpOn}
	case errors.Is(err, backend.ErrThrottled) && protocol == proxy.Submission:
		return []string{"wait a few minutes: Exchange takes 3 connections at a time and 30 messages a minute for a mailbox"}
	case errors.Is(err, backend.ErrThrottled):
		return []string{"wait a few minutes: nothing is to be mended if it then passes"}
	case errors.Is(err, backend.ErrNoMailbox):
		return []string{fullAccess, imapOn, "both can take an hour to count; Exchange also answers so while it throttles"}
	case errors.Is(err, backend.ErrTokenRefused) && protocol == proxy.Submission:
		return []string{
			known,
			fmt.Sprintf(`the application may send after: New-ManagementRoleAssignment -Role "Application SMTP.SendAsApp" -App %s -CustomResourceScope SCOPE`, object),
			fmt.Sprintf("whether the mailbox is in the scope: Test-ServicePrincipalAuthorization -Identity %s -Resource %s", object, mailbox),
		}
	case errors.Is(err, backend.ErrTokenRefused) && !c.mayIMAP():
		return []string{"the permission IMAP.AccessAsApp is missing: " + c.consent()}
	case errors.Is(err, backend.ErrTokenRefused):
		return []string{known, fmt.Sprintf("the mailbox has to exist: Get-EXOMailbox -Identity %s", mailbox), fullAccess}
	}
	return nil
}

func googleRemedies(err error) []string {
	const console = "admin.google.com, Apps, Google Workspace, Gmail, "
	switch {
	case errors.Is(err, backend.ErrThrottled):
		return []string{"Gmail takes 15 connections at a time for a user, and gives 2,500 MB a day by IMAP: wait, or let fewer programs poll"}
	case errors.Is(err, backend.ErrWebLogin):
		return []string{"log in as the user at https://mail.google.com once, and answer what Google asks"}
	case errors.Is(err, backend.ErrIMAPOff):
		return []string{"switch IMAP on: " + console + "End User Access, POP and IMAP access"}
	case errors.Is(err, backend.ErrTokenRefused):
		return []string{token.DelegationAdvice, "Gmail has to be on for the user: " + console + "Service status"}
	}
	return nil
}

// powerShell returns s as an argument of a command of PowerShell.
func powerShell(s string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("@._-", r)
	}
	if s != "" && !strings.HasPrefix(s, "-") && !strings.HasPrefix(s, "@") && !strings.ContainsFunc(s, func(r rune) bool { return !plain(r) }) {
		return s
	}
	return "'" + strings.ReplaceAll(visible(s), "'", "''") + "'"
}
