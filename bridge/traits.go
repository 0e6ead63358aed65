package bridge

import (
	"context"

	"postern/bridge/inbox"
	"postern/proxy"
)

// Traits are the properties of a server and an INBOX that decide how to serve POP3.
type Traits struct {
	UIDPlus       bool   // RFC 4315: UID EXPUNGE removes single messages
	Move          bool   // RFC 6851
	Keywords      bool   // INBOX takes the keyword $POP3Deleted
	ReadOnly      bool   // messages cannot be deleted
	UIDNext       bool   // SELECT returns UIDNEXT, so that a poll needs no other command
	StatusUIDNext bool   // STATUS returns UIDNEXT
	Trash         string // the mailbox for deleted mail, RFC 6154; "": none
}

// Inspect logs l in and returns the Traits of INBOX. It changes nothing on the server, and
// stores nothing. An error is a *proxy.Refusal, or an error of the connection or server.
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
