package bridge

import (
	"context"

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
	conn, capabilities, err := b.Dial(ctx, l)
	if err != nil {
		return Traits{}, err
	}
	in := newInbox(conn, capabilities, b.timeout())
	defer func() { _ = in.close() }()
	v, err := in.look(ctx, false)
	if err != nil {
		return Traits{}, err
	}
	t.UIDPlus, t.Move, t.UIDNext = in.uidPlus, in.moves, v.uidNext != 0
	if v, err = in.look(ctx, true); err != nil {
		return Traits{}, err
	}
	t.StatusUIDNext = v.uidNext != 0
	t.Keywords, t.ReadOnly = in.link.responses.mailbox.keywords, in.link.responses.mailbox.readOnly
	trash, err := in.trash(ctx)
	t.Trash = string(trash)
	return t, err
}
