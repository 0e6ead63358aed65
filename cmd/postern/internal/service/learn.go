package service

import (
	"context"

	"postern/bridge"
	"postern/bridge/oldserver"
	"postern/bridge/uidl"
	"postern/proxy"
	"postern/proxy/backend"
)

// newLearner returns what takes over the UIDLs of the old server, or nil if pop3.learn_from
// is not set.
func (g *generation) newLearner(b backends) *bridge.Learner {
	pool := b.pop3[g.cfg.POP3.LearnFrom]
	if pool == nil {
		return nil
	}
	return &bridge.Learner{
		Wait: g.cfg.POP3.LearnWait,
		LogIn: func(ctx context.Context, l *proxy.Login) (bridge.OldMaildrop, error) {
			conn, err := pool.LoginPOP3(ctx, l)
			if err != nil {
				return nil, err
			}
			return &oldMaildrop{conn: conn, server: oldserver.Server{Timeout: g.cfg.Timeouts.Backend}}, nil
		},
	}
}

// An oldMaildrop is a session with the old server, just after the login.
type oldMaildrop struct {
	server  oldserver.Server
	conn    *backend.Conn       // nil: session has it, or it is closed
	session *oldserver.Maildrop // nil: it is not listed yet
}

// Carry implements bridge.OldMaildrop.
func (o *oldMaildrop) Carry(ctx context.Context, in *bridge.Reader, f uidl.Format) (r *uidl.Record, old, found int, err error) {
	conn := o.conn
	o.conn = nil
	if o.session, err = o.server.Attach(ctx, conn); err != nil {
		return nil, 0, 0, err
	}
	record, report, err := oldserver.Carry(ctx, o.session, InboxOf(in), f, 0)
	return record, report.Old, report.Found(), err
}

// Close implements bridge.OldMaildrop.
func (o *oldMaildrop) Close() error {
	switch {
	case o.session != nil:
		return o.session.Close()
	case o.conn != nil:
		return o.conn.Close()
	}
	return nil
}
