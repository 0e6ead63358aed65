package service

import (
	"context"
	"fmt"
	"io"
	"net"
	"slices"

	"postern/bridge"
	"postern/configs"
	"postern/proxy"
	"postern/proxy/backend"
	"postern/proxy/wire"
)

// route returns the name of the backend of user, and a login for it.
func (g *generation) route(ctx context.Context, user string, secret *proxy.Secret) (name string, login *proxy.Login, err error) {
	r, err := g.newRouting()
	if err != nil {
		return "", nil, err
	}
	login = &proxy.Login{Mechanism: wire.MechanismPlain, User: user, Secret: secret}
	login.Client.Protocol = proxy.POP3
	if login.Account, err = r.accounts.Account(user); err != nil {
		return "", nil, fmt.Errorf("--user: %w", err)
	}
	choice, err := r.rules.Route(ctx, login)
	return choice.Backend, login, err
}

// mailboxBackend returns the bridge for the user's POP3 sessions, and the user's login
// there. The bridge of a listener may differ in delete and lock.
func (g *generation) mailboxBackend(ctx context.Context, pools backends, user string, secret *proxy.Secret) (*bridge.Backend, *proxy.Login, error) {
	name, login, err := g.route(ctx, user, secret)
	if err != nil {
		return nil, nil, err
	}
	if pools.imap[name] == nil {
		return nil, nil, fmt.Errorf("backend %s of %s has no imap server", name, login.Account)
	}
	return g.newBridge(name, pools.imap[name], g.cfg.POP3), login, nil
}

// inspectINBOX writes to out what POP3 misses in the INBOX of user, and the
// consequences.
func (g *generation) inspectINBOX(ctx context.Context, out io.Writer, user string, secret *proxy.Secret) error {
	pools, err := g.newBackends()
	if err != nil {
		return err
	}
	b, login, err := g.mailboxBackend(ctx, pools, user, secret)
	if err != nil {
		return err
	}
	unauthenticates := false
	dial := b.LogIn
	b.LogIn = func(ctx context.Context, l *proxy.Login) (net.Conn, string, error) {
		conn, capabilities, err := dial(ctx, l)
		if c, ok := conn.(*backend.Conn); ok && c.Unauthenticates() {
			unauthenticates = true
		}
		return conn, capabilities, err
	}
	traits, err := b.Inspect(ctx, login)
	if err != nil {
		return fmt.Errorf("INBOX of %s on backend %s: %w", login.Account, b.Name, err)
	}
	lacks := missingFeatures(traits, g.cfg, b.Name)
	_, _ = fmt.Fprintf(out, "INBOX of %s on backend %s:\n", login.Account, b.Name)
	if len(lacks) == 0 {
		_, _ = io.WriteString(out, "  nothing is missing that POP3 could use\n")
	}
	for _, line := range lacks {
		_, _ = fmt.Fprintf(out, "  %s\n", line)
	}
	if unauthenticates {
		_, _ = io.WriteString(out, "  warning: the server offers UNAUTHENTICATE (RFC 8437) to this user: IMAP sessions are watched for it and lose COMPRESS;\n"+
			"  switch it off there if that can be done (docs/backends.md)\n")
	}
	return nil
}

// missingFeatures returns a line for each feature that POP3 misses in an INBOX with
// traits t on a backend.
func missingFeatures(t bridge.Traits, cfg *configs.Config, backend string) (lines []string) {
	say := func(format string, args ...any) { lines = append(lines, fmt.Sprintf(format, args...)) }
	deletes := func(words ...string) bool {
		return slices.ContainsFunc(cfg.Listeners, func(l configs.Listener) bool {
			return l.Protocol == proxy.POP3 && slices.Contains(words, cfg.POP3For(l, backend).Delete)
		})
	}
	if t.ReadOnly {
		say("it can only be read: POP3 deletes nothing")
	}
	flags := !t.UIDPlus && (deletes("expunge") || !t.Move && deletes("trash"))
	if flags {
		say("no UIDPLUS: what POP3 deletes is marked and hidden from POP3, and freed when another client expunges")
	}
	switch {
	case flags && cfg.State.Path == "" && t.Keywords:
		say("no UIDPLUS, and state.path is not set: the keyword $POP3Deleted hides what POP3 deletes")
	case flags && cfg.State.Path == "":
		say("no UIDPLUS, no keywords, and state.path is not set: POP3 shows again what it has deleted")
	}
	if !t.UIDPlus && deletes("isolate") {
		say("no UIDPLUS: delete: isolate removes with EXPUNGE, and what another client marks in that moment")
	}
	if !t.Keywords && deletes("hide") {
		say("no keywords: with delete: hide logins to POP3 are refused")
	}
	if t.Trash == "" && deletes("trash") {
		say(`no \Trash mailbox: with delete: trash nothing can be deleted`)
	}
	switch {
	case !t.UIDNext && !t.StatusUIDNext:
		say("no UIDNEXT: each POP3 poll asks for the newest message, and all of them when the mailbox has changed")
	case !t.UIDNext:
		say("no UIDNEXT in SELECT: each POP3 poll asks STATUS, too")
	}
	return lines
}
