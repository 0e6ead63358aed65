package bridge

import (
	"context"

	"postern/bridge/inbox"
	"postern/proxy"
)

// Traits are what decides how POP3 can be served from an INBOX.
type Traits struct {
	UIDPlus       bool   // single messages can be removed: RFC 4315
	Move          bool   // RFC 6851
	Keywords      bool   // $POP3Deleted can be set
	ReadOnly      bool   // nothing can be deleted
	UIDNext       bool   // SELECT says it, so that a poll needs nothing else
	StatusUIDNext bool   // STATUS does
	Trash         string // the mailbox for deleted mail, RFC 6154; "": none
}

// Inspect logs l in and looks at INBOX. It changes nothing, and remembers
// nothing. An error is a *proxy.Refusal, or of the server.
func (b *Backend) Inspect(ctx context.Context, l *proxy.Login) (t Traits, err error) {
	conn, capabilities, err := b.LogIn(ctx, l)
	if err != nil {
		return Traits{}, err
	}
	in := inbox.New(conn, capabilities, inbox.Options{Timeout: b.timeout(), Keyword: hidden})
	defer func() { _ = in.Close() }()
	v, err := in.Open(ctx, false)
	if err != nil {
		return Traits{}, err
	}
	t.UIDPlus, t.Move, t.UIDNext = in.Traits().UIDPlus, in.Traits().Move, v.UIDNext != 0
	if v, err = in.Open(ctx, true); err != nil {
		return Traits{}, err
	}
	t.StatusUIDNext = v.UIDNext != 0
	t.Keywords, t.ReadOnly = in.Mailbox().Keyword, in.Mailbox().ReadOnly
	trash, err := in.TrashMailbox(ctx)
	t.Trash = string(trash)
	return t, err
}
