package service

import (
	"context"

	"postern/bridge"
	"postern/bridge/oldserver"
	"postern/bridge/uidl"
	"postern/proxy"
	"postern/proxy/backend"
)

// A learnerOf is the learner of the unique-ids of an old server. All listeners share it, and
// so does the next generation, if it has the same server: an account is learnt once at a time.
type learnerOf struct {
	*bridge.Learner
	server *backend.Pool
}

// learner returns what takes over the UIDLs of the old server, or nil if pop3.learn_from
// is not set.
func (g *generation) learner(b backends) *bridge.Learner {
	pool, wait := b.pop3[g.cfg.POP3.LearnFrom], g.cfg.POP3.LearnWait
	if pool == nil {
		return nil
	}
	if known := g.pop3.learner; known.server == pool && known.Wait == wait {
		return known.Learner
	}
	timeout := g.cfg.Timeouts.Backend
	g.pop3.learner = learnerOf{server: pool, Learner: &bridge.Learner{
		Wait: wait,
		LogIn: func(ctx context.Context, l *proxy.Login) (bridge.OldMaildrop, error) {
			conn, err := pool.LoginPOP3(ctx, l)
			if err != nil {
				return nil, err
			}
			return &oldMaildrop{conn: conn, server: oldserver.Server{Timeout: timeout}}, nil
		},
	}}
	return g.pop3.learner.Learner
}

// An oldMaildrop is a session with the old server, just after the login.
type oldMaildrop struct {
	server  oldserver.Server
	conn    *backend.Conn       // nil: session has it, or it is closed
	session *oldserver.Maildrop // nil: it is not listed yet
}

// Carry implements bridge.OldMaildrop.
func (o *oldMaildrop) Carry(ctx context.Context, in *bridge.Reader, f uidl.Format, kept []byte, save func([]byte)) (r *uidl.Record, old, found int, err error) {
	conn := o.conn
	o.conn = nil
	if o.session, err = o.server.Attach(ctx, conn); err != nil {
		return nil, 0, 0, err
	}
	headers, err := oldserver.DecodeHeaders(kept)
	if err != nil {
		headers = new(oldserver.Headers) // there are none, or they are read again
	}
	known := headers.Len()
	o.session.Keep(headers, func() { save(headers.Encode()) })
	if err := o.session.Meanwhile(func() error { return in.List(ctx) }); err != nil {
		return nil, 0, 0, err
	}
	record, report, err := oldserver.Carry(ctx, o.session, InboxOf(in), f, 0)
	if err == nil {
		err = report.Copied()
	}
	if err != nil && headers.Len() != known {
		save(headers.Encode())
	}
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
