package inbox

import (
	"context"

	"github.com/emersion/go-imap/v2"
	"github.com/emersion/go-imap/v2/imapclient"
)

// The methods of this file send a command at once and return what waits for its
// answer, so that commands can be sent before the one before is answered. Every
// wait must be called, in any order. The end of ctx closes the connection until
// then.

// send sends a command. wait is imapclient's.
func (in *Inbox) send(ctx context.Context, command func(*imapclient.Client) (wait func() error)) (wait func() error) {
	end := in.begin(ctx)
	answer := command(in.client)
	return func() error {
		defer end()
		return in.explain(ctx, answer())
	}
}

// Store adds flags to messages, or removes them.
func (in *Inbox) Store(ctx context.Context, uids imap.UIDSet, op imap.StoreFlagsOp, flags ...imap.Flag) (wait func() error) {
	return in.send(ctx, func(c *imapclient.Client) func() error {
		return c.Store(uids, &imap.StoreFlags{Op: op, Silent: true, Flags: flags}, nil).Close
	})
}

// Move moves messages to the mailbox that TrashMailbox has returned, RFC 6851.
func (in *Inbox) Move(ctx context.Context, uids imap.UIDSet, mailbox []byte) (wait func() error) {
	return in.send(ctx, func(c *imapclient.Client) func() error {
		in.conn.setMailbox(mailbox)
		command := c.Move(uids, placeholder)
		return func() error { _, err := command.Wait(); return err }
	})
}

// Copy copies messages to the mailbox that TrashMailbox has returned.
func (in *Inbox) Copy(ctx context.Context, uids imap.UIDSet, mailbox []byte) (wait func() error) {
	return in.send(ctx, func(c *imapclient.Client) func() error {
		in.conn.setMailbox(mailbox)
		command := c.Copy(uids, placeholder)
		return func() error { _, err := command.Wait(); return err }
	})
}

// UIDExpunge removes those of the messages that have the \Deleted flag, RFC 4315.
func (in *Inbox) UIDExpunge(ctx context.Context, uids imap.UIDSet) (wait func() error) {
	return in.send(ctx, func(c *imapclient.Client) func() error { return c.UIDExpunge(uids).Close })
}

// Expunge removes all messages with the \Deleted flag, those that other clients
// have marked, too.
func (in *Inbox) Expunge(ctx context.Context) (wait func() error) {
	return in.send(ctx, func(c *imapclient.Client) func() error { return c.Expunge().Close })
}

// StartSearch is Search by other criteria. One search may run at a time.
func (in *Inbox) StartSearch(ctx context.Context, criteria *imap.SearchCriteria) (wait func() (imap.UIDSet, error)) {
	end := in.begin(ctx)
	search := in.sendSearch(criteria, nil)
	return func() (imap.UIDSet, error) {
		defer end()
		found, err := search()
		return found, in.explain(ctx, err)
	}
}
