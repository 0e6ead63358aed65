package service

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"

	"postern/configs"
	"postern/proxy"
	"postern/proxy/backend"
)

// ProbeErrors are why servers cannot be used, one each.
type ProbeErrors []error

// Error returns the errors, one a line.
func (e ProbeErrors) Error() string {
	lines := make([]string, len(e))
	for i, err := range e {
		lines[i] = err.Error()
	}
	return strings.Join(lines, "\n")
}

// A probed is a server and the result of its probe.
type probed struct {
	*backend.Server
	report backend.Report
	took   time.Duration
	err    error
}

// probe connects to each server of all backends and reports its properties. With o.User
// it logs that user in at the servers of the user's backend.
func (g *generation) probe(ctx context.Context, out io.Writer, o CheckOptions) error {
	var all []*probed
	for _, key := range slices.SortedFunc(maps.Keys(g.pools), poolKey.compare) {
		for _, s := range g.pools[key].Members {
			all = append(all, &probed{Server: s})
		}
	}
	var probing sync.WaitGroup
	for _, p := range all {
		probing.Go(func() {
			begun := time.Now()
			p.report, p.err = p.Probe(ctx)
			p.took = time.Since(begun)
		})
	}
	probing.Wait()

	var errs ProbeErrors
	usable, advised := map[string]bool{}, map[string]bool{}
	for _, p := range all {
		if p.err != nil {
			errs = append(errs, locate(p.Server, p.err))
			continue
		}
		usable[p.Name+" "+p.Protocol] = true
		describe(out, p)
		for _, line := range g.differences(p) {
			_, _ = fmt.Fprintf(out, "  %s\n", line)
		}
		for _, advice := range []string{advise(p.Server, p.report), adviseTokens(p.report)} {
			if !advised[advice] {
				_, _ = io.WriteString(out, advice)
				advised[advice] = true
			}
		}
	}
	errs = append(errs, g.tryProviders(ctx, out)...)
	if o.User != "" {
		if err := g.tryLogins(ctx, out, o, usable); err != nil {
			errs = append(errs, err)
		}
	}
	if errs == nil {
		return nil
	}
	return errs
}

// tryProviders gets a token of each provider whose tokens are for no single mailbox.
func (g *generation) tryProviders(ctx context.Context, out io.Writer) (errs ProbeErrors) {
	for _, name := range slices.Sorted(maps.Keys(g.cfg.Providers)) {
		c := g.cfg.Providers[name]
		_, _ = fmt.Fprintf(out, "provider %s, %s at %s\n", name, c.Kind, TokenURL(c))
		if c.Kind == configs.ProviderGoogle {
			_, _ = fmt.Fprintf(out, "  not tried: Google gives a token for a mailbox: postern provider check %s MAILBOX\n", name)
			continue
		}
		check := &tokenCheck{out: out, config: c, provider: g.providers[name].Provider}
		if !check.token(ctx, "postmaster@"+c.Domains[0]) {
			errs = append(errs, g.cfg.Errorf("providers."+name, "gives no token, as reported above"))
		}
	}
	return errs
}

// locate returns err of a probe with the place of the setting in front.
func locate(s *backend.Server, err error) error {
	if fault, ok := errors.AsType[*backend.ConnectError](err); ok && fault.Advice.Where != "" {
		return fmt.Errorf("%s: backend %s, %s at %s: %s", fault.Advice.Where, s.Name, s.Protocol, s.Address, fault.Message())
	}
	return err
}

func describe(out io.Writer, p *probed) {
	version := "no TLS"
	if p.report.TLS != 0 {
		version = tls.VersionName(p.report.TLS)
	}
	_, _ = fmt.Fprintf(out, "backend %s, %s at %s: %s, answered in %v\n  greeting:     %s\n  kind:         %s\n  capabilities: %s\n  mechanisms:   %s\n",
		p.Name, p.Protocol, p.Address, version, p.took.Round(time.Millisecond),
		visible(p.report.Greeting), kindOf(p.Server, p.report), visible(strings.Join(p.report.Capabilities, ", ")), visible(strings.Join(p.report.Mechanisms, " ")))
}

// visible returns a text of a server without the control characters that a terminal obeys.
func visible(text string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return '?'
		}
		return r
	}, text)
}

// kindOf returns the kind by which Postern interprets the server's answers to passwords,
// with a note if the kind is a guess.
func kindOf(s *backend.Server, r backend.Report) string {
	switch {
	case s.Kind != backend.Guessed:
		return s.Kind.String()
	case r.Kind == backend.Other:
		return fmt.Sprintf("not known (backends.%s.%s.kind says what it is)", s.Name, s.Protocol)
	}
	return r.Kind.String() + " (guessed)"
}

