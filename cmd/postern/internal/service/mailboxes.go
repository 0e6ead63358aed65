package service

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"sync"

	"postern/bridge"
	"postern/bridge/oldserver"
	"postern/bridge/uidl"
	"postern/configs"
	"postern/proxy"
	"postern/proxy/state"
	"postern/proxy/wire"
)

// Mailboxes are the INBOXes behind a configuration, for a command. Its methods may be
// called by several goroutines. They store nothing.
type Mailboxes struct {
	generation *generation
	pools      backends
	routing    *routing
	mu         sync.Mutex // held while generation makes a bridge
}

// OpenMailboxes returns the INBOXes behind cfg. It does not connect.
func OpenMailboxes(cfg *configs.Config) (*Mailboxes, error) {
	g := newGeneration(cfg, New(cfg, nil, slog.New(slog.DiscardHandler), nil))
	if err := g.setPOP3(); err != nil {
		return nil, err
	}
	pools, err := g.newBackends()
	if err != nil {
		return nil, err
	}
	r, err := g.newRouting()
	if err != nil {
		return nil, err
	}
	return &Mailboxes{generation: g, pools: pools, routing: r}, nil
}

// A Mailbox is one INBOX.
type Mailbox struct {
	Account string // of the record
	Backend string
	bridge  *bridge.Backend
	login   *proxy.Login
}

// Find returns the INBOX of a user, as routes and accounts of the configuration say. The
// login there is as, with the secret: the user, or a master user on behalf of the user.
func (m *Mailboxes) Find(ctx context.Context, user, as string, secret *proxy.Secret) (*Mailbox, error) {
	// A session clears its secret, and a master user has more.
	login := &proxy.Login{Mechanism: wire.MechanismPlain, User: user, Secret: proxy.NewSecret(secret.Reveal())}
	login.Client.Protocol = proxy.POP3
	account, err := m.routing.accounts.Account(user)
	if err != nil {
		return nil, err
	}
	login.Account = account
	choice, err := m.routing.rules.Route(ctx, login)
	if err != nil {
		return nil, err
	}
	name := choice.Backend
	if m.pools.imap[name] == nil {
		return nil, fmt.Errorf("backend %s of %s has no imap server", name, account)
	}
	if as != user {
		login.Account = as
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	b := m.generation.newBridge(name, m.pools.imap[name], m.generation.cfg.POP3)
	m.generation.bridges = nil
	b.Brake, b.Delay, b.Locks, b.Listings, b.Observer, b.KeepUnseen = nil, nil, nil, nil, nil, true
	return &Mailbox{Account: account, Backend: name, bridge: b, login: login}, nil
}

// Format returns the format of new messages' UIDLs.
func (m *Mailbox) Format() uidl.Format { return m.bridge.UIDL }

// Read logs in and lists the INBOX.
func (m *Mailbox) Read(ctx context.Context) (*bridge.Reader, error) {
	r, err := m.bridge.Read(ctx, m.login)
	if err != nil {
		return nil, fmt.Errorf("INBOX of %s on backend %s: %w", m.Account, m.Backend, err)
	}
	return r, nil
}

// Show logs in and serves the INBOX on the connection that it returns as POP3 clients see
// it after login, with the UIDLs of record; nil: there is none. The session ends with the
// connection or ctx.
func (m *Mailbox) Show(ctx context.Context, record *uidl.Record) (net.Conn, error) {
	kept := new(state.Memory)
	if record != nil {
		if err := bridge.Import(ctx, kept, bridge.AccountRecord{Account: m.login.Account, Record: record}); err != nil {
			return nil, err
		}
	}
	m.bridge.Record = kept
	session, err := m.bridge.Login(ctx, m.login)
	if err == nil {
		if _, err = session.Open(ctx); err != nil {
			_ = session.Close()
		}
	}
	if err != nil {
		return nil, fmt.Errorf("INBOX of %s on backend %s: %w", m.Account, m.Backend, err)
	}
	client, server := net.Pipe()
	go func() {
		defer func() { _ = server.Close() }()
		defer func() { _ = session.Close() }()
		conn := proxy.NewConn(server, m.login.Client, nil, 0)
		defer context.AfterFunc(ctx, func() { conn.Interrupt(context.Cause(ctx)) })()
		_ = session.Run(ctx, conn)
	}()
	return client, nil
}

// InboxOf returns an INBOX for package oldserver.
func InboxOf(r *bridge.Reader) oldserver.Inbox {
	return oldserver.Inbox{
		UIDValidity: r.UIDValidity, UIDNext: r.UIDNext, UIDs: r.UIDs, Side: oldserver.NewSide(r.Sizes, r.Headers, r.Contents),
	}
}