// differences returns a line for each thing that the server offers and the configuration
// does not use, or that the configuration wants and the server does not offer.
func (g *generation) differences(p *probed) (lines []string) {
	say := func(key, format string, args ...any) {
		at := g.cfg.Errorf(fmt.Sprintf("backends.%s.%s.%s", p.Name, p.Protocol, key), format, args...)
		lines = append(lines, at.Warning())
	}
	c := serverOf(g.cfg, p.Name, p.Protocol)
	offers := func(word string) bool {
		return slices.ContainsFunc(p.report.Capabilities, func(line string) bool {
			first, _, _ := strings.Cut(line, " ")
			return strings.EqualFold(first, word)
		})
	}
	if c.Identity == configs.IdentityNone {
		switch {
		case (p.Protocol == proxy.Submission || p.Protocol == proxy.Sieve) && offers("XCLIENT"):
			say("identity", "the server offers XCLIENT to Postern, and identity is none: with identity: xclient it sees the client's address, and not Postern's")
		case p.Protocol == proxy.IMAP && p.report.Kind == backend.Dovecot && offers("ID"):
			say("identity", "Dovecot takes the client's address from ID, and identity is none: write identity: id, and set login_trusted_networks there")
		}
	}
	if strings.HasPrefix(c.Identity, configs.IdentityXCLIENT) && !p.report.Identified {
		say("identity", "the server does not offer XCLIENT to Postern, and identity is %s: it takes Postern for the client", c.Identity)
	}
	if p.Protocol == proxy.POP3 && c.Kind == "" && p.report.Kind == backend.Other && !offers("AUTH-RESP-CODE") {
		say("kind", "the server does not say by a code which password is wrong, and its software is not known: wrong passwords are told as temporary failures until kind: names it")
	}
	if p.Protocol == proxy.Sieve && c.Kind == "" && p.report.Kind == backend.Other {
		say("kind", "ManageSieve has no code for a wrong password, and the server's software is not known: wrong passwords are told as temporary failures until kind: names it")
	}
	startTLS := "STARTTLS"
	if p.Protocol == proxy.POP3 {
		startTLS = "STLS"
	}
	if c.TLS == "none" && !isLoopback(p.Address) && offers(startTLS) {
		say("tls", "the server offers %s, and tls is none: passwords cross the network readable", startTLS)
	}
	return lines
}

// isLoopback reports whether the host of address is this machine.
func isLoopback(address string) bool {
	host, _, _ := strings.Cut(address, ":")
	if at, err := netip.ParseAddrPort(address); err == nil {
		return at.Addr().Unmap().IsLoopback()
	}
	return strings.EqualFold(host, "localhost") // RFC 6761 section 6.3
}

// tryLogins logs o.User in once at each protocol of the user's backend, with a token if the
// backend takes tokens, and looks at the INBOX for POP3. A wrong password is not tried twice. usable has the names and protocols
// of backends with a server that answers.
func (g *generation) tryLogins(ctx context.Context, out io.Writer, o CheckOptions, usable map[string]bool) error {
	pools, err := g.newBackends()
	if err != nil {
		return err
	}
	name, login, err := g.route(ctx, o.User, nil)
	if err != nil {
		return err
	}
	if g.cfg.Backends[name].Token != "" {
		login.Verified = true // no password is asked for: Postern checks those of clients itself
		if !g.checkLogins(ctx, out, name, pools, login) {
			return fmt.Errorf("login of %s on backend %s: not right, as reported above", login.Account, name)
		}
		return nil
	}
	secret, err := o.Password()
	if err != nil {
		return err
	}
	defer secret.Clear()
	login.Secret = secret
	old := g.cfg.OldServer(name)
	var accepted []string
	if pools.imap[name] != nil && usable[name+" "+proxy.IMAP] {
		if err := g.inspectINBOX(ctx, out, o.User, secret); err != nil {
			return explainLogin(err)
		}
		accepted = append(accepted, "imap")
	}
	if pools.pop3[old] != nil && usable[old+" "+proxy.POP3] {
		login.Client.Protocol = proxy.POP3
		if err := pools.pop3[old].TryLogin(ctx, login); err != nil {
			return explainLogin(fmt.Errorf("login of %s: %w", login.Account, err))
		}
		accepted = append(accepted, "pop3 (of backend "+old+": the old server; nothing was retrieved or deleted)")
	}
	if pools.submission[name] != nil && usable[name+" "+proxy.Submission] {
		login.Client.Protocol = proxy.Submission
		if err := pools.submission[name].TryLogin(ctx, login); err != nil {
			return explainLogin(fmt.Errorf("login of %s: %w", login.Account, err))
		}
		accepted = append(accepted, "submission (AUTH, then QUIT: no mail was sent)")
	}
	if pools.sieve[name] != nil && usable[name+" "+proxy.Sieve] {
		login.Client.Protocol = proxy.Sieve
		if err := pools.sieve[name].TryLogin(ctx, login); err != nil {
			return explainLogin(fmt.Errorf("login of %s: %w", login.Account, err))
		}
		accepted = append(accepted, "sieve (AUTHENTICATE, then LOGOUT: no script was read or changed)")
	}
	if accepted == nil {
		return fmt.Errorf("login of %s: not tried, as no server of backend %s can be used", login.Account, name)
	}
	_, _ = fmt.Fprintf(out, "login of %s on backend %s: accepted by %s\n", login.Account, name, strings.Join(accepted, " and "))
	return nil
}

// explainLogin adds to the error of a login what the attempt costs at the backend.
func explainLogin(err error) error {
	r, ok := errors.AsType[*proxy.Refusal](err)
	switch {
	case ok && r.Reason == proxy.Wrong:
		return fmt.Errorf("%w; this attempt counts there as a wrong password (delays, fail2ban), and no other was made", err)
	case ok && r.Doubtful:
		return fmt.Errorf("%w; this attempt may count there as a wrong password (delays, fail2ban), and no other was made", err)
	}
	return err
}
